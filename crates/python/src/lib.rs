//! `lora_drop._native`: runs, models and the command-line program, for the Python package in
//! `python`.
//!
//! Settings, rows and results cross the boundary as JSON, which the package converts to and from
//! Python objects; logits cross as bytes. Work runs on a thread of its own without Python's lock
//! (`work`).

mod errors;
mod events;
mod models;
mod runs;
mod work;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::models::{Generator, Predictor, merge};
    #[pymodule_export]
    use super::runs::{program, score, settings, train};
    #[pymodule_export]
    use super::work::Cancel;
}
