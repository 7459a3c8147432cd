//! Measures a model on a split, predicts with it, and compares generated text with references.

mod answers;
pub mod entities;
mod generation;
mod measure;
pub mod metrics;
mod predictor;
pub mod text;

pub use answers::{
    Answers, ClassAnswer, ClassCount, ClassCounts, ExampleRow, Outcome, SetAnswer, TextSample, ValueAnswer,
    WrongTag, examples,
};
pub use entities::EntityCount;
pub use generation::{GeneratedText, GenerationEvaluation, GenerationOptions, Input};
pub use measure::Evaluation;
pub(crate) use measure::Measuring;
pub(crate) use measure::RepeatedPasses;
pub use predictor::{Prediction, Predictor, SplitRows, TaggedWord};
