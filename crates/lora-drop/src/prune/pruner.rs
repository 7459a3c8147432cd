//! The steps of a pruning: from rows to moments, directions and candidates, and dev at each budget,
//! with the pairs cut in place.

use std::time::Instant;

use lora_drop_transformer::{Architecture, SecondMoments};
use rayon::prelude::*;

use super::directions::{Directions, Factors};
use super::noise::DevAnswers;
use super::options::{PruneData, PruneOptions};
use super::result::{Measured, Point, PrunedModule};
use super::selection::{Candidate, PruneCriterion, equal_rank, kept_energy, parameters, ranks};
use crate::adapter::init::kaiming_uniform;
use crate::adapter::{AdapterFile, StoredPair};
use crate::data::sample::stratified;
use crate::data::{Label, SplitName, TaskRows};
use crate::evaluate::metrics::Metric;
use crate::evaluate::{Evaluation, Predictor, RepeatedPasses, SplitRows};
use crate::events::Event;
use crate::reading::Reading;
use crate::settings::Budget;
use crate::train::metric;
use crate::{Cancel, Error, Result};

/// Measurements of dev over the budgets.
pub struct Curve {
    pub whole: Point,
    pub points: Vec<Point>,
    /// Ranks of all pairs for each point.
    pub ranks: Vec<Vec<usize>>,
    pub chosen: Option<usize>,
    pub standard_error: Option<f64>,
    pub tolerance: Option<f64>,
    pub seconds: f64,
}

/// State of a pruning.
pub struct Pruner<'a> {
    /// The predictor. Its pairs are cut in place, so that an adapter of hundreds of megabytes is
    /// not copied for each budget.
    pub predictor: Predictor,
    /// The adapter before pruning.
    original: AdapterFile,
    /// Current rank of each pair in the predictor; rows of A and B beyond it are zero.
    current_ranks: Vec<usize>,
    options: &'a PruneOptions,
    pub algebra_seconds: f64,
    cancel: &'a Cancel,
    pub listen: &'a mut (dyn FnMut(&Event) + Send),
}

impl<'a> Pruner<'a> {
    /// Starts a pruning of `original`, the predictor's adapter.
    pub fn new(
        predictor: Predictor,
        original: AdapterFile,
        options: &'a PruneOptions,
        cancel: &'a Cancel,
        listen: &'a mut (dyn FnMut(&Event) + Send),
    ) -> Self {
        let current_ranks = original.pairs.iter().map(|pair| pair.rank).collect();
        Pruner { predictor, original, current_ranks, options, algebra_seconds: 0.0, cancel, listen }
    }

    /// Returns the metric on dev that decides.
    ///
    /// # Errors
    /// `Error::Usage` if it is of another task.
    pub fn metric(&self) -> Result<Metric> {
        metric(self.options.metric, self.predictor.labels())
    }

    /// Reads train, if the energies are of data, and dev, if it can be measured.
    pub fn read(&mut self, rows: PruneData<'_>) -> Result<(Option<SplitRows>, Option<SplitRows>)> {
        // A single file is split into train and dev as in training.
        let reading = Reading { trained_on: vec![rows.data.to_path_buf()], ..rows.reading.clone() };
        let Pruner { predictor, options, listen, .. } = self;
        let train = match options.by {
            PruneCriterion::Svd => None,
            PruneCriterion::Energy | PruneCriterion::Modules => {
                Some(predictor.read(rows.data, SplitName::Train, &reading, &mut |event| {
                    // Reading dev gives the same warnings.
                    if !matches!(event, Event::Warning(_)) {
                        listen(event);
                    }
                })?)
            }
        };
        let dev = predictor.read(rows.data, SplitName::Dev, &reading, listen)?;
        let measurable = match &dev {
            SplitRows::Labelled(split) => split.labels().is_some(),
            SplitRows::Text(split) => split.examples.iter().any(|example| example.learned() > 0),
        };
        if measurable {
            return Ok((train, Some(dev)));
        }
        if options.budget == Some(Budget::Auto) {
            return Err(Error::Input(format!(
                "{}: `budget = auto` decides by the dev split, which has nothing to measure; give a budget",
                rows.data.display()
            )));
        }
        listen(&Event::Warning(
            "the dev split has nothing to measure, so only the energy of each budget is shown",
        ));
        Ok((train, None))
    }

    /// Returns the indices of the rows of train that are used, and their number of tokens.
    pub fn choose_rows(&self, train: Option<&SplitRows>) -> (Vec<usize>, usize) {
        let Some(train) = train else { return (Vec::new(), 0) };
        let rows = train.rows();
        let strata = match train {
            SplitRows::Labelled(split) => split.labels(),
            SplitRows::Text(_) => None,
        };
        let strata = strata.unwrap_or_else(|| vec![Label::Class(0); rows.len()]);
        let most = self.options.max_rows.unwrap_or(usize::MAX) as f64 / rows.len() as f64;
        let ratio = self.options.sample_ratio.min(most);
        let chosen = if ratio < 1.0 {
            stratified(&strata, ratio, self.options.seed)
        } else {
            (0..rows.len()).collect()
        };
        let tokens = chosen.iter().map(|&row| rows.length(row)).sum();
        (chosen, tokens)
    }

    /// Returns Σ z zᵀ, (rank, rank), of each pair over all layers that share it; by svd for white
    /// inputs.
    pub fn moments(&mut self, train: Option<&SplitRows>, chosen: &[usize]) -> Result<Vec<Vec<f64>>> {
        let Some(train) = train else {
            let of = |pair: &StoredPair| {
                let factors = Factors { a: &pair.a, b_t: &[], rank: pair.rank };
                factors.white_moment(self.original.scale(pair))
            };
            return Ok(self.predictor.pool().install(|| self.original.pairs.iter().map(of).collect()));
        };
        let Pruner { predictor, original, cancel, listen, .. } = self;
        let observed = predictor.observe(train, chosen, &SecondMoments, cancel, listen)?;
        let mut moments: Vec<Vec<f64>> =
            original.pairs.iter().map(|pair| vec![0.0; pair.rank * pair.rank]).collect();
        for (id, &pair) in &original.modules {
            let found = observed.get(*id).into_iter().flatten();
            moments[pair].iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
        }
        Ok(moments)
    }

    /// Decomposes all pairs into directions.
    pub fn decompose(&mut self, moments: &[Vec<f64>]) -> Result<Vec<Directions>> {
        let began = Instant::now();
        let of = |(pair, moment): (&StoredPair, &Vec<f64>)| {
            self.cancel.check()?;
            let b_t = pair.b_t();
            Ok(Directions::new(Factors { a: &pair.a, b_t: &b_t, rank: pair.rank }, moment))
        };
        let pairs = self.original.pairs.par_iter().zip(moments);
        let directions = self.predictor.pool().install(|| pairs.map(of).collect());
        self.algebra_seconds += began.elapsed().as_secs_f64();
        directions
    }

    /// Returns the pairs with the energies of their directions.
    ///
    /// # Errors
    /// Energies that are infinite, NaN or all zero.
    pub fn candidates(&self, directions: &[Directions]) -> Result<Vec<Candidate>> {
        let candidate = |(pair, directions): (&StoredPair, &Directions)| {
            let (energies, each) = (directions.energies.clone(), pair.input + pair.output);
            Candidate { kind: pair.kind, energies, rank: pair.rank, each }
        };
        let candidates: Vec<Candidate> = self.original.pairs.iter().zip(directions).map(candidate).collect();
        for (number, candidate) in candidates.iter().enumerate() {
            if !candidate.energies.iter().sum::<f64>().is_finite() {
                let (name, layer) = self.first_module(number);
                return Err(Error::NotFinite(format!(
                    "the LoRA's output of layer {layer}'s {name} is too large for a number: its values are damaged, or the \
                     training diverged"
                )));
            }
        }
        match candidates.iter().all(|candidate| candidate.energies.is_empty()) {
            true => {
                let problem =
                    "the LoRA outputs of all modules are zero: nothing was learned, so nothing can be chosen";
                Err(Error::Input(problem.to_string()))
            }
            false => Ok(candidates),
        }
    }

    /// Returns type and layer of the first module that uses a pair.
    fn first_module(&self, pair: usize) -> (&'static str, usize) {
        let id = self.original.modules.iter().find(|(_, of)| **of == pair).map(|(id, _)| *id);
        id.map_or(("", 0), |id| (self.architecture().short_name(id.kind), id.layer))
    }

    fn architecture(&self) -> Architecture {
        self.predictor.files().config.architecture
    }

    /// Returns the ranks of all pairs under a budget.
    fn ranks(&self, candidates: &[Candidate], budget: f64) -> Result<Vec<usize>> {
        match self.options.equal_ranks {
            true => Ok(vec![equal_rank(candidates, budget)?; candidates.len()]),
            false => ranks(candidates, self.options.by, budget),
        }
    }

    /// Measures dev at each budget, the largest first, and chooses one if that was asked for.
    pub fn curve(
        &mut self,
        candidates: &[Candidate],
        directions: &[Directions],
        dev: Option<&SplitRows>,
        metric: Metric,
    ) -> Result<Curve> {
        let budgets = match self.options.budget {
            Some(Budget::Share(share)) => vec![share],
            Some(Budget::Auto) | None => {
                let mut budgets = self.options.budgets.clone();
                // If no smaller budget is good enough, the whole adapter is kept.
                budgets.extend((self.options.budget == Some(Budget::Auto)).then_some(1.0));
                budgets.sort_by(|x, y| y.total_cmp(x));
                budgets.dedup();
                budgets
            }
        };
        // A single budget that is too small is an error before any measuring; one of several, a
        // warning.
        let mut cuts: Vec<(f64, Vec<usize>)> = Vec::new();
        let count = budgets.len();
        for budget in budgets {
            match self.ranks(candidates, budget) {
                Ok(ranks) => cuts.push((budget, ranks)),
                Err(error) if count == 1 => return Err(error),
                Err(error) => (self.listen)(&Event::Warning(&error.to_string())),
            }
        }
        let began = Instant::now();
        let algebra_before = self.algebra_seconds;
        let mut states: Vec<&Vec<usize>> =
            [&self.current_ranks].into_iter().chain(cuts.iter().map(|(_, ranks)| ranks)).collect();
        states.dedup();
        let mut passes = dev.map(|dev| {
            let facts = dev.facts();
            RepeatedPasses::begin(facts.rows, facts.tokens, states.len(), &mut *self.listen)
        });
        let found = self.measure(dev, &mut passes)?;
        let whole = self.point(candidates, 1.0, &self.current_ranks, found.as_ref().map(Measured::from));
        let standard_error = match (&found, dev) {
            (Some(found), Some(dev)) => {
                let tokens = match dev.rows() {
                    TaskRows::Text(rows) => rows.iter().map(|row| row.learned()).collect(),
                    TaskRows::Labelled(_) => Vec::new(),
                };
                let labels = self.predictor.labels();
                let outcomes = DevAnswers { answers: &found.answers, tokens, labels };
                Some(self.predictor.pool().install(|| outcomes.standard_error(metric)))
            }
            _ => None,
        };
        let (mut points, mut last) = (Vec::new(), whole.dev.clone());
        for (budget, ranks) in &cuts {
            if *ranks != self.current_ranks {
                self.cut(directions, ranks)?;
                last = self.measure(dev, &mut passes)?.as_ref().map(Measured::from);
            }
            points.push(self.point(candidates, *budget, ranks, last.clone()));
        }
        if let Some(passes) = passes {
            passes.end(&mut *self.listen);
        }
        let tolerance = standard_error.map(|error| self.options.tolerance.unwrap_or(error));
        let chosen = match (self.options.budget, tolerance) {
            (Some(Budget::Share(_)), _) => Some(0),
            (Some(Budget::Auto), Some(tolerance)) => smallest(&whole, &points, metric, tolerance),
            (Some(Budget::Auto) | None, _) => None,
        };
        let seconds = began.elapsed().as_secs_f64() - (self.algebra_seconds - algebra_before);
        let ranks = cuts.into_iter().map(|(_, ranks)| ranks).collect();
        Ok(Curve { whole, points, ranks, chosen, standard_error, tolerance, seconds })
    }

    /// Measures dev if that is possible.
    fn measure(
        &mut self,
        dev: Option<&SplitRows>,
        passes: &mut Option<RepeatedPasses>,
    ) -> Result<Option<Evaluation>> {
        let (Some(dev), Some(passes)) = (dev, passes) else { return Ok(None) };
        let Pruner { predictor, cancel, listen, .. } = self;
        predictor.measure(dev, cancel, &mut |event| passes.hear(event, &mut **listen)).map(Some)
    }

    /// Cuts the predictor's pairs down to these ranks, none of which is above the current one.
    fn cut(&mut self, directions: &[Directions], ranks: &[usize]) -> Result<()> {
        let began = Instant::now();
        let Pruner { predictor, original, current_ranks, cancel, .. } = self;
        let (loaded, pool) = predictor.parts();
        for (number, pair) in loaded.bank.pairs().iter().enumerate() {
            let stored = &original.pairs[number];
            // An equal rank may exceed a pair's own; only the file pads the pair.
            let (rank, before) = (ranks[number].min(stored.rank), current_ranks[number].min(stored.rank));
            if rank == before {
                continue;
            }
            cancel.check()?;
            if before == stored.rank {
                let (a, b_t) = pool.install(|| {
                    let b_t = stored.b_t();
                    directions[number].pair(Factors { a: &stored.a, b_t: &b_t, rank: stored.rank }, rank)
                });
                loaded.parameters.value_mut(pair.lora.a)[..a.len()].copy_from_slice(&a);
                loaded.parameters.value_mut(pair.lora.b)[..b_t.len()].copy_from_slice(&b_t);
            }
            loaded.parameters.value_mut(pair.lora.a)[rank * pair.input..].fill(0.0);
            loaded.parameters.value_mut(pair.lora.b)[rank * pair.output..].fill(0.0);
        }
        current_ranks.copy_from_slice(ranks);
        self.algebra_seconds += began.elapsed().as_secs_f64();
        Ok(())
    }

    fn point(&self, candidates: &[Candidate], budget: f64, ranks: &[usize], dev: Option<Measured>) -> Point {
        let all: Vec<usize> = candidates.iter().map(|candidate| candidate.rank).collect();
        let kept = parameters(candidates, ranks);
        let there = || ranks.iter().copied().filter(|&rank| rank > 0);
        Point {
            budget,
            parameters: kept,
            retained_ratio: kept as f64 / parameters(candidates, &all) as f64,
            modules: self.original.modules.values().filter(|&&pair| ranks[pair] > 0).count(),
            ranks: (there().min().unwrap_or(0), there().max().unwrap_or(0)),
            energy: kept_energy(candidates, ranks),
            dev,
        }
    }

    /// Returns every module by type, then layer, with the ranks that are kept.
    pub fn modules(&self, candidates: Vec<Candidate>, kept: Option<&Vec<usize>>) -> Vec<PrunedModule> {
        let mut ids: Vec<_> =
            self.original.modules.iter().map(|(id, pair)| (id.kind, id.layer, *pair)).collect();
        ids.sort();
        let module = |(kind, layer, pair): (_, usize, usize)| PrunedModule {
            layer,
            module: self.architecture().short_name(kind),
            rank: candidates[pair].rank,
            kept: kept.map(|kept| kept[pair]),
            energies: candidates[pair].energies.clone(),
        };
        ids.into_iter().map(module).collect()
    }

    /// Returns the adapter with these ranks.
    ///
    /// # Errors
    /// `Error::NotFinite` if a value is too large for f32.
    pub fn pruned(&mut self, directions: &[Directions], ranks: &[usize]) -> Result<AdapterFile> {
        let began = Instant::now();
        let original = &self.original;
        let names: Vec<String> = (0..original.pairs.len())
            .map(|number| self.first_module(number))
            .map(|(name, layer)| format!("{name}.{layer}"))
            .collect();
        let change = |number: usize| {
            let (pair, rank) = (&original.pairs[number], ranks[number]);
            if rank == pair.rank {
                return None;
            }
            let b_t = pair.b_t();
            let factors = Factors { a: &pair.a, b_t: &b_t, rank: pair.rank };
            let (mut a, b_t) = directions[number].pair(factors, rank);
            // Directions that only pad a pair to an equal rank are as in a new LoRA: B is zero, and
            // A is not, so that further training can use them.
            let learned = directions[number].energies.len().min(rank) * pair.input;
            a[learned..].copy_from_slice(&kaiming_uniform(0, &names[number], rank, pair.input)[learned..]);
            Some((rank, a, b_t))
        };
        let mut pruned = self.predictor.pool().install(|| original.with_pairs(change));
        self.algebra_seconds += began.elapsed().as_secs_f64();
        let values = pruned.pairs.iter().flat_map(|pair| pair.a.iter().chain(&pair.b));
        if let Some(value) = values.copied().find(|value| !value.is_finite()) {
            return Err(Error::NotFinite(format!(
                "a value of the pruned adapter is {value}, too large for f32: the adapter's values are damaged, or its \
                 training diverged"
            )));
        }
        pruned.architectures = vec![self.architecture()];
        let how = if self.options.equal_ranks { ", equal ranks" } else { "" };
        let share = pruned.unique_parameters() as f64 / self.original.unique_parameters() as f64;
        pruned.metadata.insert("pruned".to_string(), format!("to {share:.4} by {}{how}", self.options.by));
        Ok(pruned)
    }
}

/// Returns the index of the smallest of descending budgets up to which the metric never worsens by
/// more than the tolerance: after one that is worse, a smaller one that is better by chance does
/// not count. `None` if the first is worse.
fn smallest(whole: &Point, points: &[Point], metric: Metric, tolerance: f64) -> Option<usize> {
    let value = |point: &Point| point.dev.as_ref().and_then(|dev| dev.metrics.get(metric.name()).copied());
    let fall = |point: &Point| {
        let fall = value(whole).unwrap_or(f64::NAN) - value(point).unwrap_or(f64::NAN);
        if metric.higher_is_better() { fall } else { -fall }
    };
    points.iter().take_while(|point| fall(point) <= tolerance).count().checked_sub(1)
}
