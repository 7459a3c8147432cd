//! Checkpoints, configurations and the encoder: pre-trained transformers from Hugging Face folders.

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod decoder_config;
pub mod drops;
pub mod error;
pub mod families;
pub mod gguf;
pub mod json;
pub mod linear;
pub mod load;
pub mod lora;
pub mod memory;
pub mod model;
pub mod module;
pub mod names;
pub mod network;
pub mod observer;
pub mod parameters;
pub mod quantise;
pub mod weights;

pub use batch::{Below, DropoutRates, Sequences, Targets, TextPart, Texts, TrainPart};
pub use checkpoint::Checkpoint;
pub use config::{Activation, Architecture, EncoderConfig};
pub use decoder_config::DecoderConfig;
pub use error::Error;
pub use load::{Loading, Trained};
pub use lora::{LoraPair, LoraTable};
pub use memory::{Keep, Memory, PassSize};
pub use model::{HeadOrigin, Model, ModelConfig};
pub use module::{ModuleId, ModuleKind};
pub use network::cache::Cache;
pub use network::{Context, Stopped};
pub use observer::{Observations, Observer, Observing, SecondMoments, Seen};
pub use parameters::{Group, ParamId, Parameter, Parameters, Values};
pub use weights::{HeadTensor, Source, Stored, Weights};
