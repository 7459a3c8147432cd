//! LoRA-drop: find out which layers need their own LoRA, share one among the rest, fine-tune.

pub mod adapter;
mod algebra;
pub mod assign;
pub mod assignment;
pub mod bench;
pub mod cancel;
pub mod data;
pub mod digest;
mod engine;
pub mod error;
mod estimate;
pub mod evaluate;
pub mod events;
pub mod export;
pub mod files;
pub mod finite;
pub mod folder;
pub mod format;
pub mod generate;
pub mod hub;
pub mod loaded;
pub mod machine;
pub mod memory;
pub mod merge;
mod metrics_log;
pub mod model;
mod panics;
pub mod profile;
pub mod prune;
pub mod ranks;
pub mod reading;
pub mod record;
pub mod score;
pub mod settings;
pub mod summary;
pub mod train;

/// What computes: kernels, devices, random numbers, spans of time.
pub use lora_drop_compute as compute;
/// What models are: graphs, weights, adapters in the engine, modules and observers.
pub use lora_drop_transformer as transformer;

pub use cancel::Cancel;
pub use error::{Error, Result};

/// The code in the documentation's page on the library is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct LibraryPage;
