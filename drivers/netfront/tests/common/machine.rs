//! A model of Xen for the frontend's domain: a pool of pages as the stub has it, their grants, and event channels.

use drivers::crash_log::{CrashLog, Op};
use drivers::platform::{ConfigSpace, DomId, EcamError, Errno, GrantRef, Platform, Port};
use netfront::PAGES;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use xenbus::model;
use xenbus::pciif::SharedPage;

/// Pages of the pool: enough for one connection while a backend keeps the pages of the one before.
const POOL: usize = 2 * PAGES;
/// The grant reference of the first page.
const FIRST: GrantRef = 8;

/// Where bytes were read, from and to.
pub type Reads = Vec<(usize, usize)>;

/// A page that can change behind its reader's back.
#[derive(Clone, Debug, Default)]
pub struct Page {
    memory: model::Page,
    /// Bytes that have been read turn into garbage.
    volatile: Rc<Cell<bool>>,
    /// What the frontend has read, if that is recorded.
    reads: Rc<RefCell<Option<Reads>>>,
}

impl Page {
    /// From now on whatever is read is garbage afterwards.
    pub fn spoil_what_is_read(&self) {
        self.volatile.set(true);
    }

    pub fn record_reads(&self) {
        *self.reads.borrow_mut() = Some(Vec::new());
    }

    pub fn take_reads(&self) -> Reads {
        self.reads.borrow_mut().replace(Vec::new()).unwrap_or_default()
    }

    /// True if both are views of the same page.
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.volatile, &other.volatile)
    }

    /// The other domain's view.
    pub fn memory(&self) -> &model::Page {
        &self.memory
    }

    fn read(&self, range: Range<usize>) {
        if self.volatile.get() {
            self.memory.copy_in(range.start, &vec![0xee; range.len()]);
        }
        if let Some(reads) = self.reads.borrow_mut().as_mut() {
            reads.push((range.start, range.end));
        }
    }
}

impl SharedPage for Page {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.memory.copy_out(offset, into);
        self.read(offset..offset + into.len());
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.memory.copy_in(offset, bytes);
    }

    fn load(&self, offset: usize) -> u32 {
        self.memory.load(offset)
    }

    fn store(&self, offset: usize, value: u32) {
        self.memory.store(offset, value);
    }

    fn set_bits(&self, offset: usize, bits: u32) -> u32 {
        self.memory.set_bits(offset, bits)
    }

    fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
        self.memory.clear_bits(offset, bits)
    }
}

#[derive(Debug, Default)]
struct Frame {
    page: Page,
    /// The domain that it is granted to.
    peer: Option<DomId>,
    mappings: usize,
}

#[derive(Debug)]
struct Channel {
    peer: DomId,
    bound: bool,
    pending: bool,
    /// Events that were sent to the peer.
    sent: usize,
}

#[derive(Debug)]
struct State {
    frames: Vec<Frame>,
    ports: BTreeMap<Port, Channel>,
    next_port: Port,
    /// After so many more pages and ports Xen refuses one.
    refuse_after: Option<usize>,
    clock: Duration,
}

/// The machine. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Machine(Rc<RefCell<State>>);

impl Machine {
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(State {
            frames: (0..POOL).map(|_| Frame::default()).collect(),
            ports: BTreeMap::new(),
            next_port: 20,
            refuse_after: None,
            clock: Duration::ZERO,
        })))
    }

    /// Time passes.
    pub fn advance(&self, time: Duration) {
        self.0.borrow_mut().clock += time;
    }

    /// Has Xen refuse one page or port, after so many more.
    pub fn refuse_after(&self, count: usize) {
        self.0.borrow_mut().refuse_after = Some(count);
    }

    fn refuses(&self) -> Result<(), Errno> {
        let mut state = self.0.borrow_mut();
        match state.refuse_after {
            Some(0) => {
                state.refuse_after = None;
                Err(Errno(28))
            }
            left => {
                state.refuse_after = left.map(|left| left - 1);
                Ok(())
            }
        }
    }

    /// Pages that are granted at present.
    pub fn granted(&self) -> Vec<GrantRef> {
        let state = self.0.borrow();
        let granted = state
            .frames
            .iter()
            .enumerate()
            .filter(|(_, frame)| frame.peer.is_some());
        granted.map(|(index, _)| FIRST + index as GrantRef).collect()
    }

    /// Another run begins: no grant and no port of the one before is left.
    pub fn forget_all(&self) {
        let mut state = self.0.borrow_mut();
        state.ports.clear();
        for frame in &mut state.frames {
            frame.peer = None;
        }
    }

    pub fn ports(&self) -> usize {
        self.0.borrow().ports.len()
    }

    /// The page of a grant, granted or not.
    pub fn page(&self, grant: GrantRef) -> Page {
        self.0.borrow().frames[(grant - FIRST) as usize].page.clone()
    }

    /// Domain `who` maps a granted page.
    pub fn map(&self, who: DomId, grant: GrantRef) -> Option<Page> {
        let mut state = self.0.borrow_mut();
        let index = grant.checked_sub(FIRST)? as usize;
        let frame = state.frames.get_mut(index)?;
        (frame.peer == Some(who)).then(|| {
            frame.mappings += 1;
            frame.page.clone()
        })
    }

    pub fn unmap(&self, grant: GrantRef) {
        let mut state = self.0.borrow_mut();
        let mappings = &mut state.frames[(grant - FIRST) as usize].mappings;
        *mappings = mappings.checked_sub(1).expect("a mapped page");
    }

    /// The same for a page whose grant is not known any more.
    pub fn unmap_page(&self, page: &Page) {
        let mut state = self.0.borrow_mut();
        let frame = state.frames.iter_mut().find(|frame| frame.page.is_same(page));
        let mappings = &mut frame.expect("a page of the pool").mappings;
        *mappings = mappings.checked_sub(1).expect("a mapped page");
    }

    /// Mappings of all pages by others.
    pub fn mapped(&self) -> usize {
        self.0.borrow().frames.iter().map(|frame| frame.mappings).sum()
    }

    /// Domain `who` binds the frontend's port.
    pub fn bind(&self, who: DomId, port: Port) -> bool {
        let mut state = self.0.borrow_mut();
        match state.ports.get_mut(&port) {
            Some(channel) if channel.peer == who && !channel.bound => {
                channel.bound = true;
                true
            }
            _ => false,
        }
    }

    /// The backend closes its end.
    pub fn unbind(&self, port: Port) {
        if let Some(channel) = self.0.borrow_mut().ports.get_mut(&port) {
            channel.bound = false;
        }
    }

    /// The backend sends an event.
    pub fn notify_frontend(&self, port: Port) {
        if let Some(channel) = self.0.borrow_mut().ports.get_mut(&port) {
            channel.pending = true;
        }
    }

    /// Events that the frontend has sent over this port.
    pub fn sent(&self, port: Port) -> usize {
        self.0.borrow().ports.get(&port).map_or(0, |channel| channel.sent)
    }
}

/// The frontend's domain has no functions.
pub struct NoEcam;

impl ConfigSpace for NoEcam {
    fn read(&self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
}

impl Platform for Machine {
    type Page = Page;
    type Ecam = NoEcam;

    fn now(&self) -> Duration {
        self.0.borrow().clock
    }

    fn map_grant(&mut self, _: DomId, _: GrantRef) -> Result<Page, Errno> {
        unreachable!("a frontend maps nothing")
    }

    fn unmap_grant(&mut self, _: Page) {
        unreachable!("a frontend maps nothing")
    }

    fn share_page(&mut self, peer: DomId) -> Result<(Page, GrantRef), Errno> {
        self.refuses()?;
        let mut state = self.0.borrow_mut();
        let free = |frame: &Frame| frame.peer.is_none() && frame.mappings == 0;
        let index = state.frames.iter().position(free).ok_or(Errno(28))?;
        let frame = &mut state.frames[index];
        frame.page = Page::default();
        frame.peer = Some(peer);
        Ok((frame.page.clone(), FIRST + index as GrantRef))
    }

    fn unshare_page(&mut self, _: Page, grant: GrantRef) {
        let mut state = self.0.borrow_mut();
        let frame = &mut state.frames[(grant - FIRST) as usize];
        assert!(frame.peer.take().is_some(), "ungranted twice");
    }

    fn bind_interdomain(&mut self, _: DomId, _: Port) -> Result<Port, Errno> {
        unreachable!("a frontend binds nothing")
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, Errno> {
        self.refuses()?;
        let mut state = self.0.borrow_mut();
        state.next_port += 1;
        let port = state.next_port;
        let channel = Channel {
            peer,
            bound: false,
            pending: false,
            sent: 0,
        };
        state.ports.insert(port, channel);
        Ok(port)
    }

    fn close(&mut self, port: Port) {
        assert!(self.0.borrow_mut().ports.remove(&port).is_some(), "closed twice");
    }

    fn notify(&mut self, port: Port) {
        let mut state = self.0.borrow_mut();
        state.ports.get_mut(&port).expect("an open port").sent += 1;
    }

    fn take_pending(&mut self, port: Port) -> bool {
        let mut state = self.0.borrow_mut();
        let channel = state.ports.get_mut(&port);
        channel.is_some_and(|channel| std::mem::take(&mut channel.pending))
    }

    fn is_pending(&self, port: Port) -> bool {
        self.0
            .borrow()
            .ports
            .get(&port)
            .is_some_and(|channel| channel.pending)
    }

    fn relax(&mut self) {
        unreachable!("the frontend never waits")
    }

    fn wait(&mut self, _: &[Port], _: Option<Duration>) {
        unreachable!("the frontend never waits")
    }

    fn map_ecam(&mut self, _: u64) -> Result<NoEcam, EcamError> {
        unreachable!("no functions")
    }

    fn unmap_ecam(&mut self, _: NoEcam) {
        unreachable!("no functions")
    }

    fn see_crash_log<R>(&self, see: impl FnOnce(&CrashLog) -> R) -> R {
        see(&CrashLog::NEW)
    }

    fn update_crash_log(&mut self, _: impl FnOnce(&mut CrashLog)) {
        unreachable!("the stub's alone")
    }

    fn set_under_way(&mut self, _: Option<&Op>) {
        unreachable!("the stub's alone")
    }

    fn recall(&self, _: pci::bdf::Bdf) -> Option<u32> {
        unreachable!("the stub's alone")
    }

    fn remember(&mut self, _: pci::bdf::Bdf, _: Option<u32>) {
        unreachable!("the stub's alone")
    }

    fn snapshot(&self) -> &drivers::snapshot::Snapshot {
        unreachable!("the stub's alone")
    }
}
