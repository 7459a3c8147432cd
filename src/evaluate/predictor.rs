//! A model with its head, ready to measure and to predict.

use std::path::Path;

use super::measure::{Evaluation, Measuring, argmax};
use crate::data::text::{TextOptions, TextSplit};
use crate::data::{DataOptions, Example, Labels, Split, Tokens};
use crate::engine::{micro_tokens, thread_pool};
use crate::events::{Event, Stage};
use crate::loaded::{Arithmetic, Loaded};
use crate::model::ModelFiles;
use crate::reading::Reading;
use crate::settings::{MAX_LENGTH, OverLength, Situation, Task};
use crate::summary::SplitFacts;
use crate::{Cancel, Error, Result};

/// A text, or a pair of texts.
pub type Texts = (String, Option<String>);

/// What the model says of one row.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Prediction {
    /// The class's name, or the value as text.
    pub label: String,
    /// The class's number; None for a regression.
    pub index: Option<usize>,
    /// Each class and its probability; empty for a regression.
    pub scores: Vec<(String, f32)>,
    pub logits: Vec<f32>,
}

/// A model with its head, and an adapter or none.
pub struct Predictor {
    pub(super) loaded: Loaded,
    pub(super) tokens: Tokens,
    pub(super) max_length: usize,
    pub(super) pool: rayon::ThreadPool,
}

impl Predictor {
    /// Opens a model (a folder or a hub name) with an adapter (a folder or a file), or alone when its own
    /// checkpoint has a head. `threads` 0: all. Rows are cut at `max_length` tokens, 256 where it is None, or at what the
    /// model takes where that is less.
    pub fn open(
        model: &str,
        adapter: Option<&Path>,
        arithmetic: Arithmetic,
        threads: usize,
        max_length: Option<usize>,
    ) -> Result<Self> {
        let loaded = Loaded::open(model, adapter, arithmetic)?;
        let tokens = loaded.files.tokens()?;
        let most = loaded.files.config.max_tokens();
        let max_length = max_length.unwrap_or(MAX_LENGTH).min(most);
        Ok(Predictor { loaded, tokens, max_length, pool: thread_pool(threads)? })
    }

    /// The model's files.
    pub fn files(&self) -> &ModelFiles {
        &self.loaded.files
    }

    /// Tokens of a row at most.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Which settings are read for this model, whatever its rows are.
    pub fn situation(&self) -> Situation {
        let task = self.labels().map_or(Task::Text, Labels::task);
        Situation::of_model(self.loaded.files.config.architecture.is_decoder(), task, None)
    }

    /// What the head's outputs mean; None for a decoder without a head.
    pub fn labels(&self) -> Option<&Labels> {
        self.loaded.labels.as_ref()
    }

    /// Loss and metrics on a split (`train`, `dev`, `test`) of a data set.
    pub fn evaluate(
        &mut self,
        data: &Path,
        split: &str,
        reading: &Reading,
        cancel: &Cancel,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<Evaluation> {
        let Predictor { loaded, tokens, max_length, pool } = self;
        pool.install(|| {
            let name = split.parse().map_err(Error::Usage)?;
            let Loaded { files, model, parameters, table, labels, memory, .. } = loaded;
            let mut start = |warnings: &[String], facts: &SplitFacts| {
                for warning in warnings {
                    listen(&Event::Warning(warning));
                }
                let (rows, tokens) = (facts.rows, facts.tokens);
                listen(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows, tokens });
            };
            let micro_tokens = micro_tokens(model);
            let found = match labels {
                Some(labels) => {
                    let options = DataOptions {
                        columns: reading.columns.clone(),
                        max_length: *max_length,
                        over_length: OverLength::Truncate,
                        vocabulary: files.config.vocab_size,
                        token_types: files.config.token_types,
                        task: None,
                        reads_first: !files.config.architecture.is_decoder(),
                        trained_on: reading.trained_on.clone(),
                        cache: None,
                    };
                    let (split, warnings) = Split::load(data, name, tokens, &options, labels)?;
                    start(&warnings, &split.facts);
                    let examples = &split.examples;
                    Measuring { model, parameters, table, micro_tokens, memory, cancel, listen }
                        .rows(examples, labels)?
                }
                None => {
                    let template = files.template()?;
                    let options = TextOptions {
                        max_length: *max_length,
                        ..reading.text_options(files.config.vocab_size, files.config.eos_token_ids.first())
                    };
                    let (split, warnings) = TextSplit::load(data, name, tokens, template.as_ref(), &options)?;
                    reading.check_texts(split.columns.kind())?;
                    start(&warnings, &split.facts);
                    let examples = &split.examples;
                    Measuring { model, parameters, table, micro_tokens, memory, cancel, listen }
                        .texts(examples)?
                }
            };
            listen(&Event::StageEnd { stage: Stage::Evaluate, seconds: found.seconds });
            Ok(found)
        })
    }

    /// Labels rows, in their order.
    ///
    /// # Errors
    /// `Error::Usage` for a decoder without a head, which has no labels.
    pub fn predict(&mut self, rows: &[Texts]) -> Result<Vec<Prediction>> {
        self.predict_until(rows, &Cancel::new())
    }

    /// `predict` that ends with `Error::Interrupted` soon after `cancel` was raised.
    pub fn predict_until(&mut self, rows: &[Texts], cancel: &Cancel) -> Result<Vec<Prediction>> {
        let Predictor { loaded, tokens, max_length, pool } = self;
        pool.install(|| {
            let Loaded { files, model, parameters, table, labels, memory, .. } = loaded;
            let Some(labels) = labels else {
                let message = "a decoder without a head has no labels to predict; `lora-drop generate` writes text with it";
                return Err(Error::Usage(message.to_string()));
            };
            let (vocabulary, token_types) = (files.config.vocab_size, files.config.token_types);
            let mut examples = Vec::with_capacity(rows.len());
            for (line, (text, pair)) in rows.iter().enumerate() {
                let encoded = tokens
                    .encode(text, pair.as_deref(), *max_length, vocabulary, token_types)
                    .map_err(|problem| Error::Input(format!("row {}: {problem}", line + 1)))?;
                examples.push(Example { ids: encoded.ids, types: encoded.types, label: None, file: 0, line });
            }
            let micro_tokens = micro_tokens(model);
            let mut predictions = vec![None; examples.len()];
            let take = |row: usize, logits: &[f32]| predictions[row] = Some(prediction(logits, labels));
            let listen = &mut |_: &Event| {};
            let mut measuring = Measuring { model, parameters, table, micro_tokens, memory, cancel, listen };
            measuring.each_logits(&examples, take)?;
            Ok(predictions.into_iter().flatten().collect())
        })
    }
}

fn prediction(logits: &[f32], labels: &Labels) -> Prediction {
    if labels.is_regression() {
        let label = logits[0].to_string();
        return Prediction { label, index: None, scores: Vec::new(), logits: logits.to_vec() };
    }
    let index = argmax(logits);
    let top = logits[index] as f64;
    let weights: Vec<f64> = logits.iter().map(|&x| (x as f64 - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let names = labels.names();
    let scores = names.iter().zip(&weights).map(|(name, w)| (name.clone(), (w / sum) as f32)).collect();
    Prediction { label: names[index].clone(), index: Some(index), scores, logits: logits.to_vec() }
}
