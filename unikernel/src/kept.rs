//! Kept memory: what one run of the stub leaves to the next in the same domain (`entry::restart_in_place`).
//!
//! It lies in the section `.keep`, which a new run does not clear. Each part is checked before it is used: the [`Record`]
//! by a checksum over all its bytes, a word about a function by a check value of its own, the parts of the [`SNAPSHOT`] by theirs, and the two numbers of the
//! xenstore connection by what xenstored sends next. In a first run all of it is zero.

use crate::memory::WINDOW_COUNT;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};
use core::time::Duration;
use drivers::crash_log::{Cause, CrashLog, Next, Op};
use drivers::platform::Errno;
use drivers::snapshot::{FUNCTIONS_MAX, Snapshot};
use pci::bdf::Bdf;

/// Version of [`Record`], not 0. A run only meets the records of its own image.
const VERSION: u64 = 1;
/// Foreign pages that can be mapped at once: the guest's, and some that Xen refused to unmap.
const FOREIGN_MAX: usize = 4;
/// The handle is not known: the mapping may or may not be there.
const NO_HANDLE: u32 = u32::MAX;

/// A window that shows another domain's page.
#[derive(Clone, Copy)]
#[repr(C)]
struct Foreign {
    /// The window's address; 0 in a free entry.
    va: u32,
    /// Xen's handle of the mapping, or [`NO_HANDLE`].
    handle: u32,
}

/// The record. It consists of integers without padding, so that its checksum covers all bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Record {
    version: u64,
    /// Xen's system time at the start of the first run, in nanoseconds.
    boot: u64,
    foreign: [Foreign; FOREIGN_MAX],
    crash_log: CrashLog,
}

const WORDS: usize = size_of::<Record>() / 8;
// No padding between the fields; inside of the crash log there is none either, as it checks itself.
const _: () = assert!(
    size_of::<Record>() == WORDS * 8 && size_of::<Record>() == 16 + FOREIGN_MAX * 8 + size_of::<CrashLog>()
);

impl Record {
    const FIRST: Self = Self {
        version: VERSION,
        boot: 0,
        foreign: [Foreign { va: 0, handle: 0 }; FOREIGN_MAX],
        crash_log: CrashLog::NEW,
    };

    /// Checksum. Detects accidental corruption; no protection against tampering.
    #[inline(never)]
    fn seal(&self) -> u64 {
        // SAFETY: the record is WORDS words long and aligned as its first field, a word; it has no padding (checked
        // above), so that every byte of it is initialised.
        let words = unsafe { &*core::ptr::from_ref(self).cast::<[u64; WORDS]>() };
        // FNV-1a, by words.
        words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29)
        })
    }
}

/// A record and its checksum.
#[derive(Clone, Copy)]
struct Sealed {
    record: Record,
    seal: u64,
}

impl Sealed {
    /// All zero, as the memory of a first run.
    const NONE: Self = Self {
        record: Record {
            version: 0,
            ..Record::FIRST
        },
        seal: 0,
    };

    fn is_sound(&self) -> bool {
        self.record.seal() == self.seal
    }
}

/// Two copies of the record. A change is made in the copy that does not count, and one store makes it count. So a run that
/// ends in the middle of a change leaves the record as it was before.
struct Copies {
    copies: [Sealed; 2],
    /// Which copy counts, by the lowest bit: any value is valid.
    current: usize,
}

impl Copies {
    const NONE: Self = Self {
        copies: [Sealed::NONE; 2],
        current: 0,
    };

    fn current(&self) -> &Sealed {
        &self.copies[self.current & 1]
    }

    /// Makes the record if this is a first run.
    fn open(&mut self) {
        let kept = &mut self.copies[self.current & 1];
        if kept.record.version == 0 && kept.seal == 0 {
            kept.record.version = VERSION;
            kept.seal = kept.record.seal();
        }
    }

    /// Changes the record, if its checksum is right.
    fn change<R>(&mut self, change: impl FnOnce(&mut Record) -> R) -> Result<R, Damaged> {
        let result = change(self.begin()?);
        self.commit();
        Ok(result)
    }

    /// Makes a copy of the record that may be changed, if its checksum is right.
    #[inline(never)]
    fn begin(&mut self) -> Result<&mut Record, Damaged> {
        let current = *self.current();
        if !current.is_sound() {
            return Err(Damaged);
        }
        let draft = &mut self.copies[!self.current & 1];
        *draft = current;
        Ok(&mut draft.record)
    }

    /// Makes the changed copy count.
    #[inline(never)]
    fn commit(&mut self) {
        let other = !self.current & 1;
        let draft = &mut self.copies[other];
        draft.seal = draft.record.seal();
        // The compiler must not store this before the copy is whole. The next run is on the same vCPU: no other fence is
        // needed.
        compiler_fence(Ordering::Release);
        self.current = other;
        compiler_fence(Ordering::Release);
    }
}

struct Kept(UnsafeCell<Copies>);

// SAFETY: there is one thread, and references into the cell are made by `read` and `write` alone, which say why they are
// sound. The timer's upcall, which interrupts that thread, makes one only if it ends the run.
unsafe impl Sync for Kept {}

#[unsafe(link_section = ".keep")]
static KEPT: Kept = Kept(UnsafeCell::new(Copies::NONE));

/// A word about each function of the guest's bus: address, word, and a check value of both. Zero memory is a free entry.
#[unsafe(link_section = ".keep")]
static SHADOWS: [[AtomicU32; 3]; 256] = [const { [const { AtomicU32::new(0) }; 3] }; 256];

/// The guest's connection and its functions.
#[unsafe(link_section = ".keep")]
pub static SNAPSHOT: Snapshot = Snapshot::new();
// Each function takes a window.
const _: () = assert!(WINDOW_COUNT <= FUNCTIONS_MAX);

/// Index in xenstored's ring at which its next message begins.
#[unsafe(link_section = ".keep")]
pub static NEXT_REPLY: AtomicU32 = AtomicU32::new(0);

/// Number of the last request to xenstored.
#[unsafe(link_section = ".keep")]
pub static LAST_REQUEST: AtomicU32 = AtomicU32::new(0);

/// Bytes of log lines that wait to be sent.
#[cfg(feature = "net")]
pub const LINES_SIZE: usize = 16 * 1024;

/// Log lines that wait to be sent.
#[cfg(feature = "net")]
#[unsafe(link_section = ".keep")]
pub static LINES: telemetry::line_ring::LineRing<LINES_SIZE> = telemetry::line_ring::LineRing::new();

/// Failures while the network was served.
#[cfg(feature = "net")]
#[unsafe(link_section = ".keep")]
pub static STRIKES: telemetry::strikes::Strikes = telemetry::strikes::Strikes::new();

/// The request of the guest that is served at present. Not kept: a failure puts it into the record.
static UNDER_WAY: [AtomicU32; size_of::<Op>() / 4] = [const { AtomicU32::new(0) }; size_of::<Op>() / 4];
static IS_UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// The record's checksum is wrong: the stub's memory was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Calls `access` with the copies. It may read kept memory again, and must not change it.
fn read<R>(access: impl FnOnce(&Copies) -> R) -> R {
    // SAFETY: all references to the cell that are used while `access` runs are shared ones: nothing that is passed here calls
    // `write`. The closures of this module do not. That of `see_crash_log` comes through `Platform::see_crash_log`, which
    // borrows the platform: the drivers change kept memory through the platform and its pages alone, and use no page there.
    // If `access` fails, the end of the run calls `write` and never returns, so this reference is not used again.
    access(unsafe { &*KEPT.0.get() })
}

/// Calls `access` with the copies, for changes. It must not come back to kept memory.
fn write<R>(access: impl FnOnce(&mut Copies) -> R) -> R {
    // SAFETY: the only reference to the cell that is used from here until `access` returns: nothing that is passed to `read`
    // calls this function, and nothing that is passed here calls this one or `read`. The closures of this module do not.
    // That of `update_crash_log` comes through `Platform::update_crash_log`, which borrows the platform exclusively. At the
    // end of a run this function may be called inside of `read` or of itself. The end never returns, so the reference
    // of before is not used again.
    access(unsafe { &mut *KEPT.0.get() })
}

/// See [`Copies::change`].
fn change<R>(change: impl FnOnce(&mut Record) -> R) -> Result<R, Damaged> {
    write(|kept| kept.change(change))
}

/// As [`change`], for the middle of other work: a damaged record ends this run, and with it the domain.
fn change_or_fail<R>(what: impl FnOnce(&mut Record) -> R) -> R {
    change(what).unwrap_or_else(|Damaged| panic!("the record of earlier runs is damaged"))
}

/// Makes the record if this is a first run.
pub fn open() {
    write(Copies::open);
}

/// The start of the first run, which is `now` if this is it. Both are Xen's system time in nanoseconds.
pub fn boot_time(now: u64) -> u64 {
    change_or_fail(|record| {
        if record.boot == 0 {
            record.boot = now;
        }
        record.boot
    })
}

/// Calls `see` with the crash log. `see` must not change kept memory, except by ending the run.
pub fn see_crash_log<R>(see: impl FnOnce(&CrashLog) -> R) -> R {
    read(|kept| see(&kept.current().record.crash_log))
}

/// Changes the crash log. `what` must not come back to this module, except by ending the run.
pub fn update_crash_log(what: impl FnOnce(&mut CrashLog)) {
    change_or_fail(|record| what(&mut record.crash_log));
}

/// Records that this run ends `now`; returns what follows.
///
/// # Errors
/// [`Damaged`]: which foreign pages are mapped is not known, so no other run can start.
pub fn fail(cause: Cause, now: Duration) -> Result<Next, Damaged> {
    let mut op = [0; size_of::<Op>()];
    for (bytes, word) in op.chunks_exact_mut(4).zip(&UNDER_WAY) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    let op = IS_UNDER_WAY.load(Ordering::Relaxed).then_some(&op);
    change(|record| record.crash_log.fail(cause, now, op))
}

/// A failure from here on counts against this request.
pub fn set_under_way(op: Option<&Op>) {
    // Off while the bytes change: a failure in between must not count against a mixture of two requests.
    IS_UNDER_WAY.store(false, Ordering::Relaxed);
    // For exceptions and upcalls of this processor, which read these words.
    compiler_fence(Ordering::SeqCst);
    if let Some(op) = op {
        for (word, bytes) in UNDER_WAY.iter().zip(op.as_chunks().0) {
            word.store(u32::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        IS_UNDER_WAY.store(true, Ordering::Relaxed);
    }
}

/// An entry of [`SHADOWS`], with its check value.
fn shadow(guest_bdf: Bdf, word: u32) -> [u32; 3] {
    let guest_bdf = guest_bdf.word();
    [guest_bdf, word, !(guest_bdf ^ word.rotate_left(8))]
}

/// The entry of the function at `guest_bdf`, and its word.
fn find_shadow(guest_bdf: Bdf) -> Option<(&'static [AtomicU32; 3], u32)> {
    SHADOWS.iter().find_map(|entry| {
        let held = [0, 1, 2].map(|index| entry[index].load(Ordering::Relaxed));
        (held == shadow(guest_bdf, held[1])).then_some((entry, held[1]))
    })
}

/// The word that is kept about the function at `guest_bdf`.
#[inline(never)]
pub fn recall(guest_bdf: Bdf) -> Option<u32> {
    find_shadow(guest_bdf).map(|(_, word)| word)
}

/// Keeps a word about the function at `guest_bdf`, or forgets it. There is room for as many functions as a guest can have;
/// a word too many is not kept.
#[inline(never)]
pub fn remember(guest_bdf: Bdf, word: Option<u32>) {
    let known = find_shadow(guest_bdf).map(|(entry, _)| entry);
    let free = || SHADOWS.iter().find(|entry| entry[2].load(Ordering::Relaxed) == 0);
    let Some(entry) = known.or_else(|| free().filter(|_| word.is_some())) else {
        return;
    };
    let held = word.map_or([0; 3], |word| shadow(guest_bdf, word));
    // A run that ends between two of these stores leaves an entry that does not pass its check: the word is lost, and the
    // device's own value counts. No guest address is ffff:ff:1f.7, whose entry with the word 0 is the exception.
    for (part, value) in entry.iter().zip(held) {
        part.store(value, Ordering::Relaxed);
    }
}

/// Records that a foreign page is about to be mapped at `va`.
///
/// # Errors
/// `ENOMEM` if there are too many.
pub fn expect_foreign(va: usize) -> Result<(), Errno> {
    set_foreign(0, va as u32, NO_HANDLE).ok_or(Errno(hermit_abi::errno::ENOMEM))
}

/// Records the handle of the page that is mapped at `va`.
pub fn record_handle(va: usize, handle: u32) {
    // There is an entry: `expect_foreign` has made it.
    let _ = set_foreign(va as u32, va as u32, handle);
}

/// Records that no foreign page is mapped at `va` any more.
pub fn forget_foreign(va: usize) {
    // As above.
    let _ = set_foreign(va as u32, 0, 0);
}

/// Replaces the entry whose address is `from`; `None` if there is none.
#[inline(never)]
fn set_foreign(from: u32, va: u32, handle: u32) -> Option<()> {
    change_or_fail(|record| {
        let entry = record.foreign.iter_mut().find(|entry| entry.va == from)?;
        *entry = Foreign { va, handle };
        Some(())
    })
}

/// The foreign pages that are mapped: address and handle. One without a handle may or may not be mapped.
pub fn foreign() -> impl Iterator<Item = (usize, Option<u32>)> {
    let mapped = read(|kept| kept.current().record.foreign);
    let mapped = mapped.into_iter().filter(|entry| entry.va != 0);
    mapped.map(|entry| {
        let handle = (entry.handle != NO_HANDLE).then_some(entry.handle);
        (entry.va as usize, handle)
    })
}

/// True if a foreign page is, or may be, mapped at `va`.
pub fn is_foreign(va: usize) -> bool {
    foreign().any(|(window, _)| window == va)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::sync::{Mutex, PoisonError};

    /// Held by a test that uses the record itself: the stub has one thread.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn whoever_reads_kept_memory_may_read_it_again_meanwhile() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        open();
        read(|outer| {
            let inner = see_crash_log(|crash_log| {
                assert_eq!(crash_log, &outer.current().record.crash_log);
                assert_eq!(foreign().count(), 0);
                core::ptr::from_ref(crash_log)
            });
            assert!(core::ptr::eq(inner, &outer.current().record.crash_log), "no copy");
        });
    }

    /// Where section `.keep` of this program lies in memory, by its ELF header and where it was loaded.
    fn keep_section() -> core::ops::Range<usize> {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let number = |at: usize, size: usize| {
            file[at..at + size]
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | usize::from(*byte))
        };
        let (table, size, count, names) = (number(40, 8), number(58, 2), number(60, 2), number(62, 2));
        let field = |section: usize, at, size_of| number(table + section * size + at, size_of);
        let name_of = |section| field(names, 24, 8) + field(section, 0, 4);
        let keep = (0..count)
            .find(|&section| file[name_of(section)..].starts_with(b".keep\0"))
            .expect("the section");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let first = maps
            .lines()
            .find(|line| line.ends_with(program.to_str().unwrap()));
        let (base, _) = first.unwrap().split_once('-').unwrap();
        // Loaded from its first byte on, which has address 0 in a program that can lie anywhere.
        let start = usize::from_str_radix(base, 16).unwrap() + field(keep, 16, 8);
        start..start + field(keep, 32, 8)
    }

    #[test]
    fn what_the_next_run_finds_lies_where_it_is_not_cleared() {
        fn ends<T>(kept: &T) -> [usize; 2] {
            let start = core::ptr::from_ref(kept).addr();
            [start, start + size_of::<T>() - 1]
        }
        let section = keep_section();
        for ends in [
            ends(&KEPT),
            ends(&SHADOWS),
            ends(&SNAPSHOT),
            ends(&NEXT_REPLY),
            ends(&LAST_REQUEST),
        ] {
            assert!(
                ends.iter().all(|end| section.contains(end)),
                "{ends:x?} in {section:x?}"
            );
        }
        #[cfg(feature = "net")]
        for ends in [ends(&LINES), ends(&STRIKES)] {
            assert!(ends.iter().all(|end| section.contains(end)));
        }
        assert!(!section.contains(&ends(&UNDER_WAY)[0]), "that of one run alone");
    }

    #[test]
    fn a_record_is_believed_as_long_as_nobody_else_has_written_to_it() {
        let mut record = Record::FIRST;
        let seal = record.seal();
        record.foreign[2].handle ^= 1 << 7;
        assert_ne!(record.seal(), seal);
        record.foreign[2].handle ^= 1 << 7;
        assert_eq!(record.seal(), seal);
        record.crash_log.fail(Cause::Panic, Duration::from_secs(1), None);
        assert_ne!(record.seal(), seal);
    }

    /// Leaves a change in the middle as a fault does: nothing of it is undone, nothing runs afterwards.
    fn cut_off(kept: &mut Copies, after: usize) {
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = kept.change(|record| {
                let steps: [fn(&mut Record); 3] = [
                    |record| record.boot ^= 7,
                    |record| record.foreign[1] = Foreign { va: 1, handle: 2 },
                    |record| _ = record.crash_log.fail(Cause::Panic, Duration::from_secs(2), None),
                ];
                for step in &steps[..after] {
                    step(record);
                }
                panic!("cut off");
            });
        }));
        assert!(unwound.is_err());
    }

    #[test]
    fn a_change_that_is_cut_off_leaves_the_record_as_it_was() {
        for after in 0..=3 {
            let mut kept = Copies::NONE;
            kept.open();
            for round in 1..=3 {
                kept.change(|record| record.boot = round).unwrap();
                cut_off(&mut kept, after);
                let record = &kept.current().record;
                assert_eq!((record.boot, record.foreign[1].va), (round, 0));
                assert_eq!(record.crash_log, CrashLog::NEW);
                kept.change(|record| record.foreign[0].handle += 1).unwrap();
                assert_eq!(u64::from(kept.current().record.foreign[0].handle), round);
            }
        }
    }

    #[test]
    fn a_record_that_was_overwritten_is_damaged_whichever_copy_counts() {
        for changes in 0..4 {
            let mut kept = Copies::NONE;
            kept.open();
            for round in 0..changes {
                kept.change(|record| record.boot = round).unwrap();
            }
            let current = kept.current & 1;
            kept.copies[current].record.boot ^= 1 << 40;
            assert_eq!(kept.change(|record| record.boot), Err(Damaged));
        }
    }

    #[test]
    fn a_word_is_kept_for_each_function_and_zero_or_damaged_memory_is_none() {
        let guest_bdfs: Vec<Bdf> = (0..=255).map(|devfn| Bdf::from_devfn(0, 3, devfn)).collect();
        for &guest_bdf in &guest_bdfs {
            assert_eq!(recall(guest_bdf), None);
            for word in [0, 1, u32::MAX, 0x0001_0547] {
                remember(guest_bdf, Some(word));
                assert_eq!(recall(guest_bdf), Some(word));
            }
        }
        let (first, last) = (guest_bdfs[0], guest_bdfs[255]);
        assert_eq!(recall(first), Some(0x0001_0547));
        remember(last, None);
        assert_eq!(recall(last), None);
        let other = Bdf::from_devfn(0, 0, 0);
        remember(other, Some(5));
        assert_eq!(
            recall(other),
            Some(5),
            "in the place of the one that is forgotten"
        );
        find_shadow(first).unwrap().0[1].store(0x1234, Ordering::Relaxed);
        assert_eq!(recall(first), None, "overwritten");
    }

    #[test]
    fn foreign_pages_are_known_from_before_they_are_mapped_until_they_are_not() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        open();
        for page in 1..=FOREIGN_MAX {
            expect_foreign(page * 0x1000).unwrap();
        }
        assert!(expect_foreign(0x9000).is_err());
        record_handle(0x2000, 5);
        assert!(is_foreign(0x2000) && is_foreign(0x1000));
        assert_eq!(foreign().nth(1), Some((0x2000, Some(5))));
        assert_eq!(foreign().next(), Some((0x1000, None)));
        forget_foreign(0x2000);
        assert!(!is_foreign(0x2000));
        assert!(expect_foreign(0x9000).is_ok());
        for (va, _) in foreign() {
            forget_foreign(va);
        }
    }
}
