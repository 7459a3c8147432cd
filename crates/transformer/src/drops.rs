//! Dropout's random numbers: a key for each sequence, the places of a model folded in, then rows.

use lora_drop_compute::random::{Dropout, Key};

use crate::module::ModuleId;

/// Dropout in a training pass.
#[derive(Clone, Copy)]
pub struct DropoutPlan<'a> {
    pub hidden: Dropout,
    pub attention: Dropout,
    pub head: Dropout,
    pub lora: Dropout,
    /// One key per sequence, of this step and this sequence's place in it.
    pub keys: &'a [Key],
}

/// The places of a model that drop, as numbers to fold into a sequence's key.
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

/// Keys of a site, or none where nothing drops.
pub struct SiteKeys(Option<(Dropout, Vec<Key>)>);

impl SiteKeys {
    pub const NONE: SiteKeys = SiteKeys(None);

    /// A key for each row, by sequence and position; `rows` says how many of a sequence's tokens
    /// there are.
    pub fn of_rows(
        drops: Option<DropoutPlan>,
        offsets: &[usize],
        rows: impl Fn(usize) -> usize,
        site: Site,
        which: impl Fn(&DropoutPlan) -> Dropout,
    ) -> Self {
        SiteKeys(drops.filter(|d| which(d).is_active()).map(|drops| {
            let keys = offsets.windows(2).zip(drops.keys).flat_map(|(ends, key)| {
                let key = key.fold(site.number());
                (0..rows(ends[1] - ends[0])).map(move |position| key.fold(position as u64))
            });
            (which(&drops), keys.collect())
        }))
    }

    /// A key for each sequence.
    pub fn of_sequences(
        drops: Option<DropoutPlan>,
        site: Site,
        which: impl Fn(&DropoutPlan) -> Dropout,
    ) -> Self {
        let keys = |drops: DropoutPlan| drops.keys.iter().map(|key| key.fold(site.number())).collect();
        SiteKeys(drops.filter(|d| which(d).is_active()).map(|drops| (which(&drops), keys(drops))))
    }

    pub fn get(&self) -> Option<(Dropout, &[Key])> {
        self.0.as_ref().map(|(dropout, keys)| (*dropout, keys.as_slice()))
    }
}
