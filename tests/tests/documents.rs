//! Files and functions that the documents for developers name exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 3] = ["docs/architecture.md", "docs/glossary.md", "docs/development.md"];
const CRATES: [&str; 15] = [
    "config",
    "drivers",
    "drivers/netfront",
    "drivers/telemetry",
    "images",
    "images/agent",
    "metrics",
    "packaging",
    "pci",
    "toolstack",
    "toolstack/inject",
    "toolstack/xen",
    "toolstack/xenstore",
    "unikernel",
    "xenbus",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The code spans of a document.
fn spans(document: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let spans = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    spans.map(str::to_owned).collect()
}

/// All source files, by their paths below the workspace.
fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.to_string_lossy().into_owned(), text));
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for name in CRATES {
        sources(&root().join(name).join("src"), &mut found);
    }
    found
}

#[test]
fn every_file_that_is_named_exists() {
    let sources = all_sources();
    for document in DOCUMENTS {
        for span in spans(document).iter().filter(|span| span.ends_with(".rs")) {
            let ending = format!("/{span}");
            let exists =
                root().join(span).exists() || sources.iter().any(|(path, _)| path.ends_with(&ending));
            assert!(exists, "{document}: {span}");
        }
    }
}

#[test]
fn every_function_that_is_named_exists() {
    let sources = all_sources();
    let mut named = 0;
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    for document in DOCUMENTS {
        for span in spans(document) {
            let Some((owner, name)) = span.rsplit_once("::") else {
                continue;
            };
            let owner = owner.rsplit("::").next().unwrap_or_default();
            if !is_name(owner) || !is_name(name) {
                continue;
            }
            named += 1;
            let defined =
                ["fn", "struct", "enum", "trait", "const", "mod"].map(|kind| format!("{kind} {name}"));
            let variant = format!("    {name}");
            let owned = sources.iter().any(|(path, text)| {
                let has =
                    defined.iter().any(|definition| text.contains(definition)) || text.contains(&variant);
                has && (text.contains(owner) || path.contains(owner))
            });
            assert!(owned, "{document}: {span}");
        }
    }
    assert!(named > 50, "{named}");
}
