//! The method, as data: which modules own their LoRA, which share one, which have none, and of which rank they are.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use lora_drop_transformer::{ModuleId, ModuleKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::settings::Unselected;
use crate::{Error, Result};

/// Whose LoRA a module uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A pair of its own: the module is kept.
    Own,
    /// The one pair that its module type shares.
    Shared,
    /// No LoRA.
    None,
}

/// The method, as data: every target module once, with the owner of its LoRA.
///
/// Where only one module of a type is left over, it is a shared group of one: it has as many parameters as if it
/// were kept, and it still counts as not selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    pub owners: BTreeMap<ModuleId, Owner>,
    /// The ranks of pairs that modules own, where they have another than the run's: at least 1.
    pub ranks: BTreeMap<ModuleId, usize>,
}

impl From<BTreeMap<ModuleId, Owner>> for Assignment {
    /// All pairs of the run's rank.
    fn from(owners: BTreeMap<ModuleId, Owner>) -> Self {
        Assignment { owners, ranks: BTreeMap::new() }
    }
}

impl Assignment {
    /// Plain LoRA: every module owns its pair.
    pub fn all_own(modules: impl IntoIterator<Item = ModuleId>) -> Self {
        modules.into_iter().map(|m| (m, Owner::Own)).collect::<BTreeMap<_, _>>().into()
    }

    /// Every module uses its type's pair.
    pub fn all_shared(modules: impl IntoIterator<Item = ModuleId>) -> Self {
        modules.into_iter().map(|m| (m, Owner::Shared)).collect::<BTreeMap<_, _>>().into()
    }

    /// The modules of these layers own their pair, whatever a scoring would say.
    ///
    /// # Errors
    /// `Usage` where the model has no such layer.
    pub fn of_layers(modules: Vec<ModuleId>, layers: &[usize], unselected: Unselected) -> Result<Self> {
        Ok(Self::keeping(&of_layers(&modules, layers)?, modules, unselected))
    }

    /// These modules own their pair.
    pub(crate) fn keeping(kept: &BTreeSet<ModuleId>, modules: Vec<ModuleId>, unselected: Unselected) -> Self {
        let left_over = match unselected {
            Unselected::Share => Owner::Shared,
            Unselected::Drop => Owner::None,
        };
        let owner = |id| if kept.contains(&id) { Owner::Own } else { left_over };
        modules.into_iter().map(|id| (id, owner(id))).collect::<BTreeMap<_, _>>().into()
    }

    /// The layers that own their LoRA, in rising order, for every target module type (an empty list where none does).
    pub fn kept(&self) -> BTreeMap<ModuleKind, Vec<usize>> {
        let mut kept: BTreeMap<ModuleKind, Vec<usize>> = BTreeMap::new();
        for (id, owner) in &self.owners {
            let layers = kept.entry(id.kind).or_default();
            if *owner == Owner::Own {
                layers.push(id.layer);
            }
        }
        kept
    }

    /// The module types that have a shared pair.
    pub fn shared_kinds(&self) -> BTreeSet<ModuleKind> {
        self.owners.iter().filter(|(_, o)| **o == Owner::Shared).map(|(id, _)| id.kind).collect()
    }

    /// The rank of a module's pair in a run of rank `rank`.
    pub fn rank(&self, module: ModuleId, rank: usize) -> usize {
        self.ranks.get(&module).copied().unwrap_or(rank)
    }

    /// Values in unique pairs, all of them of the run's rank: each kept module's, and one pair for each type that shares. `sizes` as
    /// in [`crate::assign::assign`].
    pub fn unique_parameters(&self, sizes: impl Fn(ModuleKind) -> usize) -> usize {
        let own: usize =
            self.owners.iter().filter(|(_, o)| **o == Owner::Own).map(|(id, _)| sizes(id.kind)).sum();
        own + self.shared_kinds().into_iter().map(sizes).sum::<usize>()
    }

    /// What plain LoRA on the same modules has.
    pub fn plain_parameters(&self, sizes: impl Fn(ModuleKind) -> usize) -> usize {
        self.owners.keys().map(|id| sizes(id.kind)).sum()
    }
}

/// One line of the serialised assignment, which is a list, because JSON has no keys but strings.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    layer: usize,
    kind: ModuleKind,
    owner: Owner,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<NonZeroUsize>,
}

impl Serialize for Assignment {
    fn serialize<S: Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        out.collect_seq(self.owners.iter().map(|(id, owner)| Line {
            layer: id.layer,
            kind: id.kind,
            owner: *owner,
            rank: self.ranks.get(id).and_then(|&rank| NonZeroUsize::new(rank)),
        }))
    }
}

impl<'de> Deserialize<'de> for Assignment {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let mut assignment = Assignment::default();
        for line in Vec::<Line>::deserialize(input)? {
            let id = ModuleId { layer: line.layer, kind: line.kind };
            assignment.ranks.extend(line.rank.map(|rank| (id, rank.get())));
            if assignment.owners.insert(id, line.owner).is_some() {
                return Err(serde::de::Error::custom(format!(
                    "layer {} {} is there twice",
                    id.layer,
                    id.kind.name()
                )));
            }
        }
        Ok(assignment)
    }
}

/// All modules of these layers.
pub(crate) fn of_layers(modules: &[ModuleId], layers: &[usize]) -> Result<BTreeSet<ModuleId>> {
    let last = modules.iter().map(|id| id.layer).max().unwrap_or(0);
    if let Some(layer) = layers.iter().find(|layer| **layer > last) {
        return Err(Error::Usage(format!(
            "--keep-layers names layer {layer}, but the model's layers are 0 to {last}"
        )));
    }
    Ok(modules.iter().filter(|id| layers.contains(&id.layer)).copied().collect())
}
