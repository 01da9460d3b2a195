//! The xenstore message format (`xen/include/public/io/xs_wire.h`).
//!
//! A message is a [`Header`] and up to [`PAYLOAD_MAX`] bytes of payload, most of
//! it text ended by NUL bytes.
//!
//! # Panic contract
//! Nothing here panics on bytes that came from outside: every decoder takes any
//! bytes and answers with a value or a [`Violation`].

use crate::printable::Printable;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Longest payload of a message, in bytes. xenstored drops a client that sends more.
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path, in bytes, without its NUL.
pub const ABSOLUTE_PATH_MAX: usize = 3072;
/// Longest path relative to the caller's home, in bytes, without its NUL.
pub const RELATIVE_PATH_MAX: usize = 2048;
/// Longest unknown error name that is kept, in bytes.
const OTHER_NAME_MAX: usize = 64;

/// The kinds of message in use, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Lists the children of a node.
    Directory = 1,
    /// Reads a node.
    Read = 2,
    /// Reads who may access a node.
    GetPermissions = 3,
    /// Asks for events.
    Watch = 4,
    /// Asks for no more events.
    Unwatch = 5,
    /// Opens a transaction.
    TransactionStart = 6,
    /// Commits or drops a transaction.
    TransactionEnd = 7,
    /// Asks for the home of a domain.
    GetDomainPath = 10,
    /// Writes a node, and makes it where it is missing.
    Write = 11,
    /// Makes an empty node.
    Mkdir = 12,
    /// Removes a node and all below it.
    Remove = 13,
    /// Sets who may access a node.
    SetPermissions = 14,
    /// A watch fired. Sent by xenstored on its own.
    WatchEvent = 15,
    /// A request is refused.
    Error = 16,
    /// Asks whether a domain is connected to xenstore.
    IsDomainIntroduced = 17,
    /// Ends all watches and transactions of the connection.
    ResetWatches = 21,
}

/// Every [`Kind`], with the verb that error messages use.
const KINDS: [(Kind, &str); 16] = [
    (Kind::Directory, "list"),
    (Kind::Read, "read"),
    (Kind::GetPermissions, "read permissions of"),
    (Kind::Watch, "watch"),
    (Kind::Unwatch, "unwatch"),
    (Kind::TransactionStart, "start transaction"),
    (Kind::TransactionEnd, "end transaction"),
    (Kind::GetDomainPath, "find home of domain"),
    (Kind::Write, "write"),
    (Kind::Mkdir, "make"),
    (Kind::Remove, "remove"),
    (Kind::SetPermissions, "set permissions of"),
    (Kind::WatchEvent, "receive event"),
    (Kind::Error, "receive error"),
    (Kind::IsDomainIntroduced, "look for domain"),
    (Kind::ResetWatches, "reset watches"),
];

impl Kind {
    /// The kind with number `raw`, if it is one in use.
    pub fn from_raw(raw: u32) -> Option<Self> {
        KINDS
            .iter()
            .map(|&(kind, _)| kind)
            .find(|&kind| kind as u32 == raw)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = KINDS
            .iter()
            .find(|(kind, _)| kind == self)
            .map_or("", |&(_, verb)| verb);
        f.write_str(verb)
    }
}

/// The header of every message, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of a [`Kind`], or anything if it came from outside.
    pub kind: u32,
    /// Chosen by the requester, repeated in the reply.
    pub request: u32,
    /// Number of the transaction; 0 outside of one.
    pub transaction: u32,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl Header {
    /// Size on the wire, in bytes.
    pub const SIZE: usize = 16;

    /// The header as it travels.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.kind, self.request, self.transaction, self.length];
        for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a header. Any bytes are one; nothing in it is checked.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            kind: word(0),
            request: word(4),
            transaction: word(8),
            length: word(12),
        }
    }
}

/// What the other end sent that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A payload of this many bytes is announced, more than [`PAYLOAD_MAX`].
    Oversized(u32),
    /// A reply of this kind to a request of another kind.
    Kind(u32),
    /// A reply to a request that is not under way, with this number.
    Request(u32),
    /// Text that is not UTF-8.
    Encoding,
    /// Text without the NUL that ends it, or with too many or too few parts.
    Framing,
    /// A text that is not the number, permission or truth value due here.
    Value,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("xenstored broke the protocol: ")?;
        match self {
            Self::Oversized(length) => write!(
                f,
                "a payload of {length} bytes, at most {PAYLOAD_MAX} are allowed"
            ),
            Self::Kind(kind) => write!(f, "a reply of kind {kind}"),
            Self::Request(request) => write!(f, "a reply to request {request}, which nobody made"),
            Self::Encoding => f.write_str("text that is not UTF-8"),
            Self::Framing => f.write_str("text that is not split by NUL bytes as it must be"),
            Self::Value => f.write_str("a value of the wrong form"),
        }
    }
}

/// Declares [`ErrorName`] with its names, which cannot differ then.
macro_rules! error_names {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// Why xenstored refused a request: an errno by name, never by number.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum ErrorName {
            $($(#[doc = $doc])* $variant,)*
            /// A name that is none of the above, cut to 64 bytes and made [`Printable`].
            Other(String),
        }

        /// The names on the wire (`xsd_errors`, and oxenstored's `EQUOTA`), in the order of the variants.
        const ERROR_NAMES: [&str; [$($name),*].len()] = [$($name),*];

        impl ErrorName {
            /// The variant with this name.
            fn known(name: &[u8]) -> Option<Self> {
                // By the index: a table of variants would take three times as much of an image.
                let index = ERROR_NAMES.iter().position(|known| known.as_bytes() == name);
                let mut variants = 0..;
                $(if index == variants.next() {
                    return Some(Self::$variant);
                })*
                None
            }

            /// The index in [`ERROR_NAMES`].
            const fn index(&self) -> Option<usize> {
                let index = 0;
                $(if matches!(self, Self::$variant) {
                    return Some(index);
                }
                let index = index + 1;)*
                let _ = index;
                None
            }
        }
    };
}

error_names! {
    /// `EINVAL`: malformed path or payload.
    Einval = "EINVAL",
    /// `EACCES`: the node's permissions forbid it.
    Eacces = "EACCES",
    /// `EEXIST`: it is there already (a watch).
    Eexist = "EEXIST",
    /// `EISDIR`
    Eisdir = "EISDIR",
    /// `ENOENT`: no such node, watch or transaction.
    Enoent = "ENOENT",
    /// `ENOMEM`
    Enomem = "ENOMEM",
    /// `ENOSPC`: a quota is used up.
    Enospc = "ENOSPC",
    /// `EQUOTA`: a quota is used up (oxenstored).
    Equota = "EQUOTA",
    /// `EIO`
    Eio = "EIO",
    /// `ENOTEMPTY`
    Enotempty = "ENOTEMPTY",
    /// `ENOSYS`: unknown request.
    Enosys = "ENOSYS",
    /// `EROFS`
    Erofs = "EROFS",
    /// `EBUSY`: a transaction is in the way.
    Ebusy = "EBUSY",
    /// `EAGAIN`: the transaction met another one.
    Eagain = "EAGAIN",
    /// `EISCONN`
    Eisconn = "EISCONN",
    /// `E2BIG`: the answer or the value is too long.
    E2big = "E2BIG",
    /// `EPERM`: not for this domain.
    Eperm = "EPERM",
}

impl ErrorName {
    /// Reads the payload of an error reply: a name, usually ended by NUL. Any bytes are one.
    pub fn decode(payload: &[u8]) -> Self {
        // Up to the NUL, if there is one.
        let name = payload.split(|&byte| byte == 0).next().unwrap_or_default();
        Self::known(name).unwrap_or_else(|| {
            // It goes into logs: cut, and without control characters.
            Self::Other(format!("{}", Printable(&name[..name.len().min(OTHER_NAME_MAX)])))
        })
    }
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.index()) {
            (Self::Other(name), _) => write!(f, "unknown error {name}"),
            (_, index) => f.write_str(index.map_or("", |index| ERROR_NAMES[index])),
        }
    }
}

/// Reads a payload of texts, each ended by NUL.
pub fn decode_texts(payload: &[u8]) -> Result<Vec<String>, Violation> {
    // Without the last NUL, which ends the last text and begins no other.
    let Some((end, body)) = payload.split_last() else {
        return Ok(Vec::new());
    };
    if *end != 0 {
        return Err(Violation::Framing);
    }
    let body = core::str::from_utf8(body).map_err(|_| Violation::Encoding)?;
    Ok(body.split('\0').map(str::to_owned).collect())
}

/// Reads a payload of exactly `N` texts, each ended by NUL.
pub fn decode_exactly<const N: usize>(payload: &[u8]) -> Result<[String; N], Violation> {
    decode_texts(payload)?.try_into().map_err(|_| Violation::Framing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn a_header_is_four_little_endian_words() {
        let header = Header {
            kind: Kind::Write as u32,
            request: 0x0102_0304,
            transaction: 7,
            length: 4096,
        };
        let bytes = header.encode();
        assert_eq!(bytes, [11, 0, 0, 0, 4, 3, 2, 1, 7, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(Header::decode(&bytes), header);
    }

    #[test]
    fn kinds_have_the_numbers_of_the_header_file() {
        let numbers: Vec<u32> = KINDS.iter().map(|&(kind, _)| kind as u32).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 21]);
        assert_eq!(Kind::from_raw(13), Some(Kind::Remove));
        for unused in [0, 8, 9, 18, 0xffff, u32::MAX] {
            assert_eq!(Kind::from_raw(unused), None, "{unused}");
        }
    }

    #[test]
    fn error_names_are_read_with_or_without_their_end_mark() {
        assert_eq!(ErrorName::decode(b"ENOENT\0"), ErrorName::Enoent);
        assert_eq!(ErrorName::decode(b"EAGAIN"), ErrorName::Eagain);
        for text in ERROR_NAMES {
            let error = ErrorName::decode(text.as_bytes());
            assert!(!matches!(error, ErrorName::Other(_)), "{text}");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn an_unknown_error_name_is_kept_short_and_shown_harmlessly() {
        let error = ErrorName::decode(b"E\x1b[2J\nBAD\xff\0");
        assert_eq!(error.to_string(), "unknown error E?[2J?BAD?");
        let ErrorName::Other(name) = ErrorName::decode(&[b'x'; 4096]) else {
            panic!("not an errno");
        };
        assert_eq!(name.len(), OTHER_NAME_MAX);
    }

    #[test]
    fn texts_end_with_nul() {
        assert_eq!(decode_texts(b""), Ok(vec![]));
        assert_eq!(
            decode_texts(b"a\0\0bc\0"),
            Ok(vec!["a".into(), "".into(), "bc".into()])
        );
        assert_eq!(decode_texts(b"a"), Err(Violation::Framing));
        assert_eq!(decode_texts(b"\xff\0"), Err(Violation::Encoding));
        assert_eq!(decode_exactly::<2>(b"a\0b\0"), Ok(["a".into(), "b".into()]));
        assert_eq!(decode_exactly::<2>(b"a\0"), Err(Violation::Framing));
    }
}
