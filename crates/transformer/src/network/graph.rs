//! A model as data: its weights by name, and segments of operations over values. Embedding, blocks
//! and head are a segment each.
//!
//! Each value is written once. Operations that work in place take over the memory of a value that
//! they read. Which memory is taken over, how long each value lives and what the backward pass
//! needs are derived from the list of operations (`Builder::finish`, `needs`, `walk`); a graph does
//! not state them.

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::Mask;
use lora_drop_compute::device::Relative;

use crate::dropout::{DropoutPlan, Site};
use crate::module::ModuleId;

/// Index of a value in its segment.
pub type ValueId = usize;
/// Index of a linear layer in the network.
pub type LayerId = usize;
/// Index of another weight in the network: a norm's or a table's.
pub type WeightId = usize;

/// The tokens for which a head reads the last block's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// Each sequence's first token.
    #[default]
    First,
    /// Each sequence's last token.
    Last,
    /// The tokens that have labels.
    Labelled,
    /// The tokens before the targets, in chunks, because their logits are wide.
    Learned,
}

/// A model's weights, and its operations from input to output.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// All weights, from input to output.
    pub specs: Vec<WeightSpec>,
    pub layers: Vec<LayerSpec>,
    /// Weights outside linear layers: name and length of their rows.
    pub weights: Vec<(String, usize)>,
    pub embedding: Segment,
    pub blocks: Vec<Segment>,
    pub head: Segment,
    /// Variants of the last block and the head in which only keys and values are computed for all
    /// tokens, and everything else for first tokens.
    pub first: Option<[Segment; 2]>,
    pub hidden: usize,
    pub reads: Reads,
    /// Whether the output layer is the table of word embeddings.
    pub tied: bool,
    /// Weight and sizes of the relative position bias; a pass sets the reach.
    pub relative: Option<(WeightId, Relative)>,
    /// Rotary frequencies for each type of layers: radians per position of each pair of a head's
    /// values; empty if positions have embeddings.
    pub rope: Vec<Vec<f32>>,
}

/// Name and shape of a weight, and the part of the model that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// Name as in checkpoints, without the prefix.
    pub name: String,
    pub shape: Vec<usize>,
    pub place: Place,
}

/// Part of the model that a weight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Body,
    /// BERT's pooler: in the body, and initialised if a checkpoint lacks it.
    Pooler,
    /// A head for labels. Its names have no prefix.
    Head,
    /// The layer that predicts tokens. Its name has no prefix.
    Output,
}

/// Name and shape of a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Start of its weight's and its bias's names, without the prefix.
    pub stem: String,
    pub bias: bool,
    pub input: usize,
    pub output: usize,
    /// Its module; None for heads for labels.
    pub module: Option<ModuleId>,
}

/// The tokens that have a row in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All tokens.
    Tokens,
    /// The tokens that the head reads.
    Chosen,
}

/// A value's shape, (rows, width).
#[derive(Clone, Copy, Debug)]
pub struct Value {
    pub rows: Rows,
    pub width: usize,
}

/// Dropout of an operation: its site, its rate, and how keys are derived.
#[derive(Clone, Copy, Debug)]
pub struct DropoutSpec {
    pub site: Site,
    pub rate: Rate,
    /// Whether each row has a key, derived from its position; otherwise each sequence has one.
    pub by_row: bool,
}

/// Which of a pass's dropout rates applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Hidden,
    Attention,
    Head,
    Lora,
}

impl Rate {
    pub fn of(self, plan: &DropoutPlan) -> lora_drop_compute::random::Dropout {
        match self {
            Rate::Hidden => plan.hidden,
            Rate::Attention => plan.attention,
            Rate::Head => plan.head,
            Rate::Lora => plan.lora,
        }
    }
}

/// Indices that choose rows of a table of embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    Tokens,
    Types,
    /// Positions in the sequence, numbered from this one.
    Positions(u32),
}

/// Sizes and options of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    pub width: usize,
    pub scale: f32,
    pub mask: Mask,
    /// Whether the relative position bias is added to the scores.
    pub biased: bool,
}

/// An operation. `y` is the value that it writes.
#[derive(Clone, Debug)]
pub enum Op {
    /// The sum of one row of each table.
    Embed {
        tables: Vec<(WeightId, Index)>,
        y: ValueId,
    },
    /// The rows that the head reads.
    Gather {
        x: ValueId,
        y: ValueId,
    },
    /// Layers that read the same value, in the order in which their gradients are added up.
    Linear {
        x: ValueId,
        layers: Vec<(LayerId, ValueId)>,
    },
    /// γ · x̂ + β of residual + dropout(x).
    LayerNorm {
        x: ValueId,
        residual: Option<ValueId>,
        dropout: Option<DropoutSpec>,
        gamma: WeightId,
        beta: WeightId,
        epsilon: f32,
        y: ValueId,
    },
    /// (offset + γ) · x̂ for rows as wide as γ; a token's row may consist of several, one per head.
    RmsNorm {
        x: ValueId,
        gamma: WeightId,
        offset: f32,
        epsilon: f32,
        y: ValueId,
    },
    /// Rotary embedding in place, with the frequencies `Graph::rope[rope]`.
    Rotary {
        x: ValueId,
        rope: usize,
        y: ValueId,
    },
    Attention {
        qkv: [ValueId; 3],
        heads: Heads,
        dropout: DropoutSpec,
        y: ValueId,
    },
    /// f(x), in place unless x is saved exactly.
    Activation {
        f: Activation,
        x: ValueId,
        y: ValueId,
    },
    /// f(gate) · up, in place of gate unless gate is saved exactly.
    Gate {
        f: Activation,
        gate: ValueId,
        up: ValueId,
        y: ValueId,
    },
    /// x + branch, in place of branch, which the operation before computed.
    Add {
        x: ValueId,
        branch: ValueId,
        y: ValueId,
    },
    /// factor · x, in place; x is computed in this segment and read by nothing else.
    Scale {
        x: ValueId,
        factor: f32,
        y: ValueId,
    },
    /// Dropout of x, in place if x is computed in this segment and read by nothing else.
    Dropout {
        x: ValueId,
        dropout: DropoutSpec,
        y: ValueId,
    },
}

impl Op {
    /// Returns the values that it reads.
    pub fn reads(&self) -> Vec<ValueId> {
        match *self {
            Op::Embed { .. } => Vec::new(),
            Op::Gather { x, .. }
            | Op::Linear { x, .. }
            | Op::RmsNorm { x, .. }
            | Op::Rotary { x, .. }
            | Op::Activation { x, .. }
            | Op::Scale { x, .. }
            | Op::Dropout { x, .. } => vec![x],
            Op::LayerNorm { x, residual, .. } => residual.into_iter().chain([x]).collect(),
            Op::Attention { qkv, .. } => qkv.to_vec(),
            Op::Gate { gate, up, .. } => vec![gate, up],
            Op::Add { x, branch, .. } => vec![x, branch],
        }
    }

    /// Returns the values that it writes.
    pub fn writes(&self) -> Vec<ValueId> {
        match self {
            Op::Linear { layers, .. } => layers.iter().map(|(_, y)| *y).collect(),
            Op::Embed { y, .. }
            | Op::Gather { y, .. }
            | Op::LayerNorm { y, .. }
            | Op::RmsNorm { y, .. }
            | Op::Rotary { y, .. }
            | Op::Attention { y, .. }
            | Op::Activation { y, .. }
            | Op::Gate { y, .. }
            | Op::Add { y, .. }
            | Op::Scale { y, .. }
            | Op::Dropout { y, .. } => vec![*y],
        }
    }
}

/// When a value's memory passes on to another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenOver {
    Always,
    /// Unless the value is saved exactly.
    UnlessSaved,
}

/// A list of operations from an input to an output value.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    pub ops: Vec<Op>,
    pub values: Vec<Value>,
    /// Value that the segment before has computed; None for embeddings.
    pub input: Option<ValueId>,
    pub output: ValueId,
    /// By value: the operation that computes it; None for the input.
    pub producer: Vec<Option<usize>>,
    /// By value: the last operation that reads it.
    pub last_read: Vec<Option<usize>>,
    /// By value: the value that takes over its memory.
    pub taken_over: Vec<Option<(ValueId, TakenOver)>>,
}

impl Segment {
    /// Returns the table of word embeddings; only for the segment of embeddings.
    pub fn words(&self) -> WeightId {
        match &self.ops[0] {
            Op::Embed { tables, .. } => tables[0].0,
            other => unreachable!("{other:?} begins no model"),
        }
    }
}

/// Builds a segment, one operation at a time.
pub struct Builder {
    ops: Vec<Op>,
    values: Vec<Value>,
    input: Option<ValueId>,
}

impl Builder {
    /// Begins a segment, with a value from the segment before or without one.
    pub fn new(input: Option<Value>) -> Self {
        Builder { ops: Vec::new(), values: input.into_iter().collect(), input: input.map(|_| 0) }
    }

    /// Returns the value from the segment before.
    pub fn input(&self) -> ValueId {
        self.input.expect("the segment has an input")
    }

    fn value(&mut self, rows: Rows, width: usize) -> ValueId {
        self.values.push(Value { rows, width });
        self.values.len() - 1
    }

    /// Adds a value with x's rows, of this width or x's.
    fn like(&mut self, x: ValueId, width: Option<usize>) -> ValueId {
        let Value { rows, width: own } = self.values[x];
        self.value(rows, width.unwrap_or(own))
    }

    pub fn embed(&mut self, tables: Vec<(WeightId, Index)>, width: usize) -> ValueId {
        let y = self.value(Rows::Tokens, width);
        self.ops.push(Op::Embed { tables, y });
        y
    }

    /// Gathers the rows of x that the head reads; returns x itself if it has no others.
    pub fn gather(&mut self, x: ValueId) -> ValueId {
        if self.values[x].rows == Rows::Chosen {
            return x;
        }
        let y = self.value(Rows::Chosen, self.values[x].width);
        self.ops.push(Op::Gather { x, y });
        y
    }

    /// Applies layers of these widths to x.
    pub fn linear<const N: usize>(&mut self, x: ValueId, layers: [(LayerId, usize); N]) -> [ValueId; N] {
        let made = layers.map(|(layer, width)| (layer, self.like(x, Some(width))));
        self.ops.push(Op::Linear { x, layers: made.to_vec() });
        made.map(|(_, y)| y)
    }

    pub fn layer_norm(
        &mut self,
        x: ValueId,
        residual: Option<(ValueId, DropoutSpec)>,
        [gamma, beta]: [WeightId; 2],
        epsilon: f32,
    ) -> ValueId {
        let y = self.like(x, None);
        let (residual, dropout) = residual.unzip();
        self.ops.push(Op::LayerNorm { x, residual, dropout, gamma, beta, epsilon, y });
        y
    }

    /// Normalises by the root mean square, with the weight offset + γ.
    pub fn rms_norm(&mut self, x: ValueId, (gamma, offset): (WeightId, f32), epsilon: f32) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::RmsNorm { x, gamma, offset, epsilon, y });
        y
    }

    /// Rotates by the graph's frequencies of this index.
    pub fn rotary(&mut self, x: ValueId, rope: usize) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::Rotary { x, rope, y });
        y
    }

    pub fn attention(&mut self, qkv: [ValueId; 3], heads: Heads, dropout: DropoutSpec) -> ValueId {
        let y = self.like(qkv[0], None);
        self.ops.push(Op::Attention { qkv, heads, dropout, y });
        y
    }

    pub fn activation(&mut self, x: ValueId, f: Activation) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::Activation { f, x, y });
        y
    }

    pub fn gate(&mut self, f: Activation, gate: ValueId, up: ValueId) -> ValueId {
        let y = self.like(gate, None);
        self.ops.push(Op::Gate { f, gate, up, y });
        y
    }

    /// Computes x + branch; the last operation must have computed `branch`.
    pub fn add(&mut self, x: ValueId, branch: ValueId) -> ValueId {
        let last = self.ops.last().map(Op::writes);
        assert_eq!(last, Some(vec![branch]), "the last operation must compute the branch");
        let y = self.like(x, None);
        self.ops.push(Op::Add { x, branch, y });
        y
    }

    /// Computes factor · x; this segment must have computed x.
    pub fn scale(&mut self, x: ValueId, factor: f32) -> ValueId {
        assert!(self.input != Some(x), "x must be computed in this segment");
        let y = self.like(x, None);
        self.ops.push(Op::Scale { x, factor, y });
        y
    }

    pub fn dropout(&mut self, x: ValueId, dropout: DropoutSpec) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::Dropout { x, dropout, y });
        y
    }

    pub fn finish(self, output: ValueId) -> Segment {
        let Builder { ops, values, input } = self;
        let (mut producer, mut last_read) = (vec![None; values.len()], vec![None; values.len()]);
        for (i, op) in ops.iter().enumerate() {
            op.writes().into_iter().for_each(|value| producer[value] = Some(i));
            op.reads().into_iter().for_each(|value| last_read[value] = Some(i));
        }
        let mut taken_over = vec![None; values.len()];
        for (i, op) in ops.iter().enumerate() {
            let (x, y, how) = match *op {
                Op::Rotary { x, y, .. }
                | Op::Add { branch: x, y, .. }
                | Op::Scale { x, y, .. }
                | Op::Dropout { x, y, .. } => (x, y, TakenOver::Always),
                Op::Activation { x, y, .. } | Op::Gate { gate: x, y, .. } => (x, y, TakenOver::UnlessSaved),
                _ => continue,
            };
            if producer[x].is_some() && last_read[x] == Some(i) {
                taken_over[x] = Some((y, how));
            }
        }
        Segment { ops, values, input, output, producer, last_read, taken_over }
    }
}
