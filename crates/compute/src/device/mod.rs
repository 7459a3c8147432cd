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

/// Operations on buffers. Pieces of one call that are written overlap no other, unless it says so;
/// shapes are row-major.
///
/// Every operation may fail, as devices do that are shared or have memory of their own. On the CPU
/// none does.
pub trait Device: Send + Sync {
    /// f32 values on the device.
    type Buffer: ?Sized + Send + Sync;
    /// A frozen weight, in whatever form the device multiplies it.
    type Weight: Clone + fmt::Debug + Send + Sync;
    /// The keys and values of a text's tokens so far, in one layer.
    type Cache: Clone + fmt::Debug + Default + Send;

    /// Memory for passes, made once and reused.
    type Memory: Default + Send;

    /// Whether inputs of activations may be kept rounded to bf16, beside products in bf16.
    const ROUNDS: bool;

    /// A weight as this device multiplies it.
    fn weight(&self, storage: &Storage) -> Result<Self::Weight>;

    /// A buffer of `len` values in it, which grows where it has no room for them. Its contents are
    /// whatever was there.
    fn room<'m>(&self, memory: &'m mut Self::Memory, len: usize) -> Result<&'m mut Self::Buffer>;

    /// Reads values back.
    fn read(&self, buffer: &Self::Buffer, piece: Piece) -> Result<Vec<f32>>;
    /// Writes values from outside.
    fn write(&self, buffer: &mut Self::Buffer, piece: Piece, values: &[f32]) -> Result<()>;

    fn fill(&self, memory: &mut Self::Buffer, piece: Piece, value: f32) -> Result<()>;
    fn copy(&self, memory: &mut Self::Buffer, from: Piece, to: Piece) -> Result<()>;
    /// to += x
    fn add(&self, memory: &mut Self::Buffer, to: Piece, x: Piece) -> Result<()>;
    /// x *= factor
    fn scale(&self, memory: &mut Self::Buffer, x: Piece, factor: f32) -> Result<()>;
    /// x = dropout(x), with a key a row; its own backward.
    fn dropout(&self, memory: &mut Self::Buffer, x: Piece, dropout: Dropout, keys: &[Key]) -> Result<()>;
    /// Row i of y is row `rows[i]` of x.
    fn gather(
        &self,
        memory: &mut Self::Buffer,
        x: Piece,
        rows: &[usize],
        width: usize,
        y: Piece,
    ) -> Result<()>;
    /// Row `rows[i]` of x is, or with `add` grows by, row i of y.
    fn scatter(&self, memory: &mut Self::Buffer, y: Piece, rows: &[usize], x: Piece, add: bool)
    -> Result<()>;

    /// Row i of y = Σ over tables of row `index[i]`.
    fn embed(
        &self,
        store: &mut Store<Self>,
        tables: &[(At<Self>, &[u32])],
        width: usize,
        y: Piece,
    ) -> Result<()>;
    /// Row `index[i]` of a table's gradient += row i of dy, in order.
    fn embed_backward(
        &self,
        store: &mut Store<Self>,
        dy: Piece,
        index: &[u32],
        width: usize,
        gradient: Piece,
    ) -> Result<()>;

    fn product(&self, store: &mut Store<Self>, product: Product<Self>) -> Result<()>;
    /// gradient (width) += Σ over the rows of dy.
    fn sum_rows(&self, store: &mut Store<Self>, dy: Piece, gradient: Piece) -> Result<()>;

    /// norms (out) = ‖row of W + scale · B A‖, of W (out, in) as products of this precision read
    /// it.
    fn row_norms(
        &self,
        store: &mut Store<Self>,
        weight: Matrix<Self>,
        precision: Precision,
        plus: Option<LowRank<Self>>,
        norms: Piece,
    ) -> Result<()>;
    /// y = start + u scaled by columns. y may be u, where it does not keep what is there.
    fn magnitude(
        &self,
        store: &mut Store<Self>,
        by: Magnitude<Self>,
        u: Piece,
        start: Start<Self>,
        y: Piece,
    ) -> Result<()>;
    /// du = dy scaled by columns; the magnitude's gradient (width) += Σ over rows of dy · u / norm.
    fn magnitude_backward(
        &self,
        store: &mut Store<Self>,
        by: Magnitude<Self>,
        dy: Piece,
        u: Piece,
        du: Piece,
        gradient: Piece,
    ) -> Result<()>;

    /// Writes a scaled matrix, as large as M.
    fn scaled(&self, store: &mut Store<Self>, scaled: Scaled<Self>, to: Piece) -> Result<()>;
    /// With d the gradient of a scaled matrix, adds to those of M, of `rows` and of `columns`,
    /// where they are given.
    fn scaled_backward(
        &self,
        store: &mut Store<Self>,
        scaled: Scaled<Self>,
        d: Piece,
        gradients: [Option<Piece>; 3],
    ) -> Result<()>;

    /// Also writes x̂ and 1 / √(var + ε). x and y do not overlap.
    fn layer_norm(
        &self,
        store: &mut Store<Self>,
        norm: LayerNorm<Self>,
        epsilon: f32,
        x: Piece,
        residual: Option<Piece>,
        y: Piece,
    ) -> Result<()>;
    /// Overwrites du, the gradient of u, and dx, its part after the dropout, which is given where
    /// there is dropout; adds to the gradients of γ and β where they are given.
    fn layer_norm_backward(
        &self,
        store: &mut Store<Self>,
        norm: LayerNorm<Self>,
        dy: Piece,
        du: Piece,
        dx: Option<Piece>,
        gradients: Option<[Piece; 2]>,
    ) -> Result<()>;

    /// y = (offset + γ) · x / √(mean x² + ε) by rows of γ's width; also writes the rows'
    /// deviations.
    fn rms_norm(&self, store: &mut Store<Self>, norm: RmsNorm<Self>, epsilon: f32, y: Piece) -> Result<()>;
    /// y once more, of what is kept.
    fn rms_norm_again(&self, store: &mut Store<Self>, norm: RmsNorm<Self>, y: Piece) -> Result<()>;
    /// dx += the gradient of x, and γ's += its own where that is given.
    fn rms_norm_backward(
        &self,
        store: &mut Store<Self>,
        norm: RmsNorm<Self>,
        dy: Piece,
        dx: Piece,
        gradient: Option<Piece>,
    ) -> Result<()>;

    /// Turns every head of each row of x in place; `positions`: (rows).
    fn rotary(
        &self,
        memory: &mut Self::Buffer,
        table: &RotaryTable,
        turn: Turn,
        x: Piece,
        positions: &[u32],
    ) -> Result<()>;

    fn attention(&self, memory: &mut Self::Buffer, attend: Attend) -> Result<()>;
    /// Overwrites the gradients of q, k and v; adds to that of the bias's table where it is given.
    fn attention_backward(
        &self,
        memory: &mut Self::Buffer,
        attend: Attend,
        dout: Piece,
        dqkv: [Piece; 3],
        dbias: Option<Piece>,
    ) -> Result<()>;
    /// Attention of tokens after those of a cache, one cache a sequence, which grow by the new
    /// keys and values.
    fn attention_cached(
        &self,
        memory: &mut Self::Buffer,
        attend: Attend,
        caches: &mut [&mut Self::Cache],
    ) -> Result<()>;
    /// The table of a relative bias.
    fn relative_bias(
        &self,
        store: &mut Store<Self>,
        weight: At<Self>,
        of: Relative,
        table: Piece,
    ) -> Result<()>;
    /// gradient (buckets, heads) += that of the table, summed within buckets.
    fn relative_bias_backward(
        &self,
        store: &mut Store<Self>,
        of: Relative,
        dtable: Piece,
        gradient: Piece,
    ) -> Result<()>;

    /// y = f(x), and with `rounded` x is kept there. y may be x.
    fn activation(
        &self,
        memory: &mut Self::Buffer,
        f: Activation,
        x: Piece,
        y: Piece,
        rounded: Option<Kept>,
    ) -> Result<()>;
    /// y once more, of x that was kept.
    fn activation_again(&self, memory: &mut Self::Buffer, f: Activation, x: Kept, y: Piece) -> Result<()>;
    /// dy becomes dx = f′(x) · dy.
    fn activation_backward(&self, memory: &mut Self::Buffer, f: Activation, x: Kept, dy: Piece)
    -> Result<()>;

    /// y = f(gate) · up, and with `rounded` gate and up are kept there. y may be gate.
    fn gate(
        &self,
        memory: &mut Self::Buffer,
        f: Activation,
        gate_and_up: [Piece; 2],
        y: Piece,
        rounded: Option<[Kept; 2]>,
    ) -> Result<()>;
    /// y once more, of gate and up that were kept.
    fn gate_again(&self, memory: &mut Self::Buffer, f: Activation, kept: [Kept; 2], y: Piece) -> Result<()>;
    /// dy becomes dup; dgate is overwritten.
    fn gate_backward(
        &self,
        memory: &mut Self::Buffer,
        f: Activation,
        kept: [Kept; 2],
        dy: Piece,
        dgate: Piece,
    ) -> Result<()>;

    /// The sum of the sequences' losses, `loss::cross_entropy` or `loss::squared_error`; overwrites
    /// the gradient of the logits.
    fn sequence_loss(
        &self,
        memory: &mut Self::Buffer,
        logits: Piece,
        targets: Targets,
        dlogits: Piece,
    ) -> Result<f64>;
    /// −log p(target) of each row of logits; with a scale, logits become the scaled gradient.
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
