//! Pre-trained transformers: their families as graphs, their files, and the passes through them.

pub mod adapter;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod drops;
pub mod error;
pub mod families;
pub mod gguf;
pub mod json;
pub mod linear;
pub mod load;
pub mod memory;
pub mod model;
pub mod module;
pub mod network;
pub mod observer;
pub mod parameters;
pub mod quantize;
pub mod weights;

pub use adapter::{Adapter, AdapterMethod, LoraPair, LoraTable};
pub use batch::{DropoutRates, PrefixOutput, Sequences, Targets, TextPart, Texts, TrainPart};
pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig};
pub use error::Error;
pub use load::{Loading, Trained};
pub use memory::{Keep, Memory, PassSize};
pub use model::{HeadOrigin, Model};
pub use module::{ModuleId, ModuleKind};
pub use network::cache::Cache;
pub use network::{Context, Stopped};
pub use observer::{Observations, Observer, Observing, SecondMoments, Seen};
pub use parameters::{Group, ParamId, Parameter, Parameters, Values};
pub use weights::{HeadTensor, Source, Stored, Weights};
