//! What `merge` and `export` write of a tiny decoder: GGUF files, folders with a tokenizer,
//! adapters; and what they refuse.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::Fixture;
use lora_drop::adapter::{AdapterFile, HeadWeight, StoredPair};
use lora_drop::data::Tokens;
use lora_drop::data::text::ChatTemplate;
use lora_drop_transformer::gguf::{Gguf, TensorType, Value as GgufValue};
use lora_drop_transformer::{AdapterMethod, Architecture, Checkpoint, HeadKind, ModuleId, ModuleKind};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

const TEXTS: [&str; 3] = ["w10 w20", "w1 w2w3  w44", "</s> w5"];
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}</s>{% endfor %}";

/// The tiny Llama with a byte-level BPE tokenizer and a chat template, texts, and an adapter.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_decoder("base");
    write_bpe(&fixture);
    let row = |i: usize| json!({ "text": format!("w{} w{}", i % 7, i % 90) }).to_string() + "\n";
    fixture.write("texts/dev.jsonl", (0..24).map(row).collect::<String>());
    write_adapter(&fixture, "adapter", |_| ());
    fixture
}

/// A byte-level BPE tokenizer and a chat template, in the folder `base`.
pub fn write_bpe(fixture: &Fixture) {
    let special = ["<pad>", "<s>", "</s>"].map(String::from);
    let letters = "w0123456789Ġ".chars().map(String::from);
    let merged = (0..10).map(|n| format!("w{n}")).chain(["Ġw".into()]);
    let vocabulary: Map<String, Value> = special
        .into_iter()
        .chain(letters)
        .chain(merged)
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let merges: Vec<_> = [["Ġ".into(), "w".into()]]
        .into_iter()
        .chain((0..10).map(|n| ["w".to_string(), n.to_string()]))
        .collect();
    let added = |(id, token): (usize, &str)| {
        json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    };
    let added: Vec<Value> = ["<pad>", "<s>", "</s>"].into_iter().enumerate().map(added).collect();
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true }, bytes,
        ] },
        "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
    });
    fixture.write("base/tokenizer.json", tokenizer.to_string());
    let config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" }, "chat_template": TEMPLATE });
    fixture.write("base/tokenizer_config.json", config.to_string());
}

/// Two layers' own q of rank 2, one v of rank 4 that all three layers share.
fn write_adapter(fixture: &Fixture, folder: &str, change: impl FnOnce(&mut AdapterFile)) {
    let numbers = |count: usize, seed: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 10000.0 - 0.1).collect()
    };
    let pair = |kind, shared, rank: usize, output: usize, seed| StoredPair {
        kind,
        shared,
        a: numbers(rank * 32, seed),
        b: numbers(output * rank, seed + 1),
        rank,
        input: 32,
        output,
        alpha: 8.0,
    };
    let (query, value) = (ModuleKind::Query, ModuleKind::Value);
    let modules = [(0, query, 0), (1, query, 1), (0, value, 2), (1, value, 2), (2, value, 2)];
    let mut adapter = AdapterFile {
        architectures: vec![Architecture::Llama],
        method: AdapterMethod::Lora,
        vectors: BTreeMap::new(),
        pairs: vec![pair(query, false, 2, 32, 1), pair(query, false, 2, 32, 3), pair(value, true, 2, 16, 5)],
        modules: modules.map(|(layer, kind, number)| (ModuleId { layer, kind }, number)).into(),
        rslora: false,
        lora_dropout: 0.0,
        head_kind: HeadKind::default(),
        head: BTreeMap::new(),
        labels: None,
        end_tokens: Vec::new(),
        base: "base".into(),
        metadata: BTreeMap::new(),
    };
    change(&mut adapter);
    std::fs::create_dir_all(fixture.path(folder)).unwrap();
    adapter.write_compact(&fixture.path(folder).join("adapter_compact.safetensors")).unwrap();
}

fn perplexity(fixture: &Fixture, source: &str) -> f64 {
    let found = fixture.run(&format!("eval {source} --data texts --json")).ok().json();
    found["metrics"]["perplexity"].as_f64().unwrap()
}

fn close(a: f64, b: f64, relative: f64) {
    assert!((a / b - 1.0).abs() <= relative, "{a} and {b}");
}

/// Blocks of a GGUF file are widened, and all of them train; what comes out is a folder with the
/// file's tokenizer.
#[test]
fn a_gguf_file_is_fine_tuned_whole() {
    let fixture = fixture();
    fixture.run("merge --model base --adapter adapter --gguf q8_0 --output base.gguf").ok();
    fixture.write("texts/train.jsonl", fixture.read("texts/dev.jsonl"));
    let train =
        "train --model base.gguf --data texts --method full --epochs 2 --batch-size 8 --learning-rate 1e-3";
    fixture.run(&format!("{train} --max-length 32 --output out")).ok();
    assert!(perplexity(&fixture, "--model out") < 0.9 * perplexity(&fixture, "--model base.gguf"));
    fixture.run("generate --model out --prompt w3").ok();
}

#[test]
fn gguf_files_hold_the_merged_model() {
    let fixture = fixture();
    fixture.run("merge --model base --adapter adapter --output merged").ok();
    let merged = perplexity(&fixture, "--model merged");
    close(merged, perplexity(&fixture, "--model base --adapter adapter"), 1e-5);
    assert!((merged / perplexity(&fixture, "--model base") - 1.0).abs() > 1e-3, "the adapter does something");
    for (kind, tolerance) in [("f32", 1e-6), ("f16", 1e-3), ("q8_0", 2e-2)] {
        let summary = fixture
            .run(&format!("merge --model base --adapter adapter --gguf {kind} --output {kind}.gguf --json"))
            .ok()
            .json();
        assert_eq!(summary["modules"], 5);
        assert_eq!(summary["bytes"], fixture.path(&format!("{kind}.gguf")).metadata().unwrap().len());
        close(perplexity(&fixture, &format!("--model {kind}.gguf")), merged, tolerance);
    }
    // What is in blocks is not quantized again, and that is said.
    let note = |model: &str| {
        let words = format!("generate --model {model} --quantize q4_0 --prompt w1 --max-new-tokens 1");
        fixture.run(&words).ok().stderr.contains("note: --quantize does not change")
    };
    assert_eq!(["q8_0.gguf", "f16.gguf", "base"].map(note), [true, false, false]);
    let write = |model: &str| {
        let words = ["generate", "--model", model, "--prompt", "w1 w2", "--max-new-tokens", "6"];
        fixture.run_words(&words).ok().stdout
    };

    // The same adapter into a GGUF base, as both forms.
    write_adapter(&fixture, "nothing", |adapter| adapter.pairs.iter_mut().for_each(|pair| pair.b.fill(0.0)));
    fixture.run("merge --model base --adapter nothing --gguf f32 --output base.gguf").ok();
    close(perplexity(&fixture, "--model base.gguf"), perplexity(&fixture, "--model base"), 1e-6);
    fixture.run("merge --model base.gguf --adapter adapter --gguf f32 --output again.gguf").ok();
    let bytes = |name: &str| {
        let file = Gguf::open(&fixture.path(name)).unwrap();
        (
            file.header().tensors.clone(),
            file.tensor("model.layers.1.self_attn.q_proj.weight").unwrap().to_vec(),
        )
    };
    assert!(bytes("again.gguf") == bytes("f32.gguf"));
    fixture.run("merge --model base.gguf --adapter adapter --output folder").ok();
    close(perplexity(&fixture, "--model folder"), merged, 1e-6);
    assert_eq!(write("f32.gguf"), write("folder"));

    // A folder with one GGUF file, whatever else is in it, is a model.
    fixture.write("only/notes.txt", "nothing");
    fixture.run("inspect only").fails(1, &["only", "GGUF"]);
    fixture.write("only/model.gguf", std::fs::read(fixture.path("f32.gguf")).unwrap());
    let seen = |path: &str| fixture.run(&format!("inspect {path} --json")).ok().json();
    assert_eq!(seen("only")["parameters"], seen("only/model.gguf")["parameters"]);
    assert!(seen("only")["parameters"].is_u64());
}

#[test]
fn a_dora_adapter_is_merged_written_in_both_forms_and_no_adapter_of_llama_cpps() {
    let fixture = fixture();
    write_adapter(&fixture, "dora", |adapter| {
        adapter.method = AdapterMethod::Dora;
        adapter.pairs.iter_mut().for_each(|pair| pair.rank = 2);
        adapter.pairs[2].a.truncate(2 * 32);
        adapter.pairs[2].b.truncate(2 * 16);
        let output = |kind| if kind == ModuleKind::Query { 32 } else { 16 };
        let own = |id: &ModuleId| (0..output(id.kind)).map(|i| 0.5 + (i + id.layer) as f32 / 20.0).collect();
        adapter.vectors = adapter.modules.keys().map(|id| (*id, own(id))).collect();
    });
    let adapted = perplexity(&fixture, "--model base --adapter dora");
    assert!(
        (adapted / perplexity(&fixture, "--model base") - 1.0).abs() > 1e-3,
        "the adapter does something"
    );
    fixture.run("merge --model base --adapter dora --output merged").ok();
    close(perplexity(&fixture, "--model merged"), adapted, 1e-5);
    fixture.run("merge --model base --adapter dora --gguf f32 --output f32.gguf").ok();
    close(perplexity(&fixture, "--model f32.gguf"), adapted, 1e-5);
    let write = |model: &str| {
        let words = format!("generate {model} --prompt w1 --max-new-tokens 6");
        fixture.run(&words).ok().stdout
    };
    assert_eq!(write("--model base --adapter dora"), write("--model merged"));

    fixture.run("export --model base --adapter dora --to peft --output peft").ok();
    fixture.run("export --model base --adapter peft --to compact --output compact.safetensors").ok();
    let [first, last] =
        ["dora", "compact.safetensors"].map(|name| AdapterFile::open(&fixture.path(name)).unwrap());
    assert_eq!((last.method, &last.vectors), (first.method, &first.vectors));
    assert_eq!(last.pairs.len(), 3, "the shared pair is one again");
    close(perplexity(&fixture, "--model base --adapter peft"), adapted, 1e-9);
    fixture
        .run("export --model base --adapter dora --to gguf --output adapter.gguf")
        .fails(1, &["adapter.gguf", "dora adapter", "magnitude", "as GGUF instead"]);
}

#[test]
fn every_family_becomes_a_gguf_file_and_a_folder_again() {
    let fixture = fixture();
    for (family, model_type) in
        [("mistral", "mistral"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma3", "gemma3_text")]
    {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
        for file in ["config.json", "model.safetensors"] {
            fixture.write(&format!("base/{file}"), std::fs::read(golden.join(file)).unwrap());
        }
        let mut config = fixture.read_json("base/config.json");
        let size = |key: &str| config[key].as_u64().map(|size| size as usize);
        let (hidden, heads) = (size("hidden_size").unwrap(), size("num_attention_heads").unwrap());
        let output = size("num_key_value_heads").unwrap() * size("head_dim").unwrap_or(hidden / heads);
        write_adapter(&fixture, "keys", |adapter| {
            adapter.architectures = Architecture::of_model_type(model_type).into_iter().collect();
            adapter.pairs.truncate(1);
            let pair = &mut adapter.pairs[0];
            (pair.kind, pair.input, pair.output) = (ModuleKind::Key, hidden, output);
            pair.a = (0..2 * hidden).map(|i| (i % 7) as f32 / 10.0 - 0.3).collect();
            pair.b = (0..2 * output).map(|i| (i % 5) as f32 / 10.0 - 0.2).collect();
            adapter.modules = [(ModuleId { layer: 1, kind: ModuleKind::Key }, 0)].into();
        });
        if family == "gemma3" {
            let refused = ["query_pre_attn_scalar is 24, which GGUF has no key for; llama.cpp takes 16"];
            fixture.run("merge --model base --adapter keys --gguf f32 --output no.gguf").fails(1, &refused);
            config["query_pre_attn_scalar"] = json!(16);
            let own = config["rope_parameters"]["sliding_attention"].clone();
            config["rope_parameters"]["sliding_attention"] = json!({ "rope_type": "linear", "factor": 2.0 });
            fixture.write("base/config.json", config.to_string());
            let refused = ["rope_type of sliding_attention is \"linear\", which GGUF has no key for"];
            fixture.run("merge --model base --adapter keys --gguf f32 --output no.gguf").fails(1, &refused);
            config["rope_parameters"]["sliding_attention"] = own;
            fixture.write("base/config.json", config.to_string());
        }
        let adapted = perplexity(&fixture, "--model base --adapter keys");
        let merge = |words: &str| fixture.run(&format!("merge --adapter keys --overwrite {words}")).ok();
        merge("--model base --gguf f32 --output family.gguf");
        close(perplexity(&fixture, "--model family.gguf"), adapted, 1e-5);
        // The adapter a second time, to compare a folder from the file with one from the folder.
        merge("--model family.gguf --output twice");
        merge("--model base --output once");
        close(perplexity(&fixture, "--model once"), adapted, 1e-5);
        merge("--model once --output twice-too");
        close(perplexity(&fixture, "--model twice"), perplexity(&fixture, "--model twice-too"), 1e-5);
        let written = fixture.read_json("twice/config.json");
        assert_eq!(written["model_type"], model_type);
    }
}

/// Stores a folder's weights as most models come: matrices in this type, the norms in f32.
fn store_in(fixture: &Fixture, folder: &str, dtype: Dtype, put: fn(f32) -> [u8; 2]) {
    let checkpoint = Checkpoint::open(&fixture.path(folder)).unwrap();
    let mut stored = Vec::new();
    for name in checkpoint.names() {
        let tensor = checkpoint.tensor(name).unwrap();
        let (dtype, bytes): (_, Vec<u8>) = match tensor.shape() {
            [_] => (Dtype::F32, tensor.iter().flat_map(|v| v.to_le_bytes()).collect()),
            _ => (dtype, tensor.iter().flat_map(|&v| put(v)).collect()),
        };
        stored.push((name.to_string(), dtype, tensor.shape().to_vec(), bytes));
    }
    let views = stored
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    fixture.write(&format!("{folder}/model.safetensors"), bytes);
}

#[test]
fn a_merged_folder_keeps_the_types_of_its_base() {
    let fixture = fixture();
    let bf16_bytes = |v: f32| half::bf16::from_f32(v).to_le_bytes();
    let f16_bytes = |v: f32| half::f16::from_f32(v).to_le_bytes();
    for (dtype, name, put) in
        [(Dtype::BF16, "bfloat16", bf16_bytes as fn(f32) -> [u8; 2]), (Dtype::F16, "float16", f16_bytes)]
    {
        fixture.write_decoder("base");
        write_bpe(&fixture);
        store_in(&fixture, "base", dtype, put);
        let merge = |options: &str| {
            fixture.run(&format!("merge --model base --adapter adapter --overwrite {options}")).ok();
        };
        merge("--output kept");
        merge("--output full --dtype f32");
        let open = |folder: &str| Checkpoint::open(&fixture.path(folder)).unwrap();
        let (base, kept, full) = (open("base"), open("kept"), open("full"));
        let mut adapted = 0;
        for tensor in base.names() {
            assert_eq!(kept.dtype(tensor), base.dtype(tensor), "{tensor}");
            assert_eq!(full.dtype(tensor), Some(Dtype::F32));
            let sum = full.tensor(tensor).unwrap();
            match base.tensor(tensor).unwrap()[..] == sum[..] {
                true => assert_eq!(kept.bytes(tensor), base.bytes(tensor), "{tensor}"),
                false => {
                    adapted += 1;
                    let rounded: Vec<u8> = sum.iter().flat_map(|&v| put(v)).collect();
                    assert_eq!(kept.bytes(tensor).unwrap(), rounded, "{tensor}");
                }
            }
        }
        assert_eq!(adapted, 5);
        assert_eq!(fixture.read_json("kept/config.json")["dtype"], name);
        assert_eq!(fixture.read_json("full/config.json")["dtype"], "float32");
        close(perplexity(&fixture, "--model kept"), perplexity(&fixture, "--model full"), 2e-2);
        // A GGUF file's halves stay halves as well; q8_0 has no such form and is widened.
        fixture.run("merge --model base --adapter adapter --gguf f16 --output half.gguf --overwrite").ok();
        fixture.run("merge --model half.gguf --adapter adapter --output folder --overwrite").ok();
        assert_eq!(open("folder").dtype("model.embed_tokens.weight"), Some(Dtype::F16));
        assert_eq!(fixture.read_json("folder/config.json")["torch_dtype"], "float16");
    }
}

#[test]
fn a_merged_folder_has_the_type_that_is_asked_for() {
    let fixture = fixture();
    let merge =
        |options: &str| fixture.run(&format!("merge --model base --adapter adapter --output m {options}"));
    for (dtype, stored, name) in
        [("f16", Dtype::F16, "float16"), ("bf16", Dtype::BF16, "bfloat16"), ("f32", Dtype::F32, "float32")]
    {
        merge(&format!("--overwrite --dtype {dtype}")).ok();
        let checkpoint = Checkpoint::open(&fixture.path("m")).unwrap();
        assert!(checkpoint.names().all(|tensor| checkpoint.dtype(tensor) == Some(stored)));
        assert_eq!(fixture.read_json("m/config.json")["dtype"], name);
    }
    merge("--gguf f16 --dtype f16").fails(2, &["--gguf", "--dtype"]);
    merge("--dtype q8_0").fails(2, &["q8_0", "bf16"]);

    // The adapter makes a weight larger than f16 can hold.
    write_adapter(&fixture, "adapter", |adapter| adapter.pairs[0].b.fill(1e7));
    let name = "model.layers.0.self_attn.q_proj.weight";
    merge("--overwrite --dtype f16").fails(1, &[name, "too large for f16", "--dtype f32"]);
    merge("--overwrite --dtype bf16").ok();
}

#[test]
fn an_adapter_for_another_architecture_is_called_so() {
    let fixture = fixture();
    let merge = |model: &str, adapter: &str| {
        fixture.run(&format!("merge --model {model} --adapter {adapter} --output m"))
    };
    merge("model", "adapter").fails(1, &["the adapter is for llama, the model is bert"]);
    fixture.train("--method lora --epochs 1").ok();
    merge("base", "out").fails(1, &["the adapter is for bert, the model is llama"]);
    let eval = "eval --model model --adapter adapter --data data";
    fixture.run(eval).fails(1, &["the adapter is for llama, the model is bert"]);
}

fn has_keys(file: &Gguf, keys: &[(&str, GgufValue)]) {
    for (key, value) in keys {
        assert_eq!(file.value(key), Some(value), "{key}");
    }
}

#[test]
fn the_tokenizer_goes_both_ways() {
    let fixture = fixture();
    fixture.run("merge --model base --adapter adapter --gguf f16 --output merged.gguf").ok();
    let file = Gguf::open(&fixture.path("merged.gguf")).unwrap();
    let keys = [
        ("tokenizer.ggml.model", GgufValue::from("gpt2")),
        ("tokenizer.ggml.pre", "smollm".into()),
        ("tokenizer.ggml.bos_token_id", GgufValue::U32(1)),
        ("tokenizer.ggml.eos_token_id", GgufValue::U32(2)),
        ("tokenizer.ggml.add_bos_token", GgufValue::Bool(false)),
        ("tokenizer.chat_template", TEMPLATE.into()),
    ];
    has_keys(&file, &keys);
    // The embedding has more rows than there are tokens.
    let tokens = file.value("tokenizer.ggml.tokens").and_then(GgufValue::as_strings).unwrap();
    assert_eq!((tokens.len(), tokens[95].as_str()), (96, "[PAD95]"));

    fixture.run("merge --model merged.gguf --adapter adapter --output folder").ok();
    assert_eq!(
        fixture.files("folder"),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let config = fixture.read_json("folder/tokenizer_config.json");
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert_eq!(fixture.read_json("folder/generation_config.json")["eos_token_id"], 2);
    assert_eq!(fixture.read_json("folder/config.json")["torch_dtype"], "float16");
    let [first, last] = ["base", "folder"].map(|name| Tokens::open(&fixture.path(name)).unwrap());
    for text in TEXTS {
        let ids = |tokens: &Tokens| tokens.tokenizer().encode(text, true).unwrap().get_ids().to_vec();
        assert!(!ids(&first).is_empty());
        assert_eq!(ids(&first), ids(&last), "{text}");
    }
    assert_eq!(ChatTemplate::source(&fixture.path("folder")).unwrap().unwrap().1, TEMPLATE);

    // What is copied from a folder to a folder.
    fixture.write("base/generation_config.json", "{}");
    fixture.run("merge --model base --adapter adapter --output copied").ok();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(fixture.read(&format!("copied/{name}")), fixture.read(&format!("base/{name}")));
    }
}

#[test]
fn a_gguf_adapter_has_a_pair_for_every_layer() {
    let fixture = fixture();
    fixture.run("export --model base --adapter adapter --to gguf --output adapter.gguf").ok();
    let file = Gguf::open(&fixture.path("adapter.gguf")).unwrap();
    let keys = [
        ("general.type", GgufValue::from("adapter")),
        ("general.architecture", "llama".into()),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", GgufValue::F32(8.0)),
    ];
    has_keys(&file, &keys);
    let adapter = AdapterFile::open(&fixture.path("adapter")).unwrap();
    assert_eq!(file.header().tensors.len(), 10);
    assert!(file.header().tensors.iter().all(|tensor| tensor.kind == TensorType::F32));
    for (id, &number) in &adapter.modules {
        let pair = &adapter.pairs[number];
        let (name, heads) = match id.kind {
            ModuleKind::Query => ("attn_q", 4),
            _ => ("attn_v", 1),
        };
        let tensor =
            |half: &str| file.tensor(&format!("blk.{}.{name}.weight.lora_{half}", id.layer)).unwrap();
        assert_eq!(tensor("a").shape(), [2, 32]);
        assert_eq!(tensor("a")[..], pair.a);
        let b = tensor("b");
        let size = pair.output / heads;
        for row in 0..pair.output {
            // llama.cpp rotates neighbours where transformers rotates a head's halves.
            let (head, place) = (row / size, row % size);
            let from = if heads == 1 { row } else { head * size + place % 2 * size / 2 + place / 2 };
            assert_eq!(b[row * 2..][..2], pair.b[from * 2..][..2], "{name} {row}");
        }
    }

    // rsLoRA, and another rank and alpha: what a layer is scaled by stays the same.
    write_adapter(&fixture, "mixed", |adapter| {
        adapter.rslora = true;
        let pair = &mut adapter.pairs[2];
        (pair.rank, pair.alpha) = (1, 3.0);
        (pair.a, pair.b) = (pair.a[..32].to_vec(), pair.b[..16].to_vec());
    });
    fixture.run("export --model base --adapter mixed --to gguf --output mixed.gguf").ok();
    let (file, adapter) = (
        Gguf::open(&fixture.path("mixed.gguf")).unwrap(),
        AdapterFile::open(&fixture.path("mixed")).unwrap(),
    );
    let Some(GgufValue::F32(alpha)) = file.value("adapter.lora.alpha") else { panic!("no alpha") };
    let b = file.tensor("blk.2.attn_v.weight.lora_b").unwrap();
    for (b, old) in b.iter().zip(&adapter.pairs[2].b) {
        assert!((b * alpha - 3.0 * old).abs() < 1e-5, "{b} {old}");
    }
    let q = file.tensor("blk.0.attn_q.weight.lora_b").unwrap();
    assert!((q[0] * alpha / 2.0 - adapter.pairs[0].b[0] * 8.0 / 2f32.sqrt()).abs() < 1e-5);
}

#[test]
fn adapters_go_from_form_to_form() {
    let fixture = fixture();
    fixture.run("export --model base --adapter adapter --to peft --output peft").ok();
    assert_eq!(fixture.files("peft"), ["README.md", "adapter_config.json", "adapter_model.safetensors"]);
    assert_eq!(fixture.read_json("peft/adapter_config.json")["task_type"], "CAUSAL_LM");
    fixture.run("export --model base --adapter peft --to compact --output compact.safetensors").ok();
    let [first, last] =
        ["adapter", "compact.safetensors"].map(|name| AdapterFile::open(&fixture.path(name)).unwrap());
    assert_eq!(last.pairs.len(), 3, "the shared pair is one again");
    for (id, &number) in &first.modules {
        let (a, b) = (&first.pairs[number], &last.pairs[last.modules[id]]);
        assert_eq!((&a.a, &a.b, a.alpha), (&b.a, &b.b, b.alpha));
    }
    // The recipe in the adapter's folder names the model.
    fixture.write("adapter/recipe.toml", "model = \"base\"\ndata = \"texts\"\noutput = \"adapter\"\n");
    fixture.run("export --adapter adapter --to peft --output named").ok();
    assert_eq!(fixture.read("named/adapter_config.json"), fixture.read("peft/adapter_config.json"));
    let again = "export --model base --adapter adapter --to compact --output compact.safetensors";
    fixture.run(again).fails(2, &["compact.safetensors exists", "--overwrite"]);
    fixture.run(&format!("{again} --overwrite")).ok();
}

#[test]
fn unsupported_merges_and_exports_are_refused() {
    let fixture = fixture();
    let merge = |words: &str| fixture.run(&format!("merge --adapter adapter {words}"));
    let export = |words: &str| fixture.run(&format!("export --adapter adapter {words}"));
    merge("--output m").fails(2, &["--model is missing", "recipe.toml"]);
    merge("--model base --gguf f16 --output m").fails(2, &["--output m", ".gguf"]);
    merge("--model base --output m.gguf").fails(2, &["m.gguf", "named like a file"]);
    merge("--model base --gguf q4_0 --output m.gguf").fails(2, &["q4_0", "q8_0"]);
    fixture.write("taken.gguf", "x");
    merge("--model base --gguf f16 --output taken.gguf").fails(2, &["taken.gguf", "--overwrite"]);
    std::fs::create_dir(fixture.path("folder.gguf")).unwrap();
    merge("--model base --gguf f16 --output folder.gguf").fails(2, &["is a folder"]);
    merge("--model model --gguf f16 --output m.gguf").fails(1, &["model", "an encoder"]);
    merge("--model absent --gguf f16 --output m.gguf").fails(1, &["absent"]);
    merge("--model base --gguf f32 --output base.gguf").ok();
    merge("--model base.gguf --gguf f16 --output base.gguf --overwrite")
        .fails(2, &["holds the model itself"]);
    export("--model base --to peft --output adapter --overwrite").fails(2, &["holds the adapter itself"]);
    export("--model base --to gguf --output adapter.bin").fails(2, &[".gguf"]);
    export("--model base --to onnx --output x").fails(2, &["onnx", "compact"]);
    export("--model model --to gguf --output x.gguf").fails(1, &["llama", "bert"]);

    // A GGUF adapter is neither a model nor an adapter that is read.
    export("--model base --to gguf --output adapter.gguf").ok();
    fixture.run("eval --model adapter.gguf --data texts").fails(1, &["general.type", "adapter", "model"]);
    fixture
        .run("eval --model base --adapter adapter.gguf --data texts")
        .fails(1, &["adapter.gguf", "llama.cpp", "cannot be read as an adapter"]);

    write_adapter(&fixture, "headed", |adapter| {
        let weight = HeadWeight { shape: vec![2, 32], values: vec![0.0; 64] };
        adapter.head.insert("score.weight".into(), weight);
    });
    for words in ["merge --gguf f16", "export --to gguf"] {
        fixture
            .run(&format!("{words} --model base --adapter headed --output headed.gguf"))
            .fails(1, &["score.weight", "safetensors"]);
    }
    write_adapter(&fixture, "large", |adapter| {
        adapter.pairs.iter_mut().for_each(|pair| pair.b.iter_mut().for_each(|b| *b = 1e6));
    });
    fixture
        .run("merge --model base --adapter large --gguf f16 --output large.gguf")
        .fails(1, &["large.gguf", "blk.0.attn_q.weight"]);
    assert!(!fixture.path("large.gguf").exists());

    // Tokenizers that GGUF files have no form for here.
    fixture.write_decoder("words");
    fixture
        .run("merge --model words --adapter adapter --gguf f16 --output words.gguf")
        .fails(1, &["words/tokenizer.json", "WordLevel", "BPE", "safetensors"]);
    let tokenizer = fixture.read("base/tokenizer.json").replace("Digits", "Punctuation");
    fixture.write("base/tokenizer.json", tokenizer);
    merge("--model base --gguf f16 --output m.gguf")
        .fails(1, &["base/tokenizer.json", "smollm", "llama-bpe"]);
    assert!(!fixture.path("m.gguf").exists());
}

#[test]
fn a_merged_file_names_the_end_of_a_turn_that_was_learned() {
    let fixture = fixture();
    let ids = |path: &str| {
        let file = Gguf::open(&fixture.path(path)).unwrap();
        let id =
            |name: &str| file.value(&format!("tokenizer.ggml.{name}_token_id")).and_then(GgufValue::as_u64);
        (["eos", "eot", "eom"].map(id), file.config().unwrap()["eos_token_id"].clone())
    };
    for (ends, expected, read) in [
        (vec![2], [Some(2), None, None], json!(2)),
        (vec![1, 2], [Some(2), Some(1), None], json!([2, 1])),
        (vec![1, 0], [Some(2), Some(1), Some(0)], json!([2, 1, 0])),
    ] {
        write_adapter(&fixture, "ends", |adapter| adapter.end_tokens = ends);
        fixture.run("merge --model base --adapter ends --gguf f32 --output m.gguf --overwrite").ok();
        assert_eq!(ids("m.gguf"), (expected, read));
    }
    // From a GGUF file too, whose end of a turn is replaced, not kept beside it.
    write_adapter(&fixture, "ends", |adapter| adapter.end_tokens = vec![3]);
    fixture.run("merge --model m.gguf --adapter ends --gguf f32 --output n.gguf").ok();
    assert_eq!(ids("n.gguf"), ([Some(2), Some(3), Some(0)], json!([2, 3, 0])));
}
