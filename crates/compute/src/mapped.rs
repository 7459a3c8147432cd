//! Weight files mapped into memory, and a message if one of them is truncated while it is in use.
//!
//! Reading a page that its file no longer has ends the process with SIGBUS. That cannot be
//! prevented, but the signal's handler can name the file: maps are listed in a static table, which
//! a handler may read.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::Mmap;

/// A file mapped into memory, read-only.
pub struct MappedFile {
    /// Dropped before the map, so that no address is attributed to a file that is no longer mapped.
    #[cfg(unix)]
    _entry: table::Entry,
    map: Mmap,
}

impl MappedFile {
    /// Maps a whole file; `path` is its name in messages.
    ///
    /// # Errors
    /// Those of the system; on some, an empty file cannot be mapped.
    pub fn new(file: &File, path: &Path) -> io::Result<Self> {
        // SAFETY: the map is read-only; as for every mapped file, no one may change the file while
        // it is in use, and this program replaces files by renaming, which leaves the mapped one as
        // it was.
        let map = unsafe { Mmap::map(file)? };
        #[cfg(unix)]
        let _entry = table::Entry::of(&map, path);
        #[cfg(not(unix))]
        let _ = path;
        Ok(MappedFile {
            #[cfg(unix)]
            _entry,
            map,
        })
    }

    /// Lets the system reclaim pages, which are read again when they are needed. `range` is in
    /// bytes, inside the map.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.end <= self.map.len());
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is of a file and never written to, so that a page given back is read
            // again unchanged; the range is inside it. Failure only costs memory.
            let _ = unsafe { self.map.unchecked_advise_range(advice, range.start, range.len()) };
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Makes the process name the file, on standard error, when it ends because a mapped file was
/// truncated or its disk failed. Programs call it at their start; it installs a handler for SIGBUS.
/// Does nothing on systems other than Unix.
pub fn name_lost_files() {
    #[cfg(unix)]
    table::install();
}

#[cfg(unix)]
mod table {
    use std::collections::BTreeMap;
    use std::ffi::c_void;
    use std::mem::MaybeUninit;
    use std::path::Path;
    use std::ptr::null_mut;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};
    use std::sync::{Mutex, Once, OnceLock, PoisonError};

    /// Maximum number of maps in the table; any further ones are not named.
    const ENTRIES: usize = 1024;

    struct Slot {
        /// Address of the first byte; 0 if the slot is free.
        start: AtomicUsize,
        end: AtomicUsize,
        /// A name that is never freed. It is one pointer, so that a reader of a slot that is being
        /// reused sees either the old name or the new one.
        name: AtomicPtr<&'static str>,
    }

    static SLOTS: [Slot; ENTRIES] = [const {
        Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), name: AtomicPtr::new(null_mut()) }
    }; ENTRIES];

    /// All names, each once; they live as long as the process. The lock admits one writer to the
    /// table at a time; the handler reads without it.
    static NAMES: Mutex<BTreeMap<String, &'static &'static str>> = Mutex::new(BTreeMap::new());

    /// A map's slot in the table, freed on drop; None if the table was full.
    pub struct Entry(Option<usize>);

    impl Entry {
        pub fn of(map: &[u8], path: &Path) -> Self {
            let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(at) = SLOTS.iter().position(|slot| slot.start.load(Relaxed) == 0) else {
                return Entry(None);
            };
            // Control characters are replaced here, because a handler cannot do it.
            let shown: String =
                path.display().to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            let name: &'static &'static str = names.entry(shown).or_insert_with_key(|shown| {
                let name: &'static str = Box::leak(shown.clone().into_boxed_str());
                Box::leak(Box::new(name))
            });
            let slot = &SLOTS[at];
            slot.name.store(std::ptr::from_ref(name).cast_mut(), Relaxed);
            slot.end.store(map.as_ptr() as usize + map.len(), Relaxed);
            // A reader that sees the start also sees the end and the name.
            slot.start.store(map.as_ptr() as usize, Release);
            Entry(Some(at))
        }
    }

    impl Drop for Entry {
        fn drop(&mut self) {
            if let Some(at) = self.0 {
                SLOTS[at].start.store(0, Release);
            }
        }
    }

    /// The previous handler of SIGBUS: Rust's own, which reports stack overflows on some systems.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
    /// Several threads may fault on the same file. One reports it, and the others wait for that,
    /// because any of them may end the process.
    static REPORTING: AtomicBool = AtomicBool::new(false);
    static REPORTED: AtomicBool = AtomicBool::new(false);

    pub fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let mut previous = MaybeUninit::<libc::sigaction>::uninit();
            // SAFETY: both structures are initialised before they are read, and `handle` calls only
            // what a handler may.
            unsafe {
                if libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) != 0 {
                    return;
                }
                let _ = PREVIOUS.set(previous.assume_init());
                let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = handle;
                action.sa_sigaction = handler as libc::sighandler_t;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                // If this fails, the process still ends on SIGBUS, but without a message.
                libc::sigaction(libc::SIGBUS, &action, null_mut());
            }
        });
    }

    /// Names the file, and restores the previous handler, or the default one if a file was named.
    /// On return the read is repeated, and then ends the process.
    extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: the system gives a handler with SA_SIGINFO the signal's information.
        let address = unsafe { (*info).si_addr() } as usize;
        let lost = SLOTS.iter().find(|slot| {
            let start = slot.start.load(Acquire);
            start != 0 && (start..slot.end.load(Relaxed)).contains(&address)
        });
        if lost.is_some() && REPORTING.swap(true, SeqCst) {
            while !REPORTED.load(SeqCst) {
                // SAFETY: `poll` may be called in a handler. Without descriptors, it only waits,
                // here for a millisecond.
                unsafe { libc::poll(null_mut(), 0, 1) };
            }
        } else if let Some(slot) = lost {
            // SAFETY: a slot in use has a name, and names are never freed.
            let name = unsafe { *slot.name.load(Relaxed) };
            write_stderr(b"\nerror: ");
            write_stderr(name.as_bytes());
            write_stderr(b": this file was cut short or written over while it was in use, or its disk failed; the work ends \
                  here, and no file is left half-written. Restore the file and run again\n");
            REPORTED.store(true, SeqCst);
        }
        // SAFETY: `sigaction` may be called in a handler; the structure is initialised.
        unsafe {
            match PREVIOUS.get() {
                Some(previous) if lost.is_none() => libc::sigaction(signal, previous, null_mut()),
                _ => {
                    let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
                    action.sa_sigaction = libc::SIG_DFL;
                    libc::sigaction(signal, &action, null_mut())
                }
            };
            // A signal that another process sent does not recur by itself.
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    }

    fn write_stderr(text: &[u8]) {
        // SAFETY: `write` may be called in a handler. If standard error is closed, it fails without
        // effect.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_whole() {
        let path = std::env::temp_dir().join(format!("lora-drop-mapped-{}", std::process::id()));
        std::fs::write(&path, b"abc").unwrap();
        let map = MappedFile::new(&File::open(&path).unwrap(), &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&map[..], b"abc");
        map.release(0..3);
        assert_eq!(&map[..], b"abc");
    }
}
