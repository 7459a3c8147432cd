//! Puts a hash of all that decides which tokens a text gets, apart from the text and the tokenizer,
//! into the program: the code that makes tokens, and the versions of the crates that it uses.
//! Cached tokens are kept under it, so that none that other code made are read, and no number has
//! to be raised by hand.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where tokens are made and cached.
const CODE: &str = "src/data";
/// The versions of all crates, this one's and the tokenizers crate's among them.
const VERSIONS: &str = "../../Cargo.lock";

fn main() {
    for path in [CODE, VERSIONS, "build.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rustc-env=TOKENS_MADE_BY={:016x}", made_by(Path::new(".")));
}

/// The hash for the package in this folder. A package without a lock file, as one that another
/// program depends on, has another one with each build.
pub fn made_by(package: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    match std::fs::read(package.join(VERSIONS)) {
        Ok(versions) => versions.hash(&mut hasher),
        Err(_) => SystemTime::now().hash(&mut hasher),
    }
    let mut files = Vec::new();
    add_files(&package.join(CODE), &mut files);
    files.sort();
    for file in files {
        file.hash(&mut hasher);
        std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).hash(&mut hasher);
    }
    hasher.finish()
}

fn add_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for path in entries.map(|entry| entry.expect("an entry of a folder that can be read").path()) {
        if path.is_dir() { add_files(&path, files) } else { files.push(path) }
    }
}
