//! Pieces of the processor's buffers as slices: what is written of a buffer, and what is read
//! beside it.

use super::{At, Attend, Cpu, Kept, Matrix, Piece, Scaled, Start, Storage};
use crate::attention::{Attention, Columns, Inputs, RelativeBias};
use crate::gemm::{self, Mat};
use crate::kept_values::{self, KeptValues};
use crate::scaled;

pub(super) const BACK: &str = "a pass with a backward has gradients";

/// A piece of the gradients.
pub(super) fn gradient_part(gradients: Option<&mut [f32]>, piece: Piece) -> &mut [f32] {
    part(gradients.expect(BACK), piece)
}

/// A piece that is written.
pub(super) fn part(gradients: &mut [f32], piece: Piece) -> &mut [f32] {
    &mut gradients[piece.start..piece.end()]
}

/// What is not written of a buffer that was split: at most one part more than are written.
pub(super) struct Rest<'a, const N: usize> {
    parts: [(usize, &'a [f32]); N],
    last: (usize, &'a [f32]),
}

impl<'a, const N: usize> Rest<'a, N> {
    pub(super) fn get(&self, piece: Piece) -> &'a [f32] {
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
}

/// The pieces that are written, and all around them.
pub(super) fn split<const N: usize>(
    buffer: &mut [f32],
    pieces: [Piece; N],
) -> ([&mut [f32]; N], Rest<'_, N>) {
    let mut order: [usize; N] = std::array::from_fn(|i| i);
    order.sort_unstable_by_key(|&i| (pieces[i].start, pieces[i].len));
    let mut written: [&mut [f32]; N] = std::array::from_fn(|_| Default::default());
    let mut parts: [(usize, &[f32]); N] = std::array::from_fn(|_| (0, Default::default()));
    let (mut at, mut rest) = (0, buffer);
    for i in order {
        let piece = pieces[i];
        if piece.len == 0 {
            continue;
        }
        assert!(piece.start >= at, "pieces that are written overlap: {pieces:?}");
        let (before, behind) = rest.split_at_mut(piece.start - at);
        let (mine, behind) = behind.split_at_mut(piece.len);
        parts[i] = (at, before);
        written[i] = mine;
        (at, rest) = (piece.end(), behind);
    }
    (written, Rest { parts, last: (at, rest) })
}

/// A weight's or parameter's values. Panics for blocks, which are never widened whole, and panels:
/// a fault of the program, not of its input.
pub(super) fn floats<'a>(
    at: At<'a, Cpu>,
    parameters: &'a [f32],
    rest: impl Fn(Piece) -> &'a [f32],
) -> &'a [f32] {
    match at {
        At::Memory(piece) => rest(piece),
        At::Trained(piece) => &parameters[piece.start..piece.end()],
        At::Frozen(Storage::F32(tensor)) => tensor,
        At::Frozen(other) => panic!("{other:?} is not in f32"),
    }
}

pub(super) fn vectors<'a>(
    of: &Scaled<'a, Cpu>,
    parameters: &'a [f32],
    rest: impl Fn(Piece) -> &'a [f32],
) -> scaled::Scaled<'a> {
    let at = |at| floats(at, parameters, &rest);
    scaled::Scaled { matrix: at(of.matrix), rows: at(of.rows), columns: of.columns.map(at), width: of.width }
}

pub(super) fn gemm_start<'a>(
    start: Start<'a, Cpu>,
    parameters: &'a [f32],
    rest: impl Fn(Piece) -> &'a [f32],
) -> gemm::Start<'a> {
    match start {
        Start::Zero => gemm::Start::Zero,
        Start::Keep => gemm::Start::Keep,
        Start::Bias(at) => gemm::Start::Bias(floats(at, parameters, rest)),
    }
}

pub(super) fn matrix<'a>(
    of: Matrix<'a, Cpu>,
    parameters: &'a [f32],
    rest: impl Fn(Piece) -> &'a [f32],
) -> Mat<'a> {
    let mat = match of.at {
        At::Frozen(Storage::Blocks(matrix)) => Mat::blocks(matrix),
        At::Frozen(Storage::Packed(matrix)) => Mat::packed(matrix),
        at => Mat::new(floats(at, parameters, rest), of.rows, of.cols),
    };
    if of.transposed { mat.t() } else { mat }
}

/// What was kept, to be read.
pub(super) fn kept<'a>(of: Kept, values: &'a [f32]) -> KeptValues<'a> {
    if of.rounded {
        KeptValues::Rounded(kept_values::halves(values, of.count))
    } else {
        KeptValues::Floats(values)
    }
}

pub(super) fn attention<'a>(attend: &Attend<'a>, bias: Option<&'a [f32]>) -> Attention<'a> {
    let Attend { offsets, heads, kv_heads, width, scale, dropout, queries, sight, precision, .. } = *attend;
    let bias = bias.zip(attend.bias).map(|(table, (_, reach))| RelativeBias { table, reach });
    Attention { offsets, heads, kv_heads, width, scale, bias, dropout, queries, sight, precision }
}

pub(super) fn inputs<'a>(attend: &Attend, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Inputs<'a> {
    let (wide, pair) = (attend.heads * attend.width, attend.kv_heads * attend.width);
    Inputs {
        q: Columns { data: q, stride: wide },
        k: Columns { data: k, stride: pair },
        v: Columns { data: v, stride: pair },
    }
}
