//! Misuse of grants: operations that a driver does not need.

use drivers::platform::{DomId, GrantRef, Platform};

/// A machine with a grant table to misuse.
pub trait Grants: Platform {
    /// Ends a grant even if the peer has the page mapped.
    fn withdraw(&mut self, grant: GrantRef);
    /// Grants `peer` a page that is not ours.
    fn grant_what_is_not_ours(&mut self, peer: DomId) -> GrantRef;
}

#[cfg(feature = "boot")]
impl Grants for unikernel::platform::Xen {
    fn withdraw(&mut self, grant: GrantRef) {
        self.grants().withdraw(grant);
    }

    fn grant_what_is_not_ours(&mut self, peer: DomId) -> GrantRef {
        self.grants().grant_what_is_not_ours(peer)
    }
}
