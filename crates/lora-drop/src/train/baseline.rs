//! Baselines: the result on dev without training, for comparison.

use std::time::Instant;

use lora_drop_compute::loss;

use super::learner::Learner;
use super::prepare::Prepared;
use crate::data::{Label, TaskData};
use crate::evaluate::metrics::Metric;
use crate::events::{Event, Stage};
use crate::settings::Task;
use crate::summary::{Baseline, BaselineKind};
use crate::{Cancel, Result};

/// Finds the baseline of a run whose learner has not been trained yet, and puts it into the run's
/// progress. Labelled rows need no pass: their head is new, so the model's own answers mean
/// nothing. Texts take one pass over dev.
///
/// # Errors
/// Those of measuring.
pub fn measure(
    learner: &mut Learner,
    prepared: &Prepared,
    cancel: &Cancel,
    listen: &mut dyn FnMut(&Event),
) -> Result<()> {
    let began = Instant::now();
    let found = match &prepared.data {
        TaskData::Labelled(data) if data.labels.is_regression() => {
            let value = |label| if let Label::Value(value) = label { Some(value) } else { None };
            let dev: Vec<f32> = data.dev.labels().unwrap_or_default().into_iter().filter_map(value).collect();
            let mean = data.train.mean_value().unwrap_or_default();
            let error =
                loss::squared_error(&vec![mean as f32; dev.len()], &dev, 1.0, None) / dev.len() as f64;
            Some(Baseline { kind: BaselineKind::Mean, name: "loss".into(), value: error, class: None })
        }
        TaskData::Labelled(data) => {
            let dev = &data.dev.facts;
            let largest = (0..dev.per_class.len()).rev().max_by_key(|&class| dev.per_class[class]);
            // Number of rows, or words, that have a class: all are predicted as the commonest one.
            let all = dev.per_class.iter().sum::<usize>() as f64;
            largest.filter(|_| dev.rows > 0).map(|class| {
                let right = dev.per_class[class] as f64;
                let (metric, value) = match data.labels.task() {
                    Task::MultiLabel => (Metric::MicroF1, 2.0 * right / (dev.rows as f64 + all)),
                    _ => (Metric::Accuracy, right / all),
                };
                let (kind, class) = (BaselineKind::CommonestClass, data.labels.names()[class].clone());
                Baseline { kind, name: metric.name().into(), value, class: Some(class) }
            })
        }
        TaskData::Text(data) => {
            let (rows, tokens) = (data.dev.facts.rows, data.dev.facts.tokens);
            listen(&Event::StageStart { stage: Stage::Evaluate, steps: 0, rows, tokens });
            let found = learner.measure(prepared, cancel, listen)?;
            listen(&Event::StageEnd { stage: Stage::Evaluate, seconds: found.seconds });
            found.metrics.first().map(|(name, value)| Baseline {
                kind: BaselineKind::Untrained,
                name: name.clone(),
                value: *value,
                class: None,
            })
        }
    };
    if let Some(baseline) = &found {
        listen(&Event::Baseline(baseline));
    }
    let progress = &mut learner.state.progress;
    (progress.baseline, progress.baseline_seconds) = (found, began.elapsed().as_secs_f64());
    Ok(())
}
