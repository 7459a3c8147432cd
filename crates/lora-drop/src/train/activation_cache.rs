//! Activations that no training step changes, computed once: with `--unselected drop` the blocks
//! below the lowest one that trains give each row the same output in every epoch, unless they have
//! dropout.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lora_drop_compute::profile::{self, Work};
use lora_drop_transformer::{AdapterTable, Model, Sequences};

use crate::{Error, Result};

/// The lower blocks' outputs, row by row in an unnamed file. The file is gone when the run ends,
/// however it ends, and the system keeps as much of it in memory as there is room.
pub struct ActivationCache {
    /// Number of lower blocks.
    pub blocks: usize,
    hidden_size: usize,
    file: File,
    state: Mutex<CacheState>,
    limit_bytes: u64,
}

/// The contents of the file.
struct CacheState {
    /// Where each row's values begin in the file, in bytes.
    offsets: Vec<Option<u64>>,
    used_bytes: u64,
    /// The error after which nothing more is saved, until `take_failure` returns it.
    error: Option<std::io::Error>,
    closed: bool,
}

impl CacheState {
    /// Stops saving: the file only saves time, and its failure must not end the run.
    fn close(&mut self, error: std::io::Error) {
        if !self.closed {
            (self.closed, self.error) = (true, Some(error));
        }
    }
}

/// Number of lowest blocks in which nothing trains; without dropout they give the same output in
/// every step.
pub fn cacheable_blocks(model: &Model, table: &AdapterTable) -> usize {
    // The last block of an encoder computes first tokens alone, so it is never among them.
    model.net.lowest_trained_block(table).unwrap_or(model.layers() - 1)
}

impl ActivationCache {
    /// Creates a file in `folder` for the outputs of `rows` rows, at most `limit_bytes` bytes.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new(
        blocks: usize,
        hidden_size: usize,
        rows: usize,
        limit_bytes: u64,
        folder: &Path,
    ) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        let state =
            Mutex::new(CacheState { offsets: vec![None; rows], used_bytes: 0, error: None, closed: false });
        Ok(ActivationCache { blocks, hidden_size, file, state, limit_bytes })
    }

    /// Returns the output of the lower blocks for these rows, (tokens, hidden). It is read from the
    /// file if it has all rows, and is otherwise computed by `compute` for all rows and saved as
    /// long as there is room. Several threads may call this concurrently, each for other rows.
    /// After a failure the file is no longer used.
    ///
    /// # Errors
    /// Those of `compute`.
    pub fn output(
        &self,
        rows: &[usize],
        sequences: Sequences,
        compute: impl FnOnce(Sequences, usize) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let _phase = profile::phase("lower blocks");
        let spans =
            sequences.offsets.windows(2).map(|ends| ends[0] * self.hidden_size..ends[1] * self.hidden_size);
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let offsets: Option<Vec<u64>> = {
            let state = lock();
            rows.iter().map(|&row| state.offsets[row]).collect()
        };
        if let Some(offsets) = offsets {
            // On other systems threads share the file's position, so they read under the lock.
            let alone = cfg!(not(unix)).then(lock);
            let mut output = vec![0.0; sequences.ids.len() * self.hidden_size];
            let _span = profile::operation("reading cached output", || Work::floats(2 * output.len()));
            let mut parts = offsets.into_iter().zip(spans.clone());
            match parts.try_for_each(|(offset, span)| read(&self.file, offset, &mut output[span])) {
                Ok(()) => return Ok(output),
                Err(error) => {
                    let mut state = alone.unwrap_or_else(lock);
                    state.close(error);
                    state.offsets.fill(None);
                }
            }
        }
        let output = compute(sequences, self.blocks)?;
        let _span = profile::operation("caching output", || Work::floats(2 * output.len()));
        let mut state = lock();
        for (&row, span) in rows.iter().zip(spans) {
            let bytes = 4 * span.len() as u64;
            if state.offsets[row].is_none() && !state.closed && state.used_bytes + bytes <= self.limit_bytes {
                match write(&self.file, state.used_bytes, &output[span]) {
                    Ok(()) => {
                        state.offsets[row] = Some(state.used_bytes);
                        state.used_bytes += bytes;
                    }
                    Err(error) => state.close(error),
                }
            }
        }
        Ok(output)
    }

    /// Returns the error after which nothing more is saved, once.
    pub fn take_failure(&self) -> Option<String> {
        let error = self.state.lock().unwrap_or_else(PoisonError::into_inner).error.take()?;
        Some(format!(
            "no more of the lower blocks' output is saved to disk ({error}); what is missing is computed in each epoch"
        ))
    }
}

fn read(file: &File, offset: u64, values: &mut [f32]) -> std::io::Result<()> {
    let mut bytes = vec![0; 4 * values.len()];
    read_exact_at(file, &mut bytes, offset)?;
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(())
}

fn write(file: &File, offset: u64, values: &[f32]) -> std::io::Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    write_all_at(file, &bytes, offset)
}

#[cfg(unix)]
use std::os::unix::fs::FileExt;

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    file.read_exact_at(bytes, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    file.write_all_at(bytes, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

#[cfg(not(unix))]
fn write_all_at(mut file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that takes no more, as on a full disk, and one that cannot be read cost time and
    /// nothing else.
    #[test]
    fn a_failing_file_is_no_longer_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        std::fs::write(&path, "").unwrap();
        let mut cache = ActivationCache::new(1, 2, 3, 1 << 20, folder.path()).unwrap();
        let sequences = Sequences { ids: &[7, 8, 9], types: &[0, 0, 0], offsets: &[0, 1, 3], labelled: &[] };
        let output = |cache: &ActivationCache| {
            let compute = |_: Sequences, _| Ok(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            cache.output(&[0, 2], sequences, compute).unwrap()
        };
        let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!((output(&cache), output(&cache)), (expected.to_vec(), expected.to_vec()));
        assert!(cache.take_failure().is_none());

        // Written, and then only for writing: reading fails.
        cache.file = File::options().write(true).open(&path).unwrap();
        assert_eq!(output(&cache), expected);
        assert!(
            cache.take_failure().unwrap().contains("no more of the lower blocks' output is saved to disk")
        );
        assert!(cache.take_failure().is_none(), "it is reported once");

        let mut cache = ActivationCache::new(1, 2, 3, 1 << 20, folder.path()).unwrap();
        cache.file = File::open(&path).unwrap();
        assert_eq!((output(&cache), output(&cache)), (expected.to_vec(), expected.to_vec()));
        assert!(cache.take_failure().is_some());
    }
}
