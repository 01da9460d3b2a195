//! What a backend can do wrong in a ring.

use core::fmt;

/// One of the two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the backend.
    Receive,
    /// To the backend.
    Transmit,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Receive => "receive",
            Self::Transmit => "transmit",
        })
    }
}

/// A response that the protocol does not allow. It ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// More responses than requests.
    Index {
        /// The ring.
        ring: Direction,
        /// Responses that the backend's index announces.
        responses: u32,
        /// Requests without a response.
        requests: u32,
    },
    /// The response is to no request, or to one that has had its response.
    Id {
        /// The ring.
        ring: Direction,
        /// The number in the response.
        id: u16,
    },
    /// A status that is none for a frame of one slot.
    Status {
        /// The ring.
        ring: Direction,
        /// The status in the response.
        status: i16,
    },
    /// The frame is too long or too short, or does not lie in its page.
    Range {
        /// Where it is said to begin.
        offset: u16,
        /// Bytes that it is said to have.
        length: u16,
    },
    /// Flags for options that were not negotiated.
    Flags(u16),
}

impl Fault {
    /// The errno value (positive) that the xenbus error node starts with: `EPROTO`.
    pub const ERRNO: i32 = 71;
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index {
                ring,
                responses,
                requests,
            } => write!(
                f,
                "{responses} responses to {requests} requests in the {ring} ring"
            ),
            Self::Id { ring, id } => {
                write!(
                    f,
                    "a response to request {id} in the {ring} ring, which waits for none"
                )
            }
            Self::Status { ring, status } => write!(f, "status {status} in the {ring} ring"),
            Self::Range { offset, length } => write!(f, "a frame of {length} bytes at {offset} of its page"),
            Self::Flags(flags) => write!(f, "a frame with flags {flags:#x}, which were not negotiated"),
        }?;
        f.write_str("; see the backend's domain, and attach the vif anew")
    }
}

impl core::error::Error for Fault {}
