//! Writes safetensors files of f32, one tensor at a time, the same bytes for the same content.
//!
//! The safetensors crate wants all tensors in memory, and puts the metadata in an order that changes between runs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::files::write_atomically;
use crate::{Error, Result};

/// A tensor to be written: its name and shape.
pub(super) type Outline = (String, Vec<usize>);

/// Writes `tensors` in their order; `values` gives each one's row-major values when its turn comes.
///
/// Errors where a name is there twice or the values do not fill the shape; those of `values`; and what the disk says.
/// The file is whole under its name, or not there.
pub(super) fn write<'a>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[Outline],
    mut values: impl FnMut(&str, &[usize]) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    let header = header(metadata, tensors)
        .map_err(|problem| Error::Input(format!("{}: {problem}", path.display())))?;
    // write_atomically knows the disk's errors only; another one travels beside it
    let mut failure = None;
    let written = write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (name, shape) in tensors {
            let filled = values(name, shape).and_then(|values| {
                let expected: usize = shape.iter().product();
                if values.len() == expected {
                    return Ok(values);
                }
                Err(Error::Input(format!(
                    "{}: tensor {name} of shape {shape:?} got {} values, expected {expected}",
                    path.display(),
                    values.len()
                )))
            });
            match filled {
                Ok(values) => write_f32(out, &values)?,
                Err(e) => {
                    failure = Some(e);
                    return Err(io::Error::other("the content could not be had"));
                }
            }
        }
        Ok(())
    });
    failure.map_or(written, Err)
}

fn header(metadata: &BTreeMap<String, String>, tensors: &[Outline]) -> std::result::Result<Vec<u8>, String> {
    let mut map = Map::new();
    map.insert("__metadata__".to_string(), json!(metadata));
    let mut start = 0usize;
    for (name, shape) in tensors {
        let bytes = shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d));
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let end = end.ok_or_else(|| format!("tensor {name}: the shape {shape:?} overflows"))?;
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        if map.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
        start = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    // the format wants the data to begin at a multiple of 8
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn write_f32(out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 << 14);
    for piece in values.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> BTreeMap<String, String> {
        BTreeMap::from([
            ("format".to_string(), "pt".to_string()),
            ("note".to_string(), "ü \"x\"".to_string()),
        ])
    }

    #[test]
    fn the_reference_reader_reads_what_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let tensors = [("b".to_string(), vec![2, 3]), ("a".to_string(), vec![0]), ("s".to_string(), vec![])];
        let numbers: Vec<f32> = (0..6).map(|v| v as f32 / 3.0).collect();
        write(&path, &metadata(), &tensors, |_, shape| Ok(Cow::Borrowed(&numbers[..shape.iter().product()])))
            .expect("written");

        let bytes = std::fs::read(&path).expect("readable");
        let read = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
        let b = read.tensor("b").expect("there");
        assert_eq!(b.shape(), [2, 3]);
        let expected: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(b.data(), expected);
        assert_eq!(read.tensor("s").expect("there").data(), 0f32.to_le_bytes());
        let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("valid");
        assert!(length.is_multiple_of(8));
        let expected = metadata().into_iter().collect();
        assert_eq!(header.metadata().as_ref(), Some(&expected));
    }

    #[test]
    fn a_failure_is_passed_on_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let tensor = |name: &str| (name.to_string(), vec![2]);
        let message = write(&path, &metadata(), &[tensor("x")], |_, _| Ok(Cow::Owned(vec![1.0])))
            .expect_err("too few values")
            .to_string();
        assert!(message.ends_with("tensor x of shape [2] got 1 values, expected 2"), "{message}");
        let message = write(&path, &metadata(), &[tensor("x")], |_, _| Err(Error::Input("no".to_string())))
            .expect_err("the source's error")
            .to_string();
        assert_eq!(message, "no");
        let twice =
            write(&path, &metadata(), &[tensor("x"), tensor("x")], |_, _| Ok(Cow::Owned(vec![1.0; 2])));
        assert!(twice.expect_err("twice").to_string().ends_with("tensor x is there twice"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    }
}
