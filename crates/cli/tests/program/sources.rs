//! Rows of several sources, with weights and without.

use serde_json::{Value, json};

use crate::common::{Fixture, result_of_run};

/// A short training on these sources.
const TRAIN: &str = "train --model model --method lora --epochs 2 --batch-size 8 --threads 1";

/// Writes a.jsonl with 40 rows and b.jsonl with 20, and both as the folder `joined`, with dev.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let rows: Vec<String> =
        fixture.read("data/train.jsonl").lines().map(|line| format!("{line}\n")).collect();
    for (name, rows) in [("a", &rows[..40]), ("b", &rows[40..60])] {
        fixture.write(&format!("{name}/train.jsonl"), rows.concat());
        fixture.write(&format!("{name}/dev.jsonl"), rows[..10].concat());
        fixture.write(&format!("{name}.jsonl"), rows.concat());
    }
    fixture.write("joined/train.jsonl", rows[..60].concat());
    fixture.write("joined/dev.jsonl", [&rows[..10], &rows[40..50]].concat().concat());
    fixture
}

fn sources(found: &Value) -> Vec<(String, u64, u64)> {
    let sources = found["sources"].as_array().unwrap().iter();
    let number = |source: &Value, key: &str| source[key].as_u64().unwrap();
    let one = |s: &Value| (s["name"].as_str().unwrap().into(), number(s, "rows"), number(s, "of_epoch"));
    sources.map(one).collect()
}

#[test]
fn sources_without_weights_are_their_rows_one_after_the_other() {
    let fixture = fixture();
    fixture.run(&format!("{TRAIN} --data joined --output one")).ok();
    fixture.run(&format!("{TRAIN} --data a --data b --output two")).ok();
    assert_eq!(result_of_run(&fixture.path("one")), result_of_run(&fixture.path("two")));
    // Weights in proportion to the rows change nothing.
    fixture.run(&format!("{TRAIN} --data a=4 --data b=2 --output three")).ok();
    assert_eq!(result_of_run(&fixture.path("one")), result_of_run(&fixture.path("three")));
}

#[test]
fn weights_are_shares_of_an_epoch() {
    let fixture = fixture();
    let found = fixture.run("inspect --data a=0.4 --data b=0.6 --json").ok().json();
    assert_eq!(sources(&found), [("a".into(), 40, 40), ("b".into(), 20, 60)]);
    let splits: Vec<u64> =
        found["splits"].as_array().unwrap().iter().map(|s| s["rows"].as_u64().unwrap()).collect();
    assert_eq!(splits, [100, 20], "dev has each source's rows once");
    let shown = fixture.run("inspect --data a=0.4 --data b=0.6").ok().stdout;
    assert!(shown.contains("        b         20        60  60.0 %\n"), "{shown}");

    let train = format!("{TRAIN} --data a=0.4 --data b=0.6 --output run --json");
    let found = fixture.run(&train).ok();
    // 100 rows in batches of 8, twice.
    assert_eq!(found.json()["steps"], 26);
    let recipe = fixture.read("run/recipe.toml");
    assert!(recipe.contains("/a=0.4\", \"") && recipe.contains("/b=0.6\"]"), "{recipe}");
    fixture.run("train run/recipe.toml --output again --threads 2").ok();
    assert_eq!(result_of_run(&fixture.path("run")), result_of_run(&fixture.path("again")));
    fixture.run(&format!("{TRAIN} --data a=0.6 --data b=0.4 --output other")).ok();
    assert_ne!(result_of_run(&fixture.path("run")), result_of_run(&fixture.path("other")));
}

#[test]
fn rows_are_held_out_of_each_source() {
    let fixture = fixture();
    let found = fixture.run("inspect --data a.jsonl=0.5 --data b.jsonl=0.5 --json").ok().json();
    // A tenth of each is held out before rows are repeated.
    assert_eq!(sources(&found), [("a.jsonl".into(), 36, 36), ("b.jsonl".into(), 18, 36)]);
    fixture.run(&format!("{TRAIN} --data a.jsonl=0.5 --data b.jsonl=0.5 --output run")).ok();
    let found = fixture.run("eval --adapter run --data b.jsonl --json").ok();
    assert!(found.stderr.contains("the adapter was trained on b.jsonl"), "{}", found.stderr);
    assert_eq!(found.json()["rows"], 2);
}

#[test]
fn sources_that_do_not_go_together() {
    let fixture = fixture();
    let rows = |row: &dyn Fn(usize) -> Value| (0..24).map(|i| row(i).to_string() + "\n").collect::<String>();
    fixture.write("numbers.jsonl", rows(&|i| json!({"text": "film", "label": i % 2})));
    fixture.write("values.jsonl", rows(&|i| json!({"text": "film", "label": i as f64 + 0.5})));
    let of_two = |classes: [&str; 2], i: usize| classes[i % 2].to_string();
    let pair = |i| json!({"text_a": "film", "text_b": "a", "label": of_two(["positive", "negative"], i)});
    fixture.write("pairs.jsonl", rows(&pair));
    fixture.write("others.jsonl", rows(&|i| json!({"text": "film", "label": of_two(["cat", "dog"], i)})));
    for (with, code, parts) in [
        (
            "a.jsonl --data numbers.jsonl",
            1,
            &["a.jsonl and numbers.jsonl do not go together", "a number"][..],
        ),
        ("numbers.jsonl --data values.jsonl", 1, &["classification and regression"]),
        ("a.jsonl --data pairs.jsonl", 1, &["text with a label and pair of texts with a label"]),
        ("a.jsonl --data others.jsonl", 1, &["the classes negative, positive and cat, dog"]),
        ("a.jsonl --data nothing", 1, &["nothing: no such file"]),
        ("a.jsonl=0.5 --data b.jsonl", 2, &["--data b.jsonl", "has no weight"]),
        ("a.jsonl=0 --data b.jsonl=1", 2, &["--data a.jsonl=0", "greater than 0"]),
        ("a.jsonl=1", 2, &["--data a.jsonl=1", "other sources"]),
        ("a.jsonl --data a.jsonl", 2, &["given twice"]),
        ("a.jsonl=1 --data b.jsonl=5000", 2, &["--data b.jsonl", "smaller weight"]),
    ] {
        fixture.run(&format!("{TRAIN} --output run --data {with}")).fails(code, parts);
    }
    fixture.write("texts.jsonl", rows(&|_| json!({"text": "w3 w4"})));
    fixture.write("prompts.jsonl", rows(&|_| json!({"prompt": "w3", "completion": "w4"})));
    fixture
        .run("inspect --data texts.jsonl --data prompts.jsonl")
        .fails(1, &["rows of kind text and completion"]);
}

#[test]
fn texts_of_other_layouts_go_together() {
    let fixture = fixture();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(40, 8);
    let row = json!({"instruction": "w7", "input": "", "output": "w8"}).to_string() + "\n";
    fixture.write("alpaca/train.jsonl", row.repeat(20));
    fixture.write("alpaca/dev.jsonl", row.repeat(4));
    fixture.write("lr=0.5.jsonl", row.repeat(30));
    let words = "--data texts=1 --data alpaca=1 --model decoder";
    let found = fixture.run(&format!("inspect {words} --json")).ok().json();
    assert_eq!(sources(&found), [("texts".into(), 40, 40), ("alpaca".into(), 20, 40)]);
    assert_eq!(found["tokens"]["data"]["splits"][0]["rows"], 80);
    fixture.run(&format!("train {words} --output run --epochs 1 --batch-size 8")).ok();
    // A name with an equals sign is a name, also beside a weight.
    let found = fixture.run("inspect --data lr=0.5.jsonl --json").ok().json();
    assert_eq!(found["splits"][0]["rows"], 27);
    let found = fixture.run("inspect --data lr=0.5.jsonl=2 --data alpaca=1 --json").ok().json();
    assert_eq!(sources(&found), [("lr=0.5.jsonl".into(), 27, 40), ("alpaca".into(), 20, 20)]);
}

#[test]
fn a_run_is_resumed_on_the_same_sources() {
    let fixture = fixture();
    let train = format!("{TRAIN} --data a=0.4 --data b=0.6 --save-total 1");
    fixture.run(&format!("{train} --output run")).ok();
    let found = fixture.run("train --resume run --epochs 3 --json").ok().json();
    assert_eq!(found["steps"], 39);
    fixture.write("b/train.jsonl", fixture.read("a/train.jsonl"));
    fixture.run("train --resume run --epochs 4").fails(1, &["the data has changed"]);
}
