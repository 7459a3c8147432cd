//! compare.html: one page without scripts and without anything from outside, in the style of a
//! run's report.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::cell::{Cell, CellResult, Outcome};
use super::figures::{self, Over};
use super::files::{
    average_of, cost_cells, cost_heads, cost_notes, difference, line_name, progress, rule, score_notes,
    sentence, share, spread, task_head,
};
use super::findings::{Entry, Findings, ImportanceMap, KindImportance};
use super::run::Counts;
use super::table::{TableFile, described};
use crate::report::grid::{Cell as Square, Grid};
use crate::report::heatmap;
use crate::report::html::{document, escape};
use lora_drop::format::{self, fixed, grouped};

/// The page as HTML text.
///
/// # Errors
/// A chart that cannot be drawn.
pub(super) fn render(
    table: &TableFile,
    findings: &Findings,
    results: &[(&Cell, &CellResult)],
    counts: Counts,
) -> String {
    let mut out = String::new();
    header(&mut out, table, results, counts);
    smallest(&mut out, table, findings);
    overview(&mut out, table, findings);
    charts(&mut out, table, findings);
    by_task(&mut out, table, findings);
    importance(&mut out, table, findings);
    agreement(&mut out, table, findings);
    settings(&mut out, table);
    _ = writeln!(
        out,
        "<footer><p>Written by lora-drop {}. table.csv beside this file has a line for each run, compare.json everything.\
         </p></footer>",
        env!("CARGO_PKG_VERSION")
    );
    document(&table.name, &out)
}

fn header(out: &mut String, table: &TableFile, results: &[(&Cell, &CellResult)], counts: Counts) {
    let measured = || results.iter().filter_map(|(_, result)| result.measured());
    let models: BTreeSet<&str> = measured().map(|m| m.summary.model.as_str()).collect();
    let threads: BTreeSet<usize> = measured().map(|m| m.summary.threads).collect();
    let machines: BTreeSet<&str> =
        measured().filter_map(|m| Some(m.summary.machine.as_ref()?.cpu.as_str())).collect();
    let seeds: Vec<String> = table.seeds.iter().map(u64::to_string).collect();
    let mut facts: Vec<String> =
        models.iter().map(|model| format!("Model <code>{}</code>", escape(model))).collect();
    facts.push(format::counted(table.tasks.len(), "task"));
    facts.push(format::counted(table.lines.len(), "line"));
    facts.push(format!("Seeds {}", seeds.join(", ")));
    facts.push(escape(&progress(counts)));
    facts.extend(machines.iter().map(|machine| escape(machine)));
    facts.extend(threads.iter().map(|&threads| format::counted(threads, "thread") + " a run"));
    _ = write!(out, "<header>\n<h1>{}</h1>\n<p class=\"facts\">", escape(&table.name));
    for fact in facts {
        _ = write!(out, "<span>{fact}</span> ");
    }
    out.push_str("</p>\n");
    if machines.len() > 1 || threads.len() > 1 {
        out.push_str(
            "<p class=\"warn\">The runs were made on different machines or with different numbers of threads: their \
             seconds cannot be compared.</p>\n",
        );
    }
    if counts.finished < counts.of {
        let left = counts.of - counts.finished - counts.failed;
        let rest = if left > 0 { format!(" {} to be made.", verb(left)) } else { String::new() };
        _ = writeln!(
            out,
            "<p class=\"warn\"><b>This table is not complete.</b> {}{rest} The same command goes on.</p>",
            escape(&progress(counts))
        );
    }
    let failed: Vec<(&str, String)> = results
        .iter()
        .filter_map(|(cell, result)| match &result.outcome {
            Outcome::Failed { error } => Some((error.as_str(), cell.title(table))),
            Outcome::Finished(_) => None,
        })
        .collect();
    if !failed.is_empty() {
        out.push_str("<ul class=\"warn\">\n");
        for (error, title) in failed {
            _ = writeln!(out, "<li><b>{}</b> failed: {}</li>", escape(&title), escape(error));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</header>\n");
}

fn verb(left: usize) -> String {
    if left == 1 { "One is still".to_string() } else { format!("{} are still", grouped(left)) }
}

/// The answer, before everything else.
fn smallest(out: &mut String, table: &TableFile, findings: &Findings) {
    if findings.smallest.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>The smallest adapter that does</h2>\n<ul>\n");
    for smallest in &findings.smallest {
        let text = sentence(table, findings, smallest);
        // The task's name stands out.
        let name = &table.tasks[smallest.task].name;
        let rest = text.strip_prefix(name.as_str()).unwrap_or(&text);
        _ = writeln!(out, "<li><b>{}</b>{}</li>", escape(name), escape(rest));
    }
    _ = writeln!(out, "</ul>\n<p class=\"note\">{}</p>\n</section>", escape(&rule(table)));
}

/// Lines × tasks.
fn overview(out: &mut String, table: &TableFile, findings: &Findings) {
    if findings.entries.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>Scores</h2>\n<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers compared\">\n<thead><tr>");
    out.push_str("<th scope=\"col\" class=\"name\">method</th>");
    for task in 0..table.tasks.len() {
        _ = write!(out, "<th scope=\"col\">{}</th>", escape(&task_head(table, findings, task)));
    }
    let averaged = !findings.averages.is_empty();
    if averaged {
        out.push_str("<th scope=\"col\">average</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (index, line) in table.lines.iter().enumerate() {
        let mark = if index == table.reference { " <span class=\"soft\">reference</span>" } else { "" };
        _ = write!(out, "<tr><th scope=\"row\" class=\"name\">{}{mark}</th>", escape(&line.label));
        for task in 0..table.tasks.len() {
            let Some(entry) = findings.entry(task, index) else {
                _ = write!(out, "<td>{}</td>", format::NONE);
                continue;
            };
            let second = entry.difference.map(|found| difference(&found));
            score(out, &spread(&entry.score), is_best(findings, entry), second);
        }
        if averaged {
            match average_of(findings, index) {
                Some(average) => {
                    let second = average.difference.map(|found| difference(&found));
                    score(out, &fixed(average.score, 4), false, second);
                }
                None => _ = write!(out, "<td>{}</td>", format::NONE),
            }
        }
        out.push_str("</tr>\n");
    }
    let reference = &table.lines[table.reference].label;
    _ = writeln!(
        out,
        "</tbody>\n</table>\n</div>\n<p class=\"note\">Below each score: the mean difference to {} on the same seeds. Bold: \
         the best mean of a column. {}</p>\n</section>",
        escape(reference),
        escape(&score_notes(table))
    );
}

fn score(out: &mut String, text: &str, best: bool, second: Option<String>) {
    let text = if best { format!("<b>{text}</b>") } else { text.to_string() };
    let second = second.map_or(String::new(), |second| format!("<br/><span class=\"soft\">{second}</span>"));
    _ = write!(out, "<td>{text}{second}</td>");
}

/// Whether no mean on the task is better than this one, and not all are as good.
fn is_best(findings: &Findings, entry: &Entry) -> bool {
    let value = |entry: &Entry| if entry.higher_is_better { entry.score.mean } else { -entry.score.mean };
    let own = value(entry);
    let worse = findings.of_task(entry.task).any(|other| value(other) < own);
    worse && findings.of_task(entry.task).all(|other| value(other) <= own)
}

fn charts(out: &mut String, table: &TableFile, findings: &Findings) {
    for (over, title, text) in [
        (
            Over::Parameters,
            "Quality over parameters",
            "A line a method; bars are one standard deviation over seeds. Parameters are values in unique adapter pairs, \
             all weights for full fine-tuning; what has none is drawn as a level.",
        ),
        (
            Over::Seconds,
            "Quality over time",
            "The same scores over the time of all optimiser steps, those of the selection counted.",
        ),
    ] {
        let drawn = figures::scores(table, findings, over);
        if !drawn.is_empty() {
            _ = writeln!(
                out,
                "<section>\n<h2>{title}</h2>\n<p>{text}</p>\n<div class=\"even\">\n{}</div>\n</section>",
                drawn.concat()
            );
        }
    }
}

/// What each line costs on each task.
fn by_task(out: &mut String, table: &TableFile, findings: &Findings) {
    let tasks: Vec<usize> =
        (0..table.tasks.len()).filter(|&task| findings.of_task(task).next().is_some()).collect();
    if tasks.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>What it costs</h2>\n");
    let reference = &table.lines[table.reference].label;
    for task in tasks {
        _ = write!(
            out,
            "<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers wide compared\">\n<caption>{}</caption>\n<thead><tr>\
             <th scope=\"col\" class=\"name\">method</th>",
            escape(&table.tasks[task].name)
        );
        for head in cost_heads(reference) {
            _ = write!(out, "<th scope=\"col\">{}</th>", escape(&head));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for entry in findings.of_task(task) {
            _ = write!(out, "<tr><th scope=\"row\" class=\"name\">{}</th>", escape(&line_name(table, entry)));
            for cell in cost_cells(entry) {
                _ = write!(out, "<td>{}</td>", escape(&cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>\n</table>\n</div>\n");
    }
    if !findings.averages.is_empty() {
        out.push_str(
            "<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers compared\">\n<caption>Over all tasks</caption>\n<thead><tr>\
             <th scope=\"col\" class=\"name\">method</th><th scope=\"col\">parameters</th><th scope=\"col\">share</th>\
             <th scope=\"col\">training</th></tr></thead>\n<tbody>\n",
        );
        for average in &findings.averages {
            _ = writeln!(
                out,
                "<tr><th scope=\"row\" class=\"name\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&table.lines[average.line].label),
                grouped(average.parameters.round() as usize),
                average.share.map_or(format::NONE.to_string(), share),
                format::duration(average.seconds)
            );
        }
        out.push_str("</tbody>\n</table>\n</div>\n");
    }
    _ = writeln!(out, "<p class=\"note\">{}</p>\n</section>", cost_notes());
}

/// Layers × tasks, a map for each module type.
fn importance(out: &mut String, table: &TableFile, findings: &Findings) {
    for (number, map) in findings.importance.iter().enumerate() {
        _ = write!(
            out,
            "<section>\n<h2>Importance of the layers on each task</h2>\n<p>By the criterion <code>{}</code>; mean over the \
             seeds of {}.</p>\n<div class=\"side\">\n",
            escape(&map.criterion),
            escape(&table.lines[map.line].label)
        );
        let grids: Vec<(&str, Grid)> = grids(table, map);
        for (kind, (name, grid)) in grids.iter().enumerate() {
            _ = write!(
                out,
                "<figure class=\"scroll\" tabindex=\"0\">\n<figcaption><code>{}</code></figcaption>\n{}{}</figure>\n",
                escape(name),
                heatmap::picture(
                    grid,
                    &format!("importance-{number}-{kind}"),
                    &format!("Importance of {name}"),
                    "task"
                ),
                heatmap::legend(grid)
            );
        }
        out.push_str("</div>\n");
        out.push_str("<details><summary>The numbers as a table</summary>\n");
        for (name, grid) in &grids {
            _ = write!(
                out,
                "<h3><code>{}</code></h3>\n<div class=\"scroll\" tabindex=\"0\">\n{}</div>\n",
                escape(name),
                heatmap::table(grid)
            );
        }
        out.push_str("</details>\n</section>\n");
    }
}

fn grids<'a>(table: &TableFile, map: &'a ImportanceMap) -> Vec<(&'a str, Grid)> {
    let square = |importance: f64| Square { importance, score: f64::NAN, owner: None };
    let grid = |kind: &KindImportance| Grid {
        columns: map.tasks.iter().map(|&task| table.tasks[task].name.clone()).collect(),
        layers: kind.layers.keys().copied().collect(),
        cells: kind.layers.values().map(|row| row.iter().map(|value| value.map(square)).collect()).collect(),
    };
    map.kinds.iter().map(|kind| (kind.name.as_str(), grid(kind))).collect()
}

fn agreement(out: &mut String, table: &TableFile, findings: &Findings) {
    if findings.agreement.is_empty() {
        return;
    }
    out.push_str(
        "<section>\n<h2>Agreement of the rankings</h2>\n<p>Kendall’s tau between the rankings of two runs, averaged over module \
         types: 1 is the same order, 0 no relation.</p>\n<div class=\"scroll\" tabindex=\"0\">\n<table class=\"numbers\">\n<thead>\
         <tr><th scope=\"col\" class=\"name\">task</th><th scope=\"col\" class=\"name\">method</th>\
         <th scope=\"col\" class=\"name\">between</th><th scope=\"col\">mean</th><th scope=\"col\">least</th>\
         <th scope=\"col\">pairs</th></tr></thead>\n<tbody>\n",
    );
    for found in &findings.agreement {
        let between = found
            .other
            .map_or("its seeds".to_string(), |other| format!("it and {}", table.lines[other].label));
        _ = writeln!(
            out,
            "<tr><th scope=\"row\" class=\"name\">{}</th><td class=\"name\">{}</td><td class=\"name\">{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            escape(&table.tasks[found.task].name),
            escape(&table.lines[found.line].label),
            escape(&between),
            fixed(found.mean, 3),
            fixed(found.least, 3),
            found.pairs
        );
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
}

/// What the table's file says, beyond the defaults of `train`.
fn settings(out: &mut String, table: &TableFile) {
    out.push_str("<section>\n<h2>Settings</h2>\n<dl class=\"settings\">\n");
    let mut rows = vec![("all runs".to_string(), described(table.options()))];
    rows.extend(table.tasks.iter().map(|task| (task.name.clone(), described(task.options()))));
    for line in &table.lines {
        let mut own = line.options().clone();
        own.extend(line.varied.clone());
        let trials: Vec<String> = line.trials.iter().map(described).collect();
        let tried =
            if trials.is_empty() { String::new() } else { format!("; tried: {}", trials.join(" | ")) };
        rows.push((line.label.clone(), described(&own) + &tried));
    }
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        _ = writeln!(out, "<div><dt>{}</dt><dd><code>{}</code></dd></div>", escape(name), escape(value));
    }
    out.push_str("</dl>\n</section>\n");
}
