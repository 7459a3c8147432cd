//! Stand-ins for the rooms that arrive from other branches, so that the command line compiles against their signatures.

use crate::error::{Error, Result};

fn not_built<T>() -> Result<T> {
    Err(Error::Input("not built yet".to_string()))
}

pub mod train {
    use std::path::Path;

    use super::not_built;
    use crate::assign::Assignment;
    use crate::cancel::Cancel;
    use crate::error::Result;
    use crate::events::Event;
    use crate::score::Importance;
    use crate::settings::TrainSettings;
    use crate::summary::{DataFacts, ModelFacts, Summary};

    /// What a run would be: found without training.
    #[derive(Clone, Debug, serde::Serialize)]
    pub struct Plan {
        pub model: ModelFacts,
        pub data: DataFacts,
        pub trainable_parameters: usize,
        pub lora_parameters_full: usize,
        /// Optimiser steps of stage 3.
        pub steps: usize,
        /// Foreseen peak of resident memory.
        pub memory_bytes: u64,
        /// Foreseen time of the whole run.
        pub seconds: f64,
    }

    pub fn run(_: &TrainSettings, _: &Cancel, _: &mut dyn FnMut(&Event)) -> Result<Summary> {
        not_built()
    }

    pub fn plan(_: &TrainSettings) -> Result<Plan> {
        not_built()
    }

    pub fn score(
        _: &TrainSettings,
        _adapter: Option<&Path>,
        _: &Cancel,
        _: &mut dyn FnMut(&Event),
    ) -> Result<(Importance, Assignment)> {
        not_built()
    }
}

pub mod evaluate {
    use std::path::Path;

    use super::not_built;
    use crate::cancel::Cancel;
    use crate::data::ColumnNames;
    use crate::error::Result;
    use crate::events::Event;

    /// A model with its head, ready to predict.
    pub struct Predictor {}

    #[derive(Clone, Debug, serde::Serialize)]
    pub struct Evaluation {
        pub loss: f64,
        pub metrics: Vec<(String, f64)>,
        pub rows: usize,
        pub tokens: usize,
        pub seconds: f64,
    }

    #[derive(Clone, Debug)]
    pub struct Prediction {
        pub label: String,
        pub index: Option<usize>,
        pub scores: Vec<(String, f32)>,
        pub logits: Vec<f32>,
    }

    impl Predictor {
        pub fn open(
            _model: &str,
            _adapter: Option<&Path>,
            _threads: usize,
            _max_length: usize,
        ) -> Result<Self> {
            not_built()
        }

        pub fn evaluate(
            &mut self,
            _data: &Path,
            _split: &str,
            _columns: &ColumnNames,
            _: &Cancel,
            _: &mut dyn FnMut(&Event),
        ) -> Result<Evaluation> {
            not_built()
        }

        pub fn predict(&mut self, _rows: &[(String, Option<String>)]) -> Result<Vec<Prediction>> {
            not_built()
        }
    }
}

pub mod merge {
    use std::path::Path;

    use super::not_built;
    use crate::error::Result;

    #[derive(Clone, Debug, serde::Serialize)]
    pub struct Merged {
        /// Linear layers that an adapter pair was added to.
        pub modules: usize,
        pub parameters: usize,
        pub bytes: u64,
    }

    pub fn merge(_model: &str, _adapter: &Path, _output: &Path) -> Result<Merged> {
        not_built()
    }
}

pub mod bench {
    use super::not_built;
    use crate::cancel::Cancel;
    use crate::error::Result;

    #[derive(Clone, Debug)]
    pub struct BenchSettings {
        pub model: String,
        pub method: crate::settings::Method,
        pub rank: usize,
        /// Sequences of a step.
        pub batch: usize,
        /// Tokens of a sequence.
        pub length: usize,
        pub steps: usize,
        pub threads: usize,
    }

    #[derive(Clone, Debug, serde::Serialize)]
    pub struct BenchReport {
        /// Median over the steps.
        pub tokens_per_second: f64,
        pub seconds_per_step: f64,
        pub peak_rss_bytes: u64,
        pub threads: usize,
    }

    pub fn run(_: &BenchSettings, _: &Cancel) -> Result<BenchReport> {
        not_built()
    }
}
