//! The source files of one crate.

use super::test_code::{attributes, is_test};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A path below the root of a crate, such as `serve::link`; the root's own is empty.
pub type ModulePath = Vec<String>;

/// One source file.
pub struct File {
    /// From the directory of the crate's sources.
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) syntax: syn::File,
}

/// Reads all files of a crate but those of test modules; `directory` has its sources. A package with a library and
/// programs is several crates: only the library is read then.
pub fn read(directory: &Path) -> Result<BTreeMap<ModulePath, File>> {
    let mut paths = BTreeMap::new();
    find(directory, &mut Vec::new(), &mut paths)?;
    let mut files = BTreeMap::new();
    for (module, path) in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("parse {}", path.display()))?;
        let path = path.strip_prefix(directory).unwrap_or(&path).to_owned();
        files.insert(module, File { path, text, syntax });
    }
    Ok(declared(files))
}

fn find(directory: &Path, module: &mut ModulePath, paths: &mut BTreeMap<ModulePath, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let in_root = module.is_empty();
        if path.is_dir() {
            // `bin` has crates of their own.
            if !(in_root && name == "bin") {
                module.push(name);
                find(&path, module, paths)?;
                module.pop();
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let is_program = in_root && name == "main";
            if is_program && directory.join("lib.rs").exists() {
                continue;
            }
            let mut own = module.clone();
            if name != "mod" && !is_program && !(in_root && name == "lib") {
                own.push(name);
            }
            paths.insert(own, path);
        }
    }
    Ok(())
}

/// Leaves the files of modules that are declared from the root on, and not for tests alone.
fn declared(mut files: BTreeMap<ModulePath, File>) -> BTreeMap<ModulePath, File> {
    let mut reached = BTreeSet::new();
    let mut ahead = vec![ModulePath::new()];
    while let Some(module) = ahead.pop() {
        let items = files.get(&module).map_or(&[][..], |file| &file.syntax.items);
        for item in items {
            if let syn::Item::Mod(child) = item
                && !is_test(attributes(item))
            {
                let mut path = module.clone();
                path.push(child.ident.to_string());
                ahead.push(path);
            }
        }
        reached.insert(module);
    }
    files.retain(|module, _| reached.contains(module));
    files
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A crate of these files, each with its module's path and its text.
    pub fn files(texts: &[(&str, &str)]) -> BTreeMap<ModulePath, File> {
        let file = |&(path, text): &(&str, &str)| {
            let module = path
                .split('/')
                .filter(|part| *part != "lib")
                .map(str::to_owned)
                .collect();
            let file = File {
                path: format!("{path}.rs").into(),
                text: text.to_owned(),
                syntax: syn::parse_file(text).unwrap(),
            };
            (module, file)
        };
        declared(texts.iter().map(file).collect())
    }

    #[test]
    fn a_file_of_a_test_module_is_left_out_and_so_is_what_lies_below_it_and_a_programs_root() {
        let files = files(&[
            ("lib", "mod room; #[cfg(test)] mod fixtures;"),
            ("room", "#[cfg(test)] mod tests; mod child;"),
            ("room/child", ""),
            ("room/tests", "mod deep;"),
            ("room/tests/deep", ""),
            ("fixtures", ""),
            ("program", ""),
        ]);
        let names: Vec<String> = files.keys().map(|path| path.join("::")).collect();
        assert_eq!(names, ["", "room", "room::child"]);
    }
}
