//! The devices that are exported to the guest, by the [list of devices](device_list).

use super::context::Context;
use crate::error::SetupError;
use crate::hops::device_list::{self, Change, Entry};
use crate::inject::{self, Point};
use crate::log;
use crate::platform::{ConfigSpace, EcamError, Errno, Platform};
use crate::policy::engine::Engine;
use crate::policy::resources::{GUEST_BDF, Resources};
use crate::snapshot::FUNCTIONS_MAX;
use alloc::boxed::Box;
use alloc::vec::Vec;
use pci::bdf::Bdf;
use xenbus::client::Transport;
use xenbus::device::SlotMode;
use xenbus::handover_block::HandoverBlock;
use xenbus::path::Device;
use xenbus::state::XenbusState;

/// `ENOMEM`: no window is left to map a page at.
const NO_MEMORY: Errno = Errno(12);

/// How often a list is read again because it was renumbered before its changes were published.
const LIST_TRIES: usize = 8;

/// The devices that are exported: the engine, with their ECAM pages mapped.
#[derive(Debug)]
pub struct Exports<E> {
    pub engine: Engine<E>,
}

impl<E: ConfigSpace> Exports<E> {
    pub fn new() -> Self {
        Self {
            engine: Engine::default(),
        }
    }

    /// Exports the devices of the list, and publishes their guest addresses. A new guest gets all of them or none. A
    /// frontend that starts anew gets those that can still be exported (decision 19).
    pub fn export<P: Platform<Ecam = E>, T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        let mut tries = 0..LIST_TRIES;
        loop {
            self.withhold_all(cx.platform);
            let (mode, listed) = device_list::read(cx.client, device, cx.second, |_| true)?;
            self.engine.begin(mode);
            // Of a new guest no device has been exported before.
            let first = listed
                .iter()
                .all(|listed| matches!(listed.state, XenbusState::Unknown | XenbusState::Initialising));
            let mut entries = Vec::new();
            for listed in listed {
                let (number, bdf) = (listed.number, listed.bdf);
                let change = match listed.state {
                    // Refused or removed before, and still in the list.
                    XenbusState::Closed => continue,
                    XenbusState::Closing => Change::Removed,
                    _ => match self.add(cx, listed.resources, None) {
                        Ok(guest_bdf) => Change::Exported {
                            guest_bdf,
                            root: true,
                        },
                        Err(error) if first => return Err(error),
                        Err(error) => Change::Refused(error),
                    },
                };
                entries.push(Entry { number, bdf, change });
            }
            // Once all are exported: a bridge may come after what is behind it.
            for entry in &mut entries {
                if let Change::Exported { guest_bdf, root } = &mut entry.change {
                    // A bus that the guest's scan finds behind a bridge is no root: Linux would make the bus twice, and fail
                    // (decision 23).
                    *root = !self.engine.is_behind_bridge(*guest_bdf);
                }
            }
            if publish(cx, device, &entries, &[], &mut tries)? {
                return Ok(());
            }
        }
    }

    /// Exports again what an earlier run has exported, each device at the guest address that it had: the guest may be using
    /// it. One that cannot be exported is refused alone. `left` is the handover block of the stub domain before this one.
    pub fn resume<P: Platform<Ecam = E>, T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
        left: Option<&HandoverBlock>,
    ) -> Result<(), Box<SetupError>> {
        let mut tries = 0..LIST_TRIES;
        loop {
            self.withhold_all(cx.platform);
            let (mode, listed) = device_list::read(cx.client, device, cx.second, may_be_used)?;
            self.engine.begin(mode);
            let mut entries = Vec::new();
            let mut exported = Vec::new();
            for listed in listed {
                // Into the platform's memory, from which `add` restores a shadow in every run.
                if let (Some(left), Ok(guest_bdf)) = (left, &listed.guest_bdf) {
                    cx.platform.remember(*guest_bdf, left.shadow(*guest_bdf));
                }
                let guest_bdf = listed
                    .guest_bdf
                    .and_then(|guest_bdf| self.add(cx, listed.resources, Some(guest_bdf)));
                match (listed.bdf, guest_bdf) {
                    (Some(bdf), Ok(guest_bdf)) => exported.push((listed.number, bdf, guest_bdf)),
                    (bdf, Err(error)) => entries.push(Entry {
                        number: listed.number,
                        bdf,
                        change: Change::Refused(error),
                    }),
                    // Cannot be: a device without an address has no resources either.
                    (None, Ok(_)) => {}
                }
            }
            if publish(cx, device, &entries, &exported, &mut tries)? {
                return Ok(());
            }
        }
    }

    /// Follows a change of the list: removes what the guest has let go of, and adds what is new. A bad list changes
    /// nothing: a guest that runs must not lose its devices.
    pub fn reconfigure<P: Platform<Ecam = E>, T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<(), Box<SetupError>> {
        inject::point(cx.platform, Point::Hotplug);
        let mut tries = 0..LIST_TRIES;
        loop {
            let entries = match self.change(cx, device) {
                Ok(entries) => entries,
                Err(error) if error.is_of_store() => return Err(error),
                Err(error) => {
                    log::error!(
                        "guest {}: its devices stay as they are: {error}",
                        device.frontend()
                    );
                    return Ok(());
                }
            };
            if entries.is_empty() {
                return Ok(());
            }
            let published = publish(cx, device, &entries, &[], &mut tries);
            if !matches!(published, Ok(true)) {
                // Nobody knows of them yet, and the list that is read next may have other numbers. What was removed stays so:
                // the guest has let go of it.
                for entry in &entries {
                    if let (Some(bdf), Change::Exported { .. }) = (entry.bdf, &entry.change) {
                        self.remove(cx, bdf);
                    }
                }
            }
            if published? {
                return Ok(());
            }
        }
    }

    /// Carries out the changes that the list asks for; returns what has become of each device.
    fn change<P: Platform<Ecam = E>, T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        device: Device,
    ) -> Result<Vec<Entry>, Box<SetupError>> {
        let (_, listed) = device_list::read(cx.client, device, cx.second, |state| {
            matches!(state, XenbusState::Initialising | XenbusState::Closing)
        })?;
        let mut entries = Vec::new();
        for listed in listed {
            let change = match (listed.state, listed.bdf) {
                (XenbusState::Closing, Some(bdf)) => {
                    self.remove(cx, bdf);
                    Change::Removed
                }
                // A device that is to leave and whose address is bad is refused, by the error in its resources.
                _ => match self.add(cx, listed.resources, None) {
                    // Also behind a bridge: a guest that runs looks for new devices on its roots only, and finds the bus that it
                    // has (decision 23).
                    Ok(guest_bdf) => Change::Exported {
                        guest_bdf,
                        root: true,
                    },
                    Err(error) => Change::Refused(error),
                },
            };
            entries.push(Entry {
                number: listed.number,
                bdf: listed.bdf,
                change,
            });
        }
        Ok(entries)
    }

    /// Exports what the last run had exported, by its [snapshot](crate::snapshot). `None` if a function cannot be exported any
    /// more: xenstore says why.
    pub fn restore<P: Platform<Ecam = E>>(&mut self, platform: &mut P, mode: SlotMode) -> Option<()> {
        self.engine.begin(mode);
        for entry in 0..FUNCTIONS_MAX {
            let Some(words) = platform.snapshot().function(entry) else {
                continue;
            };
            let (resources, guest_bdf) = Resources::from_words(&words)?;
            self.place(platform, resources, Some(guest_bdf)).ok()?;
        }
        Some(())
    }

    /// Exports a device at guest address `previous`, where an earlier run had it. Without that, exports it as a new one: at
    /// the first free address and with its interrupts off, whatever an earlier guest left.
    fn add<P: Platform<Ecam = E>, T: Transport>(
        &mut self,
        cx: &mut Context<'_, P, T>,
        resources: Result<Resources, Box<SetupError>>,
        previous: Option<Bdf>,
    ) -> Result<Bdf, Box<SetupError>> {
        let resources = resources?;
        let (bdf, ids) = (resources.bdf, resources.ids);
        let mut words = resources.words();
        let guest_bdf = self.place(cx.platform, resources, previous)?;
        // Not in `place`: after a restart the guest would wait for a line for each of its devices.
        log::info!("exporting {bdf} ({ids}) as {guest_bdf}");
        if previous.is_none() {
            self.engine.quiesce_function(bdf, &mut cx.dom0());
        }
        // What was read from xenstore, not what became of it: nothing that goes wrong in the engine is kept.
        words[GUEST_BDF] = guest_bdf.word();
        cx.platform.snapshot().put(&words);
        Ok(guest_bdf)
    }

    /// Maps a device's ECAM page and exports the device, with the shadow of before if it was exported before.
    fn place<P: Platform<Ecam = E>>(
        &mut self,
        platform: &mut P,
        resources: Resources,
        previous: Option<Bdf>,
    ) -> Result<Bdf, Box<SetupError>> {
        let (bdf, frame) = (resources.bdf, resources.ecam);
        let ecam = platform.map_ecam(frame).map_err(|error| match error {
            EcamError::Refused(NO_MEMORY) => SetupError::NoRoom(bdf),
            EcamError::Refused(errno) => SetupError::MapEcam { bdf, frame, errno },
            EcamError::Writable => SetupError::EcamWritable { bdf, frame },
        })?;
        let guest_bdf = match self.engine.add(resources, ecam, previous) {
            Ok(guest_bdf) => guest_bdf,
            Err((error, ecam)) => {
                platform.unmap_ecam(ecam);
                return Err(error);
            }
        };
        // A shadow of before belongs to the device that had this address before.
        if previous.is_none() {
            platform.remember(guest_bdf, None);
        } else {
            self.engine.set_shadow(guest_bdf, platform.recall(guest_bdf));
        }
        Ok(guest_bdf)
    }

    /// Exports the device at `bdf` no more, with its interrupts off. Does nothing if it was not exported.
    fn remove<P: Platform<Ecam = E>, T: Transport>(&mut self, cx: &mut Context<'_, P, T>, bdf: Bdf) {
        cx.platform.snapshot().remove(bdf.word());
        if let Some(ecam) = self.engine.remove(bdf, &mut cx.dom0()) {
            cx.platform.unmap_ecam(ecam);
            log::info!("{bdf} is exported no more");
        }
    }

    /// Exports no device any more, and leaves the devices as they are: they may be exported again at once.
    pub fn withhold_all<P: Platform<Ecam = E>>(&mut self, platform: &mut P) {
        platform.snapshot().clear();
        for ecam in self.engine.clear() {
            platform.unmap_ecam(ecam);
        }
    }
}

/// Publishes what has become of devices of the list. False if the list was renumbered meanwhile, and must be read again.
fn publish<P: Platform, T: Transport>(
    cx: &mut Context<'_, P, T>,
    device: Device,
    entries: &[Entry],
    exported: &[(usize, Bdf, Bdf)],
    tries: &mut impl Iterator,
) -> Result<bool, Box<SetupError>> {
    if !device_list::publish(cx.client, device, entries, exported)? {
        return match tries.next() {
            Some(_) => Ok(false),
            // As a failure of xenstore's: it is tried again after a pause, and no connection ends for it.
            None => Err(SetupError::Store("the list of devices changes all the time".into()).into()),
        };
    }
    for entry in entries {
        if let Change::Refused(error) = &entry.change {
            log::error!("guest {}: device {}: {error}", device.frontend(), entry.number);
        }
    }
    Ok(true)
}

/// True if the guest may be using a device in this state: exported, or on its way out.
fn may_be_used(state: XenbusState) -> bool {
    matches!(state, XenbusState::Initialised | XenbusState::Closing)
}
