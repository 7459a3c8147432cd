//! Reads and checks the inputs of all stages: the model's folder, its configuration and weights,
//! and the data.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use lora_drop_transformer::{ModelConfig, ModuleId, ModuleKind, Parameters};

use super::sample_stage;
use crate::adapter::{AdapterFile, LM_HEAD_IS_USED, added_values, check_token_head};
use crate::assignment::Sizes;
use crate::data::text::{RawTexts, TextContent, TextDataset, TextOptions};
use crate::data::{
    DataOptions, Dataset, LabelledRow, Labels, RawDataset, RawTask, TaskData, TokenCache, Tokens,
    label_beside_text,
};
use crate::evaluate::metrics::Metric;
use crate::events::Event;
use crate::model::ModelFiles;
use crate::ranks::Ranks;
use crate::reading::Reading;
use crate::score::record::Record;
use crate::settings::{
    Method, Reader, RowSettings, RunSettings, SelectionSettings, Situation, Task, TrainSettings, Unselected,
};
use crate::summary::ModelFacts;
use crate::{Cancel, Error, Result, digest};

/// The inputs of a run.
pub struct Prepared {
    pub model: ModelFiles,
    /// The tokenised rows.
    pub data: TaskData,
    /// The module types that get LoRA.
    pub target_kinds: Vec<ModuleKind>,
    /// The metric that decides which epoch is best.
    pub metric: Metric,
    pub facts: ModelFacts,
    pub situation: Situation,
    /// The adapter that training starts with.
    pub init_adapter: Option<AdapterFile>,
    /// The scores by which modules are chosen without a sample stage, and the choice.
    pub(super) scores: Option<Record>,
    /// The processes that train on it together.
    pub(crate) ranks: Ranks,
    /// The hash of the model's files; empty until they are read for it.
    hash: OnceLock<u128>,
}

impl Prepared {
    /// Reads and checks model and data, and reports their facts to `listen`. With `adapted`, the
    /// head is an adapter's.
    ///
    /// # Errors
    /// Those of the settings and the files; a model that cannot do the task.
    pub fn read(
        settings: &RunSettings,
        adapted: bool,
        cancel: &Cancel,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Self> {
        let model = ModelFiles::open(&settings.place.model, cancel, &mut |download| {
            listen(&Event::Downloading { file: download.file, done: download.done, total: download.total });
        })?;
        let labelled = check_task(settings, &model.config)?;
        let init_adapter = init_adapter(&settings.train, &model, listen)?;
        let targets = targets_and_situation(settings, &model, labelled, init_adapter.as_ref())?;
        let mut facts = facts(&model, labelled, adapted || init_adapter.is_some());
        listen(&Event::Model(&facts));
        for note in model.notes(settings.train.compute.quantize) {
            listen(&Event::Warning(&note));
        }

        let tokens = model.tokens()?;
        if let Some(note) = tokens.note() {
            listen(&Event::Warning(note));
        }
        let data = tokenise(read_rows(settings, labelled)?, settings, &model, &tokens)?;
        listen(&Event::Data(data.facts()));
        if let Some(note) = correct_head_facts(&mut facts, &model, &data) {
            listen(&Event::Warning(&note));
        }
        for warning in data.warnings() {
            listen(&Event::Warning(warning));
        }
        Self::new(settings, model, targets, init_adapter, facts, data, listen)
    }

    /// Tokenises rows with labels in memory for a model: an encoder, or a decoder that gets a head.
    /// Without rows for dev a tenth of train is held out.
    ///
    /// # Errors
    /// Settings that are not read; whatever is wrong with a row, with its number; a model that
    /// cannot do the task.
    pub fn labelled(
        model: &ModelFiles,
        train: Vec<LabelledRow>,
        dev: Vec<LabelledRow>,
        rows: &RowSettings,
        settings: &TrainSettings,
    ) -> Result<Self> {
        let run = RunSettings { rows: rows.clone(), train: settings.clone(), ..RunSettings::default() };
        Self::in_memory(model, &run, true, |tokens| {
            let options = DataOptions::new(rows, &model.config);
            Ok(TaskData::Labelled(Box::new(Dataset::new(train, dev, tokens, &options)?)))
        })
    }

    /// Tokenises texts in memory, all of one kind, for a decoder. Without rows for dev a tenth of
    /// train is held out.
    ///
    /// # Errors
    /// Settings that are not read; whatever is wrong with a row, with its number; a model that is
    /// not a decoder.
    pub fn texts(
        model: &ModelFiles,
        train: Vec<TextContent>,
        dev: Vec<TextContent>,
        rows: &RowSettings,
        settings: &TrainSettings,
    ) -> Result<Self> {
        if !model.config.architecture.is_decoder() {
            let kind = &model.config.model_type;
            return Err(Error::Usage(format!("texts are for decoders; an encoder ({kind}) learns labels")));
        }
        let run = RunSettings { rows: rows.clone(), train: settings.clone(), ..RunSettings::default() };
        Self::in_memory(model, &run, false, |tokens| {
            let template = model.template(&rows.template_var)?;
            let options = text_options(rows, model, tokens)?;
            let texts = TextDataset::new(train, dev, tokens, template.as_ref(), &options)?;
            Ok(TaskData::Text(Box::new(texts)))
        })
    }

    fn in_memory(
        model: &ModelFiles,
        run: &RunSettings,
        labelled: bool,
        data: impl FnOnce(&Tokens) -> Result<TaskData>,
    ) -> Result<Self> {
        let init_adapter = init_adapter(&run.train, model, &mut |_| {})?;
        let targets = targets_and_situation(run, model, labelled, init_adapter.as_ref())?;
        let data = data(&model.tokens()?)?;
        let mut facts = facts(model, labelled, init_adapter.is_some());
        correct_head_facts(&mut facts, model, &data);
        Self::new(run, model.clone(), targets, init_adapter, facts, data, &mut |_| {})
    }

    /// Builds it from its parts: checks the settings and the initial adapter against the data, and
    /// reads the scores that the settings name.
    fn new(
        settings: &RunSettings,
        model: ModelFiles,
        (target_kinds, situation): (Vec<ModuleKind>, Situation),
        init_adapter: Option<AdapterFile>,
        facts: ModelFacts,
        mut data: TaskData,
        listen: &mut dyn FnMut(&Event),
    ) -> Result<Self> {
        data.forget_unread();
        let (metric, situation) = metric_and_situation(settings, &model.config, &data, situation)?;
        for note in settings.check_read(&situation)? {
            listen(&Event::Warning(&note));
        }
        let (ranks, hash) = (Ranks::default(), OnceLock::new());
        let mut prepared = Prepared {
            model,
            data,
            target_kinds,
            metric,
            facts,
            situation,
            init_adapter,
            scores: None,
            ranks,
            hash,
        };
        if let Some(adapter) = &prepared.init_adapter {
            prepared.check_labels(adapter, &settings.place.data)?;
        }
        prepared.scores = sample_stage::scores_from_file(&prepared, &settings.train)?;
        Ok(prepared)
    }

    /// Checks that the data has the adapter's labels in the same order, because the head's outputs
    /// stand for them. `rows` names the data in the message.
    ///
    /// # Errors
    /// `Error::Input` with both lists of labels.
    pub(super) fn check_labels(&self, adapter: &AdapterFile, rows: &dyn std::fmt::Display) -> Result<()> {
        // The positive class, the class weights and the form of indicators do not affect the head.
        let names = |mut labels: serde_json::Value| {
            for unimportant in ["positive", "weights", "indicators"] {
                labels.as_object_mut().map(|labels| labels.remove(unimportant));
            }
            labels
        };
        let of_data = self.data.labels().and_then(|labels| serde_json::to_value(labels).ok()).map(names);
        match (adapter.labels.clone().map(names), of_data) {
            (Some(own), Some(of_data)) if own != of_data => Err(Error::Input(format!(
                "{rows}: its labels are {of_data}, but the adapter's are {own}; an adapter can only be trained further with \
                 the same labels"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the hash of the model's files, which are read in the first call.
    ///
    /// # Errors
    /// Those of `digest::of_model`.
    pub(crate) fn model_hash(&self, cancel: &Cancel) -> Result<u128> {
        if let Some(hash) = self.hash.get() {
            return Ok(*hash);
        }
        let hash = digest::of_model(&self.model.path, cancel)?;
        Ok(*self.hash.get_or_init(|| hash))
    }

    /// The scores that these settings name, and the choice by them.
    pub(super) fn scores(&self, settings: &TrainSettings) -> Option<&Record> {
        self.scores.as_ref().filter(|_| settings.selection.scores.is_some())
    }

    /// Every module that gets LoRA.
    pub fn modules(&self) -> Vec<ModuleId> {
        self.model.config.modules(&self.target_kinds)
    }

    /// The architecture's name of a module type, as PEFT's users target it.
    pub fn short_name(&self, kind: ModuleKind) -> String {
        self.model.config.architecture.short_name(kind).to_string()
    }

    /// Numbers of values in the adapters of a module type.
    pub fn sizes(&self, kind: ModuleKind, settings: &TrainSettings) -> Sizes {
        let (output, input) = self.model.config.linear_shape(kind);
        let own = self.situation.method.adapter().map_or(0, |method| added_values(method, output));
        let rank = self.init_adapter.as_ref().map_or(settings.adapter.rank, |adapter| adapter.pairs[0].rank);
        let SelectionSettings { shared_rank, unselected, .. } = settings.selection;
        let shared = shared_rank.unwrap_or(rank);
        Sizes {
            own: rank * (input + output) + own,
            shared: shared * (input + output) + own,
            each: if unselected == Unselected::Scale { shared + output } else { 0 },
        }
    }
}

/// Reads the adapter that training starts with, if the settings name one.
///
/// # Errors
/// Those of the file; it does not fit the model; the method trains adapters of another kind.
fn init_adapter(
    settings: &TrainSettings,
    model: &ModelFiles,
    listen: &mut dyn FnMut(&Event),
) -> Result<Option<AdapterFile>> {
    let Some(path) = &settings.adapter.init_adapter else { return Ok(None) };
    let (adapter, note) = AdapterFile::open_for(path, Some(model.source()))?;
    if let Some(note) = note {
        listen(&Event::Warning(&note));
    }
    let method = settings.adapter.method;
    let continues = [Method::LoraDrop, Method::Lora, Method::Dora].contains(&method);
    if !continues || method.adapter() != Some(adapter.method) {
        return Err(Error::Usage(format!(
            "{}: a {} adapter cannot be trained further with `method = {method}`; lora-drop and lora train LoRA, dora \
             trains DoRA",
            path.display(),
            adapter.method.title()
        )));
    }
    if adapter.pairs.is_empty() {
        return Err(Error::file(path, "the adapter has no LoRA, only a head"));
    }
    if adapter.modules.contains_key(&ModuleId::LM_HEAD) {
        return Err(Error::file(path, LM_HEAD_IS_USED));
    }
    adapter.to_bank(&model.config, &mut Parameters::new()).map_err(|e| Error::file(path, e))?;
    Ok(Some(adapter))
}

/// Returns the module types that get LoRA, and what is known before the data is read.
///
/// # Errors
/// `Error::Usage` for a method that the model cannot be trained by, settings without a reader, and
/// more tokens a row than the model takes.
fn targets_and_situation(
    settings: &RunSettings,
    model: &ModelFiles,
    labelled: bool,
    init: Option<&AdapterFile>,
) -> Result<(Vec<ModuleKind>, Situation)> {
    let (config, adapter) = (&model.config, &settings.train.adapter);
    if adapter.method == Method::Head && !labelled {
        return Err(Error::Usage(format!(
            "`method = head` is for encoders and decoders with a head; one for texts ({}) trains with {}",
            config.model_type,
            Method::names(|method| method != Method::Head, "or")
        )));
    }
    let kinds = match (init, adapter.method.adapter()) {
        (Some(init), _) => {
            BTreeSet::from_iter(init.modules.keys().map(|module| module.kind)).into_iter().collect()
        }
        (None, Some(_)) => config.architecture.resolve_targets(&adapter.target_modules)?,
        (None, None) => Vec::new(),
    };
    let situation = situation(settings, config, labelled);
    settings.check_read(&situation)?;
    check_max_length(settings, model)?;
    Ok((kinds, situation))
}

/// Checks that the model takes as many tokens as the settings allow.
///
/// # Errors
/// `Error::Usage` if it does not.
pub(crate) fn check_max_length(settings: &RunSettings, model: &ModelFiles) -> Result<()> {
    let config = &model.config;
    if let Some(tokens) = settings.rows.max_length.filter(|&tokens| tokens > config.max_tokens()) {
        return Err(Error::Usage(format!(
            "`max_length = {tokens}` is more than the model's positions allow ({}: {} tokens)",
            model.path.display(),
            config.max_tokens()
        )));
    }
    Ok(())
}

/// Reads the rows that the settings name, for a head if they are `labelled`.
///
/// # Errors
/// Those of the files and rows.
pub(crate) fn read_rows(settings: &RunSettings, labelled: bool) -> Result<RawTask> {
    let (data, rows) = (settings.place.data.all(), &settings.rows);
    Ok(if labelled {
        RawTask::Labelled(Box::new(RawDataset::read(data, &DataOptions::without_model(rows))?))
    } else {
        let options = Reading::of(rows, Vec::new()).raw_texts();
        RawTask::Text(Box::new(RawTexts::read(data, &options)?))
    })
}

/// Tokenises rows for a model, whose tokenizer is `tokens`.
///
/// # Errors
/// Those of the rows and of the chat template.
pub(crate) fn tokenise(
    raw: RawTask,
    settings: &RunSettings,
    model: &ModelFiles,
    tokens: &Tokens,
) -> Result<TaskData> {
    let rows = &settings.rows;
    Ok(match raw {
        RawTask::Labelled(raw) => {
            let options = DataOptions::new(rows, &model.config);
            TaskData::Labelled(Box::new(Dataset::encode(*raw, tokens, &options)?))
        }
        RawTask::Text(raw) => {
            let template = model.template(&rows.template_var)?;
            let options = text_options(rows, model, tokens)?;
            TaskData::Text(Box::new(TextDataset::encode(*raw, tokens, template.as_ref(), &options)?))
        }
    })
}

/// Returns the facts about a model; with `adapted`, its head is an adapter's.
fn facts(model: &ModelFiles, labelled: bool, adapted: bool) -> ModelFacts {
    let facts = model.facts(labelled);
    if adapted { ModelFacts { head_found: None, head_from_adapter: labelled, ..facts } } else { facts }
}

/// Corrects in `facts` whether the checkpoint's head is used: not if its outputs differ from what
/// the labels need. Returns a note if so.
pub(crate) fn correct_head_facts(
    facts: &mut ModelFacts,
    model: &ModelFiles,
    data: &TaskData,
) -> Option<String> {
    let head = data.labels()?.head();
    facts.head_found = facts.head_found.map(|_| model.has_head_of(head));
    let seen = model.other_head(head).filter(|_| facts.head_found == Some(true))?;
    facts.head_found = Some(false);
    let outputs = head.outputs;
    Some(format!(
        "the checkpoint's head has {seen} outputs, and the labels need {outputs}: the head is newly initialised"
    ))
}

/// Returns the metric that decides, and the situation once the data is known.
pub(crate) fn metric_and_situation(
    settings: &RunSettings,
    config: &ModelConfig,
    data: &TaskData,
    before: Situation,
) -> Result<(Metric, Situation)> {
    let (task, rows) = match data {
        TaskData::Labelled(data) if data.dev.labels().is_none() => {
            return Err(Error::Input(format!(
                "{}: the dev split has no labels, and every epoch is measured on it",
                data.dev.files[0].display()
            )));
        }
        TaskData::Labelled(data) => (data.labels.task(), None),
        TaskData::Text(data) => (Task::Text, Some(data.kind)),
    };
    if data.labels().is_some_and(Labels::of_words) {
        check_token_head(config)?;
    }
    let metric = metric(settings.train.optimisation.metric, data.labels())?;
    Ok((metric, Situation { task: Some(task), rows, ..before }))
}

/// Whether rows are read for their labels, and not as texts to learn.
///
/// # Errors
/// `Error::Usage` where the model cannot do the task, or the rows could be meant for either.
pub(crate) fn check_task(settings: &RunSettings, config: &ModelConfig) -> Result<bool> {
    let labelled = match (settings.rows.task, config.architecture.is_decoder()) {
        (Some(Task::Text), false) => {
            let kind = &config.model_type;
            return Err(Error::Usage(format!(
                "`task = text` is for decoders; an encoder ({kind}) learns labels"
            )));
        }
        (None | Some(Task::Text), true) => false,
        (None | Some(_), _) => true,
    };
    if settings.rows.task.is_none()
        && !labelled
        && let Some(label) = label_beside_text(settings.place.data.all(), &settings.rows)?
    {
        return Err(Error::Usage(format!(
            "{}: the rows have a text and a label, {label:?}; give `task = classification` or another task to learn \
             the label, or `task = text` to learn the text",
            settings.place.data
        )));
    }
    Ok(labelled)
}

/// What is known before the data is read; an encoder's labels are taken for classes.
pub(crate) fn situation(settings: &RunSettings, config: &ModelConfig, labelled: bool) -> Situation {
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
fn text_options(rows: &RowSettings, model: &ModelFiles, tokens: &Tokens) -> Result<TextOptions> {
    Ok(TextOptions {
        max_length: rows.row_tokens(model.config.max_positions),
        over_length: rows.over_length,
        cache: TokenCache::in_user_cache(rows.token_cache),
        ..Reading::of(rows, Vec::new()).text_options(model, tokens)?
    })
}

/// Returns the metric `asked`, or the default one: for rows with these labels, or for texts.
///
/// # Errors
/// `Error::Usage` if it belongs to another task.
pub fn metric(asked: Option<Metric>, labels: Option<&Labels>) -> Result<Metric> {
    let (known, task): (&[Metric], _) = match labels {
        None => (&[Metric::Perplexity], "texts have no labels"),
        Some(labels) => (labels.metrics(), labels.kind()),
    };
    let metric = asked.unwrap_or(known[0]);
    if !known.contains(&metric) {
        let known = known.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::Usage(format!("`metric = {metric}` does not fit: {task}; choose from {known}")));
    }
    Ok(metric)
}
