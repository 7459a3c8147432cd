//! LoRA pairs in memory and in files: the bank, PEFT's format, a compact one, and merging into the base.

mod bank;
mod compact;
mod file;
pub(crate) mod init;
mod merge;
pub mod peft;
mod tensors;

pub use bank::{BankPair, LoraBank};
pub use compact::COMPACT_FILE;
pub use file::{AdapterFile, HeadWeight, StoredPair};
pub use merge::{merge, write_checkpoint};
