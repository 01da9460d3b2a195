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
//! | then | for each [`Class`] a [`Histogram`]: one u64 for each bucket, and the sum of the times in microseconds, u64 |
//! | then | [`DROPPED_MAX`] entries `{ devfn: u8, bus: u8, offset: u16, count: u32 }`; count 0: free |

use crate::pciif::{Command, SharedPage, layout};
use core::fmt;
use core::time::Duration;
use pci::bdf::Bdf;

/// Offset of the block in the page.
pub const OFFSET: usize = 1024;
/// Version of the block's layout; it changes whenever [`Counter`], [`Class`], [`BOUNDS`] or the table does.
pub const VERSION: u32 = 3;
/// Registers that are named one by one in the table of dropped writes.
pub const DROPPED_MAX: usize = 16;
/// Size of the block, in bytes.
pub const BLOCK_SIZE: usize = TABLE + DROPPED_MAX * ENTRY_SIZE;

const MAGIC: [u8; 4] = *b"BHCT";
const HEADER_SIZE: usize = 8;
const HEADER: [u8; HEADER_SIZE] = {
    let [m0, m1, m2, m3] = MAGIC;
    let [v0, v1, v2, v3] = VERSION.to_le_bytes();
    [m0, m1, m2, m3, v0, v1, v2, v3]
};
/// Numbers of a histogram in the block: its buckets and its sum.
const HISTOGRAM_LEN: usize = BUCKETS + 1;
/// Numbers before the table: counters and histograms.
const VALUES: usize = Counter::ALL.len() + Class::ALL.len() * HISTOGRAM_LEN;
/// Offset of the table of dropped writes in the block.
pub const TABLE: usize = HEADER_SIZE + VALUES * 8;
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

/// A class of requests. The time that its requests take is counted in one histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Config reads.
    ConfRead,
    /// Config writes.
    ConfWrite,
    /// MSI and MSI-X, on and off.
    Msi,
}

impl Class {
    /// All classes, in the order of the block.
    pub const ALL: [Self; 3] = [Self::ConfRead, Self::ConfWrite, Self::Msi];

    /// The class of a command; `None` for one that no stub serves.
    pub const fn of(command: Command) -> Option<Self> {
        match command {
            Command::ConfRead => Some(Self::ConfRead),
            Command::ConfWrite => Some(Self::ConfWrite),
            Command::EnableMsi | Command::DisableMsi | Command::EnableMsix | Command::DisableMsix => {
                Some(Self::Msi)
            }
            Command::Other(_) => None,
        }
    }

    /// The class's name in `bulkhead status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConfRead => "conf_read",
            Self::ConfWrite => "conf_write",
            Self::Msi => "msi",
        }
    }
}

/// Upper bounds of a histogram's buckets, in microseconds, below a second. A guest gives up after 2 s.
pub const BOUNDS: [u32; 5] = [50, 250, 1_000, 10_000, 250_000];
/// Buckets of a histogram: one for each bound, and one for longer times.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// How long requests took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Requests by time: each is counted in the first bucket whose bound it does not exceed.
    pub buckets: [u64; BUCKETS],
    /// All times together, in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// All times together.
    pub const fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_micros)
    }
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
#[derive(Clone, Debug)]
pub struct Counters {
    /// As in the block: counters, and then histograms.
    values: [u64; VALUES],
    /// Used from the front; a free entry has count 0.
    dropped: [DroppedWrite; DROPPED_MAX],
    /// A bit for each field of the block that has changed since it was published: first `values`, then `dropped`.
    changed: u64,
}

/// Fields of the block, each of eight bytes.
const FIELDS: usize = VALUES + DROPPED_MAX;
const ALL_FIELDS: u64 = u64::MAX >> (64 - FIELDS);
const _: () = assert!(FIELDS <= 64 && ENTRY_SIZE == 8);

impl PartialEq for Counters {
    fn eq(&self, other: &Self) -> bool {
        (self.values, self.dropped) == (other.values, other.dropped)
    }
}

impl Eq for Counters {}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: [0; VALUES],
            dropped: [DroppedWrite::default(); DROPPED_MAX],
            changed: 0,
        }
    }
}

impl Counters {
    /// The number at this index of `values`, to be changed.
    fn value_mut(&mut self, index: usize) -> &mut u64 {
        self.changed |= 1 << index;
        &mut self.values[index]
    }

    /// Adds one.
    // One copy of it in the stub's image.
    #[inline(never)]
    pub fn add(&mut self, counter: Counter) {
        let value = self.value_mut(counter as usize);
        *value = value.saturating_add(1);
    }

    /// Sets a counter that is kept elsewhere.
    pub fn set(&mut self, counter: Counter, value: u64) {
        *self.value_mut(counter as usize) = value;
    }

    /// Reads a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// Counts a request of `class` that took `time`, in whole microseconds.
    pub fn add_latency(&mut self, class: Class, time: Duration) {
        // Not `as_micros`, whose 128 bits cost the stub's image more than they are worth.
        let micros = time
            .as_secs()
            .saturating_mul(1_000_000)
            .saturating_add(time.subsec_micros().into());
        let bucket = BOUNDS.iter().filter(|&&bound| micros > u64::from(bound)).count();
        let start = Self::histogram(class);
        for (index, more) in [(bucket, 1), (BUCKETS, micros)] {
            let value = self.value_mut(start + index);
            *value = value.saturating_add(more);
        }
    }

    /// How long the requests of `class` took.
    pub fn latency(&self, class: Class) -> Histogram {
        let mut histogram = Histogram::default();
        let values = &self.values[Self::histogram(class)..];
        histogram.buckets.copy_from_slice(&values[..BUCKETS]);
        histogram.sum_micros = values[BUCKETS];
        histogram
    }

    /// Sets a histogram that is kept elsewhere.
    pub fn set_latency(&mut self, class: Class, histogram: &Histogram) {
        let start = Self::histogram(class);
        for (index, value) in histogram
            .buckets
            .into_iter()
            .chain([histogram.sum_micros])
            .enumerate()
        {
            *self.value_mut(start + index) = value;
        }
    }

    /// Sets the table of dropped writes. What there is no room for is left out, from the end.
    pub fn set_dropped_writes(&mut self, writes: impl Iterator<Item = DroppedWrite>) {
        self.changed |= ALL_FIELDS << VALUES & ALL_FIELDS;
        self.dropped = [DroppedWrite::default(); DROPPED_MAX];
        for (to, entry) in self.dropped.iter_mut().zip(writes) {
            *to = entry;
        }
    }

    /// Where the numbers of a histogram begin.
    const fn histogram(class: Class) -> usize {
        Counter::ALL.len() + class as usize * HISTOGRAM_LEN
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
        let mut entries = self.dropped.iter_mut().enumerate();
        let entry = entries.find(|(_, entry)| {
            let free = entry.count == 0;
            free || (entry.bus, entry.devfn, entry.offset) == (bus, devfn, offset)
        });
        entry.is_some_and(|(index, entry)| {
            self.changed |= 1 << (VALUES + index);
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
        let stays = |entry: &DroppedWrite| (entry.bus, entry.devfn) != (guest_bdf.bus(), guest_bdf.devfn());
        let before = self.dropped;
        self.set_dropped_writes(before.into_iter().filter(stays));
    }

    /// The registers whose writes were dropped, in the order of their first write.
    pub fn dropped_writes(&self) -> impl Iterator<Item = DroppedWrite> + '_ {
        self.dropped.iter().copied().filter(|entry| entry.count > 0)
    }

    /// Writes the block into the page of the second hop.
    ///
    /// A reader may see some counters of before and some of after: they are written without a lock.
    pub fn publish(&mut self, page: &impl SharedPage) {
        self.changed = ALL_FIELDS;
        self.publish_changes(page);
        page.copy_in(OFFSET, &HEADER);
    }

    /// Writes those fields of the block that have changed since it was written: a request changes three of them.
    pub fn publish_changes(&mut self, page: &impl SharedPage) {
        while self.changed != 0 {
            let index = self.changed.trailing_zeros() as usize;
            self.changed &= self.changed - 1;
            page.copy_in(OFFSET + HEADER_SIZE + index * 8, &self.field(index));
        }
    }

    /// A field of the block.
    fn field(&self, index: usize) -> [u8; 8] {
        let Some(entry) = index.checked_sub(VALUES).map(|index| self.dropped[index]) else {
            return self.values[index].to_le_bytes();
        };
        let [o0, o1] = entry.offset.to_le_bytes();
        let [c0, c1, c2, c3] = entry.count.to_le_bytes();
        [entry.devfn, entry.bus, o0, o1, c0, c1, c2, c3]
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
        block[..HEADER_SIZE].copy_from_slice(&HEADER);
        for (index, field) in block[HEADER_SIZE..].chunks_exact_mut(8).enumerate() {
            field.copy_from_slice(&self.field(index));
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
    use crate::model::Page;
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
        counters.add_latency(Class::ConfWrite, Duration::from_micros(700));
        let read = Counters::decode(&counters.encode()).unwrap();
        assert_eq!(read, counters);
        assert_eq!(read.get(Counter::BlamedSelf), 14);
        assert_eq!(read.get(Counter::WritesDropped), 3 + 1);
    }

    #[test]
    fn whatever_changes_the_counters_is_published() {
        let mut counters = Counters::default();
        let page = Page::new();
        counters.publish(&page);
        assert_eq!(Counters::collect(&page).unwrap(), counters);
        let histogram = Histogram {
            buckets: [1, 2, 3, 4, 5, 6],
            sum_micros: 7,
        };
        let changes: [&dyn Fn(&mut Counters); 8] = [
            &|counters| counters.add(Counter::Reads),
            &|counters| counters.set(Counter::Restarts, 3),
            &|counters| counters.add_latency(Class::Msi, Duration::from_secs(1)),
            &|counters| counters.set_latency(Class::ConfRead, &histogram),
            &|counters| _ = counters.add_dropped_write(A, 0x40),
            &|counters| _ = counters.add_dropped_write(B, 0x44),
            &|counters| _ = counters.add_dropped_write(A, 0x40),
            &|counters| counters.forget_function(A),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let before = counters.clone();
            change(&mut counters);
            assert_ne!(counters, before, "change {index}");
            counters.publish_changes(&page);
            assert_eq!(Counters::collect(&page).unwrap(), counters, "change {index}");
        }
    }

    #[test]
    fn a_request_writes_no_more_of_the_block_than_it_changes() {
        let mut counters = Counters::default();
        let page = Page::new();
        counters.publish(&page);
        // A mark in every field shows which ones are written.
        page.copy_in(OFFSET, &[0xee; BLOCK_SIZE]);
        counters.add(Counter::Reads);
        counters.add_latency(Class::ConfRead, Duration::from_micros(60));
        counters.publish_changes(&page);
        let mut block = [0; BLOCK_SIZE];
        page.copy_out(OFFSET, &mut block);
        let written = block.as_chunks().0.iter().filter(|field| **field != [0xee; 8]);
        assert_eq!(
            written
                .map(|field| u64::from_le_bytes(*field))
                .collect::<Vec<_>>(),
            [1, 1, 60]
        );
    }

    #[test]
    fn a_time_is_counted_once_in_the_first_bucket_that_it_fits() {
        for (micros, bucket) in [
            (0, 0),
            (50, 0),
            (51, 1),
            (250, 1),
            (10_000, 3),
            (10_001, 4),
            (250_001, 5),
        ] {
            for class in Class::ALL {
                let mut counters = Counters::default();
                counters.add_latency(class, Duration::from_micros(micros));
                let mut buckets = [0; BUCKETS];
                buckets[bucket] = 1;
                for other in Class::ALL {
                    let expected = if other == class {
                        (buckets, micros)
                    } else {
                        ([0; BUCKETS], 0)
                    };
                    let seen = counters.latency(other);
                    assert_eq!(
                        (seen.buckets, seen.sum_micros),
                        expected,
                        "{micros} us, {class:?}"
                    );
                }
                assert!(Counter::ALL.iter().all(|&counter| counters.get(counter) == 0));
            }
        }
    }

    #[test]
    fn bounds_rise_and_stay_below_a_second() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
        assert!(BOUNDS.iter().all(|bound| (1..1_000_000).contains(bound)));
    }

    #[test]
    fn each_operation_has_a_class() {
        let classes: Vec<_> = (0..6)
            .map(|raw| Class::of(Command::from_raw(raw)).unwrap())
            .collect();
        let [read, write, msi] = Class::ALL;
        assert_eq!(classes, [read, write, msi, msi, msi, msi]);
        assert_eq!(Class::of(Command::from_raw(6)), None);
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
