//! compare.html, in the style of a run's report.

use std::collections::BTreeSet;

use maud::{Markup, html};

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
use crate::report::page::{self, document};
use lora_drop::format::{self, counted, fixed, grouped};

/// The page as HTML text.
pub(super) fn render(
    table: &TableFile,
    findings: &Findings,
    results: &[(&Cell, &CellResult)],
    counts: Counts,
) -> String {
    let body = html! {
        (header(table, results, counts))
        @if !findings.smallest.is_empty() { (smallest(table, findings)) }
        @if !findings.entries.is_empty() { (overview(table, findings)) }
        (charts(table, findings))
        @if !findings.entries.is_empty() { (costs(table, findings)) }
        @for (number, map) in findings.importance.iter().enumerate() { (importance(table, map, number)) }
        @if !findings.agreement.is_empty() { (agreement(table, findings)) }
        (page::settings(settings_rows(table)))
        footer {
            p {
                "Written by lora-drop " (env!("CARGO_PKG_VERSION")) ". table.csv next to this file has a line for each "
                "run, compare.json everything."
            }
        }
    };
    document(&table.name, None, body)
}

fn header(table: &TableFile, results: &[(&Cell, &CellResult)], counts: Counts) -> Markup {
    let measured = || results.iter().filter_map(|(_, result)| result.measured());
    let models: BTreeSet<&str> = measured().map(|m| m.summary.model.as_str()).collect();
    let threads: BTreeSet<usize> = measured().map(|m| m.summary.threads).collect();
    let machines: BTreeSet<&str> =
        measured().filter_map(|m| Some(m.summary.machine.as_ref()?.cpu.as_str())).collect();
    let seeds: Vec<String> = table.seeds.iter().map(u64::to_string).collect();
    let facts = [
        counted(table.tasks.len(), "task"),
        counted(table.lines.len(), "line"),
        format!("Seeds {}", seeds.join(", ")),
        progress(counts),
    ];
    let machine = machines.iter().map(|machine| machine.to_string());
    let machine = machine.chain(threads.iter().map(|&threads| counted(threads, "thread") + " a run"));
    let failed = results.iter().filter_map(|(cell, result)| match &result.outcome {
        Outcome::Failed { error } => Some((cell.title(table), error)),
        Outcome::Finished(_) => None,
    });
    let failed: Vec<_> = failed.collect();
    let left = counts.of - counts.finished - counts.failed;
    html! {
        header {
            h1 { (table.name) }
            p.facts {
                @for model in &models { span { "Model " code { (model) } } " " }
                @for fact in facts.into_iter().chain(machine) { span { (fact) } " " }
            }
            @if machines.len() > 1 || threads.len() > 1 {
                p.warn {
                    "The runs were made on different machines or with different numbers of threads: their times cannot "
                    "be compared."
                }
            }
            @if counts.finished < counts.of {
                p.warn {
                    b { "This table is not complete." } " " (progress(counts))
                    @if left > 0 { " " (counted(left, "run")) " still to be made." }
                    " Repeat the command to continue."
                }
            }
            @if !failed.is_empty() {
                ul.warn { @for (title, error) in &failed { li { b { (title) } " failed: " (error) } } }
            }
        }
    }
}

/// The answer, before everything else.
fn smallest(table: &TableFile, findings: &Findings) -> Markup {
    html! {
        section {
            h2 { "The smallest adapter that is good enough" }
            ul {
                @for smallest in &findings.smallest {
                    li { b { (table.tasks[smallest.task].name) } ": " (sentence(table, findings, smallest)) }
                }
            }
            p.note { (rule(table)) }
        }
    }
}

/// Lines × tasks.
fn overview(table: &TableFile, findings: &Findings) -> Markup {
    let averaged = !findings.averages.is_empty();
    let tasks: Vec<String> = (0..table.tasks.len()).map(|task| task_head(table, findings, task)).collect();
    let heads = std::iter::once(("name", "method")).chain(tasks.iter().map(|task| ("", task.as_str())));
    let score = |score: String, found: Option<_>| {
        html! {
            (score)
            @if let Some(found) = found { br; span.soft { (difference(&found)) } }
        }
    };
    html! {
        section {
            h2 { "Scores" }
            (page::table("numbers compared", "", heads.chain(averaged.then_some(("", "average"))), html! {
                @for (index, line) in table.lines.iter().enumerate() {
                    tr {
                        th.name scope="row" {
                            (line.label)
                            @if index == table.reference { " " span.soft { "reference" } }
                        }
                        @for task in 0..table.tasks.len() {
                            td {
                                @match findings.entry(task, index) {
                                    Some(entry) if is_best(findings, entry) => {
                                        b { (spread(&entry.score)) } (score(String::new(), entry.difference))
                                    }
                                    Some(entry) => { (score(spread(&entry.score), entry.difference)) }
                                    None => { (format::NONE) }
                                }
                            }
                        }
                        @if averaged {
                            td {
                                @match average_of(findings, index) {
                                    Some(average) => { (score(fixed(average.score, 4), average.difference)) }
                                    None => { (format::NONE) }
                                }
                            }
                        }
                    }
                }
            }))
            p.note {
                "Below each score: the mean difference to " (table.lines[table.reference].label) " on the same seeds. Bold: "
                "the best mean of a column. " (score_notes(table))
            }
        }
    }
}

/// Whether no mean on the task is better than this one, and not all are as good.
fn is_best(findings: &Findings, entry: &Entry) -> bool {
    let value = |entry: &Entry| if entry.higher_is_better { entry.score.mean } else { -entry.score.mean };
    let own = value(entry);
    let worse = findings.of_task(entry.task).any(|other| value(other) < own);
    worse && findings.of_task(entry.task).all(|other| value(other) <= own)
}

fn charts(table: &TableFile, findings: &Findings) -> Markup {
    let sections = [
        (
            Over::Parameters,
            "Quality over parameters",
            "Each method is a line; bars are one standard deviation over seeds. Parameters are values in unique adapter \
             pairs, or all weights for full fine-tuning; a method without any is drawn as a level.",
        ),
        (
            Over::Seconds,
            "Quality over time",
            "The same scores over the time of all optimiser steps, including those of the selection.",
        ),
    ];
    html! {
        @for (over, title, text) in sections {
            @let drawn = figures::scores(table, findings, over);
            @if !drawn.is_empty() {
                section {
                    h2 { (title) }
                    p { (text) }
                    div.even { @for figure in &drawn { (figure) } }
                }
            }
        }
    }
}

/// What each line costs on each task.
fn costs(table: &TableFile, findings: &Findings) -> Markup {
    let costs = cost_heads(&table.lines[table.reference].label);
    let heads = || std::iter::once(("name", "method")).chain(costs.iter().map(|head| ("", head.as_str())));
    let average_heads = [("name", "method"), ("", "parameters"), ("", "share"), ("", "training")];
    html! {
        section {
            h2 { "What it costs" }
            @for (task, name) in table.tasks.iter().map(|task| &task.name).enumerate() {
                @if findings.of_task(task).next().is_some() {
                    (page::table("numbers wide compared", name, heads(), html! {
                        @for entry in findings.of_task(task) {
                            tr {
                                th.name scope="row" { (line_name(table, entry)) }
                                @for cell in cost_cells(entry) { td { (cell) } }
                            }
                        }
                    }))
                }
            }
            @if !findings.averages.is_empty() {
                (page::table("numbers compared", "Over all tasks", average_heads, html! {
                    @for average in &findings.averages {
                        tr {
                            th.name scope="row" { (table.lines[average.line].label) }
                            td { (grouped(average.parameters.round() as usize)) }
                            td { (average.share.map_or(format::NONE.to_string(), share)) }
                            td { (format::duration(average.seconds)) }
                        }
                    }
                }))
            }
            p.note { (cost_notes()) }
        }
    }
}

/// Layers × tasks, a map for each module type.
fn importance(table: &TableFile, map: &ImportanceMap, number: usize) -> Markup {
    let square = |importance: f64| Square { importance, score: f64::NAN, owner: None };
    let grid = |kind: &KindImportance| Grid {
        columns: map.tasks.iter().map(|&task| table.tasks[task].name.clone()).collect(),
        layers: kind.layers.keys().copied().collect(),
        cells: kind.layers.values().map(|row| row.iter().map(|value| value.map(square)).collect()).collect(),
    };
    let grids: Vec<(&str, Grid)> = map.kinds.iter().map(|kind| (kind.name.as_str(), grid(kind))).collect();
    html! {
        section {
            h2 { "Importance of the layers on each task" }
            p {
                "By the criterion " code { (map.criterion) } "; mean over the seeds of "
                (table.lines[map.line].label) "."
            }
            div.side {
                @for (kind, (name, grid)) in grids.iter().enumerate() {
                    @let (id, title) = (format!("importance-{number}-{kind}"), format!("Importance of {name}"));
                    figure.scroll tabindex="0" {
                        figcaption { code { (name) } }
                        (heatmap::svg(grid, &id, &title, "task"))
                        (heatmap::legend(grid))
                    }
                }
            }
            details {
                summary { "The numbers as a table" }
                @for (name, grid) in &grids {
                    h3 { code { (name) } }
                    (heatmap::table(grid))
                }
            }
        }
    }
}

fn agreement(table: &TableFile, findings: &Findings) -> Markup {
    let heads = [
        ("name", "task"),
        ("name", "method"),
        ("name", "between"),
        ("", "mean"),
        ("", "least"),
        ("", "pairs"),
    ];
    html! {
        section {
            h2 { "Agreement of the rankings" }
            p {
                "Kendall’s tau between the rankings of two runs, averaged over module types: 1 is the same order, 0 no "
                "relation."
            }
            (page::table("numbers", "", heads, html! {
                @for found in &findings.agreement {
                    tr {
                        th.name scope="row" { (table.tasks[found.task].name) }
                        td.name { (table.lines[found.line].label) }
                        td.name {
                            @match found.other {
                                Some(other) => { "it and " (table.lines[other].label) }
                                None => { "its seeds" }
                            }
                        }
                        td { (fixed(found.mean, 3)) }
                        td { (fixed(found.least, 3)) }
                        td { (found.pairs) }
                    }
                }
            }))
        }
    }
}

/// What the table's file says, beyond the defaults of `train`.
fn settings_rows(table: &TableFile) -> Vec<(Markup, Markup)> {
    let tasks = table.tasks.iter().map(|task| (task.name.clone(), described(task.options.given())));
    let lines = table.lines.iter().map(|line| {
        let mut own = line.options.given().clone();
        own.extend(line.varied.clone());
        let trials: Vec<String> = line.trials.iter().map(described).collect();
        let tried =
            if trials.is_empty() { String::new() } else { format!("; tried: {}", trials.join(" | ")) };
        (line.label.clone(), described(&own) + &tried)
    });
    let all =
        std::iter::once(("all runs".to_string(), described(table.options.given()))).chain(tasks).chain(lines);
    let given = all.filter(|(_, value)| !value.is_empty());
    given.map(|(name, value)| (html! { (name) }, html! { code { (value) } })).collect()
}
