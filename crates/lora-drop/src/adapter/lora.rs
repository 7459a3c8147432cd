//! LoRA in the bank and in files: A and B of a pair.

use lora_drop_transformer::Adapter;

use super::init::kaiming_uniform;
use super::{Form, Peft};

pub(super) const FORM: Form = Form {
    peft: Peft::Lora(None),
    vectors: &[],
    of_shared: false,
    start,
    adapter: |pair, _| Adapter::Lora(pair),
    constant: None,
    merge: |_, _| (),
};

/// Initial values: A is Kaiming-uniform with a = sqrt(5), as in PEFT, and B is zero.
pub(super) fn start(seed: u64, name: &str, rank: usize, [input, output]: [usize; 2]) -> [Vec<f32>; 2] {
    [kaiming_uniform(seed, &format!("{name}.A"), rank, input), vec![0.0; rank * output]]
}
