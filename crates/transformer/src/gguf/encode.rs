//! f32 values into the types that files are written in: F32, F16, BF16 and Q8_0, rounded as
//! llama.cpp rounds.

use lora_drop_compute::blocks::BlockType;

use super::tensor_type::TensorType;

/// Appends `values`, whole blocks, to `out`. `None` for a type that is not written.
pub(super) fn encode(kind: TensorType, values: &[f32], out: &mut Vec<u8>) -> Option<()> {
    match kind {
        TensorType::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        TensorType::Blocks(BlockType::F16) => {
            values.iter().for_each(|v| out.extend(half::f16::from_f32(*v).to_le_bytes()));
        }
        TensorType::Blocks(BlockType::Bf16) => {
            values.iter().for_each(|v| out.extend(half::bf16::from_f32(*v).to_le_bytes()));
        }
        TensorType::Blocks(BlockType::Q8_0) => {
            let (blocks, _) = values.as_chunks::<32>();
            blocks.iter().for_each(|block| q8_0(block, out));
        }
        _ => return None,
    }
    Some(())
}

/// Whether [`encode`] writes the type.
pub(super) fn is_written(kind: TensorType) -> bool {
    encode(kind, &[], &mut Vec::new()).is_some()
}

/// Whether a value stays finite in the type.
pub(super) fn holds(kind: TensorType, value: f32) -> bool {
    match kind {
        TensorType::Blocks(BlockType::F16) => half::f16::from_f32(value).is_finite(),
        TensorType::Blocks(BlockType::Bf16) => half::bf16::from_f32(value).is_finite(),
        // The block's scale is an f16.
        TensorType::Blocks(BlockType::Q8_0) => half::f16::from_f32(value / 127.0).is_finite(),
        _ => value.is_finite(),
    }
}

/// A scale in f16, and 32 whole numbers from -127 to 127. The numbers come from the scale before it
/// is rounded, as llama.cpp has it.
fn q8_0(values: &[f32; 32], out: &mut Vec<u8>) {
    let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(half::f16::from_f32(scale).to_le_bytes());
    out.extend(values.map(|v| (v * inverse).round() as i8 as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q8_0_keeps_signs_extremes_and_zero() {
        let mut values = [0.0f32; 32];
        values[..4].copy_from_slice(&[127.0, -127.0, 63.5, -0.4]);
        let mut out = Vec::new();
        q8_0(&values, &mut out);
        assert_eq!(out.len(), 34);
        assert_eq!(out[..2], half::f16::from_f32(1.0).to_le_bytes());
        // Halves are rounded away from zero.
        assert_eq!(out[2..7].iter().map(|b| *b as i8).collect::<Vec<_>>(), [127, -127, 64, 0, 0]);
        let mut zeros = Vec::new();
        q8_0(&[0.0; 32], &mut zeros);
        assert_eq!(zeros, [0; 34]);
    }
}
