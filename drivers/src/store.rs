//! Reading nodes that others write: every value has a defined meaning, also a missing one and garbage.

use crate::error::{Blame, Excerpt, SetupError};
use crate::log;
use crate::platform::DomId;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use pci::bdf::Bdf;
use pci::digits;
pub use pci::digits::hex;
use xenbus::client::{Cause, Client, Error, Store, TRANSACTION_TRIES, Transport, text};
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
        found(self.read_bytes(path))
    }

    fn set(&mut self, path: &str, value: &str) -> Result<(), Box<SetupError>> {
        self.write(path, value).map_err(failed)
    }

    fn children(&mut self, path: &str) -> Result<Vec<String>, Box<SetupError>> {
        listed(self.directory(path))
    }
}

/// What [`Nodes::get`] makes of a reply.
// One copy of it in the image, not one for each `Store`.
#[inline(never)]
fn found<E: Display>(reply: Result<Vec<u8>, Error<E>>) -> Result<Option<String>, Box<SetupError>> {
    match reply {
        Ok(value) => Ok(Some(text(value))),
        Err(error) => match error.cause() {
            // Also `EACCES`: see [`read`].
            Cause::Refused(ErrorName::Enoent | ErrorName::Eacces) => Ok(None),
            _ => Err(failed(error)),
        },
    }
}

/// What [`Nodes::children`] makes of a reply.
#[inline(never)]
fn listed<E: Display>(reply: Result<Vec<String>, Error<E>>) -> Result<Vec<String>, Box<SetupError>> {
    match reply {
        Ok(names) => Ok(names),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// What is done in a transaction.
type Body<'a> = dyn FnMut(&mut dyn Nodes) -> Result<(), Box<SetupError>> + 'a;

/// Runs `body` in a transaction, again where another writer comes first. What it has found counts once this returns.
///
/// # Errors
/// Those of `body`, and xenstore's.
// One copy of it in the image, whatever is done in transactions.
#[inline(never)]
pub fn transaction<T: Transport>(client: &mut Client<T>, body: &mut Body<'_>) -> Result<(), Box<SetupError>> {
    client.transaction_or(TRANSACTION_TRIES, |store| body(store))
}

/// A [`SetupError`] for a failed request to xenstore.
pub fn failed<E: Display>(error: Error<E>) -> Box<SetupError> {
    match error.cause() {
        // No later request can succeed either. All other causes concern this request alone.
        Cause::Transport(_) | Cause::OutOfStep => SetupError::StoreLost(format!("{error}")),
        _ => SetupError::Store(format!("{error}")),
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
    let mut read = |text: &str| {
        value = parse(text);
        value.is_some()
    };
    check(store, path, blame, expected, &mut read)?;
    Ok(value)
}

/// Calls `parse` with a node's value; false if there is no such node. A function apart from [`optional`], of which the image
/// has one copy for each type that is read.
///
/// # Errors
/// [`SetupError::BadNode`] where `parse` gives false, or as [`read`].
pub fn check(
    store: &mut dyn Nodes,
    path: &str,
    blame: Blame,
    expected: &'static str,
    parse: &mut dyn FnMut(&str) -> bool,
) -> Result<bool, Box<SetupError>> {
    match read(store, path)? {
        Some(text) if !parse(&text) => Err(bad_node(path, blame, &text, expected)),
        text => Ok(text.is_some()),
    }
}

/// What the address of a function should look like.
pub const BDF: &str = "SSSS:BB:DD.F";

/// The address of a function, which the toolstack must have written.
///
/// # Errors
/// As [`value`].
pub fn address(store: &mut dyn Nodes, path: &str, expected: &'static str) -> Result<Bdf, Box<SetupError>> {
    value(store, path, Blame::Toolstack, expected, |text| text.parse().ok())
}

/// A decimal number up to `most`, which `blame` must have written.
///
/// # Errors
/// As [`value`].
// One copy of it in the image: most values are such numbers.
#[inline(never)]
pub fn number(
    store: &mut dyn Nodes,
    path: &str,
    blame: Blame,
    expected: &'static str,
    most: u32,
) -> Result<u32, Box<SetupError>> {
    value(store, path, blame, expected, |text| {
        decimal(text).filter(|&number| number <= most)
    })
}

/// The number of a domain, which the toolstack must have written.
///
/// # Errors
/// As [`value`].
pub fn domid(store: &mut dyn Nodes, path: &str, expected: &'static str) -> Result<DomId, Box<SetupError>> {
    let number = number(store, path, Blame::Toolstack, expected, DomId::MAX.into())?;
    // Not above its limit.
    Ok(number as DomId)
}

/// The error of a node that `blame` must have written, and has not.
#[cold]
pub fn missing_node(path: &str, blame: Blame) -> Box<SetupError> {
    SetupError::MissingNode {
        blame,
        path: String::from(path),
    }
    .into()
}

#[cold]
fn bad_node(path: &str, blame: Blame, text: &str, expected: &'static str) -> Box<SetupError> {
    SetupError::BadNode {
        blame,
        path: String::from(path),
        value: Excerpt::of(text),
        expected,
    }
    .into()
}

/// Writes why a device of domain `owner` fails into the node that Linux's drivers use: `error/<device>/error` below the
/// domain's home, for the device with this `directory`; `text` is an [`error_text`]. A failure to write is logged: the device
/// has failed already.
pub fn report(store: &mut dyn Nodes, owner: DomId, directory: &str, text: &str) {
    let home = path::home(owner);
    let device = directory.strip_prefix(&home).unwrap_or(directory);
    if let Err(refused) = store.set(&format!("{home}/error{device}/error"), text) {
        log::warn!("cannot write the error node: {refused}");
    }
}

/// The text of an error node, as Linux's xenbus writes it: the negative errno value, then the words.
pub fn error_text(error: &SetupError) -> String {
    format!("{} {error}", -error.errno())
}

/// Reads a decimal number that fits in 32 bits, without sign or blanks.
pub fn decimal(text: &str) -> Option<u32> {
    digits::parse(text, 10)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_neither_sign_nor_blanks() {
        assert_eq!(decimal("4294967295"), Some(u32::MAX));
        for bad in ["", "-1", "+1", " 1", "1 ", "1\n", "4294967296", "0x1", "\u{663}"] {
            assert_eq!(decimal(bad), None, "{bad}");
        }
    }
}
