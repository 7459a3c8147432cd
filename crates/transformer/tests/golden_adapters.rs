//! Pairs with shared matrices, and pairs with vectors for each module, on BERT and Llama against
//! PyTorch and PEFT: Tied-LoRA, ShareLoRA, VeRA and AdaLoRA's products
//! (tests/golden/*/adapters.safetensors, written by tools/golden/golden_adapters.py).

mod adapted;
mod golden_file;

use adapted::{Adapted, WHOLE, check_bits, check_estimated_memory};
use golden_file::{Golden, transposed};
use lora_drop_transformer::adapter::Scaled;
use lora_drop_transformer::{Adapter, DropoutRates, Group, LoraPair, ModuleId, ParamId, Parameters, Trained};

const MODELS: [&str; 2] = ["bert", "llama"];
const CASES: [&str; 4] = ["tied", "share", "vera", "adalora"];
const RANK: usize = 4;

/// Golden numbers of a model, and golden pairs and vectors of its adapters.
struct Files {
    golden: Golden,
    own: Golden,
}

impl Files {
    fn open(name: &str) -> Self {
        Files { golden: Golden::open(name), own: Golden::file(name, "adapters.safetensors") }
    }

    /// Returns A (rank, in) and Bᵀ (rank, out).
    fn pair(&self, layer: usize, kind: &str, output: usize) -> [Vec<f32>; 2] {
        let half = |half: &str| self.golden.get(&format!("lora.layers.{layer}.{kind}.lora_{half}"));
        [half("A"), transposed(&half("B"), output)]
    }

    /// Returns the first columns of PEFT's A, and the first rows of its B, transposed.
    fn projections(&self, input: usize, output: usize) -> [Vec<f32>; 2] {
        let (a, b) = (self.own.get("vera.vera_A"), self.own.get("vera.vera_B"));
        let a = a.chunks(a.len() / RANK).flat_map(|row| row[..input].to_vec()).collect();
        [a, transposed(&b[..output * RANK], output)]
    }
}

fn trained(parameters: &mut Parameters, name: &str, shape: &[usize], values: &[f32]) -> ParamId {
    let known = parameters.find(name);
    known.unwrap_or_else(|| parameters.add(name, shape, Group::Lora, true, values))
}

/// Loads the golden model with the case's adapter on every module.
fn with(name: &str, case: &str, weights: Trained) -> Adapted {
    let files = Files::open(name);
    let mut adapted = Adapted::load(name, weights);
    let Adapted { model, parameters, table, .. } = &mut adapted;
    let config = &model.config;
    let modules = |layers: usize| {
        let kinds = config.architecture.kinds();
        kinds.flat_map(move |kind| (0..layers).map(move |layer| ModuleId { layer, kind }))
    };
    // Vectors first, because trained tensors must precede constants.
    let vector = |parameters: &mut Parameters, id: ModuleId, which: &str, len: usize| {
        let name = format!("layers.{}.{}.{which}", id.layer, id.kind.name());
        trained(parameters, &name, &[len], &files.own.get(&format!("vectors.{name}")))
    };
    let mut vectors = Vec::new();
    for id in modules(config.layers) {
        let (output, _) = config.linear_shape(id.kind);
        let inner = (case != "share").then(|| vector(parameters, id, "inner", RANK));
        let outer = ["tied", "vera"].contains(&case).then(|| vector(parameters, id, "outer", output));
        vectors.push((inner, outer));
    }
    for (id, (inner, outer)) in modules(config.layers).zip(vectors) {
        let kind = id.kind.name();
        let (output, input) = config.linear_shape(id.kind);
        let (of_layer, of_type) = (format!("layers.{}.{kind}", id.layer), format!("shared.{kind}"));
        let source = |shared: bool| files.pair(if shared { 0 } else { id.layer }, kind, output);
        let pair = match case {
            "vera" => {
                let halves = files.projections(input, output);
                let mut half = |half: &str, width: usize, values: &[f32]| {
                    let name = format!("{of_type}.{half}");
                    let known = parameters.find(&name);
                    known.unwrap_or_else(|| parameters.add_constant(&name, &[RANK, width], values))
                };
                [half("lora_A", input, &halves[0]), half("lora_B", output, &halves[1])]
            }
            _ => {
                let (shared_a, shared_b) = (case != "adalora", case == "tied");
                let mut half = |shared: bool, half: &str, width: usize, values: &[f32]| {
                    let owner = if shared { &of_type } else { &of_layer };
                    trained(parameters, &format!("{owner}.{half}"), &[RANK, width], values)
                };
                let a = half(shared_a, "lora_A", input, &source(shared_a)[0]);
                [a, half(shared_b, "lora_B", output, &source(shared_b)[1])]
            }
        };
        let scale = match case {
            "vera" => 1.0,
            "adalora" => 8.0 / (RANK as f32 + 1e-5),
            _ => 2.0,
        };
        let pair = LoraPair { a: pair[0], b: pair[1], rank: RANK, scale };
        let adapter = inner.map_or(Adapter::Lora(pair), |inner| {
            Adapter::Scaled(Scaled { pair, inner, outer, frozen: case == "vera" })
        });
        table.set(id, Some(adapter));
    }
    adapted
}

#[test]
fn outputs_losses_and_gradients_match_pytorch() {
    for name in MODELS {
        let golden = Golden::file(name, "adapters.safetensors");
        for case in CASES {
            with(name, case, Trained::Head).check(&format!("{name} {case}"), &golden, case);
        }
    }
}

#[test]
fn gradients_under_dropout() {
    for (name, case, weights) in [
        ("bert", "tied", Trained::Head),
        ("llama", "vera", Trained::Head),
        ("bert", "adalora", Trained::Everything),
    ] {
        with(name, case, weights).check_finite_differences(&format!("{name} {case}"));
    }
}

#[test]
fn results_are_bit_identical_for_any_threads_memory_and_weight_form() {
    for (name, case) in MODELS.into_iter().flat_map(|name| CASES.map(|case| (name, case))) {
        check_bits(&format!("{name} {case}"), || with(name, case, Trained::Head));
    }
}

#[test]
fn estimated_memory_is_what_a_pass_uses() {
    MODELS.into_iter().for_each(|name| check_estimated_memory(name, || with(name, "tied", Trained::Head)));
}

#[test]
fn constants_have_no_gradients_and_do_not_train() {
    let mut adapted = with("bert", "vera", Trained::Head);
    adapted.train(WHOLE, DropoutRates::NONE, false);
    let parameters = &adapted.parameters;
    // In each of 3 layers, 4 values of d for each of 6 kinds, and b as long as their outputs; the
    // head's 3 rows and 3 biases.
    let count = 3 * (6 * 4 + 5 * 32 + 64) + 3 * 32 + 3;
    assert_eq!(
        (parameters.count(), parameters.gradients().len(), parameters.values().len()),
        (count, count, count)
    );
    // A and B of each kind, of rank 4: 5 kinds have 32 inputs and one 64, and likewise outputs.
    assert_eq!(parameters.constants(), 2 * 4 * (5 * 32 + 64));
    assert!(parameters.list().iter().all(|p| !p.name.contains("lora_")));
    let id = parameters.find("shared.query.lora_A").unwrap();
    assert_eq!(parameters.value(id).len(), parameters.info(id).range.len());
}
