//! LoRA pairs in memory and in files: the bank, PEFT's format, a compact one, and merging into the base.

mod bank;
pub(crate) mod init;

pub use bank::{BankPair, LoraBank};
