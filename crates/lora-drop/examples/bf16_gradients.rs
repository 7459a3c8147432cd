//! LoRA gradients of real rows in bf16 beside those in f32, as a table: for each module type the
//! norm of their difference over the norm of f32's, and the cosine between them, for all layers
//! together and for the layer where the difference is largest: `cargo run --release --example
//! bf16_gradients -- models/minilm data/mrpc 32`.
//!
//! A LoRA of rank 8 on every linear layer, B not zero, no dropout; the first rows of the training
//! split, as one step.

use std::collections::BTreeMap;

use lora_drop::assignment::Assignment;
use lora_drop::data::text::PackedTexts;
use lora_drop::data::{PackedBatch, TaskRows, batch};
use lora_drop::engine::{micro_tokens, sequences, texts, unzip};
use lora_drop::settings::{Dtype, Method, RunSettings, TrainSettings};
use lora_drop::train::{Learner, Prepared};
use lora_drop::{Cancel, Error};
use lora_drop_compute::random::Key;
use lora_drop_transformer::{Context, DropoutRates, Group, Targets, TextPart, TrainPart};

/// Parameter name → gradient; and the loss.
type Found = (BTreeMap<String, Vec<f32>>, f64);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, rows] = &words[..] else {
        return Err("give a model, a folder of rows, and how many of them".into());
    };
    let mut settings = RunSettings::new(model, data, "unused");
    settings.train.adapter.method = Method::Lora;
    settings.train.adapter.target_modules = vec!["all-linear".into()];
    let prepared = Prepared::read(&settings, false, &Cancel::new(), &mut |_| {})?;
    let rows = rows.parse::<usize>()?.min(prepared.data.train().len());
    let [(single, loss), (half, half_loss)] = [Dtype::F32, Dtype::Bf16].map(|dtype| {
        let mut settings = settings.train.clone();
        settings.compute.dtype = dtype;
        gradients(&prepared, &settings, rows).expect("a model that was read")
    });

    println!("{rows} rows; loss {loss:.6} in f32, {half_loss:.6} in bf16\n");
    println!("| gradients of | relative error | cosine | relative error, worst layer |");
    println!("|---|---|---|---|");
    let mut kinds: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for name in single.keys() {
        // lora.query.3.A: module type, layer, matrix; what belongs to the head has a name of
        // another form.
        let parts: Vec<&str> = name.split('.').collect();
        let kind = match parts[..] {
            ["lora", kind, _, matrix] => format!("{kind}, {matrix}"),
            _ => "head".to_string(),
        };
        kinds.entry(kind).or_default().push(name);
    }
    let all: Vec<&String> = single.keys().filter(|name| name.starts_with("lora.")).collect();
    for (kind, names) in kinds.into_iter().chain([("every LoRA".to_string(), all)]) {
        let pairs: Vec<(&[f32], &[f32])> = names.iter().map(|&n| (&single[n][..], &half[n][..])).collect();
        let (error, cosine) = compare(&pairs);
        let worst = pairs.iter().map(|&pair| compare(&[pair]).0).fold(0.0, f64::max);
        println!("| {kind} | {error:.2e} | {cosine:.6} | {worst:.2e} |");
    }
    Ok(())
}

/// ‖b − a‖ / ‖a‖ and the cosine, over all pairs together.
fn compare(pairs: &[(&[f32], &[f32])]) -> (f64, f64) {
    let (mut aa, mut bb, mut ab, mut difference) = (0.0, 0.0, 0.0, 0.0);
    for (a, b) in pairs.iter().flat_map(|(a, b)| a.iter().zip(*b)) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        aa += a * a;
        bb += b * b;
        ab += a * b;
        difference += (b - a) * (b - a);
    }
    ((difference / aa).sqrt(), ab / (aa * bb).sqrt())
}

/// The gradients of the first rows' mean loss.
fn gradients(prepared: &Prepared, settings: &TrainSettings, rows: usize) -> lora_drop::Result<Found> {
    let assignment = Assignment::all_own(prepared.modules());
    let Learner { model, state, bank, table, mut arenas, .. } =
        Learner::new(prepared, settings, &assignment)?;
    let mut parameters = state.parameters;
    for (number, pair) in bank.pairs().iter().enumerate() {
        let random = Key::new(1).fold(number as u64);
        for (i, b) in parameters.value_mut(pair.lora.b).iter_mut().enumerate() {
            *b = 0.04 * ((random.bits_64(i as u64) >> 40) as f32 / (1 << 24) as f32 - 0.5);
        }
    }
    parameters.zero_gradients();
    let (dropout, cancel) =
        (DropoutRates { hidden: 0.0, attention: 0.0, head: 0.0, lora: 0.0 }, Cancel::new());
    let (stop, mut loss, mut total) = (cancel.flag(), 0.0, rows);
    let examples = prepared.data.train();
    let lengths: Vec<usize> = (0..rows).map(|row| examples.length(row)).collect();
    for part in batch::micro_batches(&lengths, micro_tokens(&model), 1) {
        let keys = vec![Key::new(0); part.len()];
        let (values, gradients) = parameters.training();
        let context = Context::new(values, &table, arenas.memory(), stop);
        let found = match examples {
            TaskRows::Text(examples) => {
                total = examples[..rows].iter().map(|example| example.learned()).sum();
                let packed = PackedTexts::pack(examples, part.iter().copied());
                let texts = texts(&packed);
                let part = TextPart { texts, total, dropout, keys: &keys, recompute: false, below: None };
                model.net.train_texts(context, gradients, part)
            }
            TaskRows::Labelled(examples) => {
                let packed = PackedBatch::pack(examples, &part);
                let (classes, targets) = unzip(&packed.labels);
                let targets = match targets.is_empty() {
                    true => Targets::Classes(&classes),
                    false => Targets::Values(&targets),
                };
                let sequences = sequences(&packed);
                let (label_smoothing, recompute) = (0.0, false);
                let part = TrainPart {
                    sequences,
                    targets,
                    label_smoothing,
                    total,
                    dropout,
                    keys: &keys,
                    recompute,
                    below: None,
                };
                model.net.train(context, gradients, part)
            }
        };
        loss += found.map_err(|_| Error::Interrupted)?;
    }
    let trained = parameters.list().iter().filter(|p| p.group != Group::Base);
    let gradient = |name: &str| parameters.gradient(parameters.find(name).expect("listed")).to_vec();
    Ok((trained.map(|p| (p.name.clone(), gradient(&p.name))).collect(), loss / total as f64))
}
