//! How values lie in blocks, and one run of them widened in registers, exactly as ggml does it.
//!
//! The unit is a run of 16 values: whatever the type, a run has one scale, and its bits lie in 16
//! neighbouring bytes.

use crate::lanes::{LANES, Lanes};

/// Values of a run.
pub const RUN: usize = LANES;

/// How blocks of one type are laid out. Bit patterns: https://github.com/ggml-org/ggml,
/// `ggml-common.h`.
pub trait Layout {
    /// Values and bytes of a block.
    const VALUES: usize;
    const BYTES: usize;
    /// What a block's scales are widened to before its runs.
    type Scales<S: Lanes>: Copy;

    fn scales<S: Lanes>(s: S, block: &[u8]) -> Self::Scales<S>;

    /// Run `run` of a block.
    fn run<S: Lanes>(s: S, block: &[u8], scales: &Self::Scales<S>, run: usize) -> S::F;
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

/// The types of 32 values with one scale: (q − zero) · d, and those with a minimum: q · d + min.
macro_rules! small_layout {
    ($name:ident, $bytes:literal, |$s:ident, $block:ident, $run:ident| $q:expr, zero $zero:expr) => {
        pub struct $name;

        impl Layout for $name {
            const VALUES: usize = 32;
            const BYTES: usize = $bytes;
            type Scales<S: Lanes> = S::F;

            #[inline(always)]
            fn scales<S: Lanes>(s: S, block: &[u8]) -> S::F {
                s.splat_half(u16_at(block, 0))
            }

            #[inline(always)]
            fn run<S: Lanes>($s: S, $block: &[u8], d: &S::F, $run: usize) -> S::F {
                $s.mul(*d, $s.sub($s.float($q), $s.splat($zero)))
            }
        }
    };
    ($name:ident, $bytes:literal, |$s:ident, $block:ident, $run:ident| $q:expr, min) => {
        pub struct $name;

        impl Layout for $name {
            const VALUES: usize = 32;
            const BYTES: usize = $bytes;
            type Scales<S: Lanes> = (S::F, S::F);

            #[inline(always)]
            fn scales<S: Lanes>(s: S, block: &[u8]) -> (S::F, S::F) {
                (s.splat_half(u16_at(block, 0)), s.splat_half(u16_at(block, 2)))
            }

            #[inline(always)]
            fn run<S: Lanes>($s: S, $block: &[u8], &(d, min): &(S::F, S::F), $run: usize) -> S::F {
                $s.add($s.mul(d, $s.float($q)), min)
            }
        }
    };
}

/// The sixteen numbers of four bits, each times d. Finding a value among what they stand for takes
/// the place of computing it; each is rounded as if it were computed by itself.
#[inline(always)]
fn multiples<S: Lanes>(s: S, d: S::F, zero: f32) -> S::F {
    let numbers = std::array::from_fn(|i| i as f32 - zero);
    s.mul(d, s.load(&numbers))
}

pub struct Q4_0;

impl Layout for Q4_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 18;
    type Scales<S: Lanes> = S::F;

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> S::F {
        multiples(s, s.splat_half(u16_at(block, 0)), 8.0)
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], table: &S::F, run: usize) -> S::F {
        s.lookup(*table, run_at(block, 2), 4 * run)
    }
}

pub struct Q4_1;

impl Layout for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;
    type Scales<S: Lanes> = S::F;

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> S::F {
        s.add(multiples(s, s.splat_half(u16_at(block, 0)), 0.0), s.splat_half(u16_at(block, 2)))
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], table: &S::F, run: usize) -> S::F {
        s.lookup(*table, run_at(block, 4), 4 * run)
    }
}

/// The types without blocks, sixteen values as one.
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

small_layout!(Q5_0, 22, |s, block, run| {
    s.join(s.field(run_at(block, 6), 4 * run, 15), s.bits(u16_at(block, 2 + 2 * run)))
}, zero 16.0);
small_layout!(
    Q5_1,
    24,
    |s, block, run| s.join(s.field(run_at(block, 8), 4 * run, 15), s.bits(u16_at(block, 4 + 2 * run))),
    min
);
small_layout!(Q8_0, 34, |s, block, run| s.signed(run_at(block, 2 + RUN * run)), zero 0.0);

/// Scales and minima of a Q4_K or Q5_K block, eight each and in this order. They have six bits; the
/// last four of each keep their upper two in the upper bits of the first four.
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

pub struct Q4K;

impl Layout for Q4K {
    const VALUES: usize = 256;
    const BYTES: usize = 144;
    type Scales<S: Lanes> = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        scales_and_minima(s, block)
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        let part = run / 2;
        let q = s.field(run_at(block, 16 + 32 * (part / 2) + RUN * (run % 2)), 4 * (part % 2), 15);
        s.sub(s.mul(s.splat(scales[part]), s.float(q)), s.splat(scales[8 + part]))
    }
}

pub struct Q5K;

impl Layout for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;
    type Scales<S: Lanes> = [f32; 16];

    #[inline(always)]
    fn scales<S: Lanes>(s: S, block: &[u8]) -> [f32; 16] {
        scales_and_minima(s, block)
    }

    #[inline(always)]
    fn run<S: Lanes>(s: S, block: &[u8], scales: &[f32; 16], run: usize) -> S::F {
        let part = run / 2;
        let low = s.field(run_at(block, 48 + 32 * (part / 2) + RUN * (run % 2)), 4 * (part % 2), 15);
        let high = s.field(run_at(block, 16 + RUN * (run % 2)), part, 1);
        let q = s.float(s.join(low, high));
        s.sub(s.mul(s.splat(scales[part]), q), s.splat(scales[8 + part]))
    }
}

pub struct Q6K;

impl Layout for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;
    /// One a run.
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
        let low = s.field(run_at(block, 64 * half + 32 * (quarter % 2) + RUN * part), 4 * (quarter / 2), 15);
        let high = s.field(run_at(block, 128 + 32 * half + RUN * part), 2 * quarter, 3);
        s.mul(s.splat(scales[run]), s.sub(s.float(s.join(low, high)), s.splat(32.0)))
    }
}
