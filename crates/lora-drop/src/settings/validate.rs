//! Which settings do not go together.

use super::situation::{Reader, Situation};
use super::{
    AdapterSettings, Basis, Budget, Method, RunSettings, SelectionSettings, TrainSettings, definitions,
};
use crate::data::text::template_variables;
use crate::error::{Error, Result};

impl RunSettings {
    /// Checks every setting's range and the combinations that can be judged without the model and
    /// the data.
    ///
    /// # Errors
    /// `Error::Usage` for the first setting that is wrong, with its name, its value and what is
    /// allowed.
    pub fn validate(&self) -> Result<()> {
        self.validate_paths()?;
        self.validate_values()
    }

    fn validate_values(&self) -> Result<()> {
        let table = self.to_table();
        let problem = definitions().find_map(|definition| definition.problem(table.get(definition.name)?));
        if let Some(message) = problem {
            return Err(Error::Usage(message));
        }
        self.validate_rows()?;
        self.train.validate_adapter()?;
        self.train.validate_selection()?;
        self.check_read(&Situation::new(self, Reader::Train)).map(drop)
    }

    fn validate_paths(&self) -> Result<()> {
        for (name, missing, what) in [
            ("model", self.place.model.is_empty(), "a folder with config.json, or a hub name (org/name)"),
            ("data", self.place.data.is_empty(), "a folder with train and dev files, or one file"),
            ("output", self.place.output.as_os_str().is_empty(), "the folder for the run's files"),
        ] {
            check(!missing, || format!("`{name}` is missing: {what}"))?;
        }
        check(self.place.output.to_str().is_some(), || {
            format!(
                "`output = {}` is not valid UTF-8, so recipe.toml could not name it; rename the path",
                self.place.output.display()
            )
        })?;
        self.place.data.check()
    }

    /// Checks the columns and template variables that are given.
    ///
    /// # Errors
    /// `Error::Usage` for a column that is named twice, or a variable without a value.
    pub(crate) fn validate_rows(&self) -> Result<()> {
        let columns = [&self.rows.text_column, &self.rows.pair_column, &self.rows.label_column];
        for (i, column) in columns.iter().enumerate() {
            let taken = column.is_some() && columns[..i].contains(column);
            check(!taken, || {
                let column = column.as_deref().unwrap_or_default();
                format!(
                    "the column {column:?} is named twice: `text_column`, `pair_column` and `label_column` must differ"
                )
            })?;
        }
        template_variables(&self.rows.template_var).map(drop)
    }
}

impl TrainSettings {
    /// Checks every setting's range and the combinations that can be judged without the model and
    /// the data.
    ///
    /// # Errors
    /// `Error::Usage` for the first setting that is wrong, with its name, its value and what is
    /// allowed.
    pub fn validate(&self) -> Result<()> {
        RunSettings { train: self.clone(), ..RunSettings::default() }.validate_values()
    }

    fn validate_adapter(&self) -> Result<()> {
        let AdapterSettings { target_modules, tinit, tfinal, .. } = &self.adapter;
        check(target_modules.iter().all(|m| !m.trim().is_empty()), || {
            "`target_modules` has an empty name; give names such as query,value, or all-linear".to_string()
        })?;
        let all_linear = target_modules.iter().any(|m| m == "all-linear");
        check(!all_linear || target_modules.len() == 1, || {
            "`target_modules = all-linear` stands alone: it names every linear layer already".to_string()
        })?;
        check(tinit + tfinal < 1.0, || {
            format!("`tinit = {tinit}` and `tfinal = {tfinal}` leave no step in which the budget falls")
        })
    }

    fn validate_selection(&self) -> Result<()> {
        let SelectionSettings {
            threshold, top_k, budget, keep_layers, unselected, criterion, scores, ..
        } = &self.selection;
        let given = [
            ("`threshold`", threshold.is_some()),
            ("`top_k`", top_k.is_some()),
            ("`budget`", budget.is_some()),
            ("`keep_layers`", keep_layers.is_some()),
        ];
        let given: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        check(given.len() < 2, || format!("{} exclude each other; give one", given.join(" and ")))?;
        check(*top_k != Some(0) || unselected.shares(), || {
            "`top_k = 0` with `unselected = drop` leaves no LoRA; `method = head` trains without any"
                .to_string()
        })?;
        if *budget == Some(Budget::Auto) {
            check(scores.is_none(), || {
                "`budget = auto` is found after a sample stage, and `scores` takes its place: give a fraction"
                    .to_string()
            })?;
            let method = self.adapter.method;
            let finds = method == Method::LoraDrop && criterion.basis() == Basis::Training;
            check(finds, || {
                let [method, criterion] = [method.name(), criterion.name()];
                format!(
                    "`budget = auto` looks at LoRAs that method lora-drop has trained on the sample, with `criterion = output`, \
                     size or gradient; here it is `method = {method}`, `criterion = {criterion}`: give a fraction"
                )
            })?;
        }
        if let Some(layers) = keep_layers {
            check(!layers.is_empty(), || {
                "`keep_layers` names no layer; `method = head` trains without any LoRA".to_string()
            })?;
            let twice = layers.iter().enumerate().find(|(i, layer)| layers[..*i].contains(layer));
            check(twice.is_none(), || {
                format!("`keep_layers` names layer {} twice", twice.map_or(0, |(_, layer)| *layer))
            })?;
        }
        Ok(())
    }
}

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Usage(message())) }
}

#[cfg(test)]
mod tests {
    use super::super::{CriterionName, DataSources, Restart, SampleEpochs, Unselected};
    use super::*;

    fn valid() -> RunSettings {
        RunSettings::new("m", "d", "o")
    }

    /// The message of the settings that `change` makes of valid ones.
    fn message(change: impl FnOnce(&mut RunSettings)) -> String {
        let mut settings = valid();
        change(&mut settings);
        match settings.validate() {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_valid_for_every_method() {
        for &method in Method::ALL {
            let mut settings = valid();
            settings.train.adapter.method = method;
            settings.validate().unwrap();
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        let mut settings = valid();
        settings.train.selection.threshold = Some(1.0);
        settings.train.selection.sample_ratio = 1.0;
        settings.rows.max_length = Some(3);
        settings.train.optimisation.max_grad_norm = 0.0;
        settings.train.optimisation.warmup_ratio = 0.0;
        settings.train.optimisation.weight_decay = 0.0;
        settings.train.adapter.rank = 1;
        settings.validate().unwrap();
    }

    #[test]
    fn values_out_of_range_are_named() {
        type Change = fn(&mut RunSettings);
        let cases: [(&str, Change); 40] = [
            ("`model` is missing", |s| s.place.model.clear()),
            ("`data` is missing", |s| s.place.data = DataSources::default()),
            ("`output` is missing", |s| s.place.output.clear()),
            ("`rank` is 0", |s| s.train.adapter.rank = 0),
            ("`rank` is 1000000", |s| s.train.adapter.rank = 1_000_000),
            ("`alpha` is 0", |s| s.train.adapter.alpha = 0.0),
            ("`alpha` is NaN", |s| s.train.adapter.alpha = f64::NAN),
            ("`lora_dropout` is 1", |s| s.train.adapter.lora_dropout = 1.0),
            ("`lora_dropout` is NaN", |s| s.train.adapter.lora_dropout = f64::NAN),
            ("`tinit` is -0.1", |s| s.train.adapter.tinit = -0.1),
            ("`tfinal` is 1", |s| s.train.adapter.tfinal = 1.0),
            ("`tinit = 0.6` and `tfinal = 0.5`", |s| s.train.adapter.tinit = 0.6),
            ("`activation_cache` is -1", |s| s.train.compute.activation_cache = -1.0),
            ("`activation_cache` is NaN", |s| s.train.compute.activation_cache = f64::NAN),
            ("`token_cache` is -1", |s| s.rows.token_cache = -1.0),
            ("`sample_ratio` is 0", |s| s.train.selection.sample_ratio = 0.0),
            ("`sample_epochs` is 0", |s| s.train.selection.sample_epochs = SampleEpochs::Epochs(0)),
            ("`threshold` is 1.5", |s| s.train.selection.threshold = Some(1.5)),
            ("`threshold` is 0", |s| s.train.selection.threshold = Some(0.0)),
            ("`shared_rank` is 0", |s| s.train.selection.shared_rank = Some(0)),
            ("`top_k = 0` with `unselected = drop`", |s| {
                (s.train.selection.top_k, s.train.selection.unselected) = (Some(0), Unselected::Drop)
            }),
            ("`budget` is -0.5", |s| s.train.selection.budget = Some(Budget::Share(-0.5))),
            ("`budget = auto` looks at", |s| {
                (s.train.selection.budget, s.train.adapter.method) =
                    (Some(Budget::Auto), Method::SparseAdapter)
            }),
            ("`budget = auto` looks at", |s| {
                (s.train.selection.budget, s.train.selection.criterion) =
                    (Some(Budget::Auto), CriterionName::Page)
            }),
            ("`keep_layers` names no layer", |s| s.train.selection.keep_layers = Some(vec![])),
            ("`keep_layers` names layer 3 twice", |s| s.train.selection.keep_layers = Some(vec![3, 1, 3])),
            ("`epochs` is 0", |s| s.train.optimisation.epochs = 0),
            ("`max_steps` is 0", |s| s.train.optimisation.max_steps = Some(0)),
            ("`batch_size` is 0", |s| s.train.optimisation.batch_size = 0),
            ("`grad_accumulation` is 0", |s| s.train.optimisation.grad_accumulation = 0),
            ("`max_length` is 2", |s| s.rows.max_length = Some(2)),
            ("`micro_tokens` is 0", |s| s.train.compute.micro_tokens = Some(0)),
            ("`learning_rate` is -1", |s| s.train.optimisation.learning_rate = -1.0),
            ("`learning_rate` is inf", |s| s.train.optimisation.learning_rate = f64::INFINITY),
            ("`weight_decay` is -0.1", |s| s.train.optimisation.weight_decay = -0.1),
            ("`warmup_ratio` is 1", |s| s.train.optimisation.warmup_ratio = 1.0),
            ("`max_grad_norm` is -1", |s| s.train.optimisation.max_grad_norm = -1.0),
            ("`seed` is", |s| s.train.optimisation.seed = u64::MAX),
            ("`hidden_dropout` is 1", |s| s.train.optimisation.hidden_dropout = Some(1.0)),
            ("`label_smoothing` is -0.1", |s| s.train.optimisation.label_smoothing = -0.1),
        ];
        for (expected, change) in cases {
            let message = message(change);
            assert!(message.starts_with(expected), "{message:?} does not start with {expected:?}");
        }
    }

    #[test]
    fn the_ways_of_choosing_exclude_each_other() {
        let message = message(|s| {
            (s.train.selection.threshold, s.train.selection.budget) = (Some(0.9), Some(Budget::Share(0.5)))
        });
        assert!(message.contains("`threshold` and `budget` exclude each other"), "{message}");
    }

    #[test]
    fn layers_that_are_named_need_no_sample() {
        let message = message(|s| {
            (s.train.selection.keep_layers, s.train.selection.sample_ratio) = (Some(vec![0]), 0.5)
        });
        assert!(message.contains("`sample_ratio` has no effect with `keep_layers`"), "{message}");
    }

    #[test]
    fn a_setting_without_a_reader_is_refused() {
        let message = |method, change: fn(&mut RunSettings)| {
            message(|s| {
                s.train.adapter.method = method;
                change(s);
            })
        };
        assert!(
            message(Method::Lora, |s| s.train.selection.threshold = Some(0.9))
                .contains("`threshold` has no effect with `method = lora`")
        );
        assert!(
            message(Method::Full, |s| s.train.adapter.rank = 4)
                .contains("`rank` has no effect with `method = full`")
        );
        assert!(
            message(Method::Head, |s| s.train.optimisation.restart = Restart::Continue)
                .contains("`method = head`")
        );
    }

    #[test]
    fn one_column_cannot_play_two_parts() {
        let message =
            message(|s| (s.rows.text_column, s.rows.label_column) = (Some("x".into()), Some("x".into())));
        assert!(message.contains("\"x\" is named twice"), "{message}");
    }
}
