//! Model folders that are damaged, incomplete or of another kind.

use serde_json::json;

use super::training_fails;
use crate::common::{Fixture, config, weights, write_model, write_tensors};

const WEIGHTS: &str = "model/model.safetensors";

fn bytes(f: &Fixture) -> Vec<u8> {
    std::fs::read(f.path(WEIGHTS)).unwrap()
}

/// config.json with one key changed; null takes it away.
fn with_key(f: &Fixture, key: &str, value: serde_json::Value) {
    let mut config = config();
    config[key] = value;
    if config[key].is_null() {
        config.as_object_mut().unwrap().remove(key);
    }
    f.write("model/config.json", config.to_string());
}

#[test]
fn no_such_folder() {
    training_fails(|_| (), "--model ./absent", 1, &["absent", "no such folder"]);
}

#[test]
fn a_folder_without_config() {
    training_fails(
        |f| std::fs::remove_file(f.path("model/config.json")).unwrap(),
        "",
        1,
        &["model", "config.json"],
    );
}

#[test]
fn config_that_is_not_json() {
    training_fails(
        |f| f.write("model/config.json", "{\"model_type\": "),
        "",
        1,
        &["config.json", "not valid JSON"],
    );
}

#[test]
fn an_unknown_model_type() {
    training_fails(
        |f| with_key(f, "model_type", "blip".into()),
        "",
        1,
        &["config.json", "blip", "bert", "mpnet"],
    );
}

#[test]
fn a_decoder_that_is_not_computed_here() {
    training_fails(
        |f| with_key(f, "model_type", "gemma2".into()),
        "",
        1,
        &["config.json", "gemma2", "llama, mistral, qwen2, qwen3"],
    );
}

#[test]
fn a_decoder_without_its_sizes() {
    // An encoder's configuration under a decoder's name.
    training_fails(
        |f| with_key(f, "model_type", "llama".into()),
        "",
        1,
        &["config.json", "hidden_act", "silu"],
    );
}

#[test]
fn heads_that_do_not_divide_the_width() {
    let words = ["config.json", "num_attention_heads", "5", "does not divide", "hidden_size"];
    training_fails(|f| with_key(f, "num_attention_heads", 5.into()), "", 1, &words);
}

#[test]
fn a_config_without_a_size() {
    training_fails(|f| with_key(f, "hidden_size", ().into()), "", 1, &["config.json", "hidden_size"]);
}

#[test]
fn an_absurd_size() {
    training_fails(
        |f| with_key(f, "hidden_size", (1u64 << 60).into()),
        "",
        1,
        &["config.json", "hidden_size"],
    );
}

#[test]
fn weights_that_end_early() {
    let cut = |f: &Fixture| {
        let whole = bytes(f);
        f.write(WEIGHTS, &whole[..whole.len() / 2]);
    };
    training_fails(cut, "", 1, &["model.safetensors", "truncated", "download"]);
}

#[test]
fn weights_of_a_few_bytes() {
    training_fails(|f| f.write(WEIGHTS, [1, 2, 3]), "", 1, &["model.safetensors", "3 bytes"]);
}

#[test]
fn a_header_that_is_cut() {
    training_fails(
        |f| f.write(WEIGHTS, &bytes(f)[..100]),
        "",
        1,
        &["model.safetensors", "truncated", "header"],
    );
}

#[test]
fn a_header_longer_than_the_format_allows() {
    let change = |f: &Fixture| {
        let mut bytes = bytes(f);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        f.write(WEIGHTS, bytes);
    };
    training_fails(change, "", 1, &["model.safetensors", "header", "more than"]);
}

#[test]
fn a_header_whose_tensors_overlap() {
    let change = |f: &Fixture| {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 12]);
        f.write(WEIGHTS, bytes);
    };
    training_fails(change, "", 1, &["model.safetensors", "tensor b", "4..12"]);
}

#[test]
fn a_shape_that_overflows() {
    let change = |f: &Fixture| {
        let header = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 8]);
        f.write(WEIGHTS, bytes);
    };
    training_fails(change, "", 1, &["model.safetensors", "tensor a"]);
}

#[test]
fn a_shard_that_is_missing() {
    let change = |f: &Fixture| {
        std::fs::rename(f.path(WEIGHTS), f.path("model/model-00001-of-00002.safetensors")).unwrap();
        let index = r#"{"weight_map": {"bert.pooler.dense.weight": "model-00001-of-00002.safetensors",
                                       "bert.pooler.dense.bias": "model-00002-of-00002.safetensors"}}"#;
        f.write("model/model.safetensors.index.json", index);
    };
    training_fails(
        change,
        "",
        1,
        &["model.safetensors.index.json", "model-00002-of-00002.safetensors", "not in the folder"],
    );
}

#[test]
fn an_index_that_leads_out_of_the_folder() {
    let change = |f: &Fixture| {
        std::fs::rename(f.path(WEIGHTS), f.path("outside.safetensors")).unwrap();
        let index = r#"{"weight_map": {"bert.pooler.dense.weight": "../outside.safetensors"}}"#;
        f.write("model/model.safetensors.index.json", index);
    };
    training_fails(change, "", 1, &["index.json", "../outside.safetensors", "not a plain file name"]);
}

#[test]
fn pickled_weights_only() {
    let change = |f: &Fixture| {
        std::fs::rename(f.path(WEIGHTS), f.path("model/pytorch_model.bin")).unwrap();
    };
    training_fails(change, "", 1, &["pytorch_model.bin", "convert it", "model.safetensors"]);
}

#[test]
fn no_weights_at_all() {
    training_fails(
        |f| std::fs::remove_file(f.path(WEIGHTS)).unwrap(),
        "",
        1,
        &["model", "model.safetensors"],
    );
}

#[test]
fn a_weight_that_is_not_a_number() {
    let change = |f: &Fixture| {
        let mut weights = weights();
        weights.get_mut("bert.encoder.layer.1.attention.self.query.weight").unwrap().1[3] = f32::NAN;
        write_tensors(&f.path(WEIGHTS), &weights);
    };
    training_fails(change, "", 1, &["encoder.layer.1.attention.self.query.weight", "NaN", "index 3"]);
}

#[test]
fn missing_tensors_are_all_named() {
    let names = ["bert.encoder.layer.2.output.dense.weight", "bert.embeddings.word_embeddings.weight"];
    let change = |f: &Fixture| {
        let mut weights = weights();
        for name in names {
            weights.remove(name).unwrap();
        }
        write_tensors(&f.path(WEIGHTS), &weights);
    };
    training_fails(change, "", 1, &[names[0], names[1], "missing"]);
}

#[test]
fn a_tensor_of_another_shape() {
    let change = |f: &Fixture| {
        let mut weights = weights();
        weights.get_mut("bert.encoder.layer.0.intermediate.dense.weight").unwrap().0 = vec![32, 64];
        write_tensors(&f.path(WEIGHTS), &weights);
    };
    let words = ["encoder.layer.0.intermediate.dense.weight", "[32, 64]", "expected [64, 32]"];
    training_fails(change, "", 1, &words);
}

#[test]
fn no_tokenizer() {
    let change = |f: &Fixture| std::fs::remove_file(f.path("model/tokenizer.json")).unwrap();
    training_fails(change, "", 1, &["tokenizer.json", "save_pretrained"]);
}

#[test]
fn a_tokenizer_that_is_not_json() {
    training_fails(|f| f.write("model/tokenizer.json", "{]"), "", 1, &["tokenizer.json"]);
}

/// The tokenizers crate panics over each of these.
#[test]
fn a_tokenizer_that_contradicts_itself() {
    let token = json!({"SpecialToken": {"id": "[X]", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let template = |single, pair| json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}});
    let bpe = json!({"type": "BPE", "vocab": {"a": 0, "##b": 1, "ab": 2}, "merges": ["a ##b"],
                     "continuing_subword_prefix": "####", "unk_token": null});
    for (key, value) in [
        ("post_processor", template(json!([token, text("A")]), json!([text("A"), text("B")]))),
        ("post_processor", template(json!([text("B")]), json!([text("A"), text("B")]))),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("model", bpe),
    ] {
        let change = |f: &Fixture| {
            let mut whole = f.read_json("model/tokenizer.json");
            whole[key] = value;
            f.write("model/tokenizer.json", whole.to_string());
        };
        training_fails(change, "", 1, &["tokenizer.json: not a valid tokenizer", "save_pretrained"]);
    }
}

#[test]
fn a_tokenizer_with_a_vast_number_or_without_a_vocabulary() {
    let with = |vocabulary: fn(&mut serde_json::Value)| {
        move |f: &Fixture| {
            let mut whole = f.read_json("model/tokenizer.json");
            vocabulary(&mut whole["model"]["vocab"]);
            f.write("model/tokenizer.json", whole.to_string());
        }
    };
    training_fails(with(|v| v["film"] = 4_000_000_000_u32.into()), "", 1, &["train.jsonl", "4000000000"]);
    training_fails(with(|v| *v = json!({})), "", 1, &["train.jsonl, line 1", "tokenizer failed"]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let change = |f: &Fixture| {
        let (mut config, mut weights) = (config(), weights());
        config["vocab_size"] = 10.into();
        let (shape, values) = weights.get_mut("bert.embeddings.word_embeddings.weight").unwrap();
        values.truncate(10 * shape[1]);
        shape[0] = 10;
        write_model(&f.path("model"), &config, &weights);
    };
    training_fails(change, "", 1, &["train.jsonl", "vocabulary", "10"]);
}

#[test]
fn an_adapter_in_place_of_a_model() {
    let change = |f: &Fixture| {
        std::fs::rename(f.path("model/config.json"), f.path("model/adapter_config.json")).unwrap();
    };
    training_fails(change, "", 1, &["adapter", "base model"]);
}

#[test]
fn quantized_checkpoints() {
    let nf4 = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false });
    for (key, value, told) in [
        ("quantization_config", nf4, "quantized by bitsandbytes to 4 bits"),
        ("quantization_config", json!({ "load_in_8bit": true }), "quantized by bitsandbytes to 8 bits"),
        ("quantization_config", json!({ "quant_method": "gptq", "bits": 4 }), "quantized by GPTQ to 4 bits"),
        ("quantization_config", json!({ "quant_method": "awq", "bits": 4 }), "quantized by AWQ to 4 bits"),
        ("quantization_config", json!({ "quant_method": "fp8" }), "quantized by FP8"),
        ("quantization_config", json!({ "quant_method": "mxfp4" }), "quantized by MXFP4"),
        ("quantization_config", json!({ "quant_method": "newest" }), "quantized by newest"),
        ("compression_config", json!({ "format": "pack-quantized" }), "quantized by compressed-tensors"),
        ("quantization", json!({ "group_size": 64, "bits": 4 }), "quantized by MLX to 4 bits"),
    ] {
        let change = |f: &Fixture| {
            with_key(f, key, value.clone());
            // Shapes, which would be compared next.
            write_tensors(&f.path(WEIGHTS), &[("w".to_string(), (vec![2], vec![0.0; 2]))].into());
        };
        training_fails(change, "", 1, &["config.json", key, told, "give the unquantized model"]);
    }
    let named = |name: &str| {
        let f = Fixture::new();
        let quantization = json!({ "quant_method": "gptq", "bits": 4, "model_name_or_path": name });
        with_key(&f, "quantization_config", quantization);
        f.run("inspect model").fails(1, &["quantized by GPTQ"]).stderr
    };
    assert!(named("org/model").contains("unquantized model, perhaps org/model"));
    // Paths of another machine and other quantized models help nobody.
    for name in ["/data/org/model", "./model", "model", "org/model-GPTQ"] {
        assert!(!named(name).contains("perhaps"), "{name}");
    }
    // Settings of bitsandbytes that quantize nothing.
    let f = Fixture::new();
    let off = json!({ "quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": false });
    with_key(&f, "quantization_config", off);
    f.run("inspect model").ok();
}

#[test]
fn quantized_tensors_without_a_word_in_the_configuration() {
    for (tensor, told) in [
        ("bert.encoder.layer.0.output.dense.qweight", "GPTQ or AWQ"),
        ("bert.encoder.layer.0.output.dense.weight.absmax", "bitsandbytes"),
        ("bert.encoder.layer.0.output.dense.SCB", "bitsandbytes"),
        ("bert.encoder.layer.0.output.dense.weight_scale_inv", "FP8"),
        ("bert.encoder.layer.0.output.dense.scales", "MLX"),
    ] {
        let change = |f: &Fixture| {
            let mut tensors = weights();
            tensors.insert(tensor.into(), (vec![2, 2], vec![1.0; 4]));
            write_tensors(&f.path(WEIGHTS), &tensors);
        };
        training_fails(change, "", 1, &["model: the weights are quantized by", told, tensor]);
    }
}
