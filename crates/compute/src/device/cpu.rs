//! The CPU as a device: buffers are slices, and operations are the functions of this crate.

use super::slices::{inputs, part, split};
use super::{
    At, Attend, Device, KeyValues, LowRank, Matrix, Operation, Piece, Product, Result, Store, Targets, To,
};
use crate::aligned::AlignedBuffer;
use crate::attention::{self, Attention, ColumnsMut, Queries};
use crate::blocks::BlockMatrix;
use crate::gemm::{self, FEW_ROWS, MatMut, PackedMatrix, Precision};
use crate::rms_norm::Gain;
use crate::saved_values::{self, SavedValues};
use crate::{
    Tensor, activation, embedding, loss, magnitude, norm, profile, relative, rms_norm, rows, scaled,
};

/// The host's processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// A frozen weight in memory.
#[derive(Clone, Debug)]
pub enum Storage {
    /// Row-major f32.
    F32(Tensor),
    /// A matrix in the storage of its file, quantized, or rounded to bf16; widened when it is
    /// multiplied.
    Blocks(BlockMatrix),
    /// A matrix that is packed once, for training's products.
    Packed(PackedMatrix),
}

/// Names in profiles of a layer's products, and of those with few rows.
const LINEAR: &str = "linear";
const LINEAR_FEW_ROWS: &str = "linear, few rows";

/// Returns the gradients of a store. Panics in a pass without a backward pass.
fn gradients<'a>(store: &'a mut Option<&mut [f32]>) -> &'a mut [f32] {
    store.as_deref_mut().expect("a pass with a backward pass has gradients")
}

impl Device for Cpu {
    type Buffer = [f32];
    type Weight = Storage;
    type Cache = KeyValues;
    type Memory = AlignedBuffer;

    const ROUNDS: bool = true;

    fn weight(&self, storage: &Storage) -> Result<Storage> {
        Ok(storage.clone())
    }

    fn room<'m>(&self, memory: &'m mut AlignedBuffer, len: usize) -> Result<&'m mut [f32]> {
        if memory.len() < len {
            // The old contents need not be copied.
            *memory = AlignedBuffer::new(len);
        }
        Ok(&mut memory[..len])
    }

    fn read(&self, buffer: &[f32], piece: Piece) -> Result<Vec<f32>> {
        Ok(buffer[piece.start..piece.end()].to_vec())
    }

    fn write(&self, buffer: &mut [f32], piece: Piece, values: &[f32]) -> Result<()> {
        part(buffer, piece).copy_from_slice(values);
        Ok(())
    }

    fn compute(&self, store: &mut Store<Self>, operation: Operation<Self>) -> Result<()> {
        let Store { memory, parameters, gradients: all } = store;
        match operation {
            Operation::Fill { piece, value } => part(memory, piece).fill(value),
            Operation::Copy { from, to } => memory.copy_within(from.start..from.end(), to.start),
            Operation::Add { to, x } => {
                let ([to], from) = split(memory, parameters, [to]);
                norm::add(to, from.get(x));
            }
            Operation::Scale { x, factor } => norm::scale(part(memory, x), factor),
            Operation::Dropout { x, dropout, keys } => norm::dropout_rows(part(memory, x), dropout, keys),
            Operation::Gather { x, rows, width, y } => {
                let ([y], from) = split(memory, parameters, [y]);
                rows::gather(from.get(x), rows, y, width);
            }
            Operation::Scatter { y, rows, x, add } => {
                let ([x], from) = split(memory, parameters, [x]);
                rows::scatter(from.get(y), rows, x, add);
            }
            Operation::Embed { tables, width, y } => {
                let ([y], from) = split(memory, parameters, [y]);
                if let [(At::Frozen(Storage::Blocks(matrix)), index)] = tables {
                    embedding::widen(matrix, index, y);
                } else {
                    let tables: Vec<_> = tables.iter().map(|&(at, index)| (from.floats(at), index)).collect();
                    embedding::forward(&tables, width, y);
                }
            }
            Operation::EmbedBackward { dy, index, width, gradient } => {
                embedding::backward(part(memory, dy), index, width, part(gradients(all), gradient));
            }
            Operation::Product(of) => product(store, of),
            Operation::SumRows { dy, gradient } => {
                rows::sum_rows(part(memory, dy), part(gradients(all), gradient));
            }
            Operation::RowNorms { weight, precision, plus, norms } => {
                row_norms(store, weight, precision, plus, norms);
            }
            Operation::Magnitude { by, u, start, y } => {
                let ([out], from) = split(memory, parameters, [y]);
                let factors = magnitude::factors(from.floats(by.magnitude), from.floats(by.norms), by.less);
                magnitude::forward((u != y).then(|| from.get(u)), &factors, from.start(start), out);
            }
            Operation::MagnitudeBackward { by, dy, u, du, gradient } => {
                let ([du], from) = split(memory, parameters, [du]);
                let norms = from.floats(by.norms);
                let factors = magnitude::factors(from.floats(by.magnitude), norms, by.less);
                let gradient = part(gradients(all), gradient);
                magnitude::backward([from.get(dy), from.get(u)], &factors, norms, du, gradient);
            }
            Operation::Scaled { scaled, to } => {
                let ([to], from) = split(memory, parameters, [to]);
                scaled::forward(from.scaled(&scaled), to);
            }
            Operation::ScaledBackward { scaled, d, gradients: [matrix, rows, columns] } => {
                let ([], from) = split(memory, parameters, []);
                let (of, d, all) = (from.scaled(&scaled), from.get(d), gradients(all));
                if let Some(piece) = matrix {
                    scaled::matrix_gradient(of, d, part(all, piece));
                }
                if let Some(piece) = rows {
                    scaled::row_gradient(of, d, part(all, piece));
                }
                if let Some(piece) = columns {
                    scaled::column_gradient(of, d, part(all, piece));
                }
            }
            Operation::LayerNorm { norm, epsilon, x, residual, y } => {
                let ([y, normed, rstd], from) = split(memory, parameters, [y, norm.normed, norm.rstd]);
                let forward = norm::Forward {
                    x: from.get(x),
                    residual: residual.map(|residual| from.get(residual)),
                    dropout: norm.dropout,
                    gamma: from.floats(norm.gamma),
                    beta: from.floats(norm.beta),
                    epsilon,
                };
                forward.run(y, normed, rstd);
            }
            Operation::LayerNormBackward { norm, dy, du, dx, gradients: affine } => {
                let ([du, to_x], from) = split(memory, parameters, [du, dx.unwrap_or_default()]);
                let affine = affine.map(|pieces| {
                    let ranges = pieces.map(|piece| piece.start..piece.end());
                    let found = gradients(all).get_disjoint_mut(ranges);
                    found.expect("parameters do not overlap")
                });
                let backward = norm::Backward {
                    dy: from.get(dy),
                    normed: from.get(norm.normed),
                    rstd: from.get(norm.rstd),
                    gamma: from.floats(norm.gamma),
                    dropout: norm.dropout,
                };
                backward.run(du, dx.map(|_| to_x), affine);
            }
            Operation::RmsNorm { norm, epsilon, y } => {
                let ([y, rstd], from) = split(memory, parameters, [y, norm.rstd]);
                let gain = Gain { gamma: from.floats(norm.gamma), offset: norm.offset };
                rms_norm::forward(from.get(norm.x), gain, epsilon, y, rstd);
            }
            Operation::RecomputeRmsNorm { norm, y } => {
                let ([y], from) = split(memory, parameters, [y]);
                let gain = Gain { gamma: from.floats(norm.gamma), offset: norm.offset };
                rms_norm::recompute(from.get(norm.x), gain, from.get(norm.rstd), y);
            }
            Operation::RmsNormBackward { norm, dy, dx, gradient } => {
                let ([dx], from) = split(memory, parameters, [dx]);
                let gain = Gain { gamma: from.floats(norm.gamma), offset: norm.offset };
                let gradient = gradient.map(|piece| part(gradients(all), piece));
                rms_norm::backward(from.get(dy), from.get(norm.x), gain, from.get(norm.rstd), dx, gradient);
            }
            Operation::Rotary { table, rotation, x, positions } => {
                table.rotate(rotation, part(memory, x), positions)
            }
            Operation::Attention(attend) => {
                let ([out, lse], from) = split(memory, parameters, [attend.out, attend.lse]);
                from.attention(&attend).forward(from.inputs(&attend), out, lse);
            }
            Operation::AttentionBackward { attend, dout, dqkv: [q, k, v], dbias } => {
                let pieces = [q, k, v, dbias.unwrap_or_default()];
                let ([dq, dk, dv, table], from) = split(memory, parameters, pieces);
                let (wide, pair) = (attend.heads * attend.width, attend.kv_heads * attend.width);
                let dqkv = [(dq, wide), (dk, pair), (dv, pair)];
                let dqkv = dqkv.map(|(data, stride)| ColumnsMut { data, stride });
                let (out, lse) = (from.get(attend.out), from.get(attend.lse));
                let saved = attention::SavedForward { inputs: from.inputs(&attend), out, lse };
                from.attention(&attend).backward(saved, from.get(dout), dqkv, dbias.map(|_| table));
            }
            Operation::RelativeBias { weight, of, table } => {
                let ([table], from) = split(memory, parameters, [table]);
                relative::table(from.floats(weight), of, table);
            }
            Operation::RelativeBiasBackward { of, dtable, gradient } => {
                relative::backward(part(memory, dtable), of, part(gradients(all), gradient));
            }
            Operation::Activation { f, x, y, rounded } if x == y => {
                let piece = rounded.map_or(Piece::default(), |saved| saved.piece);
                let ([y, halves], _) = split(memory, parameters, [y, piece]);
                let halves = rounded.map(|saved| saved_values::halves_mut(halves, saved.count));
                f.forward_in_place(y, halves);
            }
            Operation::Activation { f, x, y, rounded } => {
                assert!(rounded.is_none(), "an input that is saved rounded is overwritten");
                let ([y], from) = split(memory, parameters, [y]);
                f.forward(&SavedValues::Floats(from.get(x)), y);
            }
            Operation::RecomputeActivation { f, x, y } => {
                let ([y], from) = split(memory, parameters, [y]);
                f.forward(&from.saved(x), y);
            }
            Operation::ActivationBackward { f, x, dy } => {
                let ([dy], from) = split(memory, parameters, [dy]);
                f.backward(&from.saved(x), dy);
            }
            Operation::Gate { f, gate_and_up: [gate, up], y, rounded } if gate == y => {
                let pieces = rounded.map_or([Piece::default(); 2], |saved| saved.map(|saved| saved.piece));
                let ([y, gates, ups], from) = split(memory, parameters, [y, pieces[0], pieces[1]]);
                let halves = rounded.map(|[gate, up]| {
                    [saved_values::halves_mut(gates, gate.count), saved_values::halves_mut(ups, up.count)]
                });
                activation::gated_forward_in_place(f, y, from.get(up), halves);
            }
            Operation::Gate { f, gate_and_up, y, rounded } => {
                assert!(rounded.is_none(), "a gate that is saved rounded is overwritten");
                let ([y], from) = split(memory, parameters, [y]);
                let [gate, up] = gate_and_up.map(|piece| SavedValues::Floats(from.get(piece)));
                activation::gated_forward(f, &gate, &up, y);
            }
            Operation::RecomputeGate { f, saved, y } => {
                let ([y], from) = split(memory, parameters, [y]);
                let [gate, up] = saved.map(|of| from.saved(of));
                activation::gated_forward(f, &gate, &up, y);
            }
            Operation::GateBackward { f, saved, dy, dgate } => {
                let ([dy, dgate], from) = split(memory, parameters, [dy, dgate]);
                let [gate, up] = saved.map(|of| from.saved(of));
                activation::gated_backward(f, &gate, &up, dy, dgate);
            }
        }
        Ok(())
    }

    fn attention_cached(
        &self,
        memory: &mut [f32],
        attend: Attend,
        caches: &mut [&mut KeyValues],
    ) -> Result<()> {
        let ([out, lse], from) = split(memory, &[], [attend.out, attend.lse]);
        let [q, k, v] = [attend.q, attend.k, attend.v].map(|piece| from.get(piece));
        let (heads, wide, pair) = (attend.heads, attend.heads * attend.width, attend.kv_heads * attend.width);
        for (cache, ends) in caches.iter_mut().zip(attend.offsets.windows(2)) {
            let (first, end) = (ends[0], ends[1]);
            cache.keys.extend_from_slice(&k[first * pair..end * pair]);
            cache.values.extend_from_slice(&v[first * pair..end * pair]);
            cache.tokens += end - first;
            let (offsets, queries) = ([0, cache.tokens], Queries::Last(end - first));
            let attention = Attention { offsets: &offsets, bias: None, queries, ..from.attention(&attend) };
            let inputs = inputs(&attend, &q[first * wide..end * wide], &cache.keys, &cache.values);
            let (out, lse) = (&mut out[first * wide..end * wide], &mut lse[first * heads..end * heads]);
            attention.forward(inputs, out, lse);
        }
        Ok(())
    }

    fn head_loss(&self, memory: &mut [f32], logits: Piece, targets: Targets, dlogits: Piece) -> Result<f64> {
        let ([dlogits], from) = split(memory, &[], [dlogits]);
        let logits = from.get(logits);
        Ok(match targets {
            Targets::Classes { labels, weights, smoothing, total } => {
                loss::cross_entropy(logits, labels, weights, smoothing, total, Some(dlogits))
            }
            Targets::Sets { has, weights, total } => {
                loss::binary_cross_entropy(logits, has, weights, total, Some(dlogits))
            }
            Targets::Values { values, total } => loss::squared_error(logits, values, total, Some(dlogits)),
        })
    }

    fn token_losses(
        &self,
        memory: &mut [f32],
        logits: Piece,
        targets: &[u32],
        scale: Option<f32>,
    ) -> Result<Vec<f32>> {
        Ok(loss::token_losses(part(memory, logits), targets, scale))
    }

    fn second_moment(&self, memory: &[f32], z: Piece, width: usize, total: &mut [f64]) -> Result<()> {
        rows::second_moment(width, &memory[z.start..z.end()], total);
        Ok(())
    }
}

fn product(store: &mut Store<Cpu>, product: Product<Cpu>) {
    let Product { name, precision, few, to, rows, cols, start, scale, terms } = product;
    let (memory, gradient) = match to {
        To::Memory(piece) => (piece, None),
        To::Gradient(piece) => (Piece::default(), Some(part(gradients(&mut store.gradients), piece))),
    };
    let ([memory], from) = split(store.memory, store.parameters, [memory]);
    let c = MatMut::new(gradient.unwrap_or(memory), rows, cols);
    let start = from.start(start);
    let mats: [_; 2] = std::array::from_fn(|i| {
        let (a, b) = terms.get(i).copied().unwrap_or(terms[0]);
        (from.matrix(a), from.matrix(b))
    });
    let mats = &mats[..terms.len()];
    let few = few && rows <= FEW_ROWS;
    let name = if few && name == LINEAR { LINEAR_FEW_ROWS } else { name };
    let _span = profile::operation(name, || gemm::work(&c, start, mats));
    if !few {
        return gemm::matmul(precision, c, start, scale, mats);
    }
    gemm::matmul_few(c, start, mats[0], mats.get(1).copied());
    if let (To::Memory(piece), true) = (to, scale != 1.0) {
        part(store.memory, piece).iter_mut().for_each(|value| *value *= scale);
    }
}

fn row_norms(
    store: &mut Store<Cpu>,
    weight: Matrix<Cpu>,
    precision: Precision,
    plus: Option<LowRank<Cpu>>,
    norms: Piece,
) {
    let ([norms], from) = split(store.memory, store.parameters, [norms]);
    let squares = |rows, norms: &mut [f32]| magnitude::squares(rows, weight.cols, precision, norms);
    match weight.at {
        At::Frozen(Storage::Packed(matrix)) => norms.copy_from_slice(matrix.squares()),
        At::Frozen(Storage::Blocks(matrix)) => squares(magnitude::Rows::Blocks(matrix), norms),
        at => squares(magnitude::Rows::Floats(from.floats(at)), norms),
    }
    let plus = plus.map(|LowRank { a, b_t, rank, scale }| {
        let [a, b_t] = [a, b_t].map(|at| from.floats(at));
        magnitude::LowRank { a, b_t, rank, scale }
    });
    magnitude::norms(from.matrix(weight), precision, plus, norms);
}
