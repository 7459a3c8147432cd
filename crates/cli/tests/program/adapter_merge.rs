//! Merging into small bases made here: names, sums, configuration, and what is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_drop::Cancel;
use lora_drop::adapter::{AdapterFile, FloatType, HeadWeight, LoraBank, NewPairs, merge, write_checkpoint};
use lora_drop::assignment::Assignment;
use lora_drop::data::Labels;
use lora_drop_transformer::{
    AdapterMethod, Architecture, Checkpoint, Head, ModelConfig, ModuleId, ModuleKind, Parameters,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const QUERY: ModuleId = ModuleId { layer: 1, kind: ModuleKind::Query };

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
}

/// A base model's folder; `name` turns the encoder's own tensor names into the file's.
struct Base {
    folder: tempfile::TempDir,
    config: ModelConfig,
    weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Base {
    fn new(model_type: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let text = json!({
            "model_type": model_type, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 12, "vocab_size": 20, "max_position_embeddings": 10, "type_vocab_size": 2,
            "torch_dtype": "bfloat16", "num_labels": 7, "architectures": ["Else"], "hidden_act": "gelu",
        });
        std::fs::write(folder.path().join("config.json"), text.to_string()).expect("written");
        std::fs::write(folder.path().join("tokenizer.json"), b"{}").expect("written");
        std::fs::write(folder.path().join("README.md"), b"not copied").expect("written");
        let config = ModelConfig::read(folder.path()).expect("a valid configuration");
        let weights = config.weights().into_iter().enumerate().map(|(i, (name, shape))| {
            let values = numbers(shape.iter().product(), i);
            (name, (shape, values))
        });
        let weights = weights.collect();
        Base { folder, config, weights }
    }

    fn open(&self) -> Checkpoint {
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .weights
            .iter()
            .map(|(name, (shape, values))| {
                (name.clone(), shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a valid tensor"))
        });
        let file = safetensors::serialize(views, None).expect("valid");
        std::fs::write(self.folder.path().join("model.safetensors"), file).expect("written");
        Checkpoint::open(self.folder.path()).expect("a good checkpoint")
    }

    fn rename(&mut self, from: &str, to: &str) {
        let weight = self.weights.remove(from).expect("there");
        self.weights.insert(to.to_string(), weight);
    }

    /// An adapter of rank 2 and alpha 3 for layer 1's query, with a head of this number of outputs.
    fn adapter(&self, outputs: usize) -> AdapterFile {
        let mut parameters = Parameters::new();
        let assignment = Assignment::all_own([QUERY]);
        let new =
            NewPairs { method: AdapterMethod::Lora, rank: 2, alpha: 3.0, rslora: false, shared_a: false };
        let bank = LoraBank::new(&assignment, new, |_| (8, 8), 1, &mut parameters);
        let values = numbers(parameters.count(), 99);
        parameters.set_values(&values);
        let mut adapter = AdapterFile::from_bank(&bank, &parameters, self.config.architecture, 0.0);
        for (i, (name, shape)) in
            self.config.head_weights(Head::of_sequences(outputs)).into_iter().enumerate()
        {
            let values = numbers(shape.iter().product(), 50 + i);
            adapter.head.insert(name.to_string(), HeadWeight { shape, values });
        }
        adapter
    }

    fn merge(&self, adapter: &AdapterFile, labels: &[&str]) -> lora_drop::Result<Output> {
        let folder = tempfile::tempdir().expect("a folder");
        let labels = meaning(labels);
        let path = folder.path().join("new");
        merge(&self.open(), &self.config, adapter, &path, Some(&labels), None, &Cancel::new())?;
        Ok(Output { path, _folder: folder })
    }
}

struct Output {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Output {
    fn config(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path.join("config.json")).expect("readable"))
            .expect("JSON")
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(&self.path).expect("a good checkpoint")
    }
}

/// What outputs of these names mean; without names they are a regression's.
fn meaning(names: &[&str]) -> Labels {
    match names {
        [] => Labels::Regression,
        names => Labels::classes(names.iter().map(|name| name.to_string()).collect()),
    }
}

fn labels() -> [&'static str; 3] {
    ["no", "yes", "ü"]
}

#[test]
fn the_product_is_added_and_everything_else_stays() {
    for model_type in ["bert", "roberta", "xlm-roberta", "mpnet"] {
        let base = Base::new(model_type);
        let adapter = base.adapter(3);
        let output = base.merge(&adapter, &labels()).expect("merged");
        let (merged, prefix) = (output.checkpoint(), base.config.architecture.prefix());
        let adapted = format!("{}.weight", base.config.architecture.linear(QUERY));
        for (name, (shape, values)) in &base.weights {
            let new = merged.tensor(&format!("{prefix}.{name}")).expect("there");
            assert_eq!(new.shape(), shape);
            if *name != adapted {
                assert_eq!(&new[..], values, "{name}");
                continue;
            }
            let pair = &adapter.pairs[0];
            for (i, (new, old)) in new.iter().zip(values).enumerate() {
                let (row, column) = (i / 8, i % 8);
                let product: f32 = (0..2).map(|r| pair.b[row * 2 + r] * pair.a[r * 8 + column]).sum();
                assert!((new - (old + 1.5 * product)).abs() < 1e-6, "{i}: {new}");
            }
        }
        for (name, weight) in &adapter.head {
            assert_eq!(merged.tensor(name).expect("there")[..], weight.values);
        }
        assert_eq!(merged.names().count(), base.weights.len() + adapter.head.len());
        assert_eq!(merged.metadata()["format"], "pt");
    }
}

#[test]
fn rows_of_a_merged_dora_are_as_long_as_its_magnitudes() {
    let base = Base::new("bert");
    let mut adapter = base.adapter(3);
    adapter.method = AdapterMethod::Dora;
    let magnitudes: Vec<f32> = (0..8).map(|i| 0.5 + i as f32).collect();
    adapter.vectors = BTreeMap::from([(QUERY, magnitudes.clone())]);
    let name = base.config.architecture.linear(QUERY);
    let (_, old) = &base.weights[&format!("{name}.weight")];
    let output = base.merge(&adapter, &labels()).expect("merged");
    let new = output.checkpoint().tensor(&format!("bert.{name}.weight")).expect("there");
    let pair = &adapter.pairs[0];
    for row in 0..8 {
        let direction = |column: usize| {
            let product: f32 = (0..2).map(|r| pair.b[row * 2 + r] * pair.a[r * 8 + column]).sum();
            f64::from(old[row * 8 + column] + 1.5 * product)
        };
        let norm = (0..8).map(|column| direction(column).powi(2)).sum::<f64>().sqrt();
        for column in 0..8 {
            let want = f64::from(magnitudes[row]) * direction(column) / norm;
            assert!((f64::from(new[row * 8 + column]) - want).abs() < 1e-6, "{row}, {column}");
        }
    }
}

#[test]
fn the_folder_is_one_for_classification() {
    let base = Base::new("xlm-roberta");
    let output = base.merge(&base.adapter(3), &labels()).expect("merged");
    let config = output.config();
    assert_eq!(config["architectures"], json!(["XLMRobertaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({"0": "no", "1": "yes", "2": "ü"}));
    assert_eq!(config["label2id"], json!({"no": 0, "yes": 1, "ü": 2}));
    assert_eq!(config["problem_type"], "single_label_classification");
    assert_eq!(config["torch_dtype"], "float32");
    assert_eq!(config.get("num_labels"), None);
    assert_eq!(config["hidden_act"], "gelu", "the rest of the base's stays");
    let read = ModelConfig::read(&output.path).expect("a valid configuration");
    assert_eq!(read.labels, labels());
    let mut files: Vec<_> = std::fs::read_dir(&output.path)
        .expect("readable")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn a_regression_has_one_output() {
    let base = Base::new("bert");
    let output = base.merge(&base.adapter(1), &[]).expect("merged");
    assert_eq!(output.config()["problem_type"], "regression");
    assert_eq!(output.config()["id2label"], json!({"0": "LABEL_0"}));
    assert_eq!(output.checkpoint().shape("classifier.weight"), Some(&[1, 8][..]));
}

#[test]
fn old_names_are_found_and_what_has_no_use_is_left_out() {
    let mut base = Base::new("bert");
    let expected = base.weights["embeddings.LayerNorm.weight"].1.clone();
    base.rename("embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma");
    base.weights.insert("bert.embeddings.position_ids".to_string(), (vec![10], numbers(10, 1)));
    base.weights.insert("cls.predictions.bias".to_string(), (vec![20], numbers(20, 1)));
    // the pooler comes from the adapter where it was trained
    let (shape, _) = base.weights.remove("pooler.dense.bias").expect("there");
    let mut adapter = base.adapter(3);
    adapter.head.insert("bert.pooler.dense.bias".to_string(), HeadWeight { shape, values: numbers(8, 77) });
    // the head from the base where the adapter has none
    let weight = adapter.head.remove("classifier.bias").expect("there");
    base.weights.insert("classifier.bias".to_string(), (weight.shape.clone(), weight.values.clone()));

    let output = base.merge(&adapter, &labels()).expect("merged");
    let merged = output.checkpoint();
    assert_eq!(merged.tensor("bert.embeddings.LayerNorm.weight").expect("there")[..], expected);
    assert_eq!(merged.tensor("bert.pooler.dense.bias").expect("there")[..], numbers(8, 77));
    assert_eq!(merged.tensor("classifier.bias").expect("there")[..], weight.values);
    assert!(!merged.contains("bert.embeddings.position_ids") && !merged.contains("cls.predictions.bias"));
}

#[test]
fn a_failed_merge_leaves_no_model() {
    let refuse = |base: &Base, adapter: &AdapterFile, expected: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let labels = meaning(&labels());
        let message =
            merge(&base.open(), &base.config, adapter, folder.path(), Some(&labels), None, &Cancel::new())
                .expect_err(expected)
                .to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    };
    let base = Base::new("bert");
    refuse(&base, &base.adapter(2), "the adapter: classifier.weight is [2, 8], expected [3, 8]");
    let mut headless = base.adapter(3);
    headless.head.clear();
    refuse(&base, &headless, "classifier.weight is neither in the adapter nor in");
    let mut other = base.adapter(3);
    other.architectures = vec![Architecture::Mpnet];
    refuse(&base, &other, "the adapter is for mpnet, the model is bert");
    let mut strange = base.adapter(3);
    strange.head.insert("roberta.pooler.bias".to_string(), HeadWeight { shape: vec![1], values: vec![0.0] });
    refuse(&base, &strange, "the adapter's roberta.pooler.bias has no place in the model");
    let mut damaged = Base::new("bert");
    damaged.weights.get_mut("embeddings.word_embeddings.weight").expect("there").1[3] = f32::INFINITY;
    refuse(&damaged, &damaged.adapter(3), "tensor embeddings.word_embeddings.weight has the value inf");
    let mut narrow = Base::new("bert");
    narrow.weights.insert("encoder.layer.0.output.dense.bias".to_string(), (vec![4], vec![0.0; 4]));
    refuse(&narrow, &narrow.adapter(3), "bert.encoder.layer.0.output.dense.bias is [4], expected [8]");
}

#[test]
fn the_base_is_never_overwritten() {
    let base = Base::new("bert");
    let checkpoint = base.open();
    let before = std::fs::read(base.folder.path().join("model.safetensors")).expect("readable");
    let message = merge(
        &checkpoint,
        &base.config,
        &base.adapter(1),
        base.folder.path(),
        Some(&Labels::Regression),
        None,
        &Cancel::new(),
    )
    .expect_err("the base's folder")
    .to_string();
    assert!(
        message.ends_with("is the base model's own folder; give another one for the output"),
        "{message}"
    );
    assert_eq!(std::fs::read(base.folder.path().join("model.safetensors")).expect("readable"), before);
}

#[test]
fn a_trained_model_is_written_by_its_weights_names() {
    let base = Base::new("mpnet");
    base.open();
    let folder = tempfile::tempdir().expect("a folder");
    let labels = meaning(&labels());
    write_checkpoint(
        &base.config,
        base.folder.path(),
        folder.path(),
        Some(&labels),
        &[],
        &|_| FloatType::F32,
        |name, shape| Ok(Cow::Owned(vec![name.len() as f32; shape.iter().product()])),
    )
    .expect("written");
    let written = Checkpoint::open(folder.path()).expect("a good checkpoint");
    assert_eq!(written.names().count(), base.weights.len() + 4);
    assert!(
        written.names().all(|name| written
            .tensor(name)
            .expect("there")
            .iter()
            .all(|v| *v == name.len() as f32))
    );
    assert!(folder.path().join("tokenizer.json").exists());
    assert!(written.contains("mpnet.encoder.relative_attention_bias.weight"));
    assert_eq!(Path::new(written.folder()), folder.path());
}
