//! The output folder: when it may be used, and making room in it without touching anything that is not a run's.

use std::path::{Path, PathBuf};

use super::TrainSettings;
use crate::error::{Error, Result};

/// The files of a run, by which its folder is recognised and which `--overwrite` replaces. Nothing else is ever removed.
const RUN_FILES: [&str; 12] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_compact.safetensors",
    "config.json",
    "importance.json",
    "labels.json",
    "metrics.jsonl",
    "model.safetensors",
    "recipe.toml",
    "report.html",
    "summary.json",
    "tokenizer.json",
];
/// One of these makes a folder a run's.
const MARKS: [&str; 5] =
    ["summary.json", "recipe.toml", "importance.json", "metrics.jsonl", "adapter_config.json"];

impl TrainSettings {
    /// Checks that the output folder may be written to, without writing.
    ///
    /// # Errors
    /// `Error::Usage` where it is a file, is or lies in the model's or the data's folder, has files and `overwrite` is not
    /// set, or has files that are not a run's; `Error::Io` where it cannot be read.
    pub fn check_output(&self) -> Result<()> {
        for (what, folder) in [("model", Path::new(&self.model)), ("data", self.data.as_path())] {
            if folder.is_dir() && real_path(&self.output)?.starts_with(real_path(folder)?) {
                return Err(Error::Usage(format!(
                    "--output {} is in the {what} folder {}; choose a folder outside it",
                    self.output.display(),
                    folder.display()
                )));
            }
        }
        check_folder(&self.output, self.overwrite, &MARKS)
    }

    /// Checks the output folder, creates it where it does not exist, and removes the files of the run that it replaces.
    pub fn prepare_output(&self) -> Result<()> {
        self.check_output()?;
        std::fs::create_dir_all(&self.output).map_err(|e| Error::io(&self.output, e))?;
        for file in RUN_FILES {
            let path = self.output.join(file);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Checks that a folder may become an output: absent, empty, or with `overwrite` one that holds a file of `marks`.
pub fn check_folder(folder: &Path, overwrite: bool, marks: &[&str]) -> Result<()> {
    let shown = folder.display();
    let mut entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::Usage(format!(
                "--output {shown} is a file, or has one on its way; name a folder"
            )));
        }
        Err(e) => return Err(Error::io(folder, e)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    if !overwrite {
        let message = format!(
            "--output {shown} is in use: the folder is not empty; choose another, or give --overwrite"
        );
        return Err(Error::Usage(message));
    }
    if !marks.iter().any(|mark| folder.join(mark).is_file()) {
        let message = format!(
            "--output {shown} is not what --overwrite may replace: it holds files, and none of {}",
            marks.join(", ")
        );
        return Err(Error::Usage(message));
    }
    Ok(())
}

/// The path without links and dots; what does not exist yet is taken as it stands below what does.
fn real_path(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io(path, e))?;
    for ancestor in absolute.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), absolute.strip_prefix(ancestor)) {
            return Ok(real.join(rest));
        }
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(root: &Path, output: &str) -> TrainSettings {
        let paths = ["model", "data"].map(|name| root.join(name));
        for path in &paths {
            std::fs::create_dir_all(path).unwrap();
        }
        let [model, data] = paths;
        let model = model.to_str().unwrap().to_string();
        TrainSettings { model, data, output: root.join(output), ..TrainSettings::default() }
    }

    fn complaint(result: Result<()>) -> String {
        match result {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn a_new_or_empty_folder_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path(), "a/b");
        settings.prepare_output().unwrap();
        assert!(settings.output.is_dir());
        settings.check_output().unwrap();
    }

    #[test]
    fn a_folder_in_use_needs_overwrite_and_must_be_a_run() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = settings(root.path(), "out");
        std::fs::create_dir(&settings.output).unwrap();
        let own = settings.output.join("notes.txt");
        std::fs::write(&own, "mine").unwrap();
        assert!(complaint(settings.check_output()).contains("give --overwrite"));
        settings.overwrite = true;
        assert!(complaint(settings.prepare_output()).contains("none of summary.json"));

        let summary = settings.output.join("summary.json");
        std::fs::write(&summary, "{}").unwrap();
        settings.prepare_output().unwrap();
        assert!(own.exists() && !summary.exists());
    }

    #[test]
    fn a_file_in_the_way_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(complaint(settings(root.path(), "file").check_output()).contains("is a file"));
        assert!(complaint(settings(root.path(), "file/below").check_output()).contains("is a file"));
    }

    #[test]
    fn the_inputs_folders_are_safe() {
        let root = tempfile::tempdir().unwrap();
        assert!(complaint(settings(root.path(), "model").check_output()).contains("in the model folder"));
        assert!(
            complaint(settings(root.path(), "data/new/run").check_output()).contains("in the data folder")
        );
        settings(root.path(), "data-run").check_output().unwrap();
    }
}
