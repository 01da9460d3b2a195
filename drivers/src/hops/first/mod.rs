//! The first hop: the backend's xenbus connection, from the guest's nodes to its shared page.
//!
//! What the other ends write is looked at as a whole after every change, and each step follows from the
//! states found: no step relies on having seen the one before. A guest's garbage ends its own connection,
//! with the reason in the xenbus error node.
//!
//! From the top to the bottom; a module uses only those below it:
//! - [`connection`]: the [`FirstHop`], which follows the xenbus states of both ends.
//! - [`requests`]: the guest's requests; [`exports`]: the devices that it has; [`guests`]: which guest is served;
//!   [`anew`]: when a frontend starts anew.
//! - [`ledger`]: what outlives a request.
//! - [`phase`]: how far the connection is; [`channel`]: the page and the port.
//! - [`nodes`]: what the backend writes of itself; [`context`]: what every step works with.
//!
//! # Hotplug
//! The toolstack changes the [list of devices](super::device_list) and sets our state to Reconfiguring. The guest lets
//! go of the devices that are to leave and goes to Reconfiguring too; only then do we change what we export, and go to
//! Reconfigured. The guest looks at its bus again and goes to Connected, and so do we. A device that cannot be
//! exported is refused alone.
//!
//! # A frontend that starts anew
//! Linux 7.0 and later probe a device again whose frontend state reads Initialising; so does a driver that is bound
//! again. The state may be seen on its way there or not at all: then the grant or the port is another one. While the
//! frontend is at Initialising it may still take its drivers down by the old page, so that is served until there is a
//! new one. Then the devices are exported as to a new guest, with their interrupts off, and the list's changes that
//! were under way are done with. A connection that is closed begins again in the same way.
//!
//! # When xenstore refuses
//! A refused request says nothing about the guest: the phase stays, and all is looked at again after a while.

mod anew;
mod channel;
mod connection;
mod context;
mod exports;
mod guests;
mod ledger;
mod nodes;
mod phase;
mod requests;

pub use connection::{FRONTEND_TOKEN, FirstHop};
pub use context::Context;
