//! The layouts of blocks, and the widening of runs of values in registers, exactly as in ggml.
//!
//! The unit is a run of 16 values: in every quantized type, a run has one scale, and the low bits
//! of its values are in 16 consecutive bytes.

use crate::lanes::{LANES, Lanes};

/// Number of values of a run.
pub const RUN: usize = LANES;

/// The layout of a type's blocks. Bit patterns: https://github.com/ggml-org/ggml,
/// `ggml-common.h`.
pub trait Layout {
    /// Values and bytes of a block.
    const VALUES: usize;
    const BYTES: usize;
    /// A block's scales, widened before its runs.
    type Scales<S: Lanes>: Copy;

    fn scales<S: Lanes>(s: S, block: &[u8]) -> Self::Scales<S>;

    /// Returns run `run` of a block, widened.
    fn run<S: Lanes>(s: S, block: &[u8], scales: &Self::Scales<S>, run: usize) -> S::F;

    /// Whether `scaled` leaves out the offset that all values of a run share, and `offsets` returns
    /// it. A dot product adds the offset once per run, times the sum of the other factors.
    const OFFSETS: bool = false;

    /// Returns a run without its offset.
    #[inline(always)]
    fn scaled<S: Lanes>(s: S, block: &[u8], scales: &Self::Scales<S>, run: usize) -> S::F {
        Self::run(s, block, scales, run)
    }

    /// Returns the offset of every run of a block of 256 values.
    #[inline(always)]
    fn offsets<S: Lanes>(_: S, _: &Self::Scales<S>) -> [f32; 16] {
        [0.0; 16]
    }
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"))
}

#[inline(always)]
fn run_at(block: &[u8], at: usize) -> &[u8; RUN] {
    block[at..at + RUN].try_into().expect("16 bytes")
}

#[inline(always)]
fn half_at<S: Lanes>(s: S, block: &[u8], at: usize) -> S::F {
    s.splat_half(u16_at(block, at))
}

/// Runs an expression with the layout of a block type, as the type `$layout`.
macro_rules! with_layout {
    ($kind:expr, $layout:ident => $body:expr) => {
        with_layout!($kind, $layout => $body, F16 Bf16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Iq4Nl Iq4Xs)
    };
    ($kind:expr, $layout:ident => $body:expr, $($name:ident)*) => {
        match $kind {
            $($crate::blocks::BlockType::$name => {
                type $layout = $crate::blocks::layout::$name;
                $body
            })*
        }
    };
}
pub(crate) use with_layout;

/// Defines a type without blocks: a run of sixteen values serves as its block.
macro_rules! plain_layout {
    ($name:ident, $bytes:literal, $load:ident) => {
        pub struct $name;

        impl Layout for $name {
            const VALUES: usize = RUN;
            const BYTES: usize = $bytes;
            type Scales<S: Lanes> = ();

            #[inline(always)]
            fn scales<S: Lanes>(_: S, _: &[u8]) {}

            #[inline(always)]
            fn run<S: Lanes>(s: S, block: &[u8], _: &(), _: usize) -> S::F {
                s.$load(block.try_into().expect("sixteen values"))
            }
        }
    };
}

plain_layout!(F32, 64, f32s);
plain_layout!(F16, 32, f16s);
plain_layout!(Bf16, 32, bf16s);

/// Defines a type with 32 values per block: the bytes of a block, its widened scales, and a run of
/// values computed with them.
macro_rules! small_layout {
    (
        $name:ident, $bytes:literal, $scales:ty,
        |$s:ident, $block:ident| $widened:expr, |$of:pat_param, $run:ident| $values:expr $(,)?
    ) => {
        pub struct $name;

        impl Layout for $name {
            const VALUES: usize = 32;
            const BYTES: usize = $bytes;
            type Scales<S: Lanes> = $scales;

            #[inline(always)]
            fn scales<S: Lanes>($s: S, $block: &[u8]) -> $scales {
                $widened
            }

            #[inline(always)]
            fn run<S: Lanes>($s: S, $block: &[u8], &$of: &$scales, $run: usize) -> S::F {
                $values
            }
        }
    };
}

/// Returns the table of d · (i − zero) for i from 0 to 15. A lookup of a 4-bit value replaces its
/// computation, with the same rounding.
#[inline(always)]
fn multiples<S: Lanes>(s: S, d: S::F, zero: f32) -> S::F {
    let numbers = std::array::from_fn(|i| i as f32 - zero);
    s.mul(d, s.load(&numbers))
}

small_layout!(Q4_0, 18, S::F, |s, block| multiples(s, half_at(s, block, 0), 8.0), |table, run| {
    s.lookup(table, run_at(block, 2), 4 * run)
});
small_layout!(
    Q4_1,
    20,
    S::F,
    |s, block| s.add(multiples(s, half_at(s, block, 0), 0.0), half_at(s, block, 2)),
    |table, run| s.lookup(table, run_at(block, 4), 4 * run)
);
small_layout!(Q5_0, 22, S::F, |s, block| half_at(s, block, 0), |d, run| {
    let low = s.number(run_at(block, 6), 4 * run, 15, 1.0, 16.0);
    s.mul(d, s.add_where(low, u16_at(block, 2 + 2 * run), 16.0))
});
small_layout!(
    Q5_1,
    24,
    (S::F, S::F),
    |s, block| (half_at(s, block, 0), half_at(s, block, 2)),
    |(d, min), run| {
        let low = s.number(run_at(block, 8), 4 * run, 15, 1.0, 0.0);
        s.add(s.mul(d, s.add_where(low, u16_at(block, 4 + 2 * run), 16.0)), min)
    }
);
small_layout!(Q8_0, 34, S::F, |s, block| half_at(s, block, 0), |d, run| {
    s.mul(d, s.float(s.signed(run_at(block, 2 + RUN * run))))
});

/// The values of the sixteen 4-bit codes of IQ4_NL and IQ4_XS, which are denser around zero.
const NON_LINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

small_layout!(Iq4Nl, 18, S::F, |s, block| s.mul(half_at(s, block, 0), s.load(&NON_LINEAR)), |table, run| {
    s.lookup(table, run_at(block, 2), 4 * run)
});

pub struct Iq4Xs;

impl Layout for Iq4Xs {
    const VALUES: usize = 256;
    const BYTES: usize = 136;
    /// One 6-bit scale for each two runs: the lower four bits are in bytes, the upper two in a
    /// `u16`.
    type Scales<S: Lanes> = [f32; 8];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 8] {
        let (d, high) = (s.half(u16_at(block, 0)), u16_at(block, 2));
        std::array::from_fn(|i| {
            let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
            d * (f32::from(u16::from(low) | (high >> (2 * i) & 3) << 4) - 32.0)
        })
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 8], run: usize) -> S::F {
        let values = s.lookup(s.load(&NON_LINEAR), run_at(block, 8 + RUN * (run / 2)), 4 * (run % 2));
        s.mul(s.splat(scales[run / 2]), values)
    }
}

pub struct Q2K;

impl Layout for Q2K {
    const VALUES: usize = 256;
    const BYTES: usize = 84;
    const OFFSETS: bool = true;
    /// A scale and a minimum per run.
    type Scales<S: Lanes> = [[f32; 16]; 2];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [[f32; 16]; 2] {
        let mut out = [[0.0; 16]; 2];
        for (i, out) in out.iter_mut().enumerate() {
            let d = half_at(s, block, 80 + 2 * i);
            s.store(s.mul(d, s.float(s.field(run_at(block, 0), 4 * i, 15))), out);
        }
        out
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[[f32; 16]; 2], run: usize) -> S::F {
        s.sub(Self::scaled(s, block, scales, run), s.splat(scales[1][run]))
    }

    #[inline(always)]
    fn scaled<S: Lanes>(s: S, block: &[u8], scales: &[[f32; 16]; 2], run: usize) -> S::F {
        s.mul(s.splat(scales[0][run]), two_bits(s, block, 16, run, 0.0))
    }

    #[inline(always)]
    fn offsets<S: Lanes>(_: S, scales: &[[f32; 16]; 2]) -> [f32; 16] {
        scales[1].map(|min| -min)
    }
}

/// Returns the 2-bit fields of a run in a block of 256 values, minus `zero`. From byte `at` on,
/// each half of the block has 32 bytes, and each byte has the fields of four values that are 32
/// apart.
#[inline(always)]
fn two_bits<S: Lanes>(s: S, block: &[u8], at: usize, run: usize, zero: f32) -> S::F {
    let (half, quarter, part) = (run / 8, run % 8 / 2, run % 2);
    s.number(run_at(block, at + 32 * half + RUN * part), 2 * quarter, 3, 1.0, zero)
}

pub struct Q3K;

impl Layout for Q3K {
    const VALUES: usize = 256;
    const BYTES: usize = 110;
    /// One per run.
    type Scales<S: Lanes> = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        // Six bits per scale: the lower four are in eight bytes, the upper two in four.
        let [first, second, high] = [96, 100, 104].map(|at| u32_at(block, at));
        let low = [first, second, first >> 4, second >> 4];
        let parts: [u32; 4] =
            std::array::from_fn(|i| low[i] & 0x0f0f0f0f | (high >> (2 * i) & 0x03030303) << 4);
        let bytes = parts.map(u32::to_le_bytes);
        let bytes = bytes.as_flattened().try_into().expect("16 bytes");
        let mut out = [0.0; 16];
        s.store(s.mul(half_at(s, block, 108), s.sub(s.float(s.signed(bytes)), s.splat(32.0))), &mut out);
        out
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        let high = s.number(run_at(block, RUN * (run % 2)), run / 2, 1, 4.0, 0.0);
        s.mul(s.splat(scales[run]), s.add(two_bits(s, block, 32, run, 4.0), high))
    }
}

/// Returns the eight scales and then the eight minima of a Q4_K or Q5_K block. Each has six bits;
/// the upper two of the last four are stored in the upper bits of the first four.
#[inline(always)]
fn scales_and_minima<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
    let [scale, min, last] = [4, 8, 12].map(|at| u32_at(block, at));
    let parts = [
        scale & 0x3f3f3f3f,
        last & 0x0f0f0f0f | (scale >> 6 & 0x03030303) << 4,
        min & 0x3f3f3f3f,
        last >> 4 & 0x0f0f0f0f | (min >> 6 & 0x03030303) << 4,
    ];
    let bytes = parts.map(u32::to_le_bytes);
    let bytes = bytes.as_flattened().try_into().expect("16 bytes");
    let (d, min) = (s.half(u16_at(block, 0)), s.half(u16_at(block, 2)));
    let mut out = [d, d, d, d, d, d, d, d, min, min, min, min, min, min, min, min];
    s.store(s.mul(s.load(&out), s.float(s.signed(bytes))), &mut out);
    out
}

/// Blocks with eight scales and eight minima, and four bits per value, or five with `HIGH`.
pub struct ScalesAndMinima<const HIGH: bool>;
pub type Q4K = ScalesAndMinima<false>;
pub type Q5K = ScalesAndMinima<true>;

impl<const HIGH: bool> Layout for ScalesAndMinima<HIGH> {
    const VALUES: usize = 256;
    const BYTES: usize = if HIGH { 176 } else { 144 };
    const OFFSETS: bool = true;
    type Scales<S: Lanes> = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        scales_and_minima(s, block)
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        s.sub(Self::scaled(s, block, scales, run), s.splat(scales[8 + run / 2]))
    }

    #[inline(always)]
    fn scaled<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        let (part, half) = (run / 2, RUN * (run % 2));
        let low = run_at(block, if HIGH { 48 } else { 16 } + 32 * (part / 2) + half);
        let (scale, shift) = (s.splat(scales[part]), 4 * (part % 2));
        if !HIGH {
            // Two runs share the table of scaled numbers.
            return s.lookup(multiples(s, scale, 0.0), low, shift);
        }
        let high = s.number(run_at(block, 16 + half), part, 1, 16.0, 0.0);
        s.mul(scale, s.add(s.number(low, shift, 15, 1.0, 0.0), high))
    }

    #[inline(always)]
    fn offsets<S: Lanes>(_: S, scales: &[f32; 16]) -> [f32; 16] {
        std::array::from_fn(|run| -scales[8 + run / 2])
    }
}

pub struct Q6K;

impl Layout for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;
    /// One per run.
    type Scales<S: Lanes> = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        let d = s.splat(s.half(u16_at(block, 208)));
        let mut out = [0.0; 16];
        s.store(s.mul(d, s.float(s.signed(run_at(block, 192)))), &mut out);
        out
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        // Each half of the block has 64 bytes of low bits and 32 of high bits for its four
        // quarters.
        let (half, quarter, part) = (run / 8, run % 8 / 2, run % 2);
        let low = run_at(block, 64 * half + 32 * (quarter % 2) + RUN * part);
        let low = s.number(low, 4 * (quarter / 2), 15, 1.0, 32.0);
        let high = s.number(run_at(block, 128 + 32 * half + RUN * part), 2 * quarter, 3, 16.0, 0.0);
        s.mul(s.splat(scales[run]), s.add(low, high))
    }
}
