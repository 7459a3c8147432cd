//! metrics.jsonl: one JSON object a line, for every logged step and every evaluation, written as they happen.
//!
//! A log grows, so it is not written aside and renamed as other files are. Instead each line goes out in one write
//! and a line that could not be written whole is taken back: an interrupted run leaves whole lines.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::events::{EvaluationRecord, Event, StepRecord};
use crate::{Error, Result};

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    written: u64,
}

impl MetricsLog {
    /// Starts an empty log; one that is there already is replaced.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io(path, e))?;
        Ok(MetricsLog { path: path.to_path_buf(), file, written: 0 })
    }

    /// Writes a line for `Step` and `Evaluation`; other events have none.
    ///
    /// # Errors
    /// `Error::Io` with the path: the disk is full. The log then ends with the line before.
    pub fn handle(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(record) => self.write(&step(record)),
            Event::Evaluation(record) => self.write(&evaluation(record)),
            _ => Ok(()),
        }
    }

    /// Forces the log to the disk.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        let text = format!("{line}\n");
        match self.file.write_all(text.as_bytes()) {
            Ok(()) => {
                self.written += text.len() as u64;
                Ok(())
            }
            Err(e) => {
                // The first problem is the one to tell; taking the torn line back is what can still be done.
                _ = self.file.set_len(self.written);
                _ = self.file.seek(SeekFrom::Start(self.written));
                Err(Error::io(&self.path, e))
            }
        }
    }
}

/// A loss that is no number becomes `null`, since JSON has no NaN.
fn step(r: &StepRecord) -> Value {
    json!({
        "event": "step",
        "stage": r.stage,
        "step": r.step,
        "steps": r.steps,
        "epoch": r.epoch,
        "loss": r.loss,
        "learning_rate": r.learning_rate,
        "grad_norm": r.grad_norm,
        "tokens": r.tokens,
        "tokens_per_second": r.tokens_per_second,
    })
}

fn evaluation(r: &EvaluationRecord) -> Value {
    let metrics: Map<String, Value> =
        r.metrics.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "event": "evaluation",
        "epoch": r.epoch,
        "step": r.step,
        "loss": r.loss,
        "metrics": metrics,
        "best": r.best,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Stage;
    use crate::report::samples;

    #[test]
    fn steps_and_evaluations_are_lines_as_soon_as_they_happen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        let mut record = samples::steps(Stage::Sample, 1, 1.0).remove(0);
        record.loss = f64::NAN;
        log.handle(&Event::Step(&record)).unwrap();
        log.handle(&Event::Warning("no line for this")).unwrap();
        log.handle(&Event::Evaluation(&samples::evaluations(1, 1)[0])).unwrap();

        // Read before `finish`: nothing waits in a buffer.
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
        log.finish().unwrap();
    }

    /// /dev/full refuses every write, as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let mut log = MetricsLog::create(Path::new("/dev/full")).unwrap();
        let record = samples::steps(Stage::Train, 1, 1.0).remove(0);
        let error = log.handle(&Event::Step(&record)).unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: ") && error.contains("space"), "{error}");
    }
}
