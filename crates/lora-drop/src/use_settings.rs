//! The settings of a model in use: given ones over those of the run that trained its adapter.

use std::path::{Path, PathBuf};

use toml::Table;

use crate::evaluate::Predictor;
use crate::folder::recover;
use crate::generate::Generator;
use crate::hub::Download;
use crate::loaded::Arithmetic;
use crate::ranks::Ranks;
use crate::reading::Reading;
use crate::settings::{DataSources, RECIPE, Recipe, RunSettings, definitions};
use crate::{Cancel, Error, Result};

/// Which model and adapter are used, and how rows are read for them. What is not given comes from
/// the recipe in the adapter's folder, if there is one.
#[derive(Clone, Debug)]
pub struct UseSettings {
    pub adapter: Option<PathBuf>,
    pub settings: RunSettings,
    pub reading: Reading,
    /// The settings that were given, by name.
    pub given: Table,
}

/// The recipe in an adapter's folder, if there is one.
///
/// # Errors
/// Those of reading it.
pub fn recipe_of(adapter: &Path) -> Result<Option<RunSettings>> {
    recover(adapter)?;
    let path = adapter.join(RECIPE);
    path.is_file().then(|| Recipe::read(&path)?.recorded()).transpose()
}

/// The adapter's base model: the given one, else the recipe's.
///
/// # Errors
/// `Error::Usage` if neither names one.
pub fn base_model(given: Option<String>, recipe: Option<&RunSettings>) -> Result<String> {
    let named = recipe.map(|recipe| recipe.place.model.clone()).filter(|model| !model.is_empty());
    given.or(named).ok_or_else(|| {
        let message = "`model` is missing, and the adapter's folder has no recipe.toml that names it";
        Error::Usage(message.to_string())
    })
}

impl UseSettings {
    /// Overlays the adapter's recipe with the given settings.
    ///
    /// # Errors
    /// Those of the recipe and of [`RunSettings::apply`]; `Error::Usage` where nothing names the
    /// model.
    pub fn new(adapter: Option<PathBuf>, given: Table) -> Result<Self> {
        let recipe = adapter.as_deref().map(recipe_of).transpose()?.flatten();
        let trained_on = recipe.as_ref().map(|recipe| recipe.place.data.paths()).unwrap_or_default();
        let model = base_model(None, recipe.as_ref());
        let mut settings = recipe.unwrap_or_default();
        let rows = &mut settings.rows;
        // A given text column may stand alone, so training's pair column does not apply. Nor do its
        // prompt columns, which exclude a text column. A given prompt column excludes training's
        // text column in the same way.
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
        Ok(UseSettings { adapter, settings, reading, given })
    }

    /// The model's folder, file or name on the hub.
    pub fn model(&self) -> &str {
        &self.settings.place.model
    }

    /// How matrices are stored and multiplied.
    pub fn arithmetic(&self) -> Arithmetic {
        Arithmetic::of(&self.settings.train.compute)
    }

    /// Where this data is: the path, or the files of the hub's data set of this name.
    ///
    /// # Errors
    /// Those of [`DataSources::locate`]; `Error::Usage` for a given configuration of a path.
    pub fn locate(
        &self,
        data: &Path,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<PathBuf> {
        let mut sources = DataSources::from(data);
        let config = self.settings.place.data_config.as_deref();
        if !sources.locate(config, cancel, progress)? && self.given.contains_key("data-config") {
            return Err(sources.no_config());
        }
        Ok(sources.all()[0].place().to_path_buf())
    }

    /// Opens the model for measuring and predicting, on one of a job's ranks.
    ///
    /// # Errors
    /// Those of the files; `Error::Usage` where a given setting has no effect for the model; ranks
    /// differ.
    pub fn predictor(&self, ranks: &Ranks, cancel: &Cancel) -> Result<Predictor> {
        let (model, length) = (self.model(), self.settings.rows.max_length);
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
        predictor.share_with(ranks, cancel)?;
        Ok(predictor)
    }

    /// Opens the model for writing text.
    ///
    /// # Errors
    /// Those of the files; `Error::Usage` for a model that is no decoder.
    pub fn generator(&self) -> Result<Generator> {
        let threads = self.settings.train.compute.threads;
        let adapter = self.adapter.as_deref();
        Generator::open(self.model(), adapter, self.arithmetic(), self.reading.clone(), threads)
    }
}
