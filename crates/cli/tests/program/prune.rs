//! `lora-drop prune` on tiny models: what it says, what it writes, that everything else works on
//! it, and what it refuses.

use crate::common::Fixture;
use lora_drop::adapter::AdapterFile;
use serde_json::{Value, json};

/// A trained LoRA of rank 8 on all linear layers of the tiny BERT.
fn trained() -> Fixture {
    let fixture = Fixture::new();
    fixture.train("--method lora --rank 8 --alpha 16 --target-modules all-linear").ok();
    fixture
}

/// A tiny Llama with a LoRA that has learned to reverse two words.
fn decoder() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(64, 16);
    let options = "--max-length 32 --epochs 3 --batch-size 8 --learning-rate 1e-2 --rank 4 --method lora";
    fixture.run(&format!("train --model decoder --data texts --output out {options}")).ok();
    fixture
}

/// The adapter without what only this program writes.
fn as_of_peft(fixture: &Fixture) {
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fixture.write(&format!("peft/{file}"), std::fs::read(fixture.path(&format!("out/{file}"))).unwrap());
    }
}

const PRUNE: &str = "prune --adapter out --data data --threads 2";

fn number(value: &Value, place: &str) -> f64 {
    value.pointer(place).and_then(Value::as_f64).unwrap_or_else(|| panic!("{place} of {value}"))
}

/// The metrics of `eval` with an adapter.
fn measured(fixture: &Fixture, adapter: &str, data: &str) -> Value {
    fixture.run(&format!("eval --adapter {adapter} --data {data} --json")).ok().json()
}

#[test]
fn a_table_over_budgets() {
    let fixture = trained();
    let shown = fixture.run(PRUNE).ok();
    let lines: Vec<&str> = shown.stdout.lines().collect();
    let heads: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(heads, ["budget", "parameters", "rank", "energy", "accuracy", "loss", "f1"]);
    assert!(lines[1].starts_with("whole ") && lines[1].contains("100.0 %") && lines[1].contains('█'));
    let budgets: Vec<&str> = lines[2..8].iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(budgets, ["0.75", "0.5", "0.35", "0.25", "0.125", "0.0625"]);
    assert!(shown.stdout.contains("over 96 rows of train"), "{}", shown.stdout);
    assert!(shown.stdout.contains("one standard error, 32 rows of dev"), "{}", shown.stdout);
    assert!(!fixture.path("pruned").exists());

    let found = fixture.run(&format!("{PRUNE} --budgets 0.1,0.5 --output pruned --json")).ok().json();
    assert_eq!(fixture.files("pruned"), ["prune.html", "prune.json"]);
    assert_eq!(found["outputs"], json!(["prune.html", "prune.json"]));
    let file = fixture.read_json("pruned/prune.json");
    assert_eq!((&file["points"], &file["modules"]), (&found["points"], &found["modules"]));
    // The largest first, each within its budget, less energy with less.
    let of = |place: &str| [0, 1].map(|i| number(&found, &format!("/points/{i}/{place}")));
    assert_eq!(of("budget"), [0.5, 0.1]);
    assert!(of("retained_ratio")[0] <= 0.5 && of("retained_ratio")[1] <= 0.1);
    assert!(of("energy")[0] > of("energy")[1] && of("energy")[0] > 0.9, "{:?}", of("energy"));
    assert_eq!(found["modules"].as_array().unwrap().len(), 18);
    let whole = measured(&fixture, "out", "data");
    assert_eq!(found["whole"]["dev"]["metrics"], whole["metrics"]);
    assert!((number(&found, "/whole/dev/loss") - number(&whole, "/loss")).abs() < 1e-9);
    let page = fixture.read("pruned/prune.html");
    assert!(page.contains("<svg") && page.contains("Energy by module") && !page.contains("NaN"));
}

#[test]
fn a_budget_is_kept_and_all_commands_read_it() {
    let fixture = trained();
    let words = format!("{PRUNE} --budget 0.25 --output pruned --json");
    let found = fixture.run(&words).ok().json();
    let files = [
        "README.md",
        "adapter_compact.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "prune.html",
        "prune.json",
        "recipe.toml",
    ];
    assert_eq!(fixture.files("pruned"), files);
    let (whole, pruned) = ["out", "pruned"].map(|f| AdapterFile::open(&fixture.path(f)).unwrap()).into();
    let share = pruned.unique_parameters() as f64 / whole.unique_parameters() as f64;
    assert!(share <= 0.25 && share > 0.2, "{share}");
    assert_eq!(number(&found, "/points/0/parameters") as usize, pruned.unique_parameters());
    assert_eq!(pruned.head, whole.head);
    assert_eq!((&pruned.labels, &pruned.base), (&whole.labels, &whole.base));
    // A module's scale is what it was, whatever its rank.
    assert!(pruned.pairs.iter().all(|pair| pruned.scale(pair) == 2.0));
    let ranks: std::collections::BTreeSet<usize> = pruned.pairs.iter().map(|pair| pair.rank).collect();
    assert!(ranks.len() > 1, "{ranks:?}");
    let config = fixture.read_json("pruned/adapter_config.json");
    assert!(config["rank_pattern"].is_object() && config["alpha_pattern"].is_object(), "{config}");
    assert_eq!(number(&config, "/lora_alpha"), 2.0 * number(&config, "/r"));

    // What was measured in place is what the file gives.
    let after = measured(&fixture, "pruned", "data");
    assert_eq!(after["metrics"], found["points"][0]["dev"]["metrics"]);
    assert!((number(&after, "/loss") - number(&found, "/points/0/dev/loss")).abs() < 1e-5);
    let compact = "pruned/adapter_compact.safetensors";
    let compact = fixture.run(&format!("eval --model model --adapter {compact} --data data --json")).ok();
    assert_eq!(compact.json()["loss"], after["loss"]);
    fixture.run("merge --adapter pruned --output merged").ok();
    let merged = fixture.run("eval --model merged --data data --json").ok().json();
    assert!((number(&merged, "/loss") - number(&after, "/loss")).abs() < 1e-4);
    let shown = fixture.run("inspect pruned").ok().stdout;
    assert!(shown.contains("rank ") && shown.contains("parameters"), "{shown}");
    fixture.write("rows.jsonl", "{\"text\": \"the film was good\"}\n");
    fixture.run("predict --adapter pruned --input rows.jsonl").ok();
    fixture.run("export --adapter pruned --to compact --output small.safetensors").ok();
    // It can be pruned again.
    fixture.run("prune --adapter pruned --data data --budget 0.5 --output less").ok();
}

#[test]
fn the_whole_is_kept_bit_for_bit() {
    let fixture = trained();
    fixture.run(&format!("{PRUNE} --budget 1 --output pruned")).ok();
    let (whole, mut same) = ["out", "pruned"].map(|f| AdapterFile::open(&fixture.path(f)).unwrap()).into();
    assert!(same.metadata.remove("pruned").unwrap().starts_with("to 1.0000 by energy"));
    assert!(same == whole);
}

#[test]
fn threads_do_not_affect_what_is_written() {
    let fixture = trained();
    for threads in [1, 2] {
        let options = format!("--budget 0.3 --threads {threads} --output pruned-{threads}");
        fixture.run(&format!("prune --adapter out --data data {options}")).ok();
    }
    for file in ["adapter_model.safetensors", "adapter_config.json", "adapter_compact.safetensors"] {
        let [one, two] =
            [1, 2].map(|threads| std::fs::read(fixture.path(&format!("pruned-{threads}/{file}"))).unwrap());
        assert!(one == two, "{file}");
    }
}

#[test]
fn other_ways_to_choose() {
    let fixture = trained();
    let prune = |options: &str, output: &str| {
        let found = fixture.run(&format!("{PRUNE} {options} --output {output} --json")).ok().json();
        (found, AdapterFile::open(&fixture.path(output)).unwrap())
    };
    let (_, equal) = prune("--budget 0.3 --equal-ranks", "equal");
    assert!(equal.pairs.iter().all(|pair| pair.rank == 2) && equal.pairs.len() == 18);
    let config = fixture.read_json("equal/adapter_config.json");
    assert!(config.get("rank_pattern").is_none() && config.get("alpha_pattern").is_none(), "{config}");
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(4)));

    let (found, svd) = prune("--budget 0.5 --by svd", "svd");
    assert_eq!((&found["rows"], &found["by"]), (&json!(0), &json!("svd")));
    assert!(svd.pairs.iter().any(|pair| pair.rank < 8));
    let (_, modules) = prune("--budget 0.5 --by modules", "modules");
    assert!(modules.pairs.iter().all(|pair| pair.rank == 8) && modules.pairs.len() < 18);
    let whole = AdapterFile::open(&fixture.path("out")).unwrap();
    for (id, &pair) in &modules.modules {
        assert!(modules.pairs[pair] == whole.pairs[whole.modules[id]]);
    }

    // A budget of several that keeps nothing is left out.
    let few = fixture.run(&format!("{PRUNE} --by modules --budgets 0.5,0.1")).ok();
    assert!(few.stderr.contains("a budget of 0.1 keeps nothing"), "{}", few.stderr);
    assert!(few.stdout.contains("\n0.5 ") && !few.stdout.contains("\n0.1 "), "{}", few.stdout);

    // Fewer rows are read, and the same ones again.
    let (few, _) = prune("--budget 0.5 --max-rows 24", "few");
    assert_eq!(few["rows"], 24);
    let (again, _) = prune("--budget 0.5 --sample-ratio 0.25", "again");
    assert_eq!(few["points"], again["points"]);
}

#[test]
fn auto_keeps_the_least_that_dev_tolerates() {
    let fixture = trained();
    let auto = |options: &str| {
        let words = format!("{PRUNE} --budget auto --overwrite --output pruned {options} --json");
        fixture.run(&words).ok().json()
    };
    let kept = |found: &Value| {
        let chosen = found["chosen"].as_u64().unwrap();
        (number(found, &format!("/points/{chosen}/budget")), chosen as usize)
    };
    // Anything is tolerated.
    assert_eq!(kept(&auto("--tolerance 1")).0, 0.0625);
    let found = auto("");
    assert_eq!(found["tolerance"], found["standard_error"]);
    let (_, chosen) = kept(&found);
    let tolerance = number(&found, "/tolerance");
    let whole = number(&found, "/whole/dev/metrics/accuracy");
    let fall = |i: usize| whole - number(&found, &format!("/points/{i}/dev/metrics/accuracy"));
    assert!((0..=chosen).all(|i| fall(i) <= tolerance));
    assert!(found["points"].as_array().unwrap().len() == chosen + 1 || fall(chosen + 1) > tolerance);
    // Where nothing less will do, the whole stays.
    let shown = fixture
        .run(&format!("{PRUNE} --budget auto --overwrite --output pruned --budgets 0.05 --tolerance 0"))
        .ok();
    assert!(shown.stdout.contains("kept: the whole adapter"), "{}", shown.stdout);
    assert!(shown.stdout.contains("1 ●"), "{}", shown.stdout);
}

#[test]
fn a_pruned_adapter_is_trained_further() {
    let fixture = trained();
    let words = format!("{PRUNE} --budget 0.1 --finetune-steps 12 --learning-rate 5e-3 --output pruned");
    let found = fixture.run(&format!("{words} --json")).ok().json();
    let trained = &found["finetuned"];
    assert_eq!((&trained["steps"], &trained["learning_rate"]), (&json!(12), &json!(5e-3)));
    let [before, after] = ["/points/0/dev/loss", "/finetuned/dev/loss"].map(|place| number(&found, place));
    assert!(after < before, "{after} {before}");
    // What is written is what was measured: the ranks of the pruning with other values.
    let measured = measured(&fixture, "pruned", "data");
    assert!((number(&measured, "/loss") - after).abs() < 1e-5);
    assert_eq!(measured["metrics"], trained["dev"]["metrics"]);
    let pruned = AdapterFile::open(&fixture.path("pruned")).unwrap();
    assert_eq!(number(&found, "/points/0/parameters") as usize, pruned.unique_parameters());
    assert!(pruned.pairs.iter().all(|pair| pruned.scale(pair) == 2.0));
    assert!(pruned.metadata["pruned"].starts_with("to 0."));
    let shown = fixture.run(&format!("{words} --overwrite --threads 1")).ok().stdout;
    assert!(shown.contains("after 12 steps of training"), "{shown}");
    let again = AdapterFile::open(&fixture.path("pruned")).unwrap();
    assert!(again == pruned, "the same bits from another number of threads");
    let refused = format!("{PRUNE} --budget 0.1 --finetune-steps 2 --output new");
    fixture.run(&format!("{refused} --learning-rate 0")).fails(2, &["--learning-rate is 0"]);
    fixture.run(&format!("{PRUNE} --finetune-steps 2")).fails(2, &["--budget"]);

    let fixture = decoder();
    let words = "prune --adapter out --data texts --budget 0.25 --finetune-steps 20 --output pruned --json";
    let found = fixture.run(words).ok().json();
    assert!(number(&found, "/finetuned/dev/loss") < number(&found, "/points/0/dev/loss"), "{found}");
    // Other labels are no further training.
    let fixture = trained_on_two();
    let words = "prune --adapter out --data other --budget 0.25 --finetune-steps 2 --output pruned";
    fixture.run(words).fails(1, &["other", "label"]);
}

/// A trained LoRA, and data with other labels beside its own.
fn trained_on_two() -> Fixture {
    let fixture = trained();
    for split in ["train", "dev"] {
        let rows = fixture.read(&format!("data/{split}.jsonl"));
        fixture.write(&format!("other/{split}.jsonl"), rows.replace("\"positive\"", "\"other\""));
    }
    fixture
}

#[test]
fn a_decoder_that_writes_text() {
    let fixture = decoder();
    let prune = "prune --adapter out --data texts";
    let found = fixture.run(&format!("{prune} --budget 0.5 --output pruned --json")).ok().json();
    let after = measured(&fixture, "pruned", "texts");
    let perplexity = |place: &str| number(&found, place);
    let kept = perplexity("/points/0/dev/metrics/perplexity");
    assert!((kept / number(&after, "/metrics/perplexity") - 1.0).abs() < 1e-5);
    assert!(perplexity("/standard_error") > 0.0 && found["metric"] == "perplexity");
    fixture.run("generate --adapter pruned --prompt w10 --max-new-tokens 4").ok();
    fixture.run("export --adapter pruned --to gguf --output pruned.gguf").ok();
    fixture.run(&format!("{prune} --metric accuracy")).fails(2, &["--metric accuracy", "perplexity"]);
}

#[test]
fn a_shared_pair_is_one() {
    let fixture = Fixture::new();
    fixture.train("--top-k 1 --sample-ratio 0.5 --sample-epochs 4 --rank 4").ok();
    let found = fixture.run(&format!("{PRUNE} --budget 0.5 --output pruned --json")).ok().json();
    let (whole, pruned) = ["out", "pruned"].map(|f| AdapterFile::open(&fixture.path(f)).unwrap()).into();
    assert_eq!(number(&found, "/whole/parameters") as usize, whole.unique_parameters());
    assert!(2 * pruned.unique_parameters() <= whole.unique_parameters());
    let after = measured(&fixture, "pruned", "data");
    assert!((number(&after, "/loss") - number(&found, "/points/0/dev/loss")).abs() < 1e-5);
}

#[test]
fn an_adapter_without_a_recipe() {
    let fixture = trained();
    as_of_peft(&fixture);
    fixture.run("prune --adapter peft --data data").fails(2, &["--model is missing"]);
    fixture.run("prune --model model --adapter peft --data data --budget 0.5 --output pruned").ok();
    // It has one now.
    let (before, after) = (measured(&fixture, "out", "data"), measured(&fixture, "pruned", "data"));
    assert!((number(&before, "/loss") - number(&after, "/loss")).abs() < 0.1);
    assert!(fixture.read("pruned/recipe.toml").contains("model = \""));
}

#[test]
fn dev_that_is_missing_or_says_nothing() {
    let fixture = trained();
    // As in training, a tenth of one file is dev.
    let rows = fixture.read("data/train.jsonl");
    fixture.write("one.jsonl", &rows);
    let found = fixture.run("prune --adapter out --data one.jsonl --budgets 0.5 --json").ok().json();
    assert_eq!((number(&found, "/rows"), number(&found, "/dev_rows")), (86.0, 10.0));
    let unlabelled: String = fixture.read("data/dev.jsonl").replace("label", "other");
    fixture.write("blind/train.jsonl", rows);
    fixture.write("blind/dev.jsonl", unlabelled);
    fixture.run("prune --adapter out --data blind").fails(1, &["blind/dev.jsonl", "no column \"label\""]);

    // Prompts without completions.
    let fixture = decoder();
    fixture.write("blind/train.jsonl", fixture.read("texts/train.jsonl"));
    fixture.write("blind/dev.jsonl", "{\"prompt\": \"w5 w6\"}\n".repeat(4));
    let prune = "prune --adapter out --data blind";
    let shown = fixture.run(prune).ok();
    assert!(shown.stderr.contains("the dev split has nothing to measure"), "{}", shown.stderr);
    assert!(shown.stdout.contains("energy") && !shown.stdout.contains("perplexity"), "{}", shown.stdout);
    fixture.run(&format!("{prune} --budget 0.5 --output pruned")).ok();
    fixture.run(&format!("{prune} --budget auto --output other")).fails(1, &["nothing to measure", "auto"]);
    assert!(!fixture.path("other").exists());
}

#[test]
fn impossible_options_are_refused() {
    let fixture = trained();
    let refuse = |words: &str, said: &[&str]| {
        fixture.run(&format!("{PRUNE} {words}")).fails(2, said);
        assert!(!fixture.path("new").exists());
    };
    refuse("--budget 0 --output new", &["--budget", "above 0"]);
    refuse("--budget 1.5 --output new", &["up to 1", "auto"]);
    refuse("--budget nan --output new", &["--budget"]);
    refuse("--budget 0.001 --output new", &["keeps nothing; the smallest that does is 0."]);
    refuse("--budgets 0.001", &["keeps nothing"]);
    refuse("--budget 0.05 --equal-ranks --output new", &["the smallest that does is 0.125"]);
    refuse("--budget 0.5", &["--output is missing"]);
    refuse("--budget 0.5 --budgets 0.5 --output new", &["--budgets has no effect"]);
    refuse("--tolerance 0.1", &["--tolerance has no effect", "auto"]);
    refuse("--tolerance -1 --budget auto --output new", &["from 0 up"]);
    refuse("--by luck", &["luck", "energy"]);
    refuse("--by svd --max-rows 5", &["--max-rows has no effect"]);
    refuse("--by modules --equal-ranks", &["--equal-ranks has no effect"]);
    refuse("--metric pearson", &["pearson", "classification"]);
    refuse("--budget 0.5 --output out", &["--output out", "adapter itself"]);
    refuse("--budget 0.5 --output data", &["not empty"]);
    fixture.run("prune --data data").fails(2, &["--adapter"]);
    fixture.run("prune --adapter data --data data --model model").fails(1, &["adapter_config.json"]);

    // A damaged adapter: its name, and what is wrong.
    let bytes = std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap();
    fixture.write("cut/adapter_config.json", fixture.read("out/adapter_config.json"));
    fixture.write("cut/adapter_model.safetensors", &bytes[..bytes.len() / 2]);
    fixture.run("prune --model model --adapter cut --data data").fails(1, &["adapter_model.safetensors"]);

    fixture.train("--method dora --epochs 1 --output dora").ok();
    fixture.run("prune --adapter dora --data data").fails(2, &["dora: a DoRA adapter", "s·B A x"]);
    // Nothing was learned at all.
    fixture
        .train("--method lora --epochs 1 --learning-rate 1e-30 --head-learning-rate 1e-3 --output flat")
        .ok();
    fixture.run("prune --adapter flat --data data --by svd").ok();
}

#[test]
fn only_a_pruning_is_overwritten() {
    let fixture = trained();
    let prune = |options: &str| fixture.run(&format!("{PRUNE} --budget 0.5 {options}"));
    prune("--output pruned").ok();
    prune("--output pruned").fails(2, &["not empty", "--overwrite"]);
    // Writes a table instead of an adapter, and nothing of the earlier output is left.
    fixture.run(&format!("{PRUNE} --budgets 0.5 --output pruned --overwrite")).ok();
    assert_eq!(fixture.files("pruned"), ["prune.html", "prune.json"]);
    // A folder of another command is not prune's, nor prune's another's.
    fixture.run("export --adapter out --to peft --output exported").ok();
    prune("--output exported --overwrite").fails(2, &["is not a pruning"]);
    prune("--output pruned --overwrite").ok();
    fixture
        .run("export --adapter out --to peft --output pruned --overwrite")
        .fails(2, &["--overwrite may replace"]);
    fixture.train("--method head --output pruned --overwrite").fails(2, &["--overwrite may replace"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    let fixture = trained();
    let row = fixture.read("data/train.jsonl").repeat(200);
    fixture.write("many/train.jsonl", row);
    fixture.write("many/dev.jsonl", fixture.read("data/dev.jsonl"));
    let words = "prune --adapter out --data many --budget 0.5 --output pruned --threads 1";
    fixture.interrupt(words, "Measuring").fails(130, &["interrupted: nothing was saved"]);
    assert!(!fixture.path("pruned").exists());
}
