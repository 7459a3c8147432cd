//! What is observed of the modules that have a LoRA. In each forward pass an observer is shown what
//! a module takes and gives, and adds to sums of its own by module; no pass knows what is made of
//! them.

use std::collections::BTreeMap;

use lora_drop_compute::device::{Cpu, Device, Piece, Result};

use crate::module::ModuleId;

/// Sums of what was observed, by module: in f64, and in an order that does not depend on the
/// threads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observations {
    sums: BTreeMap<ModuleId, Vec<f64>>,
}

impl Observations {
    pub fn new() -> Self {
        Self::default()
    }

    /// The sums of a module; None when nothing was added.
    pub fn get(&self, module: ModuleId) -> Option<&[f64]> {
        self.sums.get(&module).map(Vec::as_slice)
    }

    /// All of them, by module.
    pub fn iter(&self) -> impl Iterator<Item = (ModuleId, &[f64])> {
        self.sums.iter().map(|(&module, sums)| (module, &sums[..]))
    }

    /// Adds those of other tokens.
    pub fn merge(&mut self, other: &Observations) {
        for (&module, added) in &other.sums {
            let sums = self.of(module, added.len());
            sums.iter_mut().zip(added).for_each(|(sum, x)| *sum += x);
        }
    }

    /// The `count` sums of a module, to be added to; zeros the first time.
    pub fn of(&mut self, module: ModuleId, count: usize) -> &mut [f64] {
        self.sums.entry(module).or_insert_with(|| vec![0.0; count])
    }
}

/// What a module takes and gives in a forward pass, over all tokens.
pub struct Seen<'m, D: Device = Cpu> {
    pub device: &'m D,
    /// Where the pieces lie.
    pub memory: &'m D::Buffer,
    pub module: ModuleId,
    /// The input, before any dropout of LoRA's: (tokens, in).
    pub x: Piece,
    /// z = s·A x: (tokens, rank).
    pub z: Piece,
    pub rank: usize,
}

/// Sees every module that has a LoRA in every forward pass. Parts of a step that run concurrently
/// have observations of their own, which are merged in the order of the parts.
pub trait Observer<D: Device = Cpu>: Sync {
    /// Adds what it makes of a module to the module's sums.
    ///
    /// # Errors
    /// The device fails.
    fn forward(&self, seen: Seen<D>, observations: &mut Observations) -> Result<()>;
}

/// An observer, and where its sums go.
pub struct Observing<'a, D: Device = Cpu> {
    pub observer: &'a dyn Observer<D>,
    pub observations: &'a mut Observations,
}

/// Σ z zᵀ, (rank, rank), over the tokens: ‖s B A x‖² = zᵀ(BᵀB)z, so the sum of LoRA's squared
/// outputs needs nothing else (docs/method.md, step 3).
pub struct SecondMoments;

impl<D: Device> Observer<D> for SecondMoments {
    fn forward(&self, seen: Seen<D>, observations: &mut Observations) -> Result<()> {
        let Seen { device, memory, module, z, rank, .. } = seen;
        device.second_moment(memory, z, rank, observations.of(module, rank * rank))
    }
}
