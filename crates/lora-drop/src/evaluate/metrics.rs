//! The metrics of rows with labels, defined as scikit-learn, SciPy and seqeval define them.
//!
//! Where a metric has no value (a constant prediction has no correlation, a class that never occurs
//! and is never predicted has no F1), it is 0, so that a collapsed model never counts as a good one
//! and never stops a run.

use super::entities::EntityCount;
use crate::settings::definition::choices;

choices! {
    /// A measure of predictions against the labels, or of a text's probability.
    #[derive(Hash, PartialOrd, Ord)]
    Metric {
        /// Share of rows, or of words, with the right class.
        Accuracy = "accuracy",
        /// Two classes: F1 of the positive one. More: the mean of every class's F1 (macro). Of words:
        /// F1 of their entities.
        F1 = "f1",
        /// Matthews correlation coefficient, in the form for any number of classes.
        Mcc = "mcc",
        /// Share of the predicted entities that are in the labels.
        Precision = "precision",
        /// Share of the labels' entities that are predicted.
        Recall = "recall",
        /// F1 over the classes of all rows together.
        MicroF1 = "micro_f1",
        /// The mean of every class's F1.
        MacroF1 = "macro_f1",
        /// Share of rows with just the right classes.
        SubsetAccuracy = "subset_accuracy",
        /// Correlation of predicted and true values.
        Pearson = "pearson",
        /// Correlation of their ranks.
        Spearman = "spearman",
        /// e to the mean loss of a learned token: less is better.
        Perplexity = "perplexity",
    }
}

impl Metric {
    /// The metrics of classification.
    pub const CLASSIFICATION: [Metric; 3] = [Metric::Accuracy, Metric::F1, Metric::Mcc];
    /// The metrics of regression.
    pub const REGRESSION: [Metric; 2] = [Metric::Pearson, Metric::Spearman];

    /// The metrics of rows that may have several classes.
    pub const MULTI_LABEL: [Metric; 3] = [Metric::MicroF1, Metric::MacroF1, Metric::SubsetAccuracy];
    /// The metrics of words whose tags mark entities.
    pub const ENTITIES: [Metric; 4] = [Metric::F1, Metric::Precision, Metric::Recall, Metric::Accuracy];
    /// The metrics of words with other tags.
    pub const TAGS: [Metric; 2] = [Metric::Accuracy, Metric::MacroF1];

    /// Whether a higher value is better.
    pub fn higher_is_better(self) -> bool {
        self != Metric::Perplexity
    }
}

/// Whether a higher value is better, for the metric of this name; false for a loss and for unknown
/// names.
pub fn higher_is_better(name: &str) -> bool {
    name.parse().is_ok_and(Metric::higher_is_better)
}

/// Computes all metrics of classification from predicted and true class indices below `classes`.
/// With two classes, F1 is that of the class `positive`.
///
/// # Panics
/// The lengths differ, or an index is not below `classes`.
pub fn classification(
    predicted: &[usize],
    labels: &[usize],
    classes: usize,
    positive: usize,
) -> Vec<(Metric, f64)> {
    let counts = Counts::new(predicted, labels, classes);
    vec![
        (Metric::Accuracy, counts.accuracy()),
        (Metric::F1, counts.f1(positive)),
        (Metric::Mcc, counts.mcc()),
    ]
}

/// Computes all metrics of rows that may have several classes, from each row's predicted and true
/// class indices below `classes`.
pub fn multi_label<'a>(
    rows: impl Iterator<Item = (&'a [u32], &'a [u32])>,
    classes: usize,
) -> Vec<(Metric, f64)> {
    let mut counts = Counts::none(classes);
    let (mut all, mut right) = (0, 0);
    for (predicted, labels) in rows {
        predicted.iter().for_each(|&class| counts.predicted[class as usize] += 1.0);
        labels.iter().for_each(|&class| counts.labelled[class as usize] += 1.0);
        let hits = predicted.iter().filter(|class| labels.contains(class));
        hits.for_each(|&class| counts.hits[class as usize] += 1.0);
        all += 1;
        right += usize::from(predicted == labels);
    }
    let both: f64 = counts.labelled.iter().chain(&counts.predicted).sum();
    // Classes that never occur take part in the mean, as in scikit-learn.
    let mean = (0..classes).map(|class| counts.f1_of(class)).sum::<f64>() / classes.max(1) as f64;
    vec![
        (Metric::MicroF1, ratio(2.0 * counts.correct(), both)),
        (Metric::MacroF1, mean),
        (Metric::SubsetAccuracy, ratio(right as f64, all as f64)),
    ]
}

/// Computes all metrics of words whose tags mark entities, from the entities' counts and the share
/// of words with the right tag.
pub fn entities(counts: &[EntityCount], accuracy: f64) -> Vec<(Metric, f64)> {
    let sum = |count: fn(&EntityCount) -> usize| counts.iter().map(count).sum::<usize>() as f64;
    let (correct, labelled, predicted) =
        (sum(|count| count.correct), sum(|count| count.labelled), sum(|count| count.predicted));
    vec![
        (Metric::F1, ratio(2.0 * correct, labelled + predicted)),
        (Metric::Precision, ratio(correct, predicted)),
        (Metric::Recall, ratio(correct, labelled)),
        (Metric::Accuracy, accuracy),
    ]
}

/// Computes all metrics of words with other tags, from predicted and true class indices below
/// `classes`.
pub fn tags(predicted: &[usize], labels: &[usize], classes: usize) -> Vec<(Metric, f64)> {
    let counts = Counts::new(predicted, labels, classes);
    vec![(Metric::Accuracy, counts.accuracy()), (Metric::MacroF1, counts.macro_f1())]
}

/// Computes all metrics of regression from predicted and true values.
///
/// # Panics
/// The lengths differ.
pub fn regression(predicted: &[f32], labels: &[f32]) -> Vec<(Metric, f64)> {
    let widen = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
    let (predicted, labels) = (widen(predicted), widen(labels));
    vec![(Metric::Pearson, pearson(&predicted, &labels)), (Metric::Spearman, spearman(&predicted, &labels))]
}

/// Counts of rows by class: all that the metrics of classification need, without a table of all
/// pairs of classes.
struct Counts {
    /// For each class: rows that have it, rows for which it is predicted, and rows with both.
    labelled: Vec<f64>,
    predicted: Vec<f64>,
    hits: Vec<f64>,
}

impl Counts {
    fn none(classes: usize) -> Self {
        let [labelled, predicted, hits] = [(); 3].map(|()| vec![0.0; classes]);
        Counts { labelled, predicted, hits }
    }

    fn new(predicted: &[usize], labels: &[usize], classes: usize) -> Self {
        assert_eq!(predicted.len(), labels.len(), "as many predictions as labels");
        let mut counts = Counts::none(classes);
        for (&p, &l) in predicted.iter().zip(labels) {
            assert!(p < classes && l < classes, "class {p} or {l} of {classes}");
            counts.labelled[l] += 1.0;
            counts.predicted[p] += 1.0;
            counts.hits[l] += if p == l { 1.0 } else { 0.0 };
        }
        counts
    }

    fn rows(&self) -> f64 {
        self.labelled.iter().sum()
    }

    fn correct(&self) -> f64 {
        self.hits.iter().sum()
    }

    fn accuracy(&self) -> f64 {
        ratio(self.correct(), self.rows())
    }

    fn f1(&self, positive: usize) -> f64 {
        if self.hits.len() == 2 { self.f1_of(positive) } else { self.macro_f1() }
    }

    fn f1_of(&self, class: usize) -> f64 {
        ratio(2.0 * self.hits[class], self.labelled[class] + self.predicted[class])
    }

    fn macro_f1(&self) -> f64 {
        // as in scikit-learn, a class that neither occurs nor is predicted does not take part
        let present: Vec<usize> =
            (0..self.hits.len()).filter(|&c| self.labelled[c] + self.predicted[c] > 0.0).collect();
        ratio(present.iter().map(|&c| self.f1_of(c)).sum(), present.len() as f64)
    }

    /// Matthews correlation coefficient for any number of classes (Gorodkin 2004): the correlation
    /// of predicted and true assignments of rows to classes.
    fn mcc(&self) -> f64 {
        let n = self.rows();
        let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let covariance = self.correct() * n - sum(&self.labelled, &self.predicted);
        let spread_labels = n * n - sum(&self.labelled, &self.labelled);
        let spread_predicted = n * n - sum(&self.predicted, &self.predicted);
        ratio(covariance, (spread_labels * spread_predicted).sqrt())
    }
}

fn ratio(of: f64, by: f64) -> f64 {
    if by == 0.0 { 0.0 } else { of / by }
}

/// Returns Pearson's correlation coefficient of two lists of equal length; 0 if one is constant,
/// has fewer than two values, or has a NaN.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "as many predictions as labels");
    // Tested on the values, because the mean of a constant list may have a rounding error.
    let constant = |v: &[f64]| v.iter().all(|value| *value == v[0]);
    if constant(x) || constant(y) {
        return 0.0;
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xy += dx * dy;
        xx += dx * dx;
        yy += dy * dy;
    }
    let r = xy / (xx.sqrt() * yy.sqrt());
    if r.is_nan() { 0.0 } else { r.clamp(-1.0, 1.0) }
}

/// Returns Spearman's rank correlation: Pearson's over ranks, where equal values share the mean of
/// their ranks; 0 as in [`pearson`].
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|v| v.is_nan()) {
        return 0.0;
    }
    pearson(&ranks(x), &ranks(y))
}

/// Returns ranks from 1; ties get their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut place = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &i in tied {
            ranks[i] = place as f64 + (tied.len() as f64 + 1.0) / 2.0;
        }
        place += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: &[(Metric, f64)], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for ((metric, found), expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{metric}: {found}, expected {expected}");
        }
    }

    // Expected values: accuracy_score, f1_score (average="macro" for more than two classes) and
    // matthews_corrcoef of scikit-learn 1.9.1; pearsonr and spearmanr of SciPy 1.17.1, on the same
    // lists.

    #[test]
    fn many_classes_take_no_table_of_their_pairs() {
        // A table would have 10^12 entries.
        let classes: Vec<usize> = (0..1000).map(|i| i * 1000).collect();
        let found = classification(&classes, &classes, 1_000_000, 1);
        assert_eq!(found, [(Metric::Accuracy, 1.0), (Metric::F1, 1.0), (Metric::Mcc, 1.0)]);
    }

    #[test]
    fn two_classes() {
        let labels = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1];
        let predicted = [0, 1, 0, 0, 1, 1, 0, 1, 1, 0];
        assert_near(
            &classification(&predicted, &labels, 2, 1),
            &[0.7, 0.7272727272727273, 0.408248290463863],
        );
    }

    #[test]
    fn either_of_two_classes_can_be_the_positive_one() {
        // Of class 0, three rows are found and one is missed; one row of class 1 is taken for class
        // 0.
        let (labels, predicted) = ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1]);
        let f1 = |positive| classification(&predicted, &labels, 2, positive)[1].1;
        assert!((f1(0) - 0.75).abs() < 1e-12 && (f1(1) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn four_classes() {
        let labels = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 2, 0];
        let predicted = [0, 2, 2, 1, 0, 1, 2, 0, 0, 2, 1, 0];
        let expected = [0.6666666666666666, 0.4930555555555555, 0.5208421985061126];
        assert_near(&classification(&predicted, &labels, 4, 1), &expected);
    }

    #[test]
    fn a_class_that_never_occurs_does_not_take_part() {
        let (labels, predicted) = ([0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 2, 1]);
        let expected = [0.5, 0.4666666666666666, 0.26111648393354675];
        assert_near(&classification(&predicted, &labels, 4, 1), &expected);
    }

    #[test]
    fn values_with_ties() {
        let predicted = [0.1, 2.5, 2.5, 4.0, 3.2, 1.1, 0.7, 5.0];
        let labels = [0.0, 2.0, 3.0, 4.2, 4.2, 1.0, 1.0, 4.8];
        assert_near(&regression(&predicted, &labels), &[0.9651578722609634, 0.9818362138701557]);
    }

    #[test]
    fn a_collapsed_model_gets_zero() {
        assert_near(&classification(&[0; 4], &[0, 1, 0, 1], 2, 1), &[0.5, 0.0, 0.0]);
        assert_near(&classification(&[], &[], 2, 1), &[0.0, 0.0, 0.0]);
        // The computed mean of these values is not exactly 0.1.
        assert_near(&regression(&[0.1; 7], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), &[0.0, 0.0]);
        assert_near(&regression(&[f32::NAN, 1.0, 2.0], &[1.0, 2.0, 3.0]), &[0.0, 0.0]);
        assert_near(&regression(&[], &[]), &[0.0, 0.0]);
    }

    #[test]
    fn names_are_read_back() {
        for &metric in Metric::ALL {
            assert_eq!(metric.to_string().parse::<Metric>().expect("a known name"), metric);
        }
        assert_eq!("perplexity".parse::<Metric>().expect("a known name"), Metric::Perplexity);
        assert!(!Metric::Perplexity.higher_is_better() && Metric::Mcc.higher_is_better());
        let message = "rouge".parse::<Metric>().expect_err("unknown").to_string();
        assert_eq!(
            message,
            "\"rouge\" is unknown; expected accuracy, f1, mcc, precision, recall, micro_f1, macro_f1, subset_accuracy, \
             pearson, spearman or perplexity"
        );
    }
}
