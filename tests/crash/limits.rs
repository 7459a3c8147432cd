//! Memory that is not there, standard output that is closed, two processes on one thing.

use std::process::{Command, Stdio};

use crate::check_run;
use crate::common::{Fixture, QUICK};

/// With too little memory a run ends with an error or dies by a signal; one that says that it is done has the right bits.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn too_little_memory_never_makes_a_wrong_adapter() {
    let fixture = Fixture::new();
    let train = format!("train --model model --data data {QUICK} --epochs 3 --method lora");
    fixture.run(&format!("{train} --output right")).ok();
    let right = std::fs::read(fixture.path("right/adapter_model.safetensors")).unwrap();
    let binary = fixture.command().get_program().to_owned();
    let (mut done, mut stopped) = (0, 0);
    for megabytes in [8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024] {
        _ = std::fs::remove_dir_all(fixture.path("out"));
        let output = Command::new("bash")
            .args(["-c", &format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes * 1024)])
            .arg(&binary)
            .args(format!("{train} --output out").split_whitespace())
            .current_dir(fixture.path(""))
            .output()
            .unwrap();
        if output.status.success() {
            done += 1;
            let found = std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap();
            assert!(found == right, "{megabytes} MB gave other bits");
        } else {
            stopped += 1;
            check_run(&fixture, "out", true);
        }
    }
    assert!(done > 0 && stopped > 0, "{done} were done, {stopped} were not");
}

/// Whether standard output is there changes nothing about the work.
#[cfg(unix)]
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn closed_standard_output_and_error() {
    let fixture = Fixture::new();
    let binary = fixture.command().get_program().to_owned();
    for closed in [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        _ = std::fs::remove_dir_all(fixture.path("out"));
        let script = format!("\"$0\" \"$@\" {closed}");
        let output = Command::new("bash")
            .args(["-c", &script])
            .arg(&binary)
            .args(
                format!("train --model model --data data --output out {QUICK} --epochs 2 --method lora")
                    .split_whitespace(),
            )
            .current_dir(fixture.path(""))
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(0 | 1)) && !message.contains("panicked"),
            "{closed}: {output:?}"
        );
        assert!(check_run(&fixture, "out", true), "{closed}: the run was lost");
        assert_eq!(fixture.read_json("out/summary.json")["status"], "finished", "{closed}");
    }
}

/// Several processes make and read the same cached tokens at once.
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn processes_that_share_a_token_cache_are_all_right() {
    let fixture = Fixture::new();
    let train = format!("train --model model --data data {QUICK} --epochs 1 --method lora --threads 1");
    fixture.run(&format!("{train} --output right --token-cache 0")).ok();
    let right = std::fs::read(fixture.path("right/adapter_model.safetensors")).unwrap();
    for round in 0..5 {
        _ = std::fs::remove_dir_all(fixture.path("cache"));
        let start = |number: usize| {
            Command::new(fixture.command().get_program())
                .args(format!("{train} --output {round}-{number}").split_whitespace())
                .current_dir(fixture.path(""))
                .env("LORA_DROP_CACHE", fixture.path("cache"))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let running: Vec<_> = (0..4).map(start).collect();
        for (number, child) in running.into_iter().enumerate() {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let path = fixture.path(&format!("{round}-{number}/adapter_model.safetensors"));
            assert!(std::fs::read(path).unwrap() == right, "process {number} of round {round}");
        }
        assert_eq!(fixture.files("cache/tokens").len(), 2, "the cache has temporary files");
    }
}
