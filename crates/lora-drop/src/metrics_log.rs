//! metrics.jsonl: one JSON object a line for every step and evaluation, written as they happen.
//!
//! A log grows, so it is not written aside and renamed as other files are. Instead each line is one
//! write, and a line that could not be written whole is removed again, so an interrupted run leaves
//! whole lines. What cannot be written waits in memory and is tried again with the next line: a disk
//! that is full for a moment loses nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::events::{EvaluationRecord, Event, StepRecord};
use crate::{Error, Result};

/// The log of a run. Its file is open only while it writes, so that its folder can be renamed.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    /// Lines that could not be written yet.
    waiting: String,
}

impl MetricsLog {
    /// Starts an empty log, and replaces one that exists.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn create(path: &Path) -> Result<Self> {
        File::create(path).map_err(|e| Error::io(path, e))?;
        Ok(MetricsLog { path: path.to_path_buf(), waiting: String::new() })
    }

    /// Continues a log of which the first `bytes` bytes count: what follows them is removed. Returns
    /// with it the steps and evaluations that are in it.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Input` if the log is shorter or damaged.
    pub fn resume(path: &Path, bytes: u64) -> Result<(Self, Vec<StepRecord>, Vec<EvaluationRecord>)> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let Some(kept) = usize::try_from(bytes).ok().and_then(|bytes| text.get(..bytes)) else {
            let problem =
                format!("it has {} bytes, and had {bytes} when the checkpoint was written", text.len());
            return Err(Error::file(path, problem));
        };
        let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
        for (number, line) in kept.split_inclusive(|byte| *byte == b'\n').enumerate() {
            match serde_json::from_slice(line) {
                Ok(Logged::Step(step)) => steps.push(step),
                Ok(Logged::Evaluation(evaluation)) => evaluations.push(evaluation),
                Err(error) => return Err(Error::file(path, format!("line {}: {error}", number + 1))),
            }
        }
        let file = File::options().write(true).open(path).map_err(|e| Error::io(path, e))?;
        file.set_len(bytes).map_err(|e| Error::io(path, e))?;
        Ok((MetricsLog { path: path.to_path_buf(), waiting: String::new() }, steps, evaluations))
    }

    /// Forces the log to the disk, and returns its length in bytes.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn length(&mut self) -> Result<u64> {
        self.flush(true)?;
        Ok(std::fs::metadata(&self.path).map_err(|e| Error::io(&self.path, e))?.len())
    }

    /// Continues in the same file after it was renamed to `path`.
    pub fn moved(&mut self, path: &Path) {
        self.path = path.to_path_buf();
    }

    /// Writes the line of a `Step` or an `Evaluation`; other events have none.
    ///
    /// # Errors
    /// `Error::Io` with the path: the disk is full. The line waits for the next call.
    pub fn handle(&mut self, event: &Event) -> Result<()> {
        let line = match event {
            Event::Step(record) => Line::Step(record),
            Event::Evaluation(record) => Line::Evaluation(record),
            _ => return Ok(()),
        };
        let line = serde_json::to_string(&line).map_err(|e| Error::io(&self.path, e.into()))?;
        self.waiting.push_str(&line);
        self.waiting.push('\n');
        self.flush(false)
    }

    /// Writes the lines that wait, and with `to_disk` forces the log to the disk.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn flush(&mut self, to_disk: bool) -> Result<()> {
        self.write(to_disk).map_err(|e| Error::io(&self.path, e))
    }

    fn write(&mut self, to_disk: bool) -> std::io::Result<()> {
        // Not created again if it was removed: its first lines are gone, and half a log would look
        // like a whole one.
        let mut file = File::options().append(true).open(&self.path)?;
        let whole = file.metadata()?.len();
        if let Err(e) = file.write_all(self.waiting.as_bytes()) {
            // Removes the partial line if it can; the first error is the one to report.
            _ = file.set_len(whole);
            return Err(e);
        }
        self.waiting.clear();
        if to_disk { file.sync_all() } else { Ok(()) }
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

    fn step(step: usize) -> StepRecord {
        StepRecord {
            stage: Stage::Sample,
            step,
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
        log.handle(&Event::Step(&StepRecord { loss: f64::NAN, ..step(1) })).unwrap();
        log.handle(&Event::Warning("no line for this")).unwrap();
        log.handle(&Event::Evaluation(&evaluation)).unwrap();

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
        log.flush(true).unwrap();
    }

    #[test]
    fn what_could_not_be_written_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("metrics.jsonl"), folder.path().join("aside"));
        let mut log = MetricsLog::create(&path).unwrap();
        let records = [1, 2, 3].map(step);
        log.handle(&Event::Step(&records[0])).unwrap();
        std::fs::rename(&path, &aside).unwrap();
        assert!(log.handle(&Event::Step(&records[1])).is_err());
        std::fs::rename(&aside, &path).unwrap();
        log.handle(&Event::Step(&records[2])).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<Value> =
            text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].clone()).collect();
        assert_eq!(steps, [1, 2, 3]);
    }

    /// /dev/full refuses every write, as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let mut log = MetricsLog::create(Path::new("/dev/full")).unwrap();
        let error = log.handle(&Event::Step(&step(1))).unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: ") && error.contains("space"), "{error}");
    }
}
