//! NIST (Doddington 2002): n-grams are weighted by their information, and the penalty for short
//! texts is small unless they are much shorter than the references.

use super::ngrams::{Corpus, Counts, Ngram};
use super::{check, tokens};
use crate::Result;

/// Longest n-gram.
const ORDER: usize = 5;

/// Computes NIST of the corpus, as NLTK's `corpus_nist` on 13a words with their case (sacrebleu's
/// tokenisation).
///
/// An order without any n-gram in the hypotheses counts 0, where NLTK divides by zero; the score is
/// 0 if the references have no words.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn nist(hypotheses: &[String], references: &[Vec<String>]) -> Result<f64> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::mteval_13a, ORDER);
    let information = information(&corpus);

    let (mut matched, mut totals) = ([0.0; ORDER], [0; ORDER]);
    let (mut hypothesis_length, mut reference_length) = (0, 0);
    let (mut counts, mut counts_there) = (Counts::new(&corpus), Counts::new(&corpus));
    for (hypothesis, references) in &corpus.rows {
        counts.fill(hypothesis);
        // by order: the information shared with the best reference, and that reference's length
        let mut best = [(0.0, 0); ORDER];
        for reference in references {
            counts_there.fill(reference);
            let mut common = [0.0; ORDER];
            for (id, count) in counts.iter() {
                let both = count.min(counts_there.get(id));
                common[corpus.ngrams[id as usize].order - 1] += information[id as usize] * f64::from(both);
            }
            // NLTK chooses the reference anew for each order, the longer of two equally good ones
            for (best, common) in best.iter_mut().zip(common) {
                let this = (common, reference.words().len());
                if this > *best {
                    *best = this;
                }
            }
        }
        for (n, (common, length)) in best.into_iter().enumerate() {
            matched[n] += common;
            totals[n] += hypothesis.total(n + 1);
            hypothesis_length += hypothesis.words().len();
            reference_length += length;
        }
    }
    let mut precision = 0.0;
    for (sum, total) in matched.into_iter().zip(totals) {
        if total > 0 {
            precision += sum / total as f64;
        }
    }
    Ok(precision * length_penalty(hypothesis_length, reference_length))
}

/// Returns, by id, the information in bits that an n-gram of the references adds to the words
/// before its last; 0 for others.
fn information(corpus: &Corpus) -> Vec<f64> {
    let mut counts = vec![0u64; corpus.ngrams.len()];
    let mut words = 0;
    for reference in corpus.rows.iter().flat_map(|(_, references)| references) {
        words += reference.words().len() as u64;
        reference.ids().iter().for_each(|&id| counts[id as usize] += 1);
    }
    let bits = |(ngram, &count): (&Ngram, &u64)| {
        if count == 0 {
            return 0.0;
        }
        let of = ngram.before.map_or(words, |before| counts[before as usize]);
        // Python's log(x, 2), to the bit: the choice between equally good references depends on it
        (of as f64 / count as f64).ln() / 2f64.ln()
    };
    corpus.ngrams.iter().zip(&counts).map(bits).collect()
}

/// Returns 1 for hypotheses as long as the references, 0.5 for two thirds of their length.
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
        // the one word has log2(2 / 1) bits; there are no pairs of words, at which NLTK fails
        let found = nist(&["alpha".into()], &[vec!["alpha".into(), "beta".into()]]).expect("a value");
        assert_eq!(found, 1.0);
    }
}
