//! CIDEr (Vedantam et al. 2015) as the COCO captions package computes it.
//!
//! What that package calls CIDEr is CIDEr-D: counts clipped to the reference's, and a penalty for another length. Its
//! lengths count pairs of words, not words, which is kept.

use std::collections::{HashMap, HashSet};

use super::ngrams::{Corpus, Counts, ngrams, total};
use super::{check, tokens};
use crate::Result;

/// The longest n-gram.
const ORDER: usize = 4;
/// Standard deviation of the penalty for a difference in length.
const SIGMA: f64 = 6.0;

/// The mean over rows of pycocoevalcap's `Cider`, from 0 to 10, with document frequencies from these references.
///
/// Words are those of 13a in lower case without the punctuation of sentences. A single row gets 0, as in the package:
/// with one document, no n-gram tells it from others.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn cider(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::caption);
    // the number of rows in whose references an n-gram occurs
    let mut frequency: HashMap<&[u32], u32> = HashMap::new();
    for (_, references) in &corpus.rows {
        let of_row: HashSet<&[u32]> = references.iter().flat_map(|of| ngrams(of, ORDER)).collect();
        for ngram in of_row {
            *frequency.entry(ngram).or_insert(0) += 1;
        }
    }
    let documents = (corpus.rows.len() as f64).ln();
    let rarity = |ngram: &[u32]| documents - frequency.get(ngram).map_or(0.0, |&rows| f64::from(rows).ln());

    let score = |(hypothesis, references): &(Vec<u32>, Vec<Vec<u32>>)| {
        let hypothesis = Weights::new(hypothesis, &rarity);
        let mut sums = [0.0; ORDER];
        for reference in references {
            let reference = Weights::new(reference, &rarity);
            for (sum, similarity) in sums.iter_mut().zip(hypothesis.similarity(&reference)) {
                *sum += similarity;
            }
        }
        sums.iter().sum::<f64>() / ORDER as f64 / references.len() as f64 * 10.0
    };
    Ok(corpus.rows.iter().map(score).sum::<f64>() / corpus.rows.len() as f64)
}

/// A text's n-grams, each weighted by how often it occurs there and how rare it is elsewhere.
struct Weights<'a> {
    weights: Vec<(&'a [u32], f64)>,
    by_ngram: HashMap<&'a [u32], f64>,
    /// By order.
    norms: [f64; ORDER],
    pairs: usize,
}

impl<'a> Weights<'a> {
    fn new(words: &'a [u32], rarity: impl Fn(&[u32]) -> f64) -> Self {
        let counts = Counts::new(words, ORDER);
        let weights: Vec<_> =
            counts.iter().map(|(ngram, count)| (ngram, f64::from(count) * rarity(ngram))).collect();
        let mut squares = [0.0; ORDER];
        for (ngram, weight) in &weights {
            squares[ngram.len() - 1] += weight * weight;
        }
        let by_ngram = weights.iter().copied().collect();
        Weights { weights, by_ngram, norms: squares.map(f64::sqrt), pairs: total(words.len(), 2) }
    }

    /// By order, the clipped cosine with the reference, less the penalty for its length.
    fn similarity(&self, reference: &Weights) -> [f64; ORDER] {
        let mut dots = [0.0; ORDER];
        for (ngram, weight) in &self.weights {
            if let Some(&other) = reference.by_ngram.get(ngram) {
                dots[ngram.len() - 1] += weight.min(other) * other;
            }
        }
        let delta = self.pairs as f64 - reference.pairs as f64;
        let penalty = (-(delta * delta) / (2.0 * SIGMA * SIGMA)).exp();
        std::array::from_fn(|n| {
            let norms = self.norms[n] * reference.norms[n];
            // where a norm is 0 so is the product above
            if norms == 0.0 { 0.0 } else { dots[n] / norms * penalty }
        })
    }
}
