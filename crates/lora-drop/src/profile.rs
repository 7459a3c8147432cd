//! Where the time of steps goes: a [`Recorder`]'s spans as sums by operation, and as a trace for
//! Perfetto or Chrome.

use std::io::{self, Write};
use std::path::Path;

use lora_drop_compute::gemm::measure_peak;
pub use lora_drop_compute::profile::Recorder;
use lora_drop_compute::profile::{Kind, Traced, Work};
use serde::Serialize;
use serde_json::json;

use crate::Result;
use crate::engine::thread_pool;
use crate::files::write_atomically;
use crate::settings::Dtype;

/// The sums of a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// What was recorded: optimiser steps by stage, or repetitions of a generation.
    pub recorded: Vec<Recorded>,
    /// Seconds of everything that was recorded; the operations' seconds add up to it.
    pub seconds: f64,
    /// 10⁹ operations per second that the matrix kernel of the run's dtype reaches with cached panels
    /// in this process.
    pub peak_gflops: f64,
    /// Number of computing threads.
    pub threads: usize,
    /// The operations: phases in their order, and in each phase by falling time.
    pub operations: Vec<OperationTime>,
}

/// How much was recorded under one name.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// `step`, `sample step` or `generation`.
    pub name: &'static str,
    /// Number of steps or repetitions.
    pub count: usize,
    /// Seconds of all of them together.
    pub seconds: f64,
}

/// The time of an operation in a phase of the step, over all calls and without the operations
/// nested in it.
#[derive(Clone, Debug, Serialize)]
pub struct OperationTime {
    /// The phase's name.
    pub phase: &'static str,
    /// The operation's name.
    pub operation: &'static str,
    /// Number of calls; 0 for the time between operations.
    pub calls: usize,
    /// Seconds of all calls.
    pub seconds: f64,
    /// Share of the seconds of everything that was recorded.
    pub share: f64,
    /// What it computes and moves.
    #[serde(flatten)]
    pub rates: Rates,
}

/// What an operation computes and moves, and how fast.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    /// Floating-point operations of its products, 2 per multiply-add.
    pub flop: u64,
    /// Bytes of operands and results as they are stored.
    pub bytes: u64,
    /// 10⁹ floating-point operations per second; None without products.
    pub gflops: Option<f64>,
    /// Its share of the kernel's peak.
    pub share_of_peak: Option<f64>,
    /// 10⁹ bytes per second; None where no bytes are counted.
    pub gb_per_second: Option<f64>,
}

impl Rates {
    /// The rates of work that took `seconds`, with a peak in 10⁹ operations per second.
    pub fn new(work: Work, seconds: f64, peak_gflops: f64) -> Self {
        let per_second = |count: u64| (count > 0 && seconds > 0.0).then(|| count as f64 / seconds / 1e9);
        let gflops = per_second(work.operations);
        Rates {
            flop: work.operations,
            bytes: work.bytes,
            gflops,
            share_of_peak: gflops.map(|rate| rate / peak_gflops),
            gb_per_second: per_second(work.bytes),
        }
    }
}

impl Profile {
    /// Sums up a recording, and measures the machine's peak with this number of threads (0: all) for
    /// a third of a second.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(recorder: &Recorder, dtype: Dtype, threads: usize) -> Result<Self> {
        let pool = thread_pool(threads)?;
        let peak_gflops = pool.install(|| measure_peak(dtype.precision(), 0.3)) / 1e9;
        let seconds: f64 = recorder.roots().iter().map(|root| root.time.as_secs_f64()).sum();
        let mut phases: Vec<&str> = Vec::new();
        for row in recorder.rows() {
            if !phases.contains(&row.phase) {
                phases.push(row.phase);
            }
        }
        let mut rows = recorder.rows().to_vec();
        let place = |phase: &str| phases.iter().position(|known| *known == phase);
        rows.sort_by_key(|row| (place(row.phase), std::cmp::Reverse(row.own)));
        let operations = rows.iter().map(|row| {
            let own = row.own.as_secs_f64();
            OperationTime {
                phase: row.phase,
                operation: row.operation,
                calls: row.calls,
                seconds: own,
                share: own / seconds,
                rates: Rates::new(row.work, own, peak_gflops),
            }
        });
        let recorded = recorder.roots().iter().map(|root| Recorded {
            name: root.name,
            count: root.count,
            seconds: root.time.as_secs_f64(),
        });
        Ok(Profile {
            recorded: recorded.collect(),
            seconds,
            peak_gflops,
            threads: pool.current_num_threads(),
            operations: operations.collect(),
        })
    }

    /// Writes the recorder's spans in Chrome's Trace Event Format, with the sums after them under
    /// `profile`.
    ///
    /// # Errors
    /// Those of `write_atomically`.
    pub fn write_trace(&self, recorder: &Recorder, path: &Path) -> Result<()> {
        write_atomically(path, |out| self.write(recorder, out))
    }

    fn write(&self, recorder: &Recorder, out: &mut dyn Write) -> io::Result<()> {
        let named = |what: &str, track: usize, name: &str| json!({"name": what, "ph": "M", "pid": 1, "tid": 1 + track, "args": {"name": name}});
        writeln!(out, "{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [")?;
        write!(out, "{}", named("process_name", 0, "lora-drop"))?;
        for track in 0..=recorder.traced().iter().map(|span| span.track).max().unwrap_or(0) {
            let name = if track == 0 { "steps".to_string() } else { format!("concurrent, {track}") };
            write!(out, ",\n{}", named("thread_name", track, &name))?;
        }
        for span in recorder.traced() {
            write!(out, ",\n{}", event(span))?;
        }
        // After the events, because Perfetto stops reading at a key that it does not know.
        writeln!(out, "\n], \"profile\": {}}}", serde_json::to_string(self)?)
    }
}

/// Formats a span as a complete event, with its times in microseconds.
fn event(span: &Traced) -> serde_json::Value {
    let name = match span.number {
        Some(number) => format!("{} {number}", span.name),
        None => span.name.to_string(),
    };
    let [start, time] = [span.start, span.time].map(|time| time.as_nanos() as f64 / 1e3);
    let mut event = json!({
        "name": name, "cat": span.kind.name(), "ph": "X", "ts": start, "dur": time, "pid": 1,
        "tid": 1 + span.track,
    });
    if span.kind == Kind::Operation {
        event["args"] = json!({"flop": span.work.operations, "bytes": span.work.bytes});
    }
    event
}
