//! Page and event channel port that a stub publishes for its second hop.

use crate::host::store::StoreError;
use std::io;
use thiserror::Error;
use xenbus::client::Store as Nodes;
use xenbus::path::{Device as Hop, key};
use xenbus::pciif::MAGIC;

/// A node of a stub's that is missing or nonsense.
#[derive(Debug, Error)]
#[error("the stub's node {node} is {value:?}, which is no {expected}")]
pub struct NodeError {
    node: &'static str,
    /// The beginning of what it holds.
    value: String,
    /// What it should hold.
    expected: &'static str,
}

/// Page and event channel port of a stub's second hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingParams {
    pub grant: u32,
    pub port: u32,
}

/// A value of a stub's is quoted up to this many characters.
const LONGEST_TOLD: usize = 60;

/// Reads what a stub has published, all of one moment; `None` while it rewrites that.
///
/// The nodes are read twice and compared. A transaction would do as well, but one that only reads can be kept from its end
/// for ever by a stub that writes without a pause.
pub fn ring_params(
    store: &mut impl Nodes<TransportError = io::Error>,
    hop: Hop,
) -> Result<Option<Result<RingParams, NodeError>>, StoreError> {
    let nodes = [key::MAGIC, key::PCI_OP_REF, key::EVENT_CHANNEL].map(|key| hop.frontend_node(key));
    // Not all six at once: xenstored may answer the requests that it has already without those of the stub in between.
    let values = store.read_many(&nodes)?;
    Ok((store.read_many(&nodes)? == values).then(|| parse(&values)))
}

fn parse(values: &[Option<String>]) -> Result<RingParams, NodeError> {
    // A missing node reads as empty, which is refused below as any other nonsense.
    let mut values = values.iter().map(|value| value.clone().unwrap_or_default());
    let [magic, grant, port] = &std::array::from_fn(|_| values.next().unwrap_or_default());
    let nonsense = |node, value: &String, expected| NodeError {
        node,
        value: value.chars().take(LONGEST_TOLD).collect(),
        expected,
    };
    // The version is looked at first: the other nodes may mean something else in another one.
    if magic != MAGIC {
        return Err(nonsense(
            key::MAGIC,
            magic,
            "version of the protocol that is known here (7)",
        ));
    }
    let number = |node, text: &String, expected| text.parse().map_err(|_| nonsense(node, text, expected));
    Ok(RingParams {
        grant: number(key::PCI_OP_REF, grant, "grant reference")?,
        port: number(key::EVENT_CHANNEL, port, "event channel port")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::error::LinkError;
    use super::*;
    use crate::host::store::{self, Store};

    fn parse(magic: &str, grant: &str, port: &str) -> Result<RingParams, String> {
        super::parse(&[magic, grant, port].map(|value| Some(value.to_owned())))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn particulars_are_a_grant_and_a_port() {
        assert_eq!(parse("7", "8", "15"), Ok(RingParams { grant: 8, port: 15 }));
    }

    /// A connection to xenstore during which somebody else writes.
    struct Meanwhile<F>(Store, F);

    impl<F: FnMut()> Nodes for Meanwhile<F> {
        type TransportError = io::Error;

        fn submit(&mut self, request: xenbus::client::StoreRequest<'_>) -> Result<Vec<u8>, StoreError> {
            let reply = self.0.submit(request);
            (self.1)();
            reply
        }
    }

    /// RingParams of stub 4, which writes `grants` one after the other, one before each further reading of a node.
    fn read_while_written(grants: &[&[u8]]) -> Option<Result<RingParams, NodeError>> {
        let daemon = xenbus::model::Xenstored::new();
        daemon.introduce(4);
        let hop = Hop::second_hop(4);
        let mut stub = store::tests::connect(&daemon, 4);
        for (key, value) in [
            (key::MAGIC, "7"),
            (key::PCI_OP_REF, "8"),
            (key::EVENT_CHANNEL, "15"),
        ] {
            stub.write(&hop.frontend_node(key), value).unwrap();
        }
        let mut grants = grants.iter();
        let write = || {
            if let Some(grant) = grants.next() {
                stub.write_bytes(&hop.frontend_node(key::PCI_OP_REF), grant)
                    .unwrap();
            }
        };
        ring_params(&mut Meanwhile(store::tests::dom0(&daemon), write), hop).unwrap()
    }

    #[test]
    fn particulars_are_of_one_moment_or_come_later() {
        assert_eq!(
            read_while_written(&[]).unwrap().unwrap(),
            RingParams { grant: 8, port: 15 }
        );
        let numbers: Vec<String> = (0..12).map(|number| number.to_string()).collect();
        let numbers: Vec<&[u8]> = numbers.iter().map(|number| number.as_bytes()).collect();
        assert!(read_while_written(&numbers).is_none());
    }

    #[test]
    fn the_six_readings_take_two_round_trips() {
        let daemon = xenbus::model::Xenstored::new();
        let mut dom0 = store::tests::dom0(&daemon);
        let before = daemon.round_trips();
        ring_params(&mut dom0, Hop::second_hop(4)).unwrap();
        assert_eq!(daemon.round_trips() - before, 2);
    }

    #[test]
    fn what_a_stub_writes_is_told_in_short_and_never_a_fault_of_xenstored() {
        for value in [&b"\xff"[..], b"", &[b'x'; 4000], "8\u{663}".as_bytes(), b"8\0"] {
            let error = read_while_written(&[value; 2]).unwrap().unwrap_err();
            let text = error.to_string();
            assert!(LinkError::from(error).is_of_offer());
            assert!(text.contains("pci-op-ref") && text.len() < 500, "{text}");
        }
    }

    #[test]
    fn nonsense_is_named_by_its_node() {
        for (magic, grant, port, node) in [
            ("", "8", "15", "magic"),
            ("6", "8", "15", "magic"),
            ("7", "", "15", "pci-op-ref"),
            ("7", "-1", "15", "pci-op-ref"),
            ("7", "8", "4294967296", "event-channel"),
            ("7", "8", "x\n", "event-channel"),
        ] {
            let error = parse(magic, grant, port).unwrap_err();
            assert!(error.contains(&format!("node {node} is")), "{error}");
        }
    }
}
