//! A shared page in memory.

use crate::pciif::SharedPage;
use crate::pciif::page::PAGE_SIZE;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt;

/// A zeroed page. Clones are the same page, as two domains see it.
#[derive(Clone)]
pub struct Page(Rc<RefCell<Box<[u8; PAGE_SIZE]>>>);

impl Page {
    /// A zeroed page.
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(Box::new([0; PAGE_SIZE]))))
    }

    fn replace(&self, offset: usize, change: impl FnOnce(u32) -> u32) -> u32 {
        assert!(offset.is_multiple_of(4), "unaligned word at {offset}");
        let mut page = self.0.borrow_mut();
        let word = page[offset..].first_chunk_mut().expect("a word in the page");
        let before = u32::from_le_bytes(*word);
        *word = change(before).to_le_bytes();
        before
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl SharedPage for Page {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.borrow()[offset..offset + into.len()]);
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.0.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn load(&self, offset: usize) -> u32 {
        self.replace(offset, |word| word)
    }

    fn store(&self, offset: usize, value: u32) {
        self.replace(offset, |_| value);
    }

    fn set_bits(&self, offset: usize, bits: u32) -> u32 {
        self.replace(offset, |word| word | bits)
    }

    fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
        self.replace(offset, |word| word & !bits)
    }
}
