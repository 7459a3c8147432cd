//! The hub's protocol for changes: a repository is created, large files go to their storage, and
//! one commit makes everything visible.
//!
//! The token goes only with requests to the endpoint itself. A large file goes to an address that
//! the hub gives for this one file, which is sent no token.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::header::{CONTENT_LENGTH, ETAG};
use ureq::http::{Response, Uri};
use ureq::{Body, SendBody};

use super::client::{Client, Fault, REDIRECTS, address, is_encrypted_like, is_web, same_origin, text};
use super::parcel::ParcelFile;
use crate::Cancel;

/// Bytes at a file's start from which the hub decides how it is stored.
const SAMPLE: usize = 512;
/// Bytes of one read.
const PIECE: usize = 64 << 10;
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const LFS: &str = "application/vnd.git-lfs+json";
/// Largest number of parts that the storage takes of a file.
const MOST_PARTS: usize = 10_000;

/// How the hub stores a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Storage {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    /// Hash of the hub's present file of this name.
    oid: Option<String>,
}

/// A file to send.
pub(super) struct Outgoing<'a> {
    pub file: &'a ParcelFile,
    /// SHA-256 in hexadecimal of a large file; `None` for others.
    large: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

/// Result of a commit.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Commit {
    pub commit_oid: String,
}

impl Client<'_> {
    /// Creates a model's repository. Returns whether it is new.
    pub fn create(&self, id: &str, private: bool) -> Result<bool, Fault> {
        let (organization, name) = id.split_once('/').unwrap_or(("", id));
        let mut body = json!({ "type": "model", "name": name, "organization": organization });
        if private {
            body["private"] = true.into();
        }
        match self.post("/api/repos/create", JSON, body.to_string().as_bytes()) {
            Err(fault) if fault.status() == Some(409) => Ok(false),
            // The token may be for this repository and not for creating others.
            Err(fault) if matches!(fault.status(), Some(401..=403)) => {
                self.info(id, super::MAIN, false).map(|_| false).map_err(|_| fault)
            }
            answer => answer.map(|_| true),
        }
    }

    /// Creates a branch if it is missing.
    pub fn create_branch(&self, id: &str, branch: &str) -> Result<(), Fault> {
        match self.post(&format!("/api/models/{id}/branch/{}", escaped(branch)), JSON, b"{}") {
            Err(fault) if fault.status() == Some(409) => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Asks how the hub stores these files, and returns those that differ from what is there.
    pub fn outgoing<'a>(
        &self,
        id: &str,
        revision: &str,
        files: &'a [ParcelFile],
    ) -> Result<Vec<Outgoing<'a>>, Fault> {
        let about = |file: &ParcelFile| {
            let mut sample = Vec::new();
            File::open(&file.path)?.take(SAMPLE as u64).read_to_end(&mut sample)?;
            Ok(json!({ "path": file.name, "sample": STANDARD.encode(sample), "size": file.bytes }))
        };
        let list: Vec<Value> = files.iter().map(about).collect::<io::Result<_>>().map_err(Fault::Local)?;
        let place = format!("/api/models/{id}/preupload/{}", escaped(revision));
        let answer = self.post(&place, JSON, json!({ "files": list }).to_string().as_bytes())?;
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<Storage>,
        }
        let Answer { files: storages } = read(answer, "how files are stored")?;
        let mut outgoing = Vec::new();
        for file in files {
            self.check()?;
            let storage = storages.iter().find(|storage| storage.path == file.name);
            let storage = storage
                .ok_or_else(|| Fault::InvalidAnswer(format!("nothing of how {} is stored", file.name)))?;
            if storage.should_ignore {
                return Err(Fault::InvalidAnswer(format!(
                    "that {} is not to be stored, by a .gitignore there",
                    file.name
                )));
            }
            // The storage of large files does not accept empty ones.
            let is_large = storage.upload_mode == "lfs" && file.bytes > 0;
            let hash = if is_large { sha256(&file.path, self.cancel()) } else { git_hash(&file.path) };
            let hash = hash.map_err(|e| self.local(e))?;
            if storage.oid.as_ref() != Some(&hash) {
                outgoing.push(Outgoing { file, large: is_large.then_some(hash) });
            }
        }
        Ok(outgoing)
    }

    /// Sends the large files among these to their storage, unless it has them. `progress` is called
    /// with a file and the number of its bytes that were sent.
    pub fn upload(
        &self,
        id: &str,
        revision: &str,
        files: &[Outgoing],
        attempts: usize,
        progress: &mut dyn FnMut(&ParcelFile, u64),
    ) -> Result<(), (Fault, Option<String>)> {
        let large: Vec<(&str, &ParcelFile)> =
            files.iter().filter_map(|file| Some((file.large.as_deref()?, file.file))).collect();
        if large.is_empty() {
            return Ok(());
        }
        let objects: Vec<Value> =
            large.iter().map(|(oid, file)| json!({ "oid": oid, "size": file.bytes })).collect();
        let body = json!({ "operation": "upload", "transfers": ["basic", "multipart"], "objects": objects,
                           "hash_algo": "sha256", "ref": { "name": revision } });
        let batch = self
            .post(&format!("/{id}.git/info/lfs/objects/batch"), LFS, body.to_string().as_bytes())
            .and_then(|answer| read::<Batch>(answer, "where large files go"))
            .map_err(|fault| (fault, None))?;
        for (oid, file) in large {
            let of_file = |fault| (fault, Some(file.name.clone()));
            let object = batch.objects.iter().find(|object| object.oid == oid);
            let object = object.ok_or_else(|| of_file(Fault::InvalidAnswer("no place for it".into())))?;
            if let Some(ObjectError { message }) = &object.error {
                return Err(of_file(Fault::InvalidAnswer(message.clone())));
            }
            let Some(Actions { upload: Some(upload), verify }) = &object.actions else { continue };
            // The file counts as complete once it is stored.
            let mut report = |done: u64| progress(file, done.min(file.bytes - 1));
            self.store(file, oid, upload, attempts, &mut report).map_err(of_file)?;
            if let Some(verify) = verify {
                let body = json!({ "oid": oid, "size": file.bytes }).to_string();
                let to = self.storage(&verify.href).map_err(of_file)?;
                self.send_to(to, JSON, body.as_bytes()).map_err(of_file)?;
            }
            progress(file, file.bytes);
        }
        Ok(())
    }

    /// Sends one file, whole or in the parts that the hub asks for.
    fn store(
        &self,
        file: &ParcelFile,
        oid: &str,
        action: &Action,
        attempts: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Fault> {
        let Some(size) = action.header.get("chunk_size") else {
            let to = self.storage(&action.href)?;
            return self.put(&to, file, (0, file.bytes), attempts, progress).map(drop);
        };
        let number = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|&size| size > 0);
        let size = number.ok_or_else(|| Fault::InvalidAnswer(format!("parts of {size} bytes")))?;
        let parts: BTreeMap<usize, &Value> =
            action.header.iter().filter_map(|(name, place)| Some((name.parse().ok()?, place))).collect();
        let wanted = file.bytes.div_ceil(size);
        if parts.len() as u64 != wanted || parts.len() > MOST_PARTS {
            return Err(Fault::InvalidAnswer(format!("{} places for {wanted} parts of a file", parts.len())));
        }
        let mut stored = Vec::new();
        for (index, place) in parts.values().enumerate() {
            let to = self.storage(place.as_str().unwrap_or_default())?;
            let first = index as u64 * size;
            let length = size.min(file.bytes - first);
            let response =
                self.put(&to, file, (first, length), attempts, &mut |done| progress(first + done))?;
            let etag = text(response.headers(), ETAG.as_str()).filter(|etag| !etag.is_empty());
            let etag = etag.ok_or_else(|| Fault::InvalidAnswer("no ETag for a part of a file".into()))?;
            stored.push(json!({ "partNumber": index + 1, "etag": etag }));
        }
        let body = json!({ "oid": oid, "parts": stored }).to_string();
        let request = self.agent().post(self.storage(&action.href)?).content_type(LFS).header("Accept", LFS);
        self.check_response(request.send(body.as_bytes()), Fault::Connection).map(drop)
    }

    /// Sends `length` bytes of a file from byte `first` on, and tries again if the connection
    /// breaks or the storage fails temporarily.
    fn put(
        &self,
        to: &Uri,
        file: &ParcelFile,
        (first, length): (u64, u64),
        attempts: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Response<Body>, Fault> {
        let mut left = 1..attempts;
        loop {
            self.check()?;
            let mut source = File::open(&file.path).map_err(Fault::Local)?;
            source.seek(SeekFrom::Start(first)).map_err(Fault::Local)?;
            let mut part =
                PartReader { source: source.take(length), done: 0, progress, cancel: self.cancel() };
            let request = self.agent().put(to).header(CONTENT_LENGTH, length);
            let fault =
                match self.check_response(request.send(SendBody::from_reader(&mut part)), Fault::Transfer) {
                    Err(fault) => fault,
                    response => return response,
                };
            let passing =
                matches!(fault, Fault::Transfer(_)) || fault.status().is_some_and(|code| code >= 500);
            if !passing || left.next().is_none() {
                return Err(fault);
            }
        }
    }

    /// Commits the files, which makes all of them visible at once.
    pub fn commit(
        &self,
        id: &str,
        revision: &str,
        message: &str,
        files: &[Outgoing],
    ) -> Result<Commit, Fault> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        for Outgoing { file, large } in files {
            lines.push(match large {
                Some(oid) => json!({ "key": "lfsFile", "value": { "path": file.name, "algo": "sha256", "oid": oid,
                                                                  "size": file.bytes } }),
                None => {
                    let content = std::fs::read(&file.path).map_err(Fault::Local)?;
                    let content = STANDARD.encode(content);
                    json!({ "key": "file", "value": { "content": content, "path": file.name, "encoding": "base64" } })
                }
            });
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let place = format!("/api/models/{id}/commit/{}", escaped(revision));
        read(self.post(&place, NDJSON, body.as_bytes())?, "the commit")
    }

    /// Posts a body to a path at the endpoint.
    fn post(&self, place: &str, kind: &str, body: &[u8]) -> Result<Vec<u8>, Fault> {
        self.send_to(address(&format!("{}{place}", self.endpoint()))?, kind, body)
    }

    /// Posts a body, with the token if it goes to the endpoint, and follows redirects within the
    /// same origin, as for a repository that was renamed.
    fn send_to(&self, mut url: Uri, kind: &str, body: &[u8]) -> Result<Vec<u8>, Fault> {
        for _ in 0..=REDIRECTS {
            self.check()?;
            let request = self
                .agent()
                .post(&url)
                .content_type(kind)
                .header("Accept", if kind == LFS { LFS } else { JSON });
            let request = self.authorised(request, &url);
            let response = self.check_response(request.send(body), Fault::Connection)?;
            match self.redirect(&url, &response)? {
                None => return self.read_body(response),
                Some(to) if same_origin(&url, &to) && matches!(response.status().as_u16(), 307 | 308) => {
                    url = to
                }
                Some(to) => {
                    let host = to.host().unwrap_or_default();
                    return Err(Fault::InvalidAnswer(format!(
                        "a redirect to {host:?}, which is not followed"
                    )));
                }
            }
        }
        Err(Fault::InvalidAnswer(format!("more than {REDIRECTS} redirects")))
    }

    /// Checks the address that the hub gives for a large file.
    fn storage(&self, href: &str) -> Result<Uri, Fault> {
        let to = href.parse().ok().filter(is_web).ok_or_else(|| {
            Fault::InvalidAnswer("a place for a large file that is not a web address".into())
        })?;
        match is_encrypted_like(&to, self.origin()) {
            true => Ok(to),
            false => {
                Err(Fault::InvalidAnswer("a place for a large file whose connection is not encrypted".into()))
            }
        }
    }

    fn local(&self, e: io::Error) -> Fault {
        if self.cancel().is_raised() { Fault::Interrupted } else { Fault::Local(e) }
    }
}

/// Reads a part of a file while it is sent.
struct PartReader<'a> {
    source: io::Take<File>,
    done: u64,
    progress: &'a mut dyn FnMut(u64),
    cancel: &'a Cancel,
}

impl Read for PartReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_raised() {
            return Err(io::Error::other("interrupted"));
        }
        let count = self.source.read(into)?;
        self.done += count as u64;
        (self.progress)(self.done);
        Ok(count)
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: Vec<u8>, what: &str) -> Result<T, Fault> {
    serde_json::from_slice(&answer)
        .map_err(|e| Fault::InvalidAnswer(format!("what it says of {what} is not what was expected: {e}")))
}

/// Escapes a revision to one segment of an address.
fn escaped(revision: &str) -> String {
    revision.replace('/', "%2F")
}

/// Returns the SHA-256 of a file, in hexadecimal.
fn sha256(path: &Path, cancel: &Cancel) -> io::Result<String> {
    let (mut file, mut hash, mut piece) = (File::open(path)?, Context::new(&SHA256), vec![0; PIECE]);
    loop {
        if cancel.is_raised() {
            return Err(io::Error::other("interrupted"));
        }
        match file.read(&mut piece)? {
            0 => return Ok(hexadecimal(hash)),
            count => hash.update(&piece[..count]),
        }
    }
}

/// Returns the hash by which git names a file's content, in hexadecimal.
fn git_hash(path: &Path) -> io::Result<String> {
    let content = std::fs::read(path)?;
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(format!("blob {}\0", content.len()).as_bytes());
    hash.update(&content);
    Ok(hexadecimal(hash))
}

fn hexadecimal(hash: Context) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_large_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object` and `sha256sum`.
        assert_eq!(git_hash(&path).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            sha256(&path, &Cancel::new()).unwrap(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }
}
