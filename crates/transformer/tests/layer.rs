//! A linear layer with LoRA: against PyTorch (tests/golden/ops.safetensors), over blocks, and for
//! generating text.

mod golden_file;

use golden_file::{Golden, transposed};
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::device::{Cpu, Piece, Storage, Store};
use lora_drop_compute::gemm::FEW_ROWS;
use lora_drop_compute::{Tensor, random::Key};
use lora_drop_transformer::adapter::AdapterMemory;
use lora_drop_transformer::linear::{LayerPass, LinearWeights, Weight};
use lora_drop_transformer::{Adapter, Group, LoraPair, Parameters};

const RANK: usize = 4;

/// A layer, its pair, its input x and its output's gradient dy.
struct Layer {
    weights: LinearWeights,
    parameters: Parameters,
    adapter: Adapter,
    x: Vec<f32>,
    dy: Vec<f32>,
}

/// Results of a layer's forward and backward pass.
struct PassResults {
    y: Vec<f32>,
    z: Vec<f32>,
    dx: Vec<f32>,
    gradients: Vec<f32>,
}

impl Layer {
    /// Returns a layer with a frozen weight in this storage, A (rank, in) and Bᵀ (rank, out), and a
    /// bias that trains.
    fn new(storage: Storage, [a, b, bias]: [&[f32]; 3], scale: f32, [x, dy]: [Vec<f32>; 2]) -> Self {
        Layer::of(|_| Weight::Frozen(storage), [a, b, bias], scale, [x, dy])
    }

    fn of(
        weight: impl FnOnce(&mut Parameters) -> Weight,
        [a, b, bias]: [&[f32]; 3],
        scale: f32,
        [x, dy]: [Vec<f32>; 2],
    ) -> Self {
        let mut parameters = Parameters::new();
        let (input, output) = (a.len() / RANK, b.len() / RANK);
        let mut add = |name: &str, shape: &[usize], values: &[f32]| {
            parameters.add(name, shape, Group::Lora, true, values)
        };
        let pair =
            LoraPair { a: add("A", &[RANK, input], a), b: add("B", &[RANK, output], b), rank: RANK, scale };
        let adapter = Adapter::Lora(pair);
        let bias = Some(Weight::Trained(add("bias", &[output], bias)));
        let weight = weight(&mut parameters);
        parameters.zero_gradients();
        let precision = Default::default();
        let weights = LinearWeights { weight, bias, input, output, precision, module: None };
        Layer { weights, parameters, adapter, x, dy }
    }

    fn run(&mut self, with_lora: bool, few: bool) -> PassResults {
        let LinearWeights { input, output, .. } = self.weights;
        let rows = self.x.len() / input;
        let mut memory = Vec::new();
        let mut take = |values: &[f32]| {
            let piece = Piece::new(memory.len(), values.len());
            memory.extend_from_slice(values);
            piece
        };
        let (x, dy) = (take(&self.x), take(&self.dy));
        let (y, dx) = (take(&vec![9.0; rows * output]), take(&vec![9.0; rows * input]));
        let [z, dz] = [(); 2].map(|()| take(&vec![0.0; rows * RANK]));
        let (values, gradients) = self.parameters.training();
        gradients.fill(0.0);
        let store =
            &mut Store { memory: &mut memory[..], parameters: values.values, gradients: Some(gradients) };
        let adapter = with_lora.then(|| self.adapter.on());
        let (device, list, weights) = (&Cpu, values.list, &self.weights);
        let mut layer = LayerPass { device, store, list, weights, rows, few, dropout: None };
        let memory_of_adapter = AdapterMemory { saved: z, scratch: dz, backward_follows: true };
        match adapter {
            None => layer.forward([x, y], layer.bias(), None).unwrap(),
            Some(adapter) => adapter.forward(&mut layer, [x, y], memory_of_adapter).unwrap(),
        }
        // There is no backward pass for few rows.
        if let Some(adapter) = adapter.filter(|_| !few) {
            adapter.backward(&mut layer, [x, dy], Some((dx, false)), memory_of_adapter).unwrap();
        }
        let of = |piece: Piece| memory[piece.start..piece.end()].to_vec();
        PassResults { y: of(y), z: of(z), dx: of(dx), gradients: self.parameters.gradients().to_vec() }
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let key = Key::new(seed);
    (0..count as u64).map(|i| key.normal(i) as f32).collect()
}

/// Returns a matrix in blocks of this type, and the same values as f32.
fn blocks(kind: BlockType, output: usize, input: usize) -> (Storage, Storage) {
    let matrix = BlockMatrix::quantize(kind, output, input, &numbers(output * input, 3)).unwrap();
    let mut values = vec![0.0; output * input];
    for (row, values) in values.chunks_exact_mut(input).enumerate() {
        matrix.widen_row_range(row, 0..input, values);
    }
    (Storage::Blocks(matrix), Storage::F32(Tensor::new(vec![output, input], values)))
}

/// Returns a layer with this weight, on random rows.
fn layer(storage: Storage, rows: usize, output: usize, input: usize) -> Layer {
    let (a, b, bias) = (numbers(RANK * input, 4), numbers(RANK * output, 5), numbers(output, 6));
    let rows = [numbers(rows * input, 1), numbers(rows * output, 2)];
    Layer::new(storage, [&a, &b, &bias], 2.0, rows)
}

#[test]
fn forward_and_backward_match_pytorch() {
    let golden = Golden::file("", "ops.safetensors");
    let get = |name: &str| golden.get(&format!("linear_lora.{name}"));
    let [x, weight, bias, a, dy] = ["x", "weight", "bias", "lora_A", "dy"].map(get);
    let b = transposed(&get("lora_B"), 10);
    let trained = |parameters: &mut Parameters| {
        Weight::Trained(parameters.add("weight", &[10, 12], Group::Base, true, &weight))
    };
    let results = Layer::of(trained, [&a, &b, &bias], get("scale")[0], [x, dy]).run(true, false);
    let check = |name: &str, got: &[f32]| {
        let want = get(name);
        assert_eq!(got.len(), want.len(), "{name}");
        let size = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-5 * size, "{name}[{i}] = {got}, PyTorch has {want}");
        }
    };
    check("y", &results.y);
    check("d_x", &results.dx);
    check("d_lora_A", &results.gradients[..48]);
    check("d_lora_B", &transposed(&results.gradients[48..88], RANK));
    check("d_bias", &results.gradients[88..98]);
    check("d_weight", &results.gradients[98..]);
}

#[test]
fn block_weights_compute_as_their_f32_values() {
    for kind in [BlockType::Bf16, BlockType::F16, BlockType::Q4_0, BlockType::Q8_0] {
        let (blocks, values) = blocks(kind, 70, 256);
        let [got, want] = [blocks, values].map(|storage| layer(storage, 20, 70, 256).run(true, false));
        assert!(got.y == want.y && got.z == want.z && got.dx == want.dx, "{kind:?}");
        assert!(got.gradients == want.gradients, "{kind:?}");
    }
}

#[test]
fn generation_matches_training_up_to_rounding() {
    for rows in [1, FEW_ROWS, FEW_ROWS + 1] {
        let (storage, _) = blocks(BlockType::Q4_0, 300, 544);
        let mut layer = layer(storage, rows, 300, 544);
        for with_lora in [false, true] {
            let [got, want] = [true, false].map(|few| layer.run(with_lora, few).y);
            let size = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-5 * size));
            assert_eq!(got == want, rows > FEW_ROWS);
        }
    }
}
