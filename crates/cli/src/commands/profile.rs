//! `--profile`: records the work of a command, prints the table and writes the file.

use std::path::{Path, PathBuf};

use crate::report;
use crate::report::terminal::Style;
use lora_drop::Result;
use lora_drop::files::check_writable;
use lora_drop::profile::{Profile, Recorder};
use lora_drop::settings::Dtype;

use super::outputs::check_file;

/// What follows a command's result: the table below an empty line, or nothing.
pub fn table(profile: Option<&Profile>, style: Style) -> String {
    profile.map_or(String::new(), |profile| format!("\n{}", report::profile(profile, style)))
}

/// The option `--profile`.
#[derive(clap::Args)]
pub struct ProfileOption {
    /// Measure the time of each operation: print a table of it, and write it with a trace for
    /// Perfetto and chrome://tracing to this file. An existing file is replaced only with --overwrite
    #[arg(long, value_name = "FILE.json")]
    profile: Option<PathBuf>,
}

impl ProfileOption {
    pub fn path(&self) -> Option<&Path> {
        self.profile.as_deref()
    }

    /// Checks that the file can be written; `output` is a folder that the command makes itself.
    ///
    /// # Errors
    /// `Error::Usage` where the file is there and may not be replaced, or its folder is not there;
    /// `Error::Io` where the folder cannot be written to.
    pub fn check(&self, overwrite: bool, output: Option<&Path>) -> Result<()> {
        let Some(path) = self.path() else { return Ok(()) };
        if output.is_some_and(|output| !output.exists() && path.parent() == Some(output)) {
            return Ok(());
        }
        check_file("--profile", path, overwrite)?;
        check_writable(path)
    }

    /// Does the work, and records it where a profile is wanted.
    pub fn record<R>(&self, work: impl FnOnce() -> R) -> (R, Option<Recorder>) {
        if self.profile.is_none() {
            return (work(), None);
        }
        let mut recorder = Recorder::new();
        let result = recorder.record(work);
        (result, Some(recorder))
    }

    /// Writes the file, if something was recorded.
    pub fn write(
        &self,
        recorder: Option<&Recorder>,
        dtype: Dtype,
        threads: usize,
    ) -> Result<Option<Profile>> {
        let recorder = recorder.filter(|recorder| !recorder.roots().is_empty());
        let (Some(path), Some(recorder)) = (self.path(), recorder) else { return Ok(None) };
        let profile = Profile::new(recorder, dtype, threads)?;
        profile.write_trace(recorder, path)?;
        Ok(Some(profile))
    }
}
