//! Loss and metrics of a model on the rows of a split.

use std::time::Instant;

use lora_drop_transformer::{
    AdapterTable, Context, Head, HeadKind, Memory, Model, Observations, Observer, Observing, Parameters,
    Stopped,
};

use super::answers::Answers;
use super::metrics::Metric;
use crate::data::batch::{self, PackedBatch};
use crate::data::text::{PackedTexts, TextExample};
use crate::data::{Example, Label, Labels, TaskRows};
use crate::engine::{Packed, sequences, texts};
use crate::events::{Event, Stage};
use crate::heads::{self, Answer, take_bytes};
use crate::ranks::{Ranks, share_out};
use crate::{Cancel, Error, Result, finite};

/// Loss and metrics of a model on rows.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Evaluation {
    /// Mean over the rows, over rows and classes if a row may have several, or over labelled words,
    /// weighted by the classes' weights, without label smoothing.
    pub loss: f64,
    /// Name and value, the task's default metric first.
    pub metrics: Vec<(String, f64)>,
    pub rows: usize,
    /// Number of tokens, special tokens included.
    pub tokens: usize,
    /// Seconds of the forward passes and metrics.
    pub seconds: f64,
    /// Standard error of the mean loss, from the spread over rows.
    #[serde(skip)]
    pub loss_standard_error: f64,
    #[serde(skip)]
    pub answers: Answers,
}

/// Everything that measuring needs besides the rows.
pub struct Measuring<'a> {
    pub model: &'a Model,
    pub parameters: &'a Parameters,
    pub table: &'a AdapterTable,
    /// Token budget of a micro-batch. Rows of similar length are computed together, so they do not
    /// come in their order.
    pub micro_tokens: usize,
    pub memory: &'a mut Memory,
    /// The ranks that share the rows of `measure`.
    pub ranks: &'a Ranks,
    pub cancel: &'a Cancel,
    pub listen: &'a mut dyn FnMut(&Event),
}

impl Measuring<'_> {
    fn context(&mut self) -> Context<'_> {
        Context::new(self.parameters.read(), self.table, self.memory, self.cancel.flag())
    }

    /// Calls `pass` with the rows `chosen`, by index, a batch at a time, and reports how many
    /// tokens are done. The count is scaled to `of` tokens if other ranks measure other rows.
    fn each_batch(
        &mut self,
        rows: TaskRows<'_>,
        chosen: impl Iterator<Item = usize>,
        of: Option<usize>,
        mut pass: impl FnMut(Context, &[usize]) -> Result<()>,
    ) -> Result<()> {
        let chosen: Vec<usize> = chosen.collect();
        let lengths: Vec<usize> = chosen.iter().map(|&row| rows.length(row)).collect();
        let (mut done, own) = (0, lengths.iter().sum::<usize>());
        let of = of.unwrap_or(own);
        for batch in batch::evaluation_batches(&lengths, self.micro_tokens) {
            let batch: Vec<usize> = batch.into_iter().map(|place| chosen[place]).collect();
            pass(self.context(), &batch)?;
            done += batch.iter().map(|&row| rows.length(row)).sum::<usize>();
            (self.listen)(&Event::Evaluating { done: done * of / own.max(1), of });
        }
        Ok(())
    }

    /// Returns the rank that measures each row.
    fn owners(&self, rows: TaskRows) -> Vec<usize> {
        share_out(&rows.lengths(), self.ranks.size())
    }

    /// Exchanges results: gives all ranks what each has `made` of its rows, in their order, and
    /// calls `take` to read each row of the other ranks.
    fn exchange(
        &self,
        owners: &[usize],
        made: Result<Vec<u8>>,
        mut take: impl FnMut(usize, &mut &[u8]) -> Option<()>,
    ) -> Result<()> {
        let all = self.ranks.gather(made)?;
        let mut messages: Vec<&[u8]> = all.iter().map(|message| &message[..]).collect();
        for (row, &owner) in owners.iter().enumerate().filter(|(_, owner)| **owner != self.ranks.rank()) {
            let garbled =
                || Error::Ranks(format!("rank {owner} has sent something else than row {}", row + 1));
            take(row, &mut messages[owner]).ok_or_else(garbled)?;
        }
        Ok(())
    }

    /// Computes the rows' logits by a model with a head, and gives each row's index and logits,
    /// (outputs) or (labelled words, outputs), to `take`. Logits are not stored: with thousands of
    /// classes they would be larger than the model.
    ///
    /// # Errors
    /// Logits that are not finite; interrupted.
    pub(crate) fn each_logits(
        &mut self,
        examples: &[Example],
        take: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.logits_of(examples, 0..examples.len(), take)
    }

    fn logits_of(
        &mut self,
        examples: &[Example],
        chosen: impl Iterator<Item = usize>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let model = self.model;
        let Head { kind, outputs } = model.head.expect("logits are of models with a head");
        let of = Some(examples.iter().map(|example| example.ids.len()).sum());
        self.each_batch(TaskRows::Labelled(examples), chosen, of, |context, rows| {
            let found = model.net.outputs(context, sequences(&PackedBatch::pack(examples, rows)))?;
            let mut rest = &found[..];
            for &row in rows {
                let count = if kind == HeadKind::Token { examples[row].labelled.len() } else { 1 };
                let (logits, others) = rest.split_at(count * outputs);
                rest = others;
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
            examples.iter().map(|e| e.label.clone()).collect::<Option<_>>().ok_or_else(|| {
                Error::Input("the split has rows without labels and cannot be measured".into())
            })?;
        // Each row's loss and answer, and its weight in the mean loss.
        let mut losses = vec![0.0; examples.len()];
        let mut answers: Vec<Option<Answer>> = vec![None; examples.len()];
        let share = |row: usize| heads::loss_weight(&truth[row], labels.weights(), labels.outputs());
        let (owners, rank) = (self.owners(TaskRows::Labelled(examples)), self.ranks.rank());
        let own = || (0..examples.len()).filter(|&row| owners[row] == rank);
        let mut made = self.logits_of(examples, own(), |row, logits| {
            let (answer, loss) = Answer::new(logits, &truth[row], labels);
            (answers[row], losses[row]) = (Some(answer), loss);
        });
        if self.ranks.size() > 1 {
            let bytes = made.map(|()| {
                let mut bytes = Vec::new();
                for row in own() {
                    bytes.extend(f64::to_le_bytes(losses[row]));
                    answers[row].iter().for_each(|answer| answer.write_for_ranks(&mut bytes));
                }
                bytes
            });
            made = self.exchange(&owners, bytes, |row, message| {
                losses[row] = f64::from_le_bytes(take_bytes(message)?);
                answers[row] = Some(Answer::read_from_rank(&truth[row], message)?);
                Some(())
            });
        }
        made?;
        let answers = labels.answers(answers.into_iter().flatten());
        let rows: Vec<usize> = (0..examples.len()).collect();
        let metrics = labels.measure(&answers, &rows);
        let shares: Vec<f64> = rows.iter().map(|&row| share(row)).collect();
        Ok(Evaluation {
            // Summed in the rows' order, whatever the order of computation.
            loss: losses.iter().sum::<f64>() / shares.iter().sum::<f64>(),
            metrics: metrics.into_iter().map(|(metric, value)| (metric.name().to_string(), value)).collect(),
            loss_standard_error: standard_error(
                losses.iter().zip(&shares).map(|(loss, share)| (loss / share, *share)),
            ),
            rows: examples.len(),
            tokens: examples.iter().map(|e| e.ids.len()).sum(),
            seconds: began.elapsed().as_secs_f64(),
            answers,
        })
    }

    /// Measures the mean loss of the texts' learned tokens, and its perplexity.
    fn texts(&mut self, examples: &[TextExample]) -> Result<Evaluation> {
        let began = Instant::now();
        let rows = TaskRows::Text(examples);
        let (net, owners, rank) = (&self.model.net, self.owners(rows), self.ranks.rank());
        let own = |row: &usize| owners[*row] == rank;
        // The losses of the learned tokens, row by row; row i ends at `ends[i + 1]`.
        let mut ends = vec![0];
        examples.iter().for_each(|row| ends.push(ends[ends.len() - 1] + row.learned()));
        let mut losses = vec![0.0f32; ends[examples.len()]];
        let (mut sum, of) = (0.0, rows.tokens());
        let made = self.each_batch(rows, (0..examples.len()).filter(own), Some(of), |context, rows| {
            let found = net.losses(context, texts(&PackedTexts::pack(examples, rows.iter().copied())))?;
            let mut rest = &found[..];
            for &row in rows {
                let (own, others) = rest.split_at(ends[row + 1] - ends[row]);
                losses[ends[row]..ends[row + 1]].copy_from_slice(own);
                rest = others;
            }
            sum += found.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            finite::check_loss(sum, || {
                let rows: Vec<String> = rows.iter().take(8).map(|row| (row + 1).to_string()).collect();
                format!("rows {}", rows.join(", "))
            })
        });
        let bytes = made.map(|()| {
            let own = (0..examples.len()).filter(own).flat_map(|row| &losses[ends[row]..ends[row + 1]]);
            if self.ranks.size() > 1 { own.flat_map(|loss| loss.to_le_bytes()).collect() } else { Vec::new() }
        });
        self.exchange(&owners, bytes, |row, message| {
            for loss in &mut losses[ends[row]..ends[row + 1]] {
                *loss = f32::from_le_bytes(take_bytes(message)?);
            }
            Some(())
        })?;
        // Summed one by one in the order of the rows' lengths, so that the sum does not depend on
        // how rows are batched or shared.
        let mut order: Vec<usize> = (0..examples.len()).collect();
        order.sort_by_key(|&row| (examples[row].ids.len(), row));
        let in_order = order.iter().flat_map(|&row| &losses[ends[row]..ends[row + 1]]);
        let sum: f64 = in_order.fold(0.0, |sum, &loss| sum + f64::from(loss));
        let mean = |own: &[f32]| own.iter().sum::<f32>() / own.len().max(1) as f32;
        let of_rows: Vec<f32> = ends.windows(2).map(|ends| mean(&losses[ends[0]..ends[1]])).collect();
        let learned = losses.len();
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

    /// Runs the forward passes of the rows `chosen`, by index, with an observer.
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

    /// Calls `pass` with the rows `chosen`, by index, a batch at a time.
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
        self.each_batch(rows, chosen.iter().copied(), None, |context, batch| {
            Ok(pass(context, &Packed::new(rows, batch))?)
        })?;
        stage.end(self.listen);
        Ok(())
    }
}

/// Consecutive passes over the same rows, which listeners see as one stage.
pub struct RepeatedPasses {
    began: Instant,
    /// Tokens of all passes, and of the passes that have ended.
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

    /// Reports the progress of one pass as that of all; its other events are dropped.
    pub fn hear(&mut self, event: &Event, listen: &mut dyn FnMut(&Event)) {
        if let Event::Evaluating { done, of } = event {
            listen(&Event::Evaluating { done: self.ended + done, of: self.of });
            self.ended += if done == of { *of } else { 0 };
        }
    }

    /// Ends the stage, possibly before all passes are made.
    pub fn end(self, listen: &mut dyn FnMut(&Event)) {
        let seconds = self.began.elapsed().as_secs_f64();
        listen(&Event::StageEnd { stage: Stage::Evaluate, seconds });
    }
}

/// Returns the standard error of the weighted mean of (value, weight) pairs:
/// `√(Σ w² (x − mean)²) / Σ w`.
fn standard_error(values: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let weight: f64 = values.clone().map(|(_, w)| w).sum();
    let mean = values.clone().map(|(x, w)| w * x).sum::<f64>() / weight;
    values.map(|(x, w)| (w * (x - mean)).powi(2)).sum::<f64>().sqrt() / weight
}
