//! SIGKILL at random moments.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lora_drop::folder::checkpoints;

use crate::common::{Fixture, QUICK, Random, result_of_run};
use crate::{check_files, check_run, moments};

fn start(fixture: &Fixture, command: &str) -> Child {
    fixture.process(command).stderr(Stdio::null()).spawn().unwrap()
}

/// Runs a command to its end; returns how long it took.
fn time(fixture: &Fixture, command: &str) -> Duration {
    let began = Instant::now();
    assert!(start(fixture, command).wait().unwrap().success(), "{command}");
    began.elapsed()
}

/// Kills the command at a random moment of its time; returns whether it had ended by itself.
fn kill(fixture: &Fixture, command: &str, whole: Duration, random: &mut Random) -> bool {
    let mut child = start(fixture, command);
    std::thread::sleep(whole.mul_f64(random.below(1_000_000) as f64 / 1e6));
    _ = child.kill();
    child.wait().unwrap().success()
}

fn clear(fixture: &Fixture, name: &str) {
    let path = fixture.path(name);
    _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
}

#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn a_killed_training_leaves_whole_files_of_one_epoch() {
    let fixture = Fixture::new();
    let train = format!("train --model model --data data --output out {QUICK} --budget 0.7");
    let whole = time(&fixture, &train);
    let mut random = Random(1);
    let (mut measured, mut unmeasured) = (0, 0);
    clear(&fixture, "out");
    for round in 0..10 * moments() {
        // A busy machine may take longer than `whole` to its first epoch.
        if round >= moments() && measured.min(unmeasured) > 0 {
            break;
        }
        kill(&fixture, &train, whole, &mut random);
        if check_run(&fixture, "out", true) {
            measured += 1;
            // A run that can be used is not replaced unasked.
            fixture.run(&train).fails(2, &["error: out ", "--overwrite"]);
            clear(&fixture, "out");
        } else {
            unmeasured += 1;
            // Without a checkpoint the next round is the same command in the same folder.
            if !checkpoints(&fixture.path("out")).is_empty() {
                fixture.run(&train).fails(2, &["not finished", "--resume out"]);
                clear(&fixture, "out");
            }
        }
    }
    fixture.run(&train).ok();
    check_run(&fixture, "out", true);
    println!("{measured} killed behind their first epoch, {unmeasured} before");
    assert!(measured > 0 && unmeasured > 0, "{measured} measured, {unmeasured} not");
}

#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn a_killed_training_that_replaces_another_leaves_one_of_them() {
    let fixture = Fixture::new();
    // Another rank, so that files of the two runs do not fit together.
    fixture.run(&format!("train --model model --data data --output out {QUICK} --method lora --rank 4")).ok();
    let train = format!("train --model model --data data --output out {QUICK} --budget 0.7 --overwrite");
    let whole = {
        let elsewhere = train.replace("--output out", "--output elsewhere");
        time(&fixture, &elsewhere)
    };
    let mut random = Random(2);
    for _ in 0..moments() {
        kill(&fixture, &train, whole, &mut random);
        assert!(check_run(&fixture, "out", true), "neither the old run nor the new one is there");
    }
    fixture.run(&train).ok();
    check_run(&fixture, "out", true);
}

#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn a_killed_training_is_resumed_to_the_same_bits() {
    kill_and_resume(moments());
}

#[test]
fn a_training_that_is_killed_a_few_times_is_resumed_to_the_same_bits() {
    kill_and_resume(10);
}

/// Kills runs of four kinds at random moments of all stages, this many together, and resumes them.
fn kill_and_resume(moments: usize) {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(240, 20);
    let mut random = Random(4);
    for options in [
        "--model model --data data --budget 0.7 --lora-dropout 0.1",
        "--model decoder --data texts --budget 0.5 --restart continue",
        "--model model --data data --method full",
        "--model model --data data --dtype bf16 --method dora",
    ] {
        // A checkpoint after nearly each step, so that runs are resumed from all stages.
        let train = |output: &str| {
            format!(
                "train {options} --learning-rate 1e-2 --batch-size 8 --epochs 8 --output {output} --checkpoint-minutes 1e-6 \
                 --token-cache 0"
            )
        };
        let whole = time(&fixture, &train("whole"));
        let expected = result_of_run(&fixture.path("whole"));
        let (mut rounds, mut resumed) = (0, 0);
        while rounds < moments.div_ceil(4) || resumed == 0 {
            rounds += 1;
            assert!(rounds < 20 * moments, "no run was killed behind its first checkpoint");
            let mut command = train("out");
            let mut ended;
            loop {
                ended = kill(&fixture, &command, whole, &mut random);
                if checkpoints(&fixture.path("out")).is_empty() {
                    break;
                }
                resumed += 1;
                command = "train --resume out".to_string();
                // The third resumption is left to finish.
                if resumed % 3 == 0 {
                    fixture.run(&command).ok();
                    ended = true;
                    break;
                }
            }
            let finished = fixture.path("out/summary.json").exists()
                && fixture.read_json("out/summary.json")["status"] == "finished";
            if !finished {
                clear(&fixture, "out");
                continue;
            }
            let found = result_of_run(&fixture.path("out"));
            for (name, before) in &expected {
                assert!(found.get(name) == Some(before), "{name} differs in round {rounds} of {options}");
            }
            // A process that was killed after its last commit may leave an empty state.
            let state = fixture.path("out/.lora-drop");
            assert!(!state.exists() || !ended, "{options} left {}", state.display());
            clear(&fixture, "out");
        }
        println!("{options}: resumed {resumed} times in {rounds} runs");
        clear(&fixture, "whole");
    }
}

#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn killed_merges_and_exports_leave_whole_files() {
    let fixture = Fixture::new();
    fixture
        .run(&format!("train --model model --data data --output out {QUICK} --method lora --epochs 2"))
        .ok();
    let mut random = Random(3);
    for (command, output) in [
        ("merge --adapter out --output merged", "merged"),
        ("export --adapter out --to peft --output peft", "peft"),
        ("export --adapter out --to compact --output a.safetensors", "a.safetensors"),
    ] {
        let whole = time(&fixture, command);
        for overwrite in [false, true] {
            let command = if overwrite { format!("{command} --overwrite") } else { command.to_string() };
            for _ in 0..moments() {
                if !overwrite {
                    clear(&fixture, output);
                }
                kill(&fixture, &command, whole, &mut random);
                let path = fixture.path(output);
                check_files(if path.is_dir() { &path } else { path.parent().unwrap() });
                if overwrite {
                    // At whatever moment it was killed, a reader finds a whole one: the old or the
                    // new.
                    fixture.run(&format!("inspect {output}")).ok();
                }
            }
            clear(&fixture, output);
            fixture.run(&command).ok();
            fixture.run(&format!("inspect {output}")).ok();
        }
    }
    let eval = |words: &str| fixture.run(words).ok().json()["metrics"]["accuracy"].clone();
    let merged = eval("eval --model merged --data data --json");
    assert_eq!(merged, eval("eval --adapter out --data data --json"));
}
