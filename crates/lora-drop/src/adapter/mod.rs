//! Adapters in memory ([`LoraBank`]) and in files ([`AdapterFile`]: PEFT's format, the compact
//! format and llama.cpp's), and merging into the base ([`merge`]).
//!
//! To add a method, add a line to `form` and a file with its `Form`.

mod bank;
mod common;
mod compact;
mod dora;
mod file;
mod folded;
mod gguf;
pub(crate) mod init;
mod lora;
mod merge;
pub(crate) mod peft;
mod scaled;
mod tensors;

use lora_drop_transformer::{Adapter, AdapterMethod, LoraPair, Model, ModuleId, ParamId, Parameters};

use crate::Result;

pub use bank::{BankPair, LoraBank, NewPairs};
pub use compact::COMPACT_FILE;
pub(crate) use file::check_token_head;
pub use file::{AdapterFile, HeadWeight, StoredPair};
pub(crate) use file::{LM_HEAD_IS_USED, untied};
pub(crate) use merge::{MergedWeights, outlines};
pub use merge::{TOKENIZER_FILES, merge, write_checkpoint};
#[cfg(feature = "hub")]
pub(crate) use peft::{CONFIG_FILE as ADAPTER_CONFIG, WEIGHTS_FILE as ADAPTER_WEIGHTS};
pub use tensors::FloatType;

/// Returns how the bank and files handle a method.
fn form(method: AdapterMethod) -> &'static Form {
    match method {
        AdapterMethod::Lora => &lora::FORM,
        AdapterMethod::Dora => &dora::FORM,
        AdapterMethod::TiedLora => &scaled::TIED_LORA,
        AdapterMethod::Vera => &scaled::VERA,
        AdapterMethod::AdaLora => &scaled::ADALORA,
    }
}

/// Number of values in the vectors that scale a module's whole weight (DoRA's magnitude), for a
/// module with this many outputs.
pub fn added_values(method: AdapterMethod, output: usize) -> usize {
    let added = form(method).vectors.iter().filter(|vector| vector.side == Side::Weight);
    added.count() * output
}

/// Whether an adapter's output follows from z = A x and B alone, as scores assume.
pub(crate) fn is_scored(method: AdapterMethod) -> bool {
    form(method).vectors.is_empty()
}

/// The methods that have a file format.
fn in_files() -> impl Iterator<Item = AdapterMethod> {
    AdapterMethod::ALL.into_iter().filter(|method| form(*method).peft != Peft::Never)
}

/// Properties of a method that the bank and files need.
struct Form {
    peft: Peft,
    /// The vectors that each module owns and never shares, in the order of their values.
    vectors: &'static [Vector],
    /// Whether only modules that share a pair have the vectors.
    of_shared: bool,
    /// Initial A (rank, in) and Bᵀ (rank, out) of a pair by the run's seed and the pair's name.
    start: StartOfPair,
    /// Builds the engine's adapter from the pair and the module's vectors, the constant last if it
    /// was computed.
    adapter: fn(LoraPair, &[ParamId]) -> Adapter,
    /// Precomputes, for a model that does not train, a vector that each pass would otherwise
    /// compute from weights and parameters.
    constant: Option<OfWeight>,
    /// Turns a row of W + s · B A into a row of the adapted weight, by the row's value in a vector
    /// of [`Side::Weight`].
    merge: fn(&mut [f64], f64),
}

impl Form {
    /// Returns the vectors of a module; `shared` says whether its pair is shared.
    fn vectors(&self, shared: bool) -> &'static [Vector] {
        if shared || !self.of_shared { self.vectors } else { &[] }
    }

    /// Number of values in all of a module's vectors.
    fn own_values(&self, shared: bool, rank: usize, output: usize) -> usize {
        self.vectors(shared).iter().map(|vector| vector.side.len(rank, output)).sum()
    }

    /// Splits `own` into a module's vectors; if it is too short, so are the last vectors.
    fn split<'a>(&self, own: &'a [f32], rank: usize, output: usize) -> Vec<(&'static Vector, &'a [f32])> {
        let mut rest = own;
        let next = |vector: &'static Vector| {
            let (values, after) = rest.split_at(vector.side.len(rank, output).min(rest.len()));
            rest = after;
            (vector, values)
        };
        self.vectors.iter().map(next).collect()
    }
}

/// A method's format in PEFT's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peft {
    /// LoRA, with vectors multiplied into each module's own B; this key of the configuration, if
    /// any, is true.
    Lora(Option<&'static str>),
    /// PEFT's own type, VERA.
    Vera,
    /// No file format: the adapters are written as plain LoRA.
    Never,
}

/// A vector that each module owns.
#[derive(Clone, Copy)]
struct Vector {
    /// Its name after the module's, in `Parameters` and in the compact file.
    name: &'static str,
    /// Its name after the module's path in PEFT's file, if it is there.
    in_peft: Option<&'static str>,
    side: Side,
    start: Start,
}

/// What a vector scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// z = A x, (rank).
    Inner,
    /// B's output, (out).
    Outer,
    /// The rows of the adapted weight, (out).
    Weight,
}

impl Side {
    fn len(self, rank: usize, output: usize) -> usize {
        if self == Side::Inner { rank } else { output }
    }
}

/// A (rank, in) and Bᵀ (rank, out) from a seed, a pair's name, the rank and the widths in and out.
type StartOfPair = fn(u64, &str, usize, [usize; 2]) -> [Vec<f32>; 2];

/// A vector's initial values.
#[derive(Clone, Copy)]
enum Start {
    All(f32),
    OfWeight(OfWeight),
}

/// A vector (out) that is computed from a module's weight and, if given, its pair.
type OfWeight = fn(&Model, &Parameters, ModuleId, Option<LoraPair>) -> Result<Vec<f32>>;
