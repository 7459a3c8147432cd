//! `inspect --data`: what training would make of rows.

use serde_json::{Value, json};

use crate::common::Fixture;

/// The text of a row's tokens, with what is learned in brackets.
fn text_of(row: &Value) -> String {
    let piece = |piece: &Value| match piece["learned"] == true {
        true => format!("[{}]", piece["text"].as_str().unwrap()),
        false => piece["text"].as_str().unwrap().to_string(),
    };
    row["pieces"].as_array().unwrap().iter().map(piece).collect()
}

fn tokens_of(row: &Value) -> Vec<u64> {
    let pieces = row["pieces"].as_array().unwrap().iter();
    pieces.flat_map(|piece| piece["tokens"].as_array().unwrap()).map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn labelled_rows() {
    let fixture = Fixture::new();
    let found = fixture.run("inspect --data data").ok();
    for line in [
        "Data    data",
        "        text with a label",
        "        columns   text, label",
        "        train    96  train.jsonl",
        "        dev      32  dev.jsonl",
        "Labels  2 classes, F1 of positive",
        "        negative     48   16  50.0 %  ██████████████████████████████",
        "First row  train.jsonl:1",
    ] {
        assert!(found.stdout.lines().any(|seen| seen == line), "{line}: {}", found.stdout);
    }
    assert!(!found.stdout.contains("Tokens"), "{}", found.stdout);
    let found = fixture.run("inspect --data data --model model").ok().stdout;
    assert!(found.contains("Tokens  model (bert), at most 256 a row"), "{found}");
    assert!(found.contains("        [CLS]  ␣"), "{found}");
    let found = fixture.run("inspect --data data --model model --json").ok().json();
    assert_eq!(found["labels"]["splits"][1]["per_class"], json!([16, 16]));
    let train = &found["tokens"]["data"]["splits"][0];
    let ranges = train["lengths"].as_array().unwrap();
    let rows: u64 = ranges.iter().map(|range| range["rows"].as_u64().unwrap()).sum();
    assert_eq!((rows, train["rows"].as_u64(), &train["learned"]), (96, Some(96), &json!(0)));
    assert_eq!(found["rows"].as_array().unwrap().len(), 3);
    let first: Value =
        serde_json::from_str(fixture.read("data/train.jsonl").lines().next().unwrap()).unwrap();
    let text = text_of(&found["rows"][0]);
    assert_eq!(text, format!("[CLS] {} [SEP]", first["text"].as_str().unwrap()));
    assert_eq!(found["rows"][0]["label"], first["label"]);
}

#[test]
fn the_facts_are_those_of_training() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(40, 8);
    for words in [
        "--data data --model model --max-length 6 --over-length drop",
        "--data texts --model decoder --max-length 5 --prompt-template w9{prompt}",
    ] {
        let view = fixture.run(&format!("inspect {words} --json")).ok().json();
        let plan = fixture.run(&format!("train {words} --output out --dry-run --json")).ok().json();
        let facts = |mut facts: Value| {
            facts["splits"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .for_each(|split| split["cached"] = Value::Null);
            facts
        };
        assert_eq!(facts(view["tokens"]["data"].clone()), facts(plan["data"].clone()), "{words}");
    }
}

#[test]
fn learned_tokens_are_marked() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(40, 8);
    let found = fixture.run("inspect --data texts --model decoder").ok().stdout;
    assert!(found.contains("5 tokens, 3 learned (in ⟦⟧)\n        w3 w3⟦ w3 w3 </s>⟧\n"), "{found}");
    let found = fixture.run("inspect --data texts --model decoder --json").ok().json();
    let row = &found["rows"][0];
    assert_eq!((text_of(row), tokens_of(row)), ("w3 w3[ w3][ w3][ </s>]".to_string(), vec![3, 3, 3, 3, 2]));
    assert_eq!(row["pieces"][4]["special"], true);
    let plain = fixture.run("inspect --data texts").ok().stdout;
    assert!(
        plain.contains("        prompt\n        w3 w3\n        completion\n        ⟦ w3 w3⟧\n"),
        "{plain}"
    );
}

#[test]
fn rows_and_columns_that_are_left_out_are_reported() {
    let fixture = Fixture::new();
    let row = |i: usize| json!({"instruction": format!("w{i}"), "output": "w4", "id": i}).to_string() + "\n";
    let rows: String = (3..43).map(row).collect();
    fixture.write(
        "rows.jsonl",
        format!("{rows}{{\"instruction\": \"w3\", \"output\": \"\", \"context2\": 1}}\n"),
    );
    fixture.run("inspect --data rows.jsonl").fails(1, &["rows.jsonl, line 41", "--bad-rows skip"]);
    let found = fixture.run("inspect --data rows.jsonl --bad-rows skip").ok().stdout;
    for part in [
        "columns   instruction as prompt, output as completion",
        "not read  id, context2",
        "train    36         1  rows.jsonl",
        "dev       4         0  held out of train",
        "warning: train: 1 row is left out: rows.jsonl, line 41",
        "warning: no dev split: 4 rows of train are held out",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
}

#[test]
fn options_and_recipes() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(40, 8);
    let refused =
        |words: &str, parts: &[&str]| drop(fixture.run(&format!("inspect {words}")).fails(2, parts));
    refused("--data data --max-length 9", &["--max-length has no effect without --model"]);
    refused("model --chat", &["--chat has no effect without --data"]);
    refused("model --data data", &["--data"]);
    refused("--data texts --model decoder --label-column x", &["--label-column has no effect"]);
    refused("--data data --prompt-column text", &["--prompt-column has no effect"]);
    refused("--data data --model decoder", &["--task classification"]);
    fixture.run("inspect --data nothing").fails(1, &["nothing"]);
    fixture.write(
        "r.toml",
        "model = \"decoder\"\ndata = \"texts\"\nprompt-template = \"w9 {prompt}\"\nepochs = 7\n",
    );
    let found = fixture.run("inspect --data r.toml --json").ok().json();
    assert_eq!(text_of(&found["rows"][0]), "w9 w3 w3[ w3][ w3][ </s>]");
    let found = fixture.run("inspect --data r.toml --prompt-template {prompt} --json").ok().json();
    assert_eq!(text_of(&found["rows"][0]), "w3 w3[ w3][ w3][ </s>]");
}
