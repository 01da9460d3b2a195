//! The backend's side of the page: take a request and answer it.

use super::layout::{self, ENTRY_SIZE, FLAGS, Head, OP, OP_ENTRIES, OP_ERR, OP_HEAD_SIZE, OP_VALUE};
use super::{ACTIVE, Command, MAX_VECTORS, MsixEntry, OpError, Request, SharedPage, TooManyVectors};
use alloc::vec::Vec;

/// What a request achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success<'a> {
    /// Done; the value is that of `conf_read`, the pirq of `enable_msi`, else 0.
    Value(u32),
    /// `enable_msix`: one pirq for each entry of the request, in its order.
    Vectors(&'a [u16]),
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// The answer is in the page: send the event next.
    Delivered,
    /// The frontend no longer waits for it: it gave the request up, and may have posted another one.
    /// Nothing was written. A new request may be pending.
    Late,
}

/// True if a request waits to be taken.
pub fn is_pending(page: &impl SharedPage) -> bool {
    page.load(FLAGS) & ACTIVE != 0
}

/// Takes the pending request, if there is one, into private memory.
///
/// Each byte is read once: first the head, then as many MSI-X entries as the
/// private head says (XSA-155).
pub fn take(page: &impl SharedPage) -> Option<Taken> {
    if !is_pending(page) {
        return None;
    }
    let mut head: Head = [0; OP_HEAD_SIZE];
    page.copy_out(OP, &mut head);
    let request = Request::from_head(&head);

    // Only this command has entries; in the others `value` means something else.
    let asked = if request.command == Command::EnableMsix {
        request.value
    } else {
        0
    };
    // Too many are refused later, by `entries`: the request must be answered all the same.
    let count = usize::try_from(asked).ok().filter(|&count| count <= MAX_VECTORS);
    let entries = count.map(|count| copy_entries(page, count));
    Some(Taken {
        head,
        request,
        entries,
    })
}

/// The first `count` MSI-X entries, each byte read once.
fn copy_entries(page: &impl SharedPage, count: usize) -> Vec<MsixEntry> {
    // Nearly always: none, without an allocation.
    if count == 0 {
        return Vec::new();
    }
    let mut bytes = [0; MAX_VECTORS * ENTRY_SIZE];
    let bytes = &mut bytes[..count * ENTRY_SIZE];
    page.copy_out(OP_ENTRIES, bytes);
    let entries = bytes.as_chunks().0.iter();
    entries.map(|&bytes| layout::decode_entry(bytes)).collect()
}

/// A request that was taken and waits for its answer.
///
/// It can be answered once: [`Taken::answer`] consumes it.
#[derive(Debug)]
#[must_use = "the frontend waits for an answer"]
pub struct Taken {
    head: Head,
    request: Request,
    /// Its MSI-X entries; `None` if too many are asked for.
    entries: Option<Vec<MsixEntry>>,
}

impl Taken {
    /// The request, as private memory holds it.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The request before its MSI-X entries, as it lay in the page.
    pub fn head(&self) -> &[u8; OP_HEAD_SIZE] {
        &self.head
    }

    /// The MSI-X entries; none unless the command is `enable_msix`.
    ///
    /// # Errors
    /// [`TooManyVectors`] if more than [`MAX_VECTORS`] are asked for.
    pub fn entries(&self) -> Result<&[MsixEntry], TooManyVectors> {
        self.entries.as_deref().ok_or(TooManyVectors(self.request.value))
    }

    /// Writes the answer and gives the page back to the frontend.
    ///
    /// Of the request nothing is touched but `err`, `value` and, for a
    /// successful `enable_msix`, the vectors asked for. [`Success::Vectors`]
    /// that do not fit the request are our own mistake; the frontend then gets
    /// [`OpError::OpFailed`].
    pub fn answer(self, page: &impl SharedPage, answer: Result<Success<'_>, OpError>) -> Delivery {
        if self.is_late(page) {
            return Delivery::Late;
        }
        // With an error the value is 0, whatever the request had there.
        let (err, value, vectors) = match answer {
            Ok(Success::Value(value)) => (0, value, &[][..]),
            Ok(Success::Vectors(vectors)) if self.wants(vectors) => (0, 0, vectors),
            Ok(Success::Vectors(_)) => (OpError::OpFailed.raw(), 0, &[][..]),
            Err(error) => (error.raw(), 0, &[][..]),
        };
        // `ACTIVE` last: from then on the frontend reads the answer, and may write its next request.
        for (index, vector) in vectors.iter().enumerate() {
            page.copy_in(layout::vector_offset(index), &vector.to_le_bytes());
        }
        page.copy_in(OP_VALUE, &value.to_le_bytes());
        page.copy_in(OP_ERR, &err.to_le_bytes());
        page.clear_bits(FLAGS, ACTIVE);
        Delivery::Delivered
    }

    fn wants(&self, vectors: &[u16]) -> bool {
        self.request.command == Command::EnableMsix
            && self
                .entries
                .as_ref()
                .is_some_and(|entries| entries.len() == vectors.len())
    }

    /// True if the frontend has given this request up. Linux does so after two
    /// seconds, by clearing [`ACTIVE`]. It may then have set the flag again for
    /// another request, which shows in the head.
    fn is_late(&self, page: &impl SharedPage) -> bool {
        if !is_pending(page) {
            return true;
        }
        let mut head: Head = [0; OP_HEAD_SIZE];
        page.copy_out(OP, &mut head);
        head != self.head
    }
}
