//! Measuring a model on a split, predicting with it, and judging generated text.

mod loaded;
mod measure;
pub mod metrics;
mod predictor;
pub mod text;

pub use loaded::{Loaded, labels};
pub use measure::{Evaluation, measure};
pub use predictor::{Columns, Prediction, Predictor};
