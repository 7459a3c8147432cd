//! A small server on the loopback interface that takes uploads as the hub does, well or badly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// The token that it takes.
pub const TOKEN: &str = "hf_secret";
/// The commit that it makes.
pub const MADE: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

impl Request {
    /// `POST /api/repos/create`
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the server does, and what it has.
#[derive(Default)]
pub struct Store {
    /// The repository is there.
    pub exists: bool,
    /// Creating is refused with this status and these words, as a header or as JSON.
    pub refuse_create: Option<(u16, &'static str)>,
    /// Large files come in parts of this size.
    pub part: Option<usize>,
    /// The number of transfers of large files that break off in the middle.
    pub breaks: AtomicUsize,
    /// The status of transfers of large files, instead of 200.
    pub put_status: Option<u16>,
    /// Where large files go, instead of to this server.
    pub storage: Option<String>,
    /// A transfer of a large file is taken and never answered.
    pub silent: bool,
    /// Where a commit is redirected to.
    pub redirect: Option<String>,
    /// The commit's connection is closed without an answer.
    pub loses_commit: bool,
    pub requests: Mutex<Vec<Request>>,
    /// Large files by their hash.
    pub large: Mutex<BTreeMap<String, Vec<u8>>>,
    /// The files of the repository.
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
}

pub struct Receiver {
    pub store: Arc<Store>,
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    pub fn start(store: Store) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, store) = (listener.local_addr().unwrap(), Arc::new(store));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (store.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                // A client that hangs up is no concern of the server's.
                let _ = answer(&shared, address, stream.unwrap());
            }
        });
        Receiver { store, address, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.store.requests.lock().unwrap().clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Request::line).collect()
    }

    /// The text of a file of the repository.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.store.files.lock().unwrap()[name].clone()).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        self.store.files.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One request, one answer, connection closed.
fn answer(store: &Store, address: SocketAddr, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut headers) = (String::new(), BTreeMap::new());
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let takes = |counter: &AtomicUsize| {
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    };
    if path.starts_with("/storage/") && takes(&store.breaks) {
        reader.read_exact(&mut vec![0; length / 2])?;
        store.requests.lock().unwrap().push(Request { method, path, authorization: None, body: Vec::new() });
        return Ok(());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let authorization = headers.get("authorization").cloned();
    let request = Request { method, path, authorization, body };
    store.requests.lock().unwrap().push(request.clone());
    let mut send = |status: u16, extra: &str, body: &str| {
        write!(
            stream,
            "HTTP/1.1 {status} X\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let own = format!("http://{address}");
    if let Some(rest) = request.path.strip_prefix("/storage/") {
        if store.silent {
            // Until the client hangs up.
            let _ = reader.read(&mut [0]);
            return Ok(());
        }
        if let Some(status) = store.put_status {
            return send(status, "", "");
        }
        let (oid, part) = rest.split_once('/').unwrap_or((rest, "1"));
        store.large.lock().unwrap().entry(oid.to_string()).or_default().extend(&request.body);
        return send(200, &format!("ETag: \"part-{part}\"\r\n"), "");
    }
    if let Some(oid) = request.path.strip_prefix("/complete/") {
        let parts = request.json();
        let sent = store.large.lock().unwrap()[oid].len().div_ceil(store.part.unwrap());
        let expected: Vec<Value> =
            (1..=sent).map(|n| json!({ "partNumber": n, "etag": format!("\"part-{n}\"") })).collect();
        assert_eq!(parts, json!({ "oid": oid, "parts": expected }));
        return send(200, "", "{}");
    }
    if request.authorization != Some(format!("Bearer {TOKEN}")) {
        return send(401, "X-Error-Message: Invalid credentials\r\n", "{}");
    }
    match request.path.as_str() {
        "/api/repos/create" => match (store.refuse_create, store.exists) {
            (Some((status, said)), _) => send(status, "", &json!({ "error": said }).to_string()),
            (None, true) => send(409, "", r#"{"error": "You already created this model repo"}"#),
            (None, false) => send(200, "", &json!({ "url": format!("{own}/org/mine") }).to_string()),
        },
        "/api/models/org/mine/revision/main" if store.exists => {
            send(200, "", &json!({ "sha": MADE, "siblings": [] }).to_string())
        }
        "/api/models/org/mine/branch/work" => send(200, "", "{}"),
        "/org/mine.git/info/lfs/objects/batch" => {
            let objects = request.json()["objects"].as_array().unwrap().clone();
            let objects = objects.iter().map(|object| place(store, &own, object)).collect::<Vec<_>>();
            send(200, "", &json!({ "transfer": "basic", "objects": objects }).to_string())
        }
        "/verify" => send(200, "", "{}"),
        path if path.starts_with("/api/models/org/mine/preupload/") => {
            let files = request.json()["files"].as_array().unwrap().clone();
            let about = |file: &Value| {
                let name = file["path"].as_str().unwrap();
                let mode = if name.ends_with(".safetensors") { "lfs" } else { "regular" };
                let mut about = json!({ "path": name, "uploadMode": mode, "shouldIgnore": false });
                if let Some(oid) = known(store, name, mode == "lfs") {
                    about["oid"] = oid.into();
                }
                about
            };
            let files: Vec<Value> = files.iter().map(about).collect();
            send(200, "", &json!({ "files": files }).to_string())
        }
        path if path.starts_with("/api/models/org/mine/commit/") => {
            if store.loses_commit {
                return Ok(());
            }
            if let Some(to) = &store.redirect {
                return send(307, &format!("Location: {to}\r\n"), "");
            }
            commit(store, &request.body);
            send(200, "", &json!({ "success": true, "commitOid": MADE, "commitUrl": "" }).to_string())
        }
        _ => send(404, "", r#"{"error": "Repository not found"}"#),
    }
}

/// Where a large file goes; nowhere if it is there.
fn place(store: &Store, own: &str, object: &Value) -> Value {
    let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
    if store.large.lock().unwrap().contains_key(oid) {
        return object.clone();
    }
    let storage = store.storage.clone().unwrap_or_else(|| own.to_string());
    let upload = match store.part {
        None => json!({ "href": format!("{storage}/storage/{oid}") }),
        Some(part) => {
            let mut header = json!({ "chunk_size": part.to_string() });
            for number in 1..=size.div_ceil(part) {
                header[format!("{number:05}")] = format!("{storage}/storage/{oid}/{number}").into();
            }
            json!({ "href": format!("{own}/complete/{oid}"), "header": header })
        }
    };
    let verify = json!({ "href": format!("{own}/verify") });
    json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
}

/// The hash of a file that is there: of a large one it is in the pointer that is stored for it.
fn known(store: &Store, name: &str, large: bool) -> Option<String> {
    let files = store.files.lock().unwrap();
    let content = files.get(name)?;
    if large {
        return String::from_utf8(content.clone()).unwrap().strip_prefix("lfs ").map(str::to_string);
    }
    let mut git = std::process::Command::new("git");
    let mut git = git
        .args(["hash-object", "--stdin"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    git.stdin.take().unwrap().write_all(content).unwrap();
    Some(String::from_utf8(git.wait_with_output().unwrap().stdout).unwrap().trim().to_string())
}

fn commit(store: &Store, body: &[u8]) {
    let mut files = store.files.lock().unwrap();
    let lines: Vec<Value> = body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines[0]["key"], "header");
    for line in &lines[1..] {
        let (value, name) = (&line["value"], line["value"]["path"].as_str().unwrap().to_string());
        let content = match line["key"].as_str().unwrap() {
            "file" => decoded(value["content"].as_str().unwrap()),
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap();
                assert_eq!(value["algo"], "sha256");
                // It may be in another server's storage.
                if let Some(content) = store.large.lock().unwrap().get(oid) {
                    assert_eq!(value["size"], content.len());
                }
                format!("lfs {oid}").into_bytes()
            }
            other => panic!("{other}"),
        };
        files.insert(name, content);
    }
}

fn decoded(base64: &str) -> Vec<u8> {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = base64.trim_end_matches('=').bytes().map(|b| digits.find(b as char).unwrap() as u32);
    let bits: Vec<u32> = bits.collect();
    let group = |four: &[u32]| {
        let sum = four.iter().enumerate().map(|(i, v)| v << (18 - 6 * i)).sum::<u32>();
        sum.to_be_bytes()[1..four.len()].to_vec()
    };
    bits.chunks(4).flat_map(group).collect()
}
