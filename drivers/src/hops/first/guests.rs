//! The guests for which the toolstack has made nodes. A stub serves one of them, and refuses the others.

use super::context::Context;
use super::nodes::report_failure;
use crate::error::{Excerpt, SetupError};
use crate::log;
use crate::platform::{DomId, Platform};
use crate::store::{self, Nodes};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use xenbus::client::Transport;
use xenbus::path::{DeviceType, key};
use xenbus::state::XenbusState;

/// When a refusal that could not be written is tried again.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// The guests that have nodes in the directory of this stub's backends.
pub struct Guests {
    directory: String,
    names: Vec<String>,
}

impl Guests {
    pub fn read(store: &mut dyn Nodes, stub: DomId) -> Result<Self, Box<SetupError>> {
        let directory = DeviceType::Pci.backends(stub);
        let names = store.children(&directory)?;
        Ok(Self { directory, names })
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn has(&self, guest: DomId) -> bool {
        self.names.iter().any(|name| parse_domid(name) == Some(guest))
    }

    /// Refuses every connection but the one of guest `served`. Returns that guest if its connection is there. Sets
    /// `due` if a refusal is to be tried again.
    // Inlined, it makes the image 448 bytes longer.
    #[inline(never)]
    pub fn refuse_others<P: Platform, T: Transport>(
        self,
        cx: &mut Context<'_, P, T>,
        stub: DomId,
        served: DomId,
        due: &mut Option<Duration>,
    ) -> Result<Option<DomId>, Box<SetupError>> {
        let Self { directory, names } = self;
        let mut found = None;
        for name in &names {
            // A name that is no domid, or a number other than 0, is nobody's whom this stub serves: refused like another guest.
            let guest = parse_domid(name);
            for number in &cx.client.children(&format!("{directory}/{name}"))? {
                let refusal = match guest {
                    Some(guest) if guest == served && number == "0" => {
                        found = Some(guest);
                        continue;
                    }
                    Some(guest) if guest != served => SetupError::OtherGuest { guest, served },
                    _ => SetupError::OtherConnection(format!("{}", Excerpt::of(number))),
                };
                let directory = format!("{directory}/{name}/{number}");
                match refuse(cx.client, stub, &directory, &refusal) {
                    // The guest that is served must not wait for that.
                    Err(error) if matches!(*error, SetupError::Store(_)) => {
                        *due = Some(cx.platform.now().saturating_add(REFUSAL_PAUSE));
                    }
                    result => result?,
                }
            }
        }
        Ok(found)
    }
}

fn parse_domid(text: &str) -> Option<DomId> {
    store::decimal(text)?.try_into().ok()
}

/// Refuses a connection that this stub does not serve. Once: Closing, which is written here, is no longer refused.
fn refuse(
    store: &mut dyn Nodes,
    stub: DomId,
    directory: &str,
    refusal: &SetupError,
) -> Result<(), Box<SetupError>> {
    let state = store::state(store, &format!("{directory}/{}", key::STATE))?;
    if matches!(
        state,
        XenbusState::Initialising | XenbusState::InitWait | XenbusState::Initialised
    ) {
        log::error!("{refusal}");
        report_failure(store, stub, directory, refusal)?;
    }
    Ok(())
}
