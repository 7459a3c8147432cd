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
    /// Every weight, the embeddings included.
    Full,
    /// The classification head alone.
    Head,
}

impl Method {
    pub const ALL: [Method; 5] = [Method::LoraDrop, Method::Lora, Method::Dora, Method::Full, Method::Head];

    /// The name that options, recipes and summaries have.
    pub fn name(self) -> &'static str {
        match self {
            Method::LoraDrop => "lora-drop",
            Method::Lora => "lora",
            Method::Dora => "dora",
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
            Method::Full => "Full fine-tuning",
            Method::Head => "Head only",
        }
    }

    /// What modules get; None where no module gets an adapter.
    pub fn adapter(self) -> Option<AdapterMethod> {
        match self {
            Method::LoraDrop | Method::Lora => Some(AdapterMethod::Lora),
            Method::Dora => Some(AdapterMethod::Dora),
            Method::Full | Method::Head => None,
        }
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
