//! The inputs of passes: packed sequences and texts, their targets, and dropout.

use lora_drop_compute::device;
use lora_drop_compute::random::{Dropout, Key};

use crate::dropout::DropoutPlan;

/// Packed sequences: one after the other, without padding.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// Token numbers, (tokens).
    pub ids: &'a [u32],
    /// Token types, (tokens); not read by models without them.
    pub types: &'a [u32],
    /// The starts of sequences, and the end of the last: (sequences + 1).
    pub offsets: &'a [usize],
    /// The tokens that a head for tokens reads, ascending; empty for other models.
    pub labelled: &'a [usize],
}

/// Packed texts: one after the other, without padding.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// Token numbers, (tokens).
    pub ids: &'a [u32],
    /// The starts of texts, and the end of the last: (texts + 1).
    pub offsets: &'a [usize],
    /// Whether a token is a target, predicted from those before it: (tokens). The first of a text
    /// never is.
    pub learn: &'a [bool],
}

impl<'a> Texts<'a> {
    /// Returns the rows that predict a target, and the targets' token numbers.
    pub(crate) fn targets(&self) -> (Vec<usize>, Vec<u32>) {
        let learned = |ends: &[usize]| (ends[0] + 1..ends[1]).filter(|&i| self.learn[i]).collect::<Vec<_>>();
        let tokens = self.offsets.windows(2).flat_map(learned);
        tokens.map(|i| (i - 1, self.ids[i])).unzip()
    }

    /// Number of targets.
    pub fn learned(&self) -> usize {
        self.targets().0.len()
    }

    pub(crate) fn sequences(&self) -> Sequences<'a> {
        Sequences { ids: self.ids, types: &[], offsets: self.offsets, labelled: &[] }
    }
}

/// The targets of a head's outputs, one for each sequence or labelled token.
#[derive(Clone, Copy)]
pub enum Targets<'a> {
    /// Class numbers, for cross-entropy.
    Classes(&'a [usize]),
    /// Whether a sequence has each class, (sequences, classes), for binary cross-entropy.
    Sets(&'a [bool]),
    /// Values of a regression, for the squared error.
    Values(&'a [f32]),
}

/// Probabilities of dropout in training, each in [0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutRates {
    /// On embeddings and on the outputs of sub-layers.
    pub hidden: f64,
    /// On attention probabilities.
    pub attention: f64,
    /// In the head for labels.
    pub head: f64,
    /// On the adapters' inputs.
    pub lora: f64,
}

impl DropoutRates {
    /// No dropout.
    pub const NONE: DropoutRates = DropoutRates { hidden: 0.0, attention: 0.0, head: 0.0, lora: 0.0 };

    /// Returns the dropout of a pass over sequences with these keys.
    pub(crate) fn plan<'a>(&self, keys: &'a [Key], offsets: &[usize]) -> DropoutPlan<'a> {
        assert_eq!(keys.len() + 1, offsets.len());
        let [hidden, attention, head, lora] =
            [self.hidden, self.attention, self.head, self.lora].map(Dropout::new);
        DropoutPlan { hidden, attention, head, lora, keys }
    }
}

/// A micro-batch: a part of an optimiser step's batch, for a model with a head.
#[derive(Clone, Copy)]
pub struct TrainPart<'a> {
    pub sequences: Sequences<'a>,
    /// A target for each sequence or labelled token.
    pub targets: Targets<'a>,
    /// The weights of classes in the loss, (classes); empty for 1.
    pub weights: &'a [f64],
    /// Share of the target probability that is spread over all classes.
    pub label_smoothing: f64,
    /// Divisor of the sum of the losses, which all micro-batches of a step share.
    pub total: f64,
    pub dropout: DropoutRates,
    /// A key for each sequence, from the seed, the step and the sequence's place in the step.
    pub keys: &'a [Key],
    /// Whether only the blocks' inputs are saved and everything else is recomputed in the backward
    /// pass.
    pub recompute: bool,
    /// The output of the lower blocks from an earlier pass over these sequences; None computes it.
    pub prefix: Option<PrefixOutput<'a>>,
}

impl TrainPart<'_> {
    pub(crate) fn targets(&self) -> device::Targets<'_> {
        let (weights, smoothing, total) = (self.weights, self.label_smoothing, self.total);
        match self.targets {
            Targets::Classes(labels) => device::Targets::Classes { labels, weights, smoothing, total },
            Targets::Sets(has) => device::Targets::Sets { has, weights, total },
            Targets::Values(values) => device::Targets::Values { values, total },
        }
    }
}

/// A micro-batch for a decoder that predicts tokens.
#[derive(Clone, Copy)]
pub struct TextPart<'a> {
    pub texts: Texts<'a>,
    /// Number of targets of the whole step, over which the loss is the mean.
    pub total: usize,
    pub dropout: DropoutRates,
    /// A key for each text, from the seed, the step and the text's place in the step.
    pub keys: &'a [Key],
    /// See [`TrainPart::recompute`].
    pub recompute: bool,
    /// See [`TrainPart::prefix`].
    pub prefix: Option<PrefixOutput<'a>>,
}

/// Output of the lowest blocks for the sequences of a pass. Nothing in these blocks trains or has
/// dropout.
#[derive(Clone, Copy)]
pub struct PrefixOutput<'a> {
    /// Number of these blocks, at least 1.
    pub blocks: usize,
    /// Hidden states, (tokens, hidden).
    pub output: &'a [f32],
}
