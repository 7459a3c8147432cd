//! Checkpoints, configurations and the encoder: pre-trained transformers from Hugging Face folders.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod lora;
pub mod module;
pub mod names;
pub mod parameters;
pub mod weights;

pub use checkpoint::Checkpoint;
pub use config::{Activation, Architecture, EncoderConfig};
pub use error::Error;
pub use lora::{LoraPair, LoraTable};
pub use module::{ModuleId, ModuleKind};
pub use parameters::{Group, ParamId, Parameter, Parameters};
pub use weights::{HeadTensor, Weights};
