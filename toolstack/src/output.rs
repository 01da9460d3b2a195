//! What a command prints in the end: text for people, or a JSON document for programs. docs/json.md describes the documents.

use crate::layout::{Render, columns};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::io::{self, Write};

/// Version of the JSON documents. It changes when a field is removed or gets another meaning, not when one is added.
pub const VERSION: u32 = 1;

/// A JSON document as it is printed: the version first, then the fields in the order in which they are declared.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Document<T> {
    /// Version of this form.
    version: u32,
    #[serde(flatten)]
    content: T,
}

impl<T> Document<T> {
    /// A document of the present version.
    pub fn new(content: T) -> Self {
        Self {
            version: VERSION,
            content,
        }
    }
}

/// Prints something as text, or as a document.
pub fn print(found: &(impl Serialize + Render), json: bool) -> Result<()> {
    if json {
        print_document(found)
    } else {
        write(&found.render(columns()))
    }
}

/// Prints a document.
pub fn print_document(content: &impl Serialize) -> Result<()> {
    write(&(serde_json::to_string_pretty(&Document::new(content))? + "\n"))
}

/// Prints text as it is.
pub fn print_text(text: &str) -> Result<()> {
    write(text)
}

fn write(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // As with `| head`: the reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print what was found out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;

    #[test]
    fn json_says_its_version() {
        let printed = serde_json::to_value(Document::new(&Status::default())).unwrap();
        assert_eq!(printed["version"], 1);
        assert_eq!(printed["stubs"], serde_json::json!([]));
    }
}
