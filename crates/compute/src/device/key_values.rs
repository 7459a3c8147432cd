//! The CPU's cache of keys and values of a text, between the passes that generate it.

use std::fmt;

/// The keys and values of a text's previous tokens in one layer, (tokens, kv heads · width) each.
#[derive(Clone, Default)]
pub struct KeyValues {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) tokens: usize,
}

impl fmt::Debug for KeyValues {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "keys and values of {} tokens", self.tokens)
    }
}

impl KeyValues {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Removes all but the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        if tokens < self.tokens {
            let width = self.keys.len() / self.tokens;
            self.keys.truncate(tokens * width);
            self.values.truncate(tokens * width);
            self.tokens = tokens;
        }
    }
}
