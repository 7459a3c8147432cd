//! Splits the CPU's buffers into slices: the pieces that an operation writes, and what it reads.

use super::{At, Attend, Cpu, Matrix, Piece, SavedPiece, Scaled, Start, Storage};
use crate::attention::{Attention, Columns, Inputs, RelativeBias};
use crate::gemm::{self, Mat};
use crate::saved_values::{self, SavedValues};
use crate::scaled;

/// Returns a piece of a buffer as a mutable slice.
pub(super) fn part(buffer: &mut [f32], piece: Piece) -> &mut [f32] {
    &mut buffer[piece.start..piece.end()]
}

/// What an operation reads: the parameters, and the memory around the `N` pieces that it writes.
pub(super) struct Operands<'a, const N: usize> {
    parameters: &'a [f32],
    /// The memory before each written piece, and in `last` after the last one; each with its start
    /// index.
    parts: [(usize, &'a [f32]); N],
    last: (usize, &'a [f32]),
}

/// Splits the memory into the written pieces and the operands that are read.
pub(super) fn split<'a, const N: usize>(
    memory: &'a mut [f32],
    parameters: &'a [f32],
    pieces: [Piece; N],
) -> ([&'a mut [f32]; N], Operands<'a, N>) {
    let mut order: [usize; N] = std::array::from_fn(|i| i);
    order.sort_unstable_by_key(|&i| (pieces[i].start, pieces[i].len));
    let mut written: [&mut [f32]; N] = std::array::from_fn(|_| Default::default());
    let mut parts: [(usize, &[f32]); N] = std::array::from_fn(|_| (0, Default::default()));
    let (mut at, mut rest) = (0, memory);
    for i in order {
        let piece = pieces[i];
        if piece.len == 0 {
            continue;
        }
        assert!(piece.start >= at, "pieces that are written overlap: {pieces:?}");
        let (before, after) = rest.split_at_mut(piece.start - at);
        let (mine, after) = after.split_at_mut(piece.len);
        parts[i] = (at, before);
        written[i] = mine;
        (at, rest) = (piece.end(), after);
    }
    (written, Operands { parameters, parts, last: (at, rest) })
}

impl<'a, const N: usize> Operands<'a, N> {
    /// Returns a piece of memory. Panics if the operation also writes it: a bug in the program, not
    /// in its input.
    pub fn get(&self, piece: Piece) -> &'a [f32] {
        if piece.len == 0 {
            return &[];
        }
        let within = |(start, part): &(usize, &'a [f32])| {
            let from = piece.start.checked_sub(*start)?;
            part.get(from..from + piece.len)
        };
        let found = self.parts.iter().chain([&self.last]).find_map(within);
        found.unwrap_or_else(|| panic!("{piece:?} is written, or outside of the buffer"))
    }

    /// Returns the values of an operand in f32. Panics for blocks and panels, which are never
    /// widened as a whole.
    pub fn floats(&self, at: At<'a, Cpu>) -> &'a [f32] {
        match at {
            At::Memory(piece) => self.get(piece),
            At::Trained(piece) => &self.parameters[piece.start..piece.end()],
            At::Frozen(Storage::F32(tensor)) => tensor,
            At::Frozen(other) => panic!("{other:?} is not in f32"),
        }
    }

    pub fn matrix(&self, of: Matrix<'a, Cpu>) -> Mat<'a> {
        let mat = match of.at {
            At::Frozen(Storage::Blocks(matrix)) => Mat::blocks(matrix),
            At::Frozen(Storage::Packed(matrix)) => Mat::packed(matrix),
            at => Mat::new(self.floats(at), of.rows, of.cols),
        };
        if of.transposed { mat.t() } else { mat }
    }

    pub fn start(&self, start: Start<'a, Cpu>) -> gemm::Start<'a> {
        match start {
            Start::Zero => gemm::Start::Zero,
            Start::Keep => gemm::Start::Keep,
            Start::Bias(at) => gemm::Start::Bias(self.floats(at)),
        }
    }

    pub fn scaled(&self, of: &Scaled<'a, Cpu>) -> scaled::Scaled<'a> {
        let columns = of.columns.map(|at| self.floats(at));
        scaled::Scaled {
            matrix: self.floats(of.matrix),
            rows: self.floats(of.rows),
            columns,
            width: of.width,
        }
    }

    pub fn saved(&self, of: SavedPiece) -> SavedValues<'a> {
        let values = self.get(of.piece);
        if of.rounded {
            SavedValues::Rounded(saved_values::halves(values, of.count))
        } else {
            SavedValues::Floats(values)
        }
    }

    pub fn inputs(&self, attend: &Attend) -> Inputs<'a> {
        let [q, k, v] = [attend.q, attend.k, attend.v].map(|piece| self.get(piece));
        inputs(attend, q, k, v)
    }

    pub fn attention(&self, attend: &Attend<'a>) -> Attention<'a> {
        let Attend { offsets, heads, kv_heads, width, scale, dropout, queries, mask, precision, .. } =
            *attend;
        let bias = attend.bias.map(|(table, reach)| RelativeBias { table: self.get(table), reach });
        Attention { offsets, heads, kv_heads, width, scale, bias, dropout, queries, mask, precision }
    }
}

pub(super) fn inputs<'a>(attend: &Attend, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a> {
    let (wide, pair) = (attend.heads * attend.width, attend.kv_heads * attend.width);
    Inputs {
        q: Columns { data: q, stride: wide },
        k: Columns { data: k, stride: pair },
        v: Columns { data: v, stride: pair },
    }
}
