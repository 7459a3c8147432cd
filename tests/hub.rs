//! Downloads from a small server on the loopback interface that speaks the hub's endpoints as its clients call them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lora_drop::hub::{Download, HubOptions};
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
    /// Weight files are sent with one byte more than announced elsewhere.
    lies_about_size: AtomicBool,
    /// `METHOD path range`
    requests: Mutex<Vec<String>>,
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
    let path = request.split(' ').nth(1).unwrap_or_default().to_string();
    let range = headers.get("range").cloned().unwrap_or_default();
    hub.requests.lock().unwrap().push(format!("{path} {range}").trim().to_string());

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
        let body = serde_json::json!({ "id": "org/tiny", "sha": COMMIT, "siblings": siblings }).to_string();
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
    if is_weights && cdn.is_none() {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://{address}/cdn/{name}\r\nX-Repo-Commit: {COMMIT}\r\n\
             X-Linked-ETag: \"etag-{name}\"\r\nX-Linked-Size: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
    }
    // `bytes=0-0` asks for the size, `bytes=N-` for the rest from N on.
    let (from, to) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap();
    let end = to.parse::<usize>().map_or(bytes.len(), |last| last + 1).min(bytes.len());
    if from >= end {
        return refuse(&mut stream, "416 Range Not Satisfiable");
    }
    let mut body = bytes[from..end].to_vec();
    let mut length = body.len();
    if is_weights && to.is_empty() {
        let lose_one = |n: usize| n.checked_sub(1);
        if hub.truncations.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose_one).is_ok() {
            body.truncate(length / 2);
        } else if hub.lies_about_size.load(Ordering::SeqCst) {
            body.push(0);
            length += 1;
        }
    }
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nETag: \"etag-{name}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
         Content-Range: bytes {from}-{}/{}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        end - 1,
        bytes.len()
    )?;
    stream.write_all(&body)
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
    options.resolve(model, &mut |_| ())
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
        .resolve("org/tiny", &mut |d: Download<'_>| {
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
    let server = Server::start(Hub { lies_about_size: true.into(), ..model() });
    let options = server.options(home.path());
    let size = weights("w").len();
    let text = message(&options, "org/tiny");
    assert!(text.contains(&format!("{} bytes arrived, expected {size}", size + 1)), "{text}");
    server.hub.lies_about_size.store(false, Ordering::SeqCst);
    let folder = resolve(&options, "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
}

#[test]
fn a_partial_file_that_is_already_whole_does_not_block() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let blobs = home.path().join("hub/models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    for excess in [0, 7] {
        let stale = vec![9; weights("w").len() + excess];
        let _ = std::fs::remove_dir_all(home.path().join("hub/models--org--tiny/snapshots"));
        std::fs::write(blobs.join("etag-model.part"), stale).unwrap();
        let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
    }
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

/// Ctrl-C while a hub keeps the binary waiting.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_download_at_once() {
    use std::process::{Command, Stdio};

    let home = tempfile::tempdir().unwrap();
    let (listener, address) = silent_hub();
    let running = Command::new(assert_cmd::cargo::cargo_bin("lora-drop"))
        .args(["eval", "--model", "org/tiny", "--data", "."])
        .current_dir(home.path())
        .env("HF_ENDPOINT", address)
        .env("HF_HOME", home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _connection = listener.accept().unwrap();
    let pressed = Instant::now();
    let stopped = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    let output = running.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(pressed.elapsed() < Duration::from_secs(5) && told.contains("nothing was saved"), "{told}");
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
