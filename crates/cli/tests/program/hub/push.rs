//! `push`: what is sent, and what happens if the hub or the network fails.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use lora_drop::hub::{HubOptions, Parcel, PushOptions, Pushed};
use lora_drop::{Cancel, Error};
use serde_json::{Value, json};

use super::receiver::{MADE, Receiver, Store, TOKEN};
use crate::common::{Fixture, Outcome};

const RUN: &str = "--method lora-drop --top-k 1 --sample-epochs 1 --sample-ratio 0.5 --epochs 1";

/// A run on the fixture's model.
fn run() -> Fixture {
    let fixture = Fixture::new();
    fixture.train(RUN).ok();
    fixture
}

/// The binary with this hub and token.
fn push(fixture: &Fixture, receiver: &Receiver, token: &str, words: &str) -> Outcome {
    let mut command = fixture.command();
    command
        .env("HF_ENDPOINT", receiver.url())
        .env("HF_HOME", fixture.path("home"))
        .env_remove("HF_TOKEN_PATH")
        .env_remove("HF_HUB_OFFLINE");
    match token {
        "" => command.env_remove("HF_TOKEN"),
        token => command.env("HF_TOKEN", token),
    };
    Outcome::of(command.arg("push").args(words.split_whitespace()))
}

/// A folder with a small adapter's files, made of any bytes but for what names the base.
fn adapter(fixture: &Fixture, base: &str) {
    let config = json!({ "peft_type": "LORA", "base_model_name_or_path": base });
    fixture.write("adapter/adapter_config.json", config.to_string());
    fixture.write("adapter/adapter_model.safetensors", vec![7; 100_000]);
    fixture.write("adapter/README.md", "# Mine\n");
}

fn options(receiver: &Receiver) -> HubOptions {
    HubOptions {
        endpoint: Some(receiver.url()),
        cache: "nowhere".into(),
        token: Some(TOKEN.into()),
        offline: false,
        timeout: Duration::from_secs(30),
    }
}

fn send(fixture: &Fixture, receiver: &Receiver) -> lora_drop::Result<Pushed> {
    let parcel = Parcel::pack(&fixture.path("adapter"), "org/mine", None).unwrap();
    options(receiver).push(&parcel, &PushOptions::default(), &Cancel::new(), &mut |part| {
        assert!(part.done <= part.total);
    })
}

fn failure(fixture: &Fixture, receiver: &Receiver) -> String {
    send(fixture, receiver).unwrap_err().to_string()
}

#[test]
fn a_run_goes_to_the_hub_in_one_commit_and_without_this_machines_paths() {
    let fixture = run();
    let receiver = Receiver::start(Store::default());
    let words = "org/mine --adapter out --base-model org/base --private --message First";
    let pushed = push(&fixture, &receiver, TOKEN, words).ok();
    let sent = [
        "README.md",
        "adapter_compact.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "importance.json",
        "recipe.toml",
    ];
    assert_eq!(receiver.names(), sent);
    for word in ["uploaded adapter_model.safetensors", "uploaded adapter_compact.safetensors"] {
        assert!(pushed.stderr.contains(word), "{}", pushed.stderr);
    }
    assert!(pushed.stdout.contains(&format!("{}/org/mine\n", receiver.url())), "{}", pushed.stdout);
    assert!(pushed.stdout.contains(MADE) && !(pushed.stdout + &pushed.stderr).contains(TOKEN));

    let requests = receiver.requests();
    assert_eq!(
        requests[0].json(),
        json!({ "type": "model", "name": "mine", "organization": "org", "private": true })
    );
    assert_eq!(requests.last().unwrap().line(), "POST /api/models/org/mine/commit/main");
    let header: Value =
        serde_json::from_slice(requests.last().unwrap().body.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(header["value"]["summary"], "First");
    // The storage of large files is sent no token.
    for request in &requests {
        assert_eq!(request.authorization.is_none(), request.method == "PUT", "{}", request.line());
    }
    let large = receiver.store.large.lock().unwrap();
    let stored: Vec<&Vec<u8>> = large.values().collect();
    let weights = std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap();
    assert!(stored.contains(&&weights));
    // Nothing that is sent says where this was.
    let here = fixture.path("").to_string_lossy().into_owned();
    for bytes in receiver.store.files.lock().unwrap().values().chain(large.values()) {
        assert!(!String::from_utf8_lossy(bytes).contains(here.trim_end_matches('/')));
    }
    drop(large);
    let config: Value = serde_json::from_str(&receiver.text("adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/base");
    let card = receiver.text("README.md");
    for line in [
        "---\nbase_model: org/base\nlibrary_name: peft\n",
        "- name: mine\n",
        "base = \"org/base\"\n",
        "adapter = \"org/mine\"\n",
    ] {
        assert!(card.contains(line), "{line:?} is not in {card}");
    }
    let recipe = receiver.text("recipe.toml");
    assert!(recipe.contains("model = \"org/base\"\n") && !recipe.contains("data = "), "{recipe}");
    // What the run has derived still holds.
    let derived = |text: &str| {
        text.split("[derived]").nth(1).unwrap().lines().skip(2).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(derived(&recipe), derived(&fixture.read("out/recipe.toml")));
    fixture.write("sent/recipe.toml", &recipe);
    fixture.run("train sent/recipe.toml --model model --data data --output again --dry-run").ok();

    // Once more, there is nothing to send.
    let again = push(&fixture, &receiver, TOKEN, words).ok();
    assert!(again.stdout.contains("nothing: the hub has all files as they are"), "{}", again.stdout);
    assert_eq!(receiver.lines().iter().filter(|line| line.contains("/commit/")).count(), 1);
}

#[test]
fn without_a_name_on_the_hub_no_file_names_the_base_model() {
    let fixture = run();
    let receiver = Receiver::start(Store { exists: true, ..Store::default() });
    let pushed =
        push(&fixture, &receiver, TOKEN, "org/mine --adapter out --private --revision work --json").ok();
    for word in [
        "the base model's name on the hub is not known",
        "--base-model org/name",
        "--private does not change",
    ] {
        assert!(pushed.stderr.replace('\n', " ").contains(word), "{word:?}: {}", pushed.stderr);
    }
    assert_eq!(pushed.json()["created"], false);
    let config: Value = serde_json::from_str(&receiver.text("adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], Value::Null);
    assert!(receiver.text("README.md").contains("base = \"path/to/model\"\n"));
    assert!(!receiver.text("recipe.toml").contains("model = "));
    let lines = receiver.lines();
    for line in ["POST /api/models/org/mine/branch/work", "POST /api/models/org/mine/commit/work"] {
        assert!(lines.contains(&line.to_string()), "{lines:?}");
    }
}

#[test]
fn a_dry_run_lists_the_files_and_asks_nobody() {
    let fixture = run();
    let receiver = Receiver::start(Store::default());
    let listed = push(&fixture, &receiver, "", "org/mine --adapter out --dry-run").ok();
    for word in ["adapter_model.safetensors", "total", "not sent", "report.html", "org/mine"] {
        assert!(listed.stdout.contains(word), "{}", listed.stdout);
    }
    let listed = push(&fixture, &receiver, "", "org/mine --adapter out --dry-run --json").ok().json();
    assert_eq!(listed["left_out"], json!(["metrics.jsonl", "report.html", "summary.json"]));
    assert_eq!(listed["files"].as_array().unwrap().len(), 6);
    assert!(receiver.lines().is_empty());
}

#[test]
fn large_files_go_in_the_parts_that_the_hub_asks_for() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let receiver =
        Receiver::start(Store { part: Some(30_000), breaks: AtomicUsize::new(2), ..Store::default() });
    send(&fixture, &receiver).unwrap();
    let puts: Vec<String> = receiver.lines().into_iter().filter(|line| line.starts_with("PUT")).collect();
    let numbers: Vec<&str> = puts.iter().map(|line| line.rsplit('/').next().unwrap()).collect();
    // The first part is sent again after it has broken off.
    assert_eq!(numbers, ["1", "1", "1", "2", "3", "4"]);
    assert_eq!(receiver.store.large.lock().unwrap().values().next().unwrap(), &vec![7; 100_000]);
    assert_eq!(receiver.names(), ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
}

#[test]
fn a_failed_push_leaves_the_repository_unchanged() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let three = || AtomicUsize::new(3);
    for (store, words) in [
        (
            Store { breaks: three(), ..Store::default() },
            &["adapter_model.safetensors: the transfer broke off"][..],
        ),
        (Store { put_status: Some(403), ..Store::default() }, &["adapter_model.safetensors", "(403)"]),
        (Store { put_status: Some(503), ..Store::default() }, &["answered 503"]),
        (
            Store {
                refuse_create: Some((403, "You don't have the rights to create a model under org")),
                ..Store::default()
            },
            &["refuses to write there (403) (You don't have the rights", "the right to write to org"],
        ),
        (
            Store { refuse_create: Some((404, "")), ..Store::default() },
            &["does not know org", "check the spelling"],
        ),
    ] {
        let receiver = Receiver::start(store);
        let text = failure(&fixture, &receiver);
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
        assert!(text.starts_with("org/mine: ") && text.ends_with("; nothing was committed"), "{text}");
        assert!(receiver.names().is_empty() && !text.contains(TOKEN));
    }
    // One that is there can be written with a token that makes none.
    let receiver =
        Receiver::start(Store { exists: true, refuse_create: Some((403, "no")), ..Store::default() });
    assert!(!send(&fixture, &receiver).unwrap().created);

    let receiver = Receiver::start(Store { loses_commit: true, ..Store::default() });
    let text = failure(&fixture, &receiver);
    assert!(text.contains("the answer to the commit is missing") && text.contains("/org/mine"), "{text}");
    assert!(!text.contains("nothing was committed"), "{text}");
}

#[test]
fn the_token_stays_with_the_hub() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let other = Receiver::start(Store::default());
    let receiver =
        Receiver::start(Store { redirect: Some(format!("{}/x", other.url())), ..Store::default() });
    let text = failure(&fixture, &receiver);
    assert!(text.contains("a redirect to") && text.contains("not followed"), "{text}");
    assert!(other.lines().is_empty());

    let receiver = Receiver::start(Store { storage: Some(other.url()), ..Store::default() });
    send(&fixture, &receiver).unwrap();
    assert_eq!(other.requests().len(), 1);
    assert_eq!(other.requests()[0].authorization, None);
}

#[test]
fn a_token_that_is_missing_or_wrong() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let receiver = Receiver::start(Store::default());
    let words = "org/mine --adapter adapter";
    push(&fixture, &receiver, "", words).fails(2, &["there is no token", "HF_TOKEN", "hf auth login"]);
    assert!(receiver.lines().is_empty());
    push(&fixture, &receiver, "hf_other", words)
        .fails(1, &["does not accept the token (401) (Invalid credentials)"]);
    // The file of other tools.
    fixture.write("home/token", format!("{TOKEN}\n"));
    push(&fixture, &receiver, "", words).ok();
    let mut offline = fixture.command();
    offline.env("HF_HUB_OFFLINE", "1").env("HF_HOME", fixture.path("home")).arg("push");
    Outcome::of(offline.args(words.split(' '))).fails(2, &["HF_HUB_OFFLINE forbids the upload"]);
}

#[test]
fn names_and_folders_that_cannot_be_meant() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let receiver = Receiver::start(Store::default());
    let fails = |words: &str, said: &[&str]| push(&fixture, &receiver, TOKEN, words).fails(2, said);
    for (name, said) in [
        ("mine", "give it with your user name or an organization"),
        ("org/a/b", "not a repository's name"),
        ("org/--x", "not a repository's name"),
        ("org/x..y", "not a repository's name"),
        ("org/x.git", "no .git"),
        ("org/x@main", "a branch is given as --revision"),
        (&format!("org/{}", "x".repeat(97)), "the hub takes 96"),
    ] {
        fails(&format!("{name} --adapter adapter"), &[said]);
    }
    fails("org/mine --adapter data", &["data has no adapter"]);
    fails("org/mine --adapter nowhere", &["nowhere: not a folder"]);
    fails(
        "org/mine --adapter adapter --base-model /tmp/x",
        &["--base-model /tmp/x is not a name on the hub"],
    );
    fails("org/mine --adapter adapter --revision ../x", &["--revision ../x cannot be a branch"]);
    assert!(receiver.lines().is_empty());
}

/// Ctrl-C while a large file waits for its answer.
#[cfg(unix)]
#[test]
fn ctrl_c_commits_nothing() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let receiver = Receiver::start(Store { silent: true, ..Store::default() });
    let mut process = fixture.process("push org/mine --adapter adapter");
    process.env("HF_ENDPOINT", receiver.url()).env("HF_TOKEN", TOKEN).env_remove("HF_HUB_OFFLINE");
    let running = process.spawn().unwrap();
    while !receiver.lines().iter().any(|line| line.starts_with("PUT")) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pressed = Instant::now();
    crate::common::send(&running, "-INT");
    let output = running.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("interrupted: nothing was committed"), "{told}");
    assert!(pressed.elapsed() < Duration::from_secs(20));
    assert!(receiver.names().is_empty());
}

#[test]
fn a_raised_flag_sends_nothing() {
    let fixture = Fixture::new();
    adapter(&fixture, "org/base");
    let receiver = Receiver::start(Store::default());
    let parcel = Parcel::pack(&fixture.path("adapter"), "org/mine", None).unwrap();
    let cancel = Cancel::new();
    cancel.raise();
    let pushed = options(&receiver).push(&parcel, &PushOptions::default(), &cancel, &mut |_| ());
    assert!(matches!(pushed, Err(Error::Interrupted)));
    assert!(receiver.lines().is_empty());
}
