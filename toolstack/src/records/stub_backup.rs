//! dom0's backup of a stub, by which the stub can be created again after its death.
//!
//! The home of a stub in xenstore goes with its domain, and with it what the stub published there: the guest address
//! of each device, and the state of a change of the list. The service keeps a copy. The configuration of the domain
//! is kept when it gets its first devices.
//!
//! The backup lies below the stub's record and goes with it. The copy, and what the stub has left in its page, are
//! the stub's own data and not trusted: they go to the next domain of the same stub and to nobody else.

use crate::host::store::{Store, StoreError, Stream};
use crate::records;
use serde_json::Value;
use std::collections::BTreeMap;
use xen::xenctrl::DomId;
use xenbus::client::{Store as _, Transaction};
use xenbus::path::{Device as Hop, Numbered, key};

/// The nodes that a stub, or the toolstack, has in the backend's directory of a first hop, by key.
pub type Published = BTreeMap<String, String>;

/// The longest value that is copied.
const LONGEST_VALUE: usize = 256;
/// The highest number that is copied: each device has one, and those that come or go have some besides.
const NUMBERS: usize = 256;
/// The most nodes that are copied. A stub may make as many as it likes, and each takes the service some time.
const MOST: usize = 6 * 64;
/// Limit of attempts for one copy: a stub may write without a pause. The service tries again later.
const TRIES: u32 = 3;
const CONFIG: &str = "config";
const BACKEND: &str = "backend";
const HANDOVER_BLOCK: &str = "survivor";

/// Keeps the configuration of a stub's domain: what `xl list -l` prints as `config`.
pub fn keep_config(store: &mut Store, stub: DomId, config: &Value) -> Result<(), StoreError> {
    store.write(&config_path(stub), &config.to_string())
}

/// The configuration of a stub's domain; `None` if none was kept.
pub fn config(store: &mut Store, stub: DomId) -> Result<Option<Value>, StoreError> {
    let text = store.read_optional(&config_path(stub))?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The configurations of the domains of these stubs.
pub fn configs(store: &mut Store, stubs: &[DomId]) -> Result<Vec<Option<Value>>, StoreError> {
    let paths: Vec<String> = stubs.iter().copied().map(config_path).collect();
    let texts = store.read_many(&paths)?.into_iter();
    Ok(texts.map(|text| serde_json::from_str(&text?).ok()).collect())
}

fn config_path(stub: DomId) -> String {
    format!("{}/{CONFIG}", directory(stub))
}

/// Keeps the handover block that a dead stub has left in its page, as text: see [`xenbus::handover_block`].
pub fn keep_handover_block(store: &mut Store, stub: DomId, handover_block: &str) -> Result<(), StoreError> {
    store.write(&format!("{}/{HANDOVER_BLOCK}", directory(stub)), handover_block)
}

/// The handover block of the last stub that left one.
pub fn handover_block(store: &mut Store, stub: DomId) -> Result<Option<String>, StoreError> {
    store.read_optional(&format!("{}/{HANDOVER_BLOCK}", directory(stub)))
}

/// The copies that this process has made, by stub: a copy that is known is not read again.
#[derive(Debug, Default)]
pub struct Copies(BTreeMap<DomId, Published>);

impl Copies {
    /// Updates the copy of the backend's directory. If the directory has gone with the stub, the copy stays.
    pub fn keep(&mut self, store: &mut Store, hop: Hop) -> Result<(), StoreError> {
        let stub = hop.backend();
        let copy = format!("{}/{BACKEND}", directory(stub));
        // Known again only when the transaction has succeeded.
        let known = self.0.remove(&stub);
        let copied = store.transaction_within(TRIES, |store| {
            let kept = match &known {
                Some(known) => known.clone(),
                None => read_all(store, &copy)?,
            };
            // A directory without a state is being removed, so the copy stays.
            if store.read_optional(&hop.backend_node(key::STATE))?.is_none() {
                return Ok(kept);
            }
            let now = read_all(store, &hop.backend_dir())?;
            // Unchanged nodes are not written: each write is a round trip, and the stub may change its nodes often.
            for (key, value) in now.iter().filter(|&(key, value)| kept.get(key) != Some(value)) {
                store.write(&format!("{copy}/{key}"), value)?;
            }
            for key in kept.keys().filter(|key| !now.contains_key(*key)) {
                store.remove(&format!("{copy}/{key}"))?;
            }
            Ok(now)
        })?;
        self.0.insert(stub, copied);
        Ok(())
    }

    /// Forgets a stub that has no record any more, and so no copy.
    pub fn forget(&mut self, stub: DomId) {
        self.0.remove(&stub);
    }
}

/// The copy of what a stub had published; empty if there was nothing yet.
pub fn published(store: &mut Store, stub: DomId) -> Result<Published, StoreError> {
    store.transaction(|store| read_all(store, &format!("{}/{BACKEND}", directory(stub))))
}

/// The nodes of a directory that are copied.
fn read_all(store: &mut Transaction<'_, Stream>, directory: &str) -> Result<Published, StoreError> {
    let keys: Vec<String> = records::children(store, directory)?
        .into_iter()
        // The filter comes before the limit: nodes of other names must not crowd out those that are needed.
        .filter(|key| is_kept(key))
        .take(MOST)
        .collect();
    let paths: Vec<String> = keys.iter().map(|key| format!("{directory}/{key}")).collect();
    let values = store.read_many(&paths)?;
    let nodes = keys.into_iter().zip(values).filter_map(|(key, value)| {
        let value = value.filter(|value| value.len() <= LONGEST_VALUE)?;
        Some((key, value))
    });
    Ok(nodes.collect())
}

/// True for the keys of docs/protocol.md that differ from stub to stub.
fn is_kept(name: &str) -> bool {
    const NUMBERED: [Numbered; 6] = [
        Numbered::Key,
        Numbered::Device,
        Numbered::State,
        Numbered::VirtualDevice,
        Numbered::Error,
        Numbered::Root,
    ];
    // The stub may write any name. Only names of this form, with a small number, are copied.
    let number = name
        .rsplit_once('-')
        .and_then(|(_, number)| number.parse::<usize>().ok());
    [key::STATE, key::DOMAIN, key::NUM_DEVS, key::ROOT_NUM].contains(&name)
        || number.is_some_and(|number| {
            number < NUMBERS && NUMBERED.iter().any(|numbered| numbered.at(number) == name)
        })
}

fn directory(stub: DomId) -> String {
    records::stub_backup_dir(stub)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0};
    use crate::nodes::hops::{HopNodes, first_hop};
    use crate::records::tests::attachment;
    use serde_json::json;
    use xenbus::model::Xenstored;

    #[test]
    fn what_the_stub_published_outlives_it_and_follows_its_changes() {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        let (attachment, hop) = (attachment(), first_hop(&attachment()));
        attachment.write(&mut store).unwrap();
        HopNodes::first(&attachment).write(&mut store).unwrap();
        let mut copies = Copies::default();
        let mut stub = connect(&daemon, 4);
        for (key, value) in [
            ("vdev-1", "0000:00:01.00"),
            ("state-1", "3"),
            ("error-0", "-22 why"),
            ("state", "4"),
        ] {
            stub.write(&hop.backend_node(key), value).unwrap();
        }
        copies.keep(&mut store, hop).unwrap();
        stub.remove(&hop.backend_node("error-0")).unwrap();
        stub.write(&hop.backend_node("state-0"), "6").unwrap();
        copies.keep(&mut store, hop).unwrap();
        // The next process does not know what this one has copied.
        stub.remove(&hop.backend_node("num_devs")).unwrap();
        Copies::default().keep(&mut store, hop).unwrap();
        stub.write(&hop.backend_node("num_devs"), "2").unwrap();
        Copies::default().keep(&mut store, hop).unwrap();

        store.remove(&xenbus::path::home(4)).unwrap();
        copies.keep(&mut store, hop).unwrap();
        let kept = published(&mut store, 4).unwrap();
        let told: Vec<_> = kept.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            told,
            [
                "dev-0=0000:00:05.0",
                "dev-1=0000:00:06.0",
                "domain=web",
                "key-0=0000:00:05.0",
                "key-1=0000:00:06.0",
                "num_devs=2",
                "state=4",
                "state-0=6",
                "state-1=3",
                "vdev-1=0000:00:01.00",
            ]
        );
        attachment.remove(&mut store).unwrap();
        assert_eq!(published(&mut store, 4).unwrap(), Published::new());
    }

    #[test]
    fn a_stub_cannot_have_just_anything_kept() {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        let hop = first_hop(&attachment());
        attachment().write(&mut store).unwrap();
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        let mut stub = connect(&daemon, 4);
        let before = {
            Copies::default().keep(&mut store, hop).unwrap();
            published(&mut store, 4).unwrap()
        };
        let long = "x".repeat(LONGEST_VALUE + 1);
        for (key, value) in [
            ("frontend", "/local/domain/9"),
            ("vdev-256", "0000:00:00.00"),
            ("vdev-01", "0000:00:00.00"),
            ("vdev--1", "0000:00:00.00"),
            ("mine", "1"),
            ("vdev-0/below", "1"),
            ("error-0", &long),
        ] {
            stub.write(&hop.backend_node(key), value).unwrap();
        }
        stub.remove(&hop.backend_node("vdev-0")).unwrap();
        Copies::default().keep(&mut store, hop).unwrap();
        assert_eq!(published(&mut store, 4).unwrap(), before);
    }

    #[test]
    fn bytes_that_are_no_text_and_a_flood_of_nodes_harm_nobody() {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        let hop = first_hop(&attachment());
        attachment().write(&mut store).unwrap();
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        let mut stub = connect(&daemon, 4);
        stub.write_bytes(&hop.backend_node("state"), b"4\xff").unwrap();
        Copies::default().keep(&mut store, hop).unwrap();
        assert_eq!(published(&mut store, 4).unwrap()["state"], "\u{fffd}");
        let mut flood = |number, keys: &[&str]| {
            for key in keys {
                let node = hop.backend_node(&format!("{key}-{number}"));
                stub.write(&node, "1").unwrap();
            }
        };
        (0..200).for_each(|number| flood(number, &["dev", "key"]));
        Copies::default().keep(&mut store, hop).unwrap();
        assert_eq!(published(&mut store, 4).unwrap().len(), MOST);
        // More names than fit into an answer: the copy stays as it was.
        (0..NUMBERS).for_each(|number| flood(number, &["vdev", "state", "error", "root"]));
        assert!(Copies::default().keep(&mut store, hop).is_err());
        assert!(store.is_usable());
        assert_eq!(published(&mut store, 4).unwrap().len(), MOST);
    }

    #[test]
    fn the_configuration_is_kept_with_the_record_and_a_changed_record_leaves_it_alone() {
        let mut store = dom0(&Xenstored::new());
        let config_json = json!({ "c_info": { "name": "web-bulkhead" } });
        assert_eq!(config(&mut store, 4).unwrap(), None);
        attachment().write(&mut store).unwrap();
        keep_config(&mut store, 4, &config_json).unwrap();
        attachment().without(&[]).write(&mut store).unwrap();
        assert_eq!(config(&mut store, 4).unwrap(), Some(config_json));
    }
}
