//! What is measured, and how fast it is to be: a table.

/// One kind of request of a guest to its backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// Its name in the figures of the scenarios.
    pub name: &'static str,
    /// What it is, for the reader.
    pub means: &'static str,
    /// Most instructions through Bulkhead. The scenario fails beyond.
    pub bound: f64,
    /// Goal: instructions through Bulkhead, in units of those through xen-pciback.
    pub instructions: f64,
    /// Goal: the same for times.
    pub times: f64,
}

/// A request by columns.
const fn request(
    name: &'static str,
    means: &'static str,
    bound: u32,
    instructions: f64,
    times: f64,
) -> Request {
    Request {
        name,
        means,
        bound: bound as f64,
        instructions,
        times,
    }
}

/// All requests. A bound is 6 to 8 % above what was measured on bookworm.
#[rustfmt::skip]
pub const REQUESTS: &[Request] = &[
    //                                                                            bound  instructions  times
    request("read", "read of 4 bytes",                                            17_400, 0.85, 0.45),
    request("write-unchanged", "write of 1 byte that changes nothing",            17_000, 0.80, 2.0),
    request("write", "write of 1 byte that changes the register",                 55_700, 1.9, 2.0),
    request("enable-msix", "MSI-X on, 5 vectors",                                156_800, 1.0, 2.0),
    request("disable-msix", "MSI-X off",                                         117_500, 1.3, 2.0),
    request("enable-msi", "MSI on",                                              103_200, 1.2, 2.0),
    request("disable-msi", "MSI off",                                             82_100, 1.3, 2.0),
];

/// Goal of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most this, in the unit of the figure.
    AtMost(f64),
    /// At most so many times xen-pciback's figure.
    Ratio(f64),
}

/// Something else than a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Its name in the figures of the scenario.
    pub name: &'static str,
    /// What it is, for the reader.
    pub means: &'static str,
    /// Unit of its figures.
    pub unit: &'static str,
    /// Highest figure of Bulkhead, if it varies little from run to run. The scenario fails beyond.
    pub bound: Option<f64>,
    /// Its goal.
    pub goal: Goal,
}

/// All events; the bounds as for requests.
pub const EVENTS: &[Event] = &[
    Event {
        name: "restart",
        means: "the stub panics at a read, and answers it in its next run",
        unit: "instructions",
        bound: None,
        goal: Goal::AtMost(20_000_000.0),
    },
    Event {
        name: "create",
        means: "`xl create` with `pci=`, and `bulkhead run`",
        unit: "ms",
        bound: None,
        goal: Goal::Ratio(1.5),
    },
];

/// Name of the figure of an event to another guest and back.
pub const PING_PONG: &str = "ping-pong";
/// Goal: instructions of a read through Bulkhead, in units of such an event.
pub const READ_BY_PING_PONG: f64 = 1.5;
/// Goal: the ratio of the times on busy processors, in units of the calm ratio.
pub const BUSY_BY_CALM: f64 = 1.5;

/// The scenario that counts instructions.
pub const COUNTED: &str = "instructions";
/// The scenario that measures times.
pub const TIMED: &str = "times";
