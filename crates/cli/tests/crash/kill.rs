//! SIGKILL at random moments.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Fixture, QUICK, Random};
use crate::{check_files, check_run, moments};

fn start(fixture: &Fixture, command: &str) -> Child {
    fixture.process(command).stderr(Stdio::null()).spawn().unwrap()
}

/// Runs a command to its end; how long that takes.
fn time(fixture: &Fixture, command: &str) -> Duration {
    let began = Instant::now();
    assert!(start(fixture, command).wait().unwrap().success(), "{command}");
    began.elapsed()
}

/// Kills the command at a random moment of its time, if it has not ended by itself.
fn kill(fixture: &Fixture, command: &str, whole: Duration, random: &mut Random) {
    let mut child = start(fixture, command);
    std::thread::sleep(whole.mul_f64(random.below(1_000_000) as f64 / 1e6));
    _ = child.kill();
    child.wait().unwrap();
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
            fixture.run(&train).fails(2, &["in use", "--overwrite"]);
            clear(&fixture, "out");
        } else {
            // The next round is the same command in the same folder.
            unmeasured += 1;
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
                    // Whatever moment it was, a reader finds a whole one: the old or the new.
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
