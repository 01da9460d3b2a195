//! A model of Xen for a few domains: grants, event channels, ECAM pages, and a clock that moves when all wait.

use super::device::Device;
use drivers::crash_log::{Cause, CrashLog, Next, Op};
use drivers::platform::{ConfigSpace, DomId, EcamError, Errno, GrantRef, Platform, Port};
use drivers::snapshot::Snapshot;
use pci::bdf::Bdf;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use xenbus::model::Page;

const EINVAL: Errno = Errno(22);
const EPERM: Errno = Errno(1);

/// One end of an event channel.
#[derive(Debug)]
struct End {
    peer: DomId,
    /// The port at the peer; `None` while unbound.
    remote: Option<Port>,
    pending: bool,
    /// When the peer has sent its last event.
    told: Duration,
}

#[derive(Debug, Default)]
struct State {
    clock: Duration,
    grants: BTreeMap<(DomId, GrantRef), (DomId, Page)>,
    ends: BTreeMap<(DomId, Port), End>,
    ecams: BTreeMap<u64, Device>,
    /// Frames that Xen would let the stub write.
    writable: BTreeSet<u64>,
    next: u32,
    /// Foreign pages and ECAM pages that are mapped at present.
    mapped: usize,
    refuse_grants: bool,
    /// What the stub leaves to its next life in the same domain.
    crash_log: CrashLog,
    remembered: BTreeMap<Bdf, u32>,
    snapshot: Rc<Snapshot>,
    under_way: Option<Op>,
    /// Others run at any moment, and not only while the stub waits.
    preempting: bool,
    /// Waits in a row that ended at once.
    idle_turns: usize,
    /// A wait ends at this time, so that somebody else may act then.
    alarm: Option<Duration>,
    /// Moments that the stub has come by, and the one at which it dies.
    moments: usize,
    dies_at: Option<usize>,
}

/// What a stub that dies by order panics with.
pub struct Death;

/// The machine. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct World(Rc<RefCell<State>>);

impl World {
    pub fn now(&self) -> Duration {
        self.0.borrow().clock
    }

    pub fn add_ecam(&self, frame: u64, device: &Device) {
        self.0.borrow_mut().ecams.insert(frame, device.clone());
    }

    /// Xen would let the stub write this frame.
    pub fn leave_writable(&self, frame: u64) {
        self.0.borrow_mut().writable.insert(frame);
    }

    /// From now on Xen has no grant left, or has again.
    pub fn refuse_grants(&self, refuse: bool) {
        self.0.borrow_mut().refuse_grants = refuse;
    }

    /// Has the stub die at this moment of all that it comes by.
    pub fn die_at(&self, moment: usize) {
        self.0.borrow_mut().dies_at = Some(moment);
    }

    /// Moments that the stub has come by.
    pub fn moments(&self) -> usize {
        self.0.borrow().moments
    }

    /// True if the stub has died by order, or is about to.
    pub fn is_mortal(&self) -> bool {
        self.0.borrow().dies_at.is_some()
    }

    /// Does this, with a moment before and after it.
    fn around<R>(&self, act: impl FnOnce() -> R) -> R {
        self.moment();
        let result = act();
        self.moment();
        result
    }

    /// A moment at which the stub can die.
    pub fn moment(&self) {
        let moment = {
            let mut state = self.0.borrow_mut();
            state.moments += 1;
            (state.dies_at == Some(state.moments)).then_some(Death)
        };
        if let Some(death) = moment {
            std::panic::resume_unwind(Box::new(death));
        }
    }

    /// From now on others run at any moment.
    pub fn preempt(&self) {
        self.0.borrow_mut().preempting = true;
    }

    /// The stub's next wait ends at this time, so that somebody else can act then.
    pub fn set_alarm(&self, alarm: Duration) {
        self.0.borrow_mut().alarm = Some(alarm);
    }

    /// Time passes.
    pub fn advance(&self, time: Duration) {
        self.0.borrow_mut().clock += time;
    }

    /// Foreign pages and ECAM pages that are mapped.
    pub fn mapped(&self) -> usize {
        self.0.borrow().mapped
    }

    /// Number of open ports of a domain.
    pub fn open_ports(&self, domid: DomId) -> usize {
        self.0
            .borrow()
            .ends
            .keys()
            .filter(|(owner, _)| *owner == domid)
            .count()
    }

    /// The stub fails, and notes it.
    pub fn fail(&self, cause: Cause) -> Next {
        let mut state = self.0.borrow_mut();
        let (now, op) = (state.clock, state.under_way.take());
        state.crash_log.fail(cause, now, op.as_ref())
    }

    /// True if the stub would begin anew after a failure.
    pub fn outlives_a_failure(&self) -> bool {
        let state = self.0.borrow();
        let mut crash_log = state.crash_log;
        matches!(crash_log.fail(Cause::Panic, state.clock, None), Next::Restart(_))
    }

    /// Of what its lives kept in memory nothing is left.
    pub fn forget_lives(&self) {
        let mut state = self.0.borrow_mut();
        state.crash_log = CrashLog::NEW;
        state.remembered.clear();
        state.snapshot = Rc::default();
        state.under_way = None;
    }

    /// What its lives serve the guest by.
    pub fn snapshot(&self) -> Rc<Snapshot> {
        Rc::clone(&self.0.borrow().snapshot)
    }

    /// Has the next failure be over this request.
    pub fn set_under_way(&self, op: Option<Op>) {
        self.0.borrow_mut().under_way = op;
    }

    /// The request that is under way.
    pub fn under_way(&self) -> Option<Op> {
        self.0.borrow().under_way
    }

    /// The stub dies: its ports are closed and its mappings go. Its grants stay, as nobody asks for them.
    pub fn kill(&self, domid: DomId) {
        self.0.borrow_mut().mapped = 0;
        let ports: Vec<Port> = {
            let state = self.0.borrow();
            let own = state.ends.keys().filter(|(owner, _)| *owner == domid);
            own.map(|&(_, port)| port).collect()
        };
        for port in ports {
            self.close(domid, port);
        }
    }

    /// Ends all grants of a domain.
    pub fn revoke_all(&self, domid: DomId) {
        self.0.borrow_mut().grants.retain(|(owner, _), _| *owner != domid);
    }

    /// Number of live grants of a domain.
    pub fn grants(&self, domid: DomId) -> usize {
        self.0
            .borrow()
            .grants
            .keys()
            .filter(|(owner, _)| *owner == domid)
            .count()
    }

    pub fn share(&self, owner: DomId, peer: DomId) -> Result<(Page, GrantRef), Errno> {
        let mut state = self.0.borrow_mut();
        if state.refuse_grants {
            return Err(Errno(28));
        }
        state.next += 1;
        let grant = state.next;
        let page = Page::new();
        state.grants.insert((owner, grant), (peer, page.clone()));
        Ok((page, grant))
    }

    pub fn unshare(&self, owner: DomId, grant: GrantRef) {
        assert!(
            self.0.borrow_mut().grants.remove(&(owner, grant)).is_some(),
            "ungranted twice"
        );
    }

    pub fn map(&self, who: DomId, owner: DomId, grant: GrantRef) -> Result<Page, Errno> {
        let state = self.0.borrow();
        match state.grants.get(&(owner, grant)) {
            Some((peer, page)) if *peer == who => Ok(page.clone()),
            Some(_) => Err(EPERM),
            None => Err(EINVAL),
        }
    }

    pub fn alloc_unbound(&self, owner: DomId, peer: DomId) -> Port {
        let mut state = self.0.borrow_mut();
        state.next += 1;
        let port = state.next;
        let end = End {
            peer,
            remote: None,
            pending: false,
            told: Duration::ZERO,
        };
        state.ends.insert((owner, port), end);
        port
    }

    pub fn bind(&self, who: DomId, peer: DomId, remote: Port) -> Result<Port, Errno> {
        let mut state = self.0.borrow_mut();
        state.next += 1;
        let port = state.next;
        match state.ends.get_mut(&(peer, remote)) {
            Some(end) if end.peer == who && end.remote.is_none() => end.remote = Some(port),
            _ => return Err(EINVAL),
        }
        // Xen marks the new port, in case something came before it was there.
        let end = End {
            peer,
            remote: Some(remote),
            pending: true,
            told: Duration::ZERO,
        };
        state.ends.insert((who, port), end);
        Ok(port)
    }

    pub fn close(&self, owner: DomId, port: Port) {
        let mut state = self.0.borrow_mut();
        let end = state.ends.remove(&(owner, port)).expect("an open port");
        if let Some(remote) = end.remote
            && let Some(other) = state.ends.get_mut(&(end.peer, remote))
        {
            other.remote = None;
        }
    }

    pub fn notify(&self, owner: DomId, port: Port) {
        let mut state = self.0.borrow_mut();
        let end = state.ends.get(&(owner, port)).expect("an open port");
        let Some(remote) = end.remote else { return };
        let (to, now) = ((end.peer, remote), state.clock);
        if let Some(other) = state.ends.get_mut(&to) {
            (other.pending, other.told) = (true, now);
        }
    }

    /// When the last event was sent to a port.
    pub fn told(&self, owner: DomId, port: Port) -> Duration {
        self.0.borrow().ends[&(owner, port)].told
    }

    pub fn take_pending(&self, owner: DomId, port: Port) -> bool {
        let mut state = self.0.borrow_mut();
        state
            .ends
            .get_mut(&(owner, port))
            .is_some_and(|end| std::mem::take(&mut end.pending))
    }

    pub fn is_pending(&self, owner: DomId, ports: &[Port]) -> bool {
        let state = self.0.borrow();
        let pending = |port| state.ends.get(&(owner, port)).is_some_and(|end| end.pending);
        ports.iter().any(|&port| pending(port))
    }
}

/// What else runs while a domain waits.
pub type Others = Rc<RefCell<dyn FnMut()>>;

/// Port of the stub's xenstore connection.
pub const STORE_PORT: Port = 1_000_000;

/// The event of a connection to xenstore: pending since the last look if more has arrived since.
#[derive(Clone, Default)]
pub struct StoreEvent {
    pub arrived: Option<Rc<dyn Fn() -> u64>>,
    pub seen: Rc<Cell<u64>>,
}

impl StoreEvent {
    pub fn is_pending(&self) -> bool {
        self.arrived
            .as_ref()
            .is_some_and(|arrived| arrived() != self.seen.get())
    }

    pub fn take(&self) -> bool {
        let pending = self.is_pending();
        if let Some(arrived) = &self.arrived {
            self.seen.set(arrived());
        }
        pending
    }
}

/// A domain's view of the [`World`].
pub struct Domain {
    pub domid: DomId,
    pub world: World,
    pub others: Others,
    pub store: StoreEvent,
    pub snapshot: Rc<Snapshot>,
}

/// An ECAM page: reads only.
pub struct Ecam(Device);

impl ConfigSpace for Ecam {
    fn read(&self, offset: u16, width: u8) -> u32 {
        self.0.read(offset, width)
    }
}

impl Platform for Domain {
    type Page = Page;
    type Ecam = Ecam;

    fn now(&self) -> Duration {
        self.world.now()
    }

    fn map_grant(&mut self, owner: DomId, grant: GrantRef) -> Result<Page, Errno> {
        let world = self.world.clone();
        world.around(|| {
            let page = self.world.map(self.domid, owner, grant)?;
            self.world.0.borrow_mut().mapped += 1;
            Ok(page)
        })
    }

    fn unmap_grant(&mut self, _: Page) {
        self.world.moment();
        self.world.0.borrow_mut().mapped -= 1;
        self.world.moment();
    }

    fn share_page(&mut self, peer: DomId) -> Result<(Page, GrantRef), Errno> {
        let world = self.world.clone();
        world.around(|| self.world.share(self.domid, peer))
    }

    fn unshare_page(&mut self, _: Page, grant: GrantRef) {
        self.world.moment();
        self.world.unshare(self.domid, grant);
        self.world.moment();
    }

    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, Errno> {
        let world = self.world.clone();
        world.around(|| self.world.bind(self.domid, peer, remote))
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, Errno> {
        let world = self.world.clone();
        world.around(|| Ok(self.world.alloc_unbound(self.domid, peer)))
    }

    fn close(&mut self, port: Port) {
        self.world.moment();
        self.world.close(self.domid, port);
        self.world.moment();
    }

    fn notify(&mut self, port: Port) {
        self.world.moment();
        self.world.notify(self.domid, port);
        self.world.moment();
    }

    fn take_pending(&mut self, port: Port) -> bool {
        let world = self.world.clone();
        world.around(|| {
            if self.world.0.borrow().preempting {
                (self.others.borrow_mut())();
            }
            if port == STORE_PORT {
                return self.store.take();
            }
            self.world.take_pending(self.domid, port)
        })
    }

    fn is_pending(&self, port: Port) -> bool {
        port == STORE_PORT && self.store.is_pending() || self.world.is_pending(self.domid, &[port])
    }

    fn relax(&mut self) {
        // Others run only in `wait`.
        self.world.0.borrow_mut().clock += Duration::from_micros(10);
    }

    fn wait(&mut self, ports: &[Port], until: Option<Duration>) {
        self.world.moment();
        (self.others.borrow_mut())();
        if ports.iter().any(|port| self.is_pending(*port)) {
            let mut state = self.world.0.borrow_mut();
            state.idle_turns += 1;
            assert!(state.idle_turns < 10_000, "it waits for what is there already");
        } else {
            self.world.0.borrow_mut().idle_turns = 0;
            let until = until.expect("a wait without a deadline, and nothing will ever happen");
            let mut state = self.world.0.borrow_mut();
            let now = state.clock;
            let alarm = state.alarm.filter(|&alarm| now < alarm && alarm < until);
            state.clock = now.max(alarm.unwrap_or(until));
        }
        self.world.moment();
    }

    fn map_ecam(&mut self, frame: u64) -> Result<Ecam, EcamError> {
        let world = self.world.clone();
        world.around(|| {
            let mut state = self.world.0.borrow_mut();
            let device = state
                .ecams
                .get(&frame)
                .cloned()
                .ok_or(EcamError::Refused(EPERM))?;
            if state.writable.contains(&frame) {
                return Err(EcamError::Writable);
            }
            state.mapped += 1;
            Ok(Ecam(device))
        })
    }

    fn unmap_ecam(&mut self, _: Ecam) {
        self.world.moment();
        self.world.0.borrow_mut().mapped -= 1;
        self.world.moment();
    }

    fn see_crash_log<R>(&self, see: impl FnOnce(&CrashLog) -> R) -> R {
        see(&self.world.0.borrow().crash_log)
    }

    fn update_crash_log(&mut self, change: impl FnOnce(&mut CrashLog)) {
        self.world.moment();
        change(&mut self.world.0.borrow_mut().crash_log);
        self.world.moment();
    }

    fn set_under_way(&mut self, op: Option<&Op>) {
        self.world.moment();
        self.world.set_under_way(op.copied());
        self.world.moment();
    }

    fn recall(&self, guest_bdf: Bdf) -> Option<u32> {
        self.world.0.borrow().remembered.get(&guest_bdf).copied()
    }

    fn remember(&mut self, guest_bdf: Bdf, word: Option<u32>) {
        self.world.moment();
        {
            let remembered = &mut self.world.0.borrow_mut().remembered;
            match word {
                Some(word) => remembered.insert(guest_bdf, word),
                None => remembered.remove(&guest_bdf),
            };
        }
        self.world.moment();
    }

    fn snapshot(&self) -> &Snapshot {
        self.world.moment();
        &self.snapshot
    }

    #[cfg(feature = "inject")]
    fn fault(&mut self, kind: drivers::failure::FailureKind) {
        panic!("{kind:?}, as ordered");
    }
}
