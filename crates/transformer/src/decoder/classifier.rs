//! A decoder whose outputs are classes, or one value for a regression: a linear layer without bias on the last norm of
//! each sequence's last token, as transformers' `LlamaForSequenceClassification`.
//!
//! Packed sequences have no padding, so the last token is always a real one.

use std::sync::atomic::AtomicBool;

use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::gemm::{Precision, Start};
use lora_drop_compute::linear::Rows;
use lora_drop_compute::profile;
use lora_drop_compute::random::Key;

use super::block::Pass;
use super::body::{Body, Places};
use super::config::DecoderConfig;
use super::{last_rows, training_drops};
use crate::encoder::{DropoutRates, HeadOrigin, Sequences, Stopped, TrainPart};
use crate::error::Result;
use crate::linear::{FrozenForm, Grads, LinearWeights, Values, Weight};
use crate::lora::LoraTable;
use crate::memory::{Memory, PassSize, WeightBytes, embedding_bytes};
use crate::model::SequenceModel;
use crate::moments::Moments;
use crate::parameters::{Group, Parameters};
use crate::weights::{HeadTensor, Source, Weights};

/// The model: frozen weights, and the head's place in `Parameters`.
#[derive(Clone, Debug)]
pub struct Classifier {
    pub config: DecoderConfig,
    pub(crate) body: Body,
    /// hidden → outputs
    score: LinearWeights,
    /// What `load` found of the head.
    pub head_origin: HeadOrigin,
}

/// The last norm of each sequence's last token, with what its way back needs.
struct LastTokens {
    rows: Vec<usize>,
    x: Vec<f32>, // (sequences, hidden)
    n: Vec<f32>, // (sequences, hidden)
    rstd: Vec<f32>,
}

impl Classifier {
    /// Reads the weights of `config`'s decoder, as `Decoder::load` does, and a head of `outputs`, which trains and is
    /// added to `parameters`. A head that is missing, or was made for other outputs, is initialised by `key`: normal, as
    /// transformers does. The output layer for tokens is not read.
    ///
    /// # Errors
    /// All weights that are missing, have another shape or hold values that are not finite.
    pub fn load(
        source: &dyn Source,
        config: &DecoderConfig,
        outputs: usize,
        quantise: Option<BlockType>,
        key: Key,
        parameters: &mut Parameters,
    ) -> Result<Self> {
        let mut source = Weights::new(source, config.architecture.prefix());
        let body = Body::take(&mut source, config, quantise);
        let (name, shape) = config.head_weights(outputs).remove(0);
        let found = source.try_take_head(name, &shape);
        source.finish()?;
        let spread = config.initializer_range;
        let initial = || (0..shape.iter().product::<usize>() as u64).map(|i| (spread * key.normal(i)) as f32);
        let (values, head_origin) = match found {
            HeadTensor::Found(tensor) => (tensor.to_vec(), HeadOrigin::Checkpoint),
            HeadTensor::Missing => (initial().collect(), HeadOrigin::Initialised),
            HeadTensor::Misshapen { seen } => {
                (initial().collect(), HeadOrigin::OtherOutputs(seen.first().copied().unwrap_or(0)))
            }
        };
        let weight = Weight::Trained(parameters.add(name, &shape, Group::Head, true, &values));
        let score = LinearWeights::new(weight, None, config.hidden_size, outputs);
        Ok(Classifier { config: config.clone(), body, score, head_origin })
    }

    /// What training multiplies in from now on; the head stays in f32.
    pub fn multiply_in(&mut self, precision: Precision) {
        self.body.multiply_in(precision);
    }

    /// Floats of activations that a pass takes.
    pub fn floats(&self, table: &LoraTable, size: &PassSize) -> usize {
        self.body.floats(&self.config, table, size, 0)
    }

    /// Bytes of frozen weights without the table of embeddings, once they are kept in this form.
    pub fn weight_bytes(&self, form: FrozenForm) -> WeightBytes {
        self.body.frozen(form).bytes()
    }

    /// Bytes of the table of embeddings that are resident once the `used` of all tokens have been read.
    pub fn embedding_bytes(&self, used: &[bool]) -> usize {
        embedding_bytes(&self.body.embeddings, used)
    }

    /// The model's own dropout, none on LoRA.
    pub fn dropout_rates(&self) -> DropoutRates {
        self.config.dropout_rates()
    }

    /// x: (tokens, hidden).
    fn last_tokens(&self, pass: &Pass, x: &[f32]) -> LastTokens {
        let rows = last_rows(pass.offsets);
        let size = rows.len() * self.config.hidden_size;
        let (mut gathered, mut n, mut rstd) = (vec![0.0; size], vec![0.0; size], vec![0.0; rows.len()]);
        self.body.norm_rows(pass, x, &rows, &mut gathered, &mut n, &mut rstd);
        LastTokens { rows, x: gathered, n, rstd }
    }

    /// The logits, (sequences, outputs).
    fn head(&self, values: Values, last: &LastTokens) -> Vec<f32> {
        let (rows, outputs) = (last.rows.len(), self.score.output);
        let mut logits = vec![0.0; rows * outputs];
        self.score.forward(values, rows, &last.n, None, &mut logits, outputs, &mut [], &mut []);
        logits
    }
}

impl SequenceModel for Classifier {
    fn outputs(&self) -> usize {
        self.score.output
    }

    fn score(
        &self,
        parameters: &Parameters,
        table: &LoraTable,
        sequences: Sequences,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<f32>, Stopped> {
        let values = Values { list: parameters.list(), values: parameters.values() };
        let places = Places::of_sequences(&self.config, sequences.offsets, memory);
        let pass = places.pass(&self.body, &self.config, values, table, sequences.offsets, None);
        let size = PassSize::of_forward(sequences.offsets, moments.is_some());
        let mut arena = memory.arena(self.floats(table, &size));
        let blocks = self.body.blocks.len();
        let x = self.body.forward(&pass, sequences.ids, None, blocks, moments, &mut arena, stop)?;
        Ok(self.head(values, &self.last_tokens(&pass, x)))
    }

    fn train(
        &self,
        values: Values,
        gradients: &mut [f32],
        table: &LoraTable,
        part: TrainPart,
        moments: Option<&mut Moments>,
        memory: &mut Memory,
        stop: &AtomicBool,
    ) -> std::result::Result<f64, Stopped> {
        let Sequences { ids, offsets, .. } = part.sequences;
        let drops = training_drops(part.dropout, part.keys, offsets);
        let places = Places::of_sequences(&self.config, offsets, memory);
        let pass = places.pass(&self.body, &self.config, values, table, offsets, Some(drops));
        let (t, h) = (pass.tokens(), self.config.hidden_size);
        let (dropped, scored) = (drops.lora.is_active(), moments.is_some());
        let size = PassSize::of_training(offsets, part.recompute, dropped, scored);
        let mut arena = memory.arena(self.floats(table, &size));
        let mut kept =
            self.body.forward_kept(&pass, ids, part.below, part.recompute, moments, &mut arena, stop)?;

        let phase = profile::phase("head and loss");
        let last = self.last_tokens(&pass, kept.output());
        let logits = self.head(values, &last);
        let mut dlogits = vec![0.0; logits.len()];
        let sum = part.loss(&logits, &mut dlogits);

        let mut grads = Grads { list: values.list, gradients, relative: None };
        let rows = last.rows.len();
        let mut dn = vec![0.0; last.n.len()];
        let dy = Rows { data: &dlogits, stride: self.score.output };
        let to_n = Some((&mut dn[..], Start::Zero));
        self.score.backward(values, &mut grads, rows, &last.n, None, &[], dy, to_n, &mut [], &mut []);
        let d = arena.take(t * h);
        d.fill(0.0);
        let dx = &mut vec![0.0; dn.len()];
        self.body.norm_rows_backward(&pass, &last.rows, &last.x, &last.rstd, &dn, dx, d);
        drop(phase);
        self.body.backward(&pass, &mut grads, &mut kept, d, &mut arena, stop)?;
        Ok(sum)
    }
}
