//! Conversions between half precision and f32, written so that the compiler vectorises them.

/// Returns the exact value of an f16.
#[inline(always)]
pub fn from_f16(bits: u16) -> f32 {
    // Move exponent and mantissa to their places in f32. The exponent is then 112 too small; the
    // multiplication by 2¹¹² corrects this, for subnormal numbers as well.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    let sign = u32::from(bits & 0x8000) << 16;
    f32::from_bits(magnitude.to_bits() | infinite | sign)
}

/// Rounds to the nearest f16, ties to even; ±∞ from 65520 on.
#[inline(always)]
pub fn to_f16(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = x.abs();
    // Adding a power of two whose unit in the last place is that of the f16 rounds to it.
    let exponent = (magnitude.to_bits() >> 23).max(113);
    let power = f32::from_bits((exponent + 13).min(254) << 23);
    let rounded = (magnitude + power) - power;
    let scaled = rounded * f32::from_bits((127 - 112) << 23);
    let bits = (scaled.to_bits() >> 13) as u16;
    let bits = if magnitude >= 65520.0 { 0x7c00 } else { bits };
    // A NaN keeps as much of its payload as fits, and becomes quiet.
    let bits = if x.is_nan() { 0x7e00 | (x.to_bits() >> 13) as u16 & 0x3ff } else { bits };
    sign | bits
}

/// Returns the exact value of a bf16.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest bf16, ties to even.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the value of an f16 by the definition of the format.
    fn value(bits: u16) -> f64 {
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(-24),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_f16_round_trips() {
        for bits in 0..=u16::MAX {
            let (got, want) = (from_f16(bits), value(bits));
            if want.is_nan() {
                assert!(got.is_nan() && to_f16(got) & 0x7c00 == 0x7c00 && to_f16(got) & 0x3ff != 0);
            } else {
                assert_eq!((got as f64).to_bits(), want.to_bits(), "{bits:#x}");
                assert_eq!(to_f16(got), bits);
            }
        }
    }

    #[test]
    fn f16_rounds_to_the_nearest_and_ties_to_even() {
        for bits in 0..0x7c00u16 {
            // The midpoint of two neighbours is exact in f32.
            let next = if bits == 0x7bff { 65536.0 } else { value(bits + 1) };
            let middle = ((value(bits) + next) / 2.0) as f32;
            assert_eq!(to_f16(middle), bits + (bits & 1), "{bits:#x}");
            assert_eq!(to_f16(middle.next_down()), bits, "{bits:#x}");
            assert_eq!(to_f16(middle.next_up()), bits + 1, "{bits:#x}");
            assert_eq!(to_f16(-middle.next_down()), 0x8000 | bits);
        }
        assert_eq!(to_f16(f32::MAX), 0x7c00);
        assert_eq!(to_f16(f32::from_bits(1)), 0);
    }

    #[test]
    fn bf16_rounds_to_the_nearest_and_ties_to_even() {
        for bits in (0..0x7f80u16).chain(0x8000..0xff80) {
            let middle = f32::from_bits(u32::from(bits) << 16 | 0x8000).to_bits();
            assert_eq!(to_bf16(from_bf16(bits)), bits);
            assert_eq!(to_bf16(f32::from_bits(middle)), bits + (bits & 1));
            assert_eq!(to_bf16(f32::from_bits(middle - 1)), bits);
            assert_eq!(to_bf16(f32::from_bits(middle + 1)), bits + 1);
        }
        assert!(from_bf16(to_bf16(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
