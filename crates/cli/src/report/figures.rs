//! The charts of a run's report: which series each one has, made from the run's records.

use std::fmt::Write;

use maud::Markup;

use crate::report::curves::{Chart, Item, buckets, drawable};
use crate::report::grid::Ranking;
use crate::report::words::metric_title;
use lora_drop::events::{EvaluationRecord, Stage, StepRecord};
use lora_drop::format::{self, counted, fixed, scientific};

/// The most points of a loss curve: more steps are drawn as means, with a band from least to
/// greatest.
const POINTS: usize = 80;

/// Loss over the steps of a stage, with dev's loss after each epoch of training; None without
/// steps.
pub fn loss(stage: Stage, steps: &[StepRecord], evaluations: &[EvaluationRecord]) -> Option<Markup> {
    let points: Vec<(f64, f64)> =
        steps.iter().filter(|s| s.stage == stage).map(|s| (s.step as f64, s.loss)).collect();
    let (&(first, first_loss), &(last, last_loss)) = (points.first()?, points.last()?);
    let (mut items, mut note) = (Vec::new(), String::new());
    let mut key = vec![(0, "training".to_string())];
    let pieces = buckets(&points, POINTS);
    if points.len() > POINTS {
        let size = points.len().div_ceil(POINTS);
        note = format!(
            "The line is the mean of {size} steps, the band goes from their least to their greatest loss. "
        );
        items.push(Item::Band { series: 0, points: pieces.iter().map(|p| (p.0, p.2, p.3)).collect() });
    }
    items.push(curve(0, pieces.iter().map(|p| (p.0, p.1)).collect()));
    let undrawn = points.iter().filter(|p| !drawable(p.1)).count();
    if undrawn > 0 {
        note +=
            &format!("The loss of {} was not a finite number and is not drawn.", counted(undrawn, "step"));
    }
    let mut end = last;
    if stage == Stage::Train && !evaluations.is_empty() {
        let dev: Vec<(f64, f64)> = evaluations.iter().map(|e| (e.step as f64, e.loss)).collect();
        end = dev.iter().map(|p| p.0).fold(end, f64::max);
        key.push((1, "dev, after each epoch".to_string()));
        items.push(Item::Line { series: 1, points: dev.clone() });
        items.push(Item::Dots { series: 1, points: dev, filled: true });
    }
    let (id, caption) = match stage {
        Stage::Sample => ("loss-sample", "Loss on the sample"),
        _ => ("loss-train", "Loss in training"),
    };
    let text =
        format!("From {} at step {first} to {} at step {last}.", fixed(first_loss, 4), fixed(last_loss, 4));
    let (note, x) = (note.trim_end(), (first, end));
    let chart = Chart {
        id,
        caption,
        text: &text,
        x_name: "step",
        y_name: "loss",
        x,
        items,
        key,
        note,
        ..Chart::default()
    };
    Some(chart.figure())
}

/// A line, or a dot where there is a single point.
fn curve(series: usize, points: Vec<(f64, f64)>) -> Item {
    match points.as_slice() {
        [_] => Item::Dots { series, points, filled: true },
        _ => Item::Line { series, points },
    }
}

/// The learning rate over the steps of training; None without steps.
pub fn learning_rate(steps: &[StepRecord]) -> Option<Markup> {
    let rates: Vec<(f64, f64)> =
        steps.iter().filter(|s| s.stage == Stage::Train).map(|s| (s.step as f64, s.learning_rate)).collect();
    let (first, last) = (rates.first()?, rates.last()?);
    let highest = rates.iter().map(|r| r.1).filter(|r| drawable(*r)).fold(0.0, f64::max);
    let text = format!(
        "From {} at step {} to {} at step {}, at most {}.",
        scientific(first.1),
        first.0,
        scientific(last.1),
        last.0,
        scientific(highest)
    );
    // Single steps and not means, so that the corners of the schedule stay; the last one always.
    let every = rates.len().div_ceil(2 * POINTS);
    let mut points: Vec<(f64, f64)> = rates.iter().copied().step_by(every).collect();
    points.extend(Some(last).filter(|last| points.last() != Some(last)));
    let chart = Chart {
        id: "learning-rate",
        caption: "Learning rate in training",
        text: &text,
        x_name: "step",
        y_name: "learning rate",
        x: (first.0, last.0),
        y: (highest > 0.0).then_some((0.0, 1.08 * highest)),
        items: vec![curve(0, points)],
        ..Chart::default()
    };
    Some(chart.figure())
}

/// Every metric over the epochs, with the best epoch marked; None without evaluations. `positive` is
/// the class whose F1 is measured.
pub fn metrics(evaluations: &[EvaluationRecord], best: f64, positive: Option<&str>) -> Option<Markup> {
    let (first, last) = (evaluations.first()?, evaluations.last()?);
    let (mut items, mut key) = (Vec::new(), Vec::new());
    // The best epoch's rule lies below the curves.
    if evaluations.iter().any(|e| e.epoch == best) {
        items.push(Item::At { x: best, text: format!("best: epoch {}", format::epoch(best)) });
    }
    for (series, (name, _)) in first.metrics.iter().enumerate() {
        let value = |e: &EvaluationRecord| e.metrics.iter().find(|m| m.0 == *name).map(|m| m.1);
        let points: Vec<(f64, f64)> = evaluations.iter().filter_map(|e| Some((e.epoch, value(e)?))).collect();
        let (of_best, others) = points.iter().partition(|p| p.0 == best);
        items.push(Item::Line { series, points });
        items.push(Item::Dots { series, points: others, filled: false });
        items.push(Item::Dots { series, points: of_best, filled: true });
        key.push((series, metric_title(name, positive)));
    }
    let chart = Chart {
        id: "metrics",
        caption: "Metrics on dev",
        text: "The values are in the table of evaluations.",
        x_name: "epoch",
        y_name: "metric",
        x: (first.epoch, last.epoch),
        items,
        key,
        ..Chart::default()
    };
    Some(chart.figure())
}

/// Cumulative importance by rank, with the threshold where one decided; None without layers.
pub fn cumulative(rankings: &[Ranking], threshold: Option<f64>) -> Option<Markup> {
    let longest = rankings.iter().map(|r| r.places.len()).max().filter(|longest| *longest > 0)?;
    let level = threshold.map(|t| Item::Level { y: t, text: format!("T = {t}") });
    let mut items: Vec<Item> = level.into_iter().collect();
    let (mut key, mut text) = (Vec::new(), String::new());
    for (series, Ranking { name, places }) in rankings.iter().enumerate() {
        let at = |i: usize| (i as f64 + 1.0, places[i].cumulative);
        let (kept, others): (Vec<usize>, Vec<usize>) = (0..places.len()).partition(|&i| places[i].kept);
        let points = std::iter::once((0.0, 0.0)).chain((0..places.len()).map(at)).collect();
        items.push(Item::Line { series, points });
        items.push(Item::Dots { series, points: others.into_iter().map(at).collect(), filled: false });
        items.push(Item::Dots { series, points: kept.iter().copied().map(at).collect(), filled: true });
        let order: Vec<String> = places.iter().map(|p| p.layer.to_string()).collect();
        _ = write!(text, "{name}: layers by importance {}; {} kept. ", order.join(" "), kept.len());
        key.push((series, name.clone()));
    }
    let totals = rankings.iter().filter_map(|r| r.places.last()).map(|p| p.cumulative);
    let highest = totals.filter(|t| drawable(*t)).fold(1.0, f64::max);
    let chart = Chart {
        id: "cumulative",
        caption: "Cumulative importance",
        text: text.trim_end(),
        x_name: "layers, most important first",
        y_name: "sum of I",
        x: (0.0, longest as f64),
        y: Some((0.0, 1.04 * highest)),
        items,
        key,
        note: "Filled dots are kept layers, rings are the others.",
        ..Chart::default()
    };
    Some(chart.figure())
}

/// Kendall's tau of each scoring against the one before, over the sample stage's steps; None
/// without.
pub fn agreement(history: &[(usize, f64)]) -> Option<Markup> {
    let points: Vec<(f64, f64)> = history.iter().map(|&(step, tau)| (step as f64, tau)).collect();
    let (first, last) = (points.first()?, points.last()?);
    let lowest = points.iter().map(|p| p.1).filter(|tau| drawable(*tau)).fold(0.0, f64::min);
    let text: Vec<String> =
        points.iter().map(|(step, tau)| format!("step {step}: {}", fixed(*tau, 3))).collect();
    let chart = Chart {
        id: "settling",
        caption: "Agreement of each ranking with the one before",
        text: &text.join(", "),
        x_name: "step of the sample stage",
        y_name: "Kendall’s tau",
        x: (first.0, last.0),
        y: Some((lowest.max(-1.0), 1.04)),
        items: vec![
            Item::Line { series: 0, points: points.clone() },
            Item::Dots { series: 0, points: points.clone(), filled: true },
        ],
        note: "1: the same order; 0: no relation.",
        ..Chart::default()
    };
    Some(chart.figure())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::samples;

    #[test]
    fn short_series_are_drawn_whole_and_long_ones_as_means_with_a_band() {
        let drawn = |steps: &[StepRecord]| loss(Stage::Train, steps, &[]).unwrap().into_string();
        let short = drawn(&samples::steps(Stage::Train, 80, 1.0));
        assert!(!short.contains("band") && !short.contains("mean of"));
        let long = drawn(&samples::steps(Stage::Train, 1000, 1.0));
        assert!(long.contains("s0 band") && long.contains("mean of 13 steps"));
        assert!(loss(Stage::Sample, &samples::steps(Stage::Train, 10, 1.0), &[]).is_none());
    }

    #[test]
    fn steps_without_a_loss_are_counted() {
        let mut steps = samples::steps(Stage::Train, 20, 1.0);
        steps[3].loss = f64::NAN;
        steps[4].loss = f64::INFINITY;
        let figure = loss(Stage::Train, &steps, &[]).unwrap().into_string();
        assert!(figure.contains("The loss of 2 steps was not a finite number"));
    }

    #[test]
    fn the_learning_rate_ends_where_training_ends() {
        let figure = learning_rate(&samples::steps(Stage::Train, 1000, 1.0)).unwrap().into_string();
        assert!(figure.contains("From 1.0e-3 at step 1 to 0 at step 1000, at most 1.0e-3."), "{figure}");
        assert!(learning_rate(&samples::steps(Stage::Sample, 10, 1.0)).is_none());
        let mut constant = samples::steps(Stage::Train, 1, 1.0);
        constant[0].learning_rate = f64::NAN;
        assert!(!learning_rate(&constant).unwrap().into_string().contains("NaN"));
    }

    #[test]
    fn the_best_epoch_is_marked() {
        let figure = metrics(&samples::evaluations(5, 10), 4.0, None).unwrap().into_string();
        assert!(figure.contains("best: epoch 4"));
        assert!(metrics(&[], 0.0, None).is_none());
    }
}
