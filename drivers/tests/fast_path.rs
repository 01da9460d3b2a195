//! What answering a config access must not cost: memory, or log lines.

mod common;

use common::device::{Device, DirectDom0};
use drivers::policy::engine::Engine;
use pci::bdf::Bdf;
use std::cell::Cell;
use std::hint::black_box;
use std::time::Duration;
use xenbus::pciif::{Command, Request};

thread_local! {
    static LINES: Cell<usize> = const { Cell::new(0) };
}

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        LINES.set(LINES.get() + 1);
    }

    fn flush(&self) {}
}

const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);

fn engine() -> (Engine<Device>, DirectDom0) {
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Trace);
    let device = Device::e1000e();
    let mut engine = Engine::default();
    engine
        .add(Device::resources("0000:00:05.0"), device.clone(), None)
        .unwrap();
    (
        engine,
        DirectDom0([("0000:00:05.0".parse().unwrap(), device)].into()),
    )
}

/// Allocations and log lines that `requests` cost, all answered at the same moment.
fn cost(requests: &[Request]) -> (u64, usize) {
    let (mut engine, mut dom0) = engine();
    let before = LINES.get();
    let memory = allocation_counter::measure(|| {
        for request in requests {
            let _ = black_box(engine.serve(request, Ok(&[]), &mut dom0, Duration::ZERO));
        }
    });
    (memory.count_total, LINES.get() - before)
}

#[test]
fn a_read_neither_allocates_nor_logs() {
    let reads: Vec<Request> = (0..1024)
        .map(|dword| Request::conf_read(FIRST, dword * 4, 4))
        .collect();
    assert_eq!(cost(&reads), (0, 0));
}

#[test]
fn an_absorbed_write_neither_allocates_nor_logs() {
    let writes = [
        Request::conf_write(FIRST, 0x10, 4, u32::MAX),
        Request::conf_write(FIRST, 0x10, 4, 0xfeb8_0000),
        Request::conf_write(FIRST, 0x04, 2, 0x0000),
        Request::conf_write(FIRST, 0x04, 2, 0x0003),
    ];
    assert_eq!(cost(&writes), (0, 0));
}

#[test]
fn a_scan_of_an_empty_bus_neither_allocates_nor_logs() {
    let scan: Vec<Request> = (1..=255)
        .map(|devfn| Request::conf_read(Bdf::from_devfn(0, 0, devfn), 0, 4))
        .collect();
    assert_eq!(cost(&scan), (0, 0));
}

#[test]
fn ten_thousand_refusals_cost_eight_lines_and_dropped_writes_one_for_each_counted_register() {
    let refused = vec![Request::new(Command::Other(99), FIRST); 10_000];
    assert_eq!(cost(&refused).1, 8);
    let dropped: Vec<Request> = (0..10_000u32)
        .map(|n| Request::conf_write(FIRST, (0x100 + 4 * (n % 900)) as u16, 4, n))
        .collect();
    assert_eq!(cost(&dropped).1, xenbus::counters::DROPPED_MAX);
}
