//! Fine-tunes a model on rows in memory, and predicts with the adapter: no folder is written.
//!
//! cargo run --release -p lora-drop --example in_memory -- models/minilm

use lora_drop::data::{LabelledRow, RawLabel};
use lora_drop::evaluate::{Prediction, Predictor};
use lora_drop::loaded::Arithmetic;
use lora_drop::model::ModelFiles;
use lora_drop::settings::{Budget, RowSettings, TrainSettings};
use lora_drop::train::{Prepared, TrainedAdapter, Training};
use lora_drop::{Cancel, Error, Result};

/// Finds the modules that matter, trains them, and returns the adapter of the best epoch.
pub fn fine_tune(
    model: &ModelFiles,
    train: Vec<LabelledRow>,
    dev: Vec<LabelledRow>,
    settings: &TrainSettings,
) -> Result<TrainedAdapter> {
    let prepared = Prepared::labelled(model, train, dev, &RowSettings::default(), settings)?;
    Training::new(&prepared, settings).run(&Cancel::new(), &mut |_| {})
}

/// Labels texts with a model and an adapter that was trained for it.
pub fn label(model: &ModelFiles, trained: &TrainedAdapter, texts: &[&str]) -> Result<Vec<Prediction>> {
    let rows: Vec<_> = texts.iter().map(|text| (text.to_string(), None)).collect();
    Predictor::new(model, Some(&trained.adapter), Arithmetic::default(), 0, None)?.predict(&rows)
}

/// Reviews that are good or bad.
pub fn reviews(count: usize) -> Vec<LabelledRow> {
    let (subjects, words) = (["film", "story", "actor", "play"], [("good", "fine"), ("bad", "poor")]);
    let row = |i: usize| {
        let (subject, (one, two)) = (subjects[i % 4], words[i / 4 % 2]);
        let label = RawLabel::Text(["positive", "negative"][i / 4 % 2].to_string());
        LabelledRow { text: format!("the {subject} was {one} and {two}"), pair: None, label }
    };
    (0..count).map(row).collect()
}

fn main() -> Result<()> {
    let model = std::env::args().nth(1).ok_or_else(|| Error::Usage("usage: in_memory MODEL".to_string()))?;
    let model = ModelFiles::open(&model, &Cancel::new(), &mut |_| {})?;
    let mut settings = TrainSettings::default();
    settings.selection.budget = Some(Budget::Share(0.5));
    (settings.optimisation.learning_rate, settings.optimisation.epochs) = (2e-3, 10);
    let trained = fine_tune(&model, reviews(200), reviews(40), &settings)?;
    println!(
        "epoch {}: {:?}, kept {:?}",
        trained.best.epoch,
        trained.best.metrics,
        trained.assignment.kept()
    );
    let texts = ["a fine play", "the story was bad"];
    for (text, prediction) in texts.iter().zip(label(&model, &trained, &texts)?) {
        println!("{}\t{text}", prediction.label);
    }
    Ok(())
}
