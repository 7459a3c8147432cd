//! Recipes: TOML files with the options' names as keys. Errors name the line, and options of the
//! command line override a recipe.

use std::collections::BTreeSet;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};
use twox_hash::XxHash3_128;

use super::situation::{Given, Reader, Situation};
use super::toml_file::TomlFile;
use super::{Budget, Method, RunSettings, Selection, definition, definitions, words};
#[cfg(feature = "hub")]
use super::{ClassWeights, DataSources, Definition, Setting};
use crate::error::{Error, Result};
#[cfg(feature = "hub")]
use crate::hub::{RepoKind, Repository};

/// The name of a run's recipe in its folder.
pub const RECIPE: &str = "recipe.toml";
/// The ways of choosing modules, which exclude each other: a given one replaces those of a lower
/// layer.
const CHOICE_RULES: [&str; 4] = ["threshold", "top-k", "budget", "keep-layers"];
/// The table of values that a run derived, and its key for the fingerprint of the settings that
/// they were derived from.
const DERIVED: &str = "derived";
const FINGERPRINT: &str = "from";
/// Settings that change no result of a run, so that no derived value depends on them.
const NEUTRAL_SETTINGS: [&str; 9] = [
    "output",
    "overwrite",
    "checkpoint-minutes",
    "save-total",
    "log-to",
    "metrics-file",
    "threads",
    "token-cache",
    "activation-cache",
];

/// The given settings, by name: a recipe's, overlaid with those of the command line. Defaults are
/// not in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    given: Table,
    /// Names of the settings that came from the layer below, a recipe file.
    inherited: BTreeSet<String>,
    derived: Option<Derived>,
    /// Whether the layer above is about another model, task or data.
    other_inputs: bool,
    /// Names of the lower layer's settings that do not apply.
    left_out: Vec<String>,
}

/// Values that the run that wrote a recipe derived from its settings.
#[derive(Clone, Debug, PartialEq)]
struct Derived {
    /// Fingerprint of those settings.
    fingerprint: String,
    values: Table,
}

impl Recipe {
    /// Reads a recipe file. Paths in it are relative to the current directory, as on the command
    /// line.
    ///
    /// # Errors
    /// `Error::Usage` with file and line for invalid TOML, an unknown key (the nearest valid one is
    /// named) or a value of the wrong type or out of range; `Error::Io` if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&TomlFile::read(path, "a recipe")?)
    }

    /// Reads a recipe's text, as `read` does.
    pub(crate) fn parse(file: &TomlFile) -> Result<Self> {
        let at = |offset: usize| file.at(offset);
        let (mut document, mut given) = file.parse()?;
        let derived = match (document.get_mut().remove(DERIVED), given.remove(DERIVED)) {
            (Some(table), Some(Value::Table(mut values))) => {
                let span = table.span();
                let DeValue::Table(mut table) = table.into_inner() else { unreachable!("the same document") };
                let fingerprint = table.remove(FINGERPRINT).and(values.remove(FINGERPRINT));
                check_table(Spanned::new(span, table), &values, &[], &at)?;
                let fingerprint =
                    fingerprint.and_then(|text| text.as_str().map(String::from)).unwrap_or_default();
                Some(Derived { fingerprint, values })
            }
            (Some(value), _) => {
                let place = at(value.span().start);
                return Err(Error::Usage(format!("{place}: {DERIVED}: expected a table of settings")));
            }
            (None, _) => None,
        };
        check_table(document, &given, &[], &at)?;
        Ok(Recipe { given, derived, ..Recipe::default() })
    }

    /// A recipe of settings by name, such as the command line's.
    ///
    /// # Errors
    /// `Error::Usage` for an unknown name.
    pub fn from_table(given: Table) -> Result<Self> {
        match given.keys().find(|key| definition(key).is_none()) {
            Some(key) => Err(Error::Usage(unknown_key(key, &[]))),
            None => Ok(Recipe { given, ..Recipe::default() }),
        }
    }

    /// The settings that were given, by name.
    pub fn given(&self) -> &Table {
        &self.given
    }

    /// Overlays this recipe with the settings of `above`. A rule for choosing modules in `above`
    /// replaces this recipe's, and settings of this recipe that are not read because of `above` are
    /// left out.
    pub fn overlay(&mut self, above: Recipe) {
        let derived = |name: &str| self.derived.as_ref().and_then(|derived| derived.values.get(name));
        let differs = |name: &str| {
            let own = self.given.get(name).or_else(|| derived(name));
            own.is_some_and(|own| above.given.get(name).is_some_and(|value| value != own))
        };
        self.other_inputs |= ["model", "data", "task"].into_iter().any(differs);
        let before = situation(&self.given, Reader::Train);
        if CHOICE_RULES.iter().any(|name| above.given.contains_key(*name)) {
            self.leave_out(|name| CHOICE_RULES.contains(&name) && !above.given.contains_key(name));
        }
        let mut merged = self.given.clone();
        merged.extend(above.given.clone());
        let after = situation(&merged, Reader::Train);
        self.leave_out(|name| {
            let replaced = above.given.contains_key(name);
            !replaced && before.unread(name).is_none() && after.unread(name).is_some()
        });
        self.inherited = self.given.keys().filter(|name| !above.given.contains_key(*name)).cloned().collect();
        self.given.extend(above.given);
    }

    fn leave_out(&mut self, out: impl Fn(&str) -> bool) {
        let Recipe { given, left_out, .. } = self;
        given.retain(|name, _| {
            let out = out(name);
            if out {
                left_out.push(name.to_string());
            }
            !out
        });
    }

    /// Returns the settings: the given ones, what the recipe's run derived from them if they are
    /// unchanged, and defaults; and the names of a recipe file's settings that do not apply.
    ///
    /// # Errors
    /// `Error::Usage` for a value of the wrong type, for a given setting that is not read, and for
    /// everything that [`RunSettings::validate`] refuses.
    pub fn settings(mut self, reader: Reader) -> Result<(RunSettings, Vec<String>)> {
        self.drop_stale_derived();
        // Other commands use a run's recipe too, but read only a part of it.
        let [run, here] = [Reader::Train, reader].map(|reader| situation(&self.given, reader));
        let inherited = std::mem::take(&mut self.inherited);
        self.leave_out(|name| {
            inherited.contains(name) && run.unread(name).is_none() && here.unread(name).is_some()
        });
        let left_out = std::mem::take(&mut self.left_out);
        let mut settings = self.values()?;
        settings.check_read(&Situation::new(&settings, reader))?;
        settings.validate()?;
        if self.other_inputs {
            settings.given.inherited = inherited;
        }
        Ok((settings, left_out))
    }

    /// The settings of a finished run as recorded; none is refused.
    ///
    /// # Errors
    /// `Error::Usage` for a value of the wrong type or out of its range.
    pub fn recorded(mut self) -> Result<RunSettings> {
        self.drop_stale_derived();
        self.values()
    }

    /// The name of the model; empty if it is not given.
    #[cfg(feature = "hub")]
    pub(crate) fn model(&self) -> String {
        self.given.get("model").and_then(Value::as_str).unwrap_or_default().to_string()
    }

    /// The recipe's text for readers elsewhere: without paths, which are this machine's, and with
    /// `model`, the base model's name on the hub, if it is known. What the run derived stays.
    #[cfg(feature = "hub")]
    pub(crate) fn portable(mut self, model: Option<&str>) -> String {
        self.drop_stale_derived();
        let Recipe { mut given, derived, .. } = self;
        let mut derived = derived.map(|derived| derived.values).unwrap_or_default();
        for table in [&mut given, &mut derived] {
            table.retain(|name, value| !is_path_here(name, value));
        }
        if let Some(model) = model {
            given.insert("model".to_string(), model.into());
        }
        recipe_text(&given, &derived)
    }

    fn values(&self) -> Result<RunSettings> {
        let mut given = Given { names: self.given.keys().cloned().collect(), ..Given::default() };
        let mut table = self.given.clone();
        if let Some(Derived { values, .. }) = &self.derived {
            given.derived = values.keys().cloned().collect();
            given.replaced = table.clone();
            given.replaced.retain(|name, _| values.contains_key(name));
            table.extend(values.clone());
        }
        let mut settings = RunSettings { given, ..RunSettings::default() };
        settings.apply(&table)?;
        Ok(settings)
    }

    /// Drops values that were derived from other settings.
    fn drop_stale_derived(&mut self) {
        let now = fingerprint(&self.given);
        self.derived = self.derived.take().filter(|derived| derived.fingerprint == now);
    }
}

/// The situation that these settings give; that of the defaults if a setting is not valid.
fn situation(table: &Table, reader: Reader) -> Situation {
    let mut settings = RunSettings::default();
    let settings = if settings.apply(table).is_ok() { settings } else { RunSettings::default() };
    Situation::new(&settings, reader)
}

/// Whether the setting of this name changes no result of a run.
pub fn changes_no_result(name: &str) -> bool {
    NEUTRAL_SETTINGS.contains(&name)
}

/// Hashes the values of all settings that a derived value may depend on.
fn fingerprint(given: &Table) -> String {
    let names = definitions().map(|definition| definition.name).filter(|name| !changes_no_result(name));
    let lines = names.filter_map(|name| Some(format!("{name} = {}\n", given.get(name)?)));
    format!("{:032x}", XxHash3_128::oneshot(lines.collect::<String>().as_bytes()))
}

/// Checks the keys and values of a recipe's table, given with spans and as plain `values`. `own`
/// are further keys that are allowed here but are not in the table. `at` returns the file and line
/// of an offset.
///
/// # Errors
/// `Error::Usage` for an unknown key, and for a value of the wrong type or out of range.
pub fn check_table(
    table: Spanned<DeTable>,
    values: &Table,
    own: &[&str],
    at: &impl Fn(usize) -> String,
) -> Result<()> {
    let mut settings = RunSettings::default();
    for (key, value) in table.get_ref().iter() {
        let (name, place) = (key.get_ref().as_ref(), at(key.span().start));
        let Some(definition) = definition(name) else {
            return Err(Error::Usage(format!("{place}: {}", unknown_key(name, own))));
        };
        let Some(plain) = values.get(name) else { continue };
        if let Some(message) = definition.problem(plain) {
            return Err(Error::Usage(format!("{place}: {message}")));
        }
        if let Err(expected) = (definition.set)(&mut settings, plain) {
            let place = at(value.span().start);
            return Err(Error::Usage(format!("{place}: {name}: {expected}")));
        }
    }
    Ok(())
}

impl RunSettings {
    /// Reads settings from a recipe file alone.
    ///
    /// # Errors
    /// Those of [`Recipe::read`] and [`Recipe::settings`].
    pub fn from_recipe(path: &Path) -> Result<Self> {
        Ok(Recipe::read(path)?.settings(Reader::Train)?.0)
    }

    /// Overlays the defaults with the settings of a recipe file, if there is one, and with the
    /// given ones. Also returns a note on the recipe's settings that do not apply.
    ///
    /// # Errors
    /// Those of [`Recipe::read`], [`Recipe::from_table`] and [`Recipe::settings`].
    pub fn from_layers(
        recipe: Option<&Path>,
        given: Table,
        reader: Reader,
    ) -> Result<(Self, Option<String>)> {
        let mut merged = recipe.map(Recipe::read).transpose()?.unwrap_or_default();
        merged.overlay(Recipe::from_table(given)?);
        let (settings, left_out) = merged.settings(reader)?;
        let note = "these settings of the recipe have no effect here and are left out";
        Ok((settings, (!left_out.is_empty()).then(|| format!("{note}: {}", left_out.join(", ")))))
    }

    /// The recipe that repeats a run of these settings in this situation: every setting that was
    /// read, with defaults written out, and the values that the run computed, from `resolved`.
    /// `overwrite` is left out, because it is a permission for one run.
    pub fn to_recipe(&self, resolved: &RunSettings, situation: &Situation) -> String {
        let mut settings = self.clone();
        // These were given and not derived; `resolved` only has absolute paths.
        (settings.place.model, settings.place.data) =
            (resolved.place.model.clone(), resolved.place.data.clone());
        settings.place.metrics_file.clone_from(&resolved.place.metrics_file);
        settings.train.selection.scores.clone_from(&resolved.train.selection.scores);
        settings.train.adapter.init_adapter.clone_from(&resolved.train.adapter.init_adapter);
        let (method, selection) = (self.train.adapter.method, &self.train.selection);
        if method == Method::LoraDrop
            && let Selection::Threshold(threshold) = selection.rule()
        {
            settings.train.selection.threshold = Some(threshold);
        }
        if method == Method::SparseAdapter {
            settings.train.selection.budget = Some(Budget::Share(selection.density()));
        }
        let (mut given, all) = (settings.to_table(), resolved.to_table());
        let unread = |name: &str| name == "overwrite" || situation.unread(name).is_some();
        let empty = |value: &Value| value.as_array().is_some_and(|list| list.is_empty());
        let derived = |name: &str, value: &Value| {
            !empty(value)
                && (self.given.derived.contains(name) || given.get(name).is_none_or(|own| own != value))
        };
        let derived: Table = all
            .iter()
            .filter(|(name, value)| !unread(name) && derived(name, value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        // A given value stays even if the run derived another one from it: it counts again once
        // another line is changed.
        let defaults = RunSettings::default().to_table();
        let is_given = |name: &str, value: &Value| {
            let named = self.given.names.contains(name) || defaults.get(name) != Some(value);
            named && !self.given.derived.contains(name)
        };
        given.retain(|name, value| {
            !unread(name) && !empty(value) && (!derived.contains_key(name) || is_given(name, value))
        });
        given.extend(self.given.replaced.clone());
        recipe_text(&given, &derived)
    }
}

/// The text of a recipe with these settings and derived values.
fn recipe_text(given: &Table, derived: &Table) -> String {
    let mut text = format!(
        "# lora-drop {}: the settings of this run. Repeat it with\n\
         #   lora-drop train recipe.toml --output NEW-FOLDER\n\
         # A relative path is one of the folder that the command is started in.\n",
        env!("CARGO_PKG_VERSION")
    );
    let lines = |table: &Table| -> String {
        let names = definitions().map(|definition| definition.name);
        names.filter_map(|name| Some(format!("{name} = {}\n", table.get(name)?))).collect()
    };
    text.push_str(&lines(given));
    if !derived.is_empty() {
        text.push_str(&format!(
            "\n# Values that the run derived from these settings. They are used as long as the settings are unchanged, so\n\
             # that the run is repeated bit for bit; if an option or a line above changes, they are derived again.\n\
             [{DERIVED}]\n{FINGERPRINT} = \"{}\"\n{}",
            fingerprint(given),
            lines(derived)
        ));
    }
    text
}

/// Whether a setting is a path on this machine, and not a name on the hub.
#[cfg(feature = "hub")]
fn is_path_here(name: &str, value: &Value) -> bool {
    let texts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let all_on_hub = |kind| {
        let paths: Vec<String> = texts.iter().filter_map(|text| text.as_str().map(str::to_string)).collect();
        DataSources::from(paths).paths().iter().all(|path| Repository::of(path, kind).is_some())
    };
    match name {
        "model" => !all_on_hub(RepoKind::Model),
        "data" => !all_on_hub(RepoKind::Data),
        "class-weights" => matches!(ClassWeights::from_value(value), Ok(ClassWeights::File(_))),
        _ => definition(name).is_some_and(Definition::is_path),
    }
}

/// The message for an unknown key, with the valid one that was likely meant: a setting, or one of
/// `own`.
fn unknown_key(key: &str, own: &[&str]) -> String {
    let dashes = key.replace('_', "-");
    if let Some(known) = definitions().find(|definition| definition.aliases.contains(&dashes.as_str())) {
        return format!("unknown key {key:?}; here it is {:?}", known.name);
    }
    if let Some(advice) = words::advice(key) {
        return format!("unknown key {key:?}; {advice}");
    }
    unknown_among(
        key,
        &own.iter().copied().chain(definitions().map(|definition| definition.name)).collect::<Vec<_>>(),
    )
}

/// The message for an unknown key, with the most similar of `known`, or with all of them.
pub fn unknown_among(key: &str, known: &[&str]) -> String {
    let dashes = key.replace('_', "-");
    let distance = |name: &str| strsim::levenshtein(name, &dashes);
    match known.iter().min_by_key(|name| distance(name)) {
        Some(name) if distance(name) <= 1 + name.len() / 3 => {
            format!("unknown key {key:?}; did you mean {name:?}?")
        }
        _ => format!("unknown key {key:?}; the keys are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Task, TrainSettings};
    use super::*;

    #[cfg(feature = "hub")]
    #[test]
    fn a_portable_recipe_has_no_path_of_this_machine() {
        let may_be_path =
            |setting: &&Definition| ["DIR", "FILE"].iter().any(|form| setting.value_name.contains(form));
        let path = |setting: &Definition| (setting.name.to_string(), Value::from("/home/me/place"));
        let mut given: Table = definitions().filter(may_be_path).map(path).collect();
        assert!(given.contains_key("metrics-file") && given.contains_key("output"));
        given.insert("rank".to_string(), 4.into());
        let text = Recipe::from_table(given).unwrap().portable(Some("org/base"));
        assert!(!text.contains("/home/me"), "{text}");
        assert!(text.contains("model = \"org/base\"\n") && text.contains("rank = 4\n"), "{text}");
    }

    /// Every setting that all runs read, at another value than its default, except those that
    /// exclude each other.
    const UNUSUAL: &str = r#"
        model = "org/name"
        data = "data \"quoted\"\\x"
        output = "runs/ü"
        rank = 3
        alpha = 0.1
        lora-dropout = 0.05
        target-modules = ["query", "key"]
        criterion = "size"
        sample-ratio = 0.25
        sample-epochs = 4
        budget = 0.3333333333333333
        scope = "layer"
        unselected = "drop"
        restart = "continue"
        epochs = 7
        learning-rate = 1e-3
        batch-size = 5
        grad-accumulation = 2
        max-length = 99
        over-length = "error"
        token-cache = 0.25
        weight-decay = 0
        warmup-ratio = 0.5
        schedule = "cosine"
        max-grad-norm = 0.3
        hidden-dropout = 0.0
        attention-dropout = 0.2
        metric = "f1"
        seed = 42
        threads = 2
        dtype = "bf16"
        quantize = "q8_0"
        recompute = true
        micro-tokens = 256
        memory-limit = "1500MB"
        activation-cache = 0.5
        text-column = "a"
    "#;

    fn plain(text: &str) -> RunSettings {
        let mut settings = RunSettings::default();
        settings.apply(&text.parse().unwrap()).unwrap();
        settings
    }

    fn minimal() -> RunSettings {
        RunSettings::new("m", "d", "o")
    }

    fn read(text: &str) -> Result<Recipe> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::read(&path)
    }

    fn complaint(text: &str) -> String {
        match read(text).and_then(|recipe| recipe.settings(Reader::Train)) {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    /// The recipe of a run whose model and data decided nothing.
    fn written(settings: &RunSettings) -> String {
        settings.to_recipe(settings, &Situation::new(settings, Reader::Train))
    }

    fn settings(recipe: Recipe) -> RunSettings {
        recipe.settings(Reader::Train).unwrap().0
    }

    fn above(text: &str) -> Recipe {
        Recipe::from_table(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn a_recipe_gives_back_every_setting() {
        // No run reads both the settings of texts and those of labels.
        let of_labels =
            "task = \"regression\"\nhead-learning-rate = 2e-3\npair-column = \"b\"\nlabel-column = \"c\"";
        let of_classes = "label-smoothing = 0.1";
        let of_texts = "task = \"text\"\nchat = true\nprompt-template = \"Q: {prompt}\"\nprompt-column = \"d\"\ncompletion-column = \"e\"";
        for own in [of_labels, of_classes, of_texts] {
            let settings = plain(&format!("{UNUSUAL}\n{own}"));
            let back = read(&written(&settings)).unwrap().settings(Reader::Train).unwrap().0;
            assert!(back.given.names.contains("rank") && back.given.derived.is_empty());
            assert_eq!(RunSettings { given: Given::default(), ..back }, settings);
        }
    }

    #[test]
    fn a_recipe_of_each_method_can_be_read_again() {
        for &method in Method::ALL {
            let mut run = minimal();
            run.train.adapter.method = method;
            let text = written(&run);
            let back = settings(read(&text).unwrap());
            assert_eq!(written(&back), text);
            assert_eq!(back.train.selection.threshold, (method == Method::LoraDrop).then_some(0.9));
            assert_eq!(text.contains("rank = 8"), method.adapter().is_some());
            assert_eq!(text.contains("activation-cache"), method == Method::Head);
        }
    }

    #[test]
    fn derived_values_are_used_while_their_sources_are_the_same() {
        let run = minimal();
        let mut resolved = run.clone();
        resolved.train.compute.micro_tokens = Some(512);
        resolved.train.adapter.target_modules = vec!["query".into()];
        resolved.rows.max_length = Some(128);
        let text = run.to_recipe(&resolved, &Situation::new(&run, Reader::Train));
        let micro_tokens = |text: &str, options: &str| {
            let mut recipe = read(text).unwrap();
            recipe.overlay(above(options));
            settings(recipe).train.compute.micro_tokens
        };
        for same in ["", "output = \"x\"\nthreads = 1\noverwrite = true", "epochs = 3"] {
            assert_eq!(micro_tokens(&text, same), Some(512), "{same}");
        }
        for other in
            ["rank = 4", "seed = 1", "memory-limit = \"1GB\"", "recompute = true", "method = \"lora\""]
        {
            assert_eq!(micro_tokens(&text, other), None, "{other}");
        }
        assert_eq!(micro_tokens(&text, "micro-tokens = 9"), Some(9));
        assert_eq!(micro_tokens(&text.replace("epochs = 3", "epochs = 4"), ""), None);
        // Names that stand for several modules are written as they were given, and count again once
        // something else has changed.
        let names = |of: &[&str]| of.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let with = |settings: &RunSettings, modules: &[&str]| {
            let mut settings = settings.clone();
            settings.train.adapter.target_modules = names(modules);
            settings
        };
        let short = with(&run, &["query", "dense"]);
        let long = with(&resolved, &["query", "a.dense", "b.dense"]);
        let written = short.to_recipe(&long, &Situation::new(&short, Reader::Train));
        let repeated = settings(read(&written).unwrap());
        assert_eq!(repeated.train.adapter, long.train.adapter);
        assert_eq!(repeated.to_recipe(&long, &Situation::new(&short, Reader::Train)), written);
        let mut changed = read(&written).unwrap();
        changed.overlay(above("recompute = true"));
        assert_eq!(settings(changed).train.adapter, short.train.adapter);
        // Repeated, the run writes the same recipe; and nothing that was derived is taken for
        // given.
        let again = settings(read(&text).unwrap());
        assert_eq!((again.rows.max_length, again.given.names.contains("max-length")), (Some(128), false));
        assert_eq!(again.to_recipe(&again, &Situation::new(&again, Reader::Train)), text);
    }

    #[test]
    fn a_table_of_derived_values_is_checked_too() {
        let message = complaint("rank = 4\n[derived]\nmicro-tokens = 512\nmicro = 3\n");
        assert!(message.contains("recipe.toml:4: unknown key \"micro\""), "{message}");
        let message = complaint("rank = 4\n[derived]\nmicro-tokens = \"many\"\n");
        assert!(
            message.contains("recipe.toml:3: micro-tokens: expected a whole number, found \"many\""),
            "{message}"
        );
        let message = complaint("derived = 4\n");
        assert!(message.contains("recipe.toml:1: derived: expected a table"), "{message}");
    }

    #[test]
    fn other_trainers_words_are_explained() {
        for (text, expected) in [
            ("lr = 1e-3", "here it is \"learning-rate\""),
            ("num_train_epochs = 2", "here it is \"epochs\""),
            ("eval-strategy = \"steps\"", "give `eval_steps`"),
        ] {
            let message = complaint(text);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn an_unknown_key_names_line_and_nearest_key() {
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
        assert!(
            message.contains("recipe.toml:2: rank: expected a whole number, found \"eight\""),
            "{message}"
        );
        let message = complaint("model = \"m\"\nmethod = \"lorra\"\n");
        assert!(
            message.contains("recipe.toml:2: `method` is \"lorra\"; it must be lora-drop, lora"),
            "{message}"
        );
        let message = complaint("sample-epochs = 0");
        assert!(message.contains("recipe.toml:1: `sample_epochs` is 0; it must be 1 to"), "{message}");
        let message = complaint("\nrank = -3");
        assert!(message.contains("recipe.toml:2: `rank` is -3; it must be 1 to"), "{message}");
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
        let over = |options: &str, reader| {
            let mut recipe = read(base).unwrap();
            recipe.overlay(above(options));
            recipe.settings(reader)
        };
        let (settings, left_out) = over("rank = 2\nbudget = 0.5", Reader::Train).unwrap();
        assert_eq!(left_out, ["threshold"]);
        let TrainSettings { adapter, optimisation, selection, .. } = settings.train;
        assert_eq!((adapter.rank, optimisation.epochs, selection.rule()), (2, 2, Selection::Budget(0.5)));

        let (settings, left_out) = over("method = \"full\"", Reader::Train).unwrap();
        assert_eq!(
            (settings.train.adapter.method, &left_out[..]),
            (Method::Full, &["rank".into(), "threshold".into()][..])
        );

        let refused = over("method = \"lora\"\nscope = \"module\"", Reader::Train);
        let Err(Error::Usage(message)) = refused else { panic!("scope was given for plain LoRA") };
        assert!(message.contains("`scope` has no effect with `method = lora`"), "{message}");

        // Another command reads a part of a run's recipe, and refuses an option that it does not
        // read.
        let (settings, left_out) = over("", Reader::ScoreAdapter).unwrap();
        assert_eq!(
            (settings.train.selection.threshold, &left_out[..]),
            (Some(0.8), &["epochs".into(), "rank".into()][..])
        );
        assert!(over("rank = 2", Reader::ScoreAdapter).is_err());
    }

    #[test]
    fn recipe_settings_for_another_task_are_left_out() {
        let text = "model = \"m\"\ndata = \"d\"\noutput = \"o\"\nlabel-smoothing = 0.1\n";
        let situation = |settings: &RunSettings| Situation {
            task: Some(Task::Text),
            ..Situation::new(settings, Reader::Train)
        };
        let own = settings(read(text).unwrap());
        assert!(own.check_read(&situation(&own)).is_err());
        let mut recipe = read(text).unwrap();
        recipe.overlay(above("data = \"texts\""));
        let other = settings(recipe);
        let notes = other.check_read(&situation(&other)).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("label-smoothing"), "{notes:?}");
    }
}
