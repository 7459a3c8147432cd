//! Loss and metrics of a model on the rows of a split.

use std::time::Instant;

use lora_drop_compute::loss;
use lora_drop_transformer::{
    Context, LoraTable, Memory, Model, Observations, Observer, Observing, Parameters, Stopped,
};

use super::answers::{Answers, ClassAnswer, ValueAnswer};
use super::metrics::{self, Metric};
use crate::data::batch::{self, PackedBatch};
use crate::data::text::{PackedTexts, TextExample};
use crate::data::{Example, Label, Labels, TaskRows};
use crate::engine::{Packed, sequences, texts, unzip};
use crate::events::{Event, Stage};
use crate::{Cancel, Error, Result, finite};

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Evaluation {
    /// Mean over the rows, without label smoothing.
    pub loss: f64,
    /// Name and value, the task's default metric first.
    pub metrics: Vec<(String, f64)>,
    pub rows: usize,
    pub tokens: usize,
    pub seconds: f64,
    /// The standard error of the loss, by the spread of the rows'.
    #[serde(skip)]
    pub loss_standard_error: f64,
    /// What the model said of each row.
    #[serde(skip)]
    pub answers: Answers,
}

/// What measuring needs beside the rows.
pub struct Measuring<'a> {
    pub model: &'a Model,
    pub parameters: &'a Parameters,
    pub table: &'a LoraTable,
    /// Rows of similar length are computed together, about `micro_tokens` at a time, so they do not
    /// come in their order.
    pub micro_tokens: usize,
    pub memory: &'a mut Memory,
    pub cancel: &'a Cancel,
    pub listen: &'a mut dyn FnMut(&Event),
}

impl Measuring<'_> {
    fn context(&mut self) -> Context<'_> {
        Context::new(self.parameters.read(), self.table, self.memory, self.cancel.flag())
    }

    /// Gives `pass` the rows `chosen`, by number, a batch at a time, and tells how many tokens are
    /// done.
    fn each_batch(
        &mut self,
        rows: TaskRows<'_>,
        chosen: impl Iterator<Item = usize>,
        mut pass: impl FnMut(Context, &[usize]) -> Result<()>,
    ) -> Result<()> {
        let chosen: Vec<usize> = chosen.collect();
        let lengths: Vec<usize> = chosen.iter().map(|&row| rows.length(row)).collect();
        let (mut done, of) = (0, lengths.iter().sum());
        for batch in batch::evaluation_batches(&lengths, self.micro_tokens) {
            let batch: Vec<usize> = batch.into_iter().map(|place| chosen[place]).collect();
            pass(self.context(), &batch)?;
            done += batch.iter().map(|&row| rows.length(row)).sum::<usize>();
            (self.listen)(&Event::Evaluating { done, of });
        }
        Ok(())
    }

    /// Computes the rows' logits by a model with a head, and gives each row's number and logits,
    /// (outputs), to `take`. None are kept: with thousands of classes they would be larger than the
    /// model.
    ///
    /// # Errors
    /// Logits that are not finite; interrupted.
    pub fn each_logits(&mut self, examples: &[Example], mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let model = self.model;
        let outputs = model.outputs.expect("logits are of models with a head");
        self.each_batch(TaskRows::Labelled(examples), 0..examples.len(), |context, rows| {
            let found = model.net.outputs(context, sequences(&PackedBatch::pack(examples, rows)))?;
            for (&row, logits) in rows.iter().zip(found.chunks_exact(outputs)) {
                finite::check_logits(logits, || format!("row {}", row + 1))?;
                take(row, logits);
            }
            Ok(())
        })
    }

    /// Measures the model on rows: labelled ones for a model with a head, whose outputs `labels`
    /// names, texts for one without.
    ///
    /// # Errors
    /// Rows for another kind of model, without labels, or without a token to measure; logits or
    /// losses that are not finite; interrupted.
    pub fn measure(&mut self, rows: TaskRows<'_>, labels: Option<&Labels>) -> Result<Evaluation> {
        match (rows, labels) {
            (TaskRows::Labelled(examples), Some(labels)) => self.labelled(examples, labels),
            (TaskRows::Text(examples), None) => self.texts(examples),
            _ => Err(Error::Input("the rows were read for another model".into())),
        }
    }

    fn labelled(&mut self, examples: &[Example], labels: &Labels) -> Result<Evaluation> {
        let began = Instant::now();
        let truth: Vec<Label> =
            examples.iter().map(|e| e.label).collect::<Option<_>>().ok_or_else(|| {
                Error::Input("the split has rows without labels and cannot be measured".into())
            })?;
        let (classes, values) = unzip(&truth);
        // A row's loss, and its class or its value.
        let mut losses = vec![0.0; examples.len()];
        let unknown = ClassAnswer { predicted: 0, confidence: 0.0, label: 0 };
        let mut of_classes = vec![unknown; classes.len()];
        let mut of_values = vec![ValueAnswer { predicted: 0.0, label: 0.0 }; values.len()];
        self.each_logits(examples, |row, logits| {
            losses[row] = match truth[row] {
                Label::Class(class) => {
                    of_classes[row] = answer(logits, class);
                    loss::cross_entropy(logits, &[class], 0.0, 1, None)
                }
                Label::Value(label) => {
                    of_values[row] = ValueAnswer { predicted: logits[0], label };
                    loss::squared_error(logits, &[label], 1, None)
                }
            };
        })?;
        let (metrics, answers) = if labels.is_regression() {
            let predicted: Vec<f32> = of_values.iter().map(|answer| answer.predicted).collect();
            (metrics::regression(&predicted, &values), Answers::Values(of_values))
        } else {
            let predicted: Vec<usize> = of_classes.iter().map(|answer| answer.predicted as usize).collect();
            (metrics::classification(&predicted, &classes, labels.outputs()), Answers::Classes(of_classes))
        };
        Ok(Evaluation {
            // In the rows' order, whatever the one in which they were computed.
            loss: losses.iter().sum::<f64>() / examples.len() as f64,
            metrics: metrics.into_iter().map(|(metric, value)| (metric.name().to_string(), value)).collect(),
            loss_standard_error: standard_error(losses.iter().map(|&loss| (loss, 1.0))),
            rows: examples.len(),
            tokens: examples.iter().map(|e| e.ids.len()).sum(),
            seconds: began.elapsed().as_secs_f64(),
            answers,
        })
    }

    /// The mean loss of the texts' learned tokens, and its perplexity.
    fn texts(&mut self, examples: &[TextExample]) -> Result<Evaluation> {
        let began = Instant::now();
        let (net, mut sum, mut learned) = (&self.model.net, 0.0, 0);
        let mut of_rows = vec![0.0; examples.len()];
        self.each_batch(TaskRows::Text(examples), 0..examples.len(), |context, rows| {
            let losses = net.losses(context, texts(&PackedTexts::pack(examples, rows.iter().copied())))?;
            // One by one, so that the sum does not depend on how the rows are cut.
            losses.iter().for_each(|&loss| sum += f64::from(loss));
            let mut rest = &losses[..];
            for &row in rows {
                let (own, others) = rest.split_at(examples[row].learned());
                of_rows[row] = own.iter().sum::<f32>() / own.len().max(1) as f32;
                rest = others;
            }
            learned += losses.len();
            finite::check_loss(sum, || {
                let rows: Vec<String> = rows.iter().take(8).map(|row| (row + 1).to_string()).collect();
                format!("rows {}", rows.join(", "))
            })
        })?;
        if learned == 0 {
            return Err(Error::Input("the split has nothing to measure: no token of it is a target".into()));
        }
        let loss = sum / learned as f64;
        Ok(Evaluation {
            loss,
            metrics: vec![(Metric::Perplexity.name().to_string(), loss.exp())],
            loss_standard_error: standard_error(
                of_rows.iter().zip(examples).map(|(&loss, row)| (f64::from(loss), row.learned() as f64)),
            ),
            rows: examples.len(),
            tokens: examples.iter().map(|e| e.ids.len()).sum(),
            seconds: began.elapsed().as_secs_f64(),
            answers: Answers::Losses(of_rows),
        })
    }

    /// Shows an observer the forward passes of the rows `chosen`, by number.
    ///
    /// # Errors
    /// Interrupted.
    pub fn observe(
        &mut self,
        rows: TaskRows<'_>,
        chosen: &[usize],
        observer: &dyn Observer,
    ) -> Result<Observations> {
        let (mut observations, net) = (Observations::new(), &self.model.net);
        self.passes(rows, chosen, |context, packed| {
            let observing = Some(Observing { observer, observations: &mut observations });
            let context = Context { observing, ..context };
            match packed {
                Packed::Texts(batch) => net.losses(context, texts(batch)).map(drop),
                Packed::Labelled(batch) => net.outputs(context, sequences(batch)).map(drop),
            }
        })?;
        Ok(observations)
    }

    /// Has `pass` see the rows `chosen`, by number, some at a time.
    ///
    /// # Errors
    /// Those of `pass`, and interrupted.
    pub fn passes(
        &mut self,
        rows: TaskRows<'_>,
        chosen: &[usize],
        mut pass: impl FnMut(Context, &Packed) -> std::result::Result<(), Stopped>,
    ) -> Result<()> {
        let tokens = chosen.iter().map(|&row| rows.length(row)).sum();
        let stage = RepeatedPasses::begin(chosen.len(), tokens, 1, self.listen);
        self.each_batch(rows, chosen.iter().copied(), |context, batch| {
            Ok(pass(context, &Packed::new(rows, batch))?)
        })?;
        stage.end(self.listen);
        Ok(())
    }
}

/// Passes over the same rows, one after the other, that listeners see as one stage.
pub struct RepeatedPasses {
    began: Instant,
    /// Tokens of all passes, and of those that have ended.
    of: usize,
    ended: usize,
}

impl RepeatedPasses {
    /// Starts the stage: `passes` passes over these rows and their tokens.
    pub fn begin(rows: usize, tokens: usize, passes: usize, listen: &mut dyn FnMut(&Event)) -> Self {
        let (rows, of) = (passes * rows, passes * tokens);
        listen(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows, tokens: of });
        RepeatedPasses { began: Instant::now(), of, ended: 0 }
    }

    /// Tells of the progress of one pass as that of all; its other events are not told.
    pub fn hear(&mut self, event: &Event, listen: &mut dyn FnMut(&Event)) {
        if let Event::Evaluating { done, of } = event {
            listen(&Event::Evaluating { done: self.ended + done, of: self.of });
            self.ended += if done == of { *of } else { 0 };
        }
    }

    /// Ends the stage, which may be before all passes are made.
    pub fn end(self, listen: &mut dyn FnMut(&Event)) {
        let seconds = self.began.elapsed().as_secs_f64();
        listen(&Event::StageEnd { stage: Stage::Evaluate, seconds });
    }
}

/// The standard error of the weighted mean of values that come with their weights: √(Σ w² (x −
/// mean)²) / Σ w.
fn standard_error(values: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let weight: f64 = values.clone().map(|(_, w)| w).sum();
    let mean = values.clone().map(|(x, w)| w * x).sum::<f64>() / weight;
    values.map(|(x, w)| (w * (x - mean)).powi(2)).sum::<f64>().sqrt() / weight
}

/// The class of a row's logits, and its probability.
fn answer(logits: &[f32], label: usize) -> ClassAnswer {
    let predicted = argmax(logits);
    let top = f64::from(logits[predicted]);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - top).exp()).sum();
    ClassAnswer { predicted: predicted as u32, confidence: (1.0 / sum) as f32, label: label as u32 }
}

/// The first of the largest.
pub fn argmax(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}
