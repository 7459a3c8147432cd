//! A model, with an adapter or alone, ready for use without training.

use std::path::Path;

use lora_drop_compute::random::Key;
use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{
    AdapterTable, Head, HeadKind, HeadOrigin, Memory, Model, ModelConfig, Parameters, Trained,
};

use crate::adapter::{AdapterFile, LoraBank, check_token_head};
use crate::data::{Classes, Labels};
use crate::heads::MULTI_LABEL;
use crate::model::ModelFiles;
use crate::settings::{Compute, Dtype, Quantize};
use crate::{Cancel, Error, Result};

/// How a model's matrices are stored and multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// The storage of a decoder's frozen matrices; None: the file's.
    pub quantize: Option<Quantize>,
    /// The precision of the linear layers' products.
    pub dtype: Dtype,
}

impl Arithmetic {
    /// The arithmetic of a training run.
    pub fn of(compute: &Compute) -> Self {
        Arithmetic { quantize: compute.quantize, dtype: compute.dtype }
    }
}

/// A model that is ready for forward passes.
pub struct Loaded {
    pub files: ModelFiles,
    /// How its matrices are stored and multiplied.
    pub arithmetic: Arithmetic,
    pub model: Model,
    /// The values of the adapter and the head.
    pub parameters: Parameters,
    /// The adapter's pairs; empty without an adapter.
    pub bank: LoraBank,
    pub table: AdapterTable,
    /// What the head's outputs mean; None for a decoder without a head, whose outputs are tokens.
    pub labels: Option<Labels>,
    /// Tokens that end a generated text.
    pub end_tokens: Vec<u32>,
    /// Notes for the user about the files.
    pub notes: Vec<String>,
    pub memory: Memory,
}

impl Loaded {
    /// Opens a model with an adapter or alone, stored and multiplied as `arithmetic` says. A
    /// decoder has a head if the adapter has one or, alone, if its own files have one.
    ///
    /// The labels come from the adapter. An adapter of another program has none; its classes then
    /// have the names in the model's configuration, if their number matches, or numbers as names.
    ///
    /// # Errors
    /// Those of the files; the adapter does not fit the model; an encoder has no head.
    pub fn open(model: &str, adapter: Option<&Path>, arithmetic: Arithmetic) -> Result<Self> {
        let files = ModelFiles::open(model, &Cancel::new(), &mut |_| {})?;
        let open = |path| AdapterFile::open_for(path, Some(files.source()));
        let (adapter, note) = adapter.map(open).transpose()?.unzip();
        let mut loaded = Self::new(&files, adapter.as_ref(), arithmetic)?;
        loaded.notes.extend(note.flatten());
        Ok(loaded)
    }

    /// Like [`Self::open`] for a model that is open and an adapter in memory.
    ///
    /// # Errors
    /// Those of `open`, except those of the adapter's file.
    pub fn new(files: &ModelFiles, adapter: Option<&AdapterFile>, arithmetic: Arithmetic) -> Result<Self> {
        let files = files.clone();
        let Arithmetic { quantize, dtype } = arithmetic;
        let config = &files.config;
        let mut parameters = Parameters::new();
        let with_head = match adapter {
            _ if !config.architecture.is_decoder() => true,
            Some(file) => !file.head.is_empty(),
            None => files.has_head(),
        };
        let head = with_head.then(|| head(&files, adapter)).transpose()?;
        let trained = adapter.map_or(Trained::Head, |file| file.trained(config));
        let mut model = files.load(head, trained, quantize, Key::new(0), &mut parameters)?;
        model.net.multiply_in(dtype.precision());
        // A decoder without a head may generate text, and then multiplies few rows, in f32.
        if head.is_some() {
            model.net.convert_frozen(FrozenForm::Rounded);
        }
        let fresh = model.head_origin.as_ref().is_some_and(|origin| *origin != HeadOrigin::Checkpoint);
        if adapter.is_none() && fresh {
            return Err(Error::file(&files.path, "the model's head is incomplete; give its adapter"));
        }
        let labels = head.map(|head| labels(adapter, config, head)).transpose()?;
        let bank = match adapter {
            Some(file) => {
                file.load_head(&mut parameters)?;
                let mut bank = file.to_bank(config, &mut parameters)?;
                bank.precompute_constants(&model, &mut parameters)?;
                bank
            }
            None => LoraBank::default(),
        };
        let table = bank.table(config.layers);
        let end_tokens = if head.is_none() { end_tokens(&files, adapter)? } else { Vec::new() };
        Ok(Loaded {
            notes: files.notes(quantize),
            files,
            arithmetic,
            model,
            parameters,
            bank,
            table,
            labels,
            end_tokens,
            memory: Memory::default(),
        })
    }
}

/// The model's end tokens and those that the adapter has learned. An adapter of another program
/// does not list any; it has probably learned the end-of-sequence token.
fn end_tokens(files: &ModelFiles, adapter: Option<&AdapterFile>) -> Result<Vec<u32>> {
    let tokens = files.tokens()?;
    let mut ends = files.end_tokens(&tokens)?;
    if let Some(adapter) = adapter {
        match adapter.end_tokens.is_empty() {
            true => ends.extend(files.eos_token(&tokens)?),
            false => ends.extend(&adapter.end_tokens),
        }
    }
    Ok(ends)
}

/// The adapter's head, or the model's own.
fn head(files: &ModelFiles, adapter: Option<&AdapterFile>) -> Result<Head> {
    if let Some(file) = adapter {
        return file.head(&files.config);
    }
    let kind = files.config.head_kind();
    if kind == HeadKind::Token {
        check_token_head(&files.config)?;
    }
    let output = files.config.head_weights(Head { kind, outputs: 1 }).pop().unwrap_or_default().0;
    let outputs = files.source().shape(&output).and_then(|shape| shape.first()).copied();
    outputs.map(|outputs| Head { kind, outputs }).ok_or_else(|| {
        let problem = "the model has no head for classification";
        Error::file(&files.path, format!("{problem} ({output} is missing); give its adapter"))
    })
}

/// What a head's outputs mean; see [`Loaded::open`].
///
/// # Errors
/// The adapter's labels are not valid, or do not match the number of outputs.
pub fn labels(adapter: Option<&AdapterFile>, config: &ModelConfig, head: Head) -> Result<Labels> {
    let outputs = head.outputs;
    if let Some(known) = adapter.and_then(|file| file.labels.clone()) {
        let labels: Labels = serde_json::from_value(known)
            .map_err(|e| Error::Input(format!("the labels in the adapter's metadata cannot be read: {e}")))?;
        let weights = labels.weights();
        let sound = weights.iter().all(|weight| *weight > 0.0 && weight.is_finite());
        if !sound || ![0, labels.names().len()].contains(&weights.len()) {
            return Err(Error::Input(format!(
                "the adapter's metadata has the class weights {weights:?}, expected one above 0 for each of its {} classes",
                labels.names().len()
            )));
        }
        if labels.outputs() != outputs {
            return Err(Error::Input(format!(
                "the adapter's metadata has {} labels, its head {outputs} outputs",
                labels.outputs()
            )));
        }
        return Ok(labels);
    }
    let several = config.problem_type.as_deref() == Some(MULTI_LABEL);
    if outputs == 1 && head.kind == HeadKind::Sequence && !several {
        return Ok(Labels::Regression);
    }
    // transformers names classes LABEL_0, LABEL_1 if they have no names.
    let own = &config.labels;
    let named = own.len() == outputs && !own.iter().all(|name| name.starts_with("LABEL_"));
    let names = if named { own.to_vec() } else { (0..outputs).map(|i| i.to_string()).collect() };
    Ok(match head.kind {
        HeadKind::Token => Labels::TokenClassification { classes: Classes::new(names) },
        HeadKind::Sequence if several => {
            Labels::MultiLabel { classes: Classes::new(names), indicators: true }
        }
        HeadKind::Sequence => Labels::classes(names),
    })
}
