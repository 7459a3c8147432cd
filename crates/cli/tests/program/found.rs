//! What runs say of what they found, and that cost follows what is used: heads, columns, classes,
//! rows far too long.

use crate::common::{Fixture, HIDDEN, config, weights, write_model};
use serde_json::{Value, json};

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| row.to_string() + "\n").collect()
}

/// The tiny BERT with a head of `outputs` outputs in its checkpoint.
fn write_head(fixture: &Fixture, outputs: usize) {
    let mut tensors = weights();
    let values = (0..outputs * HIDDEN).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
    tensors.insert("classifier.weight".into(), (vec![outputs, HIDDEN], values));
    tensors.insert("classifier.bias".into(), (vec![outputs], vec![0.0; outputs]));
    write_model(&fixture.path("model"), &config(), &tensors);
}

#[test]
fn a_head_of_another_size_is_said_to_be_initialised() {
    let fixture = Fixture::new();
    let train =
        |output: &str| fixture.train(&format!("--method lora --epochs 1 --output {output}")).ok().stderr;
    let found = || fixture.train("--dry-run --json").ok().json()["model"]["head_found"].clone();
    write_head(&fixture, 3);
    let told = train("other");
    assert!(told.contains("the checkpoint's head has 3 outputs, and the labels need 2"), "{told}");
    assert!(!told.contains("head from the checkpoint"), "{told}");
    assert_eq!(found(), false);
    assert!(fixture.read("other/report.html").contains("The head was newly initialised"));
    write_head(&fixture, 2);
    let told = train("same");
    assert!(told.contains("a head in the checkpoint") && !told.contains("newly initialised"), "{told}");
    assert_eq!(found(), true);
}

#[test]
fn the_head_of_a_scored_adapter_is_the_adapters() {
    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 1").ok();
    let score = "score --model model --data data --output scores --adapter out --sample-ratio 1";
    let told = fixture.run(score).ok().stderr;
    assert!(told.contains("the adapter's head") && !told.contains("newly initialised"), "{told}");
}

#[test]
fn rows_without_a_second_text_are_none_for_an_adapter_of_pairs() {
    let fixture = Fixture::new();
    let pair = |i: usize| {
        let second = ["good fine", "bad poor"][i % 2];
        json!({ "sentence1": "the film", "sentence2": second, "label": i % 2 })
    };
    for split in ["train", "dev"] {
        fixture.write(&format!("data/{split}.jsonl"), lines((0..16).map(pair)));
    }
    fixture.train("--method lora --epochs 1").ok();
    let recipe = fixture.read("out/recipe.toml");
    for line in ["text-column = \"sentence1\"", "pair-column = \"sentence2\"", "label-column = \"label\""] {
        assert!(recipe.contains(line), "{recipe}");
    }
    fixture.run("eval --adapter out --data data").ok();
    let single = |i: usize| json!({ "sentence1": "the film", "label": i % 2 });
    fixture.write("single.jsonl", lines((0..4).map(single)));
    for command in ["eval --adapter out --data single.jsonl", "predict --adapter out --input single.jsonl"] {
        fixture
            .run(command)
            .fails(1, &["no column \"sentence2\"", "the columns that the model was trained on"]);
    }
    // And none of a pair's second texts are read where the adapter has learned from single ones.
    let words = ["good", "bad"];
    let single = |i: usize| json!({ "sentence1": words[i % 2], "label": i % 2 });
    fixture.write("data/train.jsonl", lines((0..16).map(single)));
    fixture.write("data/dev.jsonl", lines((0..16).map(single)));
    fixture.train("--method lora --epochs 1 --overwrite").ok();
    let logits = |row: Value| {
        fixture.write("row.jsonl", row.to_string());
        fixture.run("predict --adapter out --input row.jsonl").ok().json()["logits"].clone()
    };
    let one = logits(json!({ "sentence1": "good film" }));
    assert_eq!(logits(json!({ "sentence1": "good film", "sentence2": "bad" })), one);
}

#[test]
fn the_columns_of_prompts_belong_to_the_recipe() {
    let fixture = Fixture::new();
    fixture.write_decoder("base");
    let row = |i: usize| json!({ "question": format!("w{}", 10 + i), "answer": format!("w{}", 30 + i), "text": "w5 w6 w7" });
    fixture.write("qa.jsonl", lines((0..24).map(row)));
    let train = "train --model base --data qa.jsonl --output out --method lora --epochs 1 --prompt-column question --max-length 32";
    fixture.run(train).ok();
    let recipe = fixture.read("out/recipe.toml");
    for line in ["prompt-column = \"question\"", "completion-column = \"answer\""] {
        assert!(recipe.contains(line), "{recipe}");
    }
    // What would be ambiguous by itself is read as it was trained on, and a column that is given
    // wins over the recipe's.
    fixture.run("eval --adapter out --data qa.jsonl").ok();
    fixture.run("eval --adapter out --data qa.jsonl --text-column text").ok();
    fixture
        .run("eval --adapter out --data qa.jsonl --text-column text --prompt-column question")
        .fails(1, &["text"]);
}

#[test]
fn a_class_for_every_row_is_named_as_the_cause() {
    let fixture = Fixture::new();
    let row = |i: usize| json!({ "text": "good film", "label": format!("id-{i}") });
    fixture.write("rows.jsonl", lines((0..4000).map(row)));
    fixture
        .train("--data rows.jsonl")
        .fails(1, &["every one of its 4000 rows has a class of its own", "\"label\"", "dev file"]);
    fixture.write("rows.jsonl", lines((0..2).map(row)));
    fixture.train("--data rows.jsonl").fails(1, &["2 rows are too few to hold any out as dev"]);
}

#[test]
fn a_row_far_over_the_limit_costs_what_is_used_of_it() {
    let fixture = Fixture::new();
    let long = "the good film was fine and ".repeat(100_000);
    let row = |text: &str| json!({ "text": text, "label": "positive" });
    let train = fixture.read("data/train.jsonl");
    fixture.write("data/train.jsonl", format!("{train}{}\n", row(&long)));
    let plan = fixture.train("--dry-run --json --max-length 32").ok().json();
    let split = &plan["data"]["splits"][0];
    assert_eq!((&split["uncounted"], &split["over_long"]), (&json!(1), &json!(1)), "{split}");
    assert!(split["longest"].as_u64().unwrap() < 100, "{split}");
    fixture
        .train("--max-length 32 --over-length error")
        .fails(1, &["line 97", "at least 33 tokens, but the limit is 32"]);
    let dropped = fixture.train("--dry-run --json --max-length 32 --over-length drop").ok().json();
    assert_eq!(dropped["data"]["splits"][0]["rows"], 96);

    // The same as of a text that is short enough to be tokenised whole.
    fixture.train("--max-length 32 --method lora --epochs 1").ok();
    assert!(fixture.read("out/report.html").contains("or more"));
    let short: String = long.chars().take(1000).collect();
    fixture.write("long.jsonl", lines([row(&long)]));
    fixture.write("short.jsonl", lines([row(&short)]));
    let logits = |file: &str| {
        fixture.run(&format!("predict --adapter out --input {file}")).ok().json()["logits"].clone()
    };
    assert_eq!(logits("long.jsonl"), logits("short.jsonl"));
}

#[test]
fn so_do_the_texts_of_decoders() {
    let fixture = Fixture::new();
    fixture.write_decoder("base");
    let long = "w7 w8 w9 ".repeat(30_000);
    let tokens = |rows: &[Value], options: &str| {
        fixture.write("rows.jsonl", lines(rows.iter().cloned().chain((0..20).map(|_| rows[0].clone()))));
        let train = format!(
            "train --model base --data rows.jsonl --output out --max-length 32 --dry-run --json {options}"
        );
        let split = fixture.run(&train).ok().json()["data"]["splits"][0].clone();
        (split["tokens"].as_u64().unwrap(), split["uncounted"].as_u64().unwrap())
    };
    let row = |prompt: &str, completion: &str| json!({ "prompt": prompt, "completion": completion });
    let short = row("w3 w4", "w5");
    let (few, none) = tokens(std::slice::from_ref(&short), "");
    assert_eq!(none, 0);
    // A long answer fills a row; after a long prompt nothing is left to learn, as if both had been
    // tokenised whole.
    let with_answer = tokens(&[short.clone(), row("w3", &long)], "");
    assert_eq!((with_answer.0 > few, with_answer.1), (true, 1));
    let with_prompt = tokens(&[short.clone(), row(&long, "w5")], "");
    assert_eq!(with_prompt.1, 1);
    // All of a text is used, as several sequences.
    let texts = |text: &str| tokens(&[json!({ "text": "w3 w4" }), json!({ "text": text })], "");
    assert!(texts(&long).0 > 90_000);

    let generate = |prompt: &str| {
        fixture.write("prompts.jsonl", lines([json!({ "prompt": prompt })]));
        fixture.run("generate --model base --data prompts.jsonl --max-new-tokens 2")
    };
    generate("w3 w4").ok();
    generate(&long).fails(1, &["more than 64 tokens", "shorten the prompt"]);
}
