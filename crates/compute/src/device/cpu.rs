//! The CPU as a device: buffers are slices, and operations the functions of this crate.

use super::slices::{
    BACK, attention, floats, gemm_start, gradient_part, inputs, kept, matrix, part, split, vectors,
};
use super::{
    At, Attend, Device, Kept, KeyValues, LayerNorm, LowRank, Magnitude, Matrix, Piece, Product, Relative,
    Result, RmsNorm, Scaled, Start, Store, Targets, To,
};
use crate::activation::{self, Activation};
use crate::aligned::AlignedBuffer;
use crate::attention::{self, Attention, ColumnsMut, Queries};
use crate::blocks::BlockMatrix;
use crate::gemm::{self, FEW_ROWS, MatMut, PackedMatrix, Precision};
use crate::kept_values::{self, KeptValues};
use crate::random::{Dropout, Key};
use crate::rms_norm::Gain;
use crate::rotary::{RotaryTable, Turn};
use crate::{Tensor, embedding, loss, magnitude, norm, profile, relative, rms_norm, rows, scaled};

/// This machine's processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// A frozen weight as it lies in memory.
#[derive(Clone, Debug)]
pub enum Storage {
    /// By rows.
    F32(Tensor),
    /// A matrix in its file's storage, quantized, or rounded; widened as it is multiplied.
    Blocks(BlockMatrix),
    /// A matrix packed once for training's products.
    Packed(PackedMatrix),
}

/// What a profile calls a layer's products, and those of few rows.
const LINEAR: &str = "linear";
const FEW: &str = "linear, few rows";

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

    fn fill(&self, memory: &mut [f32], piece: Piece, value: f32) -> Result<()> {
        part(memory, piece).fill(value);
        Ok(())
    }

    fn copy(&self, memory: &mut [f32], from: Piece, to: Piece) -> Result<()> {
        memory.copy_within(from.start..from.end(), to.start);
        Ok(())
    }

    fn add(&self, memory: &mut [f32], to: Piece, x: Piece) -> Result<()> {
        let ([to], rest) = split(memory, [to]);
        norm::add(to, rest.get(x));
        Ok(())
    }

    fn scale(&self, memory: &mut [f32], x: Piece, factor: f32) -> Result<()> {
        norm::scale(part(memory, x), factor);
        Ok(())
    }

    fn dropout(&self, memory: &mut [f32], x: Piece, dropout: Dropout, keys: &[Key]) -> Result<()> {
        norm::dropout_rows(part(memory, x), dropout, keys);
        Ok(())
    }

    fn gather(&self, memory: &mut [f32], x: Piece, rows: &[usize], width: usize, y: Piece) -> Result<()> {
        let ([y], rest) = split(memory, [y]);
        rows::gather(rest.get(x), rows, y, width);
        Ok(())
    }

    fn scatter(&self, memory: &mut [f32], y: Piece, rows: &[usize], x: Piece, add: bool) -> Result<()> {
        let ([x], rest) = split(memory, [x]);
        rows::scatter(rest.get(y), rows, x, add);
        Ok(())
    }

    fn embed(
        &self,
        store: &mut Store<Self>,
        tables: &[(At<Self>, &[u32])],
        width: usize,
        y: Piece,
    ) -> Result<()> {
        let y = part(store.memory, y);
        if let [(At::Frozen(Storage::Blocks(matrix)), index)] = tables {
            embedding::widen(matrix, index, y);
            return Ok(());
        }
        let none = |_| unreachable!("tables are weights");
        let tables: Vec<_> =
            tables.iter().map(|(at, index)| (floats(*at, store.parameters, none), *index)).collect();
        embedding::forward(&tables, width, y);
        Ok(())
    }

    fn embed_backward(
        &self,
        store: &mut Store<Self>,
        dy: Piece,
        index: &[u32],
        width: usize,
        gradient: Piece,
    ) -> Result<()> {
        let dy = &store.memory[dy.start..dy.end()];
        embedding::backward(dy, index, width, gradient_part(store.gradients.as_deref_mut(), gradient));
        Ok(())
    }

    fn product(&self, store: &mut Store<Self>, product: Product<Self>) -> Result<()> {
        let Product { name, precision, few, to, rows, cols, start, scale, terms } = product;
        let parameters = store.parameters;
        let (memory, gradient) = match to {
            To::Memory(piece) => (piece, None),
            To::Gradient(piece) => {
                (Piece::default(), Some(gradient_part(store.gradients.as_deref_mut(), piece)))
            }
        };
        let ([memory], rest) = split(store.memory, [memory]);
        let c = MatMut::new(gradient.unwrap_or(memory), rows, cols);
        let rest = |piece| rest.get(piece);
        let start = gemm_start(start, parameters, rest);
        let mats: [_; 2] = std::array::from_fn(|i| {
            let (a, b) = terms.get(i).copied().unwrap_or(terms[0]);
            (matrix(a, parameters, rest), matrix(b, parameters, rest))
        });
        let mats = &mats[..terms.len()];
        let few = few && rows <= FEW_ROWS;
        let name = if few && name == LINEAR { FEW } else { name };
        let _span = profile::operation(name, || gemm::work(&c, start, mats));
        if !few {
            gemm::matmul(precision, c, start, scale, mats);
            return Ok(());
        }
        gemm::matmul_few(c, start, mats[0], mats.get(1).copied());
        if let (To::Memory(piece), true) = (to, scale != 1.0) {
            part(store.memory, piece).iter_mut().for_each(|value| *value *= scale);
        }
        Ok(())
    }

    fn sum_rows(&self, store: &mut Store<Self>, dy: Piece, gradient: Piece) -> Result<()> {
        let dy = &store.memory[dy.start..dy.end()];
        rows::sum_rows(dy, gradient_part(store.gradients.as_deref_mut(), gradient));
        Ok(())
    }

    fn row_norms(
        &self,
        store: &mut Store<Self>,
        weight: Matrix<Self>,
        precision: Precision,
        plus: Option<LowRank<Self>>,
        norms: Piece,
    ) -> Result<()> {
        let parameters = store.parameters;
        let ([norms], rest) = split(store.memory, [norms]);
        let rest = |piece| rest.get(piece);
        let squares = |rows, norms: &mut [f32]| magnitude::squares(rows, weight.cols, precision, norms);
        match weight.at {
            At::Frozen(Storage::Packed(matrix)) => norms.copy_from_slice(matrix.squares()),
            At::Frozen(Storage::Blocks(matrix)) => squares(magnitude::Rows::Blocks(matrix), norms),
            at => squares(magnitude::Rows::Floats(floats(at, parameters, rest)), norms),
        }
        let plus = plus.map(|LowRank { a, b_t, rank, scale }| {
            let [a, b_t] = [a, b_t].map(|at| floats(at, parameters, rest));
            magnitude::LowRank { a, b_t, rank, scale }
        });
        magnitude::norms(matrix(weight, parameters, rest), precision, plus, norms);
        Ok(())
    }

    fn magnitude(
        &self,
        store: &mut Store<Self>,
        by: Magnitude<Self>,
        u: Piece,
        start: Start<Self>,
        y: Piece,
    ) -> Result<()> {
        let parameters = store.parameters;
        let ([out], rest) = split(store.memory, [y]);
        let rest = |piece| rest.get(piece);
        let [of, norms] = [by.magnitude, by.norms].map(|at| floats(at, parameters, rest));
        let start = gemm_start(start, parameters, rest);
        magnitude::forward((u != y).then(|| rest(u)), &magnitude::factors(of, norms, by.less), start, out);
        Ok(())
    }

    fn magnitude_backward(
        &self,
        store: &mut Store<Self>,
        by: Magnitude<Self>,
        dy: Piece,
        u: Piece,
        du: Piece,
        gradient: Piece,
    ) -> Result<()> {
        let ([du], rest) = split(store.memory, [du]);
        let rest = |piece| rest.get(piece);
        let [of, norms] = [by.magnitude, by.norms].map(|at| floats(at, store.parameters, rest));
        let gradient = gradient_part(store.gradients.as_deref_mut(), gradient);
        let factors = magnitude::factors(of, norms, by.less);
        magnitude::backward([rest(dy), rest(u)], &factors, norms, du, gradient);
        Ok(())
    }

    fn scaled(&self, store: &mut Store<Self>, scaled: Scaled<Self>, to: Piece) -> Result<()> {
        let parameters = store.parameters;
        let ([to], rest) = split(store.memory, [to]);
        scaled::forward(vectors(&scaled, parameters, |piece| rest.get(piece)), to);
        Ok(())
    }

    fn scaled_backward(
        &self,
        store: &mut Store<Self>,
        scaled: Scaled<Self>,
        d: Piece,
        gradients: [Option<Piece>; 3],
    ) -> Result<()> {
        let memory: &[f32] = store.memory;
        let rest = |piece: Piece| &memory[piece.start..piece.end()];
        let all = store.gradients.as_deref_mut().expect(BACK);
        let of = vectors(&scaled, store.parameters, rest);
        let [matrix, rows, columns] = gradients;
        if let Some(piece) = matrix {
            scaled::matrix_gradient(of, rest(d), part(all, piece));
        }
        if let Some(piece) = rows {
            scaled::row_gradient(of, rest(d), part(all, piece));
        }
        if let Some(piece) = columns {
            scaled::column_gradient(of, rest(d), part(all, piece));
        }
        Ok(())
    }

    fn layer_norm(
        &self,
        store: &mut Store<Self>,
        norm: LayerNorm<Self>,
        epsilon: f32,
        x: Piece,
        residual: Option<Piece>,
        y: Piece,
    ) -> Result<()> {
        let ([y, normed, rstd], rest) = split(store.memory, [y, norm.normed, norm.rstd]);
        let rest = |piece| rest.get(piece);
        let forward = norm::Forward {
            x: rest(x),
            residual: residual.map(rest),
            dropout: norm.dropout,
            gamma: floats(norm.gamma, store.parameters, rest),
            beta: floats(norm.beta, store.parameters, rest),
            epsilon,
        };
        forward.run(y, normed, rstd);
        Ok(())
    }

    fn layer_norm_backward(
        &self,
        store: &mut Store<Self>,
        norm: LayerNorm<Self>,
        dy: Piece,
        du: Piece,
        dx: Option<Piece>,
        gradients: Option<[Piece; 2]>,
    ) -> Result<()> {
        let ([du, to_x], rest) = split(store.memory, [du, dx.unwrap_or_default()]);
        let affine = gradients.map(|pieces| {
            let ranges = pieces.map(|piece| piece.start..piece.end());
            let [gamma, beta] = store
                .gradients
                .as_deref_mut()
                .expect(BACK)
                .get_disjoint_mut(ranges)
                .expect("parameters do not overlap");
            (gamma, beta)
        });
        let rest = |piece| rest.get(piece);
        let backward = norm::Backward {
            dy: rest(dy),
            normed: rest(norm.normed),
            rstd: rest(norm.rstd),
            gamma: floats(norm.gamma, store.parameters, rest),
            dropout: norm.dropout,
        };
        backward.run(du, dx.map(|_| to_x), affine);
        Ok(())
    }

    fn rms_norm(&self, store: &mut Store<Self>, norm: RmsNorm<Self>, epsilon: f32, y: Piece) -> Result<()> {
        let ([y, rstd], rest) = split(store.memory, [y, norm.rstd]);
        let rest = |piece| rest.get(piece);
        let gain = Gain { gamma: floats(norm.gamma, store.parameters, rest), offset: norm.offset };
        rms_norm::forward(rest(norm.x), gain, epsilon, y, rstd);
        Ok(())
    }

    fn rms_norm_again(&self, store: &mut Store<Self>, norm: RmsNorm<Self>, y: Piece) -> Result<()> {
        let ([y], rest) = split(store.memory, [y]);
        let rest = |piece| rest.get(piece);
        let gain = Gain { gamma: floats(norm.gamma, store.parameters, rest), offset: norm.offset };
        rms_norm::again(rest(norm.x), gain, rest(norm.rstd), y);
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        store: &mut Store<Self>,
        norm: RmsNorm<Self>,
        dy: Piece,
        dx: Piece,
        gradient: Option<Piece>,
    ) -> Result<()> {
        let ([dx], rest) = split(store.memory, [dx]);
        let rest = |piece| rest.get(piece);
        let gain = Gain { gamma: floats(norm.gamma, store.parameters, rest), offset: norm.offset };
        let gradient = gradient.map(|piece| gradient_part(store.gradients.as_deref_mut(), piece));
        rms_norm::backward(rest(dy), rest(norm.x), gain, rest(norm.rstd), dx, gradient);
        Ok(())
    }

    fn rotary(
        &self,
        memory: &mut [f32],
        table: &RotaryTable,
        turn: Turn,
        x: Piece,
        positions: &[u32],
    ) -> Result<()> {
        table.turn(turn, part(memory, x), positions);
        Ok(())
    }

    fn attention(&self, memory: &mut [f32], attend: Attend) -> Result<()> {
        let ([out, lse], rest) = split(memory, [attend.out, attend.lse]);
        let rest = |piece| rest.get(piece);
        let inputs = inputs(&attend, rest(attend.q), rest(attend.k), rest(attend.v));
        attention(&attend, attend.bias.map(|(table, _)| rest(table))).forward(inputs, out, lse);
        Ok(())
    }

    fn attention_backward(
        &self,
        memory: &mut [f32],
        attend: Attend,
        dout: Piece,
        dqkv: [Piece; 3],
        dbias: Option<Piece>,
    ) -> Result<()> {
        let [q, k, v] = dqkv;
        let ([dq, dk, dv, table], rest) = split(memory, [q, k, v, dbias.unwrap_or_default()]);
        let rest = |piece| rest.get(piece);
        let (wide, pair) = (attend.heads * attend.width, attend.kv_heads * attend.width);
        let dqkv = [
            ColumnsMut { data: dq, stride: wide },
            ColumnsMut { data: dk, stride: pair },
            ColumnsMut { data: dv, stride: pair },
        ];
        let inputs = inputs(&attend, rest(attend.q), rest(attend.k), rest(attend.v));
        let kept = attention::Kept { inputs, out: rest(attend.out), lse: rest(attend.lse) };
        let bias = attend.bias.map(|(table, _)| rest(table));
        attention(&attend, bias).backward(kept, rest(dout), dqkv, dbias.map(|_| table));
        Ok(())
    }

    fn attention_cached(
        &self,
        memory: &mut [f32],
        attend: Attend,
        caches: &mut [&mut KeyValues],
    ) -> Result<()> {
        let ([out, lse], rest) = split(memory, [attend.out, attend.lse]);
        let [q, k, v] = [attend.q, attend.k, attend.v].map(|piece| rest.get(piece));
        let (heads, wide, pair) = (attend.heads, attend.heads * attend.width, attend.kv_heads * attend.width);
        for (cache, ends) in caches.iter_mut().zip(attend.offsets.windows(2)) {
            let (from, to) = (ends[0], ends[1]);
            cache.keys.extend_from_slice(&k[from * pair..to * pair]);
            cache.values.extend_from_slice(&v[from * pair..to * pair]);
            cache.tokens += to - from;
            let offsets = [0, cache.tokens];
            let attention = Attention {
                offsets: &offsets,
                queries: Queries::Last(to - from),
                ..attention(&attend, None)
            };
            let inputs = inputs(&attend, &q[from * wide..to * wide], &cache.keys, &cache.values);
            let (out, lse) = (&mut out[from * wide..to * wide], &mut lse[from * heads..to * heads]);
            attention.forward(inputs, out, lse);
        }
        Ok(())
    }

    fn relative_bias(
        &self,
        store: &mut Store<Self>,
        weight: At<Self>,
        of: Relative,
        table: Piece,
    ) -> Result<()> {
        let ([table], rest) = split(store.memory, [table]);
        relative::table(floats(weight, store.parameters, |piece| rest.get(piece)), of, table);
        Ok(())
    }

    fn relative_bias_backward(
        &self,
        store: &mut Store<Self>,
        of: Relative,
        dtable: Piece,
        gradient: Piece,
    ) -> Result<()> {
        let dtable = &store.memory[dtable.start..dtable.end()];
        relative::backward(dtable, of, gradient_part(store.gradients.as_deref_mut(), gradient));
        Ok(())
    }

    fn activation(
        &self,
        memory: &mut [f32],
        f: Activation,
        x: Piece,
        y: Piece,
        rounded: Option<Kept>,
    ) -> Result<()> {
        if x != y {
            assert!(rounded.is_none(), "an input that is kept rounded is overwritten");
            let ([y], rest) = split(memory, [y]);
            f.forward(rest.get(x), y);
            return Ok(());
        }
        let piece = rounded.map_or(Piece::default(), |kept| kept.piece);
        let ([y, halves], _) = split(memory, [y, piece]);
        let halves = rounded.map(|kept| kept_values::halves_mut(halves, kept.count));
        f.forward_in_place(y, halves);
        Ok(())
    }

    fn activation_again(&self, memory: &mut [f32], f: Activation, x: Kept, y: Piece) -> Result<()> {
        let ([y], rest) = split(memory, [y]);
        f.forward_again(&kept(x, rest.get(x.piece)), y);
        Ok(())
    }

    fn activation_backward(&self, memory: &mut [f32], f: Activation, x: Kept, dy: Piece) -> Result<()> {
        let ([dy], rest) = split(memory, [dy]);
        f.backward(&kept(x, rest.get(x.piece)), dy);
        Ok(())
    }

    fn gate(
        &self,
        memory: &mut [f32],
        f: Activation,
        [gate, up]: [Piece; 2],
        y: Piece,
        rounded: Option<[Kept; 2]>,
    ) -> Result<()> {
        if gate != y {
            assert!(rounded.is_none(), "a gate that is kept rounded is overwritten");
            let ([y], rest) = split(memory, [y]);
            let (gate, up) = (KeptValues::Floats(rest.get(gate)), KeptValues::Floats(rest.get(up)));
            activation::gated_forward_again(f, &gate, &up, y);
            return Ok(());
        }
        let pieces = rounded.map_or([Piece::default(); 2], |kept| kept.map(|kept| kept.piece));
        let ([y, gates, ups], rest) = split(memory, [y, pieces[0], pieces[1]]);
        let halves = rounded.map(|[gate, up]| {
            [kept_values::halves_mut(gates, gate.count), kept_values::halves_mut(ups, up.count)]
        });
        activation::gated_forward_in_place(f, y, rest.get(up), halves);
        Ok(())
    }

    fn gate_again(&self, memory: &mut [f32], f: Activation, of: [Kept; 2], y: Piece) -> Result<()> {
        let ([y], rest) = split(memory, [y]);
        let [gate, up] = of.map(|of| kept(of, rest.get(of.piece)));
        activation::gated_forward_again(f, &gate, &up, y);
        Ok(())
    }

    fn gate_backward(
        &self,
        memory: &mut [f32],
        f: Activation,
        of: [Kept; 2],
        dy: Piece,
        dgate: Piece,
    ) -> Result<()> {
        let ([dy, dgate], rest) = split(memory, [dy, dgate]);
        let [gate, up] = of.map(|of| kept(of, rest.get(of.piece)));
        activation::gated_backward(f, &gate, &up, dy, dgate);
        Ok(())
    }

    fn sequence_loss(
        &self,
        memory: &mut [f32],
        logits: Piece,
        targets: Targets,
        dlogits: Piece,
    ) -> Result<f64> {
        let ([dlogits], rest) = split(memory, [dlogits]);
        let logits = rest.get(logits);
        Ok(match targets {
            Targets::Classes { labels, smoothing, total } => {
                loss::cross_entropy(logits, labels, smoothing, total, Some(dlogits))
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
