//! LoRA-drop: find out which layers need their own LoRA, share one among the rest, fine-tune.

pub mod assign;
pub mod error;
pub mod events;
pub mod files;
pub mod memory;
pub mod report;
pub mod score;
pub mod settings;
pub mod summary;

pub use error::{Error, Result};
