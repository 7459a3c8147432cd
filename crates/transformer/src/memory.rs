//! The memory of passes, what determines its size, and the memory of a model's weights.

use std::ops::Range;
use std::sync::Arc;

use lora_drop_compute::device::{Cpu, Device, Storage};
use lora_drop_compute::gemm::{PackedMatrix, Precision};
use lora_drop_compute::rotary::RotaryTable;

use crate::linear::{FrozenForm, LinearWeights, Weight};

/// Memory for the activations of passes, allocated once and reused.
pub struct Memory<D: Device = Cpu> {
    pub(crate) buffer: D::Memory,
    /// Floats of the largest pass so far.
    pub(crate) most: usize,
    pub(crate) rotary: Vec<Arc<RotaryTable>>,
}

impl<D: Device> Default for Memory<D> {
    fn default() -> Self {
        Memory { buffer: D::Memory::default(), most: 0, rotary: Vec::new() }
    }
}

impl<D: Device> Memory<D> {
    /// Bytes of the largest pass so far.
    pub fn used_bytes(&self) -> usize {
        size_of::<f32>() * self.most
    }
}

impl Memory {
    /// Makes room for passes of `len` f32, which become resident as they are used.
    pub fn reserve(&mut self, len: usize) {
        Cpu.room(&mut self.buffer, len).expect("the CPU's memory is the process's");
    }

    /// The contents after the last pass.
    pub fn floats(&self) -> &[f32] {
        &self.buffer
    }
}

/// Which activations of each block a pass saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None: there is no backward pass.
    One,
    /// The block's input. The backward pass recomputes the rest.
    Inputs,
    /// All that the backward pass needs.
    All,
}

impl Keep {
    /// Returns what a training pass saves.
    pub fn of_training(recompute: bool) -> Self {
        if recompute { Keep::Inputs } else { Keep::All }
    }
}

/// The sizes that determine how many floats of activations a pass takes
/// ([`Network::floats`](crate::Network::floats)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassSize {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens that are predicted and learned, or that have labels; 0 for a model with a head for
    /// sequences.
    pub learned: usize,
    pub keep: Keep,
    /// Whether the adapters' inputs have dropout.
    pub lora_dropout: bool,
    /// Whether modules are scored, which takes more memory in an encoder's last block.
    pub scored: bool,
    /// Whether the last block computes every token, although the head reads few.
    pub every_token: bool,
}

impl PassSize {
    /// Returns the size of a pass without a backward pass over sequences that start at these
    /// offsets, for a model with a head.
    pub(crate) fn of_forward(offsets: &[usize], scored: bool) -> Self {
        let sequences = offsets.len() - 1;
        let (keep, lora_dropout) = (Keep::One, false);
        PassSize {
            tokens: offsets[sequences],
            sequences,
            learned: 0,
            keep,
            lora_dropout,
            scored,
            every_token: false,
        }
    }

    /// Returns the size of a training pass over sequences that start at these offsets, for a model
    /// with a head.
    pub fn of_training(offsets: &[usize], recompute: bool, lora_dropout: bool, scored: bool) -> Self {
        let keep = Keep::of_training(recompute);
        PassSize { keep, lora_dropout, ..PassSize::of_forward(offsets, scored) }
    }
}

/// Bytes of frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// In mapped files.
    pub mapped: usize,
    /// In copies: widened, quantized, rounded or packed.
    pub copied: usize,
}

/// Bytes of a mapped file that a page fault makes resident together: Linux's `fault_around_bytes`.
const AROUND: usize = 64 << 10;

/// Counter of the bytes of frozen weights.
#[derive(Default)]
pub(crate) struct FrozenWeights {
    /// Ranges of pieces of `AROUND` bytes that mapped weights touch. If the matrices are copies,
    /// the vectors between them in the file are small and far apart, and each makes a whole piece
    /// resident.
    pieces: Vec<Range<usize>>,
    copied: usize,
}

impl FrozenWeights {
    pub fn add(&mut self, weight: &Weight) {
        match (weight, place(weight)) {
            (Weight::Frozen(Storage::Packed(matrix)), _) => self.copied += matrix.bytes(),
            (_, Some((bytes, true))) => self.add_mapped(bytes),
            (_, Some((bytes, false))) => self.copied += bytes.len(),
            (_, None) => {}
        }
    }

    /// Adds a layer whose matrix will be stored in this form.
    pub fn add_linear(&mut self, linear: &LinearWeights, form: FrozenForm) {
        match (form, linear.precision, &linear.weight) {
            (FrozenForm::Rounded, Precision::Bf16, Weight::Frozen(Storage::F32(tensor))) => {
                self.copied += Precision::Bf16.bytes() * tensor.len();
            }
            (FrozenForm::Packed, precision, Weight::Frozen(Storage::F32(_))) => {
                self.copied += PackedMatrix::bytes_for(precision, linear.output, linear.input);
            }
            _ => self.add(&linear.weight),
        }
        linear.bias.iter().for_each(|bias| self.add(bias));
    }

    fn add_mapped(&mut self, bytes: Range<usize>) {
        self.pieces.push(bytes.start / AROUND..bytes.end.div_ceil(AROUND));
    }

    pub fn bytes(mut self) -> WeightBytes {
        self.pieces.sort_by_key(|pieces| pieces.start);
        let (mut count, mut next) = (0, 0);
        for Range { start, end } in self.pieces {
            count += end.saturating_sub(start.max(next));
            next = next.max(end);
        }
        WeightBytes { mapped: count * AROUND, copied: self.copied }
    }
}

/// Returns the bytes of a table of embeddings that are resident once its `used` rows have been
/// read: all of a copy; of a mapped table, the pieces of `AROUND` bytes that contain the rows.
pub(crate) fn embedding_bytes(table: &Weight, used: &[bool]) -> usize {
    let Some((bytes, mapped)) = place(table) else { return 0 };
    if !mapped || used.is_empty() {
        return bytes.len();
    }
    let row = bytes.len() / used.len();
    let mut touched = FrozenWeights::default();
    for (number, _) in used.iter().enumerate().filter(|(_, used)| **used) {
        let start = bytes.start + number * row;
        touched.add_mapped(start..start + row);
    }
    bytes.len().min(touched.bytes().mapped)
}

/// Returns the addresses of a frozen weight that is stored by rows, and whether they are in a
/// mapped file.
fn place(weight: &Weight) -> Option<(Range<usize>, bool)> {
    let (start, bytes, mapped) = match weight {
        Weight::Frozen(Storage::F32(tensor)) => {
            (tensor.as_ptr() as usize, size_of::<f32>() * tensor.len(), tensor.is_mapped())
        }
        Weight::Frozen(Storage::Blocks(matrix)) => {
            (matrix.bytes().as_ptr() as usize, matrix.bytes().len(), matrix.is_mapped())
        }
        Weight::Frozen(Storage::Packed(_)) | Weight::Trained(_) => return None,
    };
    Some((start..start + bytes, mapped))
}
