//! Checks every operation of a device on random values of odd sizes: the CPU must agree with the
//! reference. A new device is checked by the same cases.

mod reference;

use lora_drop_compute::Tensor;
use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::{Mask, Queries};
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::device::{
    At, Attend, Cpu, Device, LayerNorm, LowRank, Magnitude, Matrix, Operation, Piece, Product, Relative,
    RmsNorm, SavedPiece, Scaled, Start, Storage, Store, Targets, To,
};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::rotary::{RotaryTable, Rotation};
use reference::Reference;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
}

/// A device with buffers of random values: memory, parameters and gradients.
struct Bench<D: Device> {
    device: D,
    memory: D::Memory,
    parameters: D::Memory,
    gradients: D::Memory,
    /// Index in memory after the last piece that was taken.
    next: usize,
}

const ROOM: usize = 1 << 16;
const PARAMETERS: usize = 1 << 12;

impl<D: WithContents> Bench<D> {
    fn new(device: D) -> Self {
        let mut bench = Bench {
            memory: D::Memory::default(),
            parameters: D::Memory::default(),
            gradients: D::Memory::default(),
            device,
            next: 0,
        };
        let Bench { device, memory, parameters, gradients, .. } = &mut bench;
        for (memory, len, seed) in
            [(memory, ROOM, 1), (parameters, PARAMETERS, 2), (gradients, PARAMETERS, 3)]
        {
            let buffer = device.room(memory, len).unwrap();
            device.write(buffer, Piece::new(0, len), &numbers(len, seed)).unwrap();
        }
        bench
    }

    /// Takes a piece of `len` random values.
    fn take(&mut self, len: usize) -> Piece {
        let piece = Piece::new(self.next, len);
        self.next = piece.end().next_multiple_of(16);
        assert!(self.next <= ROOM);
        piece
    }

    /// Runs an operation.
    fn run(&mut self, operation: Operation<D>) {
        self.with(|device, store| device.compute(store, operation).unwrap());
    }

    fn with<R>(&mut self, f: impl FnOnce(&D, &mut Store<D>) -> R) -> R {
        let Bench { device, memory, parameters, gradients, .. } = self;
        let mut store = Store {
            memory: device.room_with_contents(memory, ROOM),
            parameters: device.room_with_contents(parameters, PARAMETERS),
            gradients: Some(device.room_with_contents(gradients, PARAMETERS)),
        };
        f(device, &mut store)
    }

    /// Returns the whole memory and all gradients.
    fn all(&mut self) -> Vec<f32> {
        self.with(|device, store| {
            let mut all = device.read(store.memory, Piece::new(0, ROOM)).unwrap();
            let gradients = store.gradients.as_deref().unwrap();
            all.extend(device.read(gradients, Piece::new(0, PARAMETERS)).unwrap());
            all
        })
    }
}

/// `Device::room` that keeps the contents.
trait WithContents: Device {
    fn room_with_contents<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> &'m mut Self::Buffer;
}

impl WithContents for Cpu {
    fn room_with_contents<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> &'m mut [f32] {
        &mut memory[..len]
    }
}

impl WithContents for Reference {
    fn room_with_contents<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> &'m mut [f64] {
        &mut memory[..len]
    }
}

/// Runs a case on both devices and compares the contents of their buffers afterwards.
fn agree(what: &str, cpu: impl FnOnce(&mut Bench<Cpu>), reference: impl FnOnce(&mut Bench<Reference>)) {
    let (mut on_cpu, mut on_reference) = (Bench::new(Cpu), Bench::new(Reference));
    let before = on_cpu.all();
    cpu(&mut on_cpu);
    reference(&mut on_reference);
    let (got, want) = (on_cpu.all(), on_reference.all());
    assert!(got != before, "{what} writes nothing");
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let near = (got - want).abs() <= 2e-5 * want.abs().max(1.0);
        assert!(near, "{what}: value {i} is {got}, the reference has {want}");
    }
}

/// Defines a test from one function, which is generic over the device.
macro_rules! case {
    ($name:ident, $bench:ident => $body:block) => {
        #[test]
        fn $name() {
            fn run<D: WithContents>($bench: &mut Bench<D>) $body
            agree(stringify!($name), run::<Cpu>, run::<Reference>);
        }
    };
}

fn keys(count: usize) -> Vec<Key> {
    (0..count as u64).map(|i| Key::new(9).fold(i)).collect()
}

case!(sums_copies_and_rows, bench => {
    let [a, b, c, d] = [70, 70, 35, 21].map(|len| bench.take(len));
    bench.run(Operation::Add { to: a, x: b });
    bench.run(Operation::Copy { from: c, to: Piece::new(b.start, 35) });
    bench.run(Operation::Gather { x: a, rows: &[9, 0, 3], width: 7, y: d });
    bench.run(Operation::Scatter { y: d, rows: &[1, 4, 8], x: a, add: true });
    bench.run(Operation::Scatter { y: d, rows: &[2, 0, 5], x: b, add: false });
    bench.run(Operation::Fill { piece: Piece::new(c.start, 5), value: 0.25 });
    bench.run(Operation::Dropout { x: c, dropout: Dropout::new(0.4), keys: &keys(5) });
});

case!(embeddings, bench => {
    let (y, dy) = (bench.take(4 * 6), bench.take(4 * 6));
    let tables = [At::Trained(Piece::new(0, 60)), At::Trained(Piece::new(64, 30))];
    let (ids, types) = ([3, 9, 3, 0], [1, 1, 4, 0]);
    bench.run(Operation::Embed { tables: &[(tables[0], &ids), (tables[1], &types)], width: 6, y });
    bench.run(Operation::EmbedBackward { dy, index: &ids, width: 6, gradient: Piece::new(0, 60) });
});

case!(products, bench => {
    let [x, z, y, dx] = [33 * 40, 33 * 5, 33 * 50, 33 * 40].map(|len| bench.take(len));
    let weight = bench.device.weight(&Storage::F32(Tensor::new(vec![50, 40], numbers(2000, 7)))).unwrap();
    let weight: Matrix<D> = Matrix::new(At::Frozen(&weight), 50, 40);
    let b = Matrix::new(At::Trained(Piece::new(0, 250)), 5, 50);
    let plain = |to, rows, cols| Product { few: false, to, rows, cols, ..product() };
    let terms = [(Matrix::of(x, 33, 40), weight.t()), (Matrix::of(z, 33, 5), b)];
    let bias = Start::Bias(At::Trained(Piece::new(300, 50)));
    bench.run(Operation::Product(Product { start: bias, terms: &terms, ..plain(To::Memory(y), 33, 50) }));
    let thin = [(Matrix::of(x.first(120), 3, 40), weight.t()), (Matrix::of(z.first(15), 3, 5), b)];
    let few = Product { few: true, terms: &thin, ..plain(To::Memory(y.first(150)), 3, 50) };
    bench.run(Operation::Product(few));
    let terms = [(Matrix::of(y, 33, 50), weight)];
    let back = Product { start: Start::Keep, scale: 0.1, terms: &terms, ..plain(To::Memory(dx), 33, 40) };
    bench.run(Operation::Product(back));
    let terms = [(Matrix::of(z, 33, 5).t(), Matrix::of(y, 33, 50))];
    let to = To::Gradient(Piece::new(0, 250));
    let back = Product { start: Start::Keep, scale: 0.05, terms: &terms, ..plain(to, 5, 50) };
    bench.run(Operation::Product(back));
    bench.run(Operation::SumRows { dy: y, gradient: Piece::new(300, 50) });
});

case!(norms_of_rows_and_columns_scaled_by_them, bench => {
    let [norms, plain, of_blocks] = [(); 3].map(|()| bench.take(24));
    let [u, y, over, dy, du] = [(); 5].map(|()| bench.take(150 * 24));
    let weight = bench.device.weight(&Storage::F32(Tensor::new(vec![24, 64], numbers(1536, 7)))).unwrap();
    let blocks = BlockMatrix::quantize(BlockType::Q8_0, 24, 64, &numbers(1536, 8)).unwrap();
    let blocks = bench.device.weight(&Storage::Blocks(blocks)).unwrap();
    let at = |start, len| At::Trained(Piece::new(start, len));
    let (a, b_t, magnitude) = (at(0, 192), at(192, 72), at(264, 24));
    let plus = || Some(LowRank { a, b_t, rank: 3, scale: 0.5 });
    let precision = Precision::F32;
    for (weight, plus, norms) in [(&weight, plus(), norms), (&weight, None, plain), (&blocks, plus(), of_blocks)] {
        let weight = Matrix::new(At::Frozen(weight), 24, 64);
        bench.run(Operation::RowNorms { weight, precision, plus, norms });
    }
    let weight = Matrix::new(At::Trained(Piece::new(0, 1536)), 24, 64);
    bench.run(Operation::RowNorms { weight, precision, plus: plus(), norms: plain });
    let by = |less| Magnitude { magnitude, norms: At::Memory(norms), less };
    let start = Start::Bias(At::Trained(Piece::new(300, 24)));
    bench.run(Operation::Magnitude { by: by(0.0), u, start, y });
    bench.run(Operation::Magnitude { by: by(1.0), u, start: Start::Keep, y });
    bench.run(Operation::Magnitude { by: by(0.5), u: over, start: Start::Zero, y: over });
    bench.run(Operation::MagnitudeBackward { by: by(1.0), dy, u, du, gradient: Piece::new(264, 24) });
});

case!(matrices_scaled_by_rows_and_columns, bench => {
    let [folded, d] = [(); 2].map(|()| bench.take(7 * 70));
    let at = |start, len| At::Trained(Piece::new(start, len));
    for columns in [Some(at(512, 70)), None] {
        let of = || Scaled { matrix: at(0, 7 * 70), rows: at(500, 7), columns, width: 70 };
        bench.run(Operation::Scaled { scaled: of(), to: folded });
        let gradients = [(0, 7 * 70), (500, 7), (512, 70)].map(|(start, len)| Some(Piece::new(start, len)));
        bench.run(Operation::ScaledBackward { scaled: of(), d, gradients });
        let gradients = [None, None, gradients[2]];
        bench.run(Operation::ScaledBackward { scaled: of(), d: folded, gradients });
    }
});

/// Returns an empty product, whose fields a case replaces.
fn product<'a, D: Device>() -> Product<'a, D> {
    Product {
        name: "test",
        precision: Precision::F32,
        few: false,
        to: To::Memory(Piece::default()),
        rows: 0,
        cols: 0,
        start: Start::Zero,
        scale: 1.0,
        terms: &[],
    }
}

case!(layer_norms, bench => {
    let [x, residual, y, normed, dy, du, dx] = [(); 7].map(|()| bench.take(5 * 24));
    let rstd = bench.take(5);
    let keys = keys(5);
    for dropout in [None, Some((Dropout::new(0.3), &keys[..]))] {
        let [gamma, beta] = [0, 32].map(|start| At::Trained(Piece::new(start, 24)));
        let norm = || LayerNorm { gamma, beta, normed, rstd, dropout };
        bench.run(Operation::LayerNorm { norm: norm(), epsilon: 1e-5, x, residual: Some(residual), y });
        let (dx, gradients) = (dropout.map(|_| dx), Some([Piece::new(0, 24), Piece::new(32, 24)]));
        bench.run(Operation::LayerNormBackward { norm: norm(), dy, du, dx, gradients });
    }
});

case!(rms_norms, bench => {
    let [x, y, again, dy, dx] = [(); 5].map(|()| bench.take(6 * 20));
    let rstd = bench.take(12);
    // Rows are as wide as γ; a token may have several.
    for offset in [0.0, 1.0] {
        let norm = || RmsNorm { gamma: At::Trained(Piece::new(0, 10)), offset, x, rstd };
        bench.run(Operation::RmsNorm { norm: norm(), epsilon: 1e-6, y });
        bench.run(Operation::RecomputeRmsNorm { norm: norm(), y: again });
        bench.run(Operation::RmsNormBackward { norm: norm(), dy, dx, gradient: Some(Piece::new(0, 10)) });
    }
});

case!(rotary, bench => {
    let table = RotaryTable::new(32, &[1.0, 0.3, 0.01]);
    let x = bench.take(4 * 12);
    for (rotation, positions) in [(Rotation::Forward, [0, 7, 31, 2]), (Rotation::Backward, [1, 2, 3, 4])] {
        bench.run(Operation::Rotary { table: &table, rotation, x, positions: &positions });
    }
});

/// Runs attention over sequences of 5, 1 and 40 tokens, forward and backward.
fn attend<D: WithContents>(
    bench: &mut Bench<D>,
    kv_heads: usize,
    mask: Mask,
    biased: bool,
    queries: Queries,
) {
    let (offsets, heads, width, keys) = ([0, 5, 6, 46], 4, 8, keys(3));
    let asking = if queries == Queries::First { 3 } else { 46 };
    let [q, out, dout, dq] = [(); 4].map(|()| bench.take(asking * heads * width));
    let [k, v, dk, dv] = [(); 4].map(|()| bench.take(46 * kv_heads * width));
    let lse = bench.take(asking * heads);
    let (table, dtable) = (bench.take(heads * 95), bench.take(heads * 95));
    let attend = Attend {
        q,
        k,
        v,
        out,
        lse,
        offsets: &offsets,
        heads,
        kv_heads,
        width,
        scale: 0.3,
        bias: biased.then_some((table, 48)),
        dropout: Some((Dropout::new(0.2), &keys)),
        queries,
        mask,
        precision: Precision::F32,
    };
    bench.run(Operation::Attention(attend));
    let (dqkv, dbias) = ([dq, dk, dv], biased.then_some(dtable));
    bench.run(Operation::AttentionBackward { attend, dout, dqkv, dbias });
}

case!(bidirectional_attention, bench => { attend(bench, 4, Mask::Bidirectional, true, Queries::All) });
case!(attention_of_first_tokens, bench => { attend(bench, 4, Mask::Bidirectional, true, Queries::First) });
case!(causal_attention_in_groups, bench => {
    attend(bench, 2, Mask::Causal { window: None }, false, Queries::All)
});
case!(causal_attention_with_a_window, bench => {
    attend(bench, 1, Mask::Causal { window: Some(9) }, false, Queries::All)
});

case!(attention_behind_a_cache, bench => {
    let (heads, kv_heads, width) = (4, 2, 8);
    let mut caches = [D::Cache::default(), D::Cache::default()];
    for offsets in [[0, 7, 10], [0, 1, 2]] {
        let tokens = offsets[2];
        let [q, out] = [(); 2].map(|()| bench.take(tokens * heads * width));
        let [k, v] = [(); 2].map(|()| bench.take(tokens * kv_heads * width));
        let lse = bench.take(tokens * heads);
        let mask = Mask::Causal { window: Some(6) };
        let (queries, precision) = (Queries::All, Precision::F32);
        let attend = Attend {
            q, k, v, out, lse, offsets: &offsets, heads, kv_heads, width, scale: 0.3, bias: None, dropout: None, queries,
            mask, precision,
        };
        let mut caches: Vec<_> = caches.iter_mut().collect();
        bench.with(|device, store| device.attention_cached(store.memory, attend, &mut caches).unwrap());
    }
});

case!(relative_biases, bench => {
    let of = Relative { buckets: 8, heads: 3, reach: 40 };
    let table = bench.take(3 * 79);
    bench.run(Operation::RelativeBias { weight: At::Trained(Piece::new(0, 24)), of, table });
    bench.run(Operation::RelativeBiasBackward { of, dtable: table, gradient: Piece::new(0, 24) });
});

case!(activations, bench => {
    for f in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh] {
        let [x, y, again, dy, over] = [(); 5].map(|()| bench.take(90));
        let saved = SavedPiece { piece: x, count: 90, rounded: false };
        for (x, y) in [(x, y), (over, over)] {
            bench.run(Operation::Activation { f, x, y, rounded: None });
        }
        bench.run(Operation::RecomputeActivation { f, x: saved, y: again });
        bench.run(Operation::ActivationBackward { f, x: saved, dy });
    }
});

case!(gates, bench => {
    for f in [Activation::Silu, Activation::GeluTanh] {
        let [gate, up, y, again, dy, dgate, over] = [(); 7].map(|()| bench.take(90));
        let saved = [gate, up].map(|piece| SavedPiece { piece, count: 90, rounded: false });
        for (gate, y) in [(gate, y), (over, over)] {
            bench.run(Operation::Gate { f, gate_and_up: [gate, up], y, rounded: None });
        }
        bench.run(Operation::RecomputeGate { f, saved, y: again });
        bench.run(Operation::GateBackward { f, saved, dy, dgate });
        bench.run(Operation::Scale { x: over, factor: 25.25 });
    }
});

case!(losses, bench => {
    let [logits, values, tokens, plain] = [12, 4, 60, 60].map(|len| bench.take(len));
    let [dlogits, dweighted, dsets, dvalues] = [12, 12, 12, 4].map(|len| bench.take(len));
    let found = bench.with(|device, store| {
        let memory = &mut *store.memory;
        let labels = &[2, 0, 1, 1];
        let classes = Targets::Classes { labels, weights: &[], smoothing: 0.1, total: 7.0 };
        let weighted = Targets::Classes { labels, weights: &[0.5, 2.0, 1.25], smoothing: 0.1, total: 7.0 };
        let has = &std::array::from_fn::<_, 12, _>(|i| i % 5 < 2);
        let sets = Targets::Sets { has, weights: &[0.5, 2.0, 1.25], total: 24.0 };
        let of_values = Targets::Values { values: &[0.5, -1.0, 0.0, 2.0], total: 5.0 };
        let mut found = vec![
            device.head_loss(memory, logits, classes, dlogits).unwrap() as f32,
            device.head_loss(memory, logits, weighted, dweighted).unwrap() as f32,
            device.head_loss(memory, logits, sets, dsets).unwrap() as f32,
            device.head_loss(memory, values, of_values, dvalues).unwrap() as f32,
        ];
        found.extend(device.token_losses(memory, tokens, &[4, 0, 19], Some(0.3)).unwrap());
        // Without a scale, the contents of the logits are undefined afterwards.
        found.extend(device.token_losses(memory, plain, &[1, 2, 3], None).unwrap());
        found
    });
    bench.run(Operation::Fill { piece: plain, value: 0.0 });
    let place = bench.take(found.len());
    bench.with(|device, store| device.write(store.memory, place, &found).unwrap());
});

case!(second_moments, bench => {
    let z = bench.take(33 * 4);
    let mut total = vec![0.5; 16];
    bench.with(|device, store| device.second_moment(store.memory, z, 4, &mut total).unwrap());
    let place = bench.take(16);
    let total: Vec<f32> = total.iter().map(|&x| x as f32).collect();
    bench.with(|device, store| device.write(store.memory, place, &total).unwrap());
});
