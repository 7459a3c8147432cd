//! The program and the library from outside: the real binary in temporary folders, and the
//! library's own interfaces. One test binary, so that everything is linked once.

// Tests that send signals are for Unix.
#![cfg_attr(not(unix), allow(unused_imports))]

#[path = "../common/mod.rs"]
mod common;

mod adapter_files;
mod adapter_merge;
mod bad_input;
mod card;
mod classifier_run;
mod cli;
mod cli_run;
mod compare;
mod dashboards;
mod data;
mod datasets;
mod decoder_run;
mod eval_generation;
mod every_option;
mod example;
mod exports;
mod found;
mod generate;
mod gguf_files;
mod gguf_tokenizer;
mod hidden_states;
mod hub;
mod inspect_data;
mod library;
mod memory;
mod methods;
#[cfg(unix)]
mod mutations;
mod peft_files;
mod profile;
mod prune;
mod ranks;
mod reliability;
mod report;
mod resume;
mod rows;
mod safety;
mod sources;
mod tasks;
#[cfg(unix)]
mod terminal;
mod text_data;
mod text_metrics;
mod token_cache;
mod train_state;
