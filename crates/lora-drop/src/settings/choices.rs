//! Settings whose values are words.

use lora_drop_compute::gemm::Precision;

use super::definition::choices;

choices! {
    /// What is learned from the rows.
    #[derive(Default)]
    Task {
        /// The tokens of texts; decoders only.
        Text = "text",
        /// Each row's class.
        #[default]
        Classification = "classification",
        /// Each row's classes, of which it may have several or none.
        MultiLabel = "multi-label",
        /// The class of each word of a row.
        TokenClassification = "token-classification",
        /// Each row's number.
        Regression = "regression",
    }
}

choices! {
    /// What happens to a row that is wrong: without a text or a label, or that cannot be read.
    #[derive(Default)]
    BadRows {
        /// It is an error.
        #[default]
        Error = "error",
        /// It is left out; a warning says how many are, and shows the first.
        Skip = "skip",
    }
}

choices! {
    /// Which modules are ranked together.
    #[derive(Default)]
    Scope {
        /// Each module type has its own ranking over the layers.
        #[default]
        Module = "module",
        /// One ranking of whole layers, by the sum of their modules' scores.
        Layer = "layer",
    }
}

choices! {
    /// What the modules that are not kept get.
    #[derive(Default)]
    Unselected {
        /// All modules of a type share one LoRA.
        #[default]
        Share = "share",
        /// All modules of a type share one LoRA, scaled by two vectors of each module, as in
        /// Tied-LoRA.
        Scale = "scale",
        /// No LoRA.
        Drop = "drop",
    }
}

impl Unselected {
    /// Whether there are shared pairs.
    pub fn shares(self) -> bool {
        self != Unselected::Drop
    }
}

choices! {
    /// The score by which a SparseAdapter keeps values of a LoRA.
    #[derive(Default)]
    SparseBy {
        /// |w|
        Magnitude = "magnitude",
        /// |w · g|, g the sum of the gradients of the sample stage's last window (SNIP, Lee et
        /// al. 2019).
        #[default]
        Snip = "snip",
        Random = "random",
    }
}

choices! {
    /// What fine-tuning starts from.
    #[derive(Default)]
    Restart {
        /// Newly initialised LoRA and head.
        #[default]
        Fresh = "fresh",
        /// What the sample stage has trained. A shared pair starts as the best common pair of its
        /// layers.
        Continue = "continue",
    }
}

choices! {
    /// The learning rate's schedule after its warm-up.
    #[derive(Default)]
    ScheduleShape {
        #[default]
        Linear = "linear",
        Cosine = "cosine",
        Constant = "constant",
    }
}

choices! {
    /// What happens to rows of more than `max_length` tokens.
    #[derive(Default)]
    OverLength {
        #[default]
        Truncate = "truncate",
        Drop = "drop",
        Error = "error",
    }
}

choices! {
    /// Where steps and evaluations are logged besides metrics.jsonl.
    LogTo {
        /// An event file that TensorBoard reads.
        TensorBoard = "tensorboard",
    }
}

choices! {
    /// How a decoder's frozen matrices are stored.
    Quantize {
        /// 8 bits a value, and a scale for each 32.
        Q8_0 = "q8_0",
        /// 4 bits a value, and a scale for each 32.
        Q4_0 = "q4_0",
    }
}

choices! {
    /// The type that linear layers multiply in during training.
    #[derive(Default)]
    Dtype {
        #[default]
        F32 = "f32",
        /// Factors rounded to bf16, sums in f32.
        Bf16 = "bf16",
    }
}

impl Dtype {
    /// The precision of products in this type.
    pub fn precision(self) -> Precision {
        match self {
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        }
    }
}
