//! Fine-tunes language models on CPUs with LoRA and LoRA-drop: finds out which layers need their
//! own LoRA, lets the others share one, and trains these.
//!
//! The library does everything that the program `lora-drop` does. It never prints: it reports
//! [`events`].
//!
//! - [`train`]: a run from files to an output folder ([`train::run`]), or on rows in memory
//!   ([`train::Training`]), with [`settings`], [`data`] and an open model ([`model::ModelFiles`])
//! - [`evaluate`]: measuring and predicting ([`evaluate::Predictor`]); [`generate`]: writing text
//!   ([`generate::Generator`]); both on [`loaded`] models, with rows read as [`reading`] says, as an
//!   adapter's run recorded it ([`use_settings`])
//! - [`adapter`], [`merge`], [`export`]: adapters in memory and in files; merging; other formats
//! - [`score`], [`assign`], [`assignment`]: from importance to the choice of modules
//! - [`prune`]: a smaller adapter from a trained one, without gradient steps
//! - [`summary`], [`run_record`]: a run's results; [`mod@bench`], [`profile`], [`machine`]: its
//!   speed
//! - [`ranks`]: the processes of a job that train one model together ([`train::run_on`])
//! - [`hub`]: models by name; [`files`], [`folder`]: output; [`mod@format`]: numbers as text
//! - [`transformer`], [`compute`]: the crates below this one
//!
//! Train in memory and write the adapter of the best epoch:
//!
//! ```no_run
//! use lora_drop::data::{LabelledRow, RawLabel};
//! use lora_drop::model::ModelFiles;
//! use lora_drop::settings::{RowSettings, TrainSettings};
//! use lora_drop::train::{Prepared, Training};
//! use lora_drop::{Cancel, Result};
//!
//! fn fine_tune(rows: Vec<LabelledRow>) -> Result<()> {
//!     let model = ModelFiles::open("models/minilm", &Cancel::new(), &mut |_| {})?;
//!     let settings = TrainSettings::default();
//!     let prepared = Prepared::labelled(&model, rows, Vec::new(), &RowSettings::default(), &settings)?;
//!     let trained = Training::new(&prepared, &settings).run(&Cancel::new(), &mut |_| {})?;
//!     trained.adapter.write_peft("adapter".as_ref(), model.config.layers)
//! }
//! ```

pub mod adapter;
mod algebra;
pub mod assign;
pub mod assignment;
pub mod bench;
mod cancel;
mod card;
pub mod data;
pub mod digest;
mod engine;
mod error;
mod estimate;
pub mod evaluate;
pub mod events;
pub mod export;
pub mod files;
mod finite;
pub mod folder;
pub mod format;
pub mod generate;
mod growing_file;
mod heads;
pub mod hub;
pub mod inspect;
pub mod loaded;
pub mod machine;
pub mod merge;
mod metrics_file;
mod metrics_log;
pub mod model;
mod panics;
pub mod profile;
pub mod prune;
mod rank_agreement;
pub mod ranks;
pub mod reading;
mod rss;
pub mod run_record;
pub mod score;
pub mod settings;
pub mod summary;
mod tensorboard;
pub mod train;
pub mod use_settings;

pub use lora_drop_compute as compute;
pub use lora_drop_transformer as transformer;

pub use cancel::Cancel;
pub use error::{Error, Result};

/// The code in the documentation's page on the library is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct LibraryPage;
