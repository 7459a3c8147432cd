//! What settings may be: the range of each, and which do not go together.

use toml::Value;

use super::readers::{Reader, Situation};
use super::{Basis, Budget, METRICS, Method, TrainSettings};
use crate::error::{Error, Result};

/// Above the width of every encoder there is; a rank near the width has nothing low about it.
const MAX_RANK: usize = 16_384;
/// Counts beyond these are slips of the keyboard, and would overflow step and token counts further on.
const MAX_COUNT: usize = 1_000_000;

/// Settings that are whole numbers, and their ranges.
const RANGES: [(&str, usize, usize); 13] = [
    ("rank", 1, MAX_RANK),
    ("shared-rank", 1, MAX_RANK),
    ("top-k", 0, MAX_COUNT),
    ("sample-epochs", 1, MAX_COUNT),
    ("epochs", 1, MAX_COUNT),
    ("max-steps", 1, 100 * MAX_COUNT),
    ("batch-size", 1, MAX_COUNT),
    ("grad-accumulation", 1, MAX_COUNT),
    // The shortest row that holds a token of text: [CLS] token [SEP].
    ("max-length", 3, MAX_COUNT),
    ("threads", 0, 4096),
    ("micro-tokens", 1, MAX_COUNT),
    ("keep-layers", 0, MAX_COUNT),
    ("seed", 0, i64::MAX as usize),
];

/// What is wrong with a whole number as a recipe or the command line has it; numbers of a list are looked at one by one.
pub(super) fn out_of_range(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Integer(number) => {
            let &(_, least, most) = RANGES.iter().find(|(setting, ..)| *setting == name)?;
            let fits = usize::try_from(*number).is_ok_and(|number| (least..=most).contains(&number));
            (!fits).then(|| format!("--{name} is {number}; it must be {least} to {most}"))
        }
        Value::Array(list) => list.iter().find_map(|value| out_of_range(name, value)),
        _ => None,
    }
}

impl TrainSettings {
    /// Checks every setting's range and the combinations that can be judged without the model and the data.
    ///
    /// # Errors
    /// `Error::Usage` on the first setting that is wrong, by its option's name, with what was seen and what is allowed.
    pub fn validate(&self) -> Result<()> {
        self.validate_paths()?;
        // Beyond this a recipe cannot hold it.
        check(i64::try_from(self.seed).is_ok(), || {
            format!("--seed is {}; it must be 0 to {}", self.seed, i64::MAX)
        })?;
        let table = self.to_table()?;
        if let Some(message) = table.iter().find_map(|(name, value)| out_of_range(name, value)) {
            return Err(Error::Usage(message));
        }
        self.validate_lora()?;
        self.validate_course()?;
        self.validate_choice()?;
        self.validate_tuning()?;
        self.check_read(&Situation::new(self, Reader::Train)).map(drop)
    }

    fn validate_paths(&self) -> Result<()> {
        for (name, missing, what) in [
            ("model", self.model.is_empty(), "a folder with config.json, or a hub name (org/name)"),
            ("data", self.data.as_os_str().is_empty(), "a folder with train and dev files, or one file"),
            ("output", self.output.as_os_str().is_empty(), "the folder for the run's files"),
        ] {
            check(!missing, || format!("--{name} is missing: {what}"))?;
        }
        for (name, path) in [("data", &self.data), ("output", &self.output)] {
            check(path.to_str().is_some(), || {
                format!(
                    "--{name} {} is not valid UTF-8, so recipe.toml could not name it; rename the path",
                    path.display()
                )
            })?;
        }
        let columns = [&self.text_column, &self.pair_column, &self.label_column];
        for (i, column) in columns.iter().enumerate() {
            let taken = column.is_some() && columns[..i].contains(column);
            check(!taken, || {
                let column = column.as_deref().unwrap_or_default();
                format!(
                    "the column {column:?} is named twice: --text-column, --pair-column and --label-column differ"
                )
            })?;
        }
        Ok(())
    }

    fn validate_lora(&self) -> Result<()> {
        positive("alpha", self.alpha)?;
        dropout("lora-dropout", Some(self.lora_dropout))?;
        for (name, cache) in [("activation-cache", self.activation_cache), ("token-cache", self.token_cache)]
        {
            check(cache >= 0.0 && cache.is_finite(), || {
                format!("--{name} is {cache}, expected gigabytes, or 0 for none")
            })?;
        }
        check(self.target_modules.iter().all(|m| !m.trim().is_empty()), || {
            "--target-modules has an empty name; give names such as query,value, or all-linear".to_string()
        })?;
        let all_linear = self.target_modules.iter().any(|m| m == "all-linear");
        check(!all_linear || self.target_modules.len() == 1, || {
            "--target-modules all-linear stands alone: it names every linear layer already".to_string()
        })
    }

    fn validate_course(&self) -> Result<()> {
        for (name, part) in [("tinit", self.tinit), ("tfinal", self.tfinal)] {
            check((0.0..1.0).contains(&part), || {
                format!("--{name} is {part}; it must be at least 0 and below 1")
            })?;
        }
        check(self.tinit + self.tfinal < 1.0, || {
            format!(
                "--tinit {} and --tfinal {} leave no step in which the budget falls",
                self.tinit, self.tfinal
            )
        })
    }

    fn validate_choice(&self) -> Result<()> {
        fraction("sample-ratio", self.sample_ratio)?;
        let given = [
            ("--threshold", self.threshold.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--budget", self.budget.is_some()),
            ("--keep-layers", self.keep_layers.is_some()),
        ];
        let given: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        check(given.len() < 2, || format!("{} exclude each other; give one", given.join(" and ")))?;
        check(self.top_k != Some(0) || self.unselected.shares(), || {
            "--top-k 0 with --unselected drop leaves no LoRA; --method head trains without any".to_string()
        })?;
        if let Some(threshold) = self.threshold {
            fraction("threshold", threshold)?;
        }
        match self.budget {
            Some(Budget::Share(share)) => fraction("budget", share)?,
            Some(Budget::Auto) => {
                let finds = self.method == Method::LoraDrop && self.criterion.basis() == Basis::Training;
                check(finds, || {
                    let [method, criterion] = [self.method.name(), self.criterion.name()];
                    format!(
                        "--budget auto looks at LoRAs that method lora-drop has trained on the sample, by --criterion output, \
                         size or gradient; here it is method {method}, criterion {criterion}: give a fraction"
                    )
                })?;
            }
            None => {}
        }
        if let Some(layers) = &self.keep_layers {
            check(!layers.is_empty(), || {
                "--keep-layers names no layer; --method head trains without any LoRA".to_string()
            })?;
            let twice = layers.iter().enumerate().find(|(i, layer)| layers[..*i].contains(layer));
            check(twice.is_none(), || {
                format!("--keep-layers names layer {} twice", twice.map_or(0, |(_, layer)| *layer))
            })?;
        }
        Ok(())
    }

    fn validate_tuning(&self) -> Result<()> {
        positive("learning-rate", self.learning_rate)?;
        if let Some(rate) = self.head_learning_rate {
            positive("head-learning-rate", rate)?;
        }
        for (name, value) in [("max-grad-norm", self.max_grad_norm), ("weight-decay", self.weight_decay)] {
            check(value >= 0.0 && value.is_finite(), || {
                format!("--{name} is {value}; it must be 0 or greater")
            })?;
        }
        check((0.0..1.0).contains(&self.warmup_ratio), || {
            format!("--warmup-ratio is {}; it must be at least 0 and below 1", self.warmup_ratio)
        })?;
        dropout("hidden-dropout", self.hidden_dropout)?;
        dropout("attention-dropout", self.attention_dropout)?;
        dropout("label-smoothing", Some(self.label_smoothing))?;
        if let Some(metric) = &self.metric {
            check(METRICS.contains(&metric.as_str()), || {
                format!("--metric {metric} is not known; it is one of {}", METRICS.join(", "))
            })?;
        }
        Ok(())
    }
}

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Usage(message())) }
}

fn positive(name: &str, value: f64) -> Result<()> {
    check(value > 0.0 && value.is_finite(), || {
        format!("--{name} is {value}; it must be greater than 0 and finite")
    })
}

fn fraction(name: &str, value: f64) -> Result<()> {
    check(value > 0.0 && value <= 1.0, || {
        format!("--{name} is {value}; it must be greater than 0 and at most 1")
    })
}

fn dropout(name: &str, value: Option<f64>) -> Result<()> {
    let ok = value.is_none_or(|value| (0.0..1.0).contains(&value));
    check(ok, || format!("--{name} is {}; it must be at least 0 and below 1", value.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::super::{CriterionName, SampleEpochs, Unselected};
    use super::*;

    fn valid() -> TrainSettings {
        TrainSettings { model: "m".into(), data: "d".into(), output: "o".into(), ..TrainSettings::default() }
    }

    /// The message of the settings that `change` makes of valid ones.
    fn message(change: impl FnOnce(&mut TrainSettings)) -> String {
        let mut settings = valid();
        change(&mut settings);
        match settings.validate() {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_valid_for_every_method() {
        for method in Method::ALL {
            TrainSettings { method, ..valid() }.validate().unwrap();
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_allowed() {
        let mut settings = valid();
        settings.threshold = Some(1.0);
        settings.sample_ratio = 1.0;
        settings.max_length = Some(3);
        settings.max_grad_norm = 0.0;
        settings.warmup_ratio = 0.0;
        settings.weight_decay = 0.0;
        settings.rank = 1;
        settings.validate().unwrap();
    }

    #[test]
    fn values_out_of_range_are_named() {
        type Change = fn(&mut TrainSettings);
        let cases: [(&str, Change); 41] = [
            ("--model is missing", |s| s.model.clear()),
            ("--data is missing", |s| s.data.clear()),
            ("--output is missing", |s| s.output.clear()),
            ("--rank is 0", |s| s.rank = 0),
            ("--rank is 1000000", |s| s.rank = 1_000_000),
            ("--alpha is 0", |s| s.alpha = 0.0),
            ("--alpha is NaN", |s| s.alpha = f64::NAN),
            ("--lora-dropout is 1", |s| s.lora_dropout = 1.0),
            ("--lora-dropout is NaN", |s| s.lora_dropout = f64::NAN),
            ("--tinit is -0.1", |s| s.tinit = -0.1),
            ("--tfinal is 1", |s| s.tfinal = 1.0),
            ("--tinit 0.6 and --tfinal 0.5", |s| s.tinit = 0.6),
            ("--activation-cache is -1", |s| s.activation_cache = -1.0),
            ("--activation-cache is NaN", |s| s.activation_cache = f64::NAN),
            ("--token-cache is -1", |s| s.token_cache = -1.0),
            ("--sample-ratio is 0", |s| s.sample_ratio = 0.0),
            ("--sample-epochs is 0", |s| s.sample_epochs = SampleEpochs::Epochs(0)),
            ("--threshold is 1.5", |s| s.threshold = Some(1.5)),
            ("--threshold is 0", |s| s.threshold = Some(0.0)),
            ("--shared-rank is 0", |s| s.shared_rank = Some(0)),
            ("--top-k 0 with --unselected drop", |s| (s.top_k, s.unselected) = (Some(0), Unselected::Drop)),
            ("--budget is -0.5", |s| s.budget = Some(Budget::Share(-0.5))),
            ("--budget auto looks at", |s| {
                (s.budget, s.method) = (Some(Budget::Auto), Method::SparseAdapter)
            }),
            ("--budget auto looks at", |s| {
                (s.budget, s.criterion) = (Some(Budget::Auto), CriterionName::Page)
            }),
            ("--keep-layers names no layer", |s| s.keep_layers = Some(vec![])),
            ("--keep-layers names layer 3 twice", |s| s.keep_layers = Some(vec![3, 1, 3])),
            ("--epochs is 0", |s| s.epochs = 0),
            ("--max-steps is 0", |s| s.max_steps = Some(0)),
            ("--batch-size is 0", |s| s.batch_size = 0),
            ("--grad-accumulation is 0", |s| s.grad_accumulation = 0),
            ("--max-length is 2", |s| s.max_length = Some(2)),
            ("--micro-tokens is 0", |s| s.micro_tokens = Some(0)),
            ("--learning-rate is -1", |s| s.learning_rate = -1.0),
            ("--learning-rate is inf", |s| s.learning_rate = f64::INFINITY),
            ("--weight-decay is -0.1", |s| s.weight_decay = -0.1),
            ("--warmup-ratio is 1", |s| s.warmup_ratio = 1.0),
            ("--max-grad-norm is -1", |s| s.max_grad_norm = -1.0),
            ("--seed is", |s| s.seed = u64::MAX),
            ("--hidden-dropout is 1", |s| s.hidden_dropout = Some(1.0)),
            ("--label-smoothing is -0.1", |s| s.label_smoothing = -0.1),
            ("--metric bleu is not known", |s| s.metric = Some("bleu".into())),
        ];
        for (expected, change) in cases {
            let message = message(change);
            assert!(message.starts_with(expected), "{message:?} does not start with {expected:?}");
        }
    }

    #[test]
    fn the_ways_of_choosing_exclude_each_other() {
        let message = message(|s| (s.threshold, s.budget) = (Some(0.9), Some(Budget::Share(0.5))));
        assert!(message.contains("--threshold and --budget exclude each other"), "{message}");
    }

    #[test]
    fn layers_that_are_named_need_no_sample() {
        let message = message(|s| (s.keep_layers, s.sample_ratio) = (Some(vec![0]), 0.5));
        assert!(message.contains("--sample-ratio has no meaning with --keep-layers"), "{message}");
    }

    #[test]
    fn a_setting_without_a_reader_is_refused() {
        let message = |method, change: fn(&mut TrainSettings)| {
            message(|s| {
                s.method = method;
                change(s);
            })
        };
        assert!(
            message(Method::Lora, |s| s.threshold = Some(0.9))
                .contains("--threshold has no meaning with method lora")
        );
        assert!(message(Method::Full, |s| s.rank = 4).contains("--rank has no meaning with method full"));
        assert!(
            message(Method::Head, |s| s.restart = super::super::Restart::Continue).contains("method head")
        );
    }

    #[test]
    fn one_column_cannot_play_two_parts() {
        let message = message(|s| (s.text_column, s.label_column) = (Some("x".into()), Some("x".into())));
        assert!(message.contains("\"x\" is named twice"), "{message}");
    }
}
