//! What the frontend counts.

/// Counters since the start. They go on over connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that were received and handed up.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Responses without a frame, and frames whose checksum was not computed.
    pub receive_dropped: u64,
    /// Frames that were given to the backend.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that the backend has not sent, and those too long, too short, or without a free page.
    pub send_dropped: u64,
    /// Connections that came about.
    pub connections: u64,
    /// Connections that ended by a [`Fault`](crate::Fault).
    pub faults: u64,
}
