//! Cache of tokenised rows in the user's cache folder.
//!
//! A file's name is a hash of everything that decides the tokens: the rows' texts, the tokenizer,
//! the template and the limits ([`Fingerprint`]), and the code that makes them. So a file never
//! becomes stale, whatever happens to the data's files, and two runs that write the same file at
//! the same time write the same bytes. Damaged files and files of other programs are replaced.
//! Nothing here is an error: if a file cannot be written, the cache stops and a warning says so
//! once.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use twox_hash::XxHash3_128;

use super::error::Error;
use super::text::encode::{EncodedRow, RowIssues};
use super::tokens::Encoded;
use crate::files::{replace_unflushed, set_variable, user_cache};

/// Part of every fingerprint: build.rs computes it from the code in this folder and the versions of
/// all crates.
const MADE_BY: &str = env!("TOKENS_MADE_BY");
/// The first bytes of a file.
const MAGIC: &[u8; 8] = b"LDTOKENS";
/// Size in bytes of magic, fingerprint, and hash of what follows.
const HEADER: usize = 8 + 16 + 16;
const ENDING: &str = "tokens";
/// A temporary file older than this is no longer being written: its process was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Location and size limit of the cached tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCache {
    folder: PathBuf,
    /// Limit on the size of all files together, in bytes.
    limit: u64,
    /// Why the cache has stopped, if it has; shared by clones.
    stopped: Arc<OnceLock<String>>,
}

/// A hash over everything that decides the tokens of some rows. Each part is hashed with its
/// length, so that no two lists of parts have the same bytes.
pub struct Fingerprint(XxHash3_128);

impl Fingerprint {
    pub(super) fn new(kind: &str) -> Self {
        let mut new = Fingerprint(XxHash3_128::new());
        new.text(MADE_BY);
        new.text(kind);
        new
    }

    pub(super) fn number(&mut self, number: u64) {
        self.0.write(&number.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.write(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn maybe(&mut self, text: Option<&str>) {
        self.number(u64::from(text.is_some()));
        self.text(text.unwrap_or(""));
    }

    pub(super) fn finish(&self) -> u128 {
        self.0.finish_128()
    }
}

impl TokenCache {
    /// Returns a cache of up to `limit` bytes in a folder, which is created on first use.
    pub fn new(folder: PathBuf, limit: u64) -> Self {
        TokenCache { folder, limit, stopped: Arc::default() }
    }

    /// Returns the warning of a cache that has stopped: where, why, and the consequence.
    pub(super) fn stopped(&self) -> Option<String> {
        let reason = self.stopped.get()?;
        let folder = self.folder.display();
        Some(format!(
            "the token cache is off: {folder}: {reason}; this run continues without it, and later ones tokenize again"
        ))
    }

    /// Returns the user's cache: `tokens` in the folder that LORA_DROP_CACHE names, else in
    /// `lora-drop` in XDG_CACHE_HOME or ~/.cache. `None` for 0 gigabytes.
    pub fn in_user_cache(gigabytes: f64) -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let own = set_variable("LORA_DROP_CACHE", variable);
        let folder = own.map_or_else(|| user_cache(variable).join("lora-drop"), PathBuf::from);
        (gigabytes > 0.0).then(|| TokenCache::new(folder.join("tokens"), (gigabytes * 1e9) as u64))
    }

    /// Returns the tokens of `rows` rows under this fingerprint, if cached and every row is
    /// `sound`.
    fn load<T: CacheRow>(&self, key: u128, rows: usize, sound: impl Fn(&T) -> bool) -> Option<Vec<T>> {
        let path = self.path(key);
        let found = read(&fs::read(&path).ok()?, key, rows, sound)?;
        // The modification time marks the last use, by which `make_room` chooses.
        let _ = File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(found)
    }

    /// Stores the rows, unless they alone exceed the limit.
    fn store<T: CacheRow>(&self, key: u128, rows: &[T]) {
        if self.stopped.get().is_some() {
            return;
        }
        let mut bytes = vec![0; HEADER];
        rows.iter().for_each(|row| row.write(&mut bytes));
        let (header, rest) = bytes.split_at_mut(HEADER);
        header[..8].copy_from_slice(MAGIC);
        header[8..24].copy_from_slice(&key.to_le_bytes());
        header[24..].copy_from_slice(&XxHash3_128::oneshot(rest).to_le_bytes());
        if bytes.len() as u64 > self.limit {
            return;
        }
        let written = fs::create_dir_all(&self.folder).and_then(|()| {
            self.make_room(bytes.len() as u64);
            replace_unflushed(&self.path(key), &bytes)
        });
        if let Err(e) = written {
            // A clone may have set its reason first; one is enough.
            let _ = self.stopped.set(e.to_string());
        }
    }

    fn path(&self, key: u128) -> PathBuf {
        self.folder.join(format!("{key:032x}.{ENDING}"))
    }

    /// Removes the least recently used files until this many more bytes fit.
    fn make_room(&self, bytes: u64) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(ENDING) => files.push((used, about.len(), path)),
                Some("tmp") if used.elapsed().is_ok_and(|age| age > ABANDONED) => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        files.sort();
        let mut sum: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in files {
            if sum + bytes <= self.limit {
                break;
            }
            let _ = fs::remove_file(&path);
            sum -= size;
        }
    }
}

/// Returns the tokens of some rows and whether they came from the cache: the cached ones under the
/// fingerprint if they are `sound`, otherwise those that `encode` makes, in parallel. Without a
/// fingerprint, nothing is cached.
///
/// # Errors
/// That of the first row that `encode` refuses.
pub(super) fn load_or_encode<R: Sync, T: CacheRow + Send>(
    cache: Option<&TokenCache>,
    fingerprint: impl FnOnce() -> Option<Fingerprint>,
    rows: &[R],
    sound: impl Fn(&T) -> bool,
    encode: impl Fn(&R) -> Result<T, Error> + Sync + Send,
) -> Result<(Vec<T>, bool), Error> {
    let keyed = cache.and_then(|cache| Some((cache, fingerprint()?.finish())));
    if let Some((cache, key)) = keyed
        && let Some(found) = cache.load(key, rows.len(), sound)
    {
        return Ok((found, true));
    }
    // Collected before the first error is looked for, so that the first wrong row is reported
    // whatever the order of the threads.
    let made: Vec<Result<T, Error>> = rows.par_iter().map(encode).collect();
    let made = made.into_iter().collect::<Result<Vec<_>, _>>()?;
    if let Some((cache, key)) = keyed {
        cache.store(key, &made);
    }
    Ok((made, false))
}

fn read<T: CacheRow>(bytes: &[u8], key: u128, rows: usize, sound: impl Fn(&T) -> bool) -> Option<Vec<T>> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let known = header[..8] == MAGIC[..]
        && header[8..24] == key.to_le_bytes()
        && header[24..] == XxHash3_128::oneshot(rest).to_le_bytes();
    let mut rest = Reader(rest);
    let found = (0..rows).map(|_| T::read(&mut rest).filter(&sound)).collect::<Option<Vec<T>>>();
    found.filter(|_| known && rest.0.is_empty())
}

/// Serialisation of a row. Numbers are little-endian.
pub(super) trait CacheRow: Sized {
    fn write(&self, out: &mut Vec<u8>);

    fn read(from: &mut Reader) -> Option<Self>;
}

/// The bytes that have not been read yet.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (now, later) = self.0.split_at_checked(count)?;
        self.0 = later;
        Some(now)
    }

    fn number(&mut self) -> Option<usize> {
        Some(self.numbers(1)?[0] as usize)
    }

    fn numbers(&mut self, count: usize) -> Option<Vec<u32>> {
        let (numbers, _) = self.bytes(count.checked_mul(4)?)?.as_chunks::<4>();
        Some(numbers.iter().map(|number| u32::from_le_bytes(*number)).collect())
    }
}

fn put(out: &mut Vec<u8>, numbers: &[u32]) {
    numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
}

impl CacheRow for Encoded {
    /// Layout: length, 1 if it is partly counted, number of tokens, number of words, ids, types,
    /// words.
    fn write(&self, out: &mut Vec<u8>) {
        let counts = [self.ids.len() as u32, self.words.len() as u32];
        put(out, &[self.length as u32, u32::from(self.partly_counted)]);
        put(out, &counts);
        put(out, &self.ids);
        put(out, &self.types);
        self.words.iter().for_each(|&(word, place)| put(out, &[word, place]));
    }

    fn read(from: &mut Reader) -> Option<Self> {
        let (length, partly_counted) = (from.number()?, from.number()? == 1);
        let (count, words) = (from.number()?, from.number()?);
        let (ids, types) = (from.numbers(count)?, from.numbers(count)?);
        let words = from.numbers(words.checked_mul(2)?)?;
        let words = words.as_chunks::<2>().0.iter().map(|&[word, place]| (word, place)).collect();
        Some(Encoded { length, partly_counted, ids, types, words })
    }
}

impl CacheRow for EncodedRow {
    /// Layout: length, issues, number of sequences, sequences, number of end tokens, end tokens. A
    /// sequence has its number of tokens, the ids, and a byte for each token, 1 if it is learned.
    fn write(&self, out: &mut Vec<u8>) {
        put(out, &[self.length as u32]);
        put(out, &self.issues.flags().map(u32::from));
        put(out, &[self.sequences.len() as u32]);
        for (ids, learn) in &self.sequences {
            put(out, &[ids.len() as u32]);
            put(out, ids);
            out.extend(learn.iter().map(|&learn| u8::from(learn)));
        }
        put(out, &[self.end_tokens.len() as u32]);
        put(out, &self.end_tokens);
    }

    fn read(from: &mut Reader) -> Option<Self> {
        let length = from.number()?;
        let mut flags = [false; 5];
        for flag in &mut flags {
            *flag = from.number()? == 1;
        }
        let issues = RowIssues::from_flags(flags);
        let count = from.number()?;
        let mut sequences = Vec::new();
        for _ in 0..count {
            let count = from.number()?;
            let ids = from.numbers(count)?;
            sequences.push((ids, from.bytes(count)?.iter().map(|&byte| byte == 1).collect()));
        }
        let count = from.number()?;
        let end_tokens = from.numbers(count)?;
        Some(EncodedRow { sequences, length, issues, end_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(ids: &[u32]) -> Encoded {
        Encoded {
            ids: ids.to_vec(),
            types: vec![0; ids.len()],
            length: 9,
            partly_counted: false,
            words: vec![(0, 1)],
        }
    }

    fn key(text: &str) -> Option<Fingerprint> {
        let mut key = Fingerprint::new("test");
        key.text(text);
        Some(key)
    }

    fn make(row: &Encoded) -> Result<Encoded, Error> {
        Ok(row.clone())
    }

    /// Whether rows under this key came from the cache; checks that the tokens are `rows`.
    fn hit(cache: &TokenCache, text: &str, rows: &[Encoded]) -> bool {
        let all_sound = |_: &Encoded| true;
        let (found, cached) = load_or_encode(Some(cache), || key(text), rows, all_sound, make).unwrap();
        assert_eq!(found, rows);
        cached
    }

    fn file(cache: &TokenCache) -> PathBuf {
        fs::read_dir(&cache.folder).unwrap().next().unwrap().unwrap().path()
    }

    #[test]
    fn rows_are_stored_under_their_key() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenCache::new(folder.path().join("a/b"), 1 << 20);
        let rows = [encoded(&[1, 2, 3]), encoded(&[4])];
        assert_eq!([(); 2].map(|_| hit(&cache, "x", &rows)), [false, true]);
        assert!(!hit(&cache, "y", &rows));
        let text = EncodedRow {
            sequences: vec![(vec![7, 8], vec![false, true]), (vec![9, 1, 2], vec![false, false, true])],
            length: 4,
            issues: RowIssues { no_end_token: true, thoughts_dropped: true, ..Default::default() },
            end_tokens: vec![8, 2],
        };
        let mut bytes = Vec::new();
        text.write(&mut bytes);
        assert_eq!(EncodedRow::read(&mut Reader(&bytes)), Some(text));
    }

    #[test]
    fn a_damaged_or_foreign_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenCache::new(folder.path().to_path_buf(), 1 << 20);
        let rows = [encoded(&[1, 2, 3])];
        hit(&cache, "x", &rows);
        let (path, whole) = (file(&cache), fs::read(file(&cache)).unwrap());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            for bytes in [&damaged, &whole[..at]] {
                fs::write(&path, bytes).unwrap();
                assert!(!hit(&cache, "x", &rows), "byte {at}");
                assert_eq!(fs::read(&path).unwrap(), whole);
            }
        }
        // A valid hash over counts that lead beyond the end of the file.
        let mut lies = whole.clone();
        lies[HEADER + 8..HEADER + 12].fill(0xff);
        let hash = XxHash3_128::oneshot(&lies[HEADER..]);
        lies[24..HEADER].copy_from_slice(&hash.to_le_bytes());
        fs::write(&path, &lies).unwrap();
        assert!(!hit(&cache, "x", &rows));
        let refused = |_: &Encoded| false;
        let made = load_or_encode(Some(&cache), || key("x"), &rows, refused, make).unwrap();
        assert_eq!(made, (rows.to_vec(), false));
    }

    #[test]
    fn the_least_recently_used_file_is_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [encoded(&[1; 100])];
        let size = (HEADER + 16 + 800 + 8) as u64;
        let cache = TokenCache::new(folder.path().to_path_buf(), 3 * size);
        for (age, name) in ["a", "b", "c"].into_iter().enumerate() {
            hit(&cache, name, &rows);
            let path = cache.path(key(name).unwrap().finish());
            let time = SystemTime::now() - Duration::from_secs(100 - age as u64);
            File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
        }
        assert!(hit(&cache, "a", &rows), "it is there, and is now the one used last");
        hit(&cache, "d", &rows);
        let is_there = |name| cache.path(key(name).unwrap().finish()).exists();
        assert_eq!(["a", "b", "c", "d"].map(is_there), [true, false, true, true]);
        let small = TokenCache::new(folder.path().to_path_buf(), size - 1);
        assert!(!hit(&small, "e", &rows) && !is_there("e"), "larger than the whole room");
    }

    #[test]
    fn a_folder_that_cannot_be_used_stops_the_cache_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("file");
        fs::write(&taken, "").unwrap();
        let cache = TokenCache::new(taken.join("tokens"), 1 << 20);
        assert_eq!(cache.stopped(), None);
        // What stops one clone stops all.
        let clone = cache.clone();
        assert_eq!([(); 2].map(|_| hit(&clone, "x", &[encoded(&[1])])), [false, false]);
        let warning = cache.stopped().unwrap();
        assert!(warning.contains("file/tokens: ") && warning.contains("this run continues"), "{warning}");
        // A stopped cache does not try again.
        fs::remove_file(&taken).unwrap();
        assert!(!hit(&cache, "x", &[encoded(&[1])]) && !taken.exists());
    }

    #[test]
    fn without_a_key_or_on_an_error_nothing_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenCache::new(folder.path().to_path_buf(), 1 << 20);
        let sound = |_: &Encoded| true;
        let rows = [encoded(&[1])];
        let made = load_or_encode(Some(&cache), || None, &rows, sound, make).unwrap();
        assert_eq!(made, (rows.to_vec(), false));
        let refuse = |_: &Encoded| Err(Error::Options("refused".into()));
        assert!(load_or_encode(Some(&cache), || key("x"), &rows, sound, refuse).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
