//! Examples → packed batches: sequences end to end without padding. An optimiser step's rows are
//! drawn at random; lengths decide only how a step is cut into micro-batches, so batches are even
//! in size and random in content.

use super::dataset::Example;
use super::labels::Label;
use super::random::{Stream, stream};

/// Sequences end to end, without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBatch {
    /// Token ids, (tokens).
    pub ids: Vec<u32>,
    /// Token types, (tokens), for models that have them.
    pub types: Vec<u32>,
    /// The starts of sequences, and the end of the last, (sequences + 1).
    pub offsets: Vec<usize>,
    /// Indices of the tokens that have labels, in token classification.
    pub labelled: Vec<usize>,
    /// One label for each sequence; empty for rows without labels.
    pub labels: Vec<Label>,
}

impl PackedBatch {
    /// Packs the examples of these indices.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn pack(examples: &[Example], rows: &[usize]) -> Self {
        let mut batch = PackedBatch { offsets: vec![0], ..PackedBatch::default() };
        for example in rows.iter().map(|&row| &examples[row]) {
            let start = batch.ids.len();
            batch.labelled.extend(example.labelled.iter().map(|&place| start + place as usize));
            batch.ids.extend_from_slice(&example.ids);
            batch.types.extend_from_slice(&example.types);
            batch.offsets.push(batch.ids.len());
            batch.labels.extend(example.label.clone());
        }
        batch
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Returns the order of `rows` in an epoch (from 0): a shuffle that depends only on (seed, purpose,
/// epoch). `purpose` is different for the sample stage and the training stage.
pub fn epoch_order(rows: &[usize], seed: u64, purpose: u64, epoch: u64) -> Vec<usize> {
    let mut order = rows.to_vec();
    let key = Stream::new(stream::EPOCH_ORDER, purpose).value(epoch);
    Stream::new(seed, key).shuffle(&mut order);
    order
}

/// Cuts an epoch's order into optimiser steps of `batch_size` rows (at least 1); the last may be
/// smaller.
pub fn steps(order: &[usize], batch_size: usize) -> std::slice::Chunks<'_, usize> {
    order.chunks(batch_size.max(1))
}

/// Cuts a step into micro-batches of at most `budget` tokens: as few as a greedy division finds,
/// about equally full, and, if there are enough sequences, in a number that is a multiple of
/// `multiple`. `lengths` are the step's sequence lengths by slot; every slot occurs once. Slots
/// ascend within a micro-batch, and micro-batches are ordered by their first slots. A sequence
/// longer than the budget gets a micro-batch of its own, after the others and not counted in the
/// multiple.
pub fn micro_batches(lengths: &[usize], budget: usize, multiple: usize) -> Vec<Vec<usize>> {
    let (fitting, over): (Vec<usize>, Vec<usize>) = (0..lengths.len()).partition(|&s| lengths[s] <= budget);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut descending = fitting;
    descending.sort_by_key(|&slot| (std::cmp::Reverse(lengths[slot]), slot));
    let tokens: usize = descending.iter().map(|&slot| lengths[slot]).sum();
    if !descending.is_empty() {
        let fewest = tokens.div_ceil(budget.max(1)).max(1).next_multiple_of(multiple).min(descending.len());
        let even = (fewest..=descending.len())
            .filter(|parts| parts.is_multiple_of(multiple) || *parts == fewest)
            .find_map(|parts| divide(&descending, lengths, parts, budget));
        // With one part for each sequence the division cannot fail, as every sequence fits.
        batches.extend(even.unwrap_or_else(|| descending.iter().map(|&slot| vec![slot]).collect()));
    }
    batches.iter_mut().for_each(|slots| slots.sort_unstable());
    batches.sort_unstable();
    batches.extend(over.into_iter().map(|slot| vec![slot]));
    batches
}

/// Gives each sequence, longest first, to the part with the fewest tokens, ties to the first part;
/// `None` if a part would exceed `budget`.
fn divide(descending: &[usize], lengths: &[usize], parts: usize, budget: usize) -> Option<Vec<Vec<usize>>> {
    let mut slots = vec![Vec::new(); parts];
    let mut least: std::collections::BinaryHeap<_> = (0..parts).map(|p| std::cmp::Reverse((0, p))).collect();
    for &slot in descending {
        let std::cmp::Reverse((tokens, part)) = least.pop()?;
        let tokens = tokens + lengths[slot];
        if tokens > budget {
            return None;
        }
        slots[part].push(slot);
        least.push(std::cmp::Reverse((tokens, part)));
    }
    slots.retain(|part: &Vec<usize>| !part.is_empty());
    Some(slots)
}

/// Groups rows of similar length into micro-batches of at most `budget` tokens for evaluation. A
/// sequence longer than the budget gets its own micro-batch. Returns the rows' indices.
pub fn evaluation_batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| (lengths[row], row));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for row in order {
        match batches.last_mut() {
            Some(batch) if tokens + lengths[row] <= budget => batch.push(row),
            _ => {
                batches.push(vec![row]);
                tokens = 0;
            }
        }
        tokens += lengths[row];
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(ids: &[u32], label: Option<Label>) -> Example {
        Example {
            ids: ids.to_vec(),
            types: vec![0; ids.len()],
            labelled: Vec::new(),
            label,
            file: 0,
            line: 1,
        }
    }

    #[test]
    fn packs_end_to_end() {
        let class = |c| Some(Label::Class(c));
        let examples = [example(&[1, 2], class(0)), example(&[3], class(1)), example(&[4, 5, 6], class(0))];
        let batch = PackedBatch::pack(&examples, &[2, 1]);
        assert_eq!(batch.ids, [4, 5, 6, 3]);
        assert_eq!(batch.types.len(), 4);
        assert_eq!(batch.offsets, [0, 3, 4]);
        assert_eq!(batch.labels, [Label::Class(0), Label::Class(1)]);
        assert_eq!(batch.tokens(), 4);
    }

    #[test]
    fn unlabelled_rows_pack_without_labels() {
        let batch = PackedBatch::pack(&[example(&[1, 2], None)], &[0]);
        assert!(batch.labels.is_empty());
        assert_eq!(batch.offsets, [0, 2]);
    }

    #[test]
    fn epochs_seeds_and_purposes_differ() {
        let rows: Vec<usize> = (0..100).collect();
        let base = epoch_order(&rows, 0, 0, 0);
        for other in [epoch_order(&rows, 1, 0, 0), epoch_order(&rows, 0, 1, 0), epoch_order(&rows, 0, 0, 1)] {
            assert_ne!(base, other);
        }
        assert_eq!(base, epoch_order(&rows, 0, 0, 0));
        let mut sorted = base.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, rows);
        assert_eq!(steps(&base, 32).map(<[usize]>::len).collect::<Vec<_>>(), [32, 32, 32, 4]);
    }

    #[test]
    fn micro_batches_are_even() {
        // 24 tokens need two micro-batches of 12; greedy division fills both.
        assert_eq!(micro_batches(&[6, 6, 4, 4, 2, 2], 12, 1), [vec![0, 2, 4], vec![1, 3, 5]]);
        assert_eq!(micro_batches(&[3, 50, 3], 10, 1), [vec![0, 2], vec![1]]);
        assert!(micro_batches(&[], 10, 2).is_empty());
        // An even number, if there are enough sequences.
        assert_eq!(micro_batches(&[4, 4, 4, 4], 100, 2), [vec![0, 2], vec![1, 3]]);
        assert_eq!(micro_batches(&[5, 5, 5, 5, 5], 10, 2).len(), 4);
        assert_eq!(micro_batches(&[5], 10, 2), [vec![0]]);
        assert_eq!(micro_batches(&[8, 8, 8], 10, 2).len(), 3);
    }

    proptest! {
        #[test]
        fn micro_batches_hold_every_slot_once(lengths in prop::collection::vec(1usize..300, 0..80), budget in 1usize..2000) {
            for batches in [micro_batches(&lengths, budget, 1), micro_batches(&lengths, budget, 2), evaluation_batches(&lengths, budget)] {
                let mut seen: Vec<usize> = batches.concat();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
                for batch in &batches {
                    let tokens: usize = batch.iter().map(|&s| lengths[s]).sum();
                    prop_assert!(!batch.is_empty() && (tokens <= budget || batch.len() == 1));
                }
            }
        }

        #[test]
        fn micro_batches_differ_by_one_sequence(lengths in prop::collection::vec(1usize..100, 1..80), budget in 100usize..2000) {
            let batches = micro_batches(&lengths, budget, 1);
            let tokens: Vec<usize> = batches.iter().map(|b| b.iter().map(|&s| lengths[s]).sum()).collect();
            let spread = tokens.iter().max().unwrap() - tokens.iter().min().unwrap();
            prop_assert!(spread <= *lengths.iter().max().unwrap());
        }
    }
}
