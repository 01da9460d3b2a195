//! Shared pages in real memory: the one place that says how such a page is accessed.
//!
//! The owners of the memory, the stub's unikernel and dom0's process, only say where it is, which takes `unsafe`.

use super::SharedPage;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
const WORD_SIZE: usize = size_of::<u32>();

/// One page of memory as atomics, in both sizes in which it is accessed.
///
/// Atomics, because another domain writes the page at any moment: such a write can change values, but is no data race
/// by Rust's rules. The two sizes never race with each other within this program, as an `AtomicPage` stays in its thread.
/// What the other domain does is outside of the program.
#[derive(Clone, Copy, Debug)]
pub struct AtomicPage<'a> {
    bytes: &'a [AtomicU8; PAGE_SIZE],
    words: &'a [AtomicU32; PAGE_SIZE / WORD_SIZE],
    /// Neither `Send` nor `Sync`.
    of_one_thread: PhantomData<*const ()>,
}

impl<'a> AtomicPage<'a> {
    /// One page, byte by byte, and the same memory word by word.
    pub const fn new(
        bytes: &'a [AtomicU8; PAGE_SIZE],
        words: &'a [AtomicU32; PAGE_SIZE / WORD_SIZE],
    ) -> Self {
        let of_one_thread = PhantomData;
        Self {
            bytes,
            words,
            of_one_thread,
        }
    }

    /// The aligned word at `offset`, in bytes.
    fn word(self, offset: usize) -> &'a AtomicU32 {
        assert!(offset.is_multiple_of(WORD_SIZE), "word at odd offset {offset}");
        &self.words[offset / WORD_SIZE]
    }
}

/// The owner of a page of memory that another domain writes too. Every owner is a [`SharedPage`].
pub trait PageMemory {
    /// The page, for as long as its owner is borrowed.
    fn atomics(&self) -> AtomicPage<'_>;
}

impl<M: PageMemory> SharedPage for M {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let page = self.atomics();
        let mut at = offset;
        let (words, bytes) = match offset.is_multiple_of(WORD_SIZE) {
            true => into.as_chunks_mut(),
            false => (&mut [][..], into),
        };
        for word in words {
            *word = page.words[at / WORD_SIZE].load(Ordering::Acquire).to_ne_bytes();
            at += WORD_SIZE;
        }
        for byte in bytes {
            *byte = page.bytes[at].load(Ordering::Acquire);
            at += 1;
        }
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let page = self.atomics();
        let mut at = offset;
        let (words, bytes) = match offset.is_multiple_of(WORD_SIZE) {
            true => bytes.as_chunks(),
            false => (&[][..], bytes),
        };
        // Release, so that bytes which say that others count come after those.
        for word in words {
            page.words[at / WORD_SIZE].store(u32::from_ne_bytes(*word), Ordering::Release);
            at += WORD_SIZE;
        }
        for byte in bytes {
            page.bytes[at].store(*byte, Ordering::Release);
            at += 1;
        }
    }

    fn load(&self, offset: usize) -> u32 {
        self.atomics().word(offset).load(Ordering::Acquire)
    }

    fn store(&self, offset: usize, value: u32) {
        self.atomics().word(offset).store(value, Ordering::Release);
    }

    // Locked, because the other side changes other bits of the same word. AcqRel: what was read or written before stays
    // before, and the value that is returned orders what follows.
    fn set_bits(&self, offset: usize, bits: u32) -> u32 {
        self.atomics().word(offset).fetch_or(bits, Ordering::AcqRel)
    }

    fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
        self.atomics().word(offset).fetch_and(!bits, Ordering::AcqRel)
    }
}
