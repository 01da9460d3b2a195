//! Files of this host for dom0.

use std::path::PathBuf;
use std::str::FromStr;

/// A file or directory of the host to copy into dom0, e.g. `target/release/bulkhead=/usr/bin/bulkhead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIn {
    /// Path on the host.
    pub host: PathBuf,
    /// Path in dom0.
    pub target: String,
}

impl FromStr for FileIn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((host, target)) if !host.is_empty() && target.starts_with('/') => Ok(FileIn {
                host: host.into(),
                target: target.to_owned(),
            }),
            _ => Err(format!(
                "{text}: write HOST=TARGET, TARGET being an absolute path in dom0"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_for_dom0_has_two_ends() {
        assert_eq!(
            "target/release/bulkhead=/usr/bin/bulkhead".parse(),
            Ok(FileIn {
                host: "target/release/bulkhead".into(),
                target: "/usr/bin/bulkhead".into()
            })
        );
    }

    #[test]
    fn a_file_without_absolute_target_is_refused_in_words() {
        for text in ["bulkhead", "bulkhead=", "=/usr/bin/x", "a=usr/bin/x"] {
            let error = text.parse::<FileIn>().expect_err(text);
            assert!(
                error.starts_with(text) && error.contains("HOST=TARGET"),
                "{error}"
            );
        }
    }
}
