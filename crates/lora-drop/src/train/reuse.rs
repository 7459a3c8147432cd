//! Activations that no training step changes, computed once: with `--unselected drop` the blocks
//! below the lowest one that trains give each row the same output in every epoch, unless they have
//! dropout.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lora_drop_compute::profile::{self, Work};
use lora_drop_transformer::{AdapterTable, DropoutRates, Model, Sequences};

use crate::{Error, Result};

/// The lower blocks' outputs, row by row in an unnamed file. The file is gone when the run ends,
/// however it ends, and the system keeps as much of it in memory as there is room.
pub struct Reuse {
    /// Number of lower blocks.
    pub blocks: usize,
    hidden: usize,
    file: File,
    kept: Mutex<Kept>,
    limit: u64,
}

/// The contents of the file.
struct Kept {
    /// Where each row's values begin in the file, in bytes.
    places: Vec<Option<u64>>,
    used: u64,
    /// The error after which nothing more is saved, until `failure` takes it.
    failed: Option<std::io::Error>,
    closed: bool,
}

impl Kept {
    /// Stops saving: the file only saves time, and its failure must not end the run.
    fn close(&mut self, error: std::io::Error) {
        if !self.closed {
            (self.closed, self.failed) = (true, Some(error));
        }
    }
}

/// Number of lowest blocks that give the same output in every step: nothing in them trains, and
/// they have no dropout.
pub fn blocks(model: &Model, table: &AdapterTable, dropout: DropoutRates) -> usize {
    if dropout.hidden > 0.0 || dropout.attention > 0.0 {
        return 0;
    }
    // The last block of an encoder computes first tokens alone, so it is never among them.
    model.net.lowest_trained_block(table).unwrap_or(model.layers() - 1)
}

impl Reuse {
    /// Creates a file in `folder` for the outputs of `rows` rows, at most `limit` bytes.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn new(blocks: usize, hidden: usize, rows: usize, limit: u64, folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        let kept = Mutex::new(Kept { places: vec![None; rows], used: 0, failed: None, closed: false });
        Ok(Reuse { blocks, hidden, file, kept, limit })
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
        let spans = sequences.offsets.windows(2).map(|ends| ends[0] * self.hidden..ends[1] * self.hidden);
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let places: Option<Vec<u64>> = {
            let kept = kept();
            rows.iter().map(|&row| kept.places[row]).collect()
        };
        if let Some(places) = places {
            // On other systems threads share the file's position, so they read under the lock.
            let _alone = cfg!(not(unix)).then(kept);
            let mut output = vec![0.0; sequences.ids.len() * self.hidden];
            let _span = profile::operation("reading kept output", || Work::floats(2 * output.len()));
            let mut parts = places.into_iter().zip(spans.clone());
            match parts.try_for_each(|(place, span)| read(&self.file, place, &mut output[span])) {
                Ok(()) => return Ok(output),
                Err(error) => {
                    let mut kept = kept();
                    kept.close(error);
                    kept.places.fill(None);
                }
            }
        }
        let output = compute(sequences, self.blocks)?;
        let _span = profile::operation("keeping output", || Work::floats(2 * output.len()));
        let mut kept = kept();
        for (&row, span) in rows.iter().zip(spans) {
            let bytes = 4 * span.len() as u64;
            if kept.places[row].is_none() && !kept.closed && kept.used + bytes <= self.limit {
                match write(&self.file, kept.used, &output[span]) {
                    Ok(()) => {
                        kept.places[row] = Some(kept.used);
                        kept.used += bytes;
                    }
                    Err(error) => kept.close(error),
                }
            }
        }
        Ok(output)
    }

    /// Returns the error after which nothing more is saved, once.
    pub fn failure(&self) -> Option<String> {
        let error = self.kept.lock().unwrap_or_else(PoisonError::into_inner).failed.take()?;
        Some(format!(
            "no more of the lower blocks' output is saved to disk ({error}); what is missing is computed in each epoch"
        ))
    }
}

fn read(file: &File, place: u64, values: &mut [f32]) -> std::io::Result<()> {
    let mut bytes = vec![0; 4 * values.len()];
    read_exact_at(file, &mut bytes, place)?;
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(())
}

fn write(file: &File, place: u64, values: &[f32]) -> std::io::Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    write_all_at(file, &bytes, place)
}

#[cfg(unix)]
use std::os::unix::fs::FileExt;

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], place: u64) -> std::io::Result<()> {
    file.read_exact_at(bytes, place)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], place: u64) -> std::io::Result<()> {
    file.write_all_at(bytes, place)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], place: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(place))?;
    file.read_exact(bytes)
}

#[cfg(not(unix))]
fn write_all_at(mut file: &File, bytes: &[u8], place: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(place))?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that takes no more, as on a full disk, and one that cannot be read cost time and
    /// nothing else.
    #[test]
    fn a_file_that_fails_is_used_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        std::fs::write(&path, "").unwrap();
        let mut reuse = Reuse::new(1, 2, 3, 1 << 20, folder.path()).unwrap();
        let sequences = Sequences { ids: &[7, 8, 9], types: &[0, 0, 0], offsets: &[0, 1, 3], labelled: &[] };
        let output = |reuse: &Reuse| {
            let compute = |_: Sequences, _| Ok(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            reuse.output(&[0, 2], sequences, compute).unwrap()
        };
        let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!((output(&reuse), output(&reuse)), (expected.to_vec(), expected.to_vec()));
        assert!(reuse.failure().is_none());

        // Written, and then only for writing: reading fails.
        reuse.file = File::options().write(true).open(&path).unwrap();
        assert_eq!(output(&reuse), expected);
        assert!(reuse.failure().unwrap().contains("no more of the lower blocks' output is saved to disk"));
        assert!(reuse.failure().is_none(), "it is said once");

        let mut reuse = Reuse::new(1, 2, 3, 1 << 20, folder.path()).unwrap();
        reuse.file = File::open(&path).unwrap();
        assert_eq!((output(&reuse), output(&reuse)), (expected.to_vec(), expected.to_vec()));
        assert!(reuse.failure().is_some());
    }
}
