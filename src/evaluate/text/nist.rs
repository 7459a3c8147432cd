//! NIST (Doddington 2002): n-grams weigh as much as they tell, and shortness costs little until it is great.

use std::collections::HashMap;

use super::ngrams::{Corpus, Counts, ngrams, total};
use super::{check, tokens};
use crate::Result;

/// The longest n-gram.
const ORDER: usize = 5;

/// The corpus's NIST as NLTK's `corpus_nist` on 13a words with their case (sacrebleu's tokenisation).
///
/// Orders of which no hypothesis has an n-gram count 0, where NLTK fails with a division by zero; the score is 0 where
/// the references have no words.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn nist(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::mteval_13a);
    let information = Information::new(&corpus);

    let (mut matched, mut totals) = ([0.0; ORDER], [0; ORDER]);
    let (mut hypothesis_length, mut reference_length) = (0, 0);
    for (hypothesis, references) in &corpus.rows {
        let counts = Counts::new(hypothesis, ORDER);
        // (information in common by order, length of the reference)
        let found: Vec<([f64; ORDER], usize)> =
            references.iter().map(|of| (information.common(&counts, of), of.len())).collect();
        for n in 0..ORDER {
            // NLTK chooses the reference anew for each order, the longer of two that are as good
            let better = |a: (f64, usize), b: (f64, usize)| if b > a { b } else { a };
            let (best, length) =
                found.iter().map(|(common, length)| (common[n], *length)).fold((0.0, 0), better);
            matched[n] += best;
            totals[n] += total(hypothesis.len(), n + 1);
            hypothesis_length += hypothesis.len();
            reference_length += length;
        }
    }
    let precision: f64 =
        matched.iter().zip(totals).filter(|(_, n)| *n > 0).map(|(sum, n)| sum / n as f64).sum();
    Ok(precision * length_penalty(hypothesis_length, reference_length))
}

/// What each n-gram of the references tells beyond the words before its last, in bits.
struct Information<'a>(HashMap<&'a [u32], f64>);

impl<'a> Information<'a> {
    fn new(corpus: &'a Corpus) -> Self {
        let mut counts: HashMap<&[u32], u64> = HashMap::new();
        let mut words = 0;
        for reference in corpus.rows.iter().flat_map(|(_, references)| references) {
            words += reference.len() as u64;
            for ngram in ngrams(reference, ORDER) {
                *counts.entry(ngram).or_insert(0) += 1;
            }
        }
        let bits = |ngram: &[u32], count: u64| {
            let before = &ngram[..ngram.len() - 1];
            let of = if before.is_empty() { words } else { counts[before] };
            // Python's log(x, 2), to the bit: which of two equal references is taken depends on it
            (of as f64 / count as f64).ln() / 2f64.ln()
        };
        Information(counts.iter().map(|(ngram, &count)| (*ngram, bits(ngram, count))).collect())
    }

    /// By order, the information in n-grams that hypothesis and reference have in common.
    fn common(&self, hypothesis: &Counts, reference: &[u32]) -> [f64; ORDER] {
        let reference = Counts::new(reference, ORDER);
        let mut sums = [0.0; ORDER];
        for (ngram, count) in hypothesis.iter() {
            let both = count.min(reference.get(ngram));
            if both > 0 {
                sums[ngram.len() - 1] += self.0[ngram] * f64::from(both);
            }
        }
        sums
    }
}

/// 1 for hypotheses as long as the references, 0.5 for those of two thirds of their length.
fn length_penalty(hypothesis: usize, reference: usize) -> f64 {
    if hypothesis == 0 || reference == 0 {
        return 0.0;
    }
    let ratio = hypothesis as f64 / reference as f64;
    if ratio >= 1.0 {
        return 1.0;
    }
    let beta = 0.5f64.ln() / 1.5f64.ln().powi(2);
    (beta * ratio.ln().powi(2)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalty_is_half_at_two_thirds() {
        assert!((length_penalty(200, 300) - 0.5).abs() < 1e-15);
        assert_eq!([length_penalty(5, 4), length_penalty(0, 4), length_penalty(4, 0)], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn short_texts_have_a_value() {
        // the one word tells log2(2 / 1) bits, and NLTK fails at pairs, of which there are none
        let found = nist(&["alpha".into()], &[vec!["alpha".into(), "beta".into()]]).expect("a value");
        assert_eq!(found, 1.0);
    }
}
