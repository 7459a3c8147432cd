//! Runs chat templates: in worker processes with limits of time and memory if the program has named
//! one (`set_template_worker`), otherwise on threads of this process.
//!
//! A template is untrusted code. A single operation (doubling a list, padding a number to
//! gigabytes, comparing nested lists) may take any amount of time and memory, which nothing inside
//! a process can limit. A worker renders one conversation after another over a pipe; the system
//! ends it if one takes too much, and a new worker replaces it. On threads, only the engine's
//! limits of instructions, depth and output apply.

use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::engine::Engine;
use super::error::TemplateError;
use crate::panics::caught;

/// Seconds that one conversation, or compiling the template, may take: a thousand times the usual
/// time. Each MiB of the conversation adds one.
const SECONDS: u64 = 5;
/// Memory in bytes that one conversation may take on top of a worker's initial memory, and the
/// addition for each byte of the conversation.
const MEMORY: u64 = 256 << 20;
const MEMORY_PER_BYTE: u64 = 32;
/// Size of a worker's stack in bytes. Nested lists are freed by recursion, so one that is too deep
/// ends the worker.
const WORKER_STACK: usize = 16 << 20;
/// Size of a thread's stack in bytes. A list that is too deep would end the whole process here, so
/// the stack has room for the deepest list that a template can build with its instructions. Only
/// the part that is used takes memory.
const THREAD_STACK: usize = 256 << 20;
/// Longest message in bytes; a longer one is not from a worker.
const LONGEST_MESSAGE: u64 = 8 << 30;

/// Program and arguments of a worker.
static WORKER: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();

/// A template before it is compiled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Source {
    pub text: String,
    /// The special tokens, by their names in templates.
    pub special: Vec<(String, String)>,
    /// Values that the user gives the template, by name.
    pub variables: Map<String, Value>,
    /// Time that `strftime_now` sees, in seconds since 1970 (UTC); `None` reads the clock.
    pub time: Option<i64>,
}

/// A conversation to render.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rendering {
    pub messages: Value,
    /// A list, or null.
    pub tools: Value,
    pub add_generation_prompt: bool,
    /// Size of messages and tools as JSON, in bytes.
    pub length: usize,
}

/// Makes workers render all templates of this process. A worker is a process of `program` with
/// `arguments`, which must only call `serve_templates`. The first call counts. Does nothing on
/// systems other than Unix.
pub fn set_template_worker(program: PathBuf, arguments: &[&str]) {
    if cfg!(unix) {
        let arguments = arguments.iter().map(|word| word.to_string()).collect();
        let _ = WORKER.set((program, arguments));
    }
}

/// Runs a worker process: compiles the template, then renders the conversations that arrive on
/// standard input until that ends.
///
/// # Errors
/// A pipe fails.
pub fn serve_templates() -> io::Result<()> {
    let serve = || {
        let (mut input, mut output) = (BufReader::new(io::stdin()), io::stdout());
        let source: Source = match receive(&mut input)? {
            Some(source) => source,
            None => return Ok(()),
        };
        let bounds = Bounds::of_process()?;
        bounds.set(source.text.len())?;
        let engine = compile(source);
        bounds.lift()?;
        send(&mut output, &engine.as_ref().map(|_| ""))?;
        let Ok(engine) = engine else { return Ok(()) };
        while let Some(conversation) = receive::<Rendering>(&mut input)? {
            bounds.set(conversation.length)?;
            let answer = render(&engine, conversation);
            bounds.lift()?;
            send(&mut output, &answer)?;
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().stack_size(WORKER_STACK).spawn(serve)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the worker failed")))
}

fn compile(source: Source) -> Result<Engine, TemplateError> {
    caught(|| Engine::compile(source)).unwrap_or_else(|panic| Err(broken(&panic)))
}

fn render(engine: &Engine, conversation: Rendering) -> Result<String, TemplateError> {
    caught(|| engine.render(conversation)).unwrap_or_else(|panic| Err(broken(&panic)))
}

fn broken(panic: &str) -> TemplateError {
    TemplateError::new(format!("the template engine failed: {panic}"))
}

/// Writes a message: its length, 8 bytes little-endian, and its JSON.
fn send(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    out.flush()
}

/// Reads a message; None if the other side has closed the pipe.
fn receive<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 8];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u64::from_le_bytes(length);
    if length > LONGEST_MESSAGE {
        return Err(io::Error::other("not a message of a template's worker"));
    }
    let mut text = Vec::new();
    from.take(length).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// Pool of one template's renderers, as many as were in use at the same time.
pub(super) struct Renderers {
    source: Source,
    idle: Mutex<Vec<Renderer>>,
}

impl Renderers {
    /// Compiles the template in a first renderer.
    ///
    /// # Errors
    /// The template does not compile.
    pub fn start(source: Source) -> Result<Self, TemplateError> {
        let first = Renderer::start(&source)?;
        Ok(Renderers { source, idle: Mutex::new(vec![first]) })
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Sets the values that the template gets by name.
    pub fn set_variables(&mut self, variables: Map<String, Value>) {
        self.source.variables = variables;
        self.idle().clear();
    }

    /// Fixes the time that the template sees, in seconds since 1970 (UTC).
    pub fn fix_time(&mut self, seconds: i64) {
        self.source.time = Some(seconds);
        self.idle().clear();
    }

    /// Renders a conversation with an idle renderer or a new one.
    ///
    /// # Errors
    /// The template fails, refuses the conversation, or goes beyond a limit.
    pub fn render(&self, conversation: Rendering) -> Result<String, TemplateError> {
        let idle = self.idle().pop();
        let mut renderer = match idle {
            Some(renderer) => renderer,
            None => Renderer::start(&self.source)?,
        };
        let (text, lives) = renderer.render(conversation);
        if lives {
            self.idle().push(renderer);
        }
        text
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Renderer>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A compiled template that renders one conversation at a time.
enum Renderer {
    Process(Worker),
    /// In this process, on a thread for each conversation.
    Thread(Box<Engine>),
}

impl Renderer {
    fn start(source: &Source) -> Result<Self, TemplateError> {
        match WORKER.get() {
            Some((program, arguments)) => Worker::start(program, arguments, source).map(Renderer::Process),
            None => on_thread(|| compile(source.clone()).map(Box::new)).map(Renderer::Thread),
        }
    }

    /// Renders a conversation; returns also whether the renderer can render another.
    fn render(&mut self, conversation: Rendering) -> (Result<String, TemplateError>, bool) {
        match self {
            Renderer::Process(worker) => match worker.ask(&conversation, conversation.length) {
                Ok(answer) => (answer, true),
                Err(death) => (Err(death), false),
            },
            Renderer::Thread(engine) => (on_thread(|| render(engine, conversation)), true),
        }
    }
}

/// Runs `work` on a thread with a large stack.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("template".into()).stack_size(THREAD_STACK);
        let thread = builder.spawn_scoped(scope, work);
        let thread =
            thread.map_err(|e| TemplateError::new(format!("cannot start a thread to render it: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(TemplateError::new("the thread that renders it failed")))
    })
}

/// A worker process.
struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    fn start(program: &PathBuf, arguments: &[String], source: &Source) -> Result<Self, TemplateError> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // stderr is read for the cause of the worker's end, so it has no backtrace.
        command.env("RUST_BACKTRACE", "0");
        // In a process group of its own: Ctrl-C reaches only this process, which ends its workers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let no_process = |e| TemplateError::new(format!("cannot start a process to render it: {e}"));
        let mut child = command.spawn().map_err(no_process)?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped");
        };
        let mut worker = Worker { child, to, from: BufReader::new(from) };
        worker.ask(source, source.text.len())??;
        Ok(worker)
    }

    /// Sends a message and waits for the answer; the limits depend on `length`, in bytes. The outer
    /// error means that the worker has ended.
    fn ask(
        &mut self,
        message: &impl Serialize,
        length: usize,
    ) -> Result<Result<String, TemplateError>, TemplateError> {
        match send(&mut self.to, message).and_then(|()| receive(&mut self.from)) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => Err(self.death(length)),
        }
    }

    /// Ends the worker and explains its end by its status and its last output.
    fn death(&mut self, length: usize) -> TemplateError {
        let _ = self.child.kill();
        let status = self.child.wait();
        let mut stderr = String::new();
        if let Some(error) = &mut self.child.stderr {
            let _ = error.take(4096).read_to_string(&mut stderr);
        }
        TemplateError::new(if status.as_ref().is_ok_and(out_of_time) {
            format!("it takes more than {} s for this conversation; does it loop?", seconds(length))
        } else if stderr.contains("memory allocation of") {
            let mib = memory(length) >> 20;
            format!("it takes more than {mib} MiB of memory for this conversation; does it loop?")
        } else if stderr.contains("overflowed its stack") {
            "it nests lists or expressions deeper than a conversation can need".to_string()
        } else {
            let how = status.map_or_else(|e| e.to_string(), |status| status.to_string());
            format!("the process that renders it ended ({how}): {}", stderr.trim())
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn seconds(length: usize) -> u64 {
    SECONDS + (length as u64 >> 20)
}

fn memory(length: usize) -> u64 {
    MEMORY.saturating_add(MEMORY_PER_BYTE.saturating_mul(length as u64))
}

#[cfg(unix)]
fn out_of_time(status: &std::process::ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(status) == Some(libc::SIGALRM)
}

#[cfg(not(unix))]
fn out_of_time(_: &std::process::ExitStatus) -> bool {
    false
}

/// Limits that the system enforces on a worker.
struct Bounds {
    /// Address space in use before rendering, in bytes; `None` if the system does not say.
    #[cfg(unix)]
    base: Option<u64>,
}

#[cfg(unix)]
impl Bounds {
    fn of_process() -> io::Result<Self> {
        // A worker that is ended needs no core dump.
        set_limit(libc::RLIMIT_CORE, 0)?;
        let pages = std::fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        // SAFETY: sysconf takes no pointer and only reads a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Ok(Bounds { base: pages.and_then(|pages| pages.checked_mul(u64::try_from(page).ok()?)) })
    }

    /// Sets the limits: from now on the process ends with SIGALRM after its time, or when an
    /// allocation exceeds its memory.
    fn set(&self, length: usize) -> io::Result<()> {
        if let Some(base) = self.base {
            set_limit(libc::RLIMIT_AS, base.saturating_add(memory(length)))?;
        }
        set_timer(seconds(length));
        Ok(())
    }

    /// Lifts the limits, because the next conversation may be longer.
    fn lift(&self) -> io::Result<()> {
        set_timer(0);
        self.base.map_or(Ok(()), |_| set_limit(libc::RLIMIT_AS, libc::rlim_t::MAX))
    }
}

/// Ends the process with SIGALRM after `seconds`; 0 cancels the alarm.
#[cfg(unix)]
fn set_timer(seconds: u64) {
    // SAFETY: alarm takes no pointer; the signal's default action ends the process, which is the
    // purpose.
    unsafe { libc::alarm(u32::try_from(seconds).unwrap_or(u32::MAX)) };
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(all(unix, not(all(target_os = "linux", target_env = "gnu"))))]
type Resource = libc::c_int;

#[cfg(unix)]
fn set_limit(resource: Resource, bytes: libc::rlim_t) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is initialised and outlives both calls, which only read or write it.
    let done = unsafe {
        if libc::getrlimit(resource, &mut limit) != 0 {
            -1
        } else {
            limit.rlim_cur = limit.rlim_max.min(bytes);
            libc::setrlimit(resource, &limit)
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(unix))]
impl Bounds {
    fn of_process() -> io::Result<Self> {
        Ok(Bounds {})
    }

    fn set(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn lift(&self) -> io::Result<()> {
        Ok(())
    }
}
