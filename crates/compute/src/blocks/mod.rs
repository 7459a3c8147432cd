//! Frozen matrices in the storage of their file: half precision, or quantized blocks (GGUF's
//! types).
//!
//! A block never crosses a row boundary, so any row can be widened by itself.

pub(crate) mod dot;
pub(crate) mod half;
pub(crate) mod layout;
mod quantize;
mod widen;

use std::ops::Range;
use std::sync::Arc;

pub use quantize::QuantizeError;
use rayon::prelude::*;
use widen::MatrixPart;

use crate::cpu::prefetch_l2;
use crate::mapped::MappedFile;

/// The storage of values: half precision, or GGUF's block types, with 32 values per block, or 256
/// for `K` and `Xs`. The number in a name is the bits per value; the bit layout is that of GGUF
/// files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
}

impl BlockType {
    /// Every type.
    pub const ALL: [BlockType; 14] = {
        use BlockType::*;
        [F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs]
    };

    /// Returns the values and bytes of a block, and the name.
    const fn block(self) -> (usize, usize, &'static str) {
        match self {
            BlockType::F16 => (1, 2, "F16"),
            BlockType::Bf16 => (1, 2, "BF16"),
            BlockType::Q4_0 => (32, 18, "Q4_0"),
            BlockType::Q4_1 => (32, 20, "Q4_1"),
            BlockType::Q5_0 => (32, 22, "Q5_0"),
            BlockType::Q5_1 => (32, 24, "Q5_1"),
            BlockType::Q8_0 => (32, 34, "Q8_0"),
            BlockType::Q2K => (256, 84, "Q2_K"),
            BlockType::Q3K => (256, 110, "Q3_K"),
            BlockType::Q4K => (256, 144, "Q4_K"),
            BlockType::Q5K => (256, 176, "Q5_K"),
            BlockType::Q6K => (256, 210, "Q6_K"),
            BlockType::Iq4Nl => (32, 18, "IQ4_NL"),
            BlockType::Iq4Xs => (256, 136, "IQ4_XS"),
        }
    }

    /// Number of values in a block.
    pub const fn values(self) -> usize {
        self.block().0
    }

    /// Number of bytes of a block.
    pub const fn bytes(self) -> usize {
        self.block().1
    }

    /// The name in GGUF's tools: `Q4_1`, `Q6_K`.
    pub const fn name(self) -> &'static str {
        self.block().2
    }

    /// Converts whole blocks to f32 with the same bits as ggml.
    ///
    /// # Panics
    /// `blocks` has another length than the blocks of `out`.
    pub fn widen(self, blocks: &[u8], out: &mut [f32]) {
        let size = BlockMatrix::size(self, 1, out.len());
        assert_eq!(size, Some(blocks.len()), "bytes of {} values of {}", out.len(), self.name());
        let (cols, stride) = (0..out.len(), out.len());
        if stride > 0 {
            let row_bytes = blocks.len();
            widen::widen(self, MatrixPart { bytes: blocks, row_bytes, rows: 0..1, cols, out, stride });
        }
    }
}

/// An immutable matrix (rows, cols) in blocks. Cloning is cheap (the storage is shared).
#[derive(Clone)]
pub struct BlockMatrix {
    kind: BlockType,
    rows: usize,
    cols: usize,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// The blocks start at byte `from`.
    Owned {
        bytes: Arc<Vec<u8>>,
        from: usize,
    },
    Mapped {
        map: Arc<MappedFile>,
        offset: usize,
    },
}

impl BlockMatrix {
    /// A matrix that owns its blocks; None if `bytes` has another length than (rows, cols) needs,
    /// or a row is not a whole number of blocks.
    pub fn new(kind: BlockType, rows: usize, cols: usize, bytes: Vec<u8>) -> Option<Self> {
        BlockMatrix::owned(kind, rows, cols, bytes, 0)
    }

    /// As `new`, for the bytes from `from` on.
    pub(crate) fn owned(
        kind: BlockType,
        rows: usize,
        cols: usize,
        bytes: Vec<u8>,
        from: usize,
    ) -> Option<Self> {
        (Self::size(kind, rows, cols)?.checked_add(from)? == bytes.len()).then(|| BlockMatrix {
            kind,
            rows,
            cols,
            storage: Storage::Owned { bytes: Arc::new(bytes), from },
        })
    }

    /// A view of the blocks at `offset` bytes in `map`; None if they extend past its end, or a row
    /// is not a whole number of blocks.
    pub fn mapped(
        kind: BlockType,
        rows: usize,
        cols: usize,
        map: Arc<MappedFile>,
        offset: usize,
    ) -> Option<Self> {
        let fits = offset.checked_add(Self::size(kind, rows, cols)?)? <= map.len();
        fits.then_some(BlockMatrix { kind, rows, cols, storage: Storage::Mapped { map, offset } })
    }

    /// Bytes of a matrix; None if a row is not a whole number of blocks or the number overflows.
    pub fn size(kind: BlockType, rows: usize, cols: usize) -> Option<usize> {
        let blocks = cols.is_multiple_of(kind.values()).then_some(cols / kind.values())?;
        rows.checked_mul(blocks)?.checked_mul(kind.bytes())
    }

    /// Converts row-major values to another storage, `F16`, `Bf16`, `Q8_0` or `Q4_0`, with the bits
    /// that ggml's reference quantizer writes.
    ///
    /// # Errors
    /// Another type, a number of values that is not rows · cols in whole blocks, and a value that
    /// the type cannot hold.
    pub fn quantize(
        kind: BlockType,
        rows: usize,
        cols: usize,
        values: &[f32],
    ) -> Result<Self, QuantizeError> {
        quantize::quantize(kind, rows, cols, values)
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.cols / self.kind.values() * self.kind.bytes()
    }

    /// How its values are stored.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All blocks, row after row.
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned { bytes, from } => &bytes[*from..],
            Storage::Mapped { map, offset } => {
                let size = Self::size(self.kind, self.rows, self.cols).expect("checked by `mapped`");
                &map[*offset..*offset + size]
            }
        }
    }

    /// All values in f32, row-major.
    pub fn values(&self) -> Vec<f32> {
        const BLOCKS: usize = 1 << 12;
        let (values, bytes) = (BLOCKS * self.kind.values(), BLOCKS * self.kind.bytes());
        let mut all = vec![0.0; self.rows * self.cols];
        let parts = all.par_chunks_mut(values).zip(self.bytes().par_chunks(bytes));
        parts.for_each(|(out, blocks)| self.kind.widen(blocks, out));
        all
    }

    /// Whether the blocks are in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped { .. })
    }

    /// Lets the system reclaim the pages of these rows if they are mapped. They are read again when
    /// they are needed.
    pub fn release(&self, rows: Range<usize>) {
        if let Storage::Mapped { map, offset } = &self.storage {
            let at = |row: usize| offset + row * self.row_bytes();
            map.release(at(rows.start)..at(rows.end));
        }
    }

    /// Converts columns `cols` of row `row` to f32, into `out`, (cols). A range between multiples
    /// of 16 is fastest.
    ///
    /// # Panics
    /// The range is not inside the matrix, or `out` has another length.
    pub fn widen_row_range(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        assert_eq!(cols.len(), out.len(), "values of columns {cols:?}");
        assert!(row < self.rows, "row {row} of {self:?}");
        let stride = out.len();
        self.widen(row..row + 1, cols, out, stride);
    }

    /// Converts columns `cols` of the rows `rows` to f32, into rows of `out` that start `stride`
    /// apart.
    pub(crate) fn widen(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32], stride: usize) {
        assert!(
            rows.end <= self.rows && cols.end <= self.cols,
            "rows {rows:?}, columns {cols:?} of {self:?}"
        );
        assert!(
            rows.is_empty() || (stride >= cols.len() && (rows.len() - 1) * stride + cols.len() <= out.len()),
            "({rows:?}, {cols:?}) with stride {stride} does not fit into {}",
            out.len()
        );
        let row_bytes = self.row_bytes();
        if !rows.is_empty() && !cols.is_empty() {
            widen::widen(self.kind, MatrixPart { bytes: self.bytes(), row_bytes, rows, cols, out, stride });
        }
    }

    /// Prefetches columns `cols` of the rows `rows`, leaving out rows past the end.
    pub(crate) fn prefetch(&self, rows: Range<usize>, cols: Range<usize>) {
        let at = |col: usize| col / self.kind.values() * self.kind.bytes();
        for row in rows.start..rows.end.min(self.rows) {
            prefetch_l2(&self.bytes()[row * self.row_bytes()..][at(cols.start)..at(cols.end)]);
        }
    }
}

impl std::fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}, {}]", self.kind.name(), self.rows, self.cols)
    }
}
