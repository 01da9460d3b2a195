//! The first hop: the connection to the guest's pcifront. The stub is the backend.
//!
//! After every change all nodes are read again, and each step follows from the states found. No step relies on having
//! seen the one before: events come late and are merged, and the stub may have been restarted in between. A guest that
//! writes garbage ends its own connection, with the reason in the xenbus error node.
//!
//! From the top to the bottom; a module uses only those below it:
//! - [`connection`]: the [`FirstHop`], which follows the xenbus states of both ends.
//! - [`requests`]: the guest's requests; [`hold`]: how long they wait after a restart; [`exports`]: the devices that it has; [`guests`]: which guest is served;
//!   [`anew`]: frontends that start anew.
//! - [`ledger`]: what must outlive a request.
//! - [`phase`]: how far the connection is; [`channel`]: the page and the port.
//! - [`nodes`]: the backend's own nodes; [`context`]: what every step works with.
//!
//! # Hotplug
//! 1. The toolstack changes the [list of devices](super::device_list) and sets the backend's state to Reconfiguring.
//! 2. The guest lets go of the devices that are to leave, and goes to Reconfiguring.
//! 3. The stub changes what it exports, and goes to Reconfigured. A device that cannot be exported is refused alone.
//! 4. The guest scans its bus again and goes to Connected, and so does the stub.
//!
//! # A frontend that starts anew
//! Linux 7.0 and later probe a device again if its frontend state reads Initialising. A driver that is bound again starts
//! anew too. The stub may see that state or miss it; then it sees another grant or port. While the frontend is at
//! Initialising, it may still take its drivers down by the old page, so the old page is served until there is a new one.
//! Then the devices are exported as to a new guest, with their interrupts off, and changes of the list that were under
//! way are done with. A closed connection begins again in the same way.
//!
//! # When xenstore refuses
//! A refused request says nothing about the guest. The phase stays, and everything is tried again after a pause.

mod anew;
mod channel;
mod connection;
mod context;
mod exports;
mod guests;
mod hold;
mod ledger;
mod nodes;
mod phase;
mod requests;

pub use connection::{FRONTEND_TOKEN, FirstHop};
pub use context::Context;
