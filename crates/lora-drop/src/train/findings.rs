//! What a model made of dev's rows, for the report.

use super::learner::Learner;
use super::prepare::Prepared;
use super::samples;
use crate::evaluate::{Answers, examples};
use crate::events::Event;
use crate::record::DevFindings;
use crate::settings::TrainSettings;
use crate::{Cancel, Error, Result};

/// Rows of dev that the report shows.
const EXAMPLES: usize = 8;

/// The counts by class and of entities, the rows that are worth a look, and what a decoder writes. They help the
/// reader and end no run: where they cannot be had a warning says why. Soon after `cancel` was raised
/// there are no more. Only the first rank writes a report, so the others have none.
pub fn of(
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
        // Not kept since the rows were read: some are as large as a small model.
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
