//! Chooses a kernel for a product on this machine.

use super::Precision;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::kernel::{Kernel, PORTABLE, Shape};
#[cfg(target_arch = "x86_64")]
use super::kernel::{avx2, avx512};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::pack::Format;
use crate::cpu::{Level, has_amx, has_bf16, level};

impl Kernel {
    /// Returns the kernel for C (m, n): a thin one if a wide one would mostly multiply padding.
    pub fn choose(precision: Precision, m: usize, n: usize) -> Kernel {
        let shape = match (m, n) {
            (_, ..=16) => Shape::Tall,
            (..=8 | 16, _) => Shape::Flat,
            _ => Shape::Wide,
        };
        match precision {
            Precision::F32 => Kernel::f32(shape),
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 if has_amx() => amx::kernel(m, n),
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 if has_bf16() => avx512::bf16(shape),
            #[cfg(target_arch = "aarch64")]
            Precision::Bf16 if has_bf16() => neon::bf16(shape),
            // Without bf16 instructions, rounded operands are multiplied in f32. The products are
            // the same; only the rounding of sums differs.
            Precision::Bf16 => Kernel::f32(shape).rounded(),
        }
    }

    fn rounded(self) -> Kernel {
        Kernel { a_format: Format::Rounded, b_format: Format::Rounded, ..self }
    }

    fn f32(shape: Shape) -> Kernel {
        match (level(), shape) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, shape) => avx512::f32(shape),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) => avx2::WIDE,
            #[cfg(target_arch = "aarch64")]
            (Level::Neon, shape) => neon::f32(shape),
            _ => PORTABLE,
        }
    }
}

/// Returns the name of the instructions that products in this precision use on this machine.
pub fn instructions(precision: Precision) -> &'static str {
    match (level(), precision) {
        (_, Precision::Bf16) if has_amx() => "AMX",
        (Level::Avx512, Precision::Bf16) if has_bf16() => "AVX512-BF16",
        (Level::Neon, Precision::Bf16) if has_bf16() => "NEON, BFMMLA",
        (Level::Avx512, Precision::F32) => "AVX-512",
        (Level::Avx512, Precision::Bf16) => "AVX-512, rounded to bf16",
        (Level::Avx2, Precision::F32) => "AVX2",
        (Level::Avx2, Precision::Bf16) => "AVX2, rounded to bf16",
        (Level::Neon, Precision::F32) => "NEON",
        (Level::Neon, Precision::Bf16) => "NEON, rounded to bf16",
        (Level::Portable, Precision::F32) => "portable",
        (Level::Portable, Precision::Bf16) => "portable, rounded to bf16",
    }
}

/// Returns all kernels that this machine can run.
#[cfg(test)]
pub fn available() -> Vec<Kernel> {
    let mut all = vec![PORTABLE];
    let shapes = [Shape::Wide, Shape::Flat, Shape::Tall];
    #[cfg(target_arch = "x86_64")]
    {
        if level() >= Level::Avx2 {
            all.push(avx2::WIDE);
        }
        if level() >= Level::Avx512 {
            all.extend(shapes.map(avx512::f32));
        }
    }
    #[cfg(target_arch = "aarch64")]
    all.extend(shapes.map(neon::f32));
    all.extend(all.clone().into_iter().map(Kernel::rounded));
    #[cfg(target_arch = "x86_64")]
    {
        if has_bf16() {
            all.extend(shapes.map(avx512::bf16));
            all.extend(amx::by_definition());
        }
        if has_amx() {
            all.extend(amx::ALL);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if has_bf16() {
        all.extend(shapes.map(neon::bf16));
    }
    all
}
