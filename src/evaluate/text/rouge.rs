//! ROUGE (Lin 2004) as Google's rouge-score computes it, without stemming: F-measures of the best reference.

use std::collections::HashMap;

use super::ngrams::{Corpus, Counts, total};
use super::{check, tokens};
use crate::Result;

/// F-measures from 0 to 1: of each row that of its best reference, and their mean over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// Single words.
    pub rouge1: f64,
    /// Pairs of words.
    pub rouge2: f64,
    /// The longest common subsequence of words.
    pub rouge_l: f64,
    /// The same between lines, joined over a summary's lines.
    pub rouge_lsum: f64,
}

/// ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum as rouge-score's `score_multi` with `use_stemmer=False`.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn rouge(hypotheses: &[String], references: &[Vec<String>]) -> Result<Rouge> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::rouge);
    let mut sums = [0.0; 4];
    for (row, (hypothesis, words_of_references)) in corpus.rows.iter().enumerate() {
        let counts = Counts::new(hypothesis, 2);
        let mut best = [0.0f64; 4];
        for (reference, text) in words_of_references.iter().zip(&references[row]) {
            let [one, two] = common(&counts, reference);
            let longest = longest_common(hypothesis, reference);
            let f =
                |hits, order| f_measure(hits, total(hypothesis.len(), order), total(reference.len(), order));
            let by_lines = if hypotheses[row].contains('\n') || text.contains('\n') {
                by_lines(&hypotheses[row], text)
            } else {
                // one line each: the same subsequence
                f(longest, 1)
            };
            for (best, f) in best.iter_mut().zip([f(one, 1), f(two, 2), f(longest, 1), by_lines]) {
                *best = best.max(f);
            }
        }
        for (sum, best) in sums.iter_mut().zip(best) {
            *sum += best;
        }
    }
    let [rouge1, rouge2, rouge_l, rouge_lsum] = sums.map(|sum| sum / hypotheses.len() as f64);
    Ok(Rouge { rouge1, rouge2, rouge_l, rouge_lsum })
}

/// The harmonic mean of hits among the hypothesis's and among the reference's.
fn f_measure(hits: usize, hypothesis: usize, reference: usize) -> f64 {
    if hits == 0 {
        return 0.0;
    }
    let (precision, recall) = (hits as f64 / hypothesis as f64, hits as f64 / reference as f64);
    2.0 * precision * recall / (precision + recall)
}

/// How many words, and how many pairs, both have.
fn common(hypothesis: &Counts, reference: &[u32]) -> [usize; 2] {
    let mut hits = [0; 2];
    for (ngram, count) in Counts::new(reference, 2).iter() {
        hits[ngram.len() - 1] += count.min(hypothesis.get(ngram)) as usize;
    }
    hits
}

/// The length of the longest common subsequence.
fn longest_common(a: &[u32], b: &[u32]) -> usize {
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if word == other { diagonal + 1 } else { above.max(lengths[j]) };
            diagonal = above;
        }
    }
    lengths[b.len()]
}

/// ROUGE-Lsum of one text: for each line of the reference, the words that are in its longest common subsequence with any
/// line of the hypothesis, no word counted more often than either text has it.
fn by_lines(hypothesis: &str, reference: &str) -> f64 {
    let lines = |text: &str| -> Vec<String> { text.split('\n').map(str::to_owned).collect() };
    let corpus =
        Corpus::new(&[String::new()], &[[lines(hypothesis), lines(reference)].concat()], tokens::rouge);
    let (hypothesis, reference) = corpus.rows[0].1.split_at(lines(hypothesis).len());
    let count = |lines: &[Vec<u32>]| {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        lines.iter().flatten().for_each(|&word| *counts.entry(word).or_insert(0) += 1);
        counts
    };
    let (mut left_in_hypothesis, mut left_in_reference) = (count(hypothesis), count(reference));
    let mut hits = 0;
    for line in reference {
        let mut taken = vec![false; line.len()];
        hypothesis.iter().for_each(|other| mark_longest_common(line, other, &mut taken));
        for (word, _) in line.iter().zip(taken).filter(|(_, taken)| *taken) {
            if let (Some(a @ 1..), Some(b @ 1..)) =
                (left_in_hypothesis.get_mut(word), left_in_reference.get_mut(word))
            {
                (*a, *b) = (*a - 1, *b - 1);
                hits += 1;
            }
        }
    }
    let words = |lines: &[Vec<u32>]| lines.iter().map(Vec::len).sum();
    f_measure(hits, words(hypothesis), words(reference))
}

/// Marks the places in `a` of one longest common subsequence with `b`. Of several as long it is the one that rouge-score
/// takes, on which the union over lines depends.
fn mark_longest_common(a: &[u32], b: &[u32], taken: &mut [bool]) {
    // whether the way back from (i, j), where the words differ, drops b's word and not a's
    let mut drops_b = vec![false; a.len() * b.len()];
    let (mut above, mut row) = (vec![0; b.len() + 1], vec![0; b.len() + 1]);
    for (i, word) in a.iter().enumerate() {
        for (j, other) in b.iter().enumerate() {
            row[j + 1] = if word == other { above[j] + 1 } else { row[j].max(above[j + 1]) };
            drops_b[i * b.len() + j] = row[j] > above[j + 1];
        }
        std::mem::swap(&mut above, &mut row);
    }
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            taken[i - 1] = true;
            (i, j) = (i - 1, j - 1);
        } else if drops_b[(i - 1) * b.len() + j - 1] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_may_stand_in_another_order() {
        let found = rouge(&["two three\none".into()], &[vec!["one\ntwo three".into()]]).expect("scores");
        assert_eq!((found.rouge_lsum, found.rouge1), (1.0, 1.0));
        assert!((found.rouge_l - 2.0 / 3.0).abs() < 1e-15, "{found:?}");
    }

    #[test]
    fn each_score_takes_its_own_best_reference() {
        let references = vec![vec!["b a".to_owned(), "a b c d e f".to_owned()]];
        let found = rouge(&["a b".into()], &references).expect("scores");
        // rouge1 of the first, rouge2 of the second
        assert_eq!(found.rouge1, 1.0);
        assert!((found.rouge2 - 2.0 / 6.0).abs() < 1e-15, "{found:?}");
    }
}
