//! Sound files that mutations start from, made by code, and words of the formats' languages.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use lora_drop_transformer::gguf::{Array, NewTensor, TensorType, Value, Writer};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int32Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value as Json, json};

pub const CONFIG_WORDS: &[&str] = &[
    "\"model_type\"",
    "\"num_labels\"",
    "\"id2label\"",
    "\"head_dim\"",
    "\"hidden_size\"",
    "\"num_hidden_layers\"",
    "\"num_attention_heads\"",
    "\"num_key_value_heads\"",
    "\"intermediate_size\"",
    "\"vocab_size\"",
    "\"max_position_embeddings\"",
    "\"rope_scaling\"",
    "\"rope_theta\"",
    "\"rope_type\"",
    "\"llama3\"",
    "\"factors\"",
    "\"layer_types\"",
    "\"sliding_window\"",
    "\"use_sliding_window\"",
    "\"max_window_layers\"",
    "\"eos_token_id\"",
    "\"bos_token_id\"",
    "\"pad_token_id\"",
    "\"mpnet\"",
    "\"roberta\"",
    "\"mistral\"",
    "\"qwen2\"",
    "\"qwen3\"",
    "\"llama\"",
    "\"bert\"",
    "\"type_vocab_size\"",
    "\"relative_attention_num_buckets\"",
    "\"classifier_dropout\"",
    "\"attention_bias\"",
    "16777216",
    "4096",
    "18446744073709551615",
    "1e308",
    "-1",
    "null",
    "true",
];
pub const SAFETENSORS_WORDS: &[&str] = &[
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"F32\"",
    "\"F16\"",
    "\"BF16\"",
    "\"F64\"",
    "\"I64\"",
    "\"F4\"",
    "\"weight_map\"",
    "\"__metadata__\"",
    "[0]",
    "[0,0]",
    "[18446744073709551615,2]",
    "4294967296",
    "a.safetensors",
    "../a.safetensors",
];
pub const GGUF_WORDS: &[&str] = &[
    "general.alignment",
    "general.architecture",
    "general.type",
    "llama",
    "qwen2",
    "qwen3",
    ".block_count",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".embedding_length",
    ".feed_forward_length",
    ".context_length",
    ".rope.scaling.type",
    "rope_freqs.weight",
    "output.weight",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.pre",
    "gpt2",
    "llama-bpe",
];
pub const TOKENIZER_WORDS: &[&str] = &[
    "\"normalizer\"",
    "\"pre_tokenizer\"",
    "\"post_processor\"",
    "\"decoder\"",
    "\"model\"",
    "\"added_tokens\"",
    "\"truncation\"",
    "\"padding\"",
    "{\"type\":\"Sequence\",\"normalizers\":[",
    "{\"type\":\"Sequence\",\"pretokenizers\":[",
    "{\"type\":\"Lowercase\"}",
    "{\"type\":\"NFKC\"}",
    "{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}",
    "{\"type\":\"Prepend\",\"prepend\":\"a\"}",
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aa\"}",
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(a|b)+\"},\"content\":\"b\"}",
    "{\"type\":\"Whitespace\"}",
    "{\"type\":\"Digits\",\"individual_digits\":true}",
    "{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"a\"}",
    "{\"type\":\"FixedLength\",\"length\":2}",
    "{\"type\":\"UnicodeScripts\"}",
    "{\"type\":\"ByteFallback\"}",
    "{\"type\":\"CTC\",\"pad_token\":\"a\",\"word_delimiter_token\":\"b\",\"cleanup\":true}",
    "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}",
    "\"Unigram\"",
    "\"BPE\"",
    "\"WordPiece\"",
    "\"WordLevel\"",
    "\"vocab\"",
    "\"merges\"",
    "\"unk_id\"",
    "\"byte_fallback\"",
    "\"dropout\"",
    "\"max_input_chars_per_word\"",
    "4294967295",
    "18446744073709551615",
    "null",
    "true",
];
pub const TEMPLATE_WORDS: &[&str] = &[
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if ",
    "{% else %}",
    "{% endif %}",
    "{% set ",
    "{% generation %}",
    "{% endgeneration %}",
    "{% macro f(n) %}",
    "{% endmacro %}",
    "{{ ",
    " }}",
    "{%- ",
    " -%}",
    "namespace(",
    "loop.index",
    "| trim",
    "| tojson(indent=2)",
    "| join(',')",
    "| sort",
    "| reverse",
    "| list",
    "| dictsort",
    "| batch(2)",
    "| slice(2)",
    ".split(",
    ".strip()",
    ".items()",
    ".format(",
    ".replace(",
    "range(9)",
    "messages[0]",
    "[::-1]",
    "raise_exception(",
    "strftime_now('%Y')",
    "{% break %}",
    "{% continue %}",
    "{% call f() %}",
    "{% endcall %}",
    "{% filter upper %}",
    "~",
    "**",
    "//",
    "is defined",
    "not in",
    "bos_token",
    "add_generation_prompt",
];
pub const ADAPTER_WORDS: &[&str] = &[
    "\"lora_alpha\"",
    "\"rank_pattern\"",
    "\"alpha_pattern\"",
    "\"use_rslora\"",
    "\"modules_to_save\"",
    "\"target_modules\"",
    "base_model.model.bert.encoder.layer.0.attention.self.value.lora_A.weight",
    "base_model.model.model.layers.0.",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"BF16\"",
    ".default",
    "layer.99999999999",
    "18446744073709551615",
];
pub const ROWS_WORDS: &[&str] = &[
    "\"text\"",
    "\"label\"",
    "\"messages\"",
    "\"prompt\"",
    "\"completion\"",
    "\"instruction\"",
    "\"input\"",
    "\"output\"",
    "\"role\"",
    "\"content\"",
    "\"user\"",
    "\"assistant\"",
    "\"from\"",
    "\"value\"",
    "\"data\"",
    "\"references\"",
    "[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "NaN",
    "-1",
    "1e999",
    "99999999999999999999",
    "\\ud800",
    "\\u0000",
    "\"\"",
    "\r\n",
    "\t",
    "\u{feff}",
];
pub const PARQUET_WORDS: &[&str] = &["PAR1", "text", "label", "messages", "list", "element", "schema"];
pub const IMPORTANCE_WORDS: &[&str] = &[
    "\"criterion\"",
    "\"scope\"",
    "\"module\"",
    "\"layer\"",
    "\"selection\"",
    "\"threshold\"",
    "\"top-k\"",
    "\"budget\"",
    "\"layers\"",
    "\"unselected\"",
    "\"share\"",
    "\"drop\"",
    "\"sample\"",
    "\"modules\"",
    "\"kept\"",
    "\"query\"",
    "\"value\"",
    "18446744073709551615",
    "1e308",
    "-1",
    "null",
    "true",
];

/// The inputs that a format's mutations start from: those made here, and the files of `folder`'s
/// `seeds` and `found`.
pub fn inputs(format: &str, folder: &Path) -> Vec<Vec<u8>> {
    let mut inputs = match format {
        "config" => configs(),
        "safetensors" => vec![model(), halves(), index()],
        "gguf" => vec![gguf()],
        "tokenizer" => tokenizers(),
        "chat_template" => chat_templates(),
        "json_lines" => {
            texts(&[JSON_ROWS, JSON_MESSAGES, JSON_PROMPTS, JSON_ARRAY, JSON_DATA, JSON_SETS, JSON_WORDS])
        }
        "csv" => texts(&[CSV_ROWS, CSV_QUOTED, CSV_SETS, TSV_ROWS]),
        "parquet" => parquets(),
        "importance" => vec![importance()],
        _ => Vec::new(),
    };
    for kind in ["seeds", "found"] {
        let Ok(entries) = fs::read_dir(folder.join(kind).join(format)) else { continue };
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("listed").path()).collect();
        paths.sort();
        inputs.extend(paths.iter().map(|path| fs::read(path).expect("readable")));
    }
    inputs
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const JSON_ROWS: &str = "{\"text\":\"a good film\",\"label\":\"positive\"}\n{\"text\":\"a b\\u00fcd one \\ud83d\\ude00\",\"label\":\"negative\"}\n\n\
     {\"id\":7,\"text\":\"x\",\"label\":\"positive\",\"more\":[1,2.5,null,{\"a\":true}]}\n";
const JSON_MESSAGES: &str = "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"},\
     {\"role\":\"assistant\",\"content\":\"a\"}],\"references\":[\"r\",\"q\"]}\n\
     {\"messages\":[{\"from\":\"human\",\"value\":\"u\"},{\"from\":\"gpt\",\"value\":\"a\"}],\"references\":null}\n";
const JSON_PROMPTS: &str = "{\"instruction\":\"i\",\"input\":\"x\",\"output\":\"o\"}\n{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\"}\n";
const JSON_ARRAY: &str = "[\n{\"sentence1\":\"a\",\"sentence2\":\"b\",\"score\":0.5},\n{\"sentence1\":\"c\",\"sentence2\":\"d\",\"score\":3}\n]\n";
const JSON_DATA: &str =
    "{\"version\":1,\"data\":[{\"text\":\"a\",\"label\":true},{\"text\":\"b\",\"label\":false}]}";
const JSON_SETS: &str = "{\"text\":\"a\",\"label\":[\"x\",\"y\"]}\n{\"text\":\"b\",\"label\":[]}\n";
const JSON_WORDS: &str = "{\"tokens\":[\"a\",\"b c\"],\"ner_tags\":[0,1]}\n{\"tokens\":[\"d\"],\"ner_tags\":[1]}\n{\"tokens\":[],\"ner_tags\":[]}\n";
const CSV_SETS: &str = "text,label\na,\"[\"\"x\"\",\"\"y\"\"]\"\nb,[]\nc,\"[1, 0]\"\n";
const CSV_ROWS: &str = "text,label\na good film,1\na bad film,0\n,-1\n";
const CSV_QUOTED: &str =
    "\u{feff}id,text,label\r\n1,\"say \"\"hi\"\",\nthen go\",positive\r\n2,\"a, b\",negative\r\n";
const TSV_ROWS: &str = "sentence\tlabel\n\"a\tpositive\nb c\tnegative\n";

/// A BERT of one block with two values, the model of all of this.
pub fn encoder_config() -> String {
    json!({
        "model_type": "bert", "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 2, "vocab_size": 3, "max_position_embeddings": 4, "type_vocab_size": 1,
        "id2label": {"0": "bad", "1": "good"},
    })
    .to_string()
}

fn configs() -> Vec<Vec<u8>> {
    let golden = [
        include_str!("../../tests/golden/bert/config.json"),
        include_str!("../../tests/golden/roberta/config.json"),
        include_str!("../../tests/golden/mpnet/config.json"),
        include_str!("../../tests/golden/llama/config.json"),
        include_str!("../../tests/golden/mistral/config.json"),
        include_str!("../../tests/golden/qwen2/config.json"),
        include_str!("../../tests/golden/qwen3/config.json"),
        include_str!("../../tests/golden/gemma3/config.json"),
    ];
    let scaled = json!({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
        "intermediate_size": 64, "vocab_size": 96, "eos_token_id": [2, 5], "num_labels": 3,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64},
    });
    let mut inputs = texts(&golden);
    inputs.extend([encoder_config().into_bytes(), scaled.to_string().into_bytes()]);
    inputs
}

fn safetensors(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| {
            // Bytes of small numbers in every type of float.
            vec![0x3c; shape.iter().product::<usize>() * dtype.bitsize() / 8]
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, shape), bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("the bytes fill the shape"))
    });
    safetensors::serialize(views, None).expect("valid tensors")
}

/// The weights of the model of `encoder_config`.
fn model() -> Vec<u8> {
    const BLOCK: [(&str, usize); 6] = [
        ("attention.self.query", 2),
        ("attention.self.key", 2),
        ("attention.self.value", 2),
        ("attention.output.dense", 2),
        ("intermediate.dense", 2),
        ("output.dense", 2),
    ];
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, rows) in [("word", 3), ("position", 4), ("token_type", 1)] {
        shapes.insert(format!("bert.embeddings.{name}_embeddings.weight"), vec![rows, 2]);
    }
    let layer = "bert.encoder.layer.0";
    let linears = BLOCK.iter().map(|(name, rows)| (format!("{layer}.{name}"), *rows));
    for (stem, rows) in linears.chain([("bert.pooler.dense".into(), 2), ("classifier".into(), 2)]) {
        shapes.insert(format!("{stem}.weight"), vec![rows, 2]);
        shapes.insert(format!("{stem}.bias"), vec![rows]);
    }
    let norms = ["attention.output.LayerNorm", "output.LayerNorm"].map(|name| format!("{layer}.{name}"));
    for stem in norms.into_iter().chain(["bert.embeddings.LayerNorm".into()]) {
        shapes.insert(format!("{stem}.weight"), vec![2]);
        shapes.insert(format!("{stem}.bias"), vec![2]);
    }
    let tensors: Vec<_> =
        shapes.iter().map(|(name, shape)| (name.as_str(), Dtype::F32, shape.as_slice())).collect();
    safetensors(&tensors)
}

/// Tensors of other types.
fn halves() -> Vec<u8> {
    safetensors(&[
        ("a", Dtype::F16, &[2, 3]),
        ("b", Dtype::BF16, &[1, 4]),
        ("c", Dtype::F64, &[2]),
        ("d", Dtype::I64, &[1]),
    ])
}

pub const SHARD_FILES: [&str; 2] = ["a.safetensors", "b.safetensors"];

pub fn shards() -> [Vec<u8>; 2] {
    ["a", "b"].map(|name| safetensors(&[(name, Dtype::F32, &[2])]))
}

fn index() -> Vec<u8> {
    let [a, b] = SHARD_FILES;
    json!({"metadata": {"total_size": 16}, "weight_map": {"a": a, "b": b}}).to_string().into_bytes()
}

/// A Llama of one block with a tokenizer.
fn gguf() -> Vec<u8> {
    let number = |key: &str, value: u32| (key.to_string(), Value::U32(value));
    let strings = |list: &[&str]| Value::Array(Array::String(list.iter().map(|s| s.to_string()).collect()));
    let metadata = vec![
        ("general.architecture".to_string(), "llama".into()),
        number("llama.block_count", 1),
        number("llama.context_length", 16),
        number("llama.embedding_length", 4),
        number("llama.feed_forward_length", 4),
        number("llama.attention.head_count", 1),
        number("llama.attention.head_count_kv", 1),
        ("llama.attention.layer_norm_rms_epsilon".to_string(), Value::F32(1e-5)),
        ("llama.rope.freq_base".to_string(), Value::F32(10000.0)),
        ("tokenizer.ggml.model".to_string(), "gpt2".into()),
        ("tokenizer.ggml.pre".to_string(), "smollm".into()),
        ("tokenizer.ggml.tokens".to_string(), strings(&["<s>", "a", "b", "ab", "\u{120}"])),
        ("tokenizer.ggml.merges".to_string(), strings(&["a b"])),
        ("tokenizer.ggml.token_type".to_string(), Value::Array(Array::I32(vec![3, 1, 1, 1, 1]))),
        number("tokenizer.ggml.bos_token_id", 0),
    ];
    let matrix = |name: &str, rows: usize| (name.to_string(), vec![rows, 4]);
    let mut shapes = vec![matrix("token_embd.weight", 5), ("output_norm.weight".to_string(), vec![4])];
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        shapes.push(matrix(&format!("blk.0.{part}.weight"), 4));
    }
    for part in ["attn_norm", "ffn_norm"] {
        shapes.push((format!("blk.0.{part}.weight"), vec![4]));
    }
    let kind = TensorType::F32;
    let sizes: Vec<(String, usize)> =
        shapes.iter().map(|(name, shape)| (name.clone(), 4 * shape.iter().product::<usize>())).collect();
    let tensors = shapes.into_iter().map(|(name, shape)| NewTensor { name, shape, kind }).collect();
    let mut writer = Writer::new(Vec::new(), &metadata, tensors).expect("valid tensors");
    for (name, size) in sizes {
        writer.bytes(&name, &vec![0x3c; size]).expect("the bytes fill the shape");
    }
    writer.finish().expect("all tensors are written")
}

fn tokenizers() -> Vec<Vec<u8>> {
    let tokens = |list: &[&str]| -> Json {
        list.iter()
            .enumerate()
            .map(|(id, token)| (token.to_string(), json!(id)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let mark = |name: &str, kind: u32| json!({"SpecialToken": {"id": name, "type_id": kind}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    let word_piece = json!({
        "version": "1.0",
        "added_tokens": [added(0, "[UNK]"), added(1, "[CLS]"), added(2, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0)],
            "pair": [mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0), text("B", 1), mark("[SEP]", 1)],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": tokens(&["[UNK]", "[CLS]", "[SEP]", "a", "b", "film", "good", "##s", "hello", "1", "##2"])},
    });
    let byte_level = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<s>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?[^\\s\\p{N}]+|\\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                  "vocab": tokens(&["<s>", "H", "e", "l", "o", "w", "\u{120}", "ll", "\u{120}w"]),
                  "merges": [["l", "l"], ["\u{120}", "w"]]},
    });
    let unigram = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": true,
                           "add_prefix_space": true},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
                  "vocab": [["<unk>", 0.0], ["<s>", -1.0], ["</s>", -1.0], ["\u{2581}a", -2.0], ["b", -2.5], ["\u{2581}", -3.0]]},
    });
    let word_level = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 1},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": [added(2, "</s>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
        "model": {"type": "WordLevel", "vocab": tokens(&["<pad>", "<s>", "</s>", "a", "b"]), "unk_token": "<pad>"},
    });
    let mut inputs: Vec<_> =
        [word_piece, byte_level, unigram, word_level].iter().map(|t| t.to_string().into_bytes()).collect();
    inputs.push(b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##s\ngood\nfilm\n\xc3\xbc\n".to_vec());
    inputs
}

fn chat_templates() -> Vec<Vec<u8>> {
    let golden: Json =
        serde_json::from_str(include_str!("../../tests/golden/chat_templates.json")).expect("JSON");
    let templates = golden["templates"].as_object().expect("templates by name").values();
    templates.map(|template| template.as_str().expect("a text").as_bytes().to_vec()).collect()
}

/// Files with the columns that the reader knows, of both versions of pages, with and without
/// compression.
fn parquets() -> Vec<Vec<u8>> {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let kinds = [
        (WriterVersion::PARQUET_1_0, Compression::UNCOMPRESSED, true),
        (WriterVersion::PARQUET_1_0, Compression::SNAPPY, false),
        (WriterVersion::PARQUET_2_0, Compression::UNCOMPRESSED, false),
        (WriterVersion::PARQUET_2_0, zstd, true),
        (WriterVersion::PARQUET_1_0, Compression::GZIP(Default::default()), true),
        (WriterVersion::PARQUET_2_0, Compression::LZ4_RAW, false),
        (WriterVersion::PARQUET_1_0, Compression::BROTLI(Default::default()), false),
    ];
    let labelled = kinds.map(|(version, compression, dictionary)| {
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(compression)
            .set_dictionary_enabled(dictionary)
            .build();
        parquet(
            "OPTIONAL BYTE_ARRAY text (UTF8); REQUIRED INT32 label; OPTIONAL DOUBLE x; REQUIRED BOOLEAN b;",
            properties,
            &[
                Column::Text(&["a good film", "a bad film", "a good film"], &[1, 1, 0, 1], None),
                Column::Int(&[1, 0, 1, 0]),
                Column::Double(&[0.5, f64::NAN], &[1, 0, 0, 1]),
                Column::Bool(&[true, false, true, true]),
            ],
        )
    });
    let turns = parquet(
        "OPTIONAL group messages (LIST) { REPEATED group list { OPTIONAL group element { \
         OPTIONAL BYTE_ARRAY role (UTF8); OPTIONAL BYTE_ARRAY content (UTF8); } } }",
        WriterProperties::default(),
        &[
            Column::Text(&["user", "assistant", "user"], &[4, 4, 4, 1], Some(&[0, 1, 0, 0])),
            Column::Text(&["u", "a"], &[4, 4, 3, 1], Some(&[0, 1, 0, 0])),
        ],
    );
    labelled.into_iter().chain([turns]).collect()
}

/// A column's values that are not null, and the levels where it has them: of definition, of
/// repetition.
enum Column<'a> {
    Text(&'a [&'a str], &'a [i16], Option<&'a [i16]>),
    Int(&'a [i32]),
    Double(&'a [f64], &'a [i16]),
    Bool(&'a [bool]),
}

fn parquet(fields: &str, properties: WriterProperties, columns: &[Column]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {fields} }}")).expect("a schema"));
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).expect("a valid schema");
    let mut group = writer.next_row_group().expect("a group");
    for column in columns {
        let mut out = group.next_column().expect("a column").expect("as many as the schema has");
        let written = match column {
            Column::Text(values, levels, repeated) => {
                let values: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(*text)).collect();
                out.typed::<ByteArrayType>().write_batch(&values, Some(levels), *repeated)
            }
            Column::Int(values) => out.typed::<Int32Type>().write_batch(values, None, None),
            Column::Double(values, levels) => {
                out.typed::<DoubleType>().write_batch(values, Some(levels), None)
            }
            Column::Bool(values) => out.typed::<BoolType>().write_batch(values, None, None),
        };
        written.expect("values that fit the levels");
        out.close().expect("a column");
    }
    group.close().expect("a group");
    writer.close().expect("a file");
    bytes
}

fn importance() -> Vec<u8> {
    let module = |layer: usize, module: &str, kept: bool| json!({"layer": layer, "module": module, "score": 0.25 + layer as f64, "importance": 0.5, "kept": kept});
    json!({
        "criterion": "lora-output", "scope": "module", "selection": {"threshold": 0.9}, "unselected": "share",
        "sample": {"rows": 32, "tokens": 400, "micro_tokens": 512, "steps": 60, "settled": true,
                   "history": [{"step": 20, "tau": 0.5}, {"step": 40, "tau": 1.0}]},
        "modules": [module(0, "query", false), module(1, "query", true), module(0, "value", true), module(1, "value", false)],
        "kept": {"query": [1], "value": [0]},
    })
    .to_string()
    .into_bytes()
}
