//! A model with its head, ready to measure and to predict.

use std::ops::Range;
use std::path::Path;

use lora_drop_transformer::{Observations, Observer};

use super::measure::{Evaluation, Measuring};
use crate::adapter::AdapterFile;
use crate::data::text::{RawText, TextContent, TextEncoder, TextOptions, TextSplit};
use crate::data::{
    ColumnNames, DataOptions, Encoded, Example, LabelledRow, Labels, RawSplit, RowLimits, RowText, Split,
    SplitName, TaskRows, Tokens,
};
use crate::engine::{micro_tokens, thread_pool};
use crate::events::{Event, Stage};
use crate::loaded::{Arithmetic, Loaded};
use crate::model::ModelFiles;
use crate::rank_agreement;
use crate::ranks::{ALONE, Ranks};
use crate::reading::Reading;
use crate::settings::{MAX_LENGTH, OverLength, Situation, Task};
use crate::summary::SplitFacts;
use crate::{Cancel, Error, Result};

/// The prediction for one row.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Prediction {
    /// The task, which decides what is predicted.
    pub task: Task,
    /// The class's name, or the value as text. Several classes are joined by commas, the tags of
    /// words by spaces.
    pub label: String,
    /// Index of the class; None for other tasks than classification.
    pub index: Option<usize>,
    /// Names of the predicted classes of a row that may have several: those with a probability of
    /// at least 0.5.
    pub labels: Vec<String>,
    /// Each word with its tag; empty for other tasks.
    pub words: Vec<TaggedWord>,
    /// Each entity's type and its range of word indices; `None` if tags mark no entities.
    pub entities: Option<Vec<(String, Range<usize>)>>,
    /// Each class with its probability; empty for words and for a regression.
    pub scores: Vec<(String, f32)>,
    /// The head's logits, (outputs) or (words with a tag, outputs).
    pub logits: Vec<f32>,
}

/// A word with its predicted tag.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TaggedWord {
    pub word: String,
    /// `None` for a word without a token: it lies beyond `max_length`, or the tokenizer drops it.
    pub tag: Option<String>,
    /// The tag's probability.
    pub score: Option<f32>,
}

/// A split's tokenised rows: labelled ones for a model with a head, or texts for a decoder.
pub enum SplitRows {
    Labelled(Box<Split>),
    Text(Box<TextSplit>),
}

impl SplitRows {
    /// The tokenised rows.
    pub fn rows(&self) -> TaskRows<'_> {
        match self {
            SplitRows::Labelled(split) => TaskRows::Labelled(&split.examples),
            SplitRows::Text(split) => TaskRows::Text(&split.examples),
        }
    }

    /// Counts of rows, tokens and labels.
    pub fn facts(&self) -> &SplitFacts {
        match self {
            SplitRows::Labelled(split) => &split.facts,
            SplitRows::Text(split) => &split.facts,
        }
    }
}

/// A model ready to measure and predict: with an adapter, or with a head of its own checkpoint.
pub struct Predictor {
    pub(super) loaded: Loaded,
    pub(super) tokens: Tokens,
    pub(super) max_length: usize,
    pub(super) pool: rayon::ThreadPool,
    /// The processes that evaluate together.
    pub(super) ranks: Ranks,
}

/// Returns the options for reading labelled rows for a model in use.
fn labelled_options(
    files: &ModelFiles,
    reading: &Reading,
    max_length: usize,
    labels: &Labels,
) -> DataOptions {
    DataOptions {
        columns: ColumnNames { task: Some(labels.task()), ..reading.columns.clone() },
        max_length,
        bad_rows: reading.bad_rows,
        over_length: OverLength::Truncate,
        vocabulary: files.config.vocab_size,
        token_types: files.config.token_types,
        task: None,
        label_names: None,
        positive_class: None,
        class_weights: None,
        reads_first: !files.config.architecture.is_decoder(),
        trained_on: reading.trained_on.clone(),
        cache: None,
    }
}

/// Returns the options for reading texts for a model in use.
fn text_options(
    files: &ModelFiles,
    tokens: &Tokens,
    reading: &Reading,
    max_length: usize,
) -> Result<TextOptions> {
    Ok(TextOptions { max_length, ..reading.text_options(files, tokens)? })
}

impl Predictor {
    /// Opens a model (a folder, a GGUF file or a hub name) with an adapter (a folder or a file), or
    /// alone if its own checkpoint has a head. `threads` is the number of threads, 0 for all. Rows
    /// are cut at `max_length` tokens (`None`: 256), or at the model's limit if that is lower.
    ///
    /// # Errors
    /// Those of the files, and those of [`Self::new`].
    pub fn open(
        model: &str,
        adapter: Option<&Path>,
        arithmetic: Arithmetic,
        threads: usize,
        max_length: Option<usize>,
    ) -> Result<Self> {
        Self::of(Loaded::open(model, adapter, arithmetic)?, threads, max_length)
    }

    /// Like [`Self::open`] for a model that is open and an adapter in memory.
    ///
    /// # Errors
    /// Those of [`Loaded::new`]; no thread can be started.
    pub fn new(
        model: &ModelFiles,
        adapter: Option<&AdapterFile>,
        arithmetic: Arithmetic,
        threads: usize,
        max_length: Option<usize>,
    ) -> Result<Self> {
        Self::of(Loaded::new(model, adapter, arithmetic)?, threads, max_length)
    }

    fn of(mut loaded: Loaded, threads: usize, max_length: Option<usize>) -> Result<Self> {
        let tokens = loaded.files.tokens()?;
        loaded.notes.extend(tokens.note().map(str::to_string));
        let most = loaded.files.config.max_tokens();
        let max_length = max_length.unwrap_or(MAX_LENGTH).min(most);
        Ok(Predictor { loaded, tokens, max_length, pool: thread_pool(threads)?, ranks: Ranks::default() })
    }

    /// Shares the rows of `evaluate` and `measure`, and the inputs of `evaluate_generation`, with
    /// the other ranks of a job, all of which make the same calls and get the same results.
    ///
    /// # Errors
    /// `Error::Ranks` if ranks have other programs, models or adapters, and as soon as one has
    /// failed.
    pub fn share_with(&mut self, ranks: &Ranks, cancel: &Cancel) -> Result<()> {
        rank_agreement::on_model(ranks, &self.loaded, cancel)?;
        self.ranks = ranks.clone();
        Ok(())
    }

    /// The thread pool that computes.
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Returns the model with its adapter, to be changed, and the thread pool.
    pub fn parts(&mut self) -> (&mut Loaded, &rayon::ThreadPool) {
        (&mut self.loaded, &self.pool)
    }

    /// Notes for the user about the files of the model and its adapter.
    pub fn notes(&self) -> &[String] {
        &self.loaded.notes
    }

    /// The model's files.
    pub fn files(&self) -> &ModelFiles {
        &self.loaded.files
    }

    /// Largest number of tokens of a row.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Returns what decides which settings apply to this model, whatever its rows are.
    pub fn situation(&self) -> Situation {
        let task = self.labels().map_or(Task::Text, Labels::task);
        Situation::of_model(self.loaded.files.config.architecture.is_decoder(), task, None)
    }

    /// Chooses which of two classes has its F1 measured.
    ///
    /// # Errors
    /// `Error::Usage` if the head does not have two classes, or none has this name.
    pub fn set_positive(&mut self, class: &str) -> Result<()> {
        if let Some(labels) = self.loaded.labels.take() {
            self.loaded.labels = Some(labels.with_positive(class)?);
        }
        Ok(())
    }

    /// The meaning of the head's outputs; `None` for a decoder without a head.
    pub fn labels(&self) -> Option<&Labels> {
        self.loaded.labels.as_ref()
    }

    /// Measures loss and metrics on a split (`train`, `dev`, `test`) of a data set.
    ///
    /// # Errors
    /// Those of [`Self::read`] and [`Self::measure`]; `Error::Usage` for another split's name.
    pub fn evaluate(
        &mut self,
        data: &Path,
        split: &str,
        reading: &Reading,
        cancel: &Cancel,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<Evaluation> {
        let name = split.parse().map_err(Error::Usage)?;
        let rows = self.read(data, name, reading, listen)?;
        self.measure(&rows, cancel, listen)
    }

    /// Reads and tokenises the rows of a split.
    ///
    /// # Errors
    /// Whatever is wrong with a file or a row, with its place; `Error::Usage` if a setting that was
    /// given is not read for these rows.
    pub fn read(
        &mut self,
        data: &Path,
        split: SplitName,
        reading: &Reading,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<SplitRows> {
        let Predictor { loaded: Loaded { files, labels, .. }, tokens, max_length, pool, .. } = self;
        pool.install(|| {
            let (rows, warnings) = match labels {
                Some(labels) => {
                    let options = labelled_options(files, reading, *max_length, labels);
                    let (split, warnings) = Split::load(data, split, tokens, &options, labels)?;
                    (SplitRows::Labelled(Box::new(split)), warnings)
                }
                None => {
                    let template = files.template(&reading.template_vars)?;
                    let options = text_options(files, tokens, reading, *max_length)?;
                    let (split, warnings) =
                        TextSplit::load(data, split, tokens, template.as_ref(), &options)?;
                    reading.check_texts(split.kind)?;
                    (SplitRows::Text(Box::new(split)), warnings)
                }
            };
            warnings.iter().for_each(|warning| listen(&Event::Warning(warning)));
            Ok(rows)
        })
    }

    /// Tokenises rows with labels in memory, for [`Self::measure`].
    ///
    /// # Errors
    /// The model has no head; whatever is wrong with a row, with its number; a label that the head
    /// does not have.
    pub fn labelled_rows(&self, rows: Vec<LabelledRow>) -> Result<SplitRows> {
        let labels = self.labels();
        let labels = labels.ok_or_else(|| Error::Usage("the model has no head for labels".to_string()))?;
        let options = labelled_options(self.files(), &Reading::default(), self.max_length, labels);
        let raw = RawSplit::of_rows(SplitName::Dev, rows)?;
        self.pool.install(|| {
            Ok(SplitRows::Labelled(Box::new(Split::encode(raw, labels, &self.tokens, &options)?)))
        })
    }

    /// Tokenises texts in memory, for [`Self::measure`].
    ///
    /// # Errors
    /// The model has a head for labels; whatever is wrong with a row, with its number.
    pub fn text_rows(&self, rows: Vec<TextContent>) -> Result<SplitRows> {
        if self.labels().is_some() {
            return Err(Error::Usage("the model has a head for labels, and no loss of texts".to_string()));
        }
        let template = self.files().template(&[])?;
        let options = text_options(self.files(), &self.tokens, &Reading::default(), self.max_length)?;
        let raw = RawText::of_rows(SplitName::Dev, rows)?;
        self.pool.install(|| {
            let encoder = TextEncoder::new(&self.tokens, template.as_ref(), &options)?;
            Ok(SplitRows::Text(Box::new(TextSplit::encode(raw, &encoder, &options)?.0)))
        })
    }

    /// Measures loss and metrics on rows from [`Self::read`].
    ///
    /// # Errors
    /// Rows without labels, or without a token to measure; logits or losses that are not finite;
    /// interrupted.
    pub fn measure(
        &mut self,
        rows: &SplitRows,
        cancel: &Cancel,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<Evaluation> {
        let Predictor { loaded, pool, ranks, .. } = self;
        rank_agreement::on_rows(ranks, rows.rows())?;
        pool.install(|| {
            let Loaded { model, parameters, table, labels, memory, .. } = loaded;
            let facts = rows.facts();
            let (count, tokens) = (facts.rows, facts.tokens);
            listen(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows: count, tokens });
            let micro_tokens = micro_tokens(model);
            let mut measuring = Measuring {
                model,
                parameters,
                table,
                micro_tokens,
                memory,
                ranks,
                cancel,
                listen: &mut *listen,
            };
            let found = measuring.measure(rows.rows(), labels.as_ref())?;
            listen(&Event::StageEnd { stage: Stage::Evaluate, seconds: found.seconds });
            Ok(found)
        })
    }

    /// Runs the forward passes of the rows `chosen`, by index, from [`Self::read`], with an
    /// observer.
    ///
    /// # Errors
    /// Interrupted.
    pub fn observe(
        &mut self,
        rows: &SplitRows,
        chosen: &[usize],
        observer: &dyn Observer,
        cancel: &Cancel,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<Observations> {
        let Predictor { loaded, pool, .. } = self;
        pool.install(|| {
            let Loaded { model, parameters, table, memory, .. } = loaded;
            let (micro_tokens, ranks) = (micro_tokens(model), &ALONE);
            Measuring { model, parameters, table, micro_tokens, memory, ranks, cancel, listen }.observe(
                rows.rows(),
                chosen,
                observer,
            )
        })
    }

    /// Predicts the labels of rows, in their order: texts, pairs of texts, or words.
    ///
    /// # Errors
    /// `Error::Usage` for a decoder without a head; a row without a token, or of another kind than
    /// the model's labels; logits that are not finite.
    pub fn predict(&mut self, rows: &[impl Clone + Into<RowText>]) -> Result<Vec<Prediction>> {
        self.predict_until(rows, &Cancel::new())
    }

    /// Like [`Self::predict`], with a flag that cancels it.
    ///
    /// # Errors
    /// Those of `predict`; `Error::Interrupted` soon after `cancel` was raised.
    pub fn predict_until(
        &mut self,
        rows: &[impl Clone + Into<RowText>],
        cancel: &Cancel,
    ) -> Result<Vec<Prediction>> {
        let rows: Vec<RowText> = rows.iter().map(|row| row.clone().into()).collect();
        let Predictor { loaded, tokens, max_length, pool, .. } = self;
        pool.install(|| {
            let Loaded { files, model, parameters, table, labels, memory, .. } = loaded;
            let Some(labels) = labels else {
                let message =
                    "a decoder without a head has no labels to predict; `lora-drop generate` writes text with it";
                return Err(Error::Usage(message.to_string()));
            };
            let (vocabulary, token_types) = (files.config.vocab_size, files.config.token_types);
            let limits = RowLimits { max_length: *max_length, vocabulary, token_types };
            let (mut examples, mut words) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
            for (line, row) in rows.iter().enumerate() {
                let encoded = tokens
                    .encode_row(row, labels.of_words(), limits)
                    .map_err(|problem| Error::Input(format!("row {}: {problem}", line + 1)))?;
                let Encoded { ids, types, words: placed, .. } = encoded;
                let labelled = placed.iter().map(|&(_, place)| place).collect();
                words.push(placed.into_iter().map(|(word, _)| word as usize).collect::<Vec<_>>());
                examples.push(Example { ids, types, labelled, label: None, file: 0, line });
            }
            let (micro_tokens, ranks) = (micro_tokens(model), &ALONE);
            let mut predictions = vec![None; examples.len()];
            let take = |row: usize, logits: &[f32]| {
                let of_row = if labels.of_words() { rows[row].words() } else { None };
                let of_row = of_row.unwrap_or_default();
                predictions[row] = Some(labels.prediction(logits, &of_row, &words[row]));
            };
            let listen = &mut |_: &Event| {};
            let mut measuring =
                Measuring { model, parameters, table, micro_tokens, memory, ranks, cancel, listen };
            measuring.each_logits(&examples, take)?;
            Ok(predictions.into_iter().flatten().collect())
        })
    }
}
