//! What a run leaves to the next one in the same domain, so that the guest is served before xenstore is asked: its
//! connection, and its functions.
//!
//! Each part has a checksum, and each change of a function unseals the connection. So a run that ends in the middle of a
//! change leaves no connection, and the next run reads xenstore. The connection is sealed again once xenstore and the
//! functions agree.
//!
//! A run that goes by a snapshot marks it as tried until it has followed xenstore once. A run that finds it tried does not
//! go by it: what is kept may be what brought the last run down.

use core::array;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

/// Words about a function; the first one is its real address.
pub const FUNCTION_WORDS: usize = 93;
/// A function in words.
pub type FunctionWords = [u32; FUNCTION_WORDS];

// Entries: as many functions as the handover block has room for, and more than a stub has room to map.
pub use xenbus::handover_block::FUNCTIONS_MAX;

/// The connection to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The number of the stub's domain.
    pub stub: u16,
    /// The guest.
    pub guest: u16,
    /// Grant reference of the guest's page.
    pub grant: u32,
    /// The guest's port.
    pub port: u32,
    /// The functions have the addresses that they have in the host.
    pub passthrough: bool,
    /// How many functions the guest has.
    pub functions: usize,
}

impl Connection {
    fn words(self) -> [u32; 5] {
        [
            u32::from(self.stub) << 16 | u32::from(self.guest),
            self.grant,
            self.port,
            self.passthrough.into(),
            self.functions as u32,
        ]
    }

    fn of([domains, grant, port, passthrough, functions]: [u32; 5]) -> Self {
        Self {
            stub: (domains >> 16) as u16,
            guest: domains as u16,
            grant,
            port,
            passthrough: passthrough != 0,
            functions: functions as usize,
        }
    }
}

/// Words with a checksum. Zero memory is unsealed.
#[derive(Debug)]
struct Sealed<const WORDS: usize> {
    words: [AtomicU32; WORDS],
    /// 0: unsealed.
    seal: AtomicU32,
}

impl<const WORDS: usize> Sealed<WORDS> {
    const fn new() -> Self {
        Self {
            words: [const { AtomicU32::new(0) }; WORDS],
            seal: AtomicU32::new(0),
        }
    }

    fn set(&self, words: &[u32; WORDS]) {
        self.unseal();
        for (kept, word) in self.words.iter().zip(words) {
            kept.store(*word, Ordering::Relaxed);
        }
        // The compiler must not store the seal before the words, nor a word before the seal is gone. The next run is on the
        // same vCPU: no other fence is needed.
        compiler_fence(Ordering::SeqCst);
        self.seal.store(checksum(words), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    fn get(&self) -> Option<[u32; WORDS]> {
        let words = array::from_fn(|index| self.words[index].load(Ordering::Relaxed));
        (self.seal.load(Ordering::Relaxed) == checksum(&words)).then_some(words)
    }

    fn unseal(&self) {
        self.seal.store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    fn is_sealed(&self) -> bool {
        self.seal.load(Ordering::Relaxed) != 0
    }
}

/// Detects accidental corruption; no protection against tampering. Never 0.
#[inline(never)]
fn checksum(words: &[u32]) -> u32 {
    // FNV-1a, by words.
    let hash = words.iter().fold(0x811c_9dc5_u32, |hash, word| {
        (hash ^ word).wrapping_mul(0x0100_0193).rotate_left(13)
    });
    hash | 1
}

/// The memory of it, which outlives a run. All zero in a first run.
#[derive(Debug)]
pub struct Snapshot {
    connection: Sealed<5>,
    /// Not 0: a run went by the snapshot, and has not followed xenstore since.
    tried: AtomicU32,
    functions: [Sealed<FUNCTION_WORDS>; FUNCTIONS_MAX],
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl Snapshot {
    /// That of a first run.
    pub const fn new() -> Self {
        Self {
            connection: Sealed::new(),
            tried: AtomicU32::new(0),
            functions: [const { Sealed::new() }; FUNCTIONS_MAX],
        }
    }

    /// The connection, for a run that begins; `None` if there is none to go by, or if a part is damaged.
    pub fn take(&self) -> Option<Connection> {
        let connection = Connection::of(self.connection.get()?);
        let tried = self.tried.swap(1, Ordering::Relaxed) != 0;
        compiler_fence(Ordering::SeqCst);
        (!tried && self.count() == connection.functions).then_some(connection)
    }

    /// The function of this entry, if there is one and its checksum is right.
    pub fn function(&self, entry: usize) -> Option<FunctionWords> {
        let entry = self.functions.get(entry)?;
        entry.is_sealed().then(|| entry.get()).flatten()
    }

    fn count(&self) -> usize {
        let functions = (0..FUNCTIONS_MAX).filter_map(|entry| self.function(entry));
        functions.count()
    }

    /// xenstore and the functions agree on this connection.
    pub fn confirm(&self, connection: Connection) {
        let words = connection.words();
        if self.connection.get() != Some(words) {
            self.connection.set(&words);
        }
        self.tried.store(0, Ordering::Relaxed);
    }

    /// What was kept is not to be gone by, until it is confirmed.
    pub fn unseal(&self) {
        self.connection.unseal();
    }

    /// Keeps a function.
    pub fn put(&self, function: &FunctionWords) {
        self.unseal();
        // One too many, which a stub cannot map, is left out. Then the number of functions is wrong, and no run goes by it.
        if let Some(entry) = self.functions.iter().find(|entry| !entry.is_sealed()) {
            entry.set(function);
        }
    }

    /// Forgets the function at this real address.
    pub fn remove(&self, bdf: u32) {
        self.unseal();
        for entry in &self.functions {
            if entry.words[0].load(Ordering::Relaxed) == bdf {
                entry.unseal();
            }
        }
    }

    /// Forgets all functions.
    pub fn clear(&self) {
        self.unseal();
        self.functions.iter().for_each(Sealed::unseal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;

    const CONNECTION: Connection = Connection {
        stub: 4,
        guest: 7,
        grant: 9,
        port: 11,
        passthrough: false,
        functions: 2,
    };

    fn kept() -> Box<Snapshot> {
        let snapshot = Box::new(Snapshot::new());
        assert_eq!(snapshot.take(), None, "zero memory");
        for bdf in [0, 8] {
            snapshot.put(&array::from_fn(|word| bdf + word as u32));
        }
        assert_eq!(snapshot.take(), None, "not confirmed");
        snapshot.confirm(CONNECTION);
        snapshot
    }

    #[test]
    fn what_was_confirmed_is_gone_by_once_and_again_when_it_is_confirmed_again() {
        let snapshot = kept();
        for _ in 0..3 {
            assert_eq!(snapshot.take(), Some(CONNECTION));
            let first = |entry| snapshot.function(entry).map(|words| words[0]);
            assert_eq!([0, 1, 2].map(first), [Some(0), Some(8), None]);
            assert_eq!(snapshot.take(), None, "tried");
            snapshot.confirm(CONNECTION);
        }
    }

    #[test]
    fn a_change_of_the_functions_counts_when_it_is_confirmed() {
        for change in [
            |snapshot: &Snapshot| snapshot.put(&[16; FUNCTION_WORDS]),
            |snapshot: &Snapshot| snapshot.remove(8),
            |snapshot: &Snapshot| {
                // As many functions as before.
                snapshot.remove(8);
                snapshot.put(&[16; FUNCTION_WORDS]);
            },
            Snapshot::clear,
            Snapshot::unseal,
        ] {
            let snapshot = kept();
            change(&snapshot);
            // Already before it has other functions than are counted.
            assert!(!snapshot.connection.is_sealed());
            assert_eq!(snapshot.take(), None);
            let functions = snapshot.count();
            let changed = Connection {
                functions,
                ..CONNECTION
            };
            snapshot.confirm(changed);
            assert_eq!(snapshot.take(), Some(changed));
        }
    }

    #[test]
    fn a_changed_word_anywhere_is_noticed() {
        for part in 0..3 {
            let snapshot = kept();
            let words: &[AtomicU32] = match part {
                0 => &snapshot.connection.words,
                index => &snapshot.functions[index - 1].words,
            };
            for word in words {
                for bit in 0..32 {
                    let before = word.fetch_xor(1 << bit, Ordering::Relaxed);
                    assert_eq!(snapshot.take(), None, "part {part} bit {bit}");
                    word.store(before, Ordering::Relaxed);
                    snapshot.confirm(CONNECTION);
                    assert_eq!(snapshot.take(), Some(CONNECTION));
                    snapshot.confirm(CONNECTION);
                }
            }
        }
    }

    #[test]
    fn there_is_room_for_all_functions_of_a_guest() {
        let snapshot = Snapshot::new();
        for bdf in 0..FUNCTIONS_MAX as u32 {
            snapshot.put(&[bdf; FUNCTION_WORDS]);
        }
        snapshot.remove(77);
        snapshot.put(&[77; FUNCTION_WORDS]);
        assert_eq!(snapshot.count(), FUNCTIONS_MAX);
        let all = Connection {
            functions: FUNCTIONS_MAX,
            ..CONNECTION
        };
        snapshot.confirm(all);
        assert_eq!(snapshot.take(), Some(all));
        snapshot.confirm(all);
        snapshot.put(&[78; FUNCTION_WORDS]);
        assert_eq!(snapshot.take(), None, "a change");
        snapshot.confirm(Connection {
            functions: FUNCTIONS_MAX + 1,
            ..CONNECTION
        });
        assert_eq!(snapshot.take(), None, "one is left out");
    }
}
