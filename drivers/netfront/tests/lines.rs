//! Log lines that a backend can cause.

mod common;

use common::host::Host;
use std::cell::RefCell;
use std::time::Duration;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// A wrong answer, and a new beginning.
fn fault_and_begin(host: &mut Host) {
    host.rings().respond_rx(99, 0, 0, 60);
    assert!(host.receive_all().is_empty());
    host.settle();
    host.netback.begin();
    host.settle();
    assert!(host.netfront.is_connected());
}

#[test]
fn a_backend_that_is_wrong_without_end_costs_a_few_lines_and_one_that_counts_the_rest() {
    log::set_logger(&Lines).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut host = Host::connected();
    for _ in 0..1000 {
        fault_and_begin(&mut host);
    }
    assert_eq!(host.netfront.statistics().faults, 1000);
    let lines = LINES.take();
    assert_eq!(lines.len(), 16, "{lines:?}");
    assert_eq!(lines[0], "network connected");
    assert!(lines[1].starts_with("network given up: a response to request 99 "));
    // What was left out is told before the next line.
    host.machine.advance(Duration::from_secs(60));
    fault_and_begin(&mut host);
    let lines = LINES.take();
    assert_eq!(lines[0], "network: 1985 lines like those were left out");
    assert_eq!(lines.len(), 3);
}
