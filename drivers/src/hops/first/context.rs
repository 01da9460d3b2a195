//! What every step of the first hop works with.

use crate::hops::second::{Link, SecondHop, TIMEOUT};
use crate::platform::Platform;
use xenbus::client::Client;

/// What the first hop works with, for one call.
pub struct Context<'a, P: Platform, T> {
    /// The machine.
    pub platform: &'a mut P,
    /// xenstore.
    pub client: &'a mut Client<T>,
    /// The way to dom0.
    pub second: &'a mut SecondHop<P::Page>,
}

impl<P: Platform, T> Context<'_, P, T> {
    /// dom0, for work that begins now and must end within [`TIMEOUT`].
    pub(super) fn dom0(&mut self) -> Link<'_, P> {
        let deadline = self.platform.now().saturating_add(TIMEOUT);
        self.second.link(self.platform, deadline)
    }
}
