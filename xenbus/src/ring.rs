//! Byte rings in a shared page: the console and the xenstore connection of a guest.
//!
//! A ring has two free-running indices, each written by one side only. Their difference is the number of bytes in the ring
//! (`xen/include/public/io/console.h` and `xs_wire.h`).

use crate::pciif::SharedPage;
use crate::wire::Header;
use core::sync::atomic::{AtomicU32, Ordering};

/// One direction of a byte ring: the offsets of its parts in the page.
#[derive(Clone, Copy, Debug)]
pub struct ByteRing {
    /// Offset of the bytes.
    pub data: usize,
    /// Number of bytes, a power of two.
    pub size: u32,
    /// Offset of the reader's index.
    pub consumer: usize,
    /// Offset of the writer's index.
    pub producer: usize,
}

/// The console's output ring, guest to dom0.
pub const CONSOLE_OUTPUT: ByteRing = ByteRing {
    data: 1024,
    size: 2048,
    consumer: 3080,
    producer: 3084,
};
/// xenstore requests, guest to xenstored.
pub const STORE_REQUESTS: ByteRing = ByteRing {
    data: 0,
    size: 1024,
    consumer: 2048,
    producer: 2052,
};
/// xenstore replies and watch events, xenstored to guest.
pub const STORE_REPLIES: ByteRing = ByteRing {
    data: 1024,
    size: 1024,
    consumer: 2056,
    producer: 2060,
};

/// The indices contradict each other: the ring claims to hold more than fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

impl core::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the ring's indices contradict each other: the other end is broken")
    }
}

impl core::error::Error for Corrupt {}

impl ByteRing {
    /// Number of bytes that wait to be read, at most [`Self::size`].
    ///
    /// # Errors
    /// [`Corrupt`] if the indices are further apart than the ring is long.
    pub fn held(&self, page: &impl SharedPage) -> Result<u32, Corrupt> {
        // Both wrap at 32 bits. The other side may write anything into its own index.
        let held = page.load(self.producer).wrapping_sub(page.load(self.consumer));
        if held <= self.size { Ok(held) } else { Err(Corrupt) }
    }

    /// Appends as much of `bytes` as there is room for; returns how much that was.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub fn push(&self, page: &impl SharedPage, bytes: &[u8]) -> Result<usize, Corrupt> {
        let room = (self.size - self.held(page)?) as usize;
        let taken = &bytes[..room.min(bytes.len())];
        let producer = page.load(self.producer);
        let (first, second) = self.split(producer, taken.len());
        page.copy_in(self.position(producer), &taken[..first]);
        page.copy_in(self.data, &taken[first..first + second]);
        // After the bytes, with release: the reader takes what the index covers.
        page.store(self.producer, producer.wrapping_add(taken.len() as u32));
        Ok(taken.len())
    }

    /// Takes at most `into.len()` bytes off; returns how many.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub fn pop(&self, page: &impl SharedPage, into: &mut [u8]) -> Result<usize, Corrupt> {
        let count = self.peek(page, into)?;
        self.drop_bytes(page, count);
        Ok(count)
    }

    /// As [`Self::pop`], for a ring of xenstore's messages. `next` is the index at which the next message begins. It is
    /// written before the first byte of a message is taken: a reader that is cut off anywhere in here leaves behind where
    /// the message under way ends, for [`Self::skip`].
    ///
    /// Takes nothing while only a part of a header is there, and never bytes of two messages at once.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub fn pop_message(
        &self,
        page: &impl SharedPage,
        next: &AtomicU32,
        into: &mut [u8],
    ) -> Result<usize, Corrupt> {
        let consumer = page.load(self.consumer);
        if next.load(Ordering::Relaxed) == consumer {
            let mut header = [0; Header::SIZE];
            if self.peek(page, &mut header)? < Header::SIZE {
                return Ok(0);
            }
            // Not checked: the client refuses a wrong length when it has the header.
            let size = Header::decode(&header).length.wrapping_add(Header::SIZE as u32);
            next.store(consumer.wrapping_add(size), Ordering::Relaxed);
        }
        let left = next.load(Ordering::Relaxed).wrapping_sub(consumer) as usize;
        let count = left.min(into.len());
        self.pop(page, &mut into[..count])
    }

    /// Drops what is there of the message that [`Self::pop_message`] was cut off in; true once that is all of it.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub fn skip(&self, page: &impl SharedPage, next: &AtomicU32) -> Result<bool, Corrupt> {
        let left = next
            .load(Ordering::Relaxed)
            .wrapping_sub(page.load(self.consumer));
        // The rest may still have to come: a message can be longer than the ring.
        let count = self.held(page)?.min(left);
        self.drop_bytes(page, count as usize);
        Ok(count == left)
    }

    /// Copies at most `into.len()` bytes and leaves them in the ring; returns how many.
    fn peek(&self, page: &impl SharedPage, into: &mut [u8]) -> Result<usize, Corrupt> {
        let count = (self.held(page)? as usize).min(into.len());
        let consumer = page.load(self.consumer);
        let (first, second) = self.split(consumer, count);
        page.copy_out(self.position(consumer), &mut into[..first]);
        page.copy_out(self.data, &mut into[first..first + second]);
        Ok(count)
    }

    fn drop_bytes(&self, page: &impl SharedPage, count: usize) {
        let consumer = page.load(self.consumer);
        page.store(self.consumer, consumer.wrapping_add(count as u32));
    }

    /// Offset in the page of the byte that index `index` stands for.
    fn position(&self, index: u32) -> usize {
        self.data + (index & (self.size - 1)) as usize
    }

    /// Splits `count` bytes from `index` on into those before the ring's end and those after.
    fn split(&self, index: u32, count: usize) -> (usize, usize) {
        let first = count.min((self.size - (index & (self.size - 1))) as usize);
        (first, count - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Page;
    use alloc::vec;

    #[test]
    fn bytes_come_out_as_they_went_in_across_both_wraps() {
        let page = Page::new();
        let ring = CONSOLE_OUTPUT;
        // Indices close to their own wrap, which is also in the middle of the ring.
        for index in [ring.consumer, ring.producer] {
            page.store(index, u32::MAX - 700);
        }
        let sent: vec::Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
        assert_eq!(ring.push(&page, &sent), Ok(2000));
        let mut received = vec![0; 2000];
        assert_eq!(ring.pop(&page, &mut received), Ok(2000));
        assert_eq!(received, sent);
        assert_eq!(ring.pop(&page, &mut received), Ok(0));
    }

    #[test]
    fn a_full_ring_takes_what_fits() {
        let page = Page::new();
        assert_eq!(STORE_REQUESTS.push(&page, &[7; 1500]), Ok(1024));
        assert_eq!(STORE_REQUESTS.push(&page, &[7; 1]), Ok(0));
        assert_eq!(STORE_REQUESTS.held(&page), Ok(1024));
    }

    /// Three messages, of 0, 5 and 40 bytes of payload.
    fn messages() -> vec::Vec<u8> {
        let message = |length: u32| {
            let header = Header {
                kind: 15,
                request: length,
                transaction: 0,
                length,
            };
            [&header.encode()[..], &vec![length as u8; length as usize]].concat()
        };
        [message(0), message(5), message(40)].concat()
    }

    #[test]
    fn a_reader_of_messages_that_is_cut_off_leaves_word_of_where_the_next_one_begins() {
        let sent = messages();
        let ends = [16, 16 + 21, 16 + 21 + 56];
        for taken in 0..=sent.len() {
            let (page, next) = (Page::new(), AtomicU32::new(u32::MAX - 20));
            for index in [STORE_REPLIES.consumer, STORE_REPLIES.producer] {
                page.store(index, u32::MAX - 20);
            }
            let mut received = vec![0; taken];
            let mut done = 0;
            // Byte by byte for what was sent last, as it comes when the ring was full.
            STORE_REPLIES.push(&page, &sent[..60]).unwrap();
            for byte in &sent[60..] {
                while done < taken {
                    match STORE_REPLIES.pop_message(&page, &next, &mut received[done..]) {
                        Ok(0) => break,
                        count => done += count.unwrap(),
                    }
                }
                STORE_REPLIES.push(&page, &[*byte]).unwrap();
            }
            while done < taken {
                done += STORE_REPLIES
                    .pop_message(&page, &next, &mut received[done..])
                    .unwrap()
                    .max(1);
            }
            assert_eq!(received, sent[..taken]);
            assert_eq!(STORE_REPLIES.skip(&page, &next), Ok(true), "{taken}");
            let left = STORE_REPLIES.held(&page).unwrap() as usize;
            let boundary = ends.into_iter().find(|&end| end >= taken).filter(|_| taken > 0);
            assert_eq!(left, sent.len() - boundary.unwrap_or(0), "{taken} bytes taken");
        }
    }

    #[test]
    fn what_is_left_of_a_message_may_still_have_to_come() {
        let (page, next) = (Page::new(), AtomicU32::new(0));
        let sent = messages();
        STORE_REPLIES.push(&page, &sent[16..16 + 18]).unwrap();
        STORE_REPLIES.pop_message(&page, &next, &mut [0; 16]).unwrap();
        assert_eq!(STORE_REPLIES.skip(&page, &next), Ok(false));
        STORE_REPLIES.push(&page, &sent[16 + 18..]).unwrap();
        assert_eq!(STORE_REPLIES.skip(&page, &next), Ok(true));
        assert_eq!(STORE_REPLIES.held(&page), Ok(56));
    }

    #[test]
    fn of_a_header_that_is_not_there_as_a_whole_nothing_is_taken() {
        let (page, next) = (Page::new(), AtomicU32::new(0));
        let sent = messages();
        STORE_REPLIES.push(&page, &sent[..15]).unwrap();
        assert_eq!(STORE_REPLIES.pop_message(&page, &next, &mut [0; 64]), Ok(0));
        assert_eq!(
            (STORE_REPLIES.held(&page), next.load(Ordering::Relaxed)),
            (Ok(15), 0)
        );
        STORE_REPLIES.push(&page, &sent[15..16]).unwrap();
        assert_eq!(STORE_REPLIES.pop_message(&page, &next, &mut [0; 64]), Ok(16));
    }

    #[test]
    fn indices_that_contradict_each_other_are_refused() {
        let page = Page::new();
        page.store(STORE_REPLIES.producer, 1025);
        assert_eq!(STORE_REPLIES.pop(&page, &mut [0; 8]), Err(Corrupt));
        assert_eq!(STORE_REPLIES.push(&page, &[0; 8]), Err(Corrupt));
    }
}
