//! The links of all stubs. A link is made when its stub is ready, replaced when the stub has restarted in place, and given
//! up when its thread fails again and again.

use super::agenda::{Agenda, StubTurn};
use super::connections::open_store;
use super::link::{self, Limits, Link, LinkError, lock};
use super::wake::Wake;
use crate::host::Host;
use crate::host::store::{Store, StoreError};
use crate::nodes::hops::error_node;
use crate::records::Attachment;
use crate::serve::error::ServeError;
use crate::serve::log_limit::log_limited;
use log::Level;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use xen::xenctrl::{DomId, Xenctrl};
use xenbus::client::Store as Nodes;
use xenbus::path::{Device as Hop, key};
use xenbus::state::XenbusState;

/// A stub is given up when the thread of its link has failed so often in a row.
const MOST_FAILURES: u32 = 3;
/// A link that has lived so long was sound: failures before it no longer count.
const SOUND: Duration = Duration::from_secs(60);

/// The links, and what is known of stubs that have none.
pub struct Links {
    /// A handle of the links' own. Calls of one handle wait for one another, and the main thread's may take long.
    xen: Xenctrl,
    wake: Wake,
    links: BTreeMap<DomId, Link>,
    /// The stubs that have had a link of this process. Its thread has recorded interrupt modes.
    linked: BTreeSet<DomId>,
    /// The stubs that are not served any more, each with the reason. They are left alone, and the reason is logged once.
    given_up: BTreeMap<DomId, String>,
    /// How often the thread of a stub's link has failed, in a row.
    failures: BTreeMap<DomId, u32>,
    /// The stubs that have restarted in place, and whose new page or port could not be mapped or bound. Most likely they have
    /// restarted once more: the next offer is tried. That is logged once.
    awaiting_offer: BTreeSet<DomId>,
    /// What each stub may still have logged and done. It is kept over restarts in place.
    limits: BTreeMap<DomId, Arc<Mutex<Limits>>>,
}

impl Links {
    /// No links yet. The threads of later ones use `xen`, and call `wake` when they end.
    pub fn new(xen: Xenctrl, wake: Wake) -> Self {
        Self {
            xen,
            wake,
            links: BTreeMap::new(),
            linked: BTreeSet::new(),
            given_up: BTreeMap::new(),
            failures: BTreeMap::new(),
            awaiting_offer: BTreeSet::new(),
            limits: BTreeMap::new(),
        }
    }

    /// The hypervisor, as the links use it.
    pub fn xen(&self) -> &Xenctrl {
        &self.xen
    }

    /// The link of a stub that is served.
    pub fn get(&self, stub: DomId) -> Option<&Link> {
        self.links.get(&stub)
    }

    pub fn iter(&self) -> impl Iterator<Item = (DomId, &Link)> {
        self.links.iter().map(|(&stub, link)| (stub, link))
    }

    /// Removes the link of a stub. Its last request is done when the link is dropped.
    pub fn remove(&mut self, stub: DomId) -> Option<Link> {
        self.links.remove(&stub)
    }

    /// Drops all that belongs to a stub without a record.
    pub fn forget(&mut self, stub: DomId) {
        self.given_up.remove(&stub);
        self.awaiting_offer.remove(&stub);
        self.failures.remove(&stub);
        self.limits.remove(&stub);
        self.linked.remove(&stub);
        self.links.remove(&stub);
    }

    /// Ends the link of a stub that has died, and returns its handover block as text. Failures of links do not count against
    /// the next domain.
    pub fn on_death(&mut self, stub: DomId) -> Option<String> {
        self.given_up.remove(&stub);
        self.failures.remove(&stub);
        self.links.remove(&stub).and_then(|link| link.handover_block())
    }

    /// Why a stub is not served any more, if it was given up.
    pub fn why_given_up(&self, stub: DomId) -> Option<&str> {
        self.given_up.get(&stub).map(String::as_str)
    }

    /// The stubs whose link has a thread that has failed.
    pub fn failed(&self) -> Vec<DomId> {
        let failed = self.links.iter().filter(|(_, link)| link.has_ended());
        failed.map(|(&stub, _)| stub).collect()
    }

    /// Drops a link whose thread has failed. If that has happened too often, returns why the stub is to be given up.
    pub fn drop_failed(&mut self, stub: DomId) -> Option<String> {
        let link = self.links.remove(&stub)?;
        let failures = self.failures.entry(stub).or_default();
        if link.age() > SOUND {
            *failures = 0;
        }
        *failures += 1;
        log::error!("stub {stub}: the thread that serves it has failed, {failures} times in a row");
        // Waits for the thread, which has ended.
        drop(link);
        (*failures >= MOST_FAILURES)
            .then(|| format!("the thread that serves it has failed {failures} times in a row"))
    }

    /// Gives a stub up. Its error node and its state tell the stub.
    pub fn give_up(&mut self, store: &mut Store, stub: DomId, text: &str) -> Result<(), StoreError> {
        self.given_up.insert(stub, text.to_owned());
        // The text first: whoever sees the state change reads the node then.
        store.write(&error_node(stub), text)?;
        set_state(store, Hop::second_hop(stub), XenbusState::Closing)
    }

    /// Logs something that this stub can bring about as often as it likes.
    pub fn log(&mut self, stub: DomId, level: Level, message: fmt::Arguments<'_>) {
        log_limited!(lock(&self.limits(stub)).complaints, level, "{message}");
    }

    fn limits(&mut self, stub: DomId) -> Arc<Mutex<Limits>> {
        let limits = self.limits.entry(stub);
        let limits = limits.or_insert_with(|| Arc::new(Mutex::new(Limits::new(Instant::now()))));
        Arc::clone(limits)
    }

    /// Plays the backend's part of the xenbus states of a second hop: makes a link when the stub is ready, replaces it when
    /// the stub has restarted in place, drops it when the stub closes.
    pub fn reconcile(
        &mut self,
        host: &mut Host,
        agenda: &mut Agenda,
        attachment: &Attachment,
    ) -> Result<(), ServeError> {
        use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        let stub = attachment.stub.domid;
        let hop = Hop::second_hop(stub);
        let nodes = [hop.backend_node(key::STATE), hop.frontend_node(key::STATE)];
        let [own, theirs] = states(&host.store.read_many(&nodes)?);
        // What a stub writes counts only in pairs with the own state, so that any other state of it changes nothing.
        match (own, theirs) {
            (Initialising, Initialising) => Ok(set_state(&mut host.store, hop, InitWait)?),
            // The own state may be Connected without a link: an earlier service served this stub.
            (Initialising | InitWait | Initialised | Connected, Initialised | Connected) => {
                if self.is_outdated(&mut host.store, stub)? {
                    let name = &attachment.stub.name;
                    self.log(
                        stub,
                        Level::Info,
                        format_args!("stub {name} has restarted in place"),
                    );
                    // Dropped before the record is read: the link's last request may still change it.
                    self.links.remove(&stub);
                    return self.connect(host, agenda, attachment, own);
                }
                if !self.links.contains_key(&stub) && !self.given_up.contains_key(&stub) {
                    return self.connect(host, agenda, attachment, own);
                }
                Ok(())
            }
            (Initialising | InitWait | Initialised | Connected | Closing, Closing | Closed) => {
                self.links.remove(&stub);
                log::info!("stub {} has closed its connection", attachment.stub.name);
                Ok(set_state(&mut host.store, hop, Closed)?)
            }
            _ => Ok(()),
        }
    }

    /// True if a stub offers another page and port than those that its link uses: it has restarted in place.
    fn is_outdated(&self, store: &mut Store, stub: DomId) -> Result<bool, StoreError> {
        let Some(link) = self.links.get(&stub) else {
            return Ok(false);
        };
        let used = link.ring_params();
        let offered = link::ring_params(store, Hop::second_hop(stub))?;
        Ok(offered.is_some_and(|offered| offered.is_ok_and(|offered| offered != used)))
    }

    /// Begins a link to a stub that has none.
    fn connect(
        &mut self,
        host: &mut Host,
        agenda: &mut Agenda,
        attachment: &Attachment,
        own: XenbusState,
    ) -> Result<(), ServeError> {
        let stub = attachment.stub.domid;
        // As the record is now: the last link has recorded interrupt modes without an event. The links of an earlier process
        // had ended before this one read anything.
        let read_again = match self.linked.contains(&stub) {
            true => match Attachment::read(&mut host.store, stub)? {
                None => return Ok(()),
                read => read,
            },
            false => None,
        };
        let attachment = read_again.as_ref().unwrap_or(attachment);
        let hop = Hop::second_hop(stub);
        let Some(ring_params) = link::ring_params(&mut host.store, hop)? else {
            // The stub is still writing them.
            agenda.later(stub, StubTurn::LOOK, Instant::now());
            return Ok(());
        };
        // A connection of the thread's own: a reply for one thread must not wait for the requests of another.
        let store = open_store(host)?;
        let linked = ring_params.map_err(LinkError::from).and_then(|ring_params| {
            let (xen, wake, limits) = (self.xen.clone(), self.wake.clone(), self.limits(stub));
            Link::start(attachment, ring_params, &host.sysfs, xen, store, wake, limits)
        });
        match linked {
            Ok(link) => {
                self.awaiting_offer.remove(&stub);
                self.links.insert(stub, link);
                self.linked.insert(stub);
                let (name, guest) = (&attachment.stub.name, &attachment.guest.name);
                self.log(
                    stub,
                    Level::Info,
                    format_args!("serving stub {name} of guest {guest}"),
                );
                Ok(set_state(&mut host.store, hop, XenbusState::Connected)?)
            }
            // A stub that was connected has restarted in place, and may have done so again before its offer was read.
            Err(error) if own == XenbusState::Connected && error.is_of_offer() => {
                if self.awaiting_offer.insert(stub) {
                    let (name, error) = (&attachment.stub.name, anyhow::Error::from(error));
                    let message = format_args!("stub {name}: {error:#}; waiting for its next offer");
                    self.log(stub, Level::Warn, message);
                }
                Ok(())
            }
            Err(error) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                log::error!("cannot serve stub {}: {text}", attachment.stub.name);
                Ok(self.give_up(&mut host.store, stub, &text)?)
            }
        }
    }
}

/// The states in two nodes, as [`Nodes::read_state`] has one.
fn states(nodes: &[Option<String>]) -> [XenbusState; 2] {
    let mut nodes = nodes.iter().map(Option::as_deref);
    std::array::from_fn(|_| {
        let text = nodes.next().flatten();
        text.map_or(XenbusState::Unknown, XenbusState::parse)
    })
}

fn set_state(store: &mut Store, hop: Hop, state: XenbusState) -> Result<(), StoreError> {
    store.write(&hop.backend_node(key::STATE), state.as_str())
}
