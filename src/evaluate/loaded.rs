//! A model, and an adapter where there is one, put together for use without training.

use std::path::Path;

use lora_drop_compute::random::Key;
use lora_drop_transformer::encoder::{HeadOrigin, Memory, Trained};
use lora_drop_transformer::{Checkpoint, Encoder, EncoderConfig, LoraTable, Model, ModelConfig, Parameters};

use crate::adapter::{AdapterFile, LoraBank};
use crate::data::Labels;
use crate::model::ModelFiles;
use crate::settings::Quantise;
use crate::{Error, Result};

/// A model that is ready for forward passes.
pub struct Loaded {
    pub files: ModelFiles,
    pub model: Model,
    pub parameters: Parameters,
    pub bank: LoraBank,
    pub table: LoraTable,
    /// What an encoder's outputs mean; a decoder's are tokens.
    pub labels: Option<Labels>,
    pub memory: Memory,
}

impl Loaded {
    /// Opens a model with an adapter, or alone; a decoder's matrices are stored as `quantise` says.
    ///
    /// Labels are those that the adapter carries; an adapter of another program has none, and its classes then
    /// are those of the model's configuration if it names as many, or their numbers.
    ///
    /// # Errors
    /// Those of the files; an adapter that does not fit the model; neither of them has the head that an encoder needs.
    pub fn open(model: &str, adapter: Option<&Path>, quantise: Option<Quantise>) -> Result<Self> {
        let files = ModelFiles::open(model, &mut |_| {})?;
        let config = &files.config;
        let adapter = adapter.map(|path| Ok::<_, Error>((path, AdapterFile::open(path)?))).transpose()?;
        let mut parameters = Parameters::new();
        let (model, labels) = match config {
            ModelConfig::Encoder(encoder) => {
                let (encoder, labels) =
                    open_encoder(files.checkpoint()?, encoder, adapter.as_ref(), &mut parameters)?;
                (Model::Encoder(Box::new(encoder)), Some(labels))
            }
            ModelConfig::Decoder(decoder) => {
                (Model::Decoder(Box::new(files.decoder(decoder, quantise)?)), None)
            }
        };
        let bank = match &adapter {
            Some((_, file)) => {
                file.load_head(&mut parameters)?;
                file.to_bank(config, &mut parameters)?
            }
            None => LoraBank::default(),
        };
        let table = bank.table(config.layers());
        Ok(Loaded { files, model, parameters, bank, table, labels, memory: Memory::default() })
    }
}

fn open_encoder(
    checkpoint: &Checkpoint,
    config: &EncoderConfig,
    adapter: Option<&(&Path, AdapterFile)>,
    parameters: &mut Parameters,
) -> Result<(Encoder, Labels)> {
    let folder = checkpoint.folder().display();
    let output = config.head_weights(1).last().map_or("", |(name, _)| name).to_string();
    let outputs = match adapter {
        Some((path, file)) => file.outputs(config, path)?,
        None => match checkpoint.shape(&output).and_then(|shape| shape.first()) {
            Some(&outputs) => outputs,
            None => {
                return Err(Error::Input(format!(
                    "{folder}: the model has no head for classification ({output} is missing); give --adapter"
                )));
            }
        },
    };
    // PEFT's users may have trained BERT's pooler beside the classifier.
    let has_pooler = |(_, file): &&(&Path, AdapterFile)| {
        let own = |stem| format!("{}.{stem}.weight", config.architecture.prefix());
        config.architecture.pooler().map(own).is_some_and(|name| file.head.contains_key(&name))
    };
    let trained =
        if adapter.is_some_and(|found| has_pooler(&found)) { Trained::HeadAndPooler } else { Trained::Head };
    let encoder = Encoder::load(checkpoint, config, outputs, trained, Key::new(0), parameters)?;
    if adapter.is_none() && encoder.head_origin != HeadOrigin::Checkpoint {
        return Err(Error::Input(format!("{folder}: the model's head is incomplete; give --adapter")));
    }
    Ok((encoder, labels(adapter.map(|(_, file)| file), config, outputs)?))
}

/// What a model's outputs mean; see `Loaded::open`.
pub fn labels(adapter: Option<&AdapterFile>, config: &EncoderConfig, outputs: usize) -> Result<Labels> {
    if let Some(known) = adapter.and_then(|file| file.labels.clone()) {
        let labels: Labels = serde_json::from_value(known)
            .map_err(|e| Error::Input(format!("the labels in the adapter's metadata cannot be read: {e}")))?;
        if labels.outputs() != outputs {
            return Err(Error::Input(format!(
                "the adapter's metadata has {} labels, its head {outputs} outputs",
                labels.outputs()
            )));
        }
        return Ok(labels);
    }
    if outputs == 1 {
        return Ok(Labels::Regression);
    }
    // LABEL_0, LABEL_1 are transformers' words for "not named".
    let named =
        config.labels.len() == outputs && !config.labels.iter().all(|name| name.starts_with("LABEL_"));
    let names = if named { config.labels.clone() } else { (0..outputs).map(|i| i.to_string()).collect() };
    Ok(Labels::Classification { names })
}
