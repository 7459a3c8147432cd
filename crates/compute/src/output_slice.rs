//! A slice to which concurrent tasks write disjoint elements.

/// A pointer to the rows of a matrix, shared by tasks.
#[derive(Clone, Copy)]
pub struct OutputSlice {
    data: *mut f32,
    len: usize,
    pub stride: usize,
}
// SAFETY: tasks access disjoint elements, as the callers of `columns` and `at` promise.
unsafe impl Send for OutputSlice {}
unsafe impl Sync for OutputSlice {}

impl OutputSlice {
    /// Wraps a slice whose rows start `stride` elements apart.
    pub fn new(x: &mut [f32], stride: usize) -> Self {
        OutputSlice { data: x.as_mut_ptr(), len: x.len(), stride }
    }

    /// Returns `width` columns of a row, from column `first` on.
    ///
    /// # Safety
    /// The wrapped slice is borrowed mutably during 'a, and no one else accesses these elements.
    #[inline]
    pub unsafe fn columns<'a>(self, row: usize, first: usize, width: usize) -> &'a mut [f32] {
        let from = row * self.stride + first;
        assert!(from + width <= self.len);
        // SAFETY: inside the slice by the assertion; the caller promises exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(from), width) }
    }

    /// Returns a pointer to an element.
    ///
    /// # Safety
    /// The element is inside the slice.
    #[inline]
    pub unsafe fn at(self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: the caller promises that the element is inside the slice.
        unsafe { self.data.add(row * self.stride + column) }
    }
}
