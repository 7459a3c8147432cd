//! `--profile` and `bench --kernels` on tiny models: the trace, the table, and paths that will not
//! do.

use std::collections::BTreeMap;

use crate::common::Fixture;
use serde_json::{Value, json};

const BENCH: &str = "bench --model model --batch 4 --length 16 --steps 2 --threads 2";

/// Checks a trace and returns its events. On each track every event but the outermost lies within
/// the one around it; the outermost of the first track are roots; operations have their work.
#[track_caller]
fn spans(trace: &Value) -> Vec<Value> {
    let events = trace["traceEvents"].as_array().unwrap();
    let spans: Vec<Value> = events.iter().filter(|event| event["ph"] == "X").cloned().collect();
    let mut tracks = BTreeMap::<u64, (Vec<(f64, &str)>, f64)>::new();
    for span in &spans {
        let track = span["tid"].as_u64().unwrap();
        let (open, last) = tracks.entry(track).or_insert((Vec::new(), f64::NEG_INFINITY));
        let [start, time] = ["ts", "dur"].map(|name| span[name].as_f64().unwrap());
        let kind = span["cat"].as_str().unwrap();
        assert!(start >= *last && time >= 0.0, "{span}");
        *last = start;
        // Times are whole nanoseconds, so half of one is for rounding alone.
        open.retain(|(end, _)| start < end - 5e-4);
        match open.last() {
            None => assert_eq!(kind, if track == 1 { "root" } else { "phase" }, "{span}"),
            Some((end, around)) => {
                assert!(start + time <= end + 5e-4, "{span}");
                let order = ["root", "phase", "block", "operation"];
                let place = |kind: &str| order.iter().position(|known| *known == kind).unwrap();
                assert!(place(around) < place(kind), "a {kind} within a {around}");
            }
        }
        assert!(kind != "operation" || span["args"]["bytes"].as_u64().unwrap() > 0, "{span}");
        open.push((start + time, kind));
    }
    spans
}

/// The operations of a profile, whose shares add up to 1 and whose seconds to its own.
#[track_caller]
fn operations(profile: &Value) -> &Vec<Value> {
    let operations = profile["operations"].as_array().unwrap();
    let sum = |name: &str| operations.iter().map(|row| row[name].as_f64().unwrap()).sum::<f64>();
    assert!((sum("share") - 1.0).abs() < 1e-6, "{profile}");
    assert!((sum("seconds") - profile["seconds"].as_f64().unwrap()).abs() < 1e-6, "{profile}");
    operations
}

/// The row of an operation in a phase.
#[track_caller]
fn row<'a>(profile: &'a Value, phase: &str, operation: &str) -> &'a Value {
    let found = operations(profile).iter().find(|row| row["phase"] == phase && row["operation"] == operation);
    found.unwrap_or_else(|| panic!("no {operation} in {phase}: {profile}"))
}

#[test]
fn a_training_run_is_profiled_and_its_bits_stay() {
    let fixture = Fixture::new();
    let options = "--method lora --epochs 1 --lora-dropout 0.1 --hidden-dropout 0.1";
    let printed = fixture.train(&format!("{options} --output one/out --profile profile.json")).ok();
    for words in ["Profile of 12 steps; peak ", "\nforward ", "\n  attention backward ", "\nall ", " 100.0 %"]
    {
        assert!(printed.stdout.contains(words), "{words:?} is not in {}", printed.stdout);
    }
    assert!(printed.stderr.contains("profile.json"), "{}", printed.stderr);
    let file = fixture.read_json("profile.json");
    let profile = &file["profile"];
    assert_eq!(profile["recorded"][0]["name"], "step");
    assert_eq!((&profile["recorded"][0]["count"], &profile["threads"]), (&json!(12), &json!(2)));
    // Two of three linear layers of attention have a pair in each of three blocks, in each of two
    // parts of each step.
    let (lora, linear) = (row(profile, "forward", "LoRA"), row(profile, "forward", "linear"));
    assert_eq!((&lora["calls"], &linear["calls"]), (&json!(2 * 12 * 6), &json!(2 * 12 * 18)));
    assert!(
        linear["share_of_peak"].as_f64().unwrap() > 0.0 && linear["gb_per_second"].as_f64().unwrap() > 0.0
    );
    let norm = row(profile, "backward", "norm backward");
    assert_eq!((&norm["flop"], &norm["gflops"]), (&json!(0), &Value::Null));
    for (phase, operation) in [
        ("forward", "dropout"),
        ("head and loss", "loss"),
        ("optimiser", "AdamW"),
        ("step", "between operations"),
    ] {
        assert!(row(profile, phase, operation)["seconds"].as_f64().unwrap() > 0.0);
    }
    // The first ten steps, whole.
    let spans = spans(&file);
    let named = |name: &str| spans.iter().filter(|span| span["name"] == name).count();
    assert_eq!((named("step 1"), named("step 10"), named("step 11")), (1, 1, 0));
    assert_eq!((named("forward"), named("backward"), named("block 2")), (20, 20, 40));

    // Without a profile and with one over an existing file.
    let quiet = fixture.train(&format!("{options} --output two")).ok();
    assert!(!quiet.stdout.contains("Profile"));
    let adapters =
        ["one/out", "two"].map(|run| std::fs::read(fixture.path(run).join("adapter_model.safetensors")));
    let [with, without] = adapters.map(Result::unwrap);
    assert!(with == without, "the profile changed the result");
    let again = fixture.train(&format!("{options} --output two --profile profile.json --overwrite --json"));
    assert_eq!(again.ok().json()["method"], "lora");
}

#[test]
fn a_decoders_stages_are_profiled() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let text =
        |i: usize| json!({"prompt": format!("w{}", 3 + i % 40), "completion": format!(" w{}", 5 + i % 40)});
    let rows = |from: usize, to: usize| (from..to).map(|i| format!("{}\n", text(i))).collect::<String>();
    fixture.write("texts/train.jsonl", rows(0, 32));
    fixture.write("texts/dev.jsonl", rows(32, 40));
    let options =
        "--data texts --epochs 2 --batch-size 8 --max-length 16 --sample-ratio 0.5 --sample-epochs 1";
    let dropped = "--unselected drop --top-k 1 --scope layer --recompute";
    fixture
        .run(&format!("train --model decoder --output out {options} {dropped} --profile out/profile.json"))
        .ok();
    let file = fixture.read_json("out/profile.json");
    let profile = &file["profile"];
    let recorded = profile["recorded"].as_array().unwrap();
    let counts: Vec<_> =
        recorded.iter().map(|root| (root["name"].as_str().unwrap(), &root["count"])).collect();
    assert_eq!(counts, [("sample step", &json!(2)), ("step", &json!(8))]);
    assert!(row(profile, "forward", "second moments")["flop"].as_u64().unwrap() > 0);
    for (phase, operation) in [
        ("logits and loss", "loss"),
        ("logits and loss", "linear, input gradient"),
        ("backward", "attention"),
        ("backward", "rotary"),
    ] {
        row(profile, phase, operation);
    }
    spans(&file);
}

#[test]
fn bench_reports_the_profile_and_the_bytes_moved() {
    let fixture = Fixture::new();
    let found = fixture.run(&format!("{BENCH} --json")).ok().json();
    assert!(found.get("profile").is_none());
    let bytes = found["bytes_per_step"].as_u64().unwrap();
    let rate = found["gb_per_second"].as_f64().unwrap() * found["seconds_per_step"].as_f64().unwrap();
    assert!(bytes > 0 && (rate / (bytes as f64 / 1e9) - 1.0).abs() < 1e-6, "{found}");

    let found = fixture.run(&format!("{BENCH} --json --profile p.json")).ok().json();
    let profile = &found["profile"];
    assert_eq!(profile["recorded"][0]["count"], 2);
    let moved: u64 = operations(profile).iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
    assert_eq!((moved, found["bytes_per_step"].as_u64()), (2 * bytes, Some(bytes)));
    let file = fixture.read_json("p.json");
    assert_eq!(&file["profile"], profile);
    assert_eq!(spans(&file).iter().filter(|span| span["cat"] == "root").count(), 2);

    fixture.write_decoder("decoder");
    let words = "bench --model decoder --batch 2 --length 5 --generate 6 --steps 2 --profile g.json";
    let table = fixture.run(words).ok().stdout;
    assert!(table.contains("Profile of 2 generations") && table.contains("linear, few rows"), "{table}");
    let file = fixture.read_json("g.json");
    assert!(row(&file["profile"], "logits", "linear, few rows")["calls"].as_u64() >= Some(12));
    spans(&file);
}

#[test]
fn single_products_are_measured() {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let words = "bench --model decoder --batch 2 --length 8 --kernels --steps 1 --quantize q8_0";
    let found = fixture.run(&format!("{words} --json")).ok().json();
    assert_eq!(found["rows"], 16);
    let products = found["products"].as_array().unwrap();
    let of = |layer: &str, product: &str| {
        let is_it = |row: &&Value| row["layer"] == layer && row["product"] == product;
        products.iter().find(is_it).unwrap_or_else(|| panic!("no {product} of {layer}: {found}"))
    };
    let query = of("q_proj", "linear");
    // The product of the layer and that of its pair after A.
    let [output, input] = ["output", "input"].map(|name| query[name].as_u64().unwrap());
    assert_eq!(query["flop"], 2 * 16 * output * (input + 8));
    assert!(query["gflops"].as_f64().unwrap() > 0.0 && query["storage"] == "Q8_0", "{query}");
    of("logits", "linear, input gradient");
    of("v_proj", "LoRA backward");
    assert!(!products.iter().any(|row| row["layer"] == "k_proj" && row["product"] == "LoRA"));
    let table = fixture.run(words).ok().stdout;
    assert!(table.contains("Products of 16 rows; peak ") && table.contains("down_proj"), "{table}");
    fixture.run(&format!("{words} --profile p.json")).fails(2, &["--profile", "--kernels"]);
}

#[test]
fn paths_that_will_not_do_are_named_before_the_work() {
    let fixture = Fixture::new();
    fixture.write("taken.json", "mine");
    for (path, words) in [
        ("taken.json", ["exists", "--overwrite"]),
        ("absent/p.json", ["folder absent", "does not exist"]),
        ("taken.json/p.json", ["folder taken.json", "does not exist"]),
        ("model", ["is a folder", "file's name"]),
    ] {
        let words = [&["--profile", path], &words[..]].concat();
        fixture.train(&format!("--profile {path}")).fails(2, &words);
        fixture.run(&format!("{BENCH} --profile {path}")).fails(2, &words);
    }
    assert_eq!(fixture.read("taken.json"), "mine");
    assert!(!fixture.path("out").exists(), "something was trained");
    fixture.train("--profile p.json --dry-run").fails(2, &["--profile", "--dry-run"]);
    fixture.run(&format!("{BENCH} --overwrite")).fails(2, &["--overwrite", "--profile"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_to_is_named_before_the_work() {
    let fixture = Fixture::new();
    // Nobody can make a file here, not even root.
    fixture.train("--profile /proc/self/p.json").fails(1, &["/proc/self/p.json"]);
    assert!(!fixture.path("out").exists(), "something was trained");
}
