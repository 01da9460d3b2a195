//! The page and the port that are shared with the guest.

use crate::error::{Blame, SetupError};
use crate::platform::{DomId, GrantRef, Platform, Port};
use crate::store::{self, Nodes};
use alloc::boxed::Box;
use pci::bdf::Bdf;
use xenbus::path::{Device, key};
use xenbus::pciif;
use xenbus::state::XenbusState;

/// The key of [`Platform::remember`] for the connection in service. No function has this guest address: segment 0xffff is
/// none that is served.
const REMEMBERED_AT: Bdf = Bdf::from_devfn(u16::MAX, u8::MAX, u8::MAX);

/// The page and the port that a frontend has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingParams {
    pub grant: GrantRef,
    pub port: Port,
}

impl RingParams {
    /// Reads what the frontend has published.
    pub fn read(store: &mut dyn Nodes, device: Device) -> Result<Self, Box<SetupError>> {
        let mut node = |key, expected| {
            let path = device.frontend_node(key);
            store::number(store, &path, Blame::Guest, expected, u32::MAX)
        };
        Ok(Self {
            grant: node(key::PCI_OP_REF, "a grant reference in decimal")?,
            port: node(key::EVENT_CHANNEL, "an event channel port in decimal")?,
        })
    }

    /// Both numbers in one word, which other parameters hardly have. A run remembers it for the next one, to tell whether
    /// the frontend has started anew meanwhile.
    pub const fn word(self) -> u32 {
        self.grant ^ self.port.rotate_left(16)
    }
}

/// The [word](RingParams::word) of the connection that an earlier run had in service.
pub fn remembered(platform: &impl Platform) -> Option<u32> {
    platform.recall(REMEMBERED_AT)
}

/// Forgets the connection of earlier runs.
pub fn forget(platform: &mut impl Platform) {
    platform.remember(REMEMBERED_AT, None);
}

/// What is shared with the guest.
#[derive(Debug)]
pub struct GuestChannel<Page> {
    pub page: Page,
    pub port: Port,
    pub params: RingParams,
    /// The frontend has gone back to Initialising since the channel was opened.
    pub anew: bool,
}

impl<Page> GuestChannel<Page> {
    /// Maps the page and binds the port that the guest has published, and remembers which they are.
    pub fn open<P: Platform<Page = Page>>(
        platform: &mut P,
        guest: DomId,
        params: RingParams,
    ) -> Result<Self, Box<SetupError>> {
        let RingParams { grant, port: remote } = params;
        let page = platform
            .map_grant(guest, grant)
            .map_err(|errno| SetupError::MapGrant { grant, errno })?;
        let port = match platform.bind_interdomain(guest, remote) {
            Ok(port) => port,
            // Both or neither: the page of a frontend without a port is of no use.
            Err(errno) => {
                platform.unmap_grant(page);
                return Err(SetupError::BindPort { port: remote, errno }.into());
            }
        };
        // After both succeeded: a run that fails in between has no connection in service.
        platform.remember(REMEMBERED_AT, Some(params.word()));
        Ok(Self {
            page,
            port,
            params,
            anew: false,
        })
    }

    /// Closes the port and unmaps the page. What is remembered of them stays.
    pub fn close<P: Platform<Page = Page>>(self, platform: &mut P) {
        platform.close(self.port);
        platform.unmap_grant(self.page);
    }

    /// True if the frontend, which is in state `frontend`, has published another page or port than these, or has been at
    /// Initialising since. Nodes that cannot be parsed do not count as others: a frontend writes them before its state, so
    /// an event follows.
    pub fn is_replaced(
        &self,
        store: &mut dyn Nodes,
        device: Device,
        frontend: XenbusState,
    ) -> Result<bool, Box<SetupError>> {
        use XenbusState::*;
        // In the other states the nodes may be old or half written.
        if !matches!(frontend, Initialised | Connected | Reconfiguring) {
            return Ok(false);
        }
        match RingParams::read(store, device) {
            Ok(params) => Ok(self.anew || params != self.params),
            Err(error) if error.is_of_store() => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// Checks that the frontend speaks the version of pciif that we do.
pub fn check_version(store: &mut dyn Nodes, device: Device) -> Result<(), Box<SetupError>> {
    store::value(
        store,
        &device.frontend_node(key::MAGIC),
        Blame::Guest,
        "7, the version of pciif",
        |text| (text == pciif::MAGIC).then_some(()),
    )
}
