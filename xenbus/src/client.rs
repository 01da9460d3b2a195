//! A xenstore client over any byte transport.
//!
//! The stub uses it over its xenstore ring, dom0's programs over xenstored's
//! socket. One request is under way at a time. [`Store`] reads and writes
//! nodes, inside a transaction or outside.
//!
//! ```
//! use xenbus::client::{Client, Error, Store, Transport};
//!
//! /// Both nodes appear at the same moment, or neither does.
//! fn publish<T: Transport>(client: &mut Client<T>) -> Result<(), Error<T::Error>> {
//!     client.transaction(|tx| {
//!         tx.write("device/bulkhead/0/pci-op-ref", "8")?;
//!         tx.write("device/bulkhead/0/event-channel", "12")
//!     })
//! }
//! ```
//!
//! # Panic contract
//! No reply, however hostile, makes the client panic or grow without bound. A
//! reply that breaks the framing ends the use of the client: every later
//! request fails with [`Cause::OutOfStep`].

mod error;
mod events;

pub use error::{Cause, Error};
pub use events::{QUEUED_EVENTS_MAX, WatchEvent};

use crate::permission::Permission;
use crate::state::XenbusState;
use crate::wire::{self, ErrorName, Header, Kind, Violation};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{Debug, Display};
use events::Events;

/// How often a transaction is tried before its conflicts become an error. Without a limit another domain could keep it from
/// ever ending (XSA-206).
pub const TRANSACTION_TRIES: u32 = 64;

/// A two-way byte stream to xenstored.
pub trait Transport {
    /// Why the stream failed.
    type Error: Debug + Display;

    /// Most bytes of payload of a request that [`Self::send`] can take.
    const PAYLOAD_MAX: usize = wire::PAYLOAD_MAX;

    /// Sends all of `bytes`, blocking as long as that takes.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Fills all of `bytes`, blocking as long as that takes.
    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error>;
    /// True if at least one byte can be received without blocking.
    fn ready(&mut self) -> Result<bool, Self::Error>;

    /// True if bytes were read ahead and not received yet. Whoever waits for the descriptor below does not hear of them.
    fn has_read_ahead(&self) -> bool {
        false
    }
}

/// A request to xenstored, as the methods of [`Store`] and [`Client`] make it: checked, and ready to be sent.
#[derive(Debug)]
pub struct StoreRequest<'a> {
    kind: Kind,
    /// Path or domain, for messages.
    subject: &'a str,
    payload: Vec<u8>,
}

impl<'a> StoreRequest<'a> {
    /// A request about the node at `path`, with `rest` after the path's NUL.
    fn on_node<E>(kind: Kind, path: &'a str, rest: &[u8]) -> Result<Self, Error<E>> {
        let limit = if path.starts_with('/') {
            wire::ABSOLUTE_PATH_MAX
        } else {
            wire::RELATIVE_PATH_MAX
        };
        // xenstored refuses a longer one, and a NUL would end the path early.
        if path.is_empty() || path.contains('\0') || path.len() > limit {
            return Err(Error::new(kind, path, Cause::Path));
        }
        Self::on(kind, path, &[path.as_bytes(), b"\0", rest])
    }

    fn on<E>(kind: Kind, subject: &'a str, payload: &[&[u8]]) -> Result<Self, Error<E>> {
        let payload = payload.concat();
        // xenstored would drop the whole connection for it.
        if payload.len() > wire::PAYLOAD_MAX {
            return Err(Error::new(kind, subject, Cause::TooLong(payload.len())));
        }
        Ok(Self {
            kind,
            subject,
            payload,
        })
    }
}

/// Access to nodes: a [`Client`], or a [`Transaction`] on one.
///
/// A path is absolute, or relative to the caller's own home. Every method fails
/// with [`Cause::Refused`] where xenstored says no, and with [`Cause::Path`] or
/// [`Cause::TooLong`], before anything is sent, where it cannot say yes.
pub trait Store {
    /// The transport's error.
    type TransportError: Debug + Display;

    /// Sends a request and returns the payload of its reply.
    fn submit(&mut self, request: StoreRequest<'_>) -> Result<Vec<u8>, Error<Self::TransportError>>;

    /// Sends many requests, and returns the payload of each reply. The next request does not wait for the reply to the last
    /// one, where the transport allows that.
    fn submit_all(
        &mut self,
        requests: Vec<StoreRequest<'_>>,
    ) -> Vec<Result<Vec<u8>, Error<Self::TransportError>>> {
        let requests = requests.into_iter();
        requests.map(|request| self.submit(request)).collect()
    }

    /// As [`Self::read_optional`], for many nodes at once.
    fn read_many(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, Error<Self::TransportError>> {
        let requests = paths
            .iter()
            .map(|path| StoreRequest::on_node(Kind::Read, path, b""));
        let values = self.submit_all(requests.collect::<Result<_, _>>()?);
        values
            .into_iter()
            .map(|value| optional(value.map(text)))
            .collect()
    }

    /// As [`Self::directory`], for many nodes at once; `None` for a node that does not exist.
    fn directories(
        &mut self,
        paths: &[String],
    ) -> Result<Vec<Option<Vec<String>>>, Error<Self::TransportError>> {
        let requests = paths
            .iter()
            .map(|path| StoreRequest::on_node(Kind::Directory, path, b""));
        let listed = self.submit_all(requests.collect::<Result<_, _>>()?);
        let names = |(path, listed): (&String, Result<Vec<u8>, _>)| {
            optional(
                listed.and_then(|payload| well_formed(Kind::Directory, path, wire::decode_texts(&payload))),
            )
        };
        paths.iter().zip(listed).map(names).collect()
    }

    /// The value of a node, as text. A value may be any bytes. Bytes that are not UTF-8 read as one
    /// [`char::REPLACEMENT_CHARACTER`], which no parser accepts.
    fn read(&mut self, path: &str) -> Result<String, Error<Self::TransportError>> {
        self.read_bytes(path).map(text)
    }

    /// The value of a node, as bytes.
    fn read_bytes(&mut self, path: &str) -> Result<Vec<u8>, Error<Self::TransportError>> {
        self.submit(StoreRequest::on_node(Kind::Read, path, b"")?)
    }

    /// The xenbus state in a node; [`XenbusState::Unknown`] if there is no such node, or it holds no state.
    fn read_state(&mut self, path: &str) -> Result<XenbusState, Error<Self::TransportError>> {
        let text = self.read_optional(path)?;
        Ok(text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
    }

    /// The value of a node, or `None` if it does not exist.
    fn read_optional(&mut self, path: &str) -> Result<Option<String>, Error<Self::TransportError>> {
        optional(self.read(path))
    }

    /// Sets the value of a node. Makes the node and its parents if they are missing.
    fn write(&mut self, path: &str, value: &str) -> Result<(), Error<Self::TransportError>> {
        self.write_bytes(path, value.as_bytes())
    }

    /// The same with any bytes.
    fn write_bytes(&mut self, path: &str, value: &[u8]) -> Result<(), Error<Self::TransportError>> {
        self.submit(StoreRequest::on_node(Kind::Write, path, value)?)
            .map(drop)
    }

    /// Makes a node without a value, and its parents. An existing node is left as it is.
    fn mkdir(&mut self, path: &str) -> Result<(), Error<Self::TransportError>> {
        self.submit(StoreRequest::on_node(Kind::Mkdir, path, b"")?)
            .map(drop)
    }

    /// Removes a node and everything below it. A missing node is not an error if its parent exists.
    fn remove(&mut self, path: &str) -> Result<(), Error<Self::TransportError>> {
        self.submit(StoreRequest::on_node(Kind::Remove, path, b"")?)
            .map(drop)
    }

    /// The names of a node's children, in no particular order.
    fn directory(&mut self, path: &str) -> Result<Vec<String>, Error<Self::TransportError>> {
        let payload = self.submit(StoreRequest::on_node(Kind::Directory, path, b"")?)?;
        well_formed(Kind::Directory, path, wire::decode_texts(&payload))
    }

    /// Who may access a node; the first entry names its owner.
    fn permissions(&mut self, path: &str) -> Result<Vec<Permission>, Error<Self::TransportError>> {
        let payload = self.submit(StoreRequest::on_node(Kind::GetPermissions, path, b"")?)?;
        let permissions = wire::decode_texts(&payload).and_then(|texts| {
            let permissions = texts
                .iter()
                .map(|text| text.parse().map_err(|_| Violation::Value));
            permissions.collect()
        });
        well_formed(Kind::GetPermissions, path, permissions)
    }

    /// Sets who may access a node; the first entry names its owner.
    fn set_permissions(
        &mut self,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), Error<Self::TransportError>> {
        let mut texts = String::new();
        for permission in permissions {
            texts.push_str(&permission.to_string());
            texts.push('\0');
        }
        self.submit(StoreRequest::on_node(
            Kind::SetPermissions,
            path,
            texts.as_bytes(),
        )?)
        .map(drop)
    }
}

/// The answer to [`Kind::IsDomainIntroduced`].
fn is_introduced(answer: &str) -> Result<bool, Violation> {
    match answer {
        "T" => Ok(true),
        "F" => Ok(false),
        // Nothing else is an answer of the protocol.
        _ => Err(Violation::Value),
    }
}

/// The value of a node as text, as [`Store::read`] has it.
pub fn text(value: Vec<u8>) -> String {
    // Not an error: a guest that writes such a value must not end the connection that reads it.
    String::from_utf8(value).unwrap_or_else(|_| String::from(char::REPLACEMENT_CHARACTER))
}

/// `None` for a node that does not exist.
fn optional<R, E>(found: Result<R, Error<E>>) -> Result<Option<R>, Error<E>> {
    match found {
        Ok(value) => Ok(Some(value)),
        // Only a missing node. One that may not be read is an error of the reader's.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Requests that [`Store::submit_all`] has under way at a time. Replies that nobody takes wait in xenstored's memory.
const UNDER_WAY_MAX: usize = 64;

/// A connection to xenstored.
#[derive(Debug)]
pub struct Client<T> {
    transport: T,
    last_request: u32,
    events: Events,
    /// The next byte to be received begins a message.
    in_step: bool,
}

impl<T: Transport> Client<T> {
    /// A client over a fresh connection: no request under way, no watch set.
    pub fn new(transport: T) -> Self {
        Self {
            transport,
            last_request: 0,
            events: Events::default(),
            in_step: true,
        }
    }

    /// A client that takes over the connection of one that was cut off. [`Self::reset`] must be its first request.
    ///
    /// Request numbers go on after `last_request`, the number of the last request made (0: none), so that an old reply is told
    /// from a new one.
    pub fn resume(transport: T, last_request: u32) -> Self {
        Self {
            last_request,
            ..Self::new(transport)
        }
    }

    /// Ends watches and transactions of before, and drops a reply that is still to come. Until then nothing may be received:
    /// whatever still comes belongs to the old client.
    ///
    /// # Errors
    /// The transport's, or a refusal by a xenstored older than Xen 4.2.
    pub fn reset(&mut self) -> Result<(), Error<T::Error>> {
        self.submit(StoreRequest::on(Kind::ResetWatches, "", &[b"\0"])?)
            .map(drop)
    }

    /// The transport, to wait on.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport, to wait on. Only the client may send and receive on it.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// False once the connection has failed: no request can succeed any more. Refusals, and values of any kind, do not make
    /// it so.
    pub fn is_usable(&self) -> bool {
        self.in_step
    }

    /// Asks for events about the node at `path` and all below it.
    ///
    /// The first event comes at once, and names `path` itself. `path` may also
    /// be `@introduceDomain` or `@releaseDomain`.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error<T::Error>> {
        let request = watch_request(Kind::Watch, path, token)?;
        // Before the request: the first event may arrive before the reply, and would be dropped as nobody's.
        self.events.add_watch(path, token);
        let reply = self.submit(request);
        if reply.is_err() {
            self.events.remove_watch(path, token);
        }
        reply.map(drop)
    }

    /// As [`Self::watch`], for many pairs of path and token at once. After an error the other watches are set all the same.
    pub fn watch_all<P: AsRef<str>, K: AsRef<str>>(
        &mut self,
        watches: &[(P, K)],
    ) -> Result<(), Error<T::Error>> {
        let watches = watches
            .iter()
            .map(|(path, token)| (path.as_ref(), token.as_ref()));
        let requests = watches
            .clone()
            .map(|(path, token)| watch_request(Kind::Watch, path, token));
        let requests = requests.collect::<Result<_, _>>()?;
        for (path, token) in watches.clone() {
            self.events.add_watch(path, token);
        }
        let mut all = Ok(());
        for ((path, token), reply) in watches.zip(self.submit_all(requests)) {
            if reply.is_err() {
                self.events.remove_watch(path, token);
            }
            all = all.and(reply.map(drop));
        }
        all
    }

    /// Ends a watch. Its events that are not yet asked for are dropped.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error<T::Error>> {
        // After the reply: a watch whose end is refused goes on.
        self.submit(watch_request(Kind::Unwatch, path, token)?)?;
        self.events.remove_watch(path, token);
        Ok(())
    }

    /// True if an event is queued, or may be among the bytes that were read ahead. It came together with a reply, so the
    /// transport does not show it any more.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || self.transport.has_read_ahead()
    }

    /// The next event that has arrived, or `None`. Does not wait for one.
    pub fn next_event(&mut self) -> Result<Option<WatchEvent>, Error<T::Error>> {
        loop {
            if let Some(event) = self.events.pop() {
                return Ok(Some(event));
            }
            if !self
                .try_receive_event()
                .map_err(|cause| Error::new(Kind::WatchEvent, "", cause))?
            {
                return Ok(None);
            }
        }
    }

    /// Runs `body` in a transaction: all of it happens at one moment, or nothing.
    ///
    /// When another writer got in between, `body` runs again, up to
    /// [`TRANSACTION_TRIES`] times in all; then [`Cause::Conflict`]. An error of
    /// `body` drops the transaction. A `body` that only finds that there is
    /// nothing to do returns `Ok` before its first write.
    pub fn transaction<R>(
        &mut self,
        body: impl FnMut(&mut Transaction<'_, T>) -> Result<R, Error<T::Error>>,
    ) -> Result<R, Error<T::Error>> {
        self.transaction_within(TRANSACTION_TRIES, body)
    }

    /// [`Self::transaction`] with another limit, for callers that can try again later.
    pub fn transaction_within<R>(
        &mut self,
        tries: u32,
        body: impl FnMut(&mut Transaction<'_, T>) -> Result<R, Error<T::Error>>,
    ) -> Result<R, Error<T::Error>> {
        self.transaction_or(tries, body)
    }

    /// [`Self::transaction_within`] for a `body` with errors of its own.
    pub fn transaction_or<R, F: From<Error<T::Error>>>(
        &mut self,
        tries: u32,
        mut body: impl FnMut(&mut Transaction<'_, T>) -> Result<R, F>,
    ) -> Result<R, F> {
        for _ in 0..tries {
            let id = self.start_transaction()?;
            let result = body(&mut Transaction { client: self, id });
            // Also after an error: xenstored has a quota of open transactions.
            let ended = self.end_transaction(id, result.is_ok());
            match (result, ended) {
                (Ok(value), Ok(())) => return Ok(value),
                // Nothing of it has happened: once more from the start.
                (Ok(_), Err(error)) if error.is_conflict() => {}
                // The body's error says more than that of a failed abort.
                (Err(error), _) => return Err(error),
                (Ok(_), Err(error)) => return Err(error.into()),
            }
        }
        Err(Error::new(Kind::TransactionEnd, "", Cause::Conflict(tries)).into())
    }

    /// The home of a domain, such as `/local/domain/3`, whether or not it exists.
    pub fn domain_path(&mut self, domid: u16) -> Result<String, Error<T::Error>> {
        let [path] = self.ask_about_domain(Kind::GetDomainPath, domid)?;
        Ok(path)
    }

    /// True if a domain is connected to xenstore.
    pub fn is_introduced(&mut self, domid: u16) -> Result<bool, Error<T::Error>> {
        let [answer] = self.ask_about_domain(Kind::IsDomainIntroduced, domid)?;
        well_formed(
            Kind::IsDomainIntroduced,
            &domid.to_string(),
            is_introduced(&answer),
        )
    }

    /// As [`Self::is_introduced`], for many domains at once.
    pub fn are_introduced(&mut self, domids: &[u16]) -> Result<Vec<bool>, Error<T::Error>> {
        let texts: Vec<String> = domids.iter().map(ToString::to_string).collect();
        let requests = texts
            .iter()
            .map(|text| StoreRequest::on(Kind::IsDomainIntroduced, text, &[text.as_bytes(), b"\0"]));
        let answers = self.submit_all(requests.collect::<Result<_, _>>()?);
        let answer = |(text, answer): (&String, Result<Vec<u8>, _>)| {
            let answer = wire::decode_exactly(&answer?).and_then(|[answer]| is_introduced(&answer));
            well_formed(Kind::IsDomainIntroduced, text, answer)
        };
        texts.iter().zip(answers).map(answer).collect()
    }

    fn ask_about_domain(&mut self, kind: Kind, domid: u16) -> Result<[String; 1], Error<T::Error>> {
        let domid = domid.to_string();
        let payload = self.submit(StoreRequest::on(kind, &domid, &[domid.as_bytes(), b"\0"])?)?;
        well_formed(kind, &domid, wire::decode_exactly(&payload))
    }

    fn start_transaction(&mut self) -> Result<u32, Error<T::Error>> {
        let payload = self.submit(StoreRequest::on(Kind::TransactionStart, "", &[b"\0"])?)?;
        let id = wire::decode_exactly(&payload).and_then(|[id]| match id.parse() {
            // Zero would make the transaction's writes take effect at once.
            Ok(0) | Err(_) => Err(Violation::Value),
            Ok(id) => Ok(id),
        });
        well_formed(Kind::TransactionStart, "", id)
    }

    fn end_transaction(&mut self, id: u32, commit: bool) -> Result<(), Error<T::Error>> {
        let verdict = if commit { "T\0" } else { "F\0" };
        let request = StoreRequest::on(Kind::TransactionEnd, "", &[verdict.as_bytes()])?;
        self.exchange(request, id).map(drop)
    }

    /// Sends a request, queues the events that come first, and returns the reply's payload.
    fn exchange(&mut self, request: StoreRequest<'_>, transaction: u32) -> Result<Vec<u8>, Error<T::Error>> {
        let result = self.try_exchange(&request, transaction);
        result.map_err(|cause| Error::new(request.kind, request.subject, cause))
    }

    fn exchange_all(
        &mut self,
        requests: &[StoreRequest<'_>],
        transaction: u32,
    ) -> Vec<Result<Vec<u8>, Error<T::Error>>> {
        let mut replies = Vec::with_capacity(requests.len());
        for some in requests.chunks(UNDER_WAY_MAX) {
            // Each in a message of its own: Linux's device takes one at a time.
            let posted: Vec<_> = some
                .iter()
                .map(|request| self.post(request, transaction))
                .collect();
            for (request, posted) in some.iter().zip(posted) {
                let reply = posted.and_then(|number| self.reply(request, number));
                replies.push(reply.map_err(|cause| Error::new(request.kind, request.subject, cause)));
            }
        }
        replies
    }

    fn try_exchange(
        &mut self,
        request: &StoreRequest<'_>,
        transaction: u32,
    ) -> Result<Vec<u8>, Cause<T::Error>> {
        let number = self.post(request, transaction)?;
        self.reply(request, number)
    }

    /// Sends a request, and returns its number.
    fn post(&mut self, request: &StoreRequest<'_>, transaction: u32) -> Result<u32, Cause<T::Error>> {
        if !self.in_step {
            return Err(Cause::OutOfStep);
        }
        // Before anything is sent: this request fails, and the connection goes on.
        if request.payload.len() > T::PAYLOAD_MAX {
            return Err(Cause::TooLong(request.payload.len()));
        }
        // Never zero: replies that Linux's /dev/xen/xenbus makes by itself have that number (see below).
        self.last_request = self.last_request.wrapping_add(1).max(1);
        let header = Header {
            kind: request.kind as u32,
            request: self.last_request,
            transaction,
            // At most PAYLOAD_MAX.
            length: request.payload.len() as u32,
        };
        // In one piece: a transport may have to take a message whole.
        let sent = self
            .transport
            .send(&[&header.encode()[..], &request.payload].concat());
        sent.map_err(|error| self.out_of_step(Cause::Transport(error)))?;
        Ok(self.last_request)
    }

    /// Receives the reply to the request of this number, the first one that is still unanswered. Queues the events that come
    /// before.
    fn reply(&mut self, request: &StoreRequest<'_>, number: u32) -> Result<Vec<u8>, Cause<T::Error>> {
        // After a failure nobody knows what the next message is.
        if !self.in_step {
            return Err(Cause::OutOfStep);
        }
        loop {
            let (header, payload) = self.receive()?;
            let kind = Kind::from_raw(header.kind);
            // xenstored sends events at any moment, also between a request and its reply.
            if kind == Some(Kind::WatchEvent) {
                self.queue(&payload)?;
                continue;
            }
            // Linux's /dev/xen/xenbus answers some requests itself, and leaves the number 0.
            if header.request != number && header.request != 0 {
                // A reply to the client whose connection is taken over. `ResetWatches` is the first request after that: every
                // reply before its own is one of those.
                if request.kind == Kind::ResetWatches {
                    continue;
                }
                return Err(self.out_of_step(Cause::Violation(Violation::Request(header.request))));
            }
            // A refusal leaves the stream in step; a reply of another kind does not.
            return match kind {
                Some(Kind::Error) => Err(Cause::Refused(ErrorName::decode(&payload))),
                Some(kind) if kind == request.kind => Ok(payload),
                _ => Err(self.out_of_step(Cause::Violation(Violation::Kind(header.kind)))),
            };
        }
    }

    /// Receives one message if there is one, which must be an event; false if there is none.
    fn try_receive_event(&mut self) -> Result<bool, Cause<T::Error>> {
        if !self.in_step {
            return Err(Cause::OutOfStep);
        }
        let ready = self.transport.ready();
        if !ready.map_err(|error| self.out_of_step(Cause::Transport(error)))? {
            return Ok(false);
        }
        // Where the first byte is, the rest follows.
        let (header, payload) = self.receive()?;
        if Kind::from_raw(header.kind) != Some(Kind::WatchEvent) {
            return Err(self.out_of_step(Cause::Violation(Violation::Request(header.request))));
        }
        self.queue(&payload)?;
        Ok(true)
    }

    fn queue(&mut self, payload: &[u8]) -> Result<(), Cause<T::Error>> {
        match wire::decode_exactly(payload) {
            Ok([path, token]) => {
                self.events.push(WatchEvent { path, token });
                Ok(())
            }
            // An event that cannot be decoded is a change that would go unseen, so it ends the connection.
            Err(violation) => Err(self.out_of_step(Cause::Violation(violation))),
        }
    }

    fn receive(&mut self) -> Result<(Header, Vec<u8>), Cause<T::Error>> {
        let mut header = [0; Header::SIZE];
        let received = self.transport.receive(&mut header);
        received.map_err(|error| self.out_of_step(Cause::Transport(error)))?;
        let header = Header::decode(&header);
        let length = header.length as usize;
        // Before anything is allocated: the length is the other end's.
        if length > wire::PAYLOAD_MAX {
            return Err(self.out_of_step(Cause::Violation(Violation::Oversized(header.length))));
        }
        let mut payload = vec![0; length];
        let received = self.transport.receive(&mut payload);
        received.map_err(|error| self.out_of_step(Cause::Transport(error)))?;
        Ok((header, payload))
    }

    /// Ends the use of the connection: nobody knows where in the stream the next message begins.
    fn out_of_step(&mut self, cause: Cause<T::Error>) -> Cause<T::Error> {
        self.in_step = false;
        cause
    }
}

/// Adds the request's name to a malformed reply.
fn well_formed<R, E>(kind: Kind, subject: &str, reply: Result<R, Violation>) -> Result<R, Error<E>> {
    reply.map_err(|violation| Error::new(kind, subject, Cause::Violation(violation)))
}

fn watch_request<'a, E>(kind: Kind, path: &'a str, token: &str) -> Result<StoreRequest<'a>, Error<E>> {
    if token.contains('\0') {
        return Err(Error::new(kind, path, Cause::Token));
    }
    StoreRequest::on_node(kind, path, &[token.as_bytes(), b"\0"].concat())
}

impl<T: Transport> Store for Client<T> {
    type TransportError = T::Error;

    fn submit(&mut self, request: StoreRequest<'_>) -> Result<Vec<u8>, Error<T::Error>> {
        self.exchange(request, 0)
    }

    fn submit_all(&mut self, requests: Vec<StoreRequest<'_>>) -> Vec<Result<Vec<u8>, Error<T::Error>>> {
        self.exchange_all(&requests, 0)
    }
}

/// A transaction under way; see [`Client::transaction`].
#[derive(Debug)]
pub struct Transaction<'a, T> {
    client: &'a mut Client<T>,
    id: u32,
}

impl<T: Transport> Store for Transaction<'_, T> {
    type TransportError = T::Error;

    fn submit(&mut self, request: StoreRequest<'_>) -> Result<Vec<u8>, Error<T::Error>> {
        self.client.exchange(request, self.id)
    }

    fn submit_all(&mut self, requests: Vec<StoreRequest<'_>>) -> Vec<Result<Vec<u8>, Error<T::Error>>> {
        self.client.exchange_all(&requests, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;

    /// Answers each request with its own number, and keeps the last one.
    #[derive(Debug)]
    struct Echo {
        request: u32,
        sent: usize,
    }

    impl Transport for Echo {
        type Error = Infallible;

        fn send(&mut self, message: &[u8]) -> Result<(), Infallible> {
            let header = message.first_chunk().expect("a whole header");
            self.request = Header::decode(header).request;
            self.sent += 1;
            Ok(())
        }

        fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            let header = Header {
                kind: Kind::Read as u32,
                request: self.request,
                transaction: 0,
                length: 0,
            };
            let header = header.encode();
            let count = bytes.len().min(header.len());
            bytes[..count].copy_from_slice(&header[..count]);
            Ok(())
        }

        fn ready(&mut self) -> Result<bool, Infallible> {
            Ok(false)
        }
    }

    #[test]
    fn the_number_of_a_request_is_never_that_of_linux_own_answers() {
        let mut client = Client::new(Echo { request: 0, sent: 0 });
        client.last_request = u32::MAX - 1;
        for expected in [u32::MAX, 1, 2] {
            client.read("/node").unwrap();
            assert_eq!(client.transport.request, expected);
        }
        assert_eq!(client.transport.sent, 3);
    }
}
