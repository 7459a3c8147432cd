//! Activations that no training step changes, computed once: with `--unselected drop` the blocks below the lowest one
//! that trains give each row the same output in every epoch, unless they have dropout.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lora_drop_compute::profile::{self, Work};
use lora_drop_transformer::encoder::{DropoutRates, Sequences};
use lora_drop_transformer::{LoraTable, Model};

use crate::{Error, Result};

/// The lower blocks' outputs, row by row in a file without a name: it is gone when the run ends, however it ends, and
/// the system keeps as much of it in memory as there is room.
pub struct Reuse {
    /// How many blocks are below.
    pub blocks: usize,
    hidden: usize,
    file: File,
    kept: Mutex<Kept>,
    limit: u64,
}

/// What the file has.
struct Kept {
    /// Where each row's values begin in the file, in bytes.
    places: Vec<Option<u64>>,
    used: u64,
}

/// How many of the lowest blocks give the same output in every step: nothing in them trains, and they have no dropout.
pub fn blocks(model: &Model, table: &LoraTable, dropout: DropoutRates) -> usize {
    if dropout.hidden > 0.0 || dropout.attention > 0.0 {
        return 0;
    }
    // The last block of an encoder computes first tokens alone, so it is never among them.
    model.lowest(table).unwrap_or(model.layers() - 1)
}

impl Reuse {
    /// For so many rows and at most `limit` bytes, in a file in `folder`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(blocks: usize, hidden: usize, rows: usize, limit: u64, folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        let kept = Mutex::new(Kept { places: vec![None; rows], used: 0 });
        Ok(Reuse { blocks, hidden, file, kept, limit })
    }

    /// The output of the lower blocks for these rows, (tokens, hidden), read where it is known and otherwise made by
    /// `compute` for all of them at once, and kept as long as there is room. Several threads may ask at a time, each for other
    /// rows.
    ///
    /// # Errors
    /// Those of the file and of `compute`.
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
            // Elsewhere threads share the place in the file from which they read.
            let _alone = cfg!(not(unix)).then(kept);
            let mut output = vec![0.0; sequences.ids.len() * self.hidden];
            let _span = profile::operation("reading kept output", || Work::floats(2 * output.len()));
            for (place, span) in places.into_iter().zip(spans) {
                read(&self.file, place, &mut output[span])?;
            }
            return Ok(output);
        }
        let output = compute(sequences, self.blocks)?;
        let _span = profile::operation("keeping output", || Work::floats(2 * output.len()));
        let mut kept = kept();
        for (&row, span) in rows.iter().zip(spans) {
            let bytes = 4 * span.len() as u64;
            if kept.places[row].is_none() && kept.used + bytes <= self.limit {
                write(&self.file, kept.used, &output[span])?;
                kept.places[row] = Some(kept.used);
                kept.used += bytes;
            }
        }
        Ok(output)
    }
}

fn read(file: &File, place: u64, values: &mut [f32]) -> Result<()> {
    let mut bytes = vec![0; 4 * values.len()];
    read_exact_at(file, &mut bytes, place).map_err(failed)?;
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    Ok(())
}

fn write(file: &File, place: u64, values: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    write_all_at(file, &bytes, place).map_err(failed)
}

fn failed(error: std::io::Error) -> Error {
    Error::Input(format!(
        "the lower blocks' activations cannot be kept on disk: {error}; make room or give --activation-cache 0"
    ))
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
