//! Llama, Qwen2 and Gemma 3 with a head against PyTorch: logits, losses, every gradient, ten
//! optimiser steps (tests/golden, written by tools/golden/golden_classifiers.py).

mod golden_file;

use std::sync::atomic::AtomicBool;

use golden_file::{Golden, OnReference, agree, close, folder, second_moments, tensor, transposed};
use lora_drop_compute::adamw;
use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::random::Key;
use lora_drop_transformer::{
    Adapter, AdapterTable, Checkpoint, Context, DropoutRates, Group, Head, HeadOrigin, Loading, LoraPair,
    Memory, Model, ModelConfig, ModuleId, ModuleKind, Observations, Parameters, Sequences, Stopped, Targets,
    TrainPart, Trained,
};

const MODELS: [&str; 3] = ["llama", "qwen2", "gemma3"];
const TASKS: [&str; 2] = ["classification", "regression"];
const WHOLE: &[usize] = &[6];
const PARTS: &[usize] = &[1, 4, 6];
static GO: AtomicBool = AtomicBool::new(false);

struct Case {
    name: String,
    golden: Golden,
    model: Model,
    parameters: Parameters,
    table: AdapterTable,
    ids: Vec<u32>,
    offsets: Vec<usize>,
    /// Empty for a regression.
    classes: Vec<usize>,
    values: Vec<f32>,
    dropout: DropoutRates,
    memory: Memory,
}

fn loading(outputs: usize, quantize: Option<BlockType>) -> Loading {
    Loading { head: Some(Head::of_sequences(outputs)), trained: Trained::Head, quantize, key: Key::new(0) }
}

impl Case {
    fn load(model: &str, task: &str) -> Self {
        Case::trained(model, task, Trained::Head)
    }

    fn trained(model: &str, task: &str, trained: Trained) -> Self {
        let folder = folder(model);
        let (inputs, golden) = (Golden::open(model), Golden::file(model, "classifier.safetensors"));
        let config = ModelConfig::read(&folder).unwrap();
        let (mut parameters, mut table) = (Parameters::new(), AdapterTable::empty(config.layers));
        let regression = task == "regression";
        let outputs = if regression { 1 } else { 3 };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let loading = Loading { trained, ..loading(outputs, None) };
        let model = Model::load(&checkpoint, &config, loading, &mut parameters).unwrap();
        assert_eq!(
            (model.head, &model.head_origin),
            (Some(Head::of_sequences(outputs)), &Some(HeadOrigin::Initialised))
        );
        let head = parameters.find("score.weight").unwrap();
        parameters.value_mut(head).copy_from_slice(&golden.get(&format!("{task}.score")));
        let both = [ModuleKind::Query, ModuleKind::Value];
        let kinds = match (trained, regression) {
            (Trained::Everything, _) => &[],
            (_, true) => &both[..],
            (_, false) => &ModuleKind::ALL,
        };
        for (layer, &kind) in (0..config.layers).flat_map(|layer| kinds.iter().map(move |k| (layer, k))) {
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
        let truth = format!("{task}.truth");
        Case {
            name: format!("{} {task}", config.model_type),
            model,
            parameters,
            table,
            ids: inputs.integers("input.ids"),
            offsets: inputs.integers("input.offsets").into_iter().map(|x| x as usize).collect(),
            classes: if regression {
                Vec::new()
            } else {
                golden.integers(&truth).into_iter().map(|x| x as usize).collect()
            },
            values: if regression { golden.get(&truth) } else { Vec::new() },
            golden,
            dropout: DropoutRates::NONE,
            memory: Memory::default(),
        }
    }

    fn all() -> impl Iterator<Item = (Case, &'static str)> {
        MODELS.into_iter().flat_map(|model| TASKS.map(|task| (Case::load(model, task), task)))
    }

    /// Returns the logits of the sequences from `from` to `to`.
    fn logits(&mut self, from: usize, to: usize, moments: Option<&mut Observations>) -> Vec<f32> {
        let start = self.offsets[from];
        let offsets: Vec<usize> = self.offsets[from..=to].iter().map(|o| o - start).collect();
        let sequences = Sequences {
            ids: &self.ids[start..self.offsets[to]],
            types: &[],
            offsets: &offsets,
            labelled: &[],
        };
        let context = Context::new(self.parameters.read(), &self.table, &mut self.memory, &GO);
        let observing = moments.map(second_moments);
        self.model.net.outputs(Context { observing, ..context }, sequences).unwrap()
    }

    /// Computes the gradients of the whole batch, in parts that end at these sequences; returns the
    /// mean loss.
    fn train(&mut self, cuts: &[usize], recompute: bool, moments: Option<&mut Observations>) -> f64 {
        let total = self.offsets.len() - 1;
        self.parameters.zero_gradients();
        let mut reference = OnReference::of(&self.model.net, &self.parameters);
        let (mut sum, mut from, mut moments) = (0.0, 0, moments);
        for &to in cuts {
            let (start, end) = (self.offsets[from], self.offsets[to]);
            let offsets: Vec<usize> = self.offsets[from..=to].iter().map(|o| o - start).collect();
            let keys: Vec<Key> = (from..to).map(|i| Key::new(5).fold(i as u64)).collect();
            let part = TrainPart {
                sequences: Sequences {
                    ids: &self.ids[start..end],
                    types: &[],
                    offsets: &offsets,
                    labelled: &[],
                },
                targets: match self.classes.is_empty() {
                    true => Targets::Values(&self.values[from..to]),
                    false => Targets::Classes(&self.classes[from..to]),
                },
                weights: &[],
                label_smoothing: 0.0,
                total: total as f64,
                dropout: self.dropout,
                keys: &keys,
                recompute,
                prefix: None,
            };
            let scored = moments.is_some();
            let of_reference = (reference.as_mut())
                .map(|reference| reference.train(&self.parameters, &self.table, part, scored));
            let (table, memory) = (&self.table, &mut self.memory);
            let observing = moments.as_deref_mut().map(second_moments);
            let (values, gradients) = self.parameters.training();
            let context = Context { values, table, observing, memory, stop: &GO };
            let loss = self.model.net.train(context, gradients, part).unwrap();
            if let Some(want) = of_reference {
                agree("loss", &[loss as f32], &[want as f32], 0.0);
            }
            sum += loss;
            from = to;
        }
        if let Some(reference) = reference {
            reference.check_gradients(&self.parameters);
            moments.iter().for_each(|moments| reference.check_moments(moments));
        }
        sum / total as f64
    }
}

#[test]
fn logits_losses_and_every_gradient() {
    for (mut case, task) in Case::all() {
        let logits = case.logits(0, 6, None);
        close(&case.name, &logits, &case.golden.get(&format!("{task}.logits")), 0.0);
        for cuts in [WHOLE, PARTS] {
            let loss = case.train(cuts, false, None) as f32;
            close(&case.name, &[loss], &case.golden.get(&format!("{task}.loss")), 0.0);
            case.golden.check_gradients(&case.parameters, task);
        }
    }
}

#[test]
fn every_weight_of_full_fine_tuning() {
    let mut case = Case::trained("qwen2", "classification", Trained::Everything);
    let golden = Golden::file("qwen2", "classifier_full.safetensors");
    close("logits", &case.logits(0, 6, None), &golden.get("full.logits"), 0.0);
    for cuts in [WHOLE, PARTS] {
        let loss = case.train(cuts, false, None) as f32;
        close("loss", &[loss], &golden.get("full.loss"), 0.0);
        golden.check_gradients(&case.parameters, "full");
    }
}

#[test]
fn ten_optimiser_steps() {
    for (mut case, task) in Case::all() {
        let n = case.parameters.count();
        let (mut first, mut second) = (vec![0.0; n], vec![0.0; n]);
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        let rates = case.golden.get(&format!("{task}.steps.learning_rates"));
        for (step, learning_rate) in rates.into_iter().enumerate() {
            losses.push(case.train(PARTS, false, None) as f32);
            let norm = adamw::norm(case.parameters.gradients());
            norms.push(norm as f32);
            let (_, values, gradients) = case.parameters.split();
            let update = adamw::Update {
                learning_rate: learning_rate.into(),
                weight_decay: 0.1,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                step: step as i32 + 1,
                gradient_scale: (1.0 / (norm + 1e-6)).min(1.0) as f32,
            };
            adamw::update(update, values, gradients, &mut first, &mut second);
        }
        losses.push(case.train(WHOLE, false, None) as f32);
        close(&case.name, &losses, &case.golden.get(&format!("{task}.steps.losses")), 0.0);
        close(&case.name, &norms, &case.golden.get(&format!("{task}.steps.grad_norms")), 0.0);
        let prefix = format!("{task}.steps.final.");
        for full in case.golden.names(&prefix) {
            close(
                &full,
                &tensor(&case.parameters, &full[prefix.len()..], false),
                &case.golden.get(&full),
                1e-2,
            );
        }
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for (mut case, _) in Case::all() {
        let packed = case.logits(0, 6, None);
        let one_by_one: Vec<f32> = (0..6).flat_map(|i| case.logits(i, i + 1, None)).collect();
        close(&case.name, &one_by_one, &packed, 0.0);
    }
}

#[test]
fn recomputing_is_bit_identical() {
    for (mut case, _) in Case::all() {
        case.dropout = DropoutRates { attention: 0.2, lora: 0.25, ..DropoutRates::NONE };
        let saved = (case.train(PARTS, false, None), case.parameters.gradients().to_vec());
        let recomputed = (case.train(PARTS, true, None), case.parameters.gradients().to_vec());
        assert!(saved == recomputed, "{}", case.name);
    }
}

/// Training passes observe all tokens of every module, as a pass without training does.
#[test]
fn training_and_scoring_passes_have_the_same_moments() {
    for (mut case, _) in Case::all() {
        let (mut trained, mut scored) = (Observations::new(), Observations::new());
        case.train(WHOLE, true, Some(&mut trained));
        case.logits(0, 6, Some(&mut scored));
        for layer in 0..case.model.config.layers {
            for kind in ModuleKind::ALL {
                let module = ModuleId { layer, kind };
                let adapted = case.table.get(module).is_some();
                assert_eq!(trained.get(module), scored.get(module));
                assert_eq!(scored.get(module).is_some(), adapted, "{} {module:?}", case.name);
            }
        }
    }
}

#[test]
fn without_adapters_only_the_head_has_gradients() {
    for (mut case, task) in Case::all() {
        let head = case.parameters.find("score.weight").unwrap();
        case.train(WHOLE, false, None);
        let with_lora = case.parameters.gradient(head).to_vec();
        case.table = AdapterTable::empty(case.model.config.layers);
        case.train(WHOLE, false, None);
        let alone = case.parameters.gradient(head).to_vec();
        assert!(alone.iter().all(|g| *g != 0.0) && alone != with_lora, "{task}");
        let rest = case.parameters.gradients().iter().filter(|g| **g != 0.0).count();
        assert_eq!(rest, alone.len(), "the pairs that no module uses have no gradient");
    }
}

#[test]
fn a_quantized_base_gives_similar_logits() {
    let folder = folder("llama");
    let config = ModelConfig::read(&folder).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let mut case = Case::load("llama", "classification");
    let exact = case.logits(0, 6, None);
    let (mut parameters, q8_0) = (Parameters::new(), Some(BlockType::Q8_0));
    let model = Model::load(&checkpoint, &config, loading(3, q8_0), &mut parameters).unwrap();
    // Both have the same parameters in the same order, so the golden pairs fit.
    let values = case.parameters.values()[..parameters.count()].to_vec();
    parameters.set_values(&values);
    case.table = AdapterTable::empty(config.layers);
    let plain = case.logits(0, 6, None);
    (case.model, case.parameters) = (model, parameters);
    let rough = case.logits(0, 6, None);
    let worst = plain.iter().zip(&rough).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.2, "{worst}");
    assert_ne!(exact, plain);
}

#[test]
fn a_pass_stops_when_asked() {
    let case = Case::load("qwen2", "regression");
    let stop = AtomicBool::new(true);
    let sequences = Sequences { ids: &case.ids, types: &[], offsets: &case.offsets, labelled: &[] };
    let memory = &mut Memory::default();
    let context = Context::new(case.parameters.read(), &case.table, memory, &stop);
    let found = case.model.net.outputs(context, sequences);
    assert_eq!(found, Err(Stopped::Asked));
}
