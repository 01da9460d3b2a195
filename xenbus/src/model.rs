//! A xenstored and a shared page in memory, for the tests of every crate (feature `model`).
//!
//! [`Xenstored`] keeps permissions, transactions and watches as the real daemon
//! does, and sends the events of a write before its reply. It is simple where
//! tests do not care: no quotas, and a transaction conflicts with any write
//! since it began. As a test tool it panics when it is misused.

mod page;
mod tree;

pub use page::Page;

use crate::client::Transport;
use crate::path;
use crate::wire::{self, ErrorName, Header, Kind};
use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use tree::{Change, Tree};

/// A xenstored. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Xenstored(Rc<RefCell<Daemon>>);

impl Xenstored {
    /// A daemon with an empty tree, to which only domain 0 is introduced.
    pub fn new() -> Self {
        let daemon = Self::default();
        daemon.introduce(0);
        daemon
    }

    /// Opens a connection as domain `domid`; 0 may do everything.
    pub fn connect(&self, domid: u16) -> Connection {
        let mut daemon = self.0.borrow_mut();
        let id = daemon.next_connection;
        daemon.next_connection += 1;
        daemon.outboxes.insert(id, VecDeque::new());
        drop(daemon);
        Connection {
            daemon: self.clone(),
            id,
            domid,
        }
    }

    /// Makes a domain known, with a home that it owns.
    pub fn introduce(&self, domid: u16) {
        let mut daemon = self.0.borrow_mut();
        daemon.introduced.insert(domid);
        daemon.tree.make_home(domid);
        daemon.fire(&[Change::at("@introduceDomain")]);
    }

    /// How often clients have waited for replies so far. Requests that were sent one after the other, before the first of
    /// their replies was received, count as one wait.
    pub fn round_trips(&self) -> u64 {
        self.0.borrow().round_trips
    }

    /// A domain dies. Its home stays, as the toolstack removes that.
    pub fn release(&self, domid: u16) {
        let mut daemon = self.0.borrow_mut();
        daemon.introduced.remove(&domid);
        daemon.fire(&[Change::at("@releaseDomain")]);
    }
}

/// The model's transport failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// More bytes are asked for than will ever come: the real call would block for ever.
    NothingToReceive,
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing to receive: this call would block for ever")
    }
}

impl core::error::Error for ConnectionError {}

/// One domain's connection to a [`Xenstored`].
#[derive(Debug)]
pub struct Connection {
    daemon: Xenstored,
    id: u64,
    domid: u16,
}

impl Connection {
    /// Messages that have been sent to it so far: each raises its event.
    pub fn arrived(&self) -> u64 {
        let daemon = self.daemon.0.borrow();
        daemon.arrived.get(&self.id).copied().unwrap_or_default()
    }

    /// Has the daemon refuse so many requests after so many more, as if the domain had used up its quota.
    pub fn refuse_requests(&self, after: usize, times: usize, error: ErrorName) {
        self.daemon.0.borrow_mut().refusal = Some((self.id, after, times, error));
    }
}

impl Transport for Connection {
    type Error = ConnectionError;

    fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let (header, payload) = bytes.split_first_chunk().expect("a whole message");
        let header = Header::decode(header);
        assert_eq!(header.length as usize, payload.len(), "one whole message");
        let mut daemon = self.daemon.0.borrow_mut();
        daemon.asking.insert(self.id);
        daemon.serve(self.id, self.domid, header, payload);
        Ok(())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), ConnectionError> {
        let mut daemon = self.daemon.0.borrow_mut();
        if daemon.asking.remove(&self.id) {
            daemon.round_trips += 1;
        }
        let outbox = daemon.outboxes.get_mut(&self.id).expect("an open connection");
        if outbox.len() < bytes.len() {
            return Err(ConnectionError::NothingToReceive);
        }
        bytes.fill_with(|| outbox.pop_front().expect("enough bytes, as checked"));
        Ok(())
    }

    fn ready(&mut self) -> Result<bool, ConnectionError> {
        let daemon = self.daemon.0.borrow();
        Ok(daemon
            .outboxes
            .get(&self.id)
            .is_some_and(|outbox| !outbox.is_empty()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut daemon = self.daemon.0.borrow_mut();
        daemon.outboxes.remove(&self.id);
        daemon.reset(self.id);
    }
}

#[derive(Debug)]
struct Watch {
    connection: u64,
    /// As it was asked for.
    path: String,
    absolute: String,
    token: String,
}

#[derive(Debug)]
struct OpenTransaction {
    connection: u64,
    tree: Tree,
    changes: Vec<Change>,
    /// Number of writes before it began.
    began: u64,
}

#[derive(Debug, Default)]
struct Daemon {
    tree: Tree,
    /// Number of writes so far.
    generation: u64,
    introduced: BTreeSet<u16>,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, OpenTransaction>,
    last_transaction: u32,
    outboxes: BTreeMap<u64, VecDeque<u8>>,
    next_connection: u64,
    /// Messages sent to each connection.
    arrived: BTreeMap<u64, u64>,
    /// The connections that have sent a request and received nothing since.
    asking: BTreeSet<u64>,
    round_trips: u64,
    refusal: Option<(u64, usize, usize, ErrorName)>,
}

impl Daemon {
    /// The error with which this request is refused, whatever it is.
    fn refuses(&mut self, connection: u64) -> Option<ErrorName> {
        let (_, left, times, error) = self.refusal.as_mut().filter(|(id, ..)| *id == connection)?;
        if let Some(fewer) = left.checked_sub(1) {
            *left = fewer;
            return None;
        }
        *times = times.checked_sub(1)?;
        Some(error.clone())
    }

    fn serve(&mut self, connection: u64, domid: u16, header: Header, payload: &[u8]) {
        let kind = Kind::from_raw(header.kind);
        if let Some(error) = self.refuses(connection) {
            // A transaction whose end is refused is over all the same.
            if kind == Some(Kind::TransactionEnd) {
                self.transactions.remove(&header.transaction);
            }
            let text = format!("{error}\0");
            self.reply(connection, header, Kind::Error as u32, text.as_bytes());
            return;
        }
        let result = kind.ok_or(ErrorName::Enosys).and_then(|kind| match kind {
            Kind::Watch => self.watch(connection, domid, payload),
            Kind::Unwatch => self.unwatch(connection, payload),
            Kind::ResetWatches => Ok(self.reset(connection)),
            Kind::TransactionStart => Ok(self.start_transaction(connection)),
            Kind::TransactionEnd => self.end_transaction(connection, header.transaction, payload),
            Kind::GetDomainPath => Ok(format!("{}\0", path::home(domain(payload)?)).into()),
            Kind::IsDomainIntroduced => {
                let introduced = self.introduced.contains(&domain(payload)?);
                Ok(if introduced { b"T\0" } else { b"F\0" }.into())
            }
            _ => self.access_node(connection, domid, header.transaction, kind, payload),
        });
        let result = result.and_then(|payload| match payload.len() {
            0..=wire::PAYLOAD_MAX => Ok(payload),
            _ => Err(ErrorName::E2big),
        });
        match &result {
            Ok(payload) => self.reply(connection, header, header.kind, payload),
            Err(error) => self.reply(
                connection,
                header,
                Kind::Error as u32,
                format!("{error}\0").as_bytes(),
            ),
        }
        if result.is_ok() && kind == Some(Kind::Watch) {
            self.fire_first(connection);
        }
    }

    fn reply(&mut self, connection: u64, request: Header, kind: u32, payload: &[u8]) {
        let header = Header {
            kind,
            length: payload.len() as u32,
            ..request
        };
        if let Some(outbox) = self.outboxes.get_mut(&connection) {
            outbox.extend(header.encode());
            outbox.extend(payload);
            *self.arrived.entry(connection).or_default() += 1;
        }
    }

    fn access_node(
        &mut self,
        connection: u64,
        domid: u16,
        transaction: u32,
        kind: Kind,
        payload: &[u8],
    ) -> Result<Vec<u8>, ErrorName> {
        let end = payload
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(ErrorName::Einval)?;
        let (name, rest) = (&payload[..end], &payload[end + 1..]);
        let name = absolute(domid, str::from_utf8(name).map_err(|_| ErrorName::Einval)?)?;

        let mut changes = Vec::new();
        let tree = match self.transactions.get_mut(&transaction) {
            Some(transaction) if transaction.connection == connection => &mut transaction.tree,
            None if transaction == 0 => &mut self.tree,
            _ => return Err(ErrorName::Enoent),
        };
        let reply = match kind {
            Kind::Read => tree.read(domid, &name),
            Kind::Directory => tree.list(domid, &name).map(|names| texts(&names)),
            Kind::GetPermissions => tree.permissions(domid, &name).map(|list| texts(&list)),
            Kind::Write => tree.write(domid, &name, rest, &mut changes),
            Kind::Mkdir => tree.mkdir(domid, &name, &mut changes),
            Kind::Remove => tree.remove(domid, &name, &mut changes),
            Kind::SetPermissions => tree.set_permissions(domid, &name, rest, &mut changes),
            _ => Err(ErrorName::Enosys),
        }?;
        match self.transactions.get_mut(&transaction) {
            Some(transaction) => transaction.changes.append(&mut changes),
            None => self.commit(&changes),
        }
        Ok(reply)
    }

    fn commit(&mut self, changes: &[Change]) {
        if !changes.is_empty() {
            self.generation += 1;
        }
        // Before the reply, as the real daemon may do it: clients must expect events in front of it.
        self.fire(changes);
    }

    /// Ends the watches and transactions of a connection.
    fn reset(&mut self, connection: u64) -> Vec<u8> {
        self.watches.retain(|watch| watch.connection != connection);
        self.transactions
            .retain(|_, transaction| transaction.connection != connection);
        b"OK\0".into()
    }

    fn start_transaction(&mut self, connection: u64) -> Vec<u8> {
        self.last_transaction += 1;
        let transaction = OpenTransaction {
            connection,
            tree: self.tree.clone(),
            changes: Vec::new(),
            began: self.generation,
        };
        self.transactions.insert(self.last_transaction, transaction);
        texts(&[self.last_transaction])
    }

    fn end_transaction(&mut self, connection: u64, id: u32, verdict: &[u8]) -> Result<Vec<u8>, ErrorName> {
        let transaction = self.transactions.remove(&id).ok_or(ErrorName::Enoent)?;
        if transaction.connection != connection {
            return Err(ErrorName::Enoent);
        }
        match verdict {
            b"T\0" if transaction.began != self.generation => Err(ErrorName::Eagain),
            b"T\0" => {
                self.tree = transaction.tree;
                self.commit(&transaction.changes);
                Ok(b"OK\0".into())
            }
            b"F\0" => Ok(b"OK\0".into()),
            _ => Err(ErrorName::Einval),
        }
    }

    fn watch(&mut self, connection: u64, domid: u16, payload: &[u8]) -> Result<Vec<u8>, ErrorName> {
        let [path, token] = wire::decode_exactly(payload).map_err(|_| ErrorName::Einval)?;
        if self.find_watch(connection, &path, &token).is_some() {
            return Err(ErrorName::Eexist);
        }
        let absolute = if path.starts_with('@') {
            path.clone()
        } else {
            absolute(domid, &path)?
        };
        self.watches.push(Watch {
            connection,
            path,
            absolute,
            token,
        });
        Ok(b"OK\0".into())
    }

    fn unwatch(&mut self, connection: u64, payload: &[u8]) -> Result<Vec<u8>, ErrorName> {
        let [path, token] = wire::decode_exactly(payload).map_err(|_| ErrorName::Einval)?;
        let at = self
            .find_watch(connection, &path, &token)
            .ok_or(ErrorName::Enoent)?;
        self.watches.remove(at);
        Ok(b"OK\0".into())
    }

    fn find_watch(&self, connection: u64, path: &str, token: &str) -> Option<usize> {
        self.watches
            .iter()
            .position(|watch| watch.connection == connection && watch.path == path && watch.token == token)
    }

    /// Sends the first event of a new watch, which names the watched path itself.
    fn fire_first(&mut self, connection: u64) {
        if let Some(watch) = self.watches.last().filter(|watch| watch.connection == connection) {
            send_event(&mut self.outboxes, watch, &watch.absolute);
            *self.arrived.entry(connection).or_default() += 1;
        }
    }

    fn fire(&mut self, changes: &[Change]) {
        for change in changes {
            for watch in &self.watches {
                if change.concerns(&watch.absolute) {
                    send_event(&mut self.outboxes, watch, &change.path);
                    *self.arrived.entry(watch.connection).or_default() += 1;
                }
            }
        }
    }
}

fn send_event(outboxes: &mut BTreeMap<u64, VecDeque<u8>>, watch: &Watch, changed: &str) {
    // In the spelling of the watch: relative if it was set so.
    let below = changed.strip_prefix(&watch.absolute).unwrap_or_default();
    let payload = format!("{}{below}\0{}\0", watch.path, watch.token);
    let header = Header {
        kind: Kind::WatchEvent as u32,
        request: 0,
        transaction: 0,
        length: payload.len() as u32,
    };
    if let Some(outbox) = outboxes.get_mut(&watch.connection) {
        outbox.extend(header.encode());
        outbox.extend(payload.as_bytes());
    }
}

/// Checks a path and puts a relative one below the home of its speaker.
fn absolute(domid: u16, name: &str) -> Result<String, ErrorName> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    let name = if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("{}/{name}", path::home(domid))
    };
    let odd = name.contains("//") || (name.len() > 1 && name.ends_with('/')) || !name.bytes().all(sound);
    if odd { Err(ErrorName::Einval) } else { Ok(name) }
}

fn domain(payload: &[u8]) -> Result<u16, ErrorName> {
    let [domid] = wire::decode_exactly(payload).map_err(|_| ErrorName::Einval)?;
    domid.parse().map_err(|_| ErrorName::Einval)
}

fn texts<T: ToString>(items: &[T]) -> Vec<u8> {
    items
        .iter()
        .flat_map(|item| (item.to_string() + "\0").into_bytes())
        .collect()
}
