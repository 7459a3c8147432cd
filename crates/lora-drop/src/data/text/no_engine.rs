//! The engine of a build without the feature `chat-templates`, which refuses every template.

use super::error::TemplateError;
use super::renderer::{Rendering, Source};

/// Uninhabited: this build has no engine.
pub(super) enum Engine {}

impl Engine {
    pub fn compile(_: Source) -> Result<Self, TemplateError> {
        Err(TemplateError::new("this build has no chat-templates feature and cannot render templates"))
    }

    pub fn render(&self, _: Rendering) -> Result<String, TemplateError> {
        match *self {}
    }
}
