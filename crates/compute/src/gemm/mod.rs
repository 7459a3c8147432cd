//! Matrix products: C = start + scale · Σ AᵢBᵢ over one or several terms, of f32 or of operands rounded to bf16; sums
//! are f32 in either.
//!
//! The one rule that is not obvious: every element of C is one chain of additions over k, cut at places that only
//! k decides and always in the same order. How the tiles are dealt out to threads therefore
//! cannot change a bit of the result.
//!
//! Both operands are packed into panels before they are multiplied (Goto and van de Geijn 2008), so any
//! strides will do: a transposed matrix is a `Mat` with its strides swapped. The smaller operand is packed first, by
//! all threads, and shared; each task then packs a part of the other one for itself, as much as its cache holds, and
//! multiplies it with all that is shared. A frozen B may have been packed before, once and for all. Blocks of few bits are widened as they are packed, so no whole f32 copy of
//! such a matrix ever exists. Several terms share one pass over C: that is how a LoRA's thin product joins the wide
//! one of its layer.

#[cfg(target_arch = "x86_64")]
mod amx;
mod few;
mod kernel;
mod mat;
mod pack;
mod packed;
pub(crate) mod panels;
mod round;
mod work;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::lines::Lines;

pub(crate) use few::add_rows;
pub use few::{FEW_ROWS, matmul_few, matmul_few_local};
use kernel::{Kernel, MAX_MR, MAX_NR, Tile};
use mat::Data;
pub use mat::{Mat, MatMut};
use pack::Format;
pub use packed::PackedMatrix;
pub use round::round;
pub use work::work;

/// The greatest depth of a block of k. A packed panel of B is then at most 72 KiB; it and the strip of A that it meets
/// stream from the second-level cache.
/// In words, as all sizes below: a word is an f32 or two bf16 of neighbouring k.
const KC: usize = 576;
/// Words of its own operand that a task packs at a time: 384 KiB, which stay in the second-level cache.
const OWN: usize = 96 << 10;
/// Words of the shared operand that are packed at a time, about: 4 MiB, which stay in the third-level cache.
const SHARED: usize = 1 << 20;
/// Strips of the shared operand that a task packs.
const TOGETHER: usize = 4;
/// Below so many multiplications a product runs on the calling thread.
const SMALL: usize = 1 << 16;

/// What operands are multiplied in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Each factor rounded to the nearest bf16.
    Bf16,
}

/// What C holds before the products are added.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// The same row in every row: a linear layer's bias, (cols).
    Bias(&'a [f32]),
    /// What is there already.
    Keep,
}

/// One product: A (m, k) times B (k, n).
pub type Term<'a> = (Mat<'a>, Mat<'a>);

/// C = start + scale · Σ AᵢBᵢ, on all threads.
pub fn matmul(precision: Precision, c: MatMut, start: Start, scale: f32, terms: &[Term]) {
    let kernel = Kernel::choose(precision, c.rows, c.cols);
    run(kernel, c, start, scale, terms, true, SHARED);
}

/// The same on the calling thread alone, for use inside a parallel task.
pub fn matmul_local(precision: Precision, c: MatMut, start: Start, scale: f32, terms: &[Term]) {
    let kernel = Kernel::choose(precision, c.rows, c.cols);
    run(kernel, c, start, scale, terms, false, SHARED);
}

thread_local! {
    static OWN_SCRATCH: Cell<Lines> = const { Cell::new(Lines::EMPTY) };
    static SHARED_SCRATCH: Cell<Lines> = const { Cell::new(Lines::EMPTY) };
}

/// Most bytes of packed panels that so many threads keep from products (m, k) by (k, n), about, which `callers` of them call.
pub fn scratch_bytes(callers: usize, threads: usize, m: usize, n: usize, k: usize) -> usize {
    size_of::<f32>() * (callers * (m.min(n) * k).min(SHARED) + threads * (m.max(n) * k).min(OWN))
}

/// Hands `f` a buffer of `len` floats that the thread keeps from call to call, at the start of a cache line: loads of
/// whole lines from panels then touch one each. The buffer is taken out meanwhile, so a nested call gets one of its own.
fn with_scratch<R>(
    slot: &'static std::thread::LocalKey<Cell<Lines>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = slot.take();
    if buffer.len() < len {
        buffer = Lines::new(len);
    }
    let result = f(&mut buffer[..len]);
    slot.set(buffer);
    result
}

/// One of the two operands of a product.
#[derive(Clone, Copy, PartialEq)]
enum Operand {
    A,
    B,
}

/// An operand as it is packed: strips of `height` of A's rows or of B's columns, `extent` of them in all.
#[derive(Clone, Copy, PartialEq)]
struct Side {
    operand: Operand,
    extent: usize,
    height: usize,
    format: Format,
    /// Words that the depth of a panel is a multiple of.
    step: usize,
}

impl Side {
    /// B of so many columns.
    fn columns(kernel: &Kernel, extent: usize) -> Self {
        let &Kernel { nr: height, b_format: format, step, .. } = kernel;
        Side { operand: Operand::B, extent, height, format, step }
    }

    fn strips(self) -> usize {
        self.extent.div_ceil(self.height)
    }

    /// The rows or columns of these strips.
    fn range(self, strips: Range<usize>) -> Range<usize> {
        strips.start * self.height..(strips.end * self.height).min(self.extent)
    }

    /// Words that so many k are packed in.
    fn words(self, k: usize) -> usize {
        k.div_ceil(self.format.per_word()).next_multiple_of(self.step)
    }

    /// Words of a panel.
    fn panel(self, block: &KBlock) -> usize {
        block.depth * self.height
    }

    fn pack(self, block: &KBlock, strips: Range<usize>, scale: f32, out: &mut [f32]) {
        let (mat, scale) = match self.operand {
            Operand::A => (block.a, scale),
            Operand::B => (block.b.t(), 1.0),
        };
        pack::pack(mat, self.range(strips), block.k.clone(), scale, self.height, self.format, out);
    }

    /// The panels of these strips, where the operand's matrix was packed before.
    fn packed<'a>(self, block: &KBlock<'a>, strips: Range<usize>) -> Option<&'a [f32]> {
        match (self.operand, block.b.data) {
            (Operand::B, Data::Packed { matrix, transposed }) => {
                Some(matrix.panels(transposed, self, block, strips))
            }
            _ => None,
        }
    }

    /// Whether the operand of this term was packed before.
    fn is_packed(self, (_, b): &Term) -> bool {
        self.operand == Operand::B && matches!(b.data, Data::Packed { .. })
    }
}

/// A block of k of one term.
struct KBlock<'a> {
    a: Mat<'a>,
    b: Mat<'a>,
    k: Range<usize>,
    /// Words that its k are packed in.
    depth: usize,
}

/// What of the product is done in one go, for the shared operand's part of it is packed at once.
struct Group<'a> {
    blocks: Vec<KBlock<'a>>,
    /// Whether these are the first blocks of k, before which C is the start.
    first: bool,
    /// Of the shared operand.
    strips: Range<usize>,
}

/// How deep the blocks are into which `k` is cut: about equal ones, for C is read and written once for each, in
/// multiples of 32, so that runs of quantised values stay whole. Not 0, even where k is.
fn block_depth(k: usize, format: Format) -> usize {
    let blocks = k.div_ceil(KC * format.per_word()).max(1);
    k.div_ceil(blocks).next_multiple_of(32).max(32)
}

/// Cuts a product into groups of about `limit` words of the packed shared operand. Blocks of k stay in their order for
/// every strip, so the cut cannot change a bit of the result.
fn groups<'a>(terms: &[Term<'a>], shared: Side, limit: usize) -> Vec<Group<'a>> {
    let all = shared.strips();
    // Where a matrix was packed before, only thin ones are left to be packed beside it.
    let packed_before = terms.iter().any(|term| shared.is_packed(term));
    let each = if packed_before { all } else { (limit / (KC * shared.height)).clamp(1, all) };
    let mut groups = Vec::new();
    // Where all strips of a block of k fit, the other operand is packed only once.
    for from in (0..all).step_by(each) {
        let strips = from..(from + each).min(all);
        let mut blocks: Vec<KBlock> = Vec::new();
        let (mut packed, mut first) = (0, true);
        for term in terms {
            let &(a, b) = term;
            let depth = block_depth(a.cols, shared.format);
            for from in (0..a.cols).step_by(depth) {
                let k = from..(from + depth).min(a.cols);
                let words = shared.words(k.len());
                let size = if shared.is_packed(term) { 0 } else { words * strips.len() * shared.height };
                if packed + size > limit && !blocks.is_empty() {
                    groups.push(Group { blocks: std::mem::take(&mut blocks), first, strips: strips.clone() });
                    (packed, first) = (0, false);
                }
                blocks.push(KBlock { a, b, k, depth: words });
                packed += size;
            }
        }
        if !blocks.is_empty() {
            groups.push(Group { blocks, first, strips });
        }
    }
    groups
}

/// A pointer to C that tasks share; each writes rows and columns of its own.
#[derive(Clone, Copy)]
struct SharedC(*mut f32);
// SAFETY: tasks write disjoint tiles, see `run`.
unsafe impl Send for SharedC {}
unsafe impl Sync for SharedC {}

impl SharedC {
    /// Where element `offset` of C lies.
    ///
    /// # Safety
    /// The element is inside C.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

fn run(kernel: Kernel, c: MatMut, start: Start, scale: f32, terms: &[Term], parallel: bool, limit: usize) {
    let (m, n) = (c.rows, c.cols);
    for (a, b) in terms {
        assert!(a.rows == m && b.cols == n && a.cols == b.rows, "shapes of a product do not fit");
    }
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), n, "bias");
    }
    if m == 0 || n == 0 {
        return;
    }
    let Kernel { mr: height, a_format: format, step, .. } = kernel;
    let rows = Side { operand: Operand::A, extent: m, height, format, step };
    let columns = Side::columns(&kernel, n);
    let (shared, own) = if m <= n { (rows, columns) } else { (columns, rows) };
    let groups = groups(terms, shared, limit);
    if groups.is_empty() {
        fill(c, start);
        return;
    }
    let work = terms.iter().map(|(a, _)| a.cols).sum::<usize>().saturating_mul(m * n);
    let parallel = parallel && work > SMALL && rayon::current_num_threads() > 1;
    for group in &groups {
        let start = if group.first { start } else { Start::Keep };
        multiply(&c, start, scale, kernel, group, shared, own, parallel);
    }
}

/// One group's part of the product.
#[allow(clippy::too_many_arguments)]
fn multiply(
    c: &MatMut,
    start: Start,
    scale: f32,
    kernel: Kernel,
    group: &Group,
    shared: Side,
    own: Side,
    parallel: bool,
) {
    let (blocks, strips) = (&group.blocks, group.strips.len());
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let unpacked = |block: &&KBlock| shared.packed(block, 0..0).is_none();
    let depth: usize = blocks.iter().filter(unpacked).map(|b| b.depth).sum();
    let deepest = blocks.iter().map(|b| b.depth).max().unwrap_or(0);
    // Parts of a task's own operand that differ by one strip at most, as many for every thread.
    let wanted = if parallel { 2 * threads } else { 1 };
    let parts = (own.strips() * deepest * own.height).div_ceil(OWN).max(wanted);
    let parts = parts.next_multiple_of(threads).min(own.strips());
    // Where those are few, the shared operand is cut as well, so that all threads have work.
    let cuts = wanted.div_ceil(parts).min(strips);

    with_scratch(&SHARED_SCRATCH, depth * strips * shared.height, |packed| {
        let mut rest = &mut *packed;
        let mut jobs = Vec::new();
        for block in blocks.iter().filter(unpacked) {
            let (out, tail) = rest.split_at_mut(shared.panel(block) * strips);
            rest = tail;
            for (from, out) in
                group.strips.clone().step_by(TOGETHER).zip(out.chunks_mut(TOGETHER * shared.panel(block)))
            {
                jobs.push((block, from..(from + TOGETHER).min(group.strips.end), out));
            }
        }
        let pack = |(block, strips, out): (&KBlock, Range<usize>, &mut [f32])| {
            shared.pack(block, strips, scale, out)
        };
        if parallel {
            jobs.into_par_iter().for_each(pack);
        } else {
            jobs.into_iter().for_each(pack);
        }

        let packed = &*packed;
        let to = SharedC(c.data);
        let stride = c.row_stride;
        let task = |task: usize| {
            let (part, cut) = (task / cuts, task % cuts);
            let mine = part * own.strips() / parts..(part + 1) * own.strips() / parts;
            let theirs = cut * strips / cuts..(cut + 1) * strips / cuts;
            let mut rest = packed;
            for (number, block) in blocks.iter().enumerate() {
                let depth = block.depth;
                let theirs_packed = shared.packed(block, group.strips.clone()).unwrap_or_else(|| {
                    let all;
                    (all, rest) = rest.split_at(shared.panel(block) * strips);
                    all
                });
                let multiply = |mine_packed: &[f32]| {
                    for theirs in theirs.clone() {
                        let their = &theirs_packed[theirs * shared.panel(block)..][..shared.panel(block)];
                        let theirs = group.strips.start + theirs;
                        let theirs = shared.range(theirs..theirs + 1);
                        for (strip, my) in mine.clone().zip(mine_packed.chunks(own.panel(block))) {
                            let mine = own.range(strip..strip + 1);
                            let (a, b, rows, columns) = match own.operand {
                                Operand::A => (my, their, mine, theirs.clone()),
                                Operand::B => (their, my, theirs.clone(), mine),
                            };
                            let tile = Tile {
                                // SAFETY: a row and a column of C, inside it by the check of its extent.
                                c: unsafe { to.at(rows.start * stride + columns.start) },
                                row_stride: stride,
                                rows: rows.len(),
                                cols: columns.len(),
                                start: match (number, start) {
                                    (0, Start::Zero) => Start::Zero,
                                    (0, Start::Bias(bias)) => Start::Bias(&bias[columns]),
                                    _ => Start::Keep,
                                },
                            };
                            // SAFETY: a and b are packed panels of this kernel's sizes, and no other task
                            // has these rows in these columns of C, which we borrowed mutably.
                            unsafe { (kernel.run)(depth, a, b, tile) };
                        }
                    }
                };
                match own.packed(block, mine.clone()) {
                    Some(panels) => multiply(panels),
                    None => with_scratch(&OWN_SCRATCH, mine.len() * own.panel(block), |panels| {
                        own.pack(block, mine.clone(), scale, panels);
                        multiply(panels);
                    }),
                }
            }
        };
        let tasks = parts * cuts;
        if parallel {
            (0..tasks).into_par_iter().with_max_len(1).for_each(task);
        } else {
            (0..tasks).for_each(task);
        }
    });
}

/// C without any product.
fn fill(c: MatMut, start: Start) {
    for row in 0..c.rows {
        // SAFETY: a row of C, which is ours to write.
        let row = unsafe { std::slice::from_raw_parts_mut(c.data.add(row * c.row_stride), c.cols) };
        match start {
            Start::Zero => row.fill(0.0),
            Start::Bias(bias) => row.copy_from_slice(bias),
            Start::Keep => {}
        }
    }
}

/// Floating-point operations per second that the chosen kernel reaches from cached panels, on all threads
/// of the pool: the machine's peak as far as this program can use it. Takes about `seconds`.
pub fn measure_peak(precision: Precision, seconds: f64) -> f64 {
    let kernel = Kernel::choose(precision, usize::MAX, usize::MAX);
    rayon::broadcast(|_| peak(kernel, seconds)).iter().sum()
}

/// Of one kernel on this thread.
fn peak(kernel: Kernel, seconds: f64) -> f64 {
    let depth = KC;
    let per_call = 2.0 * (kernel.mr * kernel.nr * depth * kernel.a_format.per_word()) as f64;
    let (a_words, b_words) = (kernel.mr * depth, kernel.nr * depth);
    with_scratch(&OWN_SCRATCH, a_words + b_words, |panels| {
        let (a, b) = panels.split_at_mut(a_words);
        // Of the same bits as two bf16 or one f32 these are nothing out of the ordinary.
        a.fill(0.5);
        b.fill(0.25);
        let mut c = vec![0.0; MAX_MR * MAX_NR];
        let began = std::time::Instant::now();
        let mut calls = 0u64;
        while began.elapsed().as_secs_f64() < seconds {
            for _ in 0..64 {
                let tile = Tile {
                    c: c.as_mut_ptr(),
                    row_stride: kernel.nr,
                    rows: kernel.mr,
                    cols: kernel.nr,
                    start: Start::Zero,
                };
                // SAFETY: the panels and the tile have the kernel's sizes.
                unsafe { (kernel.run)(depth, a, b, tile) };
            }
            calls += 64;
        }
        std::hint::black_box(&c);
        calls as f64 * per_call / began.elapsed().as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    use super::mat::Data;
    use super::*;
    use crate::Tensor;
    use crate::blocks::half::{from_bf16, to_bf16};

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2654435761).wrapping_add(1);
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

    /// What a kernel multiplies.
    fn precision(kernel: &Kernel) -> Precision {
        if kernel.a_format == Format::F32 { Precision::F32 } else { Precision::Bf16 }
    }

    /// As it is multiplied.
    fn factor(precision: Precision, x: f32) -> f64 {
        match precision {
            Precision::F32 => x as f64,
            Precision::Bf16 => from_bf16(to_bf16(x)) as f64,
        }
    }

    fn at(precision: Precision, m: Mat, i: usize, j: usize) -> f64 {
        let Data::Floats { data, row_stride, col_stride } = m.data else { panic!("f32") };
        factor(precision, data[i * row_stride + j * col_stride])
    }

    /// Σ AᵢBᵢ in f64, one element.
    fn sum(precision: Precision, terms: &[Term], i: usize, j: usize) -> f64 {
        let product = |&(a, b): &Term| -> f64 {
            (0..a.cols).map(|k| at(precision, a, i, k) * at(precision, b, k, j)).sum()
        };
        terms.iter().map(product).sum()
    }

    #[test]
    fn every_kernel_shape_layout_and_start() {
        let shapes = [(1, 1, 1), (14, 32, 5), (15, 33, 385), (8, 96, 1300), (200, 16, 40), (333, 70, 12)];
        for (case, &(m, n, k)) in shapes.iter().enumerate() {
            let (a, at_) = (numbers(m * k, 1), numbers(m * k, 2));
            let (b, bt) = (numbers(k * n, 3), numbers(k * n, 4));
            let (thin_a, thin_b) = (numbers(m * 3, 5), numbers(3 * n, 6));
            let bias = numbers(n, 7);
            let terms = [
                (Mat::new(&a, m, k), Mat::new(&bt, n, k).t()),
                (Mat::new(&at_, k, m).t(), Mat::new(&b, k, n)),
                (Mat::new(&thin_a, m, 3), Mat::new(&thin_b, 3, n)),
            ];
            let products = BOTH.map(|precision| {
                (0..m * n).map(|at| sum(precision, &terms, at / n, at % n)).collect::<Vec<_>>()
            });
            let chosen = BOTH.map(|precision| Kernel::choose(precision, m, n));
            for kernel in kernel::available().into_iter().chain(chosen) {
                let products = &products[precision(&kernel) as usize];
                for start in [Start::Zero, Start::Bias(&bias), Start::Keep] {
                    let before = numbers(m * n, 8);
                    let mut c = before.clone();
                    run(kernel, MatMut::new(&mut c, m, n), start, 0.5, &terms, true, SHARED);
                    for (at, (&got, &product)) in c.iter().zip(products).enumerate() {
                        let from = match start {
                            Start::Zero => 0.0,
                            Start::Bias(bias) => bias[at % n],
                            Start::Keep => before[at],
                        };
                        let want = from as f64 + 0.5 * product;
                        let error = (got as f64 - want).abs();
                        let name = kernel.name;
                        assert!(error < 2e-4, "case {case}, {name}, element {at}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_apart_leave_the_gap_alone() {
        let (a, b) = (numbers(20 * 10, 1), numbers(10 * 8, 2));
        let mut c = vec![7.0; 20 * 24];
        matmul(
            Precision::F32,
            MatMut::strided(&mut c[8..], 20, 8, 24),
            Start::Zero,
            1.0,
            &[(Mat::new(&a, 20, 10), Mat::new(&b, 10, 8))],
        );
        for row in c.chunks(24) {
            assert!(row[..8].iter().chain(&row[16..]).all(|&x| x == 7.0));
            assert!(row[8..16].iter().all(|&x| x != 7.0));
        }
    }

    #[test]
    fn same_bits_whatever_the_threads() {
        let (m, n, k) = (500, 200, 900);
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let terms = [(Mat::new(&a, m, k), Mat::new(&b, k, n))];
        for precision in BOTH {
            let product = |threads: usize| {
                let mut c = vec![0.0; m * n];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| matmul(precision, MatMut::new(&mut c, m, n), Start::Zero, 1.0, &terms));
                c
            };
            let one = product(1);
            assert!(product(2) == one && product(5) == one);
            let mut alone = vec![0.0; m * n];
            matmul_local(precision, MatMut::new(&mut alone, m, n), Start::Zero, 1.0, &terms);
            assert!(alone == one);
        }
    }

    #[test]
    fn a_matrix_packed_before_gives_the_same_bits_in_both_directions() {
        // B is shared, then A; one block of k and several; columns for each of the kernels.
        let shapes = [(1, 1, 1), (300, 40, 33), (20, 90, 1300), (8, 2500, 64), (70, 16, 700)];
        for (m, output, input) in shapes {
            let tensor = Tensor::new(vec![output, input], numbers(output * input, 1));
            let w = Mat::new(&tensor, output, input);
            let (x, dy, z) = (numbers(m * input, 2), numbers(m * output, 3), numbers(m * 3, 4));
            let (x, dy, z) = (Mat::new(&x, m, input), Mat::new(&dy, m, output), Mat::new(&z, m, 3));
            let thin = numbers(3 * input.max(output), 5);
            let products = |kernel: Kernel, n: usize, terms: &[Term]| {
                [false, true].map(|parallel| {
                    let mut c = numbers(m * n, 6);
                    run(kernel, MatMut::new(&mut c, m, n), Start::Keep, 0.5, terms, parallel, SHARED);
                    c
                })
            };
            for kernel in kernel::available() {
                let packed = PackedMatrix::for_kernels(|_| kernel, &tensor);
                let packed = Mat::packed(&packed);
                for (a, b, packed, n) in [(x, w.t(), packed.t(), output), (dy, w, packed, input)] {
                    let thin = (z, Mat::new(&thin[..3 * n], 3, n));
                    let plain = products(kernel, n, &[(a, b), thin]);
                    let name = kernel.name;
                    assert!(products(kernel, n, &[(a, packed), thin]) == plain, "{m} x {n}, {name}");
                    assert!(plain[0] == plain[1]);
                }
            }
            for precision in BOTH {
                let packed = PackedMatrix::new(precision, &tensor);
                let packed = Mat::packed(&packed);
                for (a, plain, packed, n) in [(x, w.t(), packed.t(), output), (dy, w, packed, input)] {
                    let [plain, packed] = [plain, packed].map(|b| {
                        let mut c = vec![0.0; m * n];
                        matmul(precision, MatMut::new(&mut c, m, n), Start::Zero, 1.0, &[(a, b)]);
                        c
                    });
                    assert!(plain == packed, "{m} x {n}, {precision:?}");
                }
            }
        }
    }

    #[test]
    fn same_bits_however_much_is_packed_at_once() {
        let k = 1300;
        // B is shared, then A.
        for (m, n) in [(100, 40), (40, 100)] {
            let (a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 7));
            let (thin_a, thin_b) = (numbers(m * 3, 5), numbers(3 * n, 6));
            let starts = [Start::Zero, Start::Bias(&bias), Start::Keep];
            let kernels = BOTH.map(|precision| Kernel::choose(precision, m, n)).into_iter();
            for (kernel, start) in kernels.flat_map(|kernel| starts.map(|start| (kernel, start))) {
                let product = |limit: usize, parallel: bool| {
                    let mut c = numbers(m * n, 8);
                    let terms = [
                        (Mat::new(&a, m, k), Mat::new(&b, n, k).t()),
                        (Mat::new(&thin_a, m, 3), Mat::new(&thin_b, 3, n)),
                    ];
                    run(kernel, MatMut::new(&mut c, m, n), start, 1.0, &terms, parallel, limit);
                    c
                };
                let whole = product(SHARED, false);
                for limit in [1, KC * 14, KC * 32, KC * 70, 900 * 128] {
                    assert!(product(limit, false) == whole && product(limit, true) == whole, "{limit}");
                }
            }
        }
    }

    #[test]
    fn groups_cover_the_product_and_stay_below_the_limit() {
        let (a, b) = (vec![0.0; 900], vec![0.0; 900 * 100]);
        let terms = [(Mat::new(&a, 1, 900), Mat::new(&b, 900, 100))];
        let shared = Side { operand: Operand::B, extent: 100, height: 32, format: Format::F32, step: 1 };
        for limit in [KC * 32, KC * 70, KC * 150, SHARED] {
            let groups = groups(&terms, shared, limit);
            let size = |g: &Group| g.blocks.iter().map(|b| b.k.len()).sum::<usize>() * g.strips.len() * 32;
            assert!(groups.iter().all(|g| size(g) <= limit));
            assert_eq!(groups.iter().map(size).sum::<usize>(), 900 * 128);
        }
    }

    /// The panels of B of these columns' rows and k, as bits.
    fn panels(m: Mat, rows: Range<usize>, k: Range<usize>, kernel: Kernel) -> Vec<u32> {
        let (format, height) = (kernel.b_format, kernel.nr);
        let depth = k.len().div_ceil(format.per_word()).next_multiple_of(kernel.step);
        let mut out = vec![f32::NAN; rows.len().div_ceil(height) * height * depth];
        pack::pack(m, rows, k, 1.0, height, format, &mut out);
        out.iter().map(|x| x.to_bits()).collect()
    }

    /// What this machine packs for products in bf16.
    fn bf16_kernels() -> Vec<Kernel> {
        [(1000, 1000), (8, 1000), (1000, 16)].map(|(m, n)| Kernel::choose(Precision::Bf16, m, n)).into()
    }

    #[test]
    fn a_matrix_rounded_before_has_the_same_panels() {
        // Among the numbers: halves of a last place, denormal ones and such that rounding makes normal, and none.
        let odd =
            [0x3f80_8000, 0x3f81_8000, 1, 0x807f_ffff, 0x007f_8000, 0x8000_0000, 0x7f7f_ffff, 0xff80_0000];
        for (rows, cols) in [(1, 1), (14, 32), (16, 33), (45, 401), (70, 1100)] {
            let mut values = numbers(rows * cols, 3);
            for (value, odd) in values.iter_mut().step_by(7).zip(odd.into_iter().cycle()) {
                *value = f32::from_bits(odd);
            }
            let rounded = round(&Tensor::new(vec![rows, cols], values.clone()));
            let (floats, halves) = (Mat::new(&values, rows, cols), Mat::blocks(&rounded));
            for ((floats, halves), kernel) in [(floats, halves), (floats.t(), halves.t())]
                .into_iter()
                .flat_map(|m| bf16_kernels().into_iter().map(move |k| (m, k)))
            {
                let (rows, k) = (floats.rows, floats.cols);
                for (from, to) in [(0, k), (k / 2, k), (k / 3, k / 2)] {
                    let packed = |m| panels(m, rows / 3..rows, from..to, kernel);
                    let case = format!("{}: ({rows}, {k}) from {from}", kernel.name);
                    assert!(packed(floats) == packed(halves), "{case}");
                }
            }
        }
    }

    #[test]
    fn every_value_is_rounded_as_it_is_packed() {
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let bits = (0..=u16::MAX).flat_map(|upper| lower.map(|lower| u32::from(upper) << 16 | lower));
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        let cols = values.len() / 64;
        let rounded = round(&Tensor::new(vec![64, cols], values.clone()));
        for kernel in bf16_kernels() {
            let packed = |m| panels(m, 0..64, 0..cols, kernel);
            assert!(packed(Mat::new(&values, 64, cols)) == packed(Mat::blocks(&rounded)), "{}", kernel.name);
        }
    }

    #[test]
    fn kernels_agree() {
        // Every kernel this machine has gives the sum in f64 of the factors as its format has them, to rounding.
        let (m, n) = (32, 32);
        for (kernel, k) in kernel::available().into_iter().flat_map(|kernel| [(kernel, 100), (kernel, 77)]) {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let terms = [(Mat::new(&a, m, k), Mat::new(&b, k, n))];
            let Kernel { a_format, b_format, step, .. } = kernel;
            let depth = k.div_ceil(a_format.per_word()).next_multiple_of(step);
            let mut a_packed = vec![0.0; kernel.mr * depth];
            let mut b_packed = vec![0.0; kernel.nr * depth];
            let (rows, cols) = (kernel.mr.min(m), kernel.nr.min(n));
            pack::pack(terms[0].0, 0..rows, 0..k, 1.0, kernel.mr, a_format, &mut a_packed);
            pack::pack(terms[0].1.t(), 0..cols, 0..k, 1.0, kernel.nr, b_format, &mut b_packed);
            for (rows, cols) in [(rows, cols), (1, 1), (rows - 1, cols - 1)] {
                let mut c = vec![9.0; m * n];
                let tile = Tile { c: c.as_mut_ptr(), row_stride: n, rows, cols, start: Start::Zero };
                // SAFETY: panels are packed for this kernel, the tile lies in c.
                unsafe { (kernel.run)(depth, &a_packed, &b_packed, tile) };
                for (at, &got) in c.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let want = if i < rows && j < cols { sum(precision(&kernel), &terms, i, j) } else { 9.0 };
                    let name = kernel.name;
                    assert!(
                        (got as f64 - want).abs() < 1e-4,
                        "{name}, {a_format:?}: ({i}, {j}) {got} for {want}"
                    );
                }
            }
        }
    }
}
