//! `cargo demo`: one card in one boot, through xen-pciback and through Bulkhead, side by side; then a crash of the stub.

use anyhow::{Context as _, Result, bail};
use bulkhead_tests::latency::Latency;
use bulkhead_tests::verdict::Verdict;
use bulkhead_tests::{artifacts, runner, scenario::Scenario};
use clap::Parser;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use images::Observer as _;
use images::observer::Terminal;
use images::{FileIn, Host, Rig, Suite};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Boot real Xen in QEMU, and show a stock Linux guest that uses a network card through a Bulkhead stub. Then crash the
/// stub.
#[derive(Parser)]
#[command(name = "cargo demo")]
struct Arguments {
    /// Take Xen and Linux of this Debian release (bookworm, trixie)
    #[arg(long, default_value = "bookworm")]
    suite: Suite,
}

/// What the scenario `side-by-side` leaves.
#[derive(Deserialize)]
struct SideBySide {
    pciback: Latency,
    bulkhead: Latency,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    let files = artifacts::build(&[Host::Busybox], &mut observer)?.of(Host::Busybox);
    let rig = Rig::prepare(arguments.suite, Host::Busybox, &mut observer)?;
    show("nic", &rig, &files, &mut observer)?;
    let comparison = show("side-by-side", &rig, &files, &mut observer)?;
    let table = table(&comparison.join("files/latency.json"))?;
    observer.output(table.as_bytes());
    show("crash", &rig, &files, &mut observer)?;
    Ok(())
}

/// Runs a scenario and shows what it prints; returns where its logs are.
fn show(name: &str, rig: &Rig, files: &[FileIn], observer: &mut Terminal) -> Result<PathBuf> {
    let scenario = Scenario::named(name)?;
    observer.output(format!("\n== {} ({})\n", scenario.title, rig.suite()).as_bytes());
    let out = images::store::target_dir().join("rig-out/demo");
    let report = runner::run(rig, &scenario, files, &out, observer)?;
    if report.verdict != Verdict::Success {
        bail!(
            "{}: {}; all logs: {}",
            report.name,
            report.verdict,
            report.dir.display()
        );
    }
    Ok(report.dir)
}

/// The comparison as a table, and where it lies as JSON.
fn table(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let both: SideBySide = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header([
        "from the guest, one boot",
        "xen-pciback p50 / p99",
        "Bulkhead p50 / p99",
        "ratio p50",
    ]);
    for (what, pciback, bulkhead) in [
        ("read of 4 bytes", &both.pciback.read4, &both.bulkhead.read4),
        (
            "write of 1 byte, new value",
            &both.pciback.write1,
            &both.bulkhead.write1,
        ),
        (
            "write of 1 byte, same value",
            &both.pciback.write1_same,
            &both.bulkhead.write1_same,
        ),
    ] {
        table.add_row([
            what.to_owned(),
            format!("{:.0} / {:.0} us", pciback.p50, pciback.p99),
            format!("{:.0} / {:.0} us", bulkhead.p50, bulkhead.p99),
            format!("{:.2}", bulkhead.p50 / pciback.p50),
        ]);
    }
    Ok(format!("\n{table}\n\nas JSON: {}\n", path.display()))
}
