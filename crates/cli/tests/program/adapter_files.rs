//! Adapter files there and back, and damaged or foreign ones, each with its message. Fixtures are
//! made here.

use std::collections::BTreeMap;
use std::path::Path;

use lora_drop::adapter::{AdapterFile, COMPACT_FILE, LoraBank, NewPairs};
use lora_drop::assignment::{Assignment, Owner};
use lora_drop_transformer::{
    AdapterMethod, Architecture, Checkpoint, Group, Head, ModelConfig, ModuleId, ModuleKind, Parameters,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const HIDDEN: usize = 8;
const LAYERS: usize = 3;
const RANK: usize = 2;

fn config(model_type: &str) -> ModelConfig {
    let text = json!({
        "model_type": model_type, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 12, "vocab_size": 20, "max_position_embeddings": 10, "type_vocab_size": 2,
        "torch_dtype": "bfloat16", "num_labels": 7,
    });
    ModelConfig::parse(&text.to_string(), Path::new("config.json")).expect("a valid configuration")
}

/// Numbers without a pattern that could hide a swapped index.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
}

/// Query: layer 1 kept, 0 and 2 shared. Output: layer 2 kept, the others without.
fn assignment() -> Assignment {
    let mut owners = BTreeMap::new();
    for layer in 0..LAYERS {
        owners.insert(
            ModuleId { layer, kind: ModuleKind::Query },
            if layer == 1 { Owner::Own } else { Owner::Shared },
        );
        owners.insert(
            ModuleId { layer, kind: ModuleKind::Output },
            if layer == 2 { Owner::Own } else { Owner::None },
        );
    }
    owners.into()
}

fn trained(architecture: &str, assignment: &Assignment, rslora: bool) -> AdapterFile {
    let config = config(architecture);
    let mut parameters = Parameters::new();
    let dims = |kind| {
        let (output, input) = config.linear_shape(kind);
        (input, output)
    };
    let new = NewPairs { method: AdapterMethod::Lora, rank: RANK, alpha: 6.0, rslora, shared_a: false };
    let bank = LoraBank::new(assignment, new, dims, 1, &mut parameters);
    for (name, shape) in config.head_weights(Head::of_sequences(3)) {
        parameters.add(&name, &shape, Group::Head, false, &vec![0.0; shape.iter().product()]);
    }
    let values = numbers(parameters.count(), 5);
    parameters.set_values(&values);
    AdapterFile {
        labels: Some(json!({"classes": ["no", "yes", "ü"]})),
        base: "org/name".to_string(),
        metadata: BTreeMap::from([("version".to_string(), "0.1.0".to_string())]),
        ..AdapterFile::from_bank(&bank, &parameters, config.architecture, 0.0)
    }
}

fn bert() -> AdapterFile {
    trained("bert", &assignment(), false)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON")
}

#[test]
fn both_forms_give_the_adapter_back() {
    for (architecture, rslora) in [("bert", false), ("roberta", true), ("mpnet", false)] {
        let adapter = trained(architecture, &assignment(), rslora);
        let folder = tempfile::tempdir().expect("a folder");
        adapter.write_compact(&folder.path().join(COMPACT_FILE)).expect("written");
        assert_eq!(AdapterFile::open(folder.path()).expect("the compact form"), adapter);
        adapter.write_peft(folder.path(), LAYERS).expect("written");
        assert_eq!(AdapterFile::open(folder.path()).expect("PEFT's format"), adapter);
        assert_eq!(AdapterFile::open(&folder.path().join(COMPACT_FILE)).expect("the file itself"), adapter);
        let weights = folder.path().join("adapter_model.safetensors");
        assert_eq!(AdapterFile::open(&weights).expect("the file itself"), adapter);

        // (8 + 8) · 2 for two queries, (12 + 8) · 2 for one output; written, query has three
        assert_eq!((adapter.unique_parameters(), adapter.written_parameters()), (104, 136));
        let mut expected = assignment();
        expected.owners.retain(|_, owner| *owner != Owner::None);
        assert_eq!(adapter.assignment(), expected);
    }
}

#[test]
fn an_adapter_becomes_the_bank_that_it_was() {
    let adapter = bert();
    let config = config("bert");
    let mut parameters = Parameters::new();
    for (name, shape) in config.head_weights(Head::of_sequences(3)) {
        parameters.add(&name, &shape, Group::Head, false, &vec![0.0; shape.iter().product()]);
    }
    let bank = adapter.to_bank(&config, &mut parameters).expect("fits");
    adapter.load_head(&mut parameters).expect("the same head");
    let again = AdapterFile::from_bank(&bank, &parameters, Architecture::Bert, 0.0);
    assert_eq!(
        (&again.pairs, &again.modules, &again.head),
        (&adapter.pairs, &adapter.modules, &adapter.head)
    );
    assert_eq!(bank.pairs()[0].lora.scale, 3.0);
}

#[test]
fn the_same_adapter_is_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str| {
        let path = folder.path().join(name);
        bert().write_compact(&path).expect("written");
        std::fs::read(path).expect("readable")
    };
    assert_eq!(write("a"), write("b"));
}

#[test]
fn the_configuration_has_few_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = Assignment::all_own((0..LAYERS).map(|layer| ModuleId { layer, kind: ModuleKind::Query }));
    trained("roberta", &all, false).write_peft(folder.path(), LAYERS).expect("written");
    let expected = json!({
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "org/name", "r": 2, "lora_alpha": 6,
        "target_modules": ["query"], "inference_mode": true, "modules_to_save": ["classifier"],
    });
    assert_eq!(read_json(&folder.path().join("adapter_config.json")), expected);
}

#[test]
fn a_trained_pooler_is_saved_as_a_module_of_its_own() {
    let mut adapter = bert();
    let weight = adapter.head["classifier.bias"].clone();
    adapter.head.insert("bert.pooler.dense.bias".to_string(), weight);
    let folder = tempfile::tempdir().expect("a folder");
    adapter.write_peft(folder.path(), LAYERS).expect("written");
    let config = read_json(&folder.path().join("adapter_config.json"));
    assert_eq!(config["modules_to_save"], json!(["classifier", "pooler"]));
    assert_eq!(AdapterFile::open(folder.path()).expect("readable"), adapter);
}

#[test]
fn an_adapter_without_a_form_in_peft_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refuse = |adapter: AdapterFile, expected: &str| {
        let message = adapter.write_peft(folder.path(), LAYERS).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    };
    refuse(trained("bert", &Assignment::default(), false), "no module has a LoRA");
}

#[test]
fn uneven_ranks_and_alphas_go_to_peft_and_back() {
    let mut uneven = assignment();
    let module = ModuleId { layer: 1, kind: ModuleKind::Query };
    uneven.ranks.insert(module, 3);
    let mut adapter = trained("bert", &uneven, false);
    let last = adapter.pairs.len() - 1;
    adapter.pairs[last].alpha = 0.5;
    let folder = tempfile::tempdir().expect("a folder");
    adapter.write_peft(folder.path(), LAYERS).expect("written");
    let config = read_json(&folder.path().join("adapter_config.json"));
    assert_eq!(config["rank_pattern"], json!({ r"bert\.encoder\.layer\.1\.attention\.self\.query": 3 }));
    // The scale is that of rank 2, 6 / 2.
    assert_eq!(
        config["alpha_pattern"],
        json!({
            r"bert\.encoder\.layer\.1\.attention\.self\.query": 9,
            r"bert\.encoder\.layer\.2\.output\.dense": 0.5
        })
    );
    let read = AdapterFile::open(folder.path()).expect("readable");
    assert_eq!(read, adapter);
    assert_eq!(read.assignment().ranks, uneven.ranks);
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let refuse = |config: ModelConfig, expected: &str| {
        let message = bert().to_bank(&config, &mut Parameters::new()).expect_err(expected).to_string();
        assert_eq!(message, expected);
    };
    refuse(
        config("roberta"),
        "the adapter is for bert, the model is roberta: give the model that it was trained on",
    );
    refuse(
        ModelConfig { layers: 2, ..config("bert") },
        "the adapter has bert.encoder.layer.2.attention.self.query, the model has 2 layers",
    );
    refuse(
        ModelConfig { hidden_size: 16, head_dim: 8, ..config("bert") },
        "the adapter's bert.encoder.layer.0.attention.self.query is for a weight of [8, 8], the model's is [16, 16]: \
         it belongs to another model (org/name)",
    );
    // A compact file names kinds, which an architecture may not have.
    let mut gated = bert();
    gated.modules = [(ModuleId { layer: 0, kind: ModuleKind::Gate }, 0)].into();
    let message = gated.to_bank(&config("bert"), &mut Parameters::new()).expect_err("no gate").to_string();
    assert_eq!(message, "the adapter has a LoRA on gate, which a bert block does not have");
    let mut parameters = Parameters::new();
    parameters.add("classifier.weight", &[2, HIDDEN], Group::Head, true, &[0.0; 2 * HIDDEN]);
    parameters.add("bert.pooler.dense.bias", &[1], Group::Head, false, &[0.0]);
    let message = bert().load_head(&mut parameters).expect_err("another head").to_string();
    assert_eq!(
        message,
        "the adapter's head does not fit the model: classifier.weight is [3, 8], expected [2, 8]; \
         bert.pooler.dense.bias is missing; classifier.bias has no place in the model"
    );
}

/// A PEFT folder to be spoilt: its configuration, and its tensors as (type, shape, bytes).
struct Folder {
    config: Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

const QUERY: &str = "base_model.model.bert.encoder.layer.1.attention.self.query";

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Folder {
    /// The folder as PEFT would write it for two layers' query.
    fn new() -> Self {
        let mut folder = Folder {
            config: json!({
                "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["query"],
                "modules_to_save": ["classifier", "score"], "bias": "none", "lora_dropout": 0.1, "use_dora": false,
                "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": true, "loftq_config": {},
                "base_model_name_or_path": null, "peft_version": "0.21.2", "layer_replication": null,
            }),
            tensors: BTreeMap::new(),
        };
        for layer in 0..2 {
            let module = format!("base_model.model.bert.encoder.layer.{layer}.attention.self.query");
            folder.set(&format!("{module}.lora_A.weight"), &[2, HIDDEN], layer);
            folder.set(&format!("{module}.lora_B.weight"), &[HIDDEN, 2], layer + 10);
        }
        folder.set("base_model.model.classifier.weight", &[2, HIDDEN], 20);
        folder.set("base_model.model.classifier.bias", &[2], 21);
        folder
    }

    fn set(&mut self, name: &str, shape: &[usize], seed: usize) {
        let values = numbers(shape.iter().product(), seed);
        self.tensors.insert(name.to_string(), (Dtype::F32, shape.to_vec(), bytes(&values)));
    }

    fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensors.remove(from).expect("there");
        self.tensors.insert(to.to_string(), tensor);
    }

    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("adapter_config.json"), self.config.to_string()).expect("written");
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).expect("a valid tensor"))
        });
        let file = safetensors::serialize(views, None).expect("valid");
        std::fs::write(folder.join("adapter_model.safetensors"), file).expect("written");
    }

    fn open(&self) -> lora_drop::Result<AdapterFile> {
        let folder = tempfile::tempdir().expect("a folder");
        self.write(folder.path());
        AdapterFile::open(folder.path())
    }

    /// Spoils a good folder, and checks the message.
    fn refuse(change: impl FnOnce(&mut Folder), expected: &str) {
        let mut folder = Folder::new();
        change(&mut folder);
        let message = folder.open().expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
}

#[test]
fn an_adapter_of_pefts_is_read() {
    let adapter = Folder::new().open().expect("a good folder");
    assert_eq!(adapter.architectures, [Architecture::Bert]);
    assert_eq!((adapter.pairs.len(), adapter.modules.len(), adapter.head.len()), (2, 2, 2));
    assert_eq!(adapter.scale(&adapter.pairs[0]), 2.0);
    assert_eq!(adapter.lora_dropout, 0.1);
    assert_eq!(adapter.pairs[1].b, numbers(HIDDEN * 2, 11));
    assert!(adapter.pairs.iter().all(|p| !p.shared));
}

#[test]
fn infixes_patterns_and_bare_encoders_are_understood() {
    let mut folder = Folder::new();
    folder.rename(&format!("{QUERY}.lora_A.weight"), &format!("{QUERY}.lora_A.default.weight"));
    folder.rename(
        "base_model.model.classifier.bias",
        "base_model.model.classifier.modules_to_save.default.bias",
    );
    folder.set(&format!("{QUERY}.lora_B.weight"), &[HIDDEN, 4], 1);
    folder.set(&format!("{QUERY}.lora_A.default.weight"), &[4, HIDDEN], 1);
    folder.config["rank_pattern"] = json!({r"layer\.1\.attention\.self\.query": 4});
    folder.config["alpha_pattern"] = json!({"uery": 99, r"layer\.[1-9]+\..*query": 16, "query": 6});
    folder.config["use_rslora"] = true.into();
    let adapter = folder.open().expect("a good folder");
    assert_eq!(adapter.scale(&adapter.pairs[0]), 6.0 / 2f64.sqrt());
    assert_eq!(adapter.scale(&adapter.pairs[1]), 8.0);
    assert_eq!(adapter.head["classifier.bias"].shape, [2]);

    let mut bare = Folder::new();
    bare.tensors.retain(|name, _| name.contains("lora"));
    for name in bare.tensors.keys().cloned().collect::<Vec<_>>() {
        bare.rename(&name, &name.replace(".bert.", "."));
    }
    let adapter = bare.open().expect("a good folder");
    assert_eq!(adapter.architectures, [Architecture::Bert, Architecture::Roberta]);
    assert_eq!(adapter.modules.len(), 2);
    assert!(adapter.to_bank(&config("roberta"), &mut Parameters::new()).is_ok());
    let message =
        adapter.to_bank(&config("mpnet"), &mut Parameters::new()).expect_err("other names").to_string();
    assert_eq!(
        message,
        "the adapter is for bert or roberta, the model is mpnet: give the model that it was trained on"
    );
}

#[test]
fn half_precision_is_widened() {
    let mut folder = Folder::new();
    // 1.5 as f16 and as bf16
    let half = |dtype, bits: u16, count: usize, shape: &[usize]| {
        (dtype, shape.to_vec(), bits.to_le_bytes().repeat(count))
    };
    folder.tensors.insert(format!("{QUERY}.lora_A.weight"), half(Dtype::F16, 0x3e00, 16, &[2, HIDDEN]));
    folder.tensors.insert(format!("{QUERY}.lora_B.weight"), half(Dtype::BF16, 0x3fc0, 16, &[HIDDEN, 2]));
    let adapter = folder.open().expect("a good folder");
    assert_eq!((&adapter.pairs[1].a, &adapter.pairs[1].b), (&vec![1.5; 16], &vec![1.5; 16]));
}

#[test]
fn equal_pairs_are_one_and_almost_equal_ones_two() {
    let mut folder = Folder::new();
    folder.set(&format!("{QUERY}.lora_A.weight"), &[2, HIDDEN], 0);
    assert_eq!(folder.open().expect("good").pairs.len(), 2);
    folder.set(&format!("{QUERY}.lora_B.weight"), &[HIDDEN, 2], 10);
    let adapter = folder.open().expect("good");
    assert_eq!((adapter.pairs.len(), adapter.modules.len(), adapter.pairs[0].shared), (1, 2, true));
    folder.config["alpha_pattern"] = json!({r"layer\.1.*": 8});
    assert_eq!(folder.open().expect("good").pairs.len(), 2, "another strength is another pair");
}

/// The folder as PEFT writes it with `use_dora`.
fn dora() -> Folder {
    let mut folder = Folder::new();
    folder.config["use_dora"] = true.into();
    for layer in 0..2 {
        let module = format!("base_model.model.bert.encoder.layer.{layer}.attention.self.query");
        folder.set(&format!("{module}.lora_magnitude_vector"), &[HIDDEN], layer + 30);
    }
    folder
}

#[test]
fn magnitudes_are_read_from_pefts_files_and_written_to_both_forms() {
    let mut folder = dora();
    // Pairs that are equal are one, but each module keeps its magnitude.
    for half in ["lora_A", "lora_B"] {
        let name = format!("{QUERY}.{half}.weight").replace("layer.1", "layer.0");
        let tensor = folder.tensors[&name].clone();
        folder.tensors.insert(format!("{QUERY}.{half}.weight"), tensor);
    }
    let adapter = folder.open().expect("good");
    let query = |layer| ModuleId { layer, kind: ModuleKind::Query };
    assert_eq!((adapter.method, adapter.pairs.len()), (AdapterMethod::Dora, 1));
    assert!(adapter.pairs[0].shared);
    assert_eq!(adapter.vectors[&query(1)], numbers(HIDDEN, 31));
    assert_eq!(adapter.unique_parameters(), 4 * HIDDEN + 2 * HIDDEN);
    assert_eq!(adapter.written_parameters(), 8 * HIDDEN + 2 * HIDDEN);
    // As older versions of PEFT name it.
    folder
        .rename(&format!("{QUERY}.lora_magnitude_vector"), &format!("{QUERY}.lora_magnitude_vector.weight"));
    assert_eq!(folder.open().expect("good"), adapter);

    let out = tempfile::tempdir().expect("a folder");
    adapter.write_compact(&out.path().join(COMPACT_FILE)).expect("written");
    assert_eq!(AdapterFile::open(out.path()).expect("the compact form"), adapter);
    adapter.write_peft(out.path(), LAYERS).expect("written");
    assert_eq!(AdapterFile::open(out.path()).expect("PEFT's format"), adapter);
    assert_eq!(read_json(&out.path().join("adapter_config.json"))["use_dora"], true);
    let file = Checkpoint::open_file(&out.path().join("adapter_model.safetensors")).expect("readable");
    assert_eq!(file.shape(&format!("{QUERY}.lora_magnitude_vector")), Some(&[HIDDEN][..]));

    let mut parameters = Parameters::new();
    for (name, shape) in config("bert").head_weights(Head::of_sequences(2)) {
        parameters.add(&name, &shape, Group::Head, false, &vec![0.0; shape.iter().product()]);
    }
    let bank = adapter.to_bank(&config("bert"), &mut parameters).expect("fits");
    let again = AdapterFile::from_bank(&bank, &parameters, Architecture::Bert, 0.1);
    assert_eq!(
        (again.method, &again.pairs, &again.vectors),
        (AdapterMethod::Dora, &adapter.pairs, &adapter.vectors)
    );
    assert_eq!(bank.unique_parameters(), adapter.unique_parameters());
}

#[test]
fn magnitudes_that_are_missing_too_many_or_wrong_are_named() {
    let refuse = |spoil: &dyn Fn(&mut Folder), expected: &str| {
        let mut folder = dora();
        spoil(&mut folder);
        let message = folder.open().expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    };
    let magnitude = format!("{QUERY}.lora_magnitude_vector");
    let remove = |name: String| move |f: &mut Folder| drop(f.tensors.remove(&name));
    refuse(&remove(magnitude.clone()), "layer.1.attention.self.query has no lora_magnitude_vector, and");
    refuse(&|f| f.config["use_dora"] = false.into(), "adapter_config.json does not say use_dora: true");
    refuse(&|f| f.set(&magnitude, &[HIDDEN + 1], 3), "expected [8], a value for each row");
    refuse(&|f| f.set(&magnitude, &[1, HIDDEN], 3), "is [1, 8], expected [8]");
    refuse(
        &|f| {
            f.tensors.remove(&format!("{QUERY}.lora_A.weight"));
            f.tensors.remove(&format!("{QUERY}.lora_B.weight"));
        },
        "has lora_magnitude_vector but no lora_A and lora_B",
    );
    refuse(&|f| f.set(&format!("{magnitude}.weight"), &[HIDDEN], 3), "are for the same place");

    let out = tempfile::tempdir().expect("a folder");
    let mut adapter = dora().open().expect("good");
    let own = std::mem::take(&mut adapter.vectors);
    let message = adapter.to_bank(&config("bert"), &mut Parameters::new()).expect_err("no magnitudes");
    assert!(message.to_string().contains("query has 0 values of its own, and a dora adapter has 8 there"));
    let path = out.path().join(COMPACT_FILE);
    adapter.write_compact(&path).expect("written");
    let message = AdapterFile::open(&path).expect_err("no magnitudes").to_string();
    assert!(
        message.contains("tensor lora.query.0.magnitude is missing, which every dora adapter has"),
        "{message}"
    );
    adapter.vectors = own.into_iter().map(|(id, values)| (id, values[1..].to_vec())).collect();
    adapter.write_compact(&path).expect("written");
    let message = AdapterFile::open(&path).expect_err("too short").to_string();
    assert!(message.contains("lora.query.0.magnitude is [7], expected [8]"), "{message}");
}

#[test]
fn options_that_change_the_arithmetic_are_refused() {
    let refuse = |key: &'static str, value: Value, expected: &str| {
        Folder::refuse(|f| f.config[key] = value, expected);
    };
    refuse(
        "peft_type",
        "ADALORA".into(),
        "peft_type is \"ADALORA\", which is not supported; expected \"LORA\"",
    );
    refuse("peft_type", Value::Null, "peft_type is missing");
    refuse("task_type", "QUESTION_ANS".into(), "task_type is \"QUESTION_ANS\"");
    refuse("use_dora", "yes".into(), "use_dora is \"yes\", expected true or false");
    refuse("lora_bias", true.into(), "lora_bias is true");
    refuse("fan_in_fan_out", true.into(), "fan_in_fan_out is true");
    refuse("bias", "lora_only".into(), "bias is \"lora_only\", which is not supported; expected \"none\"");
    refuse("layer_replication", json!([[0, 2], [1, 3]]), "layer_replication is [[0,2],[1,3]]");
    refuse("modules_to_save", json!(["classifier", "embeddings"]), "modules_to_save has \"embeddings\"");
    refuse("init_lora_weights", "pissa_niter_4".into(), "init_lora_weights is \"pissa_niter_4\"");
    refuse("alora_invocation_tokens", json!([1, 2]), "alora_invocation_tokens is [1,2]");
    refuse("trainable_token_indices", json!([1]), "trainable_token_indices is [1]");
    refuse("a_new_trick", json!({"on": true}), "a_new_trick is {\"on\":true}");
    refuse("r", 0.into(), "r is 0, expected an integer from 1 up");
    refuse("lora_alpha", "16".into(), "lora_alpha is \"16\", expected a number");
    refuse("alpha_pattern", json!({"(": 1}), "alpha_pattern: the regular expression \"(\" cannot be read");
    refuse("rank_pattern", json!({"query": -1}), "rank_pattern: \"query\" is -1, expected an integer");
    refuse("rank_pattern", json!([1]), "rank_pattern is [1], expected an object");
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let (a, b) = (format!("{QUERY}.lora_A.weight"), format!("{QUERY}.lora_B.weight"));
    Folder::refuse(|f| drop(f.tensors.remove(&b)), "layer.1.attention.self.query has lora_A but no lora_B");
    Folder::refuse(|f| drop(f.tensors.remove(&a)), "layer.1.attention.self.query has lora_B but no lora_A");
    Folder::refuse(
        |f| f.set(&b, &[HIDDEN, 3], 1),
        "A is [2, 8] and B is [8, 3], expected (rank, in) and (out, rank)",
    );
    Folder::refuse(|f| f.set(&a, &[16], 1), "A is [16] and B is [8, 2]");
    Folder::refuse(|f| f.config["r"] = 4.into(), "attention.self.query has rank 2 (A is [2, 8]), ");
    Folder::refuse(
        |f| {
            f.set("base_model.model.bert.encoder.layer.0.attention.self.query.lora_magnitude_vector", &[8], 1)
        },
        "lora_magnitude_vector is there, but ",
    );
    Folder::refuse(
        |f| f.set("base_model.model.bert.pooler.dense.lora_A.weight", &[2, HIDDEN], 1),
        "bert.pooler.dense is not a linear layer of a bert block",
    );
    Folder::refuse(
        |f| {
            f.set(
                "base_model.model.roberta.encoder.layer.0.attention.self.key.lora_A.weight",
                &[2, HIDDEN],
                1,
            )
        },
        "roberta.encoder.layer.0.attention.self.key is not a linear layer of a bert block",
    );
    Folder::refuse(
        |f| f.rename(&a, a.strip_prefix("base_model.model.").expect("a prefix")),
        "does not begin with",
    );
    Folder::refuse(
        |f| f.set(&format!("{QUERY}.lora_A.default.weight"), &[2, HIDDEN], 1),
        "are for the same place",
    );
    Folder::refuse(
        |f| f.set("base_model.model.score.weight", &[2, HIDDEN], 1),
        "tensor base_model.model.score.weight",
    );
    Folder::refuse(|f| f.tensors.clear(), "it has no tensors");
    Folder::refuse(
        |f| f.tensors.get_mut(&a).expect("there").2[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
        "lora_A.weight has NaN at index 0",
    );
    Folder::refuse(
        |f| drop(f.tensors.insert(a.clone(), (Dtype::I8, vec![2, HIDDEN], vec![0; 16]))),
        "its type is I8, expected F32, F16, BF16 or F64",
    );
}

#[test]
fn files_that_are_missing_or_damaged_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refuse = |path: &Path, expected: &str| {
        let message = AdapterFile::open(path).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    };
    let (config, weights) =
        (folder.path().join("adapter_config.json"), folder.path().join("adapter_model.safetensors"));
    refuse(&folder.path().join("nowhere"), "nowhere: no such adapter");
    refuse(folder.path(), "not an adapter: adapter_config.json is not in this folder");
    Folder::new().write(folder.path());
    let good = std::fs::read(&weights).expect("readable");

    std::fs::write(&weights, &good[..good.len() - 1]).expect("written");
    refuse(folder.path(), "truncated");
    let mut oversized = good.clone();
    oversized[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&weights, &oversized).expect("written");
    refuse(folder.path(), "its header claims 18446744073709551615 bytes");

    std::fs::remove_file(&weights).expect("removed");
    refuse(folder.path(), "adapter_model.safetensors is not in this folder");
    std::fs::write(folder.path().join("adapter_model.bin"), b"pickle").expect("written");
    refuse(folder.path(), "only adapter_model.bin is here, a pickle");
    std::fs::write(&config, b"[1]").expect("written");
    refuse(folder.path(), "adapter_config.json: not a JSON object");

    let other = folder.path().join("other.safetensors");
    std::fs::write(&other, &good).expect("written");
    refuse(&other, "not an adapter; give a folder");
}

#[test]
fn a_tied_adapter_whose_module_has_no_vectors_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(COMPACT_FILE);
    let mut adapter = AdapterFile { method: AdapterMethod::TiedLora, ..bert() };
    let refuse = |adapter: &AdapterFile, expected: &str| {
        adapter.write_compact(&path).expect("written");
        let message = AdapterFile::open(&path).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    };
    refuse(&adapter, "tensor lora.query.0.inner is missing, which every tied-lora adapter has");
    // Modules that share a pair have vectors, and modules with a pair of their own have none.
    let own = |pair: &usize| numbers(adapter.pairs[*pair].rank + adapter.pairs[*pair].output, 7);
    let (shared, kept): (Vec<_>, Vec<_>) =
        adapter.modules.iter().partition(|(_, pair)| adapter.pairs[**pair].shared);
    let vectors = |modules: &[(&ModuleId, &usize)]| -> BTreeMap<ModuleId, Vec<f32>> {
        modules.iter().map(|(id, pair)| (**id, own(pair))).collect()
    };
    let (of_shared, of_kept) = (vectors(&shared), vectors(&kept));
    let first = *shared[0].0;
    adapter.vectors = of_shared;
    adapter.write_compact(&path).expect("written");
    assert_eq!(AdapterFile::open(&path).expect("whole"), adapter);
    let whole = adapter.vectors.clone();
    adapter.vectors.remove(&first);
    refuse(&adapter, &format!("tensor lora.{}.{}.inner is missing", first.kind.name(), first.layer));
    adapter.vectors = whole.into_iter().chain(of_kept).collect();
    refuse(&adapter, "is neither in the map nor part of a head");
}

/// Spoils the map of a compact file, or its tensors' shapes.
type Spoil<'a> = &'a dyn Fn(&mut Value, &mut BTreeMap<String, Vec<usize>>);

#[test]
fn a_compact_file_that_lies_is_refused() {
    const KEY: &str = "lora_drop.adapter";
    let refuse = |change: Spoil, expected: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(COMPACT_FILE);
        bert().write_compact(&path).expect("written");
        let file = std::fs::read(&path).expect("readable");
        let (_, header) = safetensors::SafeTensors::read_metadata(&file).expect("valid");
        let mut metadata = header.metadata().clone().expect("there");
        let mut map: Value = serde_json::from_str(&metadata[KEY]).expect("JSON");
        let mut shapes =
            header.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect();
        change(&mut map, &mut shapes);
        metadata.insert(KEY.to_string(), map.to_string());
        let zeros = vec![0; 4096];
        let views = shapes.iter().map(|(name, shape)| {
            let size = 4 * shape.iter().product::<usize>();
            (name, TensorView::new(Dtype::F32, shape.clone(), &zeros[..size]).expect("a valid tensor"))
        });
        std::fs::write(&path, safetensors::serialize(views, Some(metadata)).expect("valid"))
            .expect("written");
        let message = AdapterFile::open(&path).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    };
    refuse(
        &|map, _| map["version"] = 2.into(),
        "its format has version 2, but this program reads version 1; use a newer program",
    );
    refuse(&|map, _| *map = json!([]), "metadata lora_drop.adapter: invalid");
    refuse(&|map, _| map["architecture"] = "gemma".into(), "its architecture is \"gemma\"");
    refuse(&|map, _| map["pairs"][0]["layers"] = json!([0, 1]), "layer 1 query has two pairs");
    refuse(&|map, _| map["pairs"][0]["layers"] = json!([0, 0]), "layer 0 query has two pairs");
    refuse(&|map, _| map["pairs"][0]["layers"] = json!([]), "belongs to no layer");
    refuse(&|map, _| map["pairs"][0]["layers"] = json!([-1]), "metadata lora_drop.adapter");
    refuse(&|map, _| map["pairs"][0]["name"] = "lora.query.9".into(), "tensor lora.query.9.A is missing");
    refuse(&|map, _| map["pairs"][0]["name"] = map["pairs"][1]["name"].clone(), "occurs twice");
    refuse(
        &|map, _| drop(map["pairs"].as_array_mut().expect("a list").pop()),
        "is neither in the map nor part of a head",
    );
    refuse(&|map, _| map["surprise"] = 1.into(), "surprise");
    refuse(
        &|_, shapes| drop(shapes.insert("lora.query.1.A".to_string(), vec![0, 8])),
        "A is [0, 8] and B is [8, 2]",
    );
    refuse(&|_, shapes| drop(shapes.remove("lora.query.1.B")), "tensor lora.query.1.B is missing");
    refuse(
        &|_, shapes| drop(shapes.insert("extra.weight".to_string(), vec![1])),
        "tensor extra.weight is neither",
    );
}
