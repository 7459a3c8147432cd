//! Pruning of a trained adapter in closed form, without gradient steps: [`run`] decomposes each
//! pair's output into directions, keeps those with the most energy, and measures dev at each budget
//! (docs/prune.md).

mod directions;
mod noise;
mod options;
mod pruner;
mod result;
mod run;
mod selection;

pub use options::{PruneData, PruneOptions, PruneOutput};
pub use result::{Finetuned, Measured, Point, PrunedModule, Pruning};
pub use run::run;
pub use selection::PruneCriterion;
