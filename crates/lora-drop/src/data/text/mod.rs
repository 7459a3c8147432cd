//! Data for generation: prompts with completions, conversations and texts → tokens, and which of
//! them are learned.
//!
//! [`rows`] says what the columns mean and reads the rows, [`messages`] the turns of a
//! conversation, [`template`] writes a conversation as the model is used to reading it (in a
//! process of its own: `renderer`), [`encode`] makes tokens and targets, [`dataset`] holds these.

pub mod batch;
pub mod dataset;
pub mod encode;
#[cfg_attr(not(feature = "chat-templates"), path = "no_engine.rs")]
mod engine;
pub mod error;
pub mod messages;
#[cfg(feature = "chat-templates")]
mod python;
mod renderer;
pub mod rows;
pub mod template;

pub use batch::PackedTexts;
pub use dataset::{TextDataset, TextSplit};
pub use encode::{TextEncoder, TextExample};
pub use error::{TemplateError, TextProblem};
pub use messages::{Message, Role};
pub use renderer::{serve_templates, set_template_worker};
pub use rows::{RawText, Targets, TextColumnNames, TextColumns, TextContent, TextKind, TextRow};
pub use template::{ChatTemplate, SpecialTokens};

use std::path::PathBuf;

use super::TokenCache;
use crate::settings::{MAX_LENGTH, OverLength};

/// How data for generation is read.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// What the rows are, where the columns leave it open.
    pub kind: Option<TextKind>,
    /// Column names, where the usual ones do not fit.
    pub columns: TextColumnNames,
    /// What is made of a prompt, with `{prompt}` in its place: `"{prompt}\n"`. None: the prompt as
    /// it is.
    pub prompt_template: Option<String>,
    /// Prompts and completions are turns of user and assistant, written by the model's chat
    /// template.
    pub chat: bool,
    /// Tokens a sequence may have, special tokens included.
    pub max_length: usize,
    /// What happens to longer rows.
    pub over_length: OverLength,
    /// Longer texts become several sequences of at most `max_length` tokens, and `over_length` is
    /// for the other kinds.
    pub chunk: bool,
    /// Texts, too, end with the end-of-sequence token.
    pub end_texts: bool,
    /// The end-of-sequence token, which follows every completion. Chat templates write their own.
    pub end: Option<u32>,
    /// Tokens that the model has an embedding for.
    pub vocabulary: usize,
    /// The data that the model was trained on; see `SplitFiles::part`.
    pub trained_on: Option<PathBuf>,
    /// Where the tokens of earlier runs are.
    pub cache: Option<TokenCache>,
}

impl TextOptions {
    /// The defaults, for a model with this vocabulary and end-of-sequence token.
    pub fn new(vocabulary: usize, end: Option<u32>) -> Self {
        TextOptions {
            kind: None,
            columns: TextColumnNames::default(),
            prompt_template: None,
            chat: false,
            max_length: MAX_LENGTH,
            over_length: OverLength::Truncate,
            chunk: true,
            end_texts: false,
            end,
            vocabulary,
            trained_on: None,
            cache: None,
        }
    }
}
