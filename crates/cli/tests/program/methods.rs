//! The method's own properties, seen from outside: what is kept, what is shared, what the files
//! hold.

use std::collections::BTreeSet;

use crate::common::{Fixture, LAYERS};
use lora_drop::adapter::{AdapterFile, StoredPair};
use lora_drop_transformer::{AdapterMethod, ModuleId, ModuleKind};
use serde_json::{Value, json};

/// The stored adapter of a run, from PEFT's files and from the compact one.
fn stored(fixture: &Fixture, run: &str) -> [AdapterFile; 2] {
    ["", "/adapter_compact.safetensors"]
        .map(|file| AdapterFile::open(&fixture.path(&format!("{run}{file}"))).unwrap())
}

#[test]
fn a_shared_pair_is_one_in_the_compact_file_and_one_per_layer_in_pefts() {
    let fixture = Fixture::new();
    let summary = fixture.train("--top-k 1 --epochs 2 --json").ok().json();
    let [peft, compact] = stored(&fixture, "out");
    for adapter in [&peft, &compact] {
        // Both forms: every module of the two types once, one kept and the others on one pair.
        assert_eq!(adapter.modules.len(), 2 * LAYERS);
        assert_eq!(adapter.pairs.len(), 4);
        for kind in [ModuleKind::Query, ModuleKind::Value] {
            let of_kind: Vec<usize> =
                adapter.modules.iter().filter(|(id, _)| id.kind == kind).map(|(_, &pair)| pair).collect();
            assert_eq!(of_kind.len(), LAYERS);
            assert_eq!(of_kind.iter().collect::<BTreeSet<_>>().len(), 2, "{of_kind:?}");
        }
    }
    for (id, &pair) in &compact.modules {
        assert_eq!(compact.pairs[pair].b, peft.pairs[peft.modules[id]].b, "{id:?}");
    }
    // The shared pair was trained.
    assert!(compact.pairs.iter().all(|pair| pair.b.iter().any(|&x| x != 0.0)));
    let size = |name: &str| summary["files"][name].as_u64().unwrap();
    assert!(size("adapter_compact.safetensors") < size("adapter_model.safetensors"));
    assert_eq!(summary["lora_parameters"], compact.unique_parameters());
    assert_eq!(summary["lora_parameters_full"], peft.written_parameters());
}

/// An adapter is trained further as it is, or its modules continue under a new choice.
#[test]
fn an_adapter_is_trained_further() {
    let fixture = Fixture::new();
    let first = fixture.train("--epochs 2 --budget 0.5 --json --output first").ok().json();
    let whole = fixture.train("--epochs 2 --method lora --json --output whole").ok().json();
    // At so low a rate nothing changes: pairs, sharing and head are those of the adapter.
    let still = "--epochs 1 --learning-rate 1e-12 --weight-decay 0 --json";
    for (adapter, method, before) in [("first", "lora-drop", &first), ("whole", "lora", &whole)] {
        let again = fixture
            .train(&format!("--init-adapter {adapter} --method {method} {still} --output again --overwrite"));
        let again = again.ok().json();
        for name in ["lora_parameters", "retained_ratio", "kept"] {
            assert_eq!(again[name], before[name], "{adapter} {name}");
        }
        let best = fixture.run(&format!("eval --adapter {adapter} --data data --json")).ok().json();
        assert_eq!(again["metrics"]["accuracy"], best["metrics"]["accuracy"], "{adapter}");
        assert_eq!(
            (&again["sample_steps"], &again["steps"]),
            (&json!(0), &whole["steps"].as_u64().map(|s| s / 2).into())
        );
    }
    // PEFT's files alone, as any of its users has them.
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let bytes = std::fs::read(fixture.path("whole").join(name)).unwrap();
        fixture.write(&format!("peft/{name}"), bytes);
    }
    fixture.train("--init-adapter peft --method lora --epochs 1 --output from-peft").ok();
    // A new choice, by scores of the adapter as it is: kept modules have its pairs.
    fixture.run("score --model model --data data --adapter whole --output scored").ok();
    let choice = "--init-adapter whole --scores scored/importance.json --budget 0.5";
    let half = fixture.train(&format!("{choice} {still} --output half")).ok().json();
    assert_eq!(half["retained_ratio"], 0.5);
    let [before, after] = ["whole", "half"].map(|folder| AdapterFile::open(&fixture.path(folder)).unwrap());
    for (id, &pair) in &after.modules {
        let (pair, old) = (&after.pairs[pair], &before.pairs[before.modules[id]]);
        if !pair.shared {
            let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-6);
            assert!(near(&pair.a, &old.a) && near(&pair.b, &old.b), "{id:?}");
        }
    }
    // What is resumed starts with the adapter, too; what does not fit is refused.
    for (options, code, problem) in [
        ("--init-adapter missing", 1, "missing"),
        (
            "--init-adapter whole --method dora",
            2,
            "a LoRA adapter cannot be trained further with --method dora",
        ),
        ("--init-adapter whole --method full", 2, "--init-adapter has no effect with --method full"),
        ("--init-adapter whole --method lora --rank 4", 2, "--rank has no effect with --init-adapter"),
        ("--init-adapter whole --budget 0.5", 2, "--budget has no effect with --init-adapter"),
        ("--init-adapter whole --sample-ratio 0.5", 2, "--sample-ratio has no effect with --init-adapter"),
    ] {
        fixture.train(&format!("--epochs 1 --output other {options}")).fails(code, &[problem]);
    }
    // From one shared pair to a pair for each module.
    let options =
        "--init-adapter half --scores scored/importance.json --threshold 1 --epochs 1 --output other --json";
    assert_eq!(fixture.train(options).ok().json()["retained_ratio"], 1.0);
    for split in ["train", "dev"] {
        let rows = fixture.read(&format!("data/{split}.jsonl")).replace("positive", "good");
        fixture.write(&format!("renamed/{split}.jsonl"), rows);
    }
    fixture
        .run("train --model model --data renamed --output renamed-out --method lora --init-adapter whole")
        .fails(1, &["renamed", "with the same labels"]);
}

/// The scores of one run choose the modules of another, which has no sample stage.
#[test]
fn scores_of_a_file_choose_modules() {
    let fixture = Fixture::new();
    let first = fixture.train("--epochs 1 --budget 0.5 --json --output scored").ok().json();
    let scores = "--scores scored/importance.json --epochs 1 --json";
    let second = fixture.train(&format!("{scores} --budget 0.5 --output second")).ok().json();
    assert_eq!(first["kept"], second["kept"]);
    assert_eq!((&second["sample_steps"], &second["sample_seconds"]), (&json!(0), &json!(0.0)));
    let [given, kept] =
        ["scored", "second"].map(|folder| fixture.read_json(&format!("{folder}/importance.json")));
    assert_eq!(given["modules"][0]["score"], kept["modules"][0]["score"]);
    assert_eq!(kept["selection"], json!({ "budget": 0.5 }));
    // Another rule by the same scores, and the recipe repeats it from anywhere.
    let all = fixture.train(&format!("{scores} --threshold 1 --output third")).ok().json();
    assert_eq!(all["retained_ratio"], 1.0);
    let again = fixture.run("train second/recipe.toml --output fourth --json").ok().json();
    assert_eq!((&again["kept"], &again["metrics"]), (&second["kept"], &second["metrics"]));

    for (options, code, problem) in [
        ("--scores missing.json", 1, "missing.json"),
        ("--scores data/train.jsonl", 1, "not an importance.json"),
        ("--scores scored/importance.json --target-modules key", 1, "layer 0 key, which the run adapts"),
        ("--scores scored/importance.json --target-modules query", 1, "which the run does not adapt"),
        (
            "--scores scored/importance.json --sample-ratio 0.5",
            2,
            "--sample-ratio has no effect with --scores",
        ),
        ("--scores scored/importance.json --budget auto", 2, "takes its place"),
        ("--scores scored/importance.json --keep-layers 1", 2, "--scores has no effect with --keep-layers"),
        ("--scores scored/importance.json --method lora", 2, "--scores has no effect with --method lora"),
    ] {
        fixture.train(&format!("--output wrong {options}")).fails(code, &[problem]);
    }
}

#[test]
fn dropped_modules_have_no_lora() {
    let fixture = Fixture::new();
    let summary = fixture.train("--top-k 1 --unselected drop --epochs 2 --json").ok().json();
    for adapter in stored(&fixture, "out") {
        assert_eq!((adapter.modules.len(), adapter.pairs.len()), (2, 2));
        for id in adapter.modules.keys() {
            let name = if id.kind == ModuleKind::Query { "query" } else { "value" };
            assert_eq!(summary["kept"][name], json!([id.layer]));
        }
    }
    // What was written is what was measured.
    let eval = fixture.run("eval --model model --adapter out --data data --json").ok().json();
    assert_eq!(eval["metrics"]["accuracy"], summary["metrics"]["accuracy"]);
}

#[test]
fn layers_that_are_named_are_kept_without_a_sample() {
    let fixture = Fixture::new();
    let summary = fixture.train("--keep-layers 1 --unselected drop --epochs 1 --json").ok().json();
    assert_eq!(summary["kept"], json!({"query": [1], "value": [1]}));
    assert_eq!((&summary["sample_steps"], &summary["sample_seconds"]), (&json!(0), &json!(0.0)));
    assert!(!fixture.path("out/importance.json").exists());
    for adapter in stored(&fixture, "out") {
        assert!(adapter.modules.keys().all(|id| id.layer == 1));
    }
    let recipe = fixture.read("out/recipe.toml");
    assert!(recipe.contains("keep-layers = [1]") && !recipe.contains("threshold"), "{recipe}");
    // All others share a pair unless they are dropped, and the dry run knows how many that makes.
    let shared = fixture.train("--keep-layers 1 --epochs 1 --output shared --json").ok().json();
    assert_eq!(stored(&fixture, "shared")[1].pairs.len(), 4);
    let plan = fixture.train("--keep-layers 1 --output plan --dry-run --json").ok().json();
    assert_eq!(plan["lora_parameters"], json!([shared["lora_parameters"], shared["lora_parameters"]]));
    assert_eq!(plan["sample_steps"], 0);
}

#[test]
fn a_kept_layer_keeps_all_its_modules() {
    let fixture = Fixture::new();
    let options = "--scope layer --top-k 2 --target-modules query,key,intermediate.dense --epochs 1 --json";
    let kept = fixture.train(options).ok().json()["kept"].clone();
    let query = kept["query"].as_array().unwrap();
    assert_eq!(query.len(), 2);
    assert!(kept["key"] == kept["query"] && kept["intermediate.dense"] == kept["query"], "{kept}");
    assert_eq!(kept.as_object().unwrap().len(), 3);
}

#[test]
fn going_on_is_one_training_over_both_stages() {
    let fixture = Fixture::new();
    let run = |output: &str, options: &str| -> (Value, Vec<Value>) {
        let options = format!("--output {output} --max-steps 120 --json {options}");
        let summary = fixture.train(&options).ok().json();
        let log = fixture.read(&format!("{output}/metrics.jsonl"));
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        (summary, lines.filter(|line| !line["loss"].is_null() && !line["stage"].is_null()).collect())
    };
    let choice = "--sample-ratio 1 --threshold 1";
    let (lora, plain) = run("lora", "--method lora");
    let (fresh, twice) = run("fresh", &format!("--restart fresh {choice}"));
    let (whole, once) = run("whole", &format!("--restart continue {choice}"));
    assert_eq!((lora["steps"].as_u64(), plain.len()), (Some(120), 120));
    let [sample, of_fresh] =
        [&whole, &fresh].map(|summary| summary["sample_steps"].as_u64().unwrap() as usize);
    assert!((1..=60).contains(&sample) && of_fresh > 0);
    assert_eq!((fresh["steps"].as_u64(), twice.len()), (Some(120 + of_fresh as u64), 120 + of_fresh));
    assert_eq!((whole["steps"].as_u64(), once.len()), (Some(120), 120));
    // Step by step it has the learning rates of a run of one stage, and its steps are counted on.
    for (number, (step, of_lora)) in once.iter().zip(&plain).enumerate() {
        assert_eq!((&step["learning_rate"], &step["step"]), (&of_lora["learning_rate"], &of_lora["step"]));
        assert_eq!(step["stage"] == "sample", number < sample, "{step}");
    }
    // All are kept, so training begins with what the sample has taught, or anew.
    let first = |steps: &[Value]| steps[..8].iter().map(|step| step["loss"].as_f64().unwrap()).sum::<f64>();
    let (once, twice) = (first(&once[sample..]), first(&twice[of_fresh..]));
    assert!(once < 0.75 * twice, "{once} {twice}");
}

#[test]
fn a_score_of_an_adapter_counts_all_tokens_of_the_sample() {
    let fixture = Fixture::new();
    fixture.train("--method lora --epochs 2").ok();
    let scored = fixture
        .run("score --model model --data data --output scores --adapter out --sample-ratio 1 --json")
        .ok()
        .json();
    assert_eq!(scored["rows"], 96);
    let modules = scored["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 2 * LAYERS);
    for kind in ["query", "value"] {
        let of_kind = modules.iter().filter(|m| m["kind"] == kind);
        let sum: f64 = of_kind.map(|m| m["importance"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
}

#[test]
fn regression_on_pairs() {
    let fixture = Fixture::new();
    // How many of the first text's words the second has, from 0 to 2.5.
    let words = ["film", "actor", "story", "scene", "music"];
    let mut random = crate::common::Random(3);
    for (split, count) in [("train", 200), ("dev", 40)] {
        let rows: String = (0..count)
            .map(|_| {
                let shared = random.below(6);
                let second: Vec<&str> = (0..5).map(|i| if i < shared { words[i] } else { "the" }).collect();
                let label = shared as f64 / 2.0;
                format!(
                    "{}\n",
                    json!({"sentence1": words.join(" "), "sentence2": second.join(" "), "label": label})
                )
            })
            .collect();
        fixture.write(&format!("pairs/{split}.jsonl"), rows);
    }
    let summary = fixture.train("--data pairs --output pearson --budget 0.9 --json").ok().json();
    assert_eq!(summary["metric"], "pearson");
    let pearson = summary["metrics"]["pearson"].as_f64().unwrap();
    assert!(pearson > 0.9, "{summary}");
    let eval = fixture.run("eval --model model --adapter pearson --data pairs --json").ok().json();
    assert_eq!(eval["metrics"], summary["metrics"]);
    fixture.write(
        "rows.jsonl",
        json!({"sentence1": "film actor", "sentence2": "film actor"}).to_string() + "\n",
    );
    let predicted = fixture.run("predict --model model --adapter pearson --input rows.jsonl").ok();
    assert!(predicted.json()["value"].is_number(), "{}", predicted.stdout);
}

/// Labels around 1000, and steps too small to get there: predictions are the labels' mean.
#[test]
fn a_regression_starts_at_the_mean_of_its_labels() {
    let fixture = Fixture::new();
    for (split, count) in [("train", 8), ("dev", 2)] {
        let row =
            |i| json!({"sentence1": "film actor", "label": 1000.5 + f64::from(i % 2)}).to_string() + "\n";
        fixture.write(&format!("rated/{split}.jsonl"), (0..count).map(row).collect::<String>());
    }
    fixture.write("row.jsonl", json!({"sentence1": "music"}).to_string() + "\n");
    for method in ["lora", "lora-drop --restart continue", "head", "full"] {
        let options = format!("--data rated --method {method} --learning-rate 1e-9 --epochs 1 --overwrite");
        fixture.train(&options).ok();
        let from = if method == "full" { "--model out" } else { "--model model --adapter out" };
        let value = fixture.run(&format!("predict {from} --input row.jsonl")).ok().json()["value"].clone();
        assert!((value.as_f64().unwrap() - 1001.0).abs() < 1.0, "{method}: {value}");
    }
}

#[test]
fn dora_trains_and_goes_wherever_lora_goes() {
    let fixture = Fixture::new();
    let plan = fixture.train("--method dora --dry-run --json --output plan").ok().json();
    let summary = fixture.train("--method dora --epochs 3 --lora-dropout 0.1 --json").ok().json();
    assert_eq!(summary["method"], "dora");
    assert_eq!(plan["lora_parameters"], json!([summary["lora_parameters"], summary["lora_parameters"]]));
    assert_eq!(plan["trainable_parameters"], summary["trainable_parameters"]);
    assert_eq!(summary["retained_ratio"], 1.0);
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!(peft, compact);
    assert_eq!((peft.method, peft.vectors.len()), (AdapterMethod::Dora, 2 * LAYERS));
    assert_eq!(summary["lora_parameters"], peft.unique_parameters());
    let plain = fixture.train("--method lora --epochs 1 --output plain --json").ok().json();
    let more = peft.vectors.values().map(Vec::len).sum::<usize>();
    assert_eq!(
        summary["lora_parameters"].as_u64(),
        Some(plain["lora_parameters"].as_u64().unwrap() + more as u64)
    );
    let recipe = fixture.read("out/recipe.toml");
    assert!(recipe.contains("method = \"dora\"") && recipe.contains("rank"), "{recipe}");

    // The same bits from a recipe with another number of threads, and what is not saved is
    // recomputed.
    fixture.run("train out/recipe.toml --threads 1 --recompute --output again").ok();
    let bytes = |run: &str| std::fs::read(fixture.path(&format!("{run}/adapter_model.safetensors"))).unwrap();
    assert!(bytes("out") == bytes("again"));

    // Measured, merged and written in the other form it is the same model.
    let accuracy = |from: &str| {
        fixture.run(&format!("eval {from} --data data --json")).ok().json()["metrics"]["accuracy"].clone()
    };
    assert_eq!(accuracy("--model model --adapter out"), summary["metrics"]["accuracy"]);
    fixture.run("merge --model model --adapter out --output merged").ok();
    assert_eq!(accuracy("--model merged"), summary["metrics"]["accuracy"]);
    let told = fixture.run("inspect out").ok().stdout;
    assert!(told.contains("DoRA"), "{told}");
    let scored = "score --model model --data data --output scores --adapter out";
    fixture.run(scored).fails(2, &["out", "a DoRA adapter", "--method lora"]);
    fixture.train("--method dora --threshold 0.5 --output never").fails(2, &["--threshold", "method dora"]);
}

/// Checks what every method that adapts modules does: it is planned, trains to the same bits from
/// its recipe on another number of threads, and is the same model when it is measured, merged and
/// written in other forms.
fn goes_wherever_lora_goes(method: &str, options: &str) -> (Fixture, serde_json::Value) {
    let fixture = Fixture::new();
    let options = format!("--method {method} --epochs 3 --lora-dropout 0.1 --learning-rate 1e-2 {options}");
    let plan = fixture.train(&format!("{options} --dry-run --json --output plan")).ok().json();
    let summary = fixture.train(&format!("{options} --json")).ok().json();
    assert_eq!(summary["method"], method);
    let parameters = |place: usize| plan["lora_parameters"][place].as_u64();
    let found = summary["lora_parameters"].as_u64();
    assert!(parameters(0) <= found && found <= parameters(1), "{plan} {summary}");
    let recipe = fixture.read("out/recipe.toml");
    assert!(recipe.contains(&format!("method = \"{method}\"")) && recipe.contains("rank"), "{recipe}");
    fixture.run("train out/recipe.toml --threads 1 --recompute --output again").ok();
    let bytes = |path: &str| std::fs::read(fixture.path(path)).unwrap();
    assert!(bytes("out/adapter_model.safetensors") == bytes("again/adapter_model.safetensors"), "{method}");
    assert!(
        bytes("out/adapter_compact.safetensors") == bytes("again/adapter_compact.safetensors"),
        "{method}"
    );

    let measured = |from: &str| {
        let found = fixture.run(&format!("eval {from} --data data --json")).ok().json();
        (found["metrics"]["accuracy"].as_f64().unwrap(), found["loss"].as_f64().unwrap())
    };
    let (accuracy, loss) = measured("--model model --adapter out");
    assert_eq!(Some(accuracy), summary["metrics"]["accuracy"].as_f64());
    fixture.run("merge --model model --adapter out --output merged").ok();
    let export = "export --adapter out/adapter_compact.safetensors --model model --to peft --output exported";
    fixture.run(export).ok();
    let compact = "--model model --adapter out/adapter_compact.safetensors";
    for other in ["--model merged", compact, "--model model --adapter exported"] {
        let found = measured(other);
        assert!(found.0 == accuracy && (found.1 - loss).abs() < 1e-5, "{method} {other}: {found:?}");
    }
    // Something was learned, and not by the head alone: what begins as zero is B, or VeRA's b,
    // after d.
    let file = AdapterFile::open(&fixture.path("out")).unwrap();
    let zero_at_first = |id: &ModuleId, pair: &StoredPair| match file.method {
        AdapterMethod::Vera => file.vectors[id][pair.rank..].to_vec(),
        _ => pair.b.clone(),
    };
    assert!(
        file.modules.iter().any(|(id, &pair)| zero_at_first(id, &file.pairs[pair]).iter().any(|x| *x != 0.0))
    );
    (fixture, summary)
}

#[test]
fn everything_is_shared_where_nothing_is_kept() {
    let fixture = Fixture::new();
    let summary = fixture.train("--top-k 0 --criterion first --epochs 2 --json").ok().json();
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!((peft.pairs.len(), compact.pairs.len()), (2, 2));
    assert_eq!(summary["lora_parameters"], compact.unique_parameters());
    assert_eq!(summary["kept"], json!({"query": [], "value": []}));
    fixture.train("--top-k 0 --unselected drop --output never").fails(2, &["--top-k 0", "--method head"]);
}

#[test]
fn shared_pairs_may_have_a_rank_of_their_own() {
    for restart in ["fresh", "continue"] {
        let (fixture, summary) =
            goes_wherever_lora_goes("lora-drop", &format!("--top-k 1 --shared-rank 5 --restart {restart}"));
        let [peft, compact] = stored(&fixture, "out");
        for file in [&peft, &compact] {
            assert_eq!(file.pairs.len(), 4);
            for pair in &file.pairs {
                // The scale is that of all, 16 / 8.
                assert_eq!((pair.rank, pair.alpha), if pair.shared { (5, 10.0) } else { (8, 16.0) });
            }
        }
        assert_eq!(summary["lora_parameters"], compact.unique_parameters());
        let importance: Value = serde_json::from_str(&fixture.read("out/importance.json")).unwrap();
        assert_eq!(importance["shared_rank"], 5);
    }
    let fixture = Fixture::new();
    // What a dry run says of the parameters holds.
    let plan = |options: &str| {
        let options = format!("--rank 4 --dry-run --json --budget 0.5 {options} --output plan");
        fixture.train(&options).ok().json()["lora_parameters"].clone()
    };
    let run = |options: &str| {
        let options = format!("--rank 4 --epochs 1 --json --budget 0.5 {options}");
        fixture.train(&options).ok().json()["lora_parameters"].as_u64().unwrap()
    };
    for (number, options) in ["", "--shared-rank 6", "--unselected scale"].into_iter().enumerate() {
        let made = run(&format!("{options} --output run{number}"));
        let plan = plan(options);
        assert!((plan[0].as_u64().unwrap()..=plan[1].as_u64().unwrap()).contains(&made), "{made} {plan}");
    }
    fixture.train("--shared-rank 4 --unselected drop --output never").fails(2, &["--shared-rank", "drop"]);
    fixture.train("--shared-rank 4 --method lora --output never").fails(2, &["--shared-rank", "method lora"]);
}

#[test]
fn a_budget_is_found_by_rows_outside_the_sample() {
    for unselected in ["share", "drop"] {
        let options = format!("--budget auto --sample-ratio 0.5 --sample-epochs 8 --unselected {unselected}");
        let (fixture, summary) = goes_wherever_lora_goes("lora-drop", &options);
        let importance: Value = serde_json::from_str(&fixture.read("out/importance.json")).unwrap();
        let number_of = |place: &str| importance.pointer(place).and_then(Value::as_f64).unwrap();
        let points = importance["curve"]["points"].as_array().unwrap();
        let most = number_of("/curve/loss") + number_of("/curve/tolerance");
        assert!(number_of("/curve/tolerance") > 0.0 && number_of("/curve/rows") == 48.0);
        let of = |point: &Value, name: &str| point[name].as_f64().unwrap();
        assert!(points.windows(2).all(|pair| of(&pair[0], "budget") > of(&pair[1], "budget")));
        assert!(points.iter().all(|point| of(point, "share") <= of(point, "budget")));
        // All budgets but the last are within the tolerance, and the last one within it is kept.
        assert_eq!(points.is_empty(), number_of("/curve/without") <= most);
        let within = points.iter().take_while(|point| of(point, "loss") <= most).count();
        assert!(within + 1 >= points.len());
        let kept = if within == 0 { 1.0 } else { of(&points[within - 1], "budget") };
        assert_eq!(importance["selection"], json!({ "auto": kept }));
        let parameters =
            if within == 0 { &summary["lora_parameters_full"] } else { &points[within - 1]["parameters"] };
        assert_eq!(&summary["lora_parameters"], parameters);
        // `score` finds the same by the run's recipe.
        fixture.run("score out/recipe.toml --output scores").ok();
        let scored: Value = serde_json::from_str(&fixture.read("scores/importance.json")).unwrap();
        assert_eq!(scored, importance);
    }
    let fixture = Fixture::new();
    let shown = fixture.train("--budget auto --sample-ratio 0.5 --epochs 1").ok().stderr;
    assert!(shown.contains("48 rows of train outside the sample"), "{shown}");
    let auto = "--budget auto --output never";
    fixture.train(&format!("{auto} --sample-ratio 0.9")).fails(2, &["at least 32", "--sample-ratio"]);
    fixture.train(&format!("{auto} --criterion last")).fails(2, &["--budget auto", "criterion last"]);
    fixture.train(&format!("{auto} --threshold 0.5")).fails(2, &["exclude each other"]);
    fixture.train("--budget some --output never").fails(2, &["--budget", "expected a number, or auto"]);
    fixture
        .run("score --model model --adapter out --data data --budget auto --output never")
        .fails(2, &["prune --budget auto"]);
}

#[test]
fn modules_may_scale_the_pair_that_they_share() {
    let (fixture, summary) =
        goes_wherever_lora_goes("lora-drop", "--top-k 1 --unselected scale --restart continue");
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!((peft.method, compact.method), (AdapterMethod::Lora, AdapterMethod::TiedLora));
    assert_eq!((peft.pairs.len(), compact.pairs.len()), (2 * LAYERS, 4));
    assert_eq!(summary["lora_parameters"], compact.unique_parameters());
    for (id, &pair) in &compact.modules {
        let pair = &compact.pairs[pair];
        assert_eq!(compact.vectors.get(id).map(Vec::len), pair.shared.then_some(pair.rank + pair.output));
    }
    let trained = |own: &Vec<f32>| own.iter().any(|x| *x != 1.0);
    assert!(compact.vectors.values().all(trained));
}

#[test]
fn share_lora_has_one_a_a_type() {
    let (fixture, summary) = goes_wherever_lora_goes("share-lora", "");
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!(peft, compact);
    for (id, &pair) in &peft.modules {
        let first = peft.modules.iter().find(|(other, _)| other.kind == id.kind).unwrap();
        assert_eq!(peft.pairs[pair].a, peft.pairs[*first.1].a);
    }
    assert_eq!(peft.pairs.len(), 2 * LAYERS);
    assert_eq!(summary["lora_parameters"], peft.unique_parameters());
    assert_eq!(summary["lora_parameters_full"], peft.written_parameters());
    let a: usize = peft.pairs.iter().map(|pair| pair.a.len()).sum();
    assert_eq!(peft.written_parameters() - peft.unique_parameters(), a / LAYERS * (LAYERS - 1));
    let size = |name: &str| summary["files"][name].as_u64().unwrap();
    assert!(size("adapter_compact.safetensors") < size("adapter_model.safetensors"));
    fixture.train("--method share-lora --top-k 1 --output never").fails(2, &["--top-k", "method share-lora"]);
}

#[test]
fn tied_lora_has_one_pair_a_type_and_vectors_by_module() {
    let (fixture, summary) = goes_wherever_lora_goes("tied-lora", "");
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!((peft.method, compact.method), (AdapterMethod::Lora, AdapterMethod::TiedLora));
    assert_eq!((compact.pairs.len(), compact.vectors.len()), (2, 2 * LAYERS));
    assert_eq!((peft.pairs.len(), peft.vectors.len()), (2 * LAYERS, 0));
    assert_eq!(summary["lora_parameters"], compact.unique_parameters());
    for (id, own) in &compact.vectors {
        let pair = &compact.pairs[compact.modules[id]];
        assert_eq!(own.len(), pair.rank + pair.output);
        assert!(own.iter().any(|x| *x != 1.0), "{id:?} has trained vectors");
    }
    let told = fixture.run("inspect out/adapter_compact.safetensors").ok().stdout;
    assert!(told.contains("Tied-LoRA"), "{told}");
}

#[test]
fn vera_trains_vectors_on_a_random_pair() {
    let (fixture, summary) = goes_wherever_lora_goes(
        "vera",
        "--rank 32 --target-modules query,attention.output.dense,intermediate.dense,output.dense",
    );
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!((peft.method, compact.method), (AdapterMethod::Vera, AdapterMethod::Vera));
    assert_eq!((&peft.vectors, &peft.modules), (&compact.vectors, &compact.modules));
    let own: usize = compact.vectors.values().map(Vec::len).sum();
    assert_eq!((peft.unique_parameters(), compact.unique_parameters()), (own, own));
    assert_eq!(summary["lora_parameters"], own);
    let config: serde_json::Value = serde_json::from_str(&fixture.read("out/adapter_config.json")).unwrap();
    assert_eq!((&config["peft_type"], &config["save_projection"]), (&json!("VERA"), &json!(true)));
    assert_eq!((&config["vera_dropout"], &config["lora_alpha"]), (&json!(0.1), &json!(null)));
    fixture.train("--method vera --alpha 8 --output never").fails(2, &["--alpha", "method vera"]);
    // Vectors in an adapter that is configured as LoRA are not ignored.
    let lora = fixture.read("out/adapter_config.json").replace("VERA", "LORA").replace("vera_", "lora_");
    fixture.write("out/adapter_config.json", lora);
    let refused = fixture.run("eval --model model --adapter out --data data");
    refused.fails(1, &["vera_lambda_", "no lora_A and lora_B"]);
}

#[test]
fn adalora_ends_with_the_rank_on_average() {
    let (fixture, summary) = goes_wherever_lora_goes("adalora", "--rank 2 --batch-size 8");
    let [peft, compact] = stored(&fixture, "out");
    assert_eq!((peft.method, compact.method), (AdapterMethod::Lora, AdapterMethod::Lora));
    assert_eq!(&peft.pairs, &compact.pairs);
    let ranks: usize = peft.pairs.iter().map(|pair| pair.rank).sum();
    assert_eq!(ranks, 2 * 2 * LAYERS);
    assert!(peft.pairs.iter().all(|pair| pair.rank <= 3));
    assert_eq!(summary["lora_parameters"], peft.unique_parameters());
    // The best epoch is one after the fall, whatever those before it have measured.
    let log = fixture.read("out/metrics.jsonl");
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let marks: Vec<bool> = lines.filter_map(|line| line["best"].as_bool()).collect();
    assert!(summary["best_epoch"].as_u64() >= Some(2) && marks[1], "{marks:?}");
    fixture
        .train("--method lora --tinit 0.1 --output never")
        .fails(2, &["--tinit", "method lora", "adalora"]);
    fixture.train("--method adalora --tinit 0.6 --output never").fails(2, &["--tinit 0.6", "--tfinal 0.5"]);
}

#[test]
fn a_sparse_adapter_keeps_its_budget_of_values() {
    for (by, options) in [("snip", "--restart continue --sample-epochs 4"), ("magnitude", ""), ("random", "")]
    {
        let options =
            format!("--sparse-by {by} --budget 0.25 --sample-ratio 0.5 --sample-epochs 8 {options}");
        let (fixture, summary) = goes_wherever_lora_goes("sparse-adapter", &options);
        let [peft, compact] = stored(&fixture, "out");
        assert_eq!(&peft.pairs, &compact.pairs);
        let values = || peft.pairs.iter().flat_map(|pair| pair.a.iter().chain(&pair.b));
        let kept = values().filter(|x| **x != 0.0).count();
        let all = values().count();
        assert_eq!(summary["lora_parameters"], all / 4);
        assert_eq!(summary["lora_parameters_full"], all);
        assert!(kept <= all / 4 && kept > all / 5, "{by}: {kept} of {all}");
        assert!(summary["sample_seconds"].as_f64() > Some(0.0));
        assert!(!fixture.path("out/importance.json").exists());
    }
    let fixture = Fixture::new();
    let never = |options: &str| fixture.train(&format!("{options} --output never"));
    never("--method sparse-adapter --threshold 0.5").fails(2, &["--threshold", "method sparse-adapter"]);
    never("--method lora --sparse-by snip").fails(2, &["--sparse-by", "sparse-adapter"]);
    never("--method lora --budget 0.5").fails(2, &["--budget", "lora-drop and sparse-adapter"]);
}

#[test]
fn every_kind_of_adapter_writes_text() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(48, 16);
    let plain = fixture.run("generate --model decoder --prompt w10 --max-new-tokens 6").ok().stdout;
    for options in [
        "lora-drop --top-k 1 --unselected scale --shared-rank 6 --sample-ratio 0.5",
        "share-lora",
        "tied-lora",
        "vera --rank 32",
        "adalora",
        "sparse-adapter --sample-ratio 0.5",
    ] {
        let options =
            format!("--method {options} --epochs 4 --batch-size 8 --learning-rate 5e-2 --overwrite");
        fixture
            .run(&format!("train --model decoder --data texts --max-length 32 --output out {options}"))
            .ok();
        fixture.run("merge --adapter out --output merged --overwrite").ok();
        let written =
            |from: &str| fixture.run(&format!("generate {from} --prompt w10 --max-new-tokens 6")).ok().stdout;
        let [adapted, compact, merged] =
            ["--adapter out", "--model decoder --adapter out/adapter_compact.safetensors", "--model merged"]
                .map(written);
        assert!(adapted != plain, "{options}: {adapted}");
        assert!(adapted == compact && adapted == merged, "{options}: {adapted} {compact} {merged}");
    }
}
