//! Memory that is not there, standard output that is closed.

use std::time::{Duration, Instant};

use crate::common::{Fixture, QUICK, config, send, weights, write_model};
use crate::{check_files, check_run};

/// With too little memory a run ends with an error or dies by a signal; if it reports success, its
/// adapter is bit-identical to that of an unlimited run.
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

/// The work is the same whether standard output is there or not.
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

/// Ctrl-C while a model of 256 MB is merged ends it before it is whole and leaves nothing.
#[cfg(unix)]
#[test]
#[ignore = "writes a model of 256 MB; .ci/run runs it"]
fn an_interrupted_merge_leaves_nothing() {
    const ROWS: usize = 2 << 20;
    let fixture = Fixture::new();
    // Positions that no sequence reaches make the model large.
    let (mut config, mut weights) = (config(), weights());
    let table = weights.get_mut("bert.embeddings.position_embeddings.weight").unwrap();
    let width = table.0[1];
    *table = (vec![ROWS, width], vec![0.5; ROWS * width]);
    config["max_position_embeddings"] = ROWS.into();
    write_model(&fixture.path("large"), &config, &weights);
    let options = format!("{QUICK} --epochs 1 --method lora --max-length 16");
    fixture.run(&format!("train --model large --data data --output out {options}")).ok();
    let merge = "merge --model large --adapter out --output merged";
    let mut child = fixture.process(merge).spawn().unwrap();
    let began = Instant::now();
    // Written aside, so this is its middle.
    let begun =
        || std::fs::read_dir(fixture.path("merged/.lora-drop/next")).is_ok_and(|mut e| e.next().is_some());
    while !begun() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing was written");
        std::thread::sleep(Duration::from_millis(1));
    }
    send(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let left = if fixture.path("merged").exists() { fixture.files("merged") } else { Vec::new() };
    assert!(left.iter().all(|file| file == ".lora-drop"), "{left:?}");
    fixture.run(merge).ok();
    check_files(&fixture.path("merged"));
}
