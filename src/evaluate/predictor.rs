//! A model with its head, ready to measure and to predict.

use std::path::Path;

use super::loaded::Loaded;
use super::measure::{Evaluation, argmax, logits, measure};
use crate::data::{ColumnNames, DataOptions, Example, Labels, Split, Tokens};
use crate::engine::thread_pool;
use crate::events::{Event, Stage};
use crate::settings::OverLength;
use crate::{Cancel, Error, Result};

/// The data's columns by name, where the usual names do not fit.
pub type Columns = ColumnNames;

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
    loaded: Loaded,
    tokens: Tokens,
    max_length: usize,
    pool: rayon::ThreadPool,
}

impl Predictor {
    /// Opens a model (a folder or a hub name) with an adapter (a folder or a file), or alone when its own
    /// checkpoint has a head. `threads` 0: all; `max_length` in tokens, longer rows are cut.
    pub fn open(model: &str, adapter: Option<&Path>, threads: usize, max_length: usize) -> Result<Self> {
        let loaded = Loaded::open(model, adapter)?;
        let tokens = Tokens::open(&loaded.folder)?;
        let max_length = max_length.min(loaded.encoder.config.max_tokens());
        Ok(Predictor { loaded, tokens, max_length, pool: thread_pool(threads)? })
    }

    pub fn labels(&self) -> &Labels {
        &self.loaded.labels
    }

    /// Loss and metrics on a split (`train`, `dev`, `test`) of a data set.
    pub fn evaluate(
        &mut self,
        data: &Path,
        split: &str,
        columns: &Columns,
        cancel: &Cancel,
        listen: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<Evaluation> {
        let Predictor { loaded, tokens, max_length, pool } = self;
        pool.install(|| {
            let options = DataOptions {
                columns: columns.clone(),
                max_length: *max_length,
                over_length: OverLength::Truncate,
                vocabulary: loaded.encoder.config.vocab_size,
            };
            let name = split.parse().map_err(Error::Usage)?;
            let (split, warnings) = Split::load(data, name, tokens, &options, &loaded.labels)?;
            for warning in &warnings {
                listen(&Event::Warning(warning));
            }
            let Loaded { encoder, parameters, table, labels, memory, .. } = loaded;
            let (rows, tokens) = (split.facts.rows, split.facts.tokens);
            listen(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows, tokens });
            let found = measure(encoder, parameters, table, &split.examples, labels, memory, cancel, listen)?;
            listen(&Event::StageEnd { stage: Stage::Evaluate, seconds: found.seconds });
            Ok(found)
        })
    }

    /// Labels rows, in their order.
    pub fn predict(&mut self, rows: &[Texts]) -> Result<Vec<Prediction>> {
        self.predict_until(rows, &Cancel::new())
    }

    /// `predict` that ends with `Error::Interrupted` soon after `cancel` was raised.
    pub fn predict_until(&mut self, rows: &[Texts], cancel: &Cancel) -> Result<Vec<Prediction>> {
        let Predictor { loaded, tokens, max_length, pool } = self;
        pool.install(|| {
            let vocabulary = loaded.encoder.config.vocab_size;
            let mut examples = Vec::with_capacity(rows.len());
            for (line, (text, pair)) in rows.iter().enumerate() {
                let encoded = tokens
                    .encode(text, pair.as_deref(), *max_length, vocabulary)
                    .map_err(|problem| Error::Input(format!("row {}: {problem}", line + 1)))?;
                examples.push(Example { ids: encoded.ids, types: encoded.types, label: None, file: 0, line });
            }
            let Loaded { encoder, parameters, table, labels, memory, .. } = loaded;
            let all = logits(encoder, parameters, table, &examples, memory, cancel, &mut |_| {})?;
            Ok(all.chunks_exact(encoder.outputs).map(|logits| prediction(logits, labels)).collect())
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
