//! What the service does next: the turn of one stub, or an errand.
//!
//! Each event of xenstore marks one stub, or all. Marked stubs take turns. A stub can cause events without end; it is slowed
//! down after a burst, so that a flood costs the stub that makes it.
//!
//! An errand concerns no single stub. New domains, which must be paused before they run, and the list come at once. All other
//! errands wait until no stub is due, for a guest may wait for its stub. They do not wait for ever, or stubs that flood
//! would keep them from being done.
//!
//! A worker that takes over serves the stubs first, because guests wait for them: nothing but the list comes before.

use crate::records::{ATTACHMENTS, assignable};
use crate::serve::throttle::{Limit, Throttle};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};
use xen::xenctrl::DomId;
use xenbus::client::WatchEvent;
use xenbus::path::{Device as Hop, DeviceType, key};

/// Delay before work that failed is repeated. For a stub it doubles with each further failure, up to [`MOST_RETRY`].
const RETRY: Duration = Duration::from_millis(100);
const MOST_RETRY: Duration = Duration::from_secs(5);
/// A stub that has used up its burst gets at most this fraction, 1 in 5, of the service's time.
const SHARE: u32 = 5;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Any stub, or all.
    All,
    /// The record of one stub.
    Record(DomId),
    /// One stub.
    Stub(DomId),
    /// What one stub publishes to its guest, and the service backs up.
    Published(DomId),
    /// Domains that go. The event does not say which.
    Deaths,
    /// Domains that come.
    Domains,
    /// libxl's notes of devices.
    Libxl,
    /// Nothing: the service wrote that node itself.
    Nothing,
}

/// Work that concerns no single stub. Events [mark](Agenda::mark) it; the list marks the tidying too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Errand {
    /// Look for domains that have come.
    Domains,
    /// Read the list of stubs.
    List,
    /// Ask Xen which guests and stubs have ended.
    Deaths,
    /// Remove what is left of guests that have ended.
    Tidy,
    /// Check libxl's notes of devices.
    Libxl,
}

/// One piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The turn of a stub.
    Stub(DomId, StubTurn),
    /// Do an errand.
    Errand(Errand),
}

/// What is done in the turn of a stub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StubTurn {
    /// Bring its link, its return or its end in line with its record and with xenstore.
    pub look: bool,
    /// Back up what it publishes.
    pub backup: bool,
}

impl StubTurn {
    /// A look alone.
    pub const LOOK: Self = Self {
        look: true,
        backup: false,
    };
    /// A backup alone.
    pub const BACKUP: Self = Self {
        look: false,
        backup: true,
    };

    /// Adds what `other` has.
    fn add(&mut self, other: Self) {
        self.look |= other.look;
        self.backup |= other.backup;
    }

    fn is_due(self) -> bool {
        self.look || self.backup
    }
}

/// How the turn of a stub has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// All is done.
    Good,
    /// It is to be repeated. A damaged record is among the reasons: it may stay so for months.
    Failed,
    /// The stub has no record any more.
    Gone,
}

/// Longest time that an errand waits for stubs, and that all errands wait for a worker to take over.
const ERRAND_WAITS: Duration = Duration::from_millis(500);

/// Token of the watches that tell of new domains.
const DOMAINS_TOKEN: &str = "domains";
/// Token of the watch that tells of domains that have ended.
const DEATHS_TOKEN: &str = "deaths";
/// Token of the watch on libxl's notes of devices.
const LIBXL_TOKEN: &str = "libxl";
const STATE: &str = "state-";
const PUBLISHED: &str = "published-";

/// Token of the watch on a stub's state.
pub fn state_token(stub: DomId) -> String {
    format!("{STATE}{stub}")
}

/// Token of the watch on what a stub publishes.
fn published_token(stub: DomId) -> String {
    format!("{PUBLISHED}{stub}")
}

/// The nodes of a stub that are watched, each with its token.
pub fn watches(stub: DomId) -> [(String, String); 2] {
    [
        (Hop::second_hop(stub).frontend_node(key::STATE), state_token(stub)),
        (DeviceType::Pci.backends(stub), published_token(stub)),
    ]
}

/// The nodes that are watched whatever stubs there are, each with its token. Those by which stubs are found come first: by the
/// time that all are set, their first events are there.
pub fn host_watches() -> [(String, &'static str); 6] {
    [
        (DeviceType::Bulkhead.backends(0), ""),
        (ATTACHMENTS.to_owned(), ""),
        ("@releaseDomain".to_owned(), DEATHS_TOKEN),
        (assignable::DEVICES.to_owned(), LIBXL_TOKEN),
        // libxl writes below `/vm` before it builds the domain, so that there is time to pause it. A toolstack that does not
        // is heard of when it introduces the domain.
        ("/vm".to_owned(), DOMAINS_TOKEN),
        ("@introduceDomain".to_owned(), DOMAINS_TOKEN),
    ]
}

/// What an event is about: by its token if that names a stub or libxl, otherwise by the node that changed.
pub fn concern(event: &WatchEvent) -> Concern {
    match &*event.token {
        DOMAINS_TOKEN => return Concern::Domains,
        DEATHS_TOKEN => return Concern::Deaths,
        LIBXL_TOKEN => return Concern::Libxl,
        _ => {}
    }
    let stub = |prefix| event.token.strip_prefix(prefix)?.parse().ok();
    if let Some(stub) = stub(STATE) {
        return Concern::Stub(stub);
    }
    if let Some(stub) = stub(PUBLISHED) {
        return Concern::Published(stub);
    }
    for directory in [ATTACHMENTS, &DeviceType::Bulkhead.backends(0)] {
        let below = event.path.strip_prefix(directory);
        if let Some(below) = below.and_then(|below| below.strip_prefix('/')) {
            let (stub, node) = below.split_once('/').unwrap_or((below, ""));
            let is_record = directory == ATTACHMENTS;
            // The service writes these itself, while it works on that stub.
            let own = match is_record {
                true => node.starts_with("irq-") || node.starts_with("keepsake"),
                false => node == "0/state",
            };
            return match stub.parse() {
                Ok(_) if own => Concern::Nothing,
                Ok(stub) if is_record => Concern::Record(stub),
                Ok(stub) => Concern::Stub(stub),
                Err(_) => Concern::All,
            };
        }
    }
    Concern::All
}

/// What is to be done for one stub, and when.
#[derive(Debug)]
struct StubWork {
    next: StubTurn,
    throttle: Throttle,
    /// Its next turn does not come before this time.
    due: Instant,
    /// Delay if its next turn fails.
    retry: Duration,
}

/// The stubs and errands, and which of them are due.
#[derive(Debug, Default)]
pub struct Agenda {
    stubs: BTreeMap<DomId, StubWork>,
    /// The stub that had the last turn.
    last: DomId,
    /// When each errand is to be done.
    errands: BTreeMap<Errand, Instant>,
    /// While this worker takes over: when it has to go on to other work than the stubs.
    taking_over: Option<Instant>,
}

impl Agenda {
    /// This worker takes over from an earlier one. The list comes first and the stubs then. Everything else waits until no
    /// stub is due, and not longer than [`ERRAND_WAITS`].
    pub fn take_over(&mut self, now: Instant) {
        self.mark_errand(Errand::List, now);
        self.taking_over = Some(now + ERRAND_WAITS);
    }

    /// Marks what an event is about.
    pub fn mark(&mut self, concern: Concern, now: Instant) {
        match concern {
            Concern::All => self.mark_errand(Errand::List, now),
            Concern::Deaths => {
                self.mark_errand(Errand::Deaths, now);
                self.mark_errand(Errand::Tidy, now);
            }
            Concern::Domains => self.mark_errand(Errand::Domains, now),
            Concern::Libxl => self.mark_errand(Errand::Libxl, now),
            Concern::Record(stub) | Concern::Stub(stub) => self.entry(stub, now).next.add(StubTurn::LOOK),
            Concern::Published(stub) => self.entry(stub, now).next.add(StubTurn::BACKUP),
            Concern::Nothing => {}
        }
    }

    fn entry(&mut self, stub: DomId, now: Instant) -> &mut StubWork {
        self.stubs.entry(stub).or_insert_with(|| StubWork {
            next: StubTurn::default(),
            throttle: Throttle::new(Limit::STUB_TURNS, now),
            due: now,
            retry: RETRY,
        })
    }

    /// Marks an errand. One that is marked already keeps its time.
    pub fn mark_errand(&mut self, errand: Errand, now: Instant) {
        // An errand that failed keeps its delay, whatever events come meanwhile.
        self.errands.entry(errand).or_insert(now);
    }

    /// An errand has failed. It is repeated after a delay.
    pub fn errand_later(&mut self, errand: Errand, now: Instant) {
        self.errands.insert(errand, now + RETRY);
    }

    /// Forgets all other stubs than these, and marks those that are `due` a look, and the tidying.
    pub fn keep(&mut self, stubs: &BTreeSet<DomId>, due: &BTreeSet<DomId>, now: Instant) {
        self.mark_errand(Errand::Tidy, now);
        // Stubs that stay keep their throttle, or a new list would give each of them a new burst.
        self.stubs.retain(|stub, _| stubs.contains(stub));
        for &stub in due {
            self.mark(Concern::Stub(stub), now);
        }
    }

    /// Takes the next piece of work; `None` if nothing is due.
    pub fn next(&mut self, now: Instant) -> Option<Work> {
        if self.taking_over.is_some_and(|until| now < until) {
            let work = self
                .next_errand(|errand, due| errand == Errand::List && due <= now)
                .or_else(|| self.next_stub(now));
            if work.is_some() {
                return work;
            }
        }
        self.taking_over = None;
        let is_due = |errand: Errand, due: Instant| {
            let is_urgent = matches!(errand, Errand::Domains | Errand::List | Errand::Deaths);
            due <= now && (is_urgent || due + ERRAND_WAITS <= now)
        };
        // Urgent errands first, and errands that have waited long enough; then stubs; then the other errands.
        self.next_errand(is_due)
            .or_else(|| self.next_stub(now))
            .or_else(|| self.next_errand(|_, due| due <= now))
    }

    fn next_errand(&mut self, is_due: impl Fn(Errand, Instant) -> bool) -> Option<Work> {
        let mut errands = self.errands.iter();
        let (&errand, _) = errands.find(|&(&errand, &due)| is_due(errand, due))?;
        self.errands.remove(&errand);
        Some(Work::Errand(errand))
    }

    fn next_stub(&mut self, now: Instant) -> Option<Work> {
        // The next number after the last turn, then from the lowest: each marked stub comes before any comes twice.
        let due = |(_, entry): &(&DomId, &StubWork)| entry.next.is_due() && entry.due <= now;
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let (&stub, _) = self
            .stubs
            .range(after)
            .find(due)
            .or_else(|| self.stubs.range(..=self.last).find(due))?;
        self.last = stub;
        let entry = self.stubs.get_mut(&stub)?;
        Some(Work::Stub(stub, std::mem::take(&mut entry.next)))
    }

    /// The turn of a stub has ended in this way, and has taken this time.
    pub fn ended(&mut self, stub: DomId, turn: StubTurn, end: TurnEnd, took: Duration, now: Instant) {
        match end {
            TurnEnd::Good => {}
            TurnEnd::Failed => self.later(stub, turn, now),
            TurnEnd::Gone => _ = self.stubs.remove(&stub),
        }
        if let Some(entry) = self.stubs.get_mut(&stub) {
            if end == TurnEnd::Good {
                entry.retry = RETRY;
            }
            let wait = entry.throttle.spend(1, now);
            // In proportion to the time that the turn took: a stub with many nodes costs more, and waits longer.
            if !wait.is_zero() {
                entry.due = entry.due.max(now + wait.max(took * (SHARE - 1)));
            }
        }
    }

    /// The turn of a stub has failed, or came too early. It is repeated after a delay, for the same work.
    pub fn later(&mut self, stub: DomId, turn: StubTurn, now: Instant) {
        let entry = self.entry(stub, now);
        // The mark was taken off when the turn began.
        entry.next.add(turn);
        entry.due = entry.due.max(now + entry.retry);
        entry.retry = (entry.retry * 2).min(MOST_RETRY);
    }

    /// Time until work is due without a further event; `None` if there is none.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        let marked = self.stubs.values().filter(|entry| entry.next.is_due());
        let stubs = marked.map(|entry| entry.due);
        let due = stubs.chain(self.errands.values().copied()).min()?;
        Some(due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 40;

    fn look(stub: DomId) -> Option<Work> {
        Some(Work::Stub(stub, StubTurn::LOOK))
    }

    fn backup(stub: DomId) -> Option<Work> {
        Some(Work::Stub(stub, StubTurn::BACKUP))
    }

    /// These stubs are all that there are, and all are due a look.
    fn keep<const STUBS: usize>(agenda: &mut Agenda, stubs: [DomId; STUBS], now: Instant) {
        agenda.keep(&stubs.into(), &stubs.into(), now);
    }

    const BOTH: StubTurn = StubTurn {
        look: true,
        backup: true,
    };

    /// An agenda that has read the list, and has tidied up.
    fn agenda_of<const STUBS: usize>(stubs: [DomId; STUBS], now: Instant) -> Agenda {
        let mut agenda = Agenda::default();
        keep(&mut agenda, stubs, now);
        agenda.errands.clear();
        agenda
    }

    fn event(path: &str, token: &str) -> WatchEvent {
        WatchEvent {
            path: path.into(),
            token: token.into(),
        }
    }

    #[test]
    fn an_event_is_about_the_stub_whose_node_has_changed() {
        let (record, backend) = (format!("{ATTACHMENTS}/4"), "/local/domain/0/backend/bulkhead");
        for (path, token, concerned) in [
            (
                "/local/domain/4/device/bulkhead/0/state",
                state_token(4),
                Concern::Stub(4),
            ),
            (
                "/local/domain/4/backend/pci",
                published_token(4),
                Concern::Published(4),
            ),
            (&*record, String::new(), Concern::Record(4)),
            (&format!("{record}/dev-0"), String::new(), Concern::Record(4)),
            (
                &format!("{record}/irq-0000-00-05-0"),
                String::new(),
                Concern::Nothing,
            ),
            (
                &format!("{record}/keepsake/backend/state"),
                String::new(),
                Concern::Nothing,
            ),
            (&format!("{backend}/4/0/guest"), String::new(), Concern::Stub(4)),
            (&format!("{backend}/4/0/state"), String::new(), Concern::Nothing),
            // Folded events, and what is nobody's.
            (backend, String::new(), Concern::All),
            (ATTACHMENTS, String::new(), Concern::All),
            (&format!("{ATTACHMENTS}/x"), String::new(), Concern::All),
            ("@releaseDomain", DEATHS_TOKEN.into(), Concern::Deaths),
            ("/libxl/pci/0000-00-05-0", LIBXL_TOKEN.into(), Concern::Libxl),
        ] {
            assert_eq!(concern(&event(path, &token)), concerned, "{path}");
        }
    }

    #[test]
    fn marked_stubs_take_turns_however_often_one_is_marked() {
        let now = Instant::now();
        let mut agenda = agenda_of([3, 5, 9], now);
        for expected in [3, 5, 9, 3, 3, 3] {
            agenda.mark(Concern::Stub(3), now);
            assert_eq!(agenda.next(now), look(expected));
        }
        agenda.mark(Concern::Stub(9), now);
        agenda.mark(Concern::Stub(3), now);
        assert_eq!(agenda.next(now), look(9));
        assert_eq!(agenda.next(now), look(3));
        assert_eq!(agenda.next(now), None);
        assert_eq!(agenda.idle(now), None);
    }

    #[test]
    fn a_stub_that_floods_waits_and_takes_no_more_than_its_share() {
        let start = Instant::now();
        let mut agenda = Agenda::default();
        let took = Duration::from_millis(50);
        for _ in 0..BURST {
            agenda.mark(Concern::Published(3), start);
            assert_eq!(agenda.next(start), backup(3));
            agenda.ended(3, StubTurn::BACKUP, TurnEnd::Good, took, start);
        }
        agenda.mark(Concern::Published(3), start);
        assert_eq!(agenda.next(start), backup(3));
        agenda.ended(3, StubTurn::BACKUP, TurnEnd::Good, took, start);
        agenda.mark(Concern::Stub(3), start);
        agenda.mark(Concern::Stub(4), start);
        assert_eq!(agenda.next(start), look(4), "others do not wait for it");
        assert_eq!(agenda.next(start), None);
        assert_eq!(agenda.idle(start), Some(took * 4));
        assert_eq!(agenda.next(start + took * 4), look(3));
    }

    #[test]
    fn a_turn_that_failed_comes_again_with_all_that_it_was_for() {
        let start = Instant::now();
        let mut agenda = Agenda::default();
        agenda.mark(Concern::Published(3), start);
        assert_eq!(agenda.next(start), backup(3));
        agenda.later(3, StubTurn::BACKUP, start);
        agenda.mark(Concern::Stub(3), start);
        assert_eq!(agenda.next(start), None);
        assert_eq!(agenda.idle(start), Some(RETRY));
        assert_eq!(agenda.next(start + RETRY), Some(Work::Stub(3, BOTH)));
        // One that goes on failing gets its turn less and less often, until a turn succeeds.
        let mut now = start + RETRY;
        for expected in [2, 4, 8, 16, 32, 50, 50] {
            agenda.later(3, StubTurn::LOOK, now);
            assert_eq!(agenda.idle(now), Some(RETRY * expected));
            now += RETRY * expected;
            assert!(agenda.next(now).is_some());
        }
        agenda.ended(3, StubTurn::LOOK, TurnEnd::Good, Duration::ZERO, now);
        agenda.later(3, StubTurn::LOOK, now);
        assert_eq!(agenda.idle(now), Some(RETRY));
    }

    #[test]
    fn a_record_that_stays_damaged_is_read_less_and_less_often() {
        let mut now = Instant::now();
        let mut agenda = agenda_of([3], now);
        for expected in [1, 2, 4, 8, 16, 32, 50, 50] {
            assert_eq!(agenda.next(now), look(3));
            agenda.ended(3, StubTurn::LOOK, TurnEnd::Failed, Duration::ZERO, now);
            // Its stub is not served, so that each list marks it.
            keep(&mut agenda, [3], now);
            agenda.errands.clear();
            assert_eq!(agenda.next(now), None);
            assert_eq!(agenda.idle(now), Some(RETRY * expected));
            now += RETRY * expected;
        }
        // A later stub with its number does not wait.
        agenda.ended(3, StubTurn::LOOK, TurnEnd::Gone, Duration::ZERO, now);
        agenda.mark(Concern::Record(3), now);
        assert_eq!(agenda.next(now), look(3));
    }

    #[test]
    fn an_errand_that_failed_comes_again_after_a_pause() {
        type Mark = fn(&mut Agenda, Instant);
        let start = Instant::now();
        let kinds: [(Errand, Mark); 4] = [
            (Errand::List, |agenda, now| agenda.mark(Concern::All, now)),
            (Errand::Deaths, |agenda, now| {
                agenda.mark_errand(Errand::Deaths, now)
            }),
            (Errand::Tidy, |agenda, now| keep(agenda, [], now)),
            (Errand::Libxl, |agenda, now| agenda.mark(Concern::Libxl, now)),
        ];
        for (errand, mark) in kinds {
            let mut agenda = Agenda::default();
            mark(&mut agenda, start);
            assert_eq!(agenda.idle(start), Some(Duration::ZERO));
            assert_eq!(agenda.next(start), Some(Work::Errand(errand)));
            assert_eq!(agenda.next(start), None);
            agenda.errand_later(errand, start);
            // A flood of events does not bring it sooner.
            mark(&mut agenda, start);
            assert_eq!(agenda.next(start), None);
            assert_eq!(agenda.idle(start), Some(RETRY));
            assert_eq!(agenda.next(start + RETRY), Some(Work::Errand(errand)));
            assert_eq!(agenda.idle(start), None);
        }
    }

    #[test]
    fn after_a_start_every_stub_comes_before_what_is_of_none() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        for concern in [Concern::Libxl, Concern::All] {
            agenda.mark(concern, now);
        }
        assert_eq!(agenda.next(now), Some(Work::Errand(Errand::List)));
        keep(&mut agenda, [3, 5], now);
        let order = [
            look(3),
            look(5),
            Some(Work::Errand(Errand::Tidy)),
            Some(Work::Errand(Errand::Libxl)),
            None,
        ];
        assert_eq!(order.map(|_| agenda.next(now)), order);
        assert_eq!(agenda.idle(now), None);
    }

    #[test]
    fn a_worker_that_takes_over_comes_to_new_domains_when_no_stub_waits_or_half_a_second_has_passed() {
        let start = Instant::now();
        let taking_over = || {
            let mut agenda = Agenda::default();
            agenda.take_over(start);
            // The first events of the watches, in any order.
            for concern in [Concern::Domains, Concern::Deaths, Concern::Libxl, Concern::All] {
                agenda.mark(concern, start);
            }
            assert_eq!(agenda.next(start), Some(Work::Errand(Errand::List)));
            keep(&mut agenda, [3, 5], start);
            agenda
        };
        let domains = Some(Work::Errand(Errand::Domains));
        let mut agenda = taking_over();
        assert_eq!(agenda.next(start), look(3));
        // What comes meanwhile is not lost: a guest that starts, and a change of a stub or of the list.
        agenda.mark(Concern::Domains, start);
        agenda.mark(Concern::Stub(3), start);
        agenda.mark(Concern::All, start);
        assert_eq!(agenda.next(start), Some(Work::Errand(Errand::List)));
        assert_eq!(agenda.next(start), look(5));
        assert_eq!(agenda.next(start), look(3));
        assert_eq!(agenda.next(start), domains);
        // From then on new domains come before stubs again.
        agenda.mark(Concern::Stub(3), start);
        agenda.mark(Concern::Domains, start);
        assert_eq!(agenda.next(start), domains);

        // A stub that cannot be served yet keeps nothing from being done.
        let mut agenda = taking_over();
        for stub in [3, 5] {
            assert_eq!(agenda.next(start), look(stub));
            agenda.later(stub, StubTurn::LOOK, start);
        }
        assert_eq!(agenda.next(start), domains);

        // Nor do stubs that are due again and again.
        let mut agenda = taking_over();
        let late = start + ERRAND_WAITS;
        assert_eq!(agenda.next(late - Duration::from_millis(1)), look(3));
        assert_eq!(agenda.next(late), domains);
    }

    #[test]
    fn stubs_that_flood_do_not_keep_an_errand_from_being_done() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        for concern in [Concern::Libxl, Concern::Stub(3)] {
            agenda.mark(concern, now);
        }
        let late = now + ERRAND_WAITS;
        assert_eq!(agenda.next(late), Some(Work::Errand(Errand::Libxl)));
        assert_eq!(agenda.next(late), look(3));
    }

    #[test]
    fn when_a_domain_has_ended_no_stub_is_looked_at_before_xen_has_told_which() {
        let now = Instant::now();
        let mut agenda = agenda_of([], now);
        for stub in [3, 5] {
            agenda.mark(Concern::Record(stub), now);
            agenda.next(now);
        }
        agenda.mark(Concern::Deaths, now);
        let order = [
            Some(Work::Errand(Errand::Deaths)),
            Some(Work::Errand(Errand::Tidy)),
            None,
        ];
        assert_eq!(order.map(|_| agenda.next(now)), order);
    }

    #[test]
    fn what_is_gone_has_no_turn_and_the_list_is_read_once() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        agenda.mark(Concern::All, now);
        agenda.mark(Concern::All, now);
        assert_eq!(agenda.next(now), Some(Work::Errand(Errand::List)));
        assert_eq!(agenda.next(now), None);
        keep(&mut agenda, [3, 4, 5], now);
        keep(&mut agenda, [4, 5], now);
        agenda.keep(&[4, 5, 6].into(), &[].into(), now);
        assert_eq!(agenda.errands.remove(&Errand::Tidy), Some(now));
        agenda.ended(5, StubTurn::LOOK, TurnEnd::Gone, Duration::ZERO, now);
        agenda.mark(Concern::Nothing, now);
        assert_eq!(agenda.next(now), look(4));
        assert_eq!(agenda.next(now), None);
    }
}
