//! What a linear layer needs to know of its LoRA: which pair, and how strong.

use crate::module::{ModuleId, ModuleKind};
use crate::parameters::ParamId;

/// One LoRA pair, y += scale · B A x (LoRA, Hu et al. 2022, eq. 3).
///
/// `b` is stored transposed, (rank, out), because then every product of the step has its long side
/// last: y += (x Aᵀ) Bᵀ, and dBᵀ = zᵀ dy. Adapter files hold (out, rank); the bank turns it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPair {
    /// (rank, in)
    pub a: ParamId,
    /// (rank, out): B transposed
    pub b: ParamId,
    pub rank: usize,
    /// alpha / rank, or alpha / sqrt(rank)
    pub scale: f32,
}

/// The pair of each module, or none. Several modules may name the same pair: its gradient is then the sum over them.
#[derive(Clone, Debug, Default)]
pub struct LoraTable {
    layers: Vec<[Option<LoraPair>; ModuleKind::ALL.len()]>,
}

impl LoraTable {
    pub fn empty(layers: usize) -> Self {
        LoraTable { layers: vec![[None; ModuleKind::ALL.len()]; layers] }
    }

    pub fn set(&mut self, module: ModuleId, pair: Option<LoraPair>) {
        self.layers[module.layer][module.kind as usize] = pair;
    }

    pub fn get(&self, module: ModuleId) -> Option<LoraPair> {
        self.layers[module.layer][module.kind as usize]
    }

    /// The rank of the module's pair; 0 where it has none.
    pub fn rank(&self, module: ModuleId) -> usize {
        self.get(module).map_or(0, |pair| pair.rank)
    }
}
