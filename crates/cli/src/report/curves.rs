//! Curves over steps, epochs or layers as SVG. Elements carry classes and no colours, so that one
//! picture serves the light page, the dark page and print.

use maud::{Markup, html};

/// Size in CSS pixels.
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 270.0;
/// Around the plot: room for the axes' numbers and names.
const LEFT: f64 = 66.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 38.0;
const LETTER: f64 = 12.0;

/// Approximate maximum numbers of ticks on the axes.
const X_TICKS: f64 = 9.0;
const Y_TICKS: f64 = 6.0;
/// Half the width of a bar's caps.
const CAP: f64 = 4.0;
/// Above this number of dots in a series, dots are smaller.
const CROWD: usize = 16;

/// Values beyond this are not drawn: a loss of 10^12 says as little as NaN.
const DRAWABLE: f64 = 1e12;

/// The number of series that page.css has colours for.
pub const PALETTE: usize = 7;

/// One thing in a chart.
pub enum Item {
    /// Connected points of series `series`.
    Line { series: usize, points: Vec<(f64, f64)> },
    /// The area between two values.
    Band { series: usize, points: Vec<(f64, f64, f64)> },
    /// Dots, rings where `filled` is false.
    Dots { series: usize, points: Vec<(f64, f64)>, filled: bool },
    /// Vertical bars from the lowest to the greatest value, with caps.
    Bars { series: usize, points: Vec<(f64, f64, f64)> },
    /// A horizontal rule with its text.
    Level { y: f64, text: String },
    /// A vertical rule with its text.
    At { x: f64, text: String },
}

/// A chart; values that cannot be drawn are left out.
#[derive(Default)]
pub struct Chart<'a> {
    /// Unique in the page.
    pub id: &'a str,
    pub caption: &'a str,
    /// What the chart shows, for screen readers.
    pub text: &'a str,
    pub x_name: &'a str,
    pub y_name: &'a str,
    /// First and last x.
    pub x: (f64, f64),
    /// The places and texts of the x axis' ticks; None: whole numbers.
    pub x_ticks: Option<Vec<(f64, String)>>,
    /// Fixed lowest and highest y; otherwise what the items need and some room.
    pub y: Option<(f64, f64)>,
    pub items: Vec<Item>,
    /// Series and their names.
    pub key: Vec<(usize, String)>,
    /// A sentence below it, or an empty text.
    pub note: &'a str,
}

/// Where values lie in the picture.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Scale {
    fn x(&self, x: f64) -> f64 {
        let share = (x - self.x.0) / (self.x.1 - self.x.0);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Vertical position of a value, clamped to the axis.
    fn y(&self, y: f64) -> f64 {
        let share = (y.clamp(self.y.0, self.y.1) - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn points(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        points.map(|(x, y)| format!("{:.1},{:.1}", self.x(x), self.y(y))).collect::<Vec<_>>().join(" ")
    }
}

impl Chart<'_> {
    /// The chart with its caption, key and note.
    pub fn figure(&self) -> Markup {
        html! {
            figure {
                figcaption { (self.caption) }
                @if !self.key.is_empty() {
                    ul.legend {
                        @for (series, name) in &self.key {
                            li {
                                svg.sign viewBox="0 0 34 10" width="34" height="10" aria-hidden="true" {
                                    polyline class={ "stroke s" (series % PALETTE) } fill="none" stroke-width="2"
                                        points="1,5 33,5" {}
                                }
                                (name)
                            }
                        }
                    }
                }
                div.scroll { (self.svg()) }
                @if !self.note.is_empty() { p.note { (self.note) } }
            }
        }
    }

    fn svg(&self) -> Markup {
        let sound = |&(low, high): &(f64, f64)| drawable(low) && drawable(high) && low < high;
        let y = self.y.filter(sound).unwrap_or_else(|| self.fitting_range());
        // A range without extent has no scale.
        let x = if self.x.0 < self.x.1 { self.x } else { (self.x.0 - 1.0, self.x.0 + 1.0) };
        let (scale, id) = (Scale { x, y }, self.id);
        html! {
            svg.chart role="img" aria-labelledby={ (id) "-title " (id) "-text" } viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } {
                title id={ (id) "-title" } { (self.caption) }
                desc id={ (id) "-text" } { (self.text) }
                (self.axes(&scale))
                @for item in &self.items { (self.item(item, &scale)) }
            }
        }
    }

    fn axes(&self, scale: &Scale) -> Markup {
        let (left, right, top, bottom) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
        let (low, high) = scale.y;
        let (first, last) = scale.x;
        // Whole numbers, unless the range has none, as in a run's first epoch.
        let whole = || {
            let all = ticks(first, last, X_TICKS.min(last - first + 1.0));
            let whole: Vec<_> = all.filter(|x| x.fract() == 0.0).map(|x| (x, compact(x))).collect();
            match whole.is_empty() {
                true => ticks(first, last, X_TICKS).map(|x| (x, tick(x, last - first))).collect(),
                false => whole,
            }
        };
        let (x, y) = (12.0, (top + bottom) / 2.0);
        html! {
            @for y in ticks(low, high, Y_TICKS) {
                (line("grid", 1.0, (left, scale.y(y)), (right, scale.y(y))))
                (label("label", "end", (left - 6.0, scale.y(y) + 4.0), &tick(y, high - low)))
            }
            @for (x, text) in self.x_ticks.clone().unwrap_or_else(whole) {
                @if (first..=last).contains(&x) {
                    (line("line", 1.0, (scale.x(x), bottom), (scale.x(x), bottom + 4.0)))
                    (label("label", "middle", (scale.x(x), bottom + 17.0), &text))
                }
            }
            (line("line", 1.0, (left, bottom), (right, bottom)))
            (line("line", 1.0, (left, top), (left, bottom)))
            (label("label", "middle", ((left + right) / 2.0, HEIGHT - 5.0), self.x_name))
            text class="fill label" font-size=(LETTER) text-anchor="middle" x=(x) y=(y)
                transform={ "rotate(-90 " (x) " " (y) ")" } { (self.y_name) }
        }
    }

    fn item(&self, item: &Item, scale: &Scale) -> Markup {
        match item {
            Item::Line { series, points } => {
                let points = scale.points(points.iter().copied().filter(|p| drawable(p.1)));
                html! { polyline class={ "stroke s" (series) } fill="none" stroke-width="2" points=(points) {} }
            }
            Item::Band { series, points } => {
                let solid = || points.iter().filter(|p| drawable(p.1) && drawable(p.2));
                let outline = solid().map(|p| (p.0, p.2)).chain(solid().rev().map(|p| (p.0, p.1)));
                html! { polygon class={ "fill s" (series) " band" } points=(scale.points(outline)) {} }
            }
            Item::Dots { series, points, filled } => {
                let radius = if self.is_crowded() { 3 } else { 4 };
                let (class, width) = if *filled { ("fill", None) } else { ("stroke", Some(1.5)) };
                html! {
                    @for &(x, y) in points.iter().filter(|p| drawable(p.1)) {
                        circle class={ (class) " s" (series) } stroke-width=[width]
                            cx=(pixel(scale.x(x))) cy=(pixel(scale.y(y))) r=(radius) {}
                    }
                }
            }
            Item::Bars { series, points } => {
                let class = format!("s{series} bar");
                html! {
                    @for &(x, least, greatest) in points.iter().filter(|p| drawable(p.1) && drawable(p.2)) {
                        @let (x, ends) = (scale.x(x), [least, greatest].map(|y| scale.y(y)));
                        (line(&class, 1.5, (x, ends[0]), (x, ends[1])))
                        @for y in ends { (line(&class, 1.5, (x - CAP, y), (x + CAP, y))) }
                    }
                }
            }
            Item::Level { y, text } => {
                let at = scale.y(*y);
                html! {
                    @if (scale.y.0..=scale.y.1).contains(y) {
                        (line("rule", 1.0, (LEFT, at), (WIDTH - RIGHT, at)))
                        (label("rule", "end", (WIDTH - RIGHT, at + LETTER + 2.0), text))
                    }
                }
            }
            Item::At { x, text } => {
                let at = scale.x(*x);
                // The text stands on that side of the rule where there is more room.
                let left = x - scale.x.0 > scale.x.1 - x;
                let (anchor, shift) = if left { ("end", -6.0) } else { ("start", 6.0) };
                html! {
                    (line("rule", 1.0, (at, TOP), (at, HEIGHT - BOTTOM)))
                    (label("rule", anchor, (at + shift, HEIGHT - BOTTOM - 9.0), text))
                }
            }
        }
    }

    /// Whether dots have to be smaller.
    fn is_crowded(&self) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Dots { points, .. } if points.len() > CROWD))
    }

    /// Lowest and highest drawable value of the lines and dots, with some room on both sides. Bands
    /// do not count, so that one outlier does not flatten the curve.
    fn fitting_range(&self) -> (f64, f64) {
        let values = self.items.iter().flat_map(|item| match item {
            Item::Line { points, .. } | Item::Dots { points, .. } => points.as_slice(),
            _ => &[],
        });
        let Some((low, high)) = extent(values.map(|p| p.1)) else { return (0.0, 1.0) };
        let size = low.abs().max(high.abs()).max(1e-6);
        // Curves that barely move are shown as such, not magnified.
        let room = (0.08 * (high - low)).max(0.01 * size);
        // No room below zero, where a loss never is.
        let floor = if low >= 0.0 && room > low { 0.0 } else { low - room };
        (floor, high + room)
    }
}

/// Whether a value can be placed on an axis.
pub fn drawable(y: f64) -> bool {
    y.is_finite() && y.abs() <= DRAWABLE
}

/// The least and greatest of the values that can be drawn; None without any.
pub fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let drawn = values.filter(|value| drawable(*value)).map(|value| (value, value));
    drawn.reduce(|(low, high), (value, _)| (low.min(value), high.max(value)))
}

/// A long series in at most `buckets` pieces of equal length: the middle x, and the mean, least and
/// greatest y of those that can be drawn. Pieces without any are left out.
pub fn buckets(points: &[(f64, f64)], buckets: usize) -> Vec<(f64, f64, f64, f64)> {
    let size = points.len().div_ceil(buckets.max(1)).max(1);
    points
        .chunks(size)
        .filter_map(|chunk| {
            let (least, greatest) = extent(chunk.iter().map(|p| p.1))?;
            let values: Vec<f64> = chunk.iter().map(|p| p.1).filter(|y| drawable(*y)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            Some((chunk[chunk.len() / 2].0, mean, least, greatest))
        })
        .collect()
}

/// Round values in a range, about `most` of them: a step is 1, 2 or 5 times a power of ten.
pub fn ticks(low: f64, high: f64, most: f64) -> impl Iterator<Item = f64> {
    let least = (high - low) / most.max(1.0);
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    (0..=(last - first).max(0.0) as usize).map(move |number| (first + number as f64) * step)
}

fn line(class: &str, width: f64, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Markup {
    html! {
        line class={ "stroke " (class) } stroke-width=(width) x1=(pixel(x1)) y1=(pixel(y1)) x2=(pixel(x2)) y2=(pixel(y2)) {}
    }
}

fn label(class: &str, anchor: &str, (x, y): (f64, f64), text: &str) -> Markup {
    html! {
        text class={ "fill " (class) } font-size=(LETTER) text-anchor=(anchor) x=(pixel(x)) y=(pixel(y)) { (text) }
    }
}

/// A place in the picture, to a tenth of a pixel.
fn pixel(place: f64) -> String {
    format!("{place:.1}")
}

/// A tick's text with the decimals that the range needs.
fn tick(y: f64, range: f64) -> String {
    if !(1e-4..1e5).contains(&range) {
        return format!("{y:.1e}");
    }
    let decimals = (1.0 - range.log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{y:.decimals$}");
    // -0.00 is an artefact of the grid.
    if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
        text.trim_start_matches('-').to_string()
    } else {
        text
    }
}

/// Whole numbers, thousands as 12k.
fn compact(x: f64) -> String {
    if x.abs() >= 10_000.0 && x % 1000.0 == 0.0 { format!("{}k", x / 1000.0) } else { x.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: (f64, f64), items: Vec<Item>) -> String {
        let chart = Chart {
            id: "c",
            caption: "Loss <of> it",
            x_name: "step",
            y_name: "loss",
            x,
            items,
            ..Chart::default()
        };
        chart.svg().into_string()
    }

    #[test]
    fn elements_have_classes_and_no_colours() {
        let svg = chart(
            (1.0, 3.0),
            vec![
                Item::Band { series: 0, points: vec![(1.0, 0.2, 0.6), (3.0, 0.1, 0.3)] },
                Item::Line { series: 0, points: vec![(1.0, 0.5), (2.0, 0.4), (3.0, 0.2)] },
                Item::Dots { series: 1, points: vec![(2.0, 0.3)], filled: true },
                Item::Level { y: 0.4, text: "T & <more>".into() },
                Item::At { x: 2.0, text: "best".into() },
            ],
        );
        assert!(!svg.contains('#'), "{svg}");
        assert!(!svg.contains("xmlns"));
        for class in
            ["fill s0 band", "stroke s0", "fill s1", "stroke rule", "fill rule", "stroke grid", "fill label"]
        {
            assert!(svg.contains(&format!("class=\"{class}\"")), "{class} in {svg}");
        }
        assert!(svg.contains("T &amp; &lt;more&gt;"));
        assert!(svg.contains("Loss &lt;of&gt; it"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn an_axis_without_a_whole_number_has_others() {
        let labels = |x| chart(x, vec![]);
        assert!(labels((0.13, 0.26)).contains(">0.14</text>"));
        assert!(labels((0.5, 2.5)).contains(">1</text>") && !labels((0.5, 2.5)).contains(">1.5</text>"));
    }

    #[test]
    fn degenerate_series_have_finite_coordinates() {
        let far = f64::MAX;
        let cases: Vec<Vec<(f64, f64)>> = vec![
            vec![],
            vec![(1.0, 0.5)],
            vec![(1.0, 0.5), (2.0, 0.5)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            vec![(1.0, f64::NAN)],
            vec![(1.0, f64::INFINITY), (2.0, 0.1), (3.0, far), (4.0, -far)],
            vec![(1.0, 1e12), (2.0, -1e12)],
            vec![(1.0, 1e-300), (2.0, 2e-300)],
        ];
        for points in cases {
            let x = (1.0, points.len().max(1) as f64);
            let svg = chart(x, vec![Item::Line { series: 0, points: points.clone() }]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let all = |low, high, most| ticks(low, high, most).collect::<Vec<f64>>();
        assert_eq!(all(0.0, 1.04, 6.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(all(0.0, 5.0, 6.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(all(1.0, 3.0, 3.0), [1.0, 2.0, 3.0]);
        assert_eq!(all(-30.0, 1170.0, 9.0), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        for (low, high) in [(0.6234, 0.6235), (1e-300, 2e-300), (-1e12, 1e12), (0.0, 1e-9)] {
            let found = all(low, high, 6.0);
            assert!((2..=8).contains(&found.len()), "{low} {high}: {found:?}");
            assert!(found.iter().all(|y| (low..=high).contains(y)), "{found:?}");
        }
    }

    #[test]
    fn buckets_keep_mean_and_extremes() {
        let points: Vec<(f64, f64)> =
            (0..1000).map(|i| (f64::from(i), if i == 500 { f64::NAN } else { f64::from(i % 10) })).collect();
        let short = buckets(&points, 100);
        assert_eq!(short.len(), 100);
        assert_eq!(short[0], (5.0, 4.5, 0.0, 9.0));
        assert_eq!(short[50], (505.0, 5.0, 1.0, 9.0));
        assert_eq!(
            buckets(&points[..3], 100),
            [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0)]
        );
        assert_eq!(buckets(&[(1.0, f64::NAN)], 10), []);
        assert_eq!(buckets(&[], 10), []);
    }

    #[test]
    fn ticks_have_the_decimals_of_their_range() {
        assert_eq!(tick(0.4, 0.5), "0.40");
        assert_eq!(tick(0.42, 0.05), "0.420");
        assert_eq!(tick(-0.0, 0.5), "0.00");
        assert_eq!(tick(250.0, 300.0), "250");
        assert_eq!(tick(2e-5, 3e-5), "2.0e-5");
        assert_eq!(compact(9_999.0), "9999");
        assert_eq!(compact(20_000.0), "20k");
    }
}
