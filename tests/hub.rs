//! Downloads from a small server on the loopback interface that speaks the hub's endpoints as its clients call them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lora_drop::hub::{Download, HubOptions};
use lora_drop::{Cancel, Error};
use lora_drop_transformer::{Checkpoint, EncoderConfig};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does, and what it has seen.
#[derive(Default)]
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    /// Without this token: 401.
    token: Option<String>,
    /// The files, but not the description, answer 403.
    gated: bool,
    /// So many transfers of weights end before their last byte.
    truncations: AtomicUsize,
    /// What the weights' transfer is like.
    weights: Mutex<Transfer>,
    /// The ETag of every file, instead of `etag-NAME`.
    etag: Option<String>,
    /// The commit of the description.
    sha: Option<String>,
    /// The commit that files say they are of.
    commit: Option<String>,
    /// Where weights are redirected to, instead of to `/cdn/NAME` of this server.
    location: Option<String>,
    /// The description never ends.
    endless_description: bool,
    /// `path range` of GET, `HEAD path`.
    requests: Mutex<Vec<String>>,
    /// The Authorization headers, in the same order.
    authorizations: Mutex<Vec<Option<String>>>,
}

/// How the content of weights comes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Transfer {
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

struct Server {
    hub: Arc<Hub>,
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(hub: Hub) -> Server {
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

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: Some(format!("http://{}", self.address)),
            cache: cache.join("hub"),
            token: None,
            offline: false,
            timeout: Duration::from_secs(30),
        }
    }

    fn requests(&self) -> Vec<String> {
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
    if path == "/api/models/org/tiny/revision/main" || path == "/api/models/org/tiny/revision/v1.0" {
        let siblings: Vec<_> =
            hub.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
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
    let is_weights = name.ends_with(".safetensors");
    let etag = hub.etag.clone().unwrap_or_else(|| format!("etag-{name}"));
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

/// Sends the same again and again, until the client hangs up.
fn endless(stream: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    loop {
        stream.write_all(piece)?;
    }
}

const CONFIG: &str = r#"{"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 8}"#;

/// A safetensors file with one tensor of 4,000 elements.
fn weights(name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[4000],"data_offsets":[0,16000]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..4000).flat_map(|i| (i as f32).to_le_bytes()));
    file
}

fn model() -> Hub {
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

fn resolve(options: &HubOptions, model: &str) -> lora_drop::Result<PathBuf> {
    options.resolve(model, &Cancel::new(), &mut |_| ())
}

fn message(options: &HubOptions, model: &str) -> String {
    resolve(options, model).unwrap_err().to_string()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_downloaded_into_the_usual_layout() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let folder = server
        .options(home.path())
        .resolve("org/tiny", &Cancel::new(), &mut |d: Download<'_>| {
            assert!(d.done <= d.total);
            seen.insert(d.file.to_string(), (d.done, d.total));
        })
        .unwrap();

    let repo = home.path().join("hub/models--org--tiny");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]);
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
    assert_eq!(EncoderConfig::read(&folder).unwrap().hidden_size, 4);
    assert_eq!(Checkpoint::open(&folder).unwrap().tensor("w").unwrap()[3999], 3999.0);
    let size = weights("w").len() as u64;
    assert_eq!(seen["model.safetensors"], (size, size));
    assert_eq!(seen.len(), 4);
    assert!(!server.requests().iter().any(|r| r.contains("README") || r.contains(".bin")));
}

#[test]
fn what_is_in_the_cache_needs_no_network() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let options = server.options(home.path());
    let folder = resolve(&options, "org/tiny").unwrap();
    let asked = server.requests().len();
    assert_eq!(resolve(&options, "org/tiny").unwrap(), folder);
    assert_eq!(server.requests().len(), asked);
    drop(server);
    assert_eq!(resolve(&options, "org/tiny").unwrap(), folder);
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(resolve(&offline, "org/tiny").unwrap(), folder);
    assert_eq!(resolve(&offline, &format!("org/tiny@{COMMIT}")).unwrap(), folder);

    // A file that is gone (its link dangles) makes the cache incomplete.
    std::fs::remove_file(folder.join("model.safetensors").canonicalize().unwrap()).unwrap();
    let text = message(&offline, "org/tiny");
    assert!(
        text.starts_with("org/tiny: not complete in the cache") && text.contains("HF_HUB_OFFLINE"),
        "{text}"
    );
}

#[test]
fn a_deleted_file_is_fetched_again_and_the_others_are_not() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let options = server.options(home.path());
    let folder = resolve(&options, "org/tiny").unwrap();
    std::fs::remove_file(folder.join("model.safetensors").canonicalize().unwrap()).unwrap();
    let before = server.requests().len();
    resolve(&options, "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
    assert!(!server.requests()[before..].iter().any(|r| r.contains("config.json")));
}

#[test]
fn a_revision_has_a_ref_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let options = server.options(home.path());
    resolve(&options, "org/tiny@v1.0").unwrap();
    let refs = home.path().join("hub/models--org--tiny/refs");
    assert_eq!(std::fs::read_to_string(refs.join("v1.0")).unwrap(), COMMIT);
    assert!(!refs.join("main").exists());
    let text = message(&options, "org/tiny@v2");
    assert!(text.contains("no model of this name with a revision v2 (404)"), "{text}");
}

#[test]
fn shards_come_with_their_index() {
    let home = tempfile::tempdir().unwrap();
    let mut hub = model();
    hub.files.remove("model.safetensors");
    hub.files.insert("a.safetensors".into(), weights("a"));
    hub.files.insert("b.safetensors".into(), weights("b"));
    let index = r#"{"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#;
    hub.files.insert("model.safetensors.index.json".into(), index.into());
    let server = Server::start(hub);
    let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    for shard in ["../../secret", "c.safetensors"] {
        let home = tempfile::tempdir().unwrap();
        let mut hub = model();
        hub.files.remove("model.safetensors");
        let index = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        hub.files.insert("model.safetensors.index.json".into(), index.into());
        let server = Server::start(hub);
        let text = message(&server.options(home.path()), "org/tiny");
        assert!(text.contains(shard), "{text}");
        assert!(text.contains("not a plain file name") || text.contains("does not have"), "{text}");
    }
}

#[test]
fn the_token_is_sent_and_its_absence_explained() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { token: Some("hf_secret".into()), ..model() });
    let without = server.options(home.path());
    let text = message(&without, "org/tiny");
    assert!(text.contains("asks for a token (401)") && text.contains("set HF_TOKEN"), "{text}");
    let wrong = HubOptions { token: Some("hf_other".into()), ..without.clone() };
    let text = message(&wrong, "org/tiny");
    assert!(text.contains("does not accept the token (401)") && !text.contains("hf_other"), "{text}");
    let right = HubOptions { token: Some("hf_secret".into()), ..without };
    assert!(!format!("{right:?}").contains("hf_secret"));
    resolve(&right, "org/tiny").unwrap();
}

#[test]
fn gated_unknown_and_unreachable_models_are_told_apart() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { gated: true, ..model() });
    let options = server.options(home.path());
    let text = message(&options, "org/tiny");
    assert!(text.contains("config.json") && text.contains("gated; accept its terms"), "{text}");
    let text = message(&options, "org/other");
    assert!(text.starts_with("org/other: ") && text.contains("has no model of this name (404)"), "{text}");
    drop(server);
    let text = message(&options, "org/tiny");
    assert!(
        text.contains("no connection to http://127.0.0.1") && text.contains("not complete in the cache"),
        "{text}"
    );
}

#[test]
fn a_transfer_that_breaks_off_once_is_continued() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { truncations: 1.into(), ..model() });
    let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
    let half = weights("w").len() / 2;
    assert!(
        server.requests().contains(&format!("/cdn/model.safetensors bytes={half}-")),
        "{:?}",
        server.requests()
    );
}

#[test]
fn a_transfer_that_keeps_breaking_off_leaves_no_model_and_is_continued_by_the_next_run() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { truncations: 4.into(), ..model() });
    let options = server.options(home.path());
    let text = message(&options, "org/tiny");
    assert!(text.starts_with("org/tiny: model.safetensors: the transfer broke off"), "{text}");
    let repo = home.path().join("hub/models--org--tiny");
    assert!(!repo.join("refs/main").exists());
    assert!(!repo.join("snapshots").join(COMMIT).join("model.safetensors").exists());
    let folder = resolve(&options, "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("hub"), b"a file in the way").unwrap();
    let server = Server::start(model());
    let text = message(&server.options(home.path()), "org/tiny");
    assert!(text.contains("cannot write to the cache") && text.contains("HF_HOME"), "{text}");
}

#[test]
fn a_file_of_another_length_is_not_kept() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { weights: Transfer::OtherLength.into(), ..model() });
    let options = server.options(home.path());
    let size = weights("w").len();
    let text = message(&options, "org/tiny");
    assert!(text.contains(&format!("a file of {} bytes, where it said {size}", size + 1)), "{text}");
    *server.hub.weights.lock().unwrap() = Transfer::Sound;
    let folder = resolve(&options, "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
}

#[test]
fn what_comes_behind_the_announced_end_is_not_stored() {
    for transfer in [Transfer::OneMore, Transfer::Endless] {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(Hub { weights: transfer.into(), ..model() });
        let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
        let stored = std::fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(stored.len(), weights("w").len(), "{transfer:?}");
        assert_eq!(transfer == Transfer::OneMore, stored == weights("w"), "{transfer:?}");
    }
}

#[test]
fn a_description_without_end_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { endless_description: true, ..model() });
    let text = message(&server.options(home.path()), "org/tiny");
    assert!(text.contains("a description of more than 16777216 bytes"), "{text}");
}

#[test]
fn a_length_that_is_never_reached_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { weights: Transfer::Short.into(), ..model() });
    let text = message(&server.options(home.path()), "org/tiny");
    assert!(text.contains("model.safetensors: the transfer broke off"), "{text}");
    let asked = server.requests().iter().filter(|r| r.starts_with("/cdn/model.safetensors")).count();
    assert_eq!(asked, 3, "{:?}", server.requests());
}

#[test]
fn a_partial_file_that_is_already_whole_does_not_block() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let repo = home.path().join("hub/models--org--tiny");
    for excess in [0, 7] {
        let _ = std::fs::remove_dir_all(&repo);
        std::fs::create_dir_all(repo.join("blobs")).unwrap();
        let stale = vec![9; weights("w").len() + excess];
        std::fs::write(repo.join("blobs/etag-model.safetensors.incomplete"), stale).unwrap();
        let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
        assert!(!names(&repo.join("blobs")).iter().any(|name| name.ends_with(".incomplete")));
    }
}

/// All files and links below a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let below = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => tree(&entry.path()),
        false => vec![entry.path()],
    };
    entries.flat_map(below).collect()
}

#[test]
fn names_of_the_hub_lead_nowhere_but_into_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let outside = home.path().join("outside");
    let absolute = outside.to_str().unwrap();
    let far = "x".repeat(300);
    for name in ["../../outside", "..", absolute, ".hidden", "a/b", "a\\b", "C:x", "", &far] {
        let server = Server::start(Hub { etag: Some(name.into()), ..model() });
        let text = message(&server.options(home.path()), "org/tiny");
        assert!(text.contains("ETag") && text.contains("nothing was written"), "{name}: {text}");

        let server = Server::start(Hub { sha: Some(name.into()), ..model() });
        let text = message(&server.options(home.path()), "org/tiny");
        assert!(text.contains("calls its commit"), "{name}: {text}");
        assert_eq!(server.requests().len(), 1);

        let server = Server::start(Hub { commit: Some(name.into()), ..model() });
        let text = message(&server.options(home.path()), "org/tiny");
        assert!(text.contains("a file of commit"), "{name}: {text}");
    }
    assert_eq!(tree(home.path()), Vec::<PathBuf>::new());
    assert!(!outside.exists());
}

#[test]
fn a_redirect_to_another_host_gets_no_token() {
    let home = tempfile::tempdir().unwrap();
    let other = Server::start(model());
    // Another port is another place, and so is another name of the same machine.
    for (host, place) in [("127.0.0.1", "port"), ("localhost", "name")] {
        let location = format!("http://{host}:{}/cdn", other.address.port());
        let token = Some("hf_secret".to_string());
        let server = Server::start(Hub { token: token.clone(), location: Some(location), ..model() });
        let options = HubOptions { token, ..server.options(&home.path().join(place)) };
        let folder = resolve(&options, "org/tiny").unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
        let sent = server.hub.authorizations.lock().unwrap();
        assert!(sent.iter().all(|sent| sent.as_deref() == Some("Bearer hf_secret")), "{sent:?}");
    }
    let seen = other.hub.authorizations.lock().unwrap();
    assert!(seen.len() == 2 && seen.iter().all(Option::is_none), "{seen:?}");
}

#[test]
fn redirects_that_lead_nowhere_are_refused() {
    let home = tempfile::tempdir().unwrap();
    for (location, part) in [
        ("file:///etc", "which is no web address"),
        ("ftp://127.0.0.1", "which is no web address"),
        ("/org/tiny/resolve/0123456789abcdef0123456789abcdef01234567", "more than 8 redirects"),
    ] {
        let server = Server::start(Hub { location: Some(location.into()), ..model() });
        let text = message(&server.options(home.path()), "org/tiny");
        assert!(text.contains("model.safetensors") && text.contains(part), "{text}");
    }
}

#[test]
fn weights_that_stop_coming_are_given_up_and_continued() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { weights: Transfer::Silent.into(), ..model() });
    let options = HubOptions { timeout: Duration::from_millis(300), ..server.options(home.path()) };
    let text = message(&options, "org/tiny");
    assert!(text.contains("model.safetensors: nothing has come from http://127.0.0.1"), "{text}");
    *server.hub.weights.lock().unwrap() = Transfer::Sound;
    let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
    let half = weights("w").len() / 2;
    assert!(server.requests().contains(&format!("/cdn/model.safetensors bytes={half}-")));
}

#[test]
fn a_cancelled_download_ends_at_once_and_is_continued() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(Hub { weights: Transfer::Silent.into(), ..model() });
    let (options, cancel) = (server.options(home.path()), Cancel::new());
    let half = (weights("w").len() / 2) as u64;
    let mut raised: Option<Instant> = None;
    let error = options.resolve("org/tiny", &cancel, &mut |part| {
        if part.file == "model.safetensors" && part.done == half {
            // While the read waits.
            let cancel = cancel.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                cancel.raise();
            });
            raised = Some(Instant::now());
        }
    });
    assert!(matches!(error, Err(Error::Interrupted)), "{error:?}");
    assert!(raised.unwrap().elapsed() < Duration::from_secs(1));
    *server.hub.weights.lock().unwrap() = Transfer::Sound;
    resolve(&options, "org/tiny").unwrap();
    assert!(server.requests().contains(&format!("/cdn/model.safetensors bytes={half}-")));
}

#[test]
fn another_process_that_downloads_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let locks = home.path().join("hub/.locks/models--org--tiny");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = std::fs::File::create(locks.join("etag-model.safetensors.lock")).unwrap();
    lock.lock().unwrap();
    let options = HubOptions { timeout: Duration::from_millis(300), ..server.options(home.path()) };
    let text = message(&options, "org/tiny");
    assert!(text.contains("model.safetensors: another process is downloading it"), "{text}");
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(lock);
    });
    resolve(&server.options(home.path()), "org/tiny").unwrap();
    other.join().unwrap();
}

/// What Hugging Face's own tools have downloaded.
#[cfg(unix)]
#[test]
fn a_cache_of_other_tools_is_used() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--org--tiny");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for folder in [&repo.join("blobs"), &repo.join("refs"), &snapshot] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (number, (name, bytes)) in model().files.into_iter().enumerate() {
        let blob = format!("{number:040x}");
        std::fs::write(repo.join("blobs").join(&blob), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    let options = HubOptions {
        endpoint: None,
        cache: home.path().join("hub"),
        token: None,
        offline: true,
        timeout: Duration::from_secs(30),
    };
    assert_eq!(resolve(&options, "org/tiny").unwrap(), snapshot);
    assert_eq!(resolve(&options, "hf://org/tiny").unwrap(), snapshot);
    // A reference that someone has changed leads nowhere else.
    std::fs::write(repo.join("refs/main"), "../../../..").unwrap();
    assert!(message(&options, "org/tiny").contains("not complete in the cache"));
}

#[test]
fn a_model_that_could_not_be_used_is_refused_before_its_weights_are_sent() {
    for (gone, expected) in [
        ("model.safetensors", "it has no model.safetensors (pickles such as pytorch_model.bin are not read)"),
        ("tokenizer.json", "it has no tokenizer.json; save it with one from Python"),
        ("config.json", "it has no config.json"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let mut hub = model();
        hub.files.remove(gone);
        let server = Server::start(hub);
        let text = message(&server.options(home.path()), "org/tiny");
        assert!(text.contains(expected), "{text}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_folder_is_itself_and_other_things_are_no_names() {
    let home = tempfile::tempdir().unwrap();
    let (cache, timeout) = (home.path().join("hub"), Duration::from_secs(30));
    let options = HubOptions { endpoint: None, cache, token: None, offline: true, timeout };
    let folder = home.path().to_str().unwrap();
    assert_eq!(resolve(&options, folder).unwrap(), home.path());
    let file = home.path().join("model.safetensors");
    std::fs::write(&file, b"").unwrap();
    assert!(message(&options, file.to_str().unwrap()).contains("not a folder; a model is a folder"));
    for path in
        ["/no/such/folder", "./model", "../model", "a/b/c", "models/", "~/model", "", "org/a..b", "org/-a"]
    {
        let text = message(&options, path);
        assert!(text.contains("no such folder, and it is not a name on the hub"), "{path}: {text}");
    }
    // Those that may be meant as paths: tests run in the package's folder, which has `src`.
    for (path, seen) in [("nope", "no such folder;"), ("src/nope", "no such folder in src;")] {
        let text = message(&options, path);
        assert!(text.contains(seen) && text.contains(&format!("give hf://{path}")), "{path}: {text}");
        assert!(message(&options, &format!("hf://{path}")).contains("HF_HUB_OFFLINE"));
    }
    for name in ["hf://", "hf:///etc", "hf://a/b/c", "hf://../x"] {
        assert!(message(&options, name).contains("not a name on the hub"), "{name}");
    }
    for name in ["org/model@", "org/model@../x", "org/model@a b"] {
        assert!(message(&options, name).contains("cannot be a revision"), "{name}");
    }
}

/// An address at which connections are taken and nothing is ever answered.
fn silent_hub() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}

#[test]
fn a_hub_that_stands_still_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let (_listener, address) = silent_hub();
    let (cache, timeout) = (home.path().join("hub"), Duration::from_millis(300));
    let options = HubOptions { endpoint: Some(address.clone()), cache, token: None, offline: false, timeout };
    let text = message(&options, "org/tiny");
    assert!(text.contains(&format!("nothing has come from {address} for 0.3 s")), "{text}");
}

/// The binary, in a folder of its own, with this hub.
fn command(home: &Path, address: &str) -> std::process::Command {
    // What data there is to read is looked at before the model.
    std::fs::create_dir_all(home.join("data")).unwrap();
    for split in ["train", "dev"] {
        std::fs::write(home.join(format!("data/{split}.jsonl")), "{\"text\": \"a\", \"label\": 0}\n")
            .unwrap();
    }
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("lora-drop"));
    command.current_dir(home).env("HF_ENDPOINT", address).env("HF_HOME", home).env_remove("HF_TOKEN");
    command
}

/// Ctrl-C while a hub keeps the binary waiting, for its first word and in the middle of a file.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_download_at_once() {
    use std::process::{Command, Stdio};

    let server = Server::start(Hub { weights: Transfer::Silent.into(), ..model() });
    let (listener, silent) = silent_hub();
    for (address, kept) in [(format!("http://{}", server.address), true), (silent, false)] {
        for words in [
            &["eval", "--model", "org/tiny", "--data", "data"][..],
            &["merge", "--model", "org/tiny", "--adapter", ".", "--output", "out"],
            &["train", "--model", "org/tiny", "--data", "data", "--output", "out"],
        ] {
            let home = tempfile::tempdir().unwrap();
            let mut running = command(home.path(), &address)
                .args(words)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let partial = home.path().join("hub/models--org--tiny/blobs/etag-model.safetensors.incomplete");
            let mut connection = None;
            if kept {
                let half = weights("w").len() as u64 / 2;
                while std::fs::metadata(&partial).map_or(0, |file| file.len()) < half {
                    assert_eq!(running.try_wait().unwrap(), None, "{words:?}: it ended by itself");
                    std::thread::sleep(Duration::from_millis(10));
                }
            } else {
                connection = Some(listener.accept().unwrap());
            }
            let pressed = Instant::now();
            let stopped = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
            assert!(stopped.success());
            let output = running.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(130), "{words:?}: {told}");
            // A second, and another for a machine with other work.
            assert!(pressed.elapsed() < Duration::from_secs(2), "{words:?}: {:?}", pressed.elapsed());
            let word =
                if kept { "what has come of the model is kept in the cache" } else { "nothing was saved" };
            assert!(told.contains(word), "{words:?}: {told}");
            assert_eq!(partial.exists(), kept);
            drop(connection);
        }
    }
}

#[test]
fn every_command_shows_the_download() {
    let server = Server::start(model());
    let address = format!("http://{}", server.address);
    for words in [
        "inspect hf://org/tiny",
        "eval --model org/tiny --data data",
        "predict --model org/tiny",
        "generate --model org/tiny --prompt x",
        "merge --model org/tiny --adapter none --output out",
        "export --model org/tiny --adapter none --to peft --output out",
        "score --model org/tiny --adapter none --data data --output out",
        "train --model org/tiny --data data --output out",
        "bench --model org/tiny",
    ] {
        let home = tempfile::tempdir().unwrap();
        let output = command(home.path(), &address).args(words.split(' ')).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("downloaded model.safetensors"), "{words}: {told}");
    }
}

#[test]
fn inspect_takes_names_on_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let inspect = |words: &[&str]| {
        let output = command(home.path(), &format!("http://{}", server.address))
            .arg("inspect")
            .args(words)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), told)
    };
    let (code, shown, told) = inspect(&["org/tiny"]);
    assert!(code == Some(0) && shown.contains("architecture  bert"), "{shown}{told}");
    let asked = server.requests().len();
    // A path that is not there is no name, though `hub` (the cache) is a folder here.
    for path in ["hub/nope", "nope", "./org/tiny"] {
        let (code, _, told) = inspect(&[path]);
        assert!(code == Some(1) && told.contains(&format!("{path}: there is no such folder")), "{told}");
    }
    // The cache says so, and so does the prefix.
    std::fs::create_dir(home.path().join("org")).unwrap();
    for name in ["org/tiny", "hf://org/tiny"] {
        let (code, shown, told) = inspect(&[name, "--json"]);
        assert!(code == Some(0) && shown.contains("\"kind\": \"model\""), "{name}: {told}");
    }
    assert_eq!(server.requests().len(), asked);
}

#[test]
fn the_variables_of_hugging_face_are_followed() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap().to_string();
    std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let from = |pairs: &[(&str, &str)]| {
        let pairs: BTreeMap<String, String> =
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HubOptions::from_variables(|name| pairs.get(name).cloned())
    };
    let options =
        from(&[("HF_HOME", &path), ("HF_ENDPOINT", "http://127.0.0.1:9/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!(options.cache, home.path().join("hub"));
    assert_eq!(options.token.as_deref(), Some("hf_file"));
    assert_eq!(options.endpoint.as_deref(), Some("http://127.0.0.1:9"));
    assert!(options.offline);
    let seconds = |set: &str| from(&[("HF_HUB_DOWNLOAD_TIMEOUT", set)]).timeout.as_secs();
    assert_eq!(["7", "0", "soon"].map(seconds), [7, 60, 60]);
    let options = from(&[("HF_HOME", &path), ("HF_TOKEN", "hf_env"), ("HF_HUB_CACHE", "elsewhere")]);
    assert_eq!((options.token.as_deref(), options.cache.as_path()), (Some("hf_env"), Path::new("elsewhere")));
    let options = from(&[("HOME", &path), ("HF_TOKEN", " "), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!(options.cache, home.path().join(".cache/huggingface/hub"));
    assert_eq!((options.token, options.endpoint, options.offline), (None, None, false));
}
