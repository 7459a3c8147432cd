//! A model's folder as transformers loads it: the base with an adapter merged into its weights, or
//! a fully trained model.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use lora_drop_transformer::gguf::Gguf;
use lora_drop_transformer::{HeadKind, ModelConfig, ModuleId, Source, Stored, Weights, token_ids};
use serde_json::{Map, Value, json};

use super::file::{AdapterFile, HeadWeight, StoredPair, untied};
use super::spec;
use super::tensors::{self, FloatType, NamedShape};
use crate::data::Labels;
use crate::data::gguf_tokenizer::{WRITTEN_FILES, write_tokenizer};
use crate::files::{json_object, write_atomically, write_json};
use crate::folder::FILES_KEY;
use crate::{Cancel, Error, Result};

/// The tokenizer files of all architectures, and the settings for generation; a model has some of
/// them.
pub const TOKENIZER_FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
    GENERATION_FILE,
];

const GENERATION_FILE: &str = "generation_config.json";
const EOS_KEY: &str = "eos_token_id";

/// A base's weights with the adapted weight in place of each adapted W (for LoRA W + s · B A), and
/// the adapter's head.
pub(crate) struct MergedWeights<'a> {
    base: &'a dyn Source,
    names: Weights<'a>,
    /// The architecture's prefix with its dot: `bert.`
    prefix: String,
    adapter: Cow<'a, AdapterFile>,
    /// Adapted modules by the full names of their weights.
    modules: BTreeMap<String, ModuleId>,
    /// Whether the base's output layer is tied to its embeddings.
    tied: bool,
}

/// A decoder's output layer, and its embedding table without the prefix.
const OUTPUT: &str = "lm_head.weight";
const WORDS: &str = "embed_tokens.weight";

impl<'a> MergedWeights<'a> {
    /// Checks the adapter against the base; `known` are the weights of the merged model, `config`
    /// is the base's.
    ///
    /// # Errors
    /// The adapter does not fit the model, or has a weight of a head that is not among `known`.
    pub fn new(
        base: &'a dyn Source,
        config: &ModelConfig,
        adapter: &'a AdapterFile,
        known: &[NamedShape],
    ) -> Result<Self> {
        adapter.check_fit(config)?;
        if let Some(name) = adapter.head.keys().find(|name| !known.iter().any(|(known, _)| known == *name)) {
            return Err(Error::Input(format!("the adapter's {name} has no place in the model")));
        }
        let architecture = config.architecture;
        let adapter = adapter.folded(Some(config));
        let path = |id: &ModuleId| (format!("{}.weight", architecture.module_path(*id)), *id);
        let modules = adapter.modules.keys().map(path).collect();
        Ok(MergedWeights {
            base,
            names: Weights::new(base, architecture.prefix()),
            prefix: format!("{}.", architecture.prefix()),
            adapter,
            modules,
            tied: config.tied,
        })
    }

    /// Returns the base's name of the weight with this full name.
    fn resolve(&self, name: &str) -> Option<String> {
        match name.strip_prefix(&self.prefix) {
            Some(inner) => self.names.resolve(inner),
            // In a tied base, the embedding table is the output layer.
            None if self.tied && name == OUTPUT => self.names.resolve(WORDS),
            None => self.base.contains(name).then(|| name.to_string()),
        }
    }

    /// Returns the type in which the base stores the weight of this full name, f32 for quantized
    /// blocks; `None` if only the adapter has it.
    fn storage(&self, name: &str) -> Option<FloatType> {
        let storage = self.base.storage(&self.resolve(name)?);
        Some(storage.and_then(FloatType::from_storage).unwrap_or(FloatType::F32))
    }

    /// Returns the weight of this full name in f32, whatever its storage in the base; sums are
    /// computed in f64.
    ///
    /// # Errors
    /// It is missing, has another shape than `shape`, or is not finite before or after merging.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>> {
        if let Some(HeadWeight { shape: seen, values }) = self.adapter.head.get(name) {
            check_shape("the adapter", name, seen, shape)?;
            return Ok(Cow::Borrowed(values));
        }
        let place = self.base.place();
        let Some(found) = self.resolve(name) else {
            return Err(Error::Input(format!("{name} is neither in the adapter nor in {}", place.display())));
        };
        let seen = self.base.shape(&found).unwrap_or_default();
        check_shape(&place.display().to_string(), name, seen, shape)?;
        let mut values = match self.base.stored(&found)? {
            Stored::F32(tensor) => tensor.to_vec(),
            Stored::Blocks(matrix) => {
                let mut values = vec![0.0; shape.iter().product()];
                matrix.kind().widen(matrix.bytes(), &mut values);
                values
            }
        };
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::file(place, format!("tensor {found} has the value {value}")));
        }
        if let Some(id) = self.modules.get(name) {
            let vectors = self.adapter.vectors.get(id).map_or(&[][..], Vec::as_slice);
            self.merge(&mut values, &self.adapter.pairs[self.adapter.modules[id]], vectors);
            if let Some(value) = values.iter().find(|v| !v.is_finite()) {
                return Err(Error::file(
                    place,
                    format!(
                        "tensor {found} with the adapter added has the value {value}; the adapter belongs to \
                             another model"
                    ),
                ));
            }
        }
        Ok(Cow::Owned(values))
    }

    /// Replaces `weight`, (out, in), by the adapted weight, computed in f64.
    fn merge(&self, weight: &mut [f32], pair: &StoredPair, vectors: &[f32]) {
        let scale = self.adapter.scale(pair);
        let finish = spec(self.adapter.method).merge;
        let mut sum = vec![0.0f64; pair.input];
        let rows = weight.chunks_exact_mut(pair.input).zip(pair.b.chunks_exact(pair.rank));
        for (number, (row, b)) in rows.enumerate() {
            sum.fill(0.0);
            for (&b, a) in b.iter().zip(pair.a.chunks_exact(pair.input)) {
                for (sum, &a) in sum.iter_mut().zip(a) {
                    *sum += f64::from(b) * f64::from(a);
                }
            }
            for (w, sum) in row.iter().zip(&mut sum) {
                *sum = f64::from(*w) + scale * *sum;
            }
            finish(&mut sum, vectors.get(number).map_or(1.0, |value| f64::from(*value)));
            for (w, sum) in row.iter_mut().zip(&sum) {
                *w = *sum as f32;
            }
        }
    }
}

/// Writes the base with the adapter merged (for LoRA W + s · B A in place of each adapted W), and
/// the adapter's head, as a folder for transformers.
///
/// `labels` say what the head's outputs mean; None for a decoder that predicts tokens. The head
/// comes from the adapter, or from the base if the adapter has none. Each weight is written in
/// `dtype`, or without it in the type in which the base stores it (f32 for quantized blocks); a
/// weight that only the adapter has is written in the type of most of the base's values. Sums are
/// computed in f64 and rounded once to f32, then to that type. Tensors are written one by one, so
/// little more than the largest is in memory. Weights that a model for classification does not use
/// (position_ids, pre-training heads) are left out. Existing files in `output` are replaced.
///
/// # Errors
/// The adapter does not fit the model, a weight of the base or of the head is missing, of another
/// shape or too large for its type, or `output` is the base's own folder.
pub fn merge(
    base: &dyn Source,
    config: &ModelConfig,
    adapter: &AdapterFile,
    output: &Path,
    labels: Option<&Labels>,
    dtype: Option<FloatType>,
    cancel: &Cancel,
) -> Result<()> {
    let untied = untied(config, adapter);
    let known = weight_shapes(&untied, labels);
    let merged = MergedWeights::new(base, config, adapter, &known)?;
    let main = main_type(&known, |name| merged.storage(name));
    let types = |name: &str| dtype.or_else(|| merged.storage(name)).unwrap_or(main);
    write_checkpoint(&untied, base.place(), output, labels, &adapter.end_tokens, &types, |name, shape| {
        cancel.check()?;
        merged.weight(name, shape)
    })
}

/// Returns the type of most values, among the tensors that have a type; f32 if none has.
fn main_type(tensors: &[NamedShape], of: impl Fn(&str) -> Option<FloatType>) -> FloatType {
    let mut values = BTreeMap::new();
    for (name, shape) in tensors {
        if let Some(kind) = of(name) {
            *values.entry(kind).or_insert(0) += shape.iter().product::<usize>();
        }
    }
    let most = values.into_iter().max_by_key(|&(_, count)| count);
    most.map_or(FloatType::F32, |(kind, _)| kind)
}

/// Writes model.safetensors, config.json and the tokenizer's files into `output`, which is created
/// if needed.
///
/// `values` returns each weight by its full name
/// (`bert.encoder.layer.0.attention.self.query.weight`, `classifier.bias`) and shape, one after the
/// other, and `types` the type in which it is written. The tokenizer is copied from `model`, a
/// folder or a GGUF file; `labels` are those of [`merge`]. The tokens `ends`, which the model has
/// learned to end a text with, are added to `eos_token_id` of generation_config.json, where
/// transformers looks for them, and of config.json. The latter is written last, so a folder that
/// has one is complete. It names the dtype of most values.
///
/// # Errors
/// `output` is the model's own folder; those of `values`, of the tokenizer and of the disk.
pub fn write_checkpoint<'a>(
    config: &ModelConfig,
    model: &Path,
    output: &Path,
    labels: Option<&Labels>,
    ends: &[u32],
    types: &dyn Fn(&str) -> FloatType,
    values: impl FnMut(&str, &[usize]) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io(path, e));
    if real(output)? == real(model)? {
        return Err(Error::Usage(format!(
            "{} is the base model's own folder; give another one for the output",
            output.display()
        )));
    }
    let tokenizer: Vec<&str> = match model.is_dir() {
        true => TOKENIZER_FILES.into_iter().filter(|name| model.join(name).is_file()).collect(),
        false => WRITTEN_FILES.to_vec(),
    };
    let created = Some(GENERATION_FILE).filter(|name| !ends.is_empty() && !tokenizer.contains(name));
    let files: Vec<&str> =
        tokenizer.iter().copied().chain(created).chain(["config.json", "model.safetensors"]).collect();
    let metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        (FILES_KEY.to_string(), json!(files).to_string()),
    ]);
    let known = weight_shapes(config, labels);
    tensors::write(&output.join("model.safetensors"), &metadata, &known, types, values)?;
    if model.is_dir() {
        for name in tokenizer {
            let from = model.join(name);
            let mut file = File::open(&from).map_err(|e| Error::io(&from, e))?;
            write_atomically(&output.join(name), |out| io::copy(&mut file, out).map(drop))?;
        }
    } else {
        write_tokenizer(&Gguf::open(model)?, output)?;
    }
    let mut merged = merged_config(config, labels, main_type(&known, |name| Some(types(name))));
    if !ends.is_empty() {
        let path = output.join(GENERATION_FILE);
        let mut generation = json_object(&path).map_err(|e| Error::io(&path, e))?.unwrap_or_default();
        let own = [&generation, &merged].into_iter().find_map(|keys| token_ids(keys.get(EOS_KEY)?));
        let mut all = own.unwrap_or_default();
        for end in ends {
            if !all.contains(end) {
                all.push(*end);
            }
        }
        let value = if let [end] = all[..] { json!(end) } else { json!(all) };
        merged.insert(EOS_KEY.to_string(), value.clone());
        generation.insert(EOS_KEY.to_string(), value);
        write_json(&path, &generation)?;
    }
    write_json(&output.join("config.json"), &merged)
}

/// Returns full name and shape of every weight, in the model's order: the model with a head for
/// `labels` or, without labels, the decoder.
pub(crate) fn weight_shapes(config: &ModelConfig, labels: Option<&Labels>) -> Vec<NamedShape> {
    let prefix = config.architecture.prefix();
    let (body, after) = match labels.map(Labels::head) {
        Some(head) => (config.body_weights(head), config.head_weights(head)),
        None => (config.weights(), config.output_weights()),
    };
    body.into_iter().map(|(name, shape)| (format!("{prefix}.{name}"), shape)).chain(after).collect()
}

fn check_shape(whose: &str, name: &str, seen: &[usize], expected: &[usize]) -> Result<()> {
    if seen == expected {
        return Ok(());
    }
    Err(Error::Input(format!("{whose}: {name} is {seen:?}, expected {expected:?}")))
}

/// Returns the base's config.json with the class of the new model, a classifier's labels, and the
/// dtype.
fn merged_config(config: &ModelConfig, labels: Option<&Labels>, dtype: FloatType) -> Map<String, Value> {
    let mut map = config.raw.clone();
    let head = match labels.map(|labels| labels.head().kind) {
        Some(HeadKind::Sequence) => "SequenceClassification",
        Some(HeadKind::Token) => "TokenClassification",
        None => "CausalLM",
    };
    let class = format!("{}For{head}", config.class());
    // The older and the newer key; a GGUF file's configuration has neither.
    let known = ["torch_dtype", "dtype"].into_iter().filter(|key| map.contains_key(*key)).collect::<Vec<_>>();
    for key in if known.is_empty() { vec!["torch_dtype"] } else { known } {
        map.insert(key.to_string(), dtype.torch_name().into());
    }
    map.insert("architectures".to_string(), vec![class].into());
    let Some(labels) = labels else { return map };
    // transformers needs a label name even for the single output of a regression.
    let regression = ["LABEL_0".to_string()];
    let names = if labels.is_regression() { &regression } else { labels.names() };
    let id2label: Map<String, Value> =
        names.iter().enumerate().map(|(i, name)| (i.to_string(), name.as_str().into())).collect();
    let label2id: Map<String, Value> =
        names.iter().enumerate().map(|(i, name)| (name.clone(), i.into())).collect();
    // transformers derives num_labels from id2label; a stored number could only contradict it.
    map.remove("num_labels");
    map.insert("id2label".to_string(), id2label.into());
    map.insert("label2id".to_string(), label2id.into());
    match labels.problem_type() {
        Some(problem) => map.insert("problem_type".to_string(), problem.into()),
        None => map.remove("problem_type"),
    };
    map
}
