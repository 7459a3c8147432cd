//! Every operation of a device, on random values of odd sizes: the CPU gives what the reference
//! gives. A new device is checked by the same cases.

mod reference;

use lora_drop_compute::Tensor;
use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::{Queries, Sight};
use lora_drop_compute::blocks::{BlockMatrix, BlockType};
use lora_drop_compute::device::{
    At, Attend, Cpu, Device, Kept, LayerNorm, LowRank, Magnitude, Matrix, Piece, Product, Relative, RmsNorm,
    Scaled, Start, Storage, Store, Targets, To,
};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::rotary::{RotaryTable, Turn};
use reference::Reference;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
}

/// A device with one buffer of random values; its first part serves as parameters, and as
/// gradients.
struct Bench<D: Device> {
    device: D,
    memory: D::Memory,
    parameters: D::Memory,
    gradients: D::Memory,
    /// The next value that no piece has.
    next: usize,
}

const ROOM: usize = 1 << 16;
const PARAMETERS: usize = 1 << 12;

impl<D: RoomKept> Bench<D> {
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

    /// A piece of random values.
    fn take(&mut self, len: usize) -> Piece {
        let piece = Piece::new(self.next, len);
        self.next = piece.end().next_multiple_of(16);
        assert!(self.next <= ROOM);
        piece
    }

    fn with<R>(&mut self, f: impl FnOnce(&D, &mut Store<D>) -> R) -> R {
        let Bench { device, memory, parameters, gradients, .. } = self;
        let mut store = Store {
            memory: device.room_kept(memory, ROOM),
            parameters: device.room_kept(parameters, PARAMETERS),
            gradients: Some(device.room_kept(gradients, PARAMETERS)),
        };
        f(device, &mut store)
    }

    /// All of the memory and of the gradients.
    fn all(&mut self) -> Vec<f32> {
        self.with(|device, store| {
            let mut all = device.read(store.memory, Piece::new(0, ROOM)).unwrap();
            let gradients = store.gradients.as_deref().unwrap();
            all.extend(device.read(gradients, Piece::new(0, PARAMETERS)).unwrap());
            all
        })
    }
}

/// `room` without losing what is there.
trait RoomKept: Device {
    fn room_kept<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> &'m mut Self::Buffer;
}

impl RoomKept for Cpu {
    fn room_kept<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> &'m mut [f32] {
        &mut memory[..len]
    }
}

impl RoomKept for Reference {
    fn room_kept<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> &'m mut [f64] {
        &mut memory[..len]
    }
}

/// Runs a case on both devices and compares all that is in their buffers afterwards.
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

/// A case is one function over any device.
macro_rules! case {
    ($name:ident, $bench:ident => $body:block) => {
        #[test]
        fn $name() {
            fn run<D: RoomKept>($bench: &mut Bench<D>) $body
            agree(stringify!($name), run::<Cpu>, run::<Reference>);
        }
    };
}

fn keys(count: usize) -> Vec<Key> {
    (0..count as u64).map(|i| Key::new(9).fold(i)).collect()
}

case!(sums_copies_and_rows, bench => {
    let [a, b, c, d] = [70, 70, 35, 21].map(|len| bench.take(len));
    bench.with(|device, store| {
        device.add(store.memory, a, b).unwrap();
        device.copy(store.memory, c, Piece::new(b.start, 35)).unwrap();
        device.gather(store.memory, a, &[9, 0, 3], 7, d).unwrap();
        device.scatter(store.memory, d, &[1, 4, 8], a, true).unwrap();
        device.scatter(store.memory, d, &[2, 0, 5], b, false).unwrap();
        device.fill(store.memory, Piece::new(c.start, 5), 0.25).unwrap();
        device.dropout(store.memory, c, Dropout::new(0.4), &keys(5)).unwrap();
    });
});

case!(embeddings, bench => {
    let (y, dy) = (bench.take(4 * 6), bench.take(4 * 6));
    let tables = [At::Trained(Piece::new(0, 60)), At::Trained(Piece::new(64, 30))];
    let (ids, types) = ([3, 9, 3, 0], [1, 1, 4, 0]);
    bench.with(|device, store| {
        device.embed(store, &[(tables[0], &ids), (tables[1], &types)], 6, y).unwrap();
        device.embed_backward(store, dy, &ids, 6, Piece::new(0, 60)).unwrap();
    });
});

case!(products, bench => {
    let [x, z, y, dx] = [33 * 40, 33 * 5, 33 * 50, 33 * 40].map(|len| bench.take(len));
    let weight = bench.device.weight(&Storage::F32(Tensor::new(vec![50, 40], numbers(2000, 7)))).unwrap();
    let weight: Matrix<D> = Matrix::new(At::Frozen(&weight), 50, 40);
    let b = Matrix::new(At::Trained(Piece::new(0, 250)), 5, 50);
    bench.with(|device, store| {
        let plain = |to, rows, cols| Product { few: false, to, rows, cols, ..product() };
        let terms = [(Matrix::of(x, 33, 40), weight.t()), (Matrix::of(z, 33, 5), b)];
        let bias = Start::Bias(At::Trained(Piece::new(300, 50)));
        let wide = Product { start: bias, terms: &terms, ..plain(To::Memory(y), 33, 50) };
        device.product(store, wide).unwrap();
        let thin = [(Matrix::of(x.first(120), 3, 40), weight.t()), (Matrix::of(z.first(15), 3, 5), b)];
        let few = Product { few: true, terms: &thin, ..plain(To::Memory(y.first(150)), 3, 50) };
        device.product(store, few).unwrap();
        let terms = [(Matrix::of(y, 33, 50), weight)];
        let back = Product { start: Start::Keep, scale: 0.1, terms: &terms, ..plain(To::Memory(dx), 33, 40) };
        device.product(store, back).unwrap();
        let terms = [(Matrix::of(z, 33, 5).t(), Matrix::of(y, 33, 50))];
        let to = To::Gradient(Piece::new(0, 250));
        device.product(store, Product { start: Start::Keep, scale: 0.05, terms: &terms, ..plain(to, 5, 50) }).unwrap();
        device.sum_rows(store, y, Piece::new(300, 50)).unwrap();
    });
});

case!(norms_of_rows_and_columns_scaled_by_them, bench => {
    let [norms, plain, of_blocks] = [(); 3].map(|()| bench.take(24));
    let [u, y, over, dy, du] = [(); 5].map(|()| bench.take(150 * 24));
    let weight = bench.device.weight(&Storage::F32(Tensor::new(vec![24, 64], numbers(1536, 7)))).unwrap();
    let blocks = BlockMatrix::quantize(BlockType::Q8_0, 24, 64, &numbers(1536, 8)).unwrap();
    let blocks = bench.device.weight(&Storage::Blocks(blocks)).unwrap();
    let at = |start, len| At::Trained(Piece::new(start, len));
    let (a, b_t, magnitude) = (at(0, 192), at(192, 72), at(264, 24));
    bench.with(|device, store| {
        let plus = || Some(LowRank { a, b_t, rank: 3, scale: 0.5 });
        for (weight, plus, norms) in [(&weight, plus(), norms), (&weight, None, plain), (&blocks, plus(), of_blocks)] {
            let weight: Matrix<D> = Matrix::new(At::Frozen(weight), 24, 64);
            device.row_norms(store, weight, Precision::F32, plus, norms).unwrap();
        }
        let trained: Matrix<D> = Matrix::new(At::Trained(Piece::new(0, 1536)), 24, 64);
        device.row_norms(store, trained, Precision::F32, plus(), plain).unwrap();
        let by = |less| Magnitude { magnitude, norms: At::Memory(norms), less };
        device.magnitude(store, by(0.0), u, Start::Bias(At::Trained(Piece::new(300, 24))), y).unwrap();
        device.magnitude(store, by(1.0), u, Start::Keep, y).unwrap();
        device.magnitude(store, by(0.5), over, Start::Zero, over).unwrap();
        device.magnitude_backward(store, by(1.0), dy, u, du, Piece::new(264, 24)).unwrap();
    });
});

case!(matrices_scaled_by_rows_and_columns, bench => {
    let [folded, d] = [(); 2].map(|()| bench.take(7 * 70));
    let at = |start, len| At::Trained(Piece::new(start, len));
    bench.with(|device, store| {
        for columns in [Some(at(512, 70)), None] {
            let of = || Scaled { matrix: at(0, 7 * 70), rows: at(500, 7), columns, width: 70 };
            device.scaled(store, of(), folded).unwrap();
            let gradients = [0, 500, 512].into_iter().zip([7 * 70, 7, 70]);
            let mut gradients = gradients.map(|(start, len)| Some(Piece::new(start, len)));
            let gradients = [(); 3].map(|()| gradients.next().flatten());
            device.scaled_backward(store, of(), d, gradients).unwrap();
            device.scaled_backward(store, of(), folded, [None, None, gradients[2]]).unwrap();
        }
    });
});

/// A product of nothing into nothing.
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
        bench.with(|device, store| {
            let [gamma, beta] = [0, 32].map(|start| At::Trained(Piece::new(start, 24)));
            let norm = || LayerNorm { gamma, beta, normed, rstd, dropout };
            device.layer_norm(store, norm(), 1e-5, x, Some(residual), y).unwrap();
            let gradients = Some([Piece::new(0, 24), Piece::new(32, 24)]);
            device.layer_norm_backward(store, norm(), dy, du, dropout.map(|_| dx), gradients).unwrap();
        });
    }
});

case!(rms_norms, bench => {
    let [x, y, again, dy, dx] = [(); 5].map(|()| bench.take(6 * 20));
    let rstd = bench.take(12);
    bench.with(|device, store| {
        // Rows as wide as γ, of which a token may have several.
        for offset in [0.0, 1.0] {
            let norm = || RmsNorm { gamma: At::Trained(Piece::new(0, 10)), offset, x, rstd };
            device.rms_norm(store, norm(), 1e-6, y).unwrap();
            device.rms_norm_again(store, norm(), again).unwrap();
            device.rms_norm_backward(store, norm(), dy, dx, Some(Piece::new(0, 10))).unwrap();
        }
    });
});

case!(rotary, bench => {
    let table = RotaryTable::new(32, &[1.0, 0.3, 0.01]);
    let x = bench.take(4 * 12);
    bench.with(|device, store| {
        device.rotary(store.memory, &table, Turn::Forward, x, &[0, 7, 31, 2]).unwrap();
        device.rotary(store.memory, &table, Turn::Back, x, &[1, 2, 3, 4]).unwrap();
    });
});

/// Attention over sequences of 5, 1 and 40 tokens, forward and back.
fn attend<D: RoomKept>(bench: &mut Bench<D>, kv_heads: usize, sight: Sight, biased: bool, queries: Queries) {
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
        sight,
        precision: Precision::F32,
    };
    bench.with(|device, store| {
        device.attention(store.memory, attend).unwrap();
        let dbias = biased.then_some(dtable);
        device.attention_backward(store.memory, attend, dout, [dq, dk, dv], dbias).unwrap();
    });
}

case!(attention_in_both_directions, bench => { attend(bench, 4, Sight::All, true, Queries::All) });
case!(attention_of_first_tokens, bench => { attend(bench, 4, Sight::All, true, Queries::First) });
case!(causal_attention_in_groups, bench => {
    attend(bench, 2, Sight::Causal { window: None }, false, Queries::All)
});
case!(causal_attention_with_a_window, bench => {
    attend(bench, 1, Sight::Causal { window: Some(9) }, false, Queries::All)
});

case!(attention_behind_a_cache, bench => {
    let (heads, kv_heads, width) = (4, 2, 8);
    let mut caches = [D::Cache::default(), D::Cache::default()];
    for offsets in [[0, 7, 10], [0, 1, 2]] {
        let tokens = offsets[2];
        let [q, out] = [(); 2].map(|()| bench.take(tokens * heads * width));
        let [k, v] = [(); 2].map(|()| bench.take(tokens * kv_heads * width));
        let lse = bench.take(tokens * heads);
        let sight = Sight::Causal { window: Some(6) };
        let (queries, precision) = (Queries::All, Precision::F32);
        let attend = Attend {
            q, k, v, out, lse, offsets: &offsets, heads, kv_heads, width, scale: 0.3, bias: None, dropout: None, queries,
            sight, precision,
        };
        let mut caches: Vec<_> = caches.iter_mut().collect();
        bench.with(|device, store| device.attention_cached(store.memory, attend, &mut caches).unwrap());
    }
});

case!(relative_biases, bench => {
    let of = Relative { buckets: 8, heads: 3, reach: 40 };
    let table = bench.take(3 * 79);
    bench.with(|device, store| {
        device.relative_bias(store, At::Trained(Piece::new(0, 24)), of, table).unwrap();
        device.relative_bias_backward(store, of, table, Piece::new(0, 24)).unwrap();
    });
});

case!(activations, bench => {
    for f in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh] {
        let [x, y, again, dy, over] = [(); 5].map(|()| bench.take(90));
        let kept = Kept { piece: x, count: 90, rounded: false };
        bench.with(|device, store| {
            device.activation(store.memory, f, x, y, None).unwrap();
            device.activation(store.memory, f, over, over, None).unwrap();
            device.activation_again(store.memory, f, kept, again).unwrap();
            device.activation_backward(store.memory, f, kept, dy).unwrap();
        });
    }
});

case!(gates, bench => {
    for f in [Activation::Silu, Activation::GeluTanh] {
        let [gate, up, y, again, dy, dgate, over] = [(); 7].map(|()| bench.take(90));
        let kept = [gate, up].map(|piece| Kept { piece, count: 90, rounded: false });
        bench.with(|device, store| {
            device.gate(store.memory, f, [gate, up], y, None).unwrap();
            device.gate(store.memory, f, [over, up], over, None).unwrap();
            device.gate_again(store.memory, f, kept, again).unwrap();
            device.gate_backward(store.memory, f, kept, dy, dgate).unwrap();
            device.scale(store.memory, over, 25.25).unwrap();
        });
    }
});

case!(losses, bench => {
    let [logits, dlogits, values, dvalues, tokens, plain] = [12, 12, 4, 4, 60, 60].map(|len| bench.take(len));
    let found = bench.with(|device, store| {
        let memory = &mut *store.memory;
        let classes = Targets::Classes { labels: &[2, 0, 1, 1], smoothing: 0.1, total: 7 };
        let of_values = Targets::Values { values: &[0.5, -1.0, 0.0, 2.0], total: 5 };
        let mut found = vec![
            device.sequence_loss(memory, logits, classes, dlogits).unwrap() as f32,
            device.sequence_loss(memory, values, of_values, dvalues).unwrap() as f32,
        ];
        found.extend(device.token_losses(memory, tokens, &[4, 0, 19], Some(0.3)).unwrap());
        // Without a scale logits are used up.
        found.extend(device.token_losses(memory, plain, &[1, 2, 3], None).unwrap());
        device.fill(memory, plain, 0.0).unwrap();
        found
    });
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
