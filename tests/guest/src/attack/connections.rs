//! Attacks by the states of a connection, and by its page, port and version.

use super::{ANEW, Attacker};
use crate::ask::ask_dom0;
use crate::frontend::{Failure, node};
use crate::grants::Grants;
use crate::op::Op;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;
use xenbus::client::{Store, Transport};
use xenbus::path::key;
use xenbus::pciif::MAGIC;
use xenbus::state::XenbusState;

/// Time for the backend to look at a node between two writes of ours.
const MOMENT: Duration = Duration::from_millis(100);
/// The same time for one of many writes.
const GLANCE: Duration = Duration::from_millis(20);

/// All states, and none: the node is removed.
const STATES: [Option<&str>; 10] = [
    None,
    Some("0"),
    Some("1"),
    Some("2"),
    Some("3"),
    Some("4"),
    Some("5"),
    Some("6"),
    Some("7"),
    Some("8"),
];

/// Orders the items so that each one directly follows each one (also itself) exactly once, if the first follows the
/// last.
fn every_pair<I: Copy>(items: &[I]) -> Vec<I> {
    let mut order = Vec::new();
    for (index, &first) in items.iter().enumerate() {
        order.push(first);
        for &second in &items[index + 1..] {
            order.extend([first, second]);
        }
    }
    order
}

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    /// Offers of impossible connections. Each must be refused, and must cost this connection only.
    pub(super) fn particulars(&mut self) -> Result<(), Failure> {
        let grant = self.frontend.grant.to_string();
        let port = self.frontend.port.to_string();
        // Grants: never granted; xenstored's page, granted to dom0; past any table; negative; no number. Ports: one of
        // ours for another domain; one that is none; garbage. Versions: other ones than 7.
        let wrong: [(&str, &str, &str); 12] = [
            ("100", &port, MAGIC),
            ("1", &port, MAGIC),
            ("4294967295", &port, MAGIC),
            ("-1", &port, MAGIC),
            ("", &port, MAGIC),
            (&grant, "1", MAGIC),
            (&grant, "0", MAGIC),
            (&grant, "4294967295", MAGIC),
            (&grant, "garbage", MAGIC),
            (&grant, &port, "6"),
            (&grant, &port, "77777777777777777777777777777777"),
            (&grant, &port, ""),
        ];
        for (grant, port, magic) in wrong {
            self.close()?;
            self.publish(grant, port, magic)?;
            self.start_anew()?;
            self.set_state(XenbusState::Initialised)?;
            self.wait_for_refusal()?;
        }
        self.reconnect()
    }

    /// Every state that ends the service, right after a request for MSI-X; then all states in a row.
    pub(super) fn states(&mut self) -> Result<(), Failure> {
        for state in ["0", "1", "2", "3", "5", "6", "7", "8", "9", "", "garbage"] {
            self.frontend.send(self.platform, &Op::msix(0, [0]).encode());
            self.client.write(&node(key::STATE), state)?;
            self.pause(MOMENT);
            // The connection ends, so there need not be an answer.
            self.frontend.send(self.platform, &Op::read(0, 0, 4).encode());
            self.settle();
            for state in ["4", "3", "6", "1", "5", "4"] {
                self.client.write(&node(key::STATE), state)?;
            }
            self.close()?;
            self.reconnect()?;
            self.check_answers()?;
        }
        Ok(())
    }

    /// Every change from one state to another, with time for the backend to look at each. Whenever the connection has
    /// ended, the toolstack begins a new one, whatever our state is then.
    pub(super) fn every_change_of_state(&mut self) -> Result<(), Failure> {
        let path = node(key::STATE);
        let mut endings = 0;
        for state in every_pair(&STATES) {
            match state {
                Some(state) => self.client.write(&path, state)?,
                None => self.client.remove(&path)?,
            }
            self.pause(GLANCE);
            if matches!(
                Self::backend_state(self.client)?,
                XenbusState::Closing | XenbusState::Closed
            ) {
                endings += 1;
                ask_dom0(self.platform, self.client, ANEW)?;
            }
        }
        if endings == 0 {
            return Err(Failure::Unsound("no state of ours has ended the connection"));
        }
        self.close()?;
        self.reconnect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn each_change_of_state_is_made_once() {
        let order = every_pair(&STATES);
        let next = order.iter().cycle().skip(1);
        let pairs: BTreeSet<_> = order.iter().zip(next).collect();
        assert_eq!((order.len(), pairs.len()), (100, 100));
    }
}
