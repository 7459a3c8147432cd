//! Events as a kind and a JSON object.

use lora_drop::events::{Event, GenerationProgress};
use serde_json::{Value, json};

/// Kind and values of an event. `transient` events only report progress and may be dropped.
pub struct EventRecord {
    pub kind: &'static str,
    pub values: Value,
    pub transient: bool,
}

impl EventRecord {
    pub fn new(kind: &'static str, values: Value) -> Self {
        EventRecord { kind, values, transient: false }
    }

    fn transient(kind: &'static str, values: Value) -> Self {
        EventRecord { kind, values, transient: true }
    }

    pub fn of(event: &Event) -> Self {
        match event {
            Event::Downloading { file, done, total } => {
                EventRecord::transient("downloading", json!({"file": file, "done": done, "total": total}))
            }
            Event::Model(facts) => EventRecord::new("model", json!(facts)),
            Event::Data(facts) => EventRecord::new("data", json!(facts)),
            Event::Memory(estimate) => EventRecord::new("memory", json!(estimate)),
            Event::Resumed { stage, steps } => {
                EventRecord::new("resumed", json!({"stage": stage, "steps": steps}))
            }
            Event::StageStart { stage, steps, rows, tokens } => EventRecord::new(
                "stage_start",
                json!({"stage": stage, "steps": steps, "rows": rows, "tokens": tokens}),
            ),
            Event::Step(step) => EventRecord::new("step", json!(step)),
            Event::Evaluating { done, of } => {
                EventRecord::transient("evaluating", json!({"done": done, "of": of}))
            }
            Event::Generating(progress) => EventRecord::transient("generating", generating(progress)),
            Event::Evaluation(found) => EventRecord::new("evaluation", json!(found)),
            Event::Baseline(baseline) => EventRecord::new("baseline", json!(baseline)),
            Event::Rescored { step, tau, settled } => {
                EventRecord::new("rescored", json!({"step": step, "tau": tau, "settled": settled}))
            }
            Event::Reusing { blocks } => EventRecord::new("reusing", json!({"blocks": blocks})),
            Event::Importance(importance) => EventRecord::new("importance", json!(importance)),
            Event::Budget(curve) => EventRecord::new("budget", json!(curve)),
            Event::Assignment(assignment) => {
                EventRecord::new("assignment", json!({"kept": assignment.kept()}))
            }
            Event::StageEnd { stage, seconds } => {
                EventRecord::new("stage_end", json!({"stage": stage, "seconds": seconds}))
            }
            Event::Warning(text) => EventRecord::new("warning", json!({"text": text})),
            Event::Note(text) => EventRecord::new("note", json!({"text": text})),
            Event::Wrote(path) => EventRecord::new("wrote", json!({"path": path})),
        }
    }
}

fn generating(progress: &GenerationProgress) -> Value {
    let GenerationProgress { done, of, tokens, tokens_per_second, seconds_left } = progress;
    json!({"done": done, "of": of, "tokens": tokens, "tokens_per_second": tokens_per_second,
        "seconds_left": seconds_left})
}
