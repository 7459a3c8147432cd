//! Passes over a golden model with adapters: outputs, losses, and gradients of the whole batch or
//! in parts, each on the CPU and on the reference device.

use std::sync::atomic::AtomicBool;

use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::Key;
use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{
    AdapterTable, Checkpoint, Context, DropoutRates, Head, Loading, Memory, Model, ModelConfig, Parameters,
    PassSize, SavePolicy, Sequences, Targets, TextPart, Texts, TrainPart, Trained,
};

use crate::golden_file::{Golden, OnReference, agree, close, folder};

static GO: AtomicBool = AtomicBool::new(false);
pub const WHOLE: &[usize] = &[6];
const PARTS: &[usize] = &[1, 4, 6];
const DROPOUT: DropoutRates = DropoutRates { hidden: 0.0, attention: 0.0, head: 0.0, lora: 0.25 };

pub struct Adapted {
    pub model: Model,
    pub parameters: Parameters,
    pub table: AdapterTable,
    memory: Memory,
    ids: Vec<u32>,
    types: Vec<u32>,
    offsets: Vec<usize>,
    labels: Vec<usize>,
    learn: Vec<bool>,
}

impl Adapted {
    /// Loads the golden model and its inputs, without adapters.
    pub fn load(name: &str, trained: Trained) -> Self {
        let golden = Golden::open(name);
        let config = ModelConfig::read(&folder(name)).unwrap();
        let encoder = !config.architecture.is_decoder();
        let mut parameters = Parameters::new();
        let loading = Loading {
            head: encoder.then_some(Head::of_sequences(3)),
            trained,
            quantize: None,
            key: Key::new(0),
        };
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let model = Model::load(&checkpoint, &config, loading, &mut parameters).unwrap();
        let wide = |name: &str| golden.integers(name).into_iter().map(|x| x as usize).collect();
        Adapted {
            table: AdapterTable::empty(model.layers()),
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

    fn total(&self) -> usize {
        match self.labels.is_empty() {
            true => Texts { ids: &self.ids, offsets: &self.offsets, learn: &self.learn }.learned(),
            false => self.labels.len(),
        }
    }

    /// Computes the gradients of the whole batch, in parts that end at `cuts`, and compares them
    /// with the reference device's; returns the mean loss.
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
                let part = TextPart { texts, total, dropout, keys, recompute, prefix: None };
                let want = reference.as_mut().map(|r| r.train_texts(&self.parameters, table, part, false));
                let (values, gradients) = self.parameters.training();
                let context = Context { values, table, observing: None, memory, stop };
                (self.model.net.train_texts(context, gradients, part).unwrap(), want)
            } else {
                let part = TrainPart {
                    sequences: Sequences {
                        ids,
                        types: &self.types[start..end],
                        offsets: &offsets,
                        labelled: &[],
                    },
                    targets: Targets::Classes(&self.labels[from..to]),
                    weights: &[],
                    label_smoothing: 0.0,
                    total: total as f64,
                    dropout,
                    keys,
                    recompute,
                    prefix: None,
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

    /// Returns logits of labels, or losses of targets.
    pub fn outputs(&mut self) -> Vec<f32> {
        let context = Context::new(self.parameters.read(), &self.table, &mut self.memory, &GO);
        if self.labels.is_empty() {
            let texts = Texts { ids: &self.ids, offsets: &self.offsets, learn: &self.learn };
            return self.model.net.losses(context, texts).unwrap();
        }
        let sequences =
            Sequences { ids: &self.ids, types: &self.types, offsets: &self.offsets, labelled: &[] };
        self.model.net.outputs(context, sequences).unwrap()
    }

    /// Checks that outputs, losses and gradients are those of the golden case `case`, for the whole
    /// batch, in parts and with recomputation.
    pub fn check(&mut self, what: &str, golden: &Golden, case: &str) {
        let outputs = if self.labels.is_empty() { "losses" } else { "logits" };
        close(what, &self.outputs(), &golden.get(&format!("{case}.{outputs}")), 0.0);
        for (cuts, recompute) in [(WHOLE, false), (PARTS, false), (PARTS, true)] {
            let loss = self.train(cuts, DropoutRates::NONE, recompute) as f32;
            close(what, &[loss], &golden.get(&format!("{case}.loss")), 0.0);
            golden.check_gradients(&self.parameters, case);
        }
    }

    /// Checks gradients under dropout with fixed keys against finite differences on the CPU;
    /// `train` compares them with the reference's in f64. Covers adapters that are shared or in
    /// layer 1, and the trained weights of layer 1's query.
    pub fn check_finite_differences(&mut self, what: &str) {
        self.train(WHOLE, DROPOUT, false);
        let (start, gradients) = (self.parameters.values().to_vec(), self.parameters.gradients().to_vec());
        for p in self.parameters.list().to_vec() {
            let adapts = ["lora_A", "lora_B", "magnitude", "inner", "outer", "query.weight", "query.bias"];
            if !adapts.iter().any(|end| p.name.ends_with(end))
                || !(p.name.contains('1') || p.name.contains("shared"))
            {
                continue;
            }
            let key = Key::new(9).fold(p.range.start as u64);
            let direction: Vec<f32> = (0..p.range.len() as u64).map(|i| key.normal(i) as f32).collect();
            let gradient = &gradients[p.range.clone()];
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| *g as f64 * *d as f64).sum();
            let mut at = |shift: f32| {
                let mut moved = start.clone();
                moved[p.range.clone()].iter_mut().zip(&direction).for_each(|(m, d)| *m += shift * d);
                self.parameters.set_values(&moved);
                self.train(WHOLE, DROPOUT, false)
            };
            let want = (at(5e-4) - at(-5e-4)) / 1e-3;
            let size = gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
            assert!((slope - want).abs() <= 0.02 * size + 2e-3, "{what} {}: {slope}, not {want}", p.name);
        }
    }
}

/// Checks that results are bit-identical for any number of threads, memory and form of frozen
/// weights.
pub fn check_bits(what: &str, load: impl Fn() -> Adapted + Sync) {
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |threads: usize, recompute: bool, form: FrozenForm| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut adapted = load();
                adapted.model.net.multiply_in(precision);
                adapted.model.net.convert_frozen(form);
                let loss = adapted.train(PARTS, DROPOUT, recompute);
                (loss, adapted.parameters.gradients().to_vec(), adapted.outputs())
            })
        };
        let one = run(1, false, FrozenForm::AsIs);
        assert!(one.1.iter().all(|x| x.is_finite()));
        assert!(run(2, false, FrozenForm::AsIs) == one, "{what} {precision:?}: threads");
        assert!(run(2, true, FrozenForm::AsIs) == one, "{what} {precision:?}: recompute");
        for form in [FrozenForm::Rounded, FrozenForm::Packed] {
            assert!(run(2, false, form) == one, "{what} {precision:?} {form:?}");
        }
    }
}

/// Checks that the estimate is what a pass allocates, and that the pass writes to nine tenths of it
/// or more.
pub fn check_estimated_memory(what: &str, load: impl Fn() -> Adapted) {
    for (recompute, dropped) in [(false, false), (false, true), (true, true)] {
        let mut adapted = load();
        adapted.train(WHOLE, if dropped { DROPOUT } else { DropoutRates::NONE }, recompute);
        let size = PassSize {
            tokens: adapted.ids.len(),
            sequences: 6,
            learned: if adapted.labels.is_empty() { adapted.total() } else { 0 },
            saves: SavePolicy::of_training(recompute),
            lora_dropout: dropped,
            scored: false,
            every_token: false,
        };
        let (floats, estimated) = (adapted.memory.floats(), adapted.model.net.floats(&adapted.table, &size));
        assert_eq!(floats.len(), estimated, "{what}");
        let end = floats.iter().rposition(|&x| x != 0.0).map_or(0, |last| last + 1);
        assert!(end as f64 > 0.9 * estimated as f64, "{what}: {end} of {estimated}");
    }
}
