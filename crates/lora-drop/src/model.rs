//! A model's files: a folder as Hugging Face's tools write it, a GGUF file, or a name on the hub.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lora_drop_compute::blocks::BlockType;
use lora_drop_compute::random::Key;
use lora_drop_transformer::gguf::{Gguf, TensorType};
use lora_drop_transformer::token_ids;
use lora_drop_transformer::{Checkpoint, Head, Loading, Model, ModelConfig, Parameters, Source, Trained};

use crate::data::Tokens;
use crate::data::gguf_tokenizer::GgufTokenizer;
use crate::data::text::{ChatTemplate, SpecialTokens, template_variables};
use crate::files::json_object;
use crate::folder::recover;
use crate::hub::{Download, GgufModel, HubOptions, INDEX, WEIGHTS};
use crate::settings::Quantize;
use crate::summary::ModelFacts;
use crate::{Cancel, Error, Result};

/// The files of a model, opened. A clone shares them.
#[derive(Clone)]
pub struct ModelFiles {
    /// The model's name as the user gave it.
    pub name: String,
    /// The folder, or the GGUF file.
    pub path: PathBuf,
    /// config.json, or the same read from a GGUF file's metadata.
    pub config: ModelConfig,
    /// The weights, mapped into memory.
    pub weights: Arc<WeightFiles>,
}

/// Where the weights are.
pub enum WeightFiles {
    /// model.safetensors or its shards.
    Folder(Checkpoint),
    /// A GGUF file.
    Gguf(Gguf),
}

impl ModelFiles {
    /// Opens a folder, a GGUF file (or a folder that contains just one), or a hub's model. For
    /// `cancel` and `progress` see [`HubOptions::resolve`](crate::hub::HubOptions::resolve).
    ///
    /// # Errors
    /// Those of the files; see [`locate`] for names.
    pub fn open(name: &str, cancel: &Cancel, progress: &mut dyn FnMut(Download<'_>)) -> Result<Self> {
        let path = locate(name, cancel, progress)?;
        let (config, weights) = if path.is_dir() {
            recover(&path)?;
            let (config, checkpoint) = (ModelConfig::read(&path)?, Checkpoint::open(&path)?);
            checkpoint.check_unquantized()?;
            (config, WeightFiles::Folder(checkpoint))
        } else {
            let file = Gguf::open(&path)?;
            let config = ModelConfig::from_object(file.config()?, &path)?;
            (config, WeightFiles::Gguf(file))
        };
        Ok(ModelFiles { name: name.to_string(), path, config, weights: Arc::new(weights) })
    }

    /// The weights.
    pub fn source(&self) -> &dyn Source {
        match &*self.weights {
            WeightFiles::Folder(checkpoint) => checkpoint,
            WeightFiles::Gguf(file) => file,
        }
    }

    /// Loads the model with this head, or as a decoder that predicts tokens. The head and
    /// everything else that trains are added to `parameters`; `key` draws a new head's values.
    /// Frozen matrices of a decoder keep their file's storage, or are quantized as the setting
    /// says.
    ///
    /// # Errors
    /// A weight is missing, of another shape, or not finite.
    pub fn load(
        &self,
        head: Option<Head>,
        trained: Trained,
        quantize: Option<Quantize>,
        key: Key,
        parameters: &mut Parameters,
    ) -> Result<Model> {
        let loading = Loading { head, trained, quantize: quantize.map(block_type), key };
        Ok(Model::load(self.source(), &self.config, loading, parameters)?)
    }

    /// Notes for the user: values in the files that are wrong and not needed, and whether `quantize`
    /// leaves matrices as they are.
    pub fn notes(&self, quantize: Option<Quantize>) -> Vec<String> {
        let wrong = |warning: &String| format!("{}: {warning}", self.path.display());
        self.config.warnings.iter().map(wrong).chain(self.quantize_note(quantize)).collect()
    }

    /// Number of tensors by the type in which the files store them.
    pub fn types(&self) -> BTreeMap<String, usize> {
        let mut types = BTreeMap::new();
        let mut count = |kind| *types.entry(kind).or_insert(0) += 1;
        match &*self.weights {
            WeightFiles::Folder(checkpoint) => checkpoint.types().for_each(&mut count),
            WeightFiles::Gguf(file) => {
                file.header().tensors.iter().for_each(|tensor| count(tensor.kind.name().to_string()));
            }
        }
        types
    }

    fn quantize_note(&self, quantize: Option<Quantize>) -> Option<String> {
        quantize?;
        let path = self.path.display();
        let WeightFiles::Gguf(file) = &*self.weights else { return None };
        let matrices: Vec<TensorType> =
            file.header().tensors.iter().filter(|tensor| tensor.shape.len() == 2).map(|t| t.kind).collect();
        let half = [BlockType::F16, BlockType::Bf16].map(TensorType::Blocks);
        let in_blocks =
            matrices.iter().filter(|&&kind| kind != TensorType::F32 && !half.contains(&kind)).count();
        (in_blocks > 0).then(|| {
            let all = matrices.len();
            format!("`quantize` does not change {in_blocks} of the {all} matrices of {path}, which are already quantized")
        })
    }

    /// The end-of-sequence token, which training puts after completions and texts: the tokenizer's
    /// (`eos_token` in tokenizer_config.json or special_tokens_map.json), as other trainers do, else
    /// the first of config.json's or generation_config.json's. A GGUF file's metadata has one.
    /// None if no file names one that the tokenizer has.
    ///
    /// # Errors
    /// A file cannot be read, or names something that is not a token's number.
    pub fn eos_token(&self, tokens: &Tokens) -> Result<Option<u32>> {
        let own = self.config.eos_token_ids.first().copied();
        if !self.path.is_dir() {
            return Ok(own);
        }
        let special = SpecialTokens::read(&self.path)?;
        let named = special.get("eos_token").and_then(|token| tokens.tokenizer().token_to_id(token));
        match named.or(own) {
            Some(id) => Ok(Some(id)),
            None => Ok(self.generation_ends()?.and_then(|ids| ids.first().copied())),
        }
    }

    /// The tokens that end a generated text: those of generation_config.json if it names any, as in
    /// transformers, else those of config.json or the GGUF file, else the tokenizer's.
    ///
    /// # Errors
    /// As for [`Self::eos_token`].
    pub fn end_tokens(&self, tokens: &Tokens) -> Result<Vec<u32>> {
        let config = &self.config;
        if !config.architecture.is_decoder() {
            return Ok(Vec::new());
        }
        match self.generation_ends()? {
            Some(ids) => Ok(ids),
            None if config.eos_token_ids.is_empty() => Ok(self.eos_token(tokens)?.into_iter().collect()),
            None => Ok(config.eos_token_ids.clone()),
        }
    }

    /// Reads `eos_token_id` from generation_config.json.
    fn generation_ends(&self) -> Result<Option<Vec<u32>>> {
        let path = self.path.join("generation_config.json");
        if !self.path.is_dir() {
            return Ok(None);
        }
        let object = json_object(&path).map_err(|e| Error::io(&path, e))?.unwrap_or_default();
        let Some(value) = object.get("eos_token_id").filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let wrong = || format!("eos_token_id is {value}, expected a token's number or a list of them");
        token_ids(value).map(Some).ok_or_else(|| Error::file(&path, wrong()))
    }

    /// Opens the tokenizer.
    ///
    /// # Errors
    /// Its files are missing or not valid.
    pub fn tokens(&self) -> Result<Tokens> {
        match &*self.weights {
            WeightFiles::Folder(_) => Ok(Tokens::open(&self.path)?),
            WeightFiles::Gguf(file) => {
                let tokenizer = GgufTokenizer::read(file)?.tokenizer;
                Ok(Tokens::of_tokenizer(tokenizer, self.path.clone(), &metadata(file)?))
            }
        }
    }

    /// Reads the chat template, which is given these `variables`, each as `NAME=VALUE`; None if the
    /// model has none.
    ///
    /// # Errors
    /// The template is not valid; `Error::Usage` for a variable that is not.
    pub fn template(&self, variables: &[String]) -> Result<Option<ChatTemplate>> {
        let variables = template_variables(variables)?;
        Ok(self.own_template()?.map(|template| template.with_variables(variables)))
    }

    fn own_template(&self) -> Result<Option<ChatTemplate>> {
        match &*self.weights {
            WeightFiles::Folder(_) => Ok(ChatTemplate::read(&self.path)?),
            WeightFiles::Gguf(file) => {
                let found = GgufTokenizer::read(file)?;
                let Some(source) = found.chat_template else { return Ok(None) };
                let text = |id: Option<u32>| id.and_then(|id| found.tokenizer.id_to_token(id));
                let special = [("bos_token", text(found.bos)), ("eos_token", text(found.eos))];
                let special =
                    special.into_iter().filter_map(|(name, token)| Some((name.to_string(), token?)));
                let template = ChatTemplate::parse(&source, SpecialTokens(special.collect()));
                let refuse = |e| Error::file(&self.path, format!("tokenizer.chat_template: {e}"));
                Ok(Some(template.map_err(refuse)?.of_file(self.path.clone())))
            }
        }
    }

    /// The facts that a run reports about its model, with a head or without.
    pub fn facts(&self, with_head: bool) -> ModelFacts {
        let config = &self.config;
        ModelFacts {
            model: self.name.clone(),
            architecture: config.model_type.clone(),
            layers: config.layers,
            hidden_size: config.hidden_size,
            heads: config.heads,
            vocabulary: config.vocab_size,
            max_positions: config.max_tokens(),
            parameters: config.parameters(!with_head),
            decoder: config.architecture.is_decoder(),
            head_found: with_head.then(|| self.has_head()),
            head_from_adapter: false,
        }
    }

    /// Whether the files have a head for labels, of the kind that config.json names.
    pub fn has_head(&self) -> bool {
        let head = Head { kind: self.config.head_kind(), outputs: 1 };
        self.has_head_of(head)
    }

    /// Whether the files have a head of this kind, of any number of outputs.
    pub(crate) fn has_head_of(&self, head: Head) -> bool {
        self.config.head_weights(head).iter().all(|(name, _)| self.source().contains(name))
    }

    /// Number of outputs of the files' head, if its shapes differ from those of `head`.
    pub(crate) fn other_head(&self, head: Head) -> Option<usize> {
        let fits = |(name, shape): &(String, Vec<usize>)| self.source().shape(name) == Some(shape);
        let wanted = self.config.head_weights(head);
        let last = wanted.last().filter(|_| self.has_head_of(head) && !wanted.iter().all(fits))?;
        self.source().shape(&last.0)?.first().copied()
    }
}

/// The folder or GGUF file of a model, downloaded if it is a name on the hub that is not in the
/// cache. For `cancel` and `progress` see `HubOptions::resolve`.
///
/// # Errors
/// See `HubOptions::resolve`.
pub fn locate(name: &str, cancel: &Cancel, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
    match gguf_file(Path::new(name))? {
        Some(file) => Ok(file),
        None => HubOptions::from_env().resolve(name, cancel, progress),
    }
}

/// Reads a GGUF file (the first part) up to its first tensor: the bytes that contain the tokenizer.
fn metadata(file: &Gguf) -> Result<Vec<u8>> {
    let path = file.path();
    let first = file.header().tensors.iter().filter(|tensor| tensor.part == 0);
    // The first of several parts may have no tensors.
    let end = first.map(|tensor| tensor.start as u64).min().unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(path).and_then(|file| file.take(end).read_to_end(&mut bytes));
    opened.map(|_| bytes).map_err(|e| Error::io(path, e))
}

fn block_type(kind: Quantize) -> BlockType {
    match kind {
        Quantize::Q8_0 => BlockType::Q8_0,
        Quantize::Q4_0 => BlockType::Q4_0,
    }
}

/// Whether a file's name is that of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// The GGUF file that a path names: itself, or the only one (in parts: the first part) in a folder
/// without safetensors; None if it names something else.
///
/// # Errors
/// The folder has several GGUF models and no other model; the message lists them.
pub fn gguf_file(path: &Path) -> Result<Option<PathBuf>> {
    if path.is_file() && is_gguf(path) {
        return Ok(Some(path.to_path_buf()));
    }
    let other = |name: &str| path.join(name).exists();
    if !path.is_dir() || [WEIGHTS, INDEX, "adapter_config.json"].into_iter().any(other) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    match &GgufModel::list(names.map(|name| (name, None)))[..] {
        [] => Ok(None),
        [only] => Ok(Some(path.join(&only.file))),
        _ if other("config.json") => Ok(None),
        several => {
            let names = several.iter().map(|model| model.file.as_str()).collect::<Vec<_>>().join(", ");
            Err(Error::file(path, format!("it has several GGUF models; give one of these files: {names}")))
        }
    }
}
