//! The stratified sample: a fraction of the rows in which every class, or decile of a regression's
//! labels, keeps its share.

use super::labels::Label;
use super::random::{Stream, stream};

/// Number of quantiles that a regression's labels are divided into.
const QUANTILES: usize = 10;

/// Draws round(ratio · n) of n labelled rows, `ratio` in (0, 1]. Every class keeps its share
/// (largest remainder) and has at least one row; a sample smaller than the number of classes grows
/// to it. Regression is stratified by the labels' deciles. Returns the rows' indices, ascending;
/// they depend only on the seed.
pub fn stratified(labels: &[Label], ratio: f64, seed: u64) -> Vec<usize> {
    draw(&strata(labels, target(labels.len(), ratio)), ratio, &mut Stream::new(seed, stream::SAMPLE))
}

/// Returns the rows that become dev if there is no dev file: `ratio` of them, stratified, and never
/// a class's only row, so that train keeps every class. They do not depend on a run's seed: all
/// runs on a file have the same dev rows.
pub fn hold_out(labels: &[Label], ratio: f64) -> Vec<usize> {
    let of = strata(labels, target(labels.len(), ratio));
    let mut rows_of = vec![0usize; of.iter().max().map_or(0, |m| m + 1)];
    of.iter().for_each(|&s| rows_of[s] += 1);
    let free: Vec<usize> = (0..of.len()).filter(|&row| rows_of[of[row]] > 1).collect();
    let of_free: Vec<usize> = free.iter().map(|&row| of[row]).collect();
    let drawn = draw(&of_free, ratio, &mut Stream::new(0, stream::HOLD_OUT));
    drawn.into_iter().map(|i| free[i]).collect()
}

fn target(rows: usize, ratio: f64) -> usize {
    if rows == 0 {
        return 0;
    }
    ((ratio * rows as f64).round() as usize).clamp(1, rows)
}

/// Returns each row's stratum: its class, the rarest of several, or the quantile of its value.
/// There are at most ten quantiles, and no more than the sample has rows. Rows without a class form
/// a stratum of their own.
fn strata(labels: &[Label], size: usize) -> Vec<usize> {
    let quantiles = QUANTILES.min(size).max(1);
    let mut by_value: Vec<(f32, usize)> = Vec::new();
    let mut of: Vec<usize> = Vec::with_capacity(labels.len());
    let classes = labels.iter().flat_map(Label::classes).max().map_or(0, |most| most + 1);
    let mut count = vec![0usize; classes];
    labels.iter().flat_map(Label::classes).for_each(|&class| count[class] += 1);
    for (row, label) in labels.iter().enumerate() {
        if let Label::Value(value) = *label {
            by_value.push((value, row));
            of.push(0);
        } else {
            let rarest = label.classes().iter().copied().min_by_key(|&class| (count[class], class));
            of.push(rarest.unwrap_or(classes));
        }
    }
    by_value.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let rows = by_value.len();
    for (rank, (_, row)) in by_value.into_iter().enumerate() {
        of[row] = rank * quantiles / rows;
    }
    of
}

/// Draws rows at random within each stratum, as many as `shares` returns.
fn draw(of: &[usize], ratio: f64, random: &mut Stream) -> Vec<usize> {
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); of.iter().max().map_or(0, |m| m + 1)];
    of.iter().enumerate().for_each(|(row, &stratum)| members[stratum].push(row));
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    let mut drawn = Vec::new();
    for (mut rows, take) in members.into_iter().zip(shares(&sizes, target(of.len(), ratio))) {
        random.shuffle(&mut rows);
        drawn.extend_from_slice(&rows[..take]);
    }
    drawn.sort_unstable();
    drawn
}

/// Returns the number of rows to draw from each stratum of the given `sizes`, `total` in all:
/// proportional by largest remainder, and at least one of each nonempty stratum. If `total` is less
/// than the number of nonempty strata, it grows to that.
fn shares(sizes: &[usize], total: usize) -> Vec<usize> {
    let rows: usize = sizes.iter().sum();
    let total = total.max(sizes.iter().filter(|&&n| n > 0).count()).min(rows);
    let quota = |i: usize| sizes[i] as f64 * total as f64 / rows as f64;
    let mut take: Vec<usize> =
        (0..sizes.len()).map(|i| (quota(i).floor() as usize).max(1).min(sizes[i])).collect();
    // Floors leave less than one row per stratum to distribute; the minimum of one can have
    // distributed too many.
    let behind = |take: &[usize], i: usize| quota(i) - take[i] as f64;
    let mut sum: usize = take.iter().sum();
    while sum < total {
        let open = (0..sizes.len()).filter(|&i| take[i] < sizes[i]);
        let Some(next) = open.reduce(|a, b| if behind(&take, b) > behind(&take, a) { b } else { a }) else {
            break;
        };
        take[next] += 1;
        sum += 1;
    }
    while sum > total {
        let open = (0..sizes.len()).filter(|&i| take[i] > 1);
        let Some(next) = open.reduce(|a, b| if behind(&take, b) < behind(&take, a) { b } else { a }) else {
            break;
        };
        take[next] -= 1;
        sum -= 1;
    }
    take
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn per_class(labels: &[Label], rows: &[usize]) -> Vec<usize> {
        let mut count = vec![0; 12];
        for &row in rows {
            let [class] = *labels[row].classes() else { unreachable!() };
            count[class] += 1;
        }
        count
    }

    #[test]
    fn largest_remainder() {
        assert_eq!(shares(&[50, 30, 20], 10), [5, 3, 2]);
        assert_eq!(shares(&[47, 33, 20], 10), [5, 3, 2]);
        // A class too small for its share has one row all the same, taken from where the surplus is
        // largest.
        assert_eq!(shares(&[990, 5, 5], 10), [8, 1, 1]);
        assert_eq!(shares(&[3, 0, 3], 1), [1, 0, 1]);
        assert_eq!(shares(&[], 0), [0usize; 0]);
    }

    proptest! {
        #[test]
        fn keeps_proportions(classes in prop::collection::vec(0usize..12, 1..400), ratio in 0.001f64..=1.0, seed: u64) {
            let labels: Vec<Label> = classes.iter().map(|&c| Label::Class(c)).collect();
            let rows = stratified(&labels, ratio, seed);
            prop_assert!(rows.is_sorted_by(|a, b| a < b));
            prop_assert!(rows.iter().all(|&r| r < labels.len()));
            let all: Vec<usize> = (0..labels.len()).collect();
            let (have, drawn) = (per_class(&labels, &all), per_class(&labels, &rows));
            let present = have.iter().filter(|&&n| n > 0).count();
            let asked = ((ratio * labels.len() as f64).round() as usize).max(1);
            prop_assert_eq!(rows.len(), asked.max(present));
            // The minimum of one moves at most one row a class away from the others.
            for (&have, &drawn) in have.iter().zip(&drawn) {
                let quota = have as f64 * rows.len() as f64 / labels.len() as f64;
                prop_assert!(drawn <= have && (have == 0 || drawn >= 1));
                prop_assert!(drawn as f64 <= quota.max(1.0) + 1.0);
                prop_assert!(drawn as f64 > quota - 1.0 - present as f64);
            }
            prop_assert_eq!(&rows, &stratified(&labels, ratio, seed));
        }

        #[test]
        fn keeps_quantiles(values in prop::collection::vec(-5.0f32..5.0, 1..400), ratio in 0.001f64..=1.0, seed: u64) {
            let labels: Vec<Label> = values.iter().map(|&v| Label::Value(v)).collect();
            let rows = stratified(&labels, ratio, seed);
            prop_assert_eq!(rows.len(), ((ratio * values.len() as f64).round() as usize).max(1));
            // Each decile holds a tenth of the sample, to within the rounding of its share.
            if rows.len() >= 10 {
                let mut order: Vec<usize> = (0..values.len()).collect();
                order.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then(a.cmp(&b)));
                let mut count = [0usize; 10];
                for (rank, row) in order.iter().enumerate() {
                    count[rank * 10 / values.len()] += usize::from(rows.contains(row));
                }
                let share = rows.len() as f64 / 10.0;
                prop_assert!(count.iter().all(|&n| (n as f64 - share).abs() <= 2.0), "{:?}", count);
            }
        }

        #[test]
        fn hold_out_leaves_every_class(classes in prop::collection::vec(0usize..12, 2..200)) {
            let labels: Vec<Label> = classes.iter().map(|&c| Label::Class(c)).collect();
            let rows = hold_out(&labels, 0.1);
            let all: Vec<usize> = (0..labels.len()).collect();
            for (have, out) in per_class(&labels, &all).into_iter().zip(per_class(&labels, &rows)) {
                prop_assert!(have == 0 || out < have);
            }
        }
    }

    #[test]
    fn seeds_differ() {
        let labels: Vec<Label> = (0..200).map(|i| Label::Class(i % 2)).collect();
        assert_ne!(stratified(&labels, 0.1, 1), stratified(&labels, 0.1, 2));
    }
}
