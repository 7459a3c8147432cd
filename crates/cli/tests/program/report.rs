//! The report of real runs: what it says of dev's rows, of the machine, and of what there was
//! before training.

use crate::common::Fixture;
use serde_json::{Value, json};

/// The page without its style.
fn page(fixture: &Fixture, run: &str) -> String {
    let page = fixture.read(&format!("{run}/report.html"));
    page.split_once("</style>").unwrap().1.to_string()
}

#[track_caller]
fn assert_has(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
}

#[test]
fn classes_mistakes_and_the_machine() {
    let fixture = Fixture::new();
    // Two of dev's rows have the wrong label, one of them with markup in its text.
    let rows = fixture.read("data/dev.jsonl");
    let mut rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (row, text) in [(0, "good < & story"), (1, "bad and poor")] {
        let label = if text.contains("good") { "negative" } else { "positive" };
        rows[row] = json!({ "text": text, "label": label });
    }
    fixture.write("data/dev.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let told = fixture.train("--method lora").ok().stderr;
    assert_has(&told, &["the most frequent class alone (\"negative\")  accuracy 0.5000"]);
    let summary = fixture.read_json("out/summary.json");
    assert!(summary["metrics"]["accuracy"].as_f64().unwrap() > 0.8, "{summary}");
    assert_eq!(summary["baseline"]["kind"], "commonest-class");
    assert_eq!(summary["baseline"]["value"], 0.5);
    let machine = &summary["machine"];
    assert!(machine["cores"].as_u64().unwrap() > 0 && !machine["kernels"].as_str().unwrap().is_empty());
    let page = page(&fixture, "out");
    assert_has(
        &page,
        &[
            "Precision, recall and F1 by class",
            "Confusion matrix",
            "<h2>Mistakes</h2>",
            "data/dev.jsonl, line 1",
            // As the tokenizer has it, and escaped.
            "<b>negative</b> predicted as <b>positive</b> with ",
            "Learning rate in training",
            "the most frequent class alone: accuracy 0.500",
            "Text from <code>text</code>, labels from <code>label</code>.",
            &format!("<td class=\"n\">{}</td>", machine["kernels"].as_str().unwrap()),
            &summary["date"].as_str().unwrap()[..10],
        ],
    );
    // The matrix' sums are dev's rows.
    let matrix = page.split_once("<table class=\"numbers confusion\">").unwrap().1;
    let matrix = matrix.split_once("</table>").unwrap().0;
    let cells = matrix.split("<td").skip(1).map(|cell| cell.split(['>', '<']).nth(1).unwrap());
    assert_eq!(cells.map(|cell| cell.parse::<usize>().unwrap()).sum::<usize>(), 32, "{matrix}");
    let shown = fixture.run("inspect out").ok().stdout;
    assert_has(&shown, &["  machine ", machine["cpu"].as_str().unwrap()]);
}

#[test]
fn one_predicted_class_is_said_where_it_is_measured() {
    let fixture = Fixture::new();
    // Labels that no text decides: the most frequent class is all there is to learn.
    for (split, count) in [("train", 90), ("dev", 30)] {
        let label = |row: usize| if row.is_multiple_of(10) { "rare" } else { "common" };
        let rows = (0..count).map(|row| format!("{}\n", json!({ "text": "the film", "label": label(row) })));
        fixture.write(&format!("data/{split}.jsonl"), rows.collect::<String>());
    }
    let told = fixture.train("--method lora --epochs 3").ok().stderr;
    let note = "every row is predicted as \"common\", which 90.0 % of them are";
    assert_has(&told, &[note]);
    let table = fixture.run("eval --adapter out --data data").ok().stdout;
    assert_has(&table, &[note]);
    let object = fixture.run("eval --adapter out --data data --json").ok().json();
    assert_eq!(object["only_class"], json!({ "name": "common", "share": 0.9 }));
    assert_has(&page(&fixture, "out"), &["every row is predicted as &quot;common&quot;"]);
    // A model that tells the classes apart has no such note.
    let other = Fixture::new();
    other.train("--method lora").ok();
    assert!(!other.run("eval --adapter out --data data").ok().stdout.contains("every row"));
}

#[test]
fn a_regression_has_its_largest_errors() {
    let fixture = Fixture::new();
    for (split, count) in [("train", 60), ("dev", 20)] {
        let text = |row: usize| if row.is_multiple_of(2) { "a good film" } else { "a bad film" };
        let value = |row: usize| if row.is_multiple_of(2) { 4.5 } else { 0.5 };
        let rows = (0..count).map(|row| format!("{}\n", json!({ "text": text(row), "label": value(row) })));
        fixture.write(&format!("data/{split}.jsonl"), rows.collect::<String>());
    }
    let told = fixture.train("--method lora --epochs 2").ok().stderr;
    assert_has(&told, &["the mean of the training labels alone  loss 4.0000"]);
    let page = page(&fixture, "out");
    assert_has(
        &page,
        &["<h2>Largest errors</h2>", "the mean of the training labels alone: loss 4.000", "predicted as <b>"],
    );
    assert!(!page.contains("Confusion matrix"));
}

#[test]
fn texts_have_samples_and_the_untrained_model_beside_them() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let mut random = crate::common::Random(3);
    for (split, count) in [("train", 40), ("dev", 8)] {
        let mut words = |most: usize| -> String {
            (0..1 + random.below(most)).map(|_| format!("w{} ", 3 + random.below(93))).collect()
        };
        let mut row = || json!({ "prompt": words(9), "completion": words(5) });
        let rows = (0..count).map(|_| format!("{}\n", row()));
        let rows: String = rows.collect();
        fixture.write(&format!("texts/{split}.jsonl"), rows);
    }
    let train = "train --model decoder --data texts --max-length 40 --method lora --learning-rate 1e-2 --batch-size 8 --epochs 2 --output";
    let told = fixture.run(&format!("{train} out")).ok().stderr;
    assert_has(&told, &["the model before training  perplexity "]);
    let summary = fixture.read_json("out/summary.json");
    assert_eq!(summary["baseline"]["kind"], "untrained");
    // The untrained model is what eval measures without an adapter.
    let alone = fixture.run("eval --model decoder --data texts --json").ok().json();
    let (before, alone) = (&summary["baseline"]["value"], &alone["metrics"]["perplexity"]);
    assert!((before.as_f64().unwrap() / alone.as_f64().unwrap() - 1.0).abs() < 1e-5, "{before} {alone}");
    let found = page(&fixture, "out");
    assert_has(
        &found,
        &[
            "<p>Prompts from <code>prompt</code>, completions from <code>completion</code>.</p>",
            "<h2>Texts with the highest loss</h2>",
            "<h2>Generated samples</h2>",
            "the model before training: perplexity ",
        ],
    );
    assert!(!found.contains("labels from"));
    // The samples are what `generate` writes with the same adapter.
    let first: Value = serde_json::from_str(fixture.read("texts/dev.jsonl").lines().next().unwrap()).unwrap();
    let prompt = first["prompt"].as_str().unwrap();
    let words = ["generate", "--adapter", "out", "--max-new-tokens", "48", "--prompt", prompt];
    let written = fixture.run_words(&words).ok().stdout;
    let start: Vec<&str> = written.split_whitespace().take(12).collect();
    assert_has(&found, &[&format!("<dt>generated</dt><dd>{}", start.join(" "))]);
    // What generation keeps is not in the plan of the memory, so a limit goes without samples.
    fixture.run(&format!("{train} limited --memory-limit 2GB")).ok();
    assert!(!page(&fixture, "limited").contains("Generated samples"));
}

/// Summaries of older versions lack what came later.
#[test]
fn older_summaries_are_read() {
    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 1").ok();
    let mut summary = fixture.read_json("out/summary.json");
    for new in ["baseline", "machine", "date"] {
        assert!(summary.as_object_mut().unwrap().remove(new).is_some(), "{new}");
    }
    fixture.write("old/summary.json", summary.to_string());
    let shown = fixture.run("inspect old").ok().stdout;
    assert!(shown.contains("accuracy") && !shown.contains("machine"), "{shown}");
    fixture.run("inspect old out").ok();
}
