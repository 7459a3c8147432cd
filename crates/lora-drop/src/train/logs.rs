//! What a run logs step by step: metrics.jsonl always, an event file for TensorBoard and a metrics
//! file for Prometheus where the settings ask for them. A log that cannot be written does not end
//! the run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::events::{EvaluationRecord, Event, StepRecord};
use crate::folder::OutputFolder;
use crate::growing_file::GrowingFile;
use crate::metrics_file::MetricsFile;
use crate::metrics_log::MetricsLog;
use crate::settings::{LogTo, Place, RunSettings};
use crate::summary::Status;
use crate::tensorboard::{self, EventFile};

/// The run's log in its folder.
pub const LOG: &str = "metrics.jsonl";

/// The logs of a run that is under way.
pub struct Logs {
    metrics: MetricsLog,
    events: Option<EventFile>,
    gauges: Option<MetricsFile>,
    /// Which of them have failed; each failure is reported once.
    failed: [bool; 3],
}

/// The lengths of the logs at a checkpoint, so that they are continued from there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    /// Bytes of metrics.jsonl.
    pub log_bytes: u64,
    /// The name of TensorBoard's event file, once there is one.
    pub events_file: Option<String>,
    /// Bytes of the event file; 0 if it lacks events.
    pub events_bytes: u64,
}

impl Lengths {
    /// The names of the logs.
    pub fn names(&self) -> Vec<&str> {
        [LOG].into_iter().chain(self.events_file.as_deref()).collect()
    }
}

impl Logs {
    /// Begins the logs of a run, or continues those of a stopped one from its checkpoint. Returns
    /// with them the steps and evaluations until then. `recipe` is the text of recipe.toml.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Input` if metrics.jsonl is shorter than at the checkpoint, or damaged;
    /// those of `metrics_file::check`.
    pub fn begin(
        settings: &RunSettings,
        folder: &OutputFolder,
        stopped: Option<&Lengths>,
        recipe: &str,
    ) -> Result<(Self, Vec<StepRecord>, Vec<EvaluationRecord>)> {
        let Place { log_to, metrics_file, .. } = &settings.place;
        let (metrics, steps, evaluations) = match stopped {
            Some(lengths) => MetricsLog::resume(&folder.path_of(LOG), lengths.log_bytes)?,
            None => (MetricsLog::create(&folder.staging().join(LOG))?, Vec::new(), Vec::new()),
        };
        let events = log_to.contains(&LogTo::TensorBoard).then(|| {
            let lengths = stopped.cloned().unwrap_or_default();
            begin_events(folder, &lengths, recipe, &steps, &evaluations)
        });
        let gauges =
            metrics_file.as_deref().map(|path| MetricsFile::begin(path, settings, evaluations.last()));
        let (events, gauges) = (events.transpose()?, gauges.transpose()?);
        Ok((Logs { metrics, events, gauges, failed: [false; 3] }, steps, evaluations))
    }

    /// Logs an event. A file that cannot be written is a warning, once for each.
    pub fn handle(&mut self, event: &Event, listen: &mut dyn FnMut(&Event)) {
        let Logs { metrics, events, gauges, .. } = self;
        let results = [
            (metrics.handle(event), "log is tried again with each line"),
            (
                events.as_mut().map_or(Ok(()), |events| events.handle(event)),
                "events are tried again with each step",
            ),
            (
                gauges.as_mut().map_or(Ok(()), |gauges| gauges.handle(event)),
                "metrics are tried again with each step",
            ),
        ];
        for ((result, then), failed) in results.into_iter().zip(&mut self.failed) {
            if let Err(error) = result
                && !*failed
            {
                *failed = true;
                listen(&Event::Warning(&format!("{error}; the run goes on, and its {then}")));
            }
        }
    }

    /// Forces the logs to the disk, and returns their lengths. `before` are those of the last
    /// checkpoint.
    ///
    /// # Errors
    /// `Error::Io` for metrics.jsonl.
    pub fn lengths(&mut self, before: &Lengths) -> Result<Lengths> {
        let log_bytes = self.metrics.file.length()?;
        let Some(EventFile { file }) = &mut self.events else {
            // An event file of an earlier process, if there is one, lacks the events of this
            // process.
            return Ok(Lengths { log_bytes, events_bytes: 0, ..before.clone() });
        };
        let events_file = file.path().file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Lengths { log_bytes, events_file, events_bytes: file.length().unwrap_or(0) })
    }

    /// Continues in files that a commit has moved to these paths.
    pub fn moved(&mut self, paths: &[PathBuf]) {
        let files = [Some(&mut self.metrics.file), self.events.as_mut().map(|events| &mut events.file)];
        for file in files.into_iter().flatten() {
            if let Some(path) = paths.iter().find(|path| path.file_name() == file.path().file_name()) {
                file.moved(path);
            }
        }
    }

    /// Writes what waits, and forces it to the disk.
    pub fn flush(&mut self, listen: &mut dyn FnMut(&Event)) {
        // The folder may have been moved away, so failures are only warnings here; writing the
        // other files reports an error.
        let mut flush = |file: &mut GrowingFile, lacks: &str| {
            if let Err(error) = file.flush(true) {
                listen(&Event::Warning(&format!("{error}; {lacks}")));
            }
        };
        flush(&mut self.metrics.file, "metrics.jsonl lacks its last lines");
        if let Some(events) = &mut self.events {
            flush(&mut events.file, "it lacks the last events");
        }
    }

    /// Says in the metrics file how the run has ended.
    pub fn end(&mut self, status: Status, listen: &mut dyn FnMut(&Event)) {
        if let Some(Err(error)) = self.gauges.as_mut().map(|gauges| gauges.end(status)) {
            listen(&Event::Warning(&format!("{error}; it does not say how the run has ended")));
        }
    }
}

/// Begins an event file, or continues the one of the checkpoint. Where that has none, or one that
/// lacks events, the steps and evaluations of metrics.jsonl are written first.
fn begin_events(
    folder: &OutputFolder,
    lengths: &Lengths,
    recipe: &str,
    steps: &[StepRecord],
    evaluations: &[EvaluationRecord],
) -> Result<EventFile> {
    let name = lengths.events_file.clone().unwrap_or_else(tensorboard::new_name);
    let found = folder.path_of(&name);
    let path = if found.exists() { found } else { folder.staging().join(name) };
    if lengths.events_bytes > 0
        && let Ok(file) = GrowingFile::resume(&path, lengths.events_bytes)
    {
        return Ok(EventFile { file });
    }
    let mut events = EventFile::create(&path, recipe)?;
    steps.iter().try_for_each(|step| events.handle(&Event::Step(step)))?;
    evaluations.iter().try_for_each(|evaluation| events.handle(&Event::Evaluation(evaluation)))?;
    Ok(events)
}
