//! Scores → assignment: which modules own their LoRA, which share one, which have none.

use std::collections::BTreeMap;

use lora_drop_transformer::ModuleId;

/// Whose LoRA a module uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pair of its own: the module is kept.
    Own,
    /// The one pair that its module type shares.
    Shared,
    /// No LoRA.
    None,
}

/// The method, as data: every target module once, with the owner of its LoRA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    pub owners: BTreeMap<ModuleId, Owner>,
}
