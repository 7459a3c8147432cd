//! A slice that tasks write at the same time, each of them other elements.

/// A pointer to the rows of a matrix, which tasks share.
#[derive(Clone, Copy)]
pub struct OutputSlice {
    data: *mut f32,
    len: usize,
    stride: usize,
}
// SAFETY: tasks write disjoint elements, as the callers of `columns` and `write` promise.
unsafe impl Send for OutputSlice {}
unsafe impl Sync for OutputSlice {}

impl OutputSlice {
    /// The slice, with rows that start `stride` elements apart.
    pub fn new(x: &mut [f32], stride: usize) -> Self {
        OutputSlice { data: x.as_mut_ptr(), len: x.len(), stride }
    }

    /// Returns `width` columns of a row, from column `first` on.
    ///
    /// # Safety
    /// The slice that this was made of is borrowed during 'a, and no one else accesses these
    /// elements.
    #[inline]
    pub unsafe fn columns<'a>(self, row: usize, first: usize, width: usize) -> &'a mut [f32] {
        let from = row * self.stride + first;
        assert!(from + width <= self.len);
        // SAFETY: inside the slice by the assertion; the caller promises exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), width) }
    }

    /// Writes the element with this index.
    ///
    /// # Safety
    /// The slice that this was made of is borrowed, and no one else accesses the element during the
    /// call.
    #[inline]
    pub unsafe fn write(self, at: usize, value: f32) {
        assert!(at < self.len);
        // SAFETY: inside the slice by the assertion; the caller promises exclusive access.
        unsafe { *self.data.add(at) = value }
    }
}
