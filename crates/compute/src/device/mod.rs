//! Devices. A [`Device`] has its own buffers and runs [`Operation`]s on them, forward and backward.
//!
//! Code above this trait never has an activation or a gradient as a slice: it names pieces of
//! buffers. The same passes therefore run on [`Cpu`] and on any other device that implements these
//! operations.

mod cpu;
mod key_values;
mod slices;

use std::fmt;

pub use cpu::{Cpu, Storage};
pub use key_values::KeyValues;

use crate::activation::Activation;
use crate::attention::{Mask, Queries};
use crate::gemm::Precision;
use crate::random::{Dropout, Key};
use crate::rotary::{RotaryTable, Rotation};

/// A part of a buffer: `len` values from index `start` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub start: usize,
    pub len: usize,
}

impl Piece {
    /// The piece of `len` values from index `start` on.
    pub fn new(start: usize, len: usize) -> Self {
        Piece { start, len }
    }

    /// Its first `len` values.
    ///
    /// # Panics
    /// It has fewer.
    pub fn first(self, len: usize) -> Self {
        assert!(len <= self.len, "{len} of {} values", self.len);
        Piece { len, ..self }
    }

    /// The index after its last value.
    pub fn end(self) -> usize {
        self.start + self.len
    }
}

/// Why a device could not compute: a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceError(pub String);

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DeviceError {}

/// The result of a device's operation.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// The buffers that a pass works on.
pub struct Store<'a, D: Device + ?Sized> {
    /// Activations and their gradients.
    pub memory: &'a mut D::Buffer,
    /// Values of trained tensors and constants.
    pub parameters: &'a D::Buffer,
    /// Gradients of trained tensors, at the same places; None in passes without a backward pass.
    pub gradients: Option<&'a mut D::Buffer>,
}

/// The place of an operand.
pub enum At<'a, D: Device + ?Sized> {
    /// A piece of the memory.
    Memory(Piece),
    /// A weight that does not train.
    Frozen(&'a D::Weight),
    /// A piece of the parameters.
    Trained(Piece),
}

impl<D: Device + ?Sized> Clone for At<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device + ?Sized> Copy for At<'_, D> {}

/// A factor of a product: row-major (rows, cols) at this place, or the transpose of that if
/// `transposed` is set.
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
    /// The row-major matrix (rows, cols) at this place.
    pub fn new(at: At<'a, D>, rows: usize, cols: usize) -> Self {
        Matrix { at, rows, cols, transposed: false }
    }

    /// The row-major matrix (rows, cols) in a piece of the memory.
    pub fn of(piece: Piece, rows: usize, cols: usize) -> Self {
        Matrix::new(At::Memory(piece), rows, cols)
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Matrix { transposed: !self.transposed, ..self }
    }
}

/// The place of a product's result.
#[derive(Clone, Copy)]
pub enum To {
    /// A piece of the memory.
    Memory(Piece),
    /// A piece of the gradients.
    Gradient(Piece),
}

/// The contents of the result before the products are added.
pub enum Start<'a, D: Device + ?Sized> {
    Zero,
    /// The previous contents of the result.
    Keep,
    /// This row, (cols), in every row of the result: a linear layer's bias.
    Bias(At<'a, D>),
}

impl<D: Device + ?Sized> Clone for Start<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device + ?Sized> Copy for Start<'_, D> {}

/// C = start + scale · Σ AᵢBᵢ over `terms` (Aᵢ, Bᵢ), with C (rows, cols) at `to`, and factors
/// rounded to `precision`.
pub struct Product<'a, D: Device + ?Sized> {
    /// Its name in profiles.
    pub name: &'static str,
    pub precision: Precision,
    /// Whether a product of at most [`FEW_ROWS`](crate::gemm::FEW_ROWS) rows is computed in f32,
    /// with each weight as it is read. Its result is rounded differently. For generating text.
    pub few: bool,
    pub to: To,
    pub rows: usize,
    pub cols: usize,
    pub start: Start<'a, D>,
    pub scale: f32,
    pub terms: &'a [(Matrix<'a, D>, Matrix<'a, D>)],
}

/// `count` values that are saved for the backward pass in `piece`: as f32, or with `rounded` as
/// bf16 in half the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedPiece {
    pub piece: Piece,
    pub count: usize,
    pub rounded: bool,
}

impl SavedPiece {
    /// Number of f32 of memory that `count` values take.
    pub fn floats(count: usize, rounded: bool) -> usize {
        if rounded { count.div_ceil(2) } else { count }
    }
}

/// Dropout, with one key for each row or each sequence; None without dropout.
pub type Dropped<'a> = Option<(Dropout, &'a [Key])>;

/// Layer normalisation: y = γ · x̂ + β with x̂ = (u − mean u) / √(var u + ε), u = residual +
/// dropout(x), by row. `gamma` and `beta`: (width); `dropout` has one key per row.
pub struct LayerNorm<'a, D: Device + ?Sized> {
    pub gamma: At<'a, D>,
    pub beta: At<'a, D>,
    /// x̂, (rows, width), saved for the backward pass.
    pub normed: Piece,
    /// 1 / √(var u + ε), (rows), saved for the backward pass.
    pub rstd: Piece,
    pub dropout: Dropped<'a>,
}

/// Root mean square normalisation: y = (offset + γ) · x / √(mean x² + ε) by row, where a row is as
/// wide as `gamma`, (width).
pub struct RmsNorm<'a, D: Device + ?Sized> {
    pub gamma: At<'a, D>,
    pub offset: f32,
    /// The input, (rows, width).
    pub x: Piece,
    /// 1 / √(mean x² + ε), (rows), saved for the backward pass.
    pub rstd: Piece,
}

/// The low-rank update scale · B A of a weight: `a` is A, (rank, in), `b_t` is Bᵀ, (rank, out).
pub struct LowRank<'a, D: Device + ?Sized> {
    pub a: At<'a, D>,
    pub b_t: At<'a, D>,
    pub rank: usize,
    pub scale: f32,
}

/// A factor for each column: magnitude / norm − less, with `magnitude` and `norms` (width).
pub struct Magnitude<'a, D: Device + ?Sized> {
    pub magnitude: At<'a, D>,
    pub norms: At<'a, D>,
    pub less: f32,
}

/// diag(rows) · M · diag(columns), with `matrix` M (height, width), `rows` (height), and `columns`
/// (width) or ones.
pub struct Scaled<'a, D: Device + ?Sized> {
    pub matrix: At<'a, D>,
    /// (height)
    pub rows: At<'a, D>,
    /// (width)
    pub columns: Option<At<'a, D>>,
    pub width: usize,
}

/// Attention within packed sequences: out = dropout(softmax(scale · q kᵀ + bias)) v by head. `q`
/// and `out`: (queries, heads · width); `k` and `v`: (tokens, kv_heads · width); `lse`, the
/// log-sum-exp of each row of scores: (queries, heads); `offsets`, the starts of sequences and the
/// end of the last: (sequences + 1). `dropout` has one key per sequence. See
/// [`Attention`](crate::attention::Attention).
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
    pub mask: Mask,
    pub precision: Precision,
}

/// The sizes of MPNet's bias on attention by distance: a weight (buckets, heads), and its table by
/// distance, (heads, 2 · reach − 1).
#[derive(Clone, Copy, Debug)]
pub struct Relative {
    pub buckets: usize,
    pub heads: usize,
    pub reach: usize,
}

/// An operation on the buffers of a [`Store`]. Pieces are in its memory, except that `gradient` and
/// `gradients` are in its gradients. Matrices are row-major. Pieces that an operation writes do not
/// overlap each other or what it reads, except where noted. Gradients of parameters are added to,
/// gradients of activations are overwritten, except where noted.
pub enum Operation<'a, D: Device + ?Sized> {
    /// piece = value
    Fill { piece: Piece, value: f32 },
    /// to = from
    Copy { from: Piece, to: Piece },
    /// to += x
    Add { to: Piece, x: Piece },
    /// x *= factor
    Scale { x: Piece, factor: f32 },
    /// x = dropout(x), (rows, width), with `keys` (rows). The same operation on a gradient is the
    /// backward pass.
    Dropout { x: Piece, dropout: Dropout, keys: &'a [Key] },
    /// Row i of y is row `rows[i]` of x; rows are `width` values.
    Gather { x: Piece, rows: &'a [usize], width: usize, y: Piece },
    /// Row `rows[i]` of x becomes row i of y, or with `add` row i of y is added to it.
    Scatter { y: Piece, rows: &'a [usize], x: Piece, add: bool },

    /// Row i of y, (rows, width), is the sum over `tables` (table, index) of row `index[i]` of the
    /// table, (entries, width).
    Embed { tables: &'a [(At<'a, D>, &'a [u32])], width: usize, y: Piece },
    /// Row `index[i]` of `gradient`, (entries, width), += row i of dy, (rows, width), in order.
    EmbedBackward { dy: Piece, index: &'a [u32], width: usize, gradient: Piece },

    /// C = start + scale · Σ AᵢBᵢ
    Product(Product<'a, D>),
    /// gradient (width) += Σ over the rows of dy, (rows, width).
    SumRows { dy: Piece, gradient: Piece },

    /// norms (out) = ‖W‖ by row, with `plus` ‖W + scale · B A‖, where `weight` W (out, in) is
    /// rounded as products in `precision` round it.
    RowNorms { weight: Matrix<'a, D>, precision: Precision, plus: Option<LowRank<'a, D>>, norms: Piece },
    /// y = start + u · factor by column, with the factors of `by`; u and y: (rows, width). y may be
    /// u unless `start` is [`Start::Keep`].
    Magnitude { by: Magnitude<'a, D>, u: Piece, start: Start<'a, D>, y: Piece },
    /// du = dy · factor by column, with the factors of `by`; gradient (width), of the magnitude, +=
    /// Σ over rows of dy · u / norm. dy, u and du: (rows, width).
    MagnitudeBackward { by: Magnitude<'a, D>, dy: Piece, u: Piece, du: Piece, gradient: Piece },
    /// to (height, width) = diag(rows) · M · diag(columns)
    Scaled { scaled: Scaled<'a, D>, to: Piece },
    /// Adds to those of the gradients of M, `rows` and `columns` that are given; `d`, (height,
    /// width), is the gradient of the scaled matrix.
    ScaledBackward { scaled: Scaled<'a, D>, d: Piece, gradients: [Option<Piece>; 3] },

    /// y = γ · x̂ + β, and saves x̂ and 1 / √(var u + ε) as `norm` says. x, residual and y: (rows,
    /// width); y may not be x.
    LayerNorm { norm: LayerNorm<'a, D>, epsilon: f32, x: Piece, residual: Option<Piece>, y: Piece },
    /// From dy, the gradient of y: overwrites du, the gradient of u and of the residual, and dx =
    /// dropout(du), the gradient of x, which is given if and only if there is dropout; adds to
    /// `gradients` of γ and β, if given. dy, du and dx: (rows, width).
    LayerNormBackward {
        norm: LayerNorm<'a, D>,
        dy: Piece,
        du: Piece,
        dx: Option<Piece>,
        gradients: Option<[Piece; 2]>,
    },
    /// y = (offset + γ) · x / √(mean x² + ε), (rows, width), and saves 1 / √(mean x² + ε) as `norm`
    /// says.
    RmsNorm { norm: RmsNorm<'a, D>, epsilon: f32, y: Piece },
    /// Recomputes y, (rows, width), from x and the saved 1 / √(mean x² + ε).
    RecomputeRmsNorm { norm: RmsNorm<'a, D>, y: Piece },
    /// dx += the gradient of x, from dy, the gradient of y; both (rows, width). Adds to `gradient`,
    /// of γ, if given.
    RmsNormBackward { norm: RmsNorm<'a, D>, dy: Piece, dx: Piece, gradient: Option<Piece> },

    /// Rotates every head of each row of x, (rows, heads · width), in place and in the direction
    /// `rotation`, by the angles that `table` has for `positions`, (rows).
    Rotary { table: &'a RotaryTable, rotation: Rotation, x: Piece, positions: &'a [u32] },

    /// Computes the output and the log-sum-exps.
    Attention(Attend<'a>),
    /// From dout, the gradient of the output, overwrites `dqkv`, the gradients of q, k and v, each
    /// in its operand's shape; adds to `dbias`, of the bias's table, if given.
    AttentionBackward { attend: Attend<'a>, dout: Piece, dqkv: [Piece; 3], dbias: Option<Piece> },
    /// Expands `weight`, (buckets, heads), to `table`, (heads, 2 · reach − 1), with the sizes `of`.
    RelativeBias { weight: At<'a, D>, of: Relative, table: Piece },
    /// gradient (buckets, heads) += `dtable`, (heads, 2 · reach − 1), summed within buckets, with
    /// the sizes `of`.
    RelativeBiasBackward { of: Relative, dtable: Piece, gradient: Piece },

    /// y = f(x), element by element; with `rounded`, x is saved there, rounded to bf16. y may be x.
    Activation { f: Activation, x: Piece, y: Piece, rounded: Option<SavedPiece> },
    /// Recomputes y = f(x) from the saved x.
    RecomputeActivation { f: Activation, x: SavedPiece, y: Piece },
    /// dy becomes dx = f′(x) · dy.
    ActivationBackward { f: Activation, x: SavedPiece, dy: Piece },
    /// y = f(gate) · up, element by element; with `rounded`, gate and up are saved there. y may be
    /// gate.
    Gate { f: Activation, gate_and_up: [Piece; 2], y: Piece, rounded: Option<[SavedPiece; 2]> },
    /// Recomputes y = f(gate) · up from `saved`, the saved gate and up.
    RecomputeGate { f: Activation, saved: [SavedPiece; 2], y: Piece },
    /// dy becomes the gradient of up; `dgate`, the gradient of gate, is overwritten. `saved`: the
    /// saved gate and up.
    GateBackward { f: Activation, saved: [SavedPiece; 2], dy: Piece, dgate: Piece },
}

/// A processor with its own buffers, and the operations on them.
///
/// # Errors
/// Every call can fail, because devices may be shared or have limited memory. On [`Cpu`] none
/// fails.
pub trait Device: Send + Sync {
    /// f32 values on the device.
    type Buffer: ?Sized + Send + Sync;
    /// A frozen weight in the form in which the device multiplies it.
    type Weight: Clone + fmt::Debug + Send + Sync;
    /// The keys and values of a text's previous tokens, in one layer.
    type Cache: Clone + fmt::Debug + Default + Send;
    /// Memory for passes, allocated once and reused.
    type Memory: Default + Send;

    /// Whether inputs of activations can be saved rounded to bf16 when products are in bf16.
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

    /// Computes the attention of new tokens to themselves and to the tokens in the caches, one
    /// cache per sequence. Appends the new keys and values to the caches.
    fn attention_cached(
        &self,
        memory: &mut Self::Buffer,
        attend: Attend,
        caches: &mut [&mut Self::Cache],
    ) -> Result<()>;

    /// Returns the sum of the losses of a head's outputs, (rows, outputs), by
    /// [`loss`](crate::loss); overwrites `dlogits`, their gradient.
    fn head_loss(
        &self,
        memory: &mut Self::Buffer,
        logits: Piece,
        targets: Targets,
        dlogits: Piece,
    ) -> Result<f64>;
    /// Returns −log p(target) for each row of logits, (targets, vocabulary); with a scale, the
    /// logits become the gradient of the sum times `scale`, otherwise their contents are undefined
    /// afterwards.
    fn token_losses(
        &self,
        memory: &mut Self::Buffer,
        logits: Piece,
        targets: &[u32],
        scale: Option<f32>,
    ) -> Result<Vec<f32>>;
    /// total (width, width) += Σ z zᵀ over the rows of z, (rows, width).
    fn second_moment(&self, memory: &Self::Buffer, z: Piece, width: usize, total: &mut [f64]) -> Result<()>;
}

/// The targets of a head's outputs, one row per sequence or labelled token, and the loss. The
/// gradient is that of the sum of losses divided by `total`, which covers the whole step.
#[derive(Clone, Copy)]
pub enum Targets<'a> {
    /// Class numbers, for the [cross-entropy](crate::loss::cross_entropy).
    Classes { labels: &'a [usize], weights: &'a [f64], smoothing: f64, total: f64 },
    /// Whether a row has each class, (rows, classes), for the [binary
    /// cross-entropy](crate::loss::binary_cross_entropy).
    Sets { has: &'a [bool], weights: &'a [f64], total: f64 },
    /// Values, for the [squared error](crate::loss::squared_error).
    Values { values: &'a [f32], total: f64 },
}
