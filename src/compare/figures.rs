//! The page's charts: scores over parameters and over seconds, a line a method.

use super::files;
use super::findings::{Entry, Findings};
use super::table::TableFile;
use crate::Result;
use crate::format::{self, grouped};
use crate::report::curves::{Chart, Item, PALETTE};
use crate::report::figures::{Key, figure};

/// Whole numbers along an axis: plotters places by these, and values lie between.
const PLACES: f64 = 10_000.0;
/// What stays free at an axis' ends.
const MARGIN: f64 = 0.06;
/// From this factor between the least and the greatest value on, an axis is logarithmic.
const LOGARITHMIC: f64 = 10.0;

/// What a chart has on its x axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Parameters,
    Seconds,
}

impl Over {
    fn of(self, entry: &Entry) -> f64 {
        match self {
            Over::Parameters => entry.parameters,
            Over::Seconds => entry.seconds,
        }
    }
}

/// The scores of a task over what they cost; None where fewer than two lines can be placed.
pub(super) fn scores(
    table: &TableFile,
    findings: &Findings,
    task: usize,
    over: Over,
) -> Result<Option<String>> {
    let entries: Vec<&Entry> = findings.of_task(task).collect();
    let placed = |entry: &&&Entry| over.of(entry) > 0.0;
    let Some(axis) = Axis::of(entries.iter().filter(placed).map(|entry| over.of(entry))) else {
        return Ok(None);
    };
    if entries.iter().filter(placed).count() < 2 {
        return Ok(None);
    }
    let mut methods: Vec<&str> = table.lines.iter().map(|line| line.method.as_str()).collect();
    methods.dedup();
    let (mut items, mut key, mut text) = (Vec::new(), Vec::new(), String::new());
    for (series, method) in methods.iter().enumerate() {
        let mut of_method: Vec<&Entry> =
            entries.iter().filter(|entry| table.lines[entry.line].method == *method).copied().collect();
        of_method.sort_by(|a, b| over.of(a).total_cmp(&over.of(b)));
        for entry in &of_method {
            let at = match over {
                Over::Parameters => format!("{} parameters", grouped(entry.parameters.round() as usize)),
                Over::Seconds => format::duration(entry.seconds),
            };
            text += &format!("{}: {} at {at}. ", table.lines[entry.line].label, files::spread(&entry.score));
        }
        let (drawn, without): (Vec<&Entry>, Vec<&Entry>) =
            of_method.iter().partition(|entry| over.of(entry) > 0.0);
        for entry in without {
            items.push(Item::Level { y: entry.score.mean, text: format!("{method} (no parameters)") });
        }
        if drawn.is_empty() {
            continue;
        }
        let points: Vec<(i64, f64)> =
            drawn.iter().map(|entry| (axis.place(over.of(entry)), entry.score.mean)).collect();
        let bars = drawn.iter().filter_map(|entry| {
            let deviation = entry.score.deviation?;
            let mean = entry.score.mean;
            Some((axis.place(over.of(entry)), mean - deviation, mean + deviation))
        });
        items.push(Item::Bars { series, points: bars.collect() });
        if points.len() > 1 {
            items.push(Item::Line { series, points: points.clone() });
        }
        // Colours come again after the last: rings tell the second round from the first.
        items.push(Item::Dots { series, points, filled: series < PALETTE });
        key.push(Key { series, text: method.to_string() });
    }
    let metric = files::metric_of(findings, task);
    let (x_name, id) = match over {
        Over::Parameters => ("adapter parameters", "parameters"),
        Over::Seconds => ("seconds of training, the selection counted", "seconds"),
    };
    let x_name = if axis.logarithmic { format!("{x_name} (logarithmic)") } else { x_name.to_string() };
    let name = &table.tasks[task].name;
    let chart = Chart {
        id: &format!("{id}-{task}"),
        title: &format!("{name}: {metric} over {x_name}"),
        text: text.trim_end(),
        x_name: &x_name,
        y_name: metric,
        x: (0, PLACES as i64),
        x_ticks: Some(axis.ticks()),
        y: Some(range(&entries)),
        items,
    };
    figure(&chart, name, &key, "").map(Some)
}

/// Lowest and highest value with its deviation, and some room.
fn range(entries: &[&Entry]) -> (f64, f64) {
    let ends = entries.iter().map(|entry| {
        let deviation = entry.score.deviation.unwrap_or(0.0);
        (entry.score.mean - deviation, entry.score.mean + deviation)
    });
    let (low, high) =
        ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (l, h)| (low.min(l), high.max(h)));
    let room = (0.08 * (high - low)).max(0.002 * high.abs().max(1e-3));
    (low - room, high + room)
}

/// An axis of positive values, on whole numbers from 0 to `PLACES`.
struct Axis {
    /// Of the values, or of their logarithms to base 10.
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// None without values.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (least, greatest) = values
            .fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
        if !(least <= greatest && greatest.is_finite()) {
            return None;
        }
        let logarithmic = greatest / least >= LOGARITHMIC;
        let (low, high) = if logarithmic { (least.log10(), greatest.log10()) } else { (least, greatest) };
        // A single value has no extent of its own.
        let room = MARGIN * (high - low).max(0.1 * high.abs()).max(1e-9);
        let low = if logarithmic { low - room } else { (low - room).max(0.0) };
        Some(Axis { low, high: high + room, logarithmic })
    }

    fn place(&self, value: f64) -> i64 {
        let value = if self.logarithmic { value.log10() } else { value };
        (PLACES * (value - self.low) / (self.high - self.low)).round() as i64
    }

    /// Round values in the range, with their texts.
    fn ticks(&self) -> Vec<(i64, String)> {
        let values: Vec<f64> = if self.logarithmic {
            let decades = self.low.floor() as i32..=self.high.ceil() as i32;
            let steps: &[f64] = if self.high - self.low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade))).collect()
        } else {
            let rough = (self.high - self.low) / 6.0;
            let power = 10f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0]
                .map(|n| n * power)
                .into_iter()
                .find(|step| *step >= rough)
                .unwrap_or(rough);
            let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
            (first..=last).map(|n| n as f64 * step).collect()
        };
        let inside = values.into_iter().map(|value| (self.place(value), short(value)));
        inside.filter(|(place, _)| (0..=PLACES as i64).contains(place)).collect()
    }
}

/// A round number in few letters: 500, 20k, 1.5M.
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
        assert!(axis.logarithmic && ticks.iter().all(|tick| (0..=10_000).contains(&tick.0)));
        assert_eq!(
            ticks.iter().map(|tick| tick.1.as_str()).collect::<Vec<_>>(),
            ["10k", "100k", "1M", "10M"]
        );
        assert!(axis.place(9_216.0) > 0 && axis.place(22_000_000.0) < 10_000);
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
