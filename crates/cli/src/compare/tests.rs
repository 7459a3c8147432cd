//! Findings, tables and page of made-up results.

use std::collections::BTreeMap;

use serde_json::json;
use toml::Table;

use super::cell::{Cell, CellResult, Measured, Outcome};
use super::files::{csv, index, markdown, rule, sentence, summary_table};
use super::findings::{Findings, Measurements};
use super::page::render;
use super::run::Counts;
use super::sources::Sources;
use super::table::TableFile;
use crate::report::terminal::Style;
use crate::report::tests::pages::assert_sound;
use crate::report::tests::samples;
use lora_drop::assignment::Rest;
use lora_drop::score::record::Record;
use lora_drop::settings::{Scope, Selection};

const TABLE: &str = "\
name = \"a <table>\"
[options]
model = \"m\"
[[tasks]]
name = \"A\"
data = \"a\"
[[tasks]]
name = \"B & C\"
data = \"b\"
[[methods]]
name = \"LoRA\"
method = \"lora\"
[[methods]]
name = \"drop\"
vary = { budget = [0.5, 0.25] }
[[methods]]
name = \"head\"
method = \"head\"
";

fn table(text: &str) -> TableFile {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.toml");
    std::fs::write(&path, text).unwrap();
    TableFile::read(&path).unwrap()
}

/// A finished run with this score in a metric; `parameters` are the adapter's, 0 is the head alone.
fn measured(metric: &str, score: f64, parameters: usize) -> Measured {
    let record = samples::lora_drop(6, 2);
    let mut summary = record.summary;
    summary.metric = metric.to_string();
    summary.metrics = [(metric.to_string(), score + 0.01)].into();
    summary.lora_parameters = parameters;
    summary.baseline = None;
    (summary.sample_seconds, summary.train_seconds) = (10.0, 90.0);
    (summary.sample_steps, summary.steps) = (5, 50);
    if parameters == 0 {
        (summary.method, summary.lora_parameters_full) = ("head".to_string(), 0);
    }
    let importance = (parameters > 0 && parameters < 1000).then(|| {
        let record = Record {
            criterion: "output".to_string(),
            importance: record.importance.unwrap(),
            assignment: record.assignment.unwrap(),
            scope: Scope::Module,
            selection: Selection::Budget(0.5),
            rest: Rest::default(),
        };
        record.to_json(|kind| kind.name().to_string())
    });
    let last_metrics = json!({metric: score, "accuracy": score});
    Measured { last: score, best: score + 0.01, last_metrics, summary, importance }
}

/// The results of a table by task and line: scores of seeds 0, 1, ..., and parameters.
struct Results(BTreeMap<(usize, usize), BTreeMap<u64, CellResult>>, Vec<Cell>);

impl Results {
    fn new(table: &TableFile, runs: &[Runs]) -> Self {
        let mut results = Results(BTreeMap::new(), Vec::new());
        for &((task, line), metric, scores, parameters) in runs {
            for (seed, &score) in scores.iter().enumerate() {
                let seed = seed as u64;
                let cell = Cell::new(table, &Sources::default(), (task, line), seed, &Table::new()).unwrap();
                let outcome = Outcome::Finished(Box::new(measured(metric, score, parameters)));
                let result = CellResult::new(&cell, table, outcome);
                results.0.entry((task, line)).or_default().insert(seed, result);
                results.1.push(cell);
            }
        }
        results
    }

    fn findings(&self, table: &TableFile) -> Findings {
        let mut all = Measurements::new();
        for (place, seeds) in &self.0 {
            let measured = seeds.iter().filter_map(|(seed, result)| Some((*seed, result.measured()?)));
            all.entry(*place).or_default().extend(measured);
        }
        Findings::new(table, &Sources::default(), &all, &BTreeMap::new()).unwrap()
    }

    fn listed(&self) -> Vec<(&Cell, &CellResult)> {
        self.1.iter().map(|cell| (cell, &self.0[&(cell.task, cell.line)][&cell.seed])).collect()
    }
}

/// Task and line, metric, score of each seed, parameters.
type Runs<'a> = ((usize, usize), &'a str, &'a [f64], usize);

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} is not {b}");
}

const RUNS: [Runs; 7] = [
    ((0, 0), "accuracy", &[0.80, 0.82, 0.84], 1000),
    ((0, 1), "accuracy", &[0.79, 0.83, 0.83], 500),
    ((0, 2), "accuracy", &[0.75, 0.76], 250),
    ((0, 3), "accuracy", &[0.60, 0.60, 0.60], 0),
    ((1, 0), "mcc", &[0.50, 0.50, 0.50], 1000),
    ((1, 1), "mcc", &[0.49, 0.49, 0.49], 500),
    ((1, 3), "mcc", &[0.10, 0.10, 0.10], 0),
];

#[test]
fn differences_are_paired_and_the_smallest_that_does_is_within_a_standard_error() {
    let table = table(TABLE);
    let results = Results::new(&table, &RUNS);
    let findings = results.findings(&table);
    let half = findings.entry(0, 1).unwrap();
    near(half.score.mean, 2.45 / 3.0);
    let difference = half.difference.unwrap();
    near(difference.mean, -0.01 / 3.0);
    let (low, high) = difference.interval.unwrap();
    assert!(difference.n == 3 && low >= -0.01 - 1e-9 && high <= 0.01 + 1e-9 && low < high);
    near(half.share.unwrap(), 0.5);
    near(half.seconds, 100.0);
    near(half.steps, 50.0);
    // Only the seeds that both have.
    let quarter = findings.entry(0, 2).unwrap().difference.unwrap();
    near(quarter.mean, (-0.05 - 0.06) / 2.0);
    assert!(findings.entry(0, 0).unwrap().difference.is_none());
    // A deviation of 0.02 over three seeds is a standard error of 0.0115.
    let chosen: Vec<(usize, usize)> = findings.smallest.iter().map(|s| (s.task, s.line)).collect();
    assert_eq!(chosen, [(0, 1), (1, 0)]);
    near(findings.smallest[0].tolerance, 0.02 / 3f64.sqrt());
    let first = sentence(&table, &findings, &findings.smallest[0]);
    assert!(
        first.starts_with(
            "drop, budget 0.5 with 500 parameters, 50.0 % of LoRA’s: accuracy 0.8167 against 0.8200"
        ),
        "{first}"
    );
    let second = sentence(&table, &findings, &findings.smallest[1]);
    assert_eq!(second, "LoRA with 1,000 parameters; no smaller one is good enough.");
    // The quarter has not finished on every task.
    let lines: Vec<usize> = findings.averages.iter().map(|average| average.line).collect();
    assert_eq!(lines, [0, 1, 3]);
    near(findings.averages[1].score, (2.45 / 3.0 + 0.49) / 2.0);
    assert_eq!(findings.averages[1].difference.unwrap().n, 6);
}

#[test]
fn a_tolerance_of_the_table_and_metrics_that_fall_decide_too() {
    let wide = table(&format!("tolerance = 0.06\n{TABLE}"));
    let chosen = |table: &TableFile, runs: &[Runs]| {
        let findings = Results::new(table, runs).findings(table);
        findings.smallest.iter().map(|smallest| smallest.line).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&wide, &RUNS), [2, 1]);
    assert!(rule(&wide).contains("0.06 (the table’s tolerance)"));
    let lower = table(TABLE);
    let runs: [Runs; 3] = [
        ((0, 0), "perplexity", &[4.0, 4.0], 1000),
        ((0, 1), "perplexity", &[3.9, 4.0], 500),
        ((0, 2), "perplexity", &[4.1, 4.0], 250),
    ];
    assert_eq!(chosen(&lower, &runs), [1]);
    let findings = Results::new(&lower, &runs).findings(&lower);
    near(findings.entry(0, 1).unwrap().gain().unwrap(), 0.05);
    near(findings.entry(0, 1).unwrap().difference.unwrap().mean, -0.05);
    assert!(findings.averages.is_empty());
}

#[test]
fn a_reference_that_has_learned_nothing_is_said() {
    let table = table(TABLE);
    let mut results = Results::new(&table, &RUNS);
    for result in results.0.get_mut(&(1, 0)).unwrap().values_mut() {
        let Outcome::Finished(measured) = &mut result.outcome else { unreachable!() };
        measured.summary.baseline = samples::lora_drop(6, 2).summary.baseline;
    }
    let findings = results.findings(&table);
    let text = sentence(&table, &findings, &findings.smallest[1]);
    assert!(
        text.contains("LoRA is no better than the most frequent class alone (accuracy 0.6838)"),
        "{text}"
    );
}

#[test]
fn importance_is_a_map_of_the_first_line_that_has_it() {
    let table = table(TABLE);
    let findings = Results::new(&table, &RUNS).findings(&table);
    let [map] = &findings.importance[..] else { panic!("{:?}", findings.importance) };
    assert_eq!((map.line, &map.tasks[..], map.kinds.len()), (1, &[0, 1][..], 2));
    let layers = &map.kinds[0].layers;
    assert!(layers.len() == 6 && layers.values().all(|row| row.len() == 2 && row[0] == row[1]));
    // The same scores in all runs: three seeds are three pairs, two are one.
    let seeds: Vec<(usize, usize, usize)> =
        findings.agreement.iter().map(|a| (a.task, a.line, a.pairs)).collect();
    assert_eq!(seeds, [(0, 1, 3), (0, 2, 1), (1, 1, 3)]);
    assert!(findings.agreement.iter().all(|found| found.mean == 1.0 && found.other.is_none()));
}

#[test]
fn lines_that_differ_in_the_sample_ratio_are_compared() {
    let table = table(&TABLE.replace("budget = [0.5, 0.25]", "sample-ratio = [0.1, 0.5]"));
    let findings = Results::new(&table, &RUNS).findings(&table);
    let between: Vec<_> = findings.agreement.iter().filter(|found| found.other.is_some()).collect();
    assert_eq!(between.len(), 1);
    assert_eq!((between[0].line, between[0].other, between[0].pairs), (1, Some(2), 2));
}

#[test]
fn tables_and_page_are_sound() {
    let table = table(TABLE);
    for runs in [&RUNS[..], &RUNS[..1], &[]] {
        let mut results = Results::new(&table, runs);
        if let Some(result) = results.0.get_mut(&(1, 3)).and_then(|seeds| seeds.get_mut(&2)) {
            result.outcome = Outcome::Failed { error: "no \"room\",\n<left>".to_string() };
        }
        let (findings, listed) = (results.findings(&table), results.listed());
        let counts = Counts { finished: listed.len(), failed: 1, of: 30 };
        let page = render(&table, &findings, &listed, counts);
        assert_sound(&page);
        assert!(page.contains("a &lt;table&gt;") && page.contains("This table is not complete."));
        assert_eq!(page.contains("&lt;left&gt;"), runs.len() > 6);
        let charts = page.matches("<svg class=\"chart\"").count();
        assert_eq!(charts, if runs.len() > 6 { 6 } else { 0 });
        let text = markdown(&table, &findings, counts);
        let bars = |line: &&str| line.matches(" |").count();
        let overview: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).take(6).collect();
        assert!(overview.iter().all(|line| bars(line) == bars(&overview[0])), "{text}");
        assert_eq!(
            index(&table, &findings, &listed, counts)["cells"].as_array().unwrap().len(),
            listed.len()
        );
        let style = Style { width: 100, colour: false, terminal: false };
        assert!(summary_table(&table, &findings, style).contains("drop, budget 0.25"));
        let mut reader = ::csv::Reader::from_reader(csv(&table, &listed).into_bytes().leak() as &[u8]);
        let rows = reader.records().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(rows.len(), listed.len());
    }
}

#[test]
fn steps_fill_the_seconds_that_the_sample_stage_leaves() {
    // 2 seconds a step.
    let own = measured("accuracy", 0.8, 500);
    assert_eq!(own.steps_within(100.0, false), 45);
    assert_eq!(own.steps_within(50.0, true), 25);
    assert_eq!(own.steps_within(3.0, false), 1);
}
