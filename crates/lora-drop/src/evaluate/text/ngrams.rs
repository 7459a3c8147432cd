//! Texts as ids: every n-gram of a corpus has an id, so counts are a list indexed by id.

use std::collections::HashMap;

/// An n-gram of the corpus; its id is its index in [`Corpus::ngrams`].
pub(super) struct Ngram {
    /// Number of words.
    pub order: usize,
    /// The id of the n-gram without its last word.
    pub before: Option<u32>,
}

/// All rows of a measurement. Equal n-grams of any text have equal ids.
pub(super) struct Corpus {
    /// The hypothesis and the references of each row.
    pub rows: Vec<(Text, Vec<Text>)>,
    pub ngrams: Vec<Ngram>,
}

/// The ids of a text's n-grams: shorter before longer, then by position.
pub(super) struct Text {
    words: usize,
    ids: Vec<u32>,
}

impl Text {
    /// Returns the ids of its words.
    pub fn words(&self) -> &[u32] {
        &self.ids[..self.words]
    }

    /// Returns the ids of its n-grams of all orders.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of its n-grams of this order.
    pub fn total(&self, order: usize) -> usize {
        (self.words + 1).saturating_sub(order)
    }
}

impl Corpus {
    /// Cuts every text with `tokenize` and numbers its n-grams up to `longest` words. There are as
    /// many rows of references as hypotheses.
    pub fn new(
        hypotheses: &[String],
        references: &[Vec<String>],
        tokenize: fn(&str) -> Vec<String>,
        longest: usize,
    ) -> Self {
        let mut ids = Ids::default();
        let mut text = |text: &String| ids.text(tokenize(text), longest);
        let rows = hypotheses.iter().zip(references);
        let rows = rows.map(|(of, by)| (text(of), by.iter().map(&mut text).collect())).collect();
        Corpus { rows, ngrams: ids.ngrams }
    }
}

/// The ids given so far.
#[derive(Default)]
struct Ids {
    words: HashMap<String, u32>,
    /// Ids of longer n-grams, by the id of all words but the last and the id of the last word.
    longer: HashMap<(u32, u32), u32>,
    ngrams: Vec<Ngram>,
}

impl Ids {
    fn text(&mut self, words: Vec<String>, longest: usize) -> Text {
        let ngrams = &mut self.ngrams;
        let mut next = |order, before| {
            ngrams.push(Ngram { order, before });
            (ngrams.len() - 1) as u32
        };
        let mut ids = Vec::with_capacity(words.len() * longest);
        let count = words.len();
        for word in words {
            ids.push(*self.words.entry(word).or_insert_with(|| next(1, None)));
        }
        let mut shorter = 0;
        for order in 2..=longest.min(count) {
            let start = ids.len();
            for place in 0..=count - order {
                let (before, last) = (ids[shorter + place], ids[place + order - 1]);
                ids.push(*self.longer.entry((before, last)).or_insert_with(|| next(order, Some(before))));
            }
            shorter = start;
        }
        Text { words: count, ids }
    }
}

/// Counts of the n-grams of one text. Created once for a corpus, refilled for each text.
pub(super) struct Counts {
    /// Counts by id.
    counts: Vec<u32>,
    /// The ids with a count, in order of first occurrence, so that sums over them are in the order
    /// of the Python packages.
    seen: Vec<u32>,
}

impl Counts {
    pub fn new(corpus: &Corpus) -> Self {
        Counts { counts: vec![0; corpus.ngrams.len()], seen: Vec::new() }
    }

    /// Replaces all counts by those of this text.
    pub fn fill(&mut self, text: &Text) {
        self.clear();
        for &id in text.ids() {
            self.raise(id, self.get(id) + 1);
        }
    }

    pub fn clear(&mut self) {
        for id in self.seen.drain(..) {
            self.counts[id as usize] = 0;
        }
    }

    /// Raises a count to `to` if it is less. `to` is not 0.
    pub fn raise(&mut self, id: u32, to: u32) {
        let count = &mut self.counts[id as usize];
        if *count == 0 {
            self.seen.push(id);
        }
        *count = to.max(*count);
    }

    /// Returns the count, 0 if the n-gram does not occur.
    pub fn get(&self, id: u32) -> u32 {
        self.counts[id as usize]
    }

    /// Iterates over ids and counts, shorter n-grams before longer, then by first occurrence.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.seen.iter().map(|&id| (id, self.get(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ngrams_have_equal_ids() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let corpus =
            Corpus::new(&["b a b a".into()], &[vec!["x b a".into(), "x".into(), "".into()]], words, 3);
        let (hypothesis, references) = &corpus.rows[0];
        // b a, then "b a" and "a b", then "b a b" and "a b a"
        assert_eq!(hypothesis.ids(), [0, 1, 0, 1, 2, 3, 2, 4, 5]);
        assert_eq!(references[0].ids(), [6, 0, 1, 7, 2, 8]);
        assert_eq!((references[1].ids(), references[2].ids()), (&[6][..], &[][..]));
        assert_eq!(references[0].words(), [6, 0, 1]);
        assert_eq!([1, 2, 3, 4].map(|n| references[0].total(n)), [3, 2, 1, 0]);
        assert_eq!(corpus.ngrams.iter().map(|n| n.order).collect::<Vec<_>>(), [1, 1, 2, 2, 3, 3, 1, 2, 3]);
        assert_eq!([0, 3, 5].map(|id: usize| corpus.ngrams[id].before), [None, Some(1), Some(3)]);
    }

    #[test]
    fn counts_are_of_the_last_text() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let corpus = Corpus::new(&["b a b".into()], &[vec!["a a".into()]], words, 2);
        let (hypothesis, references) = &corpus.rows[0];
        let mut counts = Counts::new(&corpus);
        counts.fill(&references[0]);
        counts.fill(hypothesis);
        assert_eq!(counts.iter().collect::<Vec<_>>(), [(0, 2), (1, 1), (2, 1), (3, 1)]);
        counts.raise(1, 3);
        counts.raise(0, 1);
        assert_eq!([0, 1, 4].map(|id| counts.get(id)), [2, 3, 0]);
    }
}
