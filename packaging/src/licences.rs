//! The licences of the crates that are part of the command and of the stub's image. They ask that their texts are included.

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package, PackageId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The packages of the workspace that the programs are built from.
const ROOTS: [&str; 2] = ["bulkhead", "bulkhead-unikernel"];
/// How the names of files with licences begin, in capitals.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// All crates that the programs are built from, with their licences and the texts.
///
/// # Errors
/// cargo cannot tell the crates, or a text cannot be read.
pub fn third_party(workspace: &Path) -> Result<String> {
    let metadata = MetadataCommand::new()
        .manifest_path(workspace.join("Cargo.toml"))
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned))
        .exec()
        .context("asking cargo for the crates")?;
    let resolve = metadata.resolve.as_ref().context("cargo tells no dependencies")?;
    let mut ahead: Vec<&PackageId> = metadata
        .packages
        .iter()
        .filter(|package| ROOTS.contains(&package.name.as_str()))
        .map(|package| &package.id)
        .collect();
    let mut used = BTreeSet::new();
    while let Some(id) = ahead.pop() {
        if used.insert(id)
            && let Some(node) = resolve.nodes.iter().find(|node| node.id == *id)
        {
            let built_in = node.deps.iter().filter(|dependency| {
                dependency
                    .dep_kinds
                    .iter()
                    .any(|kind| kind.kind == DependencyKind::Normal)
            });
            ahead.extend(built_in.map(|dependency| &dependency.pkg));
        }
    }
    let foreign = |package: &&Package| used.contains(&package.id) && package.source.is_some();
    describe(metadata.packages.iter().filter(foreign))
}

fn describe<'a>(packages: impl Iterator<Item = &'a Package>) -> Result<String> {
    let mut text = "Crates that are part of the programs of this package, and their licences.\n\n".to_owned();
    // Many crates have the same text.
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        writeln!(
            text,
            "{name}: {}",
            package.license.as_deref().unwrap_or("see below")
        )?;
        let directory = package
            .manifest_path
            .parent()
            .context("a manifest lies in no directory")?;
        for licence in licences(directory.as_std_path())? {
            texts.entry(licence).or_default().push(name.clone());
        }
    }
    for (licence, names) in texts {
        writeln!(
            text,
            "\n{}\n{}:\n\n{}",
            "-".repeat(78),
            names.join(", "),
            licence.trim_end()
        )?;
    }
    Ok(text)
}

/// The texts in the directory of a crate.
fn licences(directory: &Path) -> Result<Vec<String>> {
    let place = || format!("reading the licences in {}", directory.display());
    let mut texts = Vec::new();
    for file in fs::read_dir(directory).with_context(place)? {
        let file = file.with_context(place)?;
        let name = file.file_name().to_string_lossy().to_uppercase();
        if file.path().is_file() && NAMES.iter().any(|beginning| name.starts_with(beginning)) {
            texts.push(fs::read_to_string(file.path()).with_context(place)?);
        }
    }
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_the_programs_are_named_with_their_texts_and_others_are_not() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = third_party(&workspace).unwrap();
        let has = |name: &str| text.lines().any(|line| line.starts_with(&format!("{name} ")));
        assert!(has("serde_json") && has("clap") && has("linked_list_allocator"));
        assert!(!has("insta") && !has("goblin") && !has("bulkhead"));
        assert!(text.contains("Permission is hereby granted") && text.contains("Apache License"));
    }
}
