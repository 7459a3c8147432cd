//! The report's charts: which series each one has, made from the run's records.

use std::fmt::Write;

use crate::report::curves::{Chart, Item, PALETTE, buckets, drawable};
use crate::report::grid::Ranking;
use crate::report::html::escape;
use crate::report::metric_name;
use lora_drop::events::{EvaluationRecord, Stage, StepRecord};
use lora_drop::format;

/// Points of a loss curve. More steps than this are drawn as means with the band from least to
/// greatest.
const POINTS: usize = 80;

/// One entry of a chart's key.
pub(crate) struct Key {
    pub series: usize,
    pub text: String,
}

/// A captioned chart with its key.
pub(crate) fn figure(chart: &Chart, caption: &str, key: &[Key], note: &str) -> String {
    let mut out = format!("<figure>\n<figcaption>{}</figcaption>\n", escape(caption));
    if !key.is_empty() {
        out.push_str("<ul class=\"legend\">\n");
        for Key { series, text } in key {
            _ = writeln!(
                out,
                "<li><svg class=\"sign\" viewBox=\"0 0 34 10\" width=\"34\" height=\"10\" aria-hidden=\"true\">\
                 <polyline fill=\"none\" class=\"stroke s{}\" stroke-width=\"2\" points=\"1,5 33,5\"/></svg>{}</li>",
                series % PALETTE,
                escape(text)
            );
        }
        out.push_str("</ul>\n");
    }
    _ = write!(out, "<div class=\"scroll\">\n{}</div>\n", chart.svg());
    if !note.is_empty() {
        _ = writeln!(out, "<p class=\"note\">{}</p>", escape(note));
    }
    out.push_str("</figure>\n");
    out
}

/// Loss over the steps of a stage, with dev's loss after each epoch where there is one.
pub fn loss(stage: Stage, steps: &[StepRecord], evaluations: &[EvaluationRecord]) -> Option<String> {
    let points: Vec<(i64, f64)> =
        steps.iter().filter(|s| s.stage == stage).map(|s| (s.step as i64, s.loss)).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return None;
    };
    let pieces = buckets(&points, POINTS);
    let mut x = (first.0, last.0);
    let mut items = Vec::new();
    let mut key = vec![Key { series: 0, text: "training".into() }];
    let mut note = String::new();
    if points.len() > POINTS {
        let size = points.len().div_ceil(POINTS);
        note = format!(
            "The line is the mean of {size} steps, the band goes from their least to their greatest loss. "
        );
        items.push(Item::Band { series: 0, points: pieces.iter().map(|p| (p.0, p.2, p.3)).collect() });
    }
    let line: Vec<(i64, f64)> = pieces.iter().map(|p| (p.0, p.1)).collect();
    match line.as_slice() {
        [_] => items.push(Item::Dots { series: 0, points: line, filled: true }),
        _ => items.push(Item::Line { series: 0, points: line }),
    }
    let undrawn = points.iter().filter(|p| !drawable(p.1)).count();
    if undrawn > 0 {
        _ = write!(
            note,
            "The loss of {} was no finite number and is not drawn.",
            format::counted(undrawn, "step")
        );
    }
    let dev: Vec<(i64, f64)> = evaluations.iter().map(|e| (e.step as i64, e.loss)).collect();
    if stage == Stage::Train && !dev.is_empty() {
        x.1 = x.1.max(dev.iter().map(|p| p.0).max().unwrap_or(x.1));
        key.push(Key { series: 1, text: "dev, after each epoch".into() });
        items.push(Item::Line { series: 1, points: dev.clone() });
        items.push(Item::Dots { series: 1, points: dev, filled: true });
    }
    let caption = match stage {
        Stage::Sample => "Loss on the sample",
        _ => "Loss in training",
    };
    let text = format!(
        "From {} at step {} to {} at step {}.",
        format::fixed(first.1, 4),
        first.0,
        format::fixed(last.1, 4),
        last.0
    );
    let id = if stage == Stage::Sample { "loss-sample" } else { "loss-train" };
    let chart = Chart {
        id,
        title: caption,
        text: &text,
        x_name: "step",
        y_name: "loss",
        x,
        x_ticks: None,
        y: None,
        items,
    };
    Some(figure(&chart, caption, &key, note.trim_end()))
}

/// The learning rate over the steps of training.
pub fn learning_rate(steps: &[StepRecord]) -> Option<String> {
    let rates: Vec<(i64, f64)> =
        steps.iter().filter(|s| s.stage == Stage::Train).map(|s| (s.step as i64, s.learning_rate)).collect();
    let (Some(first), Some(last)) = (rates.first(), rates.last()) else {
        return None;
    };
    let highest = rates.iter().map(|r| r.1).filter(|r| drawable(*r)).fold(0.0, f64::max);
    let text = format!(
        "From {} at step {} to {} at step {}, at most {}.",
        format::scientific(first.1),
        first.0,
        format::scientific(last.1),
        last.0,
        format::scientific(highest)
    );
    // Single steps and not means, so that the corners of the schedule stay; the last one always.
    let every = rates.len().div_ceil(2 * POINTS);
    let mut points: Vec<(i64, f64)> = rates.iter().copied().step_by(every).collect();
    points.extend(rates.last().filter(|last| points.last() != Some(last)));
    let item = match points.as_slice() {
        [_] => Item::Dots { series: 0, points, filled: true },
        _ => Item::Line { series: 0, points },
    };
    let chart = Chart {
        id: "learning-rate",
        title: "Learning rate",
        text: &text,
        x_name: "step",
        y_name: "learning rate",
        x: (rates[0].0, rates[rates.len() - 1].0),
        x_ticks: None,
        y: (highest > 0.0).then_some((0.0, 1.08 * highest)),
        items: vec![item],
    };
    Some(figure(&chart, "Learning rate in training", &[], ""))
}

/// Every metric over the epochs, the best epoch marked.
pub fn metrics(evaluations: &[EvaluationRecord], best_epoch: usize) -> Option<String> {
    let (Some(first), Some(last)) = (evaluations.first(), evaluations.last()) else {
        return None;
    };
    let mut items = Vec::new();
    let mut key = Vec::new();
    // The best epoch's rule lies below the curves.
    if evaluations.iter().any(|e| e.epoch == best_epoch) {
        items.push(Item::At { x: best_epoch as i64, text: format!("best: epoch {best_epoch}") });
    }
    for (series, (name, _)) in first.metrics.iter().enumerate() {
        let value = |e: &EvaluationRecord| e.metrics.iter().find(|m| m.0 == *name).map(|m| m.1);
        let points: Vec<(i64, f64)> =
            evaluations.iter().filter_map(|e| value(e).map(|v| (e.epoch as i64, v))).collect();
        let (best, other): (Vec<_>, Vec<_>) = points.iter().partition(|p| p.0 == best_epoch as i64);
        items.push(Item::Line { series, points });
        items.push(Item::Dots { series, points: other, filled: false });
        items.push(Item::Dots { series, points: best, filled: true });
        key.push(Key { series, text: metric_name(name).into() });
    }
    let chart = Chart {
        id: "metrics",
        title: "Metrics on dev",
        text: "The values are in the table of evaluations.",
        x_name: "epoch",
        y_name: "metric",
        x: (first.epoch as i64, last.epoch as i64),
        x_ticks: None,
        y: None,
        items,
    };
    Some(figure(&chart, "Metrics on dev after each epoch", &key, ""))
}

/// Cumulative importance by rank, with the threshold where one decided.
pub fn cumulative(rankings: &[Ranking], threshold: Option<f64>) -> Option<String> {
    let longest = rankings.iter().map(|r| r.places.len()).max().unwrap_or(0);
    if longest == 0 {
        return None;
    }
    let mut items = Vec::new();
    let mut key = Vec::new();
    let mut text = String::new();
    if let Some(t) = threshold {
        items.push(Item::Level { y: t, text: format!("T = {t}") });
    }
    for (series, ranking) in rankings.iter().enumerate() {
        let at = |i: usize| (i as i64 + 1, ranking.places[i].cumulative);
        let (kept, rest): (Vec<usize>, Vec<usize>) =
            (0..ranking.places.len()).partition(|&i| ranking.places[i].kept);
        let mut line = vec![(0, 0.0)];
        line.extend((0..ranking.places.len()).map(at));
        items.push(Item::Line { series, points: line });
        items.push(Item::Dots { series, points: rest.into_iter().map(at).collect(), filled: false });
        items.push(Item::Dots { series, points: kept.iter().copied().map(at).collect(), filled: true });
        let order: Vec<String> = ranking.places.iter().map(|p| p.layer.to_string()).collect();
        _ = write!(text, "{}: layers by importance {}; {} kept. ", ranking.name, order.join(" "), kept.len());
        key.push(Key { series, text: ranking.name.clone() });
    }
    let totals = rankings.iter().filter_map(|r| r.places.last()).map(|p| p.cumulative);
    let highest = totals.filter(|t| drawable(*t)).fold(1.0, f64::max);
    let chart = Chart {
        id: "cumulative",
        title: "Cumulative importance",
        text: text.trim_end(),
        x_name: "layers, most important first",
        y_name: "sum of I",
        x: (0, longest as i64),
        x_ticks: None,
        y: Some((0.0, 1.04 * highest)),
        items,
    };
    let note = "Filled dots are kept layers, rings are the others.";
    Some(figure(&chart, "Cumulative importance", &key, note))
}

/// Kendall's tau of each scoring against the one before, over the sample stage's steps.
pub fn settling(history: &[(usize, f64)]) -> Option<String> {
    let (Some(first), Some(last)) = (history.first(), history.last()) else {
        return None;
    };
    let points: Vec<(i64, f64)> = history.iter().map(|&(step, tau)| (step as i64, tau)).collect();
    let lowest = history.iter().map(|h| h.1).filter(|t| drawable(*t)).fold(0.0, f64::min);
    let text: Vec<String> =
        history.iter().map(|(step, tau)| format!("step {step}: {}", format::fixed(*tau, 3))).collect();
    let chart = Chart {
        id: "settling",
        title: "Agreement of successive rankings",
        text: &text.join(", "),
        x_name: "step of the sample stage",
        y_name: "Kendall’s tau",
        x: (first.0 as i64, last.0 as i64),
        x_ticks: None,
        y: Some((lowest.max(-1.0), 1.04)),
        items: vec![
            Item::Line { series: 0, points: points.clone() },
            Item::Dots { series: 0, points, filled: true },
        ],
    };
    Some(figure(
        &chart,
        "Agreement of each ranking with the one before",
        &[],
        "1: the same order; 0: no relation.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn short_series_are_drawn_whole_and_long_ones_as_means_with_a_band() {
        let short = loss(Stage::Train, &samples::steps(Stage::Train, 80, 1.0), &[]).unwrap();
        assert!(!short.contains("band") && !short.contains("mean of"));
        let long = loss(Stage::Train, &samples::steps(Stage::Train, 1000, 1.0), &[]).unwrap();
        assert!(long.contains("s0 band") && long.contains("mean of 13 steps"));
        assert!(loss(Stage::Sample, &samples::steps(Stage::Train, 10, 1.0), &[]).is_none());
    }

    #[test]
    fn steps_without_a_loss_are_counted() {
        let mut steps = samples::steps(Stage::Train, 20, 1.0);
        steps[3].loss = f64::NAN;
        steps[4].loss = f64::INFINITY;
        let figure = loss(Stage::Train, &steps, &[]).unwrap();
        assert!(figure.contains("The loss of 2 steps was no finite number"));
    }

    #[test]
    fn the_learning_rate_ends_where_training_ends() {
        let figure = learning_rate(&samples::steps(Stage::Train, 1000, 1.0)).unwrap();
        assert!(figure.contains("From 1.0e-3 at step 1 to 0 at step 1000, at most 1.0e-3."), "{figure}");
        assert!(learning_rate(&samples::steps(Stage::Sample, 10, 1.0)).is_none());
        let mut constant = samples::steps(Stage::Train, 1, 1.0);
        constant[0].learning_rate = f64::NAN;
        assert!(!learning_rate(&constant).unwrap().contains("NaN"));
    }

    #[test]
    fn the_best_epoch_is_marked() {
        let figure = metrics(&samples::evaluations(5, 10), 4).unwrap();
        assert!(figure.contains("best: epoch 4"));
        assert!(metrics(&[], 0).is_none());
    }
}
