//! Dom0's answer to the interrupts of a guest's device on a line that a driver of dom0's uses too.
//!
//! Both hear each interrupt. If dom0's drivers deny 99,900 of 100,000, its kernel takes the line for broken and turns it
//! off (`kernel/irq/spurious.c`). xen-pciback has a handler against that, which says that it was meant; it registers
//! it for a device whose frontend turns the device on. So dom0 becomes a frontend of its own for as long as it takes to
//! turn the device on; the handler then stays, whatever becomes of this process, until the nodes go. The other way, the
//! kernel's parameter `noirqdebug`, counts only for a line that nobody uses yet (`kernel/irq/manage.c`).

use crate::host::Host;
use crate::host::store::{Store, StoreError};
use crate::host::sysfs::Sysfs;
use crate::records;
use pci::bdf::Bdf;
use pci::registers::{command, register};
use serde::{Deserialize, Serialize};
use std::io;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use xen::xendev::{LocalPort, OfferedPage};
use xenbus::client::Store as _;
use xenbus::pciif::frontend::post;
use xenbus::pciif::{Command, MAGIC, OpError, Request};
use xenbus::state::XenbusState;

/// Limit for a step of xen-pciback's. The longest is the reset of a bus, which takes a second.
const TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Why dom0 does not answer, or cannot be stopped from it.
#[derive(Debug, Error)]
pub enum AckError {
    /// A request to xenstore failed.
    #[error("cannot use the nodes by which xen-pciback is asked")]
    Store(#[from] StoreError),
    /// A page or an event channel could not be had.
    #[error("cannot share a page with xen-pciback: is the module xen-gntalloc loaded?")]
    Page(#[source] io::Error),
    /// A sysfs file could not be read or written.
    #[error("cannot ask xen-pciback about {bdf} (its sysfs file {file})")]
    Sysfs {
        /// The device.
        bdf: Bdf,
        /// In the directory of the driver.
        file: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// xen-pciback did not do a step in time.
    #[error("xen-pciback does not answer about {bdf} ({what}): dom0's kernel log says why")]
    Silent {
        /// The device.
        bdf: Bdf,
        /// The step, in words.
        what: &'static str,
    },
    /// xen-pciback refused the request.
    #[error("xen-pciback refuses to turn {bdf} on: {error:?}")]
    Refused {
        /// The device.
        bdf: Bdf,
        /// xen-pciback's answer.
        error: OpError,
    },
    /// xen-pciback has no handler for the device.
    #[error(
        "dom0 has no handler for {bdf}: its line is not offered to a guest, or no driver of dom0's uses it"
    )]
    NotStarted {
        /// The device.
        bdf: Bdf,
    },
}

/// xen-pciback's handler for a device, as its sysfs file `irq_handlers` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The device.
    pub bdf: Bdf,
    /// True if it answers the kernel that interrupts were handled.
    pub acking: bool,
    /// Number of interrupts that it answered.
    pub handled: u64,
}

impl Handler {
    /// Reads one line: address, `on` or `off`, `acking` or `not acking`, number; the address holds colons.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.rsplitn(4, ':');
        let (handled, acking, on, bdf) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self {
            bdf: bdf.parse().ok()?,
            acking: on == "on" && acking == "acking",
            handled: handled.trim().parse().ok()?,
        })
    }
}

/// The handler for a device; `None` if xen-pciback does not hold it.
pub fn handler(bdf: Bdf, sysfs: &Sysfs) -> Option<Handler> {
    let text = sysfs.irq_handlers().ok()?;
    text.lines()
        .filter_map(Handler::parse)
        .find(|handler| handler.bdf == bdf)
}

/// A line that a guest's device has, as dom0 sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LineStatus {
    /// The GSI.
    pub gsi: u32,
    /// The drivers of dom0's that use it too.
    pub dom0: Vec<String>,
    /// Whether dom0 answers for the device.
    pub acking: bool,
    /// Number of the device's interrupts that dom0 answered.
    pub answered: u64,
    /// Number of the line's interrupts since dom0's kernel began to count, 100,000 at most.
    pub seen: u32,
    /// Number of those that no handler in dom0 wanted. At 99,901 the kernel turns the line off.
    pub unwanted: u32,
}

impl LineStatus {
    /// Reads the status from sysfs. `None` if nobody in dom0 uses the line, nor answers for the device.
    pub fn of(bdf: Bdf, gsi: u32, sysfs: &Sysfs) -> Option<Self> {
        let dom0 = sysfs.line_users(gsi);
        let handler = handler(bdf, sysfs);
        let acking = handler.is_some_and(|handler| handler.acking);
        let answered = handler.map_or(0, |handler| handler.handled);
        if dom0.is_empty() && !acking {
            return None;
        }
        let (seen, unwanted) = sysfs.unwanted_interrupts(gsi).unwrap_or_default();
        Some(Self {
            gsi,
            dom0,
            acking,
            answered,
            seen,
            unwanted,
        })
    }

    /// For people, of the device with this address.
    pub fn told(&self, bdf: &str) -> String {
        let Self {
            gsi,
            answered,
            seen,
            unwanted,
            ..
        } = self;
        let users = if self.dom0.is_empty() {
            "of nobody in dom0 any more".to_owned()
        } else {
            format!("also of dom0's {}", self.dom0.join(", "))
        };
        let counted = format!("{unwanted} unwanted of the last {seen}");
        if self.acking {
            format!(
                "{bdf}: its line (GSI {gsi}) is {users}; dom0 answers for it, {answered} times by now, {counted}"
            )
        } else {
            format!(
                "{bdf}: its line (GSI {gsi}) is {users}, and NOBODY in dom0 answers for it, {counted}: at 99,901 of \
                 100,000 dom0 loses the line; `bulkhead irq {bdf} on` has it answer"
            )
        }
    }
}

/// The directories of both ends in xenstore: of the backend, xen-pciback, and of our frontend.
struct AckNodes {
    backend: String,
    frontend: String,
}

impl AckNodes {
    fn of(bdf: Bdf) -> Self {
        // Each device has a connection of its own, and so a device number of its own.
        let number = u32::from(bdf.bus()) << 8 | u32::from(bdf.devfn());
        Self {
            backend: format!("/local/domain/0/backend/pci/0/{number}"),
            frontend: format!("{}/ack/{}", records::ROOT, records::node_name(bdf)),
        }
    }

    fn exists(&self, store: &mut Store) -> Result<bool, StoreError> {
        Ok(store
            // The frontend's end decides: it lies below the records, where only this program writes.
            .read_optional(&format!("{}/state", self.frontend))?
            .is_some())
    }

    fn remove(&self, store: &mut Store) -> Result<(), StoreError> {
        for directory in [&self.backend, &self.frontend] {
            match store.remove(directory) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Has dom0 answer for a device that xen-pciback holds. Does nothing if it does already.
pub fn start<X>(host: &mut Host<X>, bdf: Bdf) -> Result<(), AckError> {
    let nodes = AckNodes::of(bdf);
    // The connection and its handler outlive the process that made them.
    if nodes.exists(&mut host.store)? {
        return switch(&mut host.store, &host.sysfs, bdf, true);
    }
    let started = turn_on(host, bdf, &nodes);
    if started.is_err() {
        // The first failure is returned, not one of the clean-up.
        let _ = nodes.remove(&mut host.store);
    }
    started
}

fn turn_on<X>(host: &mut Host<X>, bdf: Bdf, nodes: &AckNodes) -> Result<(), AckError> {
    let page = OfferedPage::new().map_err(AckError::Page)?;
    let port = LocalPort::new().map_err(AckError::Page)?;
    let ours = [
        ("backend", nodes.backend.clone()),
        ("backend-id", "0".into()),
        ("pci-op-ref", page.reference().to_string()),
        ("event-channel", port.number().to_string()),
        ("magic", MAGIC.into()),
        ("state", XenbusState::Initialised.as_str().into()),
    ];
    let theirs = [
        ("frontend", nodes.frontend.clone()),
        ("frontend-id", "0".into()),
        ("online", "1".into()),
        ("num_devs", "1".into()),
        ("key-0", bdf.to_string()),
        ("dev-0", bdf.to_string()),
        ("state-0", "1".into()),
        ("state", XenbusState::Initialising.as_str().into()),
    ];
    // One transaction, because xen-pciback must not find a backend with half of its nodes.
    host.store.transaction(|store| {
        for (key, value) in &ours {
            store.write(&format!("{}/{key}", nodes.frontend), value)?;
        }
        for (key, value) in &theirs {
            store.write(&format!("{}/{key}", nodes.backend), value)?;
        }
        Ok(())
    })?;
    let silent = |what| AckError::Silent { bdf, what };
    let (own, connected) = (format!("{}/state", nodes.backend), XenbusState::Connected);
    wait_for(&mut host.store, |store| Ok(store.read_state(&own)? == connected))?
        .ok_or(silent("it does not connect"))?;
    host.store
        .write(&format!("{}/state", nodes.frontend), connected.as_str())?;

    // The one device on the virtual bus is in slot 0, with its own function number. Bus mastering stays as it is.
    let target = Bdf::from_devfn(0, 0, bdf.devfn() & 7);
    let access = |command, value| Request {
        offset: register::COMMAND.into(),
        size: 2,
        value,
        ..Request::new(command, target)
    };
    let now = ask(&page, &port, &access(Command::ConfRead, 0), bdf)?;
    // xen-pciback enables the device, and registers its handler, when a frontend turns decoding on.
    let on = now | u32::from(command::MEMORY | command::IO);
    ask(&page, &port, &access(Command::ConfWrite, on), bdf)?;
    wait_for(&mut host.store, |_| {
        Ok(handler(bdf, &host.sysfs).is_some_and(|handler| handler.acking))
    })?
    .ok_or(silent("it registers no handler"))
}

fn ask(page: &OfferedPage, port: &LocalPort, request: &Request, bdf: Bdf) -> Result<u32, AckError> {
    let silent = || AckError::Silent {
        bdf,
        what: "a request stays without an answer",
    };
    let mut posted = post(page, request, &[]).map_err(|_| silent())?;
    port.notify().map_err(AckError::Page)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match posted.poll(page) {
            Ok(Ok(answer)) => return Ok(answer.value),
            Ok(Err(error)) => return Err(AckError::Refused { bdf, error }),
            Err(_) if Instant::now() > deadline => return Err(silent()),
            Err(waiting) => posted = waiting,
        }
        thread::sleep(POLL);
    }
}

/// Waits until `is_so` returns true; `None` after [`TIMEOUT`].
fn wait_for(
    store: &mut Store,
    mut is_so: impl FnMut(&mut Store) -> Result<bool, StoreError>,
) -> Result<Option<()>, StoreError> {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so(store)? {
        if Instant::now() > deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
    Ok(Some(()))
}

/// Switches between answering and not, for a device for which dom0 has a handler.
pub fn switch(store: &mut Store, sysfs: &Sysfs, bdf: Bdf, acking: bool) -> Result<(), AckError> {
    match handler(bdf, sysfs) {
        Some(handler) if AckNodes::of(bdf).exists(store)? => {
            if handler.acking == acking {
                return Ok(());
            }
            // The file only toggles, so it must not be written where nothing is to change.
            let toggled = sysfs.toggle_irq_handler(bdf);
            toggled.map_err(|source| AckError::Sysfs {
                bdf,
                file: "irq_handler_state",
                source,
            })
        }
        _ => Err(AckError::NotStarted { bdf }),
    }
}

/// Ends dom0's answering for a device that leaves its guest; xen-pciback resets it. Does nothing if there is none.
pub fn stop<X>(host: &mut Host<X>, bdf: Bdf) -> Result<(), AckError> {
    let nodes = AckNodes::of(bdf);
    if !nodes.exists(&mut host.store)? {
        return Ok(());
    }
    // xen-pciback forgets a handler that is switched off, so it is switched on before the connection ends.
    switch(&mut host.store, &host.sysfs, bdf, true)?;
    host.store.transaction(|store| {
        // xen-pciback gives the device up, and so resets it, when the frontend is closed and `online` is 0.
        store.write(&format!("{}/online", nodes.backend), "0")?;
        store.write(&format!("{}/state", nodes.frontend), XenbusState::Closed.as_str())
    })?;
    let gone = wait_for(&mut host.store, |_| {
        Ok(handler(bdf, &host.sysfs).is_none_or(|handler| !handler.acking))
    })?;
    gone.ok_or(AckError::Silent {
        bdf,
        what: "it keeps its handler",
    })?;
    Ok(nodes.remove(&mut host.store)?)
}

/// Forgets that dom0 answered for a device that xen-pciback does not hold any more: its handler went with that.
pub fn forget(store: &mut Store, bdf: Bdf) -> Result<(), StoreError> {
    AckNodes::of(bdf).remove(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sysfs::tests::Tree;

    #[test]
    fn a_handler_is_read_as_xen_pciback_tells_it() {
        let bdf: Bdf = "00:05.0".parse().unwrap();
        for (line, acking, handled) in [
            ("0000:00:05.0:off:not acking:0", false, 0),
            ("0000:00:05.0:on:acking:99901", true, 99901),
            ("0000:00:05.0:off:acking:7", false, 7),
            ("0000:00:05.0:on:not acking:7", false, 7),
        ] {
            let expected = Handler { bdf, acking, handled };
            assert_eq!(Handler::parse(line), Some(expected), "{line}");
        }
        for line in ["", "0000:00:05.0", "0000:00:05.0:on:acking:x", "05:on:acking:1"] {
            assert_eq!(Handler::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_handler_is_that_of_the_device() {
        let tree = Tree::new();
        let pciback = tree.directory.path().join("bus/pci/drivers/pciback");
        std::fs::create_dir_all(&pciback).unwrap();
        let text = "0000:00:06.0:off:not acking:0\n0000:00:05.0:on:acking:3\n";
        std::fs::write(pciback.join("irq_handlers"), text).unwrap();
        let found = handler("00:05.0".parse().unwrap(), &tree.sysfs()).unwrap();
        assert_eq!((found.acking, found.handled), (true, 3));
        assert_eq!(handler("00:07.0".parse().unwrap(), &tree.sysfs()), None);
    }

    #[test]
    fn a_line_that_dom0_uses_too_is_told_with_who_answers() {
        let tree = Tree::new();
        let bdf = "00:05.0".parse().unwrap();
        assert_eq!(LineStatus::of(bdf, 22, &tree.sysfs()), None);
        let line = tree.directory.path().join("kernel/irq/22");
        std::fs::create_dir_all(&line).unwrap();
        std::fs::write(line.join("actions"), "eth0\n").unwrap();
        let silent = LineStatus::of(bdf, 22, &tree.sysfs()).unwrap();
        let text = silent.told("0000:00:05.0");
        assert!(
            text.contains("(GSI 22) is also of dom0's eth0, and NOBODY in dom0 answers"),
            "{text}"
        );
        assert!(
            text.ends_with("`bulkhead irq 0000:00:05.0 on` has it answer"),
            "{text}"
        );
        let acking = LineStatus {
            acking: true,
            answered: 7,
            seen: 9,
            unwanted: 1,
            ..silent
        };
        let text = acking.told("0000:00:05.0");
        assert!(
            text.ends_with("dom0 answers for it, 7 times by now, 1 unwanted of the last 9"),
            "{text}"
        );
    }
}
