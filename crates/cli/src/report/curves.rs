//! Curves over steps, epochs or layers, drawn by plotters as SVG that takes its colours from the
//! page's style.
//!
//! plotters writes colours into every element. Here each role (grid, label, first series, ...) is
//! drawn in a colour that stands for it, and those colours are then replaced by classes, so that
//! one picture serves the light page, the dark page and print.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordi64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::html::escape;
use lora_drop::{Error, Result};

/// Size in CSS pixels, and how much finer plotters draws, because its coordinates are whole
/// numbers.
const WIDTH: u32 = 520;
const HEIGHT: u32 = 270;
const FINE: u32 = 4;
/// In CSS pixels; plotters writes its own size / 1.24 into SVG.
const LETTER: f64 = 12.0 * 1.24 * FINE as f64;

/// Ticks of an x axis, about.
const X_LABELS: usize = 9;
/// Half the width of a bar's caps in CSS pixels.
const CAP: i32 = 4;

/// Values beyond this are not drawn: a loss of 10^12 says as little as one that is no number.
const DRAWABLE: f64 = 1e12;

/// A series' number in the palette of page.css.
pub const PALETTE: usize = 7;

/// What a colour stands for; the discriminants are the stand-in colours' last byte.
#[derive(Clone, Copy)]
enum Ink {
    Grid,
    Axis,
    Label,
    Rule,
    Series(usize),
    Band(usize),
    Bar(usize),
}

impl Ink {
    fn code(self) -> u8 {
        match self {
            Ink::Grid => 1,
            Ink::Axis => 2,
            Ink::Label => 3,
            Ink::Rule => 4,
            Ink::Series(n) => 16 + (n % PALETTE) as u8,
            Ink::Band(n) => 32 + (n % PALETTE) as u8,
            Ink::Bar(n) => 48 + (n % PALETTE) as u8,
        }
    }

    fn class(self) -> String {
        match self {
            Ink::Grid => "grid".into(),
            Ink::Axis => "line".into(),
            Ink::Label => "label".into(),
            Ink::Rule => "rule".into(),
            Ink::Series(n) => format!("s{n}"),
            Ink::Band(n) => format!("s{n} band"),
            Ink::Bar(n) => format!("s{n} bar"),
        }
    }

    fn colour(self) -> RGBColor {
        RGBColor(0, 0, self.code())
    }

    fn all() -> impl Iterator<Item = Ink> {
        let series = (0..PALETTE).flat_map(|n| [Ink::Series(n), Ink::Band(n), Ink::Bar(n)]);
        [Ink::Grid, Ink::Axis, Ink::Label, Ink::Rule].into_iter().chain(series)
    }
}

/// One thing in a chart.
pub enum Item {
    /// Connected points of series `series`.
    Line { series: usize, points: Vec<(i64, f64)> },
    /// The area between two values.
    Band { series: usize, points: Vec<(i64, f64, f64)> },
    /// Dots, rings where `filled` is false.
    Dots { series: usize, points: Vec<(i64, f64)>, filled: bool },
    /// Vertical bars from the lowest to the greatest value, with caps.
    Bars { series: usize, points: Vec<(i64, f64, f64)> },
    /// A horizontal rule with its text.
    Level { y: f64, text: String },
    /// A vertical rule with its text.
    At { x: i64, text: String },
}

/// A chart; everything that is no number is left out.
pub struct Chart<'a> {
    /// Unique in the page.
    pub id: &'a str,
    pub title: &'a str,
    /// What it shows, for those who do not see it.
    pub text: &'a str,
    pub x_name: &'a str,
    pub y_name: &'a str,
    /// First and last x.
    pub x: (i64, i64),
    /// The places and texts of the x axis' ticks; None: whole numbers.
    pub x_ticks: Option<Vec<(i64, String)>>,
    /// Fixed lowest and highest y; otherwise what the items need and some room.
    pub y: Option<(f64, f64)>,
    pub items: Vec<Item>,
}

impl Chart<'_> {
    /// The SVG element.
    pub fn svg(&self) -> Result<String> {
        let mut drawn = String::new();
        {
            let size = (WIDTH * FINE, HEIGHT * FINE);
            let area = SVGBackend::with_string(&mut drawn, size).into_drawing_area();
            self.draw(&area)
                .map_err(|e| Error::Input(format!("the chart '{}' was not drawn: {e}", self.title)))?;
        }
        // plotters' own opening tag has a fixed size; the page's scales.
        let body = drawn.split_once('>').map_or("", |(_, body)| body);
        let mut body = body.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "");
        for ink in Ink::all() {
            for property in ["fill", "stroke"] {
                let colour = format!("{property}=\"#0000{:02X}\"", ink.code());
                body = body.replace(&colour, &format!("class=\"{property} {}\"", ink.class()));
            }
        }
        let id = self.id;
        Ok(format!(
            "<svg class=\"chart\" role=\"img\" aria-labelledby=\"{id}-title {id}-text\" viewBox=\"0 0 {} {}\">\n\
             <title id=\"{id}-title\">{}</title>\n<desc id=\"{id}-text\">{}</desc>{body}",
            WIDTH * FINE,
            HEIGHT * FINE,
            escape(self.title),
            escape(self.text),
        ))
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> std::result::Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        // plotters looks for ticks for ever in a range that has no end.
        let sound = |&(low, high): &(f64, f64)| drawable(low) && drawable(high) && low < high;
        let (low, high) = self.y.filter(sound).unwrap_or_else(|| self.fitting_range());
        // A range without extent has no scale.
        let (first, last) = if self.x.0 < self.x.1 { self.x } else { (self.x.0 - 1, self.x.0 + 1) };
        let letter = |ink: Ink| ("sans-serif", LETTER).into_font().color(&ink.colour());
        let hair = |ink: Ink| ink.colour().stroke_width(FINE);

        let ticks = match &self.x_ticks {
            Some(ticks) => ticks.iter().map(|tick| tick.0).collect(),
            None => RangedCoordi64::from(first..last).key_points(BoldPoints(X_LABELS)),
        };
        let x_label = |x: &i64| {
            let own = self.x_ticks.iter().flatten().find(|tick| tick.0 == *x);
            own.map_or_else(|| compact(*x), |tick| tick.1.clone())
        };
        let mut chart = ChartBuilder::on(area)
            .margin_right(12 * FINE)
            .margin_top(8 * FINE)
            .x_label_area_size(38 * FINE)
            .y_label_area_size(66 * FINE)
            .build_cartesian_2d((first..last).with_key_points(ticks), low..high)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .y_labels(6)
            .x_labels(X_LABELS)
            .bold_line_style(hair(Ink::Grid))
            .light_line_style(TRANSPARENT)
            .axis_style(hair(Ink::Axis))
            .label_style(letter(Ink::Label))
            .axis_desc_style(letter(Ink::Label))
            .y_label_formatter(&|y| tick(*y, high - low))
            .x_label_formatter(&x_label)
            .x_desc(self.x_name)
            .y_desc(self.y_name)
            .draw()?;

        let inside = |y: f64| y.clamp(low, high);
        for item in &self.items {
            match item {
                Item::Line { series, points } => {
                    let style = Ink::Series(*series).colour().stroke_width(2 * FINE);
                    chart.draw_series(LineSeries::new(
                        points.iter().filter(|p| drawable(p.1)).map(|&(x, y)| (x, inside(y))),
                        style,
                    ))?;
                }
                Item::Band { series, points } => {
                    let solid = || points.iter().filter(|p| drawable(p.1) && drawable(p.2));
                    let above = solid().map(|p| (p.0, inside(p.2)));
                    let below = solid().rev().map(|p| (p.0, inside(p.1)));
                    let outline: Vec<(i64, f64)> = above.chain(below).collect();
                    chart.draw_series([Polygon::new(outline, Ink::Band(*series).colour().filled())])?;
                }
                Item::Dots { series, points, filled } => {
                    let colour = Ink::Series(*series).colour();
                    let radius = if self.is_crowded() { 3 * FINE } else { 4 * FINE };
                    let style = if *filled { colour.filled() } else { colour.stroke_width(3 * FINE / 2) };
                    chart.draw_series(
                        points
                            .iter()
                            .filter(|p| drawable(p.1))
                            .map(|&(x, y)| Circle::new((x, inside(y)), radius, style)),
                    )?;
                }
                Item::Bars { series, points } => {
                    let style = Ink::Bar(*series).colour().stroke_width(3 * FINE / 2);
                    for &(x, least, greatest) in points.iter().filter(|p| drawable(p.1) && drawable(p.2)) {
                        let ends = [inside(least), inside(greatest)];
                        chart.draw_series([PathElement::new(vec![(x, ends[0]), (x, ends[1])], style)])?;
                        let half = CAP * FINE as i32;
                        let cap = |y| {
                            EmptyElement::at((x, y)) + PathElement::new(vec![(-half, 0), (half, 0)], style)
                        };
                        chart.draw_series(ends.map(cap))?;
                    }
                }
                Item::Level { y, text } => {
                    let rule = PathElement::new(vec![(first, *y), (last, *y)], hair(Ink::Rule));
                    let place = letter(Ink::Rule).pos(Pos::new(HPos::Right, VPos::Top));
                    chart.draw_series([rule])?;
                    chart
                        .draw_series([EmptyElement::at((last, *y))
                            + Text::new(text.clone(), (0, 4 * FINE as i32), place)])?;
                }
                Item::At { x, text } => {
                    let rule = PathElement::new(vec![(*x, low), (*x, high)], hair(Ink::Rule));
                    // The text stands on that side of the rule where there is more room.
                    let left = *x - first > last - *x;
                    let (side, shift) = if left { (HPos::Right, -6) } else { (HPos::Left, 6) };
                    let place = letter(Ink::Rule).pos(Pos::new(side, VPos::Top));
                    chart.draw_series([rule])?;
                    chart.draw_series([EmptyElement::at((*x, low))
                        + Text::new(text.clone(), (shift * FINE as i32, -20 * FINE as i32), place)])?;
                }
            }
        }
        area.present()
    }

    /// Whether a series has so many dots that they must be smaller.
    fn is_crowded(&self) -> bool {
        let mut dots = [0; PALETTE];
        for item in &self.items {
            if let Item::Dots { series, points, .. } = item {
                dots[series % PALETTE] += points.len();
            }
        }
        dots.iter().any(|&n| n > 16)
    }

    /// Lowest and highest drawable value of the lines and dots, with some room on both sides. Bands
    /// do not count, so that one outlier does not flatten the curve.
    fn fitting_range(&self) -> (f64, f64) {
        let values = self.items.iter().flat_map(|item| match item {
            Item::Line { points, .. } | Item::Dots { points, .. } => points.as_slice(),
            _ => &[],
        });
        let (low, high) = values
            .map(|p| p.1)
            .filter(|y| drawable(*y))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)));
        if low > high {
            return (0.0, 1.0);
        }
        let size = low.abs().max(high.abs()).max(1e-6);
        // Curves that hardly move are shown as such, not blown up.
        let room = (0.08 * (high - low)).max(0.01 * size);
        // Room below zero would be for values that a loss never has.
        let floor = if low >= 0.0 && room > low { 0.0 } else { low - room };
        (floor, high + room)
    }
}

/// Whether a value can be placed on an axis.
pub fn drawable(y: f64) -> bool {
    y.is_finite() && y.abs() <= DRAWABLE
}

/// A long series in at most `buckets` pieces of equal length: the middle x, and the mean, least and
/// greatest y of those that can be drawn. Pieces without any are left out.
pub fn buckets(points: &[(i64, f64)], buckets: usize) -> Vec<(i64, f64, f64, f64)> {
    let size = points.len().div_ceil(buckets.max(1)).max(1);
    points
        .chunks(size)
        .filter_map(|chunk| {
            let middle = chunk[chunk.len() / 2].0;
            let values: Vec<f64> = chunk.iter().map(|p| p.1).filter(|y| drawable(*y)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (!values.is_empty()).then_some((middle, mean, low, high))
        })
        .collect()
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
fn compact(x: i64) -> String {
    if x.abs() >= 10_000 && x % 1000 == 0 { format!("{}k", x / 1000) } else { x.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: (i64, i64), items: Vec<Item>) -> String {
        let chart = Chart {
            id: "c",
            title: "Loss <of> it",
            text: "",
            x_name: "step",
            y_name: "loss",
            x,
            x_ticks: None,
            y: None,
            items,
        };
        chart.svg().unwrap()
    }

    #[test]
    fn colours_become_classes() {
        let svg = chart(
            (1, 3),
            vec![
                Item::Band { series: 0, points: vec![(1, 0.2, 0.6), (3, 0.1, 0.3)] },
                Item::Line { series: 0, points: vec![(1, 0.5), (2, 0.4), (3, 0.2)] },
                Item::Dots { series: 1, points: vec![(2, 0.3)], filled: true },
                Item::Level { y: 0.4, text: "T & <more>".into() },
                Item::At { x: 2, text: "best".into() },
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
    fn degenerate_series_have_finite_coordinates() {
        let far = f64::MAX;
        let cases: Vec<Vec<(i64, f64)>> = vec![
            vec![],
            vec![(1, 0.5)],
            vec![(1, 0.5), (2, 0.5)],
            vec![(1, 0.0), (2, 0.0)],
            vec![(1, f64::NAN)],
            vec![(1, f64::INFINITY), (2, 0.1), (3, far), (4, -far)],
            vec![(1, 1e12), (2, -1e12)],
            vec![(1, 1e-300), (2, 2e-300)],
        ];
        for points in cases {
            let x = (1, points.len().max(1) as i64);
            let svg = chart(x, vec![Item::Line { series: 0, points: points.clone() }]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
        }
    }

    #[test]
    fn buckets_keep_mean_and_extremes() {
        let points: Vec<(i64, f64)> =
            (0..1000).map(|i| (i, if i == 500 { f64::NAN } else { (i % 10) as f64 })).collect();
        let short = buckets(&points, 100);
        assert_eq!(short.len(), 100);
        assert_eq!(short[0], (5, 4.5, 0.0, 9.0));
        assert_eq!(short[50], (505, 5.0, 1.0, 9.0));
        assert_eq!(buckets(&points[..3], 100), [(0, 0.0, 0.0, 0.0), (1, 1.0, 1.0, 1.0), (2, 2.0, 2.0, 2.0)]);
        assert_eq!(buckets(&[(1, f64::NAN)], 10), []);
        assert_eq!(buckets(&[], 10), []);
    }

    #[test]
    fn ticks_have_the_decimals_of_their_range() {
        assert_eq!(tick(0.4, 0.5), "0.40");
        assert_eq!(tick(0.42, 0.05), "0.420");
        assert_eq!(tick(-0.0, 0.5), "0.00");
        assert_eq!(tick(250.0, 300.0), "250");
        assert_eq!(tick(2e-5, 3e-5), "2.0e-5");
        assert_eq!(compact(9_999), "9999");
        assert_eq!(compact(20_000), "20k");
    }
}
