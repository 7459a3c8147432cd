//! Measuring a model on a split, predicting with it, and comparing generated text with references.

mod answers;
mod generation;
mod measure;
pub mod metrics;
mod predictor;
pub mod text;

pub use answers::{
    Answers, ClassAnswer, ClassCount, ClassCounts, ExampleRow, Outcome, TextSample, ValueAnswer, examples,
};
pub use generation::{GenerationEvaluation, GenerationOptions, Input, Written};
pub use measure::Evaluation;
pub(crate) use measure::Measuring;
pub(crate) use measure::RepeatedPasses;
pub use predictor::{Prediction, Predictor, SplitRows};
