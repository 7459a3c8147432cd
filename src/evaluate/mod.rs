//! Measuring a model on a split, and predicting with it.

mod loaded;
mod measure;
pub mod metrics;
mod predictor;

pub use loaded::{Loaded, labels};
pub use measure::{Evaluation, measure};
pub use predictor::{Columns, Prediction, Predictor};
