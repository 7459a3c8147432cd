//! A model, and an adapter where there is one, put together for use without training.

use std::path::Path;

use lora_drop_compute::random::Key;
use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{HeadOrigin, LoraTable, Memory, Model, ModelConfig, Parameters, Trained};

use crate::adapter::{AdapterFile, LoraBank};
use crate::data::Labels;
use crate::model::ModelFiles;
use crate::settings::{Compute, Dtype, Quantize};
use crate::{Cancel, Error, Result};

/// How a model's matrices are stored and multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// A decoder's frozen matrices are stored so; None: as their file has them.
    pub quantize: Option<Quantize>,
    /// What the linear layers multiply in.
    pub dtype: Dtype,
}

impl Arithmetic {
    /// As a training run computes.
    pub fn of(compute: &Compute) -> Self {
        Arithmetic { quantize: compute.quantize, dtype: compute.dtype }
    }
}

/// A model that is ready for forward passes.
pub struct Loaded {
    pub files: ModelFiles,
    pub model: Model,
    pub parameters: Parameters,
    pub bank: LoraBank,
    pub table: LoraTable,
    /// What the head's outputs mean; None for a decoder without one, whose outputs are tokens.
    pub labels: Option<Labels>,
    /// Tokens that end a generated text.
    pub end_tokens: Vec<u32>,
    pub memory: Memory,
}

impl Loaded {
    /// Opens a model with an adapter, or alone, stored and multiplied as `arithmetic` says. A
    /// decoder has a head where the adapter has one, or, alone, where its own files have.
    ///
    /// Labels are those that the adapter carries; an adapter of another program has none, and its
    /// classes then are those of the model's configuration if it names as many, or their numbers.
    ///
    /// # Errors
    /// Those of the files; an adapter that does not fit the model; neither of them has the head
    /// that an encoder needs.
    pub fn open(model: &str, adapter: Option<&Path>, arithmetic: Arithmetic) -> Result<Self> {
        let files = ModelFiles::open(model, &Cancel::new(), &mut |_| {})?;
        let adapter = adapter.map(|path| Ok::<_, Error>((path, AdapterFile::open(path)?))).transpose()?;
        let adapter = adapter.as_ref().map(|(path, file)| (*path, file));
        Self::put_together(files, adapter, arithmetic)
    }

    /// The same of a model that is open and an adapter in memory.
    ///
    /// # Errors
    /// Those of `open`, but for the adapter's file.
    pub fn new(model: &ModelFiles, adapter: Option<&AdapterFile>, arithmetic: Arithmetic) -> Result<Self> {
        let adapter = adapter.map(|file| (Path::new("the adapter"), file));
        Self::put_together(model.clone(), adapter, arithmetic)
    }

    fn put_together(
        files: ModelFiles,
        adapter: Option<(&Path, &AdapterFile)>,
        arithmetic: Arithmetic,
    ) -> Result<Self> {
        let Arithmetic { quantize, dtype } = arithmetic;
        let config = &files.config;
        let mut parameters = Parameters::new();
        let with_head = match &adapter {
            _ if !config.architecture.is_decoder() => true,
            Some((_, file)) => !file.head.is_empty(),
            None => files.has_head(),
        };
        let outputs = with_head.then(|| outputs(&files, adapter)).transpose()?;
        let trained = adapter.map_or(Trained::Head, |(_, file)| file.trained(config));
        let mut model = files.load(outputs, trained, quantize, Key::new(0), &mut parameters)?;
        model.net.multiply_in(dtype.precision());
        // A decoder without a head may write text, and then multiplies few rows in f32.
        if outputs.is_some() {
            model.net.keep_frozen(FrozenForm::Rounded);
        }
        let fresh = model.head_origin.as_ref().is_some_and(|origin| *origin != HeadOrigin::Checkpoint);
        if adapter.is_none() && fresh {
            let path = files.path.display();
            return Err(Error::Input(format!("{path}: the model's head is incomplete; give its adapter")));
        }
        let file = adapter.map(|(_, file)| file);
        let labels = outputs.map(|outputs| labels(file, config, outputs)).transpose()?;
        let bank = match &adapter {
            Some((_, file)) => {
                file.load_head(&mut parameters)?;
                let mut bank = file.to_bank(config, &mut parameters)?;
                bank.fix(&model, &mut parameters)?;
                bank
            }
            None => LoraBank::default(),
        };
        let table = bank.table(config.layers);
        let mut end_tokens = if outputs.is_none() { files.end_tokens()? } else { Vec::new() };
        if adapter.is_some() {
            // What training has put after each completion.
            end_tokens.extend(config.eos_token_ids.first());
        }
        Ok(Loaded { files, model, parameters, bank, table, labels, end_tokens, memory: Memory::default() })
    }
}

/// The outputs of the adapter's head, or of the model's own.
fn outputs(files: &ModelFiles, adapter: Option<(&Path, &AdapterFile)>) -> Result<usize> {
    if let Some((path, file)) = adapter {
        return file.outputs(&files.config, path);
    }
    let output = files.config.head_weights(1).pop().unwrap_or_default().0;
    files.source().shape(&output).and_then(|shape| shape.first()).copied().ok_or_else(|| {
        Error::Input(format!(
            "{}: the model has no head for classification ({output} is missing); give its adapter",
            files.path.display()
        ))
    })
}

/// What a model's outputs mean; see `Loaded::open`.
pub fn labels(adapter: Option<&AdapterFile>, config: &ModelConfig, outputs: usize) -> Result<Labels> {
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
    let own = &config.labels;
    let named = own.len() == outputs && !own.iter().all(|name| name.starts_with("LABEL_"));
    let names = if named { own.to_vec() } else { (0..outputs).map(|i| i.to_string()).collect() };
    Ok(Labels::Classification { names })
}
