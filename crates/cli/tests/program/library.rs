//! The library in memory: its examples run and learn, training is bit-identical to a run on files,
//! and odd rows are named.

#[path = "../../../lora-drop/examples/in_memory.rs"]
#[allow(dead_code)] // its `main`, for which cargo builds it as a program
mod in_memory;
#[path = "../../../lora-drop/examples/own_criterion.rs"]
#[allow(dead_code)]
mod own_criterion;
#[path = "../../../lora-drop/examples/serve.rs"]
#[allow(dead_code)]
mod serve;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use lora_drop::adapter::AdapterFile;
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::data::text::TextContent;
use lora_drop::data::{LabelledRow, RawLabel};
use lora_drop::evaluate::Predictor;
use lora_drop::generate::{GenerateOptions, Generator};
use lora_drop::loaded::Arithmetic;
use lora_drop::merge::{MergedForm, merge_adapter};
use lora_drop::model::ModelFiles;
use lora_drop::reading::Reading;
use lora_drop::settings::{Method, RowSettings, RunSettings, TrainSettings};
use lora_drop::train::{self, Prepared, TrainedAdapter, Training};
use lora_drop::transformer::{ModuleId, ModuleKind};
use lora_drop::{Cancel, Error};
use serde_json::{Value, json};

use crate::common::Fixture;

fn model(fixture: &Fixture, name: &str) -> ModelFiles {
    ModelFiles::open(fixture.path(name).to_str().unwrap(), &Cancel::new(), &mut |_| {}).unwrap()
}

/// Settings with which the tiny model learns.
fn settings(fixture: &Fixture, model: &str, data: &str) -> RunSettings {
    let model = fixture.path(model).to_str().unwrap().to_string();
    let mut settings = RunSettings::new(model, fixture.path(data), fixture.path("out"));
    let recipe = "learning-rate = 1e-2\nbatch-size = 8\nepochs = 4\nweight-decay = 0\nthreads = 2\ntoken-cache = 0\n\
                  lora-dropout = 0.1\nattention-dropout = 0.1\nbudget = 0.7\nsample-ratio = 0.5";
    settings.apply(&recipe.parse().unwrap()).unwrap();
    settings
}

fn rows(fixture: &Fixture, file: &str) -> Vec<Value> {
    fixture.read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn labelled(fixture: &Fixture, file: &str) -> Vec<LabelledRow> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_string();
    let row = |row: Value| LabelledRow {
        text: text(&row, "text"),
        pair: None,
        label: RawLabel::Text(text(&row, "label")),
    };
    rows(fixture, file).into_iter().map(row).collect()
}

/// The adapter that the run in `out` has written, and the one in memory, have the same bits.
fn assert_same(fixture: &Fixture, trained: &TrainedAdapter) {
    let written = AdapterFile::open(&fixture.path("out/adapter_compact.safetensors")).unwrap();
    trained.adapter.write_compact(&fixture.path("memory.safetensors")).unwrap();
    let memory = AdapterFile::open(&fixture.path("memory.safetensors")).unwrap();
    assert_eq!(memory.modules, written.modules);
    assert_eq!(memory.pairs, written.pairs);
    assert_eq!((memory.head, memory.labels), (written.head, written.labels));
}

#[test]
fn labelled_rows_in_memory_train_to_the_bits_of_a_run_on_files() {
    let fixture = Fixture::new();
    let settings = settings(&fixture, "model", "data");
    let summary = train::run(&settings, None, &Cancel::new(), &mut |_| {}).unwrap();
    let (train, dev) = (labelled(&fixture, "data/train.jsonl"), labelled(&fixture, "data/dev.jsonl"));
    let model = model(&fixture, "model");
    let trained = in_memory::fine_tune(&model, train, dev.clone(), &settings.train).unwrap();
    assert_same(&fixture, &trained);
    assert_eq!(
        (trained.best.epoch, trained.best.metrics[0].1),
        (summary.best_epoch, summary.metrics["accuracy"])
    );
    let importance = trained.importance.as_ref().unwrap();
    assert_eq!(importance.steps, summary.sample_steps);
    assert!(!trained.assignment.shared_kinds().is_empty());

    let predictions = in_memory::label(&model, &trained, &["the film was good", "the film was bad"]).unwrap();
    let labels: Vec<&str> = predictions.iter().map(|p| p.label.as_str()).collect();
    assert_eq!(labels, ["positive", "negative"]);
    let mut predictor =
        Predictor::new(&model, Some(&trained.adapter), Arithmetic::default(), 2, None).unwrap();
    let split = predictor.labelled_rows(dev).unwrap();
    let found = predictor.measure(&split, &Cancel::new(), &mut |_| {}).unwrap();
    assert_eq!(found.metrics[0].1, summary.metrics["accuracy"]);
    let output = fixture.path("merged");
    let form = MergedForm::Safetensors(None);
    merge_adapter(&model, &trained.adapter, form, &output, false, &Cancel::new()).unwrap();
    assert!(output.join("model.safetensors").exists());
}

#[test]
fn an_initial_adapters_head_takes_the_place_of_the_checkpoints() {
    let fixture = Fixture::new();
    let mut settings = settings(&fixture, "model", "data");
    train::run(&settings, None, &Cancel::new(), &mut |_| {}).unwrap();
    let (train, dev) = (labelled(&fixture, "data/train.jsonl"), labelled(&fixture, "data/dev.jsonl"));
    let model = model(&fixture, "model");
    let prepare = |settings: &TrainSettings| {
        Prepared::labelled(&model, train.clone(), dev.clone(), &RowSettings::default(), settings).unwrap()
    };
    let facts = |settings: &TrainSettings| {
        let facts = prepare(settings).facts;
        (facts.head_found, facts.head_from_adapter)
    };
    assert_eq!(facts(&settings.train), (Some(false), false));
    let adapter = &mut settings.train.adapter;
    (adapter.init_adapter, adapter.method) = (Some(fixture.path("out")), Method::Lora);
    settings.train.selection = TrainSettings::default().selection;
    assert_eq!(facts(&settings.train), (None, true));
}

#[test]
fn texts_in_memory_train_to_the_bits_of_a_run_on_files() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let row = |i: usize| (format!("w{} w{}", 3 + i % 40, 4 + i % 30), format!("w{}", 5 + i % 20));
    let lines = |range: std::ops::Range<usize>| -> String {
        range.map(row).map(|(p, c)| json!({ "prompt": p, "completion": c }).to_string() + "\n").collect()
    };
    fixture.write("texts/train.jsonl", lines(0..40));
    fixture.write("texts/dev.jsonl", lines(40..50));
    let mut settings = settings(&fixture, "decoder", "texts");
    settings.train.adapter.method = Method::Lora;
    settings.train.selection = RunSettings::default().train.selection;
    train::run(&settings, None, &Cancel::new(), &mut |_| {}).unwrap();
    let contents = |range: std::ops::Range<usize>| -> Vec<TextContent> {
        range.map(row).map(|(prompt, c)| TextContent::Completion { prompt, completion: Some(c) }).collect()
    };
    let model = model(&fixture, "decoder");
    let reading = RowSettings::default();
    let prepared =
        Prepared::texts(&model, contents(0..40), contents(40..50), &reading, &settings.train).unwrap();
    let trained = Training::new(&prepared, &settings.train).run(&Cancel::new(), &mut |_| {}).unwrap();
    assert_same(&fixture, &trained);

    let adapter = Some(&trained.adapter);
    let mut predictor = Predictor::new(&model, adapter, Arithmetic::default(), 2, None).unwrap();
    let split = predictor.text_rows(contents(40..50)).unwrap();
    let found = predictor.measure(&split, &Cancel::new(), &mut |_| {}).unwrap();
    assert!((found.metrics[0].1 - trained.best.metrics[0].1).abs() < 1e-6, "{:?}", found.metrics);
    let generator = Generator::new(&model, adapter, Arithmetic::default(), Reading::default(), 2).unwrap();
    assert!(!generator.has_template());
    assert_eq!(GenerateOptions::default().num_beams, 1);
}

#[test]
fn a_criterion_and_an_assignment_of_ones_own() {
    let fixture = Fixture::new();
    let mut settings = settings(&fixture, "model", "data").train;
    settings.selection.budget = None;
    settings.selection.top_k = Some(1);
    let (train, dev) = (labelled(&fixture, "data/train.jsonl"), labelled(&fixture, "data/dev.jsonl"));
    let model = model(&fixture, "model");
    let prepared = Prepared::labelled(&model, train, dev, &RowSettings::default(), &settings).unwrap();

    let trained = own_criterion::by_criterion(&prepared, &settings).unwrap();
    let scored = trained.importance.unwrap();
    assert!(scored.modules.iter().all(|module| module.score > 0.0));
    for kind in [ModuleKind::Query, ModuleKind::Value] {
        let of_kind = scored.modules.iter().filter(|module| module.kind == kind);
        let best = of_kind.max_by(|x, y| x.score.total_cmp(&y.score)).unwrap().layer;
        assert_eq!(trained.assignment.owners[&ModuleId { layer: best, kind }], Owner::Own);
    }

    let trained = own_criterion::by_layers(&prepared, &settings, &[2]).unwrap();
    assert!(trained.importance.is_none());
    let kept = trained.assignment.kept();
    assert!(kept.len() == 2 && kept.iter().all(|(_, layers)| layers == &[2]), "{kept:?}");
    // One own pair and one shared pair for each of two types.
    assert_eq!(trained.adapter.pairs.len(), 4);

    let elsewhere = Assignment::all_own(vec![ModuleId { layer: 7, kind: ModuleKind::Query }]);
    let refused = Training::new(&prepared, &settings).assignment(elsewhere).run(&Cancel::new(), &mut |_| {});
    assert!(matches!(refused, Err(Error::Usage(message)) if message.contains("layer 7")));
    let cancel = Cancel::new();
    cancel.raise();
    let stopped = Training::new(&prepared, &settings).run(&cancel, &mut |_| {});
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn an_adapter_serves_requests() {
    let fixture = Fixture::new();
    let (train, dev) = (labelled(&fixture, "data/train.jsonl"), labelled(&fixture, "data/dev.jsonl"));
    let model = model(&fixture, "model");
    let trained =
        in_memory::fine_tune(&model, train, dev, &settings(&fixture, "model", "data").train).unwrap();
    let mut predictor =
        Predictor::new(&model, Some(&trained.adapter), Arithmetic::default(), 1, None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = [("the film was good", "200", "\"label\":\"positive\""), ("", "400", "expected a text")];
    let client = std::thread::spawn(move || {
        requests.map(|(body, ..)| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    });
    for _ in requests {
        serve::answer(&mut predictor, &mut listener.accept().unwrap().0).unwrap();
    }
    for ((_, status, words), answer) in requests.iter().zip(client.join().unwrap()) {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words), "{answer}");
    }
}

#[test]
fn odd_rows_are_named_by_their_number() {
    let fixture = Fixture::new();
    let model = model(&fixture, "model");
    let settings = settings(&fixture, "model", "data").train;
    let row = |text: &str, pair: Option<&str>, label: i64| LabelledRow {
        text: text.to_string(),
        pair: pair.map(String::from),
        label: RawLabel::Int(label),
    };
    let refused = |train: Vec<LabelledRow>, words: &[&str]| {
        let prepared = Prepared::labelled(&model, train, Vec::new(), &RowSettings::default(), &settings);
        let message = prepared.map(drop).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused(Vec::new(), &["rows for train", "no rows"]);
    refused(vec![row("a", None, 0), row(" ", None, 1)], &["rows for train", "2", "\"text\"", "white space"]);
    refused(vec![row("a", Some("b"), 0), row("a", None, 1)], &["rows for train", "2", "\"pair\"", "null"]);
    let texts = Prepared::texts(&model, Vec::new(), Vec::new(), &RowSettings::default(), &settings);
    assert!(matches!(texts, Err(Error::Usage(message)) if message.contains("encoder")));
    assert!(Path::new(&model.path).is_dir());
}
