//! What is asked of a pruning: how much is kept and by what, by which rows, and where the result
//! goes.

use std::path::{Path, PathBuf};

use super::result::Pruning;
use super::selection::By;
use crate::evaluate::metrics::Metric;
use crate::reading::Reading;
use crate::settings::{Budget, RunSettings};

/// How an adapter is pruned.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    pub by: By,
    /// The fraction of the adapter's unique parameters that is kept, or the smallest that dev does
    /// not object to; None makes no choice: dev is measured at each budget.
    pub budget: Option<Budget>,
    /// The budgets at which dev is measured, each in (0, 1], where the budget is not given.
    pub budgets: Vec<f64>,
    /// Whether all pairs have one rank, the largest within the budget.
    pub equal_ranks: bool,
    /// The metric of dev; None: the task's default.
    pub metric: Option<Metric>,
    /// How far that may fall, in its own unit; None: one standard error of the whole adapter's.
    pub tolerance: Option<f64>,
    /// The share of train's rows that is read, drawn evenly over the labels, and the most rows.
    pub sample_ratio: f64,
    pub max_rows: Option<usize>,
    pub seed: u64,
    /// How the pruned adapter is trained afterwards, if it is: for `max_steps`.
    pub finetune: Option<Box<RunSettings>>,
}

impl PruneOptions {
    /// The budgets of a table where none are named.
    pub const BUDGETS: [f64; 6] = [0.75, 0.5, 0.35, 0.25, 0.125, 0.0625];
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions {
            by: By::default(),
            budget: None,
            budgets: Self::BUDGETS.to_vec(),
            equal_ranks: false,
            metric: None,
            tolerance: None,
            sample_ratio: 1.0,
            max_rows: None,
            seed: 0,
            finetune: None,
        }
    }
}

/// The adapter's data, and how its rows are read.
#[derive(Clone, Copy)]
pub struct PruneData<'a> {
    /// A folder with a train split, or one file; dev is measured where it has labels, or texts.
    pub data: &'a Path,
    pub reading: &'a Reading,
}

/// Where the result goes.
#[derive(Clone, Debug)]
pub struct PruneOutput {
    pub folder: PathBuf,
    /// Replace what an earlier `prune` has written there.
    pub overwrite: bool,
    /// recipe.toml beside a pruned adapter, by which other commands find its base and its columns.
    pub recipe: String,
    /// Makes the text of prune.html, if there is to be one.
    pub page: Option<fn(&Pruning) -> String>,
}
