//! How rows are read for a model in use: which columns, and how prompts are written.

use std::path::PathBuf;

use crate::Result;
use crate::data::text::{TextColumnNames, TextKind, TextOptions};
use crate::data::{ColumnNames, Tokens};
use crate::model::ModelFiles;
use crate::settings::{BadRows, RowSettings, Situation, Task};

/// How a split's rows are read.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The columns of labelled rows that the user named.
    pub columns: ColumnNames,
    /// The columns of texts that the user named.
    pub texts: TextColumnNames,
    /// The text around a prompt, with `{prompt}` in its place; None: the prompt alone.
    pub prompt_template: Option<String>,
    /// What happens to rows that are wrong.
    pub bad_rows: BadRows,
    /// Values that the chat template is given, each as `NAME=VALUE`.
    pub template_vars: Vec<String>,
    /// Whether prompts are written as a user's turn by the model's chat template.
    pub chat: bool,
    /// Whether plain texts do not end with the end-of-sequence token.
    pub no_eos: bool,
    /// The data sets that the model was trained on, whose held-out rows are its dev split.
    pub trained_on: Vec<PathBuf>,
    /// Names of the settings that were given for these rows; each must be read for them.
    pub given: Vec<&'static str>,
}

impl Reading {
    /// How a training run reads its rows; `trained_on` is its data.
    pub fn of(rows: &RowSettings, trained_on: Vec<PathBuf>) -> Self {
        Reading {
            columns: ColumnNames::of(rows),
            texts: TextColumnNames {
                prompt: rows.prompt_column.clone(),
                completion: rows.completion_column.clone(),
                text: rows.text_column.clone(),
                ..TextColumnNames::default()
            },
            prompt_template: rows.prompt_template.clone(),
            bad_rows: rows.bad_rows,
            template_vars: rows.template_var.clone(),
            chat: rows.chat,
            no_eos: rows.no_eos,
            trained_on,
            given: Vec::new(),
        }
    }

    /// Checks that the given settings are read for texts of this kind.
    ///
    /// # Errors
    /// `Error::Usage` with the setting that is not.
    pub(crate) fn check_texts(&self, kind: TextKind) -> Result<()> {
        let situation = Situation::of_model(true, Task::Text, Some(kind));
        Situation { chat: Some(self.chat), ..situation }.check(self.given.iter().copied())
    }

    /// The options for a decoder with this tokenizer.
    ///
    /// # Errors
    /// The files that name the end-of-sequence token cannot be read.
    pub(crate) fn text_options(&self, files: &ModelFiles, tokens: &Tokens) -> Result<TextOptions> {
        let (vocabulary, end) = (files.config.vocab_size, files.eos_token(tokens)?);
        Ok(TextOptions { vocabulary, end, ..self.raw_texts() })
    }

    /// Options for reading texts that are not tokenised, independent of any model.
    pub(crate) fn raw_texts(&self) -> TextOptions {
        TextOptions {
            columns: self.texts.clone(),
            prompt_template: self.prompt_template.clone(),
            bad_rows: self.bad_rows,
            chat: self.chat,
            text_eos: !self.no_eos,
            trained_on: self.trained_on.clone(),
            ..TextOptions::new(usize::MAX, None)
        }
    }
}
