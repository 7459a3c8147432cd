//! Further training of an existing adapter.

use std::time::Instant;

use lora_drop_transformer::AdapterMethod;

use super::learner::Learner;
use super::memory;
use super::prepare::Prepared;
use super::schedule::StageSchedule;
use crate::adapter::AdapterFile;
use crate::engine::thread_pool;
use crate::estimate::BaselineRss;
use crate::evaluate::Evaluation;
use crate::events::{Event, Stage};
use crate::settings::RunSettings;
use crate::{Cancel, Error, Result};

/// An adapter that was trained further.
pub struct FinetunedAdapter {
    /// Pairs and head after the last step.
    pub adapter: AdapterFile,
    pub steps: usize,
    /// Seconds of the steps alone.
    pub seconds: f64,
    /// Evaluation on dev after the last step.
    pub dev: Evaluation,
}

/// Trains an adapter and its head for the number of steps in the settings. Ranks, scales and
/// sharing of its pairs stay, and settings of new adapters are not read. Returns the values after
/// the last step.
///
/// # Errors
/// Those of model and data; a VeRA adapter, or one that does not fit the model; dev cannot be
/// measured; values that are not finite; interrupted.
pub fn finetune_adapter(
    settings: &RunSettings,
    adapter: &AdapterFile,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<FinetunedAdapter> {
    settings.validate()?;
    if adapter.method == AdapterMethod::Vera {
        let problem =
            "a VeRA adapter is not trained further: its file does not say which values are constants";
        return Err(Error::Usage(problem.to_string()));
    }
    thread_pool(settings.train.compute.threads)?.install(|| {
        let before = BaselineRss::measure();
        let mut settings = settings.clone();
        settings.train.adapter.lora_dropout = adapter.lora_dropout;
        let (settings, train) = (&settings, &settings.train);
        let prepared = Prepared::read(settings, true, cancel, &mut |_| {})?;
        prepared.check_labels(adapter, &settings.place.data)?;
        let mut learner = Learner::from_adapter(&prepared, train, adapter, &adapter.assignment())?;
        learner.use_plan(&memory::plan(&prepared, train, &learner, before, true)?);
        let examples = prepared.data.train();
        let schedule = StageSchedule::of_training(train, examples.len());
        let (rows, steps) = (examples.len(), schedule.steps);
        let tokens = steps * examples.tokens() / schedule.steps_per_epoch();
        listen(&Event::StageStart { stage: Stage::Train, steps, rows, tokens });
        let began = Instant::now();
        learner.run(&schedule, examples, &mut |event: &Event| listen(event), cancel)?;
        listen(&Event::StageEnd { stage: Stage::Train, seconds: began.elapsed().as_secs_f64() });
        let dev = learner.measure(&prepared, cancel, listen)?;
        let AdapterFile { labels, base, metadata, .. } = adapter.clone();
        let adapter = AdapterFile { labels, base, metadata, ..learner.adapter_file(&prepared, train) };
        Ok(FinetunedAdapter { adapter, steps, seconds: learner.state.seconds, dev })
    })
}
