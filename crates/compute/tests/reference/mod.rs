//! A device of plain loops in f64, for tests alone: what every other device is checked against.
//!
//! Loops follow the definitions and share no code with the kernels but for random numbers. Nothing
//! is rounded: products in bf16 and values that are kept rounded are exact here.

#![allow(dead_code)] // each test file has a use for some of it

mod formulas;

use std::sync::Arc;

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::Queries;
use lora_drop_compute::device::{
    At, Attend, Device, Kept, LayerNorm, LowRank, Magnitude, Matrix, Piece, Product, Relative, Result,
    RmsNorm, Scaled, Start, Storage, Store, Targets, To,
};
use lora_drop_compute::gemm::Precision;
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::relative;
use lora_drop_compute::rotary::{RotaryTable, Turn};

use formulas::{activate, attention, attention_backward, slope};

#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

const BACK: &str = "a pass with a backward has gradients";

/// Keys and values of the tokens so far, by rows.
#[derive(Clone, Debug, Default)]
pub struct Cached {
    keys: Vec<f64>,
    values: Vec<f64>,
    tokens: usize,
}

fn get(buffer: &[f64], piece: Piece) -> Vec<f64> {
    buffer[piece.start..piece.end()].to_vec()
}

fn set(buffer: &mut [f64], piece: Piece, values: &[f64]) {
    buffer[piece.start..piece.end()].copy_from_slice(values);
}

fn add(buffer: &mut [f64], piece: Piece, values: &[f64]) {
    let to = &mut buffer[piece.start..piece.end()];
    assert_eq!(to.len(), values.len());
    to.iter_mut().zip(values).for_each(|(to, x)| *to += x);
}

fn values(at: At<Reference>, store: &Store<Reference>) -> Vec<f64> {
    match at {
        At::Memory(piece) => get(store.memory, piece),
        At::Trained(piece) => get(store.parameters, piece),
        At::Frozen(weight) => weight.to_vec(),
    }
}

/// The element (row, column) of a matrix, by index.
fn entries(of: Matrix<Reference>, store: &Store<Reference>) -> impl Fn(usize, usize) -> f64 + use<> {
    let (values, cols, transposed) = (values(of.at, store), of.cols, of.transposed);
    assert!(values.len() >= of.rows * of.cols);
    move |i, j| if transposed { values[j * cols + i] } else { values[i * cols + j] }
}

/// The factor of each element of rows of this width.
fn factors(dropout: Option<(Dropout, &[Key])>, width: usize, count: usize) -> Vec<f64> {
    match dropout {
        None => vec![1.0; count],
        Some((dropout, keys)) => {
            (0..count).map(|i| f64::from(dropout.factor(keys[i / width], (i % width) as u32))).collect()
        }
    }
}

/// What the rows of an RMS norm are multiplied by.
fn gain(norm: &RmsNorm<Reference>, store: &Store<Reference>) -> Vec<f64> {
    values(norm.gamma, store).into_iter().map(|gamma| f64::from(norm.offset) + gamma).collect()
}

/// A scaled matrix with both of its vectors.
struct Factored {
    matrix: Vec<f64>,
    rows: Vec<f64>,
    columns: Vec<f64>,
}

impl Factored {
    fn of(scaled: &Scaled<Reference>, store: &Store<Reference>) -> Self {
        let matrix = values(scaled.matrix, store);
        let columns = scaled.columns.map_or(vec![1.0; scaled.width], |at| values(at, store));
        Factored { rows: values(scaled.rows, store), columns, matrix }
    }
}

impl Device for Reference {
    type Buffer = [f64];
    type Weight = Arc<Vec<f64>>;
    type Cache = Cached;
    type Memory = Vec<f64>;

    const ROUNDS: bool = false;

    fn weight(&self, storage: &Storage) -> Result<Arc<Vec<f64>>> {
        Ok(Arc::new(match storage {
            Storage::F32(tensor) => tensor.iter().map(|&x| f64::from(x)).collect(),
            Storage::Blocks(matrix) => {
                let mut all = vec![0.0; matrix.rows() * matrix.cols()];
                for (row, values) in all.chunks_exact_mut(matrix.cols()).enumerate() {
                    matrix.widen_row_range(row, 0..matrix.cols(), values);
                }
                all.into_iter().map(f64::from).collect()
            }
            Storage::Packed(matrix) => panic!("{matrix:?} does not lie by rows"),
        }))
    }

    fn room<'m>(&self, memory: &'m mut Vec<f64>, len: usize) -> Result<&'m mut [f64]> {
        // What was there before is wrong wherever it is read.
        memory.clear();
        memory.resize(len, f64::NAN);
        Ok(memory)
    }

    fn read(&self, buffer: &[f64], piece: Piece) -> Result<Vec<f32>> {
        Ok(get(buffer, piece).into_iter().map(|x| x as f32).collect())
    }

    fn write(&self, buffer: &mut [f64], piece: Piece, values: &[f32]) -> Result<()> {
        set(buffer, piece, &values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        Ok(())
    }

    fn fill(&self, memory: &mut [f64], piece: Piece, value: f32) -> Result<()> {
        memory[piece.start..piece.end()].fill(f64::from(value));
        Ok(())
    }

    fn copy(&self, memory: &mut [f64], from: Piece, to: Piece) -> Result<()> {
        let values = get(memory, from);
        set(memory, to, &values);
        Ok(())
    }

    fn add(&self, memory: &mut [f64], to: Piece, x: Piece) -> Result<()> {
        let values = get(memory, x);
        add(memory, to, &values);
        Ok(())
    }

    fn scale(&self, memory: &mut [f64], x: Piece, factor: f32) -> Result<()> {
        let scaled: Vec<f64> = get(memory, x).iter().map(|x| x * f64::from(factor)).collect();
        set(memory, x, &scaled);
        Ok(())
    }

    fn dropout(&self, memory: &mut [f64], x: Piece, dropout: Dropout, keys: &[Key]) -> Result<()> {
        let factors = factors(Some((dropout, keys)), x.len / keys.len().max(1), x.len);
        let values: Vec<f64> = get(memory, x).iter().zip(factors).map(|(x, factor)| x * factor).collect();
        set(memory, x, &values);
        Ok(())
    }

    fn gather(&self, memory: &mut [f64], x: Piece, rows: &[usize], width: usize, y: Piece) -> Result<()> {
        let x = get(memory, x);
        let values: Vec<f64> = rows.iter().flat_map(|row| x[row * width..][..width].to_vec()).collect();
        set(memory, y, &values);
        Ok(())
    }

    fn scatter(&self, memory: &mut [f64], y: Piece, rows: &[usize], x: Piece, adds: bool) -> Result<()> {
        let (values, width) = (get(memory, y), y.len / rows.len().max(1));
        for (row, values) in rows.iter().zip(values.chunks_exact(width)) {
            let piece = Piece::new(x.start + row * width, width);
            if adds { add(memory, piece, values) } else { set(memory, piece, values) }
        }
        Ok(())
    }

    fn embed(
        &self,
        store: &mut Store<Self>,
        tables: &[(At<Self>, &[u32])],
        width: usize,
        y: Piece,
    ) -> Result<()> {
        let mut sum = vec![0.0; y.len];
        for (table, index) in tables {
            let table = values(*table, store);
            for (row, &entry) in sum.chunks_exact_mut(width).zip(*index) {
                row.iter_mut().zip(&table[entry as usize * width..]).for_each(|(sum, x)| *sum += x);
            }
        }
        set(store.memory, y, &sum);
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
        for (row, &entry) in get(store.memory, dy).chunks_exact(width).zip(index) {
            add(
                store.gradients.as_deref_mut().expect(BACK),
                Piece::new(gradient.start + entry as usize * width, width),
                row,
            );
        }
        Ok(())
    }

    fn product(&self, store: &mut Store<Self>, product: Product<Self>) -> Result<()> {
        let Product { to, rows, cols, start, scale, terms, .. } = product;
        let before = match (&start, to) {
            (Start::Zero, _) => vec![0.0; rows * cols],
            (Start::Bias(at), _) => values(*at, store).repeat(rows),
            (Start::Keep, To::Memory(piece)) => get(store.memory, piece),
            (Start::Keep, To::Gradient(piece)) => get(store.gradients.as_deref().expect(BACK), piece),
        };
        let mut c = vec![0.0; rows * cols];
        for (a, b) in terms {
            let depth = if a.transposed { a.rows } else { a.cols };
            let (a, b) = (entries(*a, store), entries(*b, store));
            for i in 0..rows {
                for j in 0..cols {
                    c[i * cols + j] += (0..depth).map(|k| a(i, k) * b(k, j)).sum::<f64>();
                }
            }
        }
        let c: Vec<f64> = c.iter().zip(before).map(|(c, before)| before + f64::from(scale) * c).collect();
        match to {
            To::Memory(piece) => set(store.memory, piece, &c),
            To::Gradient(piece) => set(store.gradients.as_deref_mut().expect(BACK), piece, &c),
        }
        Ok(())
    }

    fn sum_rows(&self, store: &mut Store<Self>, dy: Piece, gradient: Piece) -> Result<()> {
        for row in get(store.memory, dy).chunks_exact(gradient.len) {
            add(store.gradients.as_deref_mut().expect(BACK), gradient, row);
        }
        Ok(())
    }

    fn row_norms(
        &self,
        store: &mut Store<Self>,
        weight: Matrix<Self>,
        _: Precision,
        plus: Option<LowRank<Self>>,
        norms: Piece,
    ) -> Result<()> {
        let of = |at: At<Self>| values(at, store);
        let mut all = of(weight.at);
        if let Some(LowRank { a, b_t, rank, scale }) = plus {
            let (a, b_t) = (of(a), of(b_t));
            for (i, w) in all.iter_mut().enumerate() {
                let (row, col) = (i / weight.cols, i % weight.cols);
                let sum: f64 = (0..rank).map(|r| b_t[r * weight.rows + row] * a[r * weight.cols + col]).sum();
                *w += f64::from(scale) * sum;
            }
        }
        let rows = all.chunks_exact(weight.cols);
        let found: Vec<f64> = rows.map(|row| row.iter().map(|w| w * w).sum::<f64>().sqrt()).collect();
        set(store.memory, norms, &found);
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
        let (of, norms) = (values(by.magnitude, store), values(by.norms, store));
        let before = match &start {
            Start::Zero => vec![0.0; y.len],
            Start::Bias(at) => values(*at, store).repeat(y.len / of.len()),
            Start::Keep => get(store.memory, y),
        };
        let found: Vec<f64> = (get(store.memory, u).iter().zip(before).enumerate())
            .map(|(i, (u, before))| {
                before + (of[i % of.len()] / norms[i % of.len()] - f64::from(by.less)) * u
            })
            .collect();
        set(store.memory, y, &found);
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
        let (of, norms) = (values(by.magnitude, store), values(by.norms, store));
        let width = of.len();
        let (dy, u) = (get(store.memory, dy), get(store.memory, u));
        let mut of_magnitude = vec![0.0; width];
        dy.iter()
            .zip(u)
            .enumerate()
            .for_each(|(i, (dy, u))| of_magnitude[i % width] += dy * u / norms[i % width]);
        let scaled =
            dy.iter().enumerate().map(|(i, dy)| (of[i % width] / norms[i % width] - f64::from(by.less)) * dy);
        set(store.memory, du, &scaled.collect::<Vec<_>>());
        add(store.gradients.as_deref_mut().expect(BACK), gradient, &of_magnitude);
        Ok(())
    }

    fn scaled(&self, store: &mut Store<Self>, scaled: Scaled<Self>, to: Piece) -> Result<()> {
        let Factored { matrix, rows, columns } = Factored::of(&scaled, store);
        let factor = |i: usize| rows[i / scaled.width] * columns[i % scaled.width];
        let found: Vec<f64> = matrix.iter().enumerate().map(|(i, m)| factor(i) * m).collect();
        set(store.memory, to, &found);
        Ok(())
    }

    fn scaled_backward(
        &self,
        store: &mut Store<Self>,
        scaled: Scaled<Self>,
        d: Piece,
        gradients: [Option<Piece>; 3],
    ) -> Result<()> {
        let Factored { matrix, rows, columns } = Factored::of(&scaled, store);
        let mut found = [vec![0.0; matrix.len()], vec![0.0; rows.len()], vec![0.0; columns.len()]];
        for (i, d) in get(store.memory, d).into_iter().enumerate() {
            let (row, column) = (i / scaled.width, i % scaled.width);
            found[0][i] = d * rows[row] * columns[column];
            found[1][row] += d * matrix[i] * columns[column];
            found[2][column] += d * matrix[i] * rows[row];
        }
        let all = store.gradients.as_deref_mut().expect(BACK);
        let wanted = gradients.into_iter().zip(found);
        wanted.for_each(|(piece, found)| piece.into_iter().for_each(|piece| add(all, piece, &found)));
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
        let (gamma, beta) = (values(norm.gamma, store), values(norm.beta, store));
        let width = gamma.len();
        let mut u: Vec<f64> = get(store.memory, x);
        u.iter_mut().zip(factors(norm.dropout, width, x.len)).for_each(|(u, factor)| *u *= factor);
        if let Some(residual) = residual {
            u.iter_mut().zip(get(store.memory, residual)).for_each(|(u, r)| *u += r);
        }
        let (mut rstd, mut out) = (Vec::new(), Vec::new());
        for row in u.chunks_exact_mut(width) {
            let mean = row.iter().sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
            rstd.push(1.0 / (variance + f64::from(epsilon)).sqrt());
            row.iter_mut().for_each(|x| *x = (*x - mean) * rstd[rstd.len() - 1]);
            out.extend(row.iter().zip(&gamma).zip(&beta).map(|((x, g), b)| g * x + b));
        }
        set(store.memory, norm.normed, &u);
        set(store.memory, norm.rstd, &rstd);
        set(store.memory, y, &out);
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
        let gamma = values(norm.gamma, store);
        let width = gamma.len();
        let (of_y, normed, rstd) =
            (get(store.memory, dy), get(store.memory, norm.normed), get(store.memory, norm.rstd));
        let mut of_u = Vec::new();
        for ((dy, normed), rstd) in of_y.chunks_exact(width).zip(normed.chunks_exact(width)).zip(rstd) {
            let of_normed: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, g)| dy * g).collect();
            let mean = of_normed.iter().sum::<f64>() / width as f64;
            let along = of_normed.iter().zip(normed).map(|(d, x)| d * x).sum::<f64>() / width as f64;
            of_u.extend(of_normed.iter().zip(normed).map(|(d, x)| rstd * (d - mean - x * along)));
            if let Some([of_gamma, of_beta]) = gradients {
                let of_row: Vec<f64> = dy.iter().zip(normed).map(|(dy, x)| dy * x).collect();
                add(store.gradients.as_deref_mut().expect(BACK), of_gamma, &of_row);
                add(store.gradients.as_deref_mut().expect(BACK), of_beta, dy);
            }
        }
        set(store.memory, du, &of_u);
        if let Some(dx) = dx {
            let factors = factors(norm.dropout, width, of_u.len());
            let of_x: Vec<f64> = of_u.iter().zip(factors).map(|(du, factor)| du * factor).collect();
            set(store.memory, dx, &of_x);
        }
        Ok(())
    }

    fn rms_norm(&self, store: &mut Store<Self>, norm: RmsNorm<Self>, epsilon: f32, y: Piece) -> Result<()> {
        let width = values(norm.gamma, store).len();
        let rstd: Vec<f64> = (get(store.memory, norm.x).chunks_exact(width))
            .map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                1.0 / (mean + f64::from(epsilon)).sqrt()
            })
            .collect();
        set(store.memory, norm.rstd, &rstd);
        self.rms_norm_again(store, norm, y)
    }

    fn rms_norm_again(&self, store: &mut Store<Self>, norm: RmsNorm<Self>, y: Piece) -> Result<()> {
        let gamma = gain(&norm, store);
        let (x, rstd) = (get(store.memory, norm.x), get(store.memory, norm.rstd));
        let rows = x.chunks_exact(gamma.len()).zip(rstd);
        let out: Vec<f64> = rows
            .flat_map(|(row, rstd)| row.iter().zip(&gamma).map(|(x, g)| g * x * rstd).collect::<Vec<_>>())
            .collect();
        set(store.memory, y, &out);
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
        let gamma = gain(&norm, store);
        let width = gamma.len();
        let (x, of_y, rstd) =
            (get(store.memory, norm.x), get(store.memory, dy), get(store.memory, norm.rstd));
        let mut of_x = Vec::new();
        for ((x, dy), rstd) in x.chunks_exact(width).zip(of_y.chunks_exact(width)).zip(rstd) {
            let of_normed: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, g)| dy * g).collect();
            let along = of_normed.iter().zip(x).map(|(d, x)| d * x * rstd).sum::<f64>() / width as f64;
            of_x.extend(of_normed.iter().zip(x).map(|(d, x)| rstd * (d - x * rstd * along)));
            if let Some(gradient) = gradient {
                let of_row: Vec<f64> = dy.iter().zip(x).map(|(dy, x)| dy * x * rstd).collect();
                add(store.gradients.as_deref_mut().expect(BACK), gradient, &of_row);
            }
        }
        add(store.memory, dx, &of_x);
        Ok(())
    }

    fn rotary(
        &self,
        memory: &mut [f64],
        table: &RotaryTable,
        turn: Turn,
        x: Piece,
        positions: &[u32],
    ) -> Result<()> {
        let half = table.frequencies().len();
        let columns = x.len / positions.len().max(1);
        let mut values = get(memory, x);
        for (row, &position) in values.chunks_exact_mut(columns).zip(positions) {
            for head in row.chunks_exact_mut(2 * half) {
                for (i, &frequency) in table.frequencies().iter().enumerate() {
                    // The angle is formed in f32, as the models were trained with it.
                    let angle = f64::from(position as f32 * frequency);
                    let angle = if turn == Turn::Forward { angle } else { -angle };
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * angle.cos() - b * angle.sin();
                    head[i + half] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        set(memory, x, &values);
        Ok(())
    }

    fn attention(&self, memory: &mut [f64], attend: Attend) -> Result<()> {
        let [q, k, v] = [attend.q, attend.k, attend.v].map(|piece| get(memory, piece));
        let bias = attend.bias.map_or(Vec::new(), |(table, _)| get(memory, table));
        let (out, sums) = attention(&attend, &q, &k, &v, &bias);
        set(memory, attend.out, &out);
        set(memory, attend.lse, &sums);
        Ok(())
    }

    fn attention_backward(
        &self,
        memory: &mut [f64],
        attend: Attend,
        dout: Piece,
        [to_q, to_k, to_v]: [Piece; 3],
        dbias: Option<Piece>,
    ) -> Result<()> {
        let [q, k, v, dout] = [attend.q, attend.k, attend.v, dout].map(|piece| get(memory, piece));
        let bias = attend.bias.map_or(Vec::new(), |(table, _)| get(memory, table));
        let ([dq, dk, dv], of_bias) = attention_backward(&attend, [&q, &k, &v, &dout], &bias);
        set(memory, to_q, &dq);
        set(memory, to_k, &dk);
        set(memory, to_v, &dv);
        if let Some(dbias) = dbias {
            add(memory, dbias, &of_bias);
        }
        Ok(())
    }

    fn attention_cached(&self, memory: &mut [f64], attend: Attend, caches: &mut [&mut Cached]) -> Result<()> {
        let [q, k, v] = [attend.q, attend.k, attend.v].map(|piece| get(memory, piece));
        let (wide, pair) = (attend.heads * attend.width, attend.kv_heads * attend.width);
        for (cache, ends) in caches.iter_mut().zip(attend.offsets.windows(2)) {
            let (from, to) = (ends[0], ends[1]);
            cache.keys.extend(&k[from * pair..to * pair]);
            cache.values.extend(&v[from * pair..to * pair]);
            cache.tokens += to - from;
            let offsets = [0, cache.tokens];
            let all = Attend { offsets: &offsets, queries: Queries::Last(to - from), ..attend };
            let (out, sums) = attention(&all, &q[from * wide..to * wide], &cache.keys, &cache.values, &[]);
            set(memory, Piece::new(attend.out.start + from * wide, out.len()), &out);
            set(memory, Piece::new(attend.lse.start + from * attend.heads, sums.len()), &sums);
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
        let (weight, span) = (values(weight, store), 2 * of.reach - 1);
        let bucket = |i: usize| relative::bucket(i as isize - (of.reach as isize - 1), of.buckets);
        let entry = |n: usize| weight[bucket(n % span) * of.heads + n / span];
        set(store.memory, table, &(0..table.len).map(entry).collect::<Vec<_>>());
        Ok(())
    }

    fn relative_bias_backward(
        &self,
        store: &mut Store<Self>,
        of: Relative,
        dtable: Piece,
        gradient: Piece,
    ) -> Result<()> {
        let span = 2 * of.reach - 1;
        for (n, d) in get(store.memory, dtable).into_iter().enumerate() {
            let bucket = relative::bucket((n % span) as isize - (of.reach as isize - 1), of.buckets);
            store.gradients.as_deref_mut().expect(BACK)[gradient.start + bucket * of.heads + n / span] += d;
        }
        Ok(())
    }

    fn activation(
        &self,
        memory: &mut [f64],
        f: Activation,
        x: Piece,
        y: Piece,
        rounded: Option<Kept>,
    ) -> Result<()> {
        let x = get(memory, x);
        // As they are: a piece of half the size has no room for more, so the caller asks for none
        // here.
        assert!(rounded.is_none(), "nothing is kept rounded on this device");
        set(memory, y, &x.iter().map(|&x| activate(f, x)).collect::<Vec<_>>());
        Ok(())
    }

    fn activation_again(&self, memory: &mut [f64], f: Activation, x: Kept, y: Piece) -> Result<()> {
        self.activation(memory, f, x.piece, y, None)
    }

    fn activation_backward(&self, memory: &mut [f64], f: Activation, x: Kept, dy: Piece) -> Result<()> {
        let x = get(memory, x.piece);
        let dx: Vec<f64> = get(memory, dy).iter().zip(x).map(|(dy, x)| dy * slope(f, x)).collect();
        set(memory, dy, &dx);
        Ok(())
    }

    fn gate(
        &self,
        memory: &mut [f64],
        f: Activation,
        [gate, up]: [Piece; 2],
        y: Piece,
        rounded: Option<[Kept; 2]>,
    ) -> Result<()> {
        assert!(rounded.is_none(), "nothing is kept rounded on this device");
        let pairs = get(memory, gate).into_iter().zip(get(memory, up));
        set(memory, y, &pairs.map(|(gate, up)| activate(f, gate) * up).collect::<Vec<_>>());
        Ok(())
    }

    fn gate_again(&self, memory: &mut [f64], f: Activation, kept: [Kept; 2], y: Piece) -> Result<()> {
        self.gate(memory, f, kept.map(|kept| kept.piece), y, None)
    }

    fn gate_backward(
        &self,
        memory: &mut [f64],
        f: Activation,
        kept: [Kept; 2],
        dy: Piece,
        dgate: Piece,
    ) -> Result<()> {
        let [gate, up, of_y] = [kept[0].piece, kept[1].piece, dy].map(|piece| get(memory, piece));
        let of_gate: Vec<f64> =
            of_y.iter().zip(&gate).zip(&up).map(|((dy, &g), u)| dy * u * slope(f, g)).collect();
        let of_up: Vec<f64> = of_y.iter().zip(&gate).map(|(dy, &g)| dy * activate(f, g)).collect();
        set(memory, dgate, &of_gate);
        set(memory, dy, &of_up);
        Ok(())
    }

    fn sequence_loss(
        &self,
        memory: &mut [f64],
        logits: Piece,
        targets: Targets,
        dlogits: Piece,
    ) -> Result<f64> {
        let x = get(memory, logits);
        let mut d = Vec::with_capacity(x.len());
        let mut sum = 0.0;
        match targets {
            Targets::Classes { labels, smoothing, total } => {
                let classes = x.len() / labels.len();
                for (row, &label) in x.chunks_exact(classes).zip(labels) {
                    let all: f64 = row.iter().map(|x| x.exp()).sum();
                    for (class, x) in row.iter().enumerate() {
                        let right = f64::from(u8::from(class == label));
                        let target = smoothing / classes as f64 + (1.0 - smoothing) * right;
                        sum -= target * (x - all.ln());
                        d.push((x.exp() / all - target) / total as f64);
                    }
                }
            }
            Targets::Values { values, total } => {
                for (x, &value) in x.iter().zip(values) {
                    sum += (x - f64::from(value)).powi(2);
                    d.push(2.0 * (x - f64::from(value)) / total as f64);
                }
            }
        }
        set(memory, dlogits, &d);
        Ok(sum)
    }

    fn token_losses(
        &self,
        memory: &mut [f64],
        logits: Piece,
        targets: &[u32],
        scale: Option<f32>,
    ) -> Result<Vec<f32>> {
        let mut x = get(memory, logits);
        let width = x.len() / targets.len().max(1);
        let mut losses = Vec::new();
        for (row, &target) in x.chunks_exact_mut(width.max(1)).zip(targets) {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum = most + row.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
            losses.push((sum - row[target as usize]) as f32);
            if let Some(scale) = scale {
                row.iter_mut().for_each(|x| *x = f64::from(scale) * (*x - sum).exp());
                row[target as usize] -= f64::from(scale);
            }
        }
        set(memory, logits, &x);
        Ok(losses)
    }

    fn second_moment(&self, memory: &[f64], z: Piece, width: usize, total: &mut [f64]) -> Result<()> {
        for row in get(memory, z).chunks_exact(width) {
            for (i, a) in row.iter().enumerate() {
                for (j, b) in row.iter().enumerate() {
                    total[i * width + j] += a * b;
                }
            }
        }
        Ok(())
    }
}
