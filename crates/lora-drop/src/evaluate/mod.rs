//! Measuring a model on a split, predicting with it, and judging generated text.

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
pub(crate) use measure::RepeatedPasses;
pub use measure::{Evaluation, Measuring};
pub use predictor::{Prediction, Predictor, SplitRows};
