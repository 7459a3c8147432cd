//! Pruning of a trained adapter in closed form, without gradient steps: each pair's output is taken apart into directions
//! (`directions`), those with the most energy for their parameters stay (`selection`), and dev says what that costs (`run`).

mod directions;
mod noise;
mod run;
mod selection;

pub use directions::{Directions, Factors};
pub use noise::Outcomes;
pub use run::{Budget, Measured, Place, Point, PruneOptions, PrunedModule, Pruning, Rows, run};
pub use selection::{By, Candidate, equal_rank, kept_energy, parameters, ranks};
