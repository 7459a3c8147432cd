//! Profiles: spans around operations, with the work of each.
//!
//! A recorder belongs to a thread. It gets only the spans that its thread opens while
//! `Recorder::record` runs there, so concurrent runs in one process do not mix if each has its own
//! thread pool. An operation is one span on the thread that calls it, wherever its tasks run; tasks
//! open none. If no thread of the process records, a span costs one relaxed load.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of roots of each name whose spans are traced.
pub(crate) const TRACED_ROOTS: usize = 10;
/// Maximum number of spans that are traced.
pub(crate) const MAX_SPANS: usize = 100_000;
/// The name under which time outside of operations is counted.
pub const BETWEEN: &str = "between operations";

/// Number of threads that record.
static RECORDING_THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// The work of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations of its products, 2 per multiply-add; other arithmetic is not
    /// counted.
    pub operations: u64,
    /// Bytes of its operands and results as they are stored, each counted once for reading and once
    /// for writing.
    pub bytes: u64,
}

impl Work {
    /// No products, and `count` f32 read or written.
    pub fn floats(count: usize) -> Self {
        Work { operations: 0, bytes: 4 * count as u64 }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.operations += other.operations;
        self.bytes += other.bytes;
    }
}

/// The level of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step, or another unit that is recorded by itself. Outside of roots nothing is recorded.
    Root,
    /// A part of a step, such as the forward pass.
    Phase,
    Block,
    Operation,
}

impl Kind {
    /// The level's name: `root`, `phase`, `block` or `operation`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Root => "root",
            Kind::Phase => "phase",
            Kind::Block => "block",
            Kind::Operation => "operation",
        }
    }
}

/// Begins a root; `number` counts the roots of this name.
pub fn root(name: &'static str, number: usize) -> Span {
    Span::open(Kind::Root, name, Some(number), Work::default)
}

/// Begins a phase.
pub fn phase(name: &'static str) -> Span {
    Span::open(Kind::Phase, name, None, Work::default)
}

/// Begins the block with this number.
pub fn block(number: usize) -> Span {
    Span::open(Kind::Block, "block", Some(number), Work::default)
}

/// Begins an operation; `work` is called only if it is recorded.
pub fn operation(name: &'static str, work: impl FnOnce() -> Work) -> Span {
    Span::open(Kind::Operation, name, None, work)
}

/// Runs `f` in a thread pool, with the recorder of the calling thread, if there is one.
pub fn install<R: Send>(pool: &rayon::ThreadPool, f: impl FnOnce() -> R + Send) -> R {
    match RECORDER.take() {
        None => pool.install(f),
        Some(mut recorder) => {
            let result = pool.install(|| recorder.record(f));
            RECORDER.set(Some(recorder));
            result
        }
    }
}

/// Runs `f` on all items concurrently, each on its own thread of the current pool if there are
/// enough. Unlike with tasks, a thread that waits within an item never starts another item, which
/// it would then have to finish first. If the calling thread records, so do these threads. With n
/// items, the time of an operation counts 1/n, so that times add up to elapsed time; the rest, in
/// which only some items ran, is [`BETWEEN`].
pub fn concurrently<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let count = items.len();
    let branch =
        || RECORDER.with_borrow(|here| here.as_ref().filter(|r| !r.open.is_empty()).map(|r| r.branch(count)));
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some((item, branch())))).collect();
    let run = |(item, branch): (T, Option<Recorder>)| match branch {
        None => (f(item), None),
        Some(mut recorder) => (recorder.record(|| f(item)), Some(recorder)),
    };
    let take = |number: usize| items[number].lock().unwrap_or_else(PoisonError::into_inner).take();
    let of_thread = |thread: rayon::BroadcastContext| -> Vec<_> {
        let numbers = (thread.index()..count).step_by(thread.num_threads());
        numbers.filter_map(|number| Some((number, run(take(number)?)))).collect()
    };
    let mut done: Vec<_> = rayon::broadcast(of_thread).into_iter().flatten().collect();
    done.sort_unstable_by_key(|&(number, _)| number);
    let join = |(number, (result, branch)): (usize, (R, Option<Recorder>))| {
        if let Some(branch) = branch {
            RECORDER.with_borrow_mut(|here| here.as_mut().map(|here| here.join(branch, number, count)));
        }
        result
    };
    done.into_iter().map(join).collect()
}

/// A span, which ends when it is dropped. Spans inside it must be dropped before.
#[must_use = "a span ends where it is dropped"]
pub struct Span {
    recorded: bool,
    /// Not Send: a span ends on the thread on which it began.
    here: PhantomData<*const ()>,
}

impl Span {
    fn open(kind: Kind, name: &'static str, number: Option<usize>, work: impl FnOnce() -> Work) -> Self {
        let recorded = RECORDING_THREADS.load(Ordering::Relaxed) > 0
            && RECORDER.with_borrow_mut(|here| match here {
                Some(recorder) if kind == Kind::Root || !recorder.open.is_empty() => {
                    recorder.open(kind, name, number, work());
                    true
                }
                _ => false,
            });
        Span { recorded, here: PhantomData }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.recorded {
            RECORDER.with_borrow_mut(|here| here.as_mut().map(Recorder::close));
        }
    }
}

/// The time of an operation in a phase, over all its calls.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The innermost phase around it, or the root.
    pub phase: &'static str,
    pub operation: &'static str,
    /// Number of calls; 0 for [`BETWEEN`].
    pub calls: usize,
    /// Time without the spans inside it.
    pub own: Duration,
    pub work: Work,
}

/// All roots of one name: their number, and their time together.
#[derive(Clone, Copy, Debug)]
pub struct Roots {
    pub name: &'static str,
    pub count: usize,
    pub time: Duration,
}

/// A recorded span.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    pub kind: Kind,
    pub name: &'static str,
    /// The number of a root or block.
    pub number: Option<usize>,
    /// Time since the recorder was made.
    pub start: Duration,
    pub time: Duration,
    pub work: Work,
    /// The index of its item in [`concurrently`]; otherwise 0.
    pub track: usize,
}

/// A span that has not ended.
#[derive(Clone)]
struct Open {
    kind: Kind,
    name: &'static str,
    phase: &'static str,
    began: Instant,
    /// Time of the spans inside it.
    inside: Duration,
    work: Work,
    /// Its index among the traced spans.
    traced: Option<usize>,
}

/// The recording of one thread: sums by operation, and the first spans.
pub struct Recorder {
    made: Instant,
    open: Vec<Open>,
    rows: Vec<Row>,
    roots: Vec<Roots>,
    traced: Vec<Traced>,
    /// Maximum number of spans to trace.
    max_traced: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        Recorder {
            made: Instant::now(),
            open: Vec::new(),
            rows: Vec::new(),
            roots: Vec::new(),
            traced: Vec::new(),
            max_traced: MAX_SPANS,
        }
    }
}

impl Recorder {
    /// An empty recording.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `f` and records the roots in it. Another recorder of this thread is paused meanwhile.
    pub fn record<R>(&mut self, f: impl FnOnce() -> R) -> R {
        /// Restores the thread's previous recorder, however `f` ends.
        struct Restore<'a> {
            recorder: &'a mut Recorder,
            before: Option<Recorder>,
        }
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                RECORDING_THREADS.fetch_sub(1, Ordering::Relaxed);
                if let Some(recorder) = RECORDER.replace(self.before.take()) {
                    *self.recorder = recorder;
                }
            }
        }
        let before = RECORDER.replace(Some(std::mem::take(self)));
        RECORDING_THREADS.fetch_add(1, Ordering::Relaxed);
        let _restore = Restore { recorder: self, before };
        f()
    }

    /// Sums by operation, in the order in which they first ended. Their own times add up to the
    /// roots' time.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Sums by root, in the order in which they first began.
    pub fn roots(&self) -> &[Roots] {
        &self.roots
    }

    /// The spans of the first ten roots of each name, at most 100,000, in the order in which they
    /// began; those of concurrent items one item after the other. If a span is included, so is the
    /// one around it.
    pub fn traced(&self) -> &[Traced] {
        &self.traced
    }

    /// The work of all roots.
    pub fn work(&self) -> Work {
        let mut all = Work::default();
        self.rows.iter().for_each(|row| all += row.work);
        all
    }

    /// Returns a recorder for one of `count` items that run concurrently within the open span.
    fn branch(&self, count: usize) -> Recorder {
        let around = self.open.last().map(|open| Open { inside: Duration::ZERO, ..open.clone() });
        let max_traced = (self.max_traced - self.traced.len()) / count;
        Recorder { made: self.made, open: around.into_iter().collect(), max_traced, ..Recorder::default() }
    }

    /// Adds the recording of branch `number` of `count`.
    fn join(&mut self, branch: Recorder, number: usize, count: usize) {
        let mut inside = Duration::ZERO;
        for row in branch.rows {
            let sum = self.row(row.phase, row.operation);
            let own = row.own / count as u32;
            sum.calls += row.calls;
            sum.own += own;
            sum.work += row.work;
            inside += own;
        }
        if let Some(around) = self.open.last_mut() {
            around.inside += inside;
        }
        self.traced.extend(branch.traced.into_iter().map(|span| Traced { track: number, ..span }));
    }

    fn open(&mut self, kind: Kind, name: &'static str, number: Option<usize>, work: Work) {
        let (phase, trace) = match (kind, self.open.last()) {
            (Kind::Root, _) => (name, self.root(name).count < TRACED_ROOTS),
            (Kind::Phase, outer) => (name, outer.is_some_and(|outer| outer.traced.is_some())),
            (_, outer) => outer.map_or((name, false), |outer| (outer.phase, outer.traced.is_some())),
        };
        let began = Instant::now();
        let traced = (trace && self.traced.len() < self.max_traced).then_some(self.traced.len());
        if traced.is_some() {
            let start = began - self.made;
            self.traced.push(Traced { kind, name, number, start, time: Duration::ZERO, work, track: 0 });
        }
        self.open.push(Open { kind, name, phase, began, inside: Duration::ZERO, work, traced });
    }

    fn close(&mut self) {
        let Some(span) = self.open.pop() else { return };
        let time = span.began.elapsed();
        if let Some(at) = span.traced {
            self.traced[at].time = time;
        }
        if let Some(outer) = self.open.last_mut() {
            outer.inside += time;
        }
        if span.kind == Kind::Root {
            let root = self.root(span.name);
            root.count += 1;
            root.time += time;
        }
        let is_operation = span.kind == Kind::Operation;
        let row = self.row(span.phase, if is_operation { span.name } else { BETWEEN });
        row.calls += usize::from(is_operation);
        row.own += time.saturating_sub(span.inside);
        row.work += span.work;
    }

    fn root(&mut self, name: &'static str) -> &mut Roots {
        let at = self.roots.iter().position(|root| root.name == name).unwrap_or(self.roots.len());
        if at == self.roots.len() {
            self.roots.push(Roots { name, count: 0, time: Duration::ZERO });
        }
        &mut self.roots[at]
    }

    fn row(&mut self, phase: &'static str, operation: &'static str) -> &mut Row {
        let is_it = |row: &Row| row.phase == phase && row.operation == operation;
        let at = self.rows.iter().position(is_it).unwrap_or(self.rows.len());
        if at == self.rows.len() {
            self.rows.push(Row { phase, operation, calls: 0, own: Duration::ZERO, work: Work::default() });
        }
        &mut self.rows[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(recorder: &Recorder, phase: &str, operation: &str) -> Row {
        let found = recorder.rows().iter().find(|row| row.phase == phase && row.operation == operation);
        *found.unwrap_or_else(|| panic!("no {operation} in {phase}: {:?}", recorder.rows()))
    }

    fn wait() {
        std::thread::sleep(Duration::from_millis(2));
    }

    /// A root with a phase, a block and three operations, one of them inside another.
    fn step(number: usize) {
        let _root = root("step", number);
        let _phase = phase("forward");
        let _block = block(3);
        {
            let _outer = operation("linear", || Work { operations: 10, bytes: 4 });
            wait();
            let _inner = operation("dropout", || Work::floats(5));
            wait();
        }
        let _other = operation("dropout", || Work::floats(1));
    }

    #[test]
    fn own_times_add_up_to_the_roots() {
        let mut recorder = Recorder::new();
        recorder.record(|| (1..=3).for_each(step));
        let all: Duration = recorder.rows().iter().map(|row| row.own).sum();
        let [roots] = recorder.roots() else { panic!("{:?}", recorder.roots()) };
        assert_eq!((roots.name, roots.count, roots.time), ("step", 3, all));
        let (linear, dropout) = (row(&recorder, "forward", "linear"), row(&recorder, "forward", "dropout"));
        assert_eq!((linear.calls, dropout.calls), (3, 6));
        assert_eq!((linear.work.operations, linear.work.bytes, dropout.work.bytes), (30, 12, 72));
        assert!(linear.own >= Duration::from_millis(6) && dropout.own >= Duration::from_millis(6));
        // No time is counted for both the outer and the inner operation.
        assert!(linear.own + dropout.own <= all);
        assert_eq!((row(&recorder, "forward", BETWEEN).calls, row(&recorder, "step", BETWEEN).calls), (0, 0));
        assert_eq!(recorder.work(), Work { operations: 30, bytes: 84 });
    }

    #[test]
    fn traced_spans_lie_within_those_around_them() {
        let mut recorder = Recorder::new();
        recorder.record(|| step(7));
        let spans = recorder.traced();
        let names: Vec<_> = spans.iter().map(|span| (span.name, span.number)).collect();
        let block = ("block", Some(3));
        let within = [("linear", None), ("dropout", None), ("dropout", None)];
        assert_eq!(names[..3], [("step", Some(7)), ("forward", None), block]);
        assert_eq!(names[3..], within);
        for (outer, inner) in [(0, 1), (1, 2), (2, 3), (3, 4), (2, 5)] {
            let (outer, inner) = (spans[outer], spans[inner]);
            assert!(outer.start <= inner.start && inner.start + inner.time <= outer.start + outer.time);
        }
    }

    #[test]
    fn the_trace_is_bounded_and_the_sums_are_not() {
        let mut recorder = Recorder::new();
        recorder.record(|| (0..2 * TRACED_ROOTS).for_each(|number| drop(root("step", number))));
        assert_eq!((recorder.traced().len(), recorder.roots()[0].count), (TRACED_ROOTS, 2 * TRACED_ROOTS));
        recorder.record(|| {
            let _root = root("long", 1);
            (0..2 * MAX_SPANS).for_each(|_| drop(operation("short", || Work::floats(1))));
        });
        assert_eq!(recorder.traced().len(), MAX_SPANS);
        assert_eq!(row(&recorder, "long", "short").calls, 2 * MAX_SPANS);
    }

    #[test]
    fn without_a_recorder_or_a_root_nothing_is_recorded() {
        let asked = || -> Work { panic!("the work of a span that nobody records") };
        drop(operation("linear", asked));
        let mut recorder = Recorder::new();
        recorder.record(|| drop(operation("linear", asked)));
        step(1);
        assert!(recorder.rows().is_empty() && recorder.roots().is_empty() && recorder.traced().is_empty());
    }

    #[test]
    fn a_recorder_sees_its_own_thread_and_the_pools_that_it_installs() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let mut recorder = Recorder::new();
        recorder.record(|| {
            std::thread::scope(|scope| drop(scope.spawn(|| step(1))));
            install(&pool, || step(2));
            step(3);
        });
        assert_eq!(recorder.roots()[0].count, 2);
        install(&pool, || step(4));
        assert_eq!(recorder.roots()[0].count, 2);
    }

    #[test]
    fn concurrent_items_share_the_elapsed_time() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let mut recorder = Recorder::new();
        let results = recorder.record(|| {
            install(&pool, || {
                let _root = root("step", 1);
                concurrently(vec![1, 2], |item| {
                    let _phase = phase("forward");
                    let _operation = operation("linear", || Work { operations: 10 * item, bytes: 1 });
                    wait();
                    item
                })
            })
        });
        assert_eq!(results, [1, 2]);
        let (linear, whole) = (row(&recorder, "forward", "linear"), recorder.roots()[0].time);
        assert_eq!((linear.calls, linear.work.operations, linear.work.bytes), (2, 30, 2));
        assert!(linear.own >= Duration::from_millis(2) && linear.own <= whole);
        let all: Duration = recorder.rows().iter().map(|row| row.own).sum();
        assert_eq!(all, whole);
        let spans: Vec<_> = recorder.traced().iter().map(|span| (span.name, span.track)).collect();
        assert_eq!(spans, [("step", 0), ("forward", 0), ("linear", 0), ("forward", 1), ("linear", 1)]);
        // Items also run without a recorder.
        assert_eq!(concurrently(vec![3, 4], |item| item), [3, 4]);
    }

    #[test]
    fn a_recorder_within_another_and_a_panic_leave_the_thread_as_it_was() {
        let (mut outer, mut inner) = (Recorder::new(), Recorder::new());
        outer.record(|| {
            inner.record(|| step(1));
            step(2);
            let failed = std::panic::catch_unwind(|| {
                Recorder::new().record(|| {
                    let _root = root("step", 3);
                    std::panic::resume_unwind(Box::new(()));
                })
            });
            assert!(failed.is_err());
            step(4);
        });
        step(5);
        assert_eq!((outer.roots()[0].count, inner.roots()[0].count), (2, 1));
    }
}
