//! An adapter as stored in files of any format: pairs, the map from modules to pairs, head, labels.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lora_drop_transformer::{
    AdapterMethod, Architecture, Checkpoint, Group, Head, HeadKind, ModelConfig, ModuleId, ModuleKind,
    Parameter, Parameters, Source, Trained, json, token_ids,
};

use super::bank::{LoraBank, PairA, PairValues, pair_name, scale, transposed};
use super::{PeftFormat, Side, compact, peft, spec};
use crate::assignment::{Assignment, Owner};
use crate::folder::recover;
use crate::model::is_gguf;
use crate::settings::Task;
use crate::{Error, Result};

/// Prefix of this program's keys in a file's metadata.
pub(super) const METADATA_PREFIX: &str = "lora_drop.";
/// Metadata key of the labels (JSON), in PEFT's file and the compact file.
const LABELS_KEY: &str = "lora_drop.labels";
/// Metadata key of the tokens that end a learned text (JSON list of ids), in both files.
const END_TOKENS_KEY: &str = "lora_drop.end_tokens";

/// Error text for an adapter with a LoRA on the output layer, in commands that change adapters.
pub(crate) const LM_HEAD_IS_USED: &str = "it has a LoRA on lm_head; such adapters are evaluated, merged and exported, \
                                         but not trained further, scored or pruned";

/// A unique LoRA pair.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPair {
    /// The type of the modules that use it.
    pub kind: ModuleKind,
    /// Whether modules share the pair; in PEFT's files, whether several modules' pairs are
    /// identical.
    pub shared: bool,
    /// (rank, in)
    pub a: Vec<f32>,
    /// (out, rank)
    pub b: Vec<f32>,
    pub rank: usize,
    /// Input width of each adapted linear layer.
    pub input: usize,
    /// Output width of each adapted linear layer.
    pub output: usize,
    /// The scale is alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub alpha: f64,
}

impl StoredPair {
    /// B transposed, (rank, out), as the bank holds it.
    pub fn b_t(&self) -> Vec<f32> {
        transposed(&self.b, self.output, self.rank)
    }
}

/// One tensor of the head.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadWeight {
    /// (out, in) of a matrix, (out) of a bias.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// A trained adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// Architectures that the adapter may be for, at least one: Llama and Gemma 3 name their
    /// modules alike, and so do BERT and RoBERTa in an adapter of a bare encoder.
    pub architectures: Vec<Architecture>,
    pub method: AdapterMethod,
    pub pairs: Vec<StoredPair>,
    /// The adapted modules, each with the index of its pair in `pairs`.
    pub modules: BTreeMap<ModuleId, usize>,
    /// Each module's own vectors, concatenated in the method's order; empty if the method has none.
    pub vectors: BTreeMap<ModuleId, Vec<f32>>,
    /// Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
    pub rslora: bool,
    /// Probability of dropout on the adapters' inputs during training.
    pub lora_dropout: f64,
    /// Whether the head labels sequences or tokens.
    pub head_kind: HeadKind,
    /// By full names: `classifier.weight`, `bert.pooler.dense.bias`.
    pub head: BTreeMap<String, HeadWeight>,
    /// The meaning of the labels: `data::Labels` as JSON.
    pub labels: Option<serde_json::Value>,
    /// Special tokens that ended the training texts, the most frequent first; empty for an adapter
    /// with a head or from another program.
    pub end_tokens: Vec<u32>,
    /// The base model as named in the run; may be empty.
    pub base: String,
    /// Provenance from the file's metadata, such as `version`, `method`, `seed`.
    pub metadata: BTreeMap<String, String>,
}

impl AdapterFile {
    /// Reads an adapter: a folder with PEFT's files or, if there are none, the compact file; or one
    /// of these files. Nothing in a file is ignored.
    ///
    /// # Errors
    /// A key or tensor is missing, unknown or wrong; the message names it and the file. Or the
    /// adapter contains whole weights, which only [`Self::open_for`] can compare with the base's.
    pub fn open(path: &Path) -> Result<Self> {
        match Self::open_for(path, None)? {
            (file, None) => Ok(file),
            (_, Some(note)) => Err(Error::file(path, note)),
        }
    }

    /// Like [`Self::open`], with the base, whose embeddings and output layer PEFT may have saved
    /// with the adapter: they are left out if they equal the base's. Returns a note that says so
    /// or, without a base, that they were not compared.
    ///
    /// # Errors
    /// Those of [`Self::open`]; the saved embeddings or output layer differ from the base's.
    pub fn open_for(path: &Path, base: Option<&dyn Source>) -> Result<(Self, Option<String>)> {
        if !path.exists() {
            return Err(Error::file(path, "no such adapter"));
        }
        if path.is_dir() {
            recover(path)?;
            let compact_file = path.join(compact::COMPACT_FILE);
            if path.join(peft::CONFIG_FILE).exists() || !compact_file.exists() {
                return peft::read(path, base);
            }
            return Ok((compact::read(&compact_file)?, None));
        }
        if is_gguf(path) {
            let problem =
                "a GGUF file, which is for llama.cpp and cannot be read as an adapter; give the run's folder";
            return Err(Error::file(path, problem));
        }
        if Checkpoint::open_file(path)?.metadata().contains_key(compact::MAP_KEY) {
            return Ok((compact::read(path)?, None));
        }
        match path.parent() {
            Some(folder) if path.ends_with(peft::WEIGHTS_FILE) => peft::read(folder, base),
            _ => {
                let (config, weights) = (peft::CONFIG_FILE, peft::WEIGHTS_FILE);
                let compact = compact::COMPACT_FILE;
                let problem =
                    format!("not an adapter; give a folder with {config} and {weights}, or an {compact}");
                Err(Error::file(path, problem))
            }
        }
    }

    /// Builds the adapter from a bank, with the tensors of [`Group::Head`] in `parameters` as the
    /// head. The caller sets `head_kind`, `labels`, `end_tokens`, `base` and `metadata`. A method
    /// without a file format (AdaLoRA) becomes plain LoRA.
    pub fn from_bank(
        bank: &LoraBank,
        parameters: &Parameters,
        architecture: Architecture,
        lora_dropout: f64,
    ) -> Self {
        let pairs = bank
            .pairs()
            .iter()
            .map(|pair| StoredPair {
                kind: pair.kind,
                shared: pair.shared,
                a: bank.a(pair, parameters),
                b: bank.b(pair, parameters),
                rank: pair.lora.rank,
                input: pair.input,
                output: pair.output,
                alpha: pair.alpha,
            })
            .collect();
        let of_head = |p: &&Parameter| p.group == Group::Head;
        let head = parameters.list().iter().filter(of_head).map(|p| {
            let values = parameters.values()[p.range.clone()].to_vec();
            (p.name.clone(), HeadWeight { shape: p.shape.clone(), values })
        });
        let file = AdapterFile {
            architectures: vec![architecture],
            method: bank.method(),
            pairs,
            vectors: (bank.modules().keys())
                .filter_map(|&id| Some((id, bank.vectors(id, parameters)?)))
                .collect(),
            modules: bank.modules().iter().filter_map(|(id, pair)| pair.map(|pair| (*id, pair))).collect(),
            rslora: bank.rslora(),
            lora_dropout,
            head_kind: HeadKind::default(),
            head: head.collect(),
            labels: None,
            end_tokens: Vec::new(),
            base: String::new(),
            metadata: BTreeMap::new(),
        };
        if spec(file.method).peft == PeftFormat::Never { file.folded(None).into_owned() } else { file }
    }

    /// Adds the pairs to `parameters` and returns their bank; vectors that scale B are multiplied
    /// into B.
    ///
    /// # Errors
    /// The adapter is for another architecture, has a layer that the model does not have, or a pair
    /// does not fit its linear layer.
    pub fn to_bank(&self, config: &ModelConfig, parameters: &mut Parameters) -> Result<LoraBank> {
        self.check_fit(config)?;
        let plain = self.folded(Some(config));
        let mut bank = LoraBank::empty(plain.method, plain.rslora);
        let (first, names) = (plain.first_with_same_a(), plain.pair_names());
        for (number, pair) in plain.pairs.iter().enumerate() {
            let b_t = pair.b_t();
            let StoredPair { kind, shared, ref a, rank, input, output, alpha, .. } = *pair;
            let a = match first[number] {
                own if own == number => PairA::New(&names[number], a),
                other => PairA::Shared(bank.pairs()[other].lora.a),
            };
            let values = PairValues { a, b_t: &b_t, input, output, rank, alpha };
            bank.add(kind, shared, &names[number], values, parameters);
        }
        for (&id, &pair) in &plain.modules {
            bank.assign(id, Some(pair));
        }
        // After folding, only vectors that do not scale B are left.
        for (&id, values) in &plain.vectors {
            let pair = &plain.pairs[plain.modules[&id]];
            for (vector, values) in spec(plain.method).split(values, pair.rank, pair.output) {
                bank.add_vector(id, vector.name, values, parameters);
            }
        }
        Ok(bank)
    }

    /// Returns which part of the model trains as the head: PEFT's users may have trained BERT's
    /// pooler with the classifier.
    pub(crate) fn trained(&self, config: &ModelConfig) -> Trained {
        let body = format!("{}.", config.architecture.prefix());
        match self.head.keys().any(|name| name.starts_with(&body)) {
            true => Trained::HeadAndPooler,
            false => Trained::Head,
        }
    }

    /// Copies the head into the tensors of [`Group::Head`], whose names and shapes must match.
    ///
    /// # Errors
    /// Tensors are missing, too many, or of another shape; the message lists them.
    pub fn load_head(&self, parameters: &mut Parameters) -> Result<()> {
        let mut problems = Vec::new();
        let mut known = BTreeSet::new();
        let wanted: Vec<_> = parameters.list().iter().filter(|p| p.group == Group::Head).cloned().collect();
        for Parameter { name, shape, .. } in &wanted {
            known.insert(name);
            match (self.head.get(name), parameters.find(name)) {
                (Some(found), Some(id)) if found.shape == *shape => {
                    parameters.value_mut(id).copy_from_slice(&found.values);
                }
                (Some(found), _) => {
                    problems.push(format!("{name} is {:?}, expected {shape:?}", found.shape));
                }
                (None, _) => problems.push(format!("{name} is missing")),
            }
        }
        let unknown = self.head.keys().filter(|name| !known.contains(name));
        problems.extend(unknown.map(|name| format!("{name} has no place in the model")));
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Input(format!("the adapter's head does not fit the model: {}", problems.join("; "))))
    }

    /// Checks that every pair fits its linear layer; errors as in [`Self::to_bank`].
    pub(crate) fn check_fit(&self, config: &ModelConfig) -> Result<()> {
        let refuse = |problem: String| Err(Error::Input(problem));
        let architecture = config.architecture;
        if !self.architectures.contains(&architecture) {
            let own: Vec<_> = self.architectures.iter().map(|own| own.name()).collect();
            return refuse(format!(
                "the adapter is for {}, the model is {}: give the model that it was trained on",
                own.join(" or "),
                architecture.name()
            ));
        }
        for (id, &pair) in &self.modules {
            let pair = &self.pairs[pair];
            let name = architecture.module_path(*id);
            let on_output = *id == ModuleId::LM_HEAD && architecture.is_decoder();
            if let Some(head) = self.head.keys().next().filter(|_| on_output) {
                return refuse(format!(
                    "the adapter has a LoRA on {name} and a head for labels ({head}), and a model has only one of the two"
                ));
            }
            if !on_output && architecture.kinds().all(|kind| kind != id.kind) {
                let (kind, architecture) = (id.kind.name(), architecture.name());
                return refuse(format!(
                    "the adapter has a LoRA on {kind}, which a {architecture} block does not have"
                ));
            }
            if id.layer >= config.layers {
                return refuse(format!("the adapter has {name}, the model has {} layers", config.layers));
            }
            let (output, input) = config.linear_shape(id.kind);
            // VeRA's A in PEFT's file is as wide as the widest layer.
            let wide = spec(self.method).peft == PeftFormat::Vera && pair.input > input;
            if pair.output != output || pair.input != input && !wide {
                let base = if self.base.is_empty() { String::new() } else { format!(" ({})", self.base) };
                return refuse(format!(
                    "the adapter's {name} is for a weight of {:?}, the model's is {:?}: it belongs to another model{base}",
                    [pair.output, pair.input],
                    [output, input],
                ));
            }
            let seen = self.vectors.get(id).map_or(0, Vec::len);
            let wanted = spec(self.method).vector_values(pair.shared, pair.rank, output);
            if seen != wanted {
                return refuse(format!(
                    "the adapter's {name} has {seen} values of its own, and a {} adapter has {wanted} there",
                    self.method.name()
                ));
            }
        }
        Ok(())
    }

    /// Returns the head's kind and number of outputs.
    ///
    /// # Errors
    /// The adapter does not fit the model (see [`Self::to_bank`]), or has no head for its
    /// architecture.
    pub fn head(&self, config: &ModelConfig) -> Result<Head> {
        self.check_fit(config)?;
        let kind = self.head_kind;
        if kind == HeadKind::Token {
            check_token_head(config)?;
        }
        let (name, _) = config.head_weights(Head { kind, outputs: 1 }).pop().unwrap_or_default();
        match self.head.get(&name).and_then(|weight| weight.shape.first()) {
            Some(&outputs) if outputs > 0 => Ok(Head { kind, outputs }),
            _ => {
                let seen: Vec<&str> = self.head.keys().map(String::as_str).collect();
                let seen = if seen.is_empty() { "no head at all".to_string() } else { seen.join(", ") };
                let problem =
                    format!("{name} is missing, expected in an adapter for classification (seen: {seen})");
                Err(Error::Input(format!("the adapter's {problem}")))
            }
        }
    }

    /// The factor s in W x + s B A x.
    pub fn scale(&self, pair: &StoredPair) -> f64 {
        scale(pair.alpha, pair.rank, self.rslora)
    }

    /// Number of values in the unique pairs, as the paper counts, and in the modules' own vectors.
    /// An A that several pairs share counts once, and constants do not count.
    pub fn unique_parameters(&self) -> usize {
        if spec(self.method).peft == PeftFormat::Vera {
            return self.vector_parameters();
        }
        let first = self.first_with_same_a();
        let values = |(number, pair): (usize, &StoredPair)| {
            pair.b.len() + if first[number] == number { pair.a.len() } else { 0 }
        };
        self.pairs.iter().enumerate().map(values).sum::<usize>() + self.vector_parameters()
    }

    /// For each pair, the first pair of its type whose A is equal bit for bit; it may be the pair
    /// itself.
    pub(super) fn first_with_same_a(&self) -> Vec<usize> {
        let facts = |pair: &StoredPair| (pair.kind, pair.rank, pair.input);
        let same = |x: &StoredPair, y: &StoredPair| facts(x) == facts(y) && same_bits(&x.a, &y.a);
        let mut unique: Vec<usize> = Vec::new();
        let first = |(number, pair): (usize, &StoredPair)| {
            let known = unique.iter().copied().find(|&known| same(&self.pairs[known], pair));
            known.unwrap_or_else(|| {
                unique.push(number);
                number
            })
        };
        self.pairs.iter().enumerate().map(first).collect()
    }

    /// Number of values if every adapted module had its own pair, as in a file of plain LoRA.
    pub fn written_parameters(&self) -> usize {
        let pair = |&pair: &usize| self.pairs[pair].a.len() + self.pairs[pair].b.len();
        self.modules.values().map(pair).sum::<usize>() + self.vector_parameters()
    }

    fn vector_parameters(&self) -> usize {
        self.vectors.values().map(Vec::len).sum()
    }

    /// Returns the adapter with other ranks and values in its pairs, and the same scales. `change`
    /// maps a pair's index to its new rank, A (rank, in) and Bᵀ (rank, out), or to `None` to keep
    /// the pair. Rank 0 removes the pair, which leaves its modules without a LoRA.
    ///
    /// Each pair's alpha follows its rank, so readers that honour PEFT's rank and alpha patterns
    /// and readers that ignore both apply the same scale.
    pub(crate) fn with_pairs(&self, change: impl Fn(usize) -> Option<(usize, Vec<f32>, Vec<f32>)>) -> Self {
        let (mut pairs, mut places) = (Vec::new(), Vec::new());
        for (number, pair) in self.pairs.iter().enumerate() {
            places.push(pairs.len());
            match change(number) {
                None => pairs.push(pair.clone()),
                Some((0, ..)) => places[number] = usize::MAX,
                Some((rank, a, b_t)) => pairs.push(StoredPair {
                    b: transposed(&b_t, rank, pair.output),
                    a,
                    rank,
                    alpha: self.scale(pair) / scale(1.0, rank, self.rslora),
                    ..pair.clone()
                }),
            }
        }
        let kept =
            |(id, &pair): (&ModuleId, &usize)| (places[pair] < pairs.len()).then(|| (*id, places[pair]));
        let modules: BTreeMap<ModuleId, usize> = self.modules.iter().filter_map(kept).collect();
        let vectors = self.vectors.iter().filter(|(id, _)| modules.contains_key(id));
        let vectors = vectors.map(|(id, values)| (*id, values.clone())).collect();
        self.with_modules(self.method, pairs, modules, vectors)
    }

    /// Returns the adapter with its method, pairs, modules and own vectors replaced.
    pub(super) fn with_modules(
        &self,
        method: AdapterMethod,
        pairs: Vec<StoredPair>,
        modules: BTreeMap<ModuleId, usize>,
        vectors: BTreeMap<ModuleId, Vec<f32>>,
    ) -> Self {
        // Field by field, because `..self.clone()` would copy the old pairs, perhaps hundreds of
        // megabytes.
        AdapterFile {
            architectures: self.architectures.clone(),
            method,
            pairs,
            modules,
            vectors,
            rslora: self.rslora,
            lora_dropout: self.lora_dropout,
            head_kind: self.head_kind,
            head: self.head.clone(),
            labels: self.labels.clone(),
            end_tokens: self.end_tokens.clone(),
            base: self.base.clone(),
            metadata: self.metadata.clone(),
        }
    }

    /// Returns which modules own their pair and which share one, and the ranks that differ from the
    /// first pair's. Modules without a LoRA are not listed.
    pub fn assignment(&self) -> Assignment {
        let owner = |pair: usize| if self.pairs[pair].shared { Owner::Shared } else { Owner::Own };
        let rank = |(id, &pair): (&ModuleId, &usize)| (*id, self.pairs[pair].rank);
        Assignment {
            owners: self.modules.iter().map(|(id, &pair)| (*id, owner(pair))).collect(),
            ranks: self.modules.iter().map(rank).filter(|(_, rank)| *rank != self.pairs[0].rank).collect(),
        }
    }

    /// Returns a unique name for each pair: `lora.query.3` for a module's own pair,
    /// `lora.query.shared` for a shared one. Further shared pairs of a type, which other programs'
    /// files may have, end in their first layer's number.
    pub(super) fn pair_names(&self) -> Vec<String> {
        let layers = self.layers();
        let mut shared = BTreeSet::new();
        let name = |(number, pair): (usize, &StoredPair)| {
            let first = layers[number].first().copied().unwrap_or(0);
            let name = pair_name(ModuleId { layer: first, kind: pair.kind }, pair.shared);
            if pair.shared && !shared.insert(pair.kind) { format!("{name}.{first}") } else { name }
        };
        self.pairs.iter().enumerate().map(name).collect()
    }

    /// Returns the layers that use each pair, ascending.
    pub(super) fn layers(&self) -> Vec<Vec<usize>> {
        let mut layers = vec![Vec::new(); self.pairs.len()];
        for (id, &pair) in &self.modules {
            layers[pair].push(id.layer);
        }
        layers
    }

    /// Returns labels, end tokens and provenance as a file's metadata.
    pub(super) fn file_metadata(&self) -> BTreeMap<String, String> {
        let own = self.metadata.iter().map(|(k, v)| (format!("{METADATA_PREFIX}{k}"), v.clone()));
        let labels = self.labels.iter().map(|labels| (LABELS_KEY.to_string(), labels.to_string()));
        let ends = Some(&self.end_tokens).filter(|ends| !ends.is_empty());
        let ends = ends.map(|ends| (END_TOKENS_KEY.to_string(), serde_json::json!(ends).to_string()));
        // Other safetensors readers require the framework whose layout the tensors have.
        own.chain(labels).chain(ends).chain([("format".to_string(), "pt".to_string())]).collect()
    }
}

/// Returns the configuration of a base with the adapter merged: an output layer with a LoRA is no
/// longer tied to the embeddings.
pub(crate) fn untied<'a>(config: &'a ModelConfig, adapter: &AdapterFile) -> Cow<'a, ModelConfig> {
    if !config.tied || !adapter.modules.contains_key(&ModuleId::LM_HEAD) {
        return Cow::Borrowed(config);
    }
    let mut config = config.clone();
    config.tied = false;
    config.raw.insert("tie_word_embeddings".into(), false.into());
    Cow::Owned(config)
}

/// Checks that transformers has a token classification model of this architecture.
///
/// # Errors
/// `Error::Usage` if it has none.
pub(crate) fn check_token_head(config: &ModelConfig) -> Result<()> {
    if config.architecture.token_head().is_some() {
        return Ok(());
    }
    let with: Vec<&str> =
        Architecture::ALL.into_iter().filter(|a| a.token_head().is_some()).map(Architecture::name).collect();
    Err(Error::Usage(format!(
        "{} has no head for tokens in transformers; token classification is for models of the kinds {}",
        config.model_type,
        with.join(", ")
    )))
}

/// Returns the head's kind, according to the labels in an adapter's file.
pub(super) fn head_kind(labels: Option<&serde_json::Value>) -> HeadKind {
    let kind = labels.and_then(|labels| labels["kind"].as_str());
    if kind == Some(Task::TokenClassification.name()) { HeadKind::Token } else { HeadKind::Sequence }
}

/// Whether values are equal bit for bit.
pub(super) fn same_bits(x: &[f32], y: &[f32]) -> bool {
    x.iter().map(|v| v.to_bits()).eq(y.iter().map(|v| v.to_bits()))
}

/// Metadata of an adapter file other than the map of pairs.
pub(super) struct AdapterMetadata {
    pub labels: Option<serde_json::Value>,
    pub end_tokens: Vec<u32>,
    /// Provenance.
    pub metadata: BTreeMap<String, String>,
}

impl AdapterMetadata {
    /// Reads a file's metadata, except the key `except`.
    pub fn read(checkpoint: &Checkpoint, path: &Path, except: &str) -> Result<Self> {
        let value = |key: &str, text: &str| -> Result<serde_json::Value> {
            json::from_str(text).map_err(|e| Error::file(path, format!("metadata {key}: {e}")))
        };
        let mut read = AdapterMetadata { labels: None, end_tokens: Vec::new(), metadata: BTreeMap::new() };
        for (key, text) in checkpoint.metadata() {
            if key == LABELS_KEY {
                read.labels = Some(value(key, text)?);
            } else if key == END_TOKENS_KEY {
                let wrong = || format!("metadata {key} is {text:?}, expected a list of tokens' numbers");
                read.end_tokens = token_ids(&value(key, text)?).ok_or_else(|| Error::file(path, wrong()))?;
            } else if let Some(name) = key.strip_prefix(METADATA_PREFIX).filter(|_| key != except) {
                read.metadata.insert(name.to_string(), text.clone());
            }
        }
        Ok(read)
    }
}

/// Reads an adapter's tensor, stored as f16, bf16, f32 or f64; returns its shape and values.
///
/// # Errors
/// The tensor is missing, of another type, or has a value that is not finite.
pub(super) fn read_tensor(
    checkpoint: &Checkpoint,
    path: &Path,
    name: &str,
) -> Result<(Vec<usize>, Vec<f32>)> {
    let tensor = checkpoint.tensor(name)?;
    if let Some(index) = tensor.iter().position(|v| !v.is_finite()) {
        let value = tensor[index];
        let problem =
            format!("tensor {name} has {value} at index {index}; the training that wrote it diverged");
        return Err(Error::file(path, problem));
    }
    Ok((tensor.shape().to_vec(), tensor.to_vec()))
}

/// Returns (rank, in, out) of a pair, from the shapes of A and B.
pub(super) fn pair_shape(path: &Path, name: &str, a: &[usize], b: &[usize]) -> Result<(usize, usize, usize)> {
    match (a, b) {
        (&[rank, input], &[output, rank_b]) if rank == rank_b && rank > 0 && input > 0 && output > 0 => {
            Ok((rank, input, output))
        }
        _ => {
            let problem = format!("{name}: A is {a:?} and B is {b:?}, expected (rank, in) and (out, rank)");
            Err(Error::file(path, problem))
        }
    }
}

/// Reads one of a module's own vectors and checks its length.
pub(super) fn read_vector(
    checkpoint: &Checkpoint,
    path: &Path,
    name: &str,
    side: Side,
    pair: &StoredPair,
) -> Result<Vec<f32>> {
    let (shape, values) = read_tensor(checkpoint, path, name)?;
    let wanted = side.len(pair.rank, pair.output);
    if shape != [wanted] {
        let of = if side == Side::Inner { "column" } else { "row" };
        let expected = format!("expected {:?}, a value for each {of} of its module's B", [wanted]);
        return Err(Error::file(path, format!("tensor {name} is {shape:?}, {expected}")));
    }
    Ok(values)
}

/// Whether a tensor of this name can belong to a head of one of these architectures.
pub(super) fn is_head_tensor(architectures: &[Architecture], name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")) else {
        return false;
    };
    let has = |a: &Architecture| a.head_linears().contains(&stem) || a.token_head() == Some(stem);
    architectures.iter().any(has)
}
