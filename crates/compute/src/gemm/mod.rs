//! Matrix products: C = start + scale · Σ AᵢBᵢ over one or more terms. Operands are f32 or rounded
//! to bf16; sums are f32.
//!
//! Each element of C is summed over blocks of k in a fixed order. The blocks depend only on k and
//! the kernel, so results do not depend on how tiles are distributed over threads.
//!
//! Both operands are packed into panels before they are multiplied (Goto and van de Geijn 2008), so
//! any strides are possible: a transposed matrix is a `Mat` with its strides swapped. All threads
//! pack the smaller operand first and share it. Each task then packs a part of the larger operand
//! that fits its cache, and multiplies it with the shared panels. A frozen B can be packed once,
//! ahead of all products ([`PackedMatrix`]). Quantized blocks are widened as they are packed, so no
//! whole f32 copy of the matrix exists. Several terms share one pass over C: this adds a LoRA's
//! low-rank product to the product of its layer.

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
use crate::output_slice::OutputSlice;

pub use choose::instructions;
pub(crate) use few::add_rows;
pub(crate) use few::matmul_few_local;
pub use few::{FEW_ROWS, matmul_few};
use kernel::{BlockSizes, DEFAULT_SIZES, Kernel, MAX_MR, MAX_NR, Tile};
use mat::Data;
pub use mat::{Mat, MatMut};
use pack::Format;
pub use packed::PackedMatrix;
pub use round::round;
pub use work::work;

/// Approximate number of words of the shared operand packed at a time: 4 MiB, which stay in the L3
/// cache.
const SHARED_WORDS: usize = 1 << 20;
/// Strips that one packing task packs.
const STRIPS_PER_TASK: usize = 4;
/// Maximum number of multiplications of a product that runs on the calling thread alone.
const MAX_SERIAL_WORK: usize = 1 << 16;

/// The type in which operands are multiplied; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Each factor rounded to the nearest bf16.
    Bf16,
}

impl Precision {
    /// Bytes of one element of an operand.
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
    /// This row, (cols), in every row of C: a linear layer's bias.
    Bias(&'a [f32]),
    /// The previous contents of C.
    Keep,
}

/// One product: A (m, k) times B (k, n).
pub type Term<'a> = (Mat<'a>, Mat<'a>);

/// C = start + scale · Σ AᵢBᵢ, on all threads.
pub fn matmul(precision: Precision, c: MatMut, start: Start, scale: f32, terms: &[Term]) {
    let kernel = Kernel::choose(precision, c.rows, c.cols);
    run(kernel, c, start, scale, terms, true, SHARED_WORDS);
}

thread_local! {
    static OWN_SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::EMPTY) };
    static SHARED_SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::EMPTY) };
}

/// Approximate upper bound in bytes on the packing buffers that `threads` threads keep between
/// calls, when `callers` of them run products (m, k) by (k, n). With `packed`, B is packed ahead.
pub fn scratch_bytes(
    callers: usize,
    threads: usize,
    (m, n, k): (usize, usize, usize),
    packed: bool,
) -> usize {
    let b = if packed { 0 } else { n };
    let (shared, own) = if m <= n { (m, b) } else { (b, m) };
    let most = Kernel::choose(Precision::Bf16, usize::MAX, usize::MAX).sizes.own_words;
    size_of::<f32>() * (callers * (shared * k).min(SHARED_WORDS) + threads * (own * k).min(most))
}

/// Calls `f` with a buffer of `len` floats that the thread keeps between calls. The buffer starts
/// at a cache line, so that a 64-byte load from a panel touches only one. It is taken out of its
/// slot during the call, so a nested call gets a buffer of its own.
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

/// How an operand is packed: its `extent` rows (A) or columns (B), in strips of `height`.
#[derive(Clone, Copy, PartialEq)]
struct Side {
    operand: Operand,
    extent: usize,
    height: usize,
    format: Format,
    /// The depth of a panel is a multiple of this number of words.
    step: usize,
    sizes: BlockSizes,
}

impl Side {
    /// Describes a B with `extent` columns.
    fn columns(kernel: &Kernel, extent: usize) -> Self {
        let &Kernel { nr: height, b_format: format, step, sizes, .. } = kernel;
        Side { operand: Operand::B, extent, height, format, step, sizes }
    }

    fn strips(self) -> usize {
        self.extent.div_ceil(self.height)
    }

    /// Returns the rows (A) or columns (B) of these strips.
    fn range(self, strips: Range<usize>) -> Range<usize> {
        strips.start * self.height..(strips.end * self.height).min(self.extent)
    }

    /// Returns the depth in words of a panel of `k` values of k.
    fn words(self, k: usize) -> usize {
        k.div_ceil(self.format.per_word()).next_multiple_of(self.step)
    }

    /// Returns the size of a panel in words.
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

    /// Returns the depth of the blocks into which `k` is split, never 0. C is read and written once
    /// per block, so blocks are few and about equal. The depth is a multiple of 32, so that blocks
    /// of 32 quantized values stay whole.
    fn block_depth(self, k: usize) -> usize {
        let blocks = k.div_ceil(self.sizes.depth * self.format.per_word()).max(1);
        k.div_ceil(blocks).next_multiple_of(32).max(32)
    }

    /// Returns the panels of these strips if the operand is a [`PackedMatrix`].
    fn packed<'a>(self, block: &KBlock<'a>, strips: Range<usize>) -> Option<&'a [f32]> {
        match (self.operand, block.b.data) {
            (Operand::B, Data::Packed { matrix, transposed }) => {
                Some(matrix.panels(transposed, self, block, strips))
            }
            _ => None,
        }
    }

    /// Returns whether this operand is a [`PackedMatrix`] in a term whose B is `b`.
    fn is_packed(self, b: &Mat) -> bool {
        self.operand == Operand::B && matches!(b.data, Data::Packed { .. })
    }
}

/// A block of the k dimension of one term.
struct KBlock<'a> {
    a: Mat<'a>,
    b: Mat<'a>,
    k: Range<usize>,
    /// Depth of its panels in words.
    depth: usize,
}

/// A part of the product whose panels of the shared operand are packed at once, and then
/// multiplied.
struct Group<'a> {
    blocks: Vec<KBlock<'a>>,
    /// Whether these are the first blocks of k, before which C holds `start`.
    first: bool,
    /// Strips of the shared operand.
    strips: Range<usize>,
}

/// Splits a product into groups whose packed shared operand takes about `limit` words each. Every
/// strip sees the blocks of k in the same order, so the split does not affect results.
fn groups<'a>(terms: &[Term<'a>], shared: Side, limit: usize) -> Vec<Group<'a>> {
    let all = shared.strips();
    // If one term's B is packed already, the other terms are thin, so all strips are packed at
    // once.
    let packed_before = terms.iter().any(|(_, b)| shared.is_packed(b));
    let each = if packed_before { all } else { (limit / (shared.sizes.depth * shared.height)).clamp(1, all) };
    let mut groups = Vec::new();
    // If all strips of a block of k fit into a group, the other operand is packed only once.
    for from in (0..all).step_by(each) {
        let strips = from..(from + each).min(all);
        let mut blocks: Vec<KBlock> = Vec::new();
        let (mut packed, mut first) = (0, true);
        for &(a, b) in terms {
            let depth = shared.block_depth(a.cols);
            for from in (0..a.cols).step_by(depth) {
                let k = from..(from + depth).min(a.cols);
                let words = shared.words(k.len());
                let size = if shared.is_packed(&b) { 0 } else { words * strips.len() * shared.height };
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

fn run(
    kernel: Kernel,
    mut c: MatMut,
    start: Start,
    scale: f32,
    terms: &[Term],
    parallel: bool,
    limit: usize,
) {
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
    let parallel = parallel && work > MAX_SERIAL_WORK && rayon::current_num_threads() > 1;
    for group in &groups {
        let start = if group.first { start } else { Start::Keep };
        multiply(&mut c, start, scale, kernel, group, [shared, own], parallel);
    }
}

/// Computes one group's part of the product.
fn multiply(
    c: &mut MatMut,
    start: Start,
    scale: f32,
    kernel: Kernel,
    group: &Group,
    [shared, own]: [Side; 2],
    parallel: bool,
) {
    let (blocks, strips) = (&group.blocks, group.strips.len());
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let unpacked = blocks.iter().filter(|block| !shared.is_packed(&block.b));
    let depth: usize = unpacked.map(|block| block.depth).sum();
    let deepest = blocks.iter().map(|block| block.depth).max().unwrap_or(0);
    // Split the own operand into parts that differ by at most one strip. Their number is a multiple
    // of the number of threads, unless there are too few strips.
    let wanted = if parallel { 2 * threads } else { 1 };
    let own_parts = (own.strips() * deepest * own.height).div_ceil(own.sizes.own_words).max(wanted);
    let own_parts = own_parts.next_multiple_of(threads).min(own.strips());
    // If there are too few parts to occupy all threads, split the shared operand as well.
    let shared_parts = wanted.div_ceil(own_parts).min(strips);

    with_scratch(&SHARED_SCRATCH, depth * strips * shared.height, |packed| {
        pack_shared(shared, group, scale, packed, parallel);
        let packed = &*packed;
        let to = OutputSlice::new(c.data, c.row_stride);
        let task = |task: usize| {
            let (own_part, shared_part) = (task / shared_parts, task % shared_parts);
            let own_strips = nth_part(own.strips(), own_part, own_parts);
            let shared_strips = nth_part(strips, shared_part, shared_parts);
            let mut rest = packed;
            for (number, block) in blocks.iter().enumerate() {
                let start = if number == 0 { start } else { Start::Keep };
                let panel = shared.panel(block);
                let shared_panels = shared.packed(block, group.strips.clone()).unwrap_or_else(|| {
                    let all;
                    (all, rest) = rest.split_at(panel * strips);
                    all
                });
                let shared_panels = StripPanels {
                    side: shared,
                    strips: group.strips.start + shared_strips.start..group.strips.start + shared_strips.end,
                    words: &shared_panels[panel * shared_strips.start..panel * shared_strips.end],
                };
                let multiply = |words: &[f32]| {
                    let own_panels = StripPanels { side: own, strips: own_strips.clone(), words };
                    // SAFETY: the panels were packed for this kernel. Strips are inside C, whose
                    // extent was checked when `c` was made and which is borrowed mutably. No other
                    // task has the same strips of both operands.
                    unsafe { multiply_block(kernel, to, start, block, &shared_panels, &own_panels) };
                };
                match own.packed(block, own_strips.clone()) {
                    Some(words) => multiply(words),
                    None => with_scratch(&OWN_SCRATCH, own_strips.len() * own.panel(block), |words| {
                        own.pack(block, own_strips.clone(), scale, words);
                        multiply(words);
                    }),
                }
            }
        };
        let tasks = own_parts * shared_parts;
        if parallel {
            (0..tasks).into_par_iter().with_max_len(1).for_each(task);
        } else {
            (0..tasks).for_each(task);
        }
    });
}

/// Returns part `number` of `parts` about equal parts of 0..`count`.
pub(crate) fn nth_part(count: usize, number: usize, parts: usize) -> Range<usize> {
    number * count / parts..(number + 1) * count / parts
}

/// Splits the panels of `strips` into parts of `STRIPS_PER_TASK` strips, one for each task.
fn pack_jobs(
    strips: Range<usize>,
    panel: usize,
    out: &mut [f32],
) -> impl Iterator<Item = (Range<usize>, &mut [f32])> {
    let end = strips.end;
    let parts = strips.step_by(STRIPS_PER_TASK).zip(out.chunks_mut(panel * STRIPS_PER_TASK));
    parts.map(move |(first, out)| (first..(first + STRIPS_PER_TASK).min(end), out))
}

/// Packs the shared operand's strips of a group into `out`, one block of k after the other. Leaves
/// out blocks that are packed already.
fn pack_shared(shared: Side, group: &Group, scale: f32, out: &mut [f32], parallel: bool) {
    let strips = &group.strips;
    let mut rest = out;
    let mut jobs = Vec::new();
    for block in group.blocks.iter().filter(|block| !shared.is_packed(&block.b)) {
        let panel = shared.panel(block);
        let (out, tail) = rest.split_at_mut(panel * strips.len());
        rest = tail;
        jobs.extend(pack_jobs(strips.clone(), panel, out).map(|(strips, out)| (block, strips, out)));
    }
    let pack =
        |(block, strips, out): (&KBlock, Range<usize>, &mut [f32])| shared.pack(block, strips, scale, out);
    if parallel {
        jobs.into_par_iter().for_each(pack);
    } else {
        jobs.into_iter().for_each(pack);
    }
}

/// The panels of consecutive strips of an operand in one block of k.
struct StripPanels<'a> {
    side: Side,
    strips: Range<usize>,
    words: &'a [f32],
}

impl StripPanels<'_> {
    /// Iterates over the strips: the rows (A) or columns (B) of each, and its panel.
    #[inline(always)]
    fn iter(&self, block: &KBlock) -> impl Iterator<Item = (Range<usize>, &[f32])> {
        let panels = self.words.chunks(self.side.panel(block));
        self.strips.clone().zip(panels).map(|(strip, panel)| (self.side.range(strip..strip + 1), panel))
    }
}

/// Multiplies the panels of one block of k, tile by tile: each shared panel with every own panel.
///
/// # Safety
/// The panels are packed for this kernel, and their strips are inside C. No one else accesses these
/// rows and columns of C.
#[inline(always)]
unsafe fn multiply_block(
    kernel: Kernel,
    c: OutputSlice,
    start: Start,
    block: &KBlock,
    shared: &StripPanels,
    own: &StripPanels,
) {
    for (shared_range, shared_panel) in shared.iter(block) {
        for (own_range, own_panel) in own.iter(block) {
            let (a, b, rows, columns) = match own.side.operand {
                Operand::A => (own_panel, shared_panel, own_range, shared_range.clone()),
                Operand::B => (shared_panel, own_panel, shared_range.clone(), own_range),
            };
            let tile = Tile {
                // SAFETY: the caller promises that the strips are inside C.
                c: unsafe { c.at(rows.start, columns.start) },
                row_stride: c.stride,
                rows: rows.len(),
                cols: columns.len(),
                start: match start {
                    Start::Bias(bias) => Start::Bias(&bias[columns]),
                    start => start,
                },
                streamed: Some(own.side.operand),
            };
            // SAFETY: the caller promises the panels' format and sole access to the tile.
            unsafe { (kernel.run)(block.depth, a, b, tile) };
        }
    }
}

/// Sets C to `start`, for a product without terms or with k = 0.
fn fill(c: MatMut, start: Start) {
    for row in 0..c.rows {
        let row = &mut c.data[row * c.row_stride..][..c.cols];
        match start {
            Start::Zero => row.fill(0.0),
            Start::Bias(bias) => row.copy_from_slice(bias),
            Start::Keep => {}
        }
    }
}

/// Returns the floating-point operations per second that the chosen kernel reaches on cached
/// panels, summed over all threads of the pool: the peak of the machine for this program. Takes
/// about `seconds`.
pub fn measure_peak(precision: Precision, seconds: f64) -> f64 {
    let kernel = Kernel::choose(precision, usize::MAX, usize::MAX);
    rayon::broadcast(|_| peak(kernel, seconds)).iter().sum()
}

/// Measures one kernel on the calling thread.
fn peak(kernel: Kernel, seconds: f64) -> f64 {
    let depth = DEFAULT_SIZES.depth;
    let per_call = 2.0 * (kernel.mr * kernel.nr * depth * kernel.a_format.per_word()) as f64;
    let (a_words, b_words) = (kernel.mr * depth, kernel.nr * depth);
    with_scratch(&OWN_SCRATCH, a_words + b_words, |panels| {
        let (a, b) = panels.split_at_mut(a_words);
        // Read as two bf16, these bits are 0 and 0.5, or 0 and 0.25: ordinary values in either
        // format.
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
                    streamed: None,
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
