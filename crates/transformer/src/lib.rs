//! Checkpoints, configurations and the encoder: pre-trained transformers from Hugging Face folders.

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod drops;
pub mod encoder;
pub mod error;
pub mod families;
pub mod gguf;
pub mod json;
pub mod linear;
pub mod lora;
pub mod memory;
pub mod model;
pub mod module;
pub mod moments;
pub mod names;
pub mod network;
pub mod parameters;
pub mod quantise;
pub mod weights;

pub use checkpoint::Checkpoint;
pub use config::{Activation, Architecture, EncoderConfig};
pub use decoder::{Decoder, DecoderConfig};
pub use encoder::Encoder;
pub use error::Error;
pub use lora::{LoraPair, LoraTable};
pub use model::{Model, ModelConfig, SequenceModel};
pub use module::{ModuleId, ModuleKind};
pub use moments::Moments;
pub use parameters::{Group, ParamId, Parameter, Parameters};
pub use weights::{HeadTensor, Source, Stored, Weights};
