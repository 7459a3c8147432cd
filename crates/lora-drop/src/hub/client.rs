//! The hub's protocol for downloads: a repository's list of files, and the files, over HTTP.
//!
//! Redirects are followed here and not by `ureq`, so that the token goes only to the endpoint's own
//! scheme, host and port, whatever a server answers.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use ureq::http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE,
};
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body};

use super::GgufModel;
use super::cache::{INDEX, PlainName, PlainPath, RepoKind, WEIGHTS};
use crate::Cancel;

/// Endpoint unless HF_ENDPOINT is set.
const PUBLIC_HUB: &str = "https://huggingface.co";
/// Largest number of redirects that are followed for one file.
pub(super) const REDIRECTS: usize = 8;
/// Largest size of a repository's description in bytes; with thousands of files it has some hundred
/// thousand.
const LONGEST_DESCRIPTION: u64 = 16 << 20;
/// Largest size in bytes of the hub's answer to a request that it refuses.
const LONGEST_REFUSAL: u64 = 64 << 10;
/// Largest number of characters of it that are shown.
const LONGEST_MESSAGE: usize = 300;
/// Bytes of one read.
const PIECE: usize = 64 << 10;

/// Why a request failed.
pub(super) enum Fault {
    /// The hub answered with this status.
    Status(u16),
    /// The hub refuses a change, with this status and this message, which may be empty.
    Refused(u16, String),
    /// No connection could be made, for this reason.
    Connection(String),
    /// Nothing has arrived within the timeout.
    Timeout,
    /// The transfer ended early.
    Transfer(String),
    /// The hub's answer is not valid.
    InvalidAnswer(String),
    /// Another process has locked the file and makes no progress.
    Locked,
    /// The disk failed.
    Local(std::io::Error),
    Interrupted,
}

impl Fault {
    /// Returns the status of an answer that is a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Fault::Status(code) | Fault::Refused(code, _) => Some(*code),
            _ => None,
        }
    }
}

/// A repository's description.
#[derive(serde::Deserialize)]
pub(super) struct Info {
    /// Commit of the revision.
    pub sha: String,
    pub siblings: Vec<Sibling>,
}

/// A file of a repository.
#[derive(serde::Deserialize)]
pub(super) struct Sibling {
    #[serde(rename = "rfilename")]
    pub name: String,
    /// Size in bytes, if sizes were asked for.
    pub size: Option<u64>,
}

impl Info {
    /// Whether the repository has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.siblings.iter().any(|file| file.name == name)
    }

    /// Whether a name without a file means one of the repository's GGUF models.
    pub fn is_gguf(&self) -> bool {
        let other = [WEIGHTS, INDEX, "adapter_config.json"].into_iter().any(|file| self.has(file));
        !other && !self.gguf_models().is_empty()
    }

    /// Returns the repository's GGUF models.
    pub fn gguf_models(&self) -> Vec<GgufModel> {
        GgufModel::list(self.siblings.iter().map(|file| (&file.name, file.size)))
    }
}

/// Metadata of a file, which the hub gives before the file.
pub(super) struct Metadata {
    /// The ETag, which is the file's name in the cache.
    pub etag: PlainName,
    /// Size in bytes.
    pub size: u64,
    /// The file's commit, if the hub names one.
    pub commit: Option<String>,
}

/// A connection to the hub.
pub(super) struct Client<'a> {
    agent: Agent,
    /// The address without a final slash.
    endpoint: &'a str,
    origin: Uri,
    token: Option<&'a str>,
    timeout: Duration,
    cancel: &'a Cancel,
    kind: RepoKind,
}

impl<'a> Client<'a> {
    /// Creates a client that waits at most `timeout` for anything to arrive.
    ///
    /// # Errors
    /// The endpoint or the token is not valid.
    pub fn new(
        endpoint: Option<&'a str>,
        token: Option<&'a str>,
        timeout: Duration,
        cancel: &'a Cancel,
        kind: RepoKind,
    ) -> Result<Self, String> {
        let endpoint = endpoint.unwrap_or(PUBLIC_HUB);
        let origin = endpoint
            .parse()
            .ok()
            .filter(is_web)
            .ok_or_else(|| format!("HF_ENDPOINT is {endpoint:?}, expected http://... or https://..."))?;
        if token.is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            return Err(
                "the token (HF_TOKEN, or the file that HF_TOKEN_PATH names, by default `token` in HF_HOME) has \
                 characters that no token has"
                    .into(),
            );
        }
        let limit = Some(timeout);
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("lora-drop/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(limit)
            .timeout_connect(limit)
            .timeout_send_request(limit)
            .timeout_recv_response(limit)
            .timeout_per_read(limit)
            .timeout_per_write(limit)
            .build();
        Ok(Client { agent: Agent::new_with_config(config), endpoint, origin, token, timeout, cancel, kind })
    }

    /// Returns the agent, by which another thread can shut down all connections.
    pub fn agent(&self) -> Agent {
        self.agent.clone()
    }

    /// Returns the endpoint without a final slash.
    pub fn endpoint(&self) -> &str {
        self.endpoint
    }

    /// Returns the endpoint's address.
    pub fn origin(&self) -> &Uri {
        &self.origin
    }

    pub fn cancel(&self) -> &Cancel {
        self.cancel
    }

    /// Fetches the description of a repository at a revision, with or without the sizes of its
    /// files.
    pub fn info(&self, id: &str, revision: &str, sizes: bool) -> Result<Info, Fault> {
        let query = if sizes { "?blobs=true" } else { "" };
        let (kind, revision) = (self.kind.plural(), revision.replace('/', "%2F"));
        let url = format!("{}/api/{kind}/{id}/revision/{revision}{query}", self.endpoint);
        let text = self.read_body(self.get(address(&url)?, None)?)?;
        serde_json::from_slice(&text).map_err(|e| {
            Fault::InvalidAnswer(format!(
                "its description of the {} is not what was expected: {e}",
                self.kind.name()
            ))
        })
    }

    /// Reads an answer that is not a file.
    pub fn read_body(&self, response: Response<Body>) -> Result<Vec<u8>, Fault> {
        let mut body = response.into_body().into_reader().take(LONGEST_DESCRIPTION + 1);
        // No progress is shown, so the whole answer must arrive within the timeout.
        let (mut text, mut piece, began) = (Vec::new(), vec![0; PIECE], Instant::now());
        loop {
            match body.read(&mut piece).map_err(|e| self.fault_of(e.into(), Fault::Transfer))? {
                0 => break,
                count => text.extend_from_slice(&piece[..count]),
            }
            if text.len() as u64 > LONGEST_DESCRIPTION {
                return Err(Fault::InvalidAnswer(format!(
                    "a description of more than {LONGEST_DESCRIPTION} bytes"
                )));
            }
            if began.elapsed() > self.timeout {
                return Err(Fault::Timeout);
            }
        }
        Ok(text)
    }

    /// Fetches the metadata of a file at a commit.
    pub fn metadata(&self, id: &str, commit: &PlainName, file: &PlainPath) -> Result<Metadata, Fault> {
        // A redirect to the storage of large files describes the file; one to another name on the
        // hub does not.
        let follows = |from: &Uri, to: &Uri, response: &Response<Body>| {
            !response.headers().contains_key("x-linked-etag") && same_origin(from, to)
        };
        let url = self.file(id, commit, file)?;
        let (response, redirected) = self.ask(url, |url| self.agent.head(url), None, follows)?;
        file_metadata(response.headers(), redirected)
    }

    /// Appends a file's bytes from `from` on to `partial`, which has the bytes before, and returns
    /// once the file is complete. `progress` is called with the number of bytes that have arrived.
    pub fn download(
        &self,
        source: (&str, &PlainName, &PlainPath),
        size: u64,
        from: u64,
        partial: &mut File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Fault> {
        let (id, commit, file) = source;
        let response = self.get(self.file(id, commit, file)?, (from > 0).then_some(from))?;
        let headers = response.headers();
        let (mut done, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((first, total)) if first == from => (from, Some(total)),
                _ => {
                    return Err(Fault::InvalidAnswer(
                        "another part of the file than the requested one".into(),
                    ));
                }
            },
            // The hub cannot resume, and sends the file from the start.
            _ => (0, number(headers, CONTENT_LENGTH.as_str())),
        };
        if let Some(total) = total.filter(|&total| total != size) {
            return Err(Fault::InvalidAnswer(format!("a file of {total} bytes, where it said {size}")));
        }
        if done < from {
            partial.set_len(0).map_err(Fault::Local)?;
        }
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        while done < size {
            progress(done);
            self.check()?;
            let count = body.read(&mut piece).map_err(|e| self.fault_of(e.into(), Fault::Transfer))?;
            if count == 0 {
                return Err(Fault::Transfer(format!("it ended after {done} of {size} bytes")));
            }
            // Bytes after the announced end are not stored.
            let count = count.min(usize::try_from(size - done).unwrap_or(count));
            partial.write_all(&piece[..count]).map_err(Fault::Local)?;
            done += count as u64;
        }
        Ok(())
    }

    fn file(&self, id: &str, commit: &PlainName, file: &PlainPath) -> Result<Uri, Fault> {
        let folder = if self.kind == RepoKind::Data { "datasets/" } else { "" };
        address(&format!("{}/{folder}{id}/resolve/{commit}/{file}", self.endpoint))
    }

    /// Requests content, from this byte on, and follows redirects.
    fn get(&self, url: Uri, from: Option<u64>) -> Result<Response<Body>, Fault> {
        Ok(self.ask(url, |url| self.agent.get(url), from, |_, _, _| true)?.0)
    }

    /// Sends requests and follows redirects as long as `follows` allows. Returns the last answer,
    /// and whether it is a redirect.
    fn ask(
        &self,
        mut url: Uri,
        request: impl Fn(&Uri) -> ureq::RequestBuilder<WithoutBody>,
        from: Option<u64>,
        follows: impl Fn(&Uri, &Uri, &Response<Body>) -> bool,
    ) -> Result<(Response<Body>, bool), Fault> {
        for _ in 0..=REDIRECTS {
            let response = self.send(request(&url), &url, from)?;
            match self.redirect(&url, &response)? {
                Some(to) if follows(&url, &to, &response) => url = to,
                other => return Ok((response, other.is_some())),
            }
        }
        Err(Fault::InvalidAnswer(format!("more than {REDIRECTS} redirects")))
    }

    /// Sends one request, with the token if it goes to the endpoint. The answer is a success or a
    /// redirect.
    fn send(
        &self,
        request: ureq::RequestBuilder<WithoutBody>,
        url: &Uri,
        from: Option<u64>,
    ) -> Result<Response<Body>, Fault> {
        self.check()?;
        let mut request = self.authorised(request.header(ACCEPT_ENCODING, "identity"), url);
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| self.fault_of(e, Fault::Connection))?;
        match response.status() {
            status if status.is_success() || status.is_redirection() => Ok(response),
            status => Err(Fault::Status(status.as_u16())),
        }
    }

    /// Adds the token to a request that goes to the endpoint.
    pub fn authorised<B>(&self, request: ureq::RequestBuilder<B>, url: &Uri) -> ureq::RequestBuilder<B> {
        match self.token.filter(|_| same_origin(url, &self.origin)) {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Checks the answer to a request that changes something, which must be a success or a
    /// redirect.
    pub fn check_response(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
        fault: fn(String) -> Fault,
    ) -> Result<Response<Body>, Fault> {
        let response = answer.map_err(|e| self.fault_of(e, fault))?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        #[derive(serde::Deserialize)]
        struct Refusal {
            error: String,
        }
        let header = text(response.headers(), "x-error-message").map(str::to_string);
        let reason = header.or_else(|| {
            let body = response.into_body().into_reader().take(LONGEST_REFUSAL);
            Some(serde_json::from_reader::<_, Refusal>(body).ok()?.error)
        });
        let reason = reason.unwrap_or_default().chars().take(LONGEST_MESSAGE).collect();
        Err(Fault::Refused(status.as_u16(), reason))
    }

    /// Returns the address to which an answer redirects; `None` if it does not.
    pub fn redirect(&self, url: &Uri, response: &Response<Body>) -> Result<Option<Uri>, Fault> {
        if !response.status().is_redirection() {
            return Ok(None);
        }
        let location = text(response.headers(), LOCATION.as_str()).unwrap_or_default();
        let origin = || format!("{}://{}", url.scheme_str().unwrap_or("https"), authority(url));
        let absolute = match location {
            rest if rest.starts_with("//") => format!("{}:{rest}", url.scheme_str().unwrap_or("https")),
            path if path.starts_with('/') => origin() + path,
            other => other.to_string(),
        };
        let refuse = |why: &str| Err(Fault::InvalidAnswer(format!("a redirect to {location:?}, {why}")));
        match absolute.parse::<Uri>().ok().filter(is_web) {
            None => refuse("which is not a web address"),
            Some(to) if !is_encrypted_like(&to, url) => refuse("which is not encrypted"),
            to => Ok(to),
        }
    }

    /// Converts an error of a request, or of incoming content.
    fn fault_of(&self, e: ureq::Error, fault: fn(String) -> Fault) -> Fault {
        match e {
            _ if self.cancel.is_raised() => Fault::Interrupted,
            ureq::Error::Timeout(_) => Fault::Timeout,
            e => fault(e.to_string()),
        }
    }

    pub fn check(&self) -> Result<(), Fault> {
        if self.cancel.is_raised() { Err(Fault::Interrupted) } else { Ok(()) }
    }
}

pub(super) fn address(url: &str) -> Result<Uri, Fault> {
    url.parse().map_err(|e| Fault::InvalidAnswer(format!("{url:?} is not an address: {e}")))
}

/// Reads a file's metadata from headers; `redirected` if they belong to a redirect, whose own
/// length means nothing.
fn file_metadata(headers: &HeaderMap, redirected: bool) -> Result<Metadata, Fault> {
    let tag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
    let tag = tag.ok_or_else(|| Fault::InvalidAnswer("no ETag for a file".into()))?;
    let bare = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    let etag = PlainName::new(bare).ok_or_else(|| {
        Fault::InvalidAnswer(format!(
            "the ETag {tag:?}, which cannot be a file's name in the cache; nothing was written"
        ))
    })?;
    let own = (!redirected).then(|| number(headers, CONTENT_LENGTH.as_str())).flatten();
    let size = number(headers, "x-linked-size").or(own);
    let size = size.ok_or_else(|| Fault::InvalidAnswer("no length for a file".into()))?;
    Ok(Metadata { etag, size, commit: text(headers, "x-repo-commit").map(str::to_string) })
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// Parses the first byte and the whole length in `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (range, total) = text(headers, CONTENT_RANGE.as_str())?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// Whether an address is encrypted if `other` is.
pub(super) fn is_encrypted_like(uri: &Uri, other: &Uri) -> bool {
    uri.scheme_str() == Some("https") || other.scheme_str() != Some("https")
}

pub(super) fn is_web(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// Whether two addresses have the same scheme, host and port.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port =
        |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |uri: &Uri| uri.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub.org/a", "https://HUB.org:443/b?c"));
        assert!(same("http://hub.org:80", "http://hub.org"));
        for other in [
            "http://hub.org/",
            "https://hub.org:8443/",
            "https://hub.org.evil.org/",
            "https://hub.org@evil.org/",
            "https://sub.hub.org/",
        ] {
            assert!(!same("https://hub.org", other), "{other}");
        }
    }
}
