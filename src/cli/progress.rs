//! A run's events as plain lines on standard error.

use lora_drop::events::{Event, Stage};

use super::console::{Console, grouped};

/// A listener that writes a line for each event that people wait for.
pub fn lines(console: &Console) -> impl FnMut(&Event) + '_ {
    move |event| match event {
        Event::Model(model) => console.say(format_args!(
            "model   {}: {}, {} layers of width {}, {} parameters",
            model.model,
            model.architecture,
            model.layers,
            model.hidden_size,
            grouped(model.parameters)
        )),
        Event::Data(data) => {
            for split in &data.splits {
                let (rows, tokens) = (grouped(split.rows), grouped(split.tokens));
                console.say(format_args!("{:7} {}: {rows} rows, {tokens} tokens", split.name, split.file));
            }
        }
        Event::StageStart { stage, steps, .. } => {
            console.say(format_args!("{}: {steps} steps", name(*stage)))
        }
        Event::Evaluation(evaluation) => {
            let metrics: Vec<_> =
                evaluation.metrics.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
            let best = if evaluation.best { ", the best so far" } else { "" };
            console.say(format_args!("epoch {}: {}{best}", evaluation.epoch, metrics.join(", ")));
        }
        Event::StageEnd { stage, seconds } => console.say(format_args!("{}: {seconds:.1} s", name(*stage))),
        Event::Warning(text) => console.warn(text),
        Event::Wrote(path) => console.say(format_args!("wrote {}", path.display())),
        _ => {}
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Sample => "sample",
        Stage::Train => "train",
        Stage::Evaluate => "evaluate",
    }
}
