//! The files of a data set: which hold which split, and how they are opened.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::error::{Error, list};

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplitName {
    /// Rows to train on.
    Train,
    /// Rows on which a model is measured during training.
    Dev,
    /// Rows that training does not read.
    Test,
}

impl SplitName {
    fn of_stem(stem: &str) -> Option<Self> {
        match stem {
            "train" => Some(SplitName::Train),
            "dev" | "validation" | "valid" | "val" => Some(SplitName::Dev),
            "test" => Some(SplitName::Test),
            _ => None,
        }
    }
}

impl fmt::Display for SplitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SplitName::Train => "train",
            SplitName::Dev => "dev",
            SplitName::Test => "test",
        })
    }
}

impl std::str::FromStr for SplitName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        SplitName::of_stem(name)
            .ok_or_else(|| format!("there is no split {name:?}; expected train, dev or test"))
    }
}

/// A file format, recognised by the end of the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object a line.
    JsonLines,
    /// An array of objects, or an object with one under `data`.
    Json,
    /// Comma-separated, RFC 4180 quoting, a header line.
    Csv,
    /// Tab-separated as in GLUE: a header line, and quotes are characters like others.
    Tsv,
    Parquet,
}

impl Format {
    /// Returns the format by a file's name, and whether it is gzipped.
    pub fn of(path: &Path) -> Option<(Format, bool)> {
        split_name(path.file_name()?.to_str()?).map(|(_, format, gzipped)| (format, gzipped))
    }
}

/// Splits `train.jsonl.gz` into stem, format, and whether it is gzipped.
fn split_name(name: &str) -> Option<(&str, Format, bool)> {
    let ending = |name: &str| name.rfind('.').map(|dot| (dot, name[dot + 1..].to_ascii_lowercase()));
    let (mut dot, mut extension) = ending(name)?;
    let gzipped = extension == "gz";
    if gzipped {
        (dot, extension) = ending(&name[..dot])?;
    }
    let format = match extension.as_str() {
        "jsonl" => Format::JsonLines,
        "json" => Format::Json,
        "csv" => Format::Csv,
        "tsv" => Format::Tsv,
        "parquet" => Format::Parquet,
        _ => return None,
    };
    Some((&name[..dot], format, gzipped))
}

/// Parses `train-00000-of-00002` or `train-00000-of-00002-0a1b2c` into (train, 0, 2).
fn shard(stem: &str) -> Option<(&str, usize, usize)> {
    let mut parts = stem.splitn(5, '-');
    let (name, number, of, count) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (of == "of" && number < count).then_some((name, number, count))
}

/// A data set's files; a sharded split has several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitFiles {
    /// The files of each split that was found, in order.
    pub files: BTreeMap<SplitName, Vec<PathBuf>>,
    /// Whether the path was one file, which is then train.
    pub single: bool,
    folder: PathBuf,
    /// The names in the folder that do not belong to a split.
    others: Vec<String>,
}

impl SplitFiles {
    /// Looks for a folder's split files, or takes one file as train. The files may also be in a
    /// folder for each split, or in the only folder below that has splits, as on the hub. If no
    /// name is a split's, the only file of rows is train. A path without the part `-00000-of-00002`
    /// of some files' names stands for these shards.
    ///
    /// # Errors
    /// There is nothing at the path, a file of another format, two candidates for a split, several
    /// candidates for the whole, or a shard is missing.
    pub fn find(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return SplitFiles::in_folder(path, DEPTH);
        }
        if let (false, Some(folder), Some(stem)) = (path.exists(), path.parent(), path.file_name())
            && let Some(stem) = stem.to_str()
            && let Ok((names, _)) = list_folder(folder)
        {
            let is_shard = |name: &String| {
                split_name(name).and_then(|(name, ..)| shard(name)).is_some_and(|(name, ..)| name == stem)
            };
            let shards: Vec<String> = names.into_iter().filter(is_shard).collect();
            if !shards.is_empty() {
                let found = SplitFiles::among(folder, shards, Some(stem))?;
                return Ok(SplitFiles { single: true, folder: path.to_path_buf(), ..found });
            }
        }
        std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        Format::of(path).ok_or_else(|| Error::Format { path: path.to_path_buf() })?;
        let files = BTreeMap::from([(SplitName::Train, vec![path.to_path_buf()])]);
        Ok(SplitFiles { files, single: true, folder: path.to_path_buf(), others: Vec::new() })
    }

    /// Looks in a folder and, if no name there is a split's, up to `depth` levels below.
    fn in_folder(path: &Path, depth: usize) -> Result<Self, Error> {
        let (names, folders) = list_folder(path)?;
        let found = SplitFiles::among(path, names, None)?;
        if !found.files.is_empty() {
            return Ok(found);
        }
        let split_of = |name: &String| SplitName::of_stem(&name.to_ascii_lowercase());
        let (of_splits, below): (Vec<String>, Vec<String>) =
            folders.into_iter().partition(|name| split_of(name).is_some());
        let mut files = BTreeMap::new();
        for (name, split) in of_splits.iter().filter_map(|name| Some((name, split_of(name)?))) {
            let folder = path.join(name);
            let (names, _) = list_folder(&folder)?;
            let of_rows: Vec<PathBuf> =
                names.iter().filter(|name| is_of_rows(name)).map(|name| folder.join(name)).collect();
            let Some(second) = of_rows.first().cloned() else { continue };
            if let Some(first) = files.insert(split, of_rows) {
                return Err(Error::TwoFiles { split, first: first[0].clone(), second });
            }
        }
        if !files.is_empty() {
            return Ok(SplitFiles { files, ..found });
        }
        let mut inside = Vec::new();
        for name in below.iter().filter(|_| depth > 0) {
            let folder = path.join(name);
            match SplitFiles::in_folder(&folder, depth - 1) {
                Ok(other) if other.files.is_empty() => {}
                Ok(other) => inside.push((other.folder.clone(), Some(other))),
                // The ambiguity is the same one level up.
                Err(Error::Candidates { candidates, .. }) => {
                    inside.extend(candidates.into_iter().map(|candidate| (candidate, None)));
                }
                Err(other) => return Err(other),
            }
        }
        // Without split names, files of rows are grouped by stem, shards together; a single group
        // is train.
        let mut stems: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for name in found.others.iter().filter(|name| is_of_rows(name)) {
            let of_shard = split_name(name).and_then(|(stem, ..)| shard(stem));
            let stem = of_shard.map_or(name.as_str(), |(stem, ..)| stem);
            stems.entry(path.join(stem)).or_default().push(name.clone());
        }
        let candidates: Vec<PathBuf> =
            inside.iter().map(|(folder, _)| folder).chain(stems.keys()).cloned().collect();
        match (inside.pop(), stems.pop_first()) {
            _ if candidates.len() > 1 => Err(Error::Candidates { folder: path.to_path_buf(), candidates }),
            (Some((_, Some(other))), _) => Ok(other),
            (_, Some((_, names))) => {
                let stem =
                    split_name(&names[0]).map(|(stem, ..)| shard(stem).map_or(stem, |(stem, ..)| stem));
                let stem = stem.unwrap_or_default().to_string();
                SplitFiles::among(path, names, Some(&stem))
            }
            _ => Ok(found),
        }
    }

    /// Finds the splits among a folder's files by their names; if `train` is given, the files with
    /// this stem are train.
    fn among(folder: &Path, names: Vec<String>, train: Option<&str>) -> Result<Self, Error> {
        /// A candidate for a split: a file, or shards by number, all of the same count and format.
        struct Candidate {
            shards: Option<(usize, Format, bool)>,
            files: BTreeMap<usize, PathBuf>,
        }
        let mut candidates: BTreeMap<SplitName, Candidate> = BTreeMap::new();
        let mut others = Vec::new();
        for name in names {
            let path = folder.join(&name);
            let found = split_name(&name).and_then(|(stem, format, gzipped)| {
                let (stem, number, shards) = match shard(stem) {
                    Some((stem, number, count)) => (stem, number, Some((count, format, gzipped))),
                    None => (stem, 0, None),
                };
                let split = match train {
                    Some(train) => (stem == train).then_some(SplitName::Train),
                    None => SplitName::of_stem(&stem.to_ascii_lowercase()),
                };
                Some((split?, number, shards))
            });
            let Some((split, number, shards)) = found else {
                others.push(name);
                continue;
            };
            let candidate = candidates.entry(split).or_insert(Candidate { shards, files: BTreeMap::new() });
            let same = candidate.shards == shards && !candidate.files.contains_key(&number);
            if !same && let Some(first) = candidate.files.values().next() {
                return Err(Error::TwoFiles { split, first: first.clone(), second: path });
            }
            candidate.files.insert(number, path);
        }
        let mut files = BTreeMap::new();
        for (split, candidate) in candidates {
            if let Some((of, ..)) = candidate.shards
                && let Some(missing) = (0..of).find(|n| !candidate.files.contains_key(n))
            {
                let path = folder.join(format!("{}-*", train.unwrap_or(&split.to_string())));
                return Err(Error::MissingShard { path, missing, of });
            }
            files.insert(split, candidate.files.into_values().collect());
        }
        Ok(SplitFiles { files, single: false, folder: folder.to_path_buf(), others })
    }

    /// Returns a split's files, in order.
    ///
    /// # Errors
    /// The split is missing; the message lists what is there.
    pub fn of(&self, split: SplitName) -> Result<&[PathBuf], Error> {
        self.files.get(&split).map(Vec::as_slice).ok_or_else(|| {
            let paths = self.files.values().flatten().filter_map(|p| p.file_name()?.to_str());
            let found: Vec<String> = paths.map(String::from).chain(self.others.iter().cloned()).collect();
            let found = if found.is_empty() { "an empty folder".into() } else { list(&found) };
            Error::NoSplit { folder: self.folder.clone(), split, found }
        })
    }
}

/// Number of folder levels that are searched for splits.
const DEPTH: usize = 2;
/// The hub's file that describes a data set.
const INFOS: &str = "dataset_infos.json";

/// Whether a file of this name holds rows.
fn is_of_rows(name: &str) -> bool {
    split_name(name).is_some() && name != INFOS
}

/// Lists the names of files and of folders in a folder, sorted, without hidden ones.
fn list_folder(path: &Path) -> Result<(Vec<String>, Vec<String>), Error> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let names = if entry.path().is_dir() { &mut folders } else { &mut files };
        names.extend(Some(name).filter(|name| !name.starts_with('.')));
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

/// Which rows of a split's files belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitPart {
    All,
    /// The rows of train that training holds out as dev.
    HeldOut,
    /// The other rows of train.
    Rest,
}

impl SplitFiles {
    /// Returns a split's files for a model in use, and which of their rows belong to the split. In
    /// a folder without dev, and in the one file that the model was trained on, dev is what
    /// training held out of train, and train is what was left. Any other single file is the whole
    /// of each split.
    ///
    /// # Errors
    /// The split is missing; the message lists what is there.
    pub fn part(&self, split: SplitName, trained_on: &[PathBuf]) -> Result<(&[PathBuf], SplitPart), Error> {
        if self.single && !trained_on.iter().any(|path| same(path, &self.folder)) {
            return Ok((self.of(SplitName::Train)?, SplitPart::All));
        }
        let holds_out =
            self.files.contains_key(&SplitName::Train) && !self.files.contains_key(&SplitName::Dev);
        match split {
            SplitName::Dev if holds_out => Ok((self.of(SplitName::Train)?, SplitPart::HeldOut)),
            SplitName::Train if holds_out => Ok((self.of(split)?, SplitPart::Rest)),
            split => Ok((self.of(split)?, SplitPart::All)),
        }
    }
}

/// Whether both paths exist and are the same file.
fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The first bytes of a gzip stream.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Opens a file for reading, unpacked if its name ends in .gz.
///
/// # Errors
/// The file cannot be opened or is empty, or it is gzipped and its name does not end in .gz, or the
/// reverse.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead + Send>, Error> {
    const BUFFER: usize = 1 << 16;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut file = BufReader::with_capacity(BUFFER, file);
    let start = file.fill_buf().map_err(|e| Error::io(path, e))?;
    let (packed, empty) = (start.starts_with(&GZIP), start.is_empty());
    let (_, named) = Format::of(path).ok_or_else(|| Error::Format { path: path.to_path_buf() })?;
    match (named, packed) {
        (_, _) if empty => Err(Error::NoRows { path: path.to_path_buf() }),
        (true, false) => Err(Error::file(path, "named .gz but not gzipped")),
        (false, true) => Err(Error::file(path, "gzipped, but its name does not end in .gz; rename it")),
        (false, false) => Ok(Box::new(file)),
        (true, true) => {
            let unpacked = flate2::bufread::MultiGzDecoder::new(file);
            Ok(Box::new(BufReader::with_capacity(BUFFER, unpacked)))
        }
    }
}

/// Opens a file for random access; if its name ends in .gz, it is unpacked into an anonymous
/// temporary file.
#[cfg(feature = "parquet")]
pub(super) fn open_seekable(path: &Path) -> Result<File, Error> {
    let mut reader = open(path)?;
    if !matches!(Format::of(path), Some((_, true))) {
        return File::open(path).map_err(|e| Error::io(path, e));
    }
    let mut unpacked = tempfile::tempfile().map_err(|e| Error::io(path, e))?;
    std::io::copy(&mut reader, &mut unpacked).map_err(|e| Error::io(path, e))?;
    Ok(unpacked)
}

/// Returns a file's whole content, unpacked.
pub(super) fn read_all(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(names: &[&str]) -> Result<SplitFiles, Error> {
        let mut names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        names.sort();
        SplitFiles::among(Path::new("d"), names, None)
    }

    fn names(found: &SplitFiles, split: SplitName) -> Vec<String> {
        found.of(split).unwrap().iter().map(|p| p.file_name().unwrap().to_str().unwrap().into()).collect()
    }

    #[test]
    fn splits_by_their_usual_names() {
        for dev in ["dev.tsv", "validation.csv", "valid.json", "val.jsonl.gz", "Dev.PARQUET"] {
            let found = among(&["train.jsonl", dev, "test.parquet.gz", "README.md"]).unwrap();
            assert_eq!(names(&found, SplitName::Train), ["train.jsonl"]);
            assert_eq!(names(&found, SplitName::Dev), [dev]);
            assert_eq!(names(&found, SplitName::Test), ["test.parquet.gz"]);
        }
    }

    #[test]
    fn rows_that_training_holds_out() {
        let part = |found: &SplitFiles, split, trained: Option<&PathBuf>| {
            let trained: Vec<PathBuf> = trained.into_iter().cloned().collect();
            found.part(split, &trained).map(|(_, part)| part)
        };
        let whole = among(&["train.jsonl", "dev.jsonl"]).unwrap();
        assert_eq!(part(&whole, SplitName::Train, None).unwrap(), SplitPart::All);
        let no_dev = among(&["train.jsonl", "test.jsonl"]).unwrap();
        for (split, expected) in [
            (SplitName::Dev, SplitPart::HeldOut),
            (SplitName::Train, SplitPart::Rest),
            (SplitName::Test, SplitPart::All),
        ] {
            assert_eq!(part(&no_dev, split, None).unwrap(), expected);
        }
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one.jsonl", "other.jsonl"].map(|name| folder.path().join(name));
        [&one, &other].into_iter().for_each(|path| std::fs::write(path, "").unwrap());
        let single = SplitFiles::find(&one).unwrap();
        assert_eq!(part(&single, SplitName::Dev, Some(&other)).unwrap(), SplitPart::All);
        assert_eq!(part(&single, SplitName::Dev, Some(&one)).unwrap(), SplitPart::HeldOut);
        assert_eq!(part(&single, SplitName::Train, Some(&one)).unwrap(), SplitPart::Rest);
        assert!(part(&single, SplitName::Test, Some(&one)).is_err());
    }

    /// The splits found in a folder with these files, each with its files.
    fn found_in(files: &[&str]) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let shown = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
        let found = SplitFiles::find(folder.path()).map_err(|e| shown(e.to_string()))?;
        found.of(SplitName::Train).map_err(|e| shown(e.to_string()))?;
        let split = |(split, files): (&SplitName, &Vec<PathBuf>)| {
            let files: Vec<String> = files.iter().map(|file| shown(file.display().to_string())).collect();
            format!("{split}: {}", files.join(" "))
        };
        Ok(found.files.iter().map(split).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn folders_as_on_the_hub() {
        for (files, expected) in [
            (
                &[
                    "README.md",
                    ".cache/train.csv",
                    "data/train-00000-of-00001.parquet",
                    "data/test-00000-of-00001.parquet",
                ][..],
                "train: data/train-00000-of-00001.parquet; test: data/test-00000-of-00001.parquet",
            ),
            (&["plain_text/train.parquet", "dataset_infos.json"], "train: plain_text/train.parquet"),
            (
                &[
                    "default/train/0000.parquet",
                    "default/train/0001.parquet",
                    "default/validation/0000.parquet",
                ],
                "train: default/train/0000.parquet default/train/0001.parquet; dev: default/validation/0000.parquet",
            ),
            (&["train/a.jsonl", "dev/b.jsonl"], "train: train/a.jsonl; dev: dev/b.jsonl"),
            // The only file of rows.
            (&["README.md", "alpaca_data.json", "dataset_infos.json"], "train: alpaca_data.json"),
            (
                &["rows-00000-of-00002.csv", "rows-00001-of-00002.csv"],
                "train: rows-00000-of-00002.csv rows-00001-of-00002.csv",
            ),
            // Deeper files are not searched once a split is found.
            (&["train.csv", "old/train.csv"], "train: train.csv"),
        ] {
            assert_eq!(found_in(files).as_deref(), Ok(expected));
        }
        for (files, parts) in [
            (&["a/train.csv", "b/train.csv"][..], &["several", "give one of them as `data`: a, b"][..]),
            (&["x/a/train.csv", "x/b/train.csv"], &["give one of them as `data`: x/a, x/b"]),
            (&["one.csv", "two.csv"], &["give one of them as `data`: one.csv, two.csv"]),
            (
                &["data/train_gen-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"],
                &["`data`: data/train_gen, data/train_sft"],
            ),
            (&["a/b/c/train.csv", "README.md"], &["no train split", "found README.md"]),
        ] {
            let message = found_in(files).unwrap_err();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn shards_by_their_common_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in
            ["train_sft-00000-of-00002.csv", "train_sft-00001-of-00002.csv", "test_sft-00000-of-00001.csv"]
        {
            std::fs::write(path(name), "").unwrap();
        }
        let found = SplitFiles::find(&path("train_sft")).unwrap();
        let expected = ["train_sft-00000-of-00002.csv", "train_sft-00001-of-00002.csv"];
        assert_eq!(
            (names(&found, SplitName::Train), found.single),
            (expected.map(String::from).into(), true)
        );
        std::fs::remove_file(path(expected[0])).unwrap();
        let message = SplitFiles::find(&path("train_sft")).unwrap_err().to_string();
        assert!(message.contains("shard 0 of 2 is missing"), "{message}");
        assert!(SplitFiles::find(&path("other")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn shards_in_order() {
        let found = among(&[
            "train-00001-of-00003.parquet",
            "train-00002-of-00003.parquet",
            "train-00000-of-00003-ab12.parquet",
        ])
        .unwrap();
        let expected = [
            "train-00000-of-00003-ab12.parquet",
            "train-00001-of-00003.parquet",
            "train-00002-of-00003.parquet",
        ];
        assert_eq!(names(&found, SplitName::Train), expected);
    }

    #[test]
    fn a_shard_is_missing() {
        let message = among(&["train-00000-of-00002.parquet"]).unwrap_err().to_string();
        assert!(message.contains("shard 1 of 2 is missing"), "{message}");
    }

    #[test]
    fn two_candidates() {
        for pair in [
            ["train.csv", "train.jsonl"],
            ["train.jsonl", "train.jsonl.gz"],
            ["dev.csv", "validation.csv"],
            ["train-00000-of-00001.parquet", "train.parquet"],
            ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"],
        ] {
            let message = among(&pair).unwrap_err().to_string();
            assert!(pair.iter().all(|name| message.contains(name)), "{message}");
        }
    }

    #[test]
    fn a_missing_split_tells_what_is_there() {
        let message = among(&["train.txt", "dev.csv"]).unwrap().of(SplitName::Train).unwrap_err().to_string();
        assert!(
            message.contains("no train split") && message.contains("found dev.csv, train.txt"),
            "{message}"
        );
    }
}
