//! The flag that asks a running operation to stop: raised by Ctrl-C in the binary, by any thread in
//! the library's user.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that clones share. Long operations look at it between steps and end in good order.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag itself, for loops that know nothing of this type.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// `Error::Interrupted` once the flag is up, for use with `?` in a loop.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
