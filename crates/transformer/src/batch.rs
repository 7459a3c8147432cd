//! What passes are given: packed sequences and texts, what is to be learned of them, and dropout.

use lora_drop_compute::device;
use lora_drop_compute::random::{Dropout, Key};

use crate::drops::DropoutPlan;

/// Packed sequences.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// (tokens)
    pub ids: &'a [u32],
    /// (tokens); ignored where the model has no token types
    pub types: &'a [u32],
    /// Where sequences start, and the end: (sequences + 1).
    pub offsets: &'a [usize],
}

/// Packed texts.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// (tokens)
    pub ids: &'a [u32],
    /// Where texts start, and the end: (texts + 1).
    pub offsets: &'a [usize],
    /// Whether a token is to be predicted from those before it: (tokens). A text's first never is.
    pub learn: &'a [bool],
}

impl<'a> Texts<'a> {
    /// The rows that predict a learned token, and these tokens.
    pub(crate) fn targets(&self) -> (Vec<usize>, Vec<u32>) {
        let learned = |ends: &[usize]| (ends[0] + 1..ends[1]).filter(|&i| self.learn[i]).collect::<Vec<_>>();
        let tokens = self.offsets.windows(2).flat_map(learned);
        tokens.map(|i| (i - 1, self.ids[i])).unzip()
    }

    /// How many tokens are learned.
    pub fn learned(&self) -> usize {
        self.targets().0.len()
    }

    pub(crate) fn sequences(&self) -> Sequences<'a> {
        Sequences { ids: self.ids, types: &[], offsets: self.offsets }
    }
}

/// What a head's outputs should be.
#[derive(Clone, Copy)]
pub enum Targets<'a> {
    Classes(&'a [usize]),
    Values(&'a [f32]),
}

/// Probabilities of dropout in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutRates {
    pub hidden: f64,
    pub attention: f64,
    pub head: f64,
    pub lora: f64,
}

impl DropoutRates {
    pub const NONE: DropoutRates = DropoutRates { hidden: 0.0, attention: 0.0, head: 0.0, lora: 0.0 };

    /// In a pass over sequences with these keys.
    pub(crate) fn drops<'a>(&self, keys: &'a [Key], offsets: &[usize]) -> DropoutPlan<'a> {
        assert_eq!(keys.len() + 1, offsets.len());
        let [hidden, attention, head, lora] =
            [self.hidden, self.attention, self.head, self.lora].map(Dropout::new);
        DropoutPlan { hidden, attention, head, lora, keys }
    }
}

/// A part of an optimiser step's batch, for a model with a head.
#[derive(Clone, Copy)]
pub struct TrainPart<'a> {
    pub sequences: Sequences<'a>,
    pub targets: Targets<'a>,
    pub label_smoothing: f64,
    /// Sequences of the whole step, over which the loss is the mean.
    pub total: usize,
    pub dropout: DropoutRates,
    /// One per sequence: of this run, step and the sequence's place in the step.
    pub keys: &'a [Key],
    /// Keep only the blocks' inputs and recompute everything else in the backward pass.
    pub recompute: bool,
    /// The lower blocks' output from an earlier pass over these sequences; None computes them.
    pub below: Option<PrefixOutput<'a>>,
}

impl TrainPart<'_> {
    pub(crate) fn targets(&self) -> device::Targets<'_> {
        let (smoothing, total) = (self.label_smoothing, self.total);
        match self.targets {
            Targets::Classes(labels) => device::Targets::Classes { labels, smoothing, total },
            Targets::Values(values) => device::Targets::Values { values, total },
        }
    }
}

/// The same for a decoder that predicts tokens.
#[derive(Clone, Copy)]
pub struct TextPart<'a> {
    pub texts: Texts<'a>,
    /// Learned tokens of the whole step, over which the loss is the mean.
    pub total: usize,
    pub dropout: DropoutRates,
    /// One per text: of this run, step and the text's place in the step.
    pub keys: &'a [Key],
    /// As in `TrainPart`.
    pub recompute: bool,
    pub below: Option<PrefixOutput<'a>>,
}

/// What the lowest blocks make of a pass's sequences, where nothing in them trains or is dropped.
#[derive(Clone, Copy)]
pub struct PrefixOutput<'a> {
    /// How many blocks it is the output of, at least 1.
    pub blocks: usize,
    /// (tokens, hidden)
    pub output: &'a [f32],
}
