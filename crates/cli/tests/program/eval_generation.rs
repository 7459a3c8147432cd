//! `lora-drop eval --metrics`: text generated for the rows of a split, measured against their
//! references.

use crate::common::Fixture;
use lora_drop::evaluate::text::{self, Metric};
use serde_json::{Value, json};

/// What the tiny decoder is measured by.
const ALL: &str =
    "eval --model decoder --data texts --metrics bleu,rouge,nist,cider --max-new-tokens 8 --json";

/// The words of row number `i`: a prompt, and the same words in another order.
fn words(i: usize) -> [String; 2] {
    let (a, b, c) = (3 + i * 7 % 40, 3 + i * 13 % 40, 50 + i % 20);
    [format!("w{a} w{b} w{c}"), format!(" w{c} w{b} w{a} w{b}")]
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| row.to_string() + "\n").collect()
}

/// A tiny Llama, and twelve rows with a prompt each.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let row = |i| {
        let [prompt, completion] = words(i);
        json!({ "prompt": prompt, "completion": completion })
    };
    fixture.write("texts/train.jsonl", lines((0..64).map(row)));
    fixture.write("texts/dev.jsonl", lines((64..76).map(row)));
    fixture
}

/// The rows of a file with a JSON object a line.
fn rows(fixture: &Fixture, name: &str) -> Vec<Value> {
    fixture.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A result without its times.
fn timeless(mut result: Value) -> Value {
    result["seconds"] = Value::Null;
    result["generation"]["seconds"] = Value::Null;
    result["generation"]["predictions"] = Value::Null;
    result
}

#[test]
fn threads_and_batches_change_nothing() {
    let fixture = fixture();
    for (way, decoding) in [
        ("greedy", "--repetition-penalty 1.2"),
        ("beams", "--num-beams 3"),
        ("drawn", "--temperature 0.9 --top-k 20 --seed 5"),
    ] {
        let run = |name: &str, options: &str| {
            let command = format!("{ALL} {decoding} {options} --predictions {way}-{name}.jsonl");
            (timeless(fixture.run(&command).ok().json()), fixture.read(&format!("{way}-{name}.jsonl")))
        };
        let one = run("one", "--threads 1 --batch-size 1");
        assert_eq!(one.1.lines().count(), 12);
        assert_eq!(run("two", "--threads 2 --batch-size 5"), one);
        assert_eq!(run("all", "--threads 2 --batch-size 64"), one);
    }
    assert_ne!(fixture.read("greedy-one.jsonl"), fixture.read("drawn-one.jsonl"));
}

#[test]
fn metrics_are_those_of_the_predictions_that_are_written() {
    let fixture = fixture();
    let result = fixture.run(&format!("{ALL} --predictions out.jsonl")).ok().json();
    let alone = fixture.run("eval --model decoder --data texts --json").ok().json();
    // Loss and perplexity are the same as without generation, and generation is reported only where
    // it was asked for.
    assert_eq!(result["loss"], alone["loss"]);
    assert_eq!(result["metrics"]["perplexity"], alone["metrics"]["perplexity"]);
    assert!(alone.get("generation").is_none(), "{alone}");

    let written = rows(&fixture, "out.jsonl");
    let of = |row: &Value| row["prediction"].as_str().unwrap().to_string();
    let hypotheses: Vec<String> = written.iter().map(of).collect();
    let texts = |row: &Value| serde_json::from_value(row["references"].clone()).unwrap();
    let references: Vec<Vec<String>> = written.iter().map(texts).collect();
    let scores = text::evaluate(&Metric::WORDING, &hypotheses, &references).unwrap();
    assert_eq!(result["metrics"].as_object().unwrap().len(), 1 + scores.len());
    for score in scores {
        assert_eq!(result["metrics"][score.name], json!(score.value), "{}", score.name);
    }
    for (i, row) in written.iter().enumerate() {
        let [prompt, completion] = words(64 + i);
        assert_eq!((&row["prompt"], &row["references"]), (&json!(prompt), &json!([completion])));
        assert!(row["finish"] == "length" && row["tokens"] == 8 || row["finish"] == "end_of_text", "{row}");
    }
    let tokens: u64 = written.iter().map(|row| row["tokens"].as_u64().unwrap()).sum();
    assert_eq!(
        result["generation"],
        json!({ "inputs": 12, "references": 12, "tokens": tokens, "seconds": result["generation"]["seconds"],
                "predictions": "out.jsonl" })
    );

    // Nothing else is left in the folder, and the file is replaced only where that is asked for.
    assert!(!fixture.files(".").iter().any(|name| name.contains("tmp")), "{:?}", fixture.files("."));
    fixture.run(&format!("{ALL} --predictions out.jsonl")).fails(2, &["--predictions", "--overwrite"]);
    fixture.run(&format!("{ALL} --limit 2 --predictions out.jsonl --overwrite")).ok();
    assert_eq!(rows(&fixture, "out.jsonl"), written[..2]);
}

#[test]
fn rows_with_one_prompt_are_one_input() {
    let fixture = fixture();
    let texts = |i: usize, n: usize| (0..n).map(|k| words(i + k)[1].trim().to_string()).collect::<Vec<_>>();
    let prompts: Vec<(String, Vec<String>)> =
        (0..6).map(|i| (words(i)[0].clone(), texts(i, 1 + i % 3))).collect();
    // Each reference in a row of its own, the rows of a prompt apart from each other; and all in
    // one row.
    let row = |k: usize| {
        let of = move |(prompt, texts): &(String, Vec<String>)| {
            texts.get(k).map(|text| json!({ "prompt": prompt, "completion": text }))
        };
        prompts.iter().filter_map(of).collect::<Vec<_>>()
    };
    fixture.write("apart.jsonl", lines((0..3).flat_map(row)));
    let together = |(prompt, texts): &(String, Vec<String>)| json!({ "prompt": prompt, "completion": texts[0], "references": texts });
    fixture.write("together.jsonl", lines(prompts.iter().map(together)));
    fixture.write("twice.jsonl", lines(prompts.iter().chain(&prompts).map(together)));
    let run = |name: &str| {
        let options = "--metrics bleu,rouge,nist,cider --max-new-tokens 6 --json";
        let command =
            format!("eval --model decoder --data {name}.jsonl {options} --predictions {name}-out.jsonl");
        let result = timeless(fixture.run(&command).ok().json());
        (
            result["metrics"]["cider"].clone(),
            result["generation"].clone(),
            fixture.read(&format!("{name}-out.jsonl")),
        )
    };
    let apart = run("apart");
    assert_eq!(apart.1["inputs"], 6);
    assert_eq!(apart.1["references"], 12);
    assert_eq!(run("together"), apart);
    assert_eq!(run("twice"), apart);
}

#[test]
fn the_limit_is_on_generation_alone() {
    let fixture = fixture();
    let all = fixture.run(&format!("{ALL} --predictions all.jsonl")).ok().json();
    let few = fixture.run(&format!("{ALL} --limit 5 --predictions few.jsonl")).ok().json();
    assert_eq!(rows(&fixture, "few.jsonl"), rows(&fixture, "all.jsonl")[..5]);
    assert_eq!((&few["rows"], &few["loss"]), (&json!(12), &all["loss"]));
    assert_eq!(few["generation"]["inputs"], 5);
    // A limit above the number of prompts means all.
    let more = fixture.run(&format!("{ALL} --limit 500")).ok().json();
    assert_eq!(more["metrics"], all["metrics"]);
    // The train split, too, has prompts to generate for.
    let train = fixture.run(&format!("{ALL} --split train --limit 3")).ok().json();
    assert_eq!((&train["rows"], &train["generation"]["inputs"]), (&json!(64), &json!(3)));
}

#[test]
fn conversations_are_continued_up_to_the_last_answer() {
    let fixture = fixture();
    let template = "{% for message in messages %}{{ message.content + ' ' }}\
                    {% if message.role == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}";
    fixture.write("decoder/chat_template.jinja", template);
    let turn = |role: &str, text: &str| json!({ "role": role, "content": text });
    let row = |answer: &str| {
        json!({ "messages": [turn("user", "w3 w4"), turn("assistant", "w5"), turn("user", "w6"),
                             turn("assistant", answer)] })
    };
    let asked = json!({ "messages": [turn("user", "w3 w4")] });
    fixture.write("talk.jsonl", lines([row("w7 w8"), row("w9 w10")]));
    let options = "--metrics rougeL,bleu --max-new-tokens 4 --json --predictions out.jsonl";
    let result = fixture.run(&format!("eval --model decoder --data talk.jsonl {options}")).ok().json();
    assert_eq!((&result["rows"], &result["generation"]["inputs"]), (&json!(2), &json!(1)));
    // Only what was asked for, and in the order of the manual whatever the order of the option.
    let names: Vec<&String> = result["metrics"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let written = rows(&fixture, "out.jsonl");
    assert_eq!(written[0]["messages"].as_array().unwrap().len(), 3);
    assert_eq!(written[0]["references"], json!(["w7 w8", "w9 w10"]));

    fixture.write("talk.jsonl", lines([row("w7"), asked]));
    fixture
        .run("eval --model decoder --data talk.jsonl --metrics bleu")
        .fails(1, &["talk.jsonl, line 2", "reference"]);
}

#[test]
fn final_numbers_are_compared() {
    let fixture = fixture();
    // The token w9 ends in the number 9, as every word of the tiny decoder ends in one.
    let row = |i: usize| json!({ "prompt": words(i)[0], "completion": " #### 7" });
    fixture.write("numbers.jsonl", lines((0..4).map(row)));
    let command = "eval --model decoder --data numbers.jsonl --metrics exact_match --max-new-tokens 3 --json";
    let result = fixture.run(&format!("{command} --predictions out.jsonl")).ok().json();
    let right = rows(&fixture, "out.jsonl")
        .iter()
        .filter(|row| text::final_number(row["prediction"].as_str().unwrap()) == Some(7.0))
        .count();
    assert_eq!(result["metrics"]["exact_match"], json!(right as f64 / 4.0));

    fixture.write("numbers.jsonl", lines([row(0), json!({ "prompt": "w3", "completion": "no word of it" })]));
    fixture.run(command).fails(1, &["numbers.jsonl, line 2", "number", "exact_match"]);
}

#[test]
fn adapters_in_every_form_write_the_same_texts() {
    let fixture = fixture();
    fixture
        .run(
            "train --model decoder --data texts --output run --max-length 32 --epochs 8 --batch-size 8 \
             --learning-rate 2e-2 --rank 4 --threshold 0.9 --quantize q8_0 --sample-ratio 0.5 --sample-epochs 2",
        )
        .ok();
    let options = "--data texts --metrics bleu,rouge --max-new-tokens 6 --json";
    // The run's own recipe says that the base is quantized.
    let of_run = fixture.run(&format!("eval --adapter run {options}")).ok().json();
    let summary = fixture.read_json("run/summary.json");
    let perplexity = |found: &Value| found["metrics"]["perplexity"].as_f64().unwrap();
    assert!((perplexity(&of_run) / perplexity(&summary) - 1.0).abs() < 1e-6, "{of_run} {summary}");
    for adapter in ["run/adapter_compact.safetensors", "peft"] {
        if adapter == "peft" {
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                fixture
                    .write(&format!("peft/{file}"), std::fs::read(fixture.path("run").join(file)).unwrap());
            }
        }
        let found = fixture
            .run(&format!("eval --model decoder --quantize q8_0 --adapter {adapter} {options}"))
            .ok()
            .json();
        assert_eq!(found["metrics"], of_run["metrics"], "{adapter}");
    }
    let base = fixture.run(&format!("eval --model decoder {options}")).ok().json();
    let rouge = |found: &Value| found["metrics"]["rouge1"].as_f64().unwrap();
    assert!(rouge(&of_run) > rouge(&base) + 0.1, "{} {}", of_run["metrics"], base["metrics"]);
}

#[test]
fn invalid_options_are_refused_before_generation() {
    let fixture = fixture();
    let eval = |options: &str| fixture.run(&format!("eval --model decoder --data texts {options}"));
    eval("--metrics meteor").fails(2, &["meteor", "bleu", "exact_match"]);
    for option in
        ["--limit 3", "--predictions x", "--max-new-tokens 4", "--num-beams 2", "--stop x", "--batch-size 2"]
    {
        eval(option).fails(2, &["--metrics"]);
    }
    eval("--metrics bleu --limit 0").fails(2, &["--limit", "from 1 up"]);
    eval("--metrics bleu --batch-size 0").fails(2, &["--batch-size"]);
    eval("--metrics bleu --temperature 1 --num-beams 2").fails(2, &["--temperature", "--num-beams"]);
    eval("--metrics bleu --overwrite").fails(2, &["--predictions"]);
    eval("--metrics bleu --predictions nowhere/x.jsonl").fails(2, &["--predictions", "nowhere"]);
    fixture.run("eval --model model --data data --metrics bleu").fails(1, &["head"]);
    fixture.train("--method lora --epochs 1").ok();
    fixture.run("eval --adapter out --data data --metrics bleu").fails(2, &["head", "decoders"]);

    let of_rows = |rows: &[Value], options: &str| {
        fixture.write("rows.jsonl", lines(rows.iter().cloned()));
        fixture.run(&format!("eval --model decoder --data rows.jsonl {options}"))
    };
    let sound = json!({ "prompt": "w3 w4", "completion": " w5" });
    of_rows(&[json!({ "text": "w3 w4 w5" })], "--metrics bleu").fails(2, &["rows.jsonl", "reference"]);
    of_rows(&[json!({ "text": "w3 w4 w5" })], "").ok();
    of_rows(&[sound.clone(), json!({ "prompt": "w3", "completion": null })], "--metrics bleu")
        .fails(1, &["rows.jsonl, line 2", "no reference"]);
    // The tiny decoder has 64 positions.
    let long = json!({ "prompt": vec!["w3"; 64].join(" "), "completion": " w5" });
    let found = of_rows(&[sound.clone(), long.clone()], "--metrics bleu");
    assert!(!found.stderr.contains("Measuring"), "{}", found.stderr);
    found.fails(1, &["rows.jsonl, line 2", "64 tokens", "shorten"]);
    of_rows(&[sound, long], "--metrics bleu --limit 1 --max-new-tokens 2").ok();
}

/// Ctrl-C while texts are written: the exit code says so, and no file is left.
#[cfg(unix)]
#[test]
fn an_interruption_leaves_nothing() {
    let fixture = fixture();
    let row = |i| json!({ "prompt": format!("w{} w{}", 3 + i % 90, 3 + i / 90), "completion": " w5" });
    fixture.write("many.jsonl", lines((0..4000).map(row)));
    let options = "--metrics bleu --max-new-tokens 60 --num-beams 4 --predictions out.jsonl";
    let command = format!("eval --model decoder --data many.jsonl {options}");
    fixture.interrupt(&command, "Generating").fails(130, &["interrupted: nothing was saved"]);
    assert!(!fixture.files(".").iter().any(|name| name.contains("out.jsonl")), "{:?}", fixture.files("."));
}
