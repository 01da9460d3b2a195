//! Answers a guest's requests, one at a time.
//!
//! The engine finds the function that a request names, has [`config`](super::config) or [`msi`](super::msi) judge it,
//! counts the result, and logs it within limits.

use super::config::{Access, Effect, VirtualConfig};
use super::dom0::Dom0;
use super::msi::{Mode, MsiState};
use super::resources::Resources;
use super::slots::{SlotError, Slots};
use crate::error::{Blame, MessageKind, RequestError, SetupError};
use crate::limiter::{Limit, Limiter};
use crate::log;
use crate::platform::ConfigSpace;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use pci::bdf::Bdf;
use xenbus::counters::{Class, Counter, Counters};
use xenbus::device::SlotMode;
use xenbus::pciif::{Command, MsixEntry, Request, TooManyVectors};

/// Most functions that a guest can have: 32 slots of 8 functions, one bus.
pub const MAX_FUNCTIONS: usize = 256;

/// The highest bit of a function's shadow in the handover block, beside those of [`VirtualConfig::shadow`]: MSI or MSI-X is
/// on, and the guest has the pirqs. Without it nobody has them, and what is on in the device is of no use to the guest.
const HAS_PIRQS: u32 = 1 << 23;

/// The limit on log lines of each [`LogKind`]: a guest must not be able to fill a disk (XSA-130).
const LOG_LIMIT: Limit = Limit {
    lines: 8,
    interval: Duration::from_secs(30),
};

/// The kinds of lines that a guest can cause, each limited on its own.
#[derive(Clone, Copy)]
enum LogKind {
    /// A refusal, by whom it blames.
    Refusal(Blame),
    /// MSI or MSI-X turned on or off.
    MsiMode,
}

impl LogKind {
    /// Number of kinds.
    const KINDS: usize = 5;

    const fn index(self) -> usize {
        match self {
            Self::Refusal(Blame::Guest) => 0,
            Self::Refusal(Blame::Device) => 1,
            Self::Refusal(Blame::Toolstack) => 2,
            Self::Refusal(Blame::Us) => 3,
            Self::MsiMode => 4,
        }
    }
}

/// The names of the kinds, by [`LogKind::index`], for the line about suppressed lines.
const LOG_KIND_NAMES: [&str; LogKind::KINDS] = [
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

/// What a request achieved.
enum Done {
    /// The value.
    Read(u32),
    /// What became of the write.
    Written(Effect),
    /// The pirq.
    MsiOn(u32),
    /// The pirqs.
    MsixOn(Vec<u16>),
    /// What was on, and the pirq of the INTx line (0: none) that the guest is back to.
    Off {
        kind: Option<MessageKind>,
        intx_pirq: u32,
    },
}

impl Done {
    fn into_reply(self) -> Reply {
        match self {
            Self::Read(value) | Self::MsiOn(value) | Self::Off { intx_pirq: value, .. } => {
                Reply::Value(value)
            }
            Self::Written(_) => Reply::Value(0),
            Self::MsixOn(pirqs) => Reply::Vectors(pirqs),
        }
    }
}

/// A function that is exported to the guest.
#[derive(Debug)]
struct Function<E> {
    config: VirtualConfig,
    msi: MsiState,
    ecam: E,
    /// Its address in the guest.
    guest_bdf: Bdf,
}

/// The functions of one guest, and what is counted about them.
#[derive(Debug)]
pub struct Engine<E> {
    /// By the index that `slots` knows. A removed function leaves a gap, so that the indices of the others stay.
    functions: Vec<Option<Function<E>>>,
    slots: Slots,
    counters: Counters,
    limiter: Limiter<{ LogKind::KINDS }>,
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
    /// Starts a new connection with this slot mode. The caller removes all functions of the last one.
    pub fn begin(&mut self, mode: SlotMode) {
        self.slots = Slots::new(mode);
    }

    /// How functions are addressed.
    pub const fn slot_mode(&self) -> SlotMode {
        self.slots.mode()
    }

    /// Exports a function at guest address `previous`, or as a new one at the first free address; returns that address.
    ///
    /// # Errors
    /// What [`VirtualConfig::new`] says of the device, or that it cannot have an address on the bus; with the config
    /// space, for the caller to unmap.
    pub fn add(
        &mut self,
        resources: Resources,
        ecam: E,
        previous: Option<Bdf>,
    ) -> Result<Bdf, (Box<SetupError>, E)> {
        let bdf = resources.bdf;
        let virtual_function = resources.virtual_function;
        let config = match VirtualConfig::new(resources, &ecam) {
            Ok(config) => config,
            Err(error) => return Err((error, ecam)),
        };
        // The virtual bus has no bus behind it: Linux lets no device beside a bridge have memory in the bridge's window
        // (decision 22).
        if config.is_bridge() && self.slots.mode() == SlotMode::Vpci {
            return Err((SetupError::VirtualBridge(bdf).into(), ecam));
        }
        // All that can fail comes before the first change.
        let gap = self.functions.iter().position(Option::is_none);
        let index = gap.unwrap_or(self.functions.len());
        let added = u8::try_from(index)
            .map_err(|_| SlotError::Full)
            .and_then(|index| match previous {
                Some(guest_bdf) => self.slots.restore(bdf, virtual_function, guest_bdf, index),
                None => self.slots.add(bdf, virtual_function, index),
            });
        let guest_bdf = match added {
            Ok(guest_bdf) => guest_bdf,
            Err(error) => {
                let error = match error {
                    SlotError::Full => SetupError::BusFull(bdf),
                    SlotError::Taken => SetupError::Duplicate(bdf),
                    SlotError::Misplaced => SetupError::Misplaced(bdf),
                };
                return Err((error.into(), ecam));
            }
        };
        let function = Function {
            msi: MsiState::new(&config, &ecam),
            config,
            ecam,
            guest_bdf,
        };
        if gap.is_none() {
            self.functions.push(None);
        }
        if let Some(gap) = self.functions.get_mut(index) {
            *gap = Some(function);
        }
        Ok(guest_bdf)
    }

    /// Turns a function's MSI or MSI-X off and exports it no more; returns its config space, to be unmapped. `None` if it
    /// was not exported.
    pub fn remove(&mut self, bdf: Bdf, dom0: &mut impl Dom0) -> Option<E> {
        // First, while its state is still known.
        self.quiesce_function(bdf, dom0);
        let exported = self.functions.iter_mut().find(|function| is_at(function, bdf))?;
        let Function { guest_bdf, ecam, .. } = exported.take()?;
        self.slots.remove(guest_bdf);
        // The next function may get this address. Its dropped writes are counted and named anew.
        self.counters.forget_function(guest_bdf);
        Some(ecam)
    }

    /// Exports no function any more, and leaves all devices as they are; returns their config spaces, to be unmapped.
    pub fn clear(&mut self) -> impl Iterator<Item = E> {
        self.begin(self.slots.mode());
        core::mem::take(&mut self.functions)
            .into_iter()
            .flatten()
            .map(|function| function.ecam)
    }

    /// True if the guest has a bridge behind which the bus of this address lies.
    pub fn is_behind_bridge(&self, guest_bdf: Bdf) -> bool {
        let mut functions = self.functions.iter().flatten();
        functions.any(|function| function.config.leads_to(&function.ecam, guest_bdf))
    }

    /// True if the function at this real address is exported.
    pub fn exports(&self, bdf: Bdf) -> bool {
        self.functions.iter().any(|function| is_at(function, bdf))
    }

    /// The real addresses of the functions that are exported.
    pub fn devices(&self) -> impl Iterator<Item = Bdf> {
        self.functions
            .iter()
            .flatten()
            .map(|function| function.config.resources().bdf)
    }

    /// The guest address of the function at this real address.
    pub fn guest_bdf(&self, bdf: Bdf) -> Option<Bdf> {
        let mut exported = self.functions.iter().filter(|function| is_at(function, bdf));
        Some(exported.next()?.as_ref()?.guest_bdf)
    }

    /// Turns off MSI and MSI-X of all functions. A function that refuses is logged, and the others go on.
    pub fn quiesce(&mut self, dom0: &mut impl Dom0) {
        for function in self.functions.iter_mut().flatten() {
            function.quiesce(dom0, &mut self.counters);
        }
    }

    /// The same for one function.
    pub fn quiesce_function(&mut self, bdf: Bdf, dom0: &mut impl Dom0) {
        let mut functions = self.functions.iter_mut().filter(|function| is_at(function, bdf));
        if let Some(function) = functions.next().and_then(Option::as_mut) {
            function.quiesce(dom0, &mut self.counters);
        }
    }

    /// What must outlive a restart about the function of a request: its guest address, [`VirtualConfig::shadow`], and
    /// [`HAS_PIRQS`].
    pub fn shadow(&self, request: &Request) -> Option<(Bdf, u32)> {
        let index = self.slots.find(request.function())?;
        Some(self.functions.get(index)?.as_ref()?.shadow())
    }

    /// The same for all functions.
    pub fn shadows(&self) -> impl Iterator<Item = (Bdf, u32)> {
        self.functions.iter().flatten().map(Function::shadow)
    }

    /// Restores what an earlier run has kept about the function at `guest_bdf`, if it has kept something.
    pub fn set_shadow(&mut self, guest_bdf: Bdf, shadow: Option<u32>) {
        if let Some(function) = self.function(Some(guest_bdf)) {
            if let Some(shadow) = shadow {
                function.config.set_shadow(shadow);
            }
            if shadow.unwrap_or(0) & HAS_PIRQS == 0 {
                function.msi.mark_unknown(None);
            }
        }
    }

    /// Takes note that the guest may not know, or not use any more, the pirqs that this request is about. An earlier run has
    /// failed over the request, or its answer comes too late, or it turns off.
    pub fn mark_unknown(&mut self, request: &Request) {
        let kind = match request.command {
            Command::EnableMsi => Some(MessageKind::Msi),
            Command::EnableMsix => Some(MessageKind::Msix),
            Command::DisableMsi | Command::DisableMsix => None,
            // These can be carried out twice, and turn nothing on or off.
            _ => return,
        };
        if let Some(function) = self.function(request.function()) {
            function.msi.mark_unknown(kind);
        }
    }

    /// Answers a request that has brought the stub down before.
    ///
    /// # Errors
    /// Always [`RequestError::Poisonous`].
    pub fn refuse(&mut self, request: &Request, now: Duration) -> Result<Reply, RequestError> {
        const ERROR: RequestError = RequestError::Poisonous;
        match self.function(request.function()) {
            Some(function) => {
                let bdf = function.config.resources().bdf;
                self.record_refusal(bdf, request, ERROR, now);
            }
            // Without a line of log, as every request for an address without a device.
            None => self.counters.add(Counter::Refused),
        }
        Err(ERROR)
    }

    fn function(&mut self, guest_bdf: Option<Bdf>) -> Option<&mut Function<E>> {
        let index = self.slots.find(guest_bdf)?;
        self.functions.get_mut(index)?.as_mut()
    }

    /// Answers a request. `entries` are those of `enable_msix`; for other commands they are not looked at.
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
        let found = self.slots.find(request.function());
        let Some(function) = found.and_then(|index| self.functions.get_mut(index)?.as_mut()) else {
            // Not logged, and nobody's fault: a scan asks for every address.
            self.counters.add(Counter::Refused);
            return Err(RequestError::NoDevice);
        };
        let bdf = function.config.resources().bdf;
        let done = function.serve(request, entries, dom0, &mut self.counters);
        match &done {
            Ok(done) => self.record(bdf, done, now),
            Err(error) => self.record_refusal(bdf, request, *error, now),
        }
        done.map(Done::into_reply)
    }

    /// What is counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The same, to be published or to be set by what is counted elsewhere.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Counts something that happens around a request.
    pub fn count(&mut self, counter: Counter) {
        self.counters.add(counter);
    }

    /// Counts how long a request took, from when it was taken until the guest had its answer.
    pub fn count_time(&mut self, class: Class, time: Duration) {
        self.counters.add_latency(class, time);
    }

    /// Logs how many lines were suppressed, for each kind that is due; returns when the next kind is due.
    pub fn flush_log(&mut self, now: Duration) -> Option<Duration> {
        self.limiter.flush(now, |kind, count| {
            let name = LOG_KIND_NAMES.get(kind).copied().unwrap_or_default();
            // At the level of the lines that were suppressed.
            let level = if kind == LogKind::MsiMode.index() {
                log::Level::Info
            } else {
                log::Level::Warn
            };
            log::write(
                level,
                format_args!("{count} more {name} were not logged one by one"),
            );
        });
        self.limiter.due()
    }

    /// When [`Self::flush_log`] has something to tell; `None` if nothing was suppressed.
    pub fn log_due(&self) -> Option<Duration> {
        self.limiter.due()
    }

    /// Counts what was done, and logs what deserves a line.
    fn record(&mut self, bdf: Bdf, done: &Done, now: Duration) {
        match done {
            Done::Read(_) => self.counters.add(Counter::Reads),
            Done::Written(Effect::Forwarded) => self.counters.add(Counter::WritesForwarded),
            Done::Written(Effect::Absorbed) => self.counters.add(Counter::WritesAbsorbed),
            // Counted already, by register; or nothing was on.
            Done::Written(Effect::Dropped) | Done::Off { kind: None, .. } => {}
            Done::MsiOn(pirq) => {
                self.record_msi(
                    Counter::MsiEnabled,
                    now,
                    format_args!("{bdf}: MSI turned on, pirq {pirq}"),
                );
            }
            Done::MsixOn(pirqs) => {
                let count = pirqs.len();
                self.record_msi(
                    Counter::MsixEnabled,
                    now,
                    format_args!("{bdf}: MSI-X turned on, {count} vectors"),
                );
            }
            Done::Off { kind: Some(kind), .. } => {
                self.record_msi(disabled(*kind), now, format_args!("{bdf}: {kind} turned off"));
            }
        }
    }

    fn record_msi(&mut self, counter: Counter, now: Duration, line: fmt::Arguments<'_>) {
        self.counters.add(counter);
        if self.limiter.admit(LogKind::MsiMode.index(), now) {
            log::info!("{line}");
        }
    }

    fn record_refusal(&mut self, bdf: Bdf, request: &Request, error: RequestError, now: Duration) {
        self.counters.add(Counter::Refused);
        // Every stock guest is refused so at every probe: a line of its own would say nothing.
        if error.is_routine() {
            log::debug!("{bdf}: {} refused: {error}", request.command);
            return;
        }
        let blame = error.blame();
        self.counters.add(match blame {
            Blame::Guest => Counter::BlamedGuest,
            Blame::Device => Counter::BlamedDevice,
            Blame::Toolstack => Counter::BlamedToolstack,
            Blame::Us => Counter::BlamedSelf,
        });
        if self.limiter.admit(LogKind::Refusal(blame).index(), now) {
            log::warn!("{bdf}: {} refused ({blame}): {error}", request.command);
        }
    }
}

impl<E: ConfigSpace> Function<E> {
    fn shadow(&self) -> (Bdf, u32) {
        let has_pirqs = match self.msi.mode() {
            Mode::On(_) => HAS_PIRQS,
            _ => 0,
        };
        (self.guest_bdf, self.config.shadow() | has_pirqs)
    }

    fn quiesce(&mut self, dom0: &mut impl Dom0, counters: &mut Counters) {
        let bdf = self.config.resources().bdf;
        match self.msi.disable(dom0) {
            Ok(None) => {}
            Ok(Some(kind)) => {
                counters.add(disabled(kind));
                log::info!("{bdf}: {kind} turned off");
            }
            // Not given up for that: dom0 resets the device before anyone else gets it.
            Err(error) => log::warn!("{bdf}: its interrupts may still be on: {error}"),
        }
    }

    // Inlined, it makes the image 64 bytes longer.
    #[inline(never)]
    fn serve(
        &mut self,
        request: &Request,
        entries: Result<&[MsixEntry], TooManyVectors>,
        dom0: &mut impl Dom0,
        counters: &mut Counters,
    ) -> Result<Done, RequestError> {
        let resources = self.config.resources();
        // xen-pciback answers a disable request with the pirq of the INTx line, which the guest is back to.
        let intx_pirq = if resources.intx { resources.irq } else { 0 };
        match request.command {
            Command::ConfRead => {
                let access = Access::new(request.offset, request.size)?;
                Ok(Done::Read(self.config.read(&self.ecam, access)))
            }
            Command::ConfWrite => {
                let access = Access::new(request.offset, request.size)?;
                self.write(access, request.value, dom0, counters)
                    .map(Done::Written)
            }
            Command::EnableMsi => self.msi.enable_msi(&self.ecam, dom0).map(Done::MsiOn),
            Command::EnableMsix => self.msi.enable_msix(&self.ecam, dom0, entries).map(Done::MsixOn),
            Command::DisableMsi | Command::DisableMsix => {
                let kind = self.msi.disable(dom0)?;
                Ok(Done::Off { kind, intx_pirq })
            }
            Command::Other(command) => Err(RequestError::UnknownCommand(command)),
        }
    }

    fn write(
        &mut self,
        access: Access,
        value: u32,
        dom0: &mut impl Dom0,
        counters: &mut Counters,
    ) -> Result<Effect, RequestError> {
        let bdf = self.config.resources().bdf;
        // True only once for each register that has a counter of its own: so few lines need no limit.
        let mut first = None;
        let dropped = |offset| {
            if counters.add_dropped_write(self.guest_bdf, offset) {
                first = first.or(Some(offset));
            }
        };
        let effect = self.config.write(&self.ecam, dom0, access, value, dropped);
        if let Some(offset) = first {
            let name = self.config.name_of(offset).unwrap_or("no register of the policy");
            log::info!("{bdf}: writes to {offset:#05x} ({name}) are dropped");
        }
        effect
    }
}

fn is_at<E>(function: &Option<Function<E>>, bdf: Bdf) -> bool {
    function
        .as_ref()
        .is_some_and(|function| function.config.resources().bdf == bdf)
}

const fn disabled(kind: MessageKind) -> Counter {
    match kind {
        MessageKind::Msi => Counter::MsiDisabled,
        MessageKind::Msix => Counter::MsixDisabled,
    }
}
