//! The client against a peer that sends anything: it must not panic, hang, grow, or blame the wrong node.

use proptest::prelude::*;
use std::collections::VecDeque;
use std::fmt;
use xenbus::client::{Cause, Client, Error, Store, Transport};
use xenbus::wire::{ErrorName, Header, Kind, Violation};

/// Ends the script: what comes after the last byte.
#[derive(Debug, PartialEq, Eq)]
struct Eof;

impl fmt::Display for Eof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("end of the script")
    }
}

/// Replies with these bytes, whatever is asked.
#[derive(Debug)]
struct Script(VecDeque<u8>);

impl Transport for Script {
    type Error = Eof;

    fn send(&mut self, _: &[u8]) -> Result<(), Eof> {
        Ok(())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Eof> {
        if self.0.len() < bytes.len() {
            return Err(Eof);
        }
        bytes.fill_with(|| self.0.pop_front().expect("checked"));
        Ok(())
    }

    fn ready(&mut self) -> Result<bool, Eof> {
        Ok(!self.0.is_empty())
    }
}

fn client(script: impl IntoIterator<Item = Vec<u8>>) -> Client<Script> {
    Client::new(Script(script.into_iter().flatten().collect()))
}

fn message(kind: u32, request: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        request,
        transaction: 0,
        length: payload.len() as u32,
    };
    [&header.encode()[..], payload].concat()
}

fn reply(kind: Kind, payload: &[u8]) -> Vec<u8> {
    message(kind as u32, 1, payload)
}

/// Uses everything a client can do, and checks that what fails names its node.
fn exercise(client: &mut Client<Script>) {
    let named = |result: Result<(), Error<Eof>>, name: &str| {
        if let Err(error) = result {
            assert!(error.to_string().contains(name), "{error}");
        }
    };
    named(client.watch("/watched", "token"), "watch /watched: ");
    named(client.read("/node").map(drop), "read /node: ");
    named(client.write("/node", "value"), "write /node: ");
    named(client.directory("/node").map(drop), "list /node: ");
    named(
        client.permissions("/node").map(drop),
        "read permissions of /node: ",
    );
    named(
        client.transaction(|tx| tx.mkdir("/node")).or_else(in_transaction),
        "make /node: ",
    );
    named(client.domain_path(7).map(drop), "find home of domain 7: ");
    named(client.is_introduced(7).map(drop), "look for domain 7: ");
    while let Ok(Some(event)) = client.next_event() {
        assert_eq!(event.token, "token");
    }
    named(client.unwatch("/watched", "token"), "unwatch /watched: ");
}

/// Lets pass what fails before or after a transaction's body, and names that.
fn in_transaction(error: Error<Eof>) -> Result<(), Error<Eof>> {
    if error.to_string().contains(" transaction: ") {
        Ok(())
    } else {
        Err(error)
    }
}

/// A message that looks right at least in parts, so that the bytes get past the first check.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        "(/watched|n3|r65536|T|F|0|1|99999999999|ENOENT|token|/watched/x\0token)\0"
            .prop_map(String::into_bytes),
    ];
    let kind = prop_oneof![0..20u32, Just(Kind::WatchEvent as u32), any::<u32>()];
    (kind, prop_oneof![0..12u32, any::<u32>()], payload)
        .prop_map(|(kind, request, payload)| message(kind, request, &payload))
}

/// The reply that is due, but with any payload.
fn due() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let payload = || prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..20);
    let kinds = [4, 2, 11, 1, 3, 6, 13, 7, 10, 17, 5];
    prop::collection::vec(payload(), kinds.len()).prop_map(move |payloads| {
        // Request number 0 fits any request.
        payloads
            .iter()
            .zip(kinds)
            .map(|(payload, kind)| message(kind, 0, payload))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(&mut client([bytes]));
    }

    #[test]
    fn plausible_messages_do_no_harm(messages in prop::collection::vec(plausible(), 0..20)) {
        exercise(&mut client(messages));
    }

    #[test]
    fn replies_with_any_payload_do_no_harm(messages in due()) {
        exercise(&mut client(messages));
    }
}

#[test]
fn a_reply_beyond_the_limit_is_refused_before_memory_is_set_aside() {
    let header = Header {
        kind: 2,
        request: 1,
        transaction: 0,
        length: u32::MAX,
    };
    let mut client = client([header.encode().to_vec()]);
    let error = client.read("/node").unwrap_err();
    assert_eq!(error.cause(), &Cause::Violation(Violation::Oversized(u32::MAX)));
}

#[test]
fn the_longest_reply_is_taken_and_one_byte_more_is_not() {
    let longest = "x".repeat(4096);
    let mut whole = client([reply(Kind::Read, longest.as_bytes())]);
    assert_eq!(whole.read("/node").unwrap(), longest);
    let mut over = client([reply(Kind::Read, &[b'x'; 4097])]);
    let error = over.read("/node").unwrap_err();
    assert_eq!(error.cause(), &Cause::Violation(Violation::Oversized(4097)));
}

#[test]
fn after_a_broken_frame_the_client_is_of_no_more_use() {
    for (broken, violation) in [
        (message(2, 7, b"x"), Violation::Request(7)),
        (reply(Kind::Write, b"x"), Violation::Kind(11)),
        (message(999, 1, b"x"), Violation::Kind(999)),
        (message(15, 0, b"no end mark"), Violation::Framing),
    ] {
        let mut client = client([broken, message(2, 2, b"value")]);
        assert_eq!(
            client.read("/node").unwrap_err().cause(),
            &Cause::Violation(violation)
        );
        let error = client.read("/node").unwrap_err();
        assert_eq!(
            error.to_string(),
            "read /node: the connection to xenstored failed earlier; open a new one"
        );
        assert_eq!(client.next_event().unwrap_err().cause(), &Cause::OutOfStep);
        assert!(!client.is_usable());
    }
}

#[test]
fn a_bad_value_in_a_sound_frame_fails_that_request_only() {
    let mut client = client([
        message(1, 1, b"n0\xff\0"),
        message(3, 2, b"n0\0x\0"),
        message(1, 3, b"a\0b"),
        message(6, 4, b"0\0"),
        message(17, 5, b"maybe\0"),
        message(10, 6, b"/local\0/domain\0"),
        message(2, 7, b"value"),
    ]);
    let bad = |violation| Cause::Violation(violation);
    assert_eq!(
        client.directory("/node").unwrap_err().cause(),
        &bad(Violation::Encoding)
    );
    assert_eq!(
        client.permissions("/node").unwrap_err().cause(),
        &bad(Violation::Value)
    );
    assert_eq!(
        client.directory("/node").unwrap_err().cause(),
        &bad(Violation::Framing)
    );
    assert_eq!(
        client.transaction(|_| Ok(())).unwrap_err().cause(),
        &bad(Violation::Value)
    );
    assert_eq!(
        client.is_introduced(7).unwrap_err().cause(),
        &bad(Violation::Value)
    );
    assert_eq!(
        client.domain_path(7).unwrap_err().cause(),
        &bad(Violation::Framing)
    );
    assert_eq!(client.read("/node").unwrap(), "value");
    assert!(client.is_usable());
}

#[test]
fn a_value_of_any_bytes_is_no_fault_of_xenstored() {
    let mut client = client([
        message(2, 1, b"4\xff"),
        message(2, 2, b"4\xff"),
        message(2, 3, b"4\0"),
        message(2, 4, "4\u{663}".as_bytes()),
    ]);
    assert_eq!(client.read("/node").unwrap(), "\u{fffd}");
    assert_eq!(client.read_bytes("/node").unwrap(), b"4\xff");
    assert_eq!(client.read("/node").unwrap(), "4\0");
    assert_eq!(client.read_optional("/node").unwrap().unwrap(), "4\u{663}");
    assert!(client.is_usable());
}

#[test]
fn an_unknown_refusal_is_passed_on_by_name() {
    let mut client = client([reply(Kind::Error, b"EODD\0")]);
    let error = client.read("/node").unwrap_err();
    assert_eq!(error.cause(), &Cause::Refused(ErrorName::Other("EODD".into())));
    assert_eq!(error.to_string(), "read /node: unknown error EODD");
}

#[test]
fn a_transport_that_ends_is_named_with_the_node() {
    let mut client = client([]);
    assert_eq!(
        client.read("/node").unwrap_err().to_string(),
        "read /node: end of the script"
    );
}

#[test]
fn events_of_nobodys_watch_are_dropped() {
    let mut client = client([
        message(15, 0, b"/other\0token\0"),
        message(15, 0, b"/watched\0other\0"),
        message(4, 1, b"OK\0"),
        message(15, 0, b"/watched/x\0token\0"),
    ]);
    client.watch("/watched", "token").unwrap();
    assert_eq!(client.next_event().unwrap().unwrap().path, "/watched/x");
    assert_eq!(client.next_event().unwrap(), None);
}

#[test]
fn a_refused_watch_has_no_events() {
    let mut client = client([
        message(15, 0, b"/watched\0token\0"),
        reply(Kind::Error, b"EACCES\0"),
        message(15, 0, b"/watched/x\0token\0"),
    ]);
    assert_eq!(
        client.watch("/watched", "token").unwrap_err().to_string(),
        "watch /watched: EACCES"
    );
    assert_eq!(client.next_event().unwrap(), None);
}

#[test]
fn an_event_before_the_reply_to_its_watch_is_kept() {
    let mut client = client([message(15, 0, b"/watched\0token\0"), message(4, 1, b"OK\0")]);
    client.watch("/watched", "token").unwrap();
    assert_eq!(client.next_event().unwrap().unwrap().path, "/watched");
}

#[test]
fn what_still_comes_for_a_client_that_was_cut_off_is_dropped_by_the_next() {
    let script = [
        message(2, 41, b"value for the dead one"),
        message(15, 0, b"/watched/x\0token\0"),
        message(21, 42, b"OK\0"),
        message(2, 43, b"new"),
    ];
    let script = Script(script.into_iter().flatten().collect());
    let mut client = Client::resume(script, 41);
    client.reset().unwrap();
    assert_eq!(
        client.next_event().unwrap_err().cause(),
        &Cause::Violation(Violation::Request(43))
    );

    let script = [message(21, 1, b"OK\0"), message(2, 2, b"new")];
    let mut client = Client::resume(Script(script.into_iter().flatten().collect()), 0);
    client.reset().unwrap();
    assert_eq!(client.read("/node").unwrap(), "new");
}

#[test]
fn a_reply_that_nobody_asked_for_is_no_event() {
    let mut client = client([message(2, 1, b"value")]);
    assert_eq!(
        client.next_event().unwrap_err().cause(),
        &Cause::Violation(Violation::Request(1))
    );
}
