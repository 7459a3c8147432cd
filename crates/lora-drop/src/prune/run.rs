//! A whole pruning: one pass over rows of train, the directions of all pairs, dev at each budget,
//! and the files of the result.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::options::{PruneData, PruneOptions, PruneOutput};
use super::pruner::Pruner;
use super::result::{Finetuned, Measured, Pruning};
use lora_drop_transformer::{Head, ModuleId};

use crate::adapter::{AdapterFile, COMPACT_FILE, LM_HEAD_IS_USED, is_scored};
use crate::card::{BaseModel, Card};
use crate::evaluate::Predictor;
use crate::events::Event;
use crate::files::{write_bytes_atomically, write_json};
use crate::folder::{Contents, OutputFolder, PRUNE_FILE};
use crate::settings::{RECIPE, Recipe, TomlFile};
use crate::train::{FinetunedAdapter, finetune_adapter};
use crate::{Cancel, Error, Result};

/// Decomposes the adapter of `predictor`, whose files are at `adapter`, by the rows' train split,
/// and measures dev at each budget. Writes prune.json and its page to `place`, and the pruned
/// adapter if a budget was chosen.
///
/// # Errors
/// `Error::Usage` if the adapter cannot be pruned (DoRA, no LoRA), a budget is too small, or the
/// metric is of another task; `Error::Input` if `Budget::Auto` has no dev to decide by; those of
/// the files; interrupted, with nothing written.
pub fn run(
    predictor: Predictor,
    adapter: &Path,
    rows: PruneData<'_>,
    options: &PruneOptions,
    place: Option<&PruneOutput>,
    cancel: &Cancel,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Pruning> {
    let (file, _) = AdapterFile::open_for(adapter, Some(predictor.files().source()))?;
    let refuse = |problem: String| Err(Error::Usage(format!("{}: {problem}", adapter.display())));
    if !is_scored(file.method) {
        return refuse(format!(
            "a {} adapter cannot be pruned, as its output is not s·B A x alone; train one with `method = lora`",
            file.method.title()
        ));
    }
    if file.modules.contains_key(&ModuleId::LM_HEAD) {
        return refuse(LM_HEAD_IS_USED.into());
    }
    if file.pairs.is_empty() {
        return refuse("no module has a LoRA, so there is nothing to prune".to_string());
    }
    let mut pruner = Pruner::new(predictor, file, options, cancel, listen);
    let metric = pruner.metric()?;
    let (train, dev) = pruner.read(rows)?;
    let (chosen_rows, tokens) = pruner.choose_rows(train.as_ref());
    let began = Instant::now();
    let moments = pruner.moments(train.as_ref(), &chosen_rows)?;
    let scoring_seconds = began.elapsed().as_secs_f64();
    drop(train);
    let directions = pruner.decompose(&moments)?;
    let candidates = pruner.candidates(&directions)?;
    let curve = pruner.curve(&candidates, &directions, dev.as_ref(), metric)?;
    let kept = curve.chosen.map(|number| &curve.ranks[number]);
    let mut pruned =
        kept.filter(|_| place.is_some()).map(|kept| pruner.pruned(&directions, kept)).transpose()?;
    let mut pruning = Pruning {
        version: env!("CARGO_PKG_VERSION").to_string(),
        adapter: adapter.to_path_buf(),
        data: rows.data.to_path_buf(),
        by: options.by,
        equal_ranks: options.equal_ranks,
        rows: chosen_rows.len(),
        tokens,
        dev_rows: dev.as_ref().map_or(0, |dev| dev.facts().rows),
        metric: dev.as_ref().map(|_| metric.name().to_string()),
        standard_error: curve.standard_error,
        tolerance: curve.tolerance,
        modules: pruner.modules(candidates, kept),
        whole: curve.whole,
        points: curve.points,
        chosen: curve.chosen,
        scoring_seconds,
        algebra_seconds: pruner.algebra_seconds,
        measuring_seconds: curve.seconds,
        finetuned: None,
        outputs: Vec::new(),
    };
    let config = &pruner.predictor.files().config;
    let (layers, model) = (config.layers, pruner.predictor.files().path.clone());
    let head = pruned.as_ref().filter(|file| !file.head.is_empty()).and_then(|file| file.head(config).ok());
    let Pruner { predictor, listen, .. } = pruner;
    if let (Some(settings), Some(adapter)) = (&options.finetune, &mut pruned) {
        // Training loads the model itself.
        drop((predictor, directions));
        let FinetunedAdapter { adapter: trained, steps, seconds, dev } =
            finetune_adapter(settings, adapter, cancel, listen)?;
        *adapter = trained;
        let (learning_rate, dev) = (settings.train.optimisation.learning_rate, Measured::from(&dev));
        pruning.finetuned = Some(Finetuned { steps, learning_rate, seconds, dev });
    }
    if let Some(place) = place {
        let paths = write(place, pruned.as_ref(), (layers, &model, head), &mut pruning, listen)?;
        paths.iter().for_each(|path| listen(&Event::Wrote(path)));
    }
    Ok(pruning)
}

/// Writes prune.json, its page and, if there is one, the pruned adapter in both formats with its
/// recipe and card. Returns the files' paths.
fn write(
    place: &PruneOutput,
    pruned: Option<&AdapterFile>,
    (layers, model, head): (usize, &Path, Option<Head>),
    pruning: &mut Pruning,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Vec<PathBuf>> {
    let mut folder = OutputFolder::open(&place.folder, place.overwrite, Contents::Pruned)?;
    if let Some(note) = folder.kept_card() {
        listen(&Event::Warning(&note));
    }
    let next = folder.staging();
    if let Some(pruned) = pruned {
        pruned.write_peft(&next, layers)?;
        pruned.write_compact(&next.join(COMPACT_FILE))?;
        write_bytes_atomically(&next.join(RECIPE), place.recipe.as_bytes())?;
        let recipe = TomlFile::from_text(RECIPE.to_string(), place.recipe.clone());
        let settings = Recipe::parse(&recipe)?.recorded()?;
        let base = BaseModel { name: &settings.place.model, path: model, head };
        folder.stage_card(&Card::of_pruning(pruning, pruned, base, &settings, &place.folder))?;
    }
    if let Some(page) = place.page {
        write_bytes_atomically(&next.join("prune.html"), page(pruning).as_bytes())?;
    }
    let names = folder.staged()?.into_iter().chain([PRUNE_FILE.to_string()]);
    pruning.outputs = names.collect();
    write_json(&next.join(PRUNE_FILE), pruning)?;
    folder.commit()
}
