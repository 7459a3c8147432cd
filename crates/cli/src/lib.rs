//! The program `lora-drop`: its commands, its texts and pages, and comparisons, which run the
//! program itself. The library `lora_drop` does the work.

mod commands;
pub mod compare;
mod report;

pub use commands::{Program, main};
pub use report::render;
