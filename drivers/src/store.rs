//! Reading nodes that others write: every value has a defined meaning, also a missing one and garbage.

use crate::error::{Blame, Excerpt, SetupError};
use crate::log;
use crate::platform::DomId;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use xenbus::client::{Cause, Error, Store};
use xenbus::path;
use xenbus::state::XenbusState;
use xenbus::wire::ErrorName;

/// Nodes, in a transaction or outside. Used through `dyn`, so that code that reads nodes is in the image once.
///
/// # Errors
/// [`SetupError::StoreLost`], or [`SetupError::Store`] if xenstored refuses for a reason that the method has no value
/// for.
pub trait Nodes {
    /// See [`read`].
    fn get(&mut self, path: &str) -> Result<Option<String>, Box<SetupError>>;
    /// Sets the value of a node.
    fn set(&mut self, path: &str, value: &str) -> Result<(), Box<SetupError>>;
    /// The names of a node's children; none if there is no such node.
    fn children(&mut self, path: &str) -> Result<Vec<String>, Box<SetupError>>;
}

impl<S: Store> Nodes for S {
    fn get(&mut self, path: &str) -> Result<Option<String>, Box<SetupError>> {
        match Store::read(self, path) {
            Ok(value) => Ok(Some(value)),
            Err(error) => match error.cause() {
                // Also `EACCES`: see [`read`].
                Cause::Refused(ErrorName::Enoent | ErrorName::Eacces) => Ok(None),
                _ => Err(failed(error)),
            },
        }
    }

    fn set(&mut self, path: &str, value: &str) -> Result<(), Box<SetupError>> {
        self.write(path, value).map_err(failed)
    }

    fn children(&mut self, path: &str) -> Result<Vec<String>, Box<SetupError>> {
        match self.directory(path) {
            Ok(names) => Ok(names),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
        }
    }
}

/// A [`SetupError`] for a failed request to xenstore.
pub fn failed<E: Display>(error: Error<E>) -> Box<SetupError> {
    match error.cause() {
        // No later request can succeed either. All other causes concern this request alone.
        Cause::Transport(_) | Cause::OutOfStep => SetupError::StoreLost(error.to_string()),
        _ => SetupError::Store(error.to_string()),
    }
    .into()
}

impl<E: Display> From<Error<E>> for Box<SetupError> {
    fn from(error: Error<E>) -> Self {
        failed(error)
    }
}

/// The value of a node, or `None` if it does not exist or cannot be seen.
///
/// xenstored hides whether a node exists from a domain that may not read its parent, so a frontend that has gone looks like
/// one that is forbidden.
///
/// # Errors
/// [`SetupError::StoreLost`], or [`SetupError::Store`] if xenstored refuses for another reason.
pub fn read(store: &mut dyn Nodes, path: &str) -> Result<Option<String>, Box<SetupError>> {
    store.get(path)
}

/// The xenbus state in a node; a missing node and garbage are [`XenbusState::Unknown`].
///
/// # Errors
/// As [`read`].
pub fn state(store: &mut dyn Nodes, path: &str) -> Result<XenbusState, Box<SetupError>> {
    let text = read(store, path)?;
    Ok(text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
}

/// A node that `blame` must have written, as `parse` reads it.
///
/// # Errors
/// [`SetupError::MissingNode`]; [`SetupError::BadNode`] where `parse` gives `None`, with what was `expected`;
/// or as [`read`].
pub fn value<R>(
    store: &mut dyn Nodes,
    path: &str,
    blame: Blame,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<R>,
) -> Result<R, Box<SetupError>> {
    let value = optional(store, path, blame, expected, parse)?;
    value.ok_or_else(|| missing_node(path, blame))
}

/// The same for a node that need not be there.
///
/// # Errors
/// As [`value`], but for [`SetupError::MissingNode`].
pub fn optional<R>(
    store: &mut dyn Nodes,
    path: &str,
    blame: Blame,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<R>,
) -> Result<Option<R>, Box<SetupError>> {
    let mut value = None;
    check(store, path, blame, expected, &mut |text| {
        value = parse(text);
        value.is_some()
    })?;
    Ok(value)
}

/// Calls `parse` with a node's value, if there is one. A function apart from [`optional`], of which the image has one copy
/// for each type that is read.
fn check(
    store: &mut dyn Nodes,
    path: &str,
    blame: Blame,
    expected: &'static str,
    parse: &mut dyn FnMut(&str) -> bool,
) -> Result<(), Box<SetupError>> {
    match read(store, path)? {
        Some(text) if !parse(&text) => Err(bad_node(path, blame, &text, expected)),
        _ => Ok(()),
    }
}

#[cold]
fn missing_node(path: &str, blame: Blame) -> Box<SetupError> {
    SetupError::MissingNode {
        blame,
        path: path.to_string(),
    }
    .into()
}

#[cold]
fn bad_node(path: &str, blame: Blame, text: &str, expected: &'static str) -> Box<SetupError> {
    SetupError::BadNode {
        blame,
        path: path.to_string(),
        value: Excerpt::of(text),
        expected,
    }
    .into()
}

/// Writes why a device of domain `owner` fails into the node that Linux's drivers use: `error/<device>/error` below the
/// domain's home, for the device with this `directory`. A failure to write is logged: the device has failed already.
pub fn report(store: &mut dyn Nodes, owner: DomId, directory: &str, error: &SetupError) {
    let home = path::home(owner);
    let device = directory.strip_prefix(&home).unwrap_or(directory);
    if let Err(refused) = store.set(&format!("{home}/error{device}/error"), &error_text(error)) {
        log::warn!("cannot write the error node: {refused}");
    }
}

/// The text of an error node, as Linux's xenbus writes it: the negative errno value, then the words.
pub fn error_text(error: &SetupError) -> String {
    format!("{} {error}", -error.errno())
}

/// Reads a decimal number that fits in 32 bits, without sign or blanks.
pub fn decimal(text: &str) -> Option<u32> {
    // `parse` alone would take a plus sign.
    let sound = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    sound.then(|| text.parse().ok()).flatten()
}

/// Reads a hex number that fits in 64 bits, without sign, prefix or blanks.
pub fn hex(text: &str) -> Option<u64> {
    let sound = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    sound.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_neither_sign_nor_blanks() {
        assert_eq!(decimal("4294967295"), Some(u32::MAX));
        assert_eq!(hex("b0028"), Some(0xb0028));
        for bad in ["", "-1", "+1", " 1", "1 ", "1\n", "4294967296", "0x1", "\u{663}"] {
            assert_eq!(decimal(bad), None, "{bad}");
        }
        for bad in ["", "-1", "+1", "0x1", "1 ", "10000000000000000"] {
            assert_eq!(hex(bad), None, "{bad}");
        }
    }
}
