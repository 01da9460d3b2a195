//! The whole stub in one loop: xenstore, both hops, the guest's requests, errors of devices, and `xl shutdown`.

use crate::error::{Blame, Excerpt, SetupError};
use crate::inject::{self, Point};
use crate::journal::{Advice, Bytes, Journal};
use crate::log;
use crate::pciback::lifecycle::{Context, FRONTEND_TOKEN, FirstHop};
use crate::pcifront::SecondHop;
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
/// What we tell `xl` that we obey.
const FEATURES: [&str; 2] = ["control/feature-poweroff", "control/feature-reboot"];

/// How often in one step xenstore is followed, which can itself bring new events. Bounded, so that a guest
/// whose state changes all the time cannot keep its own requests from being served.
const ROUNDS: usize = 4;

/// How long the next request of the guest is awaited without going to sleep: requests come in bursts, as a driver
/// probes its device or a bus is scanned. Measured on two emulated processors: a read takes half the time.
const LINGER: Duration = Duration::from_micros(400);

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

/// What is to be done after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Wait for an event on [`Stub::ports`]; at most until the time named, if one is.
    Wait {
        /// Time since boot.
        until: Option<Duration>,
    },
    /// End the domain.
    Shutdown(Reason),
}

/// What has to be looked at again.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    hops: bool,
    shutdown: bool,
}

/// Says what the last life ended with, if there was one.
fn tell_of_restart(journal: &Journal) {
    let Some((cause, _)) = journal.last() else {
        return;
    };
    log::warn!("restart {} after {cause}", journal.restarts());
    if let Some(op) = journal.over() {
        let fate = match journal.advise(op) {
            Advice::Refuse => "for the second time: it is refused from now on",
            Advice::Serve | Advice::ServeAgain => "it is served once more",
        };
        log::warn!("a request was under way, {fate}; its bytes: {}", Bytes(op));
    }
}

/// A stub domain's work.
pub struct Stub<P: Platform, T: Transport> {
    platform: P,
    client: Client<T>,
    second: SecondHop<P::Page>,
    first: FirstHop<P>,
    /// The port of xenstore, then those of the hops that are up.
    ports: [Port; 3],
    /// How many of them there are.
    ports_up: usize,
    /// xenstore is lost: we can see no change any more, but serve the guest that we have.
    blind: bool,
    /// The last step answered a request of the guest.
    served: bool,
    /// When the failure was that this life began with, until the guest is served again.
    failed_at: Option<Duration>,
}

impl<P: Platform, T: Transport> Stub<P, T> {
    /// Sets the watches. `store_port` is the event channel of `client`'s connection.
    ///
    /// # Errors
    /// A missing `domid` node, or a refused request: xenstore is not as a domain must find it.
    pub fn new(platform: P, mut client: Client<T>, store_port: Port) -> Result<Self, Box<SetupError>> {
        tell_of_restart(&platform.journal());
        let domid: DomId = store::value(
            &mut client,
            "domid",
            Blame::Toolstack,
            "the number of this domain",
            |text| store::decimal(text)?.try_into().ok(),
        )?;
        for feature in FEATURES {
            // Older toolstacks make these nodes read-only or not at all; `xl` works without them.
            if let Err(error) = client.write(feature, "1") {
                log::debug!("{error}");
            }
        }
        let second = SecondHop::new(domid);
        for (path, token) in [
            (DeviceType::Bulkhead.frontends(domid), SECOND_HOP_TOKEN),
            (second.device().backend_node(key::STATE), SECOND_HOP_TOKEN),
            (DeviceType::Pci.backends(domid), FIRST_HOP_TOKEN),
            ([&home(domid), "/", SHUTDOWN].concat(), SHUTDOWN_TOKEN),
        ] {
            client.watch(&path, token).map_err(store::failed)?;
        }
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
            failed_at: None,
        };
        stub.failed_at = stub.platform.journal().last().map(|(_, when)| when);
        let restarts = stub.platform.journal().restarts();
        stub.first.engine().set_count(Counter::Restarts, restarts.into());
        stub.follow();
        if stub.first.is_idle() && !stub.second.is_up() {
            log::info!("no guest assigned yet: `bulkhead attach` gives domain {domid} its work");
        }
        Ok(stub)
    }

    /// Does what there is to do: at most one request of the guest, then what xenstore tells.
    pub fn step(&mut self) -> Outcome {
        self.served = self.first.serve(&mut self.platform, &mut self.second);
        if let Some((_, port)) = self.second.channel() {
            self.platform.take_pending(port);
        }
        self.first.relay_errors(&mut self.platform, &self.second);
        self.platform.take_pending(self.ports[0]);
        for _ in 0..ROUNDS {
            let changed = self.events();
            if changed.shutdown
                && let Some(reason) = self.shutdown()
            {
                return Outcome::Shutdown(reason);
            }
            if !changed.hops {
                return Outcome::Wait {
                    until: self.settle_log(),
                };
            }
            self.follow();
        }
        // More may have come: back here at once, but with a look at the guest's request in between.
        Outcome::Wait {
            until: Some(self.platform.now()),
        }
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
        if let (true, Some(guest)) = (self.served, self.first.port()) {
            let end = self.platform.now().saturating_add(LINGER);
            while !self.platform.is_pending(guest) && self.platform.now() < end {
                self.platform.relax();
            }
        }
        self.platform.wait(&self.ports[..self.ports_up], until);
    }

    /// Takes in all watch events that have come. How many they are says nothing: each stands for "look again".
    fn events(&mut self) -> Changed {
        let mut changed = Changed::default();
        while !self.blind {
            match self.client.next_event() {
                Ok(Some(WatchEvent { token, .. })) => match token.as_str() {
                    SHUTDOWN_TOKEN => changed.shutdown = true,
                    FIRST_HOP_TOKEN | SECOND_HOP_TOKEN | FRONTEND_TOKEN => changed.hops = true,
                    _ => {}
                },
                Ok(None) => break,
                Err(error) => {
                    self.note_failure(&store::failed(error));
                    break;
                }
            }
        }
        changed
    }

    /// Brings both hops in line with what stands in xenstore.
    fn follow(&mut self) {
        #[cfg(feature = "inject")]
        inject::take(&mut self.platform, &mut self.client);
        inject::point(&mut self.platform, Point::Reconcile);
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
        if let Err(error) = result {
            self.note_failure(&error);
        }
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
        // The guest's flag, and an error that waits for a hop that has come up.
        self.first.relay_errors(&mut self.platform, &self.second);
        let journal = self.platform.journal();
        let engine = self.first.engine();
        self.second.leave(engine.shadows(), journal.poisoned());
        if let Some((op, strikes)) = journal.pending() {
            self.second.begin(op, strikes);
        }
        self.second.publish(engine.counters());
    }

    /// What `control/shutdown` asks for. It is acknowledged by emptying the node, as every guest does.
    fn shutdown(&mut self) -> Option<Reason> {
        let asked = match store::read(&mut self.client, SHUTDOWN) {
            Ok(asked) => asked.unwrap_or_default(),
            Err(error) => {
                self.note_failure(&error);
                return None;
            }
        };
        let reason = match asked.as_str() {
            "" => return None,
            "poweroff" | "halt" => Reason::Poweroff,
            "reboot" => Reason::Reboot,
            other => {
                log::warn!(
                    "control/shutdown asks for \"{}\": a stub only knows poweroff, halt and reboot",
                    Excerpt::of(other)
                );
                return None;
            }
        };
        if let Err(error) = self.client.write(SHUTDOWN, "") {
            log::warn!("cannot acknowledge the shutdown: {error}");
        }
        log::info!("control/shutdown asks for {reason}: shutting down");
        Some(reason)
    }

    fn note_failure(&mut self, error: &SetupError) {
        log::error!("{error}");
        if matches!(error, SetupError::StoreLost(_)) {
            log::error!("serving on without xenstore");
            self.blind = true;
        }
    }

    /// Tells of suppressed log lines that are due; returns when the next ones will be.
    fn settle_log(&mut self) -> Option<Duration> {
        let engine = self.first.engine();
        engine.log_due()?;
        engine.settle_log(self.platform.now())
    }
}
