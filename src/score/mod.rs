//! How important each module is, by criteria of one file each.

use lora_drop_transformer::ModuleKind;

/// One scored module.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleScore {
    pub layer: usize,
    pub kind: ModuleKind,
    /// g: the sum over the sample's real tokens of the squared norm of the module's LoRA output (paper.md, step 3).
    pub score: f64,
    /// I: the share of g in its ranking (module type, or all modules).
    pub importance: f64,
}

/// The scores of all target modules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// Sorted by kind, then layer.
    pub modules: Vec<ModuleScore>,
    /// Rows and real tokens of the sample.
    pub rows: usize,
    pub tokens: usize,
    /// Optimiser steps before the scoring, and whether the ranking had settled by then.
    pub steps: usize,
    pub settled: bool,
    /// Scorings on the way: the step, and Kendall's tau against the scoring before.
    pub history: Vec<(usize, f64)>,
}
