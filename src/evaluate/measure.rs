//! Loss and metrics of a model on the rows of a split.

use std::time::Instant;

use lora_drop_compute::loss;
use lora_drop_transformer::encoder::Memory;
use lora_drop_transformer::{Decoder, LoraTable, Model, Parameters};

use super::answers::{Answers, ClassAnswer, ValueAnswer};
use super::metrics::{self, Metric};
use crate::data::batch::{self, PackedBatch};
use crate::data::text::{PackedTexts, TextExample};
use crate::data::{Example, Label, Labels};
use crate::engine::{sequences, texts, unzip};
use crate::events::Event;
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
    /// What the model said of each row.
    #[serde(skip)]
    pub answers: Answers,
}

/// The logits of all rows, (rows, outputs), by a model with a head, in the rows' order; neighbours in length are computed
/// together, about `micro_tokens` at a time.
#[allow(clippy::too_many_arguments)]
pub fn logits(
    model: &Model,
    parameters: &Parameters,
    table: &LoraTable,
    examples: &[Example],
    micro_tokens: usize,
    memory: &mut Memory,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Vec<f32>> {
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    let head = model.with_head().expect("logits are of models with a head");
    let (outputs, of) = (head.outputs(), lengths.iter().sum());
    let mut all = vec![0.0; examples.len() * outputs];
    let mut done = 0;
    for rows in batch::evaluation_batches(&lengths, micro_tokens) {
        let batch = PackedBatch::of_rows(examples, &rows);
        let found = head
            .logits(parameters, table, sequences(&batch), memory, cancel.flag())
            .map_err(|_| Error::Interrupted)?;
        for (row, logits) in rows.iter().zip(found.chunks_exact(outputs)) {
            finite::check_logits(logits, || format!("row {}", row + 1))?;
            all[row * outputs..(row + 1) * outputs].copy_from_slice(logits);
        }
        done += batch.tokens();
        listen(&Event::Evaluating { done, of });
    }
    Ok(all)
}

/// Measures a model with a head on labelled rows. Fails where a row has no label.
#[allow(clippy::too_many_arguments)]
pub fn measure(
    model: &Model,
    parameters: &Parameters,
    table: &LoraTable,
    examples: &[Example],
    labels: &Labels,
    micro_tokens: usize,
    memory: &mut Memory,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Evaluation> {
    let began = Instant::now();
    let truth: Vec<Label> = examples
        .iter()
        .map(|e| e.label)
        .collect::<Option<_>>()
        .ok_or_else(|| Error::Input("the split has rows without labels and cannot be measured".into()))?;
    let logits = logits(model, parameters, table, examples, micro_tokens, memory, cancel, listen)?;
    let (outputs, (classes, values)) = (labels.outputs(), unzip(&truth));
    let (sum, metrics, answers) = if labels.is_regression() {
        let pairs = logits.iter().zip(&values);
        let answers = pairs.map(|(&predicted, &label)| ValueAnswer { predicted, label }).collect();
        let metrics = metrics::regression(&logits, &values);
        (loss::squared_error(&logits, &values, 1, None), metrics, Answers::Values(answers))
    } else {
        let answers: Vec<ClassAnswer> = logits
            .chunks_exact(outputs)
            .zip(&classes)
            .map(|(logits, &label)| answer(logits, label))
            .collect();
        let predicted: Vec<usize> = answers.iter().map(|answer| answer.predicted as usize).collect();
        let metrics = metrics::classification(&predicted, &classes, outputs);
        (loss::cross_entropy(&logits, &classes, 0.0, 1, None), metrics, Answers::Classes(answers))
    };
    Ok(Evaluation {
        loss: sum / examples.len() as f64,
        metrics: metrics.into_iter().map(|(metric, value)| (metric.name().to_string(), value)).collect(),
        rows: examples.len(),
        tokens: examples.iter().map(|e| e.ids.len()).sum(),
        seconds: began.elapsed().as_secs_f64(),
        answers,
    })
}

/// Measures a decoder on texts: the mean loss of their learned tokens, and its perplexity.
#[allow(clippy::too_many_arguments)]
pub fn measure_texts(
    decoder: &Decoder,
    parameters: &Parameters,
    table: &LoraTable,
    examples: &[TextExample],
    micro_tokens: usize,
    memory: &mut Memory,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<Evaluation> {
    let began = Instant::now();
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    let (mut sum, mut learned, mut done, of) = (0.0, 0, 0, lengths.iter().sum());
    let mut of_rows = vec![0.0; examples.len()];
    for rows in batch::evaluation_batches(&lengths, micro_tokens) {
        let batch = PackedTexts::pack(examples, rows.iter().copied());
        let losses = decoder
            .losses(parameters, table, texts(&batch), None, memory, cancel.flag())
            .map_err(|_| Error::Interrupted)?;
        // One by one, so that the sum does not depend on how the rows are cut.
        losses.iter().for_each(|&loss| sum += f64::from(loss));
        let mut rest = &losses[..];
        for &row in &rows {
            let (own, others) = rest.split_at(examples[row].learned());
            of_rows[row] = own.iter().sum::<f32>() / own.len().max(1) as f32;
            rest = others;
        }
        learned += losses.len();
        finite::check_loss(sum, || {
            let rows: Vec<String> = rows.iter().take(8).map(|row| (row + 1).to_string()).collect();
            format!("rows {}", rows.join(", "))
        })?;
        done += batch.tokens();
        listen(&Event::Evaluating { done, of });
    }
    if learned == 0 {
        return Err(Error::Input("the split has nothing to measure: no token of it is a target".into()));
    }
    let loss = sum / learned as f64;
    Ok(Evaluation {
        loss,
        metrics: vec![(Metric::Perplexity.name().to_string(), loss.exp())],
        rows: examples.len(),
        tokens: of,
        seconds: began.elapsed().as_secs_f64(),
        answers: Answers::Losses(of_rows),
    })
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
