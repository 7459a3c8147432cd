//! Valid and damaged checkpoints: what is read, and the message for each kind of damage.

use std::path::Path;

use lora_drop_transformer::{Checkpoint, Error, HeadTensor, Weights};
use lora_drop_transformer::{WeightFault, WeightProblem};
use tempfile::TempDir;

/// Returns a safetensors file with this header and data.
fn raw(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Returns a valid safetensors file with these tensors (name, dtype, shape, bytes).
fn valid(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let info = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.to_string(), info);
        data.extend_from_slice(bytes);
    }
    raw(serde_json::Value::Object(header).to_string().as_bytes(), &data)
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn error_of(files: &[(&str, &[u8])]) -> String {
    Checkpoint::open(folder(files).path()).unwrap_err().to_string()
}

/// Returns the message for a model.safetensors of these bytes, after the file's name.
fn damage(bytes: &[u8]) -> String {
    let text = error_of(&[("model.safetensors", bytes)]);
    text.split_once("model.safetensors: ").unwrap_or_else(|| panic!("no file in {text}")).1.to_string()
}

/// Returns the message for this header over 16 bytes of data.
fn header_damage(header: &str) -> String {
    damage(&raw(header.as_bytes(), &[0; 16]))
}

#[test]
fn tensors_of_any_type_and_alignment_are_read() {
    let half = |v: f32| half::f16::from_f32(v).to_le_bytes().to_vec();
    let brain = |v: f32| half::bf16::from_f32(v).to_le_bytes().to_vec();
    let file = valid(&[
        ("f16", "F16", &[1, 1], half(0.5)),
        // Starts 2 bytes after an aligned offset, so it must be copied.
        ("shifted", "F32", &[2], f32s(&[1.5, -2.5])),
        ("bf16", "BF16", &[2], [brain(3.0), brain(-4.0)].concat()),
        ("f64", "F64", &[1], 0.1f64.to_le_bytes().to_vec()),
        ("scalar", "F32", &[], f32s(&[7.0])),
        ("empty", "F32", &[0, 3], vec![]),
        ("ids", "I64", &[1], vec![0; 8]),
    ]);
    let folder = folder(&[("model.safetensors", &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let read = |name: &str| checkpoint.tensor(name).unwrap().to_vec();
    assert_eq!(read("f16"), [0.5]);
    assert_eq!(read("shifted"), [1.5, -2.5]);
    assert_eq!(read("bf16"), [3.0, -4.0]);
    assert_eq!(read("f64"), [0.1]);
    assert_eq!(read("scalar"), [7.0]);
    assert_eq!(checkpoint.tensor("empty").unwrap().shape(), [0, 3]);
    assert_eq!(checkpoint.bytes("shifted").unwrap(), f32s(&[1.5, -2.5]));
    assert_eq!(checkpoint.shape("f16"), Some(&[1, 1][..]));
    assert_eq!(checkpoint.path_of("f16").unwrap(), folder.path().join("model.safetensors"));
    assert_eq!(
        checkpoint.names().collect::<Vec<_>>(),
        ["bf16", "empty", "f16", "f64", "ids", "scalar", "shifted"]
    );
    let text = checkpoint.tensor("ids").unwrap_err().to_string();
    assert!(text.contains("tensor ids: its type is I64, expected F32, F16, BF16 or F64"), "{text}");
    assert!(
        checkpoint.tensor("none").unwrap_err().to_string().contains("tensor none: not in the checkpoint")
    );
}

#[test]
fn damaged_lengths_and_headers_have_distinct_messages() {
    assert!(damage(b"").starts_with("0 bytes long, which is too short for a safetensors file"));
    assert!(damage(b"1234567").starts_with("7 bytes long, which is too short for a safetensors file"));
    assert!(damage(&u64::MAX.to_le_bytes()).starts_with("its header claims 18446744073709551615 bytes"));
    assert!(damage(&100_000_001u64.to_le_bytes()).starts_with("its header claims 100000001 bytes"));

    let mut cut = valid(&[("w", "F32", &[4], f32s(&[1.0; 4]))]);
    let full = cut.len();
    cut.truncate(20);
    assert!(damage(&cut).starts_with("truncated: the header has"), "{}", damage(&cut));
    cut = valid(&[("w", "F32", &[4], f32s(&[1.0; 4]))]);
    cut.truncate(full - 1);
    assert_eq!(
        damage(&cut),
        "truncated: tensor w ends at byte 16 of the data, the file has 15; download it again"
    );
    cut.extend([0, 0, 0]);
    assert!(damage(&cut).starts_with("2 bytes after the last tensor belong to none"));

    assert!(damage(&raw(b"\xff\xfe{}", b"")).starts_with("its header is not UTF-8 (byte 0 of it)"));
    assert!(damage(&raw(b"<html>", b"")).starts_with("its header is not valid: "));
    assert!(damage(&raw(b"[1, 2]", b"")).contains("expected an object of tensors"));
    assert!(damage(&raw(b"", b"")).starts_with("its header is not valid: "));
}

#[test]
fn damaged_entries_name_their_tensor() {
    let text = header_damage(r#"{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 32]}}"#);
    assert_eq!(text, "tensor w: F32 of shape [4] needs 16 bytes, the header gives it 32");
    let text = header_damage(r#"{"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}"#);
    assert!(text.starts_with("truncated: tensor w ends at byte 32"), "{text}");
    let text = header_damage(
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}}"#,
    );
    assert!(text.starts_with("tensor b: its bytes are 4..16, expected to start at 8"), "{text}");
    let text = header_damage(r#"{"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#);
    assert!(text.starts_with("tensor w: its bytes are 8..16, expected to start at 0"), "{text}");
    let text = header_damage(
        r#"{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 0]}, "w2": {"dtype":
        "F32", "shape": [2], "data_offsets": [16, 8]}}"#,
    );
    assert!(text.starts_with("tensor w: F32 of shape [2] needs 8 bytes, the header gives it 0"), "{text}");
    let text = header_damage(r#"{"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, -1]}}"#);
    assert!(text.contains("tensor w: "), "{text}");
    let huge = u64::MAX;
    let text = header_damage(&format!(
        r#"{{"w": {{"dtype": "F32", "shape": [{huge}, 2], "data_offsets": [0, 16]}}}}"#
    ));
    assert!(text.starts_with("tensor w: the shape [18446744073709551615, 2] overflows"), "{text}");
    // 2^32 · 2^32 elements are 0 modulo 2^64.
    let text = header_damage(
        r#"{"w": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
    );
    assert!(text.contains("overflows"), "{text}");
    let text = header_damage(&format!(
        r#"{{"w": {{"dtype": "F32", "shape": [4], "data_offsets": [{}, {huge}]}}}}"#,
        huge - 16
    ));
    assert!(text.contains("expected to start at 0"), "{text}");
    let text = header_damage(r#"{"w": {"dtype": "F33", "shape": [4], "data_offsets": [0, 16]}}"#);
    assert!(text.contains("tensor w: ") && text.contains("F33"), "{text}");
    let text = header_damage(
        r#"{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#,
    );
    assert!(text.contains("tensor w occurs twice"), "{text}");
    let text = header_damage(r#"{"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}"#);
    assert!(text.starts_with("tensor w: F4 of shape [3] needs 2 bytes"), "{text}");
}

/// Opening returns for every value of every byte of a header: it never panics and never reads
/// outside of the file.
#[test]
fn changed_header_bytes_do_not_panic() {
    let good = valid(&[("a", "F32", &[2], f32s(&[1.0, 2.0])), ("b", "F16", &[1, 2], vec![0; 4])]);
    let folder = folder(&[]);
    let path = folder.path().join("model.safetensors");
    let header_end = good.len() - 12;
    for place in 0..header_end {
        for value in [0, b'9', b'"', 0xff, good[place] ^ 1] {
            let mut bad = good.clone();
            bad[place] = value;
            std::fs::write(&path, bad).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
                for name in checkpoint.names() {
                    let _ = checkpoint.tensor(name);
                }
            }
        }
    }
}

fn index(pairs: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> = pairs.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
    serde_json::json!({ "metadata": { "total_size": 8 }, "weight_map": map }).to_string().into_bytes()
}

fn one(name: &str) -> Vec<u8> {
    valid(&[(name, "F32", &[1], f32s(&[1.0]))])
}

#[test]
fn shards_are_read_by_their_index() {
    let index = index(&[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let folder = folder(&[
        ("model.safetensors.index.json", &index),
        ("1.safetensors", &one("a")),
        ("2.safetensors", &one("b")),
    ]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(checkpoint.path_of("b").unwrap().ends_with("2.safetensors"));
    assert_eq!(checkpoint.tensor("b").unwrap()[..], [1.0]);
}

#[test]
fn mismatches_of_index_and_shards_are_explained() {
    let sharded = |pairs: &[(&str, &str)], shards: &[(&str, &[u8])]| {
        let index = index(pairs);
        error_of(&[&[("model.safetensors.index.json", index.as_slice())], shards].concat())
    };
    let text = sharded(&[("a", "1.safetensors"), ("b", "2.safetensors")], &[("1.safetensors", &one("a"))]);
    assert!(text.contains("index.json: shard 2.safetensors is not in the folder"), "{text}");
    let text = sharded(&[("b", "1.safetensors")], &[("1.safetensors", &one("a"))]);
    assert!(text.contains("tensor b is not in its shard 1.safetensors"), "{text}");
    let pairs = [("a", "1.safetensors"), ("b", "2.safetensors")];
    let text = sharded(&pairs, &[("1.safetensors", &one("b")), ("2.safetensors", &one("a"))]);
    assert!(text.contains("tensor a should be in 1.safetensors, it is in"), "{text}");
    let text = sharded(&pairs, &[("1.safetensors", &one("a")), ("2.safetensors", &one("a"))]);
    assert!(text.contains("2.safetensors: tensor a is in") && text.contains("1.safetensors too"), "{text}");
    let text = sharded(&pairs, &[("1.safetensors", &one("a")), ("2.safetensors", &one("b")[..30])]);
    assert!(text.contains("2.safetensors: truncated"), "{text}");
    for outside in
        ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", ".", "", "..\\x.safetensors"]
    {
        let text = sharded(&[("a", outside)], &[]);
        assert!(text.contains("is not a plain file name"), "{outside}: {text}");
    }
    assert!(sharded(&[], &[]).contains("its weight_map is empty"));
    for bad in [&b"{"[..], b"{}", b"[]", br#"{"weight_map": {"a": 1}}"#] {
        let text = error_of(&[("model.safetensors.index.json", bad)]);
        assert!(text.contains("index.json: not an index with a weight_map"), "{text}");
    }
}

#[test]
fn a_folder_without_weights_says_what_it_is_instead() {
    let text = Checkpoint::open(Path::new("no/such/folder")).unwrap_err().to_string();
    assert_eq!(text, "no/such/folder: the folder does not exist");
    assert!(error_of(&[]).contains("no model.safetensors and no model.safetensors.index.json"));
    let text = error_of(&[("pytorch_model.bin", b"")]);
    assert!(text.contains("only pytorch_model.bin is here") && text.contains("s.save_file("), "{text}");
    assert!(
        error_of(&[("pytorch_model.bin.index.json", b"")]).contains("only pytorch_model.bin shards are here")
    );
    assert!(error_of(&[("tf_model.h5", b"")]).contains("only TensorFlow or Flax weights are here"));
    assert!(error_of(&[("adapter_config.json", b"")]).contains("this is an adapter"));
    let folder = folder(&[("model.safetensors", b"")]);
    let file = folder.path().join("model.safetensors");
    assert!(Checkpoint::open(&file).unwrap_err().to_string().contains("not a folder"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn weights_are_found_under_any_of_their_names() {
    let file = valid(&[
        ("bert.a.weight", "F32", &[2, 1], f32s(&[1.0, 2.0])),
        ("b.weight", "F32", &[1], f32s(&[3.0])),
        ("bert.x.LayerNorm.gamma", "F32", &[1], f32s(&[4.0])),
        ("x.LayerNorm.beta", "F32", &[1], f32s(&[5.0])),
        ("classifier.weight", "F32", &[3, 1], f32s(&[0.0; 3])),
    ]);
    let folder = folder(&[("model.safetensors", &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut weights = Weights::new(&checkpoint, "bert");
    assert_eq!(weights.take("a.weight", &[2, 1])[..], [1.0, 2.0]);
    assert_eq!(weights.take("b.weight", &[1])[..], [3.0]);
    assert_eq!(weights.take("x.LayerNorm.weight", &[1])[..], [4.0]);
    assert_eq!(weights.take("x.LayerNorm.bias", &[1])[..], [5.0]);
    assert_eq!(weights.resolve("x.LayerNorm.weight").as_deref(), Some("bert.x.LayerNorm.gamma"));
    assert!(weights.has("b.weight") && !weights.has("c.weight"));
    assert!(matches!(weights.try_take_head("classifier.weight", &[3, 1]), HeadTensor::Found(_)));
    assert!(matches!(weights.try_take_head("classifier.bias", &[3]), HeadTensor::Missing));
    match weights.try_take_head("classifier.weight", &[2, 1]) {
        HeadTensor::Misshapen { seen } => assert_eq!(seen, [3, 1]),
        other => panic!("{other:?}"),
    }
    weights.finish().unwrap();
}

#[test]
fn all_unusable_weights_are_reported_together() {
    // Long enough that the search for NaN has several pieces.
    let mut long = vec![0.5; 3_000_000];
    long[2_500_000] = f32::NAN;
    long[2_900_000] = f32::INFINITY;
    let file = valid(&[
        ("bert.long", "F32", &[3_000_000], f32s(&long)),
        ("bert.half", "F16", &[2], [0u16, 0xfc00].iter().flat_map(|b| b.to_le_bytes()).collect()),
        // Too large for f32.
        ("bert.double", "F64", &[1], 1e300f64.to_le_bytes().to_vec()),
        ("bert.turned", "F32", &[1, 2], f32s(&[0.0; 2])),
        ("bert.ids", "I64", &[1], vec![0; 8]),
        ("classifier.bias", "F32", &[1], f32s(&[f32::NAN])),
    ]);
    let folder = folder(&[("model.safetensors", &file)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut weights = Weights::new(&checkpoint, "bert");
    for (name, shape) in
        [("long", &[3_000_000][..]), ("half", &[2]), ("double", &[1]), ("turned", &[2, 1]), ("ids", &[1])]
    {
        assert_eq!(weights.take(name, shape).shape(), [0]);
    }
    assert_eq!(weights.take("absent", &[usize::MAX, 2]).shape(), [0]);
    weights.try_take_head("classifier.bias", &[1]);
    let error = weights.finish().unwrap_err();
    let text = error.to_string();
    for line in [
        "7 weights cannot be used as config.json describes the model:",
        "\n  bert.long has NaN at index 2500000",
        "\n  bert.half has -inf at index 1",
        "\n  bert.double has inf at index 0",
        "\n  bert.turned is [1, 2], expected [2, 1]",
        "\n  bert.ids: its type is I64, expected F32, F16, BF16 or F64",
        "\n  bert.absent is missing, expected [18446744073709551615, 2]",
        "\n  classifier.bias has NaN at index 0",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let Error::Weights { problems, .. } = error else { panic!("{error:?}") };
    let fault = WeightFault::Shape { seen: vec![1, 2], expected: vec![2, 1] };
    assert_eq!(problems[3], WeightProblem { name: "bert.turned".into(), fault });
}
