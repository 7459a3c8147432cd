//! What the documentation offers to copy: the library's example runs and learns, and the recipes
//! are valid.

#[path = "../../../lora-drop/examples/fine_tune.rs"]
#[allow(dead_code)] // its `main`, for which cargo builds it as a program
mod fine_tune;

use std::path::Path;

use crate::common::Fixture;
use lora_drop::settings::{Method, Optimisation, RunSettings};
use lora_drop_cli::compare::TableFile;

#[test]
fn the_example_trains_and_labels() {
    let fixture = Fixture::new();
    let model = fixture.path("model").to_str().unwrap().to_string();
    let mut settings = RunSettings::new(model, fixture.path("data"), fixture.path("out"));
    let recipe = "learning-rate = 1e-2\nbatch-size = 8\nepochs = 8\nweight-decay = 0\nhidden-dropout = 0\n\
                  attention-dropout = 0\nthreads = 2\ntoken-cache = 0";
    settings.apply(&recipe.parse().unwrap()).unwrap();
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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let (mut names, mut tables) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if name.starts_with("compare-") {
            tables.push((name, TableFile::read(&path).unwrap()));
            continue;
        }
        let settings = RunSettings::from_recipe(&path).unwrap();
        assert_eq!(settings.train.adapter.method, Method::LoraDrop);
        assert_eq!(settings.place.data, Path::new("data").join(&name).into());
        assert_eq!(settings.place.output, Path::new("runs").join(&name));
        let (texts, expected) = match name.as_str() {
            "e2e" | "gsm8k" => (true, (2e-3, 2, 16)),
            "dialogsum" => (true, (2e-3, 1, 16)),
            _ => (false, (1e-3, 5, 32)),
        };
        assert_eq!(settings.rows.prompt_template.is_some(), texts, "{name}");
        let Optimisation { learning_rate, epochs, batch_size, .. } = settings.train.optimisation;
        assert_eq!((learning_rate, epochs, batch_size), expected, "{name}");
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["cola", "dialogsum", "e2e", "gsm8k", "mrpc", "rte", "stsb"]);
    tables.sort_by(|a, b| a.0.cmp(&b.0));
    let runs = |table: &TableFile| table.tasks.len() * table.lines.len() * table.seeds.len();
    let tables: Vec<_> = tables.iter().map(|(name, table)| (name.as_str(), runs(table))).collect();
    assert_eq!(tables, [("compare-glue", 120), ("compare-own-data", 18)]);
}
