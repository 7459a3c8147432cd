//! Reads golden files and compares results with them.

#![allow(dead_code)] // each test file uses a part of it

#[path = "../../../compute/tests/reference/mod.rs"]
pub mod reference;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use lora_drop_compute::device::{Device, Storage};
use lora_drop_compute::gemm::Precision;
use lora_drop_transformer::Network;
use lora_drop_transformer::Values;
use lora_drop_transformer::linear::Weight;
use lora_drop_transformer::{
    AdapterTable, Context, Memory, Observations, Observing, Parameters, SecondMoments, Sequences, TextPart,
    Texts, TrainPart,
};
use reference::Reference;
use safetensors::SafeTensors;

pub fn folder(architecture: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(architecture)
}

pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(architecture: &str) -> Self {
        Golden::file(architecture, "golden.safetensors")
    }

    pub fn file(architecture: &str, name: &str) -> Self {
        Golden(std::fs::read(folder(architecture).join(name)).expect("golden file"))
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{name} in the golden file"));
        tensor.data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
    }

    pub fn get(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    pub fn integers(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    pub fn names(&self, prefix: &str) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.names().iter().filter(|n| n.starts_with(prefix)).map(|n| n.to_string()).collect()
    }

    /// Checks that the gradients of the golden case `case` are those of all parameters.
    pub fn check_gradients(&self, parameters: &Parameters, case: &str) {
        let prefix = format!("{case}.grad.");
        let names = self.names(&prefix);
        assert_eq!(names.len(), parameters.list().len(), "{case}: every parameter has a golden gradient");
        for name in names {
            close(&name, &tensor(parameters, &name[prefix.len()..], true), &self.get(&name), 1e-3);
        }
    }
}

/// Returns a parameter's values or gradient under its golden name, in the golden layout.
pub fn tensor(parameters: &Parameters, name: &str, gradient: bool) -> Vec<f32> {
    let id = parameters.find(name).unwrap_or_else(|| panic!("no parameter {name}"));
    let x = if gradient { parameters.gradient(id) } else { parameters.value(id) };
    if name.ends_with("lora_B") { transposed(x, 4) } else { x.to_vec() }
}

/// Checks that `got` is `want` to 1e-4, relative to the tensor's largest value (or to `floor`, for
/// tensors that are zero).
pub fn close(what: &str, got: &[f32], want: &[f32], floor: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(floor, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-4 * size, "{what}[{i}] = {g}, PyTorch has {w}");
    }
}

pub fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
    let cols = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// Returns ‖got − want‖ / ‖want‖.
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(&g, &w)| g as f64 - w as f64));
    off / norm(&mut want.iter().map(|&w| w as f64))
}

static GO: AtomicBool = AtomicBool::new(false);

/// Returns an observer that collects second moments.
pub fn second_moments<D: Device>(observations: &mut Observations) -> Observing<'_, D> {
    Observing { observer: &SecondMoments, observations }
}

/// The same passes on the reference device, in f64.
pub struct OnReference {
    net: Network<Reference>,
    values: Vec<f64>,
    gradients: Vec<f64>,
    moments: Observations,
    memory: Memory<Reference>,
}

impl OnReference {
    /// None if the CPU rounds factors to bf16 or has packed weights.
    pub fn of(net: &Network, parameters: &Parameters) -> Option<Self> {
        let own = |weight: &Weight| matches!(weight, Weight::Frozen(Storage::Packed(_)));
        if net.precision() != Precision::F32 || net.layers.iter().any(|layer| own(&layer.weight)) {
            return None;
        }
        let values: Vec<f64> = parameters.read().values.iter().map(|&x| f64::from(x)).collect();
        Some(OnReference {
            net: net.on(Reference).unwrap(),
            gradients: vec![0.0; values.len()],
            values,
            moments: Observations::new(),
            memory: Memory::default(),
        })
    }

    /// Adds `by` to one trained value.
    pub fn shift(&mut self, at: usize, by: f64) {
        self.values[at] += by;
    }

    fn context<'a>(&'a mut self, parameters: &'a Parameters, table: &'a AdapterTable) -> Passes<'a> {
        let OnReference { net, values, gradients, moments, memory } = self;
        let values = Values { list: parameters.read().list, values: &values[..] };
        let context = Context { values, table, observing: Some(second_moments(moments)), memory, stop: &GO };
        Passes { net, context, gradients }
    }

    pub fn outputs(
        &mut self,
        parameters: &Parameters,
        table: &AdapterTable,
        sequences: Sequences,
    ) -> Vec<f32> {
        let Passes { net, context, .. } = self.context(parameters, table);
        net.outputs(Context { observing: None, ..context }, sequences).unwrap()
    }

    pub fn losses(&mut self, parameters: &Parameters, table: &AdapterTable, texts: Texts) -> Vec<f32> {
        let Passes { net, context, .. } = self.context(parameters, table);
        net.losses(Context { observing: None, ..context }, texts).unwrap()
    }

    /// Runs a training pass; `scored` must be that of the pass on the CPU.
    pub fn train(
        &mut self,
        parameters: &Parameters,
        table: &AdapterTable,
        part: TrainPart,
        scored: bool,
    ) -> f64 {
        let Passes { net, context, gradients } = self.context(parameters, table);
        let observing = context.observing.filter(|_| scored);
        net.train(Context { observing, ..context }, gradients, part).unwrap()
    }

    pub fn train_texts(
        &mut self,
        parameters: &Parameters,
        table: &AdapterTable,
        part: TextPart,
        scored: bool,
    ) -> f64 {
        let Passes { net, context, gradients } = self.context(parameters, table);
        let observing = context.observing.filter(|_| scored);
        net.train_texts(Context { observing, ..context }, gradients, part).unwrap()
    }

    /// Checks that the sums of gradients are those of `parameters`, tensor by tensor.
    pub fn check_gradients(&self, parameters: &Parameters) {
        for parameter in parameters.list() {
            let got = &parameters.gradients()[parameter.range.clone()];
            let want: Vec<f32> = self.gradients[parameter.range.clone()].iter().map(|&x| x as f32).collect();
            agree(&parameter.name, got, &want, 1e-3);
        }
    }

    /// Checks that the second moments are the same.
    pub fn check_moments(&self, moments: &Observations) {
        for (module, got) in moments.iter() {
            let narrow = |moment: &[f64]| moment.iter().map(|&x| x as f32).collect::<Vec<_>>();
            let want = self.moments.get(module).expect("the same modules are scored");
            agree(&format!("the moment of {module:?}"), &narrow(got), &narrow(want), 0.0);
        }
    }
}

struct Passes<'a> {
    net: &'a Network<Reference>,
    context: Context<'a, Reference>,
    gradients: &'a mut [f64],
}

/// Checks that `got` is the reference's result, to 1e-4 of the largest value or of `floor`.
pub fn agree(what: &str, got: &[f32], want: &[f32], floor: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(floor, |most, x| most.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-4 * size, "{what}[{i}] = {got}, the reference has {want}");
    }
}
