//! A model's results on dev's rows, for the report.

use super::learner::Learner;
use super::prepare::Prepared;
use super::samples;
use crate::evaluate::{Answers, examples};
use crate::events::Event;
use crate::run_record::DevFindings;
use crate::settings::TrainSettings;
use crate::{Cancel, Error, Result};

/// Rows of dev that the report shows.
const EXAMPLES: usize = 8;

/// Collects the counts by class and of entities, the rows that are worth a look, and a decoder's
/// samples. They only help the reader, so an error is a warning and does not end the run. Soon
/// after `cancel` is raised the rest is left out. Only the first rank writes a report, so the
/// others collect nothing.
pub fn collect(
    learner: &mut Learner,
    prepared: &Prepared,
    settings: &TrainSettings,
    answers: &Answers,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> DevFindings {
    if !learner.ranks.is_first() {
        return DevFindings::default();
    }
    let entities = prepared.data.labels().map(|labels| labels.count_entities(answers)).unwrap_or_default();
    let mut found = DevFindings { classes: answers.by_class(), entities, ..DevFindings::default() };
    let mut look = || -> Result<()> {
        // The tokenizer is read again and was not kept: some are as large as a small model.
        let tokens = prepared.model.tokens()?;
        found.examples = examples(&prepared.data, answers, &tokens, EXAMPLES)?;
        found.samples = samples::write(learner, prepared, settings, &tokens, cancel)?;
        Ok(())
    };
    match look() {
        Ok(()) | Err(Error::Interrupted) => {}
        Err(error) => listen(&Event::Warning(&format!("the report lacks rows of dev: {error}"))),
    }
    found
}
