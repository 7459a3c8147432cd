//! Bad input: each kind ends with its exit code and a message that names the place and what is
//! wrong, without a panic, and leaves no result behind.

mod adapters;
mod data;
mod gguf;
mod models;
mod options;
mod outputs;

use crate::common::Fixture;

/// Changes a good fixture, trains on it with further options, and expects the exit code and the
/// words in the message.
#[track_caller]
fn training_fails(change: impl FnOnce(&Fixture), options: &str, code: i32, words: &[&str]) {
    let fixture = Fixture::new();
    change(&fixture);
    fixture.train(options).fails(code, words);
    let left = ["adapter_config.json", "adapter_model.safetensors", "summary.json"];
    assert!(left.iter().all(|file| !fixture.path("out").join(file).exists()), "a failed run left a result");
}
