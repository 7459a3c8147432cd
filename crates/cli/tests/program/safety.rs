//! What comes from models and data does no harm: templates that take all time or memory, control
//! characters on the terminal, token types that the model does not have, weights cut short while
//! they are mapped.

use std::time::{Duration, Instant};

use crate::common::{Fixture, Outcome, config, weights, write_model};
use serde_json::json;

/// A decoder whose chat template is this.
fn with_template(template: &str) -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write("decoder/chat_template.jinja", template);
    fixture
}

/// The largest peak memory, in bytes, of a child process of this test so far, including the
/// children that it waited for.
#[cfg(target_os = "linux")]
fn peak_of_children() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure that it is given.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    usage.ru_maxrss as u64 * 1024
}

/// Two equal lists of nested lists, 2^60 elements if one looks at all of them.
const DOUBLED: &str = "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}\
                       {% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}";

#[cfg(target_os = "linux")]
#[test]
fn templates_keep_to_one_budget_of_time_and_memory() {
    let doubled = |use_it: &str| DOUBLED.to_string() + use_it;
    for template in [
        "{% set n = namespace(x='ab' * 500) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}".into(),
        "{% set n = namespace(x=[1] * 500) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}".into(),
        "{{ '{:>4000000000}'.format(1) }}".into(),
        "{{ '%4000000000d' % 1 }}".into(),
        "{{ ('x' * 100000).replace('x', 'y' * 1000000) }}".into(),
        "{{ ('x\n' * 100000) | indent(1000000) }}".into(),
        "{{ range(4000000000) | list | length }}".into(),
        doubled("{{ n.a == n.b }}"),
        doubled("{{ n.a | tojson }}"),
        doubled("{{ n.a | string | length }}"),
        doubled("{{ [n.a, n.b] | sort | length }}"),
        // At compile time, when constants are folded.
        format!("{{{{ {0} == {0} }}}}", "[".repeat(100) + &"],".repeat(99) + "]"),
        format!("{{{{ 1{} }}}}", "+1".repeat(300_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(300_000), ")".repeat(300_000)),
    ] {
        let shown: String = template.chars().take(120).collect();
        let fixture = with_template(&template);
        let began = Instant::now();
        let outcome = fixture.run("generate --model decoder --chat --prompt w5 --max-new-tokens 1");
        assert!(began.elapsed() < Duration::from_secs(30), "{shown}: {:?}", began.elapsed());
        assert!(peak_of_children() < 600 << 20, "{shown}: {} MiB", peak_of_children() >> 20);
        // Some of them are cheap in this engine; none does harm.
        if outcome.code != Some(0) {
            outcome.fails(1, &["chat_template.jinja"]);
        }
    }
}

#[cfg(unix)]
#[test]
fn the_limit_that_a_template_exceeds_is_named() {
    for (template, parts) in [
        ("{{ '{:>4000000000}'.format(1) }}".to_string(), &["MiB of memory"][..]),
        (DOUBLED.to_string() + "{{ n.a == n.b }}", &["more than 5 s for this conversation"]),
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".into(),
            &["does it loop?"],
        ),
        ("\n{{ raise_exception('no') }}".into(), &["line 2 of the template", "refuses the conversation: no"]),
    ] {
        let fixture = with_template(&template);
        let outcome = fixture.run("generate --model decoder --chat --prompt w5 --max-new-tokens 1");
        let parts: Vec<&str> = parts.iter().copied().chain(["decoder/chat_template.jinja"]).collect();
        outcome.fails(1, &parts);
    }
}

#[test]
fn a_worker_that_was_ended_is_replaced() {
    // A row that takes all memory, between others; the first odd row is the one that is named.
    let template = "{% for m in messages %}{% if m.content == 'w9' %}{{ '{:>4000000000}'.format(1) }}{% endif %}\
                    {{ m.content }} </s>{% endfor %}";
    let fixture = with_template(template);
    let row = |word: &str| {
        json!({ "messages": [{ "role": "user", "content": "w5" }, { "role": "assistant", "content": word }] })
            .to_string()
            + "\n"
    };
    let rows = |odd: Option<usize>| -> String {
        (0..40).map(|i| row(if Some(i) == odd { "w9" } else { "w6" })).collect()
    };
    let train = "train --model decoder --output out --max-length 32 --method lora --dry-run --data";
    fixture.write("good/train.jsonl", rows(None));
    fixture.run(&format!("{train} good")).ok();
    fixture.write("odd/train.jsonl", rows(Some(20)));
    fixture.run(&format!("{train} odd")).fails(1, &["train.jsonl, line 21", "chat_template.jinja"]);
}

#[test]
fn ten_thousand_conversations_are_written_quickly() {
    let fixture = with_template("{% for m in messages %}{{ m.role }} {{ m.content }} </s>{% endfor %}");
    let row = |i: usize| {
        let turn =
            |role: &str| json!({ "role": role, "content": format!("w{} w{}", 3 + i % 90, 3 + i / 7 % 90) });
        json!({ "messages": [turn("user"), turn("assistant")] }).to_string() + "\n"
    };
    fixture.write("texts/train.jsonl", (0..10_000).map(row).collect::<String>());
    fixture.write("texts/dev.jsonl", (0..10).map(row).collect::<String>());
    let began = Instant::now();
    let command = "train --model decoder --data texts --output out --max-length 32 --method lora --dry-run";
    fixture.run(command).ok();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

const RED: &str = "\u{1b}[31m";

#[test]
fn control_characters_are_never_printed_raw() {
    let fixture = Fixture::new();
    let label =
        |i: usize| if i.is_multiple_of(2) { format!("{RED}good\u{9b}2J") } else { "bad\u{202e}".to_string() };
    let rows = |n: usize| -> String {
        let row = |i| {
            json!({ "\u{1b}]0;text\u{7}": format!("{RED}film it"), "label": label(i) }).to_string() + "\n"
        };
        (0..n).map(row).collect()
    };
    fixture.write("odd/train.jsonl", rows(40));
    fixture.write("odd/dev.jsonl", rows(20));
    let silent = |outcome: Outcome| {
        for text in [&outcome.stdout, &outcome.stderr] {
            let raw = text.chars().find(|&c| c.is_control() && c != '\n' && c != '\t' || c == '\u{202e}');
            assert_eq!(raw, None, "{text:?}");
        }
        outcome
    };
    let column = "--text-column=\u{1b}]0;text\u{7}";
    let train = "train --model model --data odd --output out --method lora --epochs 1 --batch-size 8";
    let words: Vec<&str> = train.split(' ').chain([column]).collect();
    let outcome = silent(fixture.run_words(&words)).ok();
    assert!(outcome.stderr.contains("\\u001b[31mgood\\u009b2J"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("\\u001b]0;text\\u0007"), "{}", outcome.stderr);
    let shown = silent(fixture.run("inspect out/adapter_compact.safetensors")).ok().stdout;
    assert!(shown.contains("\\u001b[31mgood"), "{shown}");
    silent(fixture.run("inspect out")).ok();
    // Errors over data, over a file's name, and over a model's settings.
    fixture.write("bad/train.jsonl", format!("{{\"text\": \"a\", \"label\": {{\"{RED}\": 1}}}}\n"));
    silent(fixture.run("train --model model --data bad --output never")).fails(1, &[]);
    silent(fixture.run_words(&["train", "--model", "model", "--data", "\u{1b}[2J", "--output", "never"]));
    fixture.write("model/config.json", json!({ "model_type": RED }).to_string());
    let message = silent(fixture.run("inspect model")).fails(1, &["model_type"]).stderr;
    assert!(message.contains("[31m"), "{message}");
}

#[test]
fn token_types_that_the_model_does_not_have_are_named() {
    let fixture = Fixture::new();
    let (mut config, mut weights) = (config(), weights());
    config["type_vocab_size"] = json!(1);
    let types = weights.get_mut("bert.embeddings.token_type_embeddings.weight").unwrap();
    *types = (vec![1, crate::common::HIDDEN], types.1[..crate::common::HIDDEN].to_vec());
    write_model(&fixture.path("single"), &config, &weights);
    let row = |i: usize| {
        json!({ "sentence1": "a film", "sentence2": "the film", "label": i % 2 }).to_string() + "\n"
    };
    fixture.write("pairs/train.jsonl", (0..40).map(row).collect::<String>());
    fixture.write("pairs/dev.jsonl", (0..20).map(row).collect::<String>());
    let expected = ["type_vocab_size", "gives a token the type 1, but the model knows 1", "another model"];
    fixture.run("train --model single --data pairs --output never").fails(1, &expected);
    // Single texts are of type 0, and so they train; the pairs come with what is predicted.
    fixture.train("--model single --method lora --epochs 1").ok();
    let eval = "eval --adapter out --data pairs --text-column sentence1 --pair-column sentence2";
    fixture.run(eval).fails(1, &expected[..1]);
    let predict =
        "predict --adapter out --text-column sentence1 --pair-column sentence2 --input pairs/dev.jsonl";
    fixture.run(predict).fails(1, &expected);
    // Tokens of another model, from the cache, are not taken for ours.
    fixture.run("train --model model --data pairs --output two --method lora --epochs 1").ok();
    fixture.run("train --model single --data pairs --output never").fails(1, &expected);
}

#[cfg(unix)]
#[test]
fn weights_cut_short_while_they_are_mapped_are_named() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 1").ok();
    let mut process = fixture.process("predict --adapter out");
    let mut running = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut rows, mut labels) =
        (running.stdin.take().unwrap(), BufReader::new(running.stdout.take().unwrap()));
    let row = json!({ "text": "a good film" }).to_string() + "\n";
    rows.write_all(row.as_bytes()).unwrap();
    let mut line = String::new();
    labels.read_line(&mut line).unwrap();
    assert!(line.contains("\"label\""), "{line}");

    let file = std::fs::File::options().write(true).open(fixture.path("model/model.safetensors")).unwrap();
    file.set_len(0).unwrap();
    rows.write_all(row.as_bytes()).unwrap();
    drop(rows);
    let mut said = String::new();
    running.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = running.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status} {said}");
    assert!(said.contains("model/model.safetensors: this file was cut short"), "{said}");
    let mut rest = String::new();
    labels.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "no row is labelled with weights that are not there");
}

#[test]
fn a_recipe_holds_absolute_paths() {
    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 1").ok();
    let recipe: toml::Table = fixture.read("out/recipe.toml").parse().unwrap();
    for key in ["model", "data"] {
        assert_eq!(recipe[key].as_str().unwrap(), fixture.path(key).to_str().unwrap());
    }
    // From another folder.
    let elsewhere = fixture.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let adapter = fixture.path("out");
    let mut eval = fixture.command();
    eval.current_dir(&elsewhere)
        .arg("eval")
        .arg("--adapter")
        .arg(&adapter)
        .arg("--data")
        .arg(fixture.path("data"));
    Outcome::of(&mut eval).ok();
}

#[test]
fn a_path_that_is_not_there_is_no_name_on_the_hub() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("models")).unwrap();
    for command in [
        "train --data data --output never --model",
        "score --data data --output never --model",
        "eval --data data --model",
        "predict --model",
        "generate --prompt x --model",
        "merge --adapter x --output never --model",
        "export --adapter x --to peft --output never --model",
        "bench --model",
        "inspect",
    ] {
        let outcome = fixture.run(&format!("{command} models/nope"));
        outcome.fails(1, &["models/nope: there is no such folder in models", "give hf://models/nope"]);
    }
}
