//! The binary with a data set on the hub.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::server::{Hub, Server, commit_of};
use crate::common::{Fixture, Outcome};

/// 40 labelled rows in CSV.
fn rows() -> Vec<u8> {
    let row = |i: usize| format!("{},{}\n", ["the film", "a good story"][i / 2 % 2], ["bad", "good"][i % 2]);
    ("text,label\n".to_string() + &(0..40).map(row).collect::<String>()).into_bytes()
}

/// A hub with the data set org/rows, with these files at each revision.
fn hub(revisions: &[(&str, &[&str])]) -> Server {
    let files = |names: &[&str]| names.iter().map(|name| (name.to_string(), rows())).collect();
    let data: BTreeMap<_, _> =
        revisions.iter().map(|(name, names)| (name.to_string(), files(names))).collect();
    Server::start(Hub { data, ..Hub::default() })
}

/// A run of the binary with this hub, its cache in `home`.
fn run(fixture: &Fixture, server: &Server, words: &str) -> Outcome {
    let mut command = fixture.command();
    command.env("HF_ENDPOINT", format!("http://{}", server.address)).env("HF_HOME", fixture.path("home"));
    command
        .env_remove("HF_TOKEN")
        .env_remove("HF_TOKEN_PATH")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE");
    Outcome::of(command.args(words.split_whitespace()))
}

const TRAIN: &str = "train --model model --method head --epochs 1 --batch-size 8 --output run";

fn snapshot(fixture: &Fixture, revision: &str) -> PathBuf {
    fixture.path("home/hub/datasets--org--rows/snapshots").join(commit_of(revision))
}

#[test]
fn a_data_set_is_downloaded_once_and_used_by_its_name() {
    let fixture = Fixture::new();
    let files = [
        "README.md",
        "rows.py",
        "data/train-00000-of-00002.csv",
        "data/train-00001-of-00002.csv",
        "data/test-00000-of-00001.csv",
        "data/unsupervised-00000-of-00001.csv",
    ];
    let server = hub(&[("main", &files)]);
    let found = run(&fixture, &server, &format!("{TRAIN} --data org/rows")).ok();
    assert!(found.stderr.contains("downloaded data/train-00001-of-00002.csv"), "{}", found.stderr);
    assert!(fixture.read("run/recipe.toml").contains("data = \"org/rows\"\n"));
    // Only what the splits need, where Hugging Face's tools have it.
    let folder = snapshot(&fixture, "main").join("data");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["test-00000-of-00001.csv", "train-00000-of-00002.csv", "train-00001-of-00002.csv"]);
    let link = std::fs::read_link(folder.join(&names[0])).unwrap();
    assert_eq!(link, PathBuf::from("../../../blobs/etag-data-test-00000-of-00001.csv"));
    assert_eq!(std::fs::read(folder.join(&names[0])).unwrap(), rows());
    let refs = fixture.read("home/hub/datasets--org--rows/refs/main");
    assert_eq!(refs, commit_of("main"));

    let asked = server.requests().len();
    let found = run(&fixture, &server, "eval --adapter run --data org/rows --split test --json").ok().json();
    assert_eq!((&found["rows"], &found["data"]), (&40.into(), &"org/rows".into()));
    // 80 rows of train, of which a tenth is held out as in training.
    let found = run(&fixture, &server, "eval --adapter run --data org/rows --json").ok().json();
    assert_eq!(found["rows"], 8);
    run(&fixture, &server, "train run/recipe.toml --output again").ok();
    run(&fixture, &server, "inspect --data hf://org/rows").ok();
    assert_eq!(server.requests().len(), asked, "all of it is in the cache");
    // With a file lost, the hub is asked again.
    std::fs::remove_file(folder.join(&names[0])).unwrap();
    run(&fixture, &server, "inspect --data org/rows").ok();
    assert!(folder.join(&names[0]).exists() && server.requests().len() > asked);
}

#[test]
fn a_configuration_is_chosen_by_name() {
    let fixture = Fixture::new();
    let server =
        hub(&[("main", &["main/train.csv", "main/test.csv", "socratic/train.csv", "socratic/test.csv"])]);
    let inspect = |words: &str| run(&fixture, &server, &format!("inspect --data {words}"));
    inspect("org/rows").fails(1, &["org/rows: several configurations", "--data-config: main, socratic"]);
    inspect("org/rows --data-config other").fails(1, &["--data-config other", "found main/test.csv"]);
    inspect("org/rows --data-config ../x").fails(1, &["not the name of a configuration"]);
    inspect("data --data-config main").fails(2, &["--data-config has no effect for data"]);
    let found = inspect("org/rows --data-config socratic").ok().stdout;
    assert!(found.contains("train    36") && found.contains("test     40"), "{found}");
    assert!(!snapshot(&fixture, "main").join("main").exists());
    run(&fixture, &server, &format!("{TRAIN} --data org/rows --data-config main")).ok();
    // The recipe has the configuration, for the evaluation too.
    let found = run(&fixture, &server, "eval --adapter run --data org/rows --split test --json").ok().json();
    assert_eq!(found["rows"], 40);
    run(&fixture, &server, "eval --adapter run --data data --json").fails(1, &["label"]);
    let found = run(&fixture, &server, &format!("{TRAIN}2 --data org/rows=1 --data hf://org/rows@main=1"));
    found.fails(1, &["several configurations"]);
}

#[test]
fn shards_by_their_common_name_are_a_configuration() {
    let fixture = Fixture::new();
    let server =
        hub(&[("main", &["data/train_gen-00000-of-00001.csv", "data/train_sft-00000-of-00001.csv"])]);
    run(&fixture, &server, "inspect --data org/rows").fails(1, &["data/train_gen, data/train_sft"]);
    let found = run(&fixture, &server, "inspect --data org/rows --data-config data/train_sft").ok().stdout;
    assert!(found.contains("train_sft-00000-of-00001.csv"), "{found}");
}

#[test]
fn converted_files_serve_where_there_are_no_others() {
    let fixture = Fixture::new();
    let converted = ["default/train/0000.csv", "default/validation/0000.csv"];
    let server =
        hub(&[("main", &["README.md", "rows.py", "rows.zip"]), ("refs/convert/parquet", &converted)]);
    let found = run(&fixture, &server, "inspect --data org/rows --json").ok().json();
    assert_eq!(found["splits"].as_array().unwrap().len(), 2);
    assert!(snapshot(&fixture, "refs/convert/parquet").join(converted[0]).exists());
    let server = hub(&[("main", &["README.md", "rows.py"])]);
    let fixture = Fixture::new();
    run(&fixture, &server, "inspect --data org/rows")
        .fails(1, &["org/rows: it has no files of rows", "found README.md, rows.py"]);
    run(&fixture, &server, "inspect --data org/rows@v2")
        .fails(1, &["no data set of this name with a revision v2"]);
    run(&fixture, &server, "inspect --data org/other").fails(1, &["no data set of this name"]);
}

#[test]
fn a_name_that_may_be_a_path_is_not_looked_up() {
    let fixture = Fixture::new();
    let server = hub(&[("main", &["train.csv"])]);
    for path in ["nothing", "data/nope", "org/rows.jsonl", "./org/rows", "a/b/c"] {
        run(&fixture, &server, &format!("inspect --data {path}")).fails(1, &["no such file"]);
    }
    assert!(server.requests().is_empty());
    // A shard's name without its number is a path too.
    fixture.write("org/rows-00000-of-00001.csv", rows());
    run(&fixture, &server, "inspect --data org/rows").ok();
    assert!(server.requests().is_empty());
    run(&fixture, &server, "inspect --data hf://org/rows").ok();
    assert!(!server.requests().is_empty());
}
