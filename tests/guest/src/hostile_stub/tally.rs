//! Counts of actions.

use core::fmt;

/// Declares [`Kind`] together with its names, so that the two cannot differ.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// One kind of action.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// A request in the page.
    Request = "request",
    /// Bytes of a request that dom0 may be reading.
    Change = "change",
    /// Flags of the page.
    Flags = "flags",
    /// An event to dom0.
    Event = "event",
    /// Bytes of the counters.
    Counters = "counters",
    /// Bytes of the handover block.
    Handover = "handover",
    /// A xenbus state of ours.
    State = "state",
    /// A node of ours, with any bytes.
    Value = "value",
    /// A node of ours that is removed.
    Removal = "removal",
    /// Grant or port.
    Particulars = "particulars",
    /// A node for the guest.
    Published = "published",
    /// A transaction that does not end.
    Transaction = "transaction",
    /// A watch.
    Watch = "watch",
    /// An event channel.
    Port = "port",
    /// A grant, or a page that others have granted.
    Grant = "grant",
    /// A machine frame that is not ours.
    Frame = "frame",
    /// A hypercall that is dom0's.
    Hypercall = "hypercall",
    /// A read of a configuration page.
    Ecam = "ecam",
}

/// A count for each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; Kind::ALL.len()]);

impl Tally {
    /// Counts one action.
    pub fn count(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    /// Sum of all counts.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Display for Tally {
    /// `KIND=COUNT` for each kind with a count, and the sum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in Kind::ALL {
            match self.0[kind as usize] {
                0 => {}
                count => write!(f, "{}={count} ", kind.name())?,
            }
        }
        write!(f, "all={}", self.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_was_done_is_told_by_kind_and_in_sum() {
        let mut tally = Tally::default();
        assert_eq!(tally.to_string(), "all=0");
        for kind in [Kind::Ecam, Kind::Request, Kind::Request] {
            tally.count(kind);
        }
        assert_eq!(tally.to_string(), "request=2 ecam=1 all=3");
    }
}
