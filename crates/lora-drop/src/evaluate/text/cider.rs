//! CIDEr (Vedantam et al. 2015) as the COCO captions package computes it.
//!
//! That package's CIDEr is CIDEr-D: counts are clipped to the reference's, and a different length
//! is penalised. It measures length in pairs of words, not in words, which is kept here.

use super::ngrams::{Corpus, Counts, Text};
use super::{check, tokens};
use crate::Result;

/// Longest n-gram.
const ORDER: usize = 4;
/// Standard deviation of the penalty for a difference in length.
const SIGMA: f64 = 6.0;

/// Computes the mean over rows of pycocoevalcap's `Cider`, from 0 to 10, with document frequencies
/// from these references.
///
/// Words are those of 13a in lower case without the punctuation of sentences. A single row gets 0,
/// as in the package: with one document, no n-gram tells it from others.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn cider(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::caption, ORDER);
    let rarity = rarity(&corpus);
    let (mut here, mut there) = (Weights::new(&corpus, &rarity), Weights::new(&corpus, &rarity));
    let mut sum = 0.0;
    for (hypothesis, references) in &corpus.rows {
        here.fill(hypothesis);
        let mut by_order = [0.0; ORDER];
        for reference in references {
            there.fill(reference);
            for (sum, similarity) in by_order.iter_mut().zip(here.similarity(&there)) {
                *sum += similarity;
            }
        }
        sum += by_order.iter().sum::<f64>() / ORDER as f64 / references.len() as f64 * 10.0;
    }
    Ok(sum / corpus.rows.len() as f64)
}

/// Returns, by id, the inverse document frequency: the logarithm of all rows over the rows in whose
/// references the n-gram occurs.
fn rarity(corpus: &Corpus) -> Vec<f64> {
    let mut rows = vec![0u32; corpus.ngrams.len()];
    let mut of_row = Counts::new(corpus);
    for (_, references) in &corpus.rows {
        of_row.clear();
        references.iter().flat_map(Text::ids).for_each(|&id| of_row.raise(id, 1));
        of_row.iter().for_each(|(id, _)| rows[id as usize] += 1);
    }
    let documents = (corpus.rows.len() as f64).ln();
    // an n-gram that is only in hypotheses counts as one of a single row
    rows.into_iter().map(|rows| documents - f64::from(rows.max(1)).ln()).collect()
}

/// A text's n-grams, each weighted by its count and its inverse document frequency (tf-idf).
struct Weights<'a> {
    corpus: &'a Corpus,
    rarity: &'a [f64],
    counts: Counts,
    /// Norms of the weights by order.
    norms: [f64; ORDER],
    pairs: usize,
}

impl<'a> Weights<'a> {
    fn new(corpus: &'a Corpus, rarity: &'a [f64]) -> Self {
        Weights { corpus, rarity, counts: Counts::new(corpus), norms: [0.0; ORDER], pairs: 0 }
    }

    fn fill(&mut self, text: &Text) {
        self.counts.fill(text);
        let mut squares = [0.0; ORDER];
        for (id, _) in self.counts.iter() {
            let weight = self.get(id);
            squares[self.corpus.ngrams[id as usize].order - 1] += weight * weight;
        }
        self.norms = squares.map(f64::sqrt);
        self.pairs = text.total(2);
    }

    fn get(&self, id: u32) -> f64 {
        f64::from(self.counts.get(id)) * self.rarity[id as usize]
    }

    /// Returns, by order, the clipped cosine with the reference, times the penalty for its length.
    fn similarity(&self, reference: &Weights) -> [f64; ORDER] {
        let mut products = [0.0; ORDER];
        for (id, _) in self.counts.iter() {
            let there = reference.get(id);
            products[self.corpus.ngrams[id as usize].order - 1] += self.get(id).min(there) * there;
        }
        let difference = self.pairs as f64 - reference.pairs as f64;
        let penalty = (-(difference * difference) / (2.0 * SIGMA * SIGMA)).exp();
        std::array::from_fn(|n| {
            let norms = self.norms[n] * reference.norms[n];
            // if a norm is 0, so is the product
            if norms == 0.0 { 0.0 } else { products[n] / norms * penalty }
        })
    }
}
