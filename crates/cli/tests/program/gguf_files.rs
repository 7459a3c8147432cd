//! GGUF models as people have them: in parts, from a repository without config.json, with special
//! tokens that are none.

use std::path::Path;

use lora_drop_transformer::gguf::{Gguf, NewTensor, PartName, Value, Writer, part_paths};

use super::hub::{COMMIT, Hub, Server};
use crate::common::{Fixture, Outcome};

fn golden() -> Gguf {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf/gemma3.gguf");
    Gguf::open(Path::new(path)).unwrap()
}

/// The small Gemma 3 with other metadata, and those of its tensors that `has` names.
fn rewritten(metadata: &[(String, Value)], has: impl Fn(usize) -> bool) -> Vec<u8> {
    let golden = golden();
    let bytes = std::fs::read(golden.path()).unwrap();
    let tensors = golden.header().tensors.iter().enumerate().filter(|(number, _)| has(*number));
    let tensors: Vec<_> = tensors.map(|(_, tensor)| tensor.clone()).collect();
    let list = tensors.iter().map(|tensor| NewTensor {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        kind: tensor.kind,
    });
    let mut writer = Writer::new(Vec::new(), metadata, list.collect()).unwrap();
    for tensor in &tensors {
        writer.bytes(&tensor.name, &bytes[tensor.start..tensor.end]).unwrap();
    }
    writer.finish().unwrap()
}

/// The small Gemma 3 with one value of its metadata changed.
fn with_value(key: &str, value: Value) -> Vec<u8> {
    let mut metadata = golden().header().metadata.clone();
    metadata.retain(|(name, _)| name != key);
    metadata.push((key.to_string(), value));
    rewritten(&metadata, |_| true)
}

/// The small Gemma 3 in three parts, as gguf-split writes them without tensors in the first.
fn parts() -> Vec<(String, Vec<u8>)> {
    let golden = golden();
    let count = golden.header().tensors.len();
    let part = |number: usize| {
        let mut metadata = if number == 0 { golden.header().metadata.clone() } else { Vec::new() };
        metadata.push(("split.no".into(), Value::U16(number as u16)));
        metadata.push(("split.count".into(), Value::U16(3)));
        metadata.push(("split.tensors.count".into(), Value::I32(count as i32)));
        rewritten(&metadata, |tensor| number > 0 && (tensor < count / 2) == (number == 1))
    };
    (0..3).map(|number| (format!("gemma-{:05}-of-00003.gguf", number + 1), part(number))).collect()
}

fn generate(fixture: &Fixture, model: &str) -> String {
    let words = ["generate", "--model", model, "--prompt", "w", "--max-new-tokens", "8"];
    fixture.run_words(&words).ok().stdout
}

#[test]
fn a_model_in_parts_is_opened_from_any_of_them() {
    let fixture = Fixture::new();
    fixture.write("whole.gguf", rewritten(&golden().header().metadata, |_| true));
    let parts = parts();
    for (name, bytes) in &parts {
        fixture.write(&format!("parts/{name}"), bytes);
    }
    let expected = generate(&fixture, "whole.gguf");
    for model in ["parts", "parts/gemma-00001-of-00003.gguf", "parts/gemma-00003-of-00003.gguf"] {
        assert_eq!(generate(&fixture, model), expected, "{model}");
    }
    let table = fixture.run("inspect parts").ok().stdout;
    let kinds: Vec<_> = golden().header().tensors.iter().map(|tensor| tensor.kind.name()).collect();
    let halves = kinds.iter().filter(|kind| **kind == "F16").count();
    assert!(table.contains(&format!("tensors       {halves} F16, {} F32", kinds.len() - halves)), "{table}");
    let whole = Gguf::open(&fixture.path("parts/gemma-00002-of-00003.gguf")).unwrap();
    assert_eq!(whole.header().tensors.len(), golden().header().tensors.len());
    assert_eq!(whole.path(), fixture.path("parts/gemma-00001-of-00003.gguf"));

    std::fs::remove_file(fixture.path("parts/gemma-00002-of-00003.gguf")).unwrap();
    for model in ["parts", "parts/gemma-00003-of-00003.gguf"] {
        let told = ["one of 3 parts", "gemma-00002-of-00003.gguf", "one is not there"];
        fixture.run(&format!("inspect {model}")).fails(1, &told);
    }
    // A part of another model, and one under another name.
    fixture.write("parts/gemma-00002-of-00003.gguf", &parts[2].1);
    fixture.run("inspect parts").fails(1, &["gemma-00002-of-00003.gguf", "split.no", "is 2, expected 1"]);
    fixture.write("renamed.gguf", &parts[0].1);
    fixture.run("inspect renamed.gguf").fails(1, &["one of 3 parts", "ends in -00001-of-00003.gguf"]);
}

#[test]
fn names_of_parts() {
    let part = PartName::parse("BF16/a-of-b-00002-of-00003.gguf").unwrap();
    assert_eq!((part.number, part.count), (2, 3));
    let all: Vec<_> = part.all().collect();
    assert_eq!(all[0], "BF16/a-of-b-00001-of-00003.gguf");
    assert_eq!(part_paths(Path::new("x/m-00001-of-00002.gguf")).len(), 2);
    for other in
        ["a.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00003.bin"]
    {
        assert_eq!(PartName::parse(other), None, "{other}");
        assert_eq!(part_paths(Path::new(other)), [Path::new(other)]);
    }
}

#[test]
fn a_folder_of_several_models_asks_for_one() {
    let fixture = Fixture::new();
    for name in ["a-q8.gguf", "b-q4.gguf"] {
        fixture.write(&format!("models/{name}"), "");
    }
    fixture
        .run("generate --model models --prompt w")
        .fails(1, &["models: it has several", "a-q8.gguf, b-q4.gguf"]);
    fixture.run("inspect models").fails(1, &["several GGUF models", "a-q8.gguf, b-q4.gguf"]);
}

/// A repository of GGUF files alone.
fn repository(files: &[(&str, Vec<u8>)]) -> Server {
    let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone()));
    Server::start(Hub { files: files.collect(), ..Hub::default() })
}

fn on_hub(fixture: &Fixture, server: &Server, words: &str) -> Outcome {
    let mut command = fixture.command();
    command.env("HF_ENDPOINT", format!("http://{}", server.address)).env("HF_HOME", fixture.path("home"));
    Outcome::of(command.env_remove("HF_TOKEN").env_remove("HF_TOKEN_PATH").args(words.split(' ')))
}

#[test]
fn the_only_gguf_model_of_a_repository_is_taken() {
    let fixture = Fixture::new();
    let whole = rewritten(&golden().header().metadata, |_| true);
    fixture.write("whole.gguf", &whole);
    let extra = [("README.md", vec![b'x']), ("mmproj-f16.gguf", vec![b'x']), ("config.json", b"{}".to_vec())];
    let server = repository(&[&[("gemma-q8.gguf", whole)], &extra[..]].concat());
    let words = "generate --model org/tiny --prompt w --max-new-tokens 8";
    let shown = on_hub(&fixture, &server, words).ok();
    assert_eq!(shown.stdout, generate(&fixture, "whole.gguf"));
    assert!(shown.stderr.contains("downloaded gemma-q8.gguf"), "{}", shown.stderr);
    let asked = server.requests();
    assert!(
        !asked.iter().any(|r| ["README", "mmproj", "config.json"].iter().any(|f| r.contains(f))),
        "{asked:?}"
    );
    // The file by its name needs no network; the repository's may have got another model.
    drop(server);
    let gone = repository(&[]);
    on_hub(&fixture, &gone, &words.replace("org/tiny", "org/tiny:gemma-q8.gguf")).ok();
    assert!(gone.requests().is_empty());
    on_hub(&fixture, &gone, words).fails(1, &["org/tiny: it has no config.json"]);
    // An adapter beside which there is one for llama.cpp.
    let adapter = repository(&[("adapter_config.json", b"{}".to_vec()), ("adapter.gguf", vec![b'x'])]);
    on_hub(&fixture, &adapter, words).fails(1, &["this is an adapter; give its base model"]);
    let mut offline = fixture.command();
    offline.env("HF_HOME", fixture.path("home")).env("HF_HUB_OFFLINE", "1").args(words.split(' '));
    Outcome::of(&mut offline)
        .fails(1, &["HF_HUB_OFFLINE", "or org/tiny:gemma-q8.gguf, which is in the cache"]);
}

#[test]
fn one_of_several_gguf_models_is_picked_by_its_file() {
    let fixture = Fixture::new();
    let whole = rewritten(&golden().header().metadata, |_| true);
    fixture.write("whole.gguf", &whole);
    let parts = parts();
    let mut files = vec![("a-q8.gguf", whole.clone()), ("b-q4.gguf", whole[..5000].to_vec())];
    let in_folder: Vec<_> = parts.iter().map(|(name, bytes)| (format!("F16/{name}"), bytes)).collect();
    files.extend(in_folder.iter().map(|(name, bytes)| (name.as_str(), bytes.to_vec())));
    let server = repository(&files);

    let listed = [
        "org/tiny: it has several GGUF models",
        "F16/gemma-00001-of-00003.gguf (3 parts, ",
        "b-q4.gguf (4.9 KiB)",
    ];
    on_hub(&fixture, &server, "generate --model org/tiny --prompt w").fails(1, &listed);
    let wrong = "generate --model org/tiny@v1.0:c.gguf --prompt w";
    on_hub(&fixture, &server, wrong).fails(1, &["it has no file c.gguf", "as in org/tiny@v1.0:F16/gemma"]);
    for (name, told) in [
        ("org/tiny:a.bin", "\"a.bin\" is not a GGUF file's name"),
        ("org/tiny:../a.gguf", "\"../a.gguf\" is not a GGUF file's name"),
        ("org/tiny:a-q8.gguf@v1.0", "org/name@revision:file.gguf"),
    ] {
        on_hub(&fixture, &server, &format!("inspect {name}")).fails(1, &[told]);
    }
    let table = on_hub(&fixture, &server, "inspect org/tiny").ok().stdout;
    assert!(
        table.contains("a-q8.gguf") && table.contains("org/tiny:F16/gemma-00001-of-00003.gguf"),
        "{table}"
    );
    let json = on_hub(&fixture, &server, "inspect org/tiny --json").ok().json();
    assert_eq!(json["models"][0]["parts"], 3);
    assert_eq!(json["models"][1]["bytes"], whole.len());
    let asked = server.requests();
    assert!(!asked.iter().any(|request| request.contains("/resolve/")), "nothing was downloaded: {asked:?}");

    let expected = generate(&fixture, "whole.gguf");
    for (name, downloaded) in [
        ("hf://org/tiny:a-q8.gguf", vec!["a-q8.gguf"]),
        ("org/tiny@v1.0:a-q8.gguf", vec![]),
        ("org/tiny:F16/gemma-00002-of-00003.gguf", in_folder.iter().map(|(name, _)| name.as_str()).collect()),
    ] {
        let words = format!("generate --model {name} --prompt w --max-new-tokens 8");
        let shown = on_hub(&fixture, &server, &words).ok();
        assert_eq!(shown.stdout, expected, "{name}");
        let told = shown.stderr.matches("downloaded ").count();
        assert!(
            told == downloaded.len() && downloaded.iter().all(|file| shown.stderr.contains(file)),
            "{}",
            shown.stderr
        );
    }
    let snapshot = fixture.path("home").join("hub/models--org--tiny/snapshots").join(COMMIT);
    let link = std::fs::read_link(snapshot.join("F16").join(&parts[0].0)).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
}

#[test]
fn special_tokens_that_are_none_are_left_out() {
    let fixture = Fixture::new();
    fixture.write("whole.gguf", rewritten(&golden().header().metadata, |_| true));
    let expected = generate(&fixture, "whole.gguf");
    let tokens = golden().value("tokenizer.ggml.tokens").unwrap().as_strings().unwrap().len() as u32;
    for (key, value) in [
        ("padding", Value::U32(u32::MAX)),
        ("padding", Value::U32(tokens)),
        ("padding", Value::I32(-1)),
        ("unknown", Value::U32(u32::MAX)),
        ("mask", Value::U32(u32::MAX)),
    ] {
        let shown = value.to_string();
        fixture.write("odd.gguf", with_value(&format!("tokenizer.ggml.{key}_token_id"), value));
        assert_eq!(generate(&fixture, "odd.gguf"), expected, "{key} {shown}");
        if key == "padding" {
            let words = "eval --model odd.gguf --data texts";
            fixture.write("texts/dev.jsonl", "{\"text\": \"w w w\"}\n");
            let told = fixture.run(words).ok().stderr;
            assert!(
                told.contains(&format!("odd.gguf: pad_token_id is {shown}, which is no token")),
                "{told}"
            );
        }
    }
    // A token that the file wants before every text is needed.
    fixture.write("odd.gguf", with_value("tokenizer.ggml.bos_token_id", Value::U32(tokens)));
    let told = ["adds this token to texts", "tokenizer.ggml.bos_token_id", "expected a number below"];
    fixture.run("generate --model odd.gguf --prompt w").fails(1, &told);
    fixture.write("odd.gguf", with_value("tokenizer.ggml.eos_token_id", Value::U32(u32::MAX)));
    let table = fixture.run("inspect odd.gguf").ok().stdout;
    assert!(table.contains("note: odd.gguf: eos_token_id is 4294967295"), "{table}");
}
