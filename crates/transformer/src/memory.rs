//! Memory that passes reuse: activations, and the tables that grow with the longest sequence.

use std::sync::Arc;

use lora_drop_compute::rotary::RotaryTable;

/// Memory for activations that passes reuse.
#[derive(Default)]
pub struct Memory {
    pub(crate) floats: Vec<f32>,
    pub(crate) rotary: Option<Arc<RotaryTable>>,
}
