//! Which shared libraries a program needs: the dynamic loader's search, done while the image is built.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use goblin::elf::Elf;

/// Where Debian keeps libraries, below an unpacked root.
const DIRECTORIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// The names that an ELF file needs at run time: shared libraries, and the dynamic loader itself.
///
/// # Errors
/// The bytes are no ELF file.
pub fn needed(bytes: &[u8]) -> Result<Vec<String>> {
    let elf = Elf::parse(bytes).context("reading the ELF headers")?;
    let loader = elf.interpreter.and_then(|path| path.rsplit('/').next());
    Ok(elf
        .libraries
        .iter()
        .copied()
        .chain(loader)
        .map(str::to_owned)
        .collect())
}

/// The shared libraries of an unpacked root, by the name that programs ask for.
#[derive(Debug)]
pub struct Libraries {
    by_name: BTreeMap<String, PathBuf>,
}

impl Libraries {
    /// Lists the libraries below `root`.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn of(root: &Path) -> Result<Libraries> {
        let mut by_name = BTreeMap::new();
        for dir in DIRECTORIES
            .map(|dir| root.join(dir))
            .iter()
            .filter(|dir| dir.is_dir())
        {
            for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
                let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
                if let Ok(name) = entry.file_name().into_string()
                    && name.contains(".so")
                {
                    by_name.insert(name, entry.path());
                }
            }
        }
        Ok(Libraries { by_name })
    }

    /// The file of a library.
    pub fn find(&self, name: &str) -> Option<&Path> {
        self.by_name.get(name).map(PathBuf::as_path)
    }

    /// The `wanted` libraries and all that these need, by name and file.
    ///
    /// # Errors
    /// A library is missing. The error names it and the file that needs it.
    pub fn closure(&self, wanted: impl IntoIterator<Item = String>) -> Result<BTreeMap<String, PathBuf>> {
        closure(wanted, |name| {
            let path = self
                .find(name)
                .ok_or_else(|| anyhow!("no package has the library {name}"))?;
            let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            Ok((
                path.to_owned(),
                needed(&bytes).with_context(|| path.display().to_string())?,
            ))
        })
    }
}

/// Collects names and all that these need. `look_up` returns a value and the names that it needs.
///
/// # Errors
/// Those of `look_up`, with the name that needed the one that failed.
pub fn closure<T>(
    wanted: impl IntoIterator<Item = String>,
    mut look_up: impl FnMut(&str) -> Result<(T, Vec<String>)>,
) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<(String, Option<String>)> = wanted.into_iter().map(|name| (name, None)).collect();
    while let Some((name, needed_by)) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let (thing, needs) = look_up(&name).with_context(|| match needed_by {
            Some(by) => format!("{name} (needed by {by})"),
            None => name.clone(),
        })?;
        open.extend(needs.into_iter().map(|need| (need, Some(name.clone()))));
        found.insert(name, thing);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(name: &str) -> Result<((), Vec<String>)> {
        let needs: &[&str] = match name {
            "libxl" => &["libc", "libxenctrl"],
            "libxenctrl" => &["libc"],
            "libc" => &["ld", "libc"],
            "ld" => &[],
            _ => return Err(anyhow!("missing")),
        };
        Ok(((), needs.iter().map(|name| (*name).to_owned()).collect()))
    }

    #[test]
    fn the_closure_has_everything_once_even_round_a_circle() {
        let found = closure(["libxl".to_owned()], graph).expect("all there");
        assert_eq!(
            found.into_keys().collect::<Vec<_>>(),
            ["ld", "libc", "libxenctrl", "libxl"]
        );
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let look_up = |name: &str| {
            if name == "libc" {
                Ok(((), vec!["libgone".to_owned()]))
            } else {
                graph(name)
            }
        };
        let error = closure(["libc".to_owned()], look_up).expect_err("libgone is missing");
        assert_eq!(format!("{error:#}"), "libgone (needed by libc): missing");
    }

    #[test]
    fn this_very_program_needs_libc_and_a_loader() {
        let program = std::env::current_exe()
            .and_then(fs::read)
            .expect("tests can read their own program");
        let names = needed(&program).expect("it is an ELF file");
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        assert!(needed(b"#!/bin/sh\n").is_err());
    }
}
