//! Adapters that are damaged, hostile or of another model, and what `eval`, `predict` and `inspect`
//! are given.

use serde_json::{Value, json};

use crate::common::{Fixture, HIDDEN, LAYERS, Outcome, Tensors, write_tensors};

const RANK: usize = 2;

/// A sound adapter's configuration for the fixture's model.
fn config() -> Value {
    json!({
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": RANK,
        "lora_alpha": 4,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
        "inference_mode": true,
    })
}

fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: [usize; 2]| {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|i| 0.01 * (i % 7) as f32).collect();
        tensors.insert(format!("base_model.model.{name}"), (shape.to_vec(), values));
    };
    for layer in 0..LAYERS {
        for part in ["query", "value"] {
            let module = format!("bert.encoder.layer.{layer}.attention.self.{part}");
            add(format!("{module}.lora_A.weight"), [RANK, HIDDEN]);
            add(format!("{module}.lora_B.weight"), [HIDDEN, RANK]);
        }
    }
    add("classifier.weight".to_string(), [2, HIDDEN]);
    tensors.insert("base_model.model.classifier.bias".to_string(), (vec![2], vec![0.0; 2]));
    tensors
}

fn fixture(config: &str, tensors: &Tensors) -> Fixture {
    let fixture = Fixture::new();
    fixture.write("adapter/adapter_config.json", config);
    write_tensors(&fixture.path("adapter/adapter_model.safetensors"), tensors);
    // An adapter of another program names no labels, so the data has their numbers.
    let rows = fixture.read("data/dev.jsonl").replace("\"negative\"", "0").replace("\"positive\"", "1");
    fixture.write("data/dev.jsonl", rows);
    fixture
}

fn evaluate(fixture: &Fixture) -> Outcome {
    fixture.run("eval --model model --adapter adapter --data data --json")
}

#[track_caller]
fn config_fails(change: impl FnOnce(&mut Value), words: &[&str]) {
    let mut config = config();
    change(&mut config);
    evaluate(&fixture(&config.to_string(), &tensors())).fails(1, words);
}

#[track_caller]
fn tensors_fail(change: impl FnOnce(&mut Tensors), words: &[&str]) {
    let mut tensors = tensors();
    change(&mut tensors);
    evaluate(&fixture(&config().to_string(), &tensors)).fails(1, words);
}

const QUERY_A: &str = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight";

/// The other tests fail for the change that they make, and for nothing else.
#[test]
fn the_unchanged_adapter_is_sound() {
    let outcome = evaluate(&fixture(&config().to_string(), &tensors())).ok();
    assert_eq!(outcome.json()["rows"], 32);
}

#[test]
fn no_such_adapter() {
    let fixture = Fixture::new();
    fixture.run("eval --model model --adapter absent --data data").fails(1, &["absent"]);
}

#[test]
fn a_configuration_that_is_not_json() {
    evaluate(&fixture("{\"r\": ", &tensors())).fails(1, &["adapter_config.json", "JSON"]);
}

#[test]
fn another_kind_of_adapter() {
    config_fails(|c| c["peft_type"] = "IA3".into(), &["adapter_config.json", "peft_type", "IA3", "LORA"]);
}

#[test]
fn a_rank_that_is_absurd() {
    config_fails(|c| c["r"] = (1u64 << 60).into(), &["adapter"]);
    config_fails(|c| c["r"] = 0.into(), &["adapter_config.json"]);
    config_fails(|c| c["r"] = (-8).into(), &["adapter_config.json"]);
}

#[test]
fn an_alpha_that_is_no_number() {
    config_fails(|c| c["lora_alpha"] = "much".into(), &["adapter_config.json", "lora_alpha"]);
}

#[test]
fn a_hostile_regular_expression() {
    for expression in ["((((", "(a{9999}){9999}"] {
        config_fails(
            |c| c["rank_pattern"] = json!({expression: 4}),
            &["adapter_config.json", "rank_pattern"],
        );
    }
}

#[test]
fn weights_of_another_model() {
    let change = |t: &mut Tensors| *t.get_mut(QUERY_A).unwrap() = (vec![RANK, 48], vec![0.0; RANK * 48]);
    tensors_fail(change, &["layer.1.attention.self.query", "48", "32"]);
}

#[test]
fn weights_of_another_rank() {
    let change = |t: &mut Tensors| *t.get_mut(QUERY_A).unwrap() = (vec![5, HIDDEN], vec![0.0; 5 * HIDDEN]);
    tensors_fail(change, &["layer.1.attention.self.query", "[5, 32]"]);
}

#[test]
fn a_layer_that_the_model_has_not() {
    let change = |t: &mut Tensors| {
        for half in ["A", "B"] {
            let name = |layer: usize| {
                QUERY_A
                    .replace("layer.1", &format!("layer.{layer}"))
                    .replace("lora_A", &format!("lora_{half}"))
            };
            let tensor = t[&name(1)].clone();
            t.insert(name(40), tensor);
        }
    };
    tensors_fail(change, &["layer.40"]);
}

#[test]
fn half_a_pair() {
    tensors_fail(|t| drop(t.remove(QUERY_A)), &["layer.1.attention.self.query", "lora_A"]);
}

#[test]
fn a_value_that_is_not_a_number() {
    tensors_fail(|t| t.get_mut(QUERY_A).unwrap().1[2] = f32::NAN, &["layer.1.attention.self.query", "NaN"]);
}

#[test]
fn a_head_of_another_width() {
    let change = |t: &mut Tensors| {
        *t.get_mut("base_model.model.classifier.weight").unwrap() = (vec![2, 48], vec![0.0; 96]);
    };
    tensors_fail(change, &["classifier.weight", "[2, 48]"]);
}

#[test]
fn weights_that_end_early() {
    let fixture = fixture(&config().to_string(), &tensors());
    let path = "adapter/adapter_model.safetensors";
    let whole = std::fs::read(fixture.path(path)).unwrap();
    fixture.write(path, &whole[..whole.len() - 8]);
    evaluate(&fixture).fails(1, &["adapter_model.safetensors", "truncated"]);
}

#[test]
fn a_model_without_a_head_and_no_adapter() {
    let fixture = Fixture::new();
    fixture.run("eval --model model --data data").fails(1, &["model", "head", "give its adapter"]);
}

#[test]
fn a_split_that_is_not_there() {
    let fixture = fixture(&config().to_string(), &tensors());
    let outcome = fixture.run("eval --model model --adapter adapter --data data --split test");
    outcome.fails(1, &["test", "train.jsonl"]);
}

#[test]
fn a_row_to_predict_that_is_wrong() {
    let fixture = fixture(&config().to_string(), &tensors());
    for (rows, words) in [
        ("{\"text\": \"good\"}\n{\"text\": \n", ["rows.jsonl, line 2", "JSON"]),
        ("{\"text\": \"good\"}\n\n{\"text\": \"\"}\n", ["rows.jsonl, line 3", "text"]),
        ("{\"body_of_text\": \"good\"}\n", ["rows.jsonl, line 1", "--text-column"]),
        ("{\"text\": \"good\"}\n{\"other\": \"good\"}\n", ["rows.jsonl, line 2", "text"]),
    ] {
        fixture.write("rows.jsonl", rows);
        let words = words.as_slice();
        let outcome =
            fixture.run("predict --model model --adapter adapter --input rows.jsonl --output out.jsonl");
        outcome.fails(1, words);
        assert!(!fixture.path("out.jsonl").exists());
    }
}

#[test]
fn nothing_to_inspect() {
    let fixture = Fixture::new();
    fixture.run("inspect absent").fails(1, &["absent"]);
    fixture.run("inspect data").fails(1, &["data", "config.json", "adapter_config.json", "summary.json"]);
    fixture.write("bad/summary.json", "{}");
    fixture.run("inspect bad").fails(1, &["bad/summary.json", "missing field"]);
    fixture.run("inspect model bad").fails(2, &["model", "not a run"]);
}
