//! Actions that only dom0 can take: the guest asks for them by a node below its home.

use crate::frontend::{Failure, wait_for};
use core::time::Duration;
use drivers::platform::Platform;
use xenbus::client::{Client, Store, Transport};

/// The node. dom0 empties it when the action is done.
pub const ASK: &str = "data/ask";
/// How long the guest waits for dom0.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks dom0 for an action, and waits until it is done.
///
/// # Errors
/// [`Failure::Silent`], [`Failure::Store`].
pub fn ask_dom0<P: Platform, T: Transport>(
    platform: &mut P,
    client: &mut Client<T>,
    words: &str,
) -> Result<(), Failure> {
    client.write(ASK, words)?;
    wait_for(platform, LIMIT, "dom0 to do what it was asked", || {
        Ok(client.read(ASK)?.is_empty().then_some(()))
    })
}
