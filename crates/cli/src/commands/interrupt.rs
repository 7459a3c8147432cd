//! Handling of Ctrl-C. While nothing is at stake, it ends the process at once. After that, the
//! first press raises the flag that running work checks, and the second ends the process. While an
//! answer of a conversation is written, it ends only that answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lora_drop::Cancel;
use lora_drop::events::Event;

use super::console::eprint_line;

/// Signals this close together are one press: `timeout` and some shells send the signal to the
/// process and again to its group.
const ONE_PRESS: Duration = Duration::from_millis(300);

/// The message of an interrupted command that saved nothing.
pub const NOTHING_SAVED: &str = "nothing was saved";
const DOWNLOAD_KEPT: &str = "nothing was saved, but the part that was downloaded is kept in the cache, and the next run continues from there";

/// The signals that the parent has asked to ignore: `nohup` ignores SIGHUP, a shell SIGINT of jobs
/// in the background.
#[cfg(unix)]
struct Ignored(Vec<libc::c_int>);

#[cfg(unix)]
impl Ignored {
    fn find() -> Self {
        let is_ignored = |signal: &libc::c_int| {
            // SAFETY: with a null action, sigaction only writes the current action to `present`,
            // which is ours and for which all zeros is a valid value.
            unsafe {
                let mut present: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, std::ptr::null(), &mut present) == 0
                    && present.sa_sigaction == libc::SIG_IGN
            }
        };
        Ignored([libc::SIGINT, libc::SIGTERM, libc::SIGHUP].into_iter().filter(is_ignored).collect())
    }

    /// Ignores them again, and SIGXFSZ: a write beyond the limit on file sizes is then an error
    /// that names the file.
    fn restore(self) {
        for signal in self.0.into_iter().chain([libc::SIGXFSZ]) {
            // SAFETY: SIG_IGN installs no handler, so no code of ours runs in a signal's context.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

#[cfg(not(unix))]
struct Ignored;

#[cfg(not(unix))]
impl Ignored {
    fn find() -> Self {
        Ignored
    }

    fn restore(self) {}
}

/// How Ctrl-C ends a command; SIGTERM (from `docker stop`, Slurm, systemd) and SIGHUP (from a closed
/// terminal) do the same.
pub struct Interrupt {
    /// Raised by Ctrl-C once something is at stake.
    pub cancel: Cancel,
    at_stake: Arc<AtomicBool>,
    /// Whether files have come from the hub.
    downloaded: Arc<AtomicBool>,
    /// The flag of the answer that is being written in a conversation.
    answer: Arc<Mutex<Option<Cancel>>>,
}

/// While it exists, Ctrl-C raises its flag and does nothing else.
pub struct Answer<'a> {
    pub cancel: Cancel,
    place: &'a Mutex<Option<Cancel>>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Interrupt {
    /// Handles Ctrl-C from now on. Until `put_at_stake` it ends the process: reading and checking
    /// have nothing to clean up. Messages are printed only if it `prints`.
    pub fn listen(prints: bool) -> Self {
        let interrupt = Interrupt {
            cancel: Cancel::new(),
            at_stake: Arc::default(),
            downloaded: Arc::default(),
            answer: Arc::default(),
        };
        let (flag, at_stake) = (interrupt.cancel.clone(), interrupt.at_stake.clone());
        let (downloaded, answer) = (interrupt.downloaded.clone(), interrupt.answer.clone());
        let mut first: Option<Instant> = None;
        let handler = move || {
            let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(answer) = answer.filter(|answer| !answer.is_raised() || is_same_press(first)) {
                first = Some(Instant::now());
                return answer.raise();
            }
            if !at_stake.load(Ordering::SeqCst) {
                let kept = if downloaded.load(Ordering::SeqCst) { DOWNLOAD_KEPT } else { NOTHING_SAVED };
                if prints {
                    say(&format!("interrupted: {kept}"));
                }
                std::process::exit(130);
            }
            if first.is_some() {
                if !is_same_press(first) {
                    std::process::exit(130);
                }
                return;
            }
            first = Some(Instant::now());
            flag.raise();
            if prints {
                say("stopping; press Ctrl-C again to quit at once");
            }
        };
        let ignored = Ignored::find();
        // If no handler can be set, Ctrl-C ends the process as usual, and the work is done anyway.
        let _ = ctrlc::set_handler(handler);
        ignored.restore();
        interrupt
    }

    /// Follows a run: what Ctrl-C does depends on what has happened so far.
    pub fn follow(&self, event: &Event) {
        match event {
            Event::Downloading { .. } => self.keeps_download(),
            // Next, the output folder is made, or work begins.
            Event::Memory(_) | Event::StageStart { .. } => self.put_at_stake(),
            _ => {}
        }
    }

    /// From now on what was downloaded is kept, and Ctrl-C says so.
    pub fn keeps_download(&self) {
        self.downloaded.store(true, Ordering::SeqCst);
    }

    /// Until the guard is dropped, Ctrl-C ends the answer that is being written and not the
    /// conversation; a second one ends the process if the answer does not end.
    pub fn answer(&self) -> Answer<'_> {
        let cancel = Cancel::new();
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
        Answer { cancel, place: &self.answer }
    }

    /// From now on files may be half-written or results kept, so the work has to end in good order.
    pub fn put_at_stake(&self) {
        self.at_stake.store(true, Ordering::SeqCst);
    }
}

/// Asks a child process that has not been waited for to stop, as Ctrl-C does. It may have received
/// the same press from the terminal, and takes both for one. The signal is SIGTERM, because jobs in
/// the background and their children ignore SIGINT.
#[cfg(unix)]
pub fn pass_on(child: &std::process::Child) {
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // SAFETY: kill only sends a signal. The child was not waited for, so its number is not
        // reused.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

#[cfg(not(unix))]
pub fn pass_on(_: &std::process::Child) {}

fn is_same_press(first: Option<Instant>) -> bool {
    first.is_some_and(|first| first.elapsed() <= ONE_PRESS)
}

/// Prints on a line of its own, after the `^C` that a terminal shows.
fn say(text: &str) {
    eprint_line(format_args!("\n{text}"));
}
