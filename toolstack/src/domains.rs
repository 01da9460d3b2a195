//! Finding domains, and telling whether one still lives.

use crate::host::Host;
use crate::launcher::LaunchError;
use crate::record::Domain;
use crate::store::{Store, StoreError};
use crate::xenctrl::DomId;
use thiserror::Error;
use xenbus::client::Store as _;
use xenbus::path::home;

/// Why a domain was not found.
#[derive(Debug, Error)]
pub enum DomainError {
    /// No such domain.
    #[error("there is no domain {who}: `xl list` shows those that run")]
    NotFound {
        /// The name or number asked for.
        who: String,
    },
    /// xenstore said no.
    #[error("cannot look for domain {who} in xenstore")]
    Store {
        /// The name or number asked for.
        who: String,
        /// What xenstore said.
        #[source]
        source: StoreError,
    },
}

/// Why a domain was not destroyed.
#[derive(Debug, Error)]
pub enum DestroyError {
    /// xl could not.
    #[error(transparent)]
    Xl(#[from] LaunchError),
    /// Whether it lives is unknown.
    #[error("cannot see in xenstore whether the domain lives")]
    Store(#[from] StoreError),
}

/// Finds a domain by its name or number.
pub fn find(store: &mut Store, who: &str) -> Result<Domain, DomainError> {
    let found = try_find(store, who).map_err(|source| DomainError::Store {
        who: who.to_owned(),
        source,
    })?;
    found.ok_or_else(|| DomainError::NotFound { who: who.to_owned() })
}

fn try_find(store: &mut Store, who: &str) -> Result<Option<Domain>, StoreError> {
    let mut domids: Vec<DomId> = Vec::new();
    for name in store.directory("/local/domain")? {
        domids.extend(name.parse::<DomId>().ok());
    }
    domids.sort_unstable();
    for domid in domids {
        let Some(name) = store.read_optional(&format!("{}/name", home(domid)))? else {
            continue;
        };
        if name == who || domid.to_string() == who {
            let uuid = uuid(store, domid)?.unwrap_or_default();
            return Ok(Some(Domain { domid, name, uuid }));
        }
    }
    Ok(None)
}

/// True as long as the domain, and not a later one with its number, exists at Xen's level.
///
/// A domain that xl is destroying counts as alive until Xen has taken it apart: before that its
/// devices are still its own.
pub fn is_alive(store: &mut Store, domain: &Domain) -> Result<bool, StoreError> {
    if !store.is_introduced(domain.domid)? {
        return Ok(false);
    }
    let uuid = uuid(store, domain.domid)?;
    Ok(uuid.is_none_or(|uuid| uuid == domain.uuid))
}

/// Destroys a domain if it lives. One that goes by itself meanwhile is as good as destroyed.
pub fn destroy(host: &mut Host, domain: &Domain) -> Result<(), DestroyError> {
    if !is_alive(&mut host.store, domain)? {
        return Ok(());
    }
    match host.runner.destroy(domain.domid) {
        Err(_) if !is_alive(&mut host.store, domain)? => Ok(()),
        destroyed => Ok(destroyed?),
    }
}

fn uuid(store: &mut Store, domid: DomId) -> Result<Option<String>, StoreError> {
    let vm = store.read_optional(&format!("{}/vm", home(domid)))?;
    Ok(vm.map(|path| path.trim_start_matches("/vm/").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{dom0, introduce};
    use xenbus::model::Xenstored;

    #[test]
    fn a_domain_is_found_by_its_name_and_its_number() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let by_name = find(&mut store, "web").unwrap();
        assert_eq!(by_name, crate::record::tests::domain(3, "web"));
        assert_eq!(find(&mut store, "3").unwrap(), by_name);
        let error = find(&mut store, "mail").unwrap_err().to_string();
        assert_eq!(error, "there is no domain mail: `xl list` shows those that run");
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
        daemon.release(3);
        assert!(!is_alive(&mut store, &web).unwrap());
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
    }
}
