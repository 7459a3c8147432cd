//! DoRA on BERT and Llama against PyTorch and PEFT: logits, losses and the gradients of A, B and m
//! (tests/golden/*/dora.safetensors, written by tools/golden/golden_dora.py); and what holds for
//! every adapter.

mod adapted;
mod golden_file;

use adapted::{Adapted, check_bits, check_estimated_memory};
use golden_file::{Golden, distance, transposed};
use lora_drop_compute::gemm::Precision;
use lora_drop_transformer::adapter::{Dora, weight_norms};
use lora_drop_transformer::linear::FrozenForm;
use lora_drop_transformer::{Adapter, AdapterTable, Group, LoraPair, ModuleId, ModuleKind, Trained};

const MODELS: [&str; 2] = ["bert", "llama"];
const BOTH: [ModuleKind; 2] = [ModuleKind::Query, ModuleKind::Value];

/// Loads the golden model with golden adapters on every module; with `shared`, on query and value,
/// with layer 0's pair and magnitudes of their own.
fn with_dora(name: &str, shared: bool, trained: Trained) -> Adapted {
    let (golden, dora) = (Golden::open(name), Golden::file(name, "dora.safetensors"));
    let mut adapted = Adapted::load(name, trained);
    let Adapted { model, parameters, table, .. } = &mut adapted;
    let config = &model.config;
    let all: Vec<_> = config.architecture.kinds().collect();
    let kinds = if shared { &BOTH[..] } else { &all };
    for &kind in kinds {
        let mut common = None;
        for layer in 0..config.layers {
            let name = format!("layers.{layer}.{}", kind.name());
            let (output, input) = config.linear_shape(kind);
            let pair = common.filter(|_| shared).unwrap_or_else(|| {
                let own = if shared { format!("shared.{}", kind.name()) } else { name.clone() };
                let mut add = |half: &str, width: usize, values: &[f32]| {
                    parameters.add(&format!("{own}.{half}"), &[4, width], Group::Lora, true, values)
                };
                let a = golden.get(&format!("lora.{name}.lora_A"));
                let b = transposed(&golden.get(&format!("lora.{name}.lora_B")), output);
                LoraPair { a: add("lora_A", input, &a), b: add("lora_B", output, &b), rank: 4, scale: 2.0 }
            });
            common = Some(pair);
            let m = dora.get(&format!("magnitude.{name}"));
            let magnitude = parameters.add(&format!("{name}.magnitude"), &[output], Group::Lora, true, &m);
            let adapter = Adapter::Dora(Dora { pair, magnitude, norms: None });
            table.set(ModuleId { layer, kind }, Some(adapter));
        }
    }
    adapted
}

/// Makes the norms of every module's adapter constants.
fn make_norms_constant(dora: &mut Adapted) {
    for (module, weights) in dora.model.linears() {
        if let Some(Adapter::Dora(of)) = dora.table.get(module) {
            let norms = weight_norms(weights, Some(of.pair), dora.parameters.read()).unwrap();
            let name = format!("{module:?}.norms");
            let norms = dora.parameters.add_constant(&name, &[norms.len()], &norms);
            dora.table.set(module, Some(Adapter::Dora(Dora { norms: Some(norms), ..of })));
        }
    }
}

#[test]
fn outputs_losses_and_gradients_match_peft() {
    for name in MODELS {
        let golden = Golden::file(name, "dora.safetensors");
        for (case, shared) in [("all", false), ("shared", true)] {
            with_dora(name, shared, Trained::Head).check(&format!("{name} {case}"), &golden, case);
        }
    }
}

#[test]
fn a_new_adapter_does_not_change_outputs() {
    for name in MODELS {
        for (precision, form) in [
            (Precision::F32, FrozenForm::AsIs),
            (Precision::F32, FrozenForm::Packed),
            (Precision::Bf16, FrozenForm::AsIs),
            (Precision::Bf16, FrozenForm::Rounded),
            (Precision::Bf16, FrozenForm::Packed),
        ] {
            let mut dora = with_dora(name, false, Trained::Head);
            dora.model.net.multiply_in(precision);
            for (module, weights) in dora.model.linears() {
                let Some(Adapter::Dora(of)) = dora.table.get(module) else { panic!("{module:?}") };
                // Before the weights are converted, as in a training run.
                let norms = weight_norms(weights, None, dora.parameters.read()).unwrap();
                dora.parameters.value_mut(of.magnitude).copy_from_slice(&norms);
                dora.parameters.value_mut(of.pair.b).fill(0.0);
            }
            dora.model.net.convert_frozen(form);
            let adapted = dora.outputs();
            dora.table = AdapterTable::empty(dora.model.layers());
            // With DoRA, the bias is added after the product instead of before it.
            let off = distance(&adapted, &dora.outputs());
            assert!(off < 1e-6, "{name} {precision:?} {form:?}: {off}");
        }
    }
}

/// For frozen and for trained weights. The gradient treats the norm as a constant, so it is one
/// here too.
#[test]
fn gradients_under_dropout() {
    for (name, trained) in [("bert", Trained::Head), ("llama", Trained::Head), ("bert", Trained::Everything)]
    {
        let mut dora = with_dora(name, false, trained);
        make_norms_constant(&mut dora);
        dora.check_finite_differences(name);
    }
}

#[test]
fn results_are_bit_identical_for_any_threads_memory_and_weight_form() {
    MODELS.into_iter().for_each(|name| check_bits(name, || with_dora(name, false, Trained::Head)));
}

#[test]
fn estimated_memory_is_what_a_pass_uses() {
    MODELS
        .into_iter()
        .for_each(|name| check_estimated_memory(name, || with_dora(name, false, Trained::Head)));
}

#[test]
fn constant_norms_are_bit_identical() {
    for name in MODELS {
        let mut dora = with_dora(name, true, Trained::Head);
        let want = dora.outputs();
        make_norms_constant(&mut dora);
        assert!(dora.outputs() == want, "{name}");
    }
}
