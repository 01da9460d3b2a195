//! Requests against the stream: what of the page each side touches, and what it makes of the other's numbers.

use pci::bdf::Bdf;
use xenbus::model::Page;
use xenbus::pciif::aer::{self, AerRequest, Busy, Channel, Notice, Verdict};
use xenbus::pciif::{ACTIVE, AER_ACTIVE, AER_HANDLER, SharedPage, layout};

const FUNCTION: Bdf = Bdf::from_devfn(1, 2, 0x18);

fn words(page: &Page) -> Vec<u32> {
    (0..5).map(|n| page.load(layout::AER_OP + 4 * n)).collect()
}

#[test]
fn a_notice_lies_in_the_page_as_the_header_file_says() {
    for (notice, command, state) in [
        (Notice::Detected(Channel::Normal), 6, 1),
        (Notice::Detected(Channel::Frozen), 6, 2),
        (Notice::Resume, 7, 0),
        (Notice::SlotReset, 9, 0),
    ] {
        let page = Page::new();
        let request = AerRequest::new(FUNCTION, notice);
        assert_eq!(aer::post(&page, &request), Ok(()));
        assert_eq!(words(&page), [command, state, 1, 2, 0x18], "{notice:?}");
        assert_eq!(aer::pending(&page), Some(request));
        assert_eq!(request.function(), Some(FUNCTION));
    }
}

#[test]
fn neither_side_touches_the_flags_and_the_request_of_the_other_direction() {
    let page = Page::new();
    page.copy_in(layout::OP, &[0x5a; layout::OP_SIZE]);
    page.set_bits(layout::FLAGS, ACTIVE | AER_HANDLER);
    aer::post(&page, &AerRequest::new(FUNCTION, Notice::Resume)).unwrap();
    assert_eq!(page.load(layout::FLAGS), ACTIVE | AER_HANDLER | AER_ACTIVE);
    aer::answer(&page, 3);
    assert_eq!(page.load(layout::FLAGS), ACTIVE | AER_HANDLER);
    let mut op = [0; layout::OP_SIZE];
    page.copy_out(layout::OP, &mut op);
    assert_eq!(op, [0x5a; layout::OP_SIZE]);
}

#[test]
fn nothing_is_posted_over_a_request_without_verdict() {
    let page = Page::new();
    aer::post(&page, &AerRequest::new(FUNCTION, Notice::Resume)).unwrap();
    let before = words(&page);
    let other = AerRequest::new(FUNCTION, Notice::SlotReset);
    assert_eq!(aer::post(&page, &other), Err(Busy));
    assert_eq!((words(&page), aer::verdict(&page)), (before, None));
    aer::answer(&page, 5);
    assert_eq!(aer::verdict(&page), Some(5));
    assert_eq!(aer::pending(&page), None);
    assert_eq!(aer::post(&page, &other), Ok(()));
}

#[test]
fn every_number_of_a_verdict_is_kept() {
    for raw in (-1..9).chain([i32::MIN, i32::MAX]) {
        let verdict = Verdict::from_raw(raw);
        assert_eq!(verdict.raw(), raw);
        assert_eq!(
            matches!(verdict, Verdict::Nonsense(_)),
            !(1..=6).contains(&raw),
            "{raw}"
        );
    }
}

#[test]
fn a_function_out_of_range_is_none() {
    let request = AerRequest::new(FUNCTION, Notice::Resume);
    for request in [
        AerRequest {
            domain: 0x1_0000,
            ..request
        },
        AerRequest {
            bus: 0x100,
            ..request
        },
        AerRequest {
            devfn: u32::MAX,
            ..request
        },
    ] {
        assert_eq!(request.function(), None);
    }
}
