//! The model of `eval`, `predict`, `prune` and `generate`, with or without an adapter, and how its
//! rows are read.

use std::path::{Path, PathBuf};

use lora_drop::data::{Part, SplitFiles};
use lora_drop::evaluate::Predictor;
use lora_drop::folder::recover;
use lora_drop::loaded::Arithmetic;
use lora_drop::ranks::Ranks;
use lora_drop::reading::Reading;
use lora_drop::settings::{
    AdapterSettings, Definition, Given as Origin, Method, Place, RECIPE, Recipe, RunSettings,
    SelectionSettings, definitions,
};
use lora_drop::{Error, Result};
use toml::Table;

use super::console::{Console, no_config};
use super::interrupt::Interrupt;
use super::options::{Given, Takes, no_effect};

/// The settings of rows with texts and labels.
pub const ROWS: [&str; 12] = [
    "text-column",
    "pair-column",
    "label-column",
    "prompt-column",
    "completion-column",
    "prompt-template",
    "chat",
    "no-eos",
    "bad-rows",
    "template-var",
    "positive-class",
    "data-config",
];
/// The settings of a model that is not trained.
const MODEL: [&str; 5] = ["model", "max-length", "dtype", "quantize", "threads"];

/// A command that measures a model on rows, or prunes by them.
pub struct Measure;

impl Takes for Measure {
    const INHERITS: bool = true;

    fn takes(setting: &Definition) -> bool {
        ROWS.contains(&setting.name) || MODEL.contains(&setting.name)
    }
}

/// `predict`, whose rows have texts alone.
pub struct Predict;

impl Takes for Predict {
    const INHERITS: bool = true;

    fn takes(setting: &Definition) -> bool {
        ["text-column", "pair-column", "bad-rows"].contains(&setting.name) || MODEL.contains(&setting.name)
    }
}

/// `generate`.
pub struct Generate;

impl Takes for Generate {
    const INHERITS: bool = true;

    fn takes(setting: &Definition) -> bool {
        let model = MODEL.contains(&setting.name) && setting.name != "max-length";
        let of_rows = ["prompt-template", "chat", "bad-rows", "template-var", "data-config"];
        model || of_rows.contains(&setting.name)
    }
}

/// Options for the model and for how its rows are read. What is not given comes from the recipe in
/// the adapter's folder, if there is one.
#[derive(clap::Args)]
pub struct Source<C: Takes> {
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    given: Given<C>,
}

/// The recipe in an adapter's folder, if there is one.
pub fn recipe_of(adapter: &Path) -> Result<Option<RunSettings>> {
    recover(adapter)?;
    let path = adapter.join(RECIPE);
    path.is_file().then(|| Recipe::read(&path)?.recorded()).transpose()
}

/// The adapter's base model: the given one, else the recipe's.
pub fn base_model(given: Option<String>, recipe: Option<&RunSettings>) -> Result<String> {
    let named = recipe.map(|recipe| recipe.place.model.clone()).filter(|model| !model.is_empty());
    given.or(named).ok_or_else(|| {
        let message = "--model is missing, and the adapter's folder has no recipe.toml that names it";
        Error::Usage(message.to_string())
    })
}

/// The options over the recipe of the adapter's training.
pub struct Resolved {
    pub adapter: Option<PathBuf>,
    pub settings: RunSettings,
    pub reading: Reading,
    /// The settings that were given as options.
    given: Table,
}

impl<C: Takes> Source<C> {
    /// Whether the setting of this name was given.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.table().contains_key(name)
    }

    /// # Errors
    /// Those of the recipe; `Error::Usage` where nothing names the model.
    pub fn resolve(self) -> Result<Resolved> {
        let Source { adapter, given } = self;
        let given = given.into_table();
        let recipe = adapter.as_deref().map(recipe_of).transpose()?.flatten();
        let trained_on = recipe.as_ref().map(|recipe| recipe.place.data.paths()).unwrap_or_default();
        let model = base_model(None, recipe.as_ref());
        let mut settings = recipe.unwrap_or_default();
        let rows = &mut settings.rows;
        // A given text column may be a single text, so training's pair column does not apply, nor do
        // its prompts, which exclude a text column; a given prompt column excludes training's text
        // column in the same way.
        if given.contains_key("text-column") {
            (rows.pair_column, rows.prompt_column, rows.completion_column) = (None, None, None);
        }
        if given.contains_key("prompt-column") {
            (rows.text_column, rows.completion_column) = (None, None);
        }
        settings.apply(&given)?;
        if !given.contains_key("model") {
            settings.place.model = model?;
        }
        let trained_on = trained_on.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
        let names = definitions().map(|setting| setting.name).filter(|name| given.contains_key(*name));
        let reading = Reading { given: names.collect(), ..Reading::of(&settings.rows, trained_on) };
        Ok(Resolved { adapter, settings, reading, given })
    }
}

impl Resolved {
    pub fn model(&self) -> &str {
        &self.settings.place.model
    }

    /// Where this data is: the path, or the files of the hub's data set of this name.
    ///
    /// # Errors
    /// Those of the hub; `Error::Usage` for a given configuration of a path.
    pub fn locate(&self, data: &Path, console: &Console, interrupt: &Interrupt) -> Result<PathBuf> {
        let data_config = self.settings.place.data_config.clone();
        let mut place = Place { data: data.into(), data_config, ..Place::default() };
        if !console.fetch_data(&mut place, interrupt)? && self.given.contains_key("data-config") {
            return Err(no_config(&data.display()));
        }
        Ok(place.data.all()[0].place().to_path_buf())
    }

    pub fn arithmetic(&self) -> Arithmetic {
        Arithmetic::of(&self.settings.train.compute)
    }

    /// Settings for training the adapter further on these rows: those of the run that made it,
    /// overridden by what was given here, without the selection of modules, which was made.
    pub fn train_settings(&self, data: &Path) -> RunSettings {
        let mut settings = self.settings.clone();
        settings.place.data = data.into();
        settings.train.adapter = AdapterSettings { method: Method::Lora, ..settings.train.adapter };
        let SelectionSettings { unselected, .. } = SelectionSettings::default();
        settings.train.selection.unselected = unselected;
        settings.train.optimisation.restart = Default::default();
        // The run may have had another method: settings that are not read are no error.
        settings.given = Origin {
            inherited: definitions().map(|setting| setting.name.to_string()).collect(),
            ..Origin::default()
        };
        settings
    }

    /// recipe.toml for an adapter that is made from this one, where other commands find the base
    /// model and the columns: the adapter's own, or what was given here.
    ///
    /// # Errors
    /// `Error::Io` where the adapter's own cannot be read.
    pub fn recipe(&self, data: &Path) -> Result<String> {
        let own = self.adapter.as_deref().map(|adapter| adapter.join(RECIPE));
        if let Some(path) = own.filter(|path| path.is_file()) {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            return Ok(format!("# Of the run whose adapter was pruned; prune.json says how.\n{text}"));
        }
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let mut settings = self.settings.clone();
        let model = absolute(Path::new(self.model()));
        if let Some(model) = model.to_str().filter(|_| model.exists()) {
            settings.place.model = model.to_string();
        }
        // A name on the hub stays what it is.
        settings.place.data = if data.exists() { absolute(data).into() } else { data.into() };
        let table = settings.to_table();
        let named = |name: &&str| ["model", "data"].contains(name) || self.given.contains_key(*name);
        let names = definitions().map(|setting| setting.name).filter(named).filter(|name| *name != "threads");
        let lines = names.filter_map(|name| Some(format!("{name} = {}\n", table.get(name)?)));
        let first = "# How the adapter that was pruned is read; prune.json says how it was pruned.\n";
        Ok(first.to_string() + &lines.collect::<String>())
    }

    /// # Errors
    /// Those of the files; `Error::Usage` where an option that was given has no effect for the
    /// model.
    pub fn open(&self, console: &Console, interrupt: &Interrupt) -> Result<Predictor> {
        self.open_on(&Ranks::default(), console, interrupt)
    }

    /// Like `open` on one of a job's ranks, which then share the work. The first rank downloads the
    /// model where it is on the hub.
    ///
    /// # Errors
    /// Those of `open` on any rank; ranks differ.
    pub fn open_on(&self, ranks: &Ranks, console: &Console, interrupt: &Interrupt) -> Result<Predictor> {
        let (model, length) = (self.model(), self.settings.rows.max_length);
        ranks.first_then_others(|| console.fetch(model, interrupt))?;
        let threads = ranks.threads(self.settings.train.compute.threads);
        let mut predictor =
            Predictor::open(model, self.adapter.as_deref(), self.arithmetic(), threads, length)?;
        let most = predictor.max_length();
        let given = length.filter(|_| self.given.contains_key("max-length"));
        if let Some(tokens) = given.filter(|&tokens| tokens > most) {
            return Err(Error::Usage(format!(
                "`max_length = {tokens}` is more than {model} takes: {most} tokens"
            )));
        }
        predictor.situation().check(self.reading.given.iter().copied())?;
        if self.given.contains_key("positive-class")
            && let Some(class) = &self.settings.rows.positive_class
        {
            predictor.set_positive(class)?;
        }
        predictor.share_with(ranks, &interrupt.cancel)?;
        console.notes(predictor.notes().to_vec());
        Ok(predictor)
    }
}

/// A split of the data that a command reads.
pub struct DataSplit {
    /// Its name in the library.
    pub name: String,
    /// Its name in results: `all` where a file is read as a whole.
    pub shown: String,
    /// What the user should know if the rows are not what the name says.
    pub note: Option<String>,
}

impl DataSplit {
    /// Finds the rows that `split`, or dev if it is not given, stands for in this data.
    ///
    /// # Errors
    /// `Error::Usage` where one is given for a file that is read as a whole.
    pub fn of(data: &Path, split: Option<String>, reading: &Reading) -> Result<Self> {
        let name = split.clone().unwrap_or_else(|| "dev".to_string());
        let found = SplitFiles::find(data)?;
        let (_, part) = found.part(name.parse().map_err(Error::Usage)?, &reading.trained_on)?;
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
            return Err(no_effect(&format!("split {split}"), &reason));
        }
        let note = format!("all rows of {file} are read, because it is a single file");
        Ok(DataSplit { name, shown: "all".to_string(), note: Some(note) })
    }
}

/// Reads a whole number.
pub fn whole(text: &str) -> std::result::Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number from 0 up".to_string())
}
