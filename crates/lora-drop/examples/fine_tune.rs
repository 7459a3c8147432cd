//! Fine-tunes an encoder by LoRA-drop on a folder of labelled sentences, then labels new ones with
//! the result.
//!
//! cargo run --release --example fine_tune -- MODEL DATA OUTPUT SENTENCE...

use lora_drop::evaluate::{Prediction, Predictor};
use lora_drop::events::Event;
use lora_drop::loaded::Arithmetic;
use lora_drop::settings::RunSettings;
use lora_drop::{Cancel, Error, Result};

/// Trains as the settings say, tells of every evaluation, and gives the result's predictions for
/// `sentences`.
pub fn fine_tune(
    settings: &RunSettings,
    sentences: &[String],
    tell: &mut (dyn FnMut(String) + Send),
) -> Result<Vec<Prediction>> {
    let mut listen = |event: &Event| {
        if let Event::Evaluation(found) = event {
            let metrics: Vec<String> =
                found.metrics.iter().map(|(name, v)| format!("{name} {v:.3}")).collect();
            tell(format!("epoch {}: loss {:.3}, {}", found.epoch, found.loss, metrics.join(", ")));
        }
    };
    let summary = lora_drop::train::run(settings, None, &Cancel::new(), &mut listen)?;
    tell(format!("{} of {} LoRA parameters", summary.lora_parameters, summary.lora_parameters_full));

    let rows: Vec<_> = sentences.iter().map(|sentence| (sentence.clone(), None)).collect();
    let adapter = Some(settings.place.output.as_path());
    Predictor::open(
        &settings.place.model,
        adapter,
        Arithmetic::of(&settings.train.compute),
        settings.train.compute.threads,
        settings.rows.max_length,
    )?
    .predict(&rows)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(data), Some(output)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(Error::Usage("usage: fine_tune MODEL DATA OUTPUT SENTENCE...".to_string()));
    };
    let mut settings = RunSettings::new(model, data, output);
    settings.train.optimisation.learning_rate = 1e-3;
    settings.train.optimisation.epochs = 5;
    let sentences: Vec<String> = arguments.collect();
    let predictions = fine_tune(&settings, &sentences, &mut |line| eprintln!("{line}"))?;
    for (sentence, prediction) in sentences.iter().zip(predictions) {
        println!("{}\t{sentence}", prediction.label);
    }
    Ok(())
}
