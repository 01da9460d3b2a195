//! Finds domains, tells whether one still lives, and destroys one.

use crate::host::Host;
use crate::host::launcher::LaunchError;
use crate::host::store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::io;
use thiserror::Error;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::client::Store as _;
use xenbus::path::home;

/// A domain, with what tells it from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Domain {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// Its UUID; empty if it was created without one.
    pub uuid: String,
}

/// Why a domain was not found.
#[derive(Debug, Error)]
pub enum DomainError {
    /// There is no such domain.
    #[error("there is no domain {who}: `xl list` shows those that run")]
    NotFound {
        /// The name or number asked for.
        who: String,
    },
    /// It is the name of one domain and the number of another.
    #[error(
        "{who} is the name of domain {named}, and the number of domain {numbered}: say {named} or {numbered}, whichever \
         is meant"
    )]
    Ambiguous {
        /// The name or number asked for.
        who: String,
        /// The number of the domain with this name.
        named: DomId,
        /// The name of the domain with this number.
        numbered: String,
    },
    /// A request to xenstore failed.
    #[error("cannot look for domain {who} in xenstore")]
    Store {
        /// The name or number asked for.
        who: String,
        /// The cause.
        #[source]
        source: StoreError,
    },
}

/// Why a domain was not destroyed.
#[derive(Debug, Error)]
pub enum DestroyError {
    /// `xl destroy` failed.
    #[error(transparent)]
    Xl(#[from] LaunchError),
    /// xenstore did not tell whether it lives.
    #[error("cannot see in xenstore whether the domain lives")]
    Store(#[from] StoreError),
}

/// Why it is not known whether a domain still exists.
#[derive(Debug, Error)]
pub enum PresentError {
    /// xenstore did not tell.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Xen did not tell.
    #[error("cannot ask Xen for the UUID of domain {domid}")]
    Xen {
        /// The number of the domain.
        domid: DomId,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Finds a domain by its name or number. If the name of one is the number of another, neither is taken.
pub fn find(store: &mut Store, who: &str) -> Result<Domain, DomainError> {
    let failed = |source| DomainError::Store {
        who: who.to_owned(),
        source,
    };
    let number: Option<DomId> = who.parse().ok();
    let mut named = None;
    let mut numbered = None;
    // All domains are read: one may have the name, and another one the number.
    for (domid, name) in names(store).map_err(failed)? {
        if name == who {
            named = Some(domid);
        }
        if Some(domid) == number {
            numbered = Some((domid, name));
        }
    }
    let domid = match (named, numbered) {
        // xl would take the number. Refused instead, because a wrong guess may destroy a domain.
        (Some(named), Some((domid, numbered))) if named != domid => {
            let who = who.to_owned();
            return Err(DomainError::Ambiguous { who, named, numbered });
        }
        (Some(domid), _) | (None, Some((domid, _))) => domid,
        (None, None) => return Err(DomainError::NotFound { who: who.to_owned() }),
    };
    let found = read(store, domid).map_err(failed)?;
    found.ok_or_else(|| DomainError::NotFound { who: who.to_owned() })
}

/// The domain with a UUID, if there is one.
pub fn with_uuid(store: &mut Store, wanted: &str) -> Result<Option<Domain>, StoreError> {
    let domids = numbers(store)?;
    let uuids = uuids(store, &domids)?;
    let found = domids
        .into_iter()
        .zip(uuids)
        .find(|(_, uuid)| uuid.as_deref() == Some(wanted));
    match found {
        Some((domid, _)) => read(store, domid),
        None => Ok(None),
    }
}

/// All domains, the lowest number first.
pub fn all(store: &mut Store) -> Result<Vec<Domain>, StoreError> {
    let (domids, names): (Vec<DomId>, Vec<String>) = names(store)?.into_iter().unzip();
    let uuids = uuids(store, &domids)?;
    let of_each = domids.into_iter().zip(names).zip(uuids);
    let domains = of_each.map(|((domid, name), uuid)| Domain {
        domid,
        name,
        uuid: uuid.unwrap_or_default(),
    });
    Ok(domains.collect())
}

/// A domain as it is now; `None` if it has no home.
pub fn read(store: &mut Store, domid: DomId) -> Result<Option<Domain>, StoreError> {
    let Some(name) = store.read_optional(&format!("{}/name", home(domid)))? else {
        return Ok(None);
    };
    let uuid = uuid(store, domid)?.unwrap_or_default();
    Ok(Some(Domain { domid, name, uuid }))
}

/// As [`read`], for many domains in one round trip.
pub fn read_all(store: &mut Store, domids: &[DomId]) -> Result<Vec<Option<Domain>>, StoreError> {
    let names = domids.iter().map(|&domid| format!("{}/name", home(domid)));
    let paths: Vec<String> = names.chain(domids.iter().copied().map(vm_path)).collect();
    let mut values = store.read_many(&paths)?;
    let uuids = values.split_off(domids.len());
    let domains = domids.iter().zip(values).zip(uuids).map(|((&domid, name), vm)| {
        Some(Domain {
            domid,
            name: name?,
            uuid: vm.map(uuid_of).unwrap_or_default(),
        })
    });
    Ok(domains.collect())
}

/// The numbers of all domains that have a home, the lowest first.
pub fn numbers(store: &mut Store) -> Result<Vec<DomId>, StoreError> {
    let names = store.directory("/local/domain")?;
    let mut numbers: Vec<DomId> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// All domains with their names, the lowest number first.
fn names(store: &mut Store) -> Result<Vec<(DomId, String)>, StoreError> {
    let domids = numbers(store)?;
    let paths: Vec<String> = domids
        .iter()
        .map(|&domid| format!("{}/name", home(domid)))
        .collect();
    let names = store.read_many(&paths)?;
    Ok(domids
        .into_iter()
        .zip(names)
        .filter_map(|(domid, name)| Some((domid, name?)))
        .collect())
}

/// The UUIDs of domains, in few round trips.
fn uuids(store: &mut Store, domids: &[DomId]) -> Result<Vec<Option<String>>, StoreError> {
    let paths: Vec<String> = domids.iter().map(|&domid| vm_path(domid)).collect();
    let uuids = store.read_many(&paths)?.into_iter();
    Ok(uuids.map(|vm| vm.map(uuid_of)).collect())
}

/// True as long as the domain, and not a later one with its number, exists at Xen's level.
///
/// A domain that xl is destroying counts as alive until Xen has taken it apart: before that its
/// devices are still its own.
pub fn is_alive(store: &mut Store, domain: &Domain) -> Result<bool, StoreError> {
    // xenstored lets a domain go only when Xen has taken it apart; its nodes may vanish earlier (decision 14).
    if !store.is_introduced(domain.domid)? {
        return Ok(false);
    }
    Ok(is_of(domain, uuid(store, domain.domid)?))
}

/// True if this UUID, which the domain of that number has, is not another domain's.
fn is_of(domain: &Domain, uuid: Option<String>) -> bool {
    // Other toolstacks may write no `vm`. Then nothing tells another domain apart, and in doubt it lives.
    uuid.is_none_or(|uuid| uuid == domain.uuid)
}

/// As [`is_alive`], for many domains in few round trips.
pub fn are_alive(store: &mut Store, domains: &[&Domain]) -> Result<Vec<bool>, StoreError> {
    let domids: Vec<DomId> = domains.iter().map(|domain| domain.domid).collect();
    let introduced = store.are_introduced(&domids)?;
    let uuids = uuids(store, &domids)?;
    let alive = domains.iter().zip(introduced).zip(uuids);
    let alive = alive.map(|((domain, introduced), uuid)| introduced && is_of(domain, uuid));
    Ok(alive.collect())
}

/// The domain with its present name and UUID; `None` if it is gone.
///
/// libxl gives a domain that it keeps after its end (`on_crash = "rename-restart"`) another name and another UUID in xenstore,
/// and starts the guest in a new domain. Xen's own record of the UUID stays, and so do the devices of the kept domain.
pub fn present<X: Hypervisor>(host: &mut Host<X>, domain: &Domain) -> Result<Option<Domain>, PresentError> {
    let domid = domain.domid;
    if is_alive(&mut host.store, domain)? {
        return Ok(Some(domain.clone()));
    }
    if !host.store.is_introduced(domid)? {
        return Ok(None);
    }
    let created_with = host.xen.uuid(domid);
    let created_with = created_with.map_err(|source| PresentError::Xen { domid, source })?;
    if created_with.as_ref() != Some(&domain.uuid) {
        return Ok(None);
    }
    // The name was changed together with the UUID.
    let renamed = read(&mut host.store, domid)?;
    let renamed = renamed.filter(|renamed| !renamed.uuid.is_empty());
    Ok(Some(renamed.unwrap_or_else(|| domain.clone())))
}

/// True if the domain, and not a later one with its number, has its home. A domain that is being built has one before it is
/// [alive](is_alive), and loses it when it is destroyed.
pub fn has_home(store: &mut Store, domain: &Domain) -> Result<bool, StoreError> {
    Ok(uuid(store, domain.domid)?.is_some_and(|uuid| uuid == domain.uuid))
}

/// As [`has_home`], for many domains in few round trips.
pub fn have_homes(store: &mut Store, domains: &[&Domain]) -> Result<Vec<bool>, StoreError> {
    let domids: Vec<DomId> = domains.iter().map(|domain| domain.domid).collect();
    let uuids = uuids(store, &domids)?;
    let homes = domains.iter().zip(uuids);
    Ok(homes
        .map(|(domain, uuid)| uuid.is_some_and(|uuid| uuid == domain.uuid))
        .collect())
}

/// Destroys a domain if it lives. One that goes by itself meanwhile is as good as destroyed.
pub fn destroy<X>(host: &mut Host<X>, domain: &Domain) -> Result<(), DestroyError> {
    if !is_alive(&mut host.store, domain)? {
        return Ok(());
    }
    match host.runner.destroy(domain.domid) {
        Err(_) if !is_alive(&mut host.store, domain)? => Ok(()),
        destroyed => Ok(destroyed?),
    }
}

/// Removes the home of a domain that is gone, for dom0 may have written there since xl removed it, and what is left in dom0
/// of its network interfaces if xl's script for them has failed. Returns false, and removes nothing, if there is a domain of that number, or will be: libxl makes a home with its `vm` in one transaction
/// before it introduces the domain. Other toolstacks may have no `vm`.
pub fn clear_home(store: &mut Store, domid: DomId) -> Result<bool, StoreError> {
    if store.is_introduced(domid)? {
        return Ok(false);
    }
    // Tested in the transaction that removes: libxl may make the home of a new domain at this moment.
    store.transaction(|store| {
        let path = home(domid);
        if store.read_optional(&format!("{path}/vm"))?.is_some() {
            return Ok(false);
        }
        for left in [path, format!("{}/backend/vif/{domid}", home(0))] {
            match store.remove(&left) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    })
}

/// When libxl created each of these domains, in seconds since 1970. `None` if it is gone, or its toolstack does not tell.
pub fn created(store: &mut Store, domains: &[&Domain]) -> Result<Vec<Option<u64>>, StoreError> {
    // By its UUID: a later domain with its number has a node of its own. libxl writes seconds with two decimals.
    let paths: Vec<String> = domains
        .iter()
        .map(|domain| match domain.uuid.as_str() {
            "" => "/vm/none".to_owned(),
            uuid => format!("/vm/{uuid}/start_time"),
        })
        .collect();
    let times = store.read_many(&paths)?.into_iter();
    Ok(times.map(|time| time?.split('.').next()?.parse().ok()).collect())
}

fn uuid(store: &mut Store, domid: DomId) -> Result<Option<String>, StoreError> {
    Ok(store.read_optional(&vm_path(domid))?.map(uuid_of))
}

/// The node that names the directory below `/vm` of a domain.
fn vm_path(domid: DomId) -> String {
    format!("{}/vm", home(domid))
}

fn uuid_of(vm: String) -> String {
    vm.trim_start_matches("/vm/").to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::domain;
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    /// Gives a domain another name and another UUID, as libxl does with one that it keeps after its end. Returns it.
    pub fn preserve(daemon: &Xenstored, domid: DomId, name: &str) -> Domain {
        let mut store = dom0(daemon);
        let uuid = format!("00000000-0000-0000-0001-{domid:012}");
        store.write(&format!("{}/name", home(domid)), name).unwrap();
        let vm = format!("{}/vm", home(domid));
        store.write(&vm, &format!("/vm/{uuid}")).unwrap();
        let name = name.to_owned();
        Domain { domid, name, uuid }
    }

    #[test]
    fn a_domain_is_found_by_its_name_and_its_number() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let by_name = find(&mut store, "web").unwrap();
        assert_eq!(by_name, crate::records::tests::domain(3, "web"));
        assert_eq!(find(&mut store, "3").unwrap(), by_name);
        let error = find(&mut store, "mail").unwrap_err().to_string();
        assert_eq!(error, "there is no domain mail: `xl list` shows those that run");
    }

    #[test]
    fn the_home_of_a_domain_is_cleared_only_if_there_is_none() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        store.write("/local/domain/4/backend/pci/3/0/state", "5").unwrap();
        store
            .write("/local/domain/5/name", "of another toolstack")
            .unwrap();
        daemon.introduce(5);
        store.write("/local/domain/6/vm", "/vm/made-just-now").unwrap();
        for domid in [3, 4, 6] {
            let node = format!("/local/domain/0/backend/vif/{domid}/0/state");
            store.write(&node, "2").unwrap();
        }
        for domid in [0, 3, 5, 6] {
            assert!(!clear_home(&mut store, domid).unwrap(), "{domid}");
        }
        for _ in 0..2 {
            assert!(clear_home(&mut store, 4).unwrap());
        }
        assert_eq!(store.directory("/local/domain").unwrap(), ["0", "3", "5", "6"]);
        assert_eq!(
            store.directory("/local/domain/0/backend/vif").unwrap(),
            ["3", "6"]
        );
    }

    #[test]
    fn a_name_that_is_another_domains_number_is_refused_with_both() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "12");
        let mut store = dom0(&daemon);
        assert_eq!(
            find(&mut store, "12").unwrap().domid,
            3,
            "there is no domain 12 yet"
        );
        introduce(&daemon, 12, "web");
        let error = find(&mut store, "12").unwrap_err().to_string();
        assert_eq!(
            error,
            "12 is the name of domain 3, and the number of domain web: say 3 or web, whichever is meant"
        );
        assert_eq!(find(&mut store, "3").unwrap().domid, 3);
        assert_eq!(find(&mut store, "web").unwrap().domid, 12);
        introduce(&daemon, 14, "14");
        assert_eq!(find(&mut store, "14").unwrap().domid, 14);
    }

    #[test]
    fn a_domain_is_found_by_its_uuid_whatever_its_name() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        introduce(&daemon, 4, "mail");
        let mut store = dom0(&daemon);
        store.write("/local/domain/4/name", "post").unwrap();
        let found = with_uuid(&mut store, "00000000-0000-0000-0000-000000000004").unwrap();
        assert_eq!(found, Some(crate::records::tests::domain(4, "post")));
        assert_eq!(with_uuid(&mut store, "").unwrap(), None);
    }

    #[test]
    fn when_a_domain_was_created_is_what_libxl_has_written() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let web = find(&mut store, "web").unwrap();
        assert_eq!(created(&mut store, &[&web]).unwrap(), [None]);
        for (text, expected) in [("1795968123.45", Some(1_795_968_123)), ("soon", None), ("", None)] {
            store
                .write(&format!("/vm/{}/start_time", web.uuid), text)
                .unwrap();
            assert_eq!(created(&mut store, &[&web]).unwrap(), [expected], "{text}");
        }
        let nameless = Domain {
            uuid: String::new(),
            ..web
        };
        assert_eq!(created(&mut store, &[&nameless]).unwrap(), [None]);
    }

    #[test]
    fn a_domain_lives_until_xen_has_released_it() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let web = find(&mut store, "web").unwrap();
        assert!(is_alive(&mut store, &web).unwrap());
        // xl removes the home first, and destroys the domain then.
        store.remove(&home(3)).unwrap();
        assert!(is_alive(&mut store, &web).unwrap());
        let gone = crate::records::tests::domain(4, "mail");
        assert_eq!(are_alive(&mut store, &[&web, &gone]).unwrap(), [true, false]);
        daemon.release(3);
        assert!(!is_alive(&mut store, &web).unwrap());
        assert_eq!(are_alive(&mut store, &[&web, &gone]).unwrap(), [false, false]);
    }

    #[test]
    fn a_domain_has_its_home_while_it_is_being_built() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        let web = crate::records::tests::domain(3, "web");
        assert!(!has_home(&mut store, &web).unwrap());
        store
            .write("/local/domain/3/vm", &format!("/vm/{}", web.uuid))
            .unwrap();
        assert!(has_home(&mut store, &web).unwrap() && !is_alive(&mut store, &web).unwrap());
        store.write("/local/domain/3/vm", "/vm/another").unwrap();
        assert!(!has_home(&mut store, &web).unwrap());
    }

    #[test]
    fn a_later_domain_with_the_same_number_is_another_one() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let web = find(&mut store, "web").unwrap();
        store
            .write("/local/domain/3/vm", "/vm/00000000-0000-0000-0000-000000000099")
            .unwrap();
        assert!(!is_alive(&mut store, &web).unwrap());
        assert_eq!(are_alive(&mut store, &[&web]).unwrap(), [false]);
    }

    #[test]
    fn a_domain_that_libxl_keeps_under_another_name_is_still_there_and_a_later_one_is_not_it() {
        let (daemon, tree) = (Xenstored::new(), Tree::new());
        introduce(&daemon, 3, "web");
        let web = domain(3, "web");
        let mut host = Host {
            store: dom0(&daemon),
            xen: Xen::default(),
            sysfs: tree.sysfs(),
            runner: Runner::Model(Vec::new()),
        };
        assert_eq!(present(&mut host, &web).unwrap(), Some(web.clone()));
        let kept = preserve(&daemon, 3, "web-20261130T0733Z");
        assert_eq!(
            present(&mut host, &web).unwrap(),
            None,
            "another domain with the number"
        );
        host.xen.set_uuid(3, &web.uuid);
        assert_eq!(present(&mut host, &web).unwrap(), Some(kept.clone()));
        assert_eq!(present(&mut host, &kept).unwrap(), Some(kept));
        daemon.release(3);
        assert_eq!(present(&mut host, &web).unwrap(), None);
    }
}
