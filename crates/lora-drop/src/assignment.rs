//! The method as data: which modules own their LoRA, which share one, which have none, and the ranks
//! of the pairs.

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
    /// The module's own pair: it is kept.
    Own,
    /// The one pair that its module type shares.
    Shared,
    /// No LoRA.
    None,
}

/// The method as data: every target module with the owner of its LoRA.
///
/// If only one module of a type is not kept, it is a shared group of one: it has as many values as
/// if it were kept, and still counts as not selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Whose LoRA each target module uses.
    pub owners: BTreeMap<ModuleId, Owner>,
    /// The ranks of pairs that differ from the run's: at least 1, and the same for all modules that
    /// share a pair. The scale is the run's in any case.
    pub ranks: BTreeMap<ModuleId, usize>,
}

/// What the modules that are not kept get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// A shared LoRA, a shared LoRA scaled by vectors of each module, or none.
    pub unselected: Unselected,
    /// The rank of shared pairs, if it differs from the run's.
    pub shared_rank: Option<usize>,
}

impl Rest {
    pub(crate) fn owner(self) -> Owner {
        if self.unselected.shares() { Owner::Shared } else { Owner::None }
    }
}

impl From<Unselected> for Rest {
    /// With shared pairs of the run's rank.
    fn from(unselected: Unselected) -> Self {
        Rest { unselected, shared_rank: None }
    }
}

/// Numbers of values in the LoRAs of a module type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Values of a kept module's pair.
    pub own: usize,
    /// Values of the pair that the other modules share.
    pub shared: usize,
    /// Values of the vectors that each of these other modules has of its own.
    pub each: usize,
}

impl Sizes {
    /// Values of a module type if `kept` of its `layers` modules are kept.
    pub(crate) fn total(self, kept: usize, layers: usize, unselected: Unselected) -> usize {
        let rest = match unselected.shares() && kept < layers {
            true => self.shared + (layers - kept) * self.each,
            false => 0,
        };
        kept * self.own + rest
    }
}

impl From<usize> for Sizes {
    /// All pairs have this size, and modules have nothing in addition.
    fn from(size: usize) -> Self {
        Sizes { own: size, shared: size, each: 0 }
    }
}

impl From<BTreeMap<ModuleId, Owner>> for Assignment {
    /// With pairs of the run's rank.
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

    /// The modules of these layers own their pair, without scores.
    ///
    /// # Errors
    /// `Error::Usage` for a layer that the model does not have.
    pub fn of_layers(modules: Vec<ModuleId>, layers: &[usize], rest: Rest) -> Result<Self> {
        Ok(Self::keeping(&of_layers(&modules, layers)?, modules, rest))
    }

    /// The modules in `kept` own their pair; the others get what `rest` says.
    pub(crate) fn keeping(
        kept: &BTreeSet<ModuleId>,
        modules: impl IntoIterator<Item = ModuleId>,
        rest: Rest,
    ) -> Self {
        let owner = |id| if kept.contains(&id) { Owner::Own } else { rest.owner() };
        let owners: BTreeMap<_, _> = modules.into_iter().map(|id| (id, owner(id))).collect();
        let shared = owners.iter().filter(|(_, owner)| **owner == Owner::Shared);
        let ranks = shared.filter_map(|(id, _)| Some((*id, rest.shared_rank?))).collect();
        Assignment { owners, ranks }
    }

    /// For every target module type the layers that own their LoRA, rising; the list may be empty.
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

    /// The rank of a module's pair in a run whose rank is `rank`.
    pub fn rank(&self, module: ModuleId, rank: usize) -> usize {
        self.ranks.get(&module).copied().unwrap_or(rank)
    }

    /// Number of values in unique pairs: those of each kept module, and for each type that shares one
    /// pair and the vectors of its modules. `sizes` as in [`crate::assign::assign`].
    pub fn unique_parameters(&self, sizes: impl Fn(ModuleKind) -> Sizes) -> usize {
        let of_module = |(id, owner): (&ModuleId, &Owner)| match owner {
            Owner::Own => sizes(id.kind).own,
            Owner::Shared => sizes(id.kind).each,
            Owner::None => 0,
        };
        let modules: usize = self.owners.iter().map(of_module).sum();
        modules + self.shared_kinds().into_iter().map(|kind| sizes(kind).shared).sum::<usize>()
    }

    /// Number of values that plain LoRA on the same modules has.
    pub fn plain_parameters(&self, sizes: impl Fn(ModuleKind) -> Sizes) -> usize {
        self.owners.keys().map(|id| sizes(id.kind).own).sum()
    }
}

/// An element of the serialised assignment, which is a list because keys of JSON are strings.
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
                    "layer {} {} occurs twice",
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
            "`keep_layers` names layer {layer}, but the model's layers are 0 to {last}"
        )));
    }
    Ok(modules.iter().filter(|id| layers.contains(&id.layer)).copied().collect())
}
