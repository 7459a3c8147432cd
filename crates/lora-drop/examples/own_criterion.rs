//! Chooses modules by a criterion of one's own, and by an assignment of one's own.
//!
//! cargo run --release -p lora-drop --example own_criterion -- models/minilm

use std::collections::BTreeMap;

use lora_drop::assignment::{Assignment, Rest};
use lora_drop::data::{LabelledRow, RawLabel};
use lora_drop::model::ModelFiles;
use lora_drop::score::{Criterion, Evidence};
use lora_drop::settings::{Basis, RowSettings, TrainSettings};
use lora_drop::train::{Prepared, TrainedAdapter, Training};
use lora_drop::transformer::ModuleId;
use lora_drop::{Cancel, Error, Result};

/// The largest value of B, in absolute terms: B begins at 0, so it says how far a module's LoRA has
/// moved.
pub struct LargestB;

impl Criterion for LargestB {
    fn name(&self) -> &'static str {
        "largest-b"
    }

    fn basis(&self) -> Basis {
        Basis::Training
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        let largest = |values: &[f32]| values.iter().fold(0.0, |most: f64, v| most.max(f64::from(v.abs())));
        let modules = evidence.bank.adapted();
        modules.map(|(id, pair)| (id, largest(evidence.parameters.value(pair.lora.b)))).collect()
    }
}

/// Trains by the criterion: the sample stage scores with it, and the settings' rule chooses.
pub fn by_criterion(prepared: &Prepared, settings: &TrainSettings) -> Result<TrainedAdapter> {
    Training::new(prepared, settings).criterion(&LargestB).run(&Cancel::new(), &mut |_| {})
}

/// Trains own pairs in these layers, and one shared pair a module type in all others.
pub fn by_layers(prepared: &Prepared, settings: &TrainSettings, layers: &[usize]) -> Result<TrainedAdapter> {
    let assignment = Assignment::of_layers(prepared.modules(), layers, Rest::default())?;
    Training::new(prepared, settings).assignment(assignment).run(&Cancel::new(), &mut |_| {})
}

/// Reviews that are good or bad.
fn reviews(count: usize) -> Vec<LabelledRow> {
    let row = |i: usize| LabelledRow {
        text: format!("the {} was {}", ["film", "play"][i % 2], ["good", "bad"][i / 2 % 2]),
        pair: None,
        label: RawLabel::Int((i / 2 % 2) as i64),
    };
    (0..count).map(row).collect()
}

fn main() -> Result<()> {
    let model =
        std::env::args().nth(1).ok_or_else(|| Error::Usage("usage: own_criterion MODEL".to_string()))?;
    let model = ModelFiles::open(&model, &Cancel::new(), &mut |_| {})?;
    let mut settings = TrainSettings::default();
    (settings.selection.top_k, settings.optimisation.learning_rate) = (Some(2), 2e-3);
    let (train, dev) = (reviews(200), reviews(40));
    let prepared = Prepared::labelled(&model, train, dev, &RowSettings::default(), &settings)?;
    for trained in [by_criterion(&prepared, &settings)?, by_layers(&prepared, &settings, &[0, 5])?] {
        println!("kept {:?}: {:?}", trained.assignment.kept(), trained.best.metrics);
    }
    Ok(())
}
