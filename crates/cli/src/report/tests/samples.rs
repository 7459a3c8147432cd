//! Made-up runs of realistic shape.

use std::collections::BTreeMap;

use lora_drop_transformer::{ModuleId, ModuleKind};

use lora_drop::assignment::{Assignment, Owner};
use lora_drop::evaluate::metrics::Metric;
use lora_drop::evaluate::{Answers, ClassAnswer, ExampleRow, Outcome};
use lora_drop::events::{EvaluationRecord, Stage, StepRecord};
use lora_drop::machine::Machine;
use lora_drop::run_record::{DevFindings, ModuleNames, RunRecord};
use lora_drop::score::{Importance, ModuleScore, Window};
use lora_drop::settings::{Method, Optimisation, RunSettings};
use lora_drop::summary::{
    Baseline, BaselineKind, DataFacts, MemoryEstimate, ModelFacts, SplitFacts, Status, Summary,
};

/// Small repeatable noise in [0, 1).
fn noise(i: usize) -> f64 {
    let mut x = (i as u64).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 31;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 29)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Steps of one stage whose loss falls from 0.69 with noise.
pub fn steps(stage: Stage, count: usize, epochs: f64) -> Vec<StepRecord> {
    (1..=count)
        .map(|step| {
            let done = step as f64 / count as f64;
            StepRecord {
                stage,
                step,
                steps: count,
                epoch: done * epochs,
                loss: 0.32 + 0.37 * (-3.0 * done).exp() + 0.14 * (noise(step) - 0.5),
                learning_rate: 1e-3 * (1.0 - done),
                grad_norm: 1.0 + noise(step + 7),
                tokens: 1650,
                tokens_per_second: 2431.4,
            }
        })
        .collect()
}

pub fn evaluations(epochs: usize, steps_an_epoch: usize) -> Vec<EvaluationRecord> {
    let mut best_so_far = 0.0;
    (1..=epochs)
        .map(|epoch| {
            let accuracy = 0.79 - 0.11 * (-0.9 * epoch as f64).exp() - 0.02 * noise(epoch);
            let best = accuracy > best_so_far;
            best_so_far = f64::max(best_so_far, accuracy);
            EvaluationRecord {
                epoch: epoch as f64,
                step: epoch * steps_an_epoch,
                loss: 0.62 - 0.03 * epoch as f64 + 0.004 * (epoch * epoch) as f64,
                metrics: vec![("accuracy".into(), accuracy), ("f1".into(), accuracy + 0.06)],
                best,
                only_class: None,
            }
        })
        .collect()
}

pub fn names() -> ModuleNames {
    let names = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"];
    std::iter::zip(ModuleKind::ALL, names.map(String::from)).collect()
}

pub fn data() -> DataFacts {
    let split = |name: &str, rows, tokens, over_long, per_class: [usize; 2]| SplitFacts {
        name: name.into(),
        file: format!("{name}.jsonl"),
        rows,
        tokens,
        shortest: 14,
        median_length: 52,
        longest: 103,
        over_long,
        unknown: 0,
        uncounted: 0,
        words: 0,
        unread_words: 0,
        per_class: per_class.to_vec(),
        cached: false,
        label_range: None,
        ..SplitFacts::default()
    };
    DataFacts {
        positive_class: None,
        class_weights: Vec::new(),
        splits: vec![
            split("train", 3668, 194_012, 12, [1194, 2474]),
            split("dev", 408, 21_600, 0, [129, 279]),
        ],
        classes: vec!["not equivalent".into(), "equivalent".into()],
        text_column: "sentence1".into(),
        pair_column: Some("sentence2".into()),
        label_column: "label".into(),
        max_length: 96,
        over_length: "truncate".into(),
        sources: Vec::new(),
    }
}

pub fn model(layers: usize) -> ModelFacts {
    ModelFacts {
        model: "models/minilm".into(),
        architecture: "bert".into(),
        layers,
        hidden_size: 384,
        heads: 12,
        vocabulary: 30_522,
        max_positions: 512,
        parameters: 22_565_376,
        decoder: false,
        head_found: Some(false),
        head_from_adapter: false,
    }
}

/// Scores of `layers` × the first `kinds` of query, value, key, ...; the upper layers matter more.
pub fn importance(layers: usize, kinds: usize) -> Importance {
    let order = [
        ModuleKind::Query,
        ModuleKind::Value,
        ModuleKind::Key,
        ModuleKind::AttentionOutput,
        ModuleKind::Intermediate,
        ModuleKind::Output,
    ];
    let mut modules = Vec::new();
    for (k, &kind) in order[..kinds].iter().enumerate() {
        let raw: Vec<f64> = (0..layers)
            .map(|l| (4.5 / (1 + k) as f64 * l as f64 / layers as f64).exp() * (0.4 + noise(100 * k + l)))
            .collect();
        let total: f64 = raw.iter().sum();
        modules.extend(raw.iter().enumerate().map(|(layer, g)| ModuleScore {
            layer,
            kind,
            score: 1000.0 * g,
            importance: g / total,
        }));
    }
    modules.sort_by_key(|m| (m.kind, m.layer));
    Importance {
        modules,
        rows: 367,
        tokens: 19_388,
        micro_tokens: 512,
        steps: 84,
        settled: true,
        window: Window { steps: 12, rows: 367, tokens: 19_388 },
        history: vec![(24, 0.31), (36, 0.74), (48, 0.88), (60, 0.85), (72, 0.94), (84, 0.97)],
        curve: None,
    }
}

/// Of each type, the most important until T = 0.9.
pub fn assignment(importance: &Importance, left_over: Owner) -> Assignment {
    let mut sorted = importance.modules.clone();
    sorted.sort_by(|a, b| b.importance.total_cmp(&a.importance));
    let mut sums: BTreeMap<ModuleKind, f64> = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for m in sorted {
        let sum = sums.entry(m.kind).or_default();
        let owner = if *sum < 0.9 { Owner::Own } else { left_over };
        *sum += m.importance;
        owners.insert(ModuleId { layer: m.layer, kind: m.kind }, owner);
    }
    owners.into()
}

pub fn summary(method: &str) -> Summary {
    Summary {
        version: "0.1.0".into(),
        method: method.into(),
        model: "models/minilm".into(),
        data: "data/mrpc".into(),
        seed: 0,
        status: Status::Finished,
        error: None,
        metrics: BTreeMap::from([("f1".into(), 0.8521), ("accuracy".into(), 0.7843)]),
        metric: "accuracy".into(),
        best_epoch: 4.0,
        epochs: 5,
        steps: 575,
        trainable_parameters: 148_994,
        lora_parameters: 86_016,
        lora_parameters_full: 147_456,
        retained_ratio: 86_016.0 / 147_456.0,
        kept: BTreeMap::from([("query".into(), vec![3, 4, 5]), ("value".into(), vec![2, 3, 5])]),
        train_tokens: 970_060,
        train_tokens_per_second: 2431.4,
        sample_steps: 84,
        sample_settled: true,
        sample_seconds: 41.3,
        train_seconds: 399.2,
        evaluate_seconds: 24.9,
        startup_seconds: 0.6,
        checkpoint_seconds: 0.1,
        total_seconds: 468.8,
        peak_rss_bytes: 307_337_625,
        memory: Some(memory()),
        activation_bytes: 104_000_000,
        threads: 2,
        baseline: Some(Baseline {
            kind: BaselineKind::CommonestClass,
            name: "accuracy".into(),
            value: 279.0 / 408.0,
            class: Some("equivalent".into()),
        }),
        machine: Some(Machine {
            cpu: "Example CPU @ 2.00GHz".into(),
            cores: 2,
            memory_bytes: 8 << 30,
            kernels: "AVX-512".into(),
        }),
        date: "2026-01-31T12:34:56+01:00".into(),
        files: BTreeMap::from([
            ("adapter_model.safetensors".into(), 592_412),
            ("adapter_compact.safetensors".into(), 347_120),
        ]),
        outputs: vec!["summary.json".into()],
    }
}

pub fn memory() -> MemoryEstimate {
    MemoryEstimate {
        micro_tokens: 1024,
        program: 20 << 20,
        data: 2 << 20,
        weights: 80 << 20,
        parameters: 2 << 20,
        activations: 190 << 20,
        scratch: 6 << 20,
        total: 300 << 20,
        ..MemoryEstimate::default()
    }
}

fn record(method: Method, name: &str, layers: usize) -> RunRecord {
    let mut settings = RunSettings::new("models/minilm", "data/mrpc", "runs/mrpc");
    settings.train.adapter.method = method;
    settings.rows.max_length = Some(96);
    settings.train.optimisation = Optimisation {
        epochs: 5,
        learning_rate: 1e-3,
        metric: Some(Metric::Accuracy),
        ..Optimisation::default()
    };
    RunRecord {
        summary: summary(name),
        settings,
        model: model(layers),
        data: data(),
        module_names: names(),
        importance: None,
        assignment: None,
        steps: steps(Stage::Train, 575, 5.0),
        evaluations: evaluations(5, 115),
        dev: findings(),
        seconds_left: None,
    }
}

/// Answers with these labels and predicted classes; later rows have higher confidence.
pub fn answers(rows: impl IntoIterator<Item = (u32, u32)>) -> Answers {
    let rows: Vec<_> = rows.into_iter().collect();
    let sure = |n: usize| 0.5 + 0.5 * n as f32 / rows.len() as f32;
    let answer = |(n, &(label, predicted)): (usize, &(u32, u32))| ClassAnswer {
        predicted,
        confidence: sure(n),
        label,
    };
    Answers::Classes(rows.iter().enumerate().map(answer).collect())
}

/// 129 and 279 rows of two classes, of which 60 and 260 are right.
pub fn findings() -> DevFindings {
    let counts = [((0, 0), 60), ((0, 1), 69), ((1, 0), 19), ((1, 1), 260)];
    let rows = counts.into_iter().flat_map(|(pair, rows)| std::iter::repeat_n(pair, rows));
    let example = |line: usize| ExampleRow {
        place: format!("dev.jsonl, line {line}"),
        texts: vec!["he said he was innocent .".into(), "he pleaded not guilty .".into()],
        outcome: Outcome::Class {
            label: "not equivalent".into(),
            predicted: "equivalent".into(),
            confidence: 0.987,
        },
    };
    DevFindings {
        classes: answers(rows).by_class(),
        entities: Vec::new(),
        examples: (1..=8).map(example).collect(),
        samples: Vec::new(),
    }
}

/// A LoRA-drop run with a sample stage, everything unselected shared.
pub fn lora_drop(layers: usize, kinds: usize) -> RunRecord {
    let importance = importance(layers, kinds);
    let assignment = assignment(&importance, Owner::Shared);
    let mut record = record(Method::LoraDrop, "lora-drop", layers);
    record.steps.splice(0..0, steps(Stage::Sample, 84, 7.0));
    record.importance = Some(importance);
    record.assignment = Some(assignment);
    record
}

/// A run of full fine-tuning: no importance, no assignment, no LoRA.
pub fn full() -> RunRecord {
    let mut record = record(Method::Full, "full", 6);
    record.summary.trainable_parameters = 22_566_146;
    record.summary.lora_parameters = 0;
    record.summary.lora_parameters_full = 0;
    record.summary.retained_ratio = 0.0;
    record.summary.kept.clear();
    record.summary.sample_steps = 0;
    record.summary.sample_seconds = 0.0;
    record
}
