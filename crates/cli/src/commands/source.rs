//! The model of `eval`, `predict`, `prune` and `generate`, with or without an adapter, and how its
//! rows are read.

use std::path::{Path, PathBuf};

use lora_drop::data::{SplitFiles, SplitPart};
use lora_drop::evaluate::Predictor;
use lora_drop::ranks::Ranks;
use lora_drop::reading::Reading;
use lora_drop::settings::{
    AdapterSettings, Definition, Given as Origin, Method, RECIPE, RunSettings, SelectionSettings, definitions,
};
use lora_drop::use_settings::UseSettings;
use lora_drop::{Error, Result};

use super::console::Console;
use super::interrupt::Interrupt;
use super::options::{Given, OptionSet, no_effect};

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

impl OptionSet for Measure {
    const INHERITS: bool = true;

    fn includes(setting: &Definition) -> bool {
        ROWS.contains(&setting.name) || MODEL.contains(&setting.name)
    }
}

/// `predict`, whose rows have texts alone.
pub struct Predict;

impl OptionSet for Predict {
    const INHERITS: bool = true;

    fn includes(setting: &Definition) -> bool {
        ["text-column", "pair-column", "bad-rows"].contains(&setting.name) || MODEL.contains(&setting.name)
    }
}

/// `generate`.
pub struct Generate;

impl OptionSet for Generate {
    const INHERITS: bool = true;

    fn includes(setting: &Definition) -> bool {
        let model = MODEL.contains(&setting.name) && setting.name != "max-length";
        let of_rows = ["prompt-template", "chat", "bad-rows", "template-var", "data-config"];
        model || of_rows.contains(&setting.name)
    }
}

/// Options for the model and for how its rows are read. What is not given comes from the recipe in
/// the adapter's folder, if there is one.
#[derive(clap::Args)]
pub struct Source<C: OptionSet> {
    /// The adapter: a run's folder, a PEFT adapter's, or an adapter_compact.safetensors
    #[arg(long, value_name = "DIR|FILE")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    given: Given<C>,
}

impl<C: OptionSet> Source<C> {
    /// Whether the setting of this name was given.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.table().contains_key(name)
    }

    /// Overlays the recipe of the adapter's training with the options.
    ///
    /// # Errors
    /// Those of [`UseSettings::new`].
    pub fn resolve(self) -> Result<UseSettings> {
        UseSettings::new(self.adapter, self.given.into_table())
    }
}

/// Where this data is: the path, or the files of the hub's data set of this name, downloaded.
///
/// # Errors
/// Those of [`UseSettings::locate`].
pub fn locate(
    source: &UseSettings,
    data: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    console.downloading(interrupt, |progress| source.locate(data, &interrupt.cancel, progress))
}

/// Opens the model, which is downloaded where it is on the hub.
///
/// # Errors
/// Those of [`UseSettings::predictor`].
pub fn open(source: &UseSettings, console: &Console, interrupt: &Interrupt) -> Result<Predictor> {
    open_on(source, &Ranks::default(), console, interrupt)
}

/// Like `open` on one of a job's ranks, which then share the work. The first rank downloads.
///
/// # Errors
/// Those of `open` on any rank; ranks differ.
pub fn open_on(
    source: &UseSettings,
    ranks: &Ranks,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Predictor> {
    ranks.first_then_others(|| console.fetch(source.model(), interrupt))?;
    let predictor = source.predictor(ranks, &interrupt.cancel)?;
    console.notes(predictor.notes().to_vec());
    Ok(predictor)
}

/// Settings for training the adapter further on these rows: those of the run that made it,
/// overridden by what was given here, without the selection of modules, which is already made.
pub fn train_settings(source: &UseSettings, data: &Path) -> RunSettings {
    let mut settings = source.settings.clone();
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

/// The text of recipe.toml for an adapter that is made from this one, in which other commands find
/// the base model and the columns: the adapter's own recipe, or one of what was given here.
///
/// # Errors
/// `Error::Io` where the adapter's own recipe cannot be read.
pub fn recipe(source: &UseSettings, data: &Path) -> Result<String> {
    let own = source.adapter.as_deref().map(|adapter| adapter.join(RECIPE));
    if let Some(path) = own.filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        return Ok(format!("# Of the run whose adapter was pruned; prune.json says how.\n{text}"));
    }
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut settings = source.settings.clone();
    let model = absolute(Path::new(source.model()));
    if let Some(model) = model.to_str().filter(|_| model.exists()) {
        settings.place.model = model.to_string();
    }
    // A name on the hub stays what it is.
    settings.place.data = if data.exists() { absolute(data).into() } else { data.into() };
    let table = settings.to_table();
    let named = |name: &&str| ["model", "data"].contains(name) || source.given.contains_key(*name);
    let names = definitions().map(|setting| setting.name).filter(named).filter(|name| *name != "threads");
    let lines = names.filter_map(|name| Some(format!("{name} = {}\n", table.get(name)?)));
    let first = "# How the adapter that was pruned is read; prune.json says how it was pruned.\n";
    Ok(first.to_string() + &lines.collect::<String>())
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
        if part != SplitPart::All {
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
