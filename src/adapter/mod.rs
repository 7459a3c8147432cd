//! Adapters in memory and in files: the bank, PEFT's format, a compact one, llama.cpp's, and merging into the base.
//!
//! A method is a line in `form` and a file with its `Form`.

mod bank;
mod common;
mod compact;
mod dora;
mod file;
mod gguf;
pub(crate) mod init;
mod lora;
mod merge;
pub mod peft;
mod tensors;

use lora_drop_transformer::{Adapter, AdapterMethod, LoraPair, Model, ModuleId, ParamId, Parameters};

use crate::Result;

pub use bank::{BankPair, LoraBank};
pub use compact::COMPACT_FILE;
pub use file::{AdapterFile, HeadWeight, StoredPair};
pub(crate) use merge::{MergedWeights, TOKENIZER_FILES, outlines};
pub use merge::{merge, write_checkpoint};
pub use tensors::FloatType;

/// What the bank and files know of a method.
fn form(method: AdapterMethod) -> &'static Form {
    match method {
        AdapterMethod::Lora => &lora::FORM,
        AdapterMethod::Dora => &dora::FORM,
    }
}

/// Values that a module of this many outputs has of its own, beside its pair.
pub fn own_values(method: AdapterMethod, output: usize) -> usize {
    form(method).vector.map_or(0, |_| output)
}

/// Whether z says all of an adapter's output, which scores are made of.
pub fn is_scored(method: AdapterMethod) -> bool {
    form(method).vector.is_none()
}

/// A method as the bank and files have it.
struct Form {
    /// The key of PEFT's configuration that is true for it.
    peft_key: Option<&'static str>,
    /// What each module has of its own, never shared: a vector (out).
    vector: Option<Vector>,
    /// What the engine computes with: the pair, and where the method has one the vector, and behind it the constant.
    adapter: fn(LoraPair, &[ParamId]) -> Adapter,
    /// Turns a row of W + s · B A into the adapted weight's, by the vector's value of that row.
    merge: fn(&mut [f64], f64),
}

/// A vector that each module has.
#[derive(Clone, Copy)]
struct Vector {
    /// Behind the module's name, in `Parameters` and in the compact file.
    name: &'static str,
    /// Behind the module's path in PEFT's file.
    in_peft: &'static str,
    /// Its initial values, from the module's weight.
    start: OfWeight,
    /// What each pass would compute of weights and parameters, once and for all, for a model that is used and not trained.
    constant: OfWeight,
}

/// A vector (out) made of a module's weight and, where it is given, its pair.
type OfWeight = fn(&Model, &Parameters, ModuleId, Option<LoraPair>) -> Result<Vec<f32>>;
