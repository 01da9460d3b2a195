//! The stub's work between two requests of its guest: it follows its network device, and serves what comes over it.

use crate::budget::Budget;
use crate::device::{FRAME_MAX, Frames};
use crate::line_ring::LineRing;
use crate::server::Figures;
use crate::settings::Settings;
use crate::stack::{Served, Stack, Turn};
use crate::strikes::{STRIKES, STRIKES_EVER, Strikes, Verdict, WITHIN};
use crate::syslog::Origin;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};
use core::time::Duration;
use drivers::background::{Background, View};
use drivers::error::SetupError;
use drivers::inject::{self, Point};
use drivers::log;
use drivers::platform::{DomId, Platform, Port, sooner};
use drivers::store;
use metrics::{Exposition, Format, families};
use netfront::{Netfront, Statistics};
use pci::bdf::Bdf;
use xenbus::client::{Client, Transport};
use xenbus::counters::Counters;

/// Token of the device's watches.
const TOKEN: &str = "network";
/// Frames that one turn receives at most.
const FRAMES_MAX: u32 = 8;
/// How long requests of the guest may keep the network waiting. A guest that asks without a pause would hide its stub from
/// whoever watches it.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// How often xenstore is followed without a pause.
const RECONCILE_BURST: u32 = 16;
/// After that burst, once in this time: a backend may change its state without end.
const RECONCILE_PAUSE: Duration = Duration::from_millis(100);
/// Pause after xenstore has refused a request.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Characters of a name that are told at most.
const NAME_MAX: usize = 128;
/// Devices that a line names at most.
const DEVICES_MAX: usize = 16;

/// What the machine has for the network.
#[derive(Debug)]
pub struct Environment<const LINES: usize> {
    /// Log lines, in kept memory.
    pub lines: &'static LineRing<LINES>,
    /// Failures, in kept memory.
    pub strikes: &'static Strikes,
    /// Time from the Unix epoch to boot; `None` if the clock is not known.
    pub booted: fn() -> Option<Duration>,
    /// A number that other stubs, and other runs, do not have.
    pub seed: u64,
    /// The kernel command line.
    pub command_line: &'static str,
}

/// Who the stub is.
#[derive(Debug, Default)]
struct Identity {
    domid: DomId,
    stub: String,
    guest: String,
}

/// The first [`NAME_MAX`] characters of a name.
fn short(name: &str) -> String {
    name.chars().take(NAME_MAX).collect()
}

/// The figures of one moment.
#[derive(Debug)]
struct Snapshot<'a> {
    identity: &'a Identity,
    domain: DomId,
    uptime: Duration,
    poisonous: u64,
    counters: &'a Counters,
    frames: Statistics,
    served: Served,
    lines_lost: u64,
    wakeups: u64,
}

impl Figures for Snapshot<'_> {
    fn write(&self, format: Format, out: &mut dyn Write) -> fmt::Result {
        let mut out = Exposition::new(out, format);
        let stub = metrics::Stub {
            guest: &self.identity.guest,
            domain: self.domain,
            stub: &self.identity.stub,
            uptime: Some(self.uptime),
            poisonous: self.poisonous,
            recreated: None,
            counters: Some(self.counters.clone()),
        };
        let stubs = [stub];
        metrics::stub::write(&mut out, &stubs)?;
        let [stub] = &stubs;
        let Statistics {
            received_frames,
            receive_dropped,
            sent_frames,
            send_dropped,
            faults,
            ..
        } = self.frames;
        let rows = [
            (&families::NETWORK_FRAMES, "receive", received_frames),
            (&families::NETWORK_FRAMES, "transmit", sent_frames),
            (&families::NETWORK_FRAMES_DROPPED, "receive", receive_dropped),
            (&families::NETWORK_FRAMES_DROPPED, "transmit", send_dropped),
            (&families::NETWORK_FAULTS, "", faults),
            (&families::LOG_LINES_SENT, "", self.served.lines),
            (&families::LOG_LINES_LOST, "", self.lines_lost),
            (&families::WAKEUPS, "", self.wakeups),
        ];
        for (family, op, count) in rows {
            // The second sample of a family stands below the first.
            if op != "transmit" {
                out.family(family)?;
            }
            stub.sample(&mut out, &op, count)?;
        }
        out.end()
    }
}

/// The device as [`Stack`] uses it.
struct Link<'a, P: Platform> {
    front: &'a mut Netfront<P>,
    platform: &'a mut P,
}

impl<P: Platform> Frames for Link<'_, P> {
    fn receive(&mut self, into: &mut [u8; FRAME_MAX]) -> Option<usize> {
        self.front.receive(self.platform, into)
    }

    fn can_transmit(&mut self) -> bool {
        self.front.can_transmit(self.platform)
    }

    fn transmit(&mut self, frame: &[u8]) {
        // One that is dropped is counted there, and sent again by whoever misses it.
        let _ = self.front.transmit(self.platform, frame);
    }

    fn is_transmitting(&mut self) -> bool {
        // What was with a backend that has gone was maybe not sent.
        self.front.is_transmitting(self.platform) || !self.front.is_connected()
    }
}

/// The network of a stub.
pub struct Network<P: Platform, const LINES: usize> {
    environment: Environment<LINES>,
    identity: &'static Identity,
    /// `None`: there is no network any more.
    front: Option<Netfront<P>>,
    settings: Settings,
    stack: Option<Stack<LINES>>,
    /// Connections of the device that the stack knows of.
    connections: u64,
    budget: Budget,
    /// Something has changed in xenstore.
    changed: bool,
    /// xenstore has refused the last request.
    refused: bool,
    store_lost: bool,
    /// When xenstore would be followed next if each time had kept [`RECONCILE_PAUSE`].
    paced: Duration,
    /// Frames wait, and are not looked at before this.
    throttled: Option<Duration>,
    due: Option<Duration>,
    last_turn: Duration,
    /// The newest line of the last turn.
    seen: u32,
    wakeups: u64,
}

impl<P: Platform, const LINES: usize> Network<P, LINES> {
    /// Nothing is connected yet.
    pub fn new(environment: Environment<LINES>) -> Self {
        Self {
            environment,
            identity: Box::leak(Box::default()),
            front: None,
            settings: Settings::default(),
            stack: None,
            connections: 0,
            budget: Budget::default(),
            changed: true,
            refused: false,
            store_lost: false,
            paced: Duration::ZERO,
            throttled: None,
            due: None,
            last_turn: Duration::ZERO,
            seen: 0,
            wakeups: 0,
        }
    }

    /// True if a turn would find something to do.
    fn is_due(&self, front: &Netfront<P>, platform: &P, now: Duration) -> bool {
        let pending = |port| self.throttled.is_none_or(|until| until <= now) && platform.is_pending(port);
        self.changed && self.reconcile_due(now) <= now
            || front.wants_reconcile() && !self.store_lost
            || front.port().is_some_and(pending)
            || self.due.is_some_and(|due| due <= now)
            || self.seen != self.environment.lines.newest()
    }

    /// When xenstore may be followed next.
    fn reconcile_due(&self, now: Duration) -> Duration {
        let paced = self.paced.saturating_sub(RECONCILE_PAUSE * RECONCILE_BURST);
        paced.max(now)
    }

    /// Follows xenstore, within the limit; true if it was asked.
    fn follow<T: Transport>(
        &mut self,
        front: &mut Netfront<P>,
        platform: &mut P,
        client: &mut Client<T>,
        now: Duration,
    ) -> bool {
        if self.store_lost || !(self.changed || front.wants_reconcile()) || self.reconcile_due(now) > now {
            return false;
        }
        self.paced = self.paced.max(now) + RECONCILE_PAUSE;
        self.changed = false;
        match front.reconcile(platform, client) {
            Ok(()) => self.refused = false,
            // The stub itself finds out, and says so.
            Err(error) if matches!(*error, SetupError::StoreLost(_)) => self.store_lost = true,
            Err(error) => {
                // A backend can have it refuse without end.
                if !self.refused {
                    log::warn!("network: {error}; trying again each second");
                }
                self.refused = true;
                self.changed = true;
                self.paced = now + RECONCILE_PAUSE * RECONCILE_BURST + RETRY_PAUSE;
            }
        }
        true
    }

    /// Receives, serves and sends.
    fn exchange(&mut self, front: &mut Netfront<P>, platform: &mut P, view: &View<'_>, now: Duration) {
        self.due = None;
        self.throttled = None;
        self.seen = self.environment.lines.newest();
        let (Some(mac), Some(port)) = (front.mac(), front.port()) else {
            return;
        };
        // Before the rings are read: an event that comes later marks the port again.
        let pending = platform.take_pending(port);
        if !front.is_connected() {
            return;
        }
        let connections = front.statistics().connections;
        let stack = self.stack.get_or_insert_with(|| {
            self.connections = connections;
            Stack::new(
                mac,
                self.settings.clone(),
                &self.identity.stub,
                self.environment.lines,
                self.environment.seed,
                now,
            )
        });
        if self.connections != connections {
            self.connections = connections;
            stack.restart(mac);
        }
        let mut devices = [Bdf::from_devfn(0, 0, 0); DEVICES_MAX];
        let mut count = 0;
        (view.for_each_device)(&mut |bdf| {
            if let Some(device) = devices.get_mut(count) {
                *device = bdf;
                count += 1;
            }
        });
        let origin = Origin {
            stub: &self.identity.stub,
            domid: self.identity.domid,
            guest: &self.identity.guest,
            devices: devices.get(..count).unwrap_or_default(),
            booted: (self.environment.booted)(),
        };
        let frames_max = self.budget.take(FRAMES_MAX, now);
        let frames = *front.statistics();
        let served = stack.served();
        let poisonous = platform.crash_log().poisoned().len() as u64;
        let turned = stack.turn(
            Turn {
                frames: &mut Link {
                    front: &mut *front,
                    platform: &mut *platform,
                },
                now,
                frames_max,
                origin: &origin,
            },
            &Snapshot {
                identity: self.identity,
                domain: view.guest.unwrap_or_default(),
                uptime: now,
                poisonous,
                counters: view.counters,
                frames,
                served,
                lines_lost: self.environment.lines.displaced().into(),
                wakeups: self.wakeups,
            },
        );
        // Responses without a frame, and events for nothing, cost as much as frames.
        let dropped = front.statistics().receive_dropped - frames.receive_dropped;
        let used = (turned.received + dropped as u32).max(pending.into());
        self.budget.give_back(frames_max.saturating_sub(used));
        self.budget.take(used.saturating_sub(frames_max), now);
        front.flush(platform);
        self.due = turned.until;
        let more = front.arm();
        // Without budget nobody looks before there is some.
        self.throttled = self.budget.due(now);
        if more || self.throttled.is_some() {
            self.due = sooner(self.due, Some(self.throttled.unwrap_or(now)));
        }
    }
}

impl<P: Platform, T: Transport, const LINES: usize> Background<P, T> for Network<P, LINES> {
    fn start(&mut self, platform: &mut P, client: &mut Client<T>, domid: DomId) {
        if !self.environment.lines.open() {
            log::warn!("network: earlier log lines are damaged, and lost");
        }
        match self.environment.strikes.open(platform.now()) {
            Verdict::Serve => {}
            Verdict::ServeAgain => log::warn!("network: the last run failed in it"),
            Verdict::GiveUp => {
                const { assert!(STRIKES == 3 && WITHIN.as_secs() == 60 && STRIKES_EVER == 16) };
                log::error!(
                    "network: given up after 3 failures within 60 s, or 16 in all; the guest is served. `xl destroy` of \
                     this stub begins anew"
                );
                return;
            }
        }
        self.settings = match Settings::parse(self.environment.command_line) {
            Ok(settings) => settings,
            Err(error) => {
                log::error!("{error}; no network");
                return;
            }
        };
        let name = store::read(client, "name").ok().flatten();
        let name = name.unwrap_or_else(|| format!("domain-{domid}"));
        let guest = match self.settings.guest.as_str() {
            "" => "unknown",
            guest => guest,
        };
        self.identity = Box::leak(Box::new(Identity {
            domid,
            stub: short(&name),
            guest: short(guest),
        }));
        self.front = Some(Netfront::new(domid, TOKEN));
    }

    fn changed(&mut self, token: &str) {
        self.changed |= token == TOKEN;
    }

    fn port(&self) -> Option<Port> {
        let front = self.front.as_ref().filter(|_| self.throttled.is_none())?;
        front.port()
    }

    fn turn(&mut self, platform: &mut P, client: &mut Client<T>, view: View<'_>) -> Option<Duration> {
        let mut front = self.front.take()?;
        self.wakeups += 1;
        let now = platform.now();
        let asks = view.asks && now < self.last_turn + WAIT_MAX;
        if !asks && self.is_due(&front, platform, now) {
            self.last_turn = now;
            self.environment.strikes.enter();
            inject::point(platform, Point::Network);
            let asked = self.follow(&mut front, platform, client, now);
            self.exchange(&mut front, platform, &view, now);
            if asked {
                self.due = Some(now);
            }
            self.environment.strikes.leave();
        }
        let wanted = !self.store_lost && (self.changed || front.wants_reconcile());
        let reconcile = wanted.then(|| self.reconcile_due(now));
        self.front = Some(front);
        sooner(self.due, reconcile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::server::ANSWER_MAX;
    use alloc::vec;
    use alloc::vec::Vec;
    use families::{ALL, Source};
    use xenbus::counters::Counter;

    /// Calls `see` with a snapshot of a stub that has counted as much as can be.
    fn with_worst(identity: &Identity, see: impl FnOnce(&Snapshot<'_>)) {
        let mut counters = Counters::default();
        for register in 0..64 {
            counters.add_dropped_write(Bdf::from_devfn(0, 0, 0), register * 4);
        }
        for counter in Counter::ALL {
            counters.set(counter, u64::MAX);
        }
        see(&Snapshot {
            identity,
            domain: 3,
            uptime: Duration::from_secs(5),
            poisonous: 1,
            counters: &counters,
            frames: Statistics::default(),
            served: Served::default(),
            lines_lost: 2,
            wakeups: 7,
        });
    }

    #[test]
    fn a_stub_writes_the_families_that_are_its_own_in_sixty_series_at_most() {
        with_worst(&Identity::default(), |snapshot| {
            let mut text = String::new();
            snapshot.write(Format::OpenMetrics, &mut text).unwrap();
            let series = text.lines().filter(|line| !line.starts_with('#')).count();
            assert!(series <= 60, "{series}");
            let headers = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            let mut names: Vec<&str> = headers.filter_map(|header| header.split(' ').next()).collect();
            let of_a_stub = ALL.iter().filter(|family| family.source != Source::Dom0);
            let mut expected: Vec<&str> = of_a_stub.map(|family| family.name).collect();
            names.sort_unstable();
            expected.sort_unstable();
            assert_eq!(names, expected);
            assert!(
                text.ends_with("_wakeups_total{guest=\"\",domain=\"3\",stub=\"\"} 7\n# EOF\n"),
                "{text}"
            );
        });
    }

    #[test]
    fn an_answer_has_room_for_all_figures_whatever_the_names_are() {
        let identity = Identity {
            domid: 32_751,
            stub: short(&"\"".repeat(200)),
            guest: short(&"\u{1f980}\\".repeat(200)),
        };
        with_worst(&identity, |snapshot| {
            let mut room = vec![0; ANSWER_MAX - 512];
            snapshot
                .write(Format::OpenMetrics, &mut Buffer::new(&mut room))
                .unwrap();
        });
    }
}
