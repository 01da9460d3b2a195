//! A disk with Debian packages that one scenario wants in dom0, such as `prometheus`: the packages and all that they depend
//! on, unpacked and not configured. `rootfs/dom0/bin/in-packages` runs their programs.
//!
//! ```text
//! CACHE/SUITE+PACKAGE…/                      as for other packages
//! CACHE/SUITE+PACKAGE…/built/KEY/packages.img  the disk; KEY changes with the packages and with the recipe
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::output_of;
use crate::installed;
use crate::observer::Observer;
use crate::packages::Packages;
use crate::store::{cache_dir, create_dir, write_atomically};
use crate::suite::Suite;

/// The image's name.
const IMAGE: &str = "packages.img";

/// Version of the code below. Raise it if the code makes another image from the same packages.
const FORMAT: u32 = 1;

/// Directories on which dom0's own are mounted.
const MOUNTED: [&str; 8] = ["dev", "etc/bulkhead", "proc", "rig", "root", "run", "sys", "tmp"];

/// Files of dom0 that programs look for.
const FILES: [(&str, &[u8]); 2] = [
    ("etc/passwd", include_bytes!("../rootfs/passwd")),
    ("etc/group", include_bytes!("../rootfs/group")),
];

/// Makes the disk with the packages `names` of `suite`, unless it is there already. Runs must not write to it.
///
/// # Errors
/// Packages cannot be fetched, or the cache cannot be written.
pub fn prepare(suite: Suite, names: &[String], observer: &mut dyn Observer) -> Result<PathBuf> {
    installed::ensure("mkfs.ext4", "e2fsprogs", observer)?;
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    let name = format!("{suite}+{}", names.join("+"));
    let dir = cache_dir().join(&name);
    let packages = Packages::with_dependencies(&name, suite, names, &dir);
    let built = packages.build_with(
        &format!("{FORMAT} {MOUNTED:?} {FILES:?}"),
        observer,
        |root, built| {
            let part = dir.join("packages.img.part");
            make(root, &part)?;
            built.adopt(IMAGE, &part, 1)?;
            // The disk has it all now.
            crate::packages::remove_dir(root)
        },
    )?;
    Ok(built.path(IMAGE))
}

/// Makes the file system `image` from the directory `root`.
fn make(root: &Path, image: &Path) -> Result<()> {
    for directory in MOUNTED {
        create_dir(&root.join(directory))?;
    }
    for (path, content) in FILES {
        write_atomically(&root.join(path), content)?;
    }
    // A Debian system gets these from its installer. Programs name their dynamic loader by the old path.
    for directory in ["bin", "lib", "lib64", "sbin"] {
        let (old, new) = (root.join(directory), root.join("usr").join(directory));
        merge(&old, &new).with_context(|| format!("moving {} below usr", old.display()))?;
        symlink(Path::new("usr").join(directory), &old)
            .with_context(|| format!("linking {}", old.display()))?;
    }
    // A quarter more for what the file system needs itself.
    let mebibytes = size_of(root)? * 5 / 4 / (1 << 20) + 16;
    match fs::remove_file(image) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", image.display()));
        }
        _ => {}
    }
    // No journal, for it is not written to. Checksums of metadata would be computed by the emulated processor.
    output_of(
        Command::new(installed::find_program("mkfs.ext4").context("mkfs.ext4 is missing")?)
            .args(["-q", "-F", "-L", "packages", "-m", "0"])
            .args(["-O", "^has_journal,^metadata_csum,^metadata_csum_seed"])
            .args(["-E", "lazy_itable_init=0,nodiscard,root_owner=0:0", "-d"])
            .args([root, image])
            .arg(format!("{mebibytes}M")),
    )
    .map(drop)
}

/// Moves what is below `old` to the same place below `new`, and removes `old`. It is fine if there is no `old`.
fn merge(old: &Path, new: &Path) -> Result<()> {
    create_dir(new)?;
    if !old.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(old)? {
        let entry = entry?;
        let target = new.join(entry.file_name());
        if entry.file_type()?.is_dir() && target.is_dir() {
            merge(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), target)?;
        }
    }
    Ok(fs::remove_dir(old)?)
}

/// Bytes of all files below a directory, each with the rest of its last block, and a block for each directory.
fn size_of(dir: &Path) -> Result<u64> {
    const BLOCK: u64 = 4096;
    let mut size = BLOCK;
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        size += match entry.file_type()? {
            kind if kind.is_dir() => size_of(&entry.path())?,
            _ => entry.metadata()?.len().next_multiple_of(BLOCK),
        };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_directories_are_merged_into_those_below_usr() {
        let root = std::env::temp_dir().join(format!("rig-merge-{}", std::process::id()));
        for dir in ["lib/x", "usr/lib/x"] {
            create_dir(&root.join(dir)).expect("writable");
        }
        for file in ["lib/x/old", "lib/top", "usr/lib/x/new"] {
            fs::write(root.join(file), "five!").expect("writable");
        }
        merge(&root.join("lib"), &root.join("usr/lib")).expect("writable");
        merge(&root.join("sbin"), &root.join("usr/sbin")).expect("writable");
        for file in ["usr/lib/x/old", "usr/lib/top", "usr/lib/x/new"] {
            assert!(root.join(file).is_file(), "{file}");
        }
        assert!(!root.join("lib").exists());
        // root, usr, lib, x and sbin, and three files.
        assert_eq!(size_of(&root).expect("readable"), 8 * 4096);
        fs::remove_dir_all(&root).expect("writable");
    }
}
