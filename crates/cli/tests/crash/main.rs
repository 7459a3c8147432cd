//! Processes that die, disks that are full, folders that go away: what is left under a final name
//! is whole and of one epoch, and the same command runs again.
//!
//! Most of these tests take minutes and are ignored unless asked for; `.ci/run` runs them with few
//! moments (`CRASH_MOMENTS`).

#[path = "../common/mod.rs"]
mod common;

mod disk;
mod kill;
mod limits;

use std::collections::BTreeSet;
use std::path::Path;

use common::Fixture;
use serde_json::Value;

/// Checks every file of an output folder as it lies there, without the help of lora-drop, whose
/// readers complete what a killed process had decided on.
fn check_files(folder: &Path) {
    let mut tensors: Vec<(String, BTreeSet<Vec<u8>>)> = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() || name.starts_with('.') {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let text = || String::from_utf8(bytes.clone()).unwrap_or_else(|_| panic!("{name} is not UTF-8"));
        match path.extension().and_then(|e| e.to_str()).unwrap_or_default() {
            "json" => drop(serde_json::from_slice::<Value>(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"))),
            "jsonl" => text().lines().for_each(|line| {
                serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
            }),
            "toml" => assert!(text().ends_with('\n') && text().contains("learning-rate"), "{name} is cut"),
            "html" => assert!(text().trim_end().ends_with("</html>"), "{name} is cut"),
            "safetensors" => {
                let file =
                    safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
                tensors.push((name, file.iter().map(|(_, view)| view.data().to_vec()).collect()));
            }
            "gguf" => assert!(bytes.starts_with(b"GGUF"), "{name}"),
            _ => {}
        }
    }
    let of = |name: &str| tensors.iter().find(|(file, _)| file == name).map(|(_, tensors)| tensors);
    if let (Some(peft), Some(compact)) = (of("adapter_model.safetensors"), of("adapter_compact.safetensors"))
    {
        assert!(peft.is_subset(compact), "the two adapter files are of different epochs");
    }
}

/// Checks a run's folder: every file, and that its adapter does on dev what its summary says.
/// Returns whether an epoch was measured. Only where the disk was full may the log lack it,
/// `logged` false.
fn check_run(fixture: &Fixture, name: &str, logged: bool) -> bool {
    check_files(&fixture.path(name));
    // Completes a commit; where nothing was measured there is nothing to read.
    let shown = fixture.run(&format!("inspect {name} --json"));
    if shown.code != Some(0) {
        let left = if fixture.path(name).exists() { fixture.files(name) } else { Vec::new() };
        assert!(left.iter().all(|file| file == ".lora-drop"), "{left:?}: {}", shown.stderr);
        return false;
    }
    check_files(&fixture.path(name));
    let summary = shown.json();
    if summary["best_epoch"] == 0 {
        assert!(!fixture.path(name).join("adapter_model.safetensors").exists());
        return false;
    }
    let found = fixture.run(&format!("eval --adapter {name} --data data --json")).ok().json();
    assert_eq!(
        found["metrics"]["accuracy"], summary["metrics"]["accuracy"],
        "the adapter is of another epoch"
    );
    let log = fixture.read(&format!("{name}/metrics.jsonl"));
    let mut lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let best = lines.rfind(|l| l["event"] == "evaluation" && l["epoch"] == summary["best_epoch"]);
    assert!(best.is_some() || !logged, "the epoch is not in the log");
    let of = found["loss"].as_f64().unwrap();
    let in_log = best.map_or(of, |line| line["loss"].as_f64().unwrap());
    assert!((of - in_log).abs() < 1e-6, "the adapter has loss {of}, the log {in_log}");
    true
}

/// How many moments are tried.
fn moments() -> usize {
    std::env::var("CRASH_MOMENTS").ok().map_or(100, |n| n.parse().expect("CRASH_MOMENTS is a number"))
}
