//! Outputs that are in use, in the way, or do not fit on the disk.

use std::process::Stdio;

use super::training_fails;
use crate::common::{Fixture, Outcome};

#[test]
fn a_folder_in_use() {
    training_fails(|f| f.write("out/notes.txt", "mine"), "", 2, &["out", "in use", "--overwrite"]);
}

#[test]
fn a_folder_that_is_no_run_is_never_replaced() {
    let fixture = Fixture::new();
    fixture.write("out/notes.txt", "mine");
    fixture.train("--overwrite").fails(2, &["out", "--overwrite may replace", "summary.json"]);
    assert_eq!(fixture.files("out"), ["notes.txt"]);
}

#[test]
fn a_file_in_the_way() {
    training_fails(|f| f.write("taken", ""), "--output taken", 2, &["taken", "is a file"]);
    training_fails(|f| f.write("taken", ""), "--output taken/below", 2, &["taken/below", "is a file"]);
}

#[test]
fn the_folders_that_are_read() {
    training_fails(|_| (), "--output model/run", 2, &["model/run", "in the model folder"]);
    training_fails(|_| (), "--output data", 2, &["in the data folder"]);
}

#[test]
fn merging_into_the_model_itself() {
    let fixture = Fixture::new();
    fixture.write("adapter/adapter_config.json", "{}");
    let outcome = fixture.run("merge --model model --adapter adapter --output model --overwrite");
    outcome.fails(2, &["--output model", "holds the model"]);
    assert!(fixture.path("model/config.json").exists());
}

#[test]
fn predictions_over_an_existing_file() {
    let fixture = Fixture::new();
    fixture.write("labelled.jsonl", "mine");
    fixture.write("rows.jsonl", "{\"text\": \"good\"}\n");
    let outcome = fixture.run("predict --model model --input rows.jsonl --output labelled.jsonl");
    outcome.fails(2, &["labelled.jsonl", "exists", "--overwrite"]);
    assert_eq!(fixture.read("labelled.jsonl"), "mine");
}

/// A limit on the size of files stands in for the full disk: both make a write fail in the middle
/// of a file.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_leaves_no_half_file() {
    let fixture = Fixture::new();
    // Blocks of 1024 bytes.
    let script = "ulimit -f 4; exec \"$0\" \"$@\"";
    let train = "train --model model --data data --output out --method lora --epochs 1 --rank 16";
    Outcome::of_process(&mut fixture.shell(script, train)).fails(1, &["out", "limit"]);
    for file in fixture.files("out") {
        let size = std::fs::metadata(fixture.path("out").join(&file)).unwrap().len();
        let whole = file.ends_with(".jsonl")
            || file.ends_with(".toml")
            || serde_json::from_str::<serde_json::Value>(&fixture.read(&format!("out/{file}"))).is_ok();
        assert!(whole, "{file} of {size} bytes was left half-written");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_printed() {
    let fixture = Fixture::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(fixture.command().get_program());
    command.args(["inspect", "model"]).current_dir(fixture.path("")).stdout(Stdio::from(full));
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("standard output") && message.contains("No space"), "{message}");
}
