//! Who may access a xenstore node.

use core::fmt;
use core::str::FromStr;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Nothing (`n`).
    None,
    /// Read it and list its children (`r`).
    Read,
    /// Write it and make children (`w`).
    Write,
    /// Both (`b`).
    Both,
}

/// The letters on the wire.
const LETTERS: [(Access, &str); 4] = [
    (Access::None, "n"),
    (Access::Read, "r"),
    (Access::Write, "w"),
    (Access::Both, "b"),
];

/// One entry of a node's permissions, written `r3`: domain 3 may read.
///
/// The first entry of a node is special: its domain owns the node and may do
/// everything, and its access holds for every domain that is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    /// The domain.
    pub domid: u16,
    /// What it may do; in the first entry: what domains that are not listed may do.
    pub access: Access,
}

impl Permission {
    /// The usual list of a device node: `owner` owns it, `reader` reads it, no one else sees it.
    pub const fn owned_by(owner: u16, reader: u16) -> [Self; 2] {
        [
            Self {
                domid: owner,
                access: Access::None,
            },
            Self {
                domid: reader,
                access: Access::Read,
            },
        ]
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = LETTERS
            .iter()
            .find(|(access, _)| *access == self.access)
            .map_or("", |&(_, letter)| letter);
        write!(f, "{letter}{}", self.domid)
    }
}

/// A text that is no permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermissionError;

impl fmt::Display for PermissionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a permission: expected one of n, r, w, b and a domain number, such as r3")
    }
}

impl core::error::Error for PermissionError {}

impl FromStr for Permission {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, PermissionError> {
        let (access, digits) = LETTERS
            .iter()
            .find_map(|&(access, letter)| Some((access, text.strip_prefix(letter)?)))
            .ok_or(PermissionError)?;
        // `parse` alone would take a plus sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PermissionError);
        }
        let domid = digits.parse().map_err(|_| PermissionError)?;
        Ok(Self { domid, access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn each_permission_has_one_spelling() {
        for (text, domid, access) in [
            ("n0", 0, Access::None),
            ("r3", 3, Access::Read),
            ("w3", 3, Access::Write),
            ("b65535", 65535, Access::Both),
        ] {
            let permission = Permission { domid, access };
            assert_eq!(permission.to_string(), text);
            assert_eq!(text.parse(), Ok(permission));
        }
    }

    #[test]
    fn what_is_no_permission_is_refused() {
        for text in ["", "n", "3", "x3", "r+3", "r-1", "r65536", "r3 ", "rr3", "é3"] {
            assert_eq!(text.parse::<Permission>(), Err(PermissionError), "{text}");
        }
    }
}
