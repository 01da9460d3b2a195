//! The counters of a stub, and how dom0's service reads them.
//!
//! The stub keeps its counters in the page of the second hop, from [`OFFSET`],
//! where `bulkhead status` finds them without asking the stub. A stub that was
//! taken over may write anything there: decoding checks the form, and the
//! numbers are only shown.
//!
//! The block, little endian, offsets in bytes from its start:
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic, `BHCT` |
//! | 4 | version, u32: [`VERSION`] |
//! | 8 | one u64 for each [`Counter`], in its order |
//! | then | [`DROPPED_MAX`] entries `{ devfn: u8, bus: u8, offset: u16, count: u32 }`; count 0: free |

use crate::pciif::{SharedPage, layout};
use core::fmt;
use pci::bdf::Bdf;

/// Offset of the block in the page.
pub const OFFSET: usize = 1024;
/// Version of the block's layout; it changes whenever [`Counter`] or the table does.
pub const VERSION: u32 = 2;
/// Registers that are named one by one in the table of dropped writes.
pub const DROPPED_MAX: usize = 16;
/// Size of the block, in bytes.
pub const BLOCK_SIZE: usize = TABLE + DROPPED_MAX * ENTRY_SIZE;

const MAGIC: [u8; 4] = *b"BHCT";
const HEADER_SIZE: usize = 8;
const TABLE: usize = HEADER_SIZE + Counter::ALL.len() * 8;
const ENTRY_SIZE: usize = 8;
/// Bytes of a function's config space: where register offsets end.
const CONFIG_SPACE_SIZE: u16 = 4096;

// Behind the request, inside the page.
const _: () = assert!(OFFSET >= layout::TOTAL_SIZE && OFFSET + BLOCK_SIZE <= 4096);

/// Declares [`Counter`] and its table of names, which cannot differ then.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// One thing that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Counter {
            /// All counters, in the order of the block.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The counter's name in `bulkhead status`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// Config reads answered.
    Reads = "reads",
    /// Config writes that went on to the device.
    WritesForwarded = "writes_forwarded",
    /// Config writes that only changed what the stub remembers.
    WritesAbsorbed = "writes_absorbed",
    /// Config writes that no policy handles; the table names their registers.
    WritesDropped = "writes_dropped",
    /// Times MSI was turned on.
    MsiEnabled = "msi_enabled",
    /// Times MSI was turned off.
    MsiDisabled = "msi_disabled",
    /// Times MSI-X was turned on.
    MsixEnabled = "msix_enabled",
    /// Times MSI-X was turned off.
    MsixDisabled = "msix_disabled",
    /// Requests answered with an error.
    Refused = "refused",
    /// Events with no request behind them.
    SpuriousEvents = "spurious_events",
    /// Answers that came after the guest had given up.
    LateAnswers = "late_answers",
    /// Failures that the guest caused.
    BlamedGuest = "blamed_guest",
    /// Failures that the device caused.
    BlamedDevice = "blamed_device",
    /// Failures that the toolstack, or dom0's service, caused.
    BlamedToolstack = "blamed_toolstack",
    /// Failures that the stub itself caused.
    BlamedSelf = "blamed_self",
    /// Times that the stub restarted in place after a failure of its own.
    Restarts = "restarts",
}

/// Writes to one register that were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedWrite {
    /// The function's bus in the guest.
    pub bus: u8,
    /// The function on that bus: `device << 3 | function`.
    pub devfn: u8,
    /// Offset of the register, below 4096.
    pub offset: u16,
    /// How many were dropped.
    pub count: u32,
}

/// All counters of a stub. They stop at their largest value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    values: [u64; Counter::ALL.len()],
    /// Used from the front; a free entry has count 0.
    dropped: [DroppedWrite; DROPPED_MAX],
}

impl Counters {
    /// Adds one.
    pub fn add(&mut self, counter: Counter) {
        let value = &mut self.values[counter as usize];
        *value = value.saturating_add(1);
    }

    /// Sets a counter that is kept elsewhere.
    pub fn set(&mut self, counter: Counter, value: u64) {
        self.values[counter as usize] = value;
    }

    /// Reads a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// Counts a dropped write to the register at `offset` of the guest's function at `guest_bdf`, in segment 0.
    ///
    /// [`Counter::WritesDropped`] counts all of them; the table names the first
    /// [`DROPPED_MAX`] registers. Returns true for the first write to a register
    /// that the table takes in, so that a log names each register once.
    pub fn add_dropped_write(&mut self, guest_bdf: Bdf, offset: u16) -> bool {
        self.add(Counter::WritesDropped);
        let (bus, devfn) = (guest_bdf.bus(), guest_bdf.devfn());
        // Free entries are behind the used ones, so the first match is the register's own entry or a new one.
        let entry = self.dropped.iter_mut().find(|entry| {
            let free = entry.count == 0;
            free || (entry.bus, entry.devfn, entry.offset) == (bus, devfn, offset)
        });
        entry.is_some_and(|entry| {
            let first = entry.count == 0;
            *entry = DroppedWrite {
                bus,
                devfn,
                offset,
                count: entry.count.saturating_add(1),
            };
            first
        })
    }

    /// Removes the registers of the guest's function at `guest_bdf` from the table, because another device may get its
    /// address. The sum, [`Counter::WritesDropped`], stays.
    pub fn forget_function(&mut self, guest_bdf: Bdf) {
        let mut kept = [DroppedWrite::default(); DROPPED_MAX];
        let stays = |entry: &DroppedWrite| (entry.bus, entry.devfn) != (guest_bdf.bus(), guest_bdf.devfn());
        let others = self.dropped_writes().filter(stays);
        for (to, entry) in kept.iter_mut().zip(others) {
            *to = entry;
        }
        self.dropped = kept;
    }

    /// The registers whose writes were dropped, in the order of their first write.
    pub fn dropped_writes(&self) -> impl Iterator<Item = DroppedWrite> + '_ {
        self.dropped.iter().copied().filter(|entry| entry.count > 0)
    }

    /// Writes the block into the page of the second hop.
    ///
    /// A reader may see some counters of before and some of after: they are written without a lock.
    pub fn publish(&self, page: &impl SharedPage) {
        page.copy_in(OFFSET, &self.encode());
    }

    /// Reads the block out of the page of the second hop.
    pub fn collect(page: &impl SharedPage) -> Result<Self, CountersError> {
        let mut block = [0; BLOCK_SIZE];
        page.copy_out(OFFSET, &mut block);
        Self::decode(&block)
    }

    /// The block.
    pub fn encode(&self) -> [u8; BLOCK_SIZE] {
        let mut block = [0; BLOCK_SIZE];
        block[..4].copy_from_slice(&MAGIC);
        block[4..HEADER_SIZE].copy_from_slice(&VERSION.to_le_bytes());
        for (field, value) in block[HEADER_SIZE..TABLE].chunks_exact_mut(8).zip(self.values) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        for (field, entry) in block[TABLE..].chunks_exact_mut(ENTRY_SIZE).zip(self.dropped) {
            field[0] = entry.devfn;
            field[1] = entry.bus;
            field[2..4].copy_from_slice(&entry.offset.to_le_bytes());
            field[4..].copy_from_slice(&entry.count.to_le_bytes());
        }
        block
    }

    /// Reads a block that a stub wrote.
    pub fn decode(block: &[u8; BLOCK_SIZE]) -> Result<Self, CountersError> {
        let (header, rest) = block.split_at(HEADER_SIZE);
        let (magic, version) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(CountersError::Magic);
        }
        if version != VERSION.to_le_bytes() {
            let version = version
                .iter()
                .rev()
                .fold(0, |word, &byte| word << 8 | u32::from(byte));
            return Err(CountersError::Version(version));
        }

        let mut counters = Self::default();
        let (values, table) = rest.split_at(TABLE - HEADER_SIZE);
        for (value, &bytes) in counters.values.iter_mut().zip(values.as_chunks().0) {
            *value = u64::from_le_bytes(bytes);
        }
        for (entry, &[devfn, bus, o0, o1, c0, c1, c2, c3]) in
            counters.dropped.iter_mut().zip(table.as_chunks().0)
        {
            *entry = DroppedWrite {
                bus,
                devfn,
                offset: u16::from_le_bytes([o0, o1]),
                count: u32::from_le_bytes([c0, c1, c2, c3]),
            };
            // No stub of this version writes that: then nothing else in the block can be believed.
            if entry.offset >= CONFIG_SPACE_SIZE {
                return Err(CountersError::Register(entry.offset));
            }
        }
        Ok(counters)
    }
}

/// Why a block is no set of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountersError {
    /// It does not start as one: the stub has published none yet.
    Magic,
    /// It has this version, not [`VERSION`].
    Version(u32),
    /// It names a register at this offset, past the end of config space.
    Register(u16),
}

impl fmt::Display for CountersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("the stub has published no counters"),
            Self::Version(version) => write!(
                f,
                "the stub's counters have version {version}, this program reads version {VERSION}: stub and \
                 dom0 command must be of one build"
            ),
            Self::Register(offset) => write!(f, "the stub's counters name a register at {offset:#x}"),
        }
    }
}

impl core::error::Error for CountersError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const A: Bdf = Bdf::from_devfn(0, 0, 8);
    const B: Bdf = Bdf::from_devfn(0, 2, 8);

    #[test]
    fn a_block_holds_every_counter_and_the_table() {
        let mut counters = Counters::default();
        for (times, counter) in Counter::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counters.add(counter));
        }
        counters.add_dropped_write(B, 0x1ff);
        let read = Counters::decode(&counters.encode()).unwrap();
        assert_eq!(read, counters);
        assert_eq!(read.get(Counter::BlamedSelf), 14);
        assert_eq!(read.get(Counter::WritesDropped), 3 + 1);
    }

    #[test]
    fn names_differ() {
        let mut names = Counter::ALL.map(Counter::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn dropped_writes_are_named_per_register_until_the_table_is_full() {
        let mut counters = Counters::default();
        let first: Vec<bool> = (0..20)
            .map(|register| counters.add_dropped_write(A, register))
            .collect();
        assert_eq!(first.iter().filter(|&&first| first).count(), DROPPED_MAX);
        assert!(!counters.add_dropped_write(A, 3));
        assert_eq!(counters.get(Counter::WritesDropped), 21);
        assert_eq!(counters.dropped_writes().count(), DROPPED_MAX);
        assert_eq!(
            counters.dropped_writes().nth(3),
            Some(DroppedWrite {
                bus: 0,
                devfn: 8,
                offset: 3,
                count: 2
            })
        );
    }

    #[test]
    fn a_function_that_is_forgotten_makes_room_in_the_table_and_leaves_the_sum() {
        let mut counters = Counters::default();
        for register in 0..DROPPED_MAX as u16 {
            counters.add_dropped_write(if register % 2 == 0 { A } else { B }, register);
        }
        counters.forget_function(A);
        let left: Vec<_> = counters.dropped_writes().map(|entry| entry.offset).collect();
        assert_eq!(
            left,
            (0..DROPPED_MAX as u16).filter(|n| n % 2 == 1).collect::<Vec<_>>()
        );
        assert_eq!(counters.get(Counter::WritesDropped), DROPPED_MAX as u64);
        assert!(counters.add_dropped_write(A, 0), "named anew");
    }

    #[test]
    fn a_block_that_is_none_is_named() {
        let mut block = Counters::default().encode();
        assert_eq!(Counters::decode(&[0; BLOCK_SIZE]), Err(CountersError::Magic));
        block[4] = 3;
        block[7] = 1;
        assert_eq!(Counters::decode(&block), Err(CountersError::Version(0x0100_0003)));

        let mut block = Counters::default().encode();
        block[TABLE + ENTRY_SIZE + 3] = 0x10;
        assert_eq!(Counters::decode(&block), Err(CountersError::Register(0x1000)));
    }
}
