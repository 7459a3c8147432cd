//! A decoder with its tokenizer and chat template, ready to generate text.

use std::path::Path;

use super::{GenerateEvent, GenerateOptions, Generated, Model, StreamDecoder, generate};
use crate::adapter::AdapterFile;
use crate::data::text::{ChatTemplate, TextEncoder, TextOptions, TextRow, TextSplit};
use crate::data::{SplitName, Tokens};
use crate::engine::thread_pool;
use crate::loaded::{Arithmetic, Loaded};
use crate::model::ModelFiles;
use crate::reading::Reading;
use crate::{Cancel, Error, Result};

/// A decoder, with an adapter or alone.
pub struct Generator {
    loaded: Loaded,
    tokens: Tokens,
    template: Option<ChatTemplate>,
    reading: Reading,
    pool: rayon::ThreadPool,
}

impl Generator {
    /// Opens a model (a folder, a GGUF file or a hub name) with an adapter or alone. `reading` says
    /// how prompts are written; `threads` is the number of threads, 0 for all.
    ///
    /// # Errors
    /// Those of the files; `Error::Usage` for a model with a head, which writes no text.
    pub fn open(
        model: &str,
        adapter: Option<&Path>,
        arithmetic: Arithmetic,
        reading: Reading,
        threads: usize,
    ) -> Result<Self> {
        let what = adapter.map_or(model.to_string(), |adapter| adapter.display().to_string());
        Self::of(Loaded::open(model, adapter, arithmetic)?, &what, reading, threads)
    }

    /// Like [`Self::open`], for a model that is open and an adapter in memory.
    ///
    /// # Errors
    /// `Error::Usage` for a model with a head, which writes no text.
    pub fn new(
        model: &ModelFiles,
        adapter: Option<&AdapterFile>,
        arithmetic: Arithmetic,
        reading: Reading,
        threads: usize,
    ) -> Result<Self> {
        Self::of(Loaded::new(model, adapter, arithmetic)?, &model.name, reading, threads)
    }

    fn of(mut loaded: Loaded, what: &str, reading: Reading, threads: usize) -> Result<Self> {
        let refuse = |what: String| {
            Err(Error::Usage(format!("{what} and writes no text; it labels rows (`predict`)")))
        };
        let config = &loaded.model.config;
        if !config.architecture.is_decoder() {
            return refuse(format!("{} is an encoder ({})", loaded.files.name, config.model_type));
        }
        if loaded.model.head.is_some() {
            return refuse(format!("{what} has a head for labels"));
        }
        let (tokens, template) = (loaded.files.tokens()?, loaded.files.template(&reading.template_vars)?);
        loaded.notes.extend(tokens.note().map(str::to_string));
        Ok(Generator { loaded, tokens, template, reading, pool: thread_pool(threads)? })
    }

    /// Notes for the user about the files of the model and its adapter.
    pub fn notes(&self) -> &[String] {
        &self.loaded.notes
    }

    /// The model's files.
    pub fn files(&self) -> &ModelFiles {
        &self.loaded.files
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Returns a prompt with the text that training put around it.
    pub fn wrapped(&self, prompt: &str) -> String {
        match &self.reading.prompt_template {
            Some(template) => template.replace("{prompt}", prompt),
            None => prompt.to_string(),
        }
    }

    /// Reads the rows of a split (`train`, `dev`, `test`, or the file `data`), with warnings for
    /// the user.
    ///
    /// # Errors
    /// Whatever is wrong with a file or a row, with its place.
    pub fn rows(&self, data: &Path, split: &str) -> Result<(Vec<TextRow>, Vec<String>)> {
        let name: SplitName = split.parse().map_err(Error::Usage)?;
        let options = self.options()?;
        let (split, warnings) = TextSplit::load(data, name, &self.tokens, self.template.as_ref(), &options)?;
        self.reading.check_texts(split.kind)?;
        Ok((split.rows, warnings))
    }

    /// Continues each row's prompt, in their order. `on_text` gets a row's index and its text as
    /// soon as it is certain.
    ///
    /// # Errors
    /// Those of `generate`; the template or the tokenizer refuses a row.
    pub fn write(
        &mut self,
        rows: &[TextRow],
        options: &GenerateOptions,
        cancel: &Cancel,
        on_text: &mut (dyn FnMut(usize, &str) + Send),
    ) -> Result<Vec<Generated>> {
        let text_options = self.options()?;
        let Generator { loaded, tokens, template, pool, .. } = self;
        let decoder = &loaded.model;
        let encoder = TextEncoder::new(tokens, template.as_ref(), &text_options)?;
        let encode = |(number, row): (usize, &TextRow)| {
            let failed = |problem| Error::Input(format!("row {}: {problem}", number + 1));
            encoder.encode_prompt(row, decoder.config.max_tokens()).map_err(failed)
        };
        let prompts = rows.iter().enumerate().map(encode).collect::<Result<Vec<_>>>()?;
        let mut options = options.clone();
        options.end_tokens.extend(&loaded.end_tokens);
        let mut streams: Vec<StreamDecoder> =
            prompts.iter().map(|_| StreamDecoder::new(tokens, &options.stop)).collect();
        let mut failed = None;
        let mut listen = |row: usize, event: GenerateEvent| {
            let GenerateEvent::Token(token) = event else { return };
            match streams[row].push(token) {
                Ok(text) if text.is_empty() => {}
                Ok(text) => on_text(row, &text),
                Err(error) => failed = Some(error),
            }
        };
        let (parameters, table, tokens) = (&loaded.parameters, &loaded.table, Some(&*tokens));
        let model = Model { decoder, parameters, table, tokens };
        let memory = &mut loaded.memory;
        let found = pool.install(|| generate(model, &prompts, &options, memory, cancel, &mut listen))?;
        if let Some(error) = failed {
            return Err(error);
        }
        for (row, stream) in streams.iter_mut().enumerate() {
            let rest = stream.finish()?;
            if !rest.is_empty() {
                on_text(row, &rest);
            }
        }
        Ok(found)
    }

    fn options(&self) -> Result<TextOptions> {
        let Loaded { files, model, .. } = &self.loaded;
        let max_length = model.config.max_tokens();
        Ok(TextOptions { max_length, ..self.reading.text_options(files, &self.tokens)? })
    }
}
