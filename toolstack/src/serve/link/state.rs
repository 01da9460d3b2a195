//! The part of a link that its thread shares with the main thread, with clients, and with jobs.

use crate::config_space::access::ConfigFile;
use crate::function::Functions;
use crate::status::{RefusedWrite, Served};
use pci::bdf::Bdf;
use std::sync::{Arc, Mutex, MutexGuard};
use xen::xendev::GrantedPage;
use xenbus::counters::Counters;
use xenbus::handover_block::HandoverBlock;

/// Page, devices and counts of one stub.
pub struct LinkState {
    pub page: GrantedPage,
    pub functions: Functions<ConfigFile>,
    pub requests: u64,
    pub failed: u64,
}

/// Part of a link that other threads may use. They wait while a request is answered.
#[derive(Clone)]
pub struct Handle(pub Arc<Mutex<LinkState>>);

impl Handle {
    pub fn lock(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.0)
    }

    /// Stops serving these devices. No request for them is under way when this returns.
    pub fn drop_devices(&self, bdfs: &[Bdf]) {
        self.lock().functions.drop_devices(bdfs);
    }

    /// What the service has seen of the stub, for the status.
    pub fn served(&self) -> Served {
        let shared = self.lock();
        let mut served = Served {
            requests: shared.requests,
            failed: shared.failed,
            ..Served::default()
        };
        for function in shared.functions.iter() {
            served.refused_besides += function.refused_besides();
            served
                .refused
                .extend(function.refused().map(|(offset, refusal, count)| RefusedWrite {
                    bdf: function.bdf().to_string(),
                    offset,
                    reason: refusal.to_string(),
                    count,
                }));
        }
        // What follows is the stub's own word, from the rest of its page.
        if let Ok(counters) = Counters::collect(&shared.page) {
            served.add_counters(&counters);
        }
        if let Some(handover_block) = HandoverBlock::from_page(&shared.page) {
            served.add_poisonous(handover_block.refused());
        }
        served
    }
}

/// Locks what threads of the service share.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A mutex is poisoned if a thread has panicked. The link of that thread is not used any more, only dropped.
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
