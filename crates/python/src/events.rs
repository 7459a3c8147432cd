//! Events as a kind and an object of JSON.

use lora_drop::events::{Event, GenerationProgress};
use serde_json::{Value, json};

/// The event's kind and its values. Whoever listens can do without the `passing` ones, which only
/// say how far something is.
pub struct Told {
    pub kind: &'static str,
    pub values: Value,
    pub passing: bool,
}

impl Told {
    pub fn new(kind: &'static str, values: Value) -> Self {
        Told { kind, values, passing: false }
    }

    fn passing(kind: &'static str, values: Value) -> Self {
        Told { kind, values, passing: true }
    }

    pub fn of(event: &Event) -> Self {
        match event {
            Event::Downloading { file, done, total } => {
                Told::passing("downloading", json!({"file": file, "done": done, "total": total}))
            }
            Event::Model(facts) => Told::new("model", json!(facts)),
            Event::Data(facts) => Told::new("data", json!(facts)),
            Event::Memory(estimate) => Told::new("memory", json!(estimate)),
            Event::Resumed { stage, steps } => Told::new("resumed", json!({"stage": stage, "steps": steps})),
            Event::StageStart { stage, steps, rows, tokens } => Told::new(
                "stage_start",
                json!({"stage": stage, "steps": steps, "rows": rows, "tokens": tokens}),
            ),
            Event::Step(step) => Told::new("step", json!(step)),
            Event::Evaluating { done, of } => Told::passing("evaluating", json!({"done": done, "of": of})),
            Event::Generating(progress) => Told::passing("generating", generating(progress)),
            Event::Evaluation(found) => Told::new("evaluation", json!(found)),
            Event::Baseline(baseline) => Told::new("baseline", json!(baseline)),
            Event::Rescored { step, tau, settled } => {
                Told::new("rescored", json!({"step": step, "tau": tau, "settled": settled}))
            }
            Event::Reusing { blocks } => Told::new("reusing", json!({"blocks": blocks})),
            Event::Importance(importance) => Told::new("importance", json!(importance)),
            Event::Budget(curve) => Told::new("budget", json!(curve)),
            Event::Assignment(assignment) => Told::new("assignment", json!({"kept": assignment.kept()})),
            Event::StageEnd { stage, seconds } => {
                Told::new("stage_end", json!({"stage": stage, "seconds": seconds}))
            }
            Event::Warning(text) => Told::new("warning", json!({"text": text})),
            Event::Note(text) => Told::new("note", json!({"text": text})),
            Event::Wrote(path) => Told::new("wrote", json!({"path": path})),
        }
    }
}

fn generating(progress: &GenerationProgress) -> Value {
    let GenerationProgress { done, of, tokens, tokens_per_second, seconds_left } = progress;
    json!({"done": done, "of": of, "tokens": tokens, "tokens_per_second": tokens_per_second,
        "seconds_left": seconds_left})
}
