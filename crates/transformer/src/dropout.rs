//! Dropout's random numbers: one key per sequence, into which the site in the model and then the row
//! are folded.

use lora_drop_compute::random::{Dropout, Key};

use crate::module::ModuleId;

/// Dropout in a training pass.
#[derive(Clone, Copy)]
pub struct DropoutPlan<'a> {
    pub hidden: Dropout,
    pub attention: Dropout,
    pub head: Dropout,
    pub lora: Dropout,
    /// One key per sequence, for this step and the sequence's place in it.
    pub keys: &'a [Key],
}

/// The places in a model with dropout, as numbers to fold into a sequence's key.
#[derive(Clone, Copy, Debug)]
pub enum Site {
    Embedding,
    HeadInput,
    HeadInner,
    Attention(usize),
    AttentionOutput(usize),
    Output(usize),
    Lora(ModuleId),
}

impl Site {
    pub fn number(self) -> u64 {
        let in_block = |layer: usize, n: usize| (16 * (layer + 1) + n) as u64;
        match self {
            Site::Embedding => 0,
            Site::HeadInput => 1,
            Site::HeadInner => 2,
            Site::Attention(layer) => in_block(layer, 0),
            Site::AttentionOutput(layer) => in_block(layer, 1),
            Site::Output(layer) => in_block(layer, 2),
            Site::Lora(module) => in_block(module.layer, 8 + module.kind as usize),
        }
    }
}

/// The dropout of a site with its keys, one per row or per sequence; None if nothing is dropped.
#[derive(Default)]
pub struct SiteKeys(pub Option<(Dropout, Vec<Key>)>);

impl SiteKeys {
    pub fn get(&self) -> Option<(Dropout, &[Key])> {
        self.0.as_ref().map(|(dropout, keys)| (*dropout, keys.as_slice()))
    }
}
