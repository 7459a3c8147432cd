//! Passes over a golden model with adapters: outputs, losses, and gradients of the whole batch or in parts, each on the CPU and on
//! the reference.

use std::sync::atomic::AtomicBool;

use lora_drop_compute::random::Key;
use lora_drop_transformer::{
    Checkpoint, Context, DropoutRates, Loading, LoraTable, Memory, Model, ModelConfig, Parameters, Sequences,
    Targets, TextPart, Texts, TrainPart, Trained,
};

use crate::golden_file::{Golden, OnReference, agree, folder, transposed};

static GO: AtomicBool = AtomicBool::new(false);
pub const WHOLE: &[usize] = &[6];
pub const PARTS: &[usize] = &[1, 4, 6];
pub const DROPOUT: DropoutRates = DropoutRates { hidden: 0.0, attention: 0.0, head: 0.0, lora: 0.25 };

pub struct Adapted {
    pub model: Model,
    pub parameters: Parameters,
    pub table: LoraTable,
    pub memory: Memory,
    pub ids: Vec<u32>,
    types: Vec<u32>,
    offsets: Vec<usize>,
    labels: Vec<usize>,
    learn: Vec<bool>,
}

impl Adapted {
    /// The golden model and its inputs, without any adapter yet.
    pub fn load(name: &str, trained: Trained) -> Self {
        let golden = Golden::open(name);
        let config = ModelConfig::read(&folder(name)).unwrap();
        let encoder = !config.architecture.is_decoder();
        let mut parameters = Parameters::new();
        let loading = Loading { outputs: encoder.then_some(3), trained, quantise: None, key: Key::new(0) };
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let model = Model::load(&checkpoint, &config, loading, &mut parameters).unwrap();
        let wide = |name: &str| golden.integers(name).into_iter().map(|x| x as usize).collect();
        Adapted {
            table: LoraTable::empty(model.layers()),
            model,
            parameters,
            memory: Memory::default(),
            ids: golden.integers("input.ids"),
            types: if encoder { golden.integers("input.token_types") } else { Vec::new() },
            offsets: wide("input.offsets"),
            labels: if encoder { wide("input.labels") } else { Vec::new() },
            learn: if encoder {
                Vec::new()
            } else {
                golden.integers("input.learn").iter().map(|&x| x == 1).collect()
            },
        }
    }

    pub fn total(&self) -> usize {
        match self.labels.is_empty() {
            true => Texts { ids: &self.ids, offsets: &self.offsets, learn: &self.learn }.learned(),
            false => self.labels.len(),
        }
    }

    /// Gradients of the whole batch, passed in parts that end at `cuts`, also on the reference; returns the mean loss.
    pub fn train(&mut self, cuts: &[usize], dropout: DropoutRates, recompute: bool) -> f64 {
        self.parameters.zero_gradients();
        let total = self.total();
        let mut reference = OnReference::of(&self.model.net, &self.parameters);
        let (mut sum, mut from) = (0.0, 0);
        for &to in cuts {
            let (start, end) = (self.offsets[from], self.offsets[to]);
            let offsets: Vec<usize> = self.offsets[from..=to].iter().map(|o| o - start).collect();
            let keys: Vec<Key> = (from..to).map(|row| Key::new(5).fold(row as u64)).collect();
            let (ids, keys, stop) = (&self.ids[start..end], &keys[..], &GO);
            let (table, memory) = (&self.table, &mut self.memory);
            let (loss, want) = if self.labels.is_empty() {
                let texts = Texts { ids, offsets: &offsets, learn: &self.learn[start..end] };
                let part = TextPart { texts, total, dropout, keys, recompute, below: None };
                let want = reference.as_mut().map(|r| r.train_texts(&self.parameters, table, part, false));
                let (values, gradients) = self.parameters.training();
                let context = Context { values, table, observing: None, memory, stop };
                (self.model.net.train_texts(context, gradients, part).unwrap(), want)
            } else {
                let part = TrainPart {
                    sequences: Sequences { ids, types: &self.types[start..end], offsets: &offsets },
                    targets: Targets::Classes(&self.labels[from..to]),
                    label_smoothing: 0.0,
                    total,
                    dropout,
                    keys,
                    recompute,
                    below: None,
                };
                let want = reference.as_mut().map(|r| r.train(&self.parameters, table, part, false));
                let (values, gradients) = self.parameters.training();
                let context = Context { values, table, observing: None, memory, stop };
                (self.model.net.train(context, gradients, part).unwrap(), want)
            };
            if let Some(want) = want {
                agree("loss", &[loss as f32], &[want as f32], 0.0);
            }
            sum += loss;
            from = to;
        }
        if let Some(reference) = reference {
            reference.check_gradients(&self.parameters);
        }
        sum / total as f64
    }

    /// Logits of labels, or losses of learned tokens.
    pub fn outputs(&mut self) -> Vec<f32> {
        let context = Context::new(self.parameters.read(), &self.table, &mut self.memory, &GO);
        if self.labels.is_empty() {
            let texts = Texts { ids: &self.ids, offsets: &self.offsets, learn: &self.learn };
            return self.model.net.losses(context, texts).unwrap();
        }
        let sequences = Sequences { ids: &self.ids, types: &self.types, offsets: &self.offsets };
        self.model.net.outputs(context, sequences).unwrap()
    }

    pub fn gradient(&self, name: &str) -> Vec<f32> {
        let id = self.parameters.find(name).unwrap_or_else(|| panic!("no parameter {name}"));
        let gradient = self.parameters.gradient(id);
        if name.ends_with("lora_B") { transposed(gradient, 4) } else { gradient.to_vec() }
    }
}
