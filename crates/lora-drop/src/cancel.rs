//! The flag that asks a running operation to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that asks running operations to stop. Clones share it, and any thread may raise it. Long
/// operations check it within each step and then end with [`Error::Interrupted`].
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag; it stays raised.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the flag was raised.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag itself, for the engine's loops, which do not know this type.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// Checks the flag, for use with `?` in a loop.
    ///
    /// # Errors
    /// `Error::Interrupted` if it was raised.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
