//! What a pruning shows: the table in the terminal, with a bar for what dev keeps, and the page
//! with its curves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::report::curves::{Chart, Item};
use crate::report::figures::{Key, figure};
use crate::report::html::{document, escape, last_part, tile};
use crate::report::metric_name;
use crate::report::terminal::{Column, Style, table};
use lora_drop::evaluate::metrics::higher_is_better;
use lora_drop::format::{self, NONE, counted, fixed, grouped, percent};
use lora_drop::prune::{By, Point, Pruning};

/// Columns of the terminal's bars.
const BAR: usize = 16;

/// What a row says of its budget.
fn label(pruning: &Pruning, row: Option<usize>) -> String {
    let Some(number) = row else { return "whole".to_string() };
    let budget = pruning.points[number].budget.to_string();
    if pruning.chosen == Some(number) { format!("{budget} ●") } else { budget }
}

/// The whole adapter first, then the budgets.
fn rows(pruning: &Pruning) -> Vec<(Option<usize>, &Point)> {
    let points = pruning.points.iter().enumerate().map(|(number, point)| (Some(number), point));
    [(None, &pruning.whole)].into_iter().chain(points).collect()
}

/// A metric of dev by its name.
fn value_of(point: &Point, metric: &str) -> Option<f64> {
    point.dev.as_ref()?.metrics.get(metric).copied()
}

/// The metric that decides.
fn value(pruning: &Pruning, point: &Point) -> Option<f64> {
    value_of(point, pruning.metric.as_ref()?)
}

/// The ranks that are left: 3, or 1–8.
fn span(point: &Point) -> String {
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

/// How far the whole adapter's metric is certain, and how far it may fall.
fn certainty(pruning: &Pruning) -> Option<String> {
    let (metric, error) = (pruning.metric.as_deref()?, pruning.standard_error?);
    let value = fixed(value(pruning, &pruning.whole)?, 4);
    let rows = counted(pruning.dev_rows, "row");
    Some(format!(
        "{metric} of the whole adapter {value} ± {} (one standard error, {rows} of dev)",
        fixed(error, 4)
    ))
}

/// What the energies are.
fn basis(pruning: &Pruning) -> String {
    match pruning.by {
        By::Svd => "energy: squared singular values of s·B·A".to_string(),
        By::Energy | By::Modules => {
            let (rows, tokens) = (counted(pruning.rows, "row"), counted(pruning.tokens, "token"));
            format!("energy: squared output of the LoRAs over {rows} of train ({tokens})")
        }
    }
}

/// The table for the terminal: a line for the whole adapter and one for each budget.
pub fn prune_table(pruning: &Pruning, style: Style) -> String {
    let rows = rows(pruning);
    let column = |head: &str, left: bool, of: &dyn Fn(&Point) -> String| {
        Column::new(head, left, rows.iter().map(|(_, point)| of(point)).collect())
    };
    let mut columns = vec![
        Column::new("budget", true, rows.iter().map(|(row, _)| label(pruning, *row)).collect()),
        column("parameters", false, &|point| grouped(point.parameters)),
        column("rank", false, &span),
        column("energy", false, &|point| percent(point.energy)),
    ];
    if pruning.whole.dev.is_some() {
        let names = metrics(pruning);
        let metric = |name: &str| {
            let of = |point: &Point| value_of(point, name).map_or(NONE.to_string(), |value| fixed(value, 4));
            column(name, false, &of)
        };
        columns.extend(names.first().map(|name| metric(name)));
        let loss = |point: &Point| point.dev.as_ref().map_or(NONE.to_string(), |dev| fixed(dev.loss, 4));
        columns.push(column("loss", false, &loss));
        if pruning.points.len() > 1 {
            columns.push(Column::new("", true, bars(pruning)).optional());
        }
        columns.extend(names.iter().skip(1).map(|name| metric(name).optional()));
    }
    let mut text = table(&columns, style.width);
    _ = writeln!(text, "{}", basis(pruning));
    for line in certainty(pruning).into_iter().chain(finetuned(pruning)) {
        _ = writeln!(text, "{line}");
    }
    text
}

/// What training has made of the pruned adapter.
fn finetuned(pruning: &Pruning) -> Option<String> {
    let found = pruning.finetuned.as_ref()?;
    let metric = pruning.metric.as_deref()?;
    Some(format!(
        "after {} of training ({}, learning rate {}): {metric} {}, loss {}",
        counted(found.steps, "step"),
        format::duration(found.seconds),
        found.learning_rate,
        found.dev.metrics.get(metric).map_or(NONE.to_string(), |value| fixed(*value, 4)),
        fixed(found.dev.loss, 4),
    ))
}

/// The deciding metric of each row as a bar, from the table's worst value, which has the shortest,
/// to its best.
fn bars(pruning: &Pruning) -> Vec<String> {
    let values: Vec<Option<f64>> = rows(pruning).iter().map(|(_, point)| value(pruning, point)).collect();
    let known = || values.iter().flatten().copied().filter(|value| value.is_finite());
    let (least, most) = (known().fold(f64::INFINITY, f64::min), known().fold(f64::NEG_INFINITY, f64::max));
    let is_loss = !pruning.metric.as_deref().is_some_and(higher_is_better);
    let bar = |value: Option<f64>| {
        let share = value.map_or(f64::NAN, |value| (value - least) / (most - least));
        let share = if is_loss { 1.0 - share } else { share };
        let share = if share.is_finite() { share } else { 1.0 };
        "█".repeat(1 + (share * (BAR - 1) as f64).round() as usize)
    };
    values.into_iter().map(bar).collect()
}

/// The page of a pruning as HTML text.
pub fn prune_page(pruning: &Pruning) -> String {
    let adapter = pruning.adapter.display().to_string();
    let title = format!("Pruning of {}", last_part(&adapter));
    let mut out = String::new();
    _ = write!(
        out,
        "<header>\n<h1>{}</h1>\n<p class=\"facts\"><span>Adapter <code>{}</code></span> <span>Data <code>{}</code></span> \
         <span>By {}{}</span></p>\n</header>\n",
        escape(&title),
        escape(&adapter),
        escape(&pruning.data.display().to_string()),
        pruning.by,
        if pruning.equal_ranks { ", equal ranks" } else { "" },
    );
    tiles(&mut out, pruning);
    out.push_str("<section>\n<h2>What is kept at each budget</h2>\n");
    _ = writeln!(out, "<p>{}.</p>", escape(&capital(&basis(pruning))));
    for line in certainty(pruning).into_iter().chain(finetuned(pruning)) {
        _ = writeln!(out, "<p>{}.</p>", escape(&capital(&line)));
    }
    out.push_str("<div class=\"even\">\n");
    if pruning.whole.dev.is_some() {
        out.push_str(&metric_chart(pruning));
    }
    out.push_str(&energy_chart(pruning));
    out.push_str("</div>\n");
    numbers(&mut out, pruning);
    out.push_str("</section>\n");
    modules(&mut out, pruning);
    _ = writeln!(
        out,
        "<footer><p>Written by lora-drop {}. prune.json has all numbers.</p></footer>",
        escape(&pruning.version)
    );
    document(&title, &out)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn tiles(out: &mut String, pruning: &Pruning) {
    let shown = pruning.kept().unwrap_or(&pruning.whole);
    out.push_str("<dl class=\"tiles\">\n");
    if let (Some(metric), Some(found)) = (&pruning.metric, value(pruning, shown)) {
        let whole = value(pruning, &pruning.whole).map_or(NONE.to_string(), |value| fixed(value, 4));
        tile(
            out,
            metric_name(metric),
            &fixed(found, 4),
            None,
            &[format!("on dev; the whole adapter {whole}")],
        );
    }
    let lines = [format!("{} of {}", percent(shown.retained_ratio), grouped(pruning.whole.parameters))];
    tile(out, "Unique LoRA parameters", &grouped(shown.parameters), Some(shown.retained_ratio), &lines);
    tile(out, "Energy", &percent(shown.energy), Some(shown.energy), &["of the whole adapter’s".to_string()]);
    let seconds = pruning.scoring_seconds + pruning.algebra_seconds + pruning.measuring_seconds;
    let lines = [
        format!("one pass over train {}", format::duration(pruning.scoring_seconds)),
        format!("algebra {}", format::duration(pruning.algebra_seconds)),
        format!("dev {}", format::duration(pruning.measuring_seconds)),
    ];
    tile(out, "Time", &format::duration(seconds), None, &lines);
    out.push_str("</dl>\n");
}

/// Shares of the parameters in whole percent, as the charts have them, rising.
fn places(pruning: &Pruning, of: impl Fn(&Point) -> Option<f64>) -> Vec<(i64, f64)> {
    let place = |point: &Point| (100.0 * point.retained_ratio).round() as i64;
    let found: BTreeMap<i64, f64> =
        rows(pruning).into_iter().rev().filter_map(|(_, point)| Some((place(point), of(point)?))).collect();
    found.into_iter().collect()
}

fn chart(id: &str, title: &str, y_name: &str, y: Option<(f64, f64)>, items: Vec<Item>) -> String {
    let text = "The values are in the table below.";
    let x_name = "parameters kept, in percent";
    let chart = Chart { id, title, text, x_name, y_name, x: (0, 100), x_ticks: None, y, items };
    figure(&chart, title, &[] as &[Key], "")
}

fn metric_chart(pruning: &Pruning) -> String {
    let points = places(pruning, |point| value(pruning, point));
    let mut items = vec![
        Item::Line { series: 0, points: points.clone() },
        Item::Dots { series: 0, points, filled: true },
    ];
    if let (Some(whole), Some(tolerance)) = (value(pruning, &pruning.whole), pruning.tolerance) {
        let worst = if pruning.metric.as_deref().is_some_and(higher_is_better) {
            whole - tolerance
        } else {
            whole + tolerance
        };
        items.push(Item::Level { y: worst, text: "tolerated".to_string() });
    }
    if let Some(kept) = pruning.kept() {
        let x = (100.0 * kept.retained_ratio).round() as i64;
        items.push(Item::At { x, text: "kept".to_string() });
    }
    let name = pruning.metric.as_deref().map_or("metric", metric_name);
    chart("prune-metric", &format!("{name} on dev"), &name.to_lowercase(), None, items)
}

fn energy_chart(pruning: &Pruning) -> String {
    let mut points = places(pruning, |point| Some(point.energy));
    points.insert(0, (0, 0.0));
    let dots = points[1..].to_vec();
    let items = vec![Item::Line { series: 1, points }, Item::Dots { series: 1, points: dots, filled: true }];
    chart("prune-energy", "Energy that is kept", "share of the energy", Some((0.0, 1.04)), items)
}

fn numbers(out: &mut String, pruning: &Pruning) {
    let names = metrics(pruning);
    let heads: String =
        names.iter().map(|name| format!("<th scope=\"col\" class=\"n\">{}</th>", escape(name))).collect();
    _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr><th scope=\"col\">budget</th>\
         <th scope=\"col\" class=\"n\">parameters</th><th scope=\"col\" class=\"n\">kept</th>\
         <th scope=\"col\" class=\"n\">modules</th><th scope=\"col\" class=\"n\">rank</th>\
         <th scope=\"col\" class=\"n\">energy</th>{heads}<th scope=\"col\" class=\"n\">loss</th></tr></thead>\n<tbody>\n"
    );
    for (row, point) in rows(pruning) {
        let metrics = names.iter().map(|name| value_of(point, name));
        let loss = point.dev.as_ref().map(|dev| dev.loss);
        let measured =
            metrics.chain([loss]).map(|value| value.map_or(NONE.to_string(), |value| fixed(value, 4)));
        let cells = [
            grouped(point.parameters),
            percent(point.retained_ratio),
            grouped(point.modules),
            span(point),
            percent(point.energy),
        ];
        let cells: String =
            cells.into_iter().chain(measured).map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
        _ = writeln!(out, "<tr><th scope=\"row\">{}</th>{cells}</tr>", label(pruning, row));
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

/// The rank of each module, a row a layer and a column a type: what is kept of what was there.
fn modules(out: &mut String, pruning: &Pruning) {
    let mut names: Vec<&str> = Vec::new();
    for module in &pruning.modules {
        if !names.contains(&module.module) {
            names.push(module.module);
        }
    }
    let layers: BTreeSet<usize> = pruning.modules.iter().map(|module| module.layer).collect();
    let (title, note) = match pruning.chosen {
        Some(_) => (
            "Ranks that are kept",
            "The rank that is kept of the rank that was there, and the share of all energy that the module has.",
        ),
        None => ("Energy by module", "The rank, and the share of all energy that the module has."),
    };
    let total: f64 = pruning.modules.iter().flat_map(|module| &module.energies).sum();
    _ = write!(
        out,
        "<section>\n<h2>{title}</h2>\n<p>{note}</p>\n<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr><th scope=\"col\">layer</th>"
    );
    for name in &names {
        _ = write!(out, "<th scope=\"col\" class=\"n\">{}</th>", escape(name));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for layer in layers {
        _ = write!(out, "<tr><th scope=\"row\">{layer}</th>");
        for name in &names {
            let found = pruning.modules.iter().find(|m| m.layer == layer && m.module == *name);
            let cell = found.map_or(NONE.to_string(), |module| {
                let share = percent(module.energies.iter().sum::<f64>() / total);
                match module.kept {
                    Some(kept) => format!("{kept} of {}, {share}", module.rank),
                    None => format!("{}, {share}", module.rank),
                }
            });
            _ = write!(out, "<td class=\"n\">{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}
