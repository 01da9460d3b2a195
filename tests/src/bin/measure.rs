//! `cargo measure`: how many instructions and how much time a guest's requests take, and what the image is made of;
//! docs/performance.md and docs/size.md.

use anyhow::{Context as _, Result, bail};
use bulkhead_tests::artifacts;
use bulkhead_tests::figure::{Store, encode};
use bulkhead_tests::measure::rows::{COUNTED, TIMED};
use bulkhead_tests::measure::{document, size, wanted};
use bulkhead_tests::runner;
use bulkhead_tests::scenario::{Scenario, Setting};
use bulkhead_tests::verdict::Verdict;
use clap::{Parser, ValueEnum};
use images::observer::{Observer as _, Quiet, Terminal};
use images::{Host, Rig, Suite, products, sizes};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Measure what a guest's requests take through xen-pciback and through Bulkhead, or what the stub's image is made of. Fails if a
/// count is above its bound.
#[derive(Parser)]
#[command(name = "cargo measure")]
struct Arguments {
    /// What to measure [default: instructions and times]
    part: Option<Part>,
    /// Take Xen and Linux of this Debian release (bookworm, trixie, sid)
    #[arg(long, default_value = "bookworm")]
    suite: Suite,
    /// Number of requests of each kind
    #[arg(long, value_name = "N", default_value_t = 200)]
    count: u32,
    /// Print the figures as JSON, an object on each line
    #[arg(long)]
    json: bool,
    /// Measure nothing, and write docs/performance.jsonl and docs/performance.md from the last runs; with `size`, write
    /// docs/size.md
    #[arg(long, conflicts_with = "json")]
    take: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Instructions, which do not depend on the load of this machine
    Instructions,
    /// Times in one boot, calm and with every processor busy
    Times,
    /// Bytes of the image by module; boots nothing
    Size,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let scenarios = match (arguments.part, arguments.take) {
        (Some(Part::Size), take) => return size(take, arguments.json),
        (None, true) => return take(),
        (Some(_), true) => bail!("--take takes the figures of both scenarios: name no part, or `size`"),
        (None, false) => vec![COUNTED, TIMED],
        (Some(Part::Instructions), false) => vec![COUNTED],
        (Some(Part::Times), false) => vec![TIMED],
    };
    let mut code = ExitCode::SUCCESS;
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    let files = artifacts::build(&[Host::Busybox], &mut observer)?.of(Host::Busybox);
    let rig = Rig::prepare(arguments.suite, Host::Busybox, &mut observer)?;
    let out = images::store::target_dir().join("rig-out/measure");
    let mut figures = Vec::new();
    for name in scenarios {
        let mut scenario = Scenario::named(name)?;
        let count: Setting = format!("COUNT={}", arguments.count).parse()?;
        scenario.set(&[count]);
        observer.phase(&format!("{}: {}", arguments.suite, scenario.title));
        let report = runner::run(&rig, &scenario, &files, &out, &mut Quiet)?;
        if report.verdict != Verdict::Success {
            eprintln!("{}: {}\n{}", report.name, report.verdict, report.details());
            code = ExitCode::FAILURE;
        }
        // Others may have run scenarios meanwhile.
        let mut store = Store::open(&Store::default_path())?;
        store.replace(arguments.suite, name, report.figures.clone())?;
        figures.extend(report.figures);
    }
    drop(observer);
    match arguments.json {
        true => print!("{}", encode(&figures)?),
        false => print!("{}", document::tables(&figures, &[arguments.suite])),
    }
    Ok(code)
}

/// Prints how many bytes of the image each module has, and writes the page of it if `take`.
fn size(take: bool, json: bool) -> Result<ExitCode> {
    let mut observer = Terminal::new(Arc::new(AtomicBool::new(false)));
    let image = products::STUB.build_with_symbols(&mut observer)?;
    drop(observer);
    let sizes = sizes::of_image(&std::fs::read(image)?)?;
    if take {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/size.md");
        std::fs::write(&page, size::render(&sizes)).with_context(|| format!("write {}", page.display()))?;
    }
    match json {
        true => println!("{}", serde_json::to_string(&sizes)?),
        false => print!("{}", size::rows(&sizes)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces the figures beside the document by those of the last runs.
fn take() -> Result<ExitCode> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut kept = Store::open(&docs.join("performance.jsonl"))?;
    kept.merge(&wanted(Store::open(&Store::default_path())?.figures()))?;
    let page = docs.join("performance.md");
    let text = document::render(kept.figures());
    std::fs::write(&page, &text).with_context(|| format!("write {}", page.display()))?;
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}
