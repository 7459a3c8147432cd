//! The model card: README.md in an adapter's folder, with the front matter that the hub reads, the
//! method, the results on dev, and how to load the adapter.
//!
//! A card ends in a line with the hash of the text above it, by which a README.md that somebody
//! wrote or changed is recognised. Such a file is never replaced.

mod escape;
#[cfg(feature = "hub")]
mod pushed;
mod python;

use std::path::Path;

use lora_drop_transformer::{Head, HeadKind};
use twox_hash::XxHash3_128;

use crate::adapter::{AdapterFile, COMPACT_FILE};
use crate::assignment::{Assignment, Owner};
use crate::data::Labels;
use crate::evaluate::metrics::Metric;
use crate::format::{counted, epoch, fixed, grouped, layers, percent};
use crate::hub::{RepoKind, Repository};
use crate::model::gguf_file;
use crate::prune::Pruning;
use crate::run_record::{ModuleNames, RunRecord, names_of};
use crate::settings::{Method, Reader, RunSettings, Situation, Unselected};
use crate::summary::{Baseline, BaselineKind};

use escape::{code, shell, text, yaml};
#[cfg(feature = "hub")]
pub(crate) use pushed::pushed;

/// The card's name in a folder, where the hub looks for it.
pub const CARD_FILE: &str = "README.md";
/// Text of the last line before and after the hash.
const SIGNATURE: (&str, &str) = ("<!-- lora-drop: a changed card is not replaced; hash ", " -->\n");
/// Type of a data set that is not on the hub, as the front matter requires one.
const NO_HUB_DATA: &str = "custom";
/// Settings that the card shows if they were read.
const SETTINGS: [&str; 19] = [
    "target-modules",
    "rank",
    "alpha",
    "lora-dropout",
    "criterion",
    "sample-ratio",
    "threshold",
    "top-k",
    "budget",
    "keep-layers",
    "unselected",
    "epochs",
    "max-steps",
    "learning-rate",
    "schedule",
    "batch-size",
    "weight-decay",
    "max-length",
    "seed",
];

/// Contents of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// PEFT's adapter.
    Peft,
    /// The compact adapter alone: no module has a LoRA.
    Compact,
    /// A whole model for transformers.
    Model,
}

/// What the model predicts for a row.
#[derive(Clone, Debug, PartialEq)]
enum PredictionKind {
    /// Generated text.
    Text,
    Class(ClassList),
    ClassSet(ClassList),
    /// The class of each token.
    Tags(ClassList),
    Value,
}

/// The classes: their names, or their number if no file names them.
#[derive(Clone, Debug, PartialEq)]
enum ClassList {
    Named(Vec<String>),
    Unnamed(usize),
}

impl PredictionKind {
    fn new(labels: Option<&Labels>, head: Option<Head>) -> Self {
        let named = |labels: &Labels| ClassList::Named(labels.names().to_vec());
        match (labels, head) {
            (Some(labels @ Labels::Classification { .. }), _) => PredictionKind::Class(named(labels)),
            (Some(labels @ Labels::MultiLabel { .. }), _) => PredictionKind::ClassSet(named(labels)),
            (Some(labels @ Labels::TokenClassification { .. }), _) => PredictionKind::Tags(named(labels)),
            (Some(Labels::Regression), _) => PredictionKind::Value,
            (None, Some(Head { kind: HeadKind::Token, outputs })) => {
                PredictionKind::Tags(ClassList::Unnamed(outputs))
            }
            (None, Some(Head { outputs: 1, .. })) => PredictionKind::Value,
            (None, Some(Head { outputs, .. })) => PredictionKind::Class(ClassList::Unnamed(outputs)),
            (None, None) => PredictionKind::Text,
        }
    }

    fn outputs(&self) -> Option<usize> {
        match self {
            PredictionKind::Text => None,
            PredictionKind::Value => Some(1),
            PredictionKind::Class(classes)
            | PredictionKind::ClassSet(classes)
            | PredictionKind::Tags(classes) => Some(match classes {
                ClassList::Named(names) => names.len(),
                ClassList::Unnamed(count) => *count,
            }),
        }
    }

    fn names(&self) -> Option<&[String]> {
        match self {
            PredictionKind::Class(ClassList::Named(names))
            | PredictionKind::ClassSet(ClassList::Named(names))
            | PredictionKind::Tags(ClassList::Named(names)) => Some(names),
            _ => None,
        }
    }

    /// Returns the hub's name of the task.
    fn pipeline(&self) -> &'static str {
        match self {
            PredictionKind::Text => "text-generation",
            PredictionKind::Tags(_) => "token-classification",
            _ => "text-classification",
        }
    }
}

/// The base model.
#[derive(Clone, Debug, PartialEq)]
struct Base {
    /// `org/name`, a folder, or the folder of a GGUF file.
    place: String,
    on_hub: bool,
    revision: Option<String>,
    /// The GGUF file in that place.
    file: Option<String>,
    /// The model in the form that lora-drop's `--model` takes.
    model: String,
}

impl Base {
    /// Describes the base model that is named `model` and whose files are at `path`.
    fn new(model: &str, path: &Path) -> Self {
        let gguf = gguf_file(path).ok().flatten();
        let gguf_name = gguf.and_then(|file| Some(file.file_name()?.to_string_lossy().into_owned()));
        if let Some(mut repository) = Repository::of(Path::new(model), RepoKind::Model) {
            repository.file = repository.file.or(gguf_name);
            let model = repository.to_string();
            let Repository { id, revision, file } = repository;
            return Base { place: id, on_hub: true, revision, file, model };
        }
        let own = Path::new(model);
        let place = own.parent().filter(|_| own.is_file()).unwrap_or(own);
        Base {
            place: place.to_string_lossy().into_owned(),
            on_hub: false,
            revision: None,
            file: gguf_name,
            model: model.to_string(),
        }
    }
}

/// The base model of an adapter that does not come from a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BaseModel<'a> {
    pub name: &'a str,
    /// Where its files are.
    pub path: &'a Path,
    /// The adapter's head on it.
    pub head: Option<Head>,
}

/// The measured results.
struct Results {
    /// Values by the metrics' names.
    metrics: Vec<(String, f64)>,
    /// What was measured: "Measured on the 408 rows of dev after epoch 3".
    about: String,
    baseline: Option<Baseline>,
}

/// Contents of a card.
pub(crate) struct Card {
    /// The folder's name.
    name: String,
    base: Base,
    form: Form,
    has_compact: bool,
    prediction: PredictionKind,
    /// Whether rows have two texts.
    pair: bool,
    max_length: Option<usize>,
    /// The method's name.
    title: String,
    /// Paragraphs of Markdown.
    method: Vec<String>,
    /// The data sets: the name on the hub or the last part of the path, and whether it is on the
    /// hub.
    data: Vec<(String, bool)>,
    data_config: Option<String>,
    results: Option<Results>,
    settings: Vec<(&'static str, String)>,
}

impl Card {
    /// Creates the card of a run that writes `folder`, with a model that has been measured. The
    /// base model's files are at `base`.
    pub fn of_run(
        record: &RunRecord,
        labels: Option<&Labels>,
        form: Form,
        base: &Path,
        folder: &Path,
    ) -> Self {
        let RunRecord { summary, settings, data, .. } = record;
        let method = settings.train.adapter.method;
        let dev = data.splits.iter().find(|split| split.name == "dev");
        let rows = dev.map_or(String::new(), |dev| format!(" on the {} of dev", counted(dev.rows, "row")));
        let results = Results {
            metrics: summary.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect(),
            about: format!(
                "Measured{rows} after epoch {} of {}, the best by {}.",
                epoch(summary.best_epoch),
                summary.epochs,
                code(&summary.metric)
            ),
            baseline: summary.baseline.clone(),
        };
        let mut sentences = vec![about(method, settings.train.selection.unselected).to_string()];
        if let Some(assignment) = record.assignment.as_ref().filter(|_| method.adapter().is_some()) {
            if !method.ties_pairs() {
                sentences.push(owners(assignment, &record.module_names));
            }
            sentences.push(parameters(summary.lora_parameters, summary.lora_parameters_full));
        }
        sentences.push(format!(
            "Of the model's {} parameters {} were trained, the head included.",
            grouped(record.model.parameters),
            grouped(summary.trainable_parameters)
        ));
        Card {
            name: name_of(folder),
            base: Base::new(&settings.place.model, base),
            form,
            has_compact: form != Form::Model,
            prediction: PredictionKind::new(labels, None),
            max_length: Some(data.max_length).filter(|&length| length > 0),
            title: method.title().to_string(),
            method: sentences,
            results: Some(results),
            ..Card::of_settings(settings)
        }
    }

    /// Creates the card of a pruned adapter. `settings` are those of the adapter's training.
    pub fn of_pruning(
        pruning: &Pruning,
        file: &AdapterFile,
        base: BaseModel,
        settings: &RunSettings,
        folder: &Path,
    ) -> Self {
        let mut card = Card::of_adapter(file, base, Some(settings), folder);
        card.has_compact = true;
        let Some(kept) = pruning.kept() else { return card };
        card.method.push(format!(
            "It was pruned from an adapter of {} LoRA parameters to {} of them, in closed form: the directions of each \
             pair's output with the least energy were left out. Its ranks are {} to {}.",
            grouped(pruning.whole.parameters),
            percent(kept.retained_ratio),
            kept.ranks.0,
            kept.ranks.1
        ));
        let measured = match &pruning.finetuned {
            Some(finetuned) => {
                Some((&finetuned.dev, format!(" after {} of training", counted(finetuned.steps, "step"))))
            }
            None => kept.dev.as_ref().map(|dev| (dev, String::new())),
        };
        card.results = measured.map(|(dev, after)| Results {
            metrics: dev.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect(),
            about: format!("Measured on the {} of dev{after}.", counted(pruning.dev_rows, "row")),
            baseline: None,
        });
        card.data = vec![data_set(&pruning.data)];
        card
    }

    /// Creates the card of an adapter whose training is known only from its own files, or from the
    /// `settings` of its run.
    pub fn of_adapter(
        file: &AdapterFile,
        base: BaseModel,
        settings: Option<&RunSettings>,
        folder: &Path,
    ) -> Self {
        let labels = file.labels.as_ref().and_then(|labels| serde_json::from_value(labels.clone()).ok());
        let named: Option<Method> = file.metadata.get("method").and_then(|name| name.parse().ok());
        let title = named.map_or(file.method.title(), Method::title).to_string();
        let architecture = file.architectures[0];
        let assignment = file.assignment();
        let unselected =
            settings.map_or(Unselected::default(), |settings| settings.train.selection.unselected);
        let mut method: Vec<String> =
            named.iter().map(|method| about(*method, unselected).to_string()).collect();
        if !named.is_some_and(Method::ties_pairs) {
            method.push(owners(&assignment, &names_of(architecture)));
        }
        method
            .push(format!("Its unique pairs have {}.", counted(file.unique_parameters(), "LoRA parameter")));
        Card {
            name: name_of(folder),
            base: Base::new(base.name, base.path),
            form: Form::Peft,
            has_compact: false,
            prediction: PredictionKind::new(labels.as_ref(), base.head),
            title,
            method,
            results: None,
            ..settings.map_or_else(Card::empty, Card::of_settings)
        }
    }

    /// Fills in what settings say; the rest is empty.
    fn of_settings(settings: &RunSettings) -> Self {
        let situation = Situation::new(settings, Reader::Train);
        let table = settings.to_table();
        let shown = |name: &'static str| {
            let value = table.get(name).filter(|_| situation.unread(name).is_none())?;
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            Some((name, list.iter().map(plain).collect::<Vec<_>>().join(", ")))
        };
        let paths = settings.place.data.paths();
        let named = paths.iter().filter(|path| !path.as_os_str().is_empty());
        Card {
            pair: settings.rows.pair_column.is_some(),
            max_length: settings.rows.max_length,
            data: named.map(|path| data_set(path)).collect(),
            data_config: settings.place.data_config.clone(),
            settings: SETTINGS.into_iter().filter_map(shown).collect(),
            ..Card::empty()
        }
    }

    fn empty() -> Self {
        Card {
            name: String::new(),
            base: Base::new("", Path::new("")),
            form: Form::Peft,
            has_compact: false,
            prediction: PredictionKind::Text,
            pair: false,
            max_length: None,
            title: String::new(),
            method: Vec::new(),
            data: Vec::new(),
            data_config: None,
            results: None,
            settings: Vec::new(),
        }
    }

    /// Returns the text of README.md.
    pub fn text(&self) -> String {
        let mut out = self.front_matter();
        let (base, what) = (
            &self.base,
            match self.form {
                Form::Model => "A model",
                Form::Peft | Form::Compact => "An adapter",
            },
        );
        let of = if base.on_hub { on_hub(&base.place) } else { in_folder(&base.place) };
        out += &format!(
            "\n# {}\n\n{what} for {}, {} {of}, made with lora-drop {}.\n\n## Method\n\n{}: {}\n",
            text(&self.name),
            self.prediction.pipeline().replace('-', " "),
            if self.form == Form::Model { "fine-tuned from" } else { "of" },
            env!("CARGO_PKG_VERSION"),
            self.title,
            self.method.join(" ")
        );
        self.results(&mut out);
        if !self.settings.is_empty() {
            out += "\n## Training\n\n| setting | value |\n|---|---|\n";
            let data: Vec<String> = self.data.iter().map(|(name, _)| code(name)).collect();
            if !data.is_empty() {
                out += &format!("| data | {} |\n", data.join(", "));
            }
            for (name, value) in &self.settings {
                out += &format!("| {name} | {} |\n", text(value));
            }
        }
        self.usage(&mut out);
        signed(&out)
    }

    fn front_matter(&self) -> String {
        let mut out = String::from("---\n");
        let mut line = |line: String| out += &(line + "\n");
        if self.base.on_hub {
            line(format!("base_model: {}", yaml(&self.base.place)));
        }
        let (library, tags): (_, &[&str]) = match self.form {
            Form::Peft => ("peft", &["lora", "lora-drop"]),
            Form::Compact => ("lora-drop", &["lora-drop"]),
            Form::Model => ("transformers", &["lora-drop"]),
        };
        line(format!("library_name: {library}"));
        line(format!("pipeline_tag: {}", self.prediction.pipeline()));
        let list = |key: &str, values: Vec<String>| {
            let items: String = values.iter().map(|value| format!("- {}\n", yaml(value))).collect();
            if values.is_empty() { String::new() } else { format!("{key}:\n{items}") }
        };
        let mut lists = list("tags", tags.iter().map(|tag| tag.to_string()).collect());
        lists += &list(
            "datasets",
            self.data.iter().filter(|(_, hub)| *hub).map(|(name, _)| name.clone()).collect(),
        );
        let metrics = self.results.iter().flat_map(|results| &results.metrics);
        let metrics: Vec<&(String, f64)> = metrics.filter(|(_, value)| value.is_finite()).collect();
        let mut names: Vec<String> = metrics.iter().map(|(name, _)| hub_metric(name).to_string()).collect();
        // On the hub, micro and macro F1 have one name.
        names.dedup();
        lists += &list("metrics", names);
        out += &lists;
        if let Some((data, on_hub)) = self.data.first().filter(|_| !metrics.is_empty()) {
            let data_type = if *on_hub { data } else { NO_HUB_DATA };
            out += &format!(
                "model-index:\n- name: {}\n  results:\n  - task:\n      type: {}\n    dataset:\n      name: {}\n      \
                 type: {}\n",
                yaml(&self.name),
                self.prediction.pipeline(),
                yaml(data),
                yaml(data_type)
            );
            if let Some(config) = self.data_config.as_ref().filter(|_| *on_hub) {
                out += &format!("      config: {}\n", yaml(config));
            }
            out += "      split: dev\n    metrics:\n";
            for (name, value) in metrics {
                out += &format!(
                    "    - type: {}\n      value: {value}\n      name: {}\n",
                    yaml(hub_metric(name)),
                    yaml(name)
                );
            }
        }
        out + "---\n"
    }

    fn results(&self, out: &mut String) {
        let Some(results) = self.results.as_ref().filter(|results| !results.metrics.is_empty()) else {
            return;
        };
        *out += &format!("\n## Results\n\n{}", results.about);
        if let Some(baseline) = &results.baseline {
            let what = match (baseline.kind, &baseline.class) {
                (BaselineKind::CommonestClass, Some(class)) => {
                    format!("predicting the most frequent class ({}) for every row", code(class))
                }
                (BaselineKind::CommonestClass, None) => {
                    "predicting the most frequent class for every row".into()
                }
                (BaselineKind::Mean, _) => "predicting the mean for every row".into(),
                (BaselineKind::Untrained, _) => "the model without training".into(),
            };
            let (name, value) = (code(&baseline.name), fixed(baseline.value, 4));
            *out += &format!(" For comparison, {what} has {name} {value}.");
        }
        *out += "\n\n| metric | value |\n|---|---|\n";
        for (name, value) in &results.metrics {
            *out += &format!("| {} | {} |\n", text(name), fixed(*value, 4));
        }
    }

    fn usage(&self, out: &mut String) {
        *out += "\n## Use\n";
        if self.form != Form::Compact {
            let library = if self.form == Form::Peft { "PEFT" } else { "transformers" };
            let lines = python::example(&self.base, self.form, &self.prediction, self.pair, self.max_length);
            *out += &format!("\nWith {library}:\n\n```python\n{lines}\n```\n");
        }
        let model = match self.form {
            Form::Model => "--model .".to_string(),
            Form::Peft | Form::Compact => {
                let adapter = if self.has_compact { COMPACT_FILE } else { "." };
                format!("--model {} --adapter {adapter}", shell(&self.base.model))
            }
        };
        let command = match self.prediction {
            PredictionKind::Text => format!("lora-drop generate {model} --prompt 'A prompt'"),
            _ => format!("lora-drop predict {model} --input rows.jsonl"),
        };
        let about = if self.has_compact {
            format!("With lora-drop, by {}, which has each pair once:", code(COMPACT_FILE))
        } else {
            "With lora-drop:".to_string()
        };
        *out += &format!("\n{about}\n\n```sh\n{command}\n```\n");
    }
}

/// Formats a setting's value without quotes and without needless decimals.
fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Float(number) => number.to_string(),
        value => value.to_string(),
    }
}

/// Links the base model by its name on the hub.
fn on_hub(id: &str) -> String {
    format!("[{id}](https://huggingface.co/{id})")
}

/// Names the base model by its folder.
fn in_folder(path: &str) -> String {
    format!("the model in the folder {}", code(path))
}

/// Describes a method in a sentence.
fn about(method: Method, unselected: Unselected) -> &'static str {
    match (method, unselected) {
        (Method::LoraDrop, Unselected::Drop) => {
            "LoRA was trained on a sample of the rows, each module was scored by its pair's output, and the modules with \
             low scores have no pair."
        }
        (Method::LoraDrop, _) => {
            "LoRA was trained on a sample of the rows, each module was scored by its pair's output, and the modules with \
             low scores share one pair per module type."
        }
        (Method::Lora, _) => "every target module has a LoRA pair of its own.",
        (Method::Dora, _) => {
            "every target module has a LoRA pair and the magnitude of each row of its weight."
        }
        (Method::ShareLora, _) => "every target module has a LoRA pair, whose A all layers share.",
        (Method::TiedLora, _) => "each module type has one LoRA pair, scaled by two vectors of each module.",
        (Method::Vera, _) => {
            "each module type has one random LoRA pair, scaled by two trained vectors of each module."
        }
        (Method::AdaLora, _) => "LoRA whose ranks were pruned to a budget during training.",
        (Method::SparseAdapter, _) => "LoRA in which a mask keeps a fraction of the values.",
        (Method::Full, _) => "every weight was trained.",
        (Method::Head, _) => "the head alone was trained.",
    }
}

/// Says which modules have a pair of their own, share one, or have none.
fn owners(assignment: &Assignment, names: &ModuleNames) -> String {
    let count = |wanted| assignment.owners.values().filter(|owner| **owner == wanted).count();
    let (own, shared, none) = (count(Owner::Own), count(Owner::Shared), count(Owner::None));
    let (all, kept) = (assignment.owners.len(), assignment.kept());
    let name = |kind| names.get(kind).map_or_else(String::new, |name| code(name));
    let kinds: Vec<String> = kept.keys().map(name).collect();
    if all == 0 {
        return "No module has a LoRA pair.".to_string();
    }
    if own == all {
        let modules = counted(all, "module");
        return format!("All {modules} ({}) have a pair of their own.", kinds.join(", "));
    }
    let listed = kept.iter().filter(|(_, layers)| !layers.is_empty());
    let listed: Vec<String> =
        listed.map(|(kind, numbers)| format!("{} in layers {}", name(kind), layers(numbers))).collect();
    let mut parts = vec![match own {
        0 => "none has a pair of its own".to_string(),
        own => format!(
            "{} a pair of {} own ({})",
            has(own),
            if own == 1 { "its" } else { "their" },
            listed.join("; ")
        ),
    }];
    if shared > 0 {
        let share = if shared == 1 { "shares" } else { "share" };
        parts.push(format!("{shared} {share} one pair per module type"));
    }
    if none > 0 {
        parts.push(format!("{} none", has(none)));
    }
    format!("Of {} ({}) {}.", counted(all, "module"), kinds.join(", "), parts.join(", "))
}

fn has(modules: usize) -> String {
    format!("{modules} {}", if modules == 1 { "has" } else { "have" })
}

fn parameters(own: usize, plain: usize) -> String {
    if own == plain || plain == 0 {
        return format!("That is {}.", counted(own, "LoRA parameter"));
    }
    let share = percent(own as f64 / plain as f64);
    format!("That is {}, {share} of the {} of plain LoRA.", counted(own, "LoRA parameter"), grouped(plain))
}

fn name_of(folder: &Path) -> String {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    absolute.file_name().map_or_else(|| "adapter".to_string(), |name| name.to_string_lossy().into_owned())
}

/// Returns a data set's name and whether it is on the hub; otherwise the name is the last part of
/// the path.
fn data_set(path: &Path) -> (String, bool) {
    match Repository::of(path, RepoKind::Data) {
        Some(repository) => (repository.id, true),
        None => (name_of(path), false),
    }
}

/// Returns the hub's name of a metric.
fn hub_metric(name: &str) -> &str {
    match name.parse() {
        Ok(Metric::Mcc) => "matthews_correlation",
        Ok(Metric::Pearson) => "pearsonr",
        Ok(Metric::Spearman) => "spearmanr",
        Ok(Metric::MicroF1 | Metric::MacroF1) => "f1",
        Ok(Metric::SubsetAccuracy) => "accuracy",
        _ => name,
    }
}

/// Appends the line with the hash, which shows that the text is unchanged.
fn signed(text: &str) -> String {
    let (before, after) = SIGNATURE;
    format!("{text}\n{before}{:032x}{after}", XxHash3_128::oneshot(text.as_bytes()))
}

/// Returns the card without that line; `None` if it is not a card of this program, or was changed.
fn unsigned(text: &str) -> Option<&str> {
    let at = text.rfind(SIGNATURE.0)?;
    let card = text[..at].strip_suffix('\n')?;
    (signed(card) == text).then_some(card)
}

/// Whether a folder has a README.md that is not an unchanged card of this program.
pub(crate) fn is_kept(folder: &Path) -> bool {
    let path = folder.join(CARD_FILE);
    let found = path.symlink_metadata().is_ok();
    found && std::fs::read_to_string(&path).ok().is_none_or(|text| unsigned(&text).is_none())
}

/// Returns the note that a README.md is kept.
pub(crate) fn kept_note(folder: &Path) -> String {
    format!(
        "{} stays as it is, because it was not written by lora-drop or was changed since; remove it to get a card of \
         this adapter",
        folder.join(CARD_FILE).display()
    )
}
