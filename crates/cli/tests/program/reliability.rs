//! What a run leaves when it goes wrong: numbers that are none, runs that are replaced, two
//! writers, signals.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{Fixture, Outcome, QUICK};
use serde_json::{Value, json};

/// Every file of a folder with its content.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap()))
        .collect()
}

/// Checks that training failed with exit code 1 and says all of `words`.
#[track_caller]
fn diverged(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(words.iter().all(|word| outcome.stderr.contains(word)), "{words:?} in {}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

/// Weights grow ten thousandfold in each step, so that the first epochs are measured and a later
/// one is not finite.
const LATE: &str = "--method lora --weight-decay 1e6 --batch-size 96 --epochs 20";

#[test]
fn logits_that_are_not_finite_end_the_run_and_are_no_best_epoch() {
    let fixture = Fixture::new();
    let row =
        |i: usize| json!({"text": "the film was good", "label": usize::from(i >= 36)}).to_string() + "\n";
    fixture.write("rows/train.jsonl", (0..40).map(row).collect::<String>());
    fixture.write("rows/dev.jsonl", (0..40).map(row).collect::<String>());
    let outcome = fixture.run(
        "train --model model --data rows --output out --method lora --epochs 2 --learning-rate 1e30 --warmup-ratio 0.5 \
         --batch-size 1000",
    );
    diverged(&outcome, &["row ", "logit"]);
    let summary = fixture.read_json("out/summary.json");
    assert_eq!((&summary["status"], &summary["best_epoch"]), (&json!("diverged"), &json!(0)));
    assert!(summary["error"].as_str().unwrap().contains("logit"), "{summary}");
    assert!(!fixture.path("out/adapter_model.safetensors").exists());
    assert!(fixture.run("inspect out").ok().stdout.contains("diverged"));
    // There is nothing to lose, so the same folder is taken again.
    fixture.train("--epochs 1 --method head").ok();
    assert_eq!(fixture.read_json("out/summary.json")["status"], "finished");
}

#[test]
fn the_best_epoch_of_a_run_that_diverges_stays_whole() {
    let fixture = Fixture::new();
    let outcome = fixture.train(LATE);
    diverged(&outcome, &["error: ", "the best epoch so far", "is saved in out"]);
    let summary = fixture.read_json("out/summary.json");
    assert_eq!(summary["status"], "diverged");
    assert!(summary["best_epoch"].as_u64().unwrap() > 0 && summary["error"].is_string(), "{summary}");
    let report = fixture.read("out/report.html");
    assert!(report.contains("diverged") && report.trim_end().ends_with("</html>"));
    assert!(fixture.read("out/recipe.toml").contains("weight-decay = 1000000"));
    let found = fixture.run("eval --adapter out --data data --json").ok().json();
    assert_eq!(found["metrics"]["accuracy"], summary["metrics"]["accuracy"]);
    assert!(fixture.run("inspect out").ok().stdout.contains("ended by"));
}

#[test]
fn a_model_whose_own_outputs_are_not_finite_is_named_as_the_cause() {
    let fixture = Fixture::new();
    let mut weights = crate::common::weights();
    let name = "bert.encoder.layer.1.output.dense.weight";
    weights.get_mut(name).unwrap().1.fill(3e38);
    crate::common::write_tensors(&fixture.path("model/model.safetensors"), &weights);
    diverged(&fixture.train("--method lora"), &["step 1,", "the model's own outputs are not finite"]);
    fixture.run("predict --model model --input data/dev.jsonl").fails(1, &["head"]);

    let weights = std::fs::read(fixture.path("model/model.safetensors")).unwrap();
    let sound = Fixture::new();
    sound.train("--method head --epochs 1").ok();
    sound.write("model/model.safetensors", weights);
    sound.run("eval --adapter out --data data").fails(1, &["row ", "logit"]);
    sound.run("predict --adapter out --input data/dev.jsonl").fails(1, &["row ", "logit"]);

    sound.write_decoder("decoder");
    let bytes = std::fs::read(sound.path("decoder/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = crate::common::Tensors::new();
    for (name, view) in file.iter() {
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let huge = name.contains("down_proj");
        let values = values.map(|value| if huge { 3e38 } else { value }).collect();
        tensors.insert(name.to_string(), (view.shape().to_vec(), values));
    }
    crate::common::write_tensors(&sound.path("decoder/model.safetensors"), &tensors);
    sound
        .run_words(&["generate", "--model", "decoder", "--prompt", "w5 w6"])
        .fails(1, &["prompt 1", "logit"]);
    sound.write("texts.jsonl", "{\"prompt\": \"w5 w6\", \"completion\": \"w7\"}\n".repeat(4));
    sound.run("eval --model decoder --data texts.jsonl").fails(1, &["rows 1, 2", "loss"]);
}

#[test]
fn an_old_run_stays_until_the_new_one_has_measured_an_epoch() {
    let fixture = Fixture::new();
    fixture.train("--epochs 1 --method lora").ok();
    let before = contents(&fixture.path("out"));
    // Not one epoch is measured: the rate is far too high.
    diverged(&fixture.train("--overwrite --learning-rate 1e30"), &["error: "]);
    assert!(contents(&fixture.path("out")) == before, "a failed run changed the old one");
    assert!(!fixture.path("out/.lora-drop").exists());

    // The recipe that runs is the one that is replaced.
    fixture.run("train out/recipe.toml --overwrite --epochs 2").ok();
    assert!(fixture.read("out/recipe.toml").contains("epochs = 2"));
    assert_eq!(fixture.read_json("out/summary.json")["epochs"], 2);
}

#[cfg(unix)]
#[test]
fn ctrl_c_before_the_first_epoch_leaves_the_old_run() {
    let fixture = Fixture::new();
    fixture.train("--epochs 1 --method lora").ok();
    let before = contents(&fixture.path("out"));
    let row = fixture.read("data/train.jsonl").repeat(60);
    fixture.write("data/train.jsonl", row);
    let command =
        "train --model model --data data --output out --overwrite --threads 1 --method lora --batch-size 8";
    let ended = fixture.interrupt(command, "Training");
    ended.fails(130, &["interrupted: no epoch was evaluated yet; the run's state is saved", "--resume out"]);
    assert!(contents(&fixture.path("out")) == before);
}

#[cfg(unix)]
#[test]
fn ctrl_c_while_rows_are_read_and_tokenised() {
    let fixture = Fixture::new();
    let rows = fixture.read("data/train.jsonl").repeat(600);
    fixture.write("data/train.jsonl", rows);
    let ended = fixture.interrupt("train --model model --data data --output out", "bert");
    ended.fails(130, &["interrupted: nothing was saved"]);
    assert!(!fixture.path("out").exists());
}

#[test]
fn scoring_writes_one_file_and_removes_nothing() {
    let fixture = Fixture::new();
    fixture.train("--epochs 1").ok();
    let before = contents(&fixture.path("out"));
    fixture
        .run("score --model model --data data --adapter out --output out")
        .fails(2, &["importance.json exists"]);
    fixture.run("score --model model --data data --adapter out --output out --overwrite").ok();
    let after = contents(&fixture.path("out"));
    for (name, content) in &before {
        assert!(name == "importance.json" || after[name] == *content, "{name} was changed");
    }
    assert_eq!(fixture.read_json("out/importance.json")["sample"]["steps"], 0);
    fixture.run("score out/recipe.toml --overwrite").ok();
    assert_eq!(contents(&fixture.path("out")).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert!(fixture.read_json("out/importance.json")["sample"]["steps"].as_u64().unwrap() > 0);
}

#[test]
fn only_what_a_run_lists_goes() {
    let fixture = Fixture::new();
    // A base model with a log beside it is no run.
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fixture.write(&format!("base/{file}"), std::fs::read(fixture.path("model").join(file)).unwrap());
    }
    fixture.write("base/metrics.jsonl", "");
    let before = contents(&fixture.path("base"));
    fixture.train("--output base --overwrite").fails(2, &["base", "--overwrite may replace"]);
    fixture.run("merge --model model --adapter base --output base --overwrite").fails(2, &["base"]);
    assert!(contents(&fixture.path("base")) == before);

    // A full fine-tuning's tokenizer goes with its model.
    fixture.write("model/vocab.txt", "[PAD]\n");
    fixture.train("--method full --learning-rate 1e-3 --epochs 1").ok();
    assert!(fixture.path("out/vocab.txt").exists());
    fixture.train("--method lora --epochs 1 --overwrite").ok();
    let names: Vec<String> = contents(&fixture.path("out")).into_keys().collect();
    let left: Vec<_> =
        names.iter().filter(|name| name.contains("vocab") || name.starts_with("config")).collect();
    assert!(left.is_empty(), "{left:?} of the model before");
    assert_eq!(fixture.read_json("out/summary.json")["outputs"], json!(names));
}

#[test]
fn leftovers_of_killed_commands_are_in_nobodys_way() {
    let fixture = Fixture::new();
    fixture.train("--epochs 1 --method lora").ok();
    for (name, command) in [
        ("merged", "merge --adapter out --output merged"),
        ("peft", "export --adapter out --to peft --output peft"),
        ("again", "train out/recipe.toml --output again"),
    ] {
        fixture.write(&format!("{name}/.model.safetensors.a1B2c3.tmp"), "half");
        fixture.write(&format!("{name}/.lora-drop/next/model.safetensors"), "half");
        fixture.write(&format!("{name}/.lora-drop/lock"), "");
        fixture.run(command).ok();
        assert!(!fixture.path(&format!("{name}/.lora-drop")).exists(), "{name}");
        fixture.run(command).fails(2, &["in use", "--overwrite"]);
        fixture.run(&format!("{command} --overwrite")).ok();
    }
    // What another program has merged is not ours to replace.
    let merged = std::fs::read(fixture.path("merged/config.json")).unwrap();
    fixture.write("other/config.json", merged);
    fixture.write("other/model.safetensors", std::fs::read(fixture.path("model/model.safetensors")).unwrap());
    fixture.run("merge --adapter out --output other --overwrite").fails(2, &["other", "may replace"]);
}

/// A commit that a killed run had decided on is completed by whoever looks next.
#[test]
fn readers_complete_a_commit() {
    let fixture = Fixture::new();
    let summary = fixture.train("--epochs 1 --method lora --json").ok().json();
    for name in fixture.files("out") {
        std::fs::create_dir_all(fixture.path("out/.lora-drop/commit")).unwrap();
        if name.starts_with("adapter") || name == "summary.json" || name == "recipe.toml" {
            let to = fixture.path("out/.lora-drop/commit").join(&name);
            std::fs::rename(fixture.path("out").join(&name), to).unwrap();
        }
    }
    let found = fixture.run("eval --adapter out --data data --json").ok().json();
    assert_eq!(found["metrics"]["accuracy"], summary["metrics"]["accuracy"]);
    assert!(fixture.files("out").contains(&"summary.json".to_string()));
}

/// The binary in the place of the shell, whose process is then its own.
#[cfg(unix)]
const RUN: &str = "exec \"$0\" \"$@\"";

/// A run that goes on until it is ended.
#[cfg(unix)]
struct Running {
    child: std::process::Child,
}

#[cfg(unix)]
impl Running {
    /// Starts a run in the place of a shell's script and waits until its first epoch is measured.
    fn start(fixture: &Fixture, script: &str) -> Self {
        use std::time::{Duration, Instant};

        let options = format!(
            "train --model model --data data --output out {QUICK} --epochs 100000 --method lora --token-cache 0"
        );
        let child = fixture.shell(script, &options).spawn().unwrap();
        let patience = Instant::now();
        let measured = || {
            let text = std::fs::read_to_string(fixture.path("out/summary.json")).ok()?;
            serde_json::from_str::<Value>(&text).ok()?["best_epoch"].as_u64()
        };
        while measured().unwrap_or(0) == 0 {
            assert!(patience.elapsed() < Duration::from_secs(120), "no epoch was measured");
            std::thread::sleep(Duration::from_millis(20));
        }
        Running { child }
    }

    fn signal(&self, name: &str) {
        crate::common::send(&self.child, name);
    }

    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[cfg(unix)]
#[test]
fn term_and_hup_end_like_ctrl_c() {
    for signal in ["-TERM", "-HUP"] {
        let fixture = Fixture::new();
        let running = Running::start(&fixture, RUN);
        running.signal(signal);
        let (code, message) = running.end();
        assert_eq!(code, Some(130), "{signal}: {message}");
        assert!(message.contains("is saved in out"), "{signal}: {message}");
        assert_eq!(fixture.read_json("out/summary.json")["status"], "interrupted");
        fixture.run("eval --adapter out --data data").ok();
    }
}

#[cfg(unix)]
#[test]
fn nohup_outlives_the_terminal() {
    let fixture = Fixture::new();
    let running = Running::start(&fixture, "exec nohup \"$0\" \"$@\"");
    running.signal("-HUP");
    std::thread::sleep(std::time::Duration::from_millis(500));
    // Read by `inspect`: the file itself is missing for a moment while an epoch takes its place.
    assert_eq!(fixture.run("inspect out --json").ok().json()["status"], "running");
    running.signal("-TERM");
    assert_eq!(running.end().0, Some(130));
}

/// While a run is under way its folder is its own, and says so; when it is killed its best epoch
/// can be used at once.
#[cfg(unix)]
#[test]
fn one_writer_a_folder_and_a_killed_run_is_whole() {
    let fixture = Fixture::new();
    let running = Running::start(&fixture, RUN);
    let number = running.child.id().to_string();
    fixture.train("--overwrite").fails(2, &["out", &number, "is writing this folder"]);
    fixture
        .run("score --model model --data data --output out --overwrite")
        .fails(2, &["out", &number, "is writing this folder"]);
    assert!(fixture.run("inspect out").ok().stdout.contains("(running)"));
    running.signal("-KILL");
    assert_eq!(running.end().0, None);
    let shown = fixture.run("inspect out --json").ok().json();
    assert_eq!(shown["status"], "stopped");
    // The recipe is there from the start, so nothing has to be named.
    let found = fixture.run("eval --adapter out --data data --json").ok().json();
    let summary = fixture.read_json("out/summary.json");
    assert_eq!(found["metrics"]["accuracy"], summary["metrics"]["accuracy"]);
    fixture.train("--epochs 1").fails(2, &["error: out ", "--overwrite"]);
    fixture.train("--epochs 1 --overwrite").ok();
    assert!(!fixture.path("out/.lora-drop").exists());
}

#[test]
fn the_only_step_of_a_run_learns() {
    let fixture = Fixture::new();
    let rows: String =
        fixture.read("data/train.jsonl").lines().take(20).map(|line| format!("{line}\n")).collect();
    fixture.write("data/train.jsonl", rows);
    let outcome = fixture.run("train --model model --data data --output out --method lora --epochs 1").ok();
    assert!(outcome.stderr.contains("1 optimiser step,"), "{}", outcome.stderr);
    let bytes = std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut learned = file.iter().filter(|(name, _)| name.contains("lora_B"));
    assert!(learned.all(|(_, view)| view.data().iter().any(|&b| b != 0)));
    // A sample of one step is no error either.
    fixture.run("score --model model --data data --output scores --sample-epochs 1 --sample-ratio 0.5").ok();
}

#[test]
fn of_epochs_with_the_same_metric_the_one_of_the_lowest_loss_is_best() {
    let fixture = Fixture::new();
    let summary = fixture.train("--method lora --epochs 12 --json").ok().json();
    let log = fixture.read("out/metrics.jsonl");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let evaluations: Vec<Value> = lines.filter(|line| line["event"] == "evaluation").collect();
    let key = |e: &Value| (e["metrics"]["accuracy"].as_f64().unwrap(), -e["loss"].as_f64().unwrap());
    let best = evaluations.iter().max_by(|a, b| key(a).partial_cmp(&key(b)).unwrap()).unwrap();
    assert_eq!(summary["best_epoch"], best["epoch"]);
    let of_best = evaluations.iter().filter(|e| key(e).0 == key(best).0).count();
    assert!(of_best > 1, "no two epochs had the best accuracy, so nothing was decided by the loss");
}

#[test]
fn scores_say_what_they_cover() {
    let fixture = Fixture::new();
    // 10 of 96 rows in steps of 8 are 2 steps an epoch; a window is 6 epochs.
    for (epochs, steps) in [("auto", 48), ("7", 14), ("3", 6)] {
        fixture.run(&format!("score --model model --data data --output {epochs} --batch-size 8 --learning-rate 1e-2 --sample-epochs {epochs}")).ok();
        let sample = &fixture.read_json(&format!("{epochs}/importance.json"))["sample"];
        let rows = sample["rows"].as_u64().unwrap();
        let window = &sample["window"];
        let covered = if epochs == "3" { 3 } else { 6 };
        assert_eq!(window["steps"], 2 * covered, "{sample}");
        assert_eq!(window["rows"].as_u64().unwrap(), rows * covered, "{sample}");
        assert_eq!(
            window["tokens"].as_u64().unwrap(),
            sample["tokens"].as_u64().unwrap() * covered,
            "{sample}"
        );
        assert!(sample["steps"].as_u64().unwrap() >= steps, "{sample}");
    }
}
