//! Checkpoints, configurations and the encoder: pre-trained transformers from Hugging Face folders.

pub mod lora;
pub mod module;
pub mod parameters;

pub use lora::{LoraPair, LoraTable};
pub use module::{ModuleId, ModuleKind};
pub use parameters::{Group, ParamId, Parameter, Parameters};
