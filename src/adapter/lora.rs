//! LoRA as the bank and files have it: A and B of a pair, and no more.

use lora_drop_transformer::Adapter;

use super::Form;

pub(super) const FORM: Form =
    Form { peft_key: None, vector: None, adapter: |pair, _| Adapter::Lora(pair), merge: |_, _| () };
