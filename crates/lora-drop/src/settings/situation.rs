//! When a setting is read, and the check that every given setting is.

use std::collections::BTreeSet;

use super::{
    Basis, CriterionName, Method, Restart, RunSettings, Task, TrainSettings, Unselected, definition,
    definitions,
};
use crate::data::text::TextKind;
use crate::error::{Error, Result};

/// What has to hold for a setting to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Something trains: not an adapter that is scored as it is.
    Trains,
    /// Training continues after the sample stage.
    FineTunes,
    /// Training has the learning rate schedule of the whole run.
    LearningRateSchedule,
    /// The criterion sees rows.
    Sample,
    /// The criterion sees LoRA train.
    SampleTraining,
    /// The method has adapters.
    Adapter,
    /// Adapters have a scale, alpha / rank.
    Alpha,
    /// The method chooses modules.
    LoraDrop,
    /// The method has a sample stage.
    Samples,
    /// Modules that are not kept share a pair.
    Shares,
    AdaLora,
    SparseAdapter,
    /// Modules are chosen by scores and not by name.
    Scores,
    /// Scores are made by the run, and not read from a file.
    OwnScores,
    /// Pairs are new, and not those of an adapter.
    NewPairs,
    /// The run decides which modules keep their pairs.
    Chooses,
    /// Modules may be chosen without scores.
    NoScoresAsked,
    /// A block has a backward pass.
    Blocks,
    /// Lower blocks give a row the same output in every epoch.
    ConstantBlocks,
    Encoder,
    Decoder,
    /// Matrices are frozen.
    Frozen,
    /// Rows have labels.
    Labels,
    /// Labels are classes.
    Classes,
    /// A row, or a word, has one class.
    OneClass,
    /// Rows are texts.
    Texts,
    /// Rows are plain texts.
    PlainTexts,
    /// Rows have a prompt and a completion.
    Prompts,
    /// The model's chat template writes the rows.
    Template,
    /// A row that is too long is not split into several.
    OneSequence,
}

/// The operation that reads settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A whole run.
    Train,
    /// The sample stage alone.
    Score,
    /// The scoring of an adapter, without training.
    ScoreAdapter,
    /// A model that is measured, predicts or generates.
    Use,
}

/// The facts that decide which settings are read. None stands for a fact that is not known yet, for
/// which no setting is refused.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    pub reader: Reader,
    pub method: Method,
    /// Whether layers are kept by name, without scores.
    pub named_layers: bool,
    /// Whether scores are read from a file.
    pub given_scores: bool,
    /// Whether training starts with an adapter.
    pub init: bool,
    pub unselected: Unselected,
    pub epochs: usize,
    /// Optimiser steps that are given instead of epochs.
    pub max_steps: Option<usize>,
    pub criterion: CriterionName,
    pub restart: Restart,
    /// Whether the model is a decoder.
    pub decoder: Option<bool>,
    pub task: Option<Task>,
    /// What rows of texts are.
    pub rows: Option<TextKind>,
    /// Whether prompts and completions are written as turns.
    pub chat: Option<bool>,
    /// Whether blocks have dropout.
    pub block_dropout: Option<bool>,
}

impl Situation {
    /// What the settings alone decide, before model and data are known.
    pub fn new(settings: &RunSettings, reader: Reader) -> Self {
        let TrainSettings { adapter, selection, optimisation, .. } = &settings.train;
        Situation {
            reader,
            method: adapter.method,
            named_layers: selection.keep_layers.is_some(),
            given_scores: selection.scores.is_some(),
            init: adapter.init_adapter.is_some(),
            unselected: selection.unselected,
            epochs: optimisation.epochs,
            max_steps: optimisation.max_steps,
            criterion: selection.criterion,
            restart: optimisation.restart,
            decoder: None,
            task: settings.rows.task,
            rows: None,
            chat: Some(settings.rows.chat),
            block_dropout: None,
        }
    }

    /// The situation of a model in use: its kind, its task, and what its rows are, if they are
    /// texts and known.
    pub fn of_model(decoder: bool, task: Task, rows: Option<TextKind>) -> Self {
        let settings = RunSettings::default();
        let settings = Situation::new(&settings, Reader::Use);
        Situation { decoder: Some(decoder), task: Some(task), rows, chat: None, ..settings }
    }

    /// Why nothing reads the setting of this name; None if something does or may.
    pub fn unread(&self, name: &str) -> Option<String> {
        definition(name)?.needs.iter().find_map(|&need| self.lacks(need))
    }

    /// Checks that all settings of these names are read.
    ///
    /// # Errors
    /// `Error::Usage` for the first that is not, with the reason.
    pub fn check<'a>(&self, given: impl IntoIterator<Item = &'a str>) -> Result<()> {
        match given.into_iter().find_map(|name| Some((name, self.unread(name)?))) {
            Some((name, reason)) => Err(refused(name, &reason)),
            None => Ok(()),
        }
    }

    /// Returns why `need` does not hold, if that is known.
    fn lacks(&self, need: Need) -> Option<String> {
        let (method, criterion) = (self.method.name(), self.criterion.name());
        let without_labels = self.task == Some(Task::Text);
        let with_labels = self.task.is_some_and(|task| task != Task::Text);
        let (lacks, reason) = match need {
            Need::Trains => match self.reader {
                Reader::ScoreAdapter => {
                    (true, "for an adapter, which is scored as it is: nothing is trained".to_string())
                }
                Reader::Score => (
                    self.criterion.basis() != Basis::Training,
                    format!("for scoring with `criterion = {criterion}`: nothing is trained"),
                ),
                Reader::Train | Reader::Use => (false, String::new()),
            },
            Need::LearningRateSchedule => (
                self.reader == Reader::Score && self.restart == Restart::Fresh,
                "for scoring with `restart = fresh`: the sample stage has its own learning rate schedule".to_string(),
            ),
            Need::Sample => (
                self.criterion.basis() == Basis::Order,
                format!("with `criterion = {criterion}`, which looks at no rows"),
            ),
            Need::SampleTraining => (
                self.criterion.basis() != Basis::Training,
                format!("with `criterion = {criterion}`, for which nothing is trained on the sample"),
            ),
            Need::FineTunes => (
                matches!(self.reader, Reader::Score | Reader::ScoreAdapter),
                "for scoring, which ends with the scores".to_string(),
            ),
            Need::Adapter => (
                self.method.adapter().is_none(),
                format!(
                    "with `method = {method}`; only the methods {} read it",
                    Method::names(|method| method.adapter().is_some(), "and")
                ),
            ),
            Need::Alpha => {
                (self.method == Method::Vera, "with `method = vera`, whose vectors are its scale".to_string())
            }
            Need::LoraDrop => self.of_method(Method::LoraDrop),
            Need::AdaLora => self.of_method(Method::AdaLora),
            Need::SparseAdapter => self.of_method(Method::SparseAdapter),
            Need::Samples => (
                !self.method.has_sample(),
                format!("with `method = {method}`; only the methods {} read it", Method::names(Method::has_sample, "and")),
            ),
            Need::Shares => (
                !self.unselected.shares(),
                "with `unselected = drop`: no module shares a pair".to_string(),
            ),
            Need::Scores => {
                (self.named_layers, "with `keep_layers`, which needs no scores".to_string())
            }
            Need::OwnScores if self.given_scores => {
                (true, "with `scores`, which takes the place of the sample stage".to_string())
            }
            Need::OwnScores => (
                self.init,
                "with `init_adapter`, which has no sample stage; `score` with an adapter scores one for `scores`".to_string(),
            ),
            Need::NewPairs => (self.init, "with `init_adapter`, which has its own".to_string()),
            Need::Chooses => (
                self.init && !self.given_scores && !self.named_layers,
                "with `init_adapter`, whose modules stay as they are; give `scores` or `keep_layers` to choose anew"
                    .to_string(),
            ),
            Need::NoScoresAsked => (
                matches!(self.reader, Reader::Score | Reader::ScoreAdapter),
                "for scoring, as it needs no scores; give `threshold`, `top_k` or `budget` to see a choice by them"
                    .to_string(),
            ),
            Need::Blocks => {
                (self.method == Method::Head, "with `method = head`: no block has a backward pass".to_string())
            }
            Need::ConstantBlocks => return self.changing_blocks(),
            Need::Encoder => (
                self.decoder == Some(true),
                "for a decoder, which has no dropout on hidden states".to_string(),
            ),
            Need::Decoder => (
                self.decoder == Some(false),
                "for an encoder; only decoders are stored in fewer bits".to_string(),
            ),
            Need::Frozen => {
                (self.method == Method::Full, "with `method = full`: every weight trains, in f32".to_string())
            }
            Need::Labels => (without_labels, "for texts; see `task`".to_string()),
            Need::Classes => (
                without_labels || self.task == Some(Task::Regression),
                "for texts and regressions, which have no classes".to_string(),
            ),
            Need::OneClass => (
                self.task == Some(Task::MultiLabel),
                "for rows of several classes: it spreads the target of one class over all".to_string(),
            ),
            Need::Texts => (with_labels, "for rows with labels; see `task`".to_string()),
            Need::PlainTexts => match self.rows {
                _ if with_labels => (true, "for rows with labels; see `task`".to_string()),
                Some(TextKind::Completion) => {
                    (true, "for prompts with completions, which always end with it".to_string())
                }
                Some(TextKind::Messages) => {
                    (true, "for conversations, which end as the model's chat template writes them".to_string())
                }
                Some(TextKind::Text) | None => (false, String::new()),
            },
            Need::Prompts => match self.rows {
                Some(TextKind::Text) => (true, "for rows of plain text, which have no prompt".to_string()),
                Some(TextKind::Messages) => (
                    true,
                    "for conversations, which the model's chat template writes as they are".to_string(),
                ),
                Some(TextKind::Completion) | None => (false, String::new()),
            },
            Need::Template => match (self.rows, self.chat) {
                (Some(TextKind::Text), _) => {
                    (true, "for rows of plain text, which no template writes".to_string())
                }
                (Some(TextKind::Completion), Some(false)) => (
                    true,
                    "without `chat`: prompts and completions are written as they are".to_string(),
                ),
                _ => (false, String::new()),
            },
            Need::OneSequence => (
                self.rows == Some(TextKind::Text),
                "for rows of plain text: longer ones become several sequences of `max_length` tokens"
                    .to_string(),
            ),
        };
        lacks.then_some(reason)
    }

    /// Whether the method is not `method`, and the reason for the message.
    fn of_method(&self, method: Method) -> (bool, String) {
        let reason =
            format!("with `method = {}`; only method {} reads it", self.method.name(), method.name());
        (self.method != method, reason)
    }

    /// Why no block gives the same output in every epoch, or no second epoch reads it; None if one
    /// does.
    fn changing_blocks(&self) -> Option<String> {
        let reason = match (self.method, self.method.adapter()) {
            (Method::Full, _) => "with `method = full`: every block trains",
            (Method::LoraDrop, _) if self.unselected.shares() => {
                "without `unselected = drop`: every layer has a LoRA"
            }
            (method, Some(adapter)) if method != Method::LoraDrop => {
                return Some(format!(
                    "with `method = {}`: every layer has a {}",
                    method.name(),
                    adapter.title()
                ));
            }
            _ if self.max_steps.is_none() && self.epochs == 1 => "with one epoch, which reads nothing twice",
            _ if self.block_dropout == Some(true) => {
                "with dropout in the blocks, which changes their output in each step; \
                 give `hidden_dropout = 0` and `attention_dropout = 0`"
            }
            _ => return None,
        };
        Some(reason.to_string())
    }
}

/// The error of an option that nothing reads, with the reason: `with method lora`.
fn refused(name: &str, reason: &str) -> Error {
    Error::Usage(format!("`{}` has no effect {reason}; leave it out", name.replace('-', "_")))
}

/// Where a run's settings come from, by name. For settings made in code it is empty, and each value
/// that differs from its default counts as given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Given by the user or a recipe, even if the value is the default.
    pub names: BTreeSet<String>,
    /// Given by a recipe for another model, task or data; ignored if they are not read.
    pub inherited: BTreeSet<String>,
    /// Computed by the run that wrote the recipe.
    pub derived: BTreeSet<String>,
    /// The given values of the derived settings.
    pub replaced: toml::Table,
}

impl RunSettings {
    /// Checks that every setting that was given is read in this situation. Returns notes on the
    /// settings of a recipe for another model or task that have no effect.
    ///
    /// # Errors
    /// `Error::Usage` for the first that is not read, with the reason.
    pub fn check_read(&self, situation: &Situation) -> Result<Vec<String>> {
        let (mine, defaults) = (self.to_table(), RunSettings::default().to_table());
        let mut notes = Vec::new();
        for name in definitions().map(|definition| definition.name) {
            let Some(reason) = situation.unread(name) else { continue };
            let changed = mine.get(name) != defaults.get(name);
            if self.given.inherited.contains(name) || self.given.derived.contains(name) {
                if changed {
                    notes.push(format!("the recipe's {name} is left out: it has no effect {reason}"));
                }
            } else if changed || self.given.names.contains(name) {
                return Err(refused(name, &reason));
            }
        }
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_facts_refuse_no_setting() {
        let mut settings = RunSettings::default();
        settings.train.selection.unselected = Unselected::Drop;
        let situation = Situation::new(&settings, Reader::Train);
        // Except settings that only one other method reads, and one that `unselected = drop` leaves
        // out.
        let other = ["tinit", "tfinal", "sparse-by", "shared-rank"];
        let mut names = definitions().map(|definition| definition.name).filter(|name| !other.contains(name));
        assert!(names.all(|name| situation.unread(name).is_none()));
    }

    #[test]
    fn each_need_has_a_situation_without_it() {
        let settings = RunSettings::default();
        let all = Situation::new(&settings, Reader::Train);
        let task = |task| Situation { task: Some(task), ..all };
        let rows = |rows| Situation { rows: Some(rows), ..task(Task::Text) };
        let method = |method| Situation { method, ..all };
        let reader = |reader| Situation { reader, ..all };
        let drop = Situation { unselected: Unselected::Drop, ..all };
        for (name, situation, reason) in [
            ("rank", reader(Reader::ScoreAdapter), "nothing is trained"),
            ("metric", reader(Reader::Score), "scoring"),
            ("epochs", reader(Reader::Score), "`restart = fresh`"),
            ("keep-layers", reader(Reader::Score), "`top_k`"),
            ("rank", method(Method::Full), "`method = full`"),
            ("scope", method(Method::Lora), "`method = lora`"),
            ("budget", method(Method::Lora), "the methods lora-drop and sparse-adapter"),
            ("alpha", method(Method::Vera), "whose vectors are its scale"),
            ("tinit", all, "only method adalora"),
            ("sparse-by", all, "only method sparse-adapter"),
            ("scope", Situation { named_layers: true, ..all }, "no scores"),
            ("recompute", method(Method::Head), "backward pass"),
            ("activation-cache", all, "`unselected = drop`"),
            ("shared-rank", drop, "shares a pair"),
            ("activation-cache", method(Method::Lora), "every layer"),
            ("activation-cache", Situation { epochs: 1, ..drop }, "one epoch"),
            ("activation-cache", Situation { block_dropout: Some(true), ..drop }, "`hidden_dropout = 0`"),
            ("hidden-dropout", Situation { decoder: Some(true), ..all }, "decoder"),
            ("quantize", Situation { decoder: Some(false), ..all }, "encoder"),
            ("quantize", method(Method::Full), "every weight trains"),
            ("head-learning-rate", task(Task::Text), "texts"),
            ("label-smoothing", task(Task::Text), "texts"),
            ("label-smoothing", task(Task::Regression), "regressions"),
            ("prompt-column", task(Task::Classification), "labels"),
            ("chat", rows(TextKind::Messages), "conversations"),
            ("prompt-template", rows(TextKind::Text), "plain text"),
            ("over-length", rows(TextKind::Text), "several sequences"),
            ("template-var", rows(TextKind::Text), "no template"),
            ("template-var", rows(TextKind::Completion), "without `chat`"),
            ("template-var", task(Task::Regression), "labels"),
        ] {
            let found = situation.unread(name).unwrap_or_else(|| panic!("--{name} is read"));
            assert!(found.contains(reason), "{name}: {found}");
        }
        assert!(rows(TextKind::Completion).unread("chat").is_none());
        assert!(Situation { block_dropout: Some(false), ..drop }.unread("activation-cache").is_none());
    }
}
