//! A pruning as a table for the terminal, with a bar for what dev keeps, and as a page with its
//! curves.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::report::curves::{Chart, Item, extent};
use crate::report::page::{base_name, document, table, tile};
use crate::report::terminal::{Style, Table};
use crate::report::words::metric_name;
use lora_drop::evaluate::metrics::higher_is_better;
use lora_drop::format::{self, NONE, counted, fixed, grouped, percent};
use lora_drop::prune::{Point, PruneCriterion, Pruning};

/// The most columns of the terminal's bars.
const BAR: usize = 16;

/// The whole adapter and each budget, in this order, with their names.
fn rows(pruning: &Pruning) -> Vec<(String, &Point)> {
    let name = |(number, point): (usize, &Point)| {
        let mark = if pruning.chosen == Some(number) { " ●" } else { "" };
        format!("{}{mark}", point.budget)
    };
    let points = pruning.points.iter().enumerate().map(|(number, point)| (name((number, point)), point));
    std::iter::once(("whole".to_string(), &pruning.whole)).chain(points).collect()
}

/// A metric on dev by its name.
fn value_of(point: &Point, metric: &str) -> Option<f64> {
    point.dev.as_ref()?.metrics.get(metric).copied()
}

/// The metric that decides.
fn value(pruning: &Pruning, point: &Point) -> Option<f64> {
    value_of(point, pruning.metric.as_ref()?)
}

fn shown(value: Option<f64>) -> String {
    value.map_or(NONE.to_string(), |value| fixed(value, 4))
}

fn loss(point: &Point) -> String {
    shown(point.dev.as_ref().map(|dev| dev.loss))
}

/// The ranks that are left: 3, or 1–8.
fn ranks(point: &Point) -> String {
    match point.ranks {
        (least, most) if least == most => most.to_string(),
        (least, most) => format!("{least}–{most}"),
    }
}

/// Names of all metrics, the deciding one first.
fn metrics(pruning: &Pruning) -> Vec<&str> {
    let all = pruning.whole.dev.iter().flat_map(|dev| dev.metrics.keys().map(String::as_str));
    let mut names: Vec<&str> = all.collect();
    names.sort_by_key(|name| Some(*name) != pruning.metric.as_deref());
    names
}

/// What the energies are, how certain the whole adapter's metric is, and what further training made
/// of the pruned adapter.
fn notes(pruning: &Pruning) -> Vec<String> {
    let energy = match pruning.by {
        PruneCriterion::Svd => "energy: squared singular values of s·B·A".to_string(),
        PruneCriterion::Energy | PruneCriterion::Modules => {
            let (rows, tokens) = (counted(pruning.rows, "row"), counted(pruning.tokens, "token"));
            format!("energy: squared output of the LoRAs over {rows} of train ({tokens})")
        }
    };
    let mut notes = vec![energy];
    let Some(metric) = pruning.metric.as_deref() else { return notes };
    if let Some(error) = pruning.standard_error {
        notes.push(format!(
            "{metric} of the whole adapter {} ± {} (one standard error, {} of dev)",
            shown(value(pruning, &pruning.whole)),
            fixed(error, 4),
            counted(pruning.dev_rows, "row"),
        ));
    }
    if let Some(found) = &pruning.finetuned {
        notes.push(format!(
            "after {} of training ({}, learning rate {}): {metric} {}, loss {}",
            counted(found.steps, "step"),
            format::duration(found.seconds),
            found.learning_rate,
            shown(found.dev.metrics.get(metric).copied()),
            fixed(found.dev.loss, 4),
        ));
    }
    notes
}

/// The table for the terminal: a line for the whole adapter and one for each budget.
pub fn prune_table(pruning: &Pruning, style: Style) -> String {
    let rows = rows(pruning);
    let mut table = Table::new(&rows)
        .text("budget", |(name, _)| name.clone())
        .number("parameters", |(_, point)| grouped(point.parameters))
        .number("rank", |(_, point)| ranks(point))
        .number("energy", |(_, point)| percent(point.energy));
    if pruning.whole.dev.is_some() {
        for (place, name) in metrics(pruning).into_iter().enumerate() {
            let metric = |(_, point): &(String, &Point)| shown(value_of(point, name));
            if place > 0 {
                table = table.number(name, metric).optional();
                continue;
            }
            table = table.number(name, metric).number("loss", |(_, point)| loss(point));
            if rows.len() > 2 {
                let bar = bars(&rows, pruning);
                table = table.text("", |(_, point)| bar(point)).optional();
            }
        }
    }
    let notes: String = notes(pruning).into_iter().map(|note| note + "\n").collect();
    table.fit(style.width) + &notes
}

/// The deciding metric of a row as a bar, from the table's worst value, which has the shortest, to
/// its best.
fn bars(rows: &[(String, &Point)], pruning: &Pruning) -> impl Fn(&Point) -> String {
    let (least, most) =
        extent(rows.iter().filter_map(|(_, point)| value(pruning, point))).unwrap_or_default();
    let rises = pruning.metric.as_deref().is_some_and(higher_is_better);
    move |point| {
        let share = value(pruning, point).map_or(f64::NAN, |value| (value - least) / (most - least));
        let share = if rises { share } else { 1.0 - share };
        let share = if share.is_finite() { share } else { 1.0 };
        "█".repeat(1 + (share * (BAR - 1) as f64).round() as usize)
    }
}

/// The page of a pruning as HTML text.
pub fn prune_page(pruning: &Pruning) -> String {
    let adapter = pruning.adapter.display().to_string();
    let title = format!("Pruning of {}", base_name(&adapter));
    let body = html! {
        header {
            h1 { (title) }
            p.facts {
                span { "Adapter " code { (adapter) } } " "
                span { "Data " code { (pruning.data.display()) } } " "
                span { "By " (pruning.by.to_string()) @if pruning.equal_ranks { ", equal ranks" } }
            }
        }
        (tiles(pruning))
        section {
            h2 { "What is kept at each budget" }
            @for note in notes(pruning) { p { (capital(&note)) "." } }
            div.even {
                @if pruning.whole.dev.is_some() { (metric_chart(pruning)) }
                (energy_chart(pruning))
            }
            (numbers(pruning))
        }
        (modules(pruning))
        footer { p { "Written by lora-drop " (pruning.version) ". prune.json has all numbers." } }
    };
    document(&title, None, body)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn tiles(pruning: &Pruning) -> Markup {
    let kept = pruning.kept().unwrap_or(&pruning.whole);
    let of_whole = format!("{} of {}", percent(kept.retained_ratio), grouped(pruning.whole.parameters));
    let seconds = pruning.scoring_seconds + pruning.algebra_seconds + pruning.measuring_seconds;
    let times = [
        format!("one pass over train {}", format::duration(pruning.scoring_seconds)),
        format!("algebra {}", format::duration(pruning.algebra_seconds)),
        format!("dev {}", format::duration(pruning.measuring_seconds)),
    ];
    let ratio = Some(kept.retained_ratio);
    html! {
        dl.tiles {
            @if let (Some(metric), Some(found)) = (&pruning.metric, value(pruning, kept)) {
                @let whole = shown(value(pruning, &pruning.whole));
                (tile(metric_name(metric), &fixed(found, 4), None, &[format!("on dev; the whole adapter {whole}")]))
            }
            (tile("Unique LoRA parameters", &grouped(kept.parameters), ratio, &[of_whole]))
            (tile("Energy", &percent(kept.energy), Some(kept.energy), &["of the whole adapter’s".to_string()]))
            (tile("Time", &format::duration(seconds), None, &times))
        }
    }
}

/// A chart over the share of the parameters that is kept.
fn chart(id: &str, caption: &str, y_name: &str, y: Option<(f64, f64)>, items: Vec<Item>) -> Markup {
    let text = "The values are in the table below.";
    let x_name = "parameters kept, in percent";
    Chart { id, caption, text, x_name, y_name, x: (0.0, 100.0), y, items, ..Chart::default() }.figure()
}

/// A value of each point by its share of the parameters in percent, rising.
fn places(pruning: &Pruning, of: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
    let place = |point: &Point| (100.0 * point.retained_ratio).round() as i64;
    let points = std::iter::once(&pruning.whole).chain(&pruning.points);
    // Of points at the same place the first is drawn.
    let found: BTreeMap<i64, f64> =
        points.rev().filter_map(|point| Some((place(point), of(point)?))).collect();
    found.into_iter().map(|(place, value)| (place as f64, value)).collect()
}

fn metric_chart(pruning: &Pruning) -> Markup {
    let points = places(pruning, |point| value(pruning, point));
    let mut items = vec![
        Item::Line { series: 0, points: points.clone() },
        Item::Dots { series: 0, points, filled: true },
    ];
    if let (Some(whole), Some(tolerance)) = (value(pruning, &pruning.whole), pruning.tolerance) {
        let rises = pruning.metric.as_deref().is_some_and(higher_is_better);
        let y = if rises { whole - tolerance } else { whole + tolerance };
        items.push(Item::Level { y, text: "tolerated".to_string() });
    }
    if let Some(kept) = pruning.kept() {
        items.push(Item::At { x: (100.0 * kept.retained_ratio).round(), text: "kept".to_string() });
    }
    let name = pruning.metric.as_deref().map_or("metric", metric_name);
    chart("prune-metric", &format!("{name} on dev"), &name.to_lowercase(), None, items)
}

fn energy_chart(pruning: &Pruning) -> Markup {
    let dots = places(pruning, |point| Some(point.energy));
    let points = std::iter::once((0.0, 0.0)).chain(dots.iter().copied()).collect();
    let items = vec![Item::Line { series: 1, points }, Item::Dots { series: 1, points: dots, filled: true }];
    chart("prune-energy", "Energy that is kept", "share of the energy", Some((0.0, 1.04)), items)
}

fn numbers(pruning: &Pruning) -> Markup {
    let metrics = metrics(pruning);
    let costs = ["parameters", "kept", "modules", "rank", "energy"];
    let numbers = costs.into_iter().chain(metrics.iter().copied()).chain(["loss"]);
    let heads = std::iter::once(("", "budget")).chain(numbers.map(|head| ("n", head)));
    table(
        "",
        "",
        heads,
        html! {
            @for (name, point) in rows(pruning) {
                tr {
                    th scope="row" { (name) }
                    td.n { (grouped(point.parameters)) }
                    td.n { (percent(point.retained_ratio)) }
                    td.n { (grouped(point.modules)) }
                    td.n { (ranks(point)) }
                    td.n { (percent(point.energy)) }
                    @for metric in &metrics { td.n { (shown(value_of(point, metric))) } }
                    td.n { (loss(point)) }
                }
            }
        },
    )
}

/// The rank of each module, a row per layer and a column per type: what is kept of the original
/// rank.
fn modules(pruning: &Pruning) -> Markup {
    let mut names: Vec<&str> = Vec::new();
    let mut layers: BTreeMap<usize, BTreeMap<&str, String>> = BTreeMap::new();
    let total: f64 = pruning.modules.iter().flat_map(|module| &module.energies).sum();
    for module in &pruning.modules {
        if !names.contains(&module.module) {
            names.push(module.module);
        }
        let kept = module.kept.map_or(String::new(), |kept| format!("{kept} of "));
        let share = percent(module.energies.iter().sum::<f64>() / total);
        let cell = format!("{kept}{}, {share}", module.rank);
        layers.entry(module.layer).or_default().insert(module.module, cell);
    }
    let (title, note) = match pruning.chosen {
        Some(_) => (
            "Ranks that are kept",
            "The rank that is kept of the rank that was there, and the module’s share of all energy.",
        ),
        None => ("Energy by module", "The rank, and the module’s share of all energy."),
    };
    let heads = std::iter::once(("", "layer")).chain(names.iter().map(|name| ("n", *name)));
    html! {
        section {
            h2 { (title) }
            p { (note) }
            (table("", "", heads, html! {
                @for (layer, cells) in &layers {
                    tr {
                        th scope="row" { (layer) }
                        @for name in &names { td.n { (cells.get(name).map_or(NONE, String::as_str)) } }
                    }
                }
            }))
        }
    }
}
