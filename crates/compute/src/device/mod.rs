//! What a device computes: operations on buffers of its own, forward beside backward.
//!
//! Nothing above this trait holds an activation or a gradient as a slice: it names pieces of
//! buffers, and the device finds them. So the same passes run on `Cpu`, and wherever else these
//! operations are written.

mod cpu;
mod key_values;
mod slices;

use std::fmt;

pub use cpu::{Cpu, Storage};
pub use key_values::KeyValues;

use crate::activation::Activation;
use crate::attention::{Queries, Sight};
use crate::gemm::Precision;
use crate::random::{Dropout, Key};
use crate::rotary::{RotaryTable, Turn};

/// A part of a buffer: `len` values from `start` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub start: usize,
    pub len: usize,
}

impl Piece {
    pub fn new(start: usize, len: usize) -> Self {
        Piece { start, len }
    }

    /// The first `len` values of it.
    pub fn first(self, len: usize) -> Self {
        assert!(len <= self.len, "{len} of {} values", self.len);
        Piece { len, ..self }
    }

    pub fn end(self) -> usize {
        self.start + self.len
    }
}

/// Why a device could not compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceError(pub String);

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DeviceError {}

pub type Result<T> = std::result::Result<T, DeviceError>;

/// The buffers that a pass works on.
pub struct Store<'a, D: Device + ?Sized> {
    /// Activations, and their gradients.
    pub memory: &'a mut D::Buffer,
    /// The values that train.
    pub parameters: &'a D::Buffer,
    /// Their gradients, at the same places, in a pass that has a backward.
    pub gradients: Option<&'a mut D::Buffer>,
}

/// Where an operand lies.
pub enum At<'a, D: Device + ?Sized> {
    Memory(Piece),
    /// A weight that does not train.
    Frozen(&'a D::Weight),
    /// One that does: a piece of the parameters.
    Trained(Piece),
}

impl<D: Device + ?Sized> Clone for At<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device + ?Sized> Copy for At<'_, D> {}

/// A matrix as a product takes it: row-major (rows, cols) in its place, or the transpose of that.
pub struct Matrix<'a, D: Device + ?Sized> {
    pub at: At<'a, D>,
    pub rows: usize,
    pub cols: usize,
    pub transposed: bool,
}

impl<D: Device + ?Sized> Clone for Matrix<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device + ?Sized> Copy for Matrix<'_, D> {}

impl<'a, D: Device + ?Sized> Matrix<'a, D> {
    pub fn new(at: At<'a, D>, rows: usize, cols: usize) -> Self {
        Matrix { at, rows, cols, transposed: false }
    }

    /// Of a piece of memory.
    pub fn of(piece: Piece, rows: usize, cols: usize) -> Self {
        Matrix::new(At::Memory(piece), rows, cols)
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Matrix { transposed: !self.transposed, ..self }
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub enum To {
    Memory(Piece),
    /// A piece of the gradients.
    Gradient(Piece),
}

/// What is there before the products are added.
pub enum Start<'a, D: Device + ?Sized> {
    Zero,
    Keep,
    /// The same row in every row: a linear layer's bias, (cols).
    Bias(At<'a, D>),
}

impl<D: Device + ?Sized> Clone for Start<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device + ?Sized> Copy for Start<'_, D> {}

/// C = start + scale · Σ AᵢBᵢ, with C (rows, cols).
pub struct Product<'a, D: Device + ?Sized> {
    /// What a profile calls it.
    pub name: &'static str,
    pub precision: Precision,
    /// Whether few rows of the first factors are multiplied in f32 with each weight as it is read,
    /// which rounds otherwise: for generating text.
    pub few: bool,
    pub to: To,
    pub rows: usize,
    pub cols: usize,
    pub start: Start<'a, D>,
    pub scale: f32,
    pub terms: &'a [(Matrix<'a, D>, Matrix<'a, D>)],
}

/// Values that are saved for the backward pass: as they are, or each rounded to bf16 in half of the
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub piece: Piece,
    pub count: usize,
    pub rounded: bool,
}

impl Kept {
    /// The f32 of memory that `count` values take.
    pub fn floats(count: usize, rounded: bool) -> usize {
        if rounded { count.div_ceil(2) } else { count }
    }
}

/// Dropout with the keys of its rows, or of its sequences.
pub type Dropped<'a> = Option<(Dropout, &'a [Key])>;

/// y = γ · x̂ + β with x̂ = (u − mean u) / √(var u + ε), u = residual + dropout(x).
pub struct LayerNorm<'a, D: Device + ?Sized> {
    pub gamma: At<'a, D>,
    pub beta: At<'a, D>,
    /// (rows, width)
    pub normed: Piece,
    /// (rows): 1 / √(var u + ε)
    pub rstd: Piece,
    pub dropout: Dropped<'a>,
}

/// y = (offset + γ) · x / √(mean x² + ε).
pub struct RmsNorm<'a, D: Device + ?Sized> {
    pub gamma: At<'a, D>,
    pub offset: f32,
    /// (rows, γ's width)
    pub x: Piece,
    /// (rows): 1 / √(mean x² + ε)
    pub rstd: Piece,
}

/// scale · B A beside a weight: A (rank, in) and Bᵀ (rank, out).
pub struct LowRank<'a, D: Device + ?Sized> {
    pub a: At<'a, D>,
    pub b_t: At<'a, D>,
    pub rank: usize,
    pub scale: f32,
}

/// What columns are scaled by: magnitude / norm − less, both (width).
pub struct Magnitude<'a, D: Device + ?Sized> {
    pub magnitude: At<'a, D>,
    pub norms: At<'a, D>,
    pub less: f32,
}

/// diag(rows) · M · diag(columns) of a matrix M, (height, width); without columns these are all
/// ones.
pub struct Scaled<'a, D: Device + ?Sized> {
    pub matrix: At<'a, D>,
    /// (height)
    pub rows: At<'a, D>,
    /// (width)
    pub columns: Option<At<'a, D>>,
    pub width: usize,
}

/// Attention within packed sequences; shapes as in `attention::Attention`.
#[derive(Clone, Copy)]
pub struct Attend<'a> {
    pub q: Piece,
    pub k: Piece,
    pub v: Piece,
    pub out: Piece,
    pub lse: Piece,
    pub offsets: &'a [usize],
    pub heads: usize,
    pub kv_heads: usize,
    pub width: usize,
    pub scale: f32,
    /// A bias by head and distance, (heads, 2 · reach − 1), and its reach.
    pub bias: Option<(Piece, usize)>,
    pub dropout: Dropped<'a>,
    pub queries: Queries,
    pub sight: Sight,
    pub precision: Precision,
}

/// MPNet's bias on attention by distance: a weight (buckets, heads) as a table (heads, 2 · reach −
/// 1).
#[derive(Clone, Copy, Debug)]
pub struct Relative {
    pub buckets: usize,
    pub heads: usize,
    pub reach: usize,
}

/// An operation on the buffers of a [`Store`]. Pieces are of its memory, `gradient`s of its
/// gradients, and matrices are row-major. Pieces that one operation writes do not overlap each other
/// or what it reads, except where noted.
pub enum Operation<'a, D: Device + ?Sized> {
    /// Sets every value of a piece.
    Fill { piece: Piece, value: f32 },
    /// to = from
    Copy { from: Piece, to: Piece },
    /// to += x
    Add { to: Piece, x: Piece },
    /// x *= factor
    Scale { x: Piece, factor: f32 },
    /// x = dropout(x), with one key per row; the backward pass of a gradient is the same.
    Dropout { x: Piece, dropout: Dropout, keys: &'a [Key] },
    /// Row i of y is row `rows[i]` of x.
    Gather { x: Piece, rows: &'a [usize], width: usize, y: Piece },
    /// Row `rows[i]` of x becomes row i of y, or with `add` grows by it.
    Scatter { y: Piece, rows: &'a [usize], x: Piece, add: bool },

    /// Row i of y, (rows, width), is Σ over tables of row `index[i]`.
    Embed { tables: &'a [(At<'a, D>, &'a [u32])], width: usize, y: Piece },
    /// Row `index[i]` of a table's gradient += row i of dy, in order.
    EmbedBackward { dy: Piece, index: &'a [u32], width: usize, gradient: Piece },

    /// C = start + scale · Σ AᵢBᵢ
    Product(Product<'a, D>),
    /// gradient (width) += Σ over the rows of dy.
    SumRows { dy: Piece, gradient: Piece },

    /// norms (out) = ‖row of W + scale · B A‖, with W (out, in) rounded as products in `precision`
    /// round it.
    RowNorms { weight: Matrix<'a, D>, precision: Precision, plus: Option<LowRank<'a, D>>, norms: Piece },
    /// y = start + u scaled by columns. y may be u unless the start is [`Start::Keep`].
    Magnitude { by: Magnitude<'a, D>, u: Piece, start: Start<'a, D>, y: Piece },
    /// du = dy scaled by columns; the magnitude's gradient (width) += Σ over rows of dy · u / norm.
    MagnitudeBackward { by: Magnitude<'a, D>, dy: Piece, u: Piece, du: Piece, gradient: Piece },
    /// to = diag(rows) · M · diag(columns)
    Scaled { scaled: Scaled<'a, D>, to: Piece },
    /// Adds to the gradients of M, `rows` and `columns` that are given; d is the gradient of the
    /// scaled matrix.
    ScaledBackward { scaled: Scaled<'a, D>, d: Piece, gradients: [Option<Piece>; 3] },

    /// Also writes x̂ and 1 / √(var + ε). y may not be x.
    LayerNorm { norm: LayerNorm<'a, D>, epsilon: f32, x: Piece, residual: Option<Piece>, y: Piece },
    /// Overwrites du, the gradient of u, and with dropout dx, the gradient of x, which is given
    /// exactly then; adds to the gradients of γ and β if they are given.
    LayerNormBackward {
        norm: LayerNorm<'a, D>,
        dy: Piece,
        du: Piece,
        dx: Option<Piece>,
        gradients: Option<[Piece; 2]>,
    },
    /// y = (offset + γ) · x / √(mean x² + ε) over rows as wide as γ; also writes 1 / √(mean x² + ε).
    RmsNorm { norm: RmsNorm<'a, D>, epsilon: f32, y: Piece },
    /// Recomputes y from x and the saved 1 / √(mean x² + ε).
    RecomputeRmsNorm { norm: RmsNorm<'a, D>, y: Piece },
    /// dx += the gradient of x; adds to the gradient of γ if it is given.
    RmsNormBackward { norm: RmsNorm<'a, D>, dy: Piece, dx: Piece, gradient: Option<Piece> },

    /// Rotates every head of each row of x in place; `positions`: (rows).
    Rotary { table: &'a RotaryTable, turn: Turn, x: Piece, positions: &'a [u32] },

    /// Writes the output and the log-sum-exps.
    Attention(Attend<'a>),
    /// Overwrites the gradients of q, k and v; adds to the gradient of the bias's table if it is
    /// given.
    AttentionBackward { attend: Attend<'a>, dout: Piece, dqkv: [Piece; 3], dbias: Option<Piece> },
    /// Expands a relative bias's weight to its table by distance.
    RelativeBias { weight: At<'a, D>, of: Relative, table: Piece },
    /// gradient (buckets, heads) += the table's gradient, summed within buckets.
    RelativeBiasBackward { of: Relative, dtable: Piece, gradient: Piece },

    /// y = f(x); with `rounded`, x is saved there, rounded to bf16. y may be x.
    Activation { f: Activation, x: Piece, y: Piece, rounded: Option<Kept> },
    /// Recomputes y from the saved x.
    RecomputeActivation { f: Activation, x: Kept, y: Piece },
    /// dy becomes dx = f′(x) · dy.
    ActivationBackward { f: Activation, x: Kept, dy: Piece },
    /// y = f(gate) · up; with `rounded`, gate and up are saved there. y may be gate.
    Gate { f: Activation, gate_and_up: [Piece; 2], y: Piece, rounded: Option<[Kept; 2]> },
    /// Recomputes y from the saved gate and up.
    RecomputeGate { f: Activation, kept: [Kept; 2], y: Piece },
    /// dy becomes the gradient of up; dgate is overwritten.
    GateBackward { f: Activation, kept: [Kept; 2], dy: Piece, dgate: Piece },
}

/// A processor with buffers of its own, and what it computes on them.
///
/// Every call may fail, as calls to devices do that are shared or have their own memory. On the CPU
/// none does.
pub trait Device: Send + Sync {
    /// f32 values on the device.
    type Buffer: ?Sized + Send + Sync;
    /// A frozen weight in the form in which the device multiplies it.
    type Weight: Clone + fmt::Debug + Send + Sync;
    /// The keys and values of a text's tokens so far, in one layer.
    type Cache: Clone + fmt::Debug + Default + Send;
    /// Memory for passes, allocated once and reused.
    type Memory: Default + Send;

    /// Whether inputs of activations may be saved rounded to bf16 when products are in bf16.
    const ROUNDS: bool;

    /// Converts a weight to the device's form.
    fn weight(&self, storage: &Storage) -> Result<Self::Weight>;

    /// Returns a buffer of `len` values in `memory`, which grows if it is too small. The contents
    /// are undefined.
    fn room<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> Result<&'m mut Self::Buffer>;

    /// Copies values to the host.
    fn read(&self, buffer: &Self::Buffer, piece: Piece) -> Result<Vec<f32>>;
    /// Copies values from the host.
    fn write(&self, buffer: &mut Self::Buffer, piece: Piece, values: &[f32]) -> Result<()>;

    /// Runs an operation.
    fn compute(&self, store: &mut Store<Self>, operation: Operation<Self>) -> Result<()>;

    /// Attention of new tokens to themselves and to those in a cache, one cache per sequence. The
    /// caches grow by the new keys and values.
    fn attention_cached(
        &self,
        memory: &mut Self::Buffer,
        attend: Attend,
        caches: &mut [&mut Self::Cache],
    ) -> Result<()>;

    /// Returns the sum of the sequences' losses, `loss::cross_entropy` or `loss::squared_error`;
    /// overwrites the gradient of the logits.
    fn sequence_loss(
        &self,
        memory: &mut Self::Buffer,
        logits: Piece,
        targets: Targets,
        dlogits: Piece,
    ) -> Result<f64>;
    /// Returns −log p(target) for each row of logits; with a scale, the logits become the scaled
    /// gradient.
    fn token_losses(
        &self,
        memory: &mut Self::Buffer,
        logits: Piece,
        targets: &[u32],
        scale: Option<f32>,
    ) -> Result<Vec<f32>>;
    /// total (width, width) += Σ z zᵀ over rows.
    fn second_moment(&self, memory: &Self::Buffer, z: Piece, width: usize, total: &mut [f64]) -> Result<()>;
}

/// What a head's outputs should be, and how that is measured.
#[derive(Clone, Copy)]
pub enum Targets<'a> {
    Classes {
        labels: &'a [usize],
        smoothing: f64,
        /// Sequences of the whole step, over which the loss is the mean.
        total: usize,
    },
    Values {
        values: &'a [f32],
        total: usize,
    },
}
