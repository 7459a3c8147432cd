//! LoRA pairs in memory and in files: the bank, PEFT's format, a compact one, llama.cpp's, and merging into the base.

mod bank;
mod common;
mod compact;
mod file;
mod gguf;
pub(crate) mod init;
mod merge;
pub mod peft;
mod tensors;

pub use bank::{BankPair, LoraBank};
pub use compact::COMPACT_FILE;
pub use file::{AdapterFile, HeadWeight, StoredPair};
pub(crate) use merge::{MergedWeights, TOKENIZER_FILES, outlines};
pub use merge::{merge, write_checkpoint};
pub use tensors::FloatType;
