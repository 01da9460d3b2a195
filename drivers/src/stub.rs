//! The stub's loop: the guest's requests, both hops, errors of devices, xenstore, and `xl shutdown`.
//!
//! The guest's requests come first. xenstore is followed within limits, so that no guest can keep xenstored, or its own
//! requests, from being served by writing its nodes.

use crate::background::{Background, View};
use crate::crash_log::{Advice, Bytes, CrashLog};
use crate::error::{Excerpt, SetupError};
use crate::hops::first::{Context, FRONTEND_TOKEN, FirstHop};
use crate::hops::second::SecondHop;
use crate::inject::{self, Point};
use crate::log;
use crate::platform::{DomId, Platform, Port, sooner};
use crate::store;
use alloc::boxed::Box;
use core::fmt;
use core::time::Duration;
use xenbus::client::{Client, Store, Transport, WatchEvent};
use xenbus::counters::Counter;
use xenbus::path::{Device, DeviceType, home, key};

/// Tokens of the watches.
const SECOND_HOP_TOKEN: &str = "second-hop";
const FIRST_HOP_TOKEN: &str = "first-hop";
const SHUTDOWN_TOKEN: &str = "shutdown";

/// Where `xl` asks for a shutdown, relative to the home of the domain.
const SHUTDOWN: &str = "control/shutdown";
/// The nodes by which `xl` learns that the stub obeys `control/shutdown`.
const FEATURES: [&str; 2] = ["control/feature-poweroff", "control/feature-reboot"];

/// How often in one step the hops are reconciled, which can itself bring new events. Bounded, so that a guest whose state
/// changes all the time cannot keep its own requests from being served.
const ROUNDS: usize = 4;
/// Watch events that are taken before the guest's next request is served.
const EVENTS_MAX: usize = 64;
/// How often the hops are reconciled without a pause, as in a hotplug of many devices.
const RECONCILE_BURST: u32 = 64;
/// After that burst, once in this time: a guest may write its nodes without end, and xenstored serves all domains.
const RECONCILE_PAUSE: Duration = Duration::from_millis(10);
/// A change by the guest counts as so many more: reconciling it takes many requests to xenstore.
const CHANGE_COST: u32 = 8;

/// The first pause before a refused request to xenstore is made again; each next one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often a request is made without which the stub cannot start.
const START_TRIES: u32 = 12;

/// How long the stub waits for the guest's next request without going to sleep. Requests come in bursts, as a driver
/// probes its device or a bus is scanned. Measured on two emulated processors: a read takes half the time.
const SPIN_TIME: Duration = Duration::from_micros(400);

/// Why the stub ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `xl shutdown`.
    Poweroff,
    /// `xl reboot`.
    Reboot,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        })
    }
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for an event on [`Stub::ports`], but not longer than `until`.
    Wait {
        /// Time since boot; `None`: without a limit.
        until: Option<Duration>,
    },
    /// End the domain.
    Shutdown(Reason),
}

/// What has changed in xenstore and is not handled yet.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    hops: bool,
    /// The guest's state node, or a node below it.
    frontend: bool,
    shutdown: bool,
}

/// A pause that doubles.
#[derive(Clone, Copy, Debug)]
struct Backoff {
    next: Duration,
    pause: Duration,
}

impl Backoff {
    /// The pause after a failure `now`, and after those before.
    fn after(before: Option<Self>, now: Duration) -> Self {
        let pause = before.map_or(RETRY_PAUSE, |before| (before.pause * 2).min(RETRY_PAUSE_MAX));
        Self {
            next: now.saturating_add(pause),
            pause,
        }
    }
}

/// Makes a request again while xenstore refuses it, [`START_TRIES`] times in all. Without its watches the stub can
/// serve nobody, and its quota may be free again soon.
fn retry_refused<P: Platform>(
    platform: &mut P,
    request: &mut dyn FnMut() -> Result<(), Box<SetupError>>,
) -> Result<(), Box<SetupError>> {
    let mut backoff = None;
    for _ in 1..START_TRIES {
        match request() {
            // A quota may be used up, or xenstored busy. A missing node or a lost connection does not pass.
            Err(error) if matches!(*error, SetupError::Store(_)) => log::warn!("{error}; trying again"),
            result => return result,
        }
        let until = Backoff::after(backoff, platform.now());
        platform.wait(&[], Some(until.next));
        backoff = Some(until);
    }
    request()
}

/// Requests of [`start_request`].
const START_REQUESTS: usize = FIRST_WATCH + if cfg!(feature = "inject") { 5 } else { 4 };
/// The first one that sets a watch.
const FIRST_WATCH: usize = 4;

/// Makes one of the requests that come before the first read of what the hops follow, so that no change falls in between.
/// They are: the end of what an earlier run has left, the number of this domain, the features, and the watches.
fn start_request<T: Transport>(
    client: &mut Client<T>,
    domid: &mut DomId,
    number: usize,
) -> Result<(), Box<SetupError>> {
    let home = |node| [&home(*domid), "/", node].concat();
    let (path, token) = match number {
        0 => return client.reset().map_err(store::failed),
        1 => {
            *domid = store::domid(client, "domid", "the number of this domain")?;
            return Ok(());
        }
        2 | 3 => {
            // Older toolstacks make these nodes read-only or not at all; `xl` works without them.
            if let Err(error) = client.write(FEATURES[number - 2], "1") {
                log::debug!("{error}");
            }
            return Ok(());
        }
        4 => (DeviceType::Bulkhead.frontends(*domid), SECOND_HOP_TOKEN),
        5 => (
            Device::second_hop(*domid).backend_node(key::STATE),
            SECOND_HOP_TOKEN,
        ),
        6 => (DeviceType::Pci.backends(*domid), FIRST_HOP_TOKEN),
        // Under a token that has the hops reconciled, for there the order is taken.
        #[cfg(feature = "inject")]
        7 => (home(inject::NODE), SECOND_HOP_TOKEN),
        _ => (home(SHUTDOWN), SHUTDOWN_TOKEN),
    };
    client.watch(&path, token).map_err(store::failed)
}

/// Logs how the last run ended, if there was one.
fn log_restart(crash_log: &CrashLog, now: Duration) {
    let Some((cause, _)) = crash_log.last() else {
        return;
    };
    log::warn!("restart {} after {cause}", crash_log.restarts());
    if let Some(op) = crash_log.over() {
        let fate = match crash_log.advise(op, now) {
            Advice::Refuse => "again: it is refused from now on",
            Advice::Serve | Advice::ServeAgain => "it is served once more",
        };
        log::warn!("a request was under way, {fate}; its bytes: {}", Bytes(op));
    }
}

/// The stub, from its first request to xenstore to its end; `B` is what it does between two requests.
pub struct Stub<P: Platform, T: Transport, B: Background<P, T> = ()> {
    platform: P,
    client: Client<T>,
    second: SecondHop<P::Page>,
    first: FirstHop<P>,
    background: B,
    /// The port of xenstore, then those of the hops that are up.
    ports: [Port; 3],
    /// How many of them are up.
    ports_up: usize,
    /// xenstore is lost: no change is seen any more, but the guest is served.
    blind: bool,
    /// The last step answered a request of the guest.
    served: bool,
    /// The next [`start_request`] of a run that has served the guest before the first one.
    to_start: usize,
    changed: Changed,
    /// When to try again what xenstore has refused. Nothing is reconciled before.
    retry: Option<Backoff>,
    /// When the next reconciliation would be due if each had kept [`RECONCILE_PAUSE`]. The burst is how far this may lie
    /// ahead of the clock.
    paced: Duration,
    /// Time of the failure that this run follows, until the guest is served again.
    failed_at: Option<Duration>,
}

impl<P: Platform, T: Transport> Stub<P, T> {
    /// A stub without background work; see [`Self::with_background`].
    ///
    /// # Errors
    /// As there.
    pub fn new(platform: P, client: Client<T>, store_port: Port) -> Result<Self, Box<SetupError>> {
        Self::with_background(platform, client, store_port, ())
    }
}

impl<P: Platform, T: Transport, B: Background<P, T>> Stub<P, T, B> {
    /// Serves the guest of the last run again if that is possible without xenstore, and else sets the watches. `client` has made
    /// no request yet. `store_port` is the event channel of `client`'s connection.
    ///
    /// # Errors
    /// A missing `domid` node: the toolstack has not set this domain up. A request that stays refused, by the quota or because
    /// xenstored is busy.
    pub fn with_background(
        mut platform: P,
        mut client: Client<T>,
        store_port: Port,
        mut background: B,
    ) -> Result<Self, Box<SetupError>> {
        log_restart(&platform.crash_log(), platform.now());
        let mut first = FirstHop::default();
        let is_restored = first.restore(&mut platform);
        if !is_restored {
            for number in 0..START_REQUESTS {
                retry_refused(&mut platform, &mut || {
                    start_request(&mut client, &mut first.stub, number)
                })?;
            }
            background.start(&mut platform, &mut client, first.stub);
        }
        let domid = first.stub;
        let mut stub = Self {
            platform,
            client,
            second: SecondHop::new(domid),
            first,
            background,
            ports: [store_port; 3],
            ports_up: 1,
            blind: false,
            served: false,
            to_start: if is_restored { 0 } else { START_REQUESTS },
            changed: Changed::default(),
            retry: None,
            paced: Duration::ZERO,
            failed_at: None,
        };
        stub.failed_at = stub.platform.crash_log().last().map(|(_, when)| when);
        let restarts = stub.platform.crash_log().restarts();
        // The engine's own counters begin at 0 in every run.
        let counters = stub.first.engine().counters_mut();
        counters.set(Counter::Restarts, restarts.into());
        if is_restored {
            // xenstore is asked in `step`, between two requests of the guest.
            stub.update_ports();
            return Ok(stub);
        }
        // At once, not at the first events of the watches: after a restart the guest waits for an answer.
        let reconciled = stub.reconcile();
        stub.handle_result(reconciled);
        if stub.first.is_idle() && !stub.second.is_up() {
            log::info!("no guest assigned yet: `bulkhead attach` gives domain {domid} its work");
        }
        Ok(stub)
    }

    /// Ends the work, and returns what it was built on. For tests: a stub that was taken over goes on from here.
    pub fn into_parts(self) -> (P, Client<T>) {
        (self.platform, self.client)
    }

    /// Does what there is to do: at most one request of the guest, then what xenstore has changed.
    pub fn step(&mut self) -> Outcome {
        self.served = self.first.serve(&mut self.platform, &mut self.second);
        if let Some((_, port)) = self.second.channel() {
            // Before the page is read: an event that comes later marks the port again.
            self.platform.take_pending(port);
        }
        self.first.relay_errors(&mut self.platform, &self.second);
        // xenstore's mark too is taken before its ring is read.
        self.platform.take_pending(self.ports[0]);
        if self.is_starting() {
            return Outcome::Wait {
                until: sooner(Some(self.go_on_starting()), self.first.held_until()),
            };
        }
        for _ in 0..ROUNDS {
            let drained = self.events();
            let until = self.until();
            // Where nothing has changed the clock is not read: this runs after every request.
            if until.is_some_and(|until| until <= self.platform.now()) {
                let changed = core::mem::take(&mut self.changed);
                let (done, reason) = self.handle_changes(changed);
                if let Some(reason) = reason {
                    return Outcome::Shutdown(reason);
                }
                self.handle_result(done);
            } else if drained {
                let until = sooner(until, self.flush_log());
                return Outcome::Wait {
                    until: sooner(until, self.first.held_until()),
                };
            }
        }
        // There may be more: back here at once, but with the guest's next request in between.
        Outcome::Wait {
            until: Some(self.platform.now()),
        }
    }

    /// True in a run that serves the guest already, until it has made all requests of a start.
    fn is_starting(&self) -> bool {
        !self.blind && self.to_start < START_REQUESTS
    }

    /// Makes the next request of a start; returns when to go on.
    fn go_on_starting(&mut self) -> Duration {
        let now = self.platform.now();
        if let Some(retry) = self.retry.filter(|retry| now < retry.next) {
            return retry.next;
        }
        let made = start_request(&mut self.client, &mut self.first.stub, self.to_start);
        if made.is_ok() {
            // The last run knew the number, and has written the features.
            self.to_start = (self.to_start + 1).max(FIRST_WATCH);
            if !self.is_starting() {
                self.background
                    .start(&mut self.platform, &mut self.client, self.first.stub);
                self.changed.hops = true;
            }
        }
        self.handle_result(made);
        now
    }

    /// When to reconcile; `None` if nothing has changed and nothing is due.
    fn until(&self) -> Option<Duration> {
        if self.blind {
            return None;
        }
        if let Some(retry) = self.retry {
            return Some(retry.next);
        }
        let Changed {
            hops,
            frontend,
            shutdown,
        } = self.changed;
        if hops || frontend || shutdown {
            // A token bucket: `paced` runs ahead of the clock by the burst at most.
            return Some(self.paced.saturating_sub(RECONCILE_PAUSE * RECONCILE_BURST));
        }
        self.first.due()
    }

    /// Handles what has changed. Where nothing has changed something is due, and everything is reconciled.
    fn handle_changes(&mut self, changed: Changed) -> (Result<(), Box<SetupError>>, Option<Reason>) {
        let now = self.platform.now();
        self.paced = self.paced.max(now).saturating_add(RECONCILE_PAUSE);
        if changed.shutdown {
            match self.shutdown() {
                Ok(None) => {}
                Ok(reason) => return (Ok(()), reason),
                // The change must not be forgotten: its event comes only once.
                Err(error) => {
                    self.changed = changed;
                    return (Err(error), None);
                }
            }
        }
        let due = self.retry.is_some() || self.first.due().is_some_and(|due| due <= now);
        // Only the guest can cause this one without end: it is looked at before anything is reconciled.
        let only_frontend = changed.frontend && !changed.hops && !due;
        let reconciled = match only_frontend {
            true => match self.first.is_changed(&mut self.client) {
                Ok(false) => return (Ok(()), None),
                Ok(true) => {
                    self.paced = self.paced.saturating_add(RECONCILE_PAUSE * CHANGE_COST);
                    self.reconcile()
                }
                Err(error) => Err(error),
            },
            false if changed.hops || changed.frontend || due => self.reconcile(),
            false => Ok(()),
        };
        (reconciled, None)
    }

    /// Steps and waits until the domain is to end.
    pub fn run(&mut self) -> Reason {
        loop {
            match self.step() {
                Outcome::Shutdown(reason) => return reason,
                Outcome::Wait { until } => self.wait(until),
            }
        }
    }

    /// The ports whose events call for a step.
    pub fn ports(&self) -> &[Port] {
        &self.ports[..self.ports_up]
    }

    /// Blocks until one of [`Self::ports`] has an event, or until the time named.
    pub fn wait(&mut self, until: Option<Duration>) {
        // Only after a request: a stub that idles sleeps at once.
        if let (true, Some(guest)) = (self.served, self.first.port()) {
            // `relax` lets the guest run: it may share this processor. Then its next request is here after the first time, and
            // the clock is not read.
            if !self.platform.is_pending(guest) {
                self.platform.relax();
            }
            if !self.platform.is_pending(guest) {
                let end = self.platform.now().saturating_add(SPIN_TIME);
                while !self.platform.is_pending(guest) && self.platform.now() < end {
                    self.platform.relax();
                }
            }
        }
        if B::EXISTS && !self.is_starting() {
            let until = sooner(until, self.background_turn());
            // Twice the port of xenstore, if there is none.
            let port = self.background.port().unwrap_or(self.ports[0]);
            let mut ports = [port; 4];
            ports[..self.ports_up].copy_from_slice(&self.ports[..self.ports_up]);
            self.platform.wait(&ports[..=self.ports_up], until);
        } else {
            self.platform.wait(&self.ports[..self.ports_up], until);
        }
    }

    /// Gives the background a turn; returns when the next one is due.
    fn background_turn(&mut self) -> Option<Duration> {
        let asks = self
            .first
            .port()
            .is_some_and(|port| self.platform.is_pending(port));
        let guest = self.first.guest();
        let engine = self.first.engine();
        let view = View {
            asks,
            guest,
            counters: engine.counters(),
            for_each_device: &|see| engine.devices().for_each(see),
        };
        self.background.turn(&mut self.platform, &mut self.client, view)
    }

    /// Takes the watch events that have come, and marks what has changed; false if there may be more. How many events there
    /// are means nothing: they may have been merged.
    fn events(&mut self) -> bool {
        for _ in 0..EVENTS_MAX {
            if self.blind {
                return true;
            }
            match self.client.next_event() {
                Ok(Some(WatchEvent { token, .. })) => match token.as_str() {
                    SHUTDOWN_TOKEN => {
                        self.changed.shutdown = true;
                        // A shutdown does not wait for the next try of what xenstore has refused.
                        if let Some(retry) = &mut self.retry {
                            retry.next = Duration::ZERO;
                        }
                    }
                    FRONTEND_TOKEN => self.changed.frontend = true,
                    FIRST_HOP_TOKEN | SECOND_HOP_TOKEN => self.changed.hops = true,
                    token => self.background.changed(token),
                },
                Ok(None) => return true,
                Err(error) => self.handle_result(Err(store::failed(error))),
            }
        }
        false
    }

    /// Brings both hops in line with xenstore.
    fn reconcile(&mut self) -> Result<(), Box<SetupError>> {
        #[cfg(feature = "inject")]
        inject::take(&mut self.platform, &mut self.client);
        inject::point(&mut self.platform, Point::Reconcile);
        // The second hop first: the devices of the first are exported by the list that it has.
        let mut result = self.second.reconcile(&mut self.platform, &mut self.client);
        if result.is_ok() {
            // The guest does not wait for the requests of both hops.
            self.first.serve(&mut self.platform, &mut self.second);
            result = self.first.reconcile(Context {
                platform: &mut self.platform,
                client: &mut self.client,
                second: &mut self.second,
            });
        }
        self.update_ports();
        // For a hop that has come up: the guest's flag, and an error that waits.
        self.first.relay_errors(&mut self.platform, &self.second);
        // A page of the second hop that is new holds nothing yet.
        let crash_log = self.platform.crash_log();
        let engine = self.first.engine();
        self.second
            .publish_handover(engine.shadows(), crash_log.poisoned());
        if let Some((op, strikes)) = crash_log.pending() {
            self.second.begin_request(op, strikes);
        }
        self.second.publish_counters(engine.counters_mut(), true);
        result
    }

    /// Takes note of the ports: either hop may have got another one, or lost it.
    fn update_ports(&mut self) {
        let service = self.second.channel().map(|(_, port)| port);
        self.ports_up = 1;
        for port in self.first.port().into_iter().chain(service) {
            self.ports[self.ports_up] = port;
            self.ports_up += 1;
        }
        if self.first.port().is_some()
            && let Some(when) = self.failed_at.take()
        {
            let gap = self.platform.now().saturating_sub(when).as_micros() as u64;
            log::info!("the guest is served again {gap} us after the failure");
        }
    }

    /// Reads what `control/shutdown` asks for, and acknowledges it by emptying the node, as every guest does.
    fn shutdown(&mut self) -> Result<Option<Reason>, Box<SetupError>> {
        let asked = store::read(&mut self.client, SHUTDOWN)?.unwrap_or_default();
        let reason = match asked.as_str() {
            "" => return Ok(None),
            "poweroff" | "halt" => Reason::Poweroff,
            "reboot" => Reason::Reboot,
            other => {
                log::warn!(
                    "control/shutdown asks for \"{}\": a stub only knows poweroff, halt and reboot",
                    Excerpt::of(other)
                );
                return Ok(None);
            }
        };
        // Without the acknowledgement all the same: `xl` waits for the end of the domain.
        if let Err(error) = self.client.write(SHUTDOWN, "") {
            log::warn!("cannot acknowledge the shutdown: {error}");
        }
        log::info!("control/shutdown asks for {reason}: shutting down");
        Ok(Some(reason))
    }

    /// Ends or begins the pause by the result of a reconciliation.
    fn handle_result(&mut self, result: Result<(), Box<SetupError>>) {
        let Err(error) = result else {
            if self.retry.take().is_some() {
                log::info!("xenstore serves again");
            }
            return;
        };
        if matches!(*error, SetupError::StoreLost(_)) {
            log::error!("{error}");
            // The next run begins a new connection to xenstored. A guest that has both hops keeps them: they would need
            // xenstored to come up again. One that was taken over from the last run has no way to dom0 before xenstore is
            // followed, and would never get one.
            assert!(
                self.first.is_followed(),
                "xenstore is lost before it was followed for a guest"
            );
            log::error!("serving on without xenstore");
            self.blind = true;
            return;
        }
        let retry = Backoff::after(self.retry, self.platform.now());
        // At the longest pause no more: that would be a line a second.
        if retry.pause < RETRY_PAUSE_MAX {
            log::error!("{error}; trying again in {} ms", retry.pause.as_millis() as u64);
        }
        self.retry = Some(retry);
    }

    /// Logs what was suppressed and is due; returns when the next is due.
    fn flush_log(&mut self) -> Option<Duration> {
        let engine = self.first.engine();
        // Without a read of the clock, where nothing was suppressed: this runs in every step.
        engine.log_due()?;
        engine.flush_log(self.platform.now())
    }
}
