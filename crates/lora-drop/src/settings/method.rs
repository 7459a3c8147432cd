//! What is trained.

use lora_drop_transformer::AdapterMethod;

use super::definition::choices;

choices! {
    /// What is trained.
    #[derive(Default)]
    Method {
        /// LoRA on the modules that matter, one shared LoRA for the others (the paper's method).
        #[default]
        LoraDrop = "lora-drop",
        /// Every target module has its own LoRA.
        Lora = "lora",
        /// Every target module has its own DoRA: LoRA, and the magnitude of each row of the weight
        /// trains as well.
        Dora = "dora",
        /// Every target module has a pair, whose A is shared by all layers.
        ShareLora = "share-lora",
        /// One pair for each module type and all layers, scaled by two vectors of each target
        /// module.
        TiedLora = "tied-lora",
        /// Like Tied-LoRA with a random pair that does not train.
        Vera = "vera",
        /// Triplets of singular values and vectors for every target module, pruned to a budget by
        /// their sensitivity.
        AdaLora = "adalora",
        /// A LoRA for every target module, in which a mask keeps a fraction of the values.
        SparseAdapter = "sparse-adapter",
        /// Every weight, the embeddings included.
        Full = "full",
        /// The classification head alone.
        Head = "head",
    }
}

impl Method {
    /// The name in running text.
    pub fn title(self) -> &'static str {
        match self {
            Method::LoraDrop => "LoRA-drop",
            Method::Lora => "LoRA",
            Method::Dora => "DoRA",
            Method::ShareLora => "ShareLoRA",
            Method::TiedLora => "Tied-LoRA",
            Method::Vera => "VeRA",
            Method::AdaLora => "AdaLoRA",
            Method::SparseAdapter => "SparseAdapter",
            Method::Full => "Full fine-tuning",
            Method::Head => "Head only",
        }
    }

    /// The adapters that modules get; None for methods without adapters.
    pub fn adapter(self) -> Option<AdapterMethod> {
        match self {
            Method::LoraDrop | Method::Lora | Method::ShareLora | Method::SparseAdapter => {
                Some(AdapterMethod::Lora)
            }
            Method::Dora => Some(AdapterMethod::Dora),
            Method::TiedLora => Some(AdapterMethod::TiedLora),
            Method::Vera => Some(AdapterMethod::Vera),
            Method::AdaLora => Some(AdapterMethod::AdaLora),
            Method::Full | Method::Head => None,
        }
    }

    /// Whether a stage on the sample may come before training.
    pub fn has_sample(self) -> bool {
        matches!(self, Method::LoraDrop | Method::SparseAdapter)
    }

    /// Whether the modules that are adapted all use the pair of their type.
    pub(crate) fn ties_pairs(self) -> bool {
        matches!(self, Method::TiedLora | Method::Vera)
    }

    /// The methods that satisfy `of`, for a message: `lora-drop and lora`, with `last` before the
    /// last.
    pub fn names(of: impl Fn(Method) -> bool, last: &str) -> String {
        let names: Vec<&str> =
            Method::ALL.iter().copied().filter(|&method| of(method)).map(Method::name).collect();
        match names.split_last() {
            Some((end, [])) => end.to_string(),
            Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
            None => String::new(),
        }
    }
}
