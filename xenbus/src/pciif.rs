//! The page that a PCI frontend shares with its backend (`xen/include/public/io/pciif.h`).
//!
//! The same protocol runs on both hops: guest to stub, and stub to dom0's service.

/// Memory that another domain writes at the same time.
///
/// Every access is a copy: nothing in the page can be borrowed, so nothing can
/// change between a check and its use (XSA-155). Implementors do volatile
/// accesses; the `u32` calls are single, naturally aligned and atomic, with the
/// ordering named.
///
/// # Panics
/// Implementors may panic when a range does not lie in the 4 KiB page: the
/// offsets are this crate's constants, never the peer's.
pub trait SharedPage {
    /// Copies `into.len()` bytes out of the page, each byte read once.
    fn copy_out(&self, offset: usize, into: &mut [u8]);
    /// Copies `bytes` into the page.
    fn copy_in(&self, offset: usize, bytes: &[u8]);
    /// Reads a word (acquire).
    fn load(&self, offset: usize) -> u32;
    /// Writes a word (release).
    fn store(&self, offset: usize, value: u32);
    /// Sets bits by a locked read-modify-write (release); returns the word before.
    fn set_bits(&self, offset: usize, bits: u32) -> u32;
    /// Clears bits by a locked read-modify-write (release); returns the word before.
    fn clear_bits(&self, offset: usize, bits: u32) -> u32;
}
