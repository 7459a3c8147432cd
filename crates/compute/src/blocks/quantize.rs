//! Converts f32 to half precision or quantized blocks, as ggml's reference quantizer does.

use rayon::prelude::*;

use super::half::{to_bf16, to_f16};
use super::{BlockMatrix, BlockType};
use crate::cpu::vectorised;

/// Why values cannot be stored as blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QuantizeError {
    /// The type is not F16, BF16, Q8_0 or Q4_0.
    Kind(BlockType),
    /// A row is not a whole number of blocks, or there are not rows · cols values.
    Shape { kind: BlockType, rows: usize, cols: usize, values: usize },
    /// The value at this row and column is not finite, or too large for the type.
    Value { kind: BlockType, row: usize, col: usize, value: f32 },
}

impl std::fmt::Display for QuantizeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            QuantizeError::Kind(kind) => {
                write!(f, "weights cannot be quantized to {}; use F16, BF16, Q8_0 or Q4_0", kind.name())
            }
            QuantizeError::Shape { kind, rows, cols, values } => write!(
                f,
                "{values} values of a matrix ({rows}, {cols}) do not fit {}, whose rows are whole blocks of {} values",
                kind.name(),
                kind.values(),
            ),
            QuantizeError::Value { kind, row, col, value } => {
                write!(f, "row {row}, column {col} is {value}, which {} cannot hold", kind.name())
            }
        }
    }
}

impl std::error::Error for QuantizeError {}

/// Approximate number of values that a task checks, and of bytes that a task writes.
const TASK: usize = 1 << 16;

/// See `BlockMatrix::quantize`.
pub fn quantize(
    kind: BlockType,
    rows: usize,
    cols: usize,
    values: &[f32],
) -> Result<BlockMatrix, QuantizeError> {
    if !matches!(kind, BlockType::F16 | BlockType::Bf16 | BlockType::Q8_0 | BlockType::Q4_0) {
        return Err(QuantizeError::Kind(kind));
    }
    let wrong_shape = QuantizeError::Shape { kind, rows, cols, values: values.len() };
    let size = BlockMatrix::size(kind, rows, cols).ok_or(wrong_shape)?;
    if rows.checked_mul(cols) != Some(values.len()) {
        return Err(wrong_shape);
    }
    // The largest f16 is 65504, and half a unit in the last place more would round to infinity. The
    // block types store an f16 scale, which is a 127th or an eighth of a block's largest value.
    let limit = match kind {
        BlockType::F16 => 65520.0,
        BlockType::Q8_0 => 65504.0 * 127.0,
        BlockType::Q4_0 => 65504.0 * 8.0,
        _ => f32::from_bits(0x7f7f_8000), // the largest bf16, and half a unit in the last place
    };
    // The first such value in row-major order, whatever the threads.
    let wrong = values.par_chunks(TASK).enumerate().find_map_first(|(number, values)| {
        let wrong = !all_below(values, limit);
        let place = if wrong { values.iter().position(|x| x.is_nan() || x.abs() >= limit) } else { None };
        place.map(|at| number * TASK + at)
    });
    if let Some(at) = wrong {
        return Err(QuantizeError::Value { kind, row: at / cols, col: at % cols, value: values[at] });
    }
    let mut bytes = vec![0; size];
    let blocks = TASK / kind.bytes();
    bytes
        .par_chunks_mut(blocks * kind.bytes())
        .zip(values.par_chunks(blocks * kind.values()))
        .for_each(|(out, values)| write_blocks(kind, values, out));
    Ok(BlockMatrix::new(kind, rows, cols, bytes).expect("the size was asked for"))
}

vectorised! {
    fn all_below(values: &[f32], limit: f32) -> bool {
        // No early exit, so that the compiler vectorises the loop.
        values.iter().fold(true, |all, x| all & (x.abs() < limit))
    }
}

vectorised! {
    fn write_blocks(kind: BlockType, values: &[f32], out: &mut [u8]) {
        match kind {
            BlockType::Q8_0 => {
                for (x, out) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<34>().0) {
                    write_q8_0(x, out);
                }
            }
            BlockType::Q4_0 => {
                for (x, out) in values.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<18>().0) {
                    write_q4_0(x, out);
                }
            }
            BlockType::Bf16 => {
                for (&x, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = to_bf16(x).to_le_bytes();
                }
            }
            _ => {
                for (&x, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = to_f16(x).to_le_bytes();
                }
            }
        }
    }
}

/// Returns the factor that maps a block of scale `d` to its integers; 0 for a block of zeros.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn write_q8_0(x: &[f32; 32], out: &mut [u8; 34]) {
    let largest = x.iter().fold(0.0f32, |m, x| if x.abs() > m { x.abs() } else { m });
    let d = largest / 127.0;
    let inverse = inverse(d);
    out[..2].copy_from_slice(&to_f16(d).to_le_bytes());
    for (o, &x) in out[2..].iter_mut().zip(x) {
        *o = (x * inverse).round() as i32 as u8;
    }
}

#[inline(always)]
fn write_q4_0(x: &[f32; 32], out: &mut [u8; 18]) {
    // The first value of the largest magnitude, with its sign, maps to −8.
    let largest = x.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let d = largest / -8.0;
    let inverse = inverse(d);
    out[..2].copy_from_slice(&to_f16(d).to_le_bytes());
    let quant = |x: f32| ((x * inverse + 8.5) as i32).clamp(0, 15) as u8;
    for (i, o) in out[2..].iter_mut().enumerate() {
        *o = quant(x[i]) | quant(x[i + 16]) << 4;
    }
}
