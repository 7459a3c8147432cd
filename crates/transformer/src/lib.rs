//! Pre-trained transformers: their files, their architectures, and passes through them, with
//! adapters on their linear layers.
//!
//! - [`ModelConfig`], [`Architecture`], [`ModuleId`]: the sizes of a model, and its linear layers
//! - [`Checkpoint`] and [`gguf`]: weights in safetensors and GGUF files, both a [`Source`]
//! - [`Loading`]: loads a [`Model`], whose [`Network`] runs passes: outputs, losses, training,
//!   generation with a [`Cache`]
//! - [`Sequences`], [`Texts`], [`TrainPart`], [`TextPart`]: the inputs of passes
//! - [`Parameters`]: everything that trains, with its gradients
//! - [`adapter`], [`AdapterTable`]: adapters, and the adapter of each module
//! - [`Observer`]: what sees modules in passes
//! - [`linear`], [`Memory`]: a layer's products, and the memory of passes
//!
//! The logits of two sequences from a model with a new head:
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use lora_drop_compute::random::Key;
//! use lora_drop_transformer::*;
//!
//! let folder = Path::new("models/minilm");
//! let (config, checkpoint) = (ModelConfig::read(folder)?, Checkpoint::open(folder)?);
//! let loading = Loading { head: Some(Head::of_sequences(2)), trained: Trained::Head, quantize: None, key: Key::new(0) };
//! let mut parameters = Parameters::new();
//! let model = Model::load(&checkpoint, &config, loading, &mut parameters)?;
//!
//! let (table, stop) = (AdapterTable::empty(model.layers()), AtomicBool::new(false));
//! let mut memory = Memory::default();
//! let context = Context::new(parameters.read(), &table, &mut memory, &stop);
//! let (ids, offsets) = (&[101, 7592, 102, 101, 102], &[0, 3, 5]);
//! let sequences = Sequences { ids, types: &[0; 5], offsets, labelled: &[] };
//! let logits = model.net.outputs(context, sequences).expect("the CPU does not fail"); // (2, 2)
//! # Ok::<(), lora_drop_transformer::Error>(())
//! ```

pub mod adapter;
mod batch;
mod checkpoint;
mod config;
mod dropout;
mod error;
mod families;
pub mod gguf;
pub mod json;
pub mod linear;
mod load;
mod memory;
mod model;
mod module;
mod network;
mod observer;
mod parameters;
mod quantize;
mod unsupported_quantization;
mod weights;

pub use adapter::{Adapter, AdapterMethod, AdapterTable, LoraPair};
pub use batch::{DropoutRates, PrefixOutput, Sequences, Targets, TextPart, Texts, TrainPart};
pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig};
pub use error::{Error, WeightFault, WeightProblem};
pub use families::token_ids;
pub use load::{Loading, Trained};
pub use memory::{Memory, PassSize, SavePolicy, WeightBytes};
pub use model::{Head, HeadKind, HeadOrigin, Model};
pub use module::{ModuleId, ModuleKind};
pub use network::cache::Cache;
pub use network::{Context, Network, Stopped};
pub use observer::{Observations, Observer, Observing, SecondMoments, Seen};
pub use parameters::{Group, ParamId, Parameter, Parameters, Values};
pub use weights::{HeadTensor, Source, Stored, Weights};
