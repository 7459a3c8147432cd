//! Pruning of a trained adapter in closed form, without gradient steps: each pair's output is
//! decomposed into directions ([`Directions`]), those with the most energy are kept ([`ranks`]), and
//! dev is measured at each budget ([`run`]).

mod directions;
mod noise;
mod options;
mod pruner;
mod result;
mod run;
mod selection;

pub use directions::{Directions, Factors};
pub use noise::DevAnswers;
pub use options::{PruneData, PruneOptions, PruneOutput};
pub use result::{Finetuned, Measured, Point, PrunedModule, Pruning};
pub use run::run;
pub use selection::{By, Candidate, equal_rank, kept_energy, parameters, ranks};
