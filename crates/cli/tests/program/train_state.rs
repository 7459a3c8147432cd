//! A run that is stopped, written and continued in another learner is bit-identical to one that
//! never stopped; criteria of other kinds than the paper's run through the sample stage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::Fixture;
use lora_drop::Cancel;
use lora_drop::adapter::LoraBank;
use lora_drop::assignment::Assignment;
use lora_drop::events::{Event, Stage};
use lora_drop::score::{Criterion, Evidence, LoraOutput, criterion};
use lora_drop::settings::{CriterionName, Method, RunSettings, SelectionSettings, Unselected};
use lora_drop::train::{Cut, Hooks, Learner, Next, Passes, Prepared, SampleStage, StageSchedule};
use lora_drop_transformer::{ModuleId, Observations, Observer, Parameters, Seen};
use serde_json::json;

/// Settings under which steps are cut unevenly, and every kind of dropout is on.
fn settings(fixture: &Fixture, model: &str, data: &str) -> RunSettings {
    let settings = RunSettings::new(fixture.path(model).to_str().unwrap(), fixture.path(data), "");
    with(
        &settings,
        "rank = 4\nbatch-size = 7\nlearning-rate = 1e-2\nlora-dropout = 0.1\nattention-dropout = 0.1\nsample-ratio = 0.5\n\
         sample-epochs = 5\nepochs = 2\ntop-k = 1\ntoken-cache = 0",
    )
}

/// Overlays the settings with a recipe's text.
fn with(settings: &RunSettings, text: &str) -> RunSettings {
    let mut settings = settings.clone();
    settings.apply(&text.parse().unwrap()).unwrap();
    settings
}

/// The settings of a method without a sample stage.
fn unsampled(method: Method, settings: &RunSettings) -> RunSettings {
    let mut settings = settings.clone();
    settings.train.adapter.method = method;
    settings.train.selection = SelectionSettings::default();
    settings
}

fn encoder() -> (Fixture, RunSettings) {
    let fixture = Fixture::new();
    let settings = with(&settings(&fixture, "model", "data"), "hidden-dropout = 0.1");
    (fixture, settings)
}

fn decoder() -> (Fixture, RunSettings) {
    let fixture = Fixture::new();
    fixture.write_decoder("decoder");
    let words = |from: usize, count: usize| {
        (0..count).map(|i| format!("w{}", 3 + (from + i * 7) % 90)).collect::<Vec<_>>().join(" ")
    };
    let row = |i: usize| {
        json!({ "prompt": words(i, 1 + i % 5), "completion": words(i, 1 + i % 3) }).to_string() + "\n"
    };
    fixture.write("texts/train.jsonl", (0..40).map(row).collect::<String>());
    fixture.write("texts/dev.jsonl", (40..50).map(row).collect::<String>());
    let settings = settings(&fixture, "decoder", "texts");
    (fixture, settings)
}

fn prepare(settings: &RunSettings) -> Prepared {
    Prepared::read(settings, false, &Cancel::new(), &mut |_| {}).unwrap()
}

/// A learner as a new process would make it; parts of a step are small, and two run concurrently.
fn learner(prepared: &Prepared, settings: &RunSettings) -> Learner {
    let mut learner =
        Learner::new(prepared, &settings.train, &Assignment::all_own(prepared.modules())).unwrap();
    let cut = Cut { micro_tokens: 24, even_count: false, concurrent: 2 };
    let passes = Passes { cut, ..learner.passes() };
    learner.use_passes(passes);
    learner
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// Trains from where the learner is to the end, without measuring.
fn finish(
    prepared: &Prepared,
    settings: &RunSettings,
    learner: &mut Learner,
    hooks: &mut dyn Hooks,
) -> lora_drop::Result<()> {
    let cancel = Cancel::new();
    if learner.state.stage == Stage::Sample {
        SampleStage::new(prepared, &settings.train, &LoraOutput)?.run(learner, hooks, &cancel)?;
        let (_, assignment) = learner.state.settling.last().cloned().unwrap();
        learner.begin_training(&settings.train, &assignment)?;
    }
    let schedule = StageSchedule::of_training(&settings.train, prepared.data.train().len());
    learner.run(&schedule, prepared.data.train(), hooks, &cancel)
}

/// Writes the state after a step of a stage and stops there, as a process that is killed then.
struct StopAt {
    stage: Stage,
    step: usize,
    path: PathBuf,
}

impl Hooks for StopAt {
    fn after_step(&mut self, learner: &mut Learner) -> lora_drop::Result<Next> {
        let state = &learner.state;
        if (state.stage, state.optimiser.steps) != (self.stage, self.step) {
            return Ok(Next::Continue);
        }
        state.write(&self.path)?;
        Err(lora_drop::Error::Interrupted)
    }
}

/// The state as a file, without times.
fn bytes(learner: &mut Learner, path: &Path) -> Vec<u8> {
    learner.state.seconds = 0.0;
    learner.state.write(path).unwrap();
    std::fs::read(path).unwrap()
}

fn stopped_runs_end_as_whole_ones(fixture: &Fixture, settings: &RunSettings, stops: &[(Stage, usize)]) {
    let prepared = prepare(settings);
    let [one, two] = [1, 2].map(pool);
    let path = |name: &str| fixture.path(name);
    let whole = one.install(|| {
        let mut learner = learner(&prepared, settings);
        finish(&prepared, settings, &mut learner, &mut |_: &Event| {}).unwrap();
        assert!(learner.state.tokens > 0 && learner.state.seconds > 0.0);
        bytes(&mut learner, &path("whole"))
    });
    for &(stage, step) in stops {
        for (first, second) in [(&one, &two), (&two, &one)] {
            let mut stop = StopAt { stage, step, path: path("state") };
            let stopped =
                first.install(|| finish(&prepared, settings, &mut learner(&prepared, settings), &mut stop));
            assert!(matches!(stopped, Err(lora_drop::Error::Interrupted)), "{stage:?} has no step {step}");
            let end = second.install(|| {
                let mut learner = learner(&prepared, settings);
                learner.restore(&settings.train, &LoraOutput, &stop.path).unwrap();
                assert_eq!((learner.state.stage, learner.state.optimiser.steps), (stage, step));
                // The state that was read is written again with the same bytes.
                learner.state.write(&path("again")).unwrap();
                assert!(std::fs::read(path("again")).unwrap() == std::fs::read(&stop.path).unwrap());
                finish(&prepared, settings, &mut learner, &mut |_: &Event| {}).unwrap();
                bytes(&mut learner, &path("end"))
            });
            assert!(end == whole, "stopped after step {step} of {stage:?}");
        }
    }
}

#[test]
fn an_encoder_goes_on_from_its_state() {
    let (fixture, settings) = encoder();
    // 35 steps on the sample, whose windows end with steps 21 and 35; then two epochs of 14.
    let stops =
        [(Stage::Sample, 1), (Stage::Sample, 25), (Stage::Sample, 35), (Stage::Train, 9), (Stage::Train, 14)];
    stopped_runs_end_as_whole_ones(&fixture, &settings, &stops);
    for (unselected, shared_rank) in
        [(Unselected::Drop, None), (Unselected::Share, None), (Unselected::Scale, Some(7))]
    {
        // Of 392 steps at most 98 are made on the sample.
        let mut continued = with(&settings, "restart = \"continue\"\nsample-epochs = \"auto\"\nepochs = 28");
        (continued.train.selection.unselected, continued.train.selection.shared_rank) =
            (unselected, shared_rank);
        stopped_runs_end_as_whole_ones(&fixture, &continued, &[(Stage::Sample, 40), (Stage::Train, 150)]);
    }
}

#[test]
fn a_decoder_goes_on_from_its_state() {
    let (fixture, settings) = decoder();
    stopped_runs_end_as_whole_ones(&fixture, &settings, &[(Stage::Sample, 8), (Stage::Train, 5)]);
}

#[test]
fn full_fine_tuning_goes_on_from_its_state() {
    let (fixture, settings) = encoder();
    let settings = unsampled(Method::Full, &settings);
    let full = with(&settings, "epochs = 1\nlora-dropout = 0\nrank = 8");
    stopped_runs_end_as_whole_ones(&fixture, &full, &[(Stage::Train, 3)]);
}

#[test]
fn a_state_that_does_not_fit_says_what_and_where() {
    let (fixture, settings) = encoder();
    let prepared = prepare(&settings);
    let path = fixture.path("state");
    let mut stop = StopAt { stage: Stage::Sample, step: 2, path: path.clone() };
    finish(&prepared, &settings, &mut learner(&prepared, &settings), &mut stop).unwrap_err();
    let written = std::fs::read(&path).unwrap();
    let refuse = |settings: &RunSettings, words: &[&str]| {
        let prepared = prepare(settings);
        let mut learner = learner(&prepared, settings);
        let told = learner.restore(&settings.train, &LoraOutput, &path).unwrap_err().to_string();
        for word in [&path.display().to_string()[..]].iter().chain(words) {
            assert!(told.contains(word), "{word:?} is not in: {told}");
        }
    };
    refuse(
        &with(&settings, "rank = 2"),
        &[
            "parameters.lora.query.0.A is F32 of shape [4, 32], expected F32 of shape [2, 32]",
            "other settings",
        ],
    );
    refuse(&with(&settings, "target-modules = [\"query\"]"), &["LoRA on other modules"]);
    refuse(&unsampled(Method::Lora, &settings), &["the stage Sample, which this run does not have"]);

    let replace = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = written.windows(from.len()).position(|window| window == from.as_bytes());
        let at = at.unwrap_or_else(|| panic!("{from:?} is not in the file"));
        let mut bytes = written.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, words) in [
        (written[..written.len() - 5].to_vec(), ["truncated", ""]),
        (written[..100].to_vec(), ["truncated", ""]),
        (b"{}".to_vec(), ["2 bytes long", ""]),
        (replace(r#"\"version\":4"#, r#"\"version\":1"#), ["version 1", "this program reads version 4"]),
        (replace(r#"\"version\":4"#, r#"\"version\":x"#), ["lora_drop.train_state", ""]),
        (replace(r#"\"begun\":[0"#, r#"\"begun\":[3"#), ["begun", "14 tensors, each at most 2"]),
        (replace("lora_drop.train_state", "lora_drop.train_stave"), ["not the state of a run", ""]),
        (
            replace("exp_avg_sq.classifier.bias", "exp_avg_sq.classifier.bits"),
            ["exp_avg_sq.classifier.bias", "missing"],
        ),
        (replace("observations.2.value", "observations.2.vague"), ["observations.2.value", "missing"]),
        (replace(r#"\"tokens\":"#, r#"\"tokers\":"#), ["tokers", ""]),
    ] {
        std::fs::write(&path, bytes).unwrap();
        refuse(&settings, &words);
    }
    std::fs::write(&path, std::fs::read(fixture.path("model/model.safetensors")).unwrap()).unwrap();
    refuse(&settings, &["not the state of a run"]);
}

/// The squared norm of the gradients of a module's pair, over a window's steps.
struct GradientNorm;

/// Returns the squared norm of the gradients of each module's pair.
fn gradient_norms(bank: &LoraBank, parameters: &Parameters) -> BTreeMap<ModuleId, f64> {
    let norm = |id| parameters.gradient(id).iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
    let pairs = bank.modules().keys().map(|&module| (module, bank.pair_of(module).unwrap().lora));
    pairs.map(|(module, lora)| (module, norm(lora.a) + norm(lora.b))).collect()
}

impl Criterion for GradientNorm {
    fn name(&self) -> &str {
        "gradient-norm"
    }

    fn sums(&self, _: usize) -> usize {
        1
    }

    fn after_gradients(&self, bank: &LoraBank, parameters: &Parameters, observations: &mut Observations) {
        for (module, norm) in gradient_norms(bank, parameters) {
            observations.of(module, 1)[0] += norm;
        }
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        evidence.observations.iter().map(|(module, sums)| (module, sums[0])).collect()
    }
}

/// The squared norm of modules' inputs: the same for modules that read the same.
struct InputNorm;

impl Observer for InputNorm {
    fn forward(
        &self,
        seen: Seen,
        observations: &mut Observations,
    ) -> Result<(), lora_drop_compute::device::DeviceError> {
        let x = &seen.memory[seen.x.start..seen.x.end()];
        observations.of(seen.module, 1)[0] += x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        Ok(())
    }
}

impl Criterion for InputNorm {
    fn name(&self) -> &str {
        "input-norm"
    }

    fn sums(&self, _: usize) -> usize {
        1
    }

    fn observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }

    fn scores(&self, evidence: &Evidence) -> BTreeMap<ModuleId, f64> {
        evidence.observations.iter().map(|(module, sums)| (module, sums[0])).collect()
    }
}

/// Keeps the gradients' norms of each step separately.
#[derive(Default)]
struct Norms(Vec<BTreeMap<ModuleId, f64>>);

impl Hooks for Norms {
    fn after_gradients(&mut self, learner: &mut Learner) -> lora_drop::Result<()> {
        self.0.push(gradient_norms(&learner.bank, &learner.state.parameters));
        Ok(())
    }
}

/// The scores of the sample stage by a criterion.
fn scores(
    prepared: &Prepared,
    settings: &RunSettings,
    criterion: &dyn Criterion,
    hooks: &mut dyn Hooks,
) -> (BTreeMap<ModuleId, f64>, usize) {
    let mut learner = learner(prepared, settings);
    let stage = SampleStage::new(prepared, &settings.train, criterion).unwrap();
    stage.run(&mut learner, hooks, &Cancel::new()).unwrap();
    let (importance, _) = learner.state.settling.last().unwrap();
    let scores = importance.modules.iter();
    let scores = scores.map(|m| (ModuleId { layer: m.layer, kind: m.kind }, m.score)).collect();
    (scores, importance.window.steps)
}

#[test]
fn a_criterion_sees_gradients() {
    let (_fixture, settings) = encoder();
    let prepared = prepare(&settings);
    let mut norms = Norms::default();
    let (scores, steps) = scores(&prepared, &settings, &GradientNorm, &mut norms);
    assert_eq!(scores.len(), 6);
    for (module, score) in scores {
        let of_window = &norms.0[norms.0.len() - steps..];
        let expected: f64 = of_window.iter().map(|step| step[&module]).sum();
        assert!(score == expected && score > 0.0, "{module:?}: {score} {expected}");
    }
}

#[test]
fn a_criterion_sees_what_modules_take() {
    let (_fixture, settings) = encoder();
    let settings = with(&settings, "target-modules = [\"query\", \"key\", \"value\"]");
    let prepared = prepare(&settings);
    let of_threads = [1, 2].map(|threads| {
        let pool = pool(threads);
        pool.install(|| scores(&prepared, &settings, &InputNorm, &mut |_: &Event| {}).0)
    });
    assert_eq!(of_threads[0], of_threads[1]);
    for layer in 0..crate::common::LAYERS {
        let of_layer = of_threads[0].iter().filter(|(module, _)| module.layer == layer);
        let scores: Vec<f64> = of_layer.map(|(_, &score)| score).collect();
        // The query of the last block is computed for first tokens alone, and observed over all.
        assert!(scores.len() == 3 && scores[0] > 0.0, "{scores:?}");
        assert!(scores.iter().all(|&score| score == scores[0]), "{scores:?}");
    }
}

/// Keeps Σ |w · ∂L/∂w| of each step separately, from tensors by name.
#[derive(Default)]
struct Sensitivities(Vec<BTreeMap<String, f64>>);

impl Hooks for Sensitivities {
    fn after_gradients(&mut self, learner: &mut Learner) -> lora_drop::Result<()> {
        let parameters = &learner.state.parameters;
        let of = |name: &str| {
            let id = parameters.find(name).unwrap();
            let products = parameters.value(id).iter().zip(parameters.gradient(id));
            products.map(|(&w, &g)| (f64::from(w) * f64::from(g)).abs()).sum::<f64>()
        };
        let names = parameters.list().iter().filter_map(|p| p.name.strip_suffix(".A"));
        let step = names.map(|name| (name.to_string(), of(&format!("{name}.A")) + of(&format!("{name}.B"))));
        self.0.push(step.collect());
        Ok(())
    }
}

#[test]
fn gradient_sums_value_times_gradient_over_the_window() {
    let (_fixture, settings) = encoder();
    let prepared = prepare(&settings);
    let mut seen = Sensitivities::default();
    let (scores, steps) = scores(&prepared, &settings, criterion(CriterionName::Gradient), &mut seen);
    assert_eq!(scores.len(), 6);
    for (ModuleId { layer, kind }, score) in scores {
        let of_window = &seen.0[seen.0.len() - steps..];
        let expected: f64 = of_window.iter().map(|step| step[&format!("lora.{}.{layer}", kind.name())]).sum();
        assert!((score / expected - 1.0).abs() < 1e-12, "{kind:?} {layer}: {score} {expected}");
    }
}

#[test]
fn size_is_the_norm_of_the_product() {
    let (_fixture, settings) = encoder();
    let prepared = prepare(&settings);
    let mut learner = learner(&prepared, &settings);
    let stage = SampleStage::new(&prepared, &settings.train, criterion(CriterionName::Size)).unwrap();
    stage.run(&mut learner, &mut |_: &Event| {}, &Cancel::new()).unwrap();
    let (importance, _) = learner.state.settling.last().unwrap();
    assert_eq!(importance.modules.len(), 6);
    for m in &importance.modules {
        let pair = learner.bank.pair_of(ModuleId { layer: m.layer, kind: m.kind }).unwrap();
        let value = |id| learner.state.parameters.value(id);
        let (a, b_t, scale) = (value(pair.lora.a), value(pair.lora.b), f64::from(pair.lora.scale));
        let mut expected = 0.0;
        for o in 0..pair.output {
            for i in 0..pair.input {
                let ranks = 0..pair.lora.rank;
                let product = |r| f64::from(b_t[r * pair.output + o]) * f64::from(a[r * pair.input + i]);
                expected += (scale * ranks.map(product).sum::<f64>()).powi(2);
            }
        }
        assert!(expected > 0.0 && (m.score / expected - 1.0).abs() < 1e-12, "{m:?} {expected}");
    }
}

/// The gradients before anything is trained are those of the sample stage's first step if that has
/// all rows.
#[test]
fn page_is_the_energy_of_the_first_gradients() {
    let (_fixture, settings) = encoder();
    let whole = with(&settings, "batch-size = 1000\nlora-dropout = 0");
    let trained = with(&whole, "sample-epochs = 1");
    let prepared = prepare(&trained);
    let expected = scores(&prepared, &trained, &GradientNorm, &mut |_: &Event| {}).0;
    let mut page = with(&whole, "criterion = \"page\"\nsample-epochs = \"auto\"");
    page.place.output = std::env::temp_dir().join(format!("lora-drop-page-{}", std::process::id()));
    let score = |settings: &RunSettings| {
        let (importance, _) = lora_drop::train::score(settings, None, &Cancel::new(), &mut |_| {}).unwrap();
        assert_eq!((importance.steps, importance.window.steps), (0, 0));
        importance.modules
    };
    for m in score(&with(&page, "threads = 2")) {
        let expected = expected[&ModuleId { layer: m.layer, kind: m.kind }];
        assert!(m.score > 0.0 && (m.score / expected - 1.0).abs() < 1e-4, "{m:?} {expected}");
    }
    // Smaller batches give more gradients, whose squares are added up.
    let batches = with(&page, "batch-size = 7\noverwrite = true");
    let [one, two] = ["threads = 1", "threads = 2"].map(|threads| score(&with(&batches, threads)));
    assert_eq!(one, two);
    std::fs::remove_dir_all(&page.place.output).unwrap();
}

#[test]
fn every_name_has_its_criterion() {
    for &name in CriterionName::ALL {
        let criterion = criterion(name);
        assert_eq!((criterion.name(), criterion.basis()), (name.name(), name.basis()));
    }
}
