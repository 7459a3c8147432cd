//! Observation of modules with adapters. In each forward pass an observer is shown a module's input
//! and z, and adds to its sums by module; passes do not know how these are used.

use std::collections::BTreeMap;

use lora_drop_compute::device::{Cpu, Device, Piece, Result};

use crate::module::ModuleId;

/// Sums by module, in f64 and in an order that does not depend on the threads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observations {
    sums: BTreeMap<ModuleId, Vec<f64>>,
}

impl Observations {
    /// No sums.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sums of a module; None if nothing was added.
    pub fn get(&self, module: ModuleId) -> Option<&[f64]> {
        self.sums.get(&module).map(Vec::as_slice)
    }

    /// All sums, by module.
    pub fn iter(&self) -> impl Iterator<Item = (ModuleId, &[f64])> {
        self.sums.iter().map(|(&module, sums)| (module, &sums[..]))
    }

    /// Adds the sums of other tokens.
    pub fn merge(&mut self, other: &Observations) {
        for (&module, added) in &other.sums {
            let sums = self.of(module, added.len());
            sums.iter_mut().zip(added).for_each(|(sum, x)| *sum += x);
        }
    }

    /// The `count` sums of a module, to be added to; zeros at first.
    pub fn of(&mut self, module: ModuleId, count: usize) -> &mut [f64] {
        self.sums.entry(module).or_insert_with(|| vec![0.0; count])
    }
}

/// A module's input and z in a forward pass, over all tokens.
pub struct Seen<'m, D: Device = Cpu> {
    pub device: &'m D,
    /// The buffer of the pieces.
    pub memory: &'m D::Buffer,
    pub module: ModuleId,
    /// The input, before dropout: (tokens, in).
    pub x: Piece,
    /// z = s·A x: (tokens, rank).
    pub z: Piece,
    /// Width of z.
    pub rank: usize,
}

/// Called with every module that has an adapter in every forward pass. Concurrent parts of a step
/// have separate observations, which are merged in the order of the parts.
pub trait Observer<D: Device = Cpu>: Sync {
    /// Adds to the module's sums.
    ///
    /// # Errors
    /// The device fails.
    fn forward(&self, seen: Seen<D>, observations: &mut Observations) -> Result<()>;
}

/// An observer and its sums.
pub struct Observing<'a, D: Device = Cpu> {
    pub observer: &'a dyn Observer<D>,
    pub observations: &'a mut Observations,
}

/// Sums Σ z zᵀ, (rank, rank), over the tokens. ‖s B A x‖² = zᵀ(BᵀB)z, so these give the sum of
/// LoRA's squared outputs for any B (docs/method.md, step 3).
pub struct SecondMoments;

impl<D: Device> Observer<D> for SecondMoments {
    fn forward(&self, seen: Seen<D>, observations: &mut Observations) -> Result<()> {
        let Seen { device, memory, module, z, rank, .. } = seen;
        device.second_moment(memory, z, rank, observations.of(module, rank * rank))
    }
}
