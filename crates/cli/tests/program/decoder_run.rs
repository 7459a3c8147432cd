//! Whole runs of the binary on a tiny decoder: train, eval, generate, merge, and what they leave
//! after.

use crate::common::Fixture;
use serde_json::{Value, json};

const OPTIONS: &str = "--model decoder --data texts --max-length 32 --epochs 3 --batch-size 8 --learning-rate 1e-2 --rank 4 \
                       --sample-ratio 0.5 --sample-epochs 2";

/// A tiny Llama, and rows whose completion is the prompt reversed.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    fixture.write_reversed_words(64, 16);
    fixture
}

fn perplexity(found: &Value) -> f64 {
    found["metrics"]["perplexity"].as_f64().unwrap()
}

#[test]
fn a_run_learns_and_its_results_are_used() {
    let fixture = fixture();
    let base = fixture.run("eval --model decoder --data texts --json").ok().json();
    let summary = fixture.run(&format!("train {OPTIONS} --budget 0.7 --output out --json")).ok().json();
    assert_eq!(summary["metric"], "perplexity");
    assert!(perplexity(&summary) < 0.7 * perplexity(&base), "{} of {}", summary["metrics"], base["metrics"]);
    assert!(summary["retained_ratio"].as_f64().unwrap() <= 0.7);
    assert!(summary["kept"]["q_proj"].is_array() && summary["kept"]["v_proj"].is_array());

    let config = fixture.read_json("out/adapter_config.json");
    assert_eq!(
        (&config["task_type"], &config["target_modules"]),
        (&json!("CAUSAL_LM"), &json!(["q_proj", "v_proj"]))
    );
    assert!(config.get("modules_to_save").is_none(), "{config}");

    let adapted = fixture.run("eval --adapter out --data texts --json").ok().json();
    assert!((perplexity(&adapted) / perplexity(&summary) - 1.0).abs() < 1e-6);
    let compact = fixture
        .run("eval --model decoder --adapter out/adapter_compact.safetensors --data texts --json")
        .ok();
    assert_eq!(perplexity(&compact.json()), perplexity(&adapted));
    fixture.run("merge --model decoder --adapter out --output merged").ok();
    let merged = fixture.run("eval --model merged --data texts --json").ok().json();
    assert!((perplexity(&merged) / perplexity(&adapted) - 1.0).abs() < 1e-4);
    assert!(fixture.read_json("merged/config.json")["architectures"] == json!(["LlamaForCausalLM"]));

    // The same text from the adapter and from the merged model, for one prompt and for rows of a
    // file.
    let write = |source: &str| {
        let command = ["generate", "--prompt", "w10 w20", "--max-new-tokens", "5"];
        let words: Vec<&str> = command.into_iter().chain(source.split(' ')).collect();
        fixture.run_words(&words).ok().stdout
    };
    let text = write("--adapter out");
    assert!(text.trim().starts_with('w'), "{text}");
    assert_eq!(text, write("--model merged"));
    fixture.run("generate --adapter out --data texts --limit 3 --max-new-tokens 4 --output texts.jsonl").ok();
    let written = fixture.read("texts.jsonl");
    let rows: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert!(
        rows.iter().all(|row| row["text"].is_string() && row["references"].as_array().unwrap().len() == 1)
    );
}

#[test]
fn generation_is_measured() {
    let fixture = fixture();
    let bench = "bench --model decoder --batch 3 --length 5 --generate 7 --steps 1";
    let found = fixture.run(&format!("{bench} --json")).ok().json();
    assert_eq!(
        (&found["batch"], &found["prompt_tokens"], &found["new_tokens"]),
        (&json!(3), &json!(5), &json!(7))
    );
    let (rate, seconds) = (found["tokens_per_second"].as_f64().unwrap(), found["seconds"].as_f64().unwrap());
    assert!((rate * seconds - 21.0).abs() < 1e-6, "{found}");
    assert!(fixture.run(bench).ok().stdout.contains("new tokens/s"));
    fixture
        .run("bench --model decoder --length 5 --generate 100000")
        .fails(2, &["100000 new tokens", "tokens"]);
    assert!(fixture.run(&format!("{bench} --dtype bf16")).ok().stdout.contains("new tokens/s"));
    fixture.run(&format!("{bench} --rank 4")).fails(2, &["--rank", "--generate"]);
}

#[test]
fn lower_blocks_computed_once_change_no_bit() {
    let fixture = fixture();
    let file = |folder: &str| std::fs::read(fixture.path(folder).join("adapter_model.safetensors")).unwrap();
    let options = format!("{OPTIONS} --top-k 1 --scope layer --unselected drop --threads 2");
    let whole = fixture.run(&format!("train {options} --activation-cache 0 --output whole")).ok();
    assert!(!whole.stderr.contains("read from disk"), "{}", whole.stderr);
    // Half a kilobyte holds a few rows, so that some are read and some computed.
    for (output, cache) in [("kept", "4"), ("some", "0.0000005")] {
        let run = fixture.run(&format!("train {options} --activation-cache {cache} --output {output}")).ok();
        assert!(run.stderr.contains("read from disk"), "{}", run.stderr);
        assert!(file("whole") == file(output), "{output} differs");
    }
    let names = std::fs::read_dir(fixture.path("kept")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().starts_with('.')).count(), 0);
}

#[test]
fn threads_and_recomputing_change_no_bit() {
    let fixture = fixture();
    let file = |folder: &str, name: &str| std::fs::read(fixture.path(folder).join(name)).unwrap();
    for dtype in ["f32", "bf16"] {
        fixture.run(&format!("train {OPTIONS} --method lora-drop --dtype {dtype} --output {dtype}")).ok();
        for (output, options) in [("one", "--threads 1"), ("again", "--threads 2 --recompute")] {
            let again = format!("train {dtype}/recipe.toml --output {output} {options} --overwrite");
            fixture.run(&again).ok();
            for name in ["adapter_model.safetensors", "importance.json"] {
                assert!(file(dtype, name) == file(output, name), "{output}/{name} differs");
            }
        }
    }
    // The recipe remembers the type, which is not without effect.
    assert!(fixture.read("bf16/recipe.toml").contains("dtype = \"bf16\""));
    let [plain, rounded] = ["f32", "bf16"].map(|folder| file(folder, "adapter_model.safetensors"));
    assert!(plain != rounded);
}

#[test]
fn a_quantized_base_trains() {
    let fixture = fixture();
    let base = fixture.run("eval --model decoder --data texts --json").ok().json();
    let summary = fixture
        .run(&format!("train {OPTIONS} --threshold 1 --quantize q8_0 --output out --json"))
        .ok()
        .json();
    assert!(perplexity(&summary) < 0.7 * perplexity(&base));
    assert_eq!(fixture.read_json("out/summary.json")["retained_ratio"], json!(1.0));
}

#[test]
fn the_dry_run_estimates_and_writes_nothing() {
    let fixture = fixture();
    let plan = fixture.run(&format!("train {OPTIONS} --output out --dry-run --json")).ok().json();
    assert_eq!(plan["train_rows"], json!(64));
    assert!(plan["memory_bytes"].as_u64().unwrap() > 0);
    assert!(!fixture.path("out").exists());
}

#[test]
fn options_that_decoders_do_not_support_are_refused() {
    let fixture = fixture();
    fixture
        .run("train --model decoder --data texts --max-length 32 --method head --output out")
        .fails(2, &["--method head", "encoders", "full"]);
    fixture
        .run("train --model decoder --data texts --max-length 32 --method full --quantize q8_0 --output out")
        .fails(2, &["--quantize", "every weight trains"]);
    fixture
        .run(&format!("train {OPTIONS} --metric accuracy --output out"))
        .fails(2, &["accuracy", "perplexity"]);
    fixture.run(&format!("train {OPTIONS} --chat --output out")).fails(1, &["chat template"]);
    fixture
        .run(&format!("train {OPTIONS} --target-modules query --output out"))
        .fails(2, &["query", "q_proj"]);
    fixture.run("generate --model model --prompt x").fails(1, &["head"]);
    fixture.run("generate --model decoder").fails(2, &["--prompt", "--data", "--chat"]);
    fixture.run("generate --model decoder --prompt w3 --top-p 2").fails(2, &["top-p"]);
    fixture.run("generate --model decoder --chat").fails(2, &["chat template"]);
    fixture.write("rows.jsonl", "{\"text\": \"w3\"}\n");
    fixture.run("predict --model decoder --input rows.jsonl").fails(2, &["generate"]);
}

/// Every weight of a decoder trains, and what comes out is a model.
#[test]
fn full_fine_tuning_gives_a_model() {
    let fixture = fixture();
    let train = "train --data texts --max-length 32 --epochs 2 --batch-size 8";
    fixture.run(&format!("{train} --model decoder --method full --output out --learning-rate 1e-3")).ok();
    let summary = fixture.read_json("out/summary.json");
    assert_eq!(summary["status"], "finished");
    let metric = |value: &serde_json::Value| value["metrics"]["perplexity"].as_f64().unwrap();
    let measure = |model: &str| {
        let eval = format!("eval --model {model} --data texts --max-length 32 --json");
        metric(&fixture.run(&eval).ok().json())
    };
    let (before, after) = (measure("decoder"), measure("out"));
    assert!(after < before && (after - metric(&summary)).abs() < 1e-4 * after, "{before}, {after}");
    fixture.run("generate --model out --prompt w3").ok();
    // Results are bit-identical on other threads and without recomputing.
    let again = format!("{train} --model decoder --method full --output again --learning-rate 1e-3");
    fixture.run(&format!("{again} --recompute --threads 1")).ok();
    let bytes = |run: &str| std::fs::read(fixture.path(&format!("{run}/model.safetensors"))).unwrap();
    assert!(bytes("out") == bytes("again"));
}

#[test]
fn a_ranking_without_scores_is_explained() {
    let fixture = fixture();
    let options = "--model decoder --data texts --max-length 32 --epochs 1 --batch-size 32 --output out";
    // One step is enough for scores.
    fixture.run(&format!("train {options} --sample-ratio 0.1 --sample-epochs 1")).ok();
    // A rate that underflows in f32 trains nothing.
    let still = format!("train {options} --overwrite --sample-epochs 2 --learning-rate 1e-300");
    fixture.run(&still).fails(1, &["every q_proj are all zero", "--sample-epochs"]);
}

#[test]
fn generation_config_says_where_texts_end() {
    let fixture = fixture();
    let write = || {
        let words = "generate --model decoder --data texts --limit 1 --max-new-tokens 4";
        serde_json::from_str::<Value>(&fixture.run(words).ok().stdout).unwrap()
    };
    let free = write();
    assert_eq!((&free["finish"], &free["tokens"]), (&json!("length"), &json!(4)));
    let first = free["text"].as_str().unwrap().split_whitespace().next().unwrap();
    let id: u32 = first.trim_start_matches('w').parse().unwrap();
    for ids in [json!(id), json!([2, id])] {
        fixture.write("decoder/generation_config.json", json!({ "eos_token_id": ids }).to_string());
        let ended = write();
        assert_eq!((&ended["finish"], &ended["tokens"]), (&json!("end_of_text"), &json!(0)), "{ids}");
    }
    // Where it names none, config.json's counts.
    for text in ["{}", "{\"eos_token_id\": null, \"temperature\": 0.7}"] {
        fixture.write("decoder/generation_config.json", text);
        assert_eq!(write(), free);
    }
    for text in ["{\"eos_token_id\": \"w3\"}", "{\"eos_token_id\": [2, -1]}", "[2]", "{\"eos_token_id\": 2"] {
        fixture.write("decoder/generation_config.json", text);
        let run = fixture.run("generate --model decoder --prompt w3");
        run.fails(1, &["decoder/generation_config.json: "]);
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let fixture = fixture();
    let config = fixture.read_json("decoder/config.json");
    let context = config["max_position_embeddings"].as_u64().unwrap() as usize;
    let row = |words: usize| json!({ "prompt": vec!["w5"; words].join(" "), "completion": " w6" });
    fixture.write("long.jsonl", format!("{}\n{}\n", row(3), row(context)));
    let refused = format!("it has {context} tokens, but the model's context is {context} tokens");
    let generate = "generate --model decoder --data long.jsonl --max-new-tokens 2";
    fixture.run(&format!("{generate} --output texts.jsonl")).fails(1, &["prompt 2", &refused]);
    assert!(!fixture.path("texts.jsonl").exists());
    fixture.run(&format!("{generate} --limit 1")).ok();
    let eval = "eval --model decoder --data long.jsonl --metrics bleu --max-new-tokens 2";
    fixture.run(eval).fails(1, &["long.jsonl, line 2", &refused]);
    // One token less leaves room for one that is new.
    fixture.write("long.jsonl", row(context - 1).to_string());
    let text = fixture.run(generate).ok().stdout;
    assert!(text.contains("\"tokens\":1"), "{text}");
}

#[test]
fn prompts_are_read_in_bf16_where_that_is_asked_for() {
    let fixture = fixture();
    // More tokens than the products for few rows handle.
    let prompt = vec!["w7"; 60].join(" ");
    let write = |dtype: &str| {
        let words = [
            "generate",
            "--model",
            "decoder",
            "--prompt",
            &prompt,
            "--max-new-tokens",
            "3",
            "--dtype",
            dtype,
        ];
        fixture.run_words(&words).ok().stdout
    };
    assert!(write("bf16").starts_with('w') && write("f32").starts_with('w'));
    let loss = |dtype: &str| {
        let found =
            fixture.run(&format!("eval --model decoder --data texts --json --dtype {dtype}")).ok().json();
        found["loss"].as_f64().unwrap()
    };
    let [plain, rounded] = ["f32", "bf16"].map(loss);
    assert!(plain != rounded && (plain / rounded - 1.0).abs() < 0.02, "{plain} and {rounded}");
}

/// A decoder that ends turns with another token than texts, and conversations with a constant answer.
fn chat_fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let mut tokenizer = fixture.read_json("decoder/tokenizer.json");
    let mut turn_end = tokenizer["added_tokens"][0].clone();
    (turn_end["id"], turn_end["content"]) = (json!(95), json!("w95"));
    tokenizer["added_tokens"].as_array_mut().unwrap().push(turn_end);
    fixture.write("decoder/tokenizer.json", tokenizer.to_string());
    let template = "{% for m in messages %}w94 {{ m.content }} w95 {% endfor %}{% if add_generation_prompt %}w94 {% endif %}";
    fixture.write("decoder/tokenizer_config.json", json!({ "chat_template": template }).to_string());
    let row = |i: usize| {
        let turn = |role: &str, content: String| json!({ "role": role, "content": content });
        let question = format!("w{} w{}", 3 + i % 40, 10 + i % 7);
        let turns = [turn("user", question), turn("assistant", "w50 w51".into())];
        format!("{}\n", json!({ "messages": turns }))
    };
    fixture.write("chats/train.jsonl", (0..48).map(row).collect::<String>());
    fixture.write("chats/dev.jsonl", (48..56).map(row).collect::<String>());
    fixture
}

const CHATS: &str = "--model decoder --data chats --epochs 4 --batch-size 4 --learning-rate 2e-2";

#[test]
fn generation_ends_where_the_answers_ended() {
    let fixture = chat_fixture();
    fixture.run(&format!("train {CHATS} --method lora --output out")).ok();
    let finishes = |source: &str| {
        let words =
            format!("generate {source} --data chats --max-new-tokens 12 --output texts.jsonl --overwrite");
        fixture.run(&words).ok();
        let rows = fixture.read("texts.jsonl");
        let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| format!("{} {}", row["text"], row["finish"])).collect::<Vec<_>>()
    };
    let expected = vec!["\"w50 w51\" \"end_of_text\"".to_string(); 8];
    let compact = "--model decoder --adapter out/adapter_compact.safetensors";
    for source in ["--adapter out", compact] {
        assert_eq!(finishes(source), expected, "{source}");
    }
    let evaluated = fixture.run("eval --adapter out --data chats --metrics exact_match --json").ok().json();
    assert_eq!(evaluated["metrics"]["exact_match"], json!(1.0), "{evaluated}");
    // Where transformers and llama.cpp look for it.
    fixture.run("merge --adapter out --output merged").ok();
    for file in ["generation_config.json", "config.json"] {
        assert_eq!(fixture.read_json(&format!("merged/{file}"))["eos_token_id"], json!([2, 95]), "{file}");
    }
    assert_eq!(finishes("--model merged"), expected);
    // The base still ends with its own token alone.
    assert!(finishes("--model decoder").iter().all(|row| !row.contains("w50 w51\" \"end")));
}

#[test]
fn a_trained_model_names_the_end_that_it_has_learned() {
    let fixture = chat_fixture();
    fixture.write("decoder/generation_config.json", json!({ "eos_token_id": 2, "top_k": 7 }).to_string());
    fixture.run(&format!("train {CHATS} --epochs 1 --method full --output whole")).ok();
    let generation = fixture.read_json("whole/generation_config.json");
    assert_eq!(generation, json!({ "eos_token_id": [2, 95], "top_k": 7 }));
}

#[test]
fn the_end_of_a_text_is_found_in_any_file_that_names_it() {
    let fixture = fixture();
    let mut config = fixture.read_json("decoder/config.json");
    config.as_object_mut().unwrap().remove("eos_token_id");
    fixture.write("decoder/config.json", config.to_string());
    let train = "train --model decoder --data texts --epochs 1 --method lora --overwrite --output out";
    let none = ["no end-of-sequence token", "generation_config.json", "tokenizer_config.json"];
    fixture.run(train).fails(1, &none);
    let learned = |file: &str, content: Value| {
        fixture.write(&format!("decoder/{file}"), content.to_string());
        fixture.run(train).ok();
        std::fs::remove_file(fixture.path(&format!("decoder/{file}"))).unwrap();
        let file = std::fs::read(fixture.path("out/adapter_model.safetensors")).unwrap();
        let header = String::from_utf8_lossy(&file[8..2000]).into_owned();
        let at = header.find("end_tokens").expect("end tokens");
        header[at..].chars().skip("end_tokens\":\"".len()).take_while(|c| *c != '"').collect::<String>()
    };
    assert_eq!(learned("generation_config.json", json!({ "eos_token_id": [7, 2] })), "[7]");
    assert_eq!(learned("tokenizer_config.json", json!({ "eos_token": "</s>" })), "[2]");
    assert_eq!(learned("special_tokens_map.json", json!({ "eos_token": { "content": "w9" } })), "[9]");
}
