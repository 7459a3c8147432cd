//! The page's charts: scores over parameters and over seconds, a line for each method.

use maud::Markup;

use super::files;
use super::findings::{Entry, Findings};
use super::table::TableFile;
use crate::report::curves::{Chart, Item, PALETTE, extent, ticks};
use lora_drop::format::{self, fixed, grouped};

/// The share of an axis that stays free at its ends.
const MARGIN: f64 = 0.06;
/// The ratio of the greatest to the least value from which on an axis is logarithmic.
const LOGARITHMIC: f64 = 10.0;

/// What a chart has on its x axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Parameters,
    Seconds,
}

/// A line's score, and what it cost.
struct Point {
    line: usize,
    cost: f64,
    mean: f64,
    deviation: Option<f64>,
}

/// The charts of all tasks, and of the averages over them.
pub(super) fn scores(table: &TableFile, findings: &Findings, over: Over) -> Vec<Markup> {
    let cost = |parameters, seconds| if over == Over::Parameters { parameters } else { seconds };
    let mut charts = Vec::new();
    for (task, name) in table.tasks.iter().map(|task| &task.name).enumerate() {
        let point = |entry: &Entry| Point {
            line: entry.line,
            cost: cost(entry.parameters, entry.seconds),
            mean: entry.score.mean,
            deviation: entry.score.deviation,
        };
        let points: Vec<Point> = findings.of_task(task).map(point).collect();
        let metric = files::metric_of(findings, task);
        charts.extend(chart(table, (name, metric, &task.to_string()), &points, over));
    }
    let points = findings.averages.iter().map(|average| Point {
        line: average.line,
        cost: cost(average.parameters, average.seconds),
        mean: average.score,
        deviation: None,
    });
    let names = ("Average over the tasks", "average score", "average");
    charts.extend(chart(table, names, &points.collect::<Vec<_>>(), over));
    charts
}

/// One chart with its name, its metric and its id; None where fewer than two lines can be placed.
fn chart(
    table: &TableFile,
    (name, metric, id): (&str, &str, &str),
    all: &[Point],
    over: Over,
) -> Option<Markup> {
    let placed = || all.iter().filter(|point| point.cost > 0.0);
    let axis = Axis::of(placed().map(|point| point.cost)).filter(|_| placed().count() > 1)?;
    let mut methods: Vec<&str> = table.lines.iter().map(|line| line.method.as_str()).collect();
    methods.dedup();
    let x_name = match over {
        Over::Parameters => "adapter parameters",
        Over::Seconds => "seconds of training, with the selection",
    };
    let x_name = if axis.logarithmic { format!("{x_name} (logarithmic)") } else { x_name.to_string() };
    let mut text = format!("{metric} over {x_name}. ");
    let (mut items, mut key) = (Vec::new(), Vec::new());
    for (series, method) in methods.iter().enumerate() {
        let mut of_method: Vec<&Point> =
            all.iter().filter(|point| table.lines[point.line].method == *method).collect();
        of_method.sort_by(|a, b| a.cost.total_cmp(&b.cost));
        for point in &of_method {
            let at = match over {
                Over::Parameters => format!("{} parameters", grouped(point.cost.round() as usize)),
                Over::Seconds => format::duration(point.cost),
            };
            text += &format!("{}: {} at {at}. ", table.lines[point.line].label, fixed(point.mean, 4));
        }
        let (drawn, without): (Vec<&Point>, Vec<&Point>) =
            of_method.iter().partition(|point| point.cost > 0.0);
        let level = |point: &Point| Item::Level { y: point.mean, text: format!("{method} (no parameters)") };
        items.extend(without.into_iter().map(level));
        if drawn.is_empty() {
            continue;
        }
        let bars = drawn.iter().filter_map(|point| {
            let deviation = point.deviation?;
            Some((axis.place(point.cost), point.mean - deviation, point.mean + deviation))
        });
        items.push(Item::Bars { series, points: bars.collect() });
        let points: Vec<(f64, f64)> =
            drawn.iter().map(|point| (axis.place(point.cost), point.mean)).collect();
        if points.len() > 1 {
            items.push(Item::Line { series, points: points.clone() });
        }
        // Colours repeat after the last one: rings mark the second round.
        items.push(Item::Dots { series, points, filled: series < PALETTE });
        key.push((series, method.to_string()));
    }
    let chart = Chart {
        id: &format!("{}-{id}", if over == Over::Parameters { "parameters" } else { "seconds" }),
        caption: name,
        text: text.trim_end(),
        x_name: &x_name,
        y_name: metric,
        x: (axis.low, axis.high),
        x_ticks: Some(axis.ticks()),
        y: Some(range(all)),
        items,
        key,
        ..Chart::default()
    };
    Some(chart.figure())
}

/// Lowest and highest value with its deviation, and some room.
fn range(points: &[Point]) -> (f64, f64) {
    let ends = points.iter().flat_map(|point| {
        let deviation = point.deviation.unwrap_or(0.0);
        [point.mean - deviation, point.mean + deviation]
    });
    let (low, high) = extent(ends).unwrap_or_default();
    let room = (0.08 * (high - low)).max(0.002 * high.abs().max(1e-3));
    (low - room, high + room)
}

/// An axis of positive values.
struct Axis {
    /// The ends, as values or as their logarithms to base 10.
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// None without values.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (least, greatest) = extent(values)?;
        let logarithmic = greatest / least >= LOGARITHMIC;
        let (low, high) = if logarithmic { (least.log10(), greatest.log10()) } else { (least, greatest) };
        // A single value has no extent of its own.
        let room = MARGIN * (high - low).max(0.1 * high.abs()).max(1e-9);
        let low = if logarithmic { low - room } else { (low - room).max(0.0) };
        Some(Axis { low, high: high + room, logarithmic })
    }

    /// Where a value lies between the ends.
    fn place(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }

    /// Round values in the range, with their texts.
    fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<f64> = if self.logarithmic {
            let decades = self.low.floor() as i32..=self.high.ceil() as i32;
            let steps: &[f64] = if self.high - self.low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade))).collect()
        } else {
            ticks(self.low, self.high, 6.0).collect()
        };
        let inside = values.into_iter().filter(|value| (self.low..=self.high).contains(&self.place(*value)));
        inside.map(|value| (self.place(value), short(value))).collect()
    }
}

/// A round number in a few letters: 500, 20k, 1.5M.
fn short(value: f64) -> String {
    let (divisor, unit) = match value {
        v if v >= 1e9 => (1e9, "G"),
        v if v >= 1e6 => (1e6, "M"),
        v if v >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let text = format!("{:.3}", value / divisor);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_inside() {
        let axis = Axis::of([36_864.0, 73_728.0].into_iter()).unwrap();
        assert!(!axis.logarithmic);
        let texts: Vec<String> = axis.ticks().into_iter().map(|tick| tick.1).collect();
        assert_eq!(texts, ["40k", "50k", "60k", "70k"]);
        let axis = Axis::of([9_216.0, 22_000_000.0].into_iter()).unwrap();
        let ticks = axis.ticks();
        assert!(axis.logarithmic);
        assert_eq!(
            ticks.iter().map(|tick| tick.1.as_str()).collect::<Vec<_>>(),
            ["10k", "100k", "1M", "10M"]
        );
        assert!(axis.place(9_216.0) > axis.low && axis.place(22_000_000.0) < axis.high);
        // One value, and small ones.
        assert!(Axis::of([5.0].into_iter()).unwrap().ticks().iter().all(|tick| !tick.1.contains("NaN")));
        assert!(!Axis::of([0.021, 0.034].into_iter()).unwrap().ticks().is_empty());
        assert!(Axis::of(std::iter::empty()).is_none());
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(500.0, "500"), (20_000.0, "20k"), (1_500_000.0, "1.5M"), (0.05, "0.05")] {
            assert_eq!(short(value), text);
        }
    }
}
