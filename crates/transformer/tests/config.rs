//! config.json: what is read, what has a default, what is refused, and the names and shapes that
//! follow from it.

use std::path::Path;

use lora_drop_compute::activation::Activation;
use lora_drop_transformer::{Architecture, Head, ModelConfig};
use serde_json::{Value, json};

/// Returns a small valid configuration of this model_type.
fn valid(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 16, "vocab_size": 20, "max_position_embeddings": 10,
    })
}

fn parse(value: &Value) -> Result<ModelConfig, String> {
    ModelConfig::parse(&value.to_string(), Path::new("m/config.json")).map_err(|e| e.to_string())
}

/// Returns the message for a BERT with this key set (or, for null, absent), after the file's name.
fn problem(key: &str, value: Value) -> String {
    let mut config = valid("bert");
    config[key] = value;
    let text = parse(&config).expect_err(key);
    text.strip_prefix("m/config.json: ").unwrap_or_else(|| panic!("no file in {text}")).to_string()
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let bert = parse(&valid("bert")).unwrap();
    assert_eq!((bert.architecture, bert.model_type.as_str()), (Architecture::Bert, "bert"));
    assert_eq!((bert.hidden_size, bert.layers, bert.heads, bert.head_dim), (12, 2, 3, 4));
    assert_eq!((bert.intermediate_size, bert.vocab_size, bert.max_positions), (16, 20, 10));
    assert_eq!((bert.token_types, bert.relative_buckets, bert.pad_token_id), (Some(2), 0, 0));
    assert_eq!((bert.norm_eps, bert.activation), (1e-12, Activation::Gelu));
    assert_eq!((bert.hidden_dropout, bert.attention_dropout, bert.head_dropout), (0.1, 0.1, 0.1));
    assert_eq!(bert.initializer_range, 0.02);
    assert!(bert.labels.is_empty() && bert.problem_type.is_none());
    assert_eq!(Value::Object(bert.raw.clone()), valid("bert"));

    let mpnet = parse(&valid("mpnet")).unwrap();
    assert_eq!((mpnet.token_types, mpnet.relative_buckets, mpnet.pad_token_id), (None, 32, 1));
    for name in ["roberta", "xlm-roberta", "camembert"] {
        let roberta = parse(&valid(name)).unwrap();
        assert_eq!((roberta.architecture, roberta.model_type.as_str()), (Architecture::Roberta, name));
        assert_eq!((roberta.token_types, roberta.pad_token_id), (Some(2), 1));
    }
}

#[test]
fn roberta_and_mpnet_lose_the_positions_up_to_the_padding() {
    assert_eq!(parse(&valid("bert")).unwrap().max_tokens(), 10);
    assert_eq!(parse(&valid("roberta")).unwrap().max_tokens(), 8);
    assert_eq!(parse(&valid("mpnet")).unwrap().max_tokens(), 8);
    let mut shifted = valid("roberta");
    shifted["pad_token_id"] = json!(4);
    assert_eq!(parse(&shifted).unwrap().max_tokens(), 5);
    shifted["pad_token_id"] = json!(9);
    assert!(parse(&shifted).unwrap_err().contains("max_position_embeddings is 10, which leaves no position"));
}

#[test]
fn given_keys_are_read() {
    let mut config = valid("mpnet");
    config["hidden_act"] = json!("gelu_new");
    config["layer_norm_eps"] = json!(1e-5);
    config["hidden_dropout_prob"] = json!(0);
    config["attention_probs_dropout_prob"] = json!(0.25);
    config["classifier_dropout"] = json!(0.5);
    config["relative_attention_num_buckets"] = json!(16);
    config["id2label"] = json!({ "1": "good", "0": "bad" });
    config["problem_type"] = json!("single_label_classification");
    config["chunk_size_feed_forward"] = json!(4);
    let read = parse(&config).unwrap();
    assert_eq!((read.activation, read.norm_eps, read.relative_buckets), (Activation::GeluTanh, 1e-5, 16));
    assert_eq!((read.hidden_dropout, read.attention_dropout), (0.0, 0.25));
    // MPNet's head has the hidden dropout, whatever classifier_dropout says; the heads of the
    // others have classifier_dropout.
    assert_eq!(read.head_dropout, 0.0);
    config["model_type"] = json!("bert");
    assert_eq!(parse(&config).unwrap().head_dropout, 0.5);
    assert_eq!(read.labels, ["bad", "good"]);
    config["id2label"] = json!({ "0": 3, "1": 5 });
    assert_eq!(parse(&config).unwrap().labels, ["3", "5"]);
    assert_eq!(read.problem_type.as_deref(), Some("single_label_classification"));
    config.as_object_mut().unwrap().remove("id2label");
    config["num_labels"] = json!(3);
    assert_eq!(parse(&config).unwrap().labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
}

#[test]
fn models_that_are_not_known_are_refused_with_the_known_ones() {
    let text = problem("model_type", json!("gemma2"));
    assert!(text.contains("the supported decoders are: llama, mistral, qwen2, qwen3, gemma3_text"), "{text}");
    for other in ["deberta-v2", "xlm-roberta-xl", "BERT", ""] {
        let text = problem("model_type", json!(other));
        let known = "is not supported; the encoders are: bert, roberta, xlm-roberta, camembert, mpnet";
        let decoders = "; the decoders: llama, mistral, qwen2, qwen3, gemma3_text";
        assert_eq!(text, format!("model_type {other:?} {known}{decoders}"));
    }
    let text = problem("model_type", Value::Null);
    assert!(text.starts_with("the key model_type is missing; the encoders are: bert, "), "{text}");
    assert_eq!(problem("model_type", json!(3)), "model_type is 3, expected a string");
}

#[test]
fn missing_and_impossible_sizes_are_refused() {
    for key in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ] {
        assert_eq!(problem(key, Value::Null), format!("the key {key} is missing"));
        for bad in [json!(0), json!(u64::MAX), json!(1 << 30)] {
            let text = problem(key, bad.clone());
            assert!(text.starts_with(&format!("{key} is {bad}, expected an integer from 1 to ")), "{text}");
        }
        for bad in [json!(-1), json!(1.5), json!("12"), json!([12]), json!(true)] {
            assert_eq!(problem(key, bad.clone()), format!("{key} is {bad}, expected an integer from 0 up"));
        }
    }
    assert_eq!(
        problem("num_attention_heads", json!(5)),
        "num_attention_heads (5) does not divide hidden_size (12)"
    );
    assert!(problem("num_attention_heads", json!(24)).contains("does not divide"));
    for (value, expected) in
        [(json!(20), "20, outside the vocabulary of 20"), (json!(-1), "-1, expected an integer from 0 up")]
    {
        let mut padded = valid("roberta");
        padded["pad_token_id"] = value;
        let seen = parse(&padded).expect_err("positions are counted from it");
        assert!(seen.ends_with(&format!("pad_token_id is {expected}")), "{seen}");
    }
    let mut huge = valid("bert");
    for key in
        ["hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings"]
    {
        huge[key] = json!(1 << 24);
    }
    huge["num_hidden_layers"] = json!(1 << 12);
    assert!(parse(&huge).unwrap_err().contains("more than 2^40 weights"));
    let mut few = valid("mpnet");
    few["relative_attention_num_buckets"] = json!(3);
    assert!(parse(&few).unwrap_err().contains("relative_attention_num_buckets is 3, expected at least 4"));
}

#[test]
fn impossible_numbers_and_names_are_refused() {
    for bad in [json!(-0.1), json!("0.1"), json!(1e300)] {
        let expected = format!("initializer_range is {bad}, expected a number from 0 up");
        assert_eq!(problem("initializer_range", bad), expected);
    }
    for key in ["layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]
    {
        for bad in [json!(-0.1), json!(1.0), json!("0.1"), json!(1e300), json!(0.999999999999)] {
            let text = problem(key, bad.clone());
            assert_eq!(text, format!("{key} is {bad}, expected a number from 0 to below 1"));
        }
    }
    let text = problem("hidden_act", json!("mish"));
    assert!(text.contains("hidden_act \"mish\" is not supported; the known ones are: gelu, "), "{text}");
    for bad in
        [json!({ "0": "a", "2": "b" }), json!({ "a": "0" }), json!({ "0": null }), json!(["a"]), json!("a")]
    {
        assert!(problem("id2label", bad).starts_with("id2label is "));
    }
    // Messages cut long values.
    assert!(problem("id2label", json!("é".repeat(10_000))).len() < 300);
}

#[test]
fn variants_that_compute_something_else_are_refused() {
    for (key, value) in [
        ("position_embedding_type", json!("relative_key")),
        ("is_decoder", json!(true)),
        ("add_cross_attention", json!(true)),
        ("embedding_size", json!(8)),
        ("pruned_heads", json!({ "0": [1] })),
    ] {
        let text = problem(key, value.clone());
        assert!(text.starts_with(&format!("{key} is {value}, which is not supported (only ")), "{text}");
    }
    let mut same = valid("bert");
    same["position_embedding_type"] = json!("absolute");
    same["is_decoder"] = json!(false);
    same["embedding_size"] = json!(12);
    same["pruned_heads"] = json!({});
    parse(&same).unwrap();
}

#[test]
fn files_that_are_not_json_objects_are_refused() {
    let text_of = |text: &str| ModelConfig::parse(text, Path::new("config.json")).unwrap_err().to_string();
    assert!(text_of("").starts_with("config.json: not valid JSON: "));
    assert!(text_of("{\"model_type\": \"bert\"").starts_with("config.json: not valid JSON: "));
    assert!(text_of(&"[".repeat(100_000)).starts_with("config.json: not valid JSON: "));
    assert_eq!(text_of("[]"), "config.json: expected a JSON object");

    let folder = tempfile::tempdir().unwrap();
    let read = || ModelConfig::read(folder.path()).unwrap_err().to_string();
    assert!(read().contains("no config.json in it"));
    std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    assert!(read().contains("this is an adapter"));
    std::fs::write(folder.path().join("config.json"), b"{\"a\": \"\xff\"}").unwrap();
    assert!(read().contains("config.json: not UTF-8: the byte at offset 7"), "{}", read());
    std::fs::write(folder.path().join("config.json"), valid("bert").to_string()).unwrap();
    assert_eq!(ModelConfig::read(folder.path()).unwrap(), parse(&valid("bert")).unwrap());
    let missing = ModelConfig::read(&folder.path().join("no")).unwrap_err().to_string();
    assert!(missing.ends_with("no: the folder does not exist"), "{missing}");
    let file = ModelConfig::read(&folder.path().join("config.json")).unwrap_err().to_string();
    assert!(file.contains("not a folder"), "{file}");
}

/// Compares names and shapes of all tensors, and the names of linear layers, with transformers'
/// models for sequence classification with one layer of width 12 and 3 classes.
#[test]
fn names_and_shapes_match_transformers() {
    let bert_layer = "\
attention.self.query 12x12, attention.self.key 12x12, attention.self.value 12x12, attention.output.dense 12x12, \
attention.output.LayerNorm 12, intermediate.dense 16x12, output.dense 12x16, output.LayerNorm 12";
    let mpnet_layer = "\
attention.attn.q 12x12, attention.attn.k 12x12, attention.attn.v 12x12, attention.attn.o 12x12, \
attention.LayerNorm 12, intermediate.dense 16x12, output.dense 12x16, output.LayerNorm 12";
    let two_layer_head = "classifier.dense.weight 12x12, classifier.dense.bias 12, classifier.out_proj.weight 3x12, \
                          classifier.out_proj.bias 3";
    let tables = "embeddings.word_embeddings.weight 20x12, embeddings.position_embeddings.weight 10x12";
    let types = ", embeddings.token_type_embeddings.weight 2x12";
    let cases = [
        (
            "bert",
            bert_layer,
            types,
            ", pooler.dense.weight 12x12, pooler.dense.bias 12",
            "classifier.weight 3x12, classifier.bias 3",
        ),
        ("roberta", bert_layer, types, "", two_layer_head),
        ("mpnet", mpnet_layer, "", ", encoder.relative_attention_bias.weight 32x3", two_layer_head),
    ];
    for (model_type, layer, types, last, head) in cases {
        let mut value = valid(model_type);
        value["num_hidden_layers"] = json!(1);
        let config = parse(&value).unwrap();
        let text = |name: &str, shape: &[usize]| {
            let shape: Vec<_> = shape.iter().map(usize::to_string).collect();
            format!("{name} {}", shape.join("x"))
        };
        let affine = |prefix: &str, item: &str| {
            let (stem, shape) = item.split_once(' ').unwrap();
            let out = shape.split('x').next().unwrap();
            [format!("{prefix}{stem}.weight {shape}"), format!("{prefix}{stem}.bias {out}")]
        };
        let mut expected: Vec<String> = format!("{tables}{types}").split(", ").map(str::to_string).collect();
        expected.extend(affine("", "embeddings.LayerNorm 12"));
        expected.extend(layer.split(", ").flat_map(|item| affine("encoder.layer.0.", item)));
        expected.extend(last.split(", ").skip(1).map(str::to_string));
        let seen: Vec<_> = config.weights().iter().map(|(name, shape)| text(name, shape)).collect();
        assert_eq!(seen, expected);
        let seen: Vec<_> = config
            .head_weights(Head::of_sequences(3))
            .iter()
            .map(|(name, shape)| text(name, shape))
            .collect();
        assert_eq!(seen.join(", "), head);

        // A linear layer is an item with a matrix that is not a table of embeddings.
        let prefix = config.architecture.prefix();
        let encoder = expected.iter().map(|item| format!("{prefix}.{item}"));
        let linears: Vec<_> = encoder
            .chain(head.split(", ").map(str::to_string))
            .filter(|item| item.contains(".weight") && item.contains('x') && !item.contains("embeddings"))
            .filter_map(|item| {
                item.split_once(".weight ").filter(|(_, shape)| shape.contains('x')).map(|p| p.0.into())
            })
            .filter(|name: &String| !name.ends_with("relative_attention_bias"))
            .collect();
        assert_eq!(config.architecture.linear_names(1), linears);
    }
}

/// A few bytes must not become gigabytes: names of classes, numbers in a list.
#[test]
fn sizes_that_no_model_has_are_refused() {
    let mut config = valid("bert");
    config["num_labels"] = json!(65_537);
    assert!(parse(&config).unwrap_err().contains("num_labels is 65537, expected an integer from 1 to 65536"));
    let mut config = valid("bert");
    config["more"] = json!(vec![0; 70_000]);
    let problem = parse(&config).unwrap_err();
    assert!(problem.contains("not valid JSON: 700") && problem.contains("values in 140"), "{problem}");
}

/// Returns a decoder's configuration of this model_type with the keys that are required.
fn valid_decoder(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 32,
        "intermediate_size": 16, "vocab_size": 20,
    })
}

fn parse_decoder(value: &Value) -> Result<ModelConfig, String> {
    let map = value.as_object().unwrap().clone();
    ModelConfig::from_object(map, Path::new("m/config.json")).map_err(|e| e.to_string())
}

/// Returns the message for a decoder with these keys.
fn decoder_problem(model_type: &str, keys: &[(&str, Value)]) -> String {
    let mut config = valid_decoder(model_type);
    keys.iter().for_each(|(key, value)| config[key] = value.clone());
    let text = parse_decoder(&config).expect_err("refused");
    text.strip_prefix("m/config.json: ").unwrap_or_else(|| panic!("no file in {text}")).to_string()
}

/// Compares with `LlamaConfig()`, `MistralConfig()`, `Qwen2Config()` and `Qwen3Config()` of
/// transformers 5.24.
#[test]
fn absent_keys_of_decoders_have_their_own_defaults() {
    for (model_type, kv_heads, head_dim, positions, window) in [
        ("llama", 32, 8, 2048, None),
        ("mistral", 8, 8, 131_072, Some(4096)),
        ("qwen2", 32, 8, 32_768, None),
        ("qwen3", 32, 128, 32_768, None),
    ] {
        let read = parse_decoder(&valid_decoder(model_type)).unwrap();
        let sizes = (read.kv_heads, read.head_dim, read.max_positions);
        assert_eq!(sizes, (kv_heads, head_dim, positions), "{model_type}");
        assert_eq!(read.windows, [window; 3], "{model_type}");
        assert_eq!((read.norm_eps, read.initializer_range, read.attention_dropout), (1e-6, 0.02, 0.0));
        assert_eq!(read.rope[0][1], 1.0 / 10_000f32.powf(2.0 / head_dim as f32), "{model_type}");
        assert_eq!((read.tied, read.output_bias, read.mlp_bias), (false, false, false));
        assert_eq!((read.qkv_bias, read.qk_norm), (model_type == "qwen2", model_type == "qwen3"));
        assert_eq!((read.bos_token_id, read.eos_token_ids), (None, vec![]));
        // The default that was used is in what is written, whatever a later reader's defaults are.
        assert_eq!(read.raw["max_position_embeddings"], positions);
    }
}

#[test]
fn null_differs_from_an_absent_key() {
    let mut mistral = valid_decoder("mistral");
    mistral["num_key_value_heads"] = Value::Null;
    mistral["sliding_window"] = Value::Null;
    let read = parse_decoder(&mistral).unwrap();
    assert_eq!((read.kv_heads, read.windows), (32, vec![None; 3]));
    mistral["num_attention_heads"] = json!(4);
    assert_eq!(parse_decoder(&mistral).unwrap().kv_heads, 4);
    let null = [("max_position_embeddings", Value::Null)];
    assert_eq!(decoder_problem("qwen2", &null), "the key max_position_embeddings is missing");
}

#[test]
fn qwen_windows_match_transformers() {
    let windows = |keys: &[(&str, Value)]| {
        let mut config = valid_decoder("qwen2");
        keys.iter().for_each(|(key, value)| config[key] = value.clone());
        parse_decoder(&config).unwrap().windows
    };
    let on = ("use_sliding_window", json!(true));
    assert_eq!(windows(std::slice::from_ref(&on)), [None; 3], "the first 28 layers see everything");
    assert_eq!(windows(&[on.clone(), ("max_window_layers", json!(1))]), [None, Some(4096), Some(4096)]);
    let types = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    assert_eq!(windows(&[on, ("layer_types", types.clone())]), [Some(4096), None, Some(4096)]);
    assert_eq!(windows(&[("layer_types", types)]), [None; 3]);
}

#[test]
fn invalid_decoder_keys_are_refused() {
    for bad in [json!([2, "x"]), json!([2.5]), json!("2"), json!({})] {
        let expected = format!("eos_token_id is {bad}, expected a token's number or a list of them");
        assert_eq!(decoder_problem("llama", &[("eos_token_id", bad)]), expected);
    }
    let mut ends = valid_decoder("llama");
    ends["eos_token_id"] = json!([7, 3]);
    assert_eq!(parse_decoder(&ends).unwrap().eos_token_ids, [7, 3]);
    let flag = [("use_sliding_window", json!("yes"))];
    assert_eq!(decoder_problem("qwen3", &flag), "use_sliding_window is \"yes\", expected true or false");
    let types = [("use_sliding_window", json!(true)), ("layer_types", json!("sliding_attention"))];
    assert!(decoder_problem("qwen3", &types).ends_with("expected a list"));
    let kind = [("rope_scaling", json!({ "rope_type": 3 }))];
    assert_eq!(decoder_problem("llama", &kind), "rope_scaling.rope_type is 3, expected a string");
    let part = [("rope_parameters", json!({ "partial_rotary_factor": 0.5 }))];
    assert!(
        decoder_problem("llama", &part).starts_with("partial_rotary_factor is 0.5, which is not supported")
    );
    let range = [("initializer_range", json!("0.02"))];
    assert!(decoder_problem("llama", &range).starts_with("initializer_range is \"0.02\", expected "));
}

/// Token numbers that no computation needs may be wrong.
#[test]
fn special_tokens_outside_the_vocabulary_are_left_out() {
    let read = |model: &mut Value, key: &str, value: Value| {
        model[key] = value;
        parse(model).unwrap()
    };
    let mut sizes = valid_decoder("llama");
    sizes["vocab_size"] = json!(20);
    for value in [json!(-1), json!(20), json!(u32::MAX), json!(1u64 << 40)] {
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            let mut llama = sizes.clone();
            let config = parse_decoder(&llama).unwrap();
            assert!(config.warnings.is_empty());
            llama[key] = value.clone();
            let config = parse_decoder(&llama).unwrap();
            assert_eq!((config.bos_token_id, config.eos_token_ids), (None, vec![]));
            let warning =
                format!("{key} is {value}, which is no token of the vocabulary of 20; it is not used");
            assert_eq!(config.warnings, [warning]);
        }
    }
    sizes["eos_token_id"] = json!([2, -1, 3]);
    let config = parse_decoder(&sizes).unwrap();
    assert_eq!((config.eos_token_ids, config.warnings.len()), (vec![2, 3], 1));
    // BERT's positions do not depend on pad_token_id.
    for value in [json!(20), json!(-1)] {
        let config = read(&mut valid("bert"), "pad_token_id", value.clone());
        assert_eq!(
            config.warnings,
            [format!("pad_token_id is {value}, outside the vocabulary of 20; it is not used")]
        );
    }
}

/// Published files have separate keys for the two rotary bases and the pattern; transformers 5
/// writes objects and a list.
#[test]
fn both_forms_of_gemma_configurations_are_read() {
    let read = |keys: Value| {
        let mut config = valid_decoder("gemma3_text");
        config["head_dim"] = json!(16);
        config["sliding_window"] = json!(5);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        parse_decoder(&config)
            .map(|config| (config.windows, config.rope, config.attention_scale, config.tied))
    };
    let older = read(json!({
        "rope_theta": 5e5, "rope_local_base_freq": 2e4, "sliding_window_pattern": 2,
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
    }));
    let newer = read(json!({
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
        },
    }));
    assert_eq!(older, newer);
    let (windows, rope, scale, tied) = older.unwrap();
    assert_eq!((windows, scale, tied), (vec![Some(5), None, Some(5)], 0.0625, true));
    assert_eq!([rope[0][0], rope[1][0]], [0.125, 1.0], "the scaling is global layers' alone");
    assert_eq!(read(json!({})).unwrap().0, [Some(5); 3], "each sixth layer sees everything");
    for (key, value) in [
        ("final_logit_softcapping", json!(30.0)),
        ("use_bidirectional_attention", json!(true)),
        ("hidden_activation", json!("silu")),
    ] {
        let problem = decoder_problem("gemma3_text", &[(key, value)]);
        assert!(problem.starts_with(key) && problem.contains("which is not supported (only "), "{problem}");
    }
    // rope_scaling counts if both are there; Gemma refuses one object for all layers.
    let both = read(json!({
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
        "rope_parameters": { "full_attention": { "rope_type": "default", "rope_theta": 5e5 }, "sliding_attention": {} },
    }));
    assert_eq!(both.unwrap().1[0], rope[0]);
    let flat = [("rope_parameters", json!({ "rope_theta": 1e6 }))];
    assert!(
        decoder_problem("gemma3_text", &flat).starts_with("rope_parameters has neither full_attention nor ")
    );
    let none = [("sliding_window", Value::Null)];
    assert_eq!(decoder_problem("gemma3_text", &none), "the key sliding_window is missing");
}
