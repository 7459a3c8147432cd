//! The criteria by name.

use super::definition::choices;

choices! {
    /// What decides how important a module is.
    #[derive(Default)]
    CriterionName {
        /// The squared norm of the LoRA's output (the paper's criterion).
        #[default]
        Output = "output",
        /// The squared Frobenius norm of s B A.
        Size = "size",
        /// Σ |w · ∂L/∂w| over A and B.
        Gradient = "gradient",
        /// The energy of the adapter's first gradients (PAGE).
        Page = "page",
        /// The norm of a block's output.
        Activation = "activation",
        /// 1 − CKA between a block's input and output.
        Cka = "cka",
        /// The lower a layer, the more important.
        First = "first",
        /// The higher a layer, the more important.
        Last = "last",
        /// A random order, drawn by the seed.
        Random = "random",
    }
}

/// What a criterion has to see of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// LoRA that trains on the sample.
    Training,
    /// One forward and backward pass over the sample, without an update.
    Gradients,
    /// One forward pass over the sample.
    HiddenStates,
    /// Only the list of modules.
    Order,
}

impl CriterionName {
    /// The meaning of a module's score, in running text.
    pub fn meaning(self) -> &'static str {
        match self {
            CriterionName::Output => "the squared length of what the module’s LoRA adds to its output",
            CriterionName::Size => "the squared norm of s·B·A",
            CriterionName::Gradient => "value times gradient, in absolute terms, over the module’s A and B",
            CriterionName::Page => "the squared norm of the gradients that the module’s LoRA begins with",
            CriterionName::Activation => "the mean norm of the block’s output",
            CriterionName::Cka => "1 − CKA between the block’s input and output",
            CriterionName::First => "the number of layers from the module’s own up",
            CriterionName::Last => "the number of layers up to the module’s own",
            CriterionName::Random => "a number that the seed draws",
        }
    }

    /// What the criterion has to see of a model.
    pub fn basis(self) -> Basis {
        match self {
            CriterionName::Output | CriterionName::Size | CriterionName::Gradient => Basis::Training,
            CriterionName::Page => Basis::Gradients,
            CriterionName::Activation | CriterionName::Cka => Basis::HiddenStates,
            CriterionName::First | CriterionName::Last | CriterionName::Random => Basis::Order,
        }
    }
}
