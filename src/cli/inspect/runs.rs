//! Runs: the table of one, the comparison of several.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lora_drop::summary::Summary;
use lora_drop::{Error, Result};
use serde_json::{Value, json};

use crate::cli::console::{bytes, grouped, rows};

/// Reads a run's summary.json.
pub fn read(run: &Path) -> Result<Summary> {
    let path = run.join("summary.json");
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::Input(format!("{}: not a summary of lora-drop train: {e}", path.display())))
}

/// The object of `--json`: the summary, and what it is.
pub fn object(path: &Path, summary: &Summary) -> Value {
    let mut object = json!({"kind": "run", "path": path});
    if let (Value::Object(object), Ok(Value::Object(summary))) = (&mut object, serde_json::to_value(summary))
    {
        object.extend(summary);
    }
    object
}

pub fn comparison(paths: &[PathBuf], runs: &[Summary]) -> Value {
    let runs: Vec<_> = paths.iter().zip(runs).map(|(path, run)| object(path, run)).collect();
    json!({"kind": "runs", "runs": runs})
}

/// What people read at the end of a run and by `inspect`.
pub fn table(summary: &Summary) -> String {
    let metrics: Vec<_> = summary.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    let mut table = vec![
        ("method", summary.method.clone()),
        ("model", summary.model.clone()),
        ("data", summary.data.clone()),
        ("status", summary.status.clone()),
        ("dev", format!("{} (epoch {} of {})", metrics.join(", "), summary.best_epoch, summary.epochs)),
        ("trained", format!("{} parameters", grouped(summary.trainable_parameters))),
    ];
    if summary.lora_parameters_full > 0 {
        let (unique, full) = (grouped(summary.lora_parameters), grouped(summary.lora_parameters_full));
        table.push((
            "LoRA",
            format!("{unique} of {full} parameters ({:.1} %)", 100.0 * summary.retained_ratio),
        ));
    }
    for (kind, layers) in &summary.kept {
        table.push(("kept", format!("{kind}: {}", numbers(layers))));
    }
    table.extend([
        ("time", format!("{:.1} s", summary.total_seconds)),
        (
            "",
            format!("{:.1} s sample stage, {:.1} s training", summary.sample_seconds, summary.train_seconds),
        ),
        ("speed", format!("{:.0} tokens/s", summary.train_tokens_per_second)),
        ("memory", bytes(summary.peak_rss_bytes)),
    ]);
    for (file, size) in &summary.files {
        table.push(("file", format!("{file}, {}", bytes(*size))));
    }
    rows(&table)
}

/// A column for each fact, a line for each run; metrics that a run has not are a dash.
pub fn comparison_table(paths: &[PathBuf], runs: &[Summary]) -> String {
    let metrics: BTreeSet<&String> = runs.iter().flat_map(|run| run.metrics.keys()).collect();
    let mut table = vec![vec!["run", "method"]];
    table[0].extend(metrics.iter().map(|name| name.as_str()));
    table[0].extend(["trained", "LoRA", "retained", "seconds", "tokens/s", "memory"]);
    let mut table: Vec<Vec<String>> =
        table.into_iter().map(|row| row.into_iter().map(str::to_string).collect()).collect();
    for (path, run) in paths.iter().zip(runs) {
        let mut row = vec![path.display().to_string(), run.method.clone()];
        row.extend(
            metrics.iter().map(|name| run.metrics.get(*name).map_or("-".into(), |v| format!("{v:.4}"))),
        );
        row.extend([
            grouped(run.trainable_parameters),
            grouped(run.lora_parameters),
            format!("{:.1} %", 100.0 * run.retained_ratio),
            format!("{:.1}", run.total_seconds),
            format!("{:.0}", run.train_tokens_per_second),
            bytes(run.peak_rss_bytes),
        ]);
        table.push(row);
    }
    align(&table)
}

/// Columns of equal width: the first two to the left, the numbers to the right.
fn align(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| table.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in table {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `layers 0 3 5`, or `no layer`.
pub fn numbers(layers: &[usize]) -> String {
    if layers.is_empty() {
        return "no layer".to_string();
    }
    let layers: Vec<_> = layers.iter().map(usize::to_string).collect();
    format!("layers {}", layers.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let table =
            [["run", "method", "accuracy"], ["a", "lora", "0.9"]].map(|row| row.map(str::to_string).to_vec());
        assert_eq!(align(&table), "run  method  accuracy\na    lora         0.9\n");
    }
}
