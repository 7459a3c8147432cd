//! Micro-kernels: each computes a tile of C from a packed panel of A and a packed panel of B.
//!
//! A kernel of MR × NR keeps its whole tile in registers. For each word of depth it loads one row
//! of the B panel, broadcasts MR words of the A panel and does MR · NR multiply-adds, or twice as
//! many if a word holds two bf16.

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::pack::Format;
use super::{Operand, Precision, Start};
#[cfg(target_arch = "x86_64")]
use crate::cpu::has_amx;
use crate::cpu::{Level, has_bf16, level};

/// Rows and columns of the largest tile of any kernel.
pub const MAX_MR: usize = 32;
pub const MAX_NR: usize = 32;

/// The tile of C that a call of a kernel writes: of the kernel's size, or smaller at the edges of
/// C.
pub struct Tile<'a> {
    pub c: *mut f32,
    pub row_stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub start: Start<'a>,
    /// The operand that streams past: its panel changes with the next tile, while the panel of the
    /// other operand is used again.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for AMX"))]
    pub streamed: Option<Operand>,
}

/// A kernel and the size of its tile.
#[derive(Clone, Copy)]
pub struct Kernel {
    #[cfg(test)]
    pub name: &'static str,
    pub mr: usize,
    pub nr: usize,
    /// Formats of the panels of A and of B.
    pub a_format: Format,
    pub b_format: Format,
    /// The depth of a panel is a multiple of this number of words.
    pub step: usize,
    /// Sizes of blocks, chosen for the caches.
    pub sizes: BlockSizes,
    /// Computes a tile from (depth in words, A panel of depth · mr words, B panel of depth · nr
    /// words, tile). Safety: the panels have these sizes; the tile is inside a matrix, and no one
    /// else accesses its elements.
    pub run: unsafe fn(usize, &[f32], &[f32], Tile),
}

/// Sizes of the blocks that a kernel's products pack, in words. A word is an f32 or two bf16 of
/// consecutive k.
#[derive(Clone, Copy, PartialEq)]
pub struct BlockSizes {
    /// Maximum depth of a block of k.
    pub depth: usize,
    /// Words of its own operand that a task packs at a time; they stay in the L2 cache.
    pub own_words: usize,
}

/// Panels stream from the L2 cache: a panel of B takes at most 72 KiB, a task's own operand 384
/// KiB.
pub const DEFAULT_SIZES: BlockSizes = BlockSizes { depth: 576, own_words: 96 << 10 };

/// The shape of C for which a kernel is made.
#[derive(Clone, Copy)]
pub enum Shape {
    Wide,
    /// As few rows as the rank: the gradients of A and B.
    Flat,
    /// As few columns as the rank: x Aᵀ.
    Tall,
}

/// Rows and columns of the tile of kernels that read A at any strides.
pub const STRIDED: [usize; 2] = [8, 32];

/// Strides of A in words: word j of row i is at i · `row` + j · `k`.
#[derive(Clone, Copy)]
pub struct Strides {
    pub row: usize,
    pub k: usize,
}

/// A kernel for operands that their owner packs, because it multiplies them more than once.
#[derive(Clone, Copy)]
pub struct PanelKernel {
    /// Format of A, whose words may have any strides, except in `Format::AmxTiles`.
    pub a_format: Format,
    /// Format of the panels of B.
    pub b_format: Format,
    /// The depth of an operand is a multiple of this number of words.
    pub step: usize,
    /// Rows of A that a call multiplies.
    pub rows: usize,
    /// Computes a tile from (depth in words, A from the first word of the tile's rows on, strides
    /// of A, B panel of depth · `STRIDED[1]` words, tile). Safety: the tile is inside a matrix, and
    /// no one else accesses its elements.
    pub run: unsafe fn(usize, &[f32], Strides, &[f32], Tile),
}

impl PanelKernel {
    /// Returns the kernel for this machine.
    pub fn choose(precision: Precision) -> Self {
        match precision {
            Precision::F32 => PanelKernel::strided(Format::F32),
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 if has_amx() => amx::PANELS,
            Precision::Bf16 if has_bf16() => PanelKernel::strided(Format::Pairs),
            Precision::Bf16 => PanelKernel::strided(Format::Rounded),
        }
    }

    /// Returns the best kernel in this format for A at any strides.
    fn strided(format: Format) -> Self {
        let run = match (level(), format) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Format::Pairs) => avx512::bf16_strided,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, _) => avx512::f32_strided,
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => avx2::strided,
            #[cfg(target_arch = "aarch64")]
            (Level::Neon, Format::Pairs) => neon::bf16_strided,
            #[cfg(target_arch = "aarch64")]
            (Level::Neon, _) => neon::f32_strided,
            _ => portable_strided,
        };
        PanelKernel { run, ..PanelKernel::portable(format) }
    }

    const fn portable(format: Format) -> Self {
        let run = portable_strided;
        PanelKernel { a_format: format, b_format: format, step: 1, rows: STRIDED[0], run }
    }

    /// Returns all kernels that this machine can run.
    #[cfg(test)]
    pub fn available() -> Vec<Self> {
        let mut all = vec![PanelKernel::portable(Format::F32), PanelKernel::portable(Format::Rounded)];
        #[cfg(target_arch = "x86_64")]
        {
            if level() >= Level::Avx2 {
                all.push(PanelKernel { run: avx2::strided, ..all[0] });
            }
            if level() >= Level::Avx512 {
                all.push(PanelKernel { run: avx512::f32_strided, ..all[0] });
            }
            if has_bf16() {
                all.push(PanelKernel::strided(Format::Pairs));
                all.push(amx::panels_by_definition());
            }
            if has_amx() {
                all.push(amx::PANELS);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.push(PanelKernel::strided(Format::F32));
            if has_bf16() {
                all.push(PanelKernel::strided(Format::Pairs));
            }
        }
        all
    }
}

/// Panics unless A holds `depth` words of every row, and B a whole panel.
pub fn check_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32]) {
    let [rows, cols] = STRIDED;
    assert!(depth > 0 && (rows - 1) * strides.row + (depth - 1) * strides.k < a.len());
    assert!(b.len() >= depth * cols);
}

/// Kernel without intrinsics, left to the compiler to vectorise.
pub const PORTABLE: Kernel = Kernel {
    #[cfg(test)]
    name: "portable 4 × 16",
    mr: 4,
    nr: 16,
    a_format: Format::F32,
    b_format: Format::F32,
    step: 1,
    sizes: DEFAULT_SIZES,
    run: portable,
};

/// # Safety
/// As for `Kernel::run`.
unsafe fn portable(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    let sum = portable_block(depth, a, Strides { row: 1, k: 4 }, b, 16);
    // SAFETY: the caller promises that the tile is inside C.
    unsafe { store_part(&tile, sum.as_flattened(), 16) };
}

/// # Safety
/// The tile is inside a matrix, and no one else accesses its elements.
unsafe fn portable_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
    check_strided(depth, a, strides, b);
    let mut whole = [0.0; STRIDED[0] * STRIDED[1]];
    for (i, j) in [(0, 0), (0, 16), (4, 0), (4, 16)] {
        let sum = portable_block(depth, &a[i * strides.row..], strides, &b[j..], STRIDED[1]);
        for (row, sum) in sum.iter().enumerate() {
            whole[(i + row) * STRIDED[1] + j..][..16].copy_from_slice(sum);
        }
    }
    // SAFETY: the caller promises that the tile is inside C.
    unsafe { store_part(&tile, &whole, STRIDED[1]) };
}

/// Returns four rows of A times 16 columns of B, whose rows are `width` apart.
fn portable_block(depth: usize, a: &[f32], strides: Strides, b: &[f32], width: usize) -> [[f32; 16]; 4] {
    let mut sum = [[0.0f32; 16]; 4];
    for k in 0..depth {
        let b = &b[k * width..][..16];
        for (i, sum) in sum.iter_mut().enumerate() {
            let a = a[i * strides.row + k * strides.k];
            for (s, &b) in sum.iter_mut().zip(b) {
                *s += a * b;
            }
        }
    }
    sum
}

/// Writes C = start + sum to the part of a tile that is inside C. `sum` is the tile in full, in
/// rows of `width`.
///
/// # Safety
/// The tile is inside a matrix, and no one else accesses its elements.
pub unsafe fn store_part(tile: &Tile, sum: &[f32], width: usize) {
    for i in 0..tile.rows {
        for j in 0..tile.cols {
            // SAFETY: the element is inside the tile.
            let c = unsafe { &mut *tile.c.add(i * tile.row_stride + j) };
            let from = match tile.start {
                Start::Zero => 0.0,
                Start::Bias(bias) => bias[j],
                Start::Keep => *c,
            };
            *c = from + sum[i * width + j];
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx512 {
    use super::{DEFAULT_SIZES, Format, Kernel, STRIDED, Shape, Start, Strides, Tile, check_strided};
    use std::arch::x86_64::*;

    macro_rules! kernel {
        ($name:literal, $mr:literal, $vectors:literal, $format:ident, $run:ident) => {
            Kernel {
                #[cfg(test)]
                name: $name,
                mr: $mr,
                nr: 16 * $vectors,
                a_format: Format::$format,
                b_format: Format::$format,
                step: 1,
                sizes: DEFAULT_SIZES,
                run: $run::<$mr, $vectors>,
            }
        };
    }

    /// The wide kernel has 28 accumulators. Each step, with 2 loads and 14 broadcasts, is bound by
    /// arithmetic.
    pub fn f32(shape: Shape) -> Kernel {
        match shape {
            Shape::Wide => kernel!("avx512 14 × 32", 14, 2, F32, f32_kernel),
            Shape::Flat => kernel!("avx512 8 × 32", 8, 2, F32, f32_kernel),
            Shape::Tall => kernel!("avx512 14 × 16", 14, 1, F32, f32_kernel),
        }
    }

    pub fn bf16(shape: Shape) -> Kernel {
        match shape {
            Shape::Wide => kernel!("avx512 bf16 14 × 32", 14, 2, Pairs, bf16_kernel),
            Shape::Flat => kernel!("avx512 bf16 8 × 32", 8, 2, Pairs, bf16_kernel),
            Shape::Tall => kernel!("avx512 bf16 14 × 16", 14, 1, Pairs, bf16_kernel),
        }
    }

    /// # Safety
    /// As for `Kernel::run`; the processor has AVX-512F.
    #[target_feature(enable = "avx512f")]
    unsafe fn f32_kernel<const MR: usize, const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        assert!(a.len() >= depth * MR && b.len() >= depth * NV * 16);
        // SAFETY: the caller's promise; the assertion checked the panels' sizes.
        unsafe { fitting::<MR, NV, false>(depth, a, b, tile) }
    }

    /// # Safety
    /// As for `Kernel::run`; the processor has AVX-512F and BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16_kernel<const MR: usize, const NV: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        assert!(a.len() >= depth * MR && b.len() >= depth * NV * 16);
        // SAFETY: the caller's promise; the assertion checked the panels' sizes.
        unsafe { fitting::<MR, NV, true>(depth, a, b, tile) }
    }

    /// # Safety
    /// The tile is inside a matrix, and no one else accesses its elements; the processor has
    /// AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn f32_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
        check_strided(depth, a, strides, b);
        // SAFETY: the caller's promise; the operands' sizes were checked above.
        unsafe { kernel::<{ STRIDED[0] }, { STRIDED[1] / 16 }, false>(depth, a, strides, b, tile) }
    }

    /// # Safety
    /// As for `f32_strided`; the processor has BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn bf16_strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
        check_strided(depth, a, strides, b);
        // SAFETY: the caller's promise; the operands' sizes were checked above.
        unsafe { kernel::<{ STRIDED[0] }, { STRIDED[1] / 16 }, true>(depth, a, strides, b, tile) }
    }

    /// Returns sum + a · b; with PAIRS, adds the products of both bf16 of each word.
    ///
    /// # Safety
    /// The processor has AVX-512F, and BF16 with PAIRS.
    #[inline(always)]
    unsafe fn multiply_add<const PAIRS: bool>(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: the caller promises the instructions; the types have the same 64 bytes.
        unsafe {
            if PAIRS {
                let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
                _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
            } else {
                _mm512_fmadd_ps(a, b, sum)
            }
        }
    }

    /// Runs the smallest kernel that covers the tile's rows, because the last strip of a matrix is
    /// rarely full. All of them compute the same sum for an element.
    ///
    /// # Safety
    /// As for `kernel`, with a packed A.
    #[inline(always)]
    unsafe fn fitting<const MR: usize, const NV: usize, const PAIRS: bool>(
        depth: usize,
        a: &[f32],
        b: &[f32],
        tile: Tile,
    ) {
        let strides = Strides { row: 1, k: MR };
        // SAFETY: the caller's promise; no kernel here has more than MR rows.
        unsafe {
            match tile.rows {
                ..=4 if MR > 4 => kernel::<4, NV, PAIRS>(depth, a, strides, b, tile),
                ..=8 if MR > 8 => kernel::<8, NV, PAIRS>(depth, a, strides, b, tile),
                _ => kernel::<MR, NV, PAIRS>(depth, a, strides, b, tile),
            }
        }
    }

    /// # Safety
    /// The operands have MR rows and 16 · NV columns, `depth` words deep; the tile is inside a
    /// matrix, and no one else accesses its elements; the processor has AVX-512F, and BF16 with
    /// PAIRS.
    #[inline(always)]
    unsafe fn kernel<const MR: usize, const NV: usize, const PAIRS: bool>(
        depth: usize,
        a: &[f32],
        strides: Strides,
        b: &[f32],
        tile: Tile,
    ) {
        prefetch::<NV>(&tile);
        // SAFETY: the caller promises AVX-512F.
        let zero = unsafe { _mm512_setzero_ps() };
        let mut sum = [[zero; NV]; MR];
        let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
        for _ in 0..depth {
            // SAFETY: reads within the operands, whose sizes the caller promises.
            unsafe {
                let mut row = [zero; NV];
                for (v, row) in row.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(b.add(16 * v));
                }
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i * strides.row));
                    for (sum, row) in sum.iter_mut().zip(row) {
                        *sum = multiply_add::<PAIRS>(x, row, *sum);
                    }
                }
                a = a.wrapping_add(strides.k);
                b = b.add(16 * NV);
            }
        }
        // SAFETY: the caller promises that the tile is inside C, and AVX-512F.
        unsafe { store(&tile, MR, |i| sum[i]) };
    }

    /// Prefetches the tile of C. It is needed only after the loop over the depth, but may have to
    /// come from memory.
    #[inline(always)]
    pub fn prefetch<const NV: usize>(tile: &Tile) {
        for i in 0..tile.rows {
            for v in 0..NV {
                let c = tile.c.wrapping_add(i * tile.row_stride + 16 * v);
                // SAFETY: any address may be prefetched.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(c.cast()) };
            }
        }
    }

    /// Writes C = start + sum to the part of a tile that is inside C. `sum(i)` is row i of the tile
    /// in full, which has `rows` rows.
    ///
    /// # Safety
    /// The processor has AVX-512F; the tile is inside a matrix, and no one else
    /// accesses its elements.
    #[inline(always)]
    pub unsafe fn store<const NV: usize>(tile: &Tile, rows: usize, sum: impl Fn(usize) -> [__m512; NV]) {
        // SAFETY: the caller promises AVX-512F.
        let mut from = [unsafe { _mm512_setzero_ps() }; NV];
        let masks: [u16; NV] = std::array::from_fn(|v| {
            let lanes = tile.cols.saturating_sub(16 * v).min(16);
            ((1u32 << lanes) - 1) as u16
        });
        if let Start::Bias(bias) = tile.start {
            for v in 0..NV {
                // SAFETY: the load is masked to the bias's columns.
                from[v] =
                    unsafe { _mm512_maskz_loadu_ps(masks[v], bias.as_ptr().add((16 * v).min(bias.len()))) };
            }
        }
        let keep = matches!(tile.start, Start::Keep);
        for i in 0..rows {
            if i >= tile.rows {
                break;
            }
            let sum = sum(i);
            for v in 0..NV {
                if masks[v] == 0 {
                    continue;
                }
                // SAFETY: inside the tile; the last vector is masked to its columns.
                unsafe {
                    let c = tile.c.add(i * tile.row_stride + 16 * v);
                    let before = if keep { _mm512_maskz_loadu_ps(masks[v], c) } else { from[v] };
                    _mm512_mask_storeu_ps(c, masks[v], _mm512_add_ps(before, sum[v]));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    use super::{DEFAULT_SIZES, Format, Kernel, STRIDED, Strides, Tile, check_strided, store_part};
    use std::arch::x86_64::*;

    /// 12 accumulators of 8 lanes.
    pub const WIDE: Kernel = Kernel {
        #[cfg(test)]
        name: "avx2 6 × 16",
        mr: 6,
        nr: 16,
        a_format: Format::F32,
        b_format: Format::F32,
        step: 1,
        sizes: DEFAULT_SIZES,
        run,
    };

    /// # Safety
    /// As for `Kernel::run`; the processor has AVX2 and FMA.
    unsafe fn run(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
        assert!(a.len() >= depth * 6 && b.len() >= depth * 16);
        let mut whole = [0.0f32; 6 * 16];
        // SAFETY: the caller's promise; the assertion checked the panels' sizes.
        unsafe {
            block::<6>(depth, a.as_ptr(), Strides { row: 1, k: 6 }, b.as_ptr(), 16, &mut whole);
            store_part(&tile, &whole, 16);
        }
    }

    /// # Safety
    /// The tile is inside a matrix, and no one else accesses its elements; the processor has AVX2
    /// and FMA.
    pub unsafe fn strided(depth: usize, a: &[f32], strides: Strides, b: &[f32], tile: Tile) {
        check_strided(depth, a, strides, b);
        let width = STRIDED[1];
        let mut whole = [0.0f32; STRIDED[0] * STRIDED[1]];
        for (i, j) in [(0, 0), (0, 16), (4, 0), (4, 16)] {
            // SAFETY: the caller's promise; the operands' sizes were checked above.
            unsafe {
                let (a, b) = (a.as_ptr().add(i * strides.row), b.as_ptr().add(j));
                block::<4>(depth, a, strides, b, width, &mut whole[i * width + j..]);
            }
        }
        // SAFETY: the caller promises that the tile is inside C.
        unsafe { store_part(&tile, &whole, width) };
    }

    /// Writes MR rows of A times 16 columns of B to `out`. Rows of B and of `out` are `width`
    /// apart.
    ///
    /// # Safety
    /// A and B have these sizes; the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const MR: usize>(
        depth: usize,
        mut a: *const f32,
        strides: Strides,
        mut b: *const f32,
        width: usize,
        out: &mut [f32],
    ) {
        let mut sum = [[_mm256_setzero_ps(); 2]; MR];
        for _ in 0..depth {
            // SAFETY: reads within the operands, whose sizes the caller promises.
            unsafe {
                let row = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (i, sum) in sum.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*a.add(i * strides.row));
                    sum[0] = _mm256_fmadd_ps(x, row[0], sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, row[1], sum[1]);
                }
            }
            (a, b) = (a.wrapping_add(strides.k), b.wrapping_add(width));
        }
        for (i, sum) in sum.iter().enumerate() {
            let out = &mut out[i * width..][..16];
            // SAFETY: `out` has 16 values.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), sum[1]);
            }
        }
    }
}
