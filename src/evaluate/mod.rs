//! Measuring a model on a split.

pub mod metrics;
