//! The matrix products of a model's linear layers alone, in the shapes and storage of training.

use std::time::{Duration, Instant};

use lora_drop_compute::device::{Cpu, Piece, Storage, Store};
use lora_drop_compute::gemm::measure_peak;
use lora_drop_compute::profile::{self, BETWEEN, Recorder, Work};
use lora_drop_transformer::adapter::{AdapterMemory, Extent};
use lora_drop_transformer::linear::{LayerPass, LinearWeights, Weight};
use lora_drop_transformer::{Adapter, ModuleId, Parameters};

use super::{Bench, BenchSettings};
use crate::engine::thread_pool;
use crate::model::ModelFiles;
use crate::profile::Rates;
use crate::{Cancel, Result};

/// Shortest duration of a sample.
const SAMPLE: Duration = Duration::from_millis(20);

/// Measurements of single products.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Kernels {
    /// Rows of the activations, as in a micro-batch of a step.
    pub rows: usize,
    /// Operations per second that the matrix kernel of this dtype reaches with cached panels in
    /// this process, in 10⁹.
    pub peak_gflops: f64,
    /// Number of computing threads.
    pub threads: usize,
    /// The products of each kind of linear layer.
    pub products: Vec<Kernel>,
}

/// A product of one linear layer.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Kernel {
    /// The layer's name in its block, or `logits`.
    pub layer: String,
    /// Values of a row of its output.
    pub output: usize,
    /// Values of a row of its input.
    pub input: usize,
    /// How its matrix is stored: `F32`, `packed`, or the type of its blocks.
    pub storage: String,
    /// Number of layers of this name, shape and storage in the model.
    pub layers: usize,
    /// The product's name in profiles.
    pub product: &'static str,
    /// Seconds of all calls in one forward and backward pass: median over the samples.
    pub seconds: f64,
    /// Rates of computing and of memory traffic.
    #[serde(flatten)]
    pub rates: Rates,
}

/// Layers of one name, shape and storage.
struct Layer<'a> {
    name: String,
    storage: String,
    layers: usize,
    linear: &'a LinearWeights,
    adapter: Option<Adapter>,
}

/// Times the forward product and the input gradient of each kind of linear layer, and the products
/// of its LoRA if it has one. `steps` is the number of samples, after one warm-up.
///
/// # Errors
/// Those of the model's files; interrupted.
pub fn kernels(settings: &BenchSettings, cancel: &Cancel) -> Result<Kernels> {
    thread_pool(settings.compute.threads)?.install(|| {
        let files = ModelFiles::open(&settings.model, cancel, &mut |_| {})?;
        let mut learner = Bench::new(settings, &files)?.learner;
        let groups = learner.passes().cut.groups(&vec![settings.length; settings.batch]);
        let rows = settings.length * groups[0][0].len();
        let architecture = files.config.architecture;
        let mut layers: Vec<Layer> = Vec::new();
        let blocks = learner.model.linears().into_iter().map(|(module, linear)| {
            let ModuleId { kind, .. } = module;
            (architecture.short_name(kind).to_string(), linear, learner.table.get(module))
        });
        let output = learner.model.output_layer().map(|linear| ("logits".to_string(), linear, None));
        for (name, linear, adapter) in blocks.chain(output) {
            let storage = storage(&linear.weight);
            match layers.iter_mut().find(|layer| layer.name == name && layer.storage == storage) {
                Some(layer) => layer.layers += 1,
                None => {
                    layers.push(Layer { name, storage: storage.to_string(), layers: 1, linear, adapter });
                }
            }
        }
        let peak_gflops = measure_peak(settings.compute.dtype.precision(), 0.3) / 1e9;
        let mut products = Vec::new();
        for layer in &layers {
            cancel.check()?;
            products.extend(measure(layer, &mut learner.state.parameters, rows, settings.steps, peak_gflops));
        }
        Ok(Kernels { rows, peak_gflops, threads: rayon::current_num_threads(), products })
    })
}

fn storage(weight: &Weight) -> &'static str {
    match weight {
        Weight::Frozen(Storage::Blocks(matrix)) => matrix.kind().name(),
        Weight::Frozen(Storage::Packed(_)) => "packed",
        Weight::Frozen(Storage::F32(_)) | Weight::Trained(_) => "F32",
    }
}

/// Runs the layer forward and backward, and reads the times of its products from a recorder.
fn measure(
    layer: &Layer,
    parameters: &mut Parameters,
    rows: usize,
    samples: usize,
    peak_gflops: f64,
) -> Vec<Kernel> {
    let LinearWeights { input, output, .. } = *layer.linear;
    let mut memory = Vec::new();
    let mut take = |len: usize, value: f32| {
        let piece = Piece::new(memory.len(), len);
        memory.resize(piece.end(), value);
        piece
    };
    let (x, dy) = (take(rows * input, 0.5), take(rows * output, 0.25));
    let (y, dx) = (take(rows * output, 0.0), take(rows * input, 0.0));
    let extent = Extent { rows, input, output, dropout: false, backward_follows: true };
    let adapter = layer.adapter.as_ref().map(Adapter::on::<Cpu>);
    let [saved, scratch] = adapter.map_or([0; 2], |adapter| {
        [adapter.saved(extent), adapter.scratch(extent, false).max(adapter.scratch(extent, true))]
    });
    let memory_of_adapter =
        AdapterMemory { saved: take(saved, 0.0), scratch: take(scratch, 0.0), backward_follows: true };
    // Allocates the gradients.
    parameters.zero_gradients();
    let (values, gradients) = parameters.training();
    let store = &mut Store { memory: &mut memory[..], parameters: values.values, gradients: Some(gradients) };
    let (device, list, weights) = (&Cpu, values.list, layer.linear);
    let mut linear = LayerPass { device, store, list, weights, rows, few: false, dropout: None };
    let mut pass = || match adapter {
        None => {
            linear.forward([x, y], linear.bias(), None)?;
            linear.input_gradient(dy, (dx, false), None)
        }
        Some(adapter) => {
            adapter.forward(&mut linear, [x, y], memory_of_adapter)?;
            adapter.backward(&mut linear, [x, dy], Some((dx, false)), memory_of_adapter)
        }
    };
    let mut found: Vec<(&'static str, Work, Vec<f64>)> = Vec::new();
    for sample in 0..=samples {
        let mut recorder = Recorder::new();
        let passes = recorder.record(|| {
            let (_root, began) = (profile::root("sample", sample), Instant::now());
            let mut passes = 0u64;
            while passes == 0 || began.elapsed() < SAMPLE {
                pass().expect("the CPU does not fail");
                passes += 1;
            }
            passes
        });
        let rows = recorder.rows().iter().filter(|row| row.operation != BETWEEN);
        for (at, row) in rows.enumerate() {
            let seconds = row.own.as_secs_f64() / passes as f64;
            let Work { operations, bytes } = row.work;
            let work = Work { operations: operations / passes, bytes: bytes / passes };
            match sample {
                0 => found.push((row.operation, work, Vec::new())),
                _ => found[at].2.push(seconds),
            }
        }
    }
    let kernel = |(product, work, mut times): (&'static str, Work, Vec<f64>)| {
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        Kernel {
            layer: layer.name.clone(),
            output,
            input,
            storage: layer.storage.clone(),
            layers: layer.layers,
            product,
            seconds,
            rates: Rates::new(work, seconds, peak_gflops),
        }
    };
    found.into_iter().map(kernel).collect()
}
