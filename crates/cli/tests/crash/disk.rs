//! Disks that are full and folders that go away.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Fixture, Outcome, QUICK};
use crate::{check_files, check_run};

/// A limit on the size of files makes each kind of write fail in turn: the smallest files first,
/// then the larger ones.
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn a_limit_on_files_is_an_error_or_costs_only_the_log() {
    let fixture = Fixture::new();
    let train = format!("train --model model --data data --output out {QUICK} --epochs 60 --method lora");
    let (mut failed, mut logged) = (0, 0);
    for kilobytes in [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256] {
        let script = format!("ulimit -f {kilobytes}; exec \"$0\" \"$@\"");
        let outcome = Outcome::of_process(&mut fixture.shell(&script, &train));
        assert!(!outcome.stderr.contains("panicked"), "{kilobytes}: {}", outcome.stderr);
        match outcome.code {
            Some(0) => logged += usize::from(outcome.stderr.contains("metrics.jsonl")),
            Some(1) => {
                failed += 1;
                assert!(outcome.stderr.contains("limit"), "{kilobytes}: {}", outcome.stderr);
            }
            other => panic!("{kilobytes}: {other:?}: {}", outcome.stderr),
        }
        check_run(&fixture, "out", false);
        _ = std::fs::remove_dir_all(fixture.path("out"));
    }
    assert!(failed > 3, "the limits stopped {failed} runs");
    assert!(logged > 0, "no run went on without its log");
}

/// A file system of its own, small enough to fill up, where user namespaces allow one to be
/// mounted.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn a_full_file_system_is_an_error_and_leaves_whole_files() {
    let fixture = Fixture::new();
    let small = "mkdir -p disk; mount -t tmpfs -o size=SIZEk small disk;";
    let possible = Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|s| s.success());
    if !possible {
        println!("no user namespaces here: nothing was mounted");
        return;
    }
    let (mut done, mut failed) = (0, 0);
    for kilobytes in [4, 16, 32, 48, 64, 96, 128, 192, 256, 512, 4096] {
        let mount = small.replace("SIZE", &kilobytes.to_string());
        let binary = fixture.command().get_program().to_owned();
        let script = format!(
            "{mount} \"$0\" train --model model --data data --output disk/out {QUICK} --epochs 20 --method lora; code=$?; \
             rm -rf left; cp -r disk/out left 2>/dev/null; exit $code"
        );
        let mut unshare = assert_cmd::Command::new("unshare");
        unshare.current_dir(fixture.path("")).args(["-rm", "bash", "-c", &script]).arg(binary);
        let outcome = Outcome::of(&mut unshare);
        assert!(!outcome.stderr.contains("panicked"), "{kilobytes}: {}", outcome.stderr);
        assert!(matches!(outcome.code, Some(0 | 1)), "{kilobytes}: {outcome:?}");
        if outcome.code == Some(1) {
            assert!(outcome.stderr.contains("the disk is full"), "{kilobytes}: {}", outcome.stderr);
            failed += 1;
        } else {
            done += 1;
        }
        if fixture.path("left").exists() {
            check_files(&fixture.path("left"));
        }
    }
    assert!(done > 0 && failed > 0, "{done} were done, {failed} failed");
}

/// The output folder is removed, or becomes a file, while the run is under way.
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn an_output_folder_that_goes_away_is_named() {
    for file in [false, true] {
        let fixture = Fixture::new();
        let options =
            format!("train --model model --data data --output out {QUICK} --epochs 100000 --method lora");
        let mut child = fixture.process(&options).spawn().unwrap();
        let began = Instant::now();
        while !fixture.path("out/adapter_model.safetensors").exists() {
            assert!(began.elapsed() < Duration::from_secs(60), "no epoch was measured");
            std::thread::sleep(Duration::from_millis(10));
        }
        // A commit may create a file while the folder is removed.
        while fixture.path("out").is_dir() {
            _ = std::fs::remove_dir_all(fixture.path("out"));
        }
        if file {
            std::fs::write(fixture.path("out"), "in the way").unwrap();
        }
        let code = child.wait().unwrap().code();
        let mut message = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
        assert_eq!(code, Some(1), "{message}");
        assert!(
            message.contains("error: ") && message.contains("out") && !message.contains("panicked"),
            "{message}"
        );
    }
}

/// The output folder cannot be written any more while the run is under way.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "minutes long; .ci/run runs it"]
fn an_output_folder_that_becomes_read_only_keeps_the_best_epoch() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let fixture = Fixture::new();
    let allow = |folder: &str, mode: u32| {
        std::fs::set_permissions(fixture.path(folder), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Root writes everywhere, so the program runs as nobody then.
    let root = std::fs::metadata(fixture.path("")).unwrap().uid() == 0;
    let nobody = if root { "setpriv --reuid=65534 --clear-groups" } else { "" };
    allow("", 0o777);
    let options =
        format!("train --model model --data data --output out {QUICK} --epochs 100000 --method lora");
    let mut child = fixture.shell(&format!("exec {nobody} \"$0\" \"$@\""), &options).spawn().unwrap();
    let began = Instant::now();
    while !fixture.path("out/adapter_model.safetensors").exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "no epoch was measured");
        std::thread::sleep(Duration::from_millis(10));
    }
    allow("out", 0o555);
    allow("out/.lora-drop", 0o555);
    let code = child.wait().unwrap().code();
    let mut message = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
    allow("out", 0o755);
    allow("out/.lora-drop", 0o755);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("permission") && message.contains("out"), "{message}");
    assert!(check_run(&fixture, "out", false), "the best epoch is there: {message}");
}
