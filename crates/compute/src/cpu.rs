//! Detects the processor's vector instructions, once, and defines the macro that compiles an
//! element-wise function for each instruction set.

use std::sync::OnceLock;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Portable,
    /// NEON, which every 64-bit Arm processor has, with FMA
    Neon,
    /// AVX2 and FMA
    Avx2,
    /// AVX-512 F, VL, BW, DQ
    Avx512,
}

/// The best level that this processor has.
#[cfg(target_arch = "aarch64")]
pub const fn level() -> Level {
    Level::Neon
}

/// The best level that this processor has.
#[cfg(not(target_arch = "aarch64"))]
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("fma")
            {
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}

/// Returns whether the processor also has products of bf16 pairs, in AVX-512 or NEON.
pub fn has_bf16() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        return level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(target_arch = "aarch64")]
        return std::arch::is_aarch64_feature_detected!("bf16");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        false
    })
}

/// Each instruction set that kernels are written for, and whether this processor has it.
pub fn instruction_sets() -> [(&'static str, bool); 7] {
    [
        ("portable", true),
        ("AVX2", level() >= Level::Avx2),
        ("AVX-512", level() >= Level::Avx512),
        ("AVX512-BF16", level() >= Level::Avx512 && has_bf16()),
        ("AMX", has_amx()),
        ("NEON", level() == Level::Neon),
        ("NEON, BFMMLA", level() == Level::Neon && has_bf16()),
    ]
}

/// Bytes of a cache line. An access to a vector that crosses into the next line counts twice.
pub const LINE: usize = 64;

/// Prefetches values into the L1 cache. Rows of a wide matrix are on separate pages, across which
/// the processor does not prefetch by itself.
#[inline(always)]
pub fn prefetch_l1<T>(x: &[T]) {
    prefetch::<1, T>(x);
}

/// Prefetches values into the L2 cache.
#[inline(always)]
pub fn prefetch_l2<T>(x: &[T]) {
    prefetch::<2, T>(x);
}

#[inline(always)]
fn prefetch<const CACHE: u8, T>(x: &[T]) {
    for line in x.chunks(LINE / size_of::<T>()) {
        prefetch_line::<CACHE>(line.as_ptr().cast());
    }
}

/// Prefetches the cache line of an address into the L1 (`CACHE` = 1) or L2 cache. Any address is
/// allowed.
#[inline(always)]
pub fn prefetch_line<const CACHE: u8>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: any address may be prefetched.
        unsafe {
            match CACHE {
                1 => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
                _ => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            }
        }
    }
    // The intrinsic is unstable.
    #[cfg(target_arch = "aarch64")]
    // SAFETY: any address may be prefetched.
    unsafe {
        match CACHE {
            1 => std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags)),
            _ => std::arch::asm!("prfm pldl2keep, [{}]", in(reg) at, options(nostack, preserves_flags)),
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Returns whether the processor has Intel's matrix unit with products of bf16 (AMX-TILE and
/// AMX-BF16), and the system lets this process use it. Implies AVX512-BF16.
pub fn has_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| has_bf16() && amx::is_there() && amx::request())
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};

    /// Whether the processor has the unit and the system saves its registers.
    pub fn is_there() -> bool {
        #[target_feature(enable = "xsave")]
        fn enabled() -> u64 {
            // SAFETY: register 0 exists on processors with XSAVE.
            unsafe { _xgetbv(0) }
        }
        // `__cpuid_count` is safe in newer compilers.
        #[allow(unused_unsafe)]
        // SAFETY: leaf 7 exists, because AVX-512 was detected by it.
        let edx = unsafe { __cpuid_count(7, 0) }.edx;
        let (bf16, tile) = (1 << 22, 1 << 24);
        // SAFETY: AVX-512 was detected, so the system has enabled XSAVE and this register.
        let (configuration, data, enabled) = (1 << 17, 1 << 18, unsafe { enabled() });
        edx & (bf16 | tile) == bf16 | tile && enabled & (configuration | data) == configuration | data
    }

    /// Asks Linux for permission to use the unit, for all threads of the process, including those
    /// that are running. It refuses if the kernel is older than 5.16, or if a thread's signal stack
    /// is too small for the registers.
    pub fn request() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: changes nothing but this permission.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
}

/// Defines a function whose body is compiled once for each level, so that the compiler vectorises
/// it; a call runs the best. In the body, `fused::<FMA>(a, b, c)` of `crate::math` is a · b + c, in
/// one instruction if the level has it.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? {
                $body
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match $crate::cpu::level() {
                    // SAFETY: the processor has the features of this level.
                    $crate::cpu::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            // NEON's multiply-add needs no target feature on 64-bit Arm.
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use vectorised;
