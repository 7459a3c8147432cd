//! The criteria by name.

use serde::{Deserialize, Serialize};

/// What decides how important a module is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CriterionName {
    /// The squared norm of the LoRA's output (the paper's criterion).
    #[default]
    Output,
    /// The squared Frobenius norm of s B A.
    Size,
    /// Σ |w · ∂L/∂w| over A and B.
    Gradient,
    /// The energy of the adapter's first gradients (PAGE).
    Page,
    /// The norm of a block's output.
    Activation,
    /// 1 − CKA between a block's input and output.
    Cka,
    /// The lower a layer, the more important.
    First,
    /// The higher a layer, the more important.
    Last,
    /// An order drawn by the seed.
    Random,
}

/// What a criterion has to see of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// LoRA that trains on the sample.
    Training,
    /// One pass forward and back over the sample, without an update.
    Gradients,
    /// One forward pass over the sample.
    HiddenStates,
    /// Nothing but which modules there are.
    Order,
}

impl CriterionName {
    pub const ALL: [CriterionName; 9] = {
        use CriterionName::*;
        [Output, Size, Gradient, Page, Activation, Cka, First, Last, Random]
    };

    /// As options, recipes and importance.json have it.
    pub fn name(self) -> &'static str {
        match self {
            CriterionName::Output => "output",
            CriterionName::Size => "size",
            CriterionName::Gradient => "gradient",
            CriterionName::Page => "page",
            CriterionName::Activation => "activation",
            CriterionName::Cka => "cka",
            CriterionName::First => "first",
            CriterionName::Last => "last",
            CriterionName::Random => "random",
        }
    }

    pub fn basis(self) -> Basis {
        match self {
            CriterionName::Output | CriterionName::Size | CriterionName::Gradient => Basis::Training,
            CriterionName::Page => Basis::Gradients,
            CriterionName::Activation | CriterionName::Cka => Basis::HiddenStates,
            CriterionName::First | CriterionName::Last | CriterionName::Random => Basis::Order,
        }
    }
}
