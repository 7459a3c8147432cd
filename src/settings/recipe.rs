//! Recipes: TOML files with the options' names as keys, read with exact complaints and laid under the command line's options.

use std::path::Path;

use serde::Deserialize;
use serde::de::value::Error as ProbeError;
use serde::de::{Deserializer, Visitor};
use toml::de::DeTable;
use toml::{Table, Value};

use super::{Method, Selection, TrainSettings};
use crate::error::{Error, Result};

/// The ways of choosing modules: one that is given puts away the others of an earlier layer.
const CHOICES: [&str; 4] = ["threshold", "top-k", "budget", "keep-layers"];

/// The settings that somebody gave, by name: a recipe's, with the command line's above them. The defaults are not in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    given: Table,
}

impl Recipe {
    /// Reads a recipe file. Paths in it are relative to the current directory, as on the command line.
    ///
    /// # Errors
    /// `Error::Usage` with file and line on TOML that is wrong, a key that is unknown (the nearest valid one is named)
    /// or a value of the wrong type; `Error::Io` where the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = String::from_utf8(text).map_err(|e| {
            let line = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
            Error::Usage(format!("{}:{line}: not UTF-8; a recipe is TOML text", path.display()))
        })?;
        let name = path.display().to_string();
        let at = |offset: usize| format!("{name}:{}", line_of(text.as_bytes(), offset));
        let start = |e: &toml::de::Error| e.span().map_or(0, |span| span.start);

        let document = DeTable::parse(&text)
            .map_err(|e| Error::Usage(format!("{}: not TOML: {}", at(start(&e)), one_line(e.message()))))?;
        for key in document.get_ref().keys() {
            if !TrainSettings::keys().contains(&key.get_ref().as_ref()) {
                let place = at(key.span().start);
                return Err(Error::Usage(format!("{place}: {}", unknown_key(key.get_ref()))));
            }
        }
        toml::from_str::<TrainSettings>(&text).map_err(|e| {
            let offset = start(&e);
            let key = document.get_ref().iter().find(|(_, value)| value.span().contains(&offset));
            let key = key.map_or(String::new(), |(key, _)| format!("{}: ", key.get_ref()));
            Error::Usage(format!("{}: {key}{}", at(offset), one_line(e.message())))
        })?;
        let given = text.parse().map_err(|e: toml::de::Error| {
            Error::Usage(format!("{}: not TOML: {}", at(start(&e)), one_line(e.message())))
        })?;
        Ok(Recipe { given })
    }

    /// A recipe of settings by name, for instance the command line's; `Error::Usage` on an unknown name.
    pub fn from_table(given: Table) -> Result<Self> {
        match given.keys().find(|key| !TrainSettings::keys().contains(&key.as_str())) {
            Some(key) => Err(Error::Usage(unknown_key(key))),
            None => Ok(Recipe { given }),
        }
    }

    /// Lays `above` over this recipe. A way of choosing modules in `above` replaces this recipe's, and a method in `above`
    /// puts away what this recipe says for another method only. Returns the names that were put away.
    pub fn overlay(&mut self, above: Recipe) -> Vec<String> {
        let chooses = CHOICES.iter().any(|name| above.given.contains_key(*name));
        let method = above.given.get("method").and_then(|m| Method::deserialize(m.clone()).ok());
        let mut put_away = Vec::new();
        self.given.retain(|name, _| {
            let replaced = above.given.contains_key(name);
            let out = !replaced
                && ((chooses && CHOICES.contains(&name)) || method.is_some_and(|method| !method.uses(name)));
            if out {
                put_away.push(name.to_string());
            }
            !out
        });
        self.given.extend(above.given);
        put_away
    }

    /// The settings: what was given, and the defaults for the rest.
    ///
    /// # Errors
    /// `Error::Usage` on a value of the wrong type, on a setting that the method has no use for even if it stands at its
    /// default, and on everything that `TrainSettings::validate` refuses.
    pub fn settings(self) -> Result<TrainSettings> {
        let names: Vec<String> = self.given.keys().cloned().collect();
        let settings =
            TrainSettings::deserialize(self.given).map_err(|e| Error::Usage(one_line(e.message())))?;
        for name in names {
            settings.method.check_uses(&name)?;
        }
        settings.validate()?;
        Ok(settings)
    }
}

impl TrainSettings {
    /// The names of all settings: the command line's options and the recipe's keys.
    pub fn keys() -> &'static [&'static str] {
        let mut keys: &'static [&'static str] = &[];
        // The probe ends with an error by design; the names are what is wanted.
        let _ = TrainSettings::deserialize(FieldNames(&mut keys));
        keys
    }

    /// Reads settings from a recipe file alone; errors as `Recipe::read` and `Recipe::settings`.
    pub fn from_recipe(path: &Path) -> Result<Self> {
        Recipe::read(path)?.settings()
    }

    /// The recipe that repeats a run of these settings: every setting that the method reads, defaults written out.
    /// `overwrite` is left out, because it is a permission for one run and not a property of the result.
    pub fn to_recipe(&self) -> Result<String> {
        let mut resolved = self.clone();
        if self.method == Method::LoraDrop
            && let Selection::Threshold(threshold) = self.selection()
        {
            resolved.threshold = Some(threshold);
        }
        resolved.head_learning_rate = Some(self.head_learning_rate.unwrap_or(self.learning_rate));
        let table = resolved.to_table()?;
        let mut text = format!(
            "# lora-drop {}: the settings of this run. Repeat it with\n\
             #   lora-drop train recipe.toml --output NEW-FOLDER\n\
             # Paths are relative to the folder that the command is started in.\n",
            env!("CARGO_PKG_VERSION")
        );
        for name in Self::keys() {
            let empty = table.get(*name).and_then(Value::as_array).is_some_and(|list| list.is_empty());
            if let Some(value) = table.get(*name)
                && self.method.uses(name)
                && *name != "overwrite"
                && !empty
            {
                text.push_str(&format!("{name} = {value}\n"));
            }
        }
        Ok(text)
    }

    /// All settings by name; those that are not given are not in it.
    pub(super) fn to_table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|e| Error::Usage(format!("settings that TOML cannot hold: {e}")))
    }
}

/// `unknown key`, and the valid one that was likely meant.
fn unknown_key(key: &str) -> String {
    let underscores = key.replace('_', "-");
    let nearest = TrainSettings::keys().iter().min_by_key(|name| edit_distance(name, &underscores));
    match nearest {
        Some(name) if edit_distance(name, &underscores) <= 1 + name.len() / 3 => {
            format!("unknown key {key:?}; did you mean {name:?}?")
        }
        _ => format!("unknown key {key:?}; the keys are {}", TrainSettings::keys().join(", ")),
    }
}

/// Levenshtein's distance: insertions, deletions and replacements from one word to the other.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The line number, from 1, of a byte offset.
fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.trim().replace('\n', "; ")
}

/// A deserializer that only notes the names of the structure's fields, so that no second list of them has to be kept.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = ProbeError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> std::result::Result<V::Value, ProbeError> {
        Err(serde::de::Error::custom("only a structure has field names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, ProbeError> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OverLength, Restart, SampleEpochs, Schedule, Scope, Task, Unselected};
    use super::*;

    /// Every setting away from its default, save those that exclude each other.
    fn unusual() -> TrainSettings {
        TrainSettings {
            model: "org/name".into(),
            data: "data \"quoted\"\\x".into(),
            output: "runs/ü".into(),
            task: Some(Task::Regression),
            method: Method::LoraDrop,
            rank: 3,
            alpha: 0.1,
            lora_dropout: 0.05,
            target_modules: vec!["query".into(), "key".into()],
            sample_ratio: 0.25,
            sample_epochs: SampleEpochs::Epochs(4),
            threshold: None,
            top_k: None,
            budget: Some(1.0 / 3.0),
            keep_layers: None,
            scope: Scope::Layer,
            unselected: Unselected::Drop,
            restart: Restart::Continue,
            epochs: 7,
            learning_rate: 1e-3,
            head_learning_rate: Some(2e-3),
            batch_size: 5,
            grad_accumulation: 2,
            max_length: 99,
            over_length: OverLength::Error,
            weight_decay: 0.0,
            warmup_ratio: 0.5,
            schedule: Schedule::Cosine,
            max_grad_norm: 0.3,
            hidden_dropout: Some(0.0),
            attention_dropout: Some(0.2),
            label_smoothing: 0.1,
            metric: Some("f1".into()),
            seed: 42,
            threads: 2,
            overwrite: false,
            dtype: crate::settings::Dtype::Bf16,
            quantize: Some(crate::settings::Quantise::Q8_0),
            recompute: true,
            micro_tokens: Some(256),
            memory_limit: Some(crate::settings::Size(1_500_000_000)),
            activation_cache: 0.5,
            token_cache: 0.25,
            chat: true,
            prompt_template: Some("Q: {prompt}".into()),
            prompt_column: Some("d".into()),
            completion_column: Some("e".into()),
            text_column: Some("a".into()),
            pair_column: Some("b".into()),
            label_column: Some("c".into()),
        }
    }

    fn read(text: &str) -> Result<Recipe> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::read(&path)
    }

    fn complaint(text: &str) -> String {
        match read(text).and_then(Recipe::settings) {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn a_recipe_gives_back_every_setting() {
        let settings = unusual();
        let back = read(&settings.to_recipe().unwrap()).unwrap().settings().unwrap();
        assert_eq!(back, settings);
    }

    #[test]
    fn a_recipe_of_each_method_can_be_read_again() {
        for method in [Method::LoraDrop, Method::Lora, Method::Full, Method::Head] {
            let defaults = TrainSettings::default();
            let settings =
                TrainSettings { method, model: "m".into(), data: "d".into(), output: "o".into(), ..defaults };
            let text = settings.to_recipe().unwrap();
            let back = read(&text).unwrap().settings().unwrap();
            assert_eq!(back.to_recipe().unwrap(), text);
            assert_eq!(back.threshold, (method == Method::LoraDrop).then_some(0.9));
            assert_eq!(text.contains("rank = 8"), matches!(method, Method::LoraDrop | Method::Lora));
        }
    }

    #[test]
    fn a_slip_in_a_key_names_line_and_nearest_key() {
        let message = complaint("model = \"m\"\n\n# comment\nleraning-rate = 1e-3\n");
        assert!(
            message.contains("recipe.toml:4: unknown key \"leraning-rate\"; did you mean \"learning-rate\"?"),
            "{message}"
        );
        let message = complaint("learning_rate = 1e-3");
        assert!(message.contains("did you mean \"learning-rate\"?"), "{message}");
        let message = complaint("xyzzy = 1");
        assert!(
            message.contains("recipe.toml:1") && message.contains("the keys are model, data"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_type_names_line_and_key() {
        let message = complaint("model = \"m\"\nrank = \"eight\"\n");
        assert!(message.contains("recipe.toml:2: rank: invalid type"), "{message}");
        let message = complaint("model = \"m\"\nmethod = \"lorra\"\n");
        assert!(
            message.contains("recipe.toml:2: method: unknown variant") && message.contains("lora-drop"),
            "{message}"
        );
        let message = complaint("sample-epochs = 0");
        assert!(message.contains("recipe.toml:1: sample-epochs: expected \"auto\""), "{message}");
        assert!(complaint("rank = -3").contains("rank: "));
    }

    #[test]
    fn broken_toml_names_the_line() {
        let message = complaint("model = \"m\"\nrank = \n");
        assert!(message.contains("recipe.toml:2: not TOML"), "{message}");
        let message = complaint("rank = 1\nrank = 2\n");
        assert!(message.contains("recipe.toml:2: not TOML"), "{message}");
    }

    #[test]
    fn options_win_over_the_recipe() {
        let base = "model = \"m\"\ndata = \"d\"\noutput = \"o\"\nthreshold = 0.8\nrank = 4\nepochs = 2\n";
        let above = |text: &str| Recipe::from_table(text.parse().unwrap()).unwrap();

        let mut recipe = read(base).unwrap();
        assert_eq!(recipe.overlay(above("rank = 2\nbudget = 0.5")), ["threshold"]);
        let settings = recipe.settings().unwrap();
        assert_eq!((settings.rank, settings.epochs, settings.selection()), (2, 2, Selection::Budget(0.5)));

        let mut recipe = read(base).unwrap();
        assert_eq!(recipe.overlay(above("method = \"full\"")), ["rank", "threshold"]);
        assert_eq!(recipe.settings().unwrap().method, Method::Full);

        let mut recipe = read(base).unwrap();
        assert!(
            recipe.overlay(above("method = \"lora\"\nscope = \"module\"")).contains(&"threshold".to_string())
        );
        let Err(Error::Usage(message)) = recipe.settings() else { panic!("scope was given for plain LoRA") };
        assert!(message.contains("--scope has no meaning with method lora"), "{message}");
    }
}
