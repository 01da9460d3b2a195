//! The log lines that wait to be sent. They lie in kept memory, so that the lines of a run that has failed are sent by the
//! next one.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use core::time::Duration;
use log::Level;

/// Most bytes of a line.
pub const LINE_MAX: usize = 240;

/// Length of the text, level, time since boot in microseconds.
const HEADER: usize = 2 + 1 + 8;

/// A line that was taken out of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the line, from 1 on. A line that was lost has a number too.
    pub number: u32,
    /// Its level.
    pub level: Level,
    /// When it was logged, since boot.
    pub uptime: Duration,
    text: [u8; LINE_MAX],
    length: usize,
}

impl Line {
    /// A line of this run that never was in the ring.
    pub fn new(number: u32, level: Level, uptime: Duration, text: &[u8]) -> Self {
        let length = text.len().min(LINE_MAX);
        let mut line = Self {
            number,
            level,
            uptime,
            text: [0; LINE_MAX],
            length,
        };
        line.text[..length].copy_from_slice(&text[..length]);
        line
    }

    /// What was logged.
    pub fn text(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

/// Log lines, oldest first. A line that finds no room displaces the oldest ones.
///
/// Zero memory is an empty ring. The indices run freely; an index is stored after the bytes that it covers, so that a run
/// that ends at any moment leaves whole lines. One thread uses a ring: the atomics only make a static of it sound.
#[derive(Debug)]
pub struct LineRing<const SIZE: usize> {
    bytes: [AtomicU8; SIZE],
    /// Behind the newest line.
    head: AtomicU32,
    /// At the oldest line.
    tail: AtomicU32,
    /// Number of lines that have left the ring, sent or displaced.
    left: AtomicU32,
    /// Number of lines that newer ones have displaced.
    displaced: AtomicU32,
}

impl<const SIZE: usize> Default for LineRing<SIZE> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const SIZE: usize> LineRing<SIZE> {
    /// An empty ring.
    pub const fn new() -> Self {
        // A power of two, because the indices wrap at 32 bits.
        assert!(SIZE.is_power_of_two() && SIZE > HEADER + LINE_MAX);
        Self {
            bytes: [const { AtomicU8::new(0) }; SIZE],
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            left: AtomicU32::new(0),
            displaced: AtomicU32::new(0),
        }
    }

    /// Checks what earlier runs have left. If it is not a row of lines, the ring is emptied; false then.
    pub fn open(&self) -> bool {
        let (head, mut tail) = (self.load(&self.head), self.load(&self.tail));
        while tail != head {
            let held = head.wrapping_sub(tail) as usize;
            let sound = held <= SIZE && self.line_at(tail, held).is_some();
            if !sound {
                self.tail.store(head, Ordering::Release);
                return false;
            }
            tail = tail.wrapping_add(self.size_at(tail) as u32);
        }
        true
    }

    /// Appends a line of [`LINE_MAX`] bytes at most; the rest of a longer one is cut off.
    pub fn push(&self, level: Level, uptime: Duration, text: &[u8]) {
        let text = &text[..text.len().min(LINE_MAX)];
        let head = self.load(&self.head);
        // Nobody has looked at memory of an earlier run when the first line of a run is logged.
        if head.wrapping_sub(self.load(&self.tail)) as usize > SIZE {
            self.tail.store(head, Ordering::Release);
        }
        while SIZE - (head.wrapping_sub(self.load(&self.tail)) as usize).min(SIZE) < HEADER + text.len() {
            self.pop();
            self.displaced.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(uptime.as_micros()).unwrap_or(u64::MAX);
        let length = (text.len() as u16).to_le_bytes();
        let mut offset = 0;
        for part in [&length[..], &[level as u8], &micros.to_le_bytes(), text] {
            for &byte in part {
                self.byte(head, offset).store(byte, Ordering::Relaxed);
                offset += 1;
            }
        }
        let end = head.wrapping_add((HEADER + text.len()) as u32);
        self.head.store(end, Ordering::Release);
    }

    /// Number of lines that newer ones have displaced before they were sent.
    pub fn displaced(&self) -> u32 {
        self.load(&self.displaced)
    }

    /// A number that changes with each line that is appended.
    pub fn newest(&self) -> u32 {
        self.load(&self.head)
    }

    /// A copy of the oldest line.
    pub fn oldest(&self) -> Option<Line> {
        let tail = self.load(&self.tail);
        let held = self.load(&self.head).wrapping_sub(tail) as usize;
        self.line_at(tail, held)
    }

    /// Removes the oldest line.
    pub fn pop(&self) {
        let (head, tail) = (self.load(&self.head), self.load(&self.tail));
        if head == tail {
            return;
        }
        // Never past the newest line, whatever the length says.
        let size = (self.size_at(tail) as u32).min(head.wrapping_sub(tail));
        self.left
            .store(self.load(&self.left).wrapping_add(1), Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(size), Ordering::Release);
    }

    fn load(&self, index: &AtomicU32) -> u32 {
        index.load(Ordering::Acquire)
    }

    fn byte(&self, index: u32, offset: usize) -> &AtomicU8 {
        &self.bytes[(index as usize + offset) % SIZE]
    }

    fn copy_out(&self, index: u32, offset: usize, into: &mut [u8]) {
        for (position, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(index, offset + position).load(Ordering::Relaxed);
        }
    }

    /// Bytes of the line at this index, with its header.
    fn size_at(&self, index: u32) -> usize {
        let mut length = [0; 2];
        self.copy_out(index, 0, &mut length);
        HEADER + usize::from(u16::from_le_bytes(length))
    }

    /// The line at this index, if it lies within `held` bytes and has a level.
    fn line_at(&self, index: u32, held: usize) -> Option<Line> {
        let size = self.size_at(index);
        if held < size || size > HEADER + LINE_MAX {
            return None;
        }
        let level = self.byte(index, 2).load(Ordering::Relaxed);
        let mut micros = [0; 8];
        self.copy_out(index, 3, &mut micros);
        let mut line = Line {
            number: self.load(&self.left).wrapping_add(1),
            level: Level::iter().find(|known| *known as u8 == level)?,
            uptime: Duration::from_micros(u64::from_le_bytes(micros)),
            text: [0; LINE_MAX],
            length: size - HEADER,
        };
        self.copy_out(index, HEADER, &mut line.text[..size - HEADER]);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn drain<const SIZE: usize>(ring: &LineRing<SIZE>) -> Vec<(u32, String)> {
        core::iter::from_fn(|| {
            let line = ring.oldest()?;
            ring.pop();
            Some((line.number, String::from_utf8(line.text().to_vec()).unwrap()))
        })
        .collect()
    }

    #[test]
    fn lines_come_out_in_order_with_level_and_time() {
        let ring = LineRing::<512>::new();
        ring.push(Level::Warn, Duration::from_micros(1_234_567), b"one");
        ring.push(Level::Info, at(2), b"");
        let line = ring.oldest().unwrap();
        assert_eq!(
            (line.number, line.level, line.uptime, line.text()),
            (1, Level::Warn, Duration::from_micros(1_234_567), &b"one"[..])
        );
        assert_eq!(drain(&ring), [(1, "one".into()), (2, "".into())]);
        assert_eq!(ring.oldest(), None);
        ring.pop();
        ring.push(Level::Error, at(3), b"three");
        assert_eq!(drain(&ring), [(3, "three".into())]);
    }

    #[test]
    fn a_full_ring_loses_its_oldest_lines_and_their_numbers_tell_how_many() {
        let ring = LineRing::<512>::new();
        for number in 0..1000 {
            ring.push(Level::Info, at(number), format!("line {number}").as_bytes());
        }
        let lines = drain(&ring);
        assert!(lines.len() >= 512 / 20 - 1, "{}", lines.len());
        assert_eq!(lines.len() as u32 + ring.displaced(), 1000);
        assert_eq!(lines.last(), Some(&(1000, "line 999".into())));
        for (number, text) in lines {
            assert_eq!(text, format!("line {}", number - 1));
        }
    }

    #[test]
    fn the_longest_line_is_cut() {
        let ring = LineRing::<512>::new();
        ring.push(Level::Info, at(1), &[b'x'; 4000]);
        assert_eq!(ring.oldest().unwrap().text(), [b'x'; LINE_MAX]);
    }

    #[test]
    fn lines_stay_over_a_restart_also_where_the_indices_wrap() {
        for start in [0, u32::MAX - 100, u32::MAX - 1] {
            let ring = LineRing::<512>::new();
            ring.head.store(start, Ordering::Relaxed);
            ring.tail.store(start, Ordering::Relaxed);
            for number in 0..20 {
                ring.push(Level::Debug, at(number), format!("line {number}").as_bytes());
            }
            assert!(ring.open());
            assert_eq!(drain(&ring).len(), 20);
        }
    }

    #[test]
    fn memory_that_holds_no_lines_is_emptied() {
        for (place, value) in [(0, 0xff), (1, 0xff), (2, 0), (2, 6)] {
            let ring = LineRing::<512>::new();
            ring.push(Level::Info, at(1), b"one");
            ring.bytes[place].store(value, Ordering::Relaxed);
            assert!(!ring.open(), "byte {place}");
            assert_eq!(ring.oldest(), None);
            ring.push(Level::Info, at(1), b"two");
            assert!(ring.open());
        }
        let ring = LineRing::<512>::new();
        ring.head.store(70_000, Ordering::Relaxed);
        assert!(!ring.open(), "more than fits");
    }

    #[test]
    fn a_run_that_ends_between_bytes_and_index_leaves_the_lines_before() {
        let ring = LineRing::<512>::new();
        ring.push(Level::Info, at(1), b"one");
        let head = ring.head.load(Ordering::Relaxed);
        ring.push(Level::Info, at(2), b"two");
        ring.head.store(head, Ordering::Relaxed);
        assert!(ring.open());
        assert_eq!(drain(&ring), [(1, "one".into())]);
    }
}
