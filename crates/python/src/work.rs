//! Work on a thread of its own, so that other Python threads keep running while the calling thread
//! checks for Ctrl-C and calls the listener.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use lora_drop::Result;
use lora_drop::events::Event;
use lora_drop::hub::Download;
use pyo3::prelude::*;

use crate::errors::exception;
use crate::events::EventRecord;

/// Maximum time between two checks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);
/// Maximum number of events that wait for the listener; when it is reached, the work waits too.
const AHEAD: usize = 64;

/// Cancels work, from any thread. Epochs that were already evaluated are kept.
#[pyclass(frozen, module = "lora_drop._native")]
pub struct Cancel(pub lora_drop::Cancel);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Cancel(lora_drop::Cancel::new())
    }

    fn cancel(&self) {
        self.0.raise();
    }
}

/// Sends the events of the work to the calling thread.
pub struct EventSender(SyncSender<EventRecord>);

impl EventSender {
    pub fn send(&self, record: EventRecord) {
        // Sending fails only at the end, when the receiver is gone. Transient records are dropped
        // if the queue is full.
        if record.transient {
            _ = self.0.try_send(record);
        } else {
            _ = self.0.send(record);
        }
    }

    pub fn event(&self, event: &Event) {
        self.send(EventRecord::of(event));
    }

    pub fn downloading(&self, part: &Download) {
        self.event(&Event::Downloading { file: part.file, done: part.done, total: part.total });
    }
}

/// Runs `work` and returns its result. `listen` is None or a function of each event's kind and
/// JSON; if it returns False or raises an exception, the work is cancelled.
///
/// # Errors
/// The exception of the work's error, of the listener, or of a signal handler.
pub fn run<T: Send>(
    py: Python<'_>,
    listen: &Bound<'_, PyAny>,
    cancel: &Cancel,
    work: impl FnOnce(&lora_drop::Cancel, &EventSender) -> Result<T> + Send,
) -> PyResult<T> {
    let cancel = &cancel.0;
    let (send, mut receive) = sync_channel(AHEAD);
    let mut failed = None;
    let outcome = thread::scope(|scope| {
        let worker = scope.spawn(move || work(cancel, &EventSender(send)));
        loop {
            let waiting = &mut receive;
            let received = py.detach(move || waiting.recv_timeout(LOOK));
            let problem = match received {
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(record) if failed.is_none() && !listen.is_none() => call(listen, &record, cancel).err(),
                Ok(_) | Err(RecvTimeoutError::Timeout) => None,
            };
            if let Some(problem) = problem.or_else(|| py.check_signals().err()) {
                cancel.raise();
                failed.get_or_insert(problem);
            }
        }
        py.detach(|| worker.join()).unwrap_or_else(|panic| resume_unwind(panic))
    });
    match failed {
        Some(problem) => Err(problem),
        None => outcome.map_err(|error| exception(py, error)),
    }
}

fn call(listen: &Bound<'_, PyAny>, record: &EventRecord, cancel: &lora_drop::Cancel) -> PyResult<()> {
    let answer = listen.call1((record.kind, record.values.to_string()))?;
    if answer.extract::<bool>().is_ok_and(|go_on| !go_on) {
        cancel.raise();
    }
    Ok(())
}
