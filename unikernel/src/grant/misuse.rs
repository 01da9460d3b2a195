//! Grants as no sound guest makes them: for the guest that attacks its backend.

use super::{ENTRIES, GTF_IN_USE, GTF_PERMIT_ACCESS, GrantTable};
use core::sync::atomic::Ordering;
use drivers::platform::{DomId, GrantRef};

impl GrantTable {
    /// Withdraws a grant from a peer that may have the page mapped. The page stays in use on this side until Xen says
    /// otherwise, so that nothing else is put where the peer can still write.
    pub fn withdraw(&mut self, reference: GrantRef) {
        self.entry(reference).0.store(GTF_IN_USE, Ordering::SeqCst);
    }

    /// Grants `peer` a page that this domain does not have: the machine's first, which no guest ever has.
    pub fn grant_what_is_not_ours(&mut self, peer: DomId) -> GrantRef {
        const REFERENCE: GrantRef = ENTRIES - 1;
        const FRAME: u32 = 0;
        let (flags, domain, target) = self.entry(REFERENCE);
        domain.store(peer, Ordering::Relaxed);
        target.store(FRAME, Ordering::Relaxed);
        flags.store(GTF_PERMIT_ACCESS, Ordering::Release);
        REFERENCE
    }
}
