//! What predicts, for `eval` and `predict`: a model with an adapter or alone, and how its rows are read.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use lora_drop::data::{Part, SplitFiles};
use lora_drop::evaluate::Predictor;
use lora_drop::folder::recover;
use lora_drop::loaded::Arithmetic;
use lora_drop::reading::Reading;
use lora_drop::settings::{Dtype, Given, Method, Quantise, Recipe, TrainSettings, refused};
use lora_drop::{Error, Result};

use super::console::Console;
use super::interrupt::Interrupt;

/// Where the predictor comes from. What is not given is taken from the recipe in the adapter's folder, if one is there.
#[derive(clap::Args)]
pub struct Source {
    /// The model: a folder as Hugging Face has them, a decoder's GGUF file, or a hub name (org/name) [default: the
    /// adapter's recipe has it]
    #[arg(long, value_name = "DIR|ORG/NAME", required_unless_present = "adapter")]
    model: Option<String>,
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    adapter: Option<PathBuf>,
    /// Tokens of a row at most; longer ones are cut [default: as in training, else 256, or what the model takes if that is
    /// less]
    #[arg(long, value_name = "TOKENS", value_parser = max_length)]
    max_length: Option<usize>,
    /// What linear layers multiply in [default: as in training, else f32]
    #[arg(long, value_name = "TYPE", value_parser = dtype())]
    dtype: Option<Dtype>,
    /// Threads to compute with; 0 is all
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole)]
    threads: usize,
}

/// Where the texts of a row are.
#[derive(clap::Args)]
pub struct ColumnOptions {
    /// Column of the text, or of the first text of a pair [default: as in training, else found by the usual names]
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Column of the second text of a pair [default: as in training, else found by the usual names]
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
}

/// How texts are read, and the decoder stored.
#[derive(clap::Args)]
#[command(next_help_heading = "Decoders")]
pub struct TextReading {
    /// Column of the prompt [default: as in training, else found by the usual names]
    #[arg(long, value_name = "NAME")]
    prompt_column: Option<String>,
    /// Column of the completion [default: as in training, else found by the usual names]
    #[arg(long, value_name = "NAME")]
    completion_column: Option<String>,
    /// What is made of a prompt, with {prompt} in its place [default: as in training]
    #[arg(long, value_name = "TEXT")]
    prompt_template: Option<String>,
    /// Prompts and completions are turns of user and assistant, written by the model's chat template [default: as in
    /// training]
    #[arg(long)]
    chat: bool,
    /// Store the frozen matrices in 8 or 4 bits a value [default: as in training, else as their file has them]
    #[arg(long, value_name = "TYPE", value_parser = quantise())]
    quantize: Option<Quantise>,
}

/// The recipe in an adapter's folder, if one is there.
pub fn recipe_of(adapter: &Path) -> Result<Option<TrainSettings>> {
    recover(adapter)?;
    let path = adapter.join("recipe.toml");
    path.is_file().then(|| Recipe::read(&path)?.recorded()).transpose()
}

/// The adapter's base: as it was given, else as the recipe names it.
pub fn base_model(given: Option<String>, recipe: Option<&TrainSettings>) -> Result<String> {
    let named = recipe.map(|recipe| recipe.model.clone()).filter(|model| !model.is_empty());
    given.or(named).ok_or_else(|| {
        let message = "--model is missing, and the adapter's folder has no recipe.toml that names it";
        Error::Usage(message.to_string())
    })
}

/// Reads `--dtype`.
pub fn dtype() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["f32", "bf16"]).map(|name| match name.as_str() {
        "bf16" => Dtype::Bf16,
        _ => Dtype::F32,
    })
}

/// Reads `--quantize`.
pub fn quantise() -> impl TypedValueParser<Value = Quantise> {
    PossibleValuesParser::new(["q8_0", "q4_0"]).map(|name| match name.as_str() {
        "q8_0" => Quantise::Q8_0,
        _ => Quantise::Q4_0,
    })
}

/// The options with the recipe's values where they were silent.
pub struct Resolved {
    pub model: String,
    pub adapter: Option<PathBuf>,
    pub reading: Reading,
    arithmetic: Arithmetic,
    /// Whether the text's column was given, and not only the recipe's.
    text_given: bool,
    /// As it was given, and as it is.
    given_length: Option<usize>,
    max_length: Option<usize>,
    threads: usize,
}

impl Source {
    /// # Errors
    /// Those of the recipe; `Error::Usage` where nothing names the model.
    pub fn resolve(self, columns: ColumnOptions) -> Result<Resolved> {
        let recipe = self.adapter.as_deref().map(recipe_of).transpose()?.flatten();
        let model = base_model(self.model, recipe.as_ref())?;
        let mut trained = recipe.unwrap_or_default();
        let mut given = Vec::new();
        // A text column that is given leaves no pair column over from training, for it may be a single text, and none of
        // prompts, which exclude it.
        let text_given = columns.text_column.is_some();
        if text_given {
            trained.text_column = columns.text_column;
            trained.pair_column = None;
            (trained.prompt_column, trained.completion_column) = (None, None);
        }
        if columns.pair_column.is_some() {
            trained.pair_column = columns.pair_column;
            given.push("pair-column");
        }
        let given_length = self.max_length;
        let max_length = given_length.or(trained.max_length);
        trained.dtype = self.dtype.unwrap_or(trained.dtype);
        let (reading, arithmetic) = (Reading { given, ..Reading::of(&trained) }, Arithmetic::of(&trained));
        let Source { adapter, threads, .. } = self;
        Ok(Resolved { model, adapter, reading, arithmetic, text_given, given_length, max_length, threads })
    }
}

impl Resolved {
    /// What is given wins over the recipe.
    pub fn read_texts(&mut self, given: TextReading) {
        let named = [
            ("prompt-column", given.prompt_column.is_some()),
            ("completion-column", given.completion_column.is_some()),
            ("prompt-template", given.prompt_template.is_some()),
            ("chat", given.chat),
            ("quantize", given.quantize.is_some()),
        ];
        self.reading.given.extend(named.into_iter().filter(|(_, given)| *given).map(|(name, _)| name));
        let texts = &mut self.reading.texts;
        // A prompt column that is given leaves no completion column over from training, and no text column.
        if given.prompt_column.is_some() {
            (texts.prompt, texts.completion) = (given.prompt_column, None);
            texts.text = texts.text.take().filter(|_| self.text_given);
        }
        if given.completion_column.is_some() {
            texts.completion = given.completion_column;
        }
        if given.prompt_template.is_some() {
            self.reading.prompt_template = given.prompt_template;
        }
        self.reading.chat |= given.chat;
        self.arithmetic.quantise = given.quantize.or(self.arithmetic.quantise);
    }

    /// Settings by which its adapter is trained further on these rows: those of the run that made it but for what was given here,
    /// and for the choice of modules, which is made.
    pub fn train_settings(&self, trained: TrainSettings, data: &Path) -> TrainSettings {
        let defaults = TrainSettings::default();
        let Reading { columns, texts, prompt_template, chat, .. } = self.reading.clone();
        TrainSettings {
            model: self.model.clone(),
            data: data.to_path_buf(),
            method: Method::Lora,
            unselected: defaults.unselected,
            restart: defaults.restart,
            text_column: columns.text.or(texts.text),
            pair_column: columns.pair,
            label_column: columns.label,
            prompt_column: texts.prompt,
            completion_column: texts.completion,
            prompt_template,
            chat,
            max_length: self.max_length,
            dtype: self.arithmetic.dtype,
            quantize: self.arithmetic.quantise,
            threads: self.threads,
            // Of a run that may have had another method: what is not read is passed over.
            given: Given {
                inherited: TrainSettings::keys().iter().map(|name| name.to_string()).collect(),
                ..Given::default()
            },
            ..trained
        }
    }

    /// recipe.toml for an adapter that is made of this one, by which other commands find the base and the columns: the adapter's
    /// own, or what was given here.
    ///
    /// # Errors
    /// `Error::Io` where the adapter's own cannot be read.
    pub fn recipe(&self, data: &Path) -> Result<String> {
        let own = self.adapter.as_deref().map(|adapter| adapter.join("recipe.toml"));
        if let Some(path) = own.filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            return Ok(format!("# Of the run whose adapter was pruned; prune.json says how.\n{text}"));
        }
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let model = absolute(Path::new(&self.model));
        let model = if model.exists() { model.display().to_string() } else { self.model.clone() };
        let Reading { columns, texts, prompt_template, chat, .. } = &self.reading;
        let text = |value: &Option<String>| value.clone().map(toml::Value::from);
        let settings = [
            ("model", Some(model.into())),
            ("data", Some(absolute(data).display().to_string().into())),
            ("text-column", text(&columns.text)),
            ("pair-column", text(&columns.pair)),
            ("label-column", text(&columns.label)),
            ("prompt-column", text(&texts.prompt)),
            ("completion-column", text(&texts.completion)),
            ("prompt-template", text(prompt_template)),
            ("chat", chat.then_some(true.into())),
            ("max-length", self.max_length.map(|tokens| toml::Value::Integer(tokens as i64))),
            ("dtype", toml::Value::try_from(self.arithmetic.dtype).ok()),
            ("quantize", self.arithmetic.quantise.and_then(|kind| toml::Value::try_from(kind).ok())),
        ];
        let lines = settings.into_iter().filter_map(|(name, value)| Some(format!("{name} = {}\n", value?)));
        let first = "# How the adapter that was pruned is read; prune.json says how it was pruned.\n";
        Ok(first.to_string() + &lines.collect::<String>())
    }

    /// # Errors
    /// Those of the files; `Error::Usage` where an option that was given has no meaning for the model.
    pub fn open(&self, console: &Console, interrupt: &Interrupt) -> Result<Predictor> {
        console.fetch(&self.model, interrupt)?;
        let adapter = self.adapter.as_deref();
        let predictor =
            Predictor::open(&self.model, adapter, self.arithmetic, self.threads, self.max_length)?;
        let most = predictor.max_length();
        if let Some(tokens) = self.given_length.filter(|&tokens| tokens > most) {
            let model = &self.model;
            return Err(Error::Usage(format!(
                "--max-length {tokens} is more than {model} takes: {most} tokens"
            )));
        }
        predictor.situation().check(self.reading.given.iter().copied())?;
        console.note(predictor.files().quantise_note(self.arithmetic.quantise));
        Ok(predictor)
    }
}

/// A split of the data that a command reads.
pub struct DataSplit {
    /// As the library has it.
    pub name: String,
    /// As results have it: `all` where a file is read as a whole.
    pub shown: String,
    /// What to know where it is not as its name says.
    pub note: Option<String>,
}

impl DataSplit {
    /// Finds out what `split`, dev where it is not given, is of this data.
    ///
    /// # Errors
    /// `Error::Usage` where one is given for a file that is read as a whole.
    pub fn of(data: &Path, split: Option<String>, reading: &Reading) -> Result<Self> {
        let name = split.clone().unwrap_or_else(|| "dev".to_string());
        let found = SplitFiles::find(data)?;
        let (_, part) = found.part(name.parse().map_err(Error::Usage)?, reading.trained_on.as_deref())?;
        let file = data.display();
        if !found.single {
            return Ok(DataSplit { shown: name.clone(), name, note: None });
        }
        if part != Part::All {
            let note = format!("the adapter was trained on {file}; of its rows these are the {name} split");
            return Ok(DataSplit { shown: name.clone(), name, note: Some(note) });
        }
        if let Some(split) = split {
            let reason = format!("for {file}, one file, whose rows are all read");
            return Err(refused(&format!("split {split}"), &reason));
        }
        let note = format!("all rows of {file} are read, for it is one file");
        Ok(DataSplit { name, shown: "all".to_string(), note: Some(note) })
    }
}

/// Reads a whole number.
pub fn whole(text: &str) -> std::result::Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number from 0 up".to_string())
}

/// The shortest row that holds a token of text has three: [CLS] token [SEP].
fn max_length(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(tokens) if tokens >= 3 => Ok(tokens),
        _ => Err("expected a number of tokens from 3 up".to_string()),
    }
}
