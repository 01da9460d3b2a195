//! `cargo containment`: prints docs/containment.md from the figures beside it.

use anyhow::{Context as _, Result};
use bulkhead_tests::containment::{broken, document, wanted};
use bulkhead_tests::figure::Store;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Print what crashes, kills and attacks cost, from docs/containment.jsonl. Fails if a figure breaks its limit.
#[derive(Parser)]
#[command(name = "cargo containment")]
struct Arguments {
    /// First replace the figures of the scenarios that FILE has, and write docs/containment.jsonl and
    /// docs/containment.md [without FILE: the figures that `cargo verify` has kept]
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    take: Option<Option<PathBuf>>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut kept = Store::open(&docs.join("containment.jsonl"))?;
    if let Some(file) = arguments.take {
        let runs = Store::open(&file.unwrap_or_else(Store::default_path))?;
        kept.merge(&wanted(runs.figures()))?;
        let page = docs.join("containment.md");
        std::fs::write(&page, document::render(kept.figures()))
            .with_context(|| format!("write {}", page.display()))?;
    }
    print!("{}", document::render(kept.figures()));
    let broken = broken(kept.figures());
    for line in &broken {
        eprintln!("limit broken: {line}");
    }
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
