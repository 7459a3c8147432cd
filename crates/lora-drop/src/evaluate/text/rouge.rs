//! ROUGE (Lin 2004) as Google's rouge-score computes it, without stemming: F-measures of the best
//! reference.

use super::ngrams::{Corpus, Counts, Text};
use super::{check, tokens};
use crate::Result;

/// F-measures from 0 to 1, each the mean over rows of the best reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// ROUGE-1: single words.
    pub rouge1: f64,
    /// ROUGE-2: pairs of words.
    pub rouge2: f64,
    /// ROUGE-L: the longest common subsequence of words.
    pub rouge_l: f64,
    /// ROUGE-Lsum: the same between lines, joined over a summary's lines.
    pub rouge_lsum: f64,
}

/// Computes ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum as rouge-score's `score_multi` with
/// `use_stemmer=False`.
///
/// # Errors
/// See [`evaluate`](super::evaluate).
pub fn rouge(hypotheses: &[String], references: &[Vec<String>]) -> Result<Rouge> {
    check(hypotheses, references)?;
    let corpus = Corpus::new(hypotheses, references, tokens::rouge, 2);
    let (mut counts, mut counts_there) = (Counts::new(&corpus), Counts::new(&corpus));
    let mut sums = [0.0; 4];
    for (row, (hypothesis, of_row)) in corpus.rows.iter().enumerate() {
        counts.fill(hypothesis);
        let mut best = [0.0f64; 4];
        for (reference, text) in of_row.iter().zip(&references[row]) {
            counts_there.fill(reference);
            let mut common = [0; 2];
            for (id, count) in counts.iter() {
                common[corpus.ngrams[id as usize].order - 1] += count.min(counts_there.get(id)) as usize;
            }
            let f = |hits, order| f_measure(hits, hypothesis.total(order), reference.total(order));
            let longest = f(longest_common(hypothesis.words(), reference.words()), 1);
            // with one line each, ROUGE-Lsum is ROUGE-L
            let one_line = !hypotheses[row].contains('\n') && !text.contains('\n');
            let lines = if one_line { longest } else { by_lines(&hypotheses[row], text) };
            for (best, f) in best.iter_mut().zip([f(common[0], 1), f(common[1], 2), longest, lines]) {
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

/// Returns the harmonic mean of hits / hypothesis and hits / reference.
fn f_measure(hits: usize, hypothesis: usize, reference: usize) -> f64 {
    if hits == 0 {
        return 0.0;
    }
    let (precision, recall) = (hits as f64 / hypothesis as f64, hits as f64 / reference as f64);
    2.0 * precision * recall / (precision + recall)
}

/// Returns the length of the longest common subsequence.
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

/// Returns ROUGE-Lsum of one text: for each line of the reference, the words that are in its
/// longest common subsequence with any line of the hypothesis, no word counted more often than
/// either text has it.
fn by_lines(hypothesis: &str, reference: &str) -> f64 {
    let lines = |text: &str| -> Vec<String> { text.split('\n').map(str::to_owned).collect() };
    let (mut hypothesis, reference) = (lines(hypothesis), lines(reference));
    let own = hypothesis.len();
    hypothesis.extend(reference);
    let corpus = Corpus::new(&[String::new()], &[hypothesis], tokens::rouge, 1);
    let (hypothesis, reference) = corpus.rows[0].1.split_at(own);
    let count = |lines: &[Text]| {
        let mut counts = vec![0; corpus.ngrams.len()];
        lines.iter().flat_map(Text::words).for_each(|&word| counts[word as usize] += 1);
        counts
    };
    let (mut left_here, mut left_there): (Vec<u32>, Vec<u32>) = (count(hypothesis), count(reference));
    let mut hits = 0;
    for line in reference {
        let mut taken = vec![false; line.words().len()];
        hypothesis.iter().for_each(|other| mark_longest_common(line.words(), other.words(), &mut taken));
        for (&word, _) in line.words().iter().zip(taken).filter(|(_, taken)| *taken) {
            let (here, there) = (&mut left_here[word as usize], &mut left_there[word as usize]);
            if *here > 0 && *there > 0 {
                (*here, *there) = (*here - 1, *there - 1);
                hits += 1;
            }
        }
    }
    let words = |lines: &[Text]| lines.iter().map(|line| line.words().len()).sum();
    f_measure(hits, words(hypothesis), words(reference))
}

/// Marks the words of `a` that are in one longest common subsequence with `b`. Of several equally
/// long ones it is the one that rouge-score takes, on which the union over lines depends.
fn mark_longest_common(a: &[u32], b: &[u32], taken: &mut [bool]) {
    // whether backtracking from (i, j), where the words differ, drops b's word and not a's
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
