//! Several processes under real launchers: the same files on any number of ranks, with each kind of
//! MPI library; and the end of all where one ends.
//!
//! `tools/mpi` installs the launchers. These tests are ignored unless asked for:
//!
//! ```sh
//! tools/mpi && cargo test --profile checks --workspace --test ranks -- --ignored --test-threads 1
//! ```

#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Outcome, QUICK, result_of_run};

/// A launcher, and the library that it is tried with.
#[derive(Clone, Copy)]
struct Launcher {
    folder: &'static str,
    library: &'static str,
    options: &'static [&'static str],
}

const OPEN_MPI: Launcher = Launcher {
    folder: "openmpi",
    library: "libmpi.so.40",
    options: &["--allow-run-as-root", "--oversubscribe"],
};
const MPICH: Launcher = Launcher { folder: "mpich", library: "libmpi.so.12", options: &[] };
const STANDARD: Launcher = Launcher { folder: "mpich", library: "libmpi_abi.so.1", options: &[] };

/// Settings under which the tiny model's steps have several parts.
const SETTINGS: &str =
    "train --model model --data data --micro-tokens 40 --sample-ratio 0.5 --sample-epochs 2";
/// Epochs of a run that does not end by itself.
const LONG: usize = 100_000;
/// How soon all processes end when one has.
const SOON: Duration = Duration::from_secs(10);

/// Where `tools/mpi` has installed them.
fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let user = || {
        let home = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        home.expect("there is a home folder").join("lora-drop/mpi")
    };
    variable("LORA_DROP_MPI_CACHE").unwrap_or_else(user)
}

impl Launcher {
    /// The command that starts a process for each of these command lines.
    fn command(self, fixture: &Fixture, lines: &[String]) -> Command {
        let folder = cache().join(self.folder);
        let mpiexec = folder.join("bin/mpiexec");
        assert!(mpiexec.exists(), "{} is missing; tools/mpi installs it", mpiexec.display());
        let program = fixture.process("").get_program().to_os_string();
        let mut command = Command::new(mpiexec);
        command
            .args(self.options)
            .current_dir(fixture.path(""))
            .env("LORA_DROP_CACHE", fixture.path("cache"));
        command.env("LORA_DROP_MPI", folder.join("lib").join(self.library));
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                command.arg(":");
            }
            command.args(["-n", "1"]).arg(&program).args(line.split_whitespace());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(self, fixture: &Fixture, line: &str, ranks: usize) -> Outcome {
        Outcome::of_process(&mut self.command(fixture, &vec![line.to_string(); ranks]))
    }
}

/// The processes of a launcher's job that run the program.
fn ranks_of(fixture: &Fixture) -> Vec<u32> {
    let folder = fixture.path("").canonicalize().unwrap();
    let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let process = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
        let link = |name: &str| std::fs::read_link(format!("/proc/{process}/{name}")).ok();
        let is_rank = link("cwd")? == folder && link("exe")?.ends_with("lora-drop");
        // Not a rank's own child, which renders templates.
        let command = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
        (is_rank && command.windows(5).any(|word| word == b"train")).then_some(process)
    });
    let mut found: Vec<u32> = found.collect();
    found.sort_unstable();
    found
}

/// Starts a run of `epochs` epochs, and waits until it has evaluated the first one.
fn start(launcher: Launcher, fixture: &Fixture, output: &str, ranks: usize, epochs: usize) -> Child {
    let line = format!(
        "{SETTINGS} {QUICK} --output {output} --threads 1 --checkpoint-minutes 1e-6 --epochs {epochs}"
    );
    let mut command = launcher.command(fixture, &vec![line; ranks]);
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let log = fixture.path(output).join("metrics.jsonl");
    while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("evaluation")) {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ranks_of(fixture).len(), ranks);
    child
}

/// Waits for the end of all processes; returns how the launcher ended, and after which time.
fn end(child: Child, fixture: &Fixture, began: Instant) -> (Outcome, Duration) {
    let output = child.wait_with_output().unwrap();
    while !ranks_of(fixture).is_empty() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (Outcome { code: output.status.code(), stdout: String::new(), stderr }, began.elapsed())
}

fn signal(process: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn the_same_files_on_any_number_of_ranks() {
    let fixture = Fixture::new();
    for options in ["--hidden-dropout 0.1 --lora-dropout 0.1", "--dtype bf16 --budget 0.5"] {
        let line = |name: &str, threads: usize| {
            format!("{SETTINGS} {QUICK} --epochs 2 --output {name} --threads {threads} --overwrite {options}")
        };
        fixture.run(&line("alone", 2)).ok();
        let expected = result_of_run(&fixture.path("alone"));
        for launcher in [STANDARD, MPICH, OPEN_MPI] {
            for ranks in 2..=4 {
                for threads in [1, 2] {
                    launcher.run(&fixture, &line("together", threads), ranks).ok();
                    let found = result_of_run(&fixture.path("together"));
                    assert!(found == expected, "{ranks} ranks, {threads} threads, {}", launcher.library);
                }
            }
        }
        // One rank is a process alone.
        MPICH.run(&fixture, &line("together", 1), 1).ok();
        assert!(result_of_run(&fixture.path("together")) == expected);
    }
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn a_decoder_learns_the_same_on_ranks() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(60, 12);
    let line = |name: &str| {
        format!(
            "train --model decoder --data texts --output {name} --batch-size 12 --micro-tokens 20 --epochs 2 --overwrite \
             --sample-ratio 0.5 --sample-epochs 2 --learning-rate 1e-2"
        )
    };
    fixture.run(&line("alone")).ok();
    // Without --threads, as users start it.
    for (launcher, ranks) in [(OPEN_MPI, 2), (STANDARD, 3)] {
        launcher.run(&fixture, &line("together"), ranks).ok();
        assert!(
            result_of_run(&fixture.path("together")) == result_of_run(&fixture.path("alone")),
            "{ranks} ranks"
        );
    }
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn all_end_soon_after_one_is_killed() {
    for launcher in [STANDARD, MPICH, OPEN_MPI] {
        for victim in [0, 2] {
            let fixture = Fixture::new();
            let child = start(launcher, &fixture, "out", 3, LONG);
            let began = Instant::now();
            signal(ranks_of(&fixture)[victim], "-KILL");
            let (outcome, took) = end(child, &fixture, began);
            assert_ne!(outcome.code, Some(0), "{}", outcome.stderr);
            assert!(took < SOON, "{took:?} with {}", launcher.library);
        }
    }
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn a_job_that_was_killed_is_resumed_on_any_number_of_ranks() {
    const EPOCHS: usize = 60;
    let fixture = Fixture::new();
    fixture.run(&format!("{SETTINGS} {QUICK} --output whole --epochs {EPOCHS}")).ok();
    for (launcher, ranks, resumed_on) in [(STANDARD, 3, 1), (OPEN_MPI, 2, 3), (MPICH, 2, 2)] {
        let child = start(launcher, &fixture, "out", ranks, EPOCHS);
        let began = Instant::now();
        signal(ranks_of(&fixture)[ranks - 1], "-KILL");
        end(child, &fixture, began);
        assert!(result_of_run(&fixture.path("out")) != result_of_run(&fixture.path("whole")));
        launcher.run(&fixture, "train --resume out", resumed_on).ok();
        let same = result_of_run(&fixture.path("out")) == result_of_run(&fixture.path("whole"));
        assert!(same, "{ranks} ranks, resumed on {resumed_on}");
        std::fs::remove_dir_all(fixture.path("out")).unwrap();
    }
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn an_evaluation_is_shared_out() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(40, 20);
    fixture.train("--epochs 1").ok();
    let text = "--model decoder --data texts";
    let train = "--learning-rate 1e-2 --batch-size 4 --epochs 2 --method lora";
    fixture.run(&format!("train {text} --output writer {train}")).ok();
    let generated = "--metrics bleu --max-new-tokens 4 --temperature 1 --seed 3 --overwrite";
    for (line, file) in [
        ("eval --adapter out --data data".to_string(), None),
        (format!("eval --adapter writer --data texts --predictions p.jsonl {generated}"), Some("p.jsonl")),
    ] {
        let alone = fixture.run(&format!("{line} --json")).ok().json();
        let written = file.map(|file| fixture.read(file));
        for (launcher, ranks) in [(STANDARD, 3), (OPEN_MPI, 2)] {
            let together = launcher.run(&fixture, &format!("{line} --json"), ranks).ok().json();
            for name in ["metrics", "loss", "rows", "tokens"] {
                assert_eq!(together[name], alone[name], "{name} of {line} on {ranks} ranks");
            }
            assert_eq!(file.map(|file| fixture.read(file)), written, "{ranks} ranks");
        }
    }
    let lines = ["out", "other"].map(|adapter| format!("eval --adapter {adapter} --data data"));
    fixture.train("--epochs 1 --seed 5 --output other").ok();
    let outcome = Outcome::of_process(&mut STANDARD.command(&fixture, &lines));
    assert_ne!(outcome.code, Some(0));
    assert!(
        outcome.stderr.contains("rank 1 does not fit the others: the values of its adapter are not those"),
        "{}",
        outcome.stderr
    );
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn a_signal_to_any_rank_ends_all_in_step() {
    for launcher in [STANDARD, OPEN_MPI] {
        for signalled in [0, 1] {
            let fixture = Fixture::new();
            let child = start(launcher, &fixture, "out", 2, LONG);
            let began = Instant::now();
            signal(ranks_of(&fixture)[signalled], "-TERM");
            let (outcome, took) = end(child, &fixture, began);
            assert!(outcome.stderr.contains("interrupted: the best epoch so far"), "{}", outcome.stderr);
            assert_ne!(outcome.code, Some(0));
            assert!(took < SOON, "{took:?} with {}", launcher.library);
            assert_eq!(fixture.read_json("out/summary.json")["status"], "interrupted");
            assert!(!fixture.path("out/rank-1.log").exists());
        }
    }
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn ranks_that_differ_end_with_one_message() {
    let fixture = Fixture::new();
    fixture.write("other/train.jsonl", fixture.read("data/train.jsonl").replacen("positive", "negative", 1));
    fixture.write("other/dev.jsonl", fixture.read("data/dev.jsonl"));
    let mut weights = common::weights();
    weights.get_mut("bert.pooler.dense.weight").unwrap().1[0] += 1.0;
    common::write_model(&fixture.path("changed"), &common::config(), &weights);
    let line = format!("{SETTINGS} {QUICK} --epochs 1 --output out --threads 1");
    for (options, expected) in [
        ("--seed 7", "rank 1 does not fit the others: its --seed is 7, that of the first one 0"),
        ("--data other", "its rows of train, their tokens or labels are not those of the first one"),
        ("--model changed", "the files of its model are not those of the first one"),
        ("--data nowhere", "rank 1: nowhere"),
    ] {
        for launcher in [STANDARD, OPEN_MPI] {
            let lines = [line.clone(), format!("{line} {options}")];
            let outcome = Outcome::of_process(&mut launcher.command(&fixture, &lines));
            assert_ne!(outcome.code, Some(0));
            assert!(outcome.stderr.contains(expected), "{expected:?} is not in {}", outcome.stderr);
            assert_eq!(outcome.stderr.matches("error: ").count(), 1, "{}", outcome.stderr);
            assert!(!fixture.path("out").exists());
        }
    }
}

#[test]
#[ignore = "needs the launchers of tools/mpi"]
fn a_command_of_one_process_is_refused() {
    let fixture = Fixture::new();
    for line in ["inspect model", "train --model model --data data --output out --dry-run"] {
        let outcome = MPICH.run(&fixture, line, 2);
        assert_ne!(outcome.code, Some(0));
        assert_eq!(
            outcome.stderr.matches("error: mpiexec or srun started 2 processes").count(),
            1,
            "{}",
            outcome.stderr
        );
    }
    // What the first rank alone can know is known to all.
    fixture.write("out/mine.txt", "");
    let outcome = MPICH.run(&fixture, &format!("{SETTINGS} --output out"), 2);
    assert!(outcome.stderr.contains("out is in use"), "{}", outcome.stderr);
}
