//! Runs: the summary of one, and the objects of `--json`.

use std::path::{Path, PathBuf};

use lora_drop::summary::Summary;
use serde_json::{Value, json};

/// The object of `--json`: the summary, and what it is.
pub fn object(path: &Path, summary: &Summary) -> Value {
    let mut object = json!({"kind": "run", "path": path});
    if let (Value::Object(object), Ok(Value::Object(summary))) = (&mut object, serde_json::to_value(summary))
    {
        object.extend(summary);
    }
    object
}

/// The object of several runs.
pub fn objects(runs: &[(PathBuf, Summary)]) -> Value {
    let runs: Vec<_> = runs.iter().map(|(path, run)| object(path, run)).collect();
    json!({"kind": "runs", "runs": runs})
}
