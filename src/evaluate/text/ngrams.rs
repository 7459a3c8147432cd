//! Texts as numbers, and the n-grams in them.

use std::collections::HashMap;

/// All rows with words as numbers: equal words of any row have equal numbers.
pub(super) struct Corpus {
    /// By row: the hypothesis, and its references.
    pub rows: Vec<(Vec<u32>, Vec<Vec<u32>>)>,
}

impl Corpus {
    /// Cuts every text with `tokenize`. As many rows of references as hypotheses.
    pub fn new(hypotheses: &[String], references: &[Vec<String>], tokenize: fn(&str) -> Vec<String>) -> Self {
        let mut numbers = HashMap::new();
        let mut cut = |text: &String| -> Vec<u32> {
            let words = tokenize(text).into_iter();
            words
                .map(|word| {
                    let next = numbers.len() as u32;
                    *numbers.entry(word).or_insert(next)
                })
                .collect()
        };
        let rows = hypotheses.iter().zip(references);
        Corpus { rows: rows.map(|(text, of)| (cut(text), of.iter().map(&mut cut).collect())).collect() }
    }
}

/// The n-grams of `words` from 1 to `longest`, shorter before longer.
pub(super) fn ngrams(words: &[u32], longest: usize) -> impl Iterator<Item = &[u32]> {
    (1..=longest).flat_map(|n| words.windows(n))
}

/// How often each n-gram occurs in a text. A slice's length tells its order.
pub(super) struct Counts<'a> {
    /// Shorter before longer, then by first occurrence: sums over them have one order, that of the Python packages.
    entries: Vec<(&'a [u32], u32)>,
    places: HashMap<&'a [u32], usize>,
}

impl<'a> Counts<'a> {
    /// Counts the n-grams of `words` from 1 to `longest`.
    pub fn new(words: &'a [u32], longest: usize) -> Self {
        let mut counts = Counts { entries: Vec::new(), places: HashMap::new() };
        for ngram in ngrams(words, longest) {
            let place = *counts.places.entry(ngram).or_insert(counts.entries.len());
            match counts.entries.get_mut(place) {
                Some((_, count)) => *count += 1,
                None => counts.entries.push((ngram, 1)),
            }
        }
        counts
    }

    /// The n-grams with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u32], u32)> {
        self.entries.iter().copied()
    }

    /// 0 where it does not occur.
    pub fn get(&self, ngram: &[u32]) -> u32 {
        self.places.get(ngram).map_or(0, |&place| self.entries[place].1)
    }
}

/// How many n-grams of this order a text of `words` words has.
pub(super) fn total(words: usize, order: usize) -> usize {
    (words + 1).saturating_sub(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_order_of_occurrence() {
        let counts = Counts::new(&[7, 3, 7, 3], 2);
        let found: Vec<(&[u32], u32)> = counts.iter().collect();
        assert_eq!(found, [(&[7][..], 2), (&[3][..], 2), (&[7, 3][..], 2), (&[3, 7][..], 1)]);
        assert_eq!((counts.get(&[3, 7]), counts.get(&[7, 7])), (1, 0));
        assert_eq!([total(4, 2), total(1, 1), total(1, 2), total(0, 1), total(0, 4)], [3, 1, 0, 0, 0]);
    }
}
