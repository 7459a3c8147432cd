//! Heads for tokens and for several classes per row, and weighted classes, against PyTorch: logits,
//! losses, every gradient (tests/golden, written by tools/golden/golden_heads.py).

mod golden_file;

use std::sync::atomic::AtomicBool;

use golden_file::{Golden, OnReference, agree, close, folder, transposed};
use lora_drop_compute::random::Key;
use lora_drop_transformer::{
    Adapter, AdapterTable, Checkpoint, Context, DropoutRates, Group, Head, Loading, LoraPair, Memory, Model,
    ModelConfig, ModuleId, ModuleKind, Parameters, Sequences, Targets, TrainPart, Trained,
};

const MODELS: [&str; 4] = ["bert", "roberta", "mpnet", "llama"];
const WHOLE: &[usize] = &[6];
const PARTS: &[usize] = &[2, 4, 6];
static GO: AtomicBool = AtomicBool::new(false);

struct Case {
    name: String,
    golden: Golden,
    model: Model,
    parameters: Parameters,
    table: AdapterTable,
    ids: Vec<u32>,
    types: Vec<u32>,
    offsets: Vec<usize>,
    /// The tokens with a label and their classes; empty without a head for tokens.
    labelled: Vec<usize>,
    classes: Vec<usize>,
    /// Whether each sequence has each class.
    has: Vec<bool>,
    dropout: DropoutRates,
    memory: Memory,
}

impl Case {
    fn load(name: &str, task: &str) -> Self {
        let (inputs, golden) = (Golden::open(name), Golden::file(name, "heads.safetensors"));
        let config = ModelConfig::read(&folder(name)).unwrap();
        let (mut parameters, mut table) = (Parameters::new(), AdapterTable::empty(config.layers));
        let of_tokens = task == "token";
        let head = if of_tokens { Head::of_tokens(5) } else { Head::of_sequences(4) };
        let loading = Loading { head: Some(head), trained: Trained::Head, quantize: None, key: Key::new(0) };
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let model = Model::load(&checkpoint, &config, loading, &mut parameters).unwrap();
        let names = golden.names(&format!("{task}.head."));
        assert_eq!(names.len(), config.head_weights(head).len(), "{name} {task}");
        for full in names {
            let id = parameters.find(full.strip_prefix(&format!("{task}.head.")).unwrap()).unwrap();
            parameters.value_mut(id).copy_from_slice(&golden.get(&full));
        }
        for (layer, kind) in (0..config.layers)
            .flat_map(|layer| [ModuleKind::Query, ModuleKind::Value].map(|kind| (layer, kind)))
        {
            let name = format!("layers.{layer}.{}", kind.name());
            let half = |half: &str| inputs.get(&format!("lora.{name}.{half}"));
            let (a, b) = (half("lora_A"), half("lora_B"));
            let mut add = |half: &str, values: &[f32]| {
                let shape = [4, values.len() / 4];
                parameters.add(&format!("{name}.{half}"), &shape, Group::Lora, true, values)
            };
            let b = transposed(&b, b.len() / 4);
            let pair = LoraPair { a: add("lora_A", &a), b: add("lora_B", &b), rank: 4, scale: 2.0 };
            table.set(ModuleId { layer, kind }, Some(Adapter::Lora(pair)));
        }
        let ids = inputs.integers("input.ids");
        let truth = golden.integers(&format!("{task}.truth"));
        let (mut labelled, mut classes) = (Vec::new(), Vec::new());
        for (token, &class) in
            truth.iter().enumerate().filter(|(_, class)| of_tokens && (**class as i32) >= 0)
        {
            labelled.push(token);
            classes.push(class as usize);
        }
        let decoder = config.architecture.is_decoder();
        Case {
            name: format!("{name} {task}"),
            model,
            parameters,
            table,
            types: if decoder { vec![0; ids.len()] } else { inputs.integers("input.token_types") },
            ids,
            offsets: inputs.integers("input.offsets").into_iter().map(|x| x as usize).collect(),
            labelled,
            classes,
            has: truth.iter().map(|&has| has == 1).collect(),
            golden,
            dropout: DropoutRates::NONE,
            memory: Memory::default(),
        }
    }

    fn all() -> impl Iterator<Item = (Case, &'static str)> {
        MODELS
            .into_iter()
            .flat_map(|model| ["multi_label", "token"].map(|task| (Case::load(model, task), task)))
    }

    /// Returns the labelled tokens of the sequences from `from` to `to`, numbered from the first of
    /// these sequences, and the index of the first one in `labelled`.
    fn labelled(&self, from: usize, to: usize) -> (Vec<usize>, usize) {
        let (start, end) = (self.offsets[from], self.offsets[to]);
        let inside = self.labelled.iter().filter(|&&token| (start..end).contains(&token));
        let first = self.labelled.partition_point(|&token| token < start);
        (inside.map(|token| token - start).collect(), first)
    }

    fn logits(&mut self, from: usize, to: usize) -> Vec<f32> {
        let (start, end) = (self.offsets[from], self.offsets[to]);
        let offsets: Vec<usize> = self.offsets[from..=to].iter().map(|o| o - start).collect();
        let (labelled, _) = self.labelled(from, to);
        let (ids, types) = (&self.ids[start..end], &self.types[start..end]);
        let sequences = Sequences { ids, types, offsets: &offsets, labelled: &labelled };
        let context = Context::new(self.parameters.read(), &self.table, &mut self.memory, &GO);
        self.model.net.outputs(context, sequences).unwrap()
    }

    /// Computes the gradients of the whole batch, in parts that end at these sequences; returns the
    /// loss.
    fn train(&mut self, cuts: &[usize], weights: &[f64], recompute: bool) -> f64 {
        self.parameters.zero_gradients();
        let of_tokens = !self.labelled.is_empty();
        let (total, label_smoothing) = match (of_tokens, weights.is_empty()) {
            (true, true) => (self.classes.len() as f64, 0.0),
            (true, false) => (self.classes.iter().map(|&class| weights[class]).sum(), 0.1),
            (false, _) => (self.has.len() as f64, 0.0),
        };
        let mut reference = OnReference::of(&self.model.net, &self.parameters);
        let (mut sum, mut from) = (0.0, 0);
        for &to in cuts {
            let (start, end) = (self.offsets[from], self.offsets[to]);
            let offsets: Vec<usize> = self.offsets[from..=to].iter().map(|o| o - start).collect();
            let keys: Vec<Key> = (from..to).map(|i| Key::new(5).fold(i as u64)).collect();
            let (labelled, first) = self.labelled(from, to);
            let (ids, types) = (&self.ids[start..end], &self.types[start..end]);
            let part = TrainPart {
                sequences: Sequences { ids, types, offsets: &offsets, labelled: &labelled },
                targets: match of_tokens {
                    true => Targets::Classes(&self.classes[first..first + labelled.len()]),
                    false => Targets::Sets(&self.has[4 * from..4 * to]),
                },
                weights,
                label_smoothing,
                total,
                dropout: self.dropout,
                keys: &keys,
                recompute,
                prefix: None,
            };
            let of_reference = reference
                .as_mut()
                .map(|reference| reference.train(&self.parameters, &self.table, part, false));
            let (values, gradients) = self.parameters.training();
            let context = Context::new(values, &self.table, &mut self.memory, &GO);
            let loss = self.model.net.train(context, gradients, part).unwrap();
            if let Some(want) = of_reference {
                agree("loss", &[loss as f32], &[want as f32], 0.0);
            }
            sum += loss;
            from = to;
        }
        if let Some(reference) = reference {
            reference.check_gradients(&self.parameters);
        }
        sum / total
    }
}

#[test]
fn logits_losses_and_every_gradient() {
    for (mut case, task) in Case::all() {
        let logits = case.logits(0, 6);
        close(&case.name, &logits, &case.golden.get(&format!("{task}.logits")), 0.0);
        let weights: Vec<f64> =
            case.golden.get(&format!("{task}.weights")).into_iter().map(f64::from).collect();
        for (loss, weights) in [("plain", &[][..]), ("weighted", &weights)] {
            for cuts in [WHOLE, PARTS] {
                let found = case.train(cuts, weights, false) as f32;
                close(&case.name, &[found], &case.golden.get(&format!("{task}.{loss}.loss")), 0.0);
                case.golden.check_gradients(&case.parameters, &format!("{task}.{loss}"));
            }
        }
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for (mut case, _) in Case::all() {
        let packed = case.logits(0, 6);
        let one_by_one: Vec<f32> = (0..6).flat_map(|i| case.logits(i, i + 1)).collect();
        close(&case.name, &one_by_one, &packed, 0.0);
    }
}

/// Dropout's keys depend on a token's position in its sequence, and not on the other sequences of
/// its part.
#[test]
fn dropout_does_not_depend_on_recomputing_or_other_rows() {
    for (mut case, _) in Case::all() {
        case.dropout = DropoutRates { hidden: 0.1, attention: 0.2, head: 0.3, lora: 0.25 };
        let whole = (case.train(WHOLE, &[], false), case.parameters.gradients().to_vec());
        let again = (case.train(WHOLE, &[], true), case.parameters.gradients().to_vec());
        assert!(whole == again, "{}", case.name);
        let parts = case.train(PARTS, &[], false);
        assert!((parts - whole.0).abs() < 1e-5, "{}: {parts}, in one part {}", case.name, whole.0);
        case.dropout = DropoutRates { head: 0.0, ..case.dropout };
        let without = case.train(WHOLE, &[], false);
        // A decoder's head for sequences has no dropout.
        assert_eq!(without == whole.0, case.name == "llama multi_label", "{}", case.name);
    }
}
