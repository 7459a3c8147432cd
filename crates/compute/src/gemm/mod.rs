//! Matrix products: C = start + scale · Σ AᵢBᵢ over one or several terms, of f32 or of operands
//! rounded to bf16; sums are f32.
//!
//! Every element of C is one chain of additions over k, cut at places that only k decides and
//! always in the same order. How tiles are distributed over threads therefore does not affect
//! results.
//!
//! Both operands are packed into panels before they are multiplied (Goto and van de Geijn 2008), so
//! any strides are possible: a transposed matrix is a `Mat` with its strides swapped. The smaller
//! operand is packed first, by all threads, and shared; each task then packs a part of the other
//! one, as much as its cache holds, and multiplies it with all that is shared. A frozen B can be
//! packed once, before all products. Blocks of few bits are widened as they are packed, so no whole
//! f32 copy of such a matrix exists. Several terms share one pass over C: that is how a LoRA's thin
//! product joins the wide one of its layer.

#[cfg(target_arch = "x86_64")]
mod amx;
mod choose;
mod few;
mod kernel;
mod mat;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod packed;
pub(crate) mod panels;
mod round;
#[cfg(test)]
mod tests;
mod work;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::AlignedBuffer;

pub use choose::instructions;
pub(crate) use few::add_rows;
pub(crate) use few::matmul_few_local;
pub use few::{FEW_ROWS, matmul_few};
use kernel::{Kernel, MAX_MR, MAX_NR, STREAMED, Sizes, Tile};
use mat::Data;
pub use mat::{Mat, MatMut};
use pack::Format;
pub use packed::PackedMatrix;
pub use round::round;
pub use work::work;

/// Words of the shared operand that are packed at a time, about: 4 MiB, which stay in the third-level
/// cache.
const SHARED: usize = 1 << 20;
/// Strips of the shared operand that a task packs.
const TOGETHER: usize = 4;
/// Below this number of multiplications a product runs on the calling thread.
const SMALL: usize = 1 << 16;

/// The type in which operands are multiplied; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Each factor rounded to the nearest bf16.
    Bf16,
}

impl Precision {
    /// Bytes of a factor.
    pub const fn bytes(self) -> usize {
        match self {
            Precision::F32 => size_of::<f32>(),
            Precision::Bf16 => size_of::<u16>(),
        }
    }
}

/// The contents of C before the products are added.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// The same row in every row: a linear layer's bias, (cols).
    Bias(&'a [f32]),
    /// What is there.
    Keep,
}

/// One product: A (m, k) times B (k, n).
pub type Term<'a> = (Mat<'a>, Mat<'a>);

/// C = start + scale · Σ AᵢBᵢ, on all threads.
pub fn matmul(precision: Precision, c: MatMut, start: Start, scale: f32, terms: &[Term]) {
    let kernel = Kernel::choose(precision, c.rows, c.cols);
    run(kernel, c, start, scale, terms, true, SHARED);
}

thread_local! {
    static OWN_SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::EMPTY) };
    static SHARED_SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::EMPTY) };
}

/// Approximate most bytes of packed panels that `threads` threads keep after products (m, k) by (k,
/// n), which `callers` of them call; with `packed`, B is packed before.
pub fn scratch_bytes(
    callers: usize,
    threads: usize,
    (m, n, k): (usize, usize, usize),
    packed: bool,
) -> usize {
    let b = if packed { 0 } else { n };
    let (shared, own) = if m <= n { (m, b) } else { (b, m) };
    let most = Kernel::choose(Precision::Bf16, usize::MAX, usize::MAX).sizes.own;
    size_of::<f32>() * (callers * (shared * k).min(SHARED) + threads * (own * k).min(most))
}

/// Hands `f` a buffer of `len` floats that the thread keeps from call to call, at the start of a
/// cache line: loads of whole lines from panels then touch one each. The buffer is taken out
/// meanwhile, so a nested call gets one of its own.
fn with_scratch<R>(
    slot: &'static std::thread::LocalKey<Cell<AlignedBuffer>>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut buffer = slot.take();
    if buffer.len() < len {
        buffer = AlignedBuffer::new(len);
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

/// An operand as it is packed: strips of `height` of A's rows or of B's columns, `extent` of them
/// in all.
#[derive(Clone, Copy, PartialEq)]
struct Side {
    operand: Operand,
    extent: usize,
    height: usize,
    format: Format,
    /// Words that the depth of a panel is a multiple of.
    step: usize,
    sizes: Sizes,
}

impl Side {
    /// A B of this many columns.
    fn columns(kernel: &Kernel, extent: usize) -> Self {
        let &Kernel { nr: height, b_format: format, step, sizes, .. } = kernel;
        Side { operand: Operand::B, extent, height, format, step, sizes }
    }

    fn strips(self) -> usize {
        self.extent.div_ceil(self.height)
    }

    /// The rows or columns of these strips.
    fn range(self, strips: Range<usize>) -> Range<usize> {
        strips.start * self.height..(strips.end * self.height).min(self.extent)
    }

    /// Words that this many k are packed in.
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

    /// How deep the blocks are into which `k` is cut: about equal ones, for C is read and written
    /// once for each, in multiples of 32, so that runs of quantized values stay whole. Not 0, even
    /// where k is.
    fn block_depth(self, k: usize) -> usize {
        let blocks = k.div_ceil(self.sizes.depth * self.format.per_word()).max(1);
        k.div_ceil(blocks).next_multiple_of(32).max(32)
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

/// Cuts a product into groups of about `limit` words of the packed shared operand. Blocks of k stay
/// in their order for every strip, so the cut cannot change a bit of the result.
fn groups<'a>(terms: &[Term<'a>], shared: Side, limit: usize) -> Vec<Group<'a>> {
    let all = shared.strips();
    // Where a matrix was packed before, only thin ones are left to be packed beside it.
    let packed_before = terms.iter().any(|term| shared.is_packed(term));
    let each = if packed_before { all } else { (limit / (shared.sizes.depth * shared.height)).clamp(1, all) };
    let mut groups = Vec::new();
    // Where all strips of a block of k fit, the other operand is packed only once.
    for from in (0..all).step_by(each) {
        let strips = from..(from + each).min(all);
        let mut blocks: Vec<KBlock> = Vec::new();
        let (mut packed, mut first) = (0, true);
        for term in terms {
            let &(a, b) = term;
            let depth = shared.block_depth(a.cols);
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
    let Kernel { mr: height, a_format: format, step, sizes, .. } = kernel;
    let rows = Side { operand: Operand::A, extent: m, height, format, step, sizes };
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
        multiply(&c, start, scale, kernel, group, [shared, own], parallel);
    }
}

/// One group's part of the product.
fn multiply(
    c: &MatMut,
    start: Start,
    scale: f32,
    kernel: Kernel,
    group: &Group,
    [shared, own]: [Side; 2],
    parallel: bool,
) {
    let (blocks, strips) = (&group.blocks, group.strips.len());
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let unpacked = |block: &&KBlock| shared.packed(block, 0..0).is_none();
    let depth: usize = blocks.iter().filter(unpacked).map(|b| b.depth).sum();
    let deepest = blocks.iter().map(|b| b.depth).max().unwrap_or(0);
    // Parts of a task's own operand that differ by one strip at most, as many for every thread.
    let wanted = if parallel { 2 * threads } else { 1 };
    let parts = (own.strips() * deepest * own.height).div_ceil(own.sizes.own).max(wanted);
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
                                // SAFETY: a row and a column of C, inside it by the check of its
                                // extent.
                                c: unsafe { to.at(rows.start * stride + columns.start) },
                                row_stride: stride,
                                rows: rows.len(),
                                cols: columns.len(),
                                start: match (number, start) {
                                    (0, Start::Zero) => Start::Zero,
                                    (0, Start::Bias(bias)) => Start::Bias(&bias[columns]),
                                    _ => Start::Keep,
                                },
                                passing: Some(own.operand),
                            };
                            // SAFETY: a and b are packed panels of this kernel's sizes, and no
                            // other task has these rows in these columns of C, which we borrowed
                            // mutably.
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

/// Floating-point operations per second that the chosen kernel reaches with cached panels, on all
/// threads of the pool: the peak of the machine for this program. Takes about `seconds`.
pub fn measure_peak(precision: Precision, seconds: f64) -> f64 {
    let kernel = Kernel::choose(precision, usize::MAX, usize::MAX);
    rayon::broadcast(|_| peak(kernel, seconds)).iter().sum()
}

/// Of one kernel on this thread.
fn peak(kernel: Kernel, seconds: f64) -> f64 {
    let depth = STREAMED.depth;
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
                    passing: None,
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
