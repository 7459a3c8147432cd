//! The token cache as runs meet it: under which key it keeps tokens, two processes in one folder,
//! and a folder that fails.

#[path = "../../../lora-drop/build.rs"]
#[allow(dead_code)] // its main is the build's
mod build;
use std::process::Child;

use crate::common::{Fixture, QUICK};
use serde_json::json;

const LABELS: [&str; 2] = ["positive", "negative"];

#[test]
fn the_key_changes_with_the_code_and_with_the_versions() {
    let folder = tempfile::tempdir().unwrap();
    let package = &folder.path().join("crates/lora-drop");
    let write = |name: &str, text: &str| {
        let path = package.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        build::made_by(package)
    };
    std::fs::create_dir_all(package.join("src/data")).unwrap();
    write("../../Cargo.lock", "tokenizers 0.23.2");
    write("src/other.rs", "x");
    let before = write("src/data/text/encode.rs", "a");
    assert_eq!(before, build::made_by(package));
    assert_eq!(before, write("src/other.rs", "y"), "code that makes no tokens");
    assert_ne!(before, write("src/data/text/encode.rs", "b"));
    assert_ne!(before, write("src/data/text/new.rs", "c"));
    std::fs::remove_file(package.join("src/data/text/new.rs")).unwrap();
    assert_eq!(before, write("src/data/text/encode.rs", "a"));
    assert_ne!(before, write("../../Cargo.lock", "tokenizers 0.23.3"));
}

fn cached(fixture: &Fixture) -> bool {
    let plan = fixture.train("--dry-run --json --overwrite").ok().json();
    plan["data"]["splits"].as_array().unwrap().iter().all(|split| split["cached"] == true)
}

#[test]
fn the_key_changes_with_the_tokenizer_and_the_options() {
    let fixture = Fixture::new();
    assert_eq!([(); 2].map(|_| cached(&fixture)), [false, true]);
    let tokenizer = fixture.read("model/tokenizer.json");
    fixture.write("model/tokenizer.json", tokenizer.replacen(' ', "  ", 1).replacen(':', " :", 1));
    assert_eq!([(); 2].map(|_| cached(&fixture)), [false, true]);
    fixture.write("model/tokenizer.json", tokenizer);
    assert!(cached(&fixture));
    let other = fixture.train("--dry-run --json --max-length 9").ok().json();
    assert_eq!(other["data"]["splits"][0]["cached"], false);
}

/// A `train` of a few steps that is running.
fn start(fixture: &Fixture, output: &str, options: &str) -> Child {
    let words =
        format!("train --model model --data data --output {output} --threads 1 {QUICK} --epochs 1 {options}");
    fixture.process(&words).spawn().unwrap()
}

fn finish(run: Child) {
    let output = run.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !told.contains("cache"), "{told}");
}

#[test]
fn two_processes_may_share_the_cache() {
    let fixture = Fixture::new();
    // Enough text for tokenising to take a while.
    let row = |i: usize| {
        let text = ["good film", "bad story"][i % 2].to_string() + &" the music".repeat(i % 40);
        json!({ "text": text, "label": LABELS[i % 2] }).to_string() + "\n"
    };
    fixture.write("data/train.jsonl", (0..400).map(row).collect::<String>());
    fixture.train("--output alone --threads 1 --epochs 1 --token-cache 0").ok();
    let adapter =
        |folder: &str| std::fs::read(fixture.path(folder).join("adapter_model.safetensors")).unwrap();
    // The same rows at once, then other rows in a cache too small for all of them, which each run
    // makes room in.
    for (round, limits) in [["", ""], ["--max-length 100", "--max-length 128"]].iter().enumerate() {
        let small = if round == 1 { "--token-cache 2e-4" } else { "" };
        let runs: Vec<(String, Child)> = (0..4)
            .map(|i| {
                let output = format!("run-{round}-{i}");
                let run = start(&fixture, &output, &format!("{small} {}", limits[i % 2]));
                (output, run)
            })
            .collect();
        for (output, run) in runs {
            finish(run);
            assert_eq!(adapter(&output), adapter("alone"), "{output}");
        }
    }
}

/// How often a run said that the cache has stopped; the run must have ended well.
fn times_told(fixture: &Fixture, word: &str) -> usize {
    let told = fixture.train("--epochs 1 --overwrite").ok().stderr;
    assert!(told.matches("token cache").count() == 0 || told.contains(word), "{told}");
    told.matches("the token cache is off").count()
}

#[test]
fn a_cache_that_fails_stops_once_and_says_why() {
    let fixture = Fixture::new();
    fixture.write("cache", "a file where the folder should be");
    assert_eq!(times_told(&fixture, "this run continues"), 1);
    std::fs::remove_file(fixture.path("cache")).unwrap();
    assert_eq!(times_told(&fixture, ""), 0);
    // Cached tokens are read where nothing can be written.
    assert!(cached(&fixture));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_the_cache_alone() {
    let fixture = Fixture::new();
    // Files of a few bytes are all that fits: RLIMIT_FSIZE stands in for a disk, because the
    // cache's file is the largest that a dry run writes.
    let row = |i: usize| json!({ "text": "good ".repeat(30), "label": LABELS[i % 2] }).to_string() + "\n";
    fixture.write("data/train.jsonl", (0..400).map(row).collect::<String>());
    let dry_run = "train --model model --data data --output out --dry-run --json";
    let outcome =
        crate::common::Outcome::of_process(&mut fixture.shell("ulimit -f 1; exec \"$0\" \"$@\"", dry_run))
            .ok();
    assert_eq!(outcome.stderr.matches("the token cache is off").count(), 1, "{}", outcome.stderr);
    assert_eq!(fixture.files("cache/tokens"), [""; 0], "nothing half written");
}
