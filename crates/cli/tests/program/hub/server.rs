//! A small server on the loopback interface that speaks the hub's endpoints as its clients call
//! them, well or badly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lora_drop::hub::HubOptions;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does, and what it has seen.
#[derive(Default)]
pub struct Hub {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Without this token: 401.
    pub token: Option<String>,
    /// The files, but not the description, answer 403.
    pub gated: bool,
    /// The number of transfers of weights that end before their last byte.
    pub truncations: AtomicUsize,
    /// What the weights' transfer is like.
    pub weights: Mutex<Transfer>,
    /// The ETag of every file, instead of `etag-NAME`.
    pub etag: Option<String>,
    /// The commit of the description.
    pub sha: Option<String>,
    /// The commit that files say they are of.
    pub commit: Option<String>,
    /// Where weights are redirected to, instead of to `/cdn/NAME` of this server.
    pub location: Option<String>,
    /// The description never ends.
    pub endless_description: bool,
    /// The files of the data set org/rows, by revision.
    pub data: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// `path range` of GET, `HEAD path`.
    pub requests: Mutex<Vec<String>>,
    /// The Authorization headers, in the same order.
    pub authorizations: Mutex<Vec<Option<String>>>,
}

/// How the content of weights comes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Transfer {
    #[default]
    Sound,
    /// One byte more than was announced, in chunks.
    OneMore,
    /// Chunks without end.
    Endless,
    /// Another length than the hub has announced.
    OtherLength,
    /// Half of it, though all of it is announced, and that each time.
    Short,
    /// Half of it, then nothing, with the connection open.
    Silent,
}

pub struct Server {
    pub hub: Arc<Hub>,
    pub address: std::net::SocketAddr,
    pub stop: Arc<AtomicBool>,
    pub thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(hub: Hub) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, hub) = (listener.local_addr().unwrap(), Arc::new(hub));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (hub.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                // A client that hangs up is no concern of the server's.
                let _ = answer(&shared, address.to_string(), stream.unwrap());
            }
        });
        Server { hub, address, stop, thread: Some(thread) }
    }

    pub fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: Some(format!("http://{}", self.address)),
            cache: cache.join("hub"),
            token: None,
            offline: false,
            timeout: Duration::from_secs(30),
        }
    }

    pub fn requests(&self) -> Vec<String> {
        self.hub.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One request, one answer, connection closed.
fn answer(hub: &Hub, address: String, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        match line.split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    let head = request.starts_with("HEAD ");
    let path = request.split(' ').nth(1).unwrap_or_default().to_string();
    let range = headers.get("range").cloned().unwrap_or_default();
    let seen = if head { format!("HEAD {path}") } else { format!("{path} {range}").trim().to_string() };
    hub.requests.lock().unwrap().push(seen);
    hub.authorizations.lock().unwrap().push(headers.get("authorization").cloned());

    let refuse = |stream: &mut TcpStream, status: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let cdn = path.strip_prefix("/cdn/");
    let wanted = hub.token.as_ref().map(|t| format!("Bearer {t}"));
    if wanted.is_some() && cdn.is_none() && headers.get("authorization") != wanted.as_ref() {
        return refuse(&mut stream, "401 Unauthorized");
    }
    if let Some(revision) = path.strip_prefix("/api/datasets/org/rows/revision/") {
        let revision = revision.replace("%2F", "/");
        let Some(files) = hub.data.get(&revision) else { return refuse(&mut stream, "404 Not Found") };
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": commit_of(&revision), "siblings": siblings }).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    if let Some((commit, name)) =
        path.strip_prefix("/datasets/org/rows/resolve/").and_then(|rest| rest.split_once('/'))
    {
        let files =
            hub.data.iter().find(|(revision, _)| commit_of(revision) == commit).map(|(_, files)| files);
        let Some(bytes) = files.and_then(|files| files.get(name)) else {
            return refuse(&mut stream, "404 Not Found");
        };
        let etag = format!("etag-{}", name.replace('/', "-"));
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            bytes.len()
        )?;
        return if head { Ok(()) } else { stream.write_all(bytes) };
    }
    let (described, sizes) = match path.strip_suffix("?blobs=true") {
        Some(path) => (path, true),
        None => (&path[..], false),
    };
    if ["main", "v1.0"].iter().any(|r| described == format!("/api/models/org/tiny/revision/{r}")) {
        let siblings = hub.files.iter().map(|(name, bytes)| match sizes {
            true => serde_json::json!({ "rfilename": name, "size": bytes.len() }),
            false => serde_json::json!({ "rfilename": name }),
        });
        let siblings: Vec<_> = siblings.collect();
        let sha = hub.sha.as_deref().unwrap_or(COMMIT);
        let body = serde_json::json!({ "id": "org/tiny", "sha": sha, "siblings": siblings }).to_string();
        if hub.endless_description {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[")?;
            return endless(&mut stream, &[b' '; 65_536]);
        }
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let resolved = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some((name, bytes)) = resolved.or(cdn).and_then(|name| hub.files.get_key_value(name)) else {
        return refuse(&mut stream, "404 Not Found");
    };
    if hub.gated {
        return refuse(&mut stream, "403 Forbidden");
    }
    let is_weights = name.ends_with(".safetensors") || name.ends_with(".gguf");
    let etag = hub.etag.clone().unwrap_or_else(|| format!("etag-{}", name.replace('/', "-")));
    let commit = hub.commit.as_deref().unwrap_or(COMMIT);
    if is_weights && cdn.is_none() {
        let location = hub.location.clone().unwrap_or_else(|| format!("http://{address}/cdn"));
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {location}/{name}\r\nX-Repo-Commit: {commit}\r\n\
             X-Linked-ETag: \"{etag}\"\r\nX-Linked-Size: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
    }
    let about = format!("ETag: W/\"{etag}\"\r\nX-Repo-Commit: {commit}\r\nConnection: close\r\n");
    if head {
        return write!(stream, "HTTP/1.1 200 OK\r\n{about}Content-Length: {}\r\n\r\n", bytes.len());
    }
    let from: usize = range
        .strip_prefix("bytes=")
        .and_then(|r| r.strip_suffix('-'))
        .map_or(0, |from| from.parse().unwrap());
    if from >= bytes.len() {
        return refuse(&mut stream, "416 Range Not Satisfiable");
    }
    let mut body = bytes[from..].to_vec();
    let length = body.len();
    let transfer = if is_weights { *hub.weights.lock().unwrap() } else { Transfer::Sound };
    let chunked = format!("HTTP/1.1 200 OK\r\n{about}Transfer-Encoding: chunked\r\n\r\n");
    match transfer {
        Transfer::OneMore => {
            return write!(stream, "{chunked}{:x}\r\n", length + 1)
                .and_then(|()| stream.write_all(&body))
                .and_then(|()| stream.write_all(b"!\r\n0\r\n\r\n"));
        }
        Transfer::Endless => {
            stream.write_all(chunked.as_bytes())?;
            return endless(&mut stream, &[b"10000\r\n".as_slice(), &[7; 65_536], b"\r\n"].concat());
        }
        Transfer::OtherLength => body.push(0),
        _ => {}
    }
    let (length, all) = (body.len(), from + body.len());
    let lose_one = |n: usize| n.checked_sub(1);
    if is_weights && hub.truncations.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose_one).is_ok()
        || matches!(transfer, Transfer::Short | Transfer::Silent)
    {
        body.truncate(length / 2);
    }
    if range.is_empty() {
        write!(stream, "HTTP/1.1 200 OK\r\n{about}Content-Length: {length}\r\n\r\n")?;
    } else {
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\n{about}Content-Range: bytes {from}-{}/{all}\r\n\
             Content-Length: {length}\r\n\r\n",
            all - 1
        )?;
    }
    stream.write_all(&body)?;
    if transfer == Transfer::Silent {
        // Until the client hangs up.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

/// The commit of a data set's revision.
pub fn commit_of(revision: &str) -> String {
    format!("c0{}", revision.replace('/', ""))
}

/// Sends the same again and again, until the client hangs up.
fn endless(stream: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    loop {
        stream.write_all(piece)?;
    }
}

pub const CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 8}"#;

/// A safetensors file with one tensor of 4,000 elements.
pub fn weights(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[4000],"data_offsets":[0,16000]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..4000).flat_map(|i| (i as f32).to_le_bytes()));
    file
}

pub fn model() -> Hub {
    let mut hub = Hub::default();
    for (name, bytes) in [
        ("config.json", CONFIG.as_bytes().to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("vocab.txt", b"[PAD]\n".to_vec()),
        ("README.md", b"not needed".to_vec()),
        ("model.safetensors", weights("w")),
        ("pytorch_model.bin", b"not needed".to_vec()),
    ] {
        hub.files.insert(name.into(), bytes);
    }
    hub
}

/// An address at which connections are taken and nothing is ever answered.
pub fn silent_hub() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}
