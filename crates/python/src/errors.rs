//! Conversion of the library's errors to the exceptions of `lora_drop.errors`.

use lora_drop::Error;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// Returns the exception for an error. Messages already name settings as Python does.
pub fn exception(py: Python<'_>, error: Error) -> PyErr {
    let name = match &error {
        Error::Usage(_) => "UsageError",
        Error::Data(_) => "DataError",
        Error::Model(_) => "ModelError",
        Error::Io { .. } => "FileError",
        Error::NotFinite(_) => "NotFiniteError",
        Error::Interrupted => "Interrupted",
        Error::Device(_) | Error::Ranks(_) | Error::Input(_) => "InputError",
    };
    let class = py.import("lora_drop.errors").and_then(|module| module.getattr(name));
    match class.and_then(|class| Ok(class.cast_into::<PyType>()?)) {
        Ok(class) => PyErr::from_type(class, error.to_string()),
        Err(problem) => problem,
    }
}
