//! Uploads an adapter to the hub, and explains failures.

use super::cache::RepoKind;
use super::client::{Client, Fault};
use super::fetch::{ATTEMPTS, watched};
use super::parcel::{Parcel, ParcelFile};
use super::{Download, HubName, HubOptions, MAIN};
use crate::{Cancel, Error, Result};

/// Where and how a parcel is uploaded.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// The branch, which is created if it is missing.
    pub revision: String,
    /// The commit's first line.
    pub message: String,
    /// Whether a new repository is visible to its owners alone.
    pub private: bool,
}

impl Default for PushOptions {
    fn default() -> Self {
        PushOptions {
            revision: MAIN.to_string(),
            message: "Upload with lora-drop".to_string(),
            private: false,
        }
    }
}

/// Result of an upload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pushed {
    /// The repository's page.
    pub url: String,
    /// Whether the repository is new.
    pub created: bool,
    /// The commit; `None` if the hub has all files already.
    pub commit: Option<String>,
    /// Names of the files in the commit.
    pub sent: Vec<String>,
}

impl HubOptions {
    /// Uploads a parcel to its repository, which is created if it is missing, in one commit. Files
    /// that the hub has already are not sent. `progress` reports large files.
    ///
    /// The commit is the last request, so a failure, or raising `cancel`, leaves the repository's
    /// files as they were.
    ///
    /// # Errors
    /// `Error::Usage` without a token, or for a revision that cannot be one; the hub refuses the
    /// token or the repository, cannot be reached, or its answers are not valid; the transfer
    /// breaks off. Each message says what to do. `Error::Interrupted` once `cancel` is raised.
    pub fn push(
        &self,
        parcel: &Parcel,
        options: &PushOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Pushed> {
        let (id, revision) = (parcel.repository.as_str(), options.revision.as_str());
        self.check_push(id, revision)?;
        let problem = |problem: String| Error::Input(format!("{id}: {problem}"));
        let (endpoint, token) = (self.endpoint.as_deref(), self.token.as_deref());
        let client = Client::new(endpoint, token, self.timeout, cancel, RepoKind::Model).map_err(problem)?;
        let explain = |fault| self.explain_push(id, revision, fault, None);
        watched(client.agent(), cancel, || {
            let created = client.create(id, options.private).map_err(explain)?;
            if revision != MAIN && !revision.starts_with("refs/") {
                client.create_branch(id, revision).map_err(explain)?;
            }
            let files = client.outgoing(id, revision, &parcel.files).map_err(explain)?;
            let url = format!("{}/{id}", client.endpoint());
            if files.is_empty() {
                return Ok(Pushed { url, created, commit: None, sent: Vec::new() });
            }
            let mut report = |file: &ParcelFile, done| {
                progress(Download { file: &file.name, done, total: file.bytes });
            };
            client
                .upload(id, revision, &files, ATTEMPTS, &mut report)
                .map_err(|(fault, file)| self.explain_push(id, revision, fault, file.as_deref()))?;
            cancel.check()?;
            let commit = client.commit(id, revision, &options.message, &files);
            let commit = commit.map_err(|fault| match fault.status() {
                // A refusal means that nothing was committed.
                Some(400..=499) => explain(fault),
                _ => unknown_end(id, &url, explain(fault)),
            })?;
            let sent = files.iter().map(|file| file.file.name.clone()).collect();
            Ok(Pushed { url, created, commit: Some(commit.commit_oid), sent })
        })
        .unwrap_or_else(|panic| Err(problem(format!("the upload failed: {panic}"))))
    }

    /// Refuses what cannot be uploaded before anything is sent.
    fn check_push(&self, id: &str, revision: &str) -> Result<()> {
        let refuse = |problem: String| Err(Error::Usage(format!("{id}: {problem}")));
        if HubName::parse(&format!("{id}@{revision}")).is_err() {
            return refuse(format!("`revision = {revision}` cannot be a branch"));
        }
        if self.offline {
            return refuse("HF_HUB_OFFLINE forbids the upload; unset it".to_string());
        }
        if self.token.is_none() {
            return refuse(
                "there is no token to write with: make one with the role \"write\" at \
                 https://huggingface.co/settings/tokens, and give it as HF_TOKEN, or save it with `hf auth login`"
                    .to_string(),
            );
        }
        Ok(())
    }

    /// Converts a fault to an error that says what to do; `file` is the one being sent.
    fn explain_push(&self, id: &str, revision: &str, fault: Fault, file: Option<&str>) -> Error {
        let what = file.map_or(String::new(), |file| format!("{file}: "));
        let hub = self.endpoint.as_deref().unwrap_or("the Hugging Face hub");
        let org = id.split('/').next().unwrap_or(id);
        let status = fault.status().unwrap_or_default();
        let reason = refusal_reason(&fault);
        let text = match fault {
            Fault::Interrupted => return Error::Interrupted,
            Fault::Status(_) | Fault::Refused(..) => match status {
                401 => format!("{hub} does not accept the token (401){reason}: check HF_TOKEN"),
                403 => format!(
                    "{hub} refuses to write there (403){reason}: the token needs the role \"write\", and its account the \
                     right to write to {org}"
                ),
                404 => format!(
                    "{hub} does not know {org}, or the branch {revision} (404){reason}: check the spelling, and that the \
                     organization exists and the token's account is a member"
                ),
                400 => format!("{hub} does not take the request (400){reason}"),
                412 => {
                    format!(
                        "somebody has written to the branch {revision} meanwhile (412){reason}; run again"
                    )
                }
                code => format!("{hub} answered {code}{reason}; run again later"),
            },
            Fault::Connection(why) => {
                format!("no connection to {hub} ({why}); check the network, and run again")
            }
            Fault::Timeout => format!(
                "{hub} has not answered for {} s; run again (HF_HUB_DOWNLOAD_TIMEOUT sets the seconds)",
                self.timeout.as_secs_f64()
            ),
            Fault::Transfer(why) => format!("the transfer broke off ({why}); run again"),
            Fault::InvalidAnswer(why) => format!("{hub} answered in an unexpected way: {why}"),
            Fault::Local(e) => format!("cannot be read ({e})"),
            Fault::Locked => "locked by another process".to_string(),
        };
        Error::Input(format!("{id}: {what}{text}{NOTHING}"))
    }
}

/// Returns the hub's own message in brackets, to be appended to others.
fn refusal_reason(fault: &Fault) -> String {
    match fault {
        Fault::Refused(_, reason) if !reason.is_empty() => format!(" ({reason})"),
        _ => String::new(),
    }
}

/// Returns the error of a commit whose answer is missing.
fn unknown_end(id: &str, url: &str, error: Error) -> Error {
    let why = match error {
        Error::Interrupted => "it was interrupted".to_string(),
        error => {
            let text = error.to_string();
            let text = text.strip_prefix(&format!("{id}: ")).unwrap_or(&text);
            text.strip_suffix(NOTHING).unwrap_or(text).to_string()
        }
    };
    Error::Input(format!(
        "{id}: all files were sent, and the answer to the commit is missing: {why}; see {url}"
    ))
}

const NOTHING: &str = "; nothing was committed";
