//! What the documentation offers to copy: the library's example runs and learns, and the recipes are valid.

mod common;
#[path = "../examples/fine_tune.rs"]
#[allow(dead_code)] // its `main`, for which cargo builds it as a program
mod fine_tune;

use std::path::Path;

use common::Fixture;
use lora_drop::compare::TableFile;
use lora_drop::settings::{Method, TrainSettings};

#[test]
fn the_example_trains_and_labels() {
    let fixture = Fixture::new();
    let settings = TrainSettings {
        model: fixture.path("model").to_str().unwrap().to_string(),
        data: fixture.path("data"),
        output: fixture.path("out"),
        learning_rate: 1e-2,
        batch_size: 8,
        epochs: 8,
        weight_decay: 0.0,
        hidden_dropout: Some(0.0),
        attention_dropout: Some(0.0),
        threads: 2,
        token_cache: 0.0,
        ..TrainSettings::default()
    };
    let sentences = ["the film was good".to_string(), "the film was bad".to_string()];
    let mut told = Vec::new();
    let predictions = fine_tune::fine_tune(&settings, &sentences, &mut |line| told.push(line)).unwrap();
    let labels: Vec<&str> = predictions.iter().map(|p| p.label.as_str()).collect();
    assert_eq!(labels, ["positive", "negative"]);
    assert_eq!(told.len(), 9, "{told:?}");
    assert!(told[0].starts_with("epoch 1: loss ") && told[0].contains("accuracy"), "{told:?}");
    assert!(told[8].ends_with("LoRA parameters"), "{told:?}");
}

#[test]
fn every_recipe_is_read_and_names_its_own_data() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let (mut names, mut tables) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if name.starts_with("compare-") {
            tables.push((name, TableFile::read(&path).unwrap()));
            continue;
        }
        let settings = TrainSettings::from_recipe(&path).unwrap();
        assert_eq!(settings.method, Method::LoraDrop);
        assert_eq!(settings.data, Path::new("data").join(&name));
        assert_eq!(settings.output, Path::new("runs").join(&name));
        let (texts, expected) = match name.as_str() {
            "e2e" | "gsm8k" => (true, (2e-3, 2, 16)),
            "dialogsum" => (true, (2e-3, 1, 16)),
            _ => (false, (1e-3, 5, 32)),
        };
        assert_eq!(settings.prompt_template.is_some(), texts, "{name}");
        assert_eq!((settings.learning_rate, settings.epochs, settings.batch_size), expected, "{name}");
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["cola", "dialogsum", "e2e", "gsm8k", "mrpc", "rte", "stsb"]);
    tables.sort_by(|a, b| a.0.cmp(&b.0));
    let runs = |table: &TableFile| table.tasks.len() * table.lines.len() * table.seeds.len();
    let tables: Vec<_> = tables.iter().map(|(name, table)| (name.as_str(), runs(table))).collect();
    assert_eq!(tables, [("compare-glue", 120), ("compare-own-data", 18)]);
}
