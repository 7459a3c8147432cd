//! Memory and processor time of one reading, and the bounds that both must keep.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::Format;

/// The system's allocator, counting.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size(), Relaxed);
        grow(size);
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Processor time of this process. Unlike a clock on the wall it does not run while other processes
/// do.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec, which the call fills in.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "there is a clock of the process's time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Reads `input` as the format's file, in at most `most` of processor time.
///
/// Only one reading may run at a time, because memory and time are the process's.
///
/// # Panics
/// The reading panics, or takes more time or memory than it may.
pub fn read_within(format: &Format, input: &[u8], most: Duration) {
    let (live, start) = (LIVE.load(Relaxed), processor_time());
    PEAK.store(live, Relaxed);
    (format.read)(input);
    let (bytes, time) = (PEAK.load(Relaxed).saturating_sub(live), processor_time() - start);
    let Some(memory) = format.memory else { return };
    let limit = memory.base + memory.per_byte * input.len();
    assert!(
        bytes <= limit,
        "{} bytes of {} took {bytes} of memory, {limit} at most",
        input.len(),
        format.name
    );
    assert!(time <= most, "{} bytes of {} took {time:?}, {most:?} at most", input.len(), format.name);
}
