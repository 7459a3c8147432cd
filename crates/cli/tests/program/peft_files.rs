//! Adapters of decoders as PEFT saves them (tests/golden/peft_files, written by
//! tools/golden/golden_peft_files.py): losses, merged models and other forms against PEFT's numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use lora_drop::loaded::{Arithmetic, Loaded};
use lora_drop_transformer::{Checkpoint, Context, Texts};
use safetensors::SafeTensors;

use super::exports::write_bpe;
use crate::common::{Fixture, Outcome, write_tensors};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn words(path: &Path, name: &str) -> Vec<[u8; 4]> {
    let file = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec()
}

/// −log p of the golden inputs' learned tokens.
fn losses(case: &Case, model: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let inputs = golden(case.model).join("golden.safetensors");
    let integers = |name: &str| words(&inputs, name).into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
    let ids = integers("input.ids");
    let offsets: Vec<usize> = integers("input.offsets").into_iter().map(|x| x as usize).collect();
    let learn: Vec<bool> = integers("input.learn").into_iter().map(|x| x != 0).collect();
    let mut loaded = Loaded::open(model.to_str().unwrap(), adapter, Arithmetic::default()).unwrap();
    let stop = AtomicBool::new(false);
    let context = Context::new(loaded.parameters.read(), &loaded.table, &mut loaded.memory, &stop);
    let texts = Texts { ids: &ids, offsets: &offsets, learn: &learn };
    loaded.model.net.losses(context, texts).unwrap()
}

#[track_caller]
fn close(what: &str, seen: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(seen.len(), expected.len());
    for (i, (x, y)) in seen.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "{what}: {i}: {x}, expected {y}");
    }
}

struct Case {
    name: &'static str,
    model: &'static str,
    /// What is said of weights that are the base's.
    note: Option<&'static str>,
}

const CASES: [Case; 6] = [
    Case {
        name: "llama_output",
        model: "llama",
        note: Some("whole weights of lm_head, which are the base's"),
    },
    Case {
        name: "qwen2_output",
        model: "qwen2",
        note: Some("whole weights of lm_head, which are the base's"),
    },
    Case { name: "llama_output_dora", model: "llama", note: Some("whole weights of lm_head") },
    Case {
        name: "llama_saved",
        model: "llama",
        note: Some("lm_head and model.embed_tokens, which are the base's"),
    },
    Case { name: "qwen2_saved", model: "qwen2", note: Some("model.embed_tokens") },
    Case { name: "llama_patterns", model: "llama", note: None },
];

impl Case {
    fn adapter(&self) -> PathBuf {
        golden("peft_files").join(self.name)
    }

    fn expected(&self) -> Vec<f32> {
        let words = words(&self.adapter().join("losses.safetensors"), "losses");
        words.into_iter().map(f32::from_le_bytes).collect()
    }

    /// The model with a tokenizer, and the adapter, in a folder of their own.
    fn fixture(&self) -> Fixture {
        let fixture = Fixture::new();
        write_bpe(&fixture);
        for file in ["config.json", "model.safetensors"] {
            fixture.write(&format!("base/{file}"), std::fs::read(golden(self.model).join(file)).unwrap());
        }
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fixture.write(&format!("adapter/{file}"), std::fs::read(self.adapter().join(file)).unwrap());
        }
        fixture
    }
}

#[test]
fn losses_are_those_under_peft() {
    for case in &CASES {
        let seen = losses(case, &case.fixture().path("base"), Some(&case.adapter()));
        close(case.name, &seen, &case.expected(), 2e-5);
    }
}

#[test]
fn merged_models_and_other_forms_have_them_too() {
    for case in &CASES {
        let fixture = case.fixture();
        let (what, expected) = (case.name, case.expected());
        let told = |outcome: Outcome| match case.note {
            Some(note) => assert!(outcome.stderr.contains(note), "{what}: {}", outcome.stderr),
            None => assert!(!outcome.stderr.contains("whole weights"), "{what}: {}", outcome.stderr),
        };
        told(fixture.run("merge --model base --adapter adapter --output merged").ok());
        close(what, &losses(case, &fixture.path("merged"), None), &expected, 2e-5);
        let tied = fixture.read_json("merged/config.json")["tie_word_embeddings"].as_bool().unwrap();
        assert_eq!(tied, case.model == "qwen2" && !what.contains("output"), "{what}");
        fixture.run("merge --model base --adapter adapter --gguf f32 --output merged.gguf").ok();
        close(what, &losses(case, &fixture.path("merged.gguf"), None), &expected, 2e-5);

        for (form, output) in [("compact", "compact.safetensors"), ("peft", "peft")] {
            told(
                fixture
                    .run(&format!("export --model base --adapter adapter --to {form} --output {output}"))
                    .ok(),
            );
            close(what, &losses(case, &fixture.path("base"), Some(&fixture.path(output))), &expected, 2e-5);
        }
        // Without the whole weights, which nobody has to compare again.
        let names = |folder: &str| {
            let file =
                Checkpoint::open_file(&fixture.path(folder).join("adapter_model.safetensors")).unwrap();
            file.names().map(str::to_string).collect::<Vec<_>>()
        };
        let left: Vec<String> = names("adapter").into_iter().filter(|name| name.contains("lora_")).collect();
        assert_eq!(names("peft"), left, "{what}");
        let words = "generate --model base --adapter adapter --prompt w5 --max-new-tokens 4";
        let written = fixture.run(words).ok();
        assert_eq!(
            written.stdout,
            fixture.run("generate --model merged --prompt w5 --max-new-tokens 4").ok().stdout
        );
        told(written);
    }
}

#[test]
fn llama_cpp_s_adapters_have_an_output_layer_of_its_own_only() {
    let fixture = CASES[0].fixture();
    fixture.run("export --model base --adapter adapter --to gguf --output adapter.gguf").ok();
    let file = lora_drop_transformer::gguf::Gguf::open(&fixture.path("adapter.gguf")).unwrap();
    assert_eq!(file.header().tensors.iter().filter(|t| t.name.starts_with("output.weight.lora_")).count(), 2);
    let tied = CASES[1].fixture();
    tied.run("export --model base --adapter adapter --to gguf --output adapter.gguf")
        .fails(1, &["lm_head, which is the table of embeddings", "merged model as GGUF"]);
}

#[test]
fn a_lora_on_the_output_layer_is_used_and_not_trained_further() {
    let fixture = CASES[0].fixture();
    fixture.write_reversed_words(8, 4);
    let table = fixture.run("inspect adapter").ok().stdout;
    assert!(table.contains("lm_head, the output layer"), "{table}");
    assert!(table.contains("compared with the base's where the adapter is used"), "{table}");
    let told = ["LoRA on lm_head", "not trained further, scored or pruned"];
    for (words, code) in [
        ("train --model base --init-adapter adapter --method lora --data texts --output out", 1),
        ("score --model base --adapter adapter --data texts --output out", 2),
        ("prune --model base --adapter adapter --data texts --output out", 2),
    ] {
        fixture.run(words).fails(code, &told);
    }
    fixture
        .run("train --model base --target-modules lm_head --data texts --output out")
        .fails(2, &["target module \"lm_head\""]);
}

/// The adapter's tensors with a change.
fn rewrite(fixture: &Fixture, change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>)) {
    let path = fixture.path("adapter/adapter_model.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    let read = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        (name.to_string(), (tensor.shape().to_vec(), tensor.to_vec()))
    };
    let mut tensors = file.names().map(read).collect();
    drop(file);
    change(&mut tensors);
    write_tensors(&path, &tensors);
}

#[test]
fn whole_weights_that_are_not_the_base_s_are_refused() {
    const WORDS: &str = "base_model.model.model.embed_tokens.weight";
    let run = |fixture: &Fixture| fixture.run("generate --model base --adapter adapter --prompt w5");
    let fixture = CASES[3].fixture();
    rewrite(&fixture, |tensors| tensors.get_mut(WORDS).unwrap().1[7 * 32 + 3] += 0.01);
    let told = ["adapter_model.safetensors", WORDS, "from row 7 on", "merge_and_unload"];
    run(&fixture).fails(1, &told);
    fixture.run("merge --model base --adapter adapter --output merged").fails(1, &told);
    fixture.run("export --model base --adapter adapter --to peft --output peft").fails(1, &told);

    // A vocabulary with one more token.
    let fixture = CASES[3].fixture();
    rewrite(&fixture, |tensors| {
        let (shape, values) = tensors.get_mut(WORDS).unwrap();
        shape[0] += 1;
        values.extend([0.0; 32]);
    });
    run(&fixture).fails(1, &[WORDS, "[97, 32], the base's [96, 32]", "resized vocabulary"]);

    // A base in blocks cannot be compared.
    let fixture = CASES[3].fixture();
    fixture.write("plain/adapter_config.json", fixture.read("adapter/adapter_config.json"));
    fixture.run("export --model base --adapter adapter --to peft --output own").ok();
    fixture.run("merge --model base --adapter own --gguf q8_0 --output base.gguf").ok();
    fixture
        .run("generate --model base.gguf --adapter adapter --prompt w5")
        .fails(1, &["stored as Q8_0", "export the adapter to PEFT's format"]);
    fixture.run("generate --model base.gguf --adapter own --prompt w5").ok();
}

#[test]
fn other_parts_that_training_changed_are_refused_by_name() {
    let with = |key: &str, value: serde_json::Value| {
        let fixture = CASES[5].fixture();
        let mut config = fixture.read_json("adapter/adapter_config.json");
        config[key] = value;
        fixture.write("adapter/adapter_config.json", config.to_string());
        fixture
    };
    let run = |fixture: &Fixture| fixture.run("generate --model base --adapter adapter --prompt w5");
    run(&with("modules_to_save", serde_json::json!(["lm_head", "norm"])))
        .fails(1, &["modules_to_save has \"norm\"", "classifier, score, pooler", "merge_and_unload"]);
    run(&with("modules_to_save", serde_json::json!(["lm_head", "model.embed_tokens"]))).ok();
    let expression = serde_json::json!({ "(q_proj": 4 });
    run(&with("rank_pattern", expression)).fails(1, &["rank_pattern", "\"(q_proj\" cannot be read"]);

    let fixture = CASES[5].fixture();
    rewrite(&fixture, |tensors| {
        let name = "base_model.model.model.embed_tokens.lora_embedding_A";
        tensors.insert(name.to_string(), (vec![4, 96], vec![0.5; 4 * 96]));
    });
    run(&fixture).fails(1, &["LoRA on embeddings (model.embed_tokens) is not supported", "merge_and_unload"]);
}
