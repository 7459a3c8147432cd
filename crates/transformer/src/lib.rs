//! Pre-trained transformers: their families as graphs, their files, and the passes through them.

pub mod adapter;
mod batch;
mod checkpoint;
mod config;
mod drops;
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
mod weights;

pub use adapter::{Adapter, AdapterMethod, LoraPair, LoraTable};
pub use batch::{DropoutRates, PrefixOutput, Sequences, Targets, TextPart, Texts, TrainPart};
pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig};
pub use error::{Error, WeightFault, WeightProblem};
pub use families::token_ids;
pub use load::{Loading, Trained};
pub use memory::{Keep, Memory, PassSize};
pub use model::{HeadOrigin, Model};
pub use module::{ModuleId, ModuleKind};
pub use network::cache::Cache;
pub use network::{Context, Network, Stopped};
pub use observer::{Observations, Observer, Observing, SecondMoments, Seen};
pub use parameters::{Group, ParamId, Parameter, Parameters, Values};
pub use weights::{HeadTensor, Source, Stored, Weights};
