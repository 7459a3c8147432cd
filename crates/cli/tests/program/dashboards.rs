//! Where people look during a run: TensorBoard's event file, Prometheus's metrics file, and the
//! report, which is written anew as the run goes on.

use std::collections::BTreeMap;
use std::sync::Mutex;

use lora_drop::events::{Event, Stage};
use lora_drop::run_record::RunRecord;
use lora_drop::settings::RunSettings;
use lora_drop::summary::Status;
use lora_drop::train::{self, StoppedRun};
use lora_drop::{Cancel, Error};
use serde_json::{Value, json};

use crate::common::tfevents::{event_files, events};
use crate::common::{Fixture, QUICK};

/// The lines of a run's log.
fn log(fixture: &Fixture, run: &str) -> Vec<Value> {
    let log = fixture.read(&format!("{run}/metrics.jsonl"));
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The scalars that the lines of a log are in an event file.
fn scalars(line: &Value) -> Vec<(String, f32)> {
    let value = |name: &str, tag: String| (tag, line[name].as_f64().unwrap() as f32);
    if line["event"] == "evaluation" {
        let metrics = line["metrics"].as_object().unwrap().iter();
        let metrics = metrics.map(|(name, value)| (format!("dev/{name}"), value.as_f64().unwrap() as f32));
        return std::iter::once(value("loss", "dev/loss".into())).chain(metrics).collect();
    }
    let stage = line["stage"].as_str().unwrap();
    ["loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch"]
        .map(|name| value(name, format!("{stage}/{name}")))
        .into()
}

#[test]
fn tensorboard_gets_what_the_log_has() {
    let fixture = Fixture::new();
    fixture.train("--budget 0.7 --epochs 3 --log-to tensorboard").ok();
    let found = events(&fixture.path("out"));
    assert_eq!(found[0].version.as_deref(), Some("brain.Event:2"));
    let [(tag, text)] = &found[1].texts[..] else { panic!("{:?}", found[1]) };
    let recipe = fixture.read("out/recipe.toml");
    assert_eq!(
        (tag.as_str(), text),
        ("settings", &recipe.lines().map(|line| format!("    {line}\n")).collect())
    );
    let lines = log(&fixture, "out");
    assert_eq!(lines.len(), found.len() - 2);
    for (line, event) in lines.iter().zip(&found[2..]) {
        assert_eq!((&line["step"], &scalars(line)), (&json!(event.step), &event.scalars));
    }
    assert!(found.windows(2).all(|pair| pair[0].wall_time <= pair[1].wall_time));
    assert!(lines.iter().any(|line| line["stage"] == "sample"));

    // The event file is the run's: listed, and replaced with it.
    let [name] = &event_files(&fixture.path("out"))[..] else { panic!("one file") };
    let summary = fixture.read_json("out/summary.json");
    assert!(summary["outputs"].as_array().unwrap().contains(&json!(name)));
    fixture.run("train out/recipe.toml --output again").ok();
    assert_eq!(events(&fixture.path("again")).len(), found.len());
    fixture.train("--method head --epochs 1 --overwrite").ok();
    assert!(event_files(&fixture.path("out")).is_empty());

    for (option, problem) in [("wandb", "tensorboard"), ("tensorboard,none", "tensorboard")] {
        fixture.train(&format!("--log-to {option}")).fails(2, &["--log-to", problem]);
    }
    fixture.run("score --model model --data data --output s --log-to tensorboard").fails(2, &["--log-to"]);
}

/// A sample's labels and value.
type Sample = (BTreeMap<String, String>, f64);

/// The samples of a metrics file by name. Panics where the text is not Prometheus's.
fn metrics(text: &str) -> BTreeMap<String, Vec<Sample>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    let mut lines = text.lines().peekable();
    assert!(text.ends_with('\n'));
    while let Some(line) = lines.next() {
        let (name, help) = line.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(help.ends_with('.') && !help.contains('\\'), "{help}");
        assert_eq!(lines.next().unwrap(), format!("# TYPE {name} gauge"));
        let samples = found.entry(name.strip_prefix("lora_drop_").unwrap().to_string()).or_default();
        assert!(samples.is_empty(), "{name} occurs twice");
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let mut rest = line.strip_prefix(name).unwrap().strip_prefix('{').unwrap();
            let mut labels = BTreeMap::new();
            while !rest.starts_with('}') {
                let (label, after) = rest.split_once("=\"").unwrap();
                let (mut value, mut chars) = (String::new(), after.chars());
                loop {
                    match chars.next().unwrap() {
                        '"' => break,
                        '\\' => value.push(match chars.next().unwrap() {
                            'n' => '\n',
                            escaped @ ('\\' | '"') => escaped,
                            other => panic!("\\{other} in {line}"),
                        }),
                        plain => value.push(plain),
                    }
                }
                assert!(labels.insert(label.to_string(), value).is_none(), "{label} twice in {line}");
                rest = chars.as_str().trim_start_matches(',');
            }
            let value = rest.strip_prefix("} ").unwrap().parse().unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(samples.iter().all(|(known, _)| *known != labels), "{line} occurs twice");
            samples.push((labels, value));
        }
        assert!(!samples.is_empty(), "{name} has no sample");
    }
    found
}

/// The status that a metrics file says.
fn status(text: &str) -> String {
    let found = metrics(text);
    let has: Vec<_> = found["status"].iter().filter(|(_, value)| *value == 1.0).collect();
    let [(labels, _)] = has[..] else { panic!("one status: {text}") };
    labels["status"].clone()
}

#[test]
fn a_metrics_file_says_how_a_run_stands() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("metrics")).unwrap();
    // A path with any characters is a valid label.
    let name = if cfg!(windows) { "model's" } else { "a \"model\"\\\nof mine" };
    std::fs::rename(fixture.path("model"), fixture.path(name)).unwrap();
    let words =
        format!("--data data --output out --metrics-file metrics/run.prom {QUICK} --budget 0.7 --epochs 3");
    let words: Vec<&str> = ["train", "--model", name].into_iter().chain(words.split_whitespace()).collect();
    fixture.run_words(&words).ok();
    assert_eq!(fixture.files("metrics"), ["run.prom"]);
    let text = fixture.read("metrics/run.prom");
    assert_eq!(status(&text), "finished");
    let found = metrics(&text);
    let run = std::path::absolute(fixture.path("out")).unwrap();
    for (labels, _) in found.values().flatten() {
        assert_eq!((&labels["model"][..], &labels["run"][..]), (name, run.to_str().unwrap()));
    }
    let lines = log(&fixture, "out");
    let last = |event: &str| lines.iter().rfind(|line| line["event"] == event).unwrap();
    for name in ["step", "steps", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second"] {
        let [(labels, value)] = &found[name][..] else { panic!("{name}: {text}") };
        assert_eq!((labels["stage"].as_str(), json!(value).as_f64()), ("train", last("step")[name].as_f64()));
    }
    assert_eq!(json!(found["dev_loss"][0].1), last("evaluation")["loss"]);
    let of_dev = found["dev_metric"].iter().map(|(labels, value)| (labels["metric"].clone(), json!(value)));
    let logged = last("evaluation")["metrics"].as_object().unwrap();
    let logged = logged.iter().map(|(name, value)| (name.clone(), json!(value.as_f64())));
    assert_eq!(of_dev.collect::<BTreeMap<_, _>>(), logged.collect());
    assert!(found["last_step_timestamp_seconds"][0].1 > 1.7e9);
    assert!(!found.contains_key("time_left_seconds"));
    assert_eq!(found["run_info"][0].0["method"], "lora-drop");
    // A run elsewhere finds it too.
    let absolute = fixture.path("metrics/run.prom");
    assert!(
        fixture
            .read("out/recipe.toml")
            .contains(&format!("metrics-file = {:?}\n", absolute.to_str().unwrap()))
    );
}

#[test]
fn a_metrics_file_replaces_only_its_like() {
    let fixture = Fixture::new();
    fixture.write("notes.prom", "mine\n");
    fixture.train("--metrics-file notes.prom").fails(2, &["--metrics-file notes.prom", "another file"]);
    assert_eq!(fixture.read("notes.prom"), "mine\n");
    fixture.train("--metrics-file missing/a.prom").fails(1, &["missing/a.prom", "does not exist"]);
    fixture.train("--metrics-file data").fails(1, &["data", "a folder has this name"]);
    assert!(!fixture.path("out").exists());

    let outcome = fixture.train("--metrics-file a.prom --method lora --learning-rate 1e30");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_eq!(status(&fixture.read("a.prom")), "diverged");
    fixture.train("--metrics-file a.prom --method lora --epochs 1 --overwrite").ok();
    assert_eq!(status(&fixture.read("a.prom")), "finished");
}

/// A run that is stopped between two epochs, and resumed.
#[test]
fn the_page_and_the_metrics_follow_a_run() {
    let fixture = Fixture::new();
    let settings = || {
        let (model, data) = (fixture.path("model"), fixture.path("data"));
        let mut settings = RunSettings::new(model.to_str().unwrap(), data, fixture.path("out"));
        let text = "epochs = 3\nlearning-rate = 1e-2\nbudget = 0.7\nsample-ratio = 0.5\ntoken-cache = 0";
        settings.apply(&text.parse().unwrap()).unwrap();
        settings.place.metrics_file = Some(fixture.path("a.prom"));
        settings
    };
    // What each page was made of: status, stage of the last step, whether the time left is known,
    // epochs so far.
    let pages = Mutex::new(Vec::new());
    let page = |record: &RunRecord| {
        let stage = record.steps.last().map(|step| step.stage);
        let seen = (record.summary.status, stage, record.seconds_left.is_some(), record.evaluations.len());
        pages.lock().unwrap().push(seen);
        assert_eq!(status(&fixture.read("a.prom")), "running");
        format!("{seen:?}")
    };
    let cancel = Cancel::new();
    let flag = cancel.clone();
    let mut written = Vec::new();
    let ended = train::run(&settings(), Some(&page), &cancel, &mut |event: &Event| match event {
        Event::Wrote(path) if path.ends_with("report.html") => {
            written.push(std::fs::read_to_string(path).unwrap());
        }
        Event::Step(step) if step.stage == Stage::Train && step.epoch > 2.0 => flag.raise(),
        _ => {}
    });
    assert_eq!(ended.unwrap().status, Status::Interrupted);
    let seen = std::mem::take(&mut *pages.lock().unwrap());
    let (sample, train) = (Some(Stage::Sample), Some(Stage::Train));
    let expected = [
        (Status::Running, sample, true, 0),
        (Status::Running, train, true, 1),
        (Status::Running, train, true, 2),
        (Status::Interrupted, train, true, 2),
    ];
    assert_eq!(seen, expected);
    // Each page was in its place at once.
    assert_eq!(written, expected.map(|seen| format!("{seen:?}")));
    assert_eq!(status(&fixture.read("a.prom")), "interrupted");

    let stopped = StoppedRun::open(&fixture.path("out"), &toml::Table::new()).unwrap();
    train::resume(&stopped, Some(&page), &Cancel::new(), &mut |_| {}).unwrap();
    let seen = std::mem::take(&mut *pages.lock().unwrap());
    let expected = [
        // The page that says "interrupted" is wrong from here on.
        (Status::Running, train, false, 2),
        (Status::Running, train, true, 3),
        (Status::Finished, train, true, 3),
    ];
    assert_eq!(seen, expected);
    assert_eq!(status(&fixture.read("a.prom")), "finished");
}

/// A run that ends between its scores and its first epoch has a page that says so, and no other run
/// is lost for it.
#[test]
fn a_run_without_an_epoch_leaves_no_page_that_reloads() {
    let fixture = Fixture::new();
    let stop = |settings: &RunSettings| {
        let cancel = Cancel::new();
        let flag = cancel.clone();
        let page = |record: &RunRecord| record.summary.status.to_string();
        let ended = train::run(settings, Some(&page), &cancel, &mut |event: &Event| match event {
            Event::Step(step) if step.stage == Stage::Train => flag.raise(),
            _ => {}
        });
        assert!(matches!(ended, Err(Error::Interrupted)));
    };
    let model = fixture.path("model");
    let mut settings = RunSettings::new(model.to_str().unwrap(), fixture.path("data"), fixture.path("out"));
    let text = "epochs = 1\nlearning-rate = 1e-2\nbudget = 0.7\ntoken-cache = 0\ncheckpoint-minutes = 0";
    settings.apply(&text.parse().unwrap()).unwrap();
    stop(&settings);
    assert_eq!(fixture.read("out/report.html"), "interrupted");

    fixture.train("--method head --epochs 1 --overwrite").ok();
    let before = fixture.read("out/report.html");
    assert!(!before.contains("http-equiv=\"refresh\"") && !before.contains("in progress"));
    settings.place.overwrite = true;
    stop(&settings);
    assert_eq!(fixture.read("out/report.html"), before);
}
