//! After how many suspends of the host the devices of guests were last restored.
//!
//! The record outlives a service: one that was not there when the host came back restores them when it starts.

use super::error::RecordError;
use super::paths::make_root;
use crate::host::store::{Store, StoreError};
use xenbus::client::Store as _;

const NODE: &str = "/local/domain/0/bulkhead/suspends";

/// The number of suspends; 0 before the first one, without a record.
pub fn suspends_dealt_with(store: &mut Store) -> Result<u64, StoreError> {
    let text = store.read_optional(NODE)?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Records that the devices were restored after so many suspends.
pub fn record_suspends(store: &mut Store, count: u64) -> Result<(), RecordError> {
    make_root(store)?;
    Ok(store.write(NODE, &count.to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use xenbus::model::Xenstored;

    #[test]
    fn the_next_service_knows_of_each_suspend_that_was_dealt_with() {
        let daemon = Xenstored::new();
        assert_eq!(suspends_dealt_with(&mut dom0(&daemon)).unwrap(), 0);
        for count in [1, 2] {
            record_suspends(&mut dom0(&daemon), count).unwrap();
            assert_eq!(suspends_dealt_with(&mut dom0(&daemon)).unwrap(), count);
        }
    }
}
