//! The shared page from both sides, and with a frontend that writes whenever it hurts most.

use pci::bdf::Bdf;
use proptest::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use xenbus::model::Page;
use xenbus::pciif::backend::{self, Delivery, Success};
use xenbus::pciif::frontend::{self, PostError};
use xenbus::pciif::{
    ACTIVE, AER_HANDLER, Command, MAX_VECTORS, MsixEntry, OpError, Request, SharedPage, TooManyVectors,
    layout,
};

const FUNCTION: Bdf = Bdf::from_devfn(0, 0, 0x08);

/// One access to a page.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    Read(Range<usize>),
    Write(Range<usize>),
    Load(usize),
    Modify(usize),
}

/// A page whose other side acts after each read, and which remembers every access.
struct Watched<F> {
    page: Page,
    after_read: F,
    accesses: RefCell<Vec<Access>>,
}

impl<F: Fn(&Page, Range<usize>)> Watched<F> {
    fn new(page: &Page, after_read: F) -> Self {
        Self {
            page: page.clone(),
            after_read,
            accesses: RefCell::default(),
        }
    }

    fn note(&self, access: Access) {
        self.accesses.borrow_mut().push(access);
    }

    fn reads(&self) -> Vec<Range<usize>> {
        let accesses = self.accesses.borrow();
        let reads = accesses.iter().filter_map(|access| match access {
            Access::Read(range) => Some(range.clone()),
            _ => None,
        });
        reads.collect()
    }
}

impl<F: Fn(&Page, Range<usize>)> SharedPage for Watched<F> {
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let range = offset..offset + into.len();
        self.page.copy_out(offset, into);
        (self.after_read)(&self.page, range.clone());
        self.note(Access::Read(range));
    }

    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.note(Access::Write(offset..offset + bytes.len()));
        self.page.copy_in(offset, bytes);
    }

    fn load(&self, offset: usize) -> u32 {
        self.note(Access::Load(offset));
        self.page.load(offset)
    }

    fn store(&self, offset: usize, value: u32) {
        self.note(Access::Modify(offset));
        self.page.store(offset, value);
    }

    fn set_bits(&self, offset: usize, bits: u32) -> u32 {
        self.note(Access::Modify(offset));
        self.page.set_bits(offset, bits)
    }

    fn clear_bits(&self, offset: usize, bits: u32) -> u32 {
        self.note(Access::Modify(offset));
        self.page.clear_bits(offset, bits)
    }
}

fn quiet(_: &Page, _: Range<usize>) {}

fn contents(page: &Page) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    page.copy_out(0, &mut bytes);
    bytes
}

/// Offsets at which two states of a page differ.
fn differences(before: &[u8], after: &[u8]) -> Vec<usize> {
    (0..4096)
        .filter(|&offset| before[offset] != after[offset])
        .collect()
}

/// A page full of a pattern, so that every byte written shows.
fn patterned() -> Page {
    let page = Page::new();
    page.copy_in(0, &[0xa5; 4096]);
    page.store(layout::FLAGS, AER_HANDLER);
    page
}

fn msix_entries(count: u16) -> Vec<MsixEntry> {
    (0..count)
        .map(|index| MsixEntry {
            vector: 0xa5a5,
            entry: 1000 + index,
        })
        .collect()
}

fn enable_msix() -> Request {
    Request::new(Command::EnableMsix, FUNCTION)
}

mod backend_takes {
    use super::*;

    #[test]
    fn nothing_while_nothing_is_asked() {
        let page = Watched::new(&Page::new(), quiet);
        assert!(!backend::is_pending(&page));
        assert!(backend::take(&page).is_none());
        page.set_bits(layout::FLAGS, AER_HANDLER);
        assert!(backend::take(&page).is_none());
        assert_eq!(page.reads(), []);
    }

    #[test]
    fn what_the_frontend_posted() {
        for request in [
            Request::conf_read(FUNCTION, 0x10, 4),
            Request::conf_write(FUNCTION, 0xfff, 1, 0xff),
            Request::new(Command::DisableMsi, FUNCTION),
            Request {
                offset: -4,
                size: i32::MIN,
                ..Request::new(Command::Other(77), FUNCTION)
            },
        ] {
            let page = Page::new();
            let _posted = frontend::post(&page, &request, &[]).unwrap();
            let taken = backend::take(&page).unwrap();
            assert_eq!(taken.request(), &request);
            assert_eq!(taken.entries(), Ok(&[][..]));
        }
    }

    #[test]
    fn as_many_entries_as_the_request_says() {
        for count in [0, 1, 3, 128] {
            let page = patterned();
            let entries = msix_entries(count);
            let _posted = frontend::post(&page, &enable_msix(), &entries).unwrap();
            let page = Watched::new(&page, quiet);
            let taken = backend::take(&page).unwrap();
            assert_eq!(taken.entries(), Ok(&entries[..]));
            let ranges = [4..40, 40..40 + 4 * usize::from(count)].into_iter();
            let read: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
            assert_eq!(page.reads(), read);
        }
    }

    #[test]
    fn no_entries_when_too_many_are_asked_for() {
        for count in [129, 0x8000_0000, u32::MAX] {
            let page = Page::new();
            let _posted = frontend::post(&page, &enable_msix(), &[]).unwrap();
            page.copy_in(layout::OP_VALUE, &count.to_le_bytes());
            let page = Watched::new(&page, quiet);
            let taken = backend::take(&page).unwrap();
            assert_eq!(taken.entries(), Err(TooManyVectors(count)));
            assert!(
                page.reads().iter().all(|range| range.end <= layout::OP_ENTRIES),
                "{:?}",
                page.reads()
            );
            assert_eq!(taken.answer(&page, Err(OpError::EINVAL)), Delivery::Delivered);
        }
    }

    /// XSA-155: the peer changes each byte as soon as it was read.
    #[test]
    fn each_byte_once_whatever_the_peer_writes_meanwhile() {
        let page = Page::new();
        let entries = msix_entries(2);
        let _posted = frontend::post(&page, &enable_msix(), &entries).unwrap();
        let page = Watched::new(&page, |page, range| {
            let mut bytes = vec![0; range.len()];
            page.copy_out(range.start, &mut bytes);
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            page.copy_in(range.start, &bytes);
        });

        let taken = backend::take(&page).unwrap();
        assert_eq!(
            taken.request(),
            &Request {
                value: 2,
                ..enable_msix()
            }
        );
        assert_eq!(taken.entries(), Ok(&entries[..]));
        let mut reads = page.reads();
        reads.sort_by_key(|range| range.start);
        assert!(
            reads.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "{reads:?}"
        );
    }
}

mod backend_answers {
    use super::*;

    #[test]
    fn with_err_and_value_and_nothing_else() {
        let page = patterned();
        let posted = frontend::post(&page, &Request::conf_read(FUNCTION, 0, 4), &[]).unwrap();
        let taken = backend::take(&page).unwrap();
        let before = contents(&page);
        assert_eq!(
            taken.answer(&page, Ok(Success::Value(0x10d3_8086))),
            Delivery::Delivered
        );
        assert_eq!(differences(&before, &contents(&page)), [0, 32, 33, 34, 35]);
        assert_eq!(page.load(layout::FLAGS), AER_HANDLER, "the other flags stay");
        let answer = posted.poll(&page).unwrap().unwrap();
        assert_eq!((answer.value, answer.vectors), (0x10d3_8086, vec![]));
    }

    #[test]
    fn with_the_vectors_asked_for_and_no_entry_number() {
        let page = patterned();
        let posted = frontend::post(&page, &enable_msix(), &msix_entries(3)).unwrap();
        let taken = backend::take(&page).unwrap();
        let before = contents(&page);
        assert_eq!(
            taken.answer(&page, Ok(Success::Vectors(&[55, 54, 53]))),
            Delivery::Delivered
        );
        // Flags, err is 0 as before, value is 0 (Linux wants that), three vectors.
        assert_eq!(
            differences(&before, &contents(&page)),
            [0, 32, 40, 41, 44, 45, 48, 49]
        );
        let answer = posted.poll(&page).unwrap().unwrap();
        assert_eq!((answer.value, answer.vectors), (0, vec![55, 54, 53]));
    }

    #[test]
    fn with_an_error_and_no_vectors() {
        let page = patterned();
        let posted = frontend::post(&page, &enable_msix(), &msix_entries(3)).unwrap();
        let taken = backend::take(&page).unwrap();
        let before = contents(&page);
        assert_eq!(taken.answer(&page, Err(OpError::EALREADY)), Delivery::Delivered);
        assert_eq!(differences(&before, &contents(&page)), [0, 8, 9, 10, 11, 32]);
        assert_eq!(posted.poll(&page).unwrap(), Err(OpError::EALREADY));
    }

    #[test]
    fn with_a_failure_when_its_own_vectors_do_not_fit() {
        for (request, asked) in [
            (enable_msix(), 3),
            (enable_msix(), 0),
            (Request::new(Command::EnableMsi, FUNCTION), 3),
        ] {
            let page = patterned();
            let posted = frontend::post(&page, &request, &msix_entries(asked)).unwrap();
            let taken = backend::take(&page).unwrap();
            let entries_before = contents(&page)[layout::OP_ENTRIES..].to_vec();
            assert_eq!(
                taken.answer(&page, Ok(Success::Vectors(&[55, 54]))),
                Delivery::Delivered
            );
            assert_eq!(posted.poll(&page).unwrap(), Err(OpError::OpFailed));
            assert_eq!(contents(&page)[layout::OP_ENTRIES..], entries_before);
        }
    }

    #[test]
    fn before_it_gives_the_page_back() {
        let page = Page::new();
        let _posted = frontend::post(&page, &enable_msix(), &msix_entries(1)).unwrap();
        let taken = backend::take(&page).unwrap();
        let page = Watched::new(&page, quiet);
        assert_eq!(
            taken.answer(&page, Ok(Success::Vectors(&[55]))),
            Delivery::Delivered
        );
        let accesses = page.accesses.borrow();
        assert_eq!(accesses.last(), Some(&Access::Modify(layout::FLAGS)));
        assert_eq!(
            accesses
                .iter()
                .filter(|access| matches!(access, Access::Modify(_)))
                .count(),
            1
        );
    }

    #[test]
    fn nothing_to_a_frontend_that_gave_up() {
        let page = patterned();
        let posted = frontend::post(&page, &Request::conf_read(FUNCTION, 0, 4), &[]).unwrap();
        let taken = backend::take(&page).unwrap();
        assert!(posted.withdraw(&page).is_none());
        let before = contents(&page);
        assert_eq!(taken.answer(&page, Ok(Success::Value(1))), Delivery::Late);
        assert_eq!(contents(&page), before);
    }

    #[test]
    fn nothing_to_a_frontend_that_asks_something_else_by_now() {
        let page = patterned();
        let posted = frontend::post(&page, &Request::conf_write(FUNCTION, 4, 2, 6), &[]).unwrap();
        let taken = backend::take(&page).unwrap();
        assert!(posted.withdraw(&page).is_none());
        let next = Request::conf_read(FUNCTION, 0, 4);
        let posted = frontend::post(&page, &next, &[]).unwrap();
        assert_eq!(taken.answer(&page, Ok(Success::Value(0))), Delivery::Late);

        let taken = backend::take(&page).expect("the next request is still there");
        assert_eq!(taken.request(), &next);
        assert_eq!(taken.answer(&page, Ok(Success::Value(7))), Delivery::Delivered);
        assert_eq!(posted.poll(&page).unwrap().unwrap().value, 7);
    }
}

mod frontend_posts {
    use super::*;

    #[test]
    fn the_request_before_the_flag() {
        let page = Watched::new(&Page::new(), quiet);
        let _posted = frontend::post(&page, &enable_msix(), &msix_entries(2)).unwrap();
        assert_eq!(
            *page.accesses.borrow(),
            [
                Access::Load(layout::FLAGS),
                Access::Write(40..48),
                Access::Write(4..40),
                Access::Modify(layout::FLAGS),
            ]
        );
    }

    #[test]
    fn one_request_at_a_time() {
        let page = Page::new();
        let request = Request::conf_read(FUNCTION, 0, 4);
        let posted = frontend::post(&page, &request, &[]).unwrap();
        let before = contents(&page);
        assert_eq!(
            frontend::post(&page, &enable_msix(), &[]).unwrap_err(),
            PostError::Busy
        );
        assert_eq!(contents(&page), before);
        assert!(posted.withdraw(&page).is_none());
        assert!(frontend::post(&page, &request, &[]).is_ok());
    }

    #[test]
    fn no_more_vectors_than_fit() {
        let page = Page::new();
        let error = frontend::post(&page, &enable_msix(), &msix_entries(129)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "129 MSI-X vectors in one request, at most 128 fit"
        );
        assert_eq!(contents(&page), contents(&Page::new()));
    }

    #[test]
    fn and_waits_until_the_flag_is_cleared() {
        let page = Page::new();
        let posted = frontend::post(&page, &Request::conf_read(FUNCTION, 0, 4), &[]).unwrap();
        let posted = posted.poll(&page).unwrap_err();
        let taken = backend::take(&page).unwrap();
        let posted = posted.poll(&page).unwrap_err();
        assert_eq!(
            taken.answer(&page, Err(OpError::AccessDenied)),
            Delivery::Delivered
        );
        assert_eq!(posted.poll(&page).unwrap(), Err(OpError::AccessDenied));
    }

    #[test]
    fn and_takes_an_answer_that_came_while_it_gave_up() {
        let page = Page::new();
        let posted = frontend::post(&page, &Request::conf_read(FUNCTION, 0, 4), &[]).unwrap();
        let taken = backend::take(&page).unwrap();
        assert_eq!(taken.answer(&page, Ok(Success::Value(9))), Delivery::Delivered);
        assert_eq!(posted.withdraw(&page).unwrap().unwrap().value, 9);
    }
}

#[test]
fn every_number_of_a_command_or_error_is_kept() {
    for raw in (0..20).chain([u32::MAX]) {
        assert_eq!(Command::from_raw(raw).raw(), raw);
    }
    assert_eq!(Command::from_raw(5), Command::DisableMsix);
    assert_eq!(
        Command::from_raw(6),
        Command::Other(6),
        "AER notices are no requests of a frontend"
    );

    assert_eq!(OpError::from_raw(0), None);
    for raw in (-130..0).chain([1, i32::MIN, i32::MAX]) {
        assert_eq!(OpError::from_raw(raw).map(OpError::raw), Some(raw));
    }
    assert_eq!(OpError::from_raw(-5), Some(OpError::OpFailed));
}

#[test]
fn a_function_is_named_only_if_its_numbers_are_in_range() {
    let request = Request::conf_read(Bdf::from_devfn(1, 2, 0xff), 0, 4);
    assert_eq!(request.function(), Some(Bdf::from_devfn(1, 2, 0xff)));
    for beyond in [
        Request {
            domain: 0x1_0000,
            ..request
        },
        Request {
            bus: 0x100,
            ..request
        },
        Request {
            devfn: 0x100,
            ..request
        },
    ] {
        assert_eq!(beyond.function(), None, "{beyond}");
    }
}

#[test]
fn a_request_is_logged_in_one_short_line() {
    for (request, text) in [
        (
            Request::conf_read(FUNCTION, 0x10, 4),
            "conf_read 0000:00:01.0 offset 0x10 size 4",
        ),
        (
            Request::conf_write(FUNCTION, 4, 2, 6),
            "conf_write 0000:00:01.0 offset 0x4 size 2 value 0x6",
        ),
        (
            Request {
                value: 3,
                ..enable_msix()
            },
            "enable_msix 0000:00:01.0 with 3 vectors",
        ),
        (
            Request {
                bus: 0x100,
                ..Request::new(Command::Other(9), FUNCTION)
            },
            "command 9 0:100:devfn 8",
        ),
    ] {
        assert_eq!(request.to_string(), text);
    }
}

proptest! {
    #[test]
    fn any_page_is_taken_and_answered_without_harm(bytes in prop::collection::vec(any::<u8>(), 572), command in 0..8u32, count in 0..200u32, err in any::<i32>()) {
        let page = Page::new();
        page.copy_in(0, &bytes);
        page.set_bits(layout::FLAGS, ACTIVE);
        page.copy_in(layout::OP, &command.to_le_bytes());
        page.copy_in(layout::OP_VALUE, &count.to_le_bytes());

        let taken = backend::take(&page).expect("the flag is set");
        prop_assert_eq!(taken.request().command.raw(), command);
        if command == 4 {
            prop_assert_eq!(taken.entries().is_ok(), count as usize <= MAX_VECTORS);
        }
        let answer = OpError::from_raw(err).map_or(Ok(Success::Value(count)), Err);
        prop_assert_eq!(taken.answer(&page, answer), Delivery::Delivered);
        prop_assert!(!backend::is_pending(&page));
        let beyond = &contents(&page)[layout::OP_ENTRIES..layout::TOTAL_SIZE];
        prop_assert_eq!(beyond, &bytes[layout::OP_ENTRIES..]);
    }

    #[test]
    fn any_request_arrives_as_it_was_posted(
        command in prop_oneof![0..4u32, 5..10u32],
        words in any::<[u32; 5]>(),
        offset in any::<i32>(),
        size in any::<i32>(),
    ) {
        let [domain, bus, devfn, value, info] = words;
        let request = Request { command: Command::from_raw(command), domain, bus, devfn, offset, size, value, info };
        let page = Page::new();
        let _posted = frontend::post(&page, &request, &[]).unwrap();
        let taken = backend::take(&page).unwrap();
        prop_assert_eq!(taken.request(), &request);
    }

    #[test]
    fn any_answer_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 572), count in 0..=128u16) {
        let page = Page::new();
        let posted = frontend::post(&page, &enable_msix(), &msix_entries(count)).unwrap();
        page.copy_in(0, &bytes);
        page.clear_bits(layout::FLAGS, ACTIVE);
        if let Ok(success) = posted.poll(&page).unwrap() {
            prop_assert_eq!(success.vectors.len(), usize::from(count));
        }
    }
}
