//! Shared by the tests of the binary: a temporary folder with a tiny BERT and a small data set, and
//! the running of commands.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

pub mod tfevents;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Words without a meaning to the task, and the two that decide it.
const FILLERS: [&str; 24] = [
    "the", "a", "film", "was", "it", "and", "of", "actor", "story", "scene", "this", "one", "with", "in",
    "music", "we", "saw", "today", "very", "long", "short", "play", "end", "start",
];
const GOOD: [&str; 2] = ["good", "fine"];
const BAD: [&str; 2] = ["bad", "poor"];

pub const HIDDEN: usize = 32;
pub const LAYERS: usize = 3;
const INTERMEDIATE: usize = 64;
/// Room for the default of --max-length.
const POSITIONS: usize = 256;

/// A tensor's shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A temporary folder with `model` (a tiny BERT with random weights) and `data` (two classes) in
/// it.
pub struct Fixture {
    folder: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
        write_model(&fixture.path("model"), &config(), &weights());
        write_data(&fixture.path("data"));
        fixture
    }

    /// The fixture with a model of 24 layers: its activations take far more memory than the
    /// program's own pages vary by from run to run.
    pub fn deep() -> Self {
        const LAYERS: usize = 24;
        let fixture = Fixture::new();
        let (mut config, mut tensors) = (config(), weights());
        config["num_hidden_layers"] = LAYERS.into();
        for (name, tensor) in weights().iter().filter(|(name, _)| name.contains("layer.0.")) {
            for layer in 1..LAYERS {
                tensors.insert(name.replace("layer.0.", &format!("layer.{layer}.")), tensor.clone());
            }
        }
        write_model(&fixture.path("model"), &config, &tensors);
        fixture
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn read_json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// The tiny Llama of the golden files with a tokenizer of words, w3 to w95.
    pub fn write_decoder(&self, folder: &str) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama");
        for file in ["config.json", "model.safetensors"] {
            self.write(&format!("{folder}/{file}"), std::fs::read(golden.join(file)).unwrap());
        }
        let special = ["<pad>", "<s>", "</s>"].map(String::from);
        let words = special.into_iter().chain((3..96).map(|n| format!("w{n}")));
        let vocabulary: Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [{ "id": 2, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false }],
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>" },
        });
        self.write(&format!("{folder}/tokenizer.json"), tokenizer.to_string());
    }

    /// A command that runs the binary in the folder, with its cache in it too.
    pub fn command(&self) -> Command {
        let mut command = Command::cargo_bin("lora-drop").unwrap();
        command.current_dir(self.folder.path()).env("LORA_DROP_CACHE", self.path("cache"));
        command
    }

    /// Runs the binary with words separated by spaces.
    pub fn run(&self, words: &str) -> Outcome {
        self.run_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    pub fn run_words(&self, words: &[&str]) -> Outcome {
        Outcome::of(self.command().args(words))
    }

    /// Writes texts/train.jsonl and texts/dev.jsonl with this number of rows, whose completion is
    /// the prompt reversed.
    pub fn write_reversed_words(&self, train: usize, dev: usize) {
        let row = |i: usize| {
            let (a, b) = (format!("w{}", 3 + i * 7 % 40), format!("w{}", 3 + i * 13 % 40));
            json!({ "prompt": format!("{a} {b}"), "completion": format!(" {b} {a}") }).to_string() + "\n"
        };
        self.write("texts/train.jsonl", (0..train).map(row).collect::<String>());
        self.write("texts/dev.jsonl", (train..train + dev).map(row).collect::<String>());
    }

    /// `train` on the fixture's model and data into `out`, with settings under which the tiny model
    /// learns quickly; of an option given twice the last one counts.
    pub fn train(&self, options: &str) -> Outcome {
        let data = if options.contains("--data") { "" } else { "--data data" };
        self.run(&format!("train --model model {data} --output out --threads 2 {QUICK} {options}"))
    }

    /// The binary as a process that the test manages: arguments separated by spaces, run in the
    /// folder, standard error a pipe and nothing else read or written.
    pub fn process(&self, words: &str) -> Process {
        let mut process = Process::new(self.command().get_program());
        self.set_up(&mut process);
        process.args(words.split_whitespace());
        process
    }

    /// Like `process`, started by a shell's script as `"$0" "$@"`.
    pub fn shell(&self, script: &str, words: &str) -> Process {
        let mut process = Process::new("bash");
        self.set_up(&mut process);
        process.args(["-c", script]).arg(self.command().get_program()).args(words.split_whitespace());
        process
    }

    fn set_up(&self, process: &mut Process) {
        process.current_dir(self.folder.path()).env("LORA_DROP_CACHE", self.path("cache"));
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    }

    /// Runs the program until a line on standard error has `word`, then presses Ctrl-C. Returns how
    /// it ended and what it said from there on.
    #[cfg(unix)]
    pub fn interrupt(&self, arguments: &str, word: &str) -> Outcome {
        use std::io::{BufRead, BufReader, Read};

        let mut running = self.process(arguments).spawn().unwrap();
        let mut told = BufReader::new(running.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(told.read_line(&mut line).unwrap() > 0, "it ended before it said {word:?}");
        }
        send(&running, "-INT");
        let mut stderr = String::new();
        told.read_to_string(&mut stderr).unwrap();
        let code = running.wait().unwrap().code();
        Outcome { code, stdout: String::new(), stderr }
    }

    /// The names of the files in a folder, sorted.
    pub fn files(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Results that must not depend on where a run was stopped: the adapter or the weights, the scores,
/// and the log without its times.
pub fn result_of_run(folder: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let files =
        ["adapter_compact.safetensors", "adapter_model.safetensors", "model.safetensors", "importance.json"];
    let read = |name| Some((name, std::fs::read(folder.join(name)).ok()?));
    let mut found: BTreeMap<_, _> = files.into_iter().filter_map(read).collect();
    let log = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        line.remove("tokens_per_second");
        Value::Object(line).to_string() + "\n"
    };
    found.insert("metrics.jsonl", log.lines().map(line).collect::<String>().into_bytes());
    found
}

/// Settings under which the tiny model learns its task within a second.
pub const QUICK: &str = "--learning-rate 1e-2 --batch-size 8 --epochs 8 --weight-decay 0 --hidden-dropout 0 --attention-dropout 0";

/// Sends a signal to a process.
#[cfg(unix)]
pub fn send(running: &std::process::Child, signal: &str) {
    let sent = Process::new("kill").args([signal, &running.id().to_string()]).status().unwrap();
    assert!(sent.success(), "{signal}");
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(command: &mut Command) -> Self {
        Self::of_output(command.output().unwrap())
    }

    /// Runs a process to its end, both outputs read.
    pub fn of_process(process: &mut Process) -> Self {
        Self::of_output(process.stdout(Stdio::piped()).output().unwrap())
    }

    fn of_output(output: std::process::Output) -> Self {
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        }
    }

    /// Checks that the command did its work.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// Checks the exit code and that the message has all of `words`, without regard to case;
    /// nothing may have panicked, and standard output is empty.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "standard output: {}\nstandard error: {}",
            self.stdout,
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let message = self.stderr.to_lowercase();
        for word in words {
            assert!(message.contains(&word.to_lowercase()), "{word:?} is not in: {}", self.stderr);
        }
        assert_eq!(self.stdout, "", "a failed command printed a result");
        self
    }

    /// Standard output as one JSON object.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// config.json of the tiny BERT.
pub fn config() -> Value {
    json!({
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": vocabulary().len(),
    })
}

/// The weights of the tiny BERT, under the names of a model with a head.
pub fn weights() -> Tensors {
    let mut random = Random(7);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], norm: bool| {
        let count = shape.iter().product();
        let values = match (norm, name.ends_with("weight")) {
            (true, true) => vec![1.0; count],
            (_, false) => vec![0.0; count],
            (false, true) => (0..count).map(|_| 0.3 * random.uniform()).collect(),
        };
        tensors.insert(format!("bert.{name}"), (shape.to_vec(), values));
    };
    for (name, rows) in [("word", vocabulary().len()), ("position", POSITIONS), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, HIDDEN], false);
    }
    let mut affine = |name: &str, out: usize, inputs: Option<usize>| {
        let shape = [Some(out), inputs].into_iter().flatten().collect::<Vec<_>>();
        add(format!("{name}.weight"), &shape, inputs.is_none());
        add(format!("{name}.bias"), &[out], inputs.is_none());
    };
    affine("embeddings.LayerNorm", HIDDEN, None);
    for layer in 0..LAYERS {
        let layer = format!("encoder.layer.{layer}");
        for part in ["query", "key", "value"] {
            affine(&format!("{layer}.attention.self.{part}"), HIDDEN, Some(HIDDEN));
        }
        affine(&format!("{layer}.attention.output.dense"), HIDDEN, Some(HIDDEN));
        affine(&format!("{layer}.attention.output.LayerNorm"), HIDDEN, None);
        affine(&format!("{layer}.intermediate.dense"), INTERMEDIATE, Some(HIDDEN));
        affine(&format!("{layer}.output.dense"), HIDDEN, Some(INTERMEDIATE));
        affine(&format!("{layer}.output.LayerNorm"), HIDDEN, None);
    }
    affine("pooler.dense", HIDDEN, Some(HIDDEN));
    tensors
}

/// Writes config.json, model.safetensors and tokenizer.json.
pub fn write_model(folder: &Path, config: &Value, weights: &Tensors) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    write_tensors(&folder.join("model.safetensors"), weights);
}

/// Writes a safetensors file of f32 tensors.
pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap())
    });
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    std::fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

fn vocabulary() -> Vec<String> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = special.iter().chain(&FILLERS).chain(&GOOD).chain(&BAD);
    let letters = ('a'..='z').flat_map(|letter| [letter.to_string(), format!("##{letter}")]);
    // "a" is a filler and a letter.
    words.map(|word| word.to_string()).chain(letters.filter(|letter| letter != "a")).collect()
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(id, word)| (word, json!(id))).collect();
    let special = |name: &str| json!({"id": name, "ids": [vocabulary[name]], "tokens": [name]});
    let added: Vec<Value> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .iter()
        .map(|name| {
            json!({"id": vocabulary[*name], "content": name, "special": true, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let mark = |name: &str, kind: u32| json!({"SpecialToken": {"id": name, "type_id": kind}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                       "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0)],
            "pair": [mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0), text("B", 1), mark("[SEP]", 1)],
            "special_tokens": {"[CLS]": special("[CLS]"), "[SEP]": special("[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}

/// Writes train.jsonl (96 rows) and dev.jsonl (32 rows): the label is `positive` where the text has
/// a good word.
pub fn write_data(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut random = Random(11);
    for (split, count) in [("train", 96), ("dev", 32)] {
        let rows: String = (0..count).map(|i| format!("{}\n", row(&mut random, i % 2 == 0))).collect();
        std::fs::write(folder.join(format!("{split}.jsonl")), rows).unwrap();
    }
}

fn row(random: &mut Random, positive: bool) -> Value {
    let mut words: Vec<&str> =
        (0..3 + random.below(8)).map(|_| FILLERS[random.below(FILLERS.len())]).collect();
    let deciding = if positive { GOOD } else { BAD };
    words.insert(random.below(words.len() + 1), deciding[random.below(2)]);
    json!({"text": words.join(" "), "label": if positive { "positive" } else { "negative" }})
}

/// A small deterministic generator, so that every run of the tests sees the same model and data.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// A number below n.
    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// A number in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}
