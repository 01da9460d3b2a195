//! What can go wrong between a request and its reply.

use crate::printable::Printable;
use crate::wire::{ABSOLUTE_PATH_MAX, ErrorName, Kind, RELATIVE_PATH_MAX, Violation};
use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

/// A failed request: what was asked, of which node, and why it failed.
///
/// `E` is the transport's error.
#[derive(Debug)]
// Boxed: results of requests are moved on at every `?`, and failures are rare.
pub struct Error<E>(Box<Failure<E>>);

#[derive(Debug)]
struct Failure<E> {
    operation: Kind,
    /// Path or domain; empty where the operation has neither.
    subject: String,
    cause: Cause<E>,
}

/// Why a request failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Cause<E> {
    /// xenstored refused it.
    Refused(ErrorName),
    /// The path is empty, has a NUL byte, or is too long. Nothing was sent.
    Path,
    /// The token has a NUL byte. Nothing was sent.
    Token,
    /// The request's payload has this many bytes, more than the protocol or the transport can carry. Nothing was sent.
    TooLong(usize),
    /// Other writers came first, this many times in a row.
    Conflict(u32),
    /// The transport failed. The client is of no more use.
    Transport(E),
    /// The reply is not what the protocol allows.
    Violation(Violation),
    /// An earlier failure has ended the use of the connection.
    OutOfStep,
}

impl<E> Error<E> {
    pub(super) fn new(operation: Kind, subject: &str, cause: Cause<E>) -> Self {
        Self(Box::new(Failure {
            operation,
            subject: subject.to_owned(),
            cause,
        }))
    }

    /// Why it failed.
    pub fn cause(&self) -> &Cause<E> {
        &self.0.cause
    }

    /// True if the node does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.0.cause, Cause::Refused(ErrorName::Enoent))
    }

    pub(super) fn is_conflict(&self) -> bool {
        matches!(self.0.cause, Cause::Refused(ErrorName::Eagain))
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.0.subject.is_empty() { "" } else { " " };
        write!(
            f,
            "{}{space}{}: {}",
            self.0.operation,
            Printable(self.0.subject.as_bytes()),
            self.0.cause
        )
    }
}

impl<E: fmt::Display> fmt::Display for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(name) => name.fmt(f),
            Self::Path => write!(
                f,
                "not a xenstore path: it must not be empty, contain a NUL byte, or be longer than \
                 {ABSOLUTE_PATH_MAX} bytes ({RELATIVE_PATH_MAX} if it is relative)"
            ),
            Self::Token => f.write_str("the token contains a NUL byte"),
            Self::TooLong(length) => write!(
                f,
                "a payload of {length} bytes is longer than this connection can carry"
            ),
            Self::Conflict(tries) => write!(f, "other writers came first, {tries} times in a row"),
            Self::Transport(error) => error.fmt(f),
            Self::Violation(violation) => violation.fmt(f),
            Self::OutOfStep => f.write_str("the connection to xenstored failed earlier; open a new one"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for Error<E> {}
