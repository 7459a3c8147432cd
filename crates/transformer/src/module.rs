//! The linear layers that can have an adapter, by their role and not by an architecture's names.

use serde::{Deserialize, Serialize};

/// The role of a linear layer in its transformer block, or after the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleKind {
    Query,
    Key,
    Value,
    /// The projection after attention: BERT's `attention.output.dense`, Llama's `o_proj`.
    AttentionOutput,
    /// The first linear layer of the feed-forward part: BERT's `intermediate.dense`, Llama's
    /// `up_proj`.
    Intermediate,
    /// The second linear layer of the feed-forward part: BERT's `output.dense`, Llama's
    /// `down_proj`.
    Output,
    /// The gate next to the first linear layer, in decoders: `gate_proj`.
    Gate,
    /// A decoder's layer from the last norm to the logits of tokens, `lm_head`; see
    /// [`ModuleId::LM_HEAD`].
    LmHead,
}

impl ModuleKind {
    /// Every kind that blocks have; `Architecture::kinds` has those of one architecture.
    pub const ALL: [ModuleKind; 7] = [
        ModuleKind::Query,
        ModuleKind::Key,
        ModuleKind::Value,
        ModuleKind::AttentionOutput,
        ModuleKind::Intermediate,
        ModuleKind::Output,
        ModuleKind::Gate,
    ];

    /// The part's name, the same for every architecture: `query`, `attention_output`.
    pub fn name(self) -> &'static str {
        match self {
            ModuleKind::Query => "query",
            ModuleKind::Key => "key",
            ModuleKind::Value => "value",
            ModuleKind::AttentionOutput => "attention_output",
            ModuleKind::Intermediate => "intermediate",
            ModuleKind::Output => "output",
            ModuleKind::Gate => "gate",
            ModuleKind::LmHead => "lm_head",
        }
    }
}

/// One linear layer of the model: block and role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModuleId {
    /// Block number, from 0 at the input.
    pub layer: usize,
    pub kind: ModuleKind,
}

impl ModuleId {
    /// The output layer of a decoder, which is in no block.
    pub const LM_HEAD: ModuleId = ModuleId { layer: 0, kind: ModuleKind::LmHead };
}
