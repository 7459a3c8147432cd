//! Frozen matrices that keep the storage of their file: half precision, or blocks of few bits a
//! value (GGUF's types).
//!
//! The one rule that is not obvious: a block never crosses a row, so any row can be widened by
//! itself.

pub(crate) mod dot;
pub(crate) mod half;
pub(crate) mod layout;
mod quantize;
mod widen;

use std::ops::Range;
use std::sync::Arc;

pub use quantize::QuantizeError;
use widen::Piece;

use crate::cpu::fetch_second;
use crate::mapped::MappedFile;

/// How values are stored. The block types are those of GGUF files, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// Values in a block.
    pub const fn values(self) -> usize {
        use BlockType::*;
        match self {
            F16 | Bf16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q4K | Q5K | Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        use BlockType::*;
        match self {
            F16 | Bf16 => 2,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q4K => 144,
            Q5K => 176,
            Q6K => 210,
        }
    }

    /// As GGUF's tools write it: `Q4_1`, `Q6_K`.
    pub const fn name(self) -> &'static str {
        use BlockType::*;
        match self {
            F16 => "F16",
            Bf16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
        }
    }

    /// Whole blocks to the f32 that they stand for, bit for bit as ggml's dequantization gives
    /// them. Panics when `blocks` is not as many whole blocks as `out` needs.
    pub fn widen(self, blocks: &[u8], out: &mut [f32]) {
        let size = BlockMatrix::size(self, 1, out.len());
        assert_eq!(size, Some(blocks.len()), "bytes of {} values of {}", out.len(), self.name());
        let (cols, stride) = (0..out.len(), out.len());
        if stride > 0 {
            let row_bytes = blocks.len();
            widen::widen(self, Piece { bytes: blocks, row_bytes, rows: 0..1, cols, out, stride });
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
    /// From byte `from` on.
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
    /// A matrix that owns its blocks; `None` when `bytes` is not exactly as long as (rows, cols)
    /// need, or when a row is not a whole number of blocks.
    pub fn new(kind: BlockType, rows: usize, cols: usize, bytes: Vec<u8>) -> Option<Self> {
        BlockMatrix::owned(kind, rows, cols, bytes, 0)
    }

    /// The same of the bytes from `from` on.
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

    /// A view of the blocks at `offset` bytes into `map`; `None` when they run past its end, or
    /// when a row is not a whole number of blocks.
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

    /// Bytes of a matrix; `None` when a row is not a whole number of blocks, or for more than
    /// memory can have.
    pub fn size(kind: BlockType, rows: usize, cols: usize) -> Option<usize> {
        let blocks = cols.is_multiple_of(kind.values()).then_some(cols / kind.values())?;
        rows.checked_mul(blocks)?.checked_mul(kind.bytes())
    }

    /// The matrix (rows, cols) of these values in another storage: `F16`, `Bf16`, `Q8_0` or `Q4_0`,
    /// with the bits that ggml's reference quantizer writes.
    ///
    /// # Errors
    /// Another type, values that are not rows · cols in whole blocks, and a value that the type
    /// cannot hold.
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

    pub fn kind(&self) -> BlockType {
        self.kind
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

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

    /// Whether the blocks lie in a mapped file, and not in memory of their own.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped { .. })
    }

    /// Lets the system take back the pages of these rows, where they are mapped. They are read anew
    /// when they are needed.
    pub fn release(&self, rows: Range<usize>) {
        if let Storage::Mapped { map, offset } = &self.storage {
            let at = |row: usize| offset + row * self.row_bytes();
            map.release(at(rows.start)..at(rows.end));
        }
    }

    /// Columns `cols` of row `row` as f32, (cols). Any range will do; one that starts and ends at
    /// multiples of 16 is fastest. Panics when it is not inside the matrix or not as long as `out`.
    pub fn widen_row_range(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        assert_eq!(cols.len(), out.len(), "values of columns {cols:?}");
        assert!(row < self.rows, "row {row} of {self:?}");
        let stride = out.len();
        self.widen(row..row + 1, cols, out, stride);
    }

    /// Columns `cols` of the rows `rows`, into rows of `out` that start `stride` apart.
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
            widen::widen(self.kind, Piece { bytes: self.bytes(), row_bytes, rows, cols, out, stride });
        }
    }

    /// Asks for columns `cols` of the rows `rows`, as far as there are such rows, to be brought
    /// into the cache.
    pub(crate) fn prefetch(&self, rows: Range<usize>, cols: Range<usize>) {
        let at = |col: usize| col / self.kind.values() * self.kind.bytes();
        for row in rows.start..rows.end.min(self.rows) {
            fetch_second(&self.bytes()[row * self.row_bytes()..][at(cols.start)..at(cols.end)]);
        }
    }
}

impl std::fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}, {}]", self.kind.name(), self.rows, self.cols)
    }
}
