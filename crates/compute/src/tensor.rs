//! A weight in memory: a shape and f32 values, owned or mapped from a checkpoint file.
//!
//! A mapped tensor keeps its file mapped, and nothing is copied; pages that are not read never
//! become resident.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::mapped::MappedFile;

/// An immutable, row-major tensor of f32. Cloning is cheap (the storage is shared).
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Owned(Arc<Vec<f32>>),
    /// `offset` in bytes, a multiple of 4 from the map's (page-aligned) start.
    Mapped {
        map: Arc<MappedFile>,
        offset: usize,
    },
}

impl Tensor {
    /// A tensor that owns its values.
    ///
    /// # Panics
    /// `shape` does not hold exactly `values.len()` elements.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} does not fit");
        Tensor { shape, storage: Storage::Owned(Arc::new(values)) }
    }

    /// A view of little-endian f32 at `offset` bytes in `map`; None if it is misaligned or extends
    /// past the end.
    pub fn mapped(shape: Vec<usize>, map: Arc<MappedFile>, offset: usize) -> Option<Self> {
        let bytes = shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d))?;
        let fits = offset.checked_add(bytes)? <= map.len();
        let usable = cfg!(target_endian = "little") && offset.is_multiple_of(4);
        (fits && usable).then_some(Tensor { shape, storage: Storage::Mapped { map, offset } })
    }

    /// Its sizes, the outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether the values are in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped { .. })
    }

    /// Lets the system reclaim the pages of these values if they are mapped. They are read again
    /// when they are needed.
    pub fn release(&self, values: Range<usize>) {
        if let Storage::Mapped { map, offset } = &self.storage {
            map.release(offset + 4 * values.start..offset + 4 * values.end);
        }
    }
}

impl Deref for Tensor {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.storage {
            Storage::Owned(values) => values,
            Storage::Mapped { map, offset } => {
                let len = self.shape.iter().product();
                // SAFETY: `mapped` checked bounds and alignment, any bit pattern is an f32, and the
                // Arc keeps the map alive.
                unsafe { std::slice::from_raw_parts(map.as_ptr().add(*offset).cast::<f32>(), len) }
            }
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}
