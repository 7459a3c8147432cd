//! A GGUF model in parts, as llama.cpp's gguf-split writes them: `NAME-00001-of-00003.gguf` and so
//! on. The first part has the metadata, each part has some of the tensors.

use std::fs::File;
use std::path::{Path, PathBuf};

use lora_drop_compute::mapped::MappedFile;

use super::header::Header;
use super::metadata::Metadata;
use super::value::Value;
use crate::error::{Error, Result};

/// Maximum number of parts, which the five digits of a name allow.
const MOST: usize = 99_999;

/// Maximum number of missing parts that a message names.
const MOST_NAMED: usize = 8;

/// A part's file name: `NAME-00001-of-00003.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    name: String,
    /// Number of this part, from 1.
    pub number: usize,
    /// Number of parts.
    pub count: usize,
}

impl PartName {
    /// Splits a file name; None if it is not that of a part.
    pub fn parse(file: &str) -> Option<Self> {
        let (stem, ending) = file.rsplit_once('.')?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| -> Option<usize> {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
        };
        let (number, count) = (digits(number)?, digits(count)?);
        let valid = ending == "gguf" && (1..=count).contains(&number);
        valid.then(|| PartName { name: name.to_string(), number, count })
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> impl Iterator<Item = String> {
        let PartName { name, count, .. } = self.clone();
        (1..=count).map(move |number| format!("{name}-{number:05}-of-{count:05}.gguf"))
    }
}

/// Returns the paths of all parts of a model if the file's name is that of a part, else the path
/// itself.
pub fn part_paths(path: &Path) -> Vec<PathBuf> {
    match path.file_name().and_then(|name| PartName::parse(name.to_str()?)) {
        Some(part) => part.all().map(|name| path.with_file_name(name)).collect(),
        None => vec![path.to_path_buf()],
    }
}

/// A mapped file.
pub(super) struct Part {
    pub path: PathBuf,
    pub map: std::sync::Arc<MappedFile>,
}

impl Part {
    pub fn open(path: &Path) -> Result<(Part, Metadata)> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let about = file.metadata().map_err(|e| Error::io(path, e))?;
        if !about.is_file() {
            return Err(Error::checkpoint(path, "not a regular file"));
        }
        // Some systems cannot map an empty file.
        if about.len() == 0 {
            return Err(Error::checkpoint(path, "an empty file; download it again"));
        }
        let map = MappedFile::new(&file, path).map_err(|e| Error::io(path, e))?;
        let header = Header::parse(&map).map_err(|problem| Error::checkpoint(path, problem))?;
        Ok((Part { path: path.to_path_buf(), map: map.into() }, Metadata::new(path, header)))
    }
}

/// Opens a file, or all parts of its model, which are in the same folder. The header is the first
/// part's, with the tensors of all parts.
///
/// # Errors
/// A part is missing, or belongs to another model.
pub(super) fn open(path: &Path) -> Result<(Vec<Part>, Metadata)> {
    let (part, metadata) = Part::open(path)?;
    let Some(count) = count(&metadata, "split.count")?.filter(|count| *count > 1) else {
        return Ok((vec![part], metadata));
    };
    let name = path.file_name().and_then(|name| PartName::parse(name.to_str()?));
    if name.as_ref().is_none_or(|name| name.count != count) {
        let expected =
            format!("expected a name that ends in -00001-of-{count:05}.gguf, as the parts were written");
        let problem =
            format!("this is one of {count} parts of a model, which are found by their names; {expected}");
        return Err(Error::checkpoint(path, problem));
    }
    let paths = part_paths(path);
    let missing: Vec<_> =
        paths.iter().filter(|path| !path.exists()).map(|p| p.display().to_string()).collect();
    if !missing.is_empty() {
        let problem = format!(
            "this is one of {count} parts of a model, of which {} not there: {}; put all parts into one folder",
            if missing.len() == 1 { "one is".to_string() } else { format!("{} are", missing.len()) },
            missing[..missing.len().min(MOST_NAMED)].join(", ")
        );
        return Err(Error::checkpoint(path, problem));
    }
    let mut parts = Vec::with_capacity(count);
    let mut whole: Option<Metadata> = None;
    for (number, path) in paths.iter().enumerate() {
        let (part, mut metadata) = Part::open(path)?;
        for (key, expected) in [("split.no", number), ("split.count", count)] {
            if self::count(&metadata, key)? != Some(expected) {
                let seen = metadata.value(key).map_or("is missing".into(), |value| format!("is {value}"));
                let problem = format!(
                    "{seen}, expected {expected}, by the file's name; it is not a part of this model"
                );
                return Err(metadata.key_fault(key, &problem));
            }
        }
        metadata.header.tensors.iter_mut().for_each(|tensor| tensor.part = number);
        match &mut whole {
            None => whole = Some(metadata),
            Some(whole) => whole.header.tensors.append(&mut metadata.header.tensors),
        }
        parts.push(part);
    }
    let whole = whole.expect("more than one part");
    let (key, seen) = ("split.tensors.count", whole.header.tensors.len());
    match count_of(&whole, key, u64::MAX)? {
        Some(expected) if expected != seen as u64 => {
            let problem = format!(
                "is {expected}, but the {} parts have {seen} tensors; download them again",
                parts.len()
            );
            Err(whole.key_fault(key, &problem))
        }
        _ => Ok((parts, whole)),
    }
}

fn count(metadata: &Metadata, key: &str) -> Result<Option<usize>> {
    Ok(count_of(metadata, key, MOST as u64)?.map(|count| count as usize))
}

fn count_of(metadata: &Metadata, key: &str, most: u64) -> Result<Option<u64>> {
    let Some(value) = metadata.value(key) else { return Ok(None) };
    match Value::as_u64(value).filter(|count| *count <= most) {
        None => Err(metadata.wrong_type(key, value, &format!("a whole number up to {most}"))),
        some => Ok(some),
    }
}
