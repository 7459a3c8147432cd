//! Data for generation: prompts with completions, conversations and texts → tokens, and which
//! tokens are learned.
//!
//! [`TextDataset`] reads and tokenises rows, by these steps: [`TextColumns`] gives columns their
//! meaning, [`TextRow`] is a row, [`ChatTemplate`] renders a conversation in the format that the
//! model was trained on (in a separate process), and [`TextEncoder`] makes tokens and targets.

pub(crate) mod batch;
pub(crate) mod dataset;
pub(crate) mod encode;
#[cfg_attr(not(feature = "chat-templates"), path = "no_engine.rs")]
mod engine;
pub(crate) mod error;
pub(crate) mod messages;
#[cfg(feature = "chat-templates")]
mod python;
mod renderer;
pub(crate) mod rows;
pub(crate) mod template;

pub use batch::PackedTexts;
pub use dataset::{RawTexts, TextDataset, TextSplit};
pub use encode::{TextEncoder, TextExample};
pub use error::{TemplateError, TextProblem};
pub use messages::{Conversation, Message, Role};
pub use renderer::{serve_templates, set_template_worker};
pub use rows::{RawText, Targets, TextColumnNames, TextColumns, TextContent, TextKind, TextRow};
pub(crate) use template::template_variables;
pub use template::{ChatTemplate, SpecialTokens};

use std::path::PathBuf;

use super::TokenCache;
use crate::settings::{BadRows, MAX_LENGTH, OverLength};

/// Options for reading data for generation.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// The columns that the user named; the others are found by their usual names.
    pub columns: TextColumnNames,
    /// Text around the prompt, with `{prompt}` in its place: `"{prompt}\n"`; `None` leaves the
    /// prompt as it is.
    pub prompt_template: Option<String>,
    /// Whether prompts and completions become turns of user and assistant, rendered by the model's
    /// chat template.
    pub chat: bool,
    /// Largest number of tokens of a sequence, special tokens included.
    pub max_length: usize,
    /// Treatment of rows that are wrong.
    pub bad_rows: BadRows,
    /// Treatment of longer prompts with completions and of longer conversations. Longer plain texts
    /// become several sequences.
    pub over_length: OverLength,
    /// The end-of-sequence token, which follows every completion. Chat templates write their own.
    pub end: Option<u32>,
    /// Whether the end-of-sequence token also follows every plain text.
    pub text_eos: bool,
    /// Number of tokens that the model has an embedding for.
    pub vocabulary: usize,
    /// The data sets that the model was trained on; see `SplitFiles::part`.
    pub trained_on: Vec<PathBuf>,
    /// Cache of tokenised rows, if it is on.
    pub cache: Option<TokenCache>,
}

impl TextOptions {
    /// Returns the defaults, for a model with this vocabulary and end-of-sequence token.
    pub fn new(vocabulary: usize, end: Option<u32>) -> Self {
        TextOptions {
            columns: TextColumnNames::default(),
            prompt_template: None,
            chat: false,
            max_length: MAX_LENGTH,
            bad_rows: BadRows::default(),
            over_length: OverLength::Truncate,
            end,
            text_eos: true,
            vocabulary,
            trained_on: Vec::new(),
            cache: None,
        }
    }
}
