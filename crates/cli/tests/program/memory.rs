//! The memory of runs of the real binary: estimated, seen, and limited.

use crate::common::{Fixture, Outcome};
use serde_json::Value;

/// One step an epoch: all rows in a batch, so that there is something to cut.
const WIDE: &str = "--batch-size 96 --epochs 2";

fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}"))
}

fn plan(fixture: &Fixture, options: &str) -> Value {
    fixture.train(&format!("{WIDE} --dry-run --json {options}")).ok().json()["memory"].clone()
}

#[test]
fn the_arena_is_as_estimated() {
    let fixture = Fixture::new();
    let runs = [
        "--threads 1 --method lora",
        "--threads 1 --method lora --recompute --micro-tokens 100",
        "--threads 1 --method lora --lora-dropout 0.1 --target-modules all-linear",
        "--threads 1 --method full",
        "--threads 1 --method full --recompute",
        "--threads 1 --method head --activation-cache 0",
        "--threads 1 --method lora-drop --sample-ratio 1 --sample-epochs 2",
        "--threads 2 --method lora",
        "--threads 8 --method lora --micro-tokens 100",
    ];
    for (number_of_run, options) in runs.into_iter().enumerate() {
        let options = format!("{options} --output out{number_of_run}");
        let estimated = plan(&fixture, &options);
        let options = format!("{WIDE} {options} --json");
        let summary = fixture.train(&options).ok().json();
        assert_eq!(summary["memory"]["activations"], estimated["activations"], "{options}");
        let (used, planned) = (number(&summary, "activation_bytes"), number(&estimated, "activations"));
        // Not every worker gets one of the largest parts, and with fewer processors than threads
        // some get none.
        let alone = options.contains("--threads 1");
        let least = if alone { planned } else { planned / number(&estimated, "together") };
        assert!((least..=planned).contains(&used), "{options}: {used} of {planned}");
        let (seen, total) = (number(&summary, "peak_rss_bytes"), number(&summary["memory"], "total"));
        assert!(seen > 0 && total > 0);
        // In a process of 20 MB nearly all is the program, whose size is only estimated.
        let off = seen.abs_diff(total) as f64 / seen as f64;
        let unused = options.contains("--threads 8") && seen < total;
        assert!(off < 0.3 || unused, "{options}: {total} estimated, {seen} seen");
        let parts = ["program", "data", "weights", "copies", "parameters", "activations", "scratch"];
        assert!(
            parts.iter().map(|name| number(&estimated, name)).sum::<u64>() <= number(&estimated, "total")
        );
    }
}

#[test]
fn a_dry_run_shows_the_parts() {
    let fixture = Fixture::new();
    let table = fixture.train("--dry-run").ok().stdout;
    for part in ["memory ", "micro-batches of 512 tokens", "program", "activations", "parameters"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let told = fixture.train("--epochs 1").ok().stderr;
    assert!(told.contains("Memory") && told.contains("micro-batches of 512 tokens"), "{told}");
}

#[test]
fn packed_weights_are_estimated_as_copies() {
    let fixture = Fixture::new();
    let runs = ["--method lora", "--method lora --dtype bf16", "--method full --dtype bf16"];
    // Packed once, for both directions.
    let [single, half, full] = runs.map(|options| number(&plan(&fixture, options), "copies"));
    assert!(single == 2 * half && half > 0 && full == 0, "{single}, {half}, {full}");
}

/// A limit in kB: the estimated total with only this share of the activations.
fn limit(estimated: &Value, kept: f64) -> String {
    let activations = number(estimated, "activations") as f64;
    format!("{}kB", (number(estimated, "total") as f64 - (1.0 - kept) * activations) as u64 / 1000)
}

#[test]
fn a_limit_chooses_how_steps_are_cut() {
    let fixture = Fixture::deep();
    let free = plan(&fixture, "--method lora");
    assert_eq!((number(&free, "micro_tokens"), number(&free, "together")), (512, 2));
    let mut most = 0;
    for (run, kept) in [3.0, 0.7, 0.25].into_iter().enumerate() {
        let limit = limit(&free, kept);
        let options = format!(
            "{WIDE} --method lora --hidden-dropout 0.1 --memory-limit {limit} --output out{run} --json"
        );
        let outcome = fixture.train(&options).ok();
        let memory = &outcome.json()["memory"];
        let tokens = number(memory, "micro_tokens");
        if run == 0 {
            // If there is room enough, a limit changes nothing.
            let parts = ["micro_tokens", "together", "copies", "activations", "recompute"];
            parts.iter().for_each(|&part| assert_eq!(memory[part], free[part], "{part}"));
        } else {
            assert!(number(memory, "activations") < most, "{limit}: {memory}");
        }
        most = number(memory, "activations");
        assert!(number(memory, "total") <= number(memory, "limit"), "{memory}");
        assert!(outcome.stderr.contains(&format!("micro-batches of {tokens} tokens")));
        // The recipe has what was chosen, so that it repeats the run wherever it is.
        let recipe = fixture.read(&format!("out{run}/recipe.toml"));
        assert!(recipe.contains(&format!("micro-tokens = {tokens}")), "{recipe}");
        assert!(recipe.contains(&format!("memory-limit = \"{limit}\"")), "{recipe}");
    }
    fixture.run("train out1/recipe.toml --output again --threads 1").ok();
    assert_eq!(
        std::fs::read(fixture.path("out1/adapter_model.safetensors")).unwrap(),
        std::fs::read(fixture.path("again/adapter_model.safetensors")).unwrap()
    );
}

#[test]
fn a_limit_changes_no_bit_of_the_same_cut() {
    let fixture = Fixture::deep();
    for (run, options) in ["", "--dtype bf16"].into_iter().enumerate() {
        let options = format!("{WIDE} --method lora --hidden-dropout 0.1 --micro-tokens 500 {options}");
        let train = |name: &str, limit: &str| {
            let options = format!("{options} --output {name}{run} {limit} --json");
            fixture.train(&options).ok().json()["memory"].clone()
        };
        let free = train("free", "");
        // The second micro-batch is what is given up.
        let alone = train("alone", &format!("--memory-limit {}", limit(&free, 0.75)));
        let of = |memory: &Value| (number(memory, "together"), memory["recompute"] == true);
        assert_eq!([of(&free), of(&alone)], [(2, false), (1, false)]);
        let files = ["adapter_model.safetensors", "metrics.jsonl"];
        let of = |name: &str| files.map(|file| fixture.path(&format!("{name}{run}/{file}")));
        let losses = |path: &std::path::Path| -> Vec<Value> {
            let lines = std::fs::read_to_string(path).unwrap();
            lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].clone()).collect()
        };
        let (free, alone) = (of("free"), of("alone"));
        assert!(std::fs::read(&free[0]).unwrap() == std::fs::read(&alone[0]).unwrap());
        assert_eq!(losses(&free[1]), losses(&alone[1]));
    }
}

#[test]
fn scores_repeat_with_the_cut_that_a_limit_chose() {
    let fixture = Fixture::deep();
    let score = |options: &str| {
        let arguments =
            format!("score --model model --data data --sample-ratio 1 --sample-epochs 2 {options} --json");
        fixture.run(&arguments).ok().json()
    };
    let wide = "--batch-size 96 --learning-rate 1e-3";
    let estimated = plan(&fixture, "--method lora-drop --sample-ratio 1 --sample-epochs 2");
    let limited = score(&format!("{wide} --threads 2 --memory-limit {} --output a", limit(&estimated, 0.6)));
    let tokens = number(&limited, "micro_tokens");
    assert!(tokens < number(&estimated, "micro_tokens"), "{limited}");
    let again = score(&format!("{wide} --threads 1 --micro-tokens {tokens} --output b"));
    assert_eq!(limited["modules"], again["modules"]);
    assert_eq!(fixture.read("a/importance.json"), fixture.read("b/importance.json"));
}

#[test]
fn an_impossible_limit_says_what_would_do() {
    let fixture = Fixture::new();
    let outcome = fixture.train(&format!("{WIDE} --memory-limit 2MB"));
    let message = outcome.stderr.clone();
    outcome.fails(2, &["--memory-limit 2MB", "the least that would do is", "--micro-tokens", "--max-length"]);
    assert!(!fixture.path("out").exists());
    // The limit that the message names is enough, except for pages of the program that may not have
    // been resident then.
    let least: u64 =
        message.split("that would do is ").nth(1).unwrap().split("MB").next().unwrap().parse().unwrap();
    let fits: Outcome = fixture.train(&format!("{WIDE} --epochs 1 --memory-limit {}MB", least + 4));
    fits.ok();
    fixture.train("--output other --dry-run --memory-limit 2MB").fails(2, &["the least that would do"]);
    fixture.run("score --model model --data data --output s --memory-limit 2MB").fails(2, &["the least"]);
}

#[test]
fn a_size_has_a_number_and_a_unit() {
    let fixture = Fixture::new();
    for size in ["600", "lots", "-1GB", "1.5XB"] {
        fixture.train(&format!("--memory-limit={size}")).fails(2, &["--memory-limit", "600MB", "1.5GB"]);
    }
    fixture.write(
        "recipe.toml",
        "model = \"model\"\ndata = \"data\"\noutput = \"out\"\nmemory-limit = \"much\"\n",
    );
    fixture.run("train recipe.toml").fails(2, &["recipe.toml:4", "memory-limit", "600MB"]);
}

#[test]
fn recomputing_changes_no_bit() {
    let fixture = Fixture::new();
    let methods = [("lora", "lora"), ("full", "full"), ("drop", "lora-drop --unselected drop --top-k 1")];
    for (name, method) in methods {
        let options = format!("{WIDE} --hidden-dropout 0.1 --attention-dropout 0.1");
        fixture.train(&format!("--method {method} {options} --output {name}-kept")).ok();
        fixture.train(&format!("--method {method} {options} --output {name}-again --recompute")).ok();
        let file = if method == "full" { "model.safetensors" } else { "adapter_model.safetensors" };
        let [kept, again] = ["kept", "again"]
            .map(|run| std::fs::read(fixture.path(&format!("{name}-{run}/{file}"))).unwrap());
        assert!(kept == again, "{method}");
        let [kept, again] = ["kept", "again"].map(|run| {
            number(&fixture.read_json(&format!("{name}-{run}/summary.json"))["memory"], "activations")
        });
        // If one layer has LoRA, there are only one layer's activations.
        let less = again < kept || name == "drop" && again == kept;
        assert!(less, "{method}: {again} {kept}");
    }
}
