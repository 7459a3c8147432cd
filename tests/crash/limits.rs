//! Memory that is not there, standard output that is closed.

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
    let (mut done, mut stopped) = (0, 0);
    for megabytes in [8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024] {
        _ = std::fs::remove_dir_all(fixture.path("out"));
        let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes * 1024);
        let output = fixture.shell(&script, &format!("{train} --output out")).output().unwrap();
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
    for closed in [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        _ = std::fs::remove_dir_all(fixture.path("out"));
        let train = format!("train --model model --data data --output out {QUICK} --epochs 2 --method lora");
        let output = fixture.shell(&format!("\"$0\" \"$@\" {closed}"), &train).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(0 | 1)) && !message.contains("panicked"),
            "{closed}: {output:?}"
        );
        assert!(check_run(&fixture, "out", true), "{closed}: the run was lost");
        assert_eq!(fixture.read_json("out/summary.json")["status"], "finished", "{closed}");
    }
}
