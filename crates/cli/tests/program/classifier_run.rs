//! Whole runs of the binary on a tiny decoder with a head: classification and regression, train,
//! eval, predict, merge.

use std::collections::BTreeMap;

use crate::common::{Fixture, Outcome, Random};
use lora_drop_transformer::Checkpoint;
use serde_json::{Value, json};

const OPTIONS: &str =
    "--model decoder --max-length 32 --epochs 12 --batch-size 8 --learning-rate 2e-2 --weight-decay 0";
const SAMPLE: &str = "--sample-ratio 0.5 --sample-epochs 2";
const CLASSES: &str = "--data labelled --task classification";

/// A tiny Llama, rows of words, one of which decides the class, and pairs of texts with a whole
/// number.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let mut random = Random(5);
    let filler = |random: &mut Random| format!("w{}", 3 + random.below(40));
    for (split, count) in [("train", 160), ("dev", 40)] {
        let (mut labelled, mut rated) = (String::new(), String::new());
        for i in 0..count {
            let mut words: Vec<String> = (0..2 + random.below(4)).map(|_| filler(&mut random)).collect();
            let (word, label) = [("w50", "good"), ("w60", "bad"), ("w51", "good"), ("w61", "bad")][i % 4];
            let at = random.below(words.len() + 1);
            words.insert(at, word.into());
            labelled += &format!("{}\n", json!({ "text": words.join(" "), "label": label }));
            let (first, rating) = (filler(&mut random), random.below(5));
            let row =
                json!({ "sentence1": first, "sentence2": format!("w{}", 70 + rating), "score": rating });
            rated += &format!("{row}\n");
        }
        fixture.write(&format!("labelled/{split}.jsonl"), labelled);
        fixture.write(&format!("rated/{split}.jsonl"), rated);
    }
    fixture
}

fn metric(found: &Value, name: &str) -> f64 {
    found["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {found}"))
}

fn predictions(outcome: &Outcome) -> Vec<Value> {
    outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Names and shapes of a safetensors file.
fn shapes(fixture: &Fixture, file: &str) -> BTreeMap<String, Vec<usize>> {
    let file = Checkpoint::open_file(&fixture.path(file)).unwrap();
    file.names().map(|name| (name.to_string(), file.shape(name).unwrap().to_vec())).collect()
}

#[track_caller]
fn close(a: &Value, b: &Value, tolerance: f64) {
    for (a, b) in a.as_array().unwrap().iter().zip(b.as_array().unwrap()) {
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= tolerance, "{a} and {b}");
    }
}

#[test]
fn classes_are_learned_and_predicted() {
    let fixture = fixture();
    let trained =
        fixture.run(&format!("train {OPTIONS} {SAMPLE} {CLASSES} --budget 0.7 --output out --json")).ok();
    let summary = trained.json();
    assert_eq!(summary["metric"], "accuracy");
    assert!(metric(&summary, "accuracy") > 0.75, "{}", summary["metrics"]);
    assert!(summary["retained_ratio"].as_f64().unwrap() <= 0.7);
    assert!(trained.stderr.contains("decoder parameters and a head newly initialised"), "{}", trained.stderr);
    assert!(!trained.stderr.contains("special tokens"), "{}", trained.stderr);
    assert!(fixture.read("out/recipe.toml").contains("task = \"classification\""));
    assert!(fixture.read("out/report.html").contains("The head was newly initialised."));

    let config = fixture.read_json("out/adapter_config.json");
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"], &config["target_modules"]),
        (&json!("SEQ_CLS"), &json!(["score"]), &json!(["q_proj", "v_proj"]))
    );
    assert_eq!(shapes(&fixture, "out/adapter_model.safetensors")["base_model.model.score.weight"], [2, 32]);

    let adapted = fixture.run("eval --adapter out --data labelled --json").ok().json();
    assert_eq!(metric(&adapted, "accuracy"), metric(&summary, "accuracy"));
    let compact = "--model decoder --adapter out/adapter_compact.safetensors";
    let from_compact = fixture.run(&format!("eval {compact} --data labelled --json")).ok().json();
    assert_eq!(from_compact["loss"], adapted["loss"]);

    let rows = predictions(&fixture.run("predict --adapter out --input labelled/dev.jsonl").ok());
    let right = rows.iter().filter(|row| row["label"] == row["input_label"]).count();
    assert_eq!(right as f64 / rows.len() as f64, metric(&adapted, "accuracy"));

    fixture.run("merge --model decoder --adapter out --output merged").ok();
    let config = fixture.read_json("merged/config.json");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({ "0": "bad", "1": "good" }));
    let merged = shapes(&fixture, "merged/model.safetensors");
    assert_eq!(merged["score.weight"], [2, 32]);
    assert!(!merged.contains_key("lm_head.weight"));
    let from_merged = predictions(&fixture.run("predict --model merged --input labelled/dev.jsonl").ok());
    for (row, merged) in rows.iter().zip(&from_merged) {
        assert_eq!(row["label"], merged["label"]);
        close(&row["logits"], &merged["logits"], 1e-4);
    }

    let adapter = fixture.run("inspect out/adapter_compact.safetensors --json").ok().json();
    assert_eq!(adapter["head_parameters"], json!(64));
    let model = fixture.run("inspect merged --json").ok().json();
    assert_eq!((&model["head_found"], &model["labels"]), (&json!(true), &json!(["bad", "good"])));
    let scores = fixture
        .run(&format!("score --model decoder --max-length 32 {CLASSES} --adapter out --output scores --json"))
        .ok();
    assert_eq!(scores.json()["modules"].as_array().unwrap().len(), 6);
}

#[test]
fn whole_numbers_are_a_regression_where_that_is_asked_for() {
    let fixture = fixture();
    let options = format!("{OPTIONS} --data rated --task regression --method lora --output out --json");
    let summary = fixture.run(&format!("train {options}")).ok().json();
    assert!(metric(&summary, "pearson") > 0.9, "{}", summary["metrics"]);
    let rows = predictions(&fixture.run("predict --adapter out --input rated/dev.jsonl").ok());
    assert!(rows.iter().all(|row| row["value"].is_f64() && row.get("scores").is_none()));
    fixture.run("merge --model decoder --adapter out --output merged").ok();
    assert_eq!(fixture.read_json("merged/config.json")["problem_type"], "regression");
    let merged = predictions(&fixture.run("predict --model merged --input rated/dev.jsonl").ok());
    rows.iter().zip(&merged).for_each(|(row, merged)| close(&row["logits"], &merged["logits"], 1e-4));
}

#[test]
fn threads_and_recomputing_change_no_bit() {
    let fixture = fixture();
    let options = OPTIONS.replace("--epochs 12", "--epochs 2");
    fixture.run(&format!("train {options} {SAMPLE} {CLASSES} --lora-dropout 0.1 --output out")).ok();
    for (output, options) in [("one", "--threads 1"), ("again", "--threads 2 --recompute")] {
        fixture.run(&format!("train out/recipe.toml --output {output} {options}")).ok();
        for file in ["adapter_model.safetensors", "importance.json"] {
            let [a, b] =
                ["out", output].map(|folder| std::fs::read(fixture.path(folder).join(file)).unwrap());
            assert!(a == b, "{output}/{file} differs");
        }
    }
}

#[test]
fn a_quantized_base_and_the_head_alone() {
    let fixture = fixture();
    let quantized = fixture
        .run(&format!("train {OPTIONS} {SAMPLE} {CLASSES} --quantize q8_0 --output out --json"))
        .ok()
        .json();
    assert!(metric(&quantized, "accuracy") > 0.75, "{}", quantized["metrics"]);
    let options = "--model decoder --max-length 32 --epochs 2 --learning-rate 1e-2";
    let head = format!("train {options} {CLASSES} --method head --output head --json");
    let head = fixture.run(&head).ok().json();
    assert_eq!(head["trainable_parameters"], json!(64));
    let found = fixture.run("eval --model decoder --adapter head --data labelled --json").ok().json();
    assert_eq!(metric(&found, "accuracy"), metric(&head, "accuracy"));
    let plan = fixture.run(&format!("train {OPTIONS} {CLASSES} --output plan --dry-run --json")).ok().json();
    assert_eq!(plan["model"]["head_found"], json!(false));
}

#[test]
fn options_that_do_not_fit_the_task_are_refused() {
    let fixture = fixture();
    // A text with a label beside it could be meant for either.
    let ask = ["\"label\"", "--task classification", "--task text"];
    fixture.run(&format!("train {OPTIONS} --data labelled --output out")).fails(2, &ask);
    fixture.run(&format!("train {OPTIONS} --data rated --output out")).fails(2, &["\"score\"", "--task"]);
    fixture.run(&format!("train {OPTIONS} --data labelled --task text --epochs 1 --output texts")).ok();
    let cases = [
        ("--data labelled --task text --label-column label", "--label-column has no effect for texts"),
        ("--data labelled --task classification --chat", "--chat has no effect for rows with labels"),
        ("--data labelled --task classification --metric perplexity", "perplexity"),
        ("--data labelled --task text --metric accuracy", "accuracy"),
        ("--data rated --task regression --label-smoothing 0.1", "--label-smoothing"),
    ];
    for (options, message) in cases {
        fixture.run(&format!("train {OPTIONS} {options} --output out")).fails(2, &[message]);
    }
    fixture
        .run(&format!("train {OPTIONS} --data labelled --task regression --output out"))
        .fails(1, &["train.jsonl, line 1", "is not a number", "regression"]);
    fixture
        .write("fractions.jsonl", "{\"text\": \"w3\", \"label\": 0.5}\n{\"text\": \"w4\", \"label\": 1}\n");
    fixture
        .run(&format!("train {OPTIONS} --data fractions.jsonl --task classification --output out"))
        .fails(1, &["line 1", "0.5", "--task regression"]);
    fixture
        .run("train --model model --data data --task text --output out")
        .fails(2, &["--task text", "encoder", "bert"]);

    fixture.run(&format!("train {OPTIONS} {CLASSES} --method lora --output labels")).ok();
    fixture.run("generate --adapter labels --prompt w3").fails(2, &["labels", "head", "predict"]);
    fixture.run("merge --model decoder --adapter labels --output merged").ok();
    fixture.run("generate --model merged --prompt w3").fails(2, &["merged", "head", "predict"]);
    fixture
        .run("predict --model decoder --adapter texts --input labelled/dev.jsonl")
        .fails(2, &["without a head", "generate"]);
    let score = "score --model decoder --max-length 32 --data labelled --output scores";
    fixture
        .run(&format!("{score} --task text --adapter labels"))
        .fails(2, &["labels", "a head", "classification"]);
    fixture.run(&format!("{score} --task classification --adapter texts")).fails(2, &["texts", "no head"]);
    // Another architecture's adapter.
    fixture.train("--method lora --epochs 1").ok();
    fixture
        .run("eval --model decoder --adapter out --data labelled")
        .fails(1, &["the adapter is for bert, the model is llama"]);
}
