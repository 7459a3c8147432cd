//! Second moments of z = s·A x, from which LoRA-drop's score follows without another pass (docs/method.md, step 3).
//!
//! ‖s B A x‖² = zᵀ(BᵀB)z, so the sum over tokens needs only Σ z zᵀ, an r × r matrix per module.

use std::collections::BTreeMap;

use crate::module::ModuleId;

/// Σ z zᵀ over the tokens seen, by module; (rank, rank), in f64 and in an order that does not depend on the threads.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    sums: BTreeMap<ModuleId, Vec<f64>>,
}

impl Moments {
    pub fn new() -> Self {
        Self::default()
    }

    /// The moment of a module: (rank, rank); None when nothing was added.
    pub fn get(&self, module: ModuleId) -> Option<&[f64]> {
        self.sums.get(&module).map(Vec::as_slice)
    }

    /// All of them, by module.
    pub fn iter(&self) -> impl Iterator<Item = (ModuleId, &[f64])> {
        self.sums.iter().map(|(&module, moment)| (module, &moment[..]))
    }

    /// Adds those of other tokens.
    pub fn add_all(&mut self, other: &Moments) {
        for (&module, moment) in &other.sums {
            let sum = self.sums.entry(module).or_insert_with(|| vec![0.0; moment.len()]);
            sum.iter_mut().zip(moment).for_each(|(sum, x)| *sum += x);
        }
    }

    /// The moment of a module whose z is so wide, to be added to.
    pub fn of(&mut self, module: ModuleId, rank: usize) -> &mut [f64] {
        self.sums.entry(module).or_insert_with(|| vec![0.0; rank * rank])
    }
}
