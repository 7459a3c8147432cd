//! Activations in one buffer that is made once and reused by every step.

/// Hands out disjoint pieces of a buffer. Their contents are whatever was there: every operation
/// overwrites its output (only parameters' gradients are added to).
pub struct Arena<'a> {
    rest: &'a mut [f32],
}

impl<'a> Arena<'a> {
    /// An arena over `buffer`, which grows to `len` floats if it is smaller and never shrinks.
    pub fn new(buffer: &'a mut Vec<f32>, len: usize) -> Self {
        if buffer.len() < len {
            // Not resize: the old contents need not be copied.
            *buffer = vec![0.0; len];
        }
        Arena { rest: &mut buffer[..len] }
    }

    /// The next `len` floats. Panics when the plan was too small: a fault of the program, not of its input.
    pub fn take(&mut self, len: usize) -> &'a mut [f32] {
        let rest = std::mem::take(&mut self.rest);
        assert!(len <= rest.len(), "the arena was planned {} floats too small", len - rest.len());
        let (piece, rest) = rest.split_at_mut(len);
        self.rest = rest;
        piece
    }

    /// What is left, to take from and to give back at the end of the scope.
    pub fn scope(&mut self) -> Arena<'_> {
        Arena { rest: self.rest }
    }
}
