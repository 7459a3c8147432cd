//! metrics.jsonl: one JSON object a line for every step and evaluation, written as they happen.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::events::{EvaluationRecord, Event, StepRecord};
use crate::growing_file::GrowingFile;
use crate::{Error, Result};

/// The log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    /// The file to which `handle` adds lines.
    pub file: GrowingFile,
}

impl MetricsLog {
    /// Starts an empty log, and replaces one that exists.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(MetricsLog { file: GrowingFile::create(path)? })
    }

    /// Continues a log after its first `bytes` bytes; anything after them is removed. Also returns
    /// the steps and evaluations in it.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Input` if the log is shorter or damaged.
    pub fn resume(path: &Path, bytes: u64) -> Result<(Self, Vec<StepRecord>, Vec<EvaluationRecord>)> {
        let file = GrowingFile::resume(path, bytes)?;
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
        for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            match serde_json::from_slice(line) {
                Ok(Logged::Step(step)) => steps.push(step),
                Ok(Logged::Evaluation(evaluation)) => evaluations.push(evaluation),
                Err(error) => return Err(Error::file(path, format!("line {}: {error}", number + 1))),
            }
        }
        Ok((MetricsLog { file }, steps, evaluations))
    }

    /// Writes the line of a `Step` or an `Evaluation`; other events have none.
    ///
    /// # Errors
    /// `Error::Io` with the path, as when the disk is full. The line waits for the next call.
    pub fn handle(&mut self, event: &Event) -> Result<()> {
        let line = match event {
            Event::Step(record) => Line::Step(record),
            Event::Evaluation(record) => Line::Evaluation(record),
            _ => return Ok(()),
        };
        let line = serde_json::to_string(&line).map_err(|e| Error::io(self.file.path(), e.into()))?;
        self.file.append((line + "\n").as_bytes())
    }
}

/// A line of the log. A loss that is not a number becomes `null`, since JSON has no NaN.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Step(&'a StepRecord),
    Evaluation(&'a EvaluationRecord),
}

/// A line that is read back.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Logged {
    Step(StepRecord),
    Evaluation(EvaluationRecord),
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::events::Stage;

    fn step() -> StepRecord {
        StepRecord {
            stage: Stage::Sample,
            step: 1,
            steps: 3,
            epoch: 0.5,
            loss: 0.4,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens: 1650,
            tokens_per_second: 2431.4,
        }
    }

    #[test]
    fn steps_and_evaluations_are_lines_as_soon_as_they_happen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let evaluation = EvaluationRecord {
            epoch: 1.0,
            step: 3,
            loss: 0.6,
            metrics: vec![("accuracy".into(), 0.75), ("f1".into(), 0.8)],
            best: true,
            only_class: None,
        };
        log.handle(&Event::Step(&StepRecord { loss: f64::NAN, ..step() })).unwrap();
        log.handle(&Event::Warning("no line for this")).unwrap();
        log.handle(&Event::Evaluation(&evaluation)).unwrap();

        // Read before `flush`: nothing waits in a buffer.
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(text.ends_with('\n'));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["event"], "step");
        assert_eq!(lines[0]["stage"], "sample");
        assert_eq!(lines[0]["loss"], Value::Null);
        assert_eq!(lines[0]["tokens"], 1650);
        assert_eq!(lines[1]["event"], "evaluation");
        assert_eq!(lines[1]["best"], true);
        let names: Vec<&String> = lines[1]["metrics"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["accuracy", "f1"]);
        log.file.flush(true).unwrap();
    }
}
