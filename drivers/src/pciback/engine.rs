//! Answers a guest's requests: one in, one out.

use super::config::{Access, Effect, VirtualConfig};
use super::hardware::{Dom0, Reach};
use super::messages::Messages;
use super::resources::Resources;
use super::slots::{NoPlace, Slots};
use crate::error::{Blame, MessageKind, RequestError, SetupError};
use crate::limiter::{Limit, Limiter};
use crate::platform::ConfigSpace;
use alloc::vec::Vec;
use core::time::Duration;
use xenbus::bdf::Bdf;
use xenbus::counters::{Counter, Counters};
use xenbus::pciif::{Command, MsixEntry, Request, TooManyVectors};

/// Most functions that a guest can have: a bus full.
pub const MAX_FUNCTIONS: usize = 256;

/// How much a guest can make us log of each [`Line`].
const LOG_LIMIT: Limit = Limit {
    lines: 8,
    interval: Duration::from_secs(30),
};

/// The kinds of lines that a guest can cause, each limited on its own.
#[derive(Clone, Copy)]
enum Line {
    /// A refusal, by whom it blames.
    Refusal(Blame),
    /// MSI or MSI-X turned on or off.
    Messages,
}

impl Line {
    const KINDS: usize = 5;

    const fn index(self) -> usize {
        match self {
            Self::Refusal(Blame::Guest) => 0,
            Self::Refusal(Blame::Device) => 1,
            Self::Refusal(Blame::Toolstack) => 2,
            Self::Refusal(Blame::Us) => 3,
            Self::Messages => 4,
        }
    }
}

/// What [`Line::index`] stands for in the line about suppressed ones.
const LINE_NAMES: [&str; Line::KINDS] = [
    "refusals that blame the guest",
    "refusals that blame a device",
    "refusals that blame dom0",
    "refusals that blame the stub",
    "changes of MSI and MSI-X",
];

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done; the value read, the pirq, or 0.
    Value(u32),
    /// A pirq for each MSI-X entry of the request.
    Vectors(Vec<u16>),
}

/// A function that is exported to the guest.
#[derive(Debug)]
struct Function<E> {
    config: VirtualConfig,
    messages: Messages,
    ecam: E,
    /// Where it stands on the guest's bus.
    place: Bdf,
}

/// The functions of one guest, and what is counted about them.
#[derive(Debug)]
pub struct Engine<E> {
    functions: Vec<Function<E>>,
    slots: Slots,
    counters: Counters,
    limiter: Limiter<{ Line::KINDS }>,
}

impl<E> Default for Engine<E> {
    fn default() -> Self {
        Self {
            functions: Vec::new(),
            slots: Slots::default(),
            counters: Counters::default(),
            limiter: Limiter::new(LOG_LIMIT),
        }
    }
}

impl<E: ConfigSpace> Engine<E> {
    /// Exports a function; returns its address on the guest's bus.
    ///
    /// # Errors
    /// What [`VirtualConfig::new`] says of the device, or that the bus has no place; with the config space,
    /// which the caller may want to unmap.
    pub fn add(&mut self, resources: Resources, ecam: E) -> Result<Bdf, (SetupError, E)> {
        let bdf = resources.bdf;
        let config = match VirtualConfig::new(resources, &ecam) {
            Ok(config) => config,
            Err(error) => return Err((error, ecam)),
        };
        let placed = u8::try_from(self.functions.len())
            .map_err(|_| NoPlace::Full)
            .and_then(|index| self.slots.add(bdf, index));
        let place = match placed {
            Ok(place) => place,
            Err(NoPlace::Full) => return Err((SetupError::BusFull(bdf), ecam)),
            Err(NoPlace::Taken) => return Err((SetupError::Duplicate(bdf), ecam)),
        };
        self.functions.push(Function {
            messages: Messages::new(&config, &ecam),
            config,
            ecam,
            place,
        });
        Ok(place)
    }

    /// Takes all functions away from the guest; returns their config spaces, to be unmapped.
    pub fn clear(&mut self) -> impl Iterator<Item = E> {
        self.slots = Slots::default();
        core::mem::take(&mut self.functions)
            .into_iter()
            .map(|function| function.ecam)
    }

    /// Turns off MSI and MSI-X wherever they are on. What cannot be turned off is logged.
    pub fn quiesce(&mut self, dom0: &mut impl Dom0) {
        for function in &mut self.functions {
            let bdf = function.config.resources().bdf;
            let mut hardware = Reach {
                ecam: &function.ecam,
                bdf,
                dom0,
            };
            match function.messages.disable(&mut hardware) {
                Ok(None) => {}
                Ok(Some(kind)) => {
                    self.counters.add(disabled(kind));
                    log::info!("{bdf}: {kind} turned off");
                }
                Err(error) => log::warn!("{bdf}: its interrupts may still be on: {error}"),
            }
        }
    }

    /// Answers a request. `entries` are those of `enable_msix`.
    ///
    /// # Errors
    /// [`RequestError`], which says what to tell the guest.
    pub fn serve(
        &mut self,
        request: &Request,
        entries: Result<&[MsixEntry], TooManyVectors>,
        dom0: &mut impl Dom0,
        now: Duration,
    ) -> Result<Reply, RequestError> {
        let found = self.slots.find(request.domain, request.bus, request.devfn);
        let Some(function) = found.and_then(|index| self.functions.get_mut(index)) else {
            // Not logged, and nobody's fault: a scan asks for every address.
            self.counters.add(Counter::Refused);
            return Err(RequestError::NoDevice);
        };
        let bdf = function.config.resources().bdf;
        let mut hardware = Reach {
            ecam: &function.ecam,
            bdf,
            dom0,
        };
        let counters = &mut self.counters;
        let limiter = &mut self.limiter;
        let mut note = |counter, text: core::fmt::Arguments<'_>| {
            counters.add(counter);
            if limiter.admit(Line::Messages.index(), now) {
                log::info!("{bdf}: {text}");
            }
        };
        let result = match request.command {
            Command::ConfRead => Access::new(request.offset, request.size).map(|access| {
                counters.add(Counter::Reads);
                Reply::Value(function.config.read(&function.ecam, access))
            }),
            Command::ConfWrite => Access::new(request.offset, request.size).and_then(|access| {
                let devfn = function.place.devfn();
                let mut first_dropped = None;
                let dropped = |offset| {
                    if counters.add_dropped_write(devfn, offset) {
                        first_dropped = first_dropped.or(Some(offset));
                    }
                };
                let effect = function
                    .config
                    .write(&mut hardware, access, request.value, dropped);
                if let Some(offset) = first_dropped {
                    // At most once for each register in the table of counters.
                    let name = function.config.name_of(offset).unwrap_or("no named register");
                    log::info!("{bdf}: writes at {offset:#05x} ({name}) are dropped");
                }
                match effect? {
                    // Counted above, by register.
                    Effect::Dropped => {}
                    Effect::Absorbed => counters.add(Counter::WritesAbsorbed),
                    Effect::Forwarded => counters.add(Counter::WritesForwarded),
                }
                Ok(Reply::Value(0))
            }),
            Command::EnableMsi => function.messages.enable_msi(&mut hardware).map(|pirq| {
                note(Counter::MsiEnabled, format_args!("MSI turned on, pirq {pirq}"));
                Reply::Value(pirq)
            }),
            Command::EnableMsix => {
                let vectors = function.messages.enable_msix(&mut hardware, entries);
                vectors.map(|pirqs| {
                    note(
                        Counter::MsixEnabled,
                        format_args!("MSI-X turned on, {} vectors, pirqs {pirqs:?}", pirqs.len()),
                    );
                    Reply::Vectors(pirqs)
                })
            }
            Command::DisableMsi | Command::DisableMsix => {
                function.messages.disable(&mut hardware).map(|kind| {
                    if let Some(kind) = kind {
                        note(disabled(kind), format_args!("{kind} turned off"));
                    }
                    let resources = function.config.resources();
                    Reply::Value(if resources.intx { resources.irq } else { 0 })
                })
            }
            Command::Other(command) => Err(RequestError::UnknownCommand(command)),
        };
        if let Err(error) = result {
            self.refused(bdf, request, error, now);
        }
        result
    }

    /// What is counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts something that happens around a request.
    pub fn count(&mut self, counter: Counter) {
        self.counters.add(counter);
    }

    /// Tells of suppressed log lines that are due; returns when the next ones will be.
    pub fn settle_log(&mut self, now: Duration) -> Option<Duration> {
        self.limiter.settle(now, |kind, count| {
            let name = LINE_NAMES.get(kind).copied().unwrap_or_default();
            log::warn!("{count} more {name} were not logged one by one");
        });
        self.limiter.due()
    }

    /// When [`Self::settle_log`] has something to tell; `None` if nothing was suppressed.
    pub fn log_due(&self) -> Option<Duration> {
        self.limiter.due()
    }

    fn refused(&mut self, bdf: Bdf, request: &Request, error: RequestError, now: Duration) {
        let blame = error.blame();
        self.counters.add(Counter::Refused);
        self.counters.add(match blame {
            Blame::Guest => Counter::BlamedGuest,
            Blame::Device => Counter::BlamedDevice,
            Blame::Toolstack => Counter::BlamedToolstack,
            Blame::Us => Counter::BlamedSelf,
        });
        if self.limiter.admit(Line::Refusal(blame).index(), now) {
            log::warn!("{bdf}: {} refused ({blame}): {error}", request.command);
        }
    }
}

const fn disabled(kind: MessageKind) -> Counter {
    match kind {
        MessageKind::Msi => Counter::MsiDisabled,
        MessageKind::Msix => Counter::MsixDisabled,
    }
}
