//! A model as data: its weights by name, and segments of operations over values. Embedding, blocks
//! and head are a segment each.
//!
//! A value is written once. Some operations take over the memory of what they read; that, what the
//! backward pass needs, and how long each value lives follows from the list (`walk`), and nobody
//! writes it down.

use lora_drop_compute::activation::Activation;
use lora_drop_compute::attention::Sight;
use lora_drop_compute::device::Relative;

use crate::drops::{DropoutPlan, Site};
use crate::module::ModuleId;

/// A segment's value.
pub type ValueId = usize;
/// A linear layer of the network.
pub type LayerId = usize;
/// Another weight of the network: a norm's, a table's.
pub type WeightId = usize;

/// The tokens whose output of the last block a head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// Each sequence's first token.
    #[default]
    First,
    /// Each sequence's last token.
    Last,
    /// The tokens that have labels.
    Labelled,
    /// The tokens before the targets, in groups, because their logits are wide.
    Learned,
}

/// A model.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Every weight, from input to output.
    pub specs: Vec<WeightSpec>,
    pub layers: Vec<LayerSpec>,
    /// Weights that are no linear layer's, by name, with the length of their rows.
    pub weights: Vec<(String, usize)>,
    pub embedding: Segment,
    pub blocks: Vec<Segment>,
    pub head: Segment,
    /// The last block and the head where no more than first tokens are computed past keys and
    /// values.
    pub first: Option<[Segment; 2]>,
    pub hidden: usize,
    pub reads: Reads,
    /// Whether the output layer is the table of embeddings.
    pub tied: bool,
    /// The weight of the bias on attention by distance, and what it is of but for its reach.
    pub relative: Option<(WeightId, Relative)>,
    /// Radians per position of each pair of a head's values, for each kind of layers; none where
    /// positions have embeddings.
    pub rope: Vec<Vec<f32>>,
}

/// A weight of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightSpec {
    /// As checkpoints have it, without the prefix.
    pub name: String,
    pub shape: Vec<usize>,
    pub place: Place,
}

/// Where a weight stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Body,
    /// In the body, and initialised where a checkpoint lacks it.
    Pooler,
    /// In a head for labels, whose names have no prefix.
    Head,
    /// In the layer that predicts tokens; nor has its name.
    Output,
}

/// A linear layer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Of its weight's and its bias's names, without the prefix.
    pub stem: String,
    pub bias: bool,
    pub input: usize,
    pub output: usize,
    /// Which module of the blocks it is; heads and output layers are none.
    pub module: Option<ModuleId>,
}

/// The rows of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One for each token.
    Tokens,
    /// One for each token that the head reads.
    Chosen,
}

/// A value's shape, (rows, width).
#[derive(Clone, Copy, Debug)]
pub struct Value {
    pub rows: Rows,
    pub width: usize,
}

/// Where an operation drops values, and how keys are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    pub site: Site,
    pub rate: Rate,
    /// A key for each row, by its position, or for each sequence.
    pub by_row: bool,
}

/// Which of a pass's rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Hidden,
    Attention,
    Head,
    Lora,
}

impl Rate {
    pub fn of(self, drops: &DropoutPlan) -> lora_drop_compute::random::Dropout {
        match self {
            Rate::Hidden => drops.hidden,
            Rate::Attention => drops.attention,
            Rate::Head => drops.head,
            Rate::Lora => drops.lora,
        }
    }
}

/// What chooses rows of a table of embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    Tokens,
    Types,
    /// Places in the sequence, the first of which has this number.
    Positions(u32),
}

/// The heads of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
    pub width: usize,
    pub scale: f32,
    pub sight: Sight,
    /// Whether scores have the network's bias by distance.
    pub biased: bool,
}

/// An operation. `y` is what it writes.
#[derive(Clone, Debug)]
pub enum Op {
    /// The sum of rows of tables.
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
        drop: Option<Drop>,
        gamma: WeightId,
        beta: WeightId,
        epsilon: f32,
        y: ValueId,
    },
    /// (offset + γ) · x̂ by rows as wide as γ, which may be a part of the value's.
    RmsNorm {
        x: ValueId,
        gamma: WeightId,
        offset: f32,
        epsilon: f32,
        y: ValueId,
    },
    /// In place, by the frequencies of this number.
    Rotary {
        x: ValueId,
        rope: usize,
        y: ValueId,
    },
    Attention {
        qkv: [ValueId; 3],
        heads: Heads,
        drop: Drop,
        y: ValueId,
    },
    /// In place where x is not kept.
    Activation {
        f: Activation,
        x: ValueId,
        y: ValueId,
    },
    /// f(gate) · up; in place of gate where that is not kept.
    Gate {
        f: Activation,
        gate: ValueId,
        up: ValueId,
        y: ValueId,
    },
    /// x + branch, in place of branch, which the operation before has made.
    Add {
        x: ValueId,
        branch: ValueId,
        y: ValueId,
    },
    /// factor · x, in place; x is the segment's own and read by nothing else.
    Scale {
        x: ValueId,
        factor: f32,
        y: ValueId,
    },
    /// In place where x is the segment's own and read by nothing else.
    Dropout {
        x: ValueId,
        drop: Drop,
        y: ValueId,
    },
}

impl Op {
    /// What it reads.
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

    /// What it writes.
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

/// How a value's memory passes to another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenOver {
    Always,
    /// Where the value itself is not kept as it is.
    UnlessKept,
}

/// A list of operations from one value to another.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    pub ops: Vec<Op>,
    pub values: Vec<Value>,
    /// What it reads of the segment before; None for embeddings.
    pub input: Option<ValueId>,
    pub output: ValueId,
    /// By value: the operation that makes it; none makes the input.
    pub maker: Vec<Option<usize>>,
    /// By value: the last operation that reads it.
    pub last_read: Vec<Option<usize>>,
    /// By value: the value that takes over its memory.
    pub taken_over: Vec<Option<(ValueId, TakenOver)>>,
}

impl Segment {
    /// The table of word embeddings, where it is the segment of embeddings.
    pub fn words(&self) -> WeightId {
        match &self.ops[0] {
            Op::Embed { tables, .. } => tables[0].0,
            other => unreachable!("{other:?} begins no model"),
        }
    }
}

/// Writes a segment.
pub struct Builder {
    ops: Vec<Op>,
    values: Vec<Value>,
    input: Option<ValueId>,
}

impl Builder {
    /// With a value from the segment before, or without one.
    pub fn new(input: Option<Value>) -> Self {
        Builder { ops: Vec::new(), values: input.into_iter().collect(), input: input.map(|_| 0) }
    }

    /// The value from the segment before.
    pub fn input(&self) -> ValueId {
        self.input.expect("the segment has an input")
    }

    fn value(&mut self, rows: Rows, width: usize) -> ValueId {
        self.values.push(Value { rows, width });
        self.values.len() - 1
    }

    /// A value of x's rows, and as wide or of this width.
    fn like(&mut self, x: ValueId, width: Option<usize>) -> ValueId {
        let Value { rows, width: own } = self.values[x];
        self.value(rows, width.unwrap_or(own))
    }

    pub fn embed(&mut self, tables: Vec<(WeightId, Index)>, width: usize) -> ValueId {
        let y = self.value(Rows::Tokens, width);
        self.ops.push(Op::Embed { tables, y });
        y
    }

    /// The rows of x that the head reads; x itself where that has no others.
    pub fn gather(&mut self, x: ValueId) -> ValueId {
        if self.values[x].rows == Rows::Chosen {
            return x;
        }
        let y = self.value(Rows::Chosen, self.values[x].width);
        self.ops.push(Op::Gather { x, y });
        y
    }

    /// The outputs of layers of these widths that read x.
    pub fn linear<const N: usize>(&mut self, x: ValueId, layers: [(LayerId, usize); N]) -> [ValueId; N] {
        let made = layers.map(|(layer, width)| (layer, self.like(x, Some(width))));
        self.ops.push(Op::Linear { x, layers: made.to_vec() });
        made.map(|(_, y)| y)
    }

    pub fn layer_norm(
        &mut self,
        x: ValueId,
        residual: Option<(ValueId, Drop)>,
        [gamma, beta]: [WeightId; 2],
        epsilon: f32,
    ) -> ValueId {
        let y = self.like(x, None);
        let (residual, drop) = residual.unzip();
        self.ops.push(Op::LayerNorm { x, residual, drop, gamma, beta, epsilon, y });
        y
    }

    /// By offset + γ.
    pub fn rms_norm(&mut self, x: ValueId, (gamma, offset): (WeightId, f32), epsilon: f32) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::RmsNorm { x, gamma, offset, epsilon, y });
        y
    }

    /// By the graph's frequencies of this number.
    pub fn rotary(&mut self, x: ValueId, rope: usize) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::Rotary { x, rope, y });
        y
    }

    pub fn attention(&mut self, qkv: [ValueId; 3], heads: Heads, drop: Drop) -> ValueId {
        let y = self.like(qkv[0], None);
        self.ops.push(Op::Attention { qkv, heads, drop, y });
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

    /// x + branch; `branch` is what the last operation made.
    pub fn add(&mut self, x: ValueId, branch: ValueId) -> ValueId {
        let last = self.ops.last().map(Op::writes);
        assert_eq!(last, Some(vec![branch]), "a branch is added where it ends");
        let y = self.like(x, None);
        self.ops.push(Op::Add { x, branch, y });
        y
    }

    /// factor · x, of an x that the segment has made.
    pub fn scale(&mut self, x: ValueId, factor: f32) -> ValueId {
        assert!(self.input != Some(x), "the segment before keeps what it made");
        let y = self.like(x, None);
        self.ops.push(Op::Scale { x, factor, y });
        y
    }

    pub fn dropout(&mut self, x: ValueId, drop: Drop) -> ValueId {
        let y = self.like(x, None);
        self.ops.push(Op::Dropout { x, drop, y });
        y
    }

    pub fn finish(self, output: ValueId) -> Segment {
        let Builder { ops, values, input } = self;
        let (mut maker, mut last_read) = (vec![None; values.len()], vec![None; values.len()]);
        for (i, op) in ops.iter().enumerate() {
            op.writes().into_iter().for_each(|value| maker[value] = Some(i));
            op.reads().into_iter().for_each(|value| last_read[value] = Some(i));
        }
        let mut taken_over = vec![None; values.len()];
        for (i, op) in ops.iter().enumerate() {
            let (x, y, how) = match *op {
                Op::Rotary { x, y, .. }
                | Op::Add { branch: x, y, .. }
                | Op::Scale { x, y, .. }
                | Op::Dropout { x, y, .. } => (x, y, TakenOver::Always),
                Op::Activation { x, y, .. } | Op::Gate { gate: x, y, .. } => (x, y, TakenOver::UnlessKept),
                _ => continue,
            };
            if maker[x].is_some() && last_read[x] == Some(i) {
                taken_over[x] = Some((y, how));
            }
        }
        Segment { ops, values, input, output, maker, last_read, taken_over }
    }
}
