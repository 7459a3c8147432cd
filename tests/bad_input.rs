//! Bad input: each kind ends with its exit code and a message that names the place and what is wrong, without a panic, and
//! leaves no result behind.

mod common;

#[path = "bad_input/adapters.rs"]
mod adapters;
#[path = "bad_input/data.rs"]
mod data;
#[path = "bad_input/gguf.rs"]
mod gguf;
#[path = "bad_input/models.rs"]
mod models;
#[path = "bad_input/options.rs"]
mod options;
#[path = "bad_input/outputs.rs"]
mod outputs;

use common::Fixture;

/// Changes a good fixture, trains on it with further options, and expects the exit code and the words in the message.
#[track_caller]
fn training_fails(change: impl FnOnce(&Fixture), options: &str, code: i32, words: &[&str]) {
    let fixture = Fixture::new();
    change(&fixture);
    fixture.train(options).fails(code, words);
    let left = ["adapter_config.json", "adapter_model.safetensors", "summary.json"];
    assert!(left.iter().all(|file| !fixture.path("out").join(file).exists()), "a failed run left a result");
}
