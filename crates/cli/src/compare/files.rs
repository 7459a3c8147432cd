//! The table as Markdown, CSV and JSON, and as text for a terminal.

use std::fmt::Write;

use serde_json::{Value, json};

use super::cell::{Cell, CellResult, Measured, Outcome, Purpose};
use super::findings::{Average, Entry, Findings, Smallest};
use super::run::Counts;
use super::statistics::{Difference, Spread, mean};
use super::table::{Score, TableFile, described};
use crate::report::terminal::{Style, Table};
use crate::report::words::baseline_name;
use lora_drop::format::{self, fixed, grouped, percent};
use lora_drop::summary::Summary;

/// compare.json: the table, what was found, and the results of all cells.
pub(super) fn index(
    table: &TableFile,
    findings: &Findings,
    results: &[(&Cell, &CellResult)],
    counts: Counts,
) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "name": table.name,
        "tasks": table.tasks.iter().map(|task| &task.name).collect::<Vec<_>>(),
        "lines": table.lines.iter().map(|line| &line.label).collect::<Vec<_>>(),
        "reference": table.lines[table.reference].label,
        "score": table.score,
        "tolerance": table.tolerance,
        "counts": counts,
        "findings": findings,
        "cells": results.iter().map(|(cell, result)| json!({"folder": cell.folder, "result": result})).collect::<Vec<_>>(),
    })
}

/// A cell's line in table.csv.
struct Row<'a> {
    table: &'a TableFile,
    cell: &'a Cell,
    result: &'a CellResult,
}

impl Row<'_> {
    /// A value of a finished run; empty where it failed.
    fn of<T: ToString>(&self, value: impl Fn(&Measured) -> T) -> String {
        self.result.measured().map_or(String::new(), |measured| value(measured).to_string())
    }

    fn seconds(&self, seconds: fn(&Summary) -> f64) -> String {
        self.of(|m| format!("{:.3}", seconds(&m.summary)))
    }

    fn purpose(&self) -> String {
        match &self.cell.purpose {
            Purpose::Reported => String::new(),
            Purpose::Trial(tried) => described(tried),
            Purpose::FirstRun => "first run".to_string(),
        }
    }

    fn retained_ratio(&self) -> String {
        let has_lora = |m: &Measured| m.summary.lora_parameters_full > 0;
        self.of(|m| if has_lora(m) { m.summary.retained_ratio.to_string() } else { String::new() })
    }

    fn error(&self) -> Option<&str> {
        match &self.result.outcome {
            Outcome::Failed { error } => Some(error),
            Outcome::Finished(_) => None,
        }
    }
}

/// A column's name and its field in a row.
type Field = (&'static str, fn(&Row) -> String);

const FIELDS: [Field; 26] = [
    ("task", |row| row.table.tasks[row.cell.task].name.clone()),
    ("method", |row| row.table.lines[row.cell.line].method.clone()),
    ("line", |row| row.table.lines[row.cell.line].label.clone()),
    ("seed", |row| row.cell.seed.to_string()),
    ("purpose", |row| row.purpose()),
    ("outcome", |row| row.error().map_or("finished", |_| "failed").to_string()),
    ("metric", |row| row.of(|m| m.summary.metric.clone())),
    ("score", |row| row.of(|m| m.score(row.table.score))),
    ("last", |row| row.of(|m| m.last)),
    ("best", |row| row.of(|m| m.best)),
    ("best_epoch", |row| row.of(|m| m.summary.best_epoch)),
    ("epochs", |row| row.of(|m| m.summary.epochs)),
    ("parameters", |row| row.of(Measured::parameters)),
    ("trained_parameters", |row| row.of(|m| m.summary.trainable_parameters)),
    ("retained_ratio", |row| row.retained_ratio()),
    ("sample_steps", |row| row.of(|m| m.summary.sample_steps)),
    ("train_steps", |row| row.of(|m| m.summary.steps - m.summary.sample_steps)),
    ("train_tokens", |row| row.of(|m| m.summary.train_tokens)),
    ("selection_seconds", |row| row.seconds(|s| s.sample_seconds)),
    ("train_seconds", |row| row.seconds(|s| s.train_seconds)),
    ("evaluate_seconds", |row| row.seconds(|s| s.evaluate_seconds)),
    ("total_seconds", |row| row.seconds(|s| s.total_seconds)),
    ("peak_memory_bytes", |row| row.of(|m| m.summary.peak_rss_bytes)),
    ("threads", |row| row.of(|m| m.summary.threads)),
    ("folder", |row| row.cell.folder.clone()),
    ("error", |row| row.error().unwrap_or_default().to_string()),
];

/// table.csv: a line a cell, trials and failed ones too.
pub(super) fn csv(table: &TableFile, results: &[(&Cell, &CellResult)]) -> String {
    let head = FIELDS.map(|(name, _)| name).join(",");
    let lines = results.iter().map(|&(cell, result)| {
        let row = Row { table, cell, result };
        FIELDS.map(|(_, field)| quoted(&field(&row))).join(",")
    });
    std::iter::once(head).chain(lines).map(|line| line + "\n").collect()
}

/// A field as RFC 4180 has it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_string()
    }
}

/// table.md: an overview of lines × tasks, then a table for each task.
pub(super) fn markdown(table: &TableFile, findings: &Findings, counts: Counts) -> String {
    let mut out = format!("# {}\n\n{}\n\n", one_line(&table.name), progress(counts));
    for smallest in &findings.smallest {
        let task = &table.tasks[smallest.task].name;
        _ = writeln!(out, "- {}: {}", one_line(task), one_line(&sentence(table, findings, smallest)));
    }
    _ = writeln!(out, "\n{}\n", rule(table));
    let heads: Vec<String> = std::iter::once("method".to_string())
        .chain(table.tasks.iter().enumerate().map(|(task, _)| task_head(table, findings, task)))
        .chain((!findings.averages.is_empty()).then(|| "average".to_string()))
        .collect();
    markdown_row(&mut out, &heads);
    markdown_row(&mut out, &vec!["---".to_string(); heads.len()]);
    for (index, line) in table.lines.iter().enumerate() {
        let mut cells = vec![line.label.clone()];
        cells.extend((0..table.tasks.len()).map(|task| overview_cell(findings, task, index)));
        if !findings.averages.is_empty() {
            cells.push(average_cell(findings, index));
        }
        markdown_row(&mut out, &cells);
    }
    for (task, name) in table.tasks.iter().map(|task| &task.name).enumerate() {
        if findings.of_task(task).next().is_none() {
            continue;
        }
        _ = writeln!(out, "\n## {}\n", one_line(name));
        let reference = &table.lines[table.reference].label;
        let score = [metric_of(findings, task), &format!("difference to {reference}")].map(String::from);
        let heads = [&["method".to_string()][..], &score, &cost_heads(reference)].concat();
        markdown_row(&mut out, &heads);
        markdown_row(&mut out, &vec!["---".to_string(); heads.len()]);
        for entry in findings.of_task(task) {
            let difference = entry.difference.map_or(format::NONE.into(), |found| difference(&found));
            let score = [line_name(table, entry), spread(&entry.score), difference];
            markdown_row(&mut out, &[&score[..], &cost_cells(entry)].concat());
        }
    }
    _ = writeln!(out, "\n{} {}", score_notes(table), cost_notes());
    out
}

/// A row of a table; names may contain bars and line feeds.
fn markdown_row(out: &mut String, cells: &[String]) {
    let cells: Vec<String> = cells.iter().map(|cell| one_line(cell).replace('|', "\\|")).collect();
    _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).collect::<Vec<_>>().join(" ")
}

/// The heads of what a line costs.
pub(super) fn cost_heads(reference: &str) -> Vec<String> {
    let of = format!("of {reference}’s");
    ["seeds", "parameters", &of, "retained", "training", "selection", "peak memory", "steps"]
        .map(String::from)
        .to_vec()
}

/// What a line costs on a task.
pub(super) fn cost_cells(entry: &Entry) -> Vec<String> {
    let none = || format::NONE.to_string();
    let selection = percent(entry.selection_seconds / entry.seconds);
    let selection = format!("{} ({selection})", format::duration(entry.selection_seconds));
    vec![
        entry.score.n.to_string(),
        grouped(entry.parameters.round() as usize),
        entry.share.map_or(none(), share),
        entry.retained.map_or(none(), percent),
        format::duration(entry.seconds),
        if entry.selection_seconds > 0.0 { selection } else { none() },
        format::bytes(entry.peak_memory_bytes),
        grouped(entry.steps.round() as usize),
    ]
}

/// The line's label, with the settings that trials chose on this task.
pub(super) fn line_name(table: &TableFile, entry: &Entry) -> String {
    let label = &table.lines[entry.line].label;
    let tuned = entry.tuned.as_ref().map(described);
    tuned.map_or(label.clone(), |tuned| format!("{label} ({tuned})"))
}

/// Mean and standard deviation.
pub(super) fn spread(spread: &Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{} ± {}", fixed(spread.mean, 4), fixed(deviation, 4)),
        None => fixed(spread.mean, 4),
    }
}

/// Mean and interval, signs written out.
pub(super) fn difference(difference: &Difference) -> String {
    let mean = signed(difference.mean);
    match difference.interval {
        Some((low, high)) => format!("{mean} [{}, {}]", signed(low), signed(high)),
        None => mean,
    }
}

pub(super) fn signed(value: f64) -> String {
    let text = fixed(value.abs(), 4);
    let zero = text.chars().all(|c| c == '0' || c == '.');
    match value {
        _ if zero => text,
        value if value < 0.0 => format!("−{text}"),
        _ => format!("+{text}"),
    }
}

/// A share, or from ten times on a factor: full fine-tuning has hundreds of times a LoRA's values.
pub(super) fn share(share: f64) -> String {
    if share < 10.0 { percent(share) } else { format!("{}×", grouped(share.round() as usize)) }
}

/// A task's name and its metric.
pub(super) fn task_head(table: &TableFile, findings: &Findings, task: usize) -> String {
    let name = &table.tasks[task].name;
    match metric_of(findings, task) {
        "" => name.clone(),
        metric => format!("{name} ({metric})"),
    }
}

pub(super) fn metric_of(findings: &Findings, task: usize) -> &str {
    findings.of_task(task).next().map_or("", |entry| &entry.metric)
}

pub(super) fn overview_cell(findings: &Findings, task: usize, line: usize) -> String {
    findings.entry(task, line).map_or(format::NONE.to_string(), |entry| spread(&entry.score))
}

fn average_cell(findings: &Findings, line: usize) -> String {
    average_of(findings, line).map_or(format::NONE.to_string(), |average| fixed(average.score, 4))
}

pub(super) fn average_of(findings: &Findings, line: usize) -> Option<&Average> {
    findings.averages.iter().find(|average| average.line == line)
}

/// The progress of the table, in a sentence.
pub(super) fn progress(counts: Counts) -> String {
    let Counts { finished, failed, of } = counts;
    let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    format!("{finished} of {} finished{failed}.", format::counted(of, "run"))
}

/// The smallest adapter that is good enough on a task, in a sentence.
pub(super) fn sentence(table: &TableFile, findings: &Findings, smallest: &Smallest) -> String {
    let reference = &table.lines[table.reference].label;
    let line = &table.lines[smallest.line].label;
    let (Some(entry), Some(other)) =
        (findings.entry(smallest.task, smallest.line), findings.entry(smallest.task, table.reference))
    else {
        return String::new();
    };
    if let Some(baseline) = &other.no_better_than {
        return format!(
            "{reference} is no better than {} ({} {}), so there is nothing to compare; train it longer, or with another \
             learning rate.",
            baseline_name(baseline.kind),
            baseline.name,
            fixed(baseline.value, 4),
        );
    }
    let parameters = match grouped(entry.parameters.round() as usize) {
        none if entry.parameters == 0.0 => format!("{none} adapter parameters"),
        number => format!("{number} parameters"),
    };
    let Some(found) = &entry.difference else {
        let candidates = findings.of_task(smallest.task).any(|other| other.parameters < entry.parameters);
        let why = if candidates { "no smaller one is good enough" } else { "the table has no smaller one" };
        return format!("{line} with {parameters}; {why}.");
    };
    let share = entry.share.filter(|share| *share > 0.0);
    let share = share.map_or(String::new(), |of| format!(", {} of {reference}’s", self::share(of)));
    let interval = found
        .interval
        .map_or(String::new(), |(low, high)| format!(", 95 % interval {} to {}", signed(low), signed(high)));
    format!(
        "{line} with {parameters}{share}: {} {} against {} (difference {}{interval}, {}).",
        entry.metric,
        fixed(entry.score.mean, 4),
        fixed(other.score.mean, 4),
        signed(found.mean),
        format::counted(found.n, "pair"),
    )
}

/// What "good enough" means.
pub(super) fn rule(table: &TableFile) -> String {
    let reference = &table.lines[table.reference].label;
    let tolerance = match table.tolerance {
        Some(tolerance) => format!("{tolerance} (the table’s tolerance)"),
        None => {
            format!("one standard error of {reference}’s mean over its seeds (or zero, if it has one seed)")
        }
    };
    format!(
        "An adapter is good enough if its mean difference to {reference}, on the same seeds, is not worse than \
         {tolerance}. The smallest has the fewest parameters."
    )
}

/// How the scores are to be read.
pub(super) fn score_notes(table: &TableFile) -> String {
    let score = match table.score {
        Score::Last => "Scores are those of dev after the last epoch.",
        Score::Best => {
            "Scores are those of the best epoch on dev, which dev itself has chosen, so they are optimistic."
        }
    };
    format!(
        "{score} They are means ± standard deviations over seeds. Differences are means over pairs of the same task and \
         seed, with the bootstrap’s 95 % interval (percentiles of 10,000 resamples), which is too narrow for a few seeds."
    )
}

/// How the costs are to be read.
pub(super) fn cost_notes() -> &'static str {
    "Parameters are values in unique adapter pairs, without the head; retained is their share of plain LoRA’s on the same \
     modules with the same rank. Training is the mean time of all optimiser steps, including those of the selection, \
     without reading and evaluation; peak memory is the largest of the seeds."
}

/// Lines × tasks for a terminal, and the smallest adapters.
pub fn summary_table(table: &TableFile, findings: &Findings, style: Style) -> String {
    let none = || format::NONE.to_string();
    let of_line = |line: usize| findings.entries.iter().filter(move |entry| entry.line == line);
    let lines: Vec<usize> = (0..table.lines.len()).collect();
    let mut shown = Table::new(&lines).text("method", |&line| table.lines[line].label.clone());
    for task in 0..table.tasks.len() {
        let head = task_head(table, findings, task);
        shown = shown.number(&head, |&line| overview_cell(findings, task, line));
    }
    if !findings.averages.is_empty() {
        shown = shown.number("average", |&line| average_cell(findings, line));
    }
    let mut out = shown
        .number("parameters", |&line| {
            of_line(line).next().map_or(none(), |entry| grouped(entry.parameters.round() as usize))
        })
        .optional()
        .number("training", |&line| {
            // The mean of no tasks is not a number, which is shown as a dash.
            format::duration(mean(of_line(line).map(|entry| entry.seconds)))
        })
        .optional()
        .fit(style.width);
    if !findings.smallest.is_empty() {
        out.push_str("\nThe smallest adapter that is good enough:\n");
        for smallest in &findings.smallest {
            let task = &table.tasks[smallest.task].name;
            _ = writeln!(out, "  {task}: {}", sentence(table, findings, smallest));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_numbers_are_written_plainly() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("LoRA, \"half\""), "\"LoRA, \"\"half\"\"\"");
        assert_eq!([0.01, -0.01, -0.00001].map(signed), ["+0.0100", "−0.0100", "0.0000"]);
        assert_eq!([0.5, 9.0, 306.4].map(share), ["50.0 %", "900.0 %", "306×"]);
        let of = Difference { mean: -0.01, interval: Some((-0.02, 0.003)), n: 3 };
        assert_eq!(difference(&of), "−0.0100 [−0.0200, +0.0030]");
    }
}
