//! Settings of a pruning: how, with which rows, and where the result is written.

use std::path::{Path, PathBuf};

use super::result::Pruning;
use super::selection::PruneCriterion;
use crate::evaluate::metrics::Metric;
use crate::reading::Reading;
use crate::settings::{Budget, RunSettings};

/// Settings of a pruning.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// What decides which directions are kept.
    pub by: PruneCriterion,
    /// The fraction of the adapter's unique values that is kept, or the smallest one with which
    /// dev's metric stays within `tolerance`; `None` measures dev at each budget and chooses none.
    pub budget: Option<Budget>,
    /// The budgets, each in (0, 1], at which dev is measured if no fraction is given.
    pub budgets: Vec<f64>,
    /// Whether all pairs have one rank, the largest within the budget.
    pub equal_ranks: bool,
    /// The metric on dev that decides; `None` is the task's default.
    pub metric: Option<Metric>,
    /// Tolerated worsening of the metric, in its own unit; `None` is one standard error of the
    /// whole adapter's.
    pub tolerance: Option<f64>,
    /// Share of train's rows over which the energies are summed, stratified by label.
    pub sample_ratio: f64,
    /// Largest number of these rows; `None` is no limit.
    pub max_rows: Option<usize>,
    /// Seed of the draw.
    pub seed: u64,
    /// Settings with which the pruned adapter is trained further, for `max_steps`; `None` skips
    /// this.
    pub finetune: Option<Box<RunSettings>>,
}

impl PruneOptions {
    /// The default budgets.
    pub const BUDGETS: [f64; 6] = [0.75, 0.5, 0.35, 0.25, 0.125, 0.0625];
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions {
            by: PruneCriterion::default(),
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
    /// A folder with a train split, or one file; dev is measured if it has labels or texts.
    pub data: &'a Path,
    /// How its rows are read.
    pub reading: &'a Reading,
}

/// Where the result is written.
#[derive(Clone, Debug)]
pub struct PruneOutput {
    /// The output folder.
    pub folder: PathBuf,
    /// Whether to replace what an earlier pruning has written there.
    pub overwrite: bool,
    /// The text of recipe.toml, in which other commands find the adapter's base and columns.
    pub recipe: String,
    /// Renders the text of prune.html; `None` writes no page.
    pub page: Option<fn(&Pruning) -> String>,
}
