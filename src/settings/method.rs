//! What is trained.

use lora_drop_transformer::AdapterMethod;
use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// LoRA on the modules that matter, one shared LoRA for the others (the paper's method).
    #[default]
    LoraDrop,
    /// A LoRA of its own for every target module.
    Lora,
    /// A DoRA of its own for every target module: LoRA beside which the magnitude of each row of the weight trains.
    Dora,
    /// A pair for every target module whose A all layers share.
    ShareLora,
    /// One pair a module type for all layers, and two vectors of its own for every target module.
    TiedLora,
    /// As Tied-LoRA with a random pair that does not train.
    Vera,
    /// Triplets of singular values and vectors for every target module, pruned to a budget by their sensitivity.
    #[serde(rename = "adalora")]
    AdaLora,
    /// A LoRA for every target module of which a mask leaves a part of the values.
    SparseAdapter,
    /// Every weight, the embeddings included.
    Full,
    /// The classification head alone.
    Head,
}

impl Method {
    pub const ALL: [Method; 10] = [
        Method::LoraDrop,
        Method::Lora,
        Method::Dora,
        Method::ShareLora,
        Method::TiedLora,
        Method::Vera,
        Method::AdaLora,
        Method::SparseAdapter,
        Method::Full,
        Method::Head,
    ];

    /// The name that options, recipes and summaries have.
    pub fn name(self) -> &'static str {
        match self {
            Method::LoraDrop => "lora-drop",
            Method::Lora => "lora",
            Method::Dora => "dora",
            Method::ShareLora => "share-lora",
            Method::TiedLora => "tied-lora",
            Method::Vera => "vera",
            Method::AdaLora => "adalora",
            Method::SparseAdapter => "sparse-adapter",
            Method::Full => "full",
            Method::Head => "head",
        }
    }

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

    /// What modules get; None where no module gets an adapter.
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
    pub fn ties_pairs(self) -> bool {
        matches!(self, Method::TiedLora | Method::Vera)
    }

    /// The methods of which this holds, for a message: `lora-drop and lora`.
    pub fn names(of: impl Fn(Method) -> bool, last: &str) -> String {
        let names: Vec<&str> =
            Method::ALL.into_iter().filter(|&method| of(method)).map(Method::name).collect();
        match names.split_last() {
            Some((end, [])) => end.to_string(),
            Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
            None => String::new(),
        }
    }
}
