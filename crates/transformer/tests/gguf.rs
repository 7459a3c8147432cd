//! GGUF files that this crate writes and reads again: values, names, order of rows, configuration.

use std::io::Cursor;
use std::path::PathBuf;

use lora_drop_compute::blocks::BlockType;
use lora_drop_transformer::gguf::{
    AdapterPair, Array, FileType, Gguf, GgufArchitecture, Header, ModelWriter, NewTensor, TensorType, Value,
    Writer, copied_metadata, metadata_from_config, write_adapter,
};
use lora_drop_transformer::{ModelConfig, Stored};
use serde_json::{Value as Json, json};

fn file(folder: &tempfile::TempDir, bytes: Vec<u8>) -> PathBuf {
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn metadata(entries: &[(&str, Value)]) -> Vec<(String, Value)> {
    entries.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()
}

fn tensor(name: &str, shape: &[usize], kind: TensorType) -> NewTensor {
    NewTensor { name: name.into(), shape: shape.to_vec(), kind }
}

/// Returns metadata of a model with two heads of four values, and one head of keys and values.
fn sizes(architecture: &str) -> Vec<(String, Value)> {
    let key = |name: &str| format!("{architecture}.{name}");
    vec![
        ("general.architecture".into(), architecture.into()),
        (key("block_count"), Value::U32(1)),
        (key("context_length"), Value::U32(64)),
        (key("embedding_length"), Value::U32(8)),
        (key("feed_forward_length"), Value::U32(16)),
        (key("attention.head_count"), Value::U32(2)),
        (key("attention.head_count_kv"), Value::U32(1)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (key("rope.freq_base"), Value::F32(10000.0)),
    ]
}

/// Opens a file of `metadata` and F32 tensors whose values count from 0.
fn open(metadata: &[(String, Value)], tensors: &[(&str, &[usize])]) -> Gguf {
    let list = tensors.iter().map(|(name, shape)| tensor(name, shape, TensorType::F32)).collect();
    let mut writer = Writer::new(Vec::new(), metadata, list).unwrap();
    for (name, shape) in tensors {
        let count: usize = shape.iter().product();
        writer.values(name, &(0..count).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    Gguf::open(&file(&folder, writer.finish().unwrap())).unwrap()
}

fn rows_of(file: &Gguf, name: &str, width: usize) -> Vec<usize> {
    file.tensor(name).unwrap().chunks(width).map(|row| row[0] as usize / width).collect()
}

#[test]
fn every_type_of_value_round_trips() {
    let entries = metadata(&[
        ("u8", Value::U8(255)),
        ("i8", Value::I8(-128)),
        ("u16", Value::U16(65535)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(7)),
        ("i32", Value::I32(-7)),
        ("f32", Value::F32(0.1)),
        ("bool", Value::Bool(true)),
        ("string", "é\n".into()),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(0.1)),
        ("empty", Value::Array(Array::String(Vec::new()))),
        ("u8s", Value::Array(Array::U8(vec![1, 2]))),
        ("i8s", Value::Array(Array::I8(vec![-1]))),
        ("u16s", Value::Array(Array::U16(vec![3]))),
        ("i16s", Value::Array(Array::I16(vec![-3]))),
        ("u32s", Value::Array(Array::U32(vec![4]))),
        ("i32s", Value::Array(Array::I32(vec![-4]))),
        ("f32s", Value::Array(Array::F32(vec![0.5]))),
        ("bools", Value::Array(Array::Bool(vec![true, false]))),
        ("strings", Value::Array(Array::String(vec!["a".into(), "".into()]))),
        ("u64s", Value::Array(Array::U64(vec![5]))),
        ("i64s", Value::Array(Array::I64(vec![-5]))),
        ("f64s", Value::Array(Array::F64(vec![0.25]))),
        ("nested", Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::String(vec!["x".into()])]))),
    ]);
    let bytes = Writer::new(Vec::new(), &entries, Vec::new()).unwrap().finish().unwrap();
    let mut header = Header::parse(&bytes).unwrap();
    assert_eq!(header.metadata, entries);
    assert_eq!((header.version, header.alignment), (3, 32));
    // Version 2 has the same layout.
    let mut older = bytes;
    older[4] = 2;
    header.version = 2;
    assert_eq!(Header::parse(&older).unwrap(), header);
}

#[test]
fn values_are_where_the_header_says() {
    let values: Vec<f32> = (0..64).map(|i| i as f32 - 32.0).collect();
    let kinds = [
        TensorType::F32,
        TensorType::Blocks(BlockType::F16),
        TensorType::Blocks(BlockType::Bf16),
        TensorType::Blocks(BlockType::Q8_0),
    ];
    let list = kinds.iter().map(|kind| tensor(kind.name(), &[2, 32], *kind)).collect();
    let mut writer = Writer::new(Cursor::new(Vec::new()), &[], list).unwrap();
    for kind in kinds {
        // In pieces, as a stream of values arrives.
        writer.values(kind.name(), &values[..32]).unwrap();
        writer.values(kind.name(), &values[32..]).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = Gguf::open(&file(&folder, writer.finish().unwrap().into_inner())).unwrap();
    for name in ["F32", "F16", "BF16"] {
        assert_eq!(file.tensor(name).unwrap()[..], values, "{name}");
        assert_eq!(file.shape(name), Some(&[2, 32][..]));
    }
    let matrix = file.matrix("Q8_0").unwrap();
    assert_eq!((matrix.kind(), matrix.rows(), matrix.cols()), (BlockType::Q8_0, 2, 32));
    let scale = half::f16::from_le_bytes([matrix.bytes()[0], matrix.bytes()[1]]).to_f32();
    assert!((f32::from(matrix.bytes()[2] as i8) * scale + 32.0).abs() < 0.02);
    assert!(matches!(file.stored("F32").unwrap(), Stored::F32(_)));
    let problem = file.tensor("Q8_0").unwrap_err().to_string();
    assert!(problem.contains("tensor Q8_0: its type is Q8_0, expected F32, F16 or BF16"), "{problem}");
    assert!(file.matrix("F32").unwrap_err().to_string().contains("expected blocks"));
    assert!(file.tensor("none").unwrap_err().to_string().contains("tensor none: not in the file"));
}

/// Compares with numbers, blocks and values of the gguf package (tools/golden/blocks.py).
#[test]
fn every_block_type_is_read_by_its_number() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/blocks.safetensors");
    let golden = std::fs::read(golden).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
    let bytes = |kind: BlockType, what: &str| {
        golden.tensor(&format!("widen.{}.{what}", kind.name())).unwrap().data().to_vec()
    };
    let count = |kind| bytes(kind, "values").len() / 4;
    let list =
        BlockType::ALL.map(|kind| tensor(kind.name(), &[2, count(kind) / 2], TensorType::Blocks(kind)));
    let mut writer = Writer::new(Vec::new(), &[], list.to_vec()).unwrap();
    for kind in BlockType::ALL {
        assert_eq!(TensorType::Blocks(kind).number().to_le_bytes(), bytes(kind, "number")[..]);
        writer.bytes(kind.name(), &bytes(kind, "blocks")).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = Gguf::open(&file(&folder, writer.finish().unwrap())).unwrap();
    for kind in BlockType::ALL {
        assert_eq!(file.kind(kind.name()), Some(TensorType::Blocks(kind)));
        let values = file.matrix(kind.name()).unwrap().values();
        let seen: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(seen == bytes(kind, "values"), "{}", kind.name());
    }
}

#[test]
fn rows_of_llama_are_read_in_transformers_order() {
    let tensors: [(&str, &[usize]); 4] = [
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[4, 8]),
        ("blk.0.attn_v.weight", &[4, 8]),
        ("blk.0.attn_q.bias", &[8]),
    ];
    let llama = open(&sizes("llama"), &tensors);
    let q = "model.layers.0.self_attn.q_proj";
    assert_eq!(rows_of(&llama, &format!("{q}.weight"), 8), [0, 2, 1, 3, 4, 6, 5, 7]);
    assert_eq!(rows_of(&llama, "model.layers.0.self_attn.k_proj.weight", 8), [0, 2, 1, 3]);
    assert_eq!(rows_of(&llama, "model.layers.0.self_attn.v_proj.weight", 8), [0, 1, 2, 3]);
    assert_eq!(llama.tensor(&format!("{q}.bias")).unwrap()[..], [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let qwen = open(&sizes("qwen2"), &tensors);
    assert_eq!(rows_of(&qwen, &format!("{q}.weight"), 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    let odd = open(&sizes("llama"), &[("blk.0.attn_q.weight", &[6, 8])]);
    let problem = odd.tensor(&format!("{q}.weight")).unwrap_err().to_string();
    assert!(problem.contains("6 rows cannot be 2 heads of an even size"), "{problem}");
}

#[test]
fn configurations_match_transformers() {
    let embedding: (&str, &[usize]) = ("token_embd.weight", &[10, 8]);
    let mut entries = sizes("llama");
    entries.push(("tokenizer.ggml.bos_token_id".into(), Value::U32(1)));
    let config = open(&entries, &[embedding]).config().unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
        "bos_token_id": 1,
    });
    assert_eq!(Json::Object(config), expected);

    entries.push(("llama.attention.sliding_window".into(), Value::U32(32)));
    entries.push(("llama.rope.scaling.type".into(), "linear".into()));
    entries.push(("llama.rope.scaling.factor".into(), Value::F32(2.0)));
    let config = open(&entries, &[embedding, ("output.weight", &[10, 8])]).config().unwrap();
    assert_eq!(config["model_type"], "mistral");
    assert_eq!(config["sliding_window"], 32);
    assert_eq!(config["rope_scaling"], json!({"rope_type": "linear", "factor": 2.0}));
    assert_eq!(config["tie_word_embeddings"], false);

    let mut entries = sizes("qwen3");
    entries.push(("qwen3.attention.key_length".into(), Value::U32(6)));
    let config = open(&entries, &[embedding]).config().unwrap();
    assert_eq!((&config["model_type"], &config["head_dim"]), (&json!("qwen3"), &json!(6)));
}

#[test]
fn missing_and_wrong_metadata_is_named() {
    let embedding: (&str, &[usize]) = ("token_embd.weight", &[10, 8]);
    for key in
        ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"]
    {
        let key = format!("llama.{key}");
        let mut entries = sizes("llama");
        entries.retain(|(name, _)| *name != key);
        let problem = open(&entries, &[embedding]).config().unwrap_err().to_string();
        assert!(problem.contains(&format!("metadata key {key:?} is missing")), "{problem}");
    }
    let wrong = |key: &str, value: Value, expected: &str| {
        let mut entries = sizes("llama");
        entries.retain(|(name, _)| *name != key);
        entries.push((key.into(), value));
        let problem = open(&entries, &[embedding]).config().unwrap_err().to_string();
        assert!(problem.contains(expected) && problem.contains(key), "{problem}");
    };
    wrong("general.architecture", "falcon".into(), "expected one of llama, qwen2, qwen3");
    wrong("general.architecture", Value::U32(1), "is 1 (u32), expected a string");
    wrong("llama.block_count", "one".into(), "expected a whole number");
    wrong("llama.block_count", Value::U32(0), "is 0, expected 1 or more");
    wrong("llama.block_count", Value::U64(1 << 40), "expected a whole number below");
    wrong("llama.block_count", Value::I32(-1), "is -1 (i32)");
    wrong("llama.feed_forward_length", Value::Array(Array::U32(vec![16, 8])), "differs from block to block");
    wrong("llama.attention.head_count", Value::U32(3), "does not divide embedding_length 8");
    wrong("llama.attention.head_count_kv", Value::U32(3), "does not divide head_count 2");
    wrong("llama.rope.dimension_count", Value::U32(2), "expected the size of a head, 4");
    wrong("llama.expert_count", Value::U32(8), "mixtures of experts are not supported");
    wrong("llama.rope.freq_base", Value::F32(f32::NAN), "expected a number above 0");
    wrong("llama.rope.scaling.type", "longrope".into(), "expected none, linear or yarn");
    let mut capped = sizes("gemma3");
    assert!(open(&capped, &[embedding]).config().is_ok());
    capped.push(("gemma3.final_logit_softcapping".into(), Value::F32(30.0)));
    let problem = open(&capped, &[embedding]).config().unwrap_err().to_string();
    assert!(problem.contains("gemma3.final_logit_softcapping") && problem.contains("capped"), "{problem}");
}

fn config_of(model_type: &str, heads: usize, without: &[&str]) -> ModelConfig {
    let Json::Object(mut config) = json!({
        "model_type": model_type, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": heads,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 3, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192},
    }) else {
        unreachable!()
    };
    without.iter().for_each(|key| drop(config.remove(*key)));
    ModelConfig::from_object(config, "config.json".as_ref()).unwrap()
}

#[test]
fn a_model_is_written_and_read_again() {
    let (config, folder) = (config_of("llama", 4, &[]), tempfile::tempdir().unwrap());
    let names = ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"];
    let shapes = [vec![3, 64], vec![32, 64], vec![64]];
    let list: Vec<_> = names.iter().map(|n| n.to_string()).zip(shapes.clone()).collect();
    let values: Vec<Vec<f32>> = shapes
        .iter()
        .map(|shape| (0..shape.iter().product()).map(|i: usize| (i % 251) as f32 - 125.0).collect())
        .collect();
    let metadata = metadata_from_config(&config, "tiny").unwrap();
    for kind in [FileType::F32, FileType::F16, FileType::Q8_0] {
        let mut writer = ModelWriter::new(Vec::new(), &config, &metadata, &list, kind).unwrap();
        for (name, values) in names.iter().zip(&values) {
            writer.tensor(name, values).unwrap();
        }
        let read = Gguf::open(&file(&folder, writer.finish().unwrap())).unwrap();
        let back = read.config().unwrap();
        for key in
            ["model_type", "hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size"]
        {
            assert_eq!(back[key], config.raw[key], "{key}");
        }
        assert_eq!(back["rope_scaling"], config.raw["rope_scaling"]);
        assert_eq!(back["head_dim"], 16);
        assert_eq!(read.tensor(names[2]).unwrap()[..], values[2]);
        match read.stored(names[1]).unwrap() {
            Stored::F32(tensor) => assert_eq!(tensor[..], values[1]),
            Stored::Blocks(matrix) if matrix.kind() == BlockType::F16 => {
                assert_eq!(read.tensor(names[1]).unwrap()[..], values[1]);
            }
            Stored::Blocks(matrix) => {
                // The first value of each row's first block: its integer times the block's scale.
                let row = |i: usize| &matrix.bytes()[i * 68..];
                let first = |i: usize| {
                    let scale = half::f16::from_le_bytes([row(i)[0], row(i)[1]]).to_f32();
                    scale * f32::from(row(i)[2] as i8)
                };
                for i in 0..32 {
                    assert!((first(i) - values[1][i * 64]).abs() < 1.0, "row {i}");
                }
            }
        }
        assert_eq!(copied_metadata(&read), metadata);
    }
}

#[test]
fn defaults_of_absent_config_keys_are_written() {
    let config =
        config_of("mistral", 16, &["num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]);
    let metadata = metadata_from_config(&config, "tiny").unwrap();
    let of = |key: &str| metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value);
    assert_eq!(of("llama.attention.head_count_kv"), Some(&8u32.into()));
    assert_eq!(of("llama.context_length"), Some(&131_072u32.into()));
    assert_eq!(of("llama.attention.layer_norm_rms_epsilon"), Some(&Value::F32(1e-6)));
    assert_eq!(of("llama.attention.sliding_window"), Some(&4096u32.into()));
}

#[test]
fn adapters_have_the_layout_of_llama_cpp() {
    let a: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let (b, folder) = (a.clone(), tempfile::tempdir().unwrap());
    let pairs = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]
        .map(|module| AdapterPair { module, rank: 2, a: &a, b: &b });
    let bytes = write_adapter(Vec::new(), llama(), 16.0, (2, 1), &pairs).unwrap();
    let adapter = Gguf::open(&file(&folder, bytes)).unwrap();
    for (key, value) in [
        ("general.type", Value::from("adapter")),
        ("general.architecture", "llama".into()),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", Value::F32(16.0)),
    ] {
        assert_eq!(adapter.value(key), Some(&value), "{key}");
    }
    let names: Vec<_> = adapter.header().tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect();
    let expected: [(&str, &[usize]); 4] = [
        ("blk.0.attn_q.weight.lora_a", &[2, 8]),
        ("blk.0.attn_q.weight.lora_b", &[8, 2]),
        ("blk.0.ffn_down.weight.lora_a", &[2, 8]),
        ("blk.0.ffn_down.weight.lora_b", &[8, 2]),
    ];
    assert_eq!(names, expected);
    assert_eq!(adapter.tensor("blk.0.attn_q.weight.lora_a").unwrap()[..], a);
    assert_eq!(adapter.tensor("blk.0.ffn_down.weight.lora_b").unwrap()[..], b);
    // Two heads of four rows: halves become neighbours.
    assert_eq!(rows_of(&adapter, "blk.0.attn_q.weight.lora_b", 2), [0, 2, 1, 3, 4, 6, 5, 7]);

    let refused = |module, rank, heads| {
        let pair = AdapterPair { module, rank, a: &a, b: &b };
        write_adapter(Vec::new(), llama(), 1.0, heads, &[pair]).unwrap_err().to_string()
    };
    assert!(refused("model.layers.0.mlp.router", 2, (2, 1)).contains("GGUF has no name for this module"));
    assert!(refused("model.layers.0.mlp.up_proj", 3, (2, 1)).contains("do not have rank 3"));
    assert!(
        refused("model.layers.0.self_attn.q_proj", 2, (3, 1))
            .contains("8 rows cannot be 3 heads of an even size")
    );
}

#[test]
fn a_writer_refuses_what_does_not_fit() {
    let f32s = |name: &str| tensor(name, &[2], TensorType::F32);
    let new = |metadata: &[(String, Value)], tensors| {
        Writer::new(Vec::new(), metadata, tensors).err().unwrap().to_string()
    };
    let twice = metadata(&[("k", Value::U8(1)), ("k", Value::U8(1))]);
    assert!(new(&twice, Vec::new()).contains(r#"metadata key "k""#));
    assert!(new(&[], vec![f32s("w"), f32s("w")]).contains(r#"tensor name "w""#));
    let blocks = tensor("w", &[33], TensorType::Blocks(BlockType::Q8_0));
    assert!(new(&[], vec![blocks]).contains("Q8_0 cannot hold the shape [33]"));

    let mut writer = Writer::new(Vec::new(), &[], vec![f32s("a"), f32s("b")]).unwrap();
    assert!(writer.values("b", &[0.0; 2]).unwrap_err().to_string().contains("tensor b was given, a is next"));
    assert!(writer.values("a", &[0.0; 3]).unwrap_err().to_string().contains("more values than"));
    writer.values("a", &[0.0; 2]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("tensor b: 0 of 8 bytes"));
}

fn llama() -> &'static GgufArchitecture {
    GgufArchitecture::of_name("llama").unwrap()
}

#[test]
fn names_round_trip() {
    let llama = llama();
    let pairs = [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
        ("blk.3.attn_k.bias", "model.layers.3.self_attn.k_proj.bias"),
        ("blk.3.attn_v.bias", "model.layers.3.self_attn.v_proj.bias"),
        ("blk.31.attn_output.weight", "model.layers.31.self_attn.o_proj.weight"),
        ("blk.7.attn_q_norm.weight", "model.layers.7.self_attn.q_norm.weight"),
        ("blk.7.attn_k_norm.weight", "model.layers.7.self_attn.k_norm.weight"),
        ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ("blk.7.ffn_gate.weight", "model.layers.7.mlp.gate_proj.weight"),
        ("blk.7.ffn_up.weight", "model.layers.7.mlp.up_proj.weight"),
        ("blk.10.ffn_down.weight", "model.layers.10.mlp.down_proj.weight"),
    ];
    let gemma = GgufArchitecture::of_name("gemma3").unwrap();
    let norm = "model.layers.0.post_attention_layernorm.weight";
    assert_eq!(gemma.gguf_name(norm).as_deref(), Some("blk.0.post_attention_norm.weight"));
    assert_eq!(gemma.hf_name("blk.0.post_attention_norm.weight").as_deref(), Some(norm));
    for (gguf, hf) in pairs {
        assert_eq!(llama.hf_name(gguf).as_deref(), Some(hf));
        assert_eq!(llama.gguf_name(hf).as_deref(), Some(gguf));
    }
}

#[test]
fn unknown_names_have_no_counterpart() {
    let llama = llama();
    for name in ["rope_freqs.weight", "blk.03.attn_q.weight", "blk.x.attn_q.weight", "blk.3.attn_q", "blk."] {
        assert_eq!(llama.hf_name(name), None, "{name}");
    }
    for name in ["model.layers.3.self_attn.rotary_emb.inv_freq", "model.layers.3", "model.norm.scale"] {
        assert_eq!(llama.gguf_name(name), None, "{name}");
    }
}
