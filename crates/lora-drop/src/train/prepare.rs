//! What every stage needs, read and checked: the model's folder, its configuration and weights, the data.

use lora_drop_transformer::{ModelConfig, ModuleId, ModuleKind};

use crate::adapter::added_values;
use crate::assignment::Sizes;
use crate::data::text::{TextDataset, TextOptions};
use crate::data::{DataOptions, Dataset, TaskData, TokenCache, label_beside_text};
use crate::evaluate::metrics::Metric;
use crate::events::Event;
use crate::model::ModelFiles;
use crate::reading::Reading;
use crate::settings::{
    Method, Reader, RowSettings, RunSettings, SelectionSettings, Situation, Task, TrainSettings, Unselected,
};
use crate::summary::ModelFacts;
use crate::{Cancel, Error, Result};

/// The inputs of a run.
pub struct Prepared {
    pub model: ModelFiles,
    pub data: TaskData,
    /// The module types that get LoRA.
    pub kinds: Vec<ModuleKind>,
    /// The metric that decides which epoch is best.
    pub metric: Metric,
    pub facts: ModelFacts,
    /// Which settings are read.
    pub situation: Situation,
}

impl Prepared {
    /// Reads and checks model and data, and tells what was found. With `adapted` the head is an adapter's.
    pub fn read(
        settings: &RunSettings,
        adapted: bool,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Self> {
        let model = ModelFiles::open(&settings.place.model, cancel, &mut |download| {
            listen(&Event::Downloading { file: download.file, done: download.done, total: download.total });
        })?;
        let config = &model.config;
        let labelled = check_task(settings, config)?;
        if settings.train.adapter.method == Method::Head && !labelled {
            return Err(Error::Usage(format!(
                "`method = head` is for encoders and decoders with a head; one for texts ({}) trains with {}",
                config.model_type,
                Method::names(|method| method != Method::Head, "or")
            )));
        }
        let kinds = match settings.train.adapter.method.adapter() {
            Some(_) => config.architecture.resolve_targets(&settings.train.adapter.target_modules)?,
            None => Vec::new(),
        };
        let before_data = situation(settings, config, labelled);
        settings.check_read(&before_data)?;
        if let Some(tokens) = settings.rows.max_length.filter(|&tokens| tokens > config.max_tokens()) {
            return Err(Error::Usage(format!(
                "`max_length = {tokens}` is more than the model's positions allow ({}: {} tokens)",
                model.path.display(),
                config.max_tokens()
            )));
        }
        let mut facts = model.facts(labelled);
        if adapted {
            (facts.head_found, facts.head_from_adapter) = (None, labelled);
        }
        listen(&Event::Model(&facts));
        if let Some(note) = model.quantize_note(settings.train.compute.quantize) {
            listen(&Event::Warning(&note));
        }

        let tokens = model.tokens()?;
        let mut data = if labelled {
            let options = DataOptions::new(&settings.rows, config);
            TaskData::Labelled(Box::new(Dataset::load(&settings.place.data, &tokens, &options)?))
        } else {
            let (template, options) = (model.template()?, text_options(&settings.rows, config));
            let texts = TextDataset::load(&settings.place.data, &tokens, template.as_ref(), &options)?;
            TaskData::Text(Box::new(texts))
        };
        listen(&Event::Data(data.facts()));
        if let (Some(labels), Some(true)) = (data.labels(), facts.head_found)
            && let Some(seen) = model.other_head(labels.outputs())
        {
            facts.head_found = Some(false);
            listen(&Event::Warning(&format!(
                "the checkpoint's head has {seen} outputs, and the labels need {}: the head is newly initialised",
                labels.outputs()
            )));
        }
        for warning in data.warnings() {
            listen(&Event::Warning(warning));
        }
        data.forget_unread();
        let (metric, task, rows) = match &data {
            TaskData::Labelled(data) => (
                labelled_metric(settings.train.optimisation.metric.as_deref(), data)?,
                data.labels.task(),
                None,
            ),
            TaskData::Text(data) => {
                (text_metric(settings.train.optimisation.metric.as_deref())?, Task::Text, Some(data.kind))
            }
        };
        let situation = Situation { task: Some(task), rows, ..before_data };
        for note in settings.check_read(&situation)? {
            listen(&Event::Warning(&note));
        }
        Ok(Prepared { model, data, kinds, metric, facts, situation })
    }

    /// Every module that gets LoRA.
    pub fn modules(&self) -> Vec<ModuleId> {
        self.model.config.modules(&self.kinds)
    }

    /// The architecture's name of a module type, as PEFT's users target it.
    pub fn short_name(&self, kind: ModuleKind) -> String {
        self.model.config.architecture.short_name(kind).to_string()
    }

    /// Values that the adapters of a module type take.
    pub fn sizes(&self, kind: ModuleKind, settings: &TrainSettings) -> Sizes {
        let (output, input) = self.model.config.linear_shape(kind);
        let own = self.situation.method.adapter().map_or(0, |method| added_values(method, output));
        let rank = settings.adapter.rank;
        let SelectionSettings { shared_rank, unselected, .. } = settings.selection;
        let shared = shared_rank.unwrap_or(rank);
        Sizes {
            own: rank * (input + output) + own,
            shared: shared * (input + output) + own,
            each: if unselected == Unselected::Scale { shared + output } else { 0 },
        }
    }
}

/// Whether rows are read for their labels, and not as texts of which tokens are learned.
///
/// # Errors
/// `Error::Usage` where the model cannot do the task, or the rows could be meant for either.
fn check_task(settings: &RunSettings, config: &ModelConfig) -> Result<bool> {
    let labelled = match (settings.rows.task, config.architecture.is_decoder()) {
        (Some(Task::Text), false) => {
            let kind = &config.model_type;
            return Err(Error::Usage(format!(
                "`task = text` is for decoders; an encoder ({kind}) learns classification or regression"
            )));
        }
        (None, false) | (Some(Task::Classification | Task::Regression), _) => true,
        (None | Some(Task::Text), true) => false,
    };
    let reading = Reading::of(&settings.rows, None);
    if settings.rows.task.is_none()
        && !labelled
        && let Some(label) = label_beside_text(&settings.place.data, &reading.columns, &reading.texts)?
    {
        return Err(Error::Usage(format!(
            "{}: the rows have a text and a label, {label:?}; give `task = classification` or `task = regression` to learn \
             the label, or `task = text` to learn the text",
            settings.place.data.display()
        )));
    }
    Ok(labelled)
}

/// What is known before the data is read: an encoder's labels are taken for classes.
fn situation(settings: &RunSettings, config: &ModelConfig, labelled: bool) -> Situation {
    let decoder = config.architecture.is_decoder();
    let hidden = if decoder {
        0.0
    } else {
        settings.train.optimisation.hidden_dropout.unwrap_or(config.hidden_dropout)
    };
    let attention = settings.train.optimisation.attention_dropout.unwrap_or(config.attention_dropout);
    let task = if labelled { Task::Classification } else { Task::Text };
    Situation {
        decoder: Some(decoder),
        task: Some(settings.rows.task.unwrap_or(task)),
        block_dropout: Some(hidden > 0.0 || attention > 0.0),
        ..Situation::new(settings, Reader::Train)
    }
}

/// How texts are read for a decoder.
fn text_options(rows: &RowSettings, config: &ModelConfig) -> TextOptions {
    TextOptions {
        max_length: rows.row_tokens(config.max_positions),
        over_length: rows.over_length,
        cache: TokenCache::of_user(rows.token_cache),
        ..Reading::of(rows, None).text_options(config.vocab_size, config.eos_token_ids.first())
    }
}

fn labelled_metric(name: Option<&str>, data: &Dataset) -> Result<Metric> {
    if data.dev.labels().is_none() {
        return Err(Error::Input(format!(
            "{}: the dev split has no labels, and every epoch is measured on it",
            data.dev.files[0].display()
        )));
    }
    metric(name, data.labels.is_regression())
}

fn text_metric(name: Option<&str>) -> Result<Metric> {
    match name {
        None => Ok(Metric::Perplexity),
        Some(name) if name == Metric::Perplexity.name() => Ok(Metric::Perplexity),
        Some(name) => {
            let metric: Metric = name.parse()?;
            Err(Error::Usage(format!(
                "`metric = {metric}` does not fit: texts have no labels; the metric is perplexity"
            )))
        }
    }
}

/// The metric by its name, or the task's default; it has to fit the task.
pub fn metric(name: Option<&str>, regression: bool) -> Result<Metric> {
    let Some(name) = name else { return Ok(Metric::of_task(regression)[0]) };
    let metric: Metric = name.parse()?;
    if !Metric::of_task(regression).contains(&metric) {
        let (task, known) = if regression {
            ("a regression", "pearson, spearman")
        } else {
            ("classification", "accuracy, f1, mcc")
        };
        return Err(Error::Usage(format!(
            "`metric = {name}` does not fit: the labels are {task}; choose from {known}"
        )));
    }
    Ok(metric)
}
