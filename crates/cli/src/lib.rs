//! The `lora-drop` program: its commands, what a person looks at, and comparisons, which run the
//! program itself. The work is done by the library, `lora_drop`.

mod commands;
pub mod compare;
mod report;

pub use commands::main;
