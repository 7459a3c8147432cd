//! Adapters in memory and in files: the bank, PEFT's format, a compact one, llama.cpp's, and
//! merging into the base.
//!
//! A method is a line in `form` and a file with its `Form`.

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
pub mod peft;
mod scaled;
mod tensors;

use lora_drop_transformer::{Adapter, AdapterMethod, LoraPair, Model, ModuleId, ParamId, Parameters};

use crate::Result;

pub use bank::{BankPair, LoraBank, NewPairs};
pub use compact::COMPACT_FILE;
pub use file::{AdapterFile, HeadWeight, StoredPair};
pub(crate) use merge::{MergedWeights, outlines};
pub use merge::{TOKENIZER_FILES, merge, write_checkpoint};
pub use tensors::FloatType;

/// What the bank and files know of a method.
fn form(method: AdapterMethod) -> &'static Form {
    match method {
        AdapterMethod::Lora => &lora::FORM,
        AdapterMethod::Dora => &dora::FORM,
        AdapterMethod::TiedLora => &scaled::TIED_LORA,
        AdapterMethod::Vera => &scaled::VERA,
        AdapterMethod::AdaLora => &scaled::ADALORA,
    }
}

/// Values that each module of this many outputs has beside A and B, where the method adds them to
/// plain LoRA's.
pub fn added_values(method: AdapterMethod, output: usize) -> usize {
    let added = form(method).vectors.iter().filter(|vector| vector.side == Side::Weight);
    added.count() * output
}

/// Whether z says all of an adapter's output, which scores are made of.
pub fn is_scored(method: AdapterMethod) -> bool {
    form(method).vectors.is_empty()
}

/// The methods that files may have.
fn in_files() -> impl Iterator<Item = AdapterMethod> {
    AdapterMethod::ALL.into_iter().filter(|method| form(*method).peft != Peft::Never)
}

/// A method as the bank and files have it.
struct Form {
    peft: Peft,
    /// What each module has of its own, never shared: pieces of one list, in this order.
    vectors: &'static [Vector],
    /// Whether only modules that share a pair have them.
    of_shared: bool,
    /// Initial A (rank, in) and Bᵀ (rank, out) of a pair by the run's seed and the pair's name.
    start: StartOfPair,
    /// What the engine computes with: the pair, and the vectors that the module has, with the
    /// constant after them.
    adapter: fn(LoraPair, &[ParamId]) -> Adapter,
    /// What each pass would compute of weights and parameters, once and for all, for a model that
    /// is used and not trained.
    constant: Option<OfWeight>,
    /// Turns a row of W + s · B A into the adapted weight's, by the value of that row in a vector
    /// of [`Side::Weight`].
    merge: fn(&mut [f64], f64),
}

impl Form {
    /// The vectors of a module, by whether its pair is a shared one.
    fn vectors(&self, shared: bool) -> &'static [Vector] {
        if shared || !self.of_shared { self.vectors } else { &[] }
    }

    /// Values in a module's vectors, one after the other.
    fn own_values(&self, shared: bool, rank: usize, output: usize) -> usize {
        self.vectors(shared).iter().map(|vector| vector.side.len(rank, output)).sum()
    }

    /// A module's vectors with their values in `own`; where that is too short, the last ones have
    /// less than their length.
    fn split<'a>(&self, own: &'a [f32], rank: usize, output: usize) -> Vec<(&'static Vector, &'a [f32])> {
        let mut rest = own;
        let next = |vector: &'static Vector| {
            let (values, behind) = rest.split_at(vector.side.len(rank, output).min(rest.len()));
            rest = behind;
            (vector, values)
        };
        self.vectors.iter().map(next).collect()
    }
}

/// How PEFT's files have a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peft {
    /// As LoRA, where vectors are worked into each module's own B; and with a key of the
    /// configuration that is true.
    Lora(Option<&'static str>),
    /// With a type of its own.
    Vera,
    /// No file has it: its adapters are written as plain LoRA.
    Never,
}

/// A vector that each module has.
#[derive(Clone, Copy)]
struct Vector {
    /// After the module's name, in `Parameters` and in the compact file.
    name: &'static str,
    /// After the module's path in PEFT's file, where that has it.
    in_peft: Option<&'static str>,
    side: Side,
    start: Start,
}

/// What a vector scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// z, (rank).
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

/// A vector (out) made of a module's weight and, where it is given, its pair.
type OfWeight = fn(&Model, &Parameters, ModuleId, Option<LoraPair>) -> Result<Vec<f32>>;
