//! The command line itself: help, recipes, streams, exit codes, and what needs no training.

use std::process::Stdio;

use crate::common::{Fixture, HIDDEN, LAYERS, Outcome, write_tensors};
use serde_json::json;

const COMMANDS: [&str; 9] =
    ["train", "compare", "score", "eval", "predict", "inspect", "merge", "bench", "completions"];

#[test]
fn every_command_has_help_with_examples() {
    let fixture = Fixture::new();
    let list = fixture.run("--help").ok().stdout;
    for command in COMMANDS {
        assert!(list.contains(&format!("\n  {command} ")), "{command} is not in the list");
        let help = fixture.run(&format!("{command} --help")).ok();
        assert!(help.stdout.contains("Examples:\n  lora-drop "), "{command}: {}", help.stdout);
        assert_eq!(help.stderr, "");
    }
    let help = fixture.run("train --help").stdout;
    // The lines are wrapped.
    let words: Vec<&str> = help.split_whitespace().collect();
    assert!(words.join(" ").contains("or the head alone [default: lora-drop]"), "{help}");
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(
        Fixture::new().run("--version").ok().stdout,
        format!("lora-drop {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_ends_with_2() {
    let fixture = Fixture::new();
    fixture.run("").fails(2, &["Usage"]);
    fixture.run("tarin").fails(2, &["tarin", "train"]);
    fixture.run("eval --model model").fails(2, &["--data"]);
    fixture.run("inspect").fails(2, &["PATH"]);
    fixture.run("bench --model model --steps 0").fails(2, &["--steps", "from 1 up"]);
    fixture.run("eval --model model --data data --max-length 2").fails(2, &["--max-length is 2", "3 to"]);
    for option in ["--rank 4", "--learning-rate 1e-3", "--memory-limit 1GB", "--recompute"] {
        let name = option.split(' ').next().unwrap();
        fixture
            .run(&format!("score --model m --data d --output o --adapter a {option}"))
            .fails(2, &["adapter", name]);
    }
}

#[test]
fn manual_pages_have_the_options() {
    let fixture = Fixture::new();
    let page = fixture.run("man").ok().stdout;
    assert!(page.starts_with(".ie") && page.contains("train"), "{page}");
    let page = fixture.run("man train").ok().stdout;
    assert!(page.contains("learning\\-rate") && page.contains("Peak learning rate"), "{page}");
    assert!(page.is_ascii() && page.contains(".SH EXAMPLES\n.nf\n  lora\\-drop train"), "{page}");
    fixture.run("man trane").fails(2, &["trane"]);
    fixture.run("man train --output pages").fails(2, &["cannot be used with"]);

    fixture.run("man --output new/pages").ok();
    let pages = fixture.files("new/pages");
    assert!(pages.contains(&"lora-drop.1".into()) && pages.contains(&"lora-drop-push.1".into()), "{pages:?}");
    // Commands for the program's own use have none.
    assert!(!pages.iter().any(|page| page.contains("worker") || page.contains("reference")), "{pages:?}");
    let without_date = |page: &str| page.lines().filter(|line| !line.starts_with(".TH")).collect::<String>();
    assert_eq!(without_date(&fixture.read("new/pages/lora-drop-train.1")), without_date(&page));
}

#[test]
fn completions_know_the_commands() {
    let fixture = Fixture::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = fixture.run(&format!("completions {shell}")).ok().stdout;
        assert!(text.contains("sample-epochs") && text.contains("predict"), "{shell}");
        assert!(!text.contains("template-worker"), "{shell}");
    }
}

#[cfg(unix)]
#[test]
fn completions_complete_words_of_options_and_paths() {
    let fixture = Fixture::new();
    let script = r#"source <("$0" completions bash); COMP_WORDS=(lora-drop "$@" ""); COMP_CWORD=$(($# + 1))
        _lora__drop lora-drop "" "${@: -1}"; echo "${COMPREPLY[@]}""#;
    let completed = |words: &str| Outcome::of_process(&mut fixture.shell(script, words)).ok().stdout;
    assert!(completed("train --method").starts_with("lora-drop lora dora "));
    assert_eq!(completed("export --to"), "peft compact gguf\n");
    let found = completed("eval --data");
    assert!(found.split_whitespace().any(|path| path == "data"), "{found}");
    assert!(completed("").contains("train") && !completed("").contains("worker"));
}

#[test]
fn a_model_can_be_inspected() {
    let fixture = Fixture::new();
    let table = fixture.run("inspect model").ok().stdout;
    assert!(table.contains("architecture  bert") && table.contains("intermediate.dense"), "{table}");
    let object = fixture.run("inspect model --json").ok().json();
    assert_eq!(object["kind"], "model");
    assert_eq!(
        (object["layers"].as_u64(), object["hidden_size"].as_u64()),
        (Some(LAYERS as u64), Some(HIDDEN as u64))
    );
    assert_eq!(object["head_found"], false);
    let expected: usize = crate::common::weights().values().map(|(_, values)| values.len()).sum();
    assert_eq!(object["parameters"], expected);
    assert_eq!(object["modules"][0]["name"], "query");
    assert_eq!(object["modules"][0]["lora_parameters_per_rank"], 2 * HIDDEN * LAYERS);
}

#[test]
fn an_adapter_shows_what_is_shared() {
    let fixture = Fixture::new();
    let mut tensors = crate::common::Tensors::new();
    for layer in 0..4 {
        // Layers 1 and 3 have one pair between them.
        let value = if layer % 2 == 1 { 9.0 } else { layer as f32 };
        let module = format!("base_model.model.bert.encoder.layer.{layer}.attention.self.value");
        tensors.insert(format!("{module}.lora_A.weight"), (vec![2, 4], vec![value; 8]));
        tensors.insert(format!("{module}.lora_B.weight"), (vec![6, 2], vec![value; 12]));
    }
    tensors.insert("base_model.model.classifier.bias".to_string(), (vec![3], vec![0.0; 3]));
    fixture.write(
        "adapter/adapter_config.json",
        json!({"r": 2, "lora_alpha": 16, "peft_type": "LORA"}).to_string(),
    );
    write_tensors(&fixture.path("adapter/adapter_model.safetensors"), &tensors);
    let object = fixture.run("inspect adapter --json").ok().json();
    assert_eq!(object["modules"], json!([{"name": "value", "own": [0, 2], "shared": [1, 3]}]));
    assert_eq!(
        (object["lora_parameters"].as_u64(), object["lora_parameters_full"].as_u64()),
        (Some(60), Some(80))
    );
    assert_eq!(
        (&object["ranks"], &object["alphas"], &object["head_parameters"]),
        (&json!([2]), &json!([16.0]), &json!(3))
    );
    let table = fixture.run("inspect adapter").ok().stdout;
    assert!(table.contains("own in layers 0, 2; shared in layers 1, 3"), "{table}");
}

/// summary.json of a run that was never made.
fn summary(method: &str, accuracy: f64) -> String {
    json!({
        "version": "0", "method": method, "model": "m", "data": "d", "seed": 0, "status": "finished",
        "metrics": {"accuracy": accuracy}, "metric": "accuracy", "best_epoch": 2, "epochs": 3,
        "trainable_parameters": 1234, "lora_parameters": 700, "lora_parameters_full": 1200, "retained_ratio": 0.583,
        "kept": {"query": [1, 2]}, "train_tokens": 10, "train_tokens_per_second": 2000.0, "sample_steps": 5,
        "sample_settled": true, "sample_seconds": 1.0, "train_seconds": 2.0, "evaluate_seconds": 0.5,
        "total_seconds": 3.5, "peak_rss_bytes": 2_000_000, "threads": 2, "files": {},
    })
    .to_string()
}

#[test]
fn runs_can_be_inspected_and_compared() {
    let fixture = Fixture::new();
    fixture.write("one/summary.json", summary("lora", 0.75));
    fixture.write("two/summary.json", summary("lora-drop", 0.875));
    let table = fixture.run("inspect two").ok().stdout;
    assert!(table.contains("accuracy     0.8750") && table.contains("query: 1, 2"), "{table}");
    let table = fixture.run("inspect one two").ok().stdout;
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[1].starts_with("one  LoRA ") && lines[2].starts_with("two  LoRA-drop "), "{table}");
    assert!(lines[2].contains("0.8750") && lines[2].contains("58.3 %"), "{table}");
    let object = fixture.run("inspect one two --json").ok().json();
    assert_eq!(object["kind"], "runs");
    assert_eq!(object["runs"][1]["method"], "lora-drop");
    assert_eq!(object["runs"][0]["path"], "one");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let fixture = Fixture::new();
    let mut command = std::process::Command::new(fixture.command().get_program());
    let mut child = command.args(["completions", "bash"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_command_line_says_what_it_puts_away_from_a_recipe() {
    let fixture = Fixture::new();
    fixture.write(
        "recipe.toml",
        "model = \"absent/./x\"\ndata = \"data\"\noutput = \"out\"\nrank = 4\nthreshold = 0.8\n",
    );
    let outcome = fixture.run("train recipe.toml --method full");
    assert!(
        outcome.stderr.contains("no effect here and are left out: rank, threshold"),
        "{}",
        outcome.stderr
    );
    let outcome = fixture.run("train recipe.toml --method full --quiet");
    assert!(!outcome.stderr.contains("left out"), "{}", outcome.stderr);
    assert_eq!(outcome.code, Some(1));
}
