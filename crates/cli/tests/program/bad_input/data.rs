//! Data that is missing, damaged or does not fit.

use std::io::Write;

use super::training_fails;
use crate::common::Fixture;

const TRAIN: &str = "data/train.jsonl";

/// train.jsonl with one line (from 1) replaced.
fn with_line(f: &Fixture, number: usize, line: &[u8]) {
    let text = f.read(TRAIN);
    let mut lines: Vec<&[u8]> = text.lines().map(str::as_bytes).collect();
    lines[number - 1] = line;
    f.write(TRAIN, lines.join(&b'\n'));
}

/// train.jsonl and dev.jsonl with float labels.
fn regression(f: &Fixture) {
    for split in ["train", "dev"] {
        let rows = (0..32).map(|i| format!("{{\"text\": \"good film\", \"label\": {}.5}}\n", i % 5));
        f.write(&format!("data/{split}.jsonl"), rows.collect::<String>());
    }
}

#[test]
fn no_such_path() {
    training_fails(|_| (), "--data ./absent", 1, &["absent"]);
}

#[test]
fn no_train_file() {
    training_fails(
        |f| std::fs::remove_file(f.path(TRAIN)).unwrap(),
        "",
        1,
        &["data", "no train split", "dev.jsonl"],
    );
}

#[test]
fn two_train_files() {
    training_fails(
        |f| f.write("data/train.csv", "text,label\na,b\n"),
        "",
        1,
        &["train.jsonl", "train.csv", "two files"],
    );
}

#[test]
fn an_empty_file() {
    training_fails(|f| f.write(TRAIN, ""), "", 1, &["train.jsonl"]);
}

#[test]
fn nothing_but_empty_lines() {
    training_fails(|f| f.write(TRAIN, "\n\n"), "", 1, &["train.jsonl"]);
}

#[test]
fn one_class_only() {
    let rows = "{\"text\": \"good\", \"label\": \"positive\"}\n".repeat(20);
    training_fails(|f| f.write(TRAIN, rows), "", 1, &["train.jsonl", "positive", "two classes"]);
}

#[test]
fn an_unknown_column() {
    training_fails(|_| (), "--label-column verdict", 1, &["train.jsonl", "verdict", "text, label"]);
    training_fails(|_| (), "--text-column body", 1, &["train.jsonl", "body", "text, label"]);
}

#[test]
fn no_column_by_a_usual_name() {
    let rows = "{\"x\": \"good\", \"y\": 1}\n{\"x\": \"bad\", \"y\": 0}\n";
    training_fails(|f| f.write(TRAIN, rows), "", 1, &["train.jsonl", "x, y", "--text-column"]);
}

#[test]
fn a_label_in_dev_that_train_has_not() {
    let change =
        |f: &Fixture| f.write("data/dev.jsonl", "{\"text\": \"good film\", \"label\": \"neutral\"}\n");
    training_fails(change, "", 1, &["dev.jsonl", "line 1", "neutral", "negative, positive"]);
}

#[test]
fn a_label_out_of_range() {
    let change = |f: &Fixture| {
        let rows = |labels: &[i32]| {
            labels.iter().map(|l| format!("{{\"text\": \"good\", \"label\": {l}}}\n")).collect::<String>()
        };
        f.write(TRAIN, rows(&[0, 1, 2, 0, 1, 2]));
        f.write("data/dev.jsonl", rows(&[0, 1, 7]));
    };
    training_fails(change, "", 1, &["dev.jsonl", "line 3", "label 7", "0, 1, 2"]);
}

#[test]
fn a_row_without_a_label() {
    training_fails(|f| with_line(f, 4, b"{\"text\": \"good\"}"), "", 1, &["train.jsonl", "line 4", "label"]);
    training_fails(
        |f| with_line(f, 4, b"{\"text\": \"a\", \"label\": null}"),
        "",
        1,
        &["train.jsonl", "line 4", "label"],
    );
}

#[test]
fn labels_of_two_kinds() {
    let line = b"{\"text\": \"good\", \"label\": 1}";
    training_fails(|f| with_line(f, 5, line), "", 1, &["train.jsonl", "line 5", "number", "text"]);
}

#[test]
fn bytes_that_are_not_utf8() {
    let line = b"{\"text\": \"caf\xe9\", \"label\": \"positive\"}";
    training_fails(|f| with_line(f, 3, line), "", 1, &["train.jsonl", "line 3", "UTF-8", "0xe9"]);
}

#[test]
fn a_line_that_is_not_json() {
    training_fails(|f| with_line(f, 2, b"{\"text\": \"good\", "), "", 1, &["train.jsonl", "line 2", "JSON"]);
}

#[test]
fn a_line_that_is_no_object() {
    training_fails(|f| with_line(f, 2, b"[\"good\", 1]"), "", 1, &["train.jsonl", "line 2"]);
}

#[test]
fn a_text_without_characters() {
    let line = b"{\"text\": \"\", \"label\": \"positive\"}";
    training_fails(|f| with_line(f, 6, line), "", 1, &["train.jsonl", "line 6", "text"]);
    let line = b"{\"text\": \" \\t \", \"label\": \"positive\"}";
    training_fails(|f| with_line(f, 6, line), "", 1, &["train.jsonl", "line 6", "text"]);
}

#[test]
fn a_text_that_is_a_number() {
    let line = b"{\"text\": 12, \"label\": \"positive\"}";
    training_fails(|f| with_line(f, 6, line), "", 1, &["train.jsonl", "line 6", "text", "number"]);
}

#[test]
fn a_csv_row_with_a_field_too_many() {
    let change = |f: &Fixture| {
        std::fs::remove_file(f.path(TRAIN)).unwrap();
        f.write("data/train.csv", "text,label\ngood,positive\nbad, too,negative\n");
    };
    training_fails(change, "", 1, &["train.csv", "line 3", "3 fields", "2"]);
}

#[test]
fn a_gzip_that_ends_early() {
    let change = |f: &Fixture| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(f.read(TRAIN).as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        std::fs::remove_file(f.path(TRAIN)).unwrap();
        f.write("data/train.jsonl.gz", &packed[..packed.len() / 2]);
    };
    training_fails(change, "", 1, &["train.jsonl.gz"]);
}

#[test]
fn a_file_that_is_no_parquet() {
    let change = |f: &Fixture| {
        std::fs::remove_file(f.path(TRAIN)).unwrap();
        f.write("data/train.parquet", "not parquet at all");
    };
    training_fails(change, "", 1, &["train.parquet"]);
}

#[test]
fn an_unknown_format() {
    let change = |f: &Fixture| f.write("rows.xlsx", "PK");
    training_fails(change, "--data rows.xlsx", 1, &["rows.xlsx", ".jsonl", ".parquet"]);
}

#[test]
fn an_over_long_row_where_that_is_an_error() {
    let line = format!("{{\"text\": \"{}\", \"label\": \"positive\"}}", "good ".repeat(40));
    let change = |f: &Fixture| with_line(f, 7, line.as_bytes());
    training_fails(
        change,
        "--max-length 20 --over-length error",
        1,
        &["train.jsonl", "line 7", "42 tokens", "20"],
    );
}

#[test]
fn no_row_is_short_enough() {
    training_fails(
        |_| (),
        "--max-length 3 --over-length drop",
        1,
        &["train.jsonl", "96 rows", "--max-length"],
    );
}

#[test]
fn a_limit_that_leaves_no_room_for_a_pair() {
    let change = |f: &Fixture| {
        let rows = "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"label\": 0}\n{\"sentence1\": \"a\", \"sentence2\": \"b\", \"label\": 1}\n";
        f.write(TRAIN, rows);
        f.write("data/dev.jsonl", rows);
    };
    training_fails(change, "--max-length 4", 1, &["--max-length 4", "special tokens"]);
}

#[test]
fn a_metric_of_classes_for_a_regression() {
    training_fails(regression, "--metric accuracy", 2, &["accuracy", "regression"]);
}

#[test]
fn a_metric_of_values_for_classes() {
    training_fails(|_| (), "--metric pearson", 2, &["pearson", "class"]);
}

#[test]
fn label_smoothing_for_a_regression() {
    training_fails(regression, "--label-smoothing 0.1", 2, &["label-smoothing", "regression"]);
}

#[test]
fn a_line_without_end() {
    let vast = "a".repeat((64 << 20) + 1);
    let words = ["train", "line 2", "longer than 64 MiB", "ends of line"];
    training_fails(|f| with_line(f, 2, vast.as_bytes()), "", 1, &words);
    let csv = |f: &Fixture| {
        std::fs::remove_file(f.path(TRAIN)).unwrap();
        f.write("data/train.csv", format!("text,label\n\"{}", "good film\n".repeat(7 << 20)));
    };
    training_fails(csv, "", 1, &words);
}
