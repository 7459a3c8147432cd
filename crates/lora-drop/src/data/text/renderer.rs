//! Where chat templates run: in worker processes with limits of time and memory, where the program
//! has named one (`set_template_worker`), else on threads of this process.
//!
//! A template is foreign code, and one operation of it (a list that is doubled, a number padded to
//! gigabytes, two lists within lists compared) may take any time and memory, which nothing inside a
//! process can bound. A worker renders conversation after conversation over a pipe; the system ends
//! it where one takes too much, and another takes its place. On threads only the engine's own
//! limits hold: of instructions, of depth and of output.

use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::error::TemplateError;
use crate::panics::caught;

/// Seconds that one conversation, or compiling the template, may take: a thousand times what it
/// does take. One more for each MiB of the conversation.
const SECONDS: u64 = 5;
/// Bytes that one conversation may take beyond those that a worker begins with, and those added for
/// each of its own.
const MEMORY: u64 = 256 << 20;
const MEMORY_PER_BYTE: u64 = 32;
/// Bytes of a worker's stack; lists within lists are freed by recursion, and one that is too deep
/// ends the worker.
const WORKER_STACK: usize = 16 << 20;
/// Bytes of a thread's stack. Here too deep a list would end the whole process, so this is more
/// than the deepest takes that a template can build with its instructions. It is address space, of
/// which only what is used becomes memory.
const THREAD_STACK: usize = 256 << 20;
/// A message longer than this is none of ours.
const LONGEST_MESSAGE: u64 = 8 << 30;

/// The command that is a worker.
static WORKER: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();

/// A template as it is to be compiled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Source {
    pub text: String,
    /// The special tokens by the names that templates know them by.
    pub special: Vec<(String, String)>,
    /// What `strftime_now` sees, in seconds since 1970 (UTC); None: the clock.
    pub time: Option<i64>,
}

/// A conversation to write.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Conversation {
    pub messages: serde_json::Value,
    pub add_generation_prompt: bool,
    /// Bytes of the messages as JSON.
    pub length: usize,
}

/// Has all templates of this process rendered by workers: processes of this program with these
/// arguments, which must do nothing but call `serve_templates`. The first call counts. Does nothing
/// where the system is no Unix.
pub fn set_template_worker(program: PathBuf, arguments: &[&str]) {
    if cfg!(unix) {
        let arguments = arguments.iter().map(|word| word.to_string()).collect();
        let _ = WORKER.set((program, arguments));
    }
}

/// What a worker process does: compiles the template and renders the conversations that come on
/// standard input, until it ends.
///
/// # Errors
/// Those of the pipes.
pub fn serve_templates() -> io::Result<()> {
    let serve = || {
        let (mut input, mut output) = (BufReader::new(io::stdin()), io::stdout());
        let source: Source = match receive(&mut input)? {
            Some(source) => source,
            None => return Ok(()),
        };
        let bounds = Bounds::of_process()?;
        bounds.set(source.text.len())?;
        let (engine, answer) = match compile(source) {
            Ok(engine) => (Some(engine), Answer::Text(String::new())),
            Err(error) => (None, Answer::from(error)),
        };
        bounds.lift()?;
        send(&mut output, &answer)?;
        let Some(engine) = engine else { return Ok(()) };
        while let Some(conversation) = receive::<Conversation>(&mut input)? {
            bounds.set(conversation.length)?;
            let answer = match render(&engine, conversation) {
                Ok(text) => Answer::Text(text),
                Err(error) => Answer::from(error),
            };
            bounds.lift()?;
            send(&mut output, &answer)?;
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().stack_size(WORKER_STACK).spawn(serve)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the worker broke down")))
}

fn compile(source: Source) -> Result<Engine, TemplateError> {
    caught(|| Engine::compile(source)).unwrap_or_else(|panic| Err(broken(&panic)))
}

fn render(engine: &Engine, conversation: Conversation) -> Result<String, TemplateError> {
    caught(|| engine.render(conversation)).unwrap_or_else(|panic| Err(broken(&panic)))
}

fn broken(panic: &str) -> TemplateError {
    TemplateError::new(format!("the template engine broke down over it: {panic}"))
}

/// What a worker answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Text(String),
    Error { line: Option<usize>, message: String },
}

impl From<TemplateError> for Answer {
    fn from(error: TemplateError) -> Self {
        Answer::Error { line: error.line, message: error.message }
    }
}

/// Writes a message: its length, 8 bytes little-endian, and it as JSON.
fn send(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    out.flush()
}

/// Reads a message; None where the other side has closed the pipe.
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

/// One template's renderers, as many as are asked at once.
pub(super) struct Renderers {
    source: Source,
    idle: Mutex<Vec<Renderer>>,
}

impl Renderers {
    /// # Errors
    /// The template does not compile.
    pub fn start(source: Source) -> Result<Self, TemplateError> {
        let first = Renderer::start(&source)?;
        Ok(Renderers { source, idle: Mutex::new(vec![first]) })
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Fixes the time that the template sees, in seconds since 1970 (UTC).
    pub fn fix_time(&mut self, seconds: i64) {
        self.source.time = Some(seconds);
        self.idle().clear();
    }

    /// # Errors
    /// The template fails, refuses the conversation, or goes beyond a limit.
    pub fn render(&self, conversation: Conversation) -> Result<String, TemplateError> {
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

/// One place where a compiled template waits for conversations.
enum Renderer {
    Process(Worker),
    Thread(Sender<Conversation>, Receiver<Result<String, TemplateError>>),
}

impl Renderer {
    fn start(source: &Source) -> Result<Self, TemplateError> {
        match WORKER.get() {
            Some((program, arguments)) => Worker::start(program, arguments, source).map(Renderer::Process),
            None => start_thread(source.clone()),
        }
    }

    /// Writes a conversation, and says whether the renderer can write another.
    fn render(&mut self, conversation: Conversation) -> (Result<String, TemplateError>, bool) {
        match self {
            Renderer::Process(worker) => match worker.ask(&conversation, conversation.length) {
                Ok(answer) => (answer, true),
                Err(death) => (Err(death), false),
            },
            Renderer::Thread(to, from) => {
                let answer = to.send(conversation).ok().and_then(|()| from.recv().ok());
                let lives = answer.is_some();
                (answer.unwrap_or_else(|| Err(TemplateError::new("the thread that renders it ended"))), lives)
            }
        }
    }
}

fn start_thread(source: Source) -> Result<Renderer, TemplateError> {
    let (to, conversations) = channel::<Conversation>();
    let (answers, from) = channel();
    let work = move || {
        let engine = match compile(source) {
            Ok(engine) => engine,
            Err(error) => return drop(answers.send(Err(error))),
        };
        let _ = answers.send(Ok(String::new()));
        // Either end is the end: no more conversations, or nobody there any more.
        for conversation in conversations {
            if answers.send(render(&engine, conversation)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("template".into()).stack_size(THREAD_STACK).spawn(work);
    thread.map_err(|e| TemplateError::new(format!("no thread to render it on: {e}")))?;
    let compiled =
        from.recv().unwrap_or_else(|_| Err(TemplateError::new("the thread that compiles it ended")));
    compiled.map(|_| Renderer::Thread(to, from))
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
        // What it says last is read for its cause.
        command.env("RUST_BACKTRACE", "0");
        // Ctrl-C in a terminal is for this process, which then ends its workers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let no_process = |e| TemplateError::new(format!("no process to render it in: {e}"));
        let mut child = command.spawn().map_err(no_process)?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped");
        };
        let mut worker = Worker { child, to, from: BufReader::new(from) };
        worker.ask(source, source.text.len())??;
        Ok(worker)
    }

    /// Sends a message and waits for the answer; `length` is what the limits follow. The outer
    /// error is the worker's death.
    fn ask(
        &mut self,
        message: &impl Serialize,
        length: usize,
    ) -> Result<Result<String, TemplateError>, TemplateError> {
        match send(&mut self.to, message).and_then(|()| receive(&mut self.from)) {
            Ok(Some(Answer::Text(text))) => Ok(Ok(text)),
            Ok(Some(Answer::Error { line, message })) => {
                Ok(Err(TemplateError { line, ..TemplateError::new(message) }))
            }
            Ok(None) | Err(_) => Err(self.death(length)),
        }
    }

    /// Why the worker has ended, by how it ended and what it said last.
    fn death(&mut self, length: usize) -> TemplateError {
        let _ = self.child.kill();
        let status = self.child.wait();
        let mut said = String::new();
        if let Some(error) = &mut self.child.stderr {
            let _ = error.take(4096).read_to_string(&mut said);
        }
        TemplateError::new(if status.as_ref().is_ok_and(out_of_time) {
            format!("it takes more than {} s for this conversation; does it loop?", seconds(length))
        } else if said.contains("memory allocation of") {
            let mib = memory(length) >> 20;
            format!("it takes more than {mib} MiB of memory for this conversation; does it loop?")
        } else if said.contains("overflowed its stack") {
            "it puts lists, or expressions, deeper within each other than a conversation can need".to_string()
        } else {
            let how = status.map_or_else(|e| e.to_string(), |status| status.to_string());
            format!("the process that renders it ended ({how}): {}", said.trim())
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

/// The limits that the system sets a worker.
struct Bounds {
    /// Bytes of address space that it has before it renders; None where the system does not say.
    #[cfg(unix)]
    base: Option<u64>,
}

#[cfg(unix)]
impl Bounds {
    fn of_process() -> io::Result<Self> {
        // A worker that is ended is no accident to be looked into.
        set_limit(libc::RLIMIT_CORE, 0)?;
        let pages = std::fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        // SAFETY: a question to the system about a constant.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Ok(Bounds { base: pages.and_then(|pages| pages.checked_mul(u64::try_from(page).ok()?)) })
    }

    /// From here on the process ends with SIGALRM after its time, and where an allocation would go
    /// beyond its memory.
    fn set(&self, length: usize) -> io::Result<()> {
        if let Some(base) = self.base {
            set_limit(libc::RLIMIT_AS, base.saturating_add(memory(length)))?;
        }
        set_timer(seconds(length));
        Ok(())
    }

    /// Takes the limits away, for the next conversation may be longer.
    fn lift(&self) -> io::Result<()> {
        set_timer(0);
        self.base.map_or(Ok(()), |_| set_limit(libc::RLIMIT_AS, libc::rlim_t::MAX))
    }
}

/// Ends the process with SIGALRM after `seconds`; 0 takes that back.
#[cfg(unix)]
fn set_timer(seconds: u64) {
    // SAFETY: no memory is involved; the default action of the signal ends the process, which is
    // the purpose.
    unsafe { libc::alarm(u32::try_from(seconds).unwrap_or(u32::MAX)) };
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(all(unix, not(all(target_os = "linux", target_env = "gnu"))))]
type Resource = libc::c_int;

#[cfg(unix)]
fn set_limit(resource: Resource, bytes: libc::rlim_t) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the structure that they are given.
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
