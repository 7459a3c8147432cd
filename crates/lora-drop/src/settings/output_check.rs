//! The output folder of training and scoring: where it may be.

use std::path::{Path, PathBuf};

use super::RunSettings;
use crate::error::{Error, Result};
use crate::folder::{Contents, OutputFolder, in_use, is_being_written, no_folder};
use crate::metrics_file;

impl RunSettings {
    /// Checks that a run may be written to the output folder, and its metrics file, without writing.
    ///
    /// # Errors
    /// `Error::Usage` if the folder is, or is inside, the model's or the data's folder, or if the
    /// metrics file is another program's; those of [`OutputFolder::check`]; `Error::Io` where no
    /// metrics file can be written.
    pub fn check_output(&self) -> Result<()> {
        self.check_inputs_are_elsewhere()?;
        self.place.metrics_file.as_deref().map_or(Ok(()), metrics_file::check)?;
        OutputFolder::check(&self.place.output, self.place.overwrite, Contents::Run)
    }

    /// Checks that importance.json alone may be written into the output folder, without writing.
    ///
    /// # Errors
    /// `Error::Usage` if the folder is, or is inside, the model's or the data's folder, a run is
    /// being written there, or the file exists and `overwrite` is not set.
    pub fn check_importance(&self) -> Result<()> {
        self.check_inputs_are_elsewhere()?;
        let (folder, path) = (&self.place.output, self.place.output.join("importance.json"));
        if folder.ancestors().any(|part| part.is_file()) {
            return Err(no_folder(folder));
        }
        if is_being_written(folder) {
            return Err(in_use(folder));
        }
        if path.exists() && !self.place.overwrite {
            let shown = path.display();
            return Err(Error::Usage(format!("{shown} exists; choose another folder, or give `overwrite`")));
        }
        Ok(())
    }

    fn check_inputs_are_elsewhere(&self) -> Result<()> {
        let data = self.place.data.all().iter().map(|source| ("data", source.path.as_path()));
        for (what, folder) in [("model", Path::new(&self.place.model))].into_iter().chain(data) {
            if folder.is_dir() && real_path(&self.place.output)?.starts_with(real_path(folder)?) {
                return Err(Error::Usage(format!(
                    "`output = {}` is in the {what} folder {}; choose a folder outside it",
                    self.place.output.display(),
                    folder.display()
                )));
            }
        }
        Ok(())
    }
}

/// Resolves links and dots in a path. The part that does not exist yet is left as it is.
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

    fn settings(root: &Path, output: &str) -> RunSettings {
        let paths = ["model", "data"].map(|name| root.join(name));
        for path in &paths {
            std::fs::create_dir_all(path).unwrap();
        }
        let [model, data] = paths;
        let model = model.to_str().unwrap().to_string();
        RunSettings::new(model, data, root.join(output))
    }

    fn complaint(result: Result<()>) -> String {
        match result {
            Err(Error::Usage(message)) => message,
            other => panic!("expected a usage error, got {other:?}"),
        }
    }

    #[test]
    fn scores_are_one_file_beside_whatever_is_there() {
        let root = tempfile::tempdir().unwrap();
        let mut settings = settings(root.path(), "out");
        settings.check_importance().unwrap();
        std::fs::create_dir(&settings.place.output).unwrap();
        std::fs::write(settings.place.output.join("adapter_config.json"), "").unwrap();
        settings.check_importance().unwrap();
        std::fs::write(settings.place.output.join("importance.json"), "").unwrap();
        assert!(complaint(settings.check_importance()).contains("importance.json exists"));
        settings.place.overwrite = true;
        settings.check_importance().unwrap();
        settings.place.output = settings.place.output.join("importance.json/below");
        assert!(complaint(settings.check_importance()).contains("is a file"));
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
