//! `metrics_file`: the state of a run as gauges in Prometheus's text format, for node_exporter's
//! textfile collector.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::events::{EvaluationRecord, Event, StepRecord, TimeLeft};
use crate::files::{check_writable, read_if_there, replace_unflushed};
use crate::machine::now;
use crate::settings::RunSettings;
use crate::summary::Status;
use crate::{Error, Result, rss};

/// First bytes of a metrics file of this program.
const BEGINNING: &str = "# HELP lora_drop_";
/// The shortest time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// The statuses that a run can have in the file.
const STATUSES: [Status; 5] =
    [Status::Running, Status::Finished, Status::Interrupted, Status::Diverged, Status::Failed];

/// The metrics file of a run. If it is dropped before `end`, it reports that the run has failed.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    /// The labels of every sample.
    labels: Vec<(&'static str, String)>,
    /// Further labels of `run_info`.
    run: Vec<(&'static str, String)>,
    status: Status,
    step: Option<StepRecord>,
    /// Time of the last step in seconds since 1970.
    time: f64,
    left: TimeLeft,
    evaluation: Option<EvaluationRecord>,
    written: Instant,
}

/// Checks that a metrics file can be written here, without replacing another program's file.
///
/// # Errors
/// `Error::Usage` if the file is not one of ours; `Error::Io` if nothing can be written.
pub fn check(path: &Path) -> Result<()> {
    check_writable(path)?;
    let found = read_if_there(path).map_err(|e| Error::io(path, e))?.unwrap_or_default();
    if found.is_empty() || found.starts_with(BEGINNING.as_bytes()) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "`metrics_file = {}` exists and is not a metrics file of lora-drop; name another file",
        path.display()
    )))
}

impl MetricsFile {
    /// Writes the file of a run that begins, or that continues after `evaluation`.
    ///
    /// # Errors
    /// Those of `check`, and of the disk.
    pub fn begin(path: &Path, settings: &RunSettings, evaluation: Option<&EvaluationRecord>) -> Result<Self> {
        check(path)?;
        let place = &settings.place;
        let output = std::path::absolute(&place.output).unwrap_or_else(|_| place.output.clone());
        let mut file = MetricsFile {
            path: path.to_path_buf(),
            labels: vec![("run", output.display().to_string()), ("model", place.model.clone())],
            run: vec![
                ("method", settings.train.adapter.method.name().to_string()),
                ("data", place.data.to_string()),
                ("version", env!("CARGO_PKG_VERSION").to_string()),
            ],
            status: Status::Running,
            step: None,
            time: 0.0,
            left: TimeLeft::default(),
            evaluation: evaluation.cloned(),
            written: Instant::now(),
        };
        file.write()?;
        Ok(file)
    }

    /// Takes over an event's values, and writes the file unless the last write was less than a
    /// second ago.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn handle(&mut self, event: &Event) -> Result<()> {
        self.left.handle(event);
        match event {
            Event::Step(record) => {
                self.step = Some((*record).clone());
                self.time = now();
            }
            Event::Evaluation(record) => self.evaluation = Some((*record).clone()),
            _ => return Ok(()),
        }
        if self.written.elapsed() >= PAUSE { self.write() } else { Ok(()) }
    }

    /// Writes the state at the end of the run.
    ///
    /// # Errors
    /// `Error::Io` with the path.
    pub fn end(&mut self, status: Status) -> Result<()> {
        self.status = status;
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        self.written = Instant::now();
        // Not forced to the disk: a reader wants the latest values, and after a power failure no
        // run goes on.
        replace_unflushed(&self.path, self.text().as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    fn text(&self) -> String {
        let mut page = Page { text: String::new(), labels: &self.labels };
        page.gauge("run_info", "The run; always 1.", [(&self.run[..], 1.0)]);
        let statuses =
            STATUSES.map(|status| ([("status", status.to_string())], f64::from(status == self.status)));
        let statuses = statuses.iter().map(|(label, value)| (&label[..], *value));
        page.gauge("status", "1 for the status that the run has.", statuses);
        if let Some(r) = &self.step {
            let stage = [("stage", r.stage.of_metrics().to_string())];
            for (name, help, value) in [
                ("step", "Optimiser steps of the stage so far.", r.step as f64),
                ("steps", "Most optimiser steps of the stage.", r.steps as f64),
                ("epoch", "Epochs of the stage so far.", r.epoch),
                ("loss", "Training loss of the last step.", r.loss),
                ("learning_rate", "Learning rate of the last step.", r.learning_rate),
                ("grad_norm", "Gradient norm of the last step, before clipping.", r.grad_norm),
                ("tokens_per_second", "Tokens per second of the stage so far.", r.tokens_per_second),
                (
                    "last_step_timestamp_seconds",
                    "When the last step ended, in seconds since 1970.",
                    self.time,
                ),
            ] {
                page.gauge(name, help, [(&stage[..], value)]);
            }
            if let Some(left) = self.left.seconds().filter(|_| self.status == Status::Running) {
                let help = "Seconds that the remaining steps of the stage take, without evaluations.";
                page.gauge("time_left_seconds", help, [(&stage[..], left)]);
            }
        }
        if let Some(r) = &self.evaluation {
            page.gauge("dev_loss", "Loss on dev at the last evaluation.", [(&[][..], r.loss)]);
            let metrics = r.metrics.iter().map(|(name, value)| ([("metric", name.clone())], *value));
            let metrics: Vec<_> = metrics.collect();
            let metrics = metrics.iter().map(|(label, value)| (&label[..], *value));
            page.gauge("dev_metric", "Metrics on dev at the last evaluation.", metrics);
        }
        if let Some(bytes) = rss::peak_rss_bytes() {
            let help = "Peak resident memory of the process.";
            page.gauge("peak_resident_memory_bytes", help, [(&[][..], bytes as f64)]);
        }
        page.text
    }
}

impl Drop for MetricsFile {
    /// Reports that the run has failed: an error or a panic has ended it.
    fn drop(&mut self) {
        if self.status == Status::Running {
            _ = self.end(Status::Failed);
        }
    }
}

/// Text in Prometheus's format.
struct Page<'a> {
    text: String,
    labels: &'a [(&'static str, String)],
}

impl Page<'_> {
    /// Adds a gauge with its samples, each with labels of its own.
    fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a [(&'static str, String)], f64)>,
    ) {
        // Writing to a string cannot fail.
        _ = writeln!(self.text, "# HELP lora_drop_{name} {help}\n# TYPE lora_drop_{name} gauge");
        for (own, value) in samples {
            let labels = self.labels.iter().chain(own);
            let labels: Vec<String> =
                labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            // Rust writes "inf" and "NaN", which Prometheus reads.
            _ = writeln!(self.text, "lora_drop_{name}{{{}}} {value}", labels.join(","));
        }
    }
}

/// Escapes a label's value for its place between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
