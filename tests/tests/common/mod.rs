//! What there is that a document can name as its proof.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Names of the functions in the Rust files below `directory`.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            names.extend(text.lines().filter_map(|line| {
                let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once('(')?;
                Some(name.to_owned())
            }));
        }
    }
}

/// Every test function of the workspace and every scenario.
pub fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = BTreeSet::new();
    for part in [
        "drivers",
        "pci",
        "xenbus",
        "toolstack",
        "config",
        "unikernel",
        "tests",
    ] {
        functions(&root.join(part), &mut names);
    }
    names.extend(fs::read_dir(root.join("tests/scenarios")).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_string_lossy().into_owned()
    }));
    names
}
