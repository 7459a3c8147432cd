//! Texts packed end to end, as the decoder takes them.

use super::TextExample;

/// Packed texts.
#[derive(Clone, Debug)]
pub struct PackedTexts {
    /// Token ids, (tokens).
    pub ids: Vec<u32>,
    /// The starts of texts, and the end of the last, (texts + 1).
    pub offsets: Vec<usize>,
    /// Whether a token is a target, (tokens).
    pub learn: Vec<bool>,
}

impl PackedTexts {
    /// Packs the examples of these indices.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn pack(examples: &[TextExample], rows: impl IntoIterator<Item = usize>) -> Self {
        let mut batch = PackedTexts { ids: Vec::new(), offsets: vec![0], learn: Vec::new() };
        for row in rows {
            batch.ids.extend_from_slice(&examples[row].ids);
            batch.learn.extend_from_slice(&examples[row].learn);
            batch.offsets.push(batch.ids.len());
        }
        batch
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}
