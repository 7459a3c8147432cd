//! LoRA in the bank and in files: A and B of a pair.

use lora_drop_transformer::Adapter;

use super::init::kaiming_uniform;
use super::{MethodSpec, PeftFormat};

pub(super) const SPEC: MethodSpec = MethodSpec {
    peft: PeftFormat::Lora(None),
    vectors: &[],
    only_if_shared: false,
    init_pair,
    adapter: |pair, _, _| Adapter::Lora(pair),
    constant: None,
    merge: |_, _| (),
};

/// Initial values: A is Kaiming-uniform with a = sqrt(5), as in PEFT, and B is zero.
pub(super) fn init_pair(seed: u64, name: &str, rank: usize, [input, output]: [usize; 2]) -> [Vec<f32>; 2] {
    [kaiming_uniform(seed, &format!("{name}.A"), rank, input), vec![0.0; rank * output]]
}
