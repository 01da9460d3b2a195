//! Starts of guests that are to have devices without a command of an administrator's: how far each has come.
//!
//! There is one record for each domain, as long as it lives. It also tells that the service has dealt with the domain:
//! a guest from which an administrator has detached its devices does not get them again when the service is started anew.

use super::error::RecordError;
use super::paths::{children, make_root, remove_from};
use crate::host::domains::Domain;
use crate::host::store::{Store, StoreError};
use crate::serde_text;
use serde::{Deserialize, Serialize};
use std::fmt;
use xen::xenctrl::{DomId, RunState};
use xenbus::client::Store as _;

/// Directory of the records, by the number of the domain.
const STARTS: &str = "/local/domain/0/bulkhead/start";

/// How far a start has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum Stage {
    /// The guest is about to be paused. If this is found later, nobody knows whether it was.
    Pausing,
    /// The service has paused the guest, and its devices are being given.
    Paused,
    /// The guest ran before the service saw it. It gets its devices while it runs.
    Running,
    /// The guest has had its devices.
    Given {
        /// True if they are not carried over: its declaration decides what it has at its next start, or the domain is one that
        /// libxl keeps after the guest's end.
        #[serde(default)]
        declared: bool,
    },
    /// The guest could not have its devices.
    Failed {
        /// Why.
        reason: String,
        /// True if it stays paused by the service.
        held: bool,
    },
}

/// The start of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GuestStart {
    /// The guest.
    pub guest: Domain,
    /// How far it has come.
    #[serde(flatten)]
    pub stage: Stage,
}

impl GuestStart {
    /// Writes the record.
    pub fn write(&self, store: &mut Store) -> Result<(), RecordError> {
        make_root(store)?;
        Ok(store.write(&path(self.guest.domid), &serde_text::json(self))?)
    }

    /// The record of this domain, and not of an earlier one with its number.
    pub fn of(store: &mut Store, guest: &Domain) -> Result<Option<Self>, StoreError> {
        let start = Self::numbered(store, guest.domid)?;
        Ok(start.filter(|start| start.guest.uuid == guest.uuid))
    }

    /// The record of the domain of that number, or of an earlier one.
    pub fn numbered(store: &mut Store, domid: DomId) -> Result<Option<Self>, StoreError> {
        let text = store.read_optional(&path(domid))?;
        Ok(text.as_deref().and_then(Self::parse))
    }

    /// One that cannot be read is as good as none: the guest is looked at as if it were new.
    fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// As [`Self::of`], for many domains in few round trips.
    pub fn of_each(store: &mut Store, guests: &[Domain]) -> Result<Vec<Option<Self>>, StoreError> {
        let paths: Vec<String> = guests.iter().map(|guest| path(guest.domid)).collect();
        let texts = store.read_many(&paths)?.into_iter();
        let starts = guests.iter().zip(texts).map(|(guest, text)| {
            let start = Self::parse(&text?)?;
            (start.guest.uuid == guest.uuid).then_some(start)
        });
        Ok(starts.collect())
    }

    /// All records.
    pub fn all(store: &mut Store) -> Result<Vec<Self>, StoreError> {
        let paths: Vec<String> = Self::domids(store)?.into_iter().map(path).collect();
        let texts = store.read_many(&paths)?.into_iter();
        Ok(texts.filter_map(|text| Self::parse(&text?)).collect())
    }

    /// The numbers of the domains that have a record.
    pub fn domids(store: &mut Store) -> Result<Vec<DomId>, StoreError> {
        let names = children(store, STARTS)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The start as Xen shows it. The record says that a guest is held until the next command: `xl unpause` leaves no trace.
    /// `state` is that of the guest; `None` if it has ended.
    pub fn seen(mut self, state: Option<RunState>) -> Self {
        if let Stage::Failed { held, .. } = &mut self.stage {
            *held &= state.is_some_and(has_not_run);
        }
        self
    }

    /// True if the guest stays paused until the service, or a command, lets it run.
    pub const fn is_paused(&self) -> bool {
        matches!(
            self.stage,
            Stage::Pausing | Stage::Paused | Stage::Failed { held: true, .. }
        )
    }
}

/// True for a guest that is paused and has executed no instruction. One that has was let run by the administrator: another
/// pause is theirs.
pub fn has_not_run(state: RunState) -> bool {
    state.paused && state.cpu_time.is_zero()
}

/// In words, with the next step.
impl fmt::Display for GuestStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guest = &self.guest.name;
        match &self.stage {
            Stage::Pausing | Stage::Paused => {
                write!(f, "guest {guest} is paused: it is being given its devices")
            }
            Stage::Running => write!(f, "guest {guest} runs, and is being given its devices"),
            Stage::Given { .. } => write!(f, "guest {guest} has had its devices"),
            Stage::Failed { reason, held: true } => write!(
                f,
                "guest {guest} is held paused, because it cannot have its devices: {reason}. `bulkhead attach {guest}` tries \
                 again and starts it, `xl unpause {guest}` starts it without them, `bulkhead destroy {guest}` ends it"
            ),
            Stage::Failed { reason, held: false } => write!(
                f,
                "guest {guest} runs without its devices: {reason}. `bulkhead attach {guest}` tries again"
            ),
        }
    }
}

/// Removes the record of a domain, if there is one, and the directory with the last.
pub fn forget_start(store: &mut Store, domid: DomId) -> Result<(), StoreError> {
    store.transaction(|store| remove_from(store, STARTS, &path(domid)))
}

fn path(domid: DomId) -> String {
    format!("{STARTS}/{domid}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::tests::domain;
    use std::time::Duration;
    use xenbus::model::Xenstored;

    #[test]
    fn a_start_is_found_by_its_domain_and_by_no_later_one_of_that_number() {
        let mut store = dom0(&Xenstored::new());
        let stages = [
            Stage::Pausing,
            Stage::Paused,
            Stage::Running,
            Stage::Given { declared: true },
            Stage::Failed {
                reason: "it is mute".into(),
                held: true,
            },
        ];
        for stage in stages {
            let start = GuestStart {
                guest: domain(3, "web"),
                stage,
            };
            start.write(&mut store).unwrap();
            assert_eq!(
                GuestStart::of(&mut store, &start.guest).unwrap(),
                Some(start.clone())
            );
            assert_eq!(GuestStart::all(&mut store).unwrap(), [start]);
        }
        let later = Domain {
            uuid: "another".into(),
            ..domain(3, "web")
        };
        assert_eq!(GuestStart::of(&mut store, &later).unwrap(), None);
        forget_start(&mut store, 3).unwrap();
        forget_start(&mut store, 3).expect("once more does no harm");
        assert_eq!(store.read_optional(STARTS).unwrap(), None, "nor the directory");
    }

    #[test]
    fn a_guest_that_was_let_run_by_hand_is_held_no_more() {
        let held = GuestStart {
            guest: domain(3, "web"),
            stage: Stage::Failed {
                reason: String::new(),
                held: true,
            },
        };
        let state = |paused, ran| {
            Some(RunState {
                paused,
                cpu_time: Duration::from_nanos(ran),
            })
        };
        for (state, expected) in [
            (state(true, 0), true),
            (state(false, 0), false),
            (state(false, 1), false),
            (state(true, 1), false),
            (None, false),
        ] {
            assert_eq!(held.clone().seen(state).is_paused(), expected, "{state:?}");
        }
        let paused = GuestStart {
            stage: Stage::Paused,
            ..held
        };
        assert_eq!(paused.clone().seen(None), paused);
    }

    #[test]
    fn a_guest_that_is_held_is_told_with_the_reason_and_every_way_on() {
        let start = |held| GuestStart {
            guest: domain(3, "web"),
            stage: Stage::Failed {
                reason: "0000:00:05.0 is not there".into(),
                held,
            },
        };
        assert_eq!(
            start(true).to_string(),
            "guest web is held paused, because it cannot have its devices: 0000:00:05.0 is not there. `bulkhead attach web` \
             tries again and starts it, `xl unpause web` starts it without them, `bulkhead destroy web` ends it"
        );
        assert_eq!(
            start(false).to_string(),
            "guest web runs without its devices: 0000:00:05.0 is not there. `bulkhead attach web` tries again"
        );
        assert!(start(true).is_paused() && !start(false).is_paused());
    }
}
