//! The result of a pruning: the contents of prune.json, which the table and the page show.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::selection::PruneCriterion;
use crate::evaluate::Evaluation;

/// Measurements of dev with an adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Metrics by name.
    pub metrics: BTreeMap<String, f64>,
    /// Mean loss.
    pub loss: f64,
}

impl From<&Evaluation> for Measured {
    fn from(found: &Evaluation) -> Self {
        Measured { metrics: found.metrics.iter().cloned().collect(), loss: found.loss }
    }
}

/// The adapter at a budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The fraction of the adapter's values that was allowed.
    pub budget: f64,
    /// Values in unique pairs.
    pub parameters: usize,
    /// Their share of the whole adapter's.
    pub retained_ratio: f64,
    /// Modules that still have a LoRA.
    pub modules: usize,
    /// The smallest and largest rank among them.
    pub ranks: (usize, usize),
    /// Share of the energy that is kept.
    pub energy: f64,
    /// Dev with this adapter; None if it cannot be measured.
    pub dev: Option<Measured>,
}

/// A module of the pruned adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrunedModule {
    /// The layer, from 0.
    pub layer: usize,
    /// The architecture's name of the module type.
    pub module: &'static str,
    /// The rank before pruning.
    pub rank: usize,
    /// The rank that is kept; None if no budget was chosen.
    pub kept: Option<usize>,
    /// Energies of the directions of the module's pair, descending; summed over the layers of a
    /// shared pair.
    pub energies: Vec<f64>,
}

/// Further training of the pruned adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finetuned {
    /// Optimiser steps.
    pub steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Seconds of the steps alone.
    pub seconds: f64,
    /// Dev after the steps.
    pub dev: Measured,
}

/// The result of a pruning.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pruning {
    /// lora-drop's version.
    pub version: String,
    /// The adapter that was pruned.
    pub adapter: PathBuf,
    /// The data whose rows were used.
    pub data: PathBuf,
    /// What decided which directions are kept.
    pub by: PruneCriterion,
    /// Whether all pairs have one rank.
    pub equal_ranks: bool,
    /// Number of rows of train over which the energies are summed; 0 by svd.
    pub rows: usize,
    /// Tokens of these rows.
    pub tokens: usize,
    /// Rows of dev; 0 if it cannot be measured.
    pub dev_rows: usize,
    /// The metric on dev that decides.
    pub metric: Option<String>,
    /// Standard error of the whole adapter's metric.
    pub standard_error: Option<f64>,
    /// Tolerated worsening of the metric.
    pub tolerance: Option<f64>,
    /// The whole adapter.
    pub whole: Point,
    /// The budgets, descending.
    pub points: Vec<Point>,
    /// The index in `points` of the budget that is kept.
    pub chosen: Option<usize>,
    /// The training after the pruning, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finetuned: Option<Finetuned>,
    /// All modules, by type, then layer.
    pub modules: Vec<PrunedModule>,
    /// Seconds of the pass over train.
    pub scoring_seconds: f64,
    /// Seconds of decomposing and cutting pairs.
    pub algebra_seconds: f64,
    /// Seconds of measuring dev.
    pub measuring_seconds: f64,
    /// Names of the files in the output folder.
    pub outputs: Vec<String>,
}

impl Pruning {
    /// Returns the point that is kept, if a budget was chosen.
    pub fn kept(&self) -> Option<&Point> {
        self.chosen.map(|number| &self.points[number])
    }
}
