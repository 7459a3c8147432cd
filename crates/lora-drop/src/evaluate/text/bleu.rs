//! Corpus BLEU (Papineni et al. 2002) with sacrebleu's defaults: 13a words, case kept, exponential
//! smoothing.

use super::ngrams::{Corpus, Counts};
use super::{check, tokens};
use crate::Result;

/// Longest n-gram.
const ORDER: usize = 4;

/// BLEU over all rows, and its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// Share of n-grams found in a reference, n = 1 to 4, from 0 to 100, smoothed.
    pub precisions: [f64; ORDER],
    /// From 0 to 1; below 1 if the hypotheses are shorter than the references.
    pub brevity_penalty: f64,
    /// Words of all hypotheses.
    pub hypothesis_length: usize,
    /// Words of the references: for each row the one closest in length, or the shorter of two
    /// equally close.
    pub reference_length: usize,
}

/// Computes corpus BLEU as sacrebleu's `corpus_bleu`.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn bleu(hypotheses: &[String], references: &[Vec<String>]) -> Result<Bleu> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::mteval_13a, ORDER);
    let (mut correct, mut totals) = ([0u64; ORDER], [0; ORDER]);
    let (mut hypothesis_length, mut reference_length) = (0, 0);
    let (mut counts, mut most) = (Counts::new(&corpus), Counts::new(&corpus));
    for (hypothesis, references) in &corpus.rows {
        let length = hypothesis.words().len();
        hypothesis_length += length;
        let lengths = references.iter().map(|reference| reference.words().len());
        reference_length += lengths.min_by_key(|&of| (of.abs_diff(length), of)).unwrap_or(0);
        // largest count of each n-gram in one reference
        most.clear();
        for reference in references {
            counts.fill(reference);
            counts.iter().for_each(|(id, count)| most.raise(id, count));
        }
        counts.fill(hypothesis);
        for (id, count) in counts.iter() {
            correct[corpus.ngrams[id as usize].order - 1] += u64::from(count.min(most.get(id)));
        }
        for (n, sum) in totals.iter_mut().enumerate() {
            *sum += hypothesis.total(n + 1);
        }
    }

    let brevity_penalty = if hypothesis_length >= reference_length {
        1.0
    } else if hypothesis_length == 0 {
        0.0
    } else {
        (1.0 - reference_length as f64 / hypothesis_length as f64).exp()
    };
    let mut precisions = [0.0; ORDER];
    let mut score = 0.0;
    if correct.iter().any(|&c| c > 0) {
        let mut smoothing = 1.0;
        for ((precision, &correct), &total) in precisions.iter_mut().zip(&correct).zip(&totals) {
            // no text is long enough for an n-gram of this order: precision and score are 0
            if total == 0 {
                break;
            }
            *precision = if correct > 0 {
                100.0 * correct as f64 / total as f64
            } else {
                smoothing *= 2.0;
                100.0 / (smoothing * total as f64)
            };
        }
        // exp(-inf) is 0
        score = brevity_penalty * (precisions.iter().map(|p: &f64| p.ln()).sum::<f64>() / ORDER as f64).exp();
    }
    Ok(Bleu { score, precisions, brevity_penalty, hypothesis_length, reference_length })
}
