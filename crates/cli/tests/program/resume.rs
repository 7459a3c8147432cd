//! A run on files that is stopped anywhere and resumed ends with the files of one that was not.

use std::collections::BTreeMap;
use std::path::Path;

use lora_drop::events::Event;
use lora_drop::folder::checkpoints;
use lora_drop::settings::{LogTo, RunSettings};
use lora_drop::train::{self, StoppedRun};
use lora_drop::{Cancel, Error, Result};
use serde_json::{Map, Value};
use toml::Table;

use crate::common::tfevents::{TensorBoardEvent, event_files, events};
use crate::common::{Fixture, QUICK, result_of_run};

/// Runs or resumes until this many events have happened. Returns how it ended, and the number of
/// events.
fn run_until(
    settings: &RunSettings,
    stopped: Option<&StoppedRun>,
    events: usize,
) -> (Result<lora_drop::summary::Summary>, usize) {
    let (cancel, mut seen) = (Cancel::new(), 0);
    let flag = cancel.clone();
    let mut listen = |_: &Event| {
        seen += 1;
        if seen == events {
            flag.raise();
        }
    };
    let ended = match stopped {
        None => train::run(settings, None, &cancel, &mut listen),
        Some(stopped) => train::resume(stopped, None, &cancel, &mut listen),
    };
    (ended, seen)
}

/// The run's result, its events, and its summary without times.
fn files(folder: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let mut found = result_of_run(folder);
    let mut events = events(folder);
    for event in &mut events {
        event.wall_time = 0.0;
        // The settings have the folder's name.
        event.texts.clear();
        event.scalars.retain(|(tag, _)| !tag.ends_with("tokens_per_second"));
    }
    found.insert("events", format!("{events:?}").into_bytes());
    found.insert("summary.json", serde_json::to_vec(&summary(folder)).unwrap());
    found
}

fn summary(folder: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(folder.join("summary.json")).unwrap();
    let mut summary: Map<String, Value> = serde_json::from_str(&text).unwrap();
    summary.retain(|name, _| {
        !name.contains("second")
            && !["date", "memory", "activation_bytes", "peak_rss_bytes"].contains(&&name[..])
    });
    if let Some(Value::Array(outputs)) = summary.get_mut("outputs") {
        // The time is in its name.
        outputs.retain(|name| !name.as_str().unwrap().contains("tfevents"));
    }
    summary
}

/// Stops a run after each of ten counts of events and resumes it, every third time twice.
fn stopped_anywhere(settings: &RunSettings, root: &Path) {
    let into = |name: &str| {
        let mut settings = settings.clone();
        settings.place.output = root.join(name);
        settings
    };
    let (ended, events) = run_until(&into("whole"), None, usize::MAX);
    assert_eq!(ended.unwrap().status.to_string(), "finished");
    let whole = files(&root.join("whole"));
    for round in 0..10 {
        let settings = into(&format!("stopped-{round}"));
        let folder = &settings.place.output;
        // The first events come before the folder is there, the last ones after the last step.
        let stop = 6 + round * (events - 20) / 9;
        let (mut ended, _) = run_until(&settings, None, stop);
        let mut resumed = 0;
        while !checkpoints(folder).is_empty() {
            let stopped = StoppedRun::open(folder, &Table::new()).unwrap();
            let until = if round % 3 == 0 && resumed == 0 { 9 } else { usize::MAX };
            ended = run_until(&settings, Some(&stopped), until).0;
            resumed += 1;
        }
        assert!(ended.is_ok(), "after {stop} of {events} events: {ended:?}");
        assert!(resumed > 0, "no checkpoint after {stop} of {events} events");
        let now = files(folder);
        for (name, content) in &whole {
            assert!(now.get(name) == Some(content), "{name} differs after {stop} of {events} events");
        }
        assert!(!folder.join(".lora-drop").exists());
    }
}

fn settings(fixture: &Fixture, model: &str, data: &str, text: &str) -> RunSettings {
    let mut settings =
        RunSettings::new(fixture.path(model).to_str().unwrap(), fixture.path(data), fixture.path("out"));
    for text in [
        "batch-size = 16\nlearning-rate = 1e-2\nepochs = 3\ntoken-cache = 0\nlog-to = [\"tensorboard\"]",
        text,
    ] {
        settings.apply(&text.parse().unwrap()).unwrap();
    }
    settings
}

#[test]
fn an_encoders_run_is_resumed_anywhere() {
    let fixture = Fixture::new();
    let text =
        "lora-dropout = 0.1\nsample-ratio = 0.5\nbudget = 0.7\nhidden-dropout = 0.1\nattention-dropout = 0.1";
    stopped_anywhere(&settings(&fixture, "model", "data", text), &fixture.path(""));
}

#[test]
fn a_continued_run_in_bf16_with_an_early_end_is_resumed_anywhere() {
    let fixture = Fixture::new();
    let text = "dtype = \"bf16\"\nrestart = \"continue\"\nepochs = 12\nearly-stopping = 1\nunselected = \"drop\"\n\
                top-k = 1\nhidden-dropout = 0\nattention-dropout = 0";
    stopped_anywhere(&settings(&fixture, "model", "data", text), &fixture.path(""));
}

#[test]
fn full_fine_tuning_is_resumed_anywhere() {
    let fixture = Fixture::new();
    let settings = settings(&fixture, "model", "data", "method = \"full\"\nlearning-rate = 1e-3");
    stopped_anywhere(&settings, &fixture.path(""));
}

#[test]
fn a_decoders_run_is_resumed_anywhere() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(60, 10);
    let text = "sample-ratio = 0.5\ncriterion = \"gradient\"\nsample-epochs = 3";
    stopped_anywhere(&settings(&fixture, "decoder", "texts", text), &fixture.path(""));
}

/// A run that was stopped before it measured anything, in place of one that is there.
#[test]
fn a_run_that_replaces_another_is_resumed() {
    let fixture = Fixture::new();
    let settings = settings(&fixture, "model", "data", "budget = 0.7\nsample-ratio = 0.5\noverwrite = true");
    let (ended, _) = run_until(&settings, None, usize::MAX);
    ended.unwrap();
    let whole = files(&fixture.path("out"));
    let other = fixture.read("out/summary.json");
    let (ended, _) = run_until(&settings, None, 12);
    assert!(matches!(ended, Err(Error::Interrupted)));
    // The earlier run is still there.
    assert_eq!(other, fixture.read("out/summary.json"));
    let stopped = StoppedRun::open(&fixture.path("out"), &Table::new()).unwrap();
    run_until(&settings, Some(&stopped), usize::MAX).0.unwrap();
    assert!(files(&fixture.path("out")) == whole && other != fixture.read("out/summary.json"));
}

/// An event file that begins late, or has missed a process of the run, has all events when it goes
/// on.
#[test]
fn an_event_file_is_complete_whenever_a_run_has_it() {
    let fixture = Fixture::new();
    let settings = settings(&fixture, "model", "data", "log-to = []\nbudget = 0.7\nepochs = 6");
    let folder = fixture.path("out");
    let (ended, _) = run_until(&settings, None, 30);
    assert!(matches!(ended, Err(Error::Interrupted)));
    assert!(event_files(&folder).is_empty());
    let with: Table = "log-to = [\"tensorboard\"]".parse().unwrap();
    let lines = || fixture.read("out/metrics.jsonl").lines().count();
    let events_of = |folder: &Path| events(folder).split_off(2);
    for (changes, until, complete) in
        [(&with, 12, true), (&Table::new(), 12, false), (&with, usize::MAX, true)]
    {
        let stopped = StoppedRun::open(&folder, changes).unwrap();
        let ended = run_until(&settings, Some(&stopped), until).0;
        assert_eq!(ended.is_ok(), until == usize::MAX, "{ended:?}");
        assert_eq!(events_of(&folder).len() == lines(), complete);
    }
    let mut whole = settings;
    (whole.place.output, whole.place.log_to) = (fixture.path("whole"), vec![LogTo::TensorBoard]);
    run_until(&whole, None, usize::MAX).0.unwrap();
    let tags = |events: Vec<TensorBoardEvent>| {
        let scalars =
            events.into_iter().flat_map(|event| event.scalars.into_iter().map(move |s| (event.step, s)));
        let same = scalars.filter(|(_, (tag, _))| !tag.ends_with("tokens_per_second"));
        let mut same: Vec<String> = same.map(|scalar| format!("{scalar:?}")).collect();
        same.sort();
        same
    };
    assert_eq!(tags(events_of(&folder)), tags(events_of(&whole.place.output)));
}

/// The commands, and what they say.
#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_it_is_resumed() {
    let fixture = Fixture::new();
    for (split, times) in [("train", 60), ("dev", 1)] {
        let rows = fixture.read(&format!("data/{split}.jsonl")).repeat(times);
        fixture.write(&format!("many/{split}.jsonl"), rows);
    }
    let train = format!("train --model model --data many --output out {QUICK} --epochs 5 --threads 1");
    let whole = train.replace("--output out", "--output whole");
    fixture.run(&whole).ok();
    fixture
        .interrupt(&train, "Training:")
        .fails(130, &["interrupted: ", "to continue: lora-drop train --resume out"]);
    fixture.run(&train).fails(2, &["out has a run that is not finished", "--resume out", "--overwrite"]);
    for (option, problem) in [
        ("--rank 3", "these differ: --rank 3 (the run: 8)"),
        ("--epochs 4", "--epochs 4 (the run: 5)"),
        ("--seed 1 --batch-size 5", "--seed 1 (the run: 0)"),
        ("--output elsewhere", "--output"),
    ] {
        fixture.run(&format!("train --resume out {option}")).fails(2, &[problem]);
    }
    fixture.run("train recipe.toml --resume out").fails(2, &["--resume"]);
    fixture.run("train --resume model").fails(2, &["model is not the folder of a run"]);
    fixture.run("train --resume whole").fails(2, &["the run has finished", "--save-total"]);

    let text = fixture.read("many/train.jsonl");
    fixture.write("many/train.jsonl", text.replacen("\n", " \n", 1));
    fixture.run("train --resume out").fails(1, &["many", "the data has changed", "--data"]);
    fixture.write("many/train.jsonl", &text);
    // Elsewhere, with the run's own working directory gone.
    std::fs::rename(fixture.path("many"), fixture.path("moved")).unwrap();
    let resumed = fixture.run("train --resume out --data moved --threads 2").ok();
    assert!(resumed.stderr.contains("Resuming "), "{}", resumed.stderr);
    let results = ["out", "whole"].map(|name| result_of_run(&fixture.path(name)));
    assert!(results[0] == results[1]);
    // Where model and data are, and how many threads there were, differs by right.
    let [now, before] = ["out", "whole"].map(|name| {
        let mut summary = summary(&fixture.path(name));
        summary.retain(|name, _| !["model", "data", "threads"].contains(&&name[..]));
        summary
    });
    assert_eq!(now, before);
}

#[test]
fn a_damaged_checkpoint_is_named_and_costs_nothing() {
    let fixture = Fixture::new();
    let settings = settings(&fixture, "model", "data", "method = \"lora\"");
    let (ended, _) = run_until(&settings, None, 14);
    assert!(ended.is_ok() || matches!(ended, Err(Error::Interrupted)));
    let [path] = &checkpoints(&fixture.path("out"))[..] else { panic!("one checkpoint") };
    let whole = std::fs::read(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let version = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[..8000.min(bytes.len())]).into_owned();
        let place = text.find(r#"\"version\":\"0."#).expect("the program's version");
        let mut other = bytes.to_vec();
        other[place + 14] = b'9';
        other
    };
    for (bytes, problem) in [
        (whole[..whole.len() - 7].to_vec(), "truncated"),
        (whole[..40].to_vec(), "truncated"),
        (Vec::new(), ""),
        (version(&whole), "resume with that version"),
    ] {
        std::fs::write(path, bytes).unwrap();
        fixture.run("train --resume out").fails(1, &[name, problem]);
    }
    std::fs::write(path, &whole).unwrap();
    let log = fixture.read("out/metrics.jsonl");
    fixture.write("out/metrics.jsonl", &log[..log.len() / 2]);
    fixture.run("train --resume out").fails(1, &["metrics.jsonl", "when the checkpoint was written"]);
    fixture.write("out/metrics.jsonl", &log);
    fixture.run("train --resume out").ok();
    assert!(checkpoints(&fixture.path("out")).is_empty());
}

#[test]
fn a_finished_run_with_a_checkpoint_is_made_longer() {
    let fixture = Fixture::new();
    let train = "train --model model --data data --output out --method lora --learning-rate 1e-2 --epochs 2";
    fixture.run(&format!("{train} --save-total 2 --checkpoint-minutes 1e-6")).ok();
    assert_eq!(checkpoints(&fixture.path("out")).len(), 2);
    let resumed = fixture.run("train --resume out --epochs 4").ok();
    assert!(resumed.stderr.contains("Resuming training after "), "{}", resumed.stderr);
    let epochs: Vec<Value> = fixture
        .read("out/metrics.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["event"] == "evaluation")
        .map(|line| line["epoch"].clone())
        .collect();
    assert_eq!(epochs, [1, 2, 3, 4]);
    assert!(fixture.read("out/recipe.toml").contains("epochs = 4"));
    fixture.run("train --resume out --epochs 3").fails(2, &["--epochs 3 (the run: 4)"]);
    fixture.run(&format!("{train} --checkpoint-minutes 0 --overwrite")).ok();
    assert!(checkpoints(&fixture.path("out")).is_empty());
}
