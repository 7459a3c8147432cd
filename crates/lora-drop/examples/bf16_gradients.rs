//! LoRA gradients of real rows in bf16 beside those in f32, as a table: for each module type the
//! norm of their difference over the norm of f32's, and the cosine between them, for all layers
//! together and for the layer where the difference is largest: `cargo run --release --example
//! bf16_gradients -- models/minilm data/mrpc 32`.
//!
//! A LoRA of rank 8 on every linear layer, B not zero, no dropout; the first rows of the training
//! split, as one step.

use std::collections::BTreeMap;

use lora_drop::Cancel;
use lora_drop::assignment::Assignment;
use lora_drop::events::Event;
use lora_drop::settings::{Dtype, Method, RunSettings, TrainSettings};
use lora_drop::train::{Hooks, Learner, Prepared, StageSchedule};
use lora_drop_compute::random::Key;

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
    settings.train.optimisation.batch_size = rows;
    (settings.train.optimisation.hidden_dropout, settings.train.optimisation.attention_dropout) =
        (Some(0.0), Some(0.0));
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

/// The gradients of the first rows' mean loss: one step of a learner, whose hook takes them before
/// the optimiser.
fn gradients(prepared: &Prepared, settings: &TrainSettings, rows: usize) -> lora_drop::Result<Found> {
    let mut learner = Learner::new(prepared, settings, &Assignment::all_own(prepared.modules()))?;
    for (number, pair) in learner.bank.pairs().iter().enumerate() {
        let random = Key::new(1).fold(number as u64);
        for (i, b) in learner.state.parameters.value_mut(pair.lora.b).iter_mut().enumerate() {
            *b = 0.04 * ((random.bits_64(i as u64) >> 40) as f32 / (1 << 24) as f32 - 0.5);
        }
    }
    let mut taken = Taken::default();
    let schedule = StageSchedule { steps: 1, ..StageSchedule::of_training(settings, rows) };
    learner.run(&schedule, prepared.data.train(), &mut taken, &Cancel::new())?;
    Ok((taken.gradients, taken.loss))
}

/// Takes a step's loss and gradients.
#[derive(Default)]
struct Taken {
    gradients: BTreeMap<String, Vec<f32>>,
    loss: f64,
}

impl Hooks for Taken {
    fn after_gradients(&mut self, learner: &mut Learner) -> lora_drop::Result<()> {
        let parameters = &learner.state.parameters;
        let gradient = |name: &str| parameters.gradient(parameters.find(name).expect("listed")).to_vec();
        self.gradients = parameters.list().iter().map(|p| (p.name.clone(), gradient(&p.name))).collect();
        Ok(())
    }

    fn on_event(&mut self, event: &Event) {
        if let Event::Step(step) = event {
            self.loss = step.loss;
        }
    }
}
