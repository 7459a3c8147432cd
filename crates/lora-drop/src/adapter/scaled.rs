//! Pairs with each module's own vectors that scale the inputs and outputs of B, in the bank and in
//! files: Tied-LoRA, VeRA, AdaLoRA.

use lora_drop_transformer::adapter::Scaled;
use lora_drop_transformer::{Adapter, LoraPair, ParamId};

use super::init::{normal, uniform};
use super::{MethodSpec, PeftFormat, Side, Vector, VectorInit, lora};

/// Tied-LoRA: u = v = 1 initially, A and B as in LoRA. A module that owns its pair has no vectors
/// and is plain LoRA.
pub(super) const TIED_LORA: MethodSpec = MethodSpec {
    peft: PeftFormat::Lora(None),
    vectors: &[vector("inner", None, Side::Inner, 1.0), vector("outer", None, Side::Outer, 1.0)],
    only_if_shared: true,
    init_pair: lora::init_pair,
    adapter: |pair, vectors, _| match vectors.is_empty() {
        true => Adapter::Lora(pair),
        false => scaled(pair, vectors, false),
    },
    constant: None,
    merge: |_, _| (),
};

/// VeRA: A and B are random and frozen, Kaiming-uniform with the bounds `sqrt(6 / in)` and
/// `sqrt(6 / rank)`, as in PEFT.
pub(super) const VERA: MethodSpec = MethodSpec {
    peft: PeftFormat::Vera,
    vectors: &[
        vector("inner", Some("vera_lambda_d"), Side::Inner, 0.1),
        vector("outer", Some("vera_lambda_b"), Side::Outer, 0.0),
    ],
    only_if_shared: false,
    init_pair: |seed, name, rank, [input, output]| {
        let bound = |width: usize| (6.0 / width as f64).sqrt() as f32;
        let a = uniform(seed, &format!("{name}.A"), rank * input, bound(input));
        [a, uniform(seed, &format!("{name}.B"), rank * output, bound(rank))]
    },
    adapter: |pair, vectors, _| scaled(pair, vectors, true),
    constant: None,
    merge: |_, _| (),
};

/// AdaLoRA: initially E is zero, A and B are normal with a standard deviation of 0.02, as in PEFT.
pub(super) const ADALORA: MethodSpec = MethodSpec {
    peft: PeftFormat::Never,
    vectors: &[vector("E", None, Side::Inner, 0.0)],
    only_if_shared: false,
    init_pair: |seed, name, rank, [input, output]| {
        let half = |half: &str, width: usize| normal(seed, &format!("{name}.{half}"), rank * width, 0.02);
        [half("A", input), half("B", output)]
    },
    adapter: |pair, vectors, _| scaled(pair, vectors, false),
    constant: None,
    merge: |_, _| (),
};

const fn vector(name: &'static str, peft_name: Option<&'static str>, side: Side, init: f32) -> Vector {
    Vector { name, peft_name, side, init: VectorInit::Constant(init) }
}

fn scaled(pair: LoraPair, vectors: &[ParamId], frozen: bool) -> Adapter {
    Adapter::Scaled(Scaled { pair, inner: vectors[0], outer: vectors.get(1).copied(), frozen })
}
