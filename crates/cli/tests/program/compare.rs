//! `compare` on the tiny model: what is run, what is never run again, what comes of failures, and
//! what is said.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use crate::common::{Fixture, result_of_run};
use lora_drop::{Cancel, Error, train};
use lora_drop_cli::compare::{Comparison, Run, TableFile, Work};
use serde_json::Value;

const TASKS: &str = "\
name = \"two <tasks>\"
output = \"out\"
seeds = [0, 1]
[options]
model = \"model\"
learning-rate = 1e-2
batch-size = 16
epochs = 2
sample-epochs = 1
[[tasks]]
name = \"first\"
data = \"data\"
[[tasks]]
name = \"second\"
data = \"other\"
";
const METHODS: &str = "\
[[methods]]
name = \"LoRA\"
method = \"lora\"
[[methods]]
name = \"LoRA-drop\"
method = \"lora-drop\"
budget = 0.5
";

/// The tiny model, two data sets, and a table of two methods and two seeds.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    for split in ["train", "dev"] {
        let rows = fixture.read(&format!("data/{split}.jsonl"));
        fixture.write(
            &format!("other/{split}.jsonl"),
            rows.lines().rev().map(|row| format!("{row}\n")).collect::<String>(),
        );
    }
    fixture.write("table.toml", format!("{TASKS}{METHODS}"));
    fixture
}

/// Each result's content and the time at which it was written.
fn results(fixture: &Fixture) -> BTreeMap<String, (String, SystemTime)> {
    let read = |folder: String| {
        let path = format!("out/cells/{folder}/result.json");
        let written = std::fs::metadata(fixture.path(&path)).ok()?.modified().unwrap();
        Some((folder, (fixture.read(&path), written)))
    };
    fixture.files("out/cells").into_iter().filter_map(read).collect()
}

#[test]
fn a_table_is_run_once_and_shown() {
    let fixture = fixture();
    let first = fixture.run("compare table.toml").ok();
    assert!(first.stderr.contains("8/8  second · LoRA-drop · seed 1  accuracy "), "{}", first.stderr);
    for text in
        ["LoRA-drop", "first (accuracy)", "average", "The smallest adapter that is good enough", "first: "]
    {
        assert!(first.stdout.contains(text), "{text}: {}", first.stdout);
    }
    assert_eq!(fixture.files("out"), ["cells", "compare.html", "compare.json", "table.csv", "table.md"]);
    let index = fixture.read_json("out/compare.json");
    assert_eq!(index["counts"], serde_json::json!({"finished": 8, "failed": 0, "of": 8}));
    assert_eq!(
        (index["cells"].as_array().unwrap().len(), &index["lines"][1]),
        (8, &Value::from("LoRA-drop"))
    );
    let entries = index["findings"]["entries"].as_array().unwrap();
    let half = entries.iter().find(|entry| entry["line"] == 1 && entry["task"] == 0).unwrap();
    assert_eq!((&half["score"]["n"], &half["difference"]["n"]), (&Value::from(2), &Value::from(2)));
    assert!(half["share"].as_f64().unwrap() <= 0.5 && half["selection_seconds"].as_f64().unwrap() > 0.0);
    // Of six modules LoRA-drop has two rankings of three; one pair of seeds.
    assert_eq!(index["findings"]["agreement"][0]["pairs"], 1);
    let map = &index["findings"]["importance"][0];
    assert_eq!((&map["line"], &map["tasks"]), (&Value::from(1), &serde_json::json!([0, 1])));
    let page = fixture.read("out/compare.html");
    for text in [
        "two &lt;tasks&gt;",
        "The smallest adapter that is good enough",
        "Quality over parameters",
        "Importance of the layers",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(["<script", "http:", "https:", "href=", "NaN"].iter().all(|text| !page.contains(text)));
    let csv = fixture.read("out/table.csv");
    let columns = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().all(|line| line.split(',').count() == columns) && csv.lines().count() == 9, "{csv}");
    let score = |line: &str| line.split(',').nth(7).unwrap().parse::<f64>().unwrap();
    let scores: Vec<f64> = csv.lines().skip(1).map(score).collect();

    let before = results(&fixture);
    assert_eq!(before.len(), 8);
    let again = fixture.run("compare table.toml --json").ok();
    assert!(
        again.stderr.contains("8 runs in out, 8 finished") && !again.stderr.contains("8/8"),
        "{}",
        again.stderr
    );
    assert_eq!(again.json()["counts"]["finished"], 8);
    assert_eq!(results(&fixture), before);

    // The same bits with several at a time, and from another comparison's folder nothing is left to
    // be run.
    fixture.run("compare table.toml --output parallel --jobs 3 --threads 3 --quiet").ok();
    let csv = fixture.read("parallel/table.csv");
    assert_eq!(csv.lines().skip(1).map(score).collect::<Vec<_>>(), scores);
    let from = fixture.run("compare table.toml --output third --from out parallel").ok();
    assert!(from.stderr.contains("8 runs in third, 8 finished"), "{}", from.stderr);
    assert!(!fixture.path("third/cells").exists() && fixture.path("third/compare.html").exists());
}

/// A run that was stopped continues from a recipe with whole paths, so its summary names the model
/// by one; the table does not. Only another architecture than BERT shows a mistake.
#[test]
fn importance_of_a_resumed_run_has_its_models_names() {
    let fixture = Fixture::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf/gemma3.gguf");
    std::fs::copy(model, fixture.path("gemma3.gguf")).unwrap();
    fixture.write("texts/train.jsonl", "{\"text\": \"a b c d e f\"}\n".repeat(8));
    fixture.write("texts/dev.jsonl", "{\"text\": \"a b c d\"}\n".repeat(2));
    let options = "output = \"out\"\nseeds = [0]\n[options]\nmodel = \"gemma3.gguf\"\nepochs = 1\n";
    let task = "[[tasks]]\nname = \"texts\"\ndata = \"texts\"\n";
    fixture.write("table.toml", format!("{options}{task}{METHODS}"));
    fixture.run("compare table.toml").ok();
    for (folder, (result, _)) in results(&fixture) {
        let (name, whole) = ("\"gemma3.gguf\"", format!("{:?}", fixture.path("gemma3.gguf")));
        assert!(result.contains(&format!("\"model\": {name}")), "{result}");
        fixture.write(&format!("out/cells/{folder}/result.json"), result.replace(name, &whole));
    }
    fixture.run("compare table.toml --summary").ok();
    let map = &fixture.read_json("out/compare.json")["findings"]["importance"][0];
    let names: Vec<&str> =
        map["kinds"].as_array().unwrap().iter().filter_map(|k| k["name"].as_str()).collect();
    assert_eq!(names, ["q_proj", "v_proj"]);
}

#[test]
fn only_what_has_changed_is_run_again() {
    let fixture = fixture();
    fixture.run("compare table.toml --quiet").ok();
    let before = results(&fixture);
    fixture.write("table.toml", format!("{TASKS}{METHODS}rank = 4\n"));
    let changed = fixture.run("compare table.toml").ok();
    assert!(changed.stderr.contains("8 runs in out, 4 finished"), "{}", changed.stderr);
    assert!(
        changed.stderr.contains("note: 4 finished runs in out have other settings, data, models or versions"),
        "{}",
        changed.stderr
    );
    let after = results(&fixture);
    assert!(after.len() == 12 && before.iter().all(|(name, result)| after[name] == *result));

    fixture.write("table.toml", format!("{TASKS}{METHODS}"));
    let back = fixture.run("compare table.toml").ok();
    assert!(back.stderr.contains("8 runs in out, 8 finished"), "{}", back.stderr);

    // The same table under other names.
    let named =
        format!("{TASKS}{METHODS}").replace("\"LoRA-drop\"", "\"ours\"").replace("\"first\"", "\"1st\"");
    fixture.write("table.toml", named);
    let renamed = fixture.run("compare table.toml").ok();
    assert!(renamed.stderr.contains("8 runs in out, 8 finished"), "{}", renamed.stderr);
    assert!(renamed.stderr.contains("note: 4 finished runs") && renamed.stdout.contains("ours"));
    assert_eq!(results(&fixture), after);
    fixture.write("table.toml", format!("{TASKS}{METHODS}"));

    let rows = fixture.read("other/dev.jsonl");
    fixture.write("other/dev.jsonl", rows.lines().skip(1).map(|row| format!("{row}\n")).collect::<String>());
    let data = fixture.run("compare table.toml --dry-run --json").ok().json();
    assert_eq!(data["runs_left"], 4);
    let finished: Vec<u64> =
        data["lines"].as_array().unwrap().iter().map(|l| l["finished"].as_u64().unwrap()).collect();
    assert_eq!(finished, [2, 2, 0, 0]);
    assert_eq!(results(&fixture), after);
}

#[test]
fn a_run_is_named_by_the_contents_of_its_files() {
    let fixture = fixture();
    fixture.run("train --model model --data data --output first --epochs 1 --sample-epochs 1").ok();
    let scores = fixture.read("first/importance.json");
    let run = |method: &str| {
        let method = format!("[[methods]]\nname = \"given\"\n{method}\n");
        fixture.write("table.toml", format!("{TASKS}{method}").replace("seeds = [0, 1]", "seeds = [0]"));
        fixture.run("compare table.toml").ok().stderr
    };
    fixture.write("scores.json", &scores);
    assert!(run("scores = \"scores.json\"\nbudget = 0.5").contains("2 runs in out, 0 finished"));
    // The same scores elsewhere, and others in the same place.
    fixture.write("elsewhere/scores.json", &scores);
    assert!(run("scores = \"elsewhere/scores.json\"\nbudget = 0.5").contains("2 runs in out, 2 finished"));
    fixture.write("scores.json", scores.replacen("{", "{ ", 1));
    assert!(run("scores = \"scores.json\"\nbudget = 0.5").contains("2 runs in out, 0 finished"));
    assert!(run("method = \"lora\"\ninit-adapter = \"first\"").contains("2 runs in out, 0 finished"));
    assert!(run("method = \"lora\"\ninit-adapter = \"first\"").contains("2 runs in out, 2 finished"));
}

#[test]
fn a_dry_run_writes_nothing() {
    let fixture = fixture();
    let plan = fixture.run("compare table.toml --dry-run").ok();
    for text in ["first", "LoRA-drop", "0/2", "8 runs to make", "nothing was run"] {
        assert!(plan.stdout.contains(text), "{text}: {}", plan.stdout);
    }
    assert!(!fixture.path("out").exists());
    // An empty page can be written as well.
    let empty = fixture.run("compare table.toml --summary").ok();
    assert!(empty.stdout.contains("LoRA-drop"), "{}", empty.stdout);
    assert!(fixture.read("out/table.md").contains("0 of 8 runs finished."));
}

#[cfg(unix)]
#[test]
fn a_table_that_is_killed_goes_on() {
    use std::io::{BufRead, BufReader};

    let fixture = fixture();
    let mut running = fixture.process("compare table.toml").spawn().unwrap();
    let mut told = BufReader::new(running.stderr.take().unwrap()).lines();
    told.find(|line| line.as_ref().unwrap().starts_with("2/8 ")).unwrap().unwrap();
    crate::common::send(&running, "-KILL");
    running.wait().unwrap();
    let before = results(&fixture);
    assert!(before.len() >= 2);
    let rest = fixture.run("compare table.toml").ok();
    assert!(rest.stderr.contains("8/8 "), "{}", rest.stderr);
    let after = results(&fixture);
    assert!(after.len() == 8 && before.iter().all(|(name, result)| after[name] == *result));
}

#[cfg(unix)]
#[test]
fn an_interrupted_table_says_how_to_go_on() {
    let fixture = fixture();
    let outcome = fixture
        .interrupt("compare table.toml", "1/8 ")
        .fails(130, &["of 8 runs are finished and kept in out"]);
    assert!(outcome.stderr.contains("repeat the command to continue"), "{}", outcome.stderr);
    let before = results(&fixture);
    assert!(!before.is_empty() && before.len() < 8);
    // Neither a process nor half a run is left.
    assert!(!fixture.path("out/.lora-drop").exists());
    let rest = fixture.run("compare table.toml").ok();
    assert!(rest.stderr.contains("8/8 "), "{}", rest.stderr);
    assert!(
        results(&fixture)
            .iter()
            .filter(|(name, _)| before.contains_key(*name))
            .all(|(name, r)| before[name] == *r)
    );
}

#[cfg(unix)]
#[test]
fn a_run_of_a_table_that_is_stopped_goes_on_from_its_checkpoint() {
    let fixture = fixture();
    let long = "[[methods]]\nname = \"long\"\nmethod = \"lora\"\nepochs = 12\ncheckpoint-minutes = 1e-6\n";
    fixture.write("table.toml", format!("{TASKS}{long}").replace("seeds = [0, 1]", "seeds = [0]"));
    fixture.run("compare table.toml --output whole").ok();
    let mut running = fixture.process("compare table.toml --jobs 2").spawn().unwrap();
    let runs = |output: &str| -> Vec<std::path::PathBuf> {
        let cells = std::fs::read_dir(fixture.path(output).join("cells")).into_iter().flatten();
        let mut runs: Vec<_> = cells.map(|cell| cell.unwrap().path().join("run")).collect();
        runs.sort();
        runs
    };
    let under_way = |run: &std::path::PathBuf| !lora_drop::folder::checkpoints(run).is_empty();
    while runs("out").len() < 2 || !runs("out").iter().all(under_way) {
        assert!(running.try_wait().unwrap().is_none(), "it ended before it was stopped");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    crate::common::send(&running, "-INT");
    assert_eq!(running.wait().unwrap().code(), Some(130));
    fixture.run("compare table.toml --jobs 2").ok();
    for (run, whole) in runs("out").iter().zip(runs("whole")) {
        let log = std::fs::read_to_string(run.with_file_name("log.txt")).unwrap();
        assert!(log.contains("Resuming training after "), "{log}");
        assert_eq!(result_of_run(run), result_of_run(&whole));
    }
    // What cannot be continued begins again.
    let first = &runs("out")[0];
    std::fs::remove_file(first.with_file_name("result.json")).unwrap();
    let summary = std::fs::read_to_string(first.join("summary.json")).unwrap();
    std::fs::write(first.join("summary.json"), summary.replace("\"finished\"", "\"interrupted\"")).unwrap();
    std::fs::create_dir_all(first.join(".lora-drop")).unwrap();
    std::fs::write(first.join(".lora-drop/checkpoint-3.safetensors"), "damaged").unwrap();
    fixture.run("compare table.toml").ok();
    assert_eq!(result_of_run(first), result_of_run(&runs("whole")[0]));
}

/// A shell ignores SIGINT in background jobs, and so do the runs that these start.
#[cfg(unix)]
#[test]
fn a_table_in_the_background_ends_with_its_runs() {
    use std::io::{BufRead, BufReader, Read};

    let fixture = fixture();
    let long = "[[methods]]\nname = \"long\"\nmethod = \"lora\"\nepochs = 900000\n";
    fixture.write("table.toml", format!("{TASKS}{METHODS}{long}"));
    let script = "trap '' INT; exec \"$0\" \"$@\"";
    let mut process = fixture.shell(script, "compare table.toml --jobs 9");
    let mut running = process.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(running.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("8/12 ") {
        line.clear();
        assert!(told.read_line(&mut line).unwrap() > 0, "it ended by itself");
    }
    crate::common::send(&running, "-TERM");
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130));
    assert!(rest.contains("8 of 12 runs are finished"), "{rest}");
    assert_eq!(results(&fixture).len(), 8);
}

#[test]
fn a_failed_cell_is_said_and_tried_again() {
    let fixture = fixture();
    let wrong = "[[methods]]\nname = \"layer 9\"\nkeep-layers = [9]\nseeds = [1]\ntasks = [\"first\"]\n";
    fixture.write("table.toml", format!("{TASKS}{METHODS}{wrong}").replace("sample-epochs = 1\n", ""));
    for _ in 0..2 {
        let outcome = fixture.run("compare table.toml");
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        for text in [
            "first · layer 9 · seed 1  failed: ",
            "the model's layers are 0 to 2",
            "1 of 9 runs failed",
            "retry them",
        ] {
            assert!(outcome.stderr.contains(text), "{text}: {}", outcome.stderr);
        }
        let index = fixture.read_json("out/compare.json");
        assert_eq!(index["counts"], serde_json::json!({"finished": 8, "failed": 1, "of": 9}));
        assert!(fixture.read("out/compare.html").contains("the model's layers are 0 to 2"));
        assert!(fixture.read("out/table.csv").contains(",failed,"));
    }
    fixture.run("compare table.toml --summary").ok();
}

#[test]
fn wrong_usage_ends_before_anything_is_run() {
    let fixture = fixture();
    fixture.run("compare missing.toml").fails(1, &["missing.toml"]);
    fixture.run("compare").fails(2, &["TABLE"]);
    fixture.run("compare table.toml --jobs 0").fails(2, &["--jobs"]);
    fixture.run("compare table.toml --summary --dry-run").fails(2, &["--dry-run"]);
    fixture
        .run("compare table.toml --from data")
        .fails(2, &["data is not the output of `compare`", "no folder cells"]);
    fixture.run("compare table.toml --output model").fails(2, &["model holds", "is not a comparison"]);
    fixture.run("compare table.toml --output table.toml/out").fails(2, &["is a file"]);
    fixture.write("wrong.toml", format!("{TASKS}{METHODS}rnak = 3\n"));
    fixture.run("compare wrong.toml").fails(2, &["wrong.toml:23", "did you mean \"rank\"?"]);
    fixture.write("wrong.toml", format!("{TASKS}{METHODS}").replace("output = \"out\"\n", ""));
    fixture.run("compare wrong.toml").fails(2, &["--output is missing"]);
    fixture.write("wrong.toml", format!("{TASKS}{METHODS}").replace("\"other\"", "\"nowhere\""));
    fixture.run("compare wrong.toml").fails(1, &["nowhere"]);
    for (options, problem) in [
        ("budget = 0.5, by = \"svd\", max-rows = 9", "--max-rows has no effect with --by svd"),
        ("budget = 1.5", "'1.5' for '--budget"),
    ] {
        let pruned =
            format!("{TASKS}{METHODS}[[methods]]\nname = \"cut\"\nprune = {{ of = \"LoRA\", {options} }}\n");
        fixture.write("wrong.toml", pruned);
        fixture.run("compare wrong.toml").fails(2, &["wrong.toml", "method \"cut\"", problem]);
    }
    assert!(!fixture.path("out").exists());
    let lock = lora_drop::folder::FolderLock::acquire(&fixture.path("out")).unwrap();
    fixture.run("compare table.toml").fails(2, &["is writing this folder"]);
    drop(lock);
    assert!(fixture.files("out").is_empty());
}

#[test]
fn the_best_of_what_was_tried_is_used() {
    let fixture = fixture();
    let tuned = "[[methods]]\nname = \"tuned\"\nmethod = \"lora\"\ntune = { learning-rate = [1e-7, 2e-2] }\ntasks = [\"first\"]\nepochs = 6\n";
    fixture
        .write("table.toml", format!("{TASKS}{METHODS}{tuned}").replace("[0, 1]", "[0]\ntuning-seeds = [7]"));
    let outcome = fixture.run("compare table.toml").ok();
    assert!(
        outcome.stderr.contains("first · tuned · seed 7 · trial of learning-rate 0.02  accuracy"),
        "{}",
        outcome.stderr
    );
    let index = fixture.read_json("out/compare.json");
    assert_eq!(index["counts"]["finished"], 7);
    let entries = index["findings"]["entries"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["line"] == 2).unwrap();
    assert_eq!(
        (&entry["tuned"]["learning-rate"], &entry["score"]["n"]),
        (&Value::from(0.02), &Value::from(1))
    );
    assert!(fixture.read("out/table.md").contains("tuned (learning-rate 0.02)"));
}

/// Two models in folders of their own, which a digest of their contents distinguishes.
#[test]
fn models_that_are_tried_are_told_apart() {
    let fixture = fixture();
    let mut weights = crate::common::weights();
    weights.values_mut().for_each(|(_, values)| values.iter_mut().for_each(|value| *value *= 0.5));
    crate::common::write_model(&fixture.path("half"), &crate::common::config(), &weights);
    let tuned = "[[methods]]\nname = \"tuned\"\nmethod = \"lora\"\ntune = { model = [\"model\", \"half\"] }\ntasks = [\"first\"]\n";
    let table = format!("{TASKS}{tuned}").replace("sample-epochs = 1\n", "");
    fixture.write("table.toml", table.replace("[0, 1]", "[0]\ntuning-seeds = [7]"));
    fixture.run("compare table.toml").ok();
    let index = fixture.read_json("out/compare.json");
    // Two trials and the one that is reported.
    assert_eq!((&index["counts"]["of"], results(&fixture).len()), (&Value::from(3), 3));
}

#[test]
fn runs_are_as_long_as_the_reference_and_adapters_are_pruned() {
    let fixture = fixture();
    let longer = "[[methods]]\nname = \"longer\"\nmethod = \"lora-drop\"\nbudget = 0.5\nrestart = \"continue\"\nepochs = 5\n";
    let pruned = "[[methods]]\nname = \"pruned\"\nprune = { of = \"LoRA\", budget = 0.5 }\n";
    for equal in ["steps", "seconds"] {
        let table = format!("equal = \"{equal}\"\n{TASKS}{METHODS}{longer}{pruned}");
        fixture
            .write("table.toml", table.replace("[0, 1]", "[0]").replace("\"out\"", &format!("\"{equal}\"")));
        fixture.run("compare table.toml").ok();
        let index = fixture.read_json(&format!("{equal}/compare.json"));
        let entries = index["findings"]["entries"].as_array().unwrap();
        assert_eq!((entries.len(), &index["counts"]["failed"]), (8, &Value::from(0)));
        for entry in entries {
            let of = |name: &str| entry[name].as_f64().unwrap();
            // Two epochs of 96 rows in batches of 16; a sample stage from which training does not
            // continue comes before them.
            let before = if entry["line"] == 1 { 1.0 } else { 0.0 };
            match equal {
                "steps" => assert_eq!(of("steps"), 12.0 + before, "{entry}"),
                _ => assert!(of("steps") >= 1.0, "{entry}"),
            }
            assert!(entry["line"] != 3 || of("share") <= 0.5 && of("parameters") > 0.0, "{entry}");
        }
        let plan = fixture.run("compare table.toml --dry-run --json").ok().json();
        assert_eq!(plan["runs_left"], 0, "{plan}");
    }
}

#[test]
fn models_go_and_adapters_stay() {
    let fixture = fixture();
    let full = "[[methods]]\nname = \"full\"\nmethod = \"full\"\nlearning-rate = 1e-3\n";
    let table = format!("{TASKS}{METHODS}{full}").replace("[0, 1]", "[0]").replace("sample-epochs = 1\n", "");
    fixture.write("table.toml", &table);
    fixture.run("compare table.toml --quiet").ok();
    let has = |method: &str, file: &str| {
        let cells = fixture.files("out/cells");
        let cell = cells.iter().find(|name| name.starts_with(&format!("first_{method}_0"))).unwrap();
        fixture.path(&format!("out/cells/{cell}/run/{file}")).exists()
    };
    assert!(has("lora", "adapter_model.safetensors") && has("full", "summary.json"));
    assert!(!has("full", "model.safetensors") && !has("full", "config.json"));
    let index = fixture.read_json("out/compare.json");
    let full = &index["findings"]["entries"][2];
    assert!(full["parameters"].as_f64().unwrap() > 10_000.0 && full["retained"].is_null());
}

/// Runs in this process, so that the test can replace pruning.
#[test]
fn a_pruned_line_waits_for_its_adapter() {
    let fixture = fixture();
    let pruned =
        "[[methods]]\nname = \"pruned\"\nprune = { of = \"LoRA\" }\nvary = { budget = [0.5, 0.25] }\n";
    let table = format!("{TASKS}{METHODS}{pruned}").replace("[0, 1]", "[0]");
    let inside = |name: &str| fixture.path(name).display().to_string();
    let table = ["model", "data", "other"].iter().fold(table, |table, name| {
        table.replace(&format!(" = \"{name}\""), &format!(" = {:?}", inside(name)))
    });
    fixture.write("table.toml", table);
    let table = TableFile::read(&fixture.path("table.toml")).unwrap();
    let cancel = Cancel::new();
    let comparison = Comparison::open(table, &fixture.path("out"), &[], &cancel, &mut |_| {}).unwrap();
    let work = |work: &Work, output: &Path| match work {
        Work::Train { settings } => {
            let recipe = lora_drop::settings::Recipe::read(settings)?;
            let mut given = recipe.given().clone();
            given.insert("output".into(), output.display().to_string().into());
            given.insert("token-cache".into(), 0.0.into());
            let recipe = lora_drop::settings::Recipe::from_table(given)?;
            let settings = recipe.settings(lora_drop::settings::Reader::Train)?.0;
            train::run(&settings, None, &cancel, &mut |_| {}).map(drop)
        }
        Work::Prune { adapter, data, options } => {
            assert!(adapter.join("adapter_model.safetensors").exists() && data.join("dev.jsonl").exists());
            let budget = options["budget"].as_float().unwrap();
            if budget < 0.5 {
                return Err(Error::Input("too little".to_string()));
            }
            let point =
                serde_json::json!({"parameters": 77, "dev": {"metrics": {"accuracy": 0.75, "f1": 0.5}}});
            let found = serde_json::json!({"points": [point], "chosen": 0, "scoring_seconds": 1.0,
                                           "algebra_seconds": 2.0, "measuring_seconds": 4.0});
            std::fs::create_dir_all(output).unwrap();
            std::fs::write(output.join("prune.json"), found.to_string()).unwrap();
            Ok(())
        }
    };
    let mut order = Vec::new();
    let run = Run { jobs: 2, work: &work, cancel: &cancel };
    let counts = comparison
        .run(&run, &mut |event| {
            order.extend(event.result.map(|result| result.method.clone()));
            assert_eq!(event.counts.of, 8);
        })
        .unwrap();
    assert_eq!((counts.finished, counts.failed, counts.of), (6, 2, 8));
    assert!(order[4..].iter().all(|method| method.starts_with("pruned")), "{order:?}");
    let findings = comparison.findings().unwrap();
    let (whole, half) = (findings.entry(0, 0).unwrap(), findings.entry(0, 2).unwrap());
    assert_eq!((half.parameters, half.score.mean), (77.0, 0.75));
    assert!((half.seconds - whole.seconds - 3.0).abs() < 1e-6);
    assert!(findings.entry(0, 3).is_none());
}
