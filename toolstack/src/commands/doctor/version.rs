//! Versions of Xen and Linux.

use std::fmt;
use std::str::FromStr;

/// The first numbers of a version, and whether it is one that leads to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    numbers: [u32; 3],
    /// Such as `4.17.6-pre`: some of what 4.17.6 has.
    before: bool,
}

impl Version {
    /// A release.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            numbers: [major, minor, patch],
            before: false,
        }
    }

    /// The numbers that say which branch it is of.
    pub fn branch(self) -> (u32, u32) {
        let [major, minor, _] = self.numbers;
        (major, minor)
    }

    /// True if it has all that `other` has.
    pub fn reaches(self, other: Self) -> bool {
        (self.numbers, !self.before) >= (other.numbers, !other.before)
    }

    /// True if it is on the way to this release.
    pub fn leads_to(self, release: Self) -> bool {
        self.before && self.numbers == release.numbers
    }
}

/// Nothing but the numbers at its beginning is needed; a missing one counts as 0.
impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (numbers, rest) = text.split_at(end.unwrap_or(text.len()));
        let mut parts = numbers.split('.').filter(|part| !part.is_empty());
        let mut next = || parts.next().map_or(Ok(0), |part| part.parse().map_err(|_| ()));
        let numbers = [next()?, next()?, next()?];
        if numbers == [0; 3] {
            return Err(());
        }
        Ok(Self {
            numbers,
            before: rest.starts_with("-pre") || rest.starts_with("-rc") || rest.starts_with("-unstable"),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        f.write_str(if self.before { "-pre" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_read_as_xen_and_linux_write_them() {
        for (text, expected) in [
            ("4.20.0", "4.20.0"),
            ("4.17.6-pre", "4.17.6-pre"),
            ("4.21-unstable", "4.21.0-pre"),
            ("6.1.0-37-amd64", "6.1.0"),
            ("6.12.43+deb13-amd64", "6.12.43"),
            ("7.0-amd64", "7.0.0"),
            ("7.1~rc3-amd64", "7.1.0"),
        ] {
            assert_eq!(version(text).to_string(), expected, "{text}");
        }
        for text in ["", "unknown", "99999999999.1", "."] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_leads_to_a_release_has_less_than_it() {
        let (before, release) = (version("4.17.6-pre"), Version::new(4, 17, 6));
        assert!(!before.reaches(release) && before.leads_to(release));
        assert!(before.reaches(Version::new(4, 17, 5)) && release.reaches(before));
        assert!(release.reaches(release) && !release.leads_to(release));
        assert_eq!(before.branch(), (4, 17));
    }
}
