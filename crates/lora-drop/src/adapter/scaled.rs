//! Pairs with each module's own vectors that scale the inputs and outputs of B, in the bank and in
//! files: Tied-LoRA, VeRA, AdaLoRA.

use lora_drop_transformer::adapter::Scaled;
use lora_drop_transformer::{Adapter, LoraPair, ParamId};

use super::init::{normal, uniform};
use super::{Form, Peft, Side, Start, Vector, lora};

/// Tied-LoRA: u = v = 1 initially, A and B as in LoRA. A module that owns its pair has no vectors
/// and is plain LoRA.
pub(super) const TIED_LORA: Form = Form {
    peft: Peft::Lora(None),
    vectors: &[vector("inner", None, Side::Inner, 1.0), vector("outer", None, Side::Outer, 1.0)],
    of_shared: true,
    start: lora::start,
    adapter: |pair, own| if own.is_empty() { Adapter::Lora(pair) } else { scaled(pair, own, false) },
    constant: None,
    merge: |_, _| (),
};

/// VeRA: A and B are random and frozen, Kaiming-uniform with the bounds `sqrt(6 / in)` and
/// `sqrt(6 / rank)`, as in PEFT.
pub(super) const VERA: Form = Form {
    peft: Peft::Vera,
    vectors: &[
        vector("inner", Some("vera_lambda_d"), Side::Inner, 0.1),
        vector("outer", Some("vera_lambda_b"), Side::Outer, 0.0),
    ],
    of_shared: false,
    start: |seed, name, rank, [input, output]| {
        let bound = |width: usize| (6.0 / width as f64).sqrt() as f32;
        let a = uniform(seed, &format!("{name}.A"), rank * input, bound(input));
        [a, uniform(seed, &format!("{name}.B"), rank * output, bound(rank))]
    },
    adapter: |pair, own| scaled(pair, own, true),
    constant: None,
    merge: |_, _| (),
};

/// AdaLoRA: initially E is zero, A and B are normal with a standard deviation of 0.02, as in PEFT.
pub(super) const ADALORA: Form = Form {
    peft: Peft::Never,
    vectors: &[vector("E", None, Side::Inner, 0.0)],
    of_shared: false,
    start: |seed, name, rank, [input, output]| {
        let half = |half: &str, width: usize| normal(seed, &format!("{name}.{half}"), rank * width, 0.02);
        [half("A", input), half("B", output)]
    },
    adapter: |pair, own| scaled(pair, own, false),
    constant: None,
    merge: |_, _| (),
};

const fn vector(name: &'static str, in_peft: Option<&'static str>, side: Side, start: f32) -> Vector {
    Vector { name, in_peft, side, start: Start::All(start) }
}

fn scaled(pair: LoraPair, own: &[ParamId], frozen: bool) -> Adapter {
    Adapter::Scaled(Scaled { pair, inner: own[0], outer: own.get(1).copied(), frozen })
}
