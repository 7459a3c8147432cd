//! Micro-kernels for Intel's matrix unit (AMX). Its registers are tiles of 16 rows of 64 bytes.
//! `tdpbf16ps` adds the product of a tile of A, 16 × 32 bf16, and a tile of B, 32 × 16 bf16 in
//! pairs, to a tile of C, 16 × 16 f32.
//!
//! The tile configuration is a state of each thread. It is set before the thread's first product
//! and never changed: packing pads panels with zeros to whole tiles, so one configuration serves
//! all kernels.
//!
//! The intrinsics are unstable, so the kernels are assembly. No function is compiled with AMX
//! enabled, so the compiler does not use the tiles; even so, their contents are relied on only
//! within one block of assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::mem::MaybeUninit;

use super::kernel::{BlockSizes, Kernel, PanelKernel, Strides, Tile, avx512};
use super::pack::Format;
use super::{Operand, Start};

/// Rows of a tile, and words of a row.
const SIDE: usize = 16;
const TILE: usize = SIDE * SIDE;

/// A strip of the shared operand, at most 32 KiB, stays in the L1 cache while a task's own operand,
/// 512 KiB, streams past. The part of C to which they add stays in L2.
const SIZES: BlockSizes = BlockSizes { depth: 256, own_words: 128 << 10 };

macro_rules! kernel {
    ($name:literal, $mt:literal, $nt:literal, $run:ident) => {
        Kernel {
            #[cfg(test)]
            name: $name,
            mr: SIDE * $mt,
            nr: SIDE * $nt,
            a_format: Format::AmxTiles,
            b_format: Format::Pairs,
            step: SIDE,
            sizes: SIZES,
            run: $run::<$mt, $nt>,
        }
    };
}

/// The four tile products of a step take twice as long as the four tile loads that they need.
const WIDE: Kernel = kernel!("amx 32 × 32", 2, 2, run);
/// For few rows.
const FLAT: Kernel = kernel!("amx 16 × 32", 1, 2, run);
/// For few columns.
const TALL: Kernel = kernel!("amx 32 × 16", 2, 1, run);

/// For operands that their owner packs. A is in `Format::AmxTiles`, so its strides are not used.
pub const PANELS: PanelKernel = PanelKernel {
    a_format: WIDE.a_format,
    b_format: WIDE.b_format,
    step: WIDE.step,
    rows: WIDE.mr,
    run: run_panels,
};

#[cfg(test)]
pub const ALL: [Kernel; 3] = [WIDE, FLAT, TALL];

/// Returns the kernel for C (m, n).
pub fn kernel(m: usize, n: usize) -> Kernel {
    match (m, n) {
        (_, ..=SIDE) => TALL,
        (..=SIDE, _) => FLAT,
        _ => WIDE,
    }
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct TileSizes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of the maximum size.
static WHOLE: TileSizes = TileSizes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures the tiles of the calling thread, unless it has done so.
///
/// # Safety
/// The process may use AMX.
unsafe fn set_sizes() {
    thread_local! {
        static SET: Cell<bool> = const { Cell::new(false) };
    }
    if !SET.get() {
        // SAFETY: reads the 64 bytes of `WHOLE`, whose sizes are valid for palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly, preserves_flags))
        };
        SET.set(true);
    }
}

/// Buffer for all tiles of C of a kernel, row after row.
#[repr(align(64))]
struct Sums([f32; 4 * TILE]);

/// Zeros: with stride 0, every row of a tile of C is loaded from the first row.
static ZEROS: Sums = Sums([0.0; 4 * TILE]);

/// The place of the tiles of C that a kernel loads or stores: the first row, and the bytes from row
/// to row.
#[derive(Clone, Copy)]
struct Tiles {
    at: *mut f32,
    stride: usize,
}

/// # Safety
/// As for `PanelKernel::run`; the process may use AMX.
unsafe fn run_panels(depth: usize, a: &[f32], _: Strides, b: &[f32], tile: Tile) {
    // SAFETY: the caller's promise; a process that may use AMX has AVX-512.
    unsafe { run::<2, 2>(depth, a, b, tile) }
}

/// # Safety
/// As for `Kernel::run`; the process may use AMX.
#[target_feature(enable = "avx512f")]
unsafe fn run<const MT: usize, const NT: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    let blocks = depth / SIDE;
    assert!(blocks > 0 && a.len() >= blocks * MT * TILE && b.len() >= blocks * NT * TILE);
    let zeros = Tiles { at: (&raw const ZEROS.0).cast_mut().cast(), stride: 0 };
    let whole = tile.rows == MT * SIDE && tile.cols == NT * SIDE;
    // SAFETY: the panels have `blocks` blocks. The product is written to C only if the whole tile
    // is inside it, otherwise to `sums`, which has room for MT · NT tiles, all written before they
    // are read.
    unsafe {
        set_sizes();
        let product = match (MT, NT, tile.streamed) {
            (2, 2, None) => wide,
            (2, 2, Some(Operand::A)) => wide_streamed_a,
            (2, 2, Some(Operand::B)) => wide_streamed_b,
            (1, 2, _) => flat,
            (2, 1, _) => tall,
            _ => unreachable!("no kernel of {MT} × {NT} tiles"),
        };
        let multiply = |from: Tiles, to: Tiles| product(blocks, a.as_ptr(), b.as_ptr(), from, to);
        let c = Tiles { at: tile.c, stride: size_of::<f32>() * tile.row_stride };
        // The sums of a single block are added to C with the same rounding by the unit as by
        // `store` below.
        if whole && blocks == 1 && matches!(tile.start, Start::Keep) {
            return multiply(c, c);
        }
        let mut sums = MaybeUninit::<Sums>::uninit();
        let aside =
            Tiles { at: (&raw mut (*sums.as_mut_ptr()).0).cast(), stride: size_of::<f32>() * NT * SIDE };
        let in_place = whole && !matches!(tile.start, Start::Keep);
        let to = if in_place { c } else { aside };
        if !in_place {
            avx512::prefetch::<NT>(&tile);
        }
        multiply(zeros, to);
        if !(in_place && matches!(tile.start, Start::Zero)) {
            avx512::store::<NT>(&tile, MT * SIDE, |i| {
                let row = to.at.byte_add(i * to.stride);
                std::array::from_fn(|v| _mm512_loadu_ps(row.add(SIDE * v)))
            });
        }
    }
}

/// Defines a loop over blocks of 32 values of k. Tiles 0 to 3 hold C, 4 and 5 A, 6 and 7 B. In a
/// block of A's panel, the tiles follow one another; in a block of B's panel, they are next to each
/// other, as in C.
macro_rules! product {
    (
        $name:ident,
        $mt:literal,
        $nt:literal,
        [$($load:literal)*],
        [$($block:expr),*],
        [$($store:literal)*]
        $(, $from_low:ident, $to_low:ident)?
    ) => {
        /// # Safety
        /// The tiles are configured; the panels have `blocks` blocks, at least one; the kernel's
        /// tiles of C may be read from `from` and written to `to`.
        unsafe fn $name(blocks: usize, a: *const f32, b: *const f32, from: Tiles, to: Tiles) {
            // SAFETY: reads and writes only the memory that the caller promises.
            unsafe {
                asm!(
                    $($load,)*
                    "2:",
                    $($block,)*
                    "add {a}, {a_block}",
                    "add {b}, {b_block}",
                    "dec {blocks}",
                    "jnz 2b",
                    $($store,)*
                    blocks = inout(reg) blocks => _,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    from = in(reg) from.at,
                    from_row = in(reg) from.stride,
                    to = in(reg) to.at,
                    to_row = in(reg) to.stride,
                    $(
                        $from_low = in(reg) from.at.wrapping_byte_add(SIDE * from.stride),
                        $to_low = in(reg) to.at.wrapping_byte_add(SIDE * to.stride),
                    )?
                    line = in(reg) 4 * SIDE,
                    row = in(reg) 4 * SIDE * $nt,
                    a_block = const 4 * TILE * $mt,
                    b_block = const 4 * TILE * $nt,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        }
    };
}

/// Defines the kernel of 32 × 32, with these instructions to load tiles of A and of B.
macro_rules! wide {
    ($name:ident, $load_a:literal, $load_b:literal) => {
        product!(
            $name,
            2,
            2,
            [
                "tileloadd tmm0, [{from} + {from_row}*1]"
                "tileloadd tmm1, [{from} + {from_row}*1 + 64]"
                "tileloadd tmm2, [{from_low} + {from_row}*1]"
                "tileloadd tmm3, [{from_low} + {from_row}*1 + 64]"
            ],
            [
                concat!($load_a, " tmm4, [{a} + {line}*1]"),
                concat!($load_b, " tmm6, [{b} + {row}*1]"),
                "tdpbf16ps tmm0, tmm4, tmm6",
                concat!($load_b, " tmm7, [{b} + {row}*1 + 64]"),
                "tdpbf16ps tmm1, tmm4, tmm7",
                concat!($load_a, " tmm5, [{a} + {line}*1 + 1024]"),
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ],
            [
                "tilestored [{to} + {to_row}*1], tmm0"
                "tilestored [{to} + {to_row}*1 + 64], tmm1"
                "tilestored [{to_low} + {to_row}*1], tmm2"
                "tilestored [{to_low} + {to_row}*1 + 64], tmm3"
            ],
            from_low,
            to_low
        );
    };
}

wide!(wide, "tileloadd", "tileloadd");
// The panel that changes with the next tile is loaded with a hint to bypass the L1 cache, where the
// other panel stays.
wide!(wide_streamed_a, "tileloaddt1", "tileloadd");
wide!(wide_streamed_b, "tileloadd", "tileloaddt1");
product!(
    flat,
    1,
    2,
    [
        "tileloadd tmm0, [{from} + {from_row}*1]"
        "tileloadd tmm1, [{from} + {from_row}*1 + 64]"
    ],
    [
        "tileloadd tmm4, [{a} + {line}*1]",
        "tileloadd tmm6, [{b} + {row}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{b} + {row}*1 + 64]",
        "tdpbf16ps tmm1, tmm4, tmm7"
    ],
    [
        "tilestored [{to} + {to_row}*1], tmm0"
        "tilestored [{to} + {to_row}*1 + 64], tmm1"
    ]
);
product!(
    tall,
    2,
    1,
    [
        "tileloadd tmm0, [{from} + {from_row}*1]"
        "tileloadd tmm1, [{from_low} + {from_row}*1]"
    ],
    [
        "tileloadd tmm6, [{b} + {row}*1]",
        "tileloadd tmm4, [{a} + {line}*1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{a} + {line}*1 + 1024]",
        "tdpbf16ps tmm1, tmm5, tmm6"
    ],
    [
        "tilestored [{to} + {to_row}*1], tmm0"
        "tilestored [{to_low} + {to_row}*1], tmm1"
    ],
    from_low,
    to_low
);

/// The same kernels without AMX, computed as Intel's manual defines the instructions. They test
/// packing and the products around the kernels on every machine with AVX512-BF16.
#[cfg(test)]
pub fn by_definition() -> [Kernel; 3] {
    [
        kernel!("amx by definition 32 × 32", 2, 2, defined),
        kernel!("amx by definition 16 × 32", 1, 2, defined),
        kernel!("amx by definition 32 × 16", 2, 1, defined),
    ]
}

/// The kernel of `PANELS`, computed in the same way.
#[cfg(test)]
pub fn panels_by_definition() -> PanelKernel {
    /// # Safety
    /// As for `PanelKernel::run`.
    unsafe fn run(depth: usize, a: &[f32], _: Strides, b: &[f32], tile: Tile) {
        // SAFETY: the caller promises that the tile is inside C.
        unsafe { defined::<2, 2>(depth, a, b, tile) }
    }
    PanelKernel { run, ..PANELS }
}

#[cfg(test)]
unsafe fn defined<const MT: usize, const NT: usize>(depth: usize, a: &[f32], b: &[f32], tile: Tile) {
    let blocks = depth / SIDE;
    let mut sums = [0.0; 4 * TILE];
    for block in 0..blocks {
        for (i, j) in (0..MT).flat_map(|i| (0..NT).map(move |j| (i, j))) {
            let a = &a[(block * MT + i) * TILE..];
            let b = &b[block * NT * TILE + j * SIDE..];
            multiply_tiles(&mut sums[(i * NT * SIDE + j) * SIDE..], a, b, NT * SIDE);
        }
    }
    // SAFETY: the caller promises that the tile is inside C.
    unsafe { super::kernel::store_part(&tile, &sums, NT * SIDE) };
}

/// TDPBF16PS: c += a b. Rows of a are `SIDE` words apart, rows of b and c `stride`.
#[cfg(test)]
fn multiply_tiles(c: &mut [f32], a: &[f32], b: &[f32], stride: usize) {
    // The even and the odd bf16 of a word, with denormals as zeros.
    let halves = |word: f32| {
        [word.to_bits() << 16, word.to_bits() & 0xffff_0000]
            .map(f32::from_bits)
            .map(|x| if x.is_subnormal() { 0.0 } else { x })
    };
    for m in 0..SIDE {
        let mut sums = [[0.0f32; 2]; SIDE];
        for k in 0..SIDE {
            let a = halves(a[m * SIDE + k]);
            for (sums, &b) in sums.iter_mut().zip(&b[k * stride..]) {
                let b = halves(b);
                // The products are exact.
                *sums = [sums[0] + a[0] * b[0], sums[1] + a[1] * b[1]];
            }
        }
        for (n, [even, odd]) in sums.into_iter().enumerate() {
            c[m * stride + n] += even + odd;
        }
    }
}
