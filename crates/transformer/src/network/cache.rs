//! Cache of the keys and values of a text's previous tokens, so that a new token costs one row
//! instead of the whole text.

use lora_drop_compute::device::{Cpu, Device, KeyValues};

/// Keys and values of one text in every layer.
#[derive(Clone, Debug)]
pub struct Cache<D: Device = Cpu> {
    layers: Vec<D::Cache>,
    tokens: usize,
}

impl<D: Device> Cache<D> {
    /// Returns an empty cache for a model with this number of layers.
    pub fn new(layers: usize) -> Self {
        Cache { layers: vec![D::Cache::default(); layers], tokens: 0 }
    }

    /// Number of tokens in the cache.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Counts tokens that the layers have already added.
    pub(super) fn grow(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    pub(super) fn layer(&mut self, number: usize) -> &mut D::Cache {
        &mut self.layers[number]
    }
}

impl Cache {
    /// Removes all but the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        self.layers.iter_mut().for_each(|layer: &mut KeyValues| layer.truncate(tokens));
        self.tokens = self.tokens.min(tokens);
    }
}
