//! Every option of every command, in every task and with every method: a value that is changed
//! changes something, or is refused. The options are those of `lora-drop reference`, so a new one
//! fails here until it has a case.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Fixture, Outcome};
use assert_cmd::Command;
use serde_json::{Value, json};

/// Where the effect of an option shows, besides the exit code.
#[derive(Clone, Copy, Debug)]
enum Look {
    /// Losses, trained values, scores.
    Learned,
    /// A place in the object of `--json`.
    Json(&'static str),
    /// Loss, metrics and counts of `eval --json`.
    Measured,
    /// Standard output.
    Printed,
    /// The message on lower blocks that are read from disk.
    Reused,
    /// Which files there are.
    Files,
    /// A file's content.
    File(&'static str),
    /// The memory that `bench --json` estimates, and its results' names.
    Bench,
    /// Nothing: it decides speed alone, and the results are to be the same.
    Speed,
}
use Look::*;

/// A command with all that it needs, in one task and with one method.
struct Situation {
    name: &'static str,
    command: &'static str,
    words: String,
}

impl Situation {
    fn is(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.name.split(' ').any(|own| own == *word))
    }

    /// The option that gives the same rows with one among them that is not JSON.
    fn with_holes(&self) -> String {
        let words: Vec<&str> = self.words.split(' ').collect();
        let data = words.windows(2).find(|pair| ["--data", "--input"].contains(&pair[0]));
        data.map_or(String::new(), |pair| {
            format!("{} {}", pair[0], pair[1].replace("../../", "../../holes/"))
        })
    }
}

/// The changed option, the options of both runs, and where to look.
type Case = (String, String, Look);

fn case(changed: impl Into<String>, both: impl Into<String>, look: Look) -> Option<Case> {
    Some((changed.into(), both.into(), look))
}

/// The case of an option of `train` and `score`.
fn training(option: &str, at: &Situation) -> Option<Case> {
    let decoder = at.is(&["decoder"]);
    let plan = "--batch-size 16 --dry-run --json";
    let learned = |value: &str| case(format!("--{option} {value}"), "", Learned);
    let with = |value: &str, both: &str| case(format!("--{option} {value}"), both, Learned);
    match option {
        "model" => learned(if decoder { "../../other-decoder" } else { "../../other-model" }),
        "data" => learned("../../more"),
        // Refused here; what it does is in hub/data.rs.
        "data-config" => learned("a"),
        "output" => case("--output new", "", Files),
        "overwrite" => case("--overwrite", "--output used", Files),
        "checkpoint-minutes" => case("--checkpoint-minutes 1e-6", "--json", Json("/checkpoint_seconds")),
        "save-total" => case("--save-total 1", "", Files),
        "log-to" => case("--log-to tensorboard", "", Files),
        "metrics-file" => case("--metrics-file run.prom", "", Files),
        // Refused here; what they do is in resume.rs and methods.rs.
        "resume" => case("--resume used", "", Learned),
        "scores" => learned("missing.json"),
        "init-adapter" if at.is(&["text"]) => learned("../../adapters/text"),
        "init-adapter" => learned(if decoder { "../../adapters/labels" } else { "../../adapters/encoder" }),
        "eval-steps" => learned("2"),
        "dry-run" => case("--dry-run", "", Files),
        "profile" => case("--profile p.json", "", Files),
        "json" => case("--json", "", Printed),
        "adapter" if at.is(&["adapter"]) => learned("../../adapters/encoder-other"),
        "adapter" if at.is(&["text"]) => learned("../../adapters/text"),
        "adapter" => learned(if decoder { "../../adapters/labels" } else { "../../adapters/encoder" }),
        "method" if at.is(&["lora"]) => learned("lora-drop"),
        "method" => learned("lora"),
        "epochs" | "max-steps" if at.command == "score" => with("9", "--restart continue"),
        "schedule" if at.command == "score" => with("constant", "--restart continue"),
        "epochs" => learned("3"),
        "max-steps" => learned("3"),
        "restart" => learned("continue"),
        "metric" => {
            let metrics =
                [("regression", "spearman"), ("multi-label", "macro_f1"), ("token-classification", "recall")];
            let metric = metrics.iter().find(|(task, _)| at.is(&[task])).map_or("f1", |(_, metric)| metric);
            case(format!("--metric {metric}"), "--json", Json("/metric"))
        }
        // So low a rate changes nothing, so no epoch is better than the first.
        "early-stopping" => {
            case("--early-stopping 1", "--json --epochs 6 --learning-rate 1e-12", Json("/steps"))
        }
        "schedule" => learned("constant"),
        "activation-cache" => {
            let drop = if at.is(&["lora-drop"]) { "--top-k 1 --scope layer --unselected drop" } else { "" };
            let hidden = if decoder { "" } else { "--hidden-dropout 0" };
            case("--activation-cache 0", format!("{drop} {hidden} --attention-dropout 0"), Reused)
        }
        "criterion" => learned("size"),
        "sample-ratio" => learned("1"),
        "sample-epochs" => learned("3"),
        "threshold" => learned("0.1"),
        "top-k" | "rank" => learned("1"),
        "budget" => learned("0.7"),
        "keep-layers" => learned("1"),
        "scope" => learned("layer"),
        "unselected" => with("drop", "--top-k 1"),
        "shared-rank" => with("3", "--top-k 1"),
        "alpha" => learned("3"),
        "lora-dropout" | "hidden-dropout" | "attention-dropout" | "label-smoothing" => learned("0.5"),
        "target-modules" => learned(if decoder { "k_proj" } else { "key" }),
        "tinit" => learned("0.45"),
        "tfinal" => learned("0"),
        "sparse-by" => learned("random"),
        "learning-rate" | "head-learning-rate" => learned("0.5"),
        "batch-size" => learned("3"),
        "grad-accumulation" => learned("2"),
        "weight-decay" | "warmup-ratio" => learned("0.9"),
        "max-grad-norm" => learned("0.001"),
        "seed" => learned("7"),
        "threads" if at.command == "score" => case("--threads 2", "", Speed),
        "threads" => case("--threads 2", "--json", Json("/threads")),
        "task" if at.is(&["classification", "text"]) => learned("regression"),
        "task" => learned("classification"),
        "text-column" => learned("other"),
        "pair-column" if at.is(&["token-classification"]) => learned("other"),
        "pair-column" => with("other", "--text-column text"),
        "label-column" => learned("label2"),
        "prompt-column" => learned("q --completion-column completion"),
        "completion-column" => learned("a --prompt-column prompt"),
        "prompt-template" => case("--prompt-template w9{prompt}", "", Learned),
        "chat" => case("--chat", "", Learned),
        "no-eos" => case("--no-eos", "", Learned),
        "positive-class" => case("--positive-class bad", plan, Json("/data/positive_class")),
        "label-names" if at.is(&["token-classification"]) => learned("O,B-bad,B-good"),
        "label-names" => learned("good,bad"),
        "class-weights" if at.is(&["token-classification"]) => learned("../../tag-weights.json"),
        "class-weights" => learned("../../weights.json"),
        "template-var" if at.is(&["messages"]) => learned("end=w9"),
        "template-var" => with("end=w9", "--chat"),
        "bad-rows" => with("skip", &at.with_holes()),
        "max-length" => learned("4"),
        "over-length" if at.is(&["messages"]) => with("drop", "--max-length 7"),
        "over-length" => with("drop", "--max-length 6"),
        "token-cache" => case("--token-cache 0", "", Files),
        "dtype" => learned("bf16"),
        "quantize" => learned("q8_0"),
        // Memory is what they are for; of `score` it is not printed.
        "recompute" if at.command == "score" => case("--recompute", "", Speed),
        "micro-tokens" if at.command == "score" => learned("1"),
        "recompute" => case("--recompute", plan, Json("/memory/activations")),
        "micro-tokens" => case("--micro-tokens 8", plan, Json("/memory/activations")),
        "memory-limit" => case("--memory-limit 1kB", "", Learned),
        _ => None,
    }
}

/// The case of an option that says how text is generated; `both` has what makes `eval` and
/// `generate` write it.
fn decoding(option: &str, both: &str, look: Look) -> Option<Case> {
    let with = |value: &str, more: &str| case(format!("--{option} {value}"), format!("{both} {more}"), look);
    match option {
        "max-new-tokens" => with("2", ""),
        "temperature" => with("5", ""),
        "top-k" => with("1", "--temperature 5"),
        "top-p" => with("0.01", "--temperature 5"),
        "seed" => with("7", "--temperature 5"),
        "repetition-penalty" => with("50", ""),
        "num-beams" => with("8", "--max-new-tokens 20"),
        // Refused without beams; what they do is in tests/generate.rs.
        "length-penalty" => with("2", ""),
        "early-stopping" => case("--early-stopping", both, look),
        "stop" => with("w", ""),
        "batch-size" => case("--batch-size 2", both, Speed),
        _ => None,
    }
}

/// The case of an option of `eval`, `predict` or `generate`.
fn using(option: &str, at: &Situation) -> Option<Case> {
    let look = if at.command == "eval" { Measured } else { Printed };
    let decoder = at.is(&["decoder"]);
    let kind = ["encoder", "labels", "text"].into_iter().find(|kind| at.is(&[kind])).unwrap_or("text");
    let plain = |value: &str| case(format!("--{option} {value}"), "", look);
    let generates = at.command == "eval";
    let written = "--metrics bleu --predictions p.jsonl --max-new-tokens 6";
    match option {
        "model" => plain(if decoder { "../../other-decoder" } else { "../../other-model" }),
        "adapter" => plain(&format!("../../adapters/{kind}-other")),
        "max-length" => plain("4"),
        "positive-class" if at.command == "eval" => case("--positive-class bad", "", Json("/positive_class")),
        "positive-class" => case("--positive-class bad", "--metric f1", look),
        "template-var" => case("--template-var end=w9", "--chat", look),
        "bad-rows" => case("--bad-rows skip", at.with_holes(), look),
        // A pass of a token computes in f32 whatever the type.
        "dtype" if at.is(&["prompt"]) => case("--dtype bf16", "", Speed),
        // Many draws, of which some are close enough for another rounding to decide.
        "dtype" if at.command == "generate" => {
            case("--dtype bf16", "--temperature 3 --max-new-tokens 50", Printed)
        }
        "dtype" => plain("bf16"),
        "quantize" => plain("q4_0"),
        "threads" => case("--threads 2", "", Speed),
        "data" => plain("../../more"),
        "data-config" => plain("a"),
        "input" => plain("../../more/train.jsonl"),
        "split" => plain("train"),
        "text-column" => plain("other"),
        "pair-column" => case("--pair-column other", "--text-column text", look),
        "label-column" => plain("label2"),
        "prompt-column" => plain("q --completion-column completion"),
        "completion-column" => plain("a --prompt-column prompt"),
        "prompt-template" => plain("w9{prompt}"),
        "chat" => case("--chat", "", look),
        "no-eos" => case("--no-eos", "", look),
        "system" => case("--system w7", "--chat", look),
        "prompt" => plain("w8"),
        "json" => case("--json", "", Printed),
        "metrics" => plain("bleu"),
        "limit" if generates => case("--limit 1", written, File("p.jsonl")),
        "limit" => plain("1"),
        "predictions" => case("--predictions p.jsonl", "--metrics bleu --max-new-tokens 2", Files),
        "overwrite" if generates => {
            case("--overwrite", "--metrics bleu --max-new-tokens 2 --predictions used/summary.json", Files)
        }
        "overwrite" => case("--overwrite", "--output used/summary.json", Files),
        "output" => case("--output o.jsonl", "", Files),
        _ if generates => decoding(option, written, File("p.jsonl")),
        _ => decoding(option, "", look),
    }
}

/// The case of an option of `prune`.
fn pruning(option: &str, at: &Situation) -> Option<Case> {
    let printed = |value: &str| case(format!("--{option} {value}"), "", Printed);
    match option {
        "json" | "equal-ranks" => case(format!("--{option}"), "", Printed),
        "by" => printed("svd"),
        "budget" => case("--budget 0.5", "--output out", Files),
        "budgets" => printed("0.9"),
        "metric" => printed("f1"),
        "tolerance" => case("--tolerance 0.3", "--budget auto --output out", Printed),
        "sample-ratio" => printed("0.5"),
        "max-rows" => printed("3"),
        "seed" => case("--seed 7", "--max-rows 7", Printed),
        "finetune-steps" => case("--finetune-steps 3", "--budget 0.5 --output out", Printed),
        "learning-rate" | "batch-size" => {
            case(format!("--{option} 2"), "--budget 0.5 --output out --finetune-steps 3", Printed)
        }
        "output" => case("--output new", "", Files),
        "overwrite" => case("--overwrite", "--output used", Files),
        _ => using(option, at),
    }
}

/// The case of an option of `merge`, `export`, `inspect`, `bench` or `compare`.
fn other(option: &str, at: &Situation) -> Option<Case> {
    let file = if at.is(&["export"]) { "out/adapter_model.safetensors" } else { "out/model.safetensors" };
    let content = |value: &str| case(format!("--{option} {value}"), "", File(file));
    let bench = |value: &str| case(format!("--{option} {value}"), "--json", Bench);
    // What would be sent.
    let listed = |value: &str, place| case(format!("--{option} {value}"), "--dry-run --json", Json(place));
    match (at.command, option) {
        ("push", "adapter") => listed("../../adapters/text", "/files"),
        ("push", "base-model") => listed("org/base", "/base_model"),
        ("push", "revision") => listed("work", "/revision"),
        ("push", "message") => listed("First", "/message"),
        ("push", "private") => case("--private", "--dry-run --json", Json("/private")),
        ("push", "json") => case("--json", "--dry-run", Printed),
        // Without it the push is refused here.
        ("push", "dry-run") => case("--dry-run", "", Printed),
        (_, "json") => case("--json", "", Printed),
        ("compare", "jobs") => case("--jobs 2", "--json", Speed),
        ("compare", "threads") => case("--threads 2", "--json", Json("/cells/0/result/summary/threads")),
        ("compare", "from") => case("--from ../../compared", "", Files),
        ("compare", "summary" | "dry-run") => case(format!("--{option}"), "", Files),
        ("inspect", "PATH") => case("../../other-decoder", "", Printed),
        ("inspect", option) => training(option, at).map(|(changed, both, look)| match look {
            Learned | Json(_) => (changed, both.replace("--batch-size 16 --dry-run", ""), Printed),
            look => (changed, both, look),
        }),
        ("bench", "model") if at.is(&["decoder"]) => bench("../../model"),
        ("bench", "model") => bench("../../other-decoder"),
        // The adapter's form does not depend on the weights.
        ("export", "model") => content("../../model"),
        ("bench", "profile") => case("--profile p.json", "", Files),
        ("bench", "overwrite") => case("--overwrite", "--profile used/summary.json", Files),
        ("bench", "method") => bench("head"),
        ("bench", "rank") => bench("2"),
        ("bench", "quantize") => bench("q8_0"),
        ("bench", "batch") => bench("3"),
        ("bench", "length") => bench("9"),
        ("bench", "micro-tokens") => bench("8"),
        ("bench", "memory-limit") => bench("1kB"),
        ("bench", "generate") => bench("2"),
        ("bench", "recompute" | "score" | "kernels") => case(format!("--{option}"), "--json", Bench),
        // Times alone follow from them.
        ("bench", "dtype") => case("--dtype bf16", "", Speed),
        ("bench", "steps") => case("--steps 2", "", Speed),
        ("bench", "threads") => case("--threads 2", "--json", Json("/threads")),
        (_, "model") => {
            content(if at.is(&["decoder"]) { "../../other-decoder" } else { "../../other-model" })
        }
        (_, "adapter") if at.is(&["decoder"]) => content("../../adapters/text-other"),
        (_, "adapter") => content("../../adapters/encoder-other"),
        (_, "output") => case("--output new", "", Files),
        (_, "overwrite") => case("--overwrite", "--output used", Files),
        ("merge", "dtype") => content("bf16"),
        ("merge", "gguf") => case("--gguf f32", "--output m.gguf", Files),
        ("export", "to") => case("--to compact", "--output a.safetensors", Files),
        _ => None,
    }
}

/// What makes the sample stage short.
const SAMPLE: &str = "--sample-ratio 0.5 --sample-epochs 2";

fn situations() -> Vec<Situation> {
    let new = |name, command, words: String| Situation { name, command, words };
    let quick = "--batch-size 4 --epochs 2 --learning-rate 0.01 --threads 1 --output out";
    let train = |name: &'static str, words: &str| {
        let sampled = |word: &str| ["lora-drop", "sparse-adapter"].contains(&word);
        let sample = if name.split(' ').any(sampled) { SAMPLE } else { "" };
        let method = name.split(' ').next_back().unwrap();
        new(name, "train", format!("--method {method} {quick} {sample} {words}"))
    };
    let score = |name, words: &str| {
        new(
            name,
            "score",
            format!("--batch-size 4 --threads 1 --output out --learning-rate 0.01 {SAMPLE} {words}"),
        )
    };
    let encoder = "--model ../../model --data ../../labelled";
    let rated = "--model ../../model --data ../../rated";
    let (sets, tagged) = ("--model ../../model --data ../../sets", "--model ../../model --data ../../tagged");
    let text = "--model ../../decoder --data ../../texts";
    let labels = "--model ../../decoder --data ../../words --task classification";
    let used = |kind: &str| format!("--adapter ../../adapters/{kind} --threads 1");
    vec![
        train("encoder classification lora-drop", encoder),
        train("encoder classification lora", encoder),
        train("encoder classification full", encoder),
        train("encoder classification head", encoder),
        train("encoder classification adalora", encoder),
        train("encoder classification sparse-adapter", encoder),
        train("encoder multi-label lora", sets),
        train("encoder token-classification lora", tagged),
        train("encoder regression lora-drop", rated),
        train("encoder regression head", rated),
        train("decoder text lora-drop", text),
        train("decoder text lora", text),
        train("decoder text full", text),
        train("decoder text vera", text),
        train("decoder text plain lora", "--model ../../decoder --data ../../plain"),
        train("decoder text messages lora", "--model ../../decoder --data ../../messages"),
        train("decoder classification lora-drop", labels),
        train("decoder classification lora", labels),
        train("decoder classification full", labels),
        train("decoder classification head", labels),
        train("decoder regression lora", "--model ../../decoder --data ../../rated --task regression"),
        score("encoder classification", encoder),
        score("decoder text", text),
        score("decoder text plain", "--model ../../decoder --data ../../plain"),
        new(
            "encoder classification adapter",
            "score",
            format!("--output out --sample-ratio 0.5 {encoder} {}", used("encoder")),
        ),
        new("eval encoder", "eval", format!("--data ../../labelled --json {}", used("encoder"))),
        new("eval decoder labels", "eval", format!("--data ../../words --json {}", used("labels"))),
        new("eval decoder text", "eval", format!("--data ../../texts --json {}", used("text"))),
        new(
            "eval decoder plain",
            "eval",
            "--data ../../plain --json --model ../../decoder --threads 1".into(),
        ),
        new("predict encoder", "predict", format!("--input ../../labelled/dev.jsonl {}", used("encoder"))),
        new("predict decoder labels", "predict", format!("--input ../../words/dev.jsonl {}", used("labels"))),
        new(
            "generate decoder text",
            "generate",
            format!("--data ../../texts --max-new-tokens 6 {}", used("text")),
        ),
        new(
            "generate decoder prompt",
            "generate",
            format!("--prompt w5 --max-new-tokens 6 {}", used("text")),
        ),
        new("prune encoder", "prune", format!("--data ../../labelled {}", used("encoder"))),
        new("prune decoder labels", "prune", format!("--data ../../words {}", used("labels"))),
        new("prune decoder text", "prune", format!("--data ../../texts {}", used("text"))),
        new("merge encoder", "merge", "--adapter ../../adapters/encoder --output out".into()),
        new("merge decoder", "merge", "--adapter ../../adapters/text --output out".into()),
        new("export decoder", "export", "--adapter ../../adapters/text --to peft --output out".into()),
        new("push", "push", "org/mine --adapter ../../adapters/encoder".into()),
        new("inspect model", "inspect", "../../model".into()),
        new("inspect encoder classification", "inspect", encoder.into()),
        new("inspect decoder text", "inspect", text.into()),
        new("inspect decoder text plain", "inspect", "--model ../../decoder --data ../../plain".into()),
        new("inspect decoder text messages", "inspect", "--model ../../decoder --data ../../messages".into()),
        new("compare encoder", "compare", "../../table.toml --threads 1".into()),
        new(
            "bench encoder",
            "bench",
            "--model ../../model --batch 8 --length 8 --steps 1 --threads 1".into(),
        ),
        new(
            "bench decoder",
            "bench",
            "--model ../../decoder --batch 8 --length 8 --steps 1 --threads 1".into(),
        ),
    ]
}

/// Models, data and adapters.
fn prepare() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let template = "{% for m in messages %}<s> {{ m.content }} {{ end }} </s>{% endfor %}{% if add_generation_prompt %}<s> {% endif %}";
    fixture.write("decoder/tokenizer_config.json", json!({ "chat_template": template }).to_string());
    let mut weights = crate::common::weights();
    weights.values_mut().for_each(|(_, values)| values.iter_mut().for_each(|value| *value *= 0.5));
    crate::common::write_model(&fixture.path("other-model"), &crate::common::config(), &weights);
    // The same decoder with other weights: those of every block in another order.
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fixture.write(&format!("other-decoder/{file}"), fixture.read(&format!("decoder/{file}")));
    }
    let mut bytes = std::fs::read(fixture.path("decoder/model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The sign of every fifth value.
    (start + 3..bytes.len()).step_by(20).for_each(|at| bytes[at] ^= 0x80);
    fixture.write("other-decoder/model.safetensors", bytes);

    let english = ["the", "film", "was", "a", "story", "long", "music", "short"];
    let word = |i: usize| english[i % english.len()].to_string();
    let number = |i: usize| format!("w{}", 3 + i % 60);
    let phrase = |word: &dyn Fn(usize) -> String, i: usize, n: usize| {
        (0..n).map(|j| word(i * 7 + j * 5)).collect::<Vec<_>>().join(" ")
    };
    let rows = |folder: &str, row: &dyn Fn(usize) -> Value| {
        for (split, from, to) in [("train", 0, 16), ("dev", 16, 24)] {
            let text: String = (from..to).map(|i| row(i).to_string() + "\n").collect();
            fixture.write(&format!("{folder}/{split}.jsonl"), &text);
            fixture.write(&format!("holes/{folder}/{split}.jsonl"), text + "{\n");
        }
    };
    let class = |i: usize| ["bad", "good"][i % 2];
    rows(
        "labelled",
        &|i| json!({ "text": phrase(&word, i, 2 + i % 6), "other": phrase(&word, i + 3, 3), "label": class(i), "label2": class(i / 2) }),
    );
    rows(
        "words",
        &|i| json!({ "text": phrase(&number, i, 2 + i % 6), "other": phrase(&number, i + 3, 3), "label": class(i), "label2": class(i / 2) }),
    );
    rows("rated", &|i| {
        let (label, label2) = (0.5 + (i % 4) as f64, 0.5 + (i % 3) as f64);
        json!({ "text": phrase(&word, i, 2 + i % 6), "other": phrase(&word, i + 3, 3), "label": label, "label2": label2 })
    });
    // In a column of its own, a list of other classes or tags.
    let classes = |i: usize| [vec![], vec!["bad"], vec!["good"], vec!["bad", "good"]][i % 4].clone();
    rows(
        "sets",
        &|i| json!({ "text": phrase(&word, i, 2 + i % 6), "other": phrase(&word, i + 3, 3), "label": classes(i), "label2": classes(i / 2) }),
    );
    rows("tagged", &|i| {
        let many = 2 + i % 6;
        let words = |i: usize| (0..many).map(|j| word(i * 7 + j * 5)).collect::<Vec<_>>();
        let tag = |n: usize| if n.is_multiple_of(4) { ["B-bad", "B-good"][n / 4 % 2] } else { "O" };
        let tags = |i: usize| (0..many).map(|j| tag(i + j)).collect::<Vec<_>>();
        json!({ "tokens": words(i), "other": words(i + 3), "tags": tags(i), "label2": tags(i / 2) })
    });
    fixture.write("weights.json", r#"{ "bad": 3, "good": 1 }"#);
    fixture.write("tag-weights.json", r#"{ "O": 0.5, "B-bad": 3, "B-good": 1 }"#);
    let text = |i: usize| {
        let answer = phrase(&number, i + 9, 2);
        json!({ "prompt": phrase(&number, i, 2 + i % 5), "completion": format!(" {answer}"), "q": phrase(&number, i + 5, 3),
                "a": format!(" {}", number(i)) })
    };
    rows("texts", &text);
    rows("plain", &|i| json!({ "text": phrase(&number, i, 3 + i % 6), "other": phrase(&number, i + 1, 4) }));
    rows("messages", &|i| {
        json!({ "messages": [{ "role": "user", "content": phrase(&number, i, 1 + i % 4) },
                             { "role": "assistant", "content": phrase(&number, i + 4, 2) }] })
    });
    // Rows with the columns of every kind.
    rows("more", &|i| {
        json!({ "text": phrase(&word, i + 1, 3), "prompt": number(i), "completion": format!(" {}", number(i + 1)),
                "label": class(i + 1), "score": 0.5 + i as f64 })
    });
    std::fs::create_dir_all(fixture.path("w/setup")).unwrap();
    let table = "output = \"out\"\nseeds = [0]\n[options]\nmodel = \"../../model\"\nepochs = 1\nbatch-size = 4\n\
                 [[tasks]]\nname = \"A\"\ndata = \"../../labelled\"\n[[methods]]\nname = \"LoRA\"\nmethod = \"lora\"\n";
    fixture.write("table.toml", table);
    let mut command = fixture.command();
    let words = "compare ../../table.toml --output ../../compared";
    Outcome::of(command.current_dir(fixture.path("w/setup")).args(words.split_whitespace())).ok();
    for (name, words) in [
        ("encoder", "--model ../../model --data ../../labelled"),
        ("labels", "--model ../../decoder --data ../../words --task classification"),
        ("text", "--model ../../decoder --data ../../texts"),
    ] {
        for (name, seed) in [(name.to_string(), 0), (format!("{name}-other"), 7)] {
            let words = format!(
                "train {words} --method lora --epochs 4 --batch-size 4 --learning-rate 0.02 --seed {seed} \
                 --output ../../adapters/{name}"
            );
            let mut command = fixture.command();
            Outcome::of(command.current_dir(fixture.path("w/setup")).args(words.split_whitespace())).ok();
        }
    }
    fixture
}

/// A command's run in a folder of its own.
struct Run {
    folder: PathBuf,
    outcome: Outcome,
}

impl Run {
    fn new(fixture: &Fixture, number: usize, words: &str) -> Self {
        let folder = fixture.path(&format!("w/{number}"));
        std::fs::create_dir_all(folder.join("used")).unwrap();
        let run = json!({ "version": "0", "method": "lora", "status": "finished", "best_epoch": 1,
                          "outputs": ["summary.json", "importance.json"] });
        for file in ["summary.json", "importance.json"] {
            std::fs::write(folder.join("used").join(file), run.to_string()).unwrap();
        }
        let mut command = Command::cargo_bin("lora-drop").unwrap();
        command.current_dir(&folder).env("LORA_DROP_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
        let outcome = Outcome::of(command.args(words.split_whitespace()));
        Run { folder, outcome }
    }

    /// What must differ, with the exit code.
    fn seen(&self, look: Look) -> String {
        let code = self.outcome.code;
        let object = || serde_json::from_str::<Value>(&self.outcome.stdout).unwrap_or_default();
        let seen = match look {
            Learned => self.learned(),
            Json(place) => object().pointer(place).cloned().unwrap_or_default().to_string(),
            Measured => {
                let found = object();
                let keys = ["metrics", "loss", "rows", "tokens"].map(|key| found[key].to_string());
                keys.join(" ") + &found["generation"]["tokens"].to_string()
            }
            Printed => self.outcome.stdout.clone(),
            Reused => self.outcome.stderr.contains("read from disk").to_string(),
            Files => {
                let mut files = BTreeSet::new();
                list(&self.folder, &mut files);
                format!("{files:?}")
            }
            File(name) => format!("{:?}", std::fs::read(self.folder.join(name)).unwrap_or_default()),
            Bench => {
                let found = object();
                let names: Vec<&String> = found.as_object().map(|o| o.keys().collect()).unwrap_or_default();
                let parts = ["weights", "copies", "parameters", "activations", "scratch"];
                let memory = parts.map(|part| found["memory"][part].to_string());
                format!("{names:?} {memory:?} {}", found["seconds_per_scored_step"].is_null())
            }
            // The table of `bench` is times.
            Speed if self.outcome.stdout.contains("tokens/s") => String::new(),
            Speed if object().is_object() => self.seen(Measured),
            Speed => self.learned() + &self.outcome.stdout,
        };
        format!("{code:?} {seen}")
    }

    fn learned(&self) -> String {
        let read = |name: &str| std::fs::read(self.folder.join("out").join(name)).unwrap_or_default();
        let mut seen = String::from_utf8(read("importance.json")).unwrap();
        for line in String::from_utf8(read("metrics.jsonl")).unwrap().lines() {
            seen += &serde_json::from_str::<Value>(line).unwrap()["loss"].to_string();
        }
        for file in ["adapter_compact.safetensors", "model.safetensors"] {
            // The values alone: the header says how they were made.
            let bytes = read(file);
            let header = bytes.first_chunk().map_or(0, |length| 8 + u64::from_le_bytes(*length) as usize);
            seen += &format!("{:?}", &bytes[header..]);
        }
        seen
    }
}

fn list(folder: &Path, files: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Cached tokens have other names for other rows.
        if path.is_dir() && path.file_name().is_some_and(|name| name != "cache") {
            list(&path, files);
        }
        files.insert(path.to_str().unwrap().rsplit("/w/").next().unwrap().split_once('/').unwrap().1.into());
    }
}

/// The options of each command, as docs/options.md has them.
fn options(fixture: &Fixture) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut command = String::new();
    let page = fixture.run("reference").ok().stdout;
    for line in page.lines().take_while(|line| *line != "## Other names") {
        if let Some(name) = line.strip_prefix("## ") {
            command = name.to_string();
        } else if let Some(option) =
            line.strip_prefix("| `").and_then(|rest| rest.split(['`', ' ', '\\']).next())
            && !command.is_empty()
        {
            let option = option.strip_prefix("--").unwrap_or(option).to_string();
            found.entry(command.clone()).or_default().push(option);
        }
    }
    found
}

#[test]
fn a_changed_value_changes_something_or_is_refused() {
    let fixture = prepare();
    let options = options(&fixture);
    let situations = situations();
    let commands: BTreeSet<&str> = situations.iter().map(|at| at.command).collect();
    let all: BTreeSet<&str> = options.keys().map(String::as_str).collect();
    // These have one argument, a shell or a command.
    assert_eq!(commands, all.into_iter().filter(|name| !["completions", "man"].contains(name)).collect());

    let mut jobs = Vec::new();
    for at in &situations {
        for option in options[at.command]
            .iter()
            .filter(|option| !["RECIPE", "TABLE", "ORG/NAME"].contains(&option.as_str()))
        {
            let case = match at.command {
                "train" | "score" => training(option, at),
                "eval" | "predict" | "generate" => using(option, at),
                "prune" => pruning(option, at),
                _ => other(option, at),
            };
            let case = case.unwrap_or_else(|| panic!("{} --{option} has no case here", at.command));
            jobs.push((at, option, case));
        }
    }
    let (next, number) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    let acts = Mutex::new(BTreeSet::new());
    // Outputs of base runs, by their words and by where to look.
    let bases: Mutex<BTreeMap<String, String>> = Mutex::default();
    let run = |words: &str| Run::new(&fixture, number.fetch_add(1, Ordering::Relaxed), words);
    let work = || {
        while let Some((at, option, (changed, both, look))) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Layers that are named take the place of the sample.
            let words =
                if *option == "keep-layers" { at.words.replace(SAMPLE, "") } else { at.words.clone() };
            let base = format!("{} {words} {both}", at.command);
            let after = if option.as_str() == "PATH" {
                run(&format!("{} {changed}", at.command))
            } else {
                run(&format!("{base} {changed}"))
            };
            let Outcome { code, stderr, .. } = &after.outcome;
            let case = format!("{}: {} with {changed}", at.name, at.command);
            if stderr.contains("panicked") || code.is_none() {
                wrong.lock().unwrap().push(format!("{case}: {stderr}"));
            }
            if *code == Some(2) {
                continue;
            }
            let key = format!("{look:?} {base}");
            let known = bases.lock().unwrap().get(&key).cloned();
            let before = known.unwrap_or_else(|| run(&base).seen(*look));
            let same = before == after.seen(*look);
            bases.lock().unwrap().insert(key, before);
            if same != matches!(look, Speed) {
                wrong
                    .lock()
                    .unwrap()
                    .push(format!("{case}: {}{stderr}", if same { "nothing changed; " } else { "" }));
            }
            acts.lock().unwrap().insert((at.command, option.to_string()));
            std::fs::remove_dir_all(&after.folder).unwrap();
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), jobs.len(), wrong.join("\n"));
    // An option that is always refused would be useless.
    let acts = acts.into_inner().unwrap();
    let refused: BTreeSet<_> = jobs
        .iter()
        .map(|(at, option, _)| (at.command, option.to_string()))
        .filter(|pair| !acts.contains(pair))
        .collect();
    let expected = [
        // Data that is not on the hub, impossible limits, no beams, a folder that is a run's and not a
        // model's, an adapter's or a pruning's, no checkpoint (see resume.rs), no file of scores (see
        // methods.rs), and no adapter of plain texts.
        ("bench", "memory-limit"),
        ("eval", "data-config"),
        ("eval", "early-stopping"),
        ("eval", "length-penalty"),
        ("export", "overwrite"),
        ("generate", "data-config"),
        ("generate", "early-stopping"),
        ("generate", "length-penalty"),
        ("inspect", "data-config"),
        ("merge", "overwrite"),
        ("prune", "data-config"),
        ("prune", "no-eos"),
        ("prune", "overwrite"),
        ("score", "data-config"),
        ("score", "keep-layers"),
        ("score", "memory-limit"),
        ("train", "data-config"),
        ("train", "memory-limit"),
        ("train", "resume"),
        ("train", "scores"),
    ];
    assert_eq!(refused, expected.map(|(command, option)| (command, option.to_string())).into());
}
