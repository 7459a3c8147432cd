//! The importance of every module as a heat map: SVG, a row per layer, a column per module type.
//!
//! Colour alone carries no information: every cell has its value, a kept one a frame and a dot, a
//! shared one a ring, one without LoRA a hatching and a cross.

use maud::{Markup, html};

use crate::report::grid::{Cell, Grid};
use crate::report::page;
use lora_drop::assignment::Owner;
use lora_drop::format::{counted, fixed, scientific};

/// Widths and heights in CSS pixels.
const LABELS: usize = 44;
const CELL_WIDTH: usize = 86;
const CELL_HEIGHT: usize = 25;
const GAP: usize = 3;
const LINE: usize = 14;
/// The most letters of a column's name in a line.
const LINE_LETTERS: usize = 13;

/// Where text on a cell turns from black to white (light page) or from white to black (dark page).
/// The test computes the contrast on both sides.
const TURN_LIGHT: f64 = 0.86;
const TURN_DARK: f64 = 0.62;

/// The SVG element. `id` is unique in the page, `column` says what a column is.
pub fn svg(grid: &Grid, id: &str, title: &str, column: &str) -> Markup {
    let headers: Vec<Vec<String>> = grid.columns.iter().map(|name| header_lines(name)).collect();
    let header = 8 + LINE * headers.iter().map(Vec::len).max().unwrap_or(1);
    let width = LABELS + grid.columns.len() * (CELL_WIDTH + GAP);
    let height = header + grid.layers.len() * (CELL_HEIGHT + GAP);
    let left = |column: usize| LABELS + column * (CELL_WIDTH + GAP);
    html! {
        svg.heatmap role="img" aria-labelledby={ (id) "-title " (id) "-text" }
            viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) {
            title id={ (id) "-title" } { (title) }
            desc id={ (id) "-text" } {
                (counted(grid.layers.len(), "layer")) " by " (counted(grid.columns.len(), column))
                ". The table below the picture has the same numbers."
            }
            @if grid.has(Owner::None) {
                defs {
                    pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                        line.hatch x1="0" y1="0" x2="0" y2="7" {}
                    }
                }
            }
            text.axis x=(LABELS - 8) y=(header - 9) { "layer" }
            @for (column, (name, lines)) in std::iter::zip(&grid.columns, &headers).enumerate() {
                g.head {
                    title { (name) }
                    @for (line, above) in lines.iter().zip((0..lines.len()).rev()) {
                        text x=(left(column) + CELL_WIDTH / 2) y=(header - 9 - LINE * above) { (line) }
                    }
                }
            }
            @for (row, (layer, cells)) in std::iter::zip(&grid.layers, &grid.cells).enumerate() {
                @let y = header + row * (CELL_HEIGHT + GAP);
                text.axis x=(LABELS - 8) y=(y + 17) { (layer) }
                @for (column, cell) in cells.iter().enumerate() {
                    @if let Some(cell) = cell {
                        @let title = format!("layer {layer}, {}", grid.columns[column]);
                        (square(cell, &title, (left(column), y), grid.largest()))
                    }
                }
            }
        }
    }
}

/// A cell of the map with its top left corner at (x, y).
fn square(cell: &Cell, title: &str, (x, y): (usize, usize), largest: f64) -> Markup {
    let strength = strength(cell.importance, largest);
    let (class, what) = match cell.owner {
        Some(Owner::Own) => (" kept", "; keeps its own LoRA"),
        Some(Owner::Shared) => (" shared", "; uses the shared LoRA"),
        Some(Owner::None) => (" dropped", "; has no LoRA"),
        None => ("", ""),
    };
    let light = if strength > TURN_LIGHT { " turn-light" } else { "" };
    let dark = if strength > TURN_DARK { " turn-dark" } else { "" };
    html! {
        g class={ "cell" (class) (light) (dark) } {
            title {
                (title) ": I = " (fixed(cell.importance, 4))
                @if cell.score.is_finite() { ", g = " (scientific(cell.score)) }
                (what)
            }
            rect.heat x=(x) y=(y) width=(CELL_WIDTH) height=(CELL_HEIGHT) rx="3" fill-opacity=(format!("{strength:.3}")) {}
            @match cell.owner {
                Some(Owner::Own) => {
                    rect.frame x=(x + 1) y=(y + 1) width=(CELL_WIDTH - 2) height=(CELL_HEIGHT - 2) rx="2" {}
                }
                Some(Owner::None) => {
                    rect fill="url(#hatch)" x=(x) y=(y) width=(CELL_WIDTH) height=(CELL_HEIGHT) {}
                }
                _ => {}
            }
            @if let Some(owner) = cell.owner { (mark(owner, x + 15, y + CELL_HEIGHT / 2)) }
            text x=(x + CELL_WIDTH / 2 + 8) y=(y + 17) { (fixed(cell.importance, 3)) }
        }
    }
}

/// The sign of an owner, centred at (x, y): a dot, a ring or a cross.
fn mark(owner: Owner, x: usize, y: usize) -> Markup {
    match owner {
        Owner::Own => html! { circle.mark cx=(x) cy=(y) r="4" {} },
        Owner::Shared => html! { circle.mark.ring cx=(x) cy=(y) r="3.4" {} },
        Owner::None => {
            let (l, r, t, b) = (x - 3, x + 3, y - 3, y + 3);
            html! { path.mark.ring d=(format!("M{l} {t}L{r} {b}M{l} {b}L{r} {t}")) {} }
        }
    }
}

/// A list of the signs that occur, and the colour scale.
pub fn legend(grid: &Grid) -> Markup {
    let signs = [
        (Owner::Own, "kept", "kept: a LoRA of its own"),
        (Owner::Shared, "shared", "uses the type’s one shared LoRA"),
        (Owner::None, "dropped", "no LoRA"),
    ];
    html! {
        ul.legend {
            @for (owner, class, text) in signs.into_iter().filter(|(owner, ..)| grid.has(*owner)) {
                li {
                    svg class={ "sign cell " (class) } viewBox="0 0 24 18" width="24" height="18" aria-hidden="true" {
                        rect.heat width="24" height="18" rx="3" fill-opacity="0.2" {}
                        @match owner {
                            Owner::Own => { rect.frame x="1" y="1" width="22" height="16" rx="2" {} }
                            Owner::Shared => {}
                            Owner::None => { rect fill="url(#hatch)" width="24" height="18" {} }
                        }
                        (mark(owner, 12, 9))
                    }
                    (text)
                }
            }
            li {
                span aria-hidden="true" { "0" }
                span.scale aria-hidden="true" {}
                (fixed(grid.largest(), 3)) " largest I"
            }
        }
    }
}

/// The same numbers as a table.
pub fn table(grid: &Grid) -> Markup {
    let heads = std::iter::once("layer").chain(grid.columns.iter().map(String::as_str));
    page::table(
        "numbers",
        "",
        heads.map(|head| ("", head)),
        html! {
            @for (layer, cells) in std::iter::zip(&grid.layers, &grid.cells) {
                tr {
                    th scope="row" { (layer) }
                    @for cell in cells {
                        td {
                            @if let Some(cell) = cell {
                                (fixed(cell.importance, 4))
                                @match cell.owner {
                                    Some(Owner::Own) => { " " b { "kept" } }
                                    Some(Owner::Shared) => { " shared" }
                                    Some(Owner::None) => { " none" }
                                    None => {}
                                }
                            }
                        }
                    }
                }
            }
        },
    )
}

/// How strong a cell's colour is, in [0.04, 1], linear in I.
fn strength(importance: f64, largest: f64) -> f64 {
    let share = importance / largest;
    0.04 + 0.96 * if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
}

/// A module type's name over several lines, broken after dots and underscores.
fn header_lines(name: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in name.split_inclusive(['.', '_']) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + part.chars().count() <= LINE_LETTERS => line.push_str(part),
            _ => lines.push(part.to_string()),
        }
    }
    for line in &mut lines {
        if line.chars().count() > LINE_LETTERS {
            *line = line.chars().take(LINE_LETTERS - 1).chain(['…']).collect();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::samples;

    /// WCAG 2 relative luminance of an sRGB colour with channels in [0, 255].
    fn luminance(rgb: [f64; 3]) -> f64 {
        let linear = |c: f64| {
            let c = c / 255.0;
            if c <= 0.040_45 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2])
    }

    fn contrast(a: f64, b: f64) -> f64 {
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// The n-th definition of a custom property in the page's style: the first is the light page's.
    fn colour(property: &str, n: usize) -> [f64; 3] {
        let css = include_str!("page.css");
        let start = css.match_indices(&format!("{property}: #")).nth(n).unwrap().0 + property.len() + 3;
        let digits = &css[start..start + 6];
        [0, 2, 4].map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap() as f64)
    }

    #[test]
    fn text_on_cells_can_be_read_at_every_strength() {
        for (page, turn, below, above) in [(0, TURN_LIGHT, 0.0, 1.0), (1, TURN_DARK, 1.0, 0.0)] {
            let (panel, heat) = (colour("--panel", page), colour("--heat", page));
            for step in 4..=100 {
                let strength = step as f64 / 100.0;
                let mixed: [f64; 3] =
                    std::array::from_fn(|c| panel[c] * (1.0 - strength) + heat[c] * strength);
                let text = if strength > turn { above } else { below };
                let seen = contrast(luminance(mixed), text);
                assert!(seen >= 4.5, "page {page}, strength {strength}: contrast {seen:.2}");
            }
        }
    }

    #[test]
    fn every_module_has_a_cell_with_its_value_and_mark() {
        for (layers, kinds) in [(6, 2), (30, 6), (1, 1)] {
            let record = samples::lora_drop(layers, kinds);
            let importance = record.importance.unwrap();
            let grid = Grid::new(&importance, record.assignment.as_ref(), &record.module_names);
            let svg = svg(&grid, "map", "Importance", "module type").into_string();
            assert_eq!(svg.matches("<g class=\"cell").count(), layers * kinds);
            assert_eq!(svg.matches("class=\"frame\"").count(), svg.matches("keeps its own").count());
            assert_eq!(svg.matches("class=\"mark ring\"").count(), svg.matches("uses the shared").count());
            for m in &importance.modules {
                assert!(svg.contains(&format!(">{:.3}</text>", m.importance)));
            }
            let table = table(&grid).into_string();
            assert_eq!(table.matches("<tr>").count(), layers + 1);
            assert_eq!(table.matches("<td>").count(), layers * kinds);
        }
    }

    #[test]
    fn seven_columns_and_holes_fit() {
        let grid = Grid {
            columns: ["q", "k", "v", "o", "gate", "up", "down"].map(String::from).to_vec(),
            layers: (0..30).collect(),
            cells: vec![
                vec![
                    Some(Cell { importance: f64::NAN, score: f64::NAN, owner: None }),
                    None,
                    Some(Cell { importance: 0.5, score: 2.0, owner: Some(Owner::None) }),
                    None,
                    None,
                    None,
                    None,
                ];
                30
            ],
        };
        let svg = svg(&grid, "map", "Importance", "module type").into_string();
        assert_eq!(svg.matches("<g class=\"cell").count(), 60);
        assert_eq!(svg.matches("url(#hatch)").count(), 30);
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn long_names_are_broken_at_dots() {
        assert_eq!(header_lines("query"), ["query"]);
        assert_eq!(header_lines("attention.output.dense"), ["attention.", "output.dense"]);
        assert_eq!(header_lines("averyveryverylongname"), ["averyveryver…"]);
    }
}
