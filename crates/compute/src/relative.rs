//! MPNet's bias on attention: a learned number for each head and bucket of distances (as in T5,
//! Raffel et al. 2020).

use crate::device::Relative;

/// Distances beyond this share the last bucket of their side.
const MAX_DISTANCE: f32 = 128.0;

/// The bucket of the distance key − query, out of `buckets`: half of them for each sign, exact for
/// short distances and logarithmic for long ones.
pub fn bucket(distance: isize, buckets: usize) -> usize {
    let side = buckets / 2;
    let from = if distance > 0 { side } else { 0 };
    let n = distance.unsigned_abs();
    let exact = side / 2;
    if n < exact {
        return from + n;
    }
    // In f32, as transformers computes it, so that distances on a boundary get the same bucket.
    let far = (n as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln() * (side - exact) as f32;
    from + (exact + far as usize).min(side - 1)
}

/// Iterates over the indices of the table, each with the index of its value in the weight.
fn places(of: Relative) -> impl Iterator<Item = (usize, usize)> {
    let Relative { buckets, heads, reach } = of;
    let span = 2 * reach - 1;
    (0..span).flat_map(move |i| {
        let b = bucket(i as isize - (reach as isize - 1), buckets);
        (0..heads).map(move |head| (head * span + i, b * heads + head))
    })
}

/// Expands the weight (buckets, heads) to a table by distance (heads, 2 · reach − 1), for
/// `attention::RelativeBias`.
pub fn table(weight: &[f32], of: Relative, table: &mut [f32]) {
    places(of).for_each(|(at, of_weight)| table[at] = weight[of_weight]);
}

/// dweight (buckets, heads) += the gradient of the table, summed within buckets.
pub fn backward(dtable: &[f32], of: Relative, dweight: &mut [f32]) {
    places(of).for_each(|(at, of_weight)| dweight[of_weight] += dtable[at]);
}
