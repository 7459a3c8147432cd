//! exp, erf and the row reductions that element-wise kernels share, written so that the compiler
//! vectorises them.
//!
//! Called inside `vectorised!` bodies only; `FMA` says whether a fused multiply-add is one
//! instruction there.

/// a · b + c, fused where the instruction exists (elsewhere a library call would cost a hundred
/// times as much).
#[inline(always)]
pub fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// eˣ to 2 units in the last place; 0 below −87.3, and x is clamped to at most 88.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer
    let under = x < -87.3;
    let x = x.clamp(-87.3, 88.0);
    let rounded = fused::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    // ln 2 in two parts (Cody and Waite): the first has so few bits that its product with n is
    // exact.
    let r = fused::<FMA>(n, -0.693_359_4, x);
    let r = fused::<FMA>(n, 2.121_944_4e-4, r);
    // Taylor's series on |r| <= ln 2 / 2.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fused::<FMA>(p, r, c);
    }
    // The lowest bits of `rounded` are n. A conversion with `as` saturates and maps NaN to 0, and
    // would not be vectorised.
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if under { 0.0 } else { p * power }
}

/// erf(x), relative error below 4e-7: x · P(x²) / Q(x²), fitted by iterated weighted least squares
/// on |x| < 3.92.
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    #[expect(clippy::approx_constant, reason = "the fit's value is near 2/√π and not it")]
    const P: [f32; 6] =
        [2.041_621e-6, 2.850_434_4e-4, 3.787_409_6e-3, 5.281_548e-2, 1.909_586_4e-1, 1.128_379_1];
    const Q: [f32; 6] = [3.801_220_4e-5, 1.167_192_4e-3, 1.501_334_8e-2, 1.143_316e-1, 5.025_654e-1, 1.0];
    let x = x.clamp(-3.92, 3.92);
    let t = x * x;
    let (mut p, mut q) = (P[0], Q[0]);
    for i in 1..6 {
        p = fused::<FMA>(p, t, P[i]);
        q = fused::<FMA>(q, t, Q[i]);
    }
    (x * p / q).clamp(-1.0, 1.0)
}

/// tanh(x) from exp; absolute error below 2e-7.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0)
}

const LANES: usize = 16;

/// Returns Σ f(xᵢ), accumulated in 16 partial sums in a fixed order.
#[inline(always)]
pub fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    lanes.iter().sum()
}

/// Returns Σ f(xᵢ, yᵢ), accumulated in 16 partial sums in a fixed order.
#[inline(always)]
pub fn sum_by_2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += f(x, y);
    }
    lanes.iter().sum()
}

/// Returns the largest value, or −∞ if there is none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_against_f64() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp::<true>(x) as f64, (x as f64).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, not {want}");
            assert!((exp::<false>(x) as f64 / want - 1.0).abs() < 3e-7);
        }
        assert_eq!(exp::<true>(-1000.0), 0.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn erf_against_known_values() {
        // Values of the error function to ten digits (Abramowitz and Stegun, table 7.1).
        let table = [
            (0.0, 0.0),
            (0.1, 0.1124629160),
            (0.5, 0.5204998778),
            (1.0, 0.8427007929),
            (1.5, 0.9661051465),
            (2.0, 0.9953222650),
            (3.0, 0.9999779095),
        ];
        for (x, want) in table {
            assert!((erf::<true>(x) as f64 - want).abs() <= 5e-7 * want, "erf({x}) = {}", erf::<true>(x));
            assert_eq!(erf::<true>(-x), -erf::<true>(x));
        }
        assert_eq!(erf::<false>(40.0), 1.0);
        assert!((tanh::<true>(0.7) - 0.7f32.tanh()).abs() < 3e-7);
    }
}
