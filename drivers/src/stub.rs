//! The stub's loop: the guest's requests, both hops, errors of devices, xenstore, and `xl shutdown`.
//!
//! The guest's requests come first. xenstore is followed within limits, so that no guest can keep xenstored, or its own
//! requests, from being served by writing its nodes.

use crate::crash_log::{Advice, Bytes, CrashLog};
use crate::error::{Blame, Excerpt, SetupError};
use crate::hops::first::{Context, FRONTEND_TOKEN, FirstHop};
use crate::hops::second::SecondHop;
use crate::inject::{self, Point};
use crate::log;
use crate::platform::{DomId, Platform, Port};
use crate::store;
use alloc::boxed::Box;
use core::fmt;
use core::time::Duration;
use xenbus::client::{Client, Store, Transport, WatchEvent};
use xenbus::counters::Counter;
use xenbus::path::{DeviceType, home, key};

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
fn retry_refused<P: Platform, R>(
    platform: &mut P,
    mut request: impl FnMut() -> Result<R, Box<SetupError>>,
) -> Result<R, Box<SetupError>> {
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

/// The stub, from its first request to xenstore to its end.
pub struct Stub<P: Platform, T: Transport> {
    platform: P,
    client: Client<T>,
    second: SecondHop<P::Page>,
    first: FirstHop<P>,
    /// The port of xenstore, then those of the hops that are up.
    ports: [Port; 3],
    /// How many of them are up.
    ports_up: usize,
    /// xenstore is lost: no change is seen any more, but the guest is served.
    blind: bool,
    /// The last step answered a request of the guest.
    served: bool,
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
    /// Sets the watches. `store_port` is the event channel of `client`'s connection.
    ///
    /// # Errors
    /// A missing `domid` node: the toolstack has not set this domain up. A request that stays refused, by the quota or because
    /// xenstored is busy.
    pub fn new(mut platform: P, mut client: Client<T>, store_port: Port) -> Result<Self, Box<SetupError>> {
        log_restart(&platform.crash_log(), platform.now());
        let domid: DomId = retry_refused(&mut platform, || {
            store::value(
                &mut client,
                "domid",
                Blame::Toolstack,
                "the number of this domain",
                |text| store::decimal(text)?.try_into().ok(),
            )
        })?;
        for feature in FEATURES {
            // Older toolstacks make these nodes read-only or not at all; `xl` works without them.
            if let Err(error) = client.write(feature, "1") {
                log::debug!("{error}");
            }
        }
        let second = SecondHop::new(domid);
        // Before the first read of what they watch, so that no change falls in between.
        for (path, token) in [
            (DeviceType::Bulkhead.frontends(domid), SECOND_HOP_TOKEN),
            (second.device().backend_node(key::STATE), SECOND_HOP_TOKEN),
            (DeviceType::Pci.backends(domid), FIRST_HOP_TOKEN),
            ([&home(domid), "/", SHUTDOWN].concat(), SHUTDOWN_TOKEN),
        ] {
            retry_refused(&mut platform, || {
                client.watch(&path, token).map_err(store::failed)
            })?;
        }
        // Under a token that has the hops reconciled, for there the order is taken.
        #[cfg(feature = "inject")]
        client
            .watch(&[&home(domid), "/", inject::NODE].concat(), SECOND_HOP_TOKEN)
            .map_err(store::failed)?;
        let mut stub = Self {
            platform,
            client,
            second,
            first: FirstHop::new(domid),
            ports: [store_port; 3],
            ports_up: 1,
            blind: false,
            served: false,
            changed: Changed::default(),
            retry: None,
            paced: Duration::ZERO,
            failed_at: None,
        };
        stub.failed_at = stub.platform.crash_log().last().map(|(_, when)| when);
        let restarts = stub.platform.crash_log().restarts();
        // The engine's own counters begin at 0 in every run.
        stub.first.engine().set_count(Counter::Restarts, restarts.into());
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
        for _ in 0..ROUNDS {
            let drained = self.events();
            let now = self.platform.now();
            let until = self.until(now);
            if until.is_some_and(|until| until <= now) {
                let changed = core::mem::take(&mut self.changed);
                let (done, reason) = self.handle_changes(changed);
                if let Some(reason) = reason {
                    return Outcome::Shutdown(reason);
                }
                self.handle_result(done);
            } else if drained {
                let log = self.flush_log();
                return Outcome::Wait {
                    until: until.into_iter().chain(log).min(),
                };
            }
        }
        // There may be more: back here at once, but with the guest's next request in between.
        Outcome::Wait {
            until: Some(self.platform.now()),
        }
    }

    /// When to reconcile; `None` if nothing has changed and nothing is due.
    fn until(&self, now: Duration) -> Option<Duration> {
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
            return Some(
                self.paced
                    .saturating_sub(RECONCILE_PAUSE * RECONCILE_BURST)
                    .max(now),
            );
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
            // `relax` lets the guest run: it may share this processor.
            let end = self.platform.now().saturating_add(SPIN_TIME);
            while !self.platform.is_pending(guest) && self.platform.now() < end {
                self.platform.relax();
            }
        }
        self.platform.wait(&self.ports[..self.ports_up], until);
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
                    _ => {}
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
        let result = self
            .second
            .reconcile(&mut self.platform, &mut self.client)
            .and_then(|()| {
                self.first.reconcile(Context {
                    platform: &mut self.platform,
                    client: &mut self.client,
                    second: &mut self.second,
                })
            });
        let service = self.second.channel().map(|(_, port)| port);
        // Either hop may have got another port, or lost it.
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
        self.second.publish_counters(engine.counters());
        result
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
            // A restart would begin a new connection to xenstored. But while a guest is served, that would cost it the
            // second hop and the first, which need xenstored to come up again.
            assert!(
                self.first.port().is_some(),
                "no guest is served, and xenstore is lost"
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
