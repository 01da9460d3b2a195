//! Attacks by requests to xenstored: transactions, watches, quotas.

use super::misuse::Misuse;
use super::raw::{forget_watches, request};
use super::stub::HostileStub;
use super::tally::Kind as Action;
use crate::frontend::Failure;
use alloc::format;
use xenbus::client::{Store, Transport};
use xenbus::path::key;
use xenbus::wire::Kind;

/// More than xenstored allows a guest.
const MANY_TRANSACTIONS: usize = 40;
const MANY_WATCHES: usize = 200;
const MANY_NODES: usize = 1500;

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// Begins a transaction, reads or writes nodes that dom0 reads, and leaves it open. False if xenstored allows no
    /// more.
    pub(super) fn open_transaction(&mut self) -> Result<bool, Failure> {
        self.tally.count(Action::Transaction);
        let Some(number) = request(self.client, Kind::TransactionStart, 0, b"\0")? else {
            return Ok(false);
        };
        let number = core::str::from_utf8(&number).unwrap_or_default();
        let number = number.trim_end_matches('\0').parse().unwrap_or(0);
        let path = self.second.frontend_node(key::PCI_OP_REF);
        let read = format!("{path}\0");
        request(self.client, Kind::Read, number, read.as_bytes())?;
        let write = format!("{path}\07");
        request(self.client, Kind::Write, number, write.as_bytes())?;
        Ok(true)
    }

    pub(super) fn transactions(&mut self) -> Result<(), Failure> {
        let mut open = 0;
        for _ in 0..MANY_TRANSACTIONS {
            open += usize::from(self.open_transaction()?);
            // Writes outside of the transactions make each transaction end in a conflict.
            self.write_state(b"4")?;
        }
        log::info!("{open} transactions were to be had");
        self.flood_state()?;
        forget_watches(self.client)
    }

    /// Nodes, watches and values up to the quota. Watch events are never read.
    pub(super) fn quotas(&mut self) -> Result<(), Failure> {
        let directory = self.second.frontend_dir();
        let mut nodes = 0;
        for number in 0..MANY_NODES {
            self.tally.count(Action::Value);
            let path = format!("{directory}/flood/{number}");
            if self.client.write(&path, "x").is_err() {
                break;
            }
            nodes += 1;
        }
        let mut watches = 0;
        for number in 0..MANY_WATCHES {
            watches += usize::from(self.watch(&directory, number)?);
        }
        log::info!("{nodes} nodes and {watches} watches more were to be had");
        self.flood_state()?;
        let _ = self.client.remove(&format!("{directory}/flood"));
        forget_watches(self.client)
    }

    /// False if xenstored allows no more.
    pub(super) fn watch(&mut self, path: &str, token: usize) -> Result<bool, Failure> {
        self.tally.count(Action::Watch);
        let payload = format!("{path}\0{token}\0");
        Ok(request(self.client, Kind::Watch, 0, payload.as_bytes())?.is_some())
    }
}
