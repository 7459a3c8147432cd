//! The binary with a model on the hub: progress, Ctrl-C, names.

use std::path::Path;
use std::time::{Duration, Instant};

use super::server::{Hub, Server, Transfer, model, silent_hub, weights};

/// How long the binary waits for a hub that says nothing.
const PATIENCE: Duration = Duration::from_secs(60);

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
    command.env_remove("HF_TOKEN_PATH");
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", PATIENCE.as_secs().to_string());
    command
}

/// Ctrl-C while a hub keeps the binary waiting, for its first word and in the middle of a file.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_download_before_its_time_is_up() {
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
            assert!(pressed.elapsed() < PATIENCE, "{words:?}: {:?}", pressed.elapsed());
            let word =
                if kept { "the part that was downloaded is kept in the cache" } else { "nothing was saved" };
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
