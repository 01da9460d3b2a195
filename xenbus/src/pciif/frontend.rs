//! The frontend's side of the page: post a request and read its answer.

use super::layout::{self, FLAGS, OP, OP_ERR, OP_VALUE};
use super::{ACTIVE, Command, MAX_VECTORS, MsixEntry, OpError, Request, SharedPage, TooManyVectors};
use alloc::vec::Vec;
use core::fmt;

/// A backend's answer.
pub type Answer = Result<Received, OpError>;

/// What a backend's answer to a request holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The value of `conf_read`, or the pirq of `enable_msi`.
    pub value: u32,
    /// The pirqs of `enable_msix`, one for each entry of the request; else empty.
    pub vectors: Vec<u16>,
}

/// Why a request cannot be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// A request that was posted before has no answer yet.
    Busy,
    /// The entries do not fit the page.
    TooManyVectors(TooManyVectors),
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("the request before is still without an answer"),
            Self::TooManyVectors(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PostError {}

/// Writes a request into the page and marks it pending. Send the event next.
///
/// For [`Command::EnableMsix`] the number of `entries` becomes the request's
/// value; every other command takes no entries, and they are ignored.
pub fn post(page: &impl SharedPage, request: &Request, entries: &[MsixEntry]) -> Result<Posted, PostError> {
    if page.load(FLAGS) & ACTIVE != 0 {
        return Err(PostError::Busy);
    }
    let mut request = *request;
    let mut vectors = 0;
    if request.command == Command::EnableMsix {
        vectors = entries.len();
        request.value = u32::try_from(vectors).unwrap_or(u32::MAX);
        if vectors > MAX_VECTORS {
            return Err(PostError::TooManyVectors(TooManyVectors(request.value)));
        }
        let bytes: Vec<u8> = entries.iter().copied().flat_map(layout::encode_entry).collect();
        page.copy_in(layout::OP_ENTRIES, &bytes);
    }
    // `ACTIVE` last: from then on the backend may read the request.
    page.copy_in(OP, &layout::encode_head(&request));
    page.set_bits(FLAGS, ACTIVE);
    Ok(Posted { vectors })
}

/// A request that waits for its answer.
#[derive(Debug)]
#[must_use = "until it is answered or withdrawn nothing else can be asked"]
pub struct Posted {
    /// Number of vectors that a successful answer brings.
    vectors: usize,
}

impl Posted {
    /// The answer if it is there; otherwise the request, to be polled again.
    pub fn poll(self, page: &impl SharedPage) -> Result<Answer, Self> {
        if page.load(FLAGS) & ACTIVE != 0 {
            return Err(self);
        }
        Ok(self.read_answer(page))
    }

    /// Gives the request up; returns the answer if it came at the last moment.
    ///
    /// The backend may carry the request out all the same.
    pub fn withdraw(self, page: &impl SharedPage) -> Option<Answer> {
        // In one operation: an answer that comes between a read and a write of the flag would be lost.
        let before = page.clear_bits(FLAGS, ACTIVE);
        (before & ACTIVE == 0).then(|| self.read_answer(page))
    }

    fn read_answer(self, page: &impl SharedPage) -> Answer {
        // After `ACTIVE` was seen cleared, with acquire: the answer is whole.
        let mut err = [0; 4];
        page.copy_out(OP_ERR, &mut err);
        if let Some(error) = OpError::from_raw(i32::from_le_bytes(err)) {
            return Err(error);
        }
        let mut value = [0; 4];
        page.copy_out(OP_VALUE, &mut value);
        // As many as were asked for, whatever the page says: the number is not read from it.
        let vectors = (0..self.vectors).map(|index| {
            let mut vector = [0; 2];
            page.copy_out(layout::vector_offset(index), &mut vector);
            u16::from_le_bytes(vector)
        });
        Ok(Received {
            value: u32::from_le_bytes(value),
            vectors: vectors.collect(),
        })
    }
}
