//! Whole runs of the binary on the tiny model: train, score, eval, predict, merge, and what they
//! leave behind.

use crate::common::{Fixture, HIDDEN, QUICK, Tensors};
use serde_json::{Value, json};

const RESULTS: [&str; 9] = [
    "README.md",
    "adapter_compact.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "importance.json",
    "metrics.jsonl",
    "recipe.toml",
    "report.html",
    "summary.json",
];

#[test]
fn lora_drop_learns_and_leaves_its_files() {
    let fixture = Fixture::new();
    let printed = fixture.train("--budget 0.7 --json").ok().json();
    let files = fixture.files("out");
    assert!(RESULTS.iter().all(|file| files.contains(&file.to_string())), "{files:?}");
    assert!(files.iter().all(|file| !file.contains("tmp")), "{files:?}");

    let summary = fixture.read_json("out/summary.json");
    assert_eq!(printed, summary);
    assert_eq!((&summary["method"], &summary["status"]), (&json!("lora-drop"), &json!("finished")));
    let accuracy = summary["metrics"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.9, "accuracy {accuracy}");
    let ratio = summary["retained_ratio"].as_f64().unwrap();
    assert!(ratio > 0.3 && ratio <= 0.7, "retained {ratio}");
    let [unique, full] =
        ["lora_parameters", "lora_parameters_full"].map(|name| summary[name].as_u64().unwrap());
    assert!((unique as f64 / full as f64 - ratio).abs() < 1e-9);
    assert!(summary["kept"]["query"].is_array() && summary["kept"]["value"].is_array());
    for line in fixture.read("out/metrics.jsonl").lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn the_recipe_repeats_the_run() {
    let fixture = Fixture::new();
    let first = fixture.train("--epochs 2 --json").ok().json();
    let second = fixture.run("train out/recipe.toml --output again --threads 1 --json").ok().json();
    assert_eq!(first["metrics"], second["metrics"]);
    for file in ["adapter_model.safetensors", "adapter_compact.safetensors", "importance.json"] {
        let [a, b] = ["out", "again"].map(|folder| std::fs::read(fixture.path(folder).join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
}

#[test]
fn every_method_runs() {
    let fixture = Fixture::new();
    // All weights at once want smaller steps than a LoRA.
    for (method, rate, least) in [("lora", "1e-2", 0.9), ("full", "1e-3", 0.9), ("head", "1e-2", 0.5)] {
        let options = format!("--output {method} --method {method} --learning-rate {rate} --json");
        let summary = fixture.train(&options).ok().json();
        assert_eq!(summary["method"], method);
        let accuracy = summary["metrics"]["accuracy"].as_f64().unwrap();
        assert!(accuracy >= least, "{method}: accuracy {accuracy}");
    }
    let summaries =
        ["lora", "full", "head"].map(|method| fixture.read_json(&format!("{method}/summary.json")));
    let [lora, full, head] = summaries.map(|summary| summary["trainable_parameters"].as_u64().unwrap());
    assert!(head < lora && lora < full, "{head} {lora} {full}");
}

#[test]
fn results_go_to_standard_output_and_progress_to_standard_error() {
    let fixture = Fixture::new();
    let loud = fixture.train("--epochs 1").ok();
    assert!(loud.stdout.contains("accuracy") && loud.stderr.contains("bert"), "{loud:?}");
    let quiet = fixture.train("--epochs 1 --overwrite --quiet").ok();
    assert_eq!(quiet.stderr, "");
    assert!(quiet.stdout.contains("accuracy"));
}

#[test]
fn a_dry_run_writes_nothing() {
    let fixture = Fixture::new();
    let plan = fixture.train("--dry-run --json").ok().json();
    assert!(!fixture.path("out").exists());
    assert_eq!(plan["model"]["layers"], crate::common::LAYERS);
    // 96 rows in batches of 8, for 8 epochs.
    assert_eq!(plan["train_steps"], 96);
    assert!(plan["trainable_parameters"].as_u64().unwrap() > 0 && plan["memory_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn eval_gives_what_training_said_from_either_file() {
    let fixture = Fixture::new();
    let summary = fixture.train("--threshold 0.6 --json").ok().json();
    for adapter in ["out", "out/adapter_compact.safetensors"] {
        let words = format!("eval --model model --adapter {adapter} --data data --json");
        let object = fixture.run(&words).ok().json();
        assert_eq!(object["metrics"]["accuracy"], summary["metrics"]["accuracy"], "{adapter}");
        assert_eq!((&object["split"], &object["rows"]), (&json!("dev"), &json!(32)));
    }
    // The recipe in the run's folder names the model.
    let object = fixture.run("eval --adapter out --data data --json").ok().json();
    assert_eq!(object["model"], json!(fixture.path("model")));
}

#[test]
fn predict_answers_each_row() {
    let fixture = Fixture::new();
    fixture.train("").ok();
    let rows = "{\"id\": 1, \"text\": \"the film was good\"}\n\n{\"id\": 2, \"text\": \"the film was bad\", \"label\": \"?\"}\n";
    let outcome = fixture.command().args(["predict", "--adapter", "out"]).write_stdin(rows).output().unwrap();
    assert_eq!(outcome.status.code(), Some(0), "{}", String::from_utf8_lossy(&outcome.stderr));
    let text = String::from_utf8(outcome.stdout).unwrap();
    let found: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(found.len(), 2);
    for (row, (id, label)) in found.iter().zip([(1, "positive"), (2, "negative")]) {
        assert_eq!((&row["id"], &row["label"]), (&json!(id), &json!(label)));
        let scores: Vec<f64> =
            row["scores"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).collect();
        assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{scores:?}");
        assert_eq!(row["logits"].as_array().unwrap().len(), 2);
    }
    assert_eq!(found[1]["input_label"], "?");

    fixture.write("rows.jsonl", rows);
    fixture.run("predict --adapter out --input rows.jsonl --output labelled.jsonl").ok();
    assert_eq!(fixture.read("labelled.jsonl"), text);
}

/// The answer to the first row must come while the input is still open.
#[test]
fn predict_does_not_wait_for_the_end_of_its_input() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    let fixture = Fixture::new();
    fixture.train("--epochs 1").ok();
    let mut process = fixture.process("predict --adapter out --quiet");
    let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for word in ["good", "bad"] {
        writeln!(input, "{{\"text\": \"{word} film\"}}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains(word), "{line}");
    }
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_merged_model_needs_no_adapter() {
    let fixture = Fixture::new();
    let summary = fixture.train("--json").ok().json();
    fixture.run("merge --model model --adapter out --output merged").ok();
    let object = fixture.run("eval --model merged --data data --json").ok().json();
    assert_eq!(object["metrics"]["accuracy"], summary["metrics"]["accuracy"]);
    let files = fixture.files("merged");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(files.contains(&file.to_string()), "{file} is not in {files:?}");
    }
    fixture.run("merge --model model --adapter out --output merged").fails(2, &["merged", "in use"]);
    fixture.run("merge --model model --adapter out --output merged --overwrite").ok();
}

#[test]
fn score_writes_the_importance_of_every_module() {
    let fixture = Fixture::new();
    let words = format!("score --model model --data data --output scores {QUICK} --top-k 1 --json")
        .replace("--epochs 8", "");
    let object = fixture.run(&words).ok().json();
    assert_eq!(fixture.files("scores").iter().filter(|file| *file == "importance.json").count(), 1);
    let modules = object["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 2 * crate::common::LAYERS);
    let own = |kind: &str| modules.iter().filter(|m| m["kind"] == kind && m["lora"] == "own").count();
    assert_eq!((own("query"), own("value")), (1, 1));
    let sum: f64 =
        modules.iter().filter(|m| m["kind"] == "query").map(|m| m["importance"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{sum}");
}

#[test]
fn an_adapter_can_be_scored() {
    let fixture = Fixture::new();
    fixture.train("--method lora").ok();
    let object =
        fixture.run("score --model model --data data --output scores --adapter out --json").ok().json();
    assert_eq!(object["modules"].as_array().unwrap().len(), 2 * crate::common::LAYERS);
    assert_eq!(object["steps"], 0);
}

/// PEFT's users may save BERT's pooler with the classifier; it takes the place of the model's own.
#[test]
fn an_adapter_may_bring_its_pooler() {
    let fixture = Fixture::new();
    let pooler = |values: &dyn Fn(&[f32]) -> Vec<f32>| -> Tensors {
        let own = crate::common::weights().into_iter().filter(|(name, _)| name.contains("pooler"));
        own.map(|(name, (shape, v))| (format!("base_model.model.{name}"), (shape, values(&v)))).collect()
    };
    let losses = ["none", "own", "other"].map(|which| {
        let mut tensors = Tensors::new();
        for (half, shape) in [("A", vec![2, HIDDEN]), ("B", vec![HIDDEN, 2])] {
            let name = format!("base_model.model.bert.encoder.layer.0.attention.self.query.lora_{half}.weight");
            tensors.insert(name, (shape, vec![0.1; 2 * HIDDEN]));
        }
        let classifier = (0..2 * HIDDEN).map(|i| (i % 7) as f32 * 0.1 - 0.3).collect();
        tensors.insert("base_model.model.classifier.weight".into(), (vec![2, HIDDEN], classifier));
        tensors.insert("base_model.model.classifier.bias".into(), (vec![2], vec![0.0; 2]));
        let mut saved = vec!["classifier"];
        if which != "none" {
            saved.push("pooler");
            let factor = if which == "own" { 1.0 } else { -1.0 };
            tensors.extend(pooler(&|own| own.iter().map(|v| factor * v).collect()));
        }
        let config = json!({
            "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "model", "r": 2,
            "lora_alpha": 4, "target_modules": ["query"], "layers_to_transform": [0], "modules_to_save": saved,
            "inference_mode": true,
        });
        fixture.write(&format!("{which}/adapter_config.json"), config.to_string());
        crate::common::write_tensors(&fixture.path(which).join("adapter_model.safetensors"), &tensors);
        // The data's labels are words; an adapter of another program knows classes by number.
        for split in ["train", "dev"] {
            let rows = fixture.read(&format!("data/{split}.jsonl"));
            let rows = rows.replace("\"positive\"", "1").replace("\"negative\"", "0");
            fixture.write(&format!("numbered/{split}.jsonl"), rows);
        }
        let words = format!("eval --model model --adapter {which} --data numbered --json");
        fixture.run(&words).ok().json()["loss"].as_f64().unwrap()
    });
    assert_eq!(losses[0], losses[1]);
    assert!((losses[0] - losses[2]).abs() > 1e-3, "{losses:?}");
}

#[test]
fn overwrite_replaces_a_run_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.train("--epochs 1").ok();
    fixture.write("out/notes.txt", "mine");
    fixture.train("--epochs 1").fails(2, &["in use"]);
    fixture.train("--epochs 1 --method head --overwrite").ok();
    assert_eq!(fixture.read("out/notes.txt"), "mine");
    assert!(!fixture.path("out/importance.json").exists(), "the run that was replaced left a file");
}

/// Ctrl-C in the middle of training: exit code 130, soon, with the best epoch's adapter whole.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_the_best_epoch() {
    use std::time::{Duration, Instant};

    let fixture = Fixture::new();
    let options = format!(
        "train --model model --data data --output out {QUICK} --epochs 100000 --method lora --token-cache 0"
    );
    let mut child = fixture.process(&options).spawn().unwrap();
    // An evaluation is in the log once an epoch is done.
    let log = fixture.path("out/metrics.jsonl");
    let patience = Instant::now();
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("accuracy")) {
        assert!(patience.elapsed() < Duration::from_secs(120), "no epoch was logged");
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    crate::common::send(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted: the best epoch so far, "), "{message}");
    assert!(message.contains("is saved in out\nto continue: lora-drop train --resume out"), "{message}");
    assert_eq!(fixture.read_json("out/summary.json")["status"], "interrupted");
    fixture.run("eval --adapter out --data data --json").ok();
    let files = fixture.files("out");
    assert!(files.iter().all(|file| !file.contains("tmp")), "{files:?}");
}

#[test]
fn dev_is_evaluated_by_steps() {
    let fixture = Fixture::new();
    let train = "--method lora --batch-size 16 --epochs 2 --json --learning-rate 1e-12";
    let whole = fixture.train(train).ok().json()["steps"].as_u64().unwrap();
    let outcome = fixture.train(&format!("{train} --eval-steps 3 --overwrite")).ok();
    let evaluated: Vec<(u64, f64)> = fixture
        .read("out/metrics.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["event"] == "evaluation")
        .map(|line| (line["step"].as_u64().unwrap(), line["epoch"].as_f64().unwrap()))
        .collect();
    let steps: Vec<u64> = (1..=whole).filter(|step| step % 3 == 0 || *step == whole).collect();
    let epoch = |step: u64| step as f64 / (whole / 2) as f64;
    assert_eq!(evaluated, steps.iter().map(|&step| (step, epoch(step))).collect::<Vec<_>>());
    // Nothing is better than the first.
    assert_eq!(outcome.json()["best_epoch"], epoch(3));
    let stopped = fixture.train(&format!("{train} --eval-steps 3 --early-stopping 1 --overwrite")).ok();
    assert_eq!(stopped.json()["steps"], 6);
    assert!(
        stopped.stderr.contains("note: training stops: no evaluation since step 3 was better"),
        "{}",
        stopped.stderr
    );
}

#[test]
fn training_stops_early_where_no_epoch_is_better() {
    let fixture = Fixture::new();
    let flat = "--method lora --epochs 7 --learning-rate 1e-12 --json";
    let outcome = fixture.train(&format!("{flat} --early-stopping 2")).ok();
    assert!(
        outcome.stderr.contains("note: training stops: no epoch since epoch 1 was better"),
        "{}",
        outcome.stderr
    );
    let summary = outcome.json();
    assert_eq!(
        (&summary["status"], &summary["best_epoch"], &summary["epochs"]),
        (&json!("finished"), &json!(1), &json!(7))
    );
    let whole = fixture.train(&format!("{flat} --overwrite")).ok().json();
    assert_eq!(7 * summary["steps"].as_u64().unwrap(), 3 * whole["steps"].as_u64().unwrap());
}

/// Ctrl-C while a split is measured: nothing is at stake, so it ends before the work does.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_evaluation() {
    let fixture = Fixture::new();
    fixture.train("--epochs 1 --method head").ok();
    let row = "{\"text\": \"the film was good and long\", \"label\": \"positive\"}\n";
    fixture.write("many.jsonl", row.repeat(200_000));
    let ended = fixture.interrupt("eval --adapter out --data many.jsonl --threads 1", "Measuring");
    ended.fails(130, &["interrupted: nothing was saved"]);
}

/// Whether the tokens of train and dev came from the cache.
fn cached(fixture: &Fixture, options: &str) -> [bool; 2] {
    let plan = fixture.train(&format!("--dry-run --json {options}")).ok().json();
    [0, 1].map(|split| plan["data"]["splits"][split]["cached"].as_bool().unwrap())
}

#[test]
fn tokens_are_kept_for_the_next_run() {
    let fixture = Fixture::new();
    fixture.train("--epochs 2 --method lora --token-cache 0").ok();
    assert!(!fixture.path("cache").exists());
    let without = std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap();
    for _ in 0..2 {
        let summary = fixture.train("--epochs 2 --method lora --overwrite --json").ok().json();
        let [first, all] = ["startup_seconds", "total_seconds"].map(|name| summary[name].as_f64().unwrap());
        assert!(first > 0.0 && first < all, "{first} of {all}");
        assert!(std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap() == without);
    }
    assert_eq!(fixture.files("cache/tokens").len(), 2);
    assert_eq!(cached(&fixture, "--output new"), [true; 2]);

    // Whatever decides the tokens is in the key, and nothing else is.
    let options = "--output new";
    let labels = fixture.read("data/train.jsonl").replace("positive", "yes").replace("negative", "no");
    let dev = fixture.read("data/dev.jsonl").replace("positive", "yes").replace("negative", "no");
    fixture.write("data/train.jsonl", labels);
    fixture.write("data/dev.jsonl", &dev);
    assert_eq!(cached(&fixture, options), [true; 2]);
    assert_eq!(cached(&fixture, &format!("{options} --max-length 64")), [false; 2]);
    fixture.write("data/dev.jsonl", dev.replacen("film", "story", 1));
    assert_eq!(cached(&fixture, options), [true, false]);
    let tokenizer = fixture.read("model/tokenizer.json");
    fixture.write("model/tokenizer.json", tokenizer.replace("\"lowercase\":true", "\"lowercase\":false"));
    assert_eq!(cached(&fixture, options), [false; 2]);

    // What is damaged is made again, and a folder that cannot be used is no failure.
    for name in fixture.files("cache/tokens") {
        fixture.write(&format!("cache/tokens/{name}"), "nonsense");
    }
    assert_eq!(cached(&fixture, options), [false; 2]);
    assert_eq!(cached(&fixture, options), [true; 2]);
    std::fs::remove_dir_all(fixture.path("cache")).unwrap();
    fixture.write("cache", "a file is in the way");
    assert_eq!(cached(&fixture, options), [false; 2]);
}

#[test]
fn an_adapter_is_used_in_the_type_that_it_was_trained_in() {
    let fixture = Fixture::new();
    let trained = fixture.train("--method lora --epochs 2 --dtype bf16 --json").ok().json();
    let loss = |options: &str| {
        let found = fixture.run(&format!("eval --adapter out --data data --json {options}")).ok().json();
        found["loss"].as_f64().unwrap()
    };
    let evaluation = fixture.read("out/metrics.jsonl").lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        (line["event"] == "evaluation" && line["epoch"] == trained["best_epoch"])
            .then(|| line["loss"].as_f64())
    });
    assert_eq!(Some(Some(loss(""))), evaluation);
    assert_eq!(loss("--dtype bf16"), loss(""));
    assert!(loss("--dtype f32") != loss(""));
    let label = |options: &str| {
        let words = format!("predict --adapter out --input data/dev.jsonl {options}");
        fixture.run(&words).ok().stdout
    };
    assert!(label("--dtype f32") != label("") && label("--dtype bf16") == label(""));
}

#[test]
fn inspect_counts_the_weights_that_training_counts() {
    let fixture = Fixture::new();
    let mut weights = crate::common::weights();
    // A buffer of older checkpoints, which is not a weight.
    weights.insert("bert.embeddings.position_ids".into(), (vec![1, 8], vec![0.0; 8]));
    crate::common::write_tensors(&fixture.path("model/model.safetensors"), &weights);
    let seen = fixture.run("inspect model --json").ok().json();
    let plan = fixture.train("--dry-run --json").ok().json();
    assert_eq!(seen["parameters"], plan["model"]["parameters"]);
}

#[test]
fn derived_values_of_a_recipe_follow_their_sources() {
    let fixture = Fixture::deep();
    let options = "--method lora --epochs 1";
    fixture.train(options).ok();
    let adapter =
        |folder: &str| std::fs::read(fixture.path(folder).join("adapter_model.safetensors")).unwrap();
    // The head's rate is the rate, whatever the recipe's was.
    fixture.run("train out/recipe.toml --output again --learning-rate 2e-3").ok();
    fixture.train(&format!("{options} --output direct --learning-rate 2e-3")).ok();
    assert!(adapter("again") == adapter("direct"));
    let recipe = fixture.read("again/recipe.toml");
    assert!(!recipe.contains("head-learning-rate") && recipe.contains("[derived]"), "{recipe}");

    // What a limit of memory chose is chosen again for another limit, and kept where nothing has
    // changed.
    let activations = |options: &str| {
        let plan = fixture.run(&format!("train {options} --dry-run --json --overwrite")).ok().json();
        plan["memory"]["activations"].as_u64().unwrap()
    };
    let memory =
        fixture.train(&format!("{options} --dry-run --json --output x")).ok().json()["memory_bytes"].clone();
    let limit = format!("--memory-limit {}B", memory.as_u64().unwrap() - 1_000_000);
    fixture.train(&format!("{options} --output less {limit}")).ok();
    assert!(fixture.read("less/recipe.toml").contains("micro-tokens"));
    assert_eq!(activations("less/recipe.toml --memory-limit 4GB"), activations("out/recipe.toml"));
}

#[test]
fn a_recipe_serves_another_task_and_another_command() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let row =
        |i: usize| json!({"prompt": format!("w{i} w5"), "completion": format!(" w{i}")}).to_string() + "\n";
    fixture.write("texts/train.jsonl", (3..60).map(row).collect::<String>());
    fixture.train("--epochs 1").ok();
    // QUICK's dropout is for encoders, and a warning says so.
    let other = "train out/recipe.toml --model decoder --data texts --output texts-out";
    let outcome = fixture.run(other).ok();
    assert!(outcome.stderr.contains("the recipe's hidden-dropout is left out"), "{}", outcome.stderr);
    let recipe = fixture.read("texts-out/recipe.toml");
    assert!(!recipe.contains("hidden-dropout") && !recipe.contains("label-smoothing"), "{recipe}");
    fixture.run("train texts-out/recipe.toml --output again").ok();
    let outcome = fixture.run("score out/recipe.toml --output scores").ok();
    assert!(outcome.stderr.contains("left out: "), "{}", outcome.stderr);
    assert_eq!(fixture.read("scores/importance.json"), fixture.read("out/importance.json"));
    fixture.run("score out/recipe.toml --adapter out --output adapter-scores").ok();
}

#[test]
fn rows_are_as_long_as_the_model_takes() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let text = |i: usize| json!({"text": vec![format!("w{}", 3 + i % 60); 100].join(" ")}).to_string() + "\n";
    fixture.write("plain/train.jsonl", (0..20).map(text).collect::<String>());
    // The golden Llama has 64 positions.
    let plan = |options: &str| {
        let words = format!(
            "train --model decoder --data plain --output out --method lora --dry-run --json {options}"
        );
        fixture.run(&words)
    };
    assert_eq!(plan("").ok().json()["data"]["max_length"], 64);
    plan("--max-length 65").fails(2, &["--max-length 65", "64 tokens"]);
    fixture.run("train --model decoder --data plain --output out --method lora --epochs 1").ok();
    fixture.run("eval --adapter out --data plain").ok();
    fixture.run("eval --model decoder --data plain").ok();
    // The default for the encoder is still 256.
    assert_eq!(fixture.train("--dry-run --json --output x").ok().json()["data"]["max_length"], 256);
}

/// If one file is both train and dev, the rows that are measured were not trained on.
#[test]
fn eval_finds_the_rows_that_training_held_out() {
    let fixture = Fixture::new();
    fixture.write("one.jsonl", fixture.read("data/train.jsonl"));
    let summary = fixture.train("--data one.jsonl --method lora --epochs 2 --json").ok().json();
    let eval = |options: &str| fixture.run(&format!("eval --json {options}")).ok();
    let held_out = eval("--adapter out --data ./one.jsonl");
    assert!(held_out.stderr.contains("the adapter was trained on ./one.jsonl"), "{}", held_out.stderr);
    let found = held_out.json();
    assert_eq!((&found["split"], &found["metrics"]), (&json!("dev"), &summary["metrics"]));
    assert_eq!(found["rows"], 10);
    let train = eval("--adapter out --data one.jsonl --split train").json();
    assert_eq!((&train["split"], &train["rows"]), (&json!("train"), &json!(86)));
    fixture.run("eval --adapter out --data one.jsonl --split test").fails(1, &["no test split"]);
    // Of another file, or for an adapter without a recipe, all rows are measured, and it says so.
    fixture.write("other.jsonl", fixture.read("data/train.jsonl"));
    let compact = "--model model --adapter out/adapter_compact.safetensors --data one.jsonl";
    for options in ["--adapter out --data other.jsonl", compact] {
        let whole = eval(options);
        assert!(whole.stderr.contains("all rows of"), "{}", whole.stderr);
        assert_eq!((&whole.json()["split"], &whole.json()["rows"]), (&json!("all"), &json!(96)));
    }
}

#[test]
fn no_norm_is_no_clipping() {
    let fixture = Fixture::new();
    let losses = |norm: &str| {
        fixture.train(&format!("--method lora --epochs 2 --overwrite --max-grad-norm {norm}")).ok();
        let lines = fixture.read("out/metrics.jsonl");
        lines
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].clone())
            .collect::<Vec<_>>()
    };
    let off = losses("0");
    assert_eq!(off, losses("1e9"));
    assert_ne!(off, losses("1e-3"));
}
