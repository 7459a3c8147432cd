//! Vectors of sixteen f32, for loops that the compiler does not vectorise by itself.
//!
//! A kernel is written once, generic over `Lanes`, and `for_each_level!` compiles it for every
//! instruction set. Types that implement `Lanes` are tokens: a value exists only on a processor
//! that has the instructions.

use crate::blocks::half::{from_bf16, from_f16};

/// Number of values in an `F` or an `I`.
pub const LANES: usize = 16;

/// Operations on sixteen lanes.
pub trait Lanes: Copy {
    /// A vector of f32.
    type F: Copy;
    /// A vector of i32.
    type I: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// Returns a · b + c, rounded once if the processor has a fused multiply-add.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn float(self, x: Self::I) -> Self::F;
    /// Widens signed bytes.
    fn signed(self, x: &[u8; LANES]) -> Self::I;
    /// Returns `(x >> shift) & mask` for each byte.
    fn field(self, x: &[u8; LANES], shift: usize, mask: i32) -> Self::I;
    /// Returns `field(x, shift, mask) · unit − zero` as f32, exactly, because these are small
    /// integers. `mask` has at most the lowest four bits.
    #[inline(always)]
    fn number(self, x: &[u8; LANES], shift: usize, mask: i32, unit: f32, zero: f32) -> Self::F {
        let number = self.mul(self.float(self.field(x, shift, mask)), self.splat(unit));
        self.sub(number, self.splat(zero))
    }
    /// Adds `value` to the lanes of x whose bit is set in `word`.
    #[inline(always)]
    fn add_where(self, x: Self::F, word: u16, value: f32) -> Self::F {
        self.add(x, self.mul(self.float(self.bits(word)), self.splat(value)))
    }
    /// Returns bit i of `word` in lane i.
    fn bits(self, word: u16) -> Self::I;
    /// Returns `table[(x >> shift) & 15]` for each byte.
    fn lookup(self, table: Self::F, x: &[u8; LANES], shift: usize) -> Self::F;
    /// Loads sixteen f32 in native byte order.
    #[inline(always)]
    fn f32s(self, x: &[u8; 4 * LANES]) -> Self::F {
        let x = x.as_chunks().0;
        self.load(&std::array::from_fn(|i| f32::from_ne_bytes(x[i])))
    }
    /// Widens sixteen f16.
    #[inline(always)]
    fn f16s(self, x: &[u8; 2 * LANES]) -> Self::F {
        let x = x.as_chunks().0;
        self.load(&std::array::from_fn(|i| from_f16(u16::from_le_bytes(x[i]))))
    }
    /// Widens sixteen bf16.
    #[inline(always)]
    fn bf16s(self, x: &[u8; 2 * LANES]) -> Self::F {
        let x = x.as_chunks().0;
        self.load(&std::array::from_fn(|i| from_bf16(u16::from_le_bytes(x[i]))))
    }

    /// Returns the sum of the lanes: the upper half is added to the lower half until one lane is
    /// left.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    /// Returns the value of an f16 in every lane.
    #[inline(always)]
    fn splat_half(self, bits: u16) -> Self::F {
        self.splat(self.half(bits))
    }

    /// Returns the value of an f16.
    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        from_f16(bits)
    }
}

/// Implementation without intrinsics, left to the compiler to vectorise.
#[derive(Clone, Copy)]
#[cfg(any(test, not(target_arch = "aarch64")))]
pub struct Portable;

#[cfg(any(test, not(target_arch = "aarch64")))]
impl Lanes for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        *out = x;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn signed(self, x: &[u8; LANES]) -> Self::I {
        x.map(|x| i32::from(x as i8))
    }

    #[inline(always)]
    fn field(self, x: &[u8; LANES], shift: usize, mask: i32) -> Self::I {
        x.map(|x| i32::from(x) >> shift & mask)
    }

    #[inline(always)]
    fn bits(self, word: u16) -> Self::I {
        std::array::from_fn(|i| i32::from(word >> i & 1))
    }

    #[inline(always)]
    fn lookup(self, table: Self::F, x: &[u8; LANES], shift: usize) -> Self::F {
        x.map(|x| table[usize::from(x >> shift & 15)])
    }
}

/// Defines methods whose bodies need only the token's instructions, and access only the arrays that
/// are their arguments.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! operations {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the creator of the token promised the instructions; pointers are to
                // arrays of the size that is accessed.
                unsafe { $body }
            }
        )*
    };
}

#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Lanes};

    /// Token of a processor with AVX-512 F and DQ.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    /// Token of a processor with AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    impl Avx512 {
        /// # Safety
        /// The processor has AVX-512 F and DQ.
        #[inline(always)]
        pub unsafe fn new() -> Self {
            Avx512(())
        }
    }

    impl Avx2 {
        /// # Safety
        /// The processor has AVX2 and FMA.
        #[inline(always)]
        pub unsafe fn new() -> Self {
            Avx2(())
        }
    }

    /// Returns the sum of eight lanes, adding halves to halves.
    ///
    /// # Safety
    /// The processor has AVX.
    #[inline(always)]
    unsafe fn sum_8(x: __m256) -> f32 {
        // SAFETY: the caller promises AVX.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    impl Lanes for Avx512 {
        type F = __m512;
        type I = __m512i;

        operations! {
            fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
            fn load(x: &[f32; LANES]) -> __m512 { _mm512_loadu_ps(x.as_ptr()) }
            fn store(x: __m512, out: &mut [f32; LANES]) { _mm512_storeu_ps(out.as_mut_ptr(), x) }
            fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            fn float(x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
            fn signed(x: &[u8; LANES]) -> __m512i { _mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())) }
            fn field(x: &[u8; LANES], shift: usize, mask: i32) -> __m512i {
                {
                    let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                    let down = _mm512_srlv_epi32(wide, _mm512_set1_epi32(shift as i32));
                    _mm512_and_si512(down, _mm512_set1_epi32(mask))
                }
            }
            fn number(x: &[u8; LANES], shift: usize, mask: i32, unit: f32, zero: f32) -> __m512 {
                {
                    // One table lookup replaces the mask, the conversion, the product and the
                    // difference.
                    let table: [f32; LANES] = std::array::from_fn(|i| (i as i32 & mask) as f32 * unit - zero);
                    let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                    let place = _mm512_srlv_epi32(wide, _mm512_set1_epi32(shift as i32));
                    _mm512_permutexvar_ps(place, _mm512_loadu_ps(table.as_ptr()))
                }
            }
            fn add_where(x: __m512, word: u16, value: f32) -> __m512 {
                _mm512_mask_add_ps(x, word, x, _mm512_set1_ps(value))
            }
            fn splat_half(bits: u16) -> __m512 { _mm512_cvtph_ps(_mm256_set1_epi16(bits as i16)) }
            fn half(bits: u16) -> f32 { _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_set1_epi16(bits as i16))) }
            fn bits(word: u16) -> __m512i { _mm512_maskz_set1_epi32(word, 1) }
            fn lookup(table: __m512, x: &[u8; LANES], shift: usize) -> __m512 {
                {
                    // The permutation uses only the lowest four bits of an index.
                    let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()));
                    let place = _mm512_srlv_epi32(wide, _mm512_set1_epi32(shift as i32));
                    _mm512_permutexvar_ps(place, table)
                }
            }
            fn sum(x: __m512) -> f32 {
                sum_8(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)))
            }
            fn f32s(x: &[u8; 4 * LANES]) -> __m512 { _mm512_loadu_ps(x.as_ptr().cast()) }
            fn f16s(x: &[u8; 2 * LANES]) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
            fn bf16s(x: &[u8; 2 * LANES]) -> __m512 {
                {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }
        }
    }

    impl Lanes for Avx2 {
        type F = [__m256; 2];
        type I = [__m256i; 2];

        operations! {
            fn splat(x: f32) -> [__m256; 2] { [_mm256_set1_ps(x); 2] }
            fn load(x: &[f32; LANES]) -> [__m256; 2] {
                [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))]
            }
            fn store(x: [__m256; 2], out: &mut [f32; LANES]) {
                {
                    _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
                    _mm256_storeu_ps(out.as_mut_ptr().add(8), x[1]);
                }
            }
            fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
            }
            fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
            }
            fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
                [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
            }
            fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
                [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
            }
            fn float(x: [__m256i; 2]) -> [__m256; 2] { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
            fn signed(x: &[u8; LANES]) -> [__m256i; 2] {
                {
                    let x = _mm_loadu_si128(x.as_ptr().cast());
                    [_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(x))]
                }
            }
            fn field(x: &[u8; LANES], shift: usize, mask: i32) -> [__m256i; 2] {
                {
                    let x = _mm_loadu_si128(x.as_ptr().cast());
                    let (shift, mask) = (_mm256_set1_epi32(shift as i32), _mm256_set1_epi32(mask));
                    let wide = [_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x))];
                    [
                        _mm256_and_si256(_mm256_srlv_epi32(wide[0], shift), mask),
                        _mm256_and_si256(_mm256_srlv_epi32(wide[1], shift), mask),
                    ]
                }
            }
            fn bits(word: u16) -> [__m256i; 2] {
                {
                    let (places, one) = (_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(1));
                    let (low, high) = (_mm256_set1_epi32(word.into()), _mm256_set1_epi32((word >> 8).into()));
                    [
                        _mm256_and_si256(_mm256_srlv_epi32(low, places), one),
                        _mm256_and_si256(_mm256_srlv_epi32(high, places), one),
                    ]
                }
            }
            fn sum(x: [__m256; 2]) -> f32 { sum_8(_mm256_add_ps(x[0], x[1])) }
            fn lookup(table: [__m256; 2], x: &[u8; LANES], shift: usize) -> [__m256; 2] {
                {
                    let (x, shift) = (_mm_loadu_si128(x.as_ptr().cast()), _mm256_set1_epi32(shift as i32));
                    let wide = [_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x))];
                    let mut found = [_mm256_setzero_ps(); 2];
                    for (found, wide) in found.iter_mut().zip(wide) {
                        // Three bits select a lane in both halves of the table. The fourth, moved
                        // to the sign bit, selects the half.
                        let place = _mm256_srlv_epi32(wide, shift);
                        let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(place));
                        *found = _mm256_blendv_ps(
                            _mm256_permutevar8x32_ps(table[0], place),
                            _mm256_permutevar8x32_ps(table[1], place),
                            upper,
                        );
                    }
                    found
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;
    use std::array::from_fn;

    use super::{LANES, Lanes};

    /// Token of the architecture, all of whose processors have NEON.
    #[derive(Clone, Copy)]
    pub struct Neon;

    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    unsafe fn widen(x: uint8x16_t) -> [int32x4_t; 4] {
        // SAFETY: the caller promises NEON.
        unsafe {
            let halves = [vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x)];
            let quarters = halves.map(|x| [vmovl_u16(vget_low_u16(x)), vmovl_high_u16(x)]);
            from_fn(|i| vreinterpretq_s32_u32(quarters[i / 2][i % 2]))
        }
    }

    impl Lanes for Neon {
        type F = [float32x4_t; 4];
        type I = [int32x4_t; 4];

        operations! {
            fn splat(x: f32) -> [float32x4_t; 4] { [vdupq_n_f32(x); 4] }
            fn load(x: &[f32; LANES]) -> [float32x4_t; 4] { from_fn(|i| vld1q_f32(x.as_ptr().add(4 * i))) }
            fn store(x: [float32x4_t; 4], out: &mut [f32; LANES]) {
                for (i, x) in x.into_iter().enumerate() {
                    vst1q_f32(out.as_mut_ptr().add(4 * i), x);
                }
            }
            fn add(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
                from_fn(|i| vaddq_f32(a[i], b[i]))
            }
            fn sub(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
                from_fn(|i| vsubq_f32(a[i], b[i]))
            }
            fn mul(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
                from_fn(|i| vmulq_f32(a[i], b[i]))
            }
            fn mul_add(a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
                from_fn(|i| vfmaq_f32(c[i], a[i], b[i]))
            }
            fn float(x: [int32x4_t; 4]) -> [float32x4_t; 4] { from_fn(|i| vcvtq_f32_s32(x[i])) }
            fn signed(x: &[u8; LANES]) -> [int32x4_t; 4] {
                {
                    let x = vld1q_s8(x.as_ptr().cast());
                    let halves = [vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)];
                    let quarters = halves.map(|x| [vmovl_s16(vget_low_s16(x)), vmovl_high_s16(x)]);
                    from_fn(|i| quarters[i / 2][i % 2])
                }
            }
            fn field(x: &[u8; LANES], shift: usize, mask: i32) -> [int32x4_t; 4] {
                {
                    // A negative count shifts right.
                    let down = vshlq_u8(vld1q_u8(x.as_ptr()), vdupq_n_s8(-(shift as i8)));
                    widen(vandq_u8(down, vdupq_n_u8(mask as u8)))
                }
            }
            fn bits(word: u16) -> [int32x4_t; 4] {
                from_fn(|i| {
                    let down = vld1q_s32([0, -1, -2, -3].map(|place| place - 4 * i as i32).as_ptr());
                    vandq_s32(vshlq_s32(vdupq_n_s32(word.into()), down), vdupq_n_s32(1))
                })
            }
            fn lookup(table: [float32x4_t; 4], x: &[u8; LANES], shift: usize) -> [float32x4_t; 4] {
                {
                    let [t0, t1, t2, t3] = table.map(|x| vreinterpretq_u8_f32(x));
                    let table = uint8x16x4_t(t0, t1, t2, t3);
                    let lanes = Lanes::field(Neon, x, shift, 15);
                    from_fn(|i| {
                        // Indices of the four bytes of a lane of the table.
                        let first = vmulq_n_s32(lanes[i], 0x0404_0404);
                        let bytes = vaddq_s32(first, vdupq_n_s32(0x0302_0100));
                        vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_s32(bytes)))
                    })
                }
            }
            fn sum(x: [float32x4_t; 4]) -> f32 {
                {
                    let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
                    vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
                }
            }
            fn f32s(x: &[u8; 4 * LANES]) -> [float32x4_t; 4] {
                from_fn(|i| vreinterpretq_f32_u8(vld1q_u8(x.as_ptr().add(16 * i))))
            }
            fn bf16s(x: &[u8; 2 * LANES]) -> [float32x4_t; 4] {
                from_fn(|i| {
                    let halves = vreinterpret_u16_u8(vld1_u8(x.as_ptr().add(8 * i)));
                    vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
                })
            }
        }
    }
}

/// Defines a function that calls `$kernel` with the token of the best instruction set, followed by
/// its own arguments. `$kernel` is generic over `Lanes` and always inlined.
macro_rules! for_each_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) {
                    // SAFETY: this function has AVX-512.
                    $kernel(unsafe { $crate::lanes::Avx512::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) {
                    // SAFETY: this function has AVX2 and FMA.
                    $kernel(unsafe { $crate::lanes::Avx2::new() }, $($arg),*)
                }
                match $crate::cpu::level() {
                    // SAFETY: the processor has the features of this level.
                    $crate::cpu::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    $crate::cpu::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            $kernel($crate::lanes::Neon, $($arg),*);
            #[cfg(not(target_arch = "aarch64"))]
            $kernel($crate::lanes::Portable, $($arg),*)
        }
    };
}
pub(crate) use for_each_level;
