//! Rows as people have them, through the program: files of any format, rows that are left out, and
//! whose F1 is measured.

use serde_json::{Value, json};

use crate::common::Fixture;

/// A short training of the head on these rows.
const TRAIN: &str = "train --model model --method head --epochs 1 --batch-size 8 --output run";

/// Rows whose labels are these.
fn labelled(labels: &[&str]) -> String {
    let word = |i: usize| ["the film", "a good story", "music"][i % 3];
    (0..40).map(|i| format!("{},{}\n", word(i), labels[i % labels.len()])).collect()
}

#[test]
fn predictions_of_files_by_their_ending() {
    let fixture = Fixture::new();
    fixture.write("rows.csv", format!("text,label\n{}", labelled(&["bad", "good"])));
    fixture.run(&format!("{TRAIN} --data rows.csv")).ok();
    let rows = [("the film", "1"), ("music, long", "2")];
    let lines: String =
        rows.iter().map(|(text, id)| format!("{}\n", json!({ "text": text, "id": id }))).collect();
    let array: Vec<Value> = rows.iter().map(|(text, id)| json!({ "text": text, "id": id })).collect();
    fixture.write("p.jsonl", &lines);
    fixture.write("p.txt", &lines);
    fixture.write("p.json", json!(array).to_string());
    fixture.write("p.csv", "text,id\nthe film,1\n\"music, long\",2\n");
    fixture.write("p.tsv", "text\tid\nthe film\t1\nmusic, long\t2\n");
    let predict = |input: &str| fixture.run(&format!("predict --adapter run --input {input}")).ok().stdout;
    let expected = predict("p.jsonl");
    assert_eq!(expected.lines().count(), 2);
    for input in ["p.json", "p.csv", "p.tsv", "p.txt"] {
        assert_eq!(predict(input), expected, "{input}");
    }
}

#[test]
fn rows_that_are_left_out_are_told_and_stay_out() {
    let fixture = Fixture::new();
    let rows = format!("text,label\n{},good\nfilm,\n", labelled(&["bad", "good"]));
    fixture.write("rows.csv", rows);
    let train = format!("{TRAIN} --data rows.csv");
    fixture.run(&train).fails(1, &["rows.csv, line 42: \"text\" has no text", "--bad-rows skip"]);
    let told = "2 rows are left out: rows.csv, line 42: \"text\" has no text";
    let found = fixture.run(&format!("{train} --bad-rows skip")).ok();
    assert!(found.stderr.contains(told), "{}", found.stderr);
    // The recipe has the option, so that the held-out rows are the same.
    let found = fixture.run("eval --adapter run --data rows.csv --json").ok();
    assert!(found.stderr.contains(told), "{}", found.stderr);
    assert_eq!(found.json()["rows"], 4);
    fixture.run("eval --adapter run --data rows.csv --bad-rows error").fails(1, &["line 42"]);
    fixture.write("p.jsonl", "{\"text\": \"film\"}\n{\"text\": \"\"}\n{\"te\n{\"text\": \"music\"}\n");
    let found = fixture.run("predict --adapter run --input p.jsonl").ok();
    assert_eq!(found.stdout.lines().count(), 2);
    assert!(found.stderr.contains("p.jsonl: 2 rows are left out: p.jsonl, line 2"), "{}", found.stderr);
    let stopped = fixture.run("predict --adapter run --input p.jsonl --bad-rows error");
    assert_eq!((stopped.code, stopped.stdout.lines().count()), (Some(1), 1), "what came before is written");
    assert!(stopped.stderr.contains("p.jsonl, line 2"), "{}", stopped.stderr);
    fixture.write("none.jsonl", "{\"text\": \"\"}\n");
    fixture.run("predict --adapter run --input none.jsonl").fails(1, &["none.jsonl, line 1"]);
}

#[test]
fn f1_is_of_the_positive_class() {
    let fixture = Fixture::new();
    fixture.write("rows.csv", format!("text,label\n{}", labelled(&["equivalent", "other", "other"])));
    let train = format!("{TRAIN} --data rows.csv");
    let found = fixture.run(&train).ok();
    assert!(found.stderr.contains("F1     of other"), "{}", found.stderr);
    let eval = |options: &str| {
        let found = fixture.run(&format!("eval --adapter run --data rows.csv --json {options}")).ok().json();
        (found["positive_class"].clone(), found["metrics"]["f1"].as_f64().unwrap())
    };
    let (second, first) = (eval(""), eval("--positive-class equivalent"));
    assert_eq!((&second.0, &first.0), (&json!("other"), &json!("equivalent")));
    assert_ne!(second.1, first.1);
    fixture.run(&format!("{train} --overwrite --positive-class equivalent")).ok();
    assert_eq!(eval(""), first, "the adapter keeps it");
    let table = fixture.run("eval --adapter run --data rows.csv").ok().stdout;
    assert!(table.contains("F1 (equivalent)") && !table.contains("f1 "), "{table}");
    let page = fixture.read("run/report.html");
    assert!(page.contains("F1 (equivalent)") && page.contains("unknown tokens"));
    let refused = format!("{train} --overwrite --positive-class equal");
    fixture.run(&refused).fails(2, &["--positive-class equal", "the classes are equivalent and other"]);
}

#[test]
fn folders_of_the_hub_are_read() {
    let fixture = Fixture::new();
    let rows = format!("text,label\n{}", labelled(&["bad", "good"]));
    for config in ["a", "b"] {
        fixture.write(&format!("hub/{config}/train-00000-of-00001.csv"), &rows);
        fixture.write(&format!("hub/{config}/test-00000-of-00001.csv"), &rows);
    }
    fixture.run(&format!("{TRAIN} --data hub")).fails(1, &["give one of them as --data: hub/a, hub/b"]);
    let found = fixture.run(&format!("{TRAIN} --data hub/a")).ok();
    assert!(found.stderr.contains("test"), "{}", found.stderr);
    let found = fixture.run("eval --adapter run --data hub/a --split test --json").ok().json();
    assert_eq!(found["rows"], 40);
}
