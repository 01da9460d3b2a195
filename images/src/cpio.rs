//! Archives in the "newc" format, which the kernel unpacks into its initial file system
//! (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`). Several may follow one another; a later
//! file replaces an earlier one of the same name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The top directories that a merged `/usr` turned into links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// An archive under construction. Owners are root, times are zero: equal content gives equal bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Directories that are in the archive already.
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Starts an archive with no entries.
    pub fn new() -> Self {
        Archive::default()
    }

    /// Adds a directory and those above it; those already there are left alone.
    pub fn directory(&mut self, path: &str) {
        let path = normalized(path);
        let ends = path
            .char_indices()
            .filter(|(_, c)| *c == '/')
            .map(|(at, _)| at)
            .chain([path.len()]);
        for end in ends {
            let prefix = &path[..end];
            if !prefix.is_empty() && self.directories.insert(prefix.to_owned()) {
                self.entry(prefix, DIRECTORY | 0o755, &[]);
            }
        }
    }

    /// Adds a regular file, and the directories above it. `mode` holds the permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = normalized(path);
        self.parents_of(&path);
        self.entry(&path, REGULAR | mode & 0o7777, content);
    }

    /// Adds a symbolic link, and the directories above it.
    pub fn link(&mut self, path: &str, target: &str) {
        // The name is not mapped below /usr, because the link may be /bin itself.
        let path = path.trim_matches('/').to_owned();
        self.parents_of(&path);
        self.entry(&path, LINK | 0o777, target.as_bytes());
    }

    /// Adds a file or a directory of the host with all it holds. Links are followed.
    ///
    /// # Errors
    /// Something cannot be read, or a name is no UTF-8.
    pub fn host_path(&mut self, path: &str, host: &Path) -> Result<()> {
        let metadata = fs::metadata(host).with_context(|| format!("reading {}", host.display()))?;
        if !metadata.is_dir() {
            let content = fs::read(host).with_context(|| format!("reading {}", host.display()))?;
            self.file(path, metadata.permissions().mode(), &content);
            return Ok(());
        }
        self.directory(path);
        let mut entries = fs::read_dir(host)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("reading {}", host.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let name = name
                .to_str()
                .with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
            self.host_path(&format!("{path}/{name}"), &entry.path())?;
        }
        Ok(())
    }

    /// Ends the archive with its trailer.
    ///
    /// # Errors
    /// The archive has grown past the 4 GiB that the format's numbers hold.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        ensure!(
            u32::try_from(self.bytes.len()).is_ok(),
            "an initial file system may have 4 GiB"
        );
        self.entry("TRAILER!!!", 0, &[]);
        Ok(self.bytes)
    }

    fn parents_of(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // Inode, mode, owner, group, links, time, size, device ×2, special device ×2, name size, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The name of an entry: no slash at either end, and below `/usr` what a merged `/usr` has there. (A directory
/// entry named `lib` would make the kernel replace the link `/lib` by an empty directory.)
pub fn normalized(path: &str) -> String {
    let path = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect::<Vec<_>>()
        .join("/");
    let top = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&top) {
        format!("usr/{path}")
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader finds: (name, mode, content).
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).expect("text");
                u32::from_str_radix(text, 16).expect("hex") as usize
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).expect("text");
            if name == "TRAILER!!!" {
                return entries;
            }
            let content = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode as u32, bytes[content..content + size].to_vec()));
            bytes = &bytes[(content + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let mut archive = Archive::new();
        archive.file("/etc/name", 0o644, b"dom0\n");
        archive.link("/bin", "usr/bin");
        let entries = read(&archive.finish().expect("small"));
        assert_eq!(
            entries,
            [
                ("etc".into(), DIRECTORY | 0o755, vec![]),
                ("etc/name".into(), REGULAR | 0o644, b"dom0\n".to_vec()),
                ("bin".into(), LINK | 0o777, b"usr/bin".to_vec()),
            ]
        );
    }

    #[test]
    fn a_directory_is_added_once_and_before_what_it_holds() {
        let mut archive = Archive::new();
        archive.file("a/b/one", 0o644, b"1");
        archive.file("a/b/two", 0o644, b"2");
        let names: Vec<_> = read(&archive.finish().expect("small"))
            .into_iter()
            .map(|entry| entry.0)
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two"]);
    }

    #[test]
    fn nothing_is_ever_put_where_a_merged_usr_has_a_link() {
        assert_eq!(normalized("/lib/modules/x"), "usr/lib/modules/x");
        assert_eq!(normalized("//bin/./sh"), "usr/bin/sh");
        assert_eq!(normalized("/library/x"), "library/x");
    }

    #[test]
    fn the_linux_rule_that_every_part_starts_at_a_multiple_of_four_holds() {
        let mut archive = Archive::new();
        archive.file("abc", 0o600, b"12345");
        assert_eq!(archive.finish().expect("small").len() % 4, 0);
    }
}
