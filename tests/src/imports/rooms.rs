//! The crates, and the order of their rooms.

/// One crate of the workspace.
pub struct Crate {
    /// Its directory.
    pub directory: &'static str,
    /// Its rooms from top to bottom: a room uses only rooms below it. Empty if the order does not matter.
    pub rooms: &'static [&'static str],
}

/// All crates except those of one file.
pub const CRATES: [Crate; 15] = [
    Crate {
        directory: "toolstack",
        rooms: &[
            "arguments",
            "commands",
            "serve",
            "control",
            "status",
            "admission",
            "handover",
            "function",
            "nodes",
            "records",
            "host",
            "config_space",
            "terms",
            "exit",
            "service_log",
            "say",
            "output",
            "layout",
            "serde_text",
            "paths",
        ],
    },
    Crate {
        directory: "images/agent",
        rooms: &["ask", "answer", "patience", "nodes", "reply"],
    },
    Crate {
        directory: "toolstack/xen",
        rooms: &[],
    },
    Crate {
        directory: "drivers",
        rooms: &[
            "stub",
            "background",
            "hops",
            "inject",
            "policy",
            "store",
            "error",
            "limiter",
            "log",
            "console",
            "platform",
            "crash_log",
            "snapshot",
            "failure",
        ],
    },
    Crate {
        directory: "drivers/netfront",
        rooms: &[
            "frontend",
            "peer",
            "channel",
            "ring",
            "fault",
            "statistics",
            "layout",
        ],
    },
    Crate {
        directory: "drivers/telemetry",
        rooms: &[
            "network",
            "stack",
            "server",
            "device",
            "syslog",
            "http",
            "line_ring",
            "strikes",
            "settings",
            "buffer",
            "budget",
        ],
    },
    Crate {
        directory: "unikernel",
        rooms: &[],
    },
    Crate {
        directory: "pci",
        rooms: &[],
    },
    Crate {
        directory: "xenbus",
        rooms: &[],
    },
    Crate {
        directory: "config",
        rooms: &[],
    },
    Crate {
        directory: "metrics",
        rooms: &[],
    },
    Crate {
        directory: "images",
        rooms: &[],
    },
    Crate {
        directory: "packaging",
        rooms: &[],
    },
    Crate {
        directory: "tests",
        rooms: &[],
    },
    Crate {
        directory: "tests/guest",
        rooms: &[],
    },
];
