//! What a pruning found and did: prune.json, `--json`, and what the table and the page are made of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::selection::By;
use crate::evaluate::Evaluation;

/// Dev with an adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub metrics: BTreeMap<String, f64>,
    pub loss: f64,
}

impl From<&Evaluation> for Measured {
    fn from(found: &Evaluation) -> Self {
        Measured { metrics: found.metrics.iter().cloned().collect(), loss: found.loss }
    }
}

/// An adapter that is kept with a budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    pub budget: f64,
    /// Values in unique pairs, and their share of the whole adapter's.
    pub parameters: usize,
    pub retained_ratio: f64,
    /// Modules that still have a LoRA, and the least and greatest rank among them.
    pub modules: usize,
    pub ranks: (usize, usize),
    /// The share of the energy by which directions are chosen.
    pub energy: f64,
    /// None where dev cannot be measured.
    pub dev: Option<Measured>,
}

/// A module of the adapter that was pruned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrunedModule {
    pub layer: usize,
    /// By the architecture's name.
    pub module: &'static str,
    pub rank: usize,
    /// The rank that is kept; None where nothing was chosen.
    pub kept: Option<usize>,
    /// Of the module's pair, falling; a shared pair's are sums over its layers.
    pub energies: Vec<f64>,
}

/// What training has made of the pruned adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finetuned {
    pub steps: usize,
    pub learning_rate: f64,
    /// Of the steps alone.
    pub seconds: f64,
    pub dev: Measured,
}

/// What was found and done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pruning {
    pub version: String,
    pub adapter: PathBuf,
    pub data: PathBuf,
    pub by: By,
    pub equal_ranks: bool,
    /// Rows of train and their tokens that the energies are sums over; 0 by svd.
    pub rows: usize,
    pub tokens: usize,
    /// Rows of dev; 0 where it cannot be measured.
    pub dev_rows: usize,
    /// The metric that decides.
    pub metric: Option<String>,
    /// Of the whole adapter's metric, and how far the metric may fall.
    pub standard_error: Option<f64>,
    pub tolerance: Option<f64>,
    /// The whole adapter, and then the budgets, falling.
    pub whole: Point,
    pub points: Vec<Point>,
    /// The number of the point that is kept.
    pub chosen: Option<usize>,
    /// The training after the pruning, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finetuned: Option<Finetuned>,
    /// By module type, then layer.
    pub modules: Vec<PrunedModule>,
    pub scoring_seconds: f64,
    pub algebra_seconds: f64,
    pub measuring_seconds: f64,
    /// The folder's files.
    pub outputs: Vec<String>,
}

impl Pruning {
    /// The point that is kept, if one was chosen.
    pub fn kept(&self) -> Option<&Point> {
        self.chosen.map(|number| &self.points[number])
    }
}
