//! The keys and values of a text's tokens so far, so that a new token costs one row and not the whole text.

use super::block::Cached;

/// One text's keys and values in every layer.
#[derive(Clone, Debug)]
pub struct Cache {
    /// By layer: (tokens, kv heads · head_dim)
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    width: usize,
}

impl Cache {
    /// An empty cache for a model of `layers` whose keys are `width` wide in all.
    pub fn new(layers: usize, width: usize) -> Self {
        Cache { keys: vec![Vec::new(); layers], values: vec![Vec::new(); layers], width }
    }

    /// Tokens that it holds.
    pub fn tokens(&self) -> usize {
        self.keys.first().map_or(0, |keys| keys.len() / self.width)
    }

    /// Forgets all but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        for side in self.keys.iter_mut().chain(&mut self.values) {
            side.truncate(tokens * self.width);
        }
    }

    pub(super) fn layer(&mut self, number: usize) -> Cached<'_> {
        Cached { k: &mut self.keys[number], v: &mut self.values[number] }
    }
}
