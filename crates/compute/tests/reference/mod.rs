//! A device of plain loops in f64, for tests only, against which every other device is checked.
//!
//! Loops follow the definitions and share no code with the kernels except random numbers. Nothing
//! is rounded: products in bf16 and values saved as rounded are exact here.

#![allow(dead_code)] // each test file uses a part of it

mod formulas;

use std::sync::Arc;

use lora_drop_compute::attention::Queries;
use lora_drop_compute::device::{
    At, Attend, Device, LowRank, Matrix, Operation, Piece, Product, Result, RmsNorm, Scaled, Start, Storage,
    Store, Targets, To,
};
use lora_drop_compute::random::{Dropout, Key};
use lora_drop_compute::relative;
use lora_drop_compute::rotary::Rotation;

use formulas::{activate, attention, attention_backward, slope};

#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

const BACK: &str = "a pass with a backward pass has gradients";

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

/// Returns a function that maps (row, column) to an element of a matrix.
fn entries(of: Matrix<Reference>, store: &Store<Reference>) -> impl Fn(usize, usize) -> f64 + use<> {
    let (values, cols, transposed) = (values(of.at, store), of.cols, of.transposed);
    assert!(values.len() >= of.rows * of.cols);
    move |i, j| if transposed { values[j * cols + i] } else { values[i * cols + j] }
}

/// Returns the dropout factor of each element, in rows of this width.
fn factors(dropout: Option<(Dropout, &[Key])>, width: usize, count: usize) -> Vec<f64> {
    match dropout {
        None => vec![1.0; count],
        Some((dropout, keys)) => {
            (0..count).map(|i| f64::from(dropout.factor(keys[i / width], (i % width) as u32))).collect()
        }
    }
}

/// Returns the gain of an RMS norm, offset + γ.
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
        // The contents are undefined: NaN shows where they are read.
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

    fn compute(&self, store: &mut Store<Self>, operation: Operation<Self>) -> Result<()> {
        let memory = &mut *store.memory;
        match operation {
            Operation::Fill { piece, value } => {
                memory[piece.start..piece.end()].fill(f64::from(value));
            }
            Operation::Copy { from, to } => {
                let values = get(memory, from);
                set(memory, to, &values);
            }
            Operation::Add { to, x } => {
                let values = get(memory, x);
                add(memory, to, &values);
            }
            Operation::Scale { x, factor } => {
                let scaled: Vec<f64> = get(memory, x).iter().map(|x| x * f64::from(factor)).collect();
                set(memory, x, &scaled);
            }
            Operation::Dropout { x, dropout, keys } => {
                let factors = factors(Some((dropout, keys)), x.len / keys.len().max(1), x.len);
                let values: Vec<f64> =
                    get(memory, x).iter().zip(factors).map(|(x, factor)| x * factor).collect();
                set(memory, x, &values);
            }
            Operation::Gather { x, rows, width, y } => {
                let x = get(memory, x);
                let values: Vec<f64> =
                    rows.iter().flat_map(|row| x[row * width..][..width].to_vec()).collect();
                set(memory, y, &values);
            }
            Operation::Scatter { y, rows, x, add: adds } => {
                let (values, width) = (get(memory, y), y.len / rows.len().max(1));
                for (row, values) in rows.iter().zip(values.chunks_exact(width)) {
                    let piece = Piece::new(x.start + row * width, width);
                    if adds { add(memory, piece, values) } else { set(memory, piece, values) }
                }
            }
            Operation::Embed { tables, width, y } => {
                let mut sum = vec![0.0; y.len];
                for (table, index) in tables {
                    let table = values(*table, store);
                    for (row, &entry) in sum.chunks_exact_mut(width).zip(*index) {
                        row.iter_mut().zip(&table[entry as usize * width..]).for_each(|(sum, x)| *sum += x);
                    }
                }
                set(store.memory, y, &sum);
            }
            Operation::EmbedBackward { dy, index, width, gradient } => {
                for (row, &entry) in get(store.memory, dy).chunks_exact(width).zip(index) {
                    add(
                        store.gradients.as_deref_mut().expect(BACK),
                        Piece::new(gradient.start + entry as usize * width, width),
                        row,
                    );
                }
            }
            Operation::Product(product) => {
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
                let c: Vec<f64> =
                    c.iter().zip(before).map(|(c, before)| before + f64::from(scale) * c).collect();
                match to {
                    To::Memory(piece) => set(store.memory, piece, &c),
                    To::Gradient(piece) => set(store.gradients.as_deref_mut().expect(BACK), piece, &c),
                }
            }
            Operation::SumRows { dy, gradient } => {
                for row in get(store.memory, dy).chunks_exact(gradient.len) {
                    add(store.gradients.as_deref_mut().expect(BACK), gradient, row);
                }
            }
            Operation::RowNorms { weight, plus, norms, .. } => {
                let of = |at: At<Self>| values(at, store);
                let mut all = of(weight.at);
                if let Some(LowRank { a, b_t, rank, scale }) = plus {
                    let (a, b_t) = (of(a), of(b_t));
                    for (i, w) in all.iter_mut().enumerate() {
                        let (row, col) = (i / weight.cols, i % weight.cols);
                        let sum: f64 =
                            (0..rank).map(|r| b_t[r * weight.rows + row] * a[r * weight.cols + col]).sum();
                        *w += f64::from(scale) * sum;
                    }
                }
                let rows = all.chunks_exact(weight.cols);
                let found: Vec<f64> = rows.map(|row| row.iter().map(|w| w * w).sum::<f64>().sqrt()).collect();
                set(store.memory, norms, &found);
            }
            Operation::Magnitude { by, u, start, y } => {
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
            }
            Operation::MagnitudeBackward { by, dy, u, du, gradient } => {
                let (of, norms) = (values(by.magnitude, store), values(by.norms, store));
                let width = of.len();
                let (dy, u) = (get(store.memory, dy), get(store.memory, u));
                let mut of_magnitude = vec![0.0; width];
                dy.iter()
                    .zip(u)
                    .enumerate()
                    .for_each(|(i, (dy, u))| of_magnitude[i % width] += dy * u / norms[i % width]);
                let scaled = dy
                    .iter()
                    .enumerate()
                    .map(|(i, dy)| (of[i % width] / norms[i % width] - f64::from(by.less)) * dy);
                set(store.memory, du, &scaled.collect::<Vec<_>>());
                add(store.gradients.as_deref_mut().expect(BACK), gradient, &of_magnitude);
            }
            Operation::Scaled { scaled, to } => {
                let Factored { matrix, rows, columns } = Factored::of(&scaled, store);
                let factor = |i: usize| rows[i / scaled.width] * columns[i % scaled.width];
                let found: Vec<f64> = matrix.iter().enumerate().map(|(i, m)| factor(i) * m).collect();
                set(store.memory, to, &found);
            }
            Operation::ScaledBackward { scaled, d, gradients } => {
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
            }
            Operation::LayerNorm { norm, epsilon, x, residual, y } => {
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
            }
            Operation::LayerNormBackward { norm, dy, du, dx, gradients } => {
                let gamma = values(norm.gamma, store);
                let width = gamma.len();
                let (of_y, normed, rstd) =
                    (get(store.memory, dy), get(store.memory, norm.normed), get(store.memory, norm.rstd));
                let mut of_u = Vec::new();
                for ((dy, normed), rstd) in of_y.chunks_exact(width).zip(normed.chunks_exact(width)).zip(rstd)
                {
                    let of_normed: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, g)| dy * g).collect();
                    let mean = of_normed.iter().sum::<f64>() / width as f64;
                    let mean_dot =
                        of_normed.iter().zip(normed).map(|(d, x)| d * x).sum::<f64>() / width as f64;
                    of_u.extend(of_normed.iter().zip(normed).map(|(d, x)| rstd * (d - mean - x * mean_dot)));
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
            }
            Operation::RmsNorm { norm, epsilon, y } => {
                let width = values(norm.gamma, store).len();
                let rstd: Vec<f64> = (get(store.memory, norm.x).chunks_exact(width))
                    .map(|row| {
                        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                        1.0 / (mean + f64::from(epsilon)).sqrt()
                    })
                    .collect();
                set(store.memory, norm.rstd, &rstd);
                return self.compute(store, Operation::RecomputeRmsNorm { norm, y });
            }
            Operation::RecomputeRmsNorm { norm, y } => {
                let gamma = gain(&norm, store);
                let (x, rstd) = (get(store.memory, norm.x), get(store.memory, norm.rstd));
                let rows = x.chunks_exact(gamma.len()).zip(rstd);
                let out: Vec<f64> = rows
                    .flat_map(|(row, rstd)| {
                        row.iter().zip(&gamma).map(|(x, g)| g * x * rstd).collect::<Vec<_>>()
                    })
                    .collect();
                set(store.memory, y, &out);
            }
            Operation::RmsNormBackward { norm, dy, dx, gradient } => {
                let gamma = gain(&norm, store);
                let width = gamma.len();
                let (x, of_y, rstd) =
                    (get(store.memory, norm.x), get(store.memory, dy), get(store.memory, norm.rstd));
                let mut of_x = Vec::new();
                for ((x, dy), rstd) in x.chunks_exact(width).zip(of_y.chunks_exact(width)).zip(rstd) {
                    let of_normed: Vec<f64> = dy.iter().zip(&gamma).map(|(dy, g)| dy * g).collect();
                    let mean_dot =
                        of_normed.iter().zip(x).map(|(d, x)| d * x * rstd).sum::<f64>() / width as f64;
                    of_x.extend(of_normed.iter().zip(x).map(|(d, x)| rstd * (d - x * rstd * mean_dot)));
                    if let Some(gradient) = gradient {
                        let of_row: Vec<f64> = dy.iter().zip(x).map(|(dy, x)| dy * x * rstd).collect();
                        add(store.gradients.as_deref_mut().expect(BACK), gradient, &of_row);
                    }
                }
                add(store.memory, dx, &of_x);
            }
            Operation::Rotary { table, rotation, x, positions } => {
                let half = table.frequencies().len();
                let columns = x.len / positions.len().max(1);
                let mut values = get(memory, x);
                for (row, &position) in values.chunks_exact_mut(columns).zip(positions) {
                    for head in row.chunks_exact_mut(2 * half) {
                        for (i, &frequency) in table.frequencies().iter().enumerate() {
                            // The angle is computed in f32, as in the models' training.
                            let angle = f64::from(position as f32 * frequency);
                            let angle = if rotation == Rotation::Forward { angle } else { -angle };
                            let (a, b) = (head[i], head[i + half]);
                            head[i] = a * angle.cos() - b * angle.sin();
                            head[i + half] = b * angle.cos() + a * angle.sin();
                        }
                    }
                }
                set(memory, x, &values);
            }
            Operation::Attention(attend) => {
                let [q, k, v] = [attend.q, attend.k, attend.v].map(|piece| get(memory, piece));
                let bias = attend.bias.map_or(Vec::new(), |(table, _)| get(memory, table));
                let (out, sums) = attention(&attend, &q, &k, &v, &bias);
                set(memory, attend.out, &out);
                set(memory, attend.lse, &sums);
            }
            Operation::AttentionBackward { attend, dout, dqkv: [to_q, to_k, to_v], dbias } => {
                let [q, k, v, dout] = [attend.q, attend.k, attend.v, dout].map(|piece| get(memory, piece));
                let bias = attend.bias.map_or(Vec::new(), |(table, _)| get(memory, table));
                let ([dq, dk, dv], of_bias) = attention_backward(&attend, [&q, &k, &v, &dout], &bias);
                set(memory, to_q, &dq);
                set(memory, to_k, &dk);
                set(memory, to_v, &dv);
                if let Some(dbias) = dbias {
                    add(memory, dbias, &of_bias);
                }
            }
            Operation::RelativeBias { weight, of, table } => {
                let (weight, span) = (values(weight, store), 2 * of.reach - 1);
                let bucket = |i: usize| relative::bucket(i as isize - (of.reach as isize - 1), of.buckets);
                let entry = |n: usize| weight[bucket(n % span) * of.heads + n / span];
                set(store.memory, table, &(0..table.len).map(entry).collect::<Vec<_>>());
            }
            Operation::RelativeBiasBackward { of, dtable, gradient } => {
                let span = 2 * of.reach - 1;
                for (n, d) in get(store.memory, dtable).into_iter().enumerate() {
                    let bucket = relative::bucket((n % span) as isize - (of.reach as isize - 1), of.buckets);
                    store.gradients.as_deref_mut().expect(BACK)
                        [gradient.start + bucket * of.heads + n / span] += d;
                }
            }
            Operation::Activation { f, x, y, rounded } => {
                let x = get(memory, x);
                // Values are not rounded on this device, and a piece of half the size has no room
                // for exact ones, so the caller must not ask for it.
                assert!(rounded.is_none(), "nothing is saved rounded on this device");
                set(memory, y, &x.iter().map(|&x| activate(f, x)).collect::<Vec<_>>());
            }
            Operation::RecomputeActivation { f, x, y } => {
                return self.compute(store, Operation::Activation { f, x: x.piece, y, rounded: None });
            }
            Operation::ActivationBackward { f, x, dy } => {
                let x = get(memory, x.piece);
                let dx: Vec<f64> = get(memory, dy).iter().zip(x).map(|(dy, x)| dy * slope(f, x)).collect();
                set(memory, dy, &dx);
            }
            Operation::Gate { f, gate_and_up: [gate, up], y, rounded } => {
                assert!(rounded.is_none(), "nothing is saved rounded on this device");
                let pairs = get(memory, gate).into_iter().zip(get(memory, up));
                set(memory, y, &pairs.map(|(gate, up)| activate(f, gate) * up).collect::<Vec<_>>());
            }
            Operation::RecomputeGate { f, saved, y } => {
                let gate_and_up = saved.map(|saved| saved.piece);
                return self.compute(store, Operation::Gate { f, gate_and_up, y, rounded: None });
            }
            Operation::GateBackward { f, saved, dy, dgate } => {
                let [gate, up, of_y] = [saved[0].piece, saved[1].piece, dy].map(|piece| get(memory, piece));
                let of_gate: Vec<f64> =
                    of_y.iter().zip(&gate).zip(&up).map(|((dy, &g), u)| dy * u * slope(f, g)).collect();
                let of_up: Vec<f64> = of_y.iter().zip(&gate).map(|(dy, &g)| dy * activate(f, g)).collect();
                set(memory, dgate, &of_gate);
                set(memory, dy, &of_up);
            }
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

    fn head_loss(&self, memory: &mut [f64], logits: Piece, targets: Targets, dlogits: Piece) -> Result<f64> {
        let x = get(memory, logits);
        let mut d = Vec::with_capacity(x.len());
        let mut sum = 0.0;
        match targets {
            Targets::Classes { labels, weights, smoothing, total } => {
                let classes = (x.len() / labels.len().max(1)).max(1);
                for (row, &label) in x.chunks_exact(classes).zip(labels) {
                    let all: f64 = row.iter().map(|x| x.exp()).sum();
                    let target = |class: usize| {
                        let right = f64::from(u8::from(class == label));
                        let weight = if weights.is_empty() { 1.0 } else { weights[class] };
                        weight * (smoothing / classes as f64 + (1.0 - smoothing) * right)
                    };
                    let mass: f64 = (0..classes).map(target).sum();
                    for (class, x) in row.iter().enumerate() {
                        sum -= target(class) * (x - all.ln());
                        d.push((mass * x.exp() / all - target(class)) / total);
                    }
                }
            }
            Targets::Sets { has, weights, total } => {
                for (i, (x, &has)) in x.iter().zip(has).enumerate() {
                    let weight = if weights.is_empty() { 1.0 } else { weights[i % weights.len()] };
                    let p = 1.0 / (1.0 + (-x).exp());
                    sum -= if has { weight * p.ln() } else { (1.0 - p).ln() };
                    d.push(if has { weight * (p - 1.0) } else { p } / total);
                }
            }
            Targets::Values { values, total } => {
                for (x, &value) in x.iter().zip(values) {
                    sum += (x - f64::from(value)).powi(2);
                    d.push(2.0 * (x - f64::from(value)) / total);
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
