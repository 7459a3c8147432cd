//! Ctrl-C: while nothing is at stake it ends the process at once. Else the first raises the flag that running work looks
//! at, and the second ends the process.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lora_drop::Cancel;

/// Signals so close together are one: `timeout` and some shells send it to the process and again to its group.
const ONE_PRESS: Duration = Duration::from_millis(300);

/// What is said where an interrupted command leaves nothing behind.
pub const NOTHING_SAVED: &str = "nothing was saved";

/// The two ways in which Ctrl-C ends a command.
pub struct Interrupt {
    /// Raised by Ctrl-C once something is at stake.
    pub cancel: Cancel,
    at_stake: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes Ctrl-C over. Until `put_at_stake` it ends the process: reading and checking need no good order.
    pub fn listen() -> Self {
        let interrupt = Interrupt { cancel: Cancel::new(), at_stake: Arc::default() };
        let (flag, at_stake) = (interrupt.cancel.clone(), interrupt.at_stake.clone());
        let mut first: Option<Instant> = None;
        let handler = move || {
            if !at_stake.load(Ordering::SeqCst) {
                say(&format!("interrupted: {NOTHING_SAVED}"));
                std::process::exit(130);
            }
            if let Some(first) = first {
                if first.elapsed() > ONE_PRESS {
                    std::process::exit(130);
                }
                return;
            }
            first = Some(Instant::now());
            flag.raise();
            say("stopping; Ctrl-C again ends at once");
        };
        // Without a handler Ctrl-C ends the process as the system does it, which is no reason not to run.
        let _ = ctrlc::set_handler(handler);
        interrupt
    }

    /// From now on files may be half-written or results be kept: the work has to end in good order.
    pub fn put_at_stake(&self) {
        self.at_stake.store(true, Ordering::SeqCst);
    }
}

/// On a line of its own, behind the `^C` that a terminal shows.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}
