//! What the ranks of a job but the first keep of a run: nothing, for they have its state.

use std::path::PathBuf;

use tempfile::TempDir;

use super::Keeper;
use super::learner::Learner;
use super::state::Best;
use crate::events::Event;
use crate::score::record::Record;
use crate::{Error, Result, finite};

/// Keeps nothing.
pub struct Follower {
    /// Where activations are kept that no step changes.
    scratch: TempDir,
}

impl Follower {
    /// # Errors
    /// `Error::Io` where no temporary folder can be made.
    pub fn new() -> Result<Self> {
        let scratch = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), e))?;
        Ok(Follower { scratch })
    }
}

impl Keeper for Follower {
    fn scratch(&self) -> PathBuf {
        self.scratch.path().to_path_buf()
    }

    fn record(&mut self, _: &Event, _: &mut dyn FnMut(&Event)) {}

    fn scored(&mut self, _: &Learner, _: &Record, _: &mut dyn FnMut(&Event)) -> Result<()> {
        Ok(())
    }

    fn epoch(&mut self, learner: &mut Learner, best: Option<Best>) -> Result<Vec<PathBuf>> {
        if best.is_some() {
            finite::check_parameters(&learner.state.parameters)?;
            learner.state.progress.best = best;
        }
        Ok(Vec::new())
    }

    fn checkpoint(&mut self, _: &Learner, _: bool, _: &mut dyn FnMut(&Event)) {}
}
