//! The library's client: the layout of its cache, what it asks for, and servers that are broken or
//! hostile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lora_drop::hub::{Download, HubOptions};
use lora_drop::{Cancel, Error};
use lora_drop_transformer::{Checkpoint, ModelConfig};

use super::server::{COMMIT, Hub, Server, Transfer, model, silent_hub, weights};

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
    assert_eq!(ModelConfig::read(&folder).unwrap().hidden_size, 4);
    assert_eq!(Checkpoint::open(&folder).unwrap().tensor("w").unwrap()[3999], 3999.0);
    let size = weights("w").len() as u64;
    assert_eq!(seen["model.safetensors"], (size, size));
    assert_eq!(seen.len(), 4);
    assert!(!server.requests().iter().any(|r| r.contains("README") || r.contains(".bin")));
}

#[test]
fn cached_files_need_no_network() {
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
fn bytes_after_the_announced_length_are_not_stored() {
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
        assert!(text.contains("the hub gives its commit as"), "{name}: {text}");
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
        ("file:///etc", "which is not a web address"),
        ("ftp://127.0.0.1", "which is not a web address"),
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
    assert!(text.contains("model.safetensors: nothing has arrived from http://127.0.0.1"), "{text}");
    *server.hub.weights.lock().unwrap() = Transfer::Sound;
    let folder = resolve(&server.options(home.path()), "org/tiny").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights("w"));
    let half = weights("w").len() / 2;
    assert!(server.requests().contains(&format!("/cdn/model.safetensors bytes={half}-")));
}

#[test]
fn a_cancelled_download_does_not_wait_for_its_server_and_is_continued() {
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
    assert!(raised.unwrap().elapsed() < options.timeout);
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

#[test]
fn a_hub_that_stands_still_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let (_listener, address) = silent_hub();
    let (cache, timeout) = (home.path().join("hub"), Duration::from_millis(300));
    let options = HubOptions { endpoint: Some(address.clone()), cache, token: None, offline: false, timeout };
    let text = message(&options, "org/tiny");
    assert!(text.contains(&format!("nothing has arrived from {address} for 0.3 s")), "{text}");
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
    let saved = home.path().join("saved token");
    std::fs::write(&saved, " hf_saved\n").unwrap();
    let saved = saved.to_str().unwrap();
    let token = |more: &[(&str, &str)]| {
        let mut pairs = vec![("HF_HOME", path.as_str()), ("HF_TOKEN_PATH", saved)];
        pairs.extend(more);
        from(&pairs).token.unwrap_or_default()
    };
    assert_eq!(token(&[]), "hf_saved");
    assert_eq!(token(&[("HF_TOKEN", "hf_env")]), "hf_env");
    // A file that is missing means no token, and an empty variable is as one that is not set.
    assert_eq!(token(&[("HF_TOKEN_PATH", "nowhere")]), "");
    assert_eq!(token(&[("HF_TOKEN_PATH", "")]), "hf_file");
    let options = from(&[("HOME", &path), ("HF_TOKEN", " "), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!(options.cache, home.path().join(".cache/huggingface/hub"));
    assert_eq!((options.token, options.endpoint, options.offline), (None, None, false));
}
