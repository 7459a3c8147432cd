//! Adapters in memory ([`LoraBank`]) and in files ([`AdapterFile`]: PEFT's format, the compact
//! format and llama.cpp's), and merging into the base ([`merge`]).
//!
//! To add a method, add a line to `spec` and a file with its `MethodSpec`.

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
pub(crate) use merge::{MergedWeights, weight_shapes};
pub use merge::{TOKENIZER_FILES, merge, write_checkpoint};
#[cfg(feature = "hub")]
pub(crate) use peft::{CONFIG_FILE as ADAPTER_CONFIG, WEIGHTS_FILE as ADAPTER_WEIGHTS};
pub use tensors::FloatType;

/// Returns how the bank and files handle a method.
fn spec(method: AdapterMethod) -> &'static MethodSpec {
    match method {
        AdapterMethod::Lora => &lora::SPEC,
        AdapterMethod::Dora => &dora::SPEC,
        AdapterMethod::TiedLora => &scaled::TIED_LORA,
        AdapterMethod::Vera => &scaled::VERA,
        AdapterMethod::AdaLora => &scaled::ADALORA,
    }
}

/// Number of values in the vectors that scale a module's whole weight (DoRA's magnitude), for a
/// module with this many outputs.
pub fn added_values(method: AdapterMethod, output: usize) -> usize {
    let added = spec(method).vectors.iter().filter(|vector| vector.side == Side::Weight);
    added.count() * output
}

/// Whether an adapter's output follows from z = A x and B alone, as scores assume.
pub(crate) fn is_scored(method: AdapterMethod) -> bool {
    spec(method).vectors.is_empty()
}

/// The methods that have a file format.
fn methods_in_files() -> impl Iterator<Item = AdapterMethod> {
    AdapterMethod::ALL.into_iter().filter(|method| spec(*method).peft != PeftFormat::Never)
}

/// Properties of a method that the bank and files need.
struct MethodSpec {
    peft: PeftFormat,
    /// The vectors that each module owns and never shares, in the order of their values.
    vectors: &'static [Vector],
    /// Whether only modules that share a pair have vectors.
    only_if_shared: bool,
    /// Initial A (rank, in) and Bᵀ (rank, out) of a pair by the run's seed and the pair's name.
    init_pair: PairInit,
    /// Builds the engine's adapter from the pair, the module's vectors, and the constant if it was
    /// precomputed.
    adapter: fn(LoraPair, &[ParamId], Option<ParamId>) -> Adapter,
    /// Precomputes, for a model that does not train, a vector that each pass would otherwise
    /// compute from weights and parameters.
    constant: Option<FromWeight>,
    /// Turns a row of W + s · B A into a row of the adapted weight, by the row's value in a vector
    /// of [`Side::Weight`].
    merge: fn(&mut [f64], f64),
}

impl MethodSpec {
    /// Returns the vectors of a module; `shared` says whether its pair is shared.
    fn vectors(&self, shared: bool) -> &'static [Vector] {
        if shared || !self.only_if_shared { self.vectors } else { &[] }
    }

    /// Number of values in all of a module's vectors.
    fn vector_values(&self, shared: bool, rank: usize, output: usize) -> usize {
        self.vectors(shared).iter().map(|vector| vector.side.len(rank, output)).sum()
    }

    /// Splits a module's values into its vectors; if there are too few, the last vectors are short.
    fn split<'a>(&self, values: &'a [f32], rank: usize, output: usize) -> Vec<(&'static Vector, &'a [f32])> {
        let mut rest = values;
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
enum PeftFormat {
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
    peft_name: Option<&'static str>,
    side: Side,
    init: VectorInit,
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
type PairInit = fn(u64, &str, usize, [usize; 2]) -> [Vec<f32>; 2];

/// A vector's initial values.
#[derive(Clone, Copy)]
enum VectorInit {
    Constant(f32),
    FromWeight(FromWeight),
}

/// A vector (out) that is computed from a module's weight and, if given, its pair.
type FromWeight = fn(&Model, &Parameters, ModuleId, Option<LoraPair>) -> Result<Vec<f32>>;
