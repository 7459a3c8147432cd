//! Types of a GGUF file's tensors, by their numbers in files.

use lora_drop_compute::blocks::{BlockMatrix, BlockType};

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    F32,
    /// Half precision, or blocks of few bits per value.
    Blocks(BlockType),
}

/// All supported types, by number.
const KNOWN: [(u32, TensorType); 15] = [
    (0, TensorType::F32),
    (1, TensorType::Blocks(BlockType::F16)),
    (2, TensorType::Blocks(BlockType::Q4_0)),
    (3, TensorType::Blocks(BlockType::Q4_1)),
    (6, TensorType::Blocks(BlockType::Q5_0)),
    (7, TensorType::Blocks(BlockType::Q5_1)),
    (8, TensorType::Blocks(BlockType::Q8_0)),
    (10, TensorType::Blocks(BlockType::Q2K)),
    (11, TensorType::Blocks(BlockType::Q3K)),
    (12, TensorType::Blocks(BlockType::Q4K)),
    (13, TensorType::Blocks(BlockType::Q5K)),
    (14, TensorType::Blocks(BlockType::Q6K)),
    (20, TensorType::Blocks(BlockType::Iq4Nl)),
    (23, TensorType::Blocks(BlockType::Iq4Xs)),
    (30, TensorType::Blocks(BlockType::Bf16)),
];

/// Types that other programs write and this crate does not support, for the error message.
const OTHERS: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl TensorType {
    /// Returns the type with this number in a file.
    ///
    /// # Errors
    /// The type is not supported; the message names it, if it is known, and the supported types.
    pub(crate) fn from_number(number: u32) -> Result<Self, String> {
        if let Some((_, kind)) = KNOWN.iter().find(|(n, _)| *n == number) {
            return Ok(*kind);
        }
        let seen = match OTHERS.iter().find(|(n, _)| *n == number) {
            Some((_, name)) => format!("{name} (number {number}), which is not supported"),
            None => format!("number {number}, which is not a type of this format"),
        };
        let known: Vec<_> = KNOWN.iter().map(|(_, kind)| kind.name()).collect();
        Err(format!("its type is {seen}; expected one of {}", known.join(", ")))
    }

    /// Returns the type's number in a file.
    pub fn number(self) -> u32 {
        let found = KNOWN.iter().find(|(_, kind)| *kind == self);
        found.expect("every type is in the list").0
    }

    /// Returns the name in GGUF's tools: `F32`, `Q4_1`.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "F32",
            TensorType::Blocks(kind) => kind.name(),
        }
    }

    /// Number of values in a block; a row is a whole number of blocks.
    pub(crate) fn block_values(self) -> usize {
        match self {
            TensorType::F32 => 1,
            TensorType::Blocks(kind) => kind.values(),
        }
    }

    /// Bytes of a row-major tensor; None if its rows are not whole blocks or the number overflows.
    pub fn size(self, shape: &[usize]) -> Option<usize> {
        let (&cols, rest) = shape.split_last()?;
        let rows = rest.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        match self {
            TensorType::F32 => rows.checked_mul(cols)?.checked_mul(4),
            TensorType::Blocks(kind) => BlockMatrix::size(kind, rows, cols),
        }
    }
}
