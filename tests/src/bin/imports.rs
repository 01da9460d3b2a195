//! `cargo imports`: how the crates are built up.

use anyhow::Result;
use bulkhead_tests::imports::{CRATES, Crate, File, Graph, ModulePath, duplicates, measure, read};
use clap::Parser;
use std::collections::BTreeMap;
use std::path::Path;

/// Print for each crate: its size, imports between its modules, floors, circles, upward imports, type names that stand
/// twice, and how many comments say why.
#[derive(Parser)]
#[command(name = "cargo imports")]
struct Arguments {
    /// Print every import of this crate instead.
    #[arg(long = "crate", value_name = "DIRECTORY")]
    of: Option<String>,
    /// Read the sources below this directory.
    #[arg(long, value_name = "DIRECTORY", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    root: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let read = |directory: &str| read(&Path::new(&arguments.root).join(directory).join("src"));
    if let Some(directory) = arguments.of {
        for (user, used) in Graph::new(&read(&directory)?).edges() {
            println!("{user} -> {used}");
        }
        return Ok(());
    }
    for known in &CRATES {
        print(known, &read(known.directory)?);
    }
    Ok(())
}

fn print(known: &Crate, files: &BTreeMap<ModulePath, File>) {
    let graph = Graph::new(files);
    println!(
        "{}: {} modules, {} imports, {} floors",
        known.directory,
        graph.modules(),
        graph.imports(),
        graph.floors()
    );
    let size = measure(files);
    println!(
        "  lines of code: {}; comments that say why: {}, {:.1} per 100; SAFETY remarks: {}",
        size.code,
        size.why,
        size.why_per_100(),
        size.safety
    );
    if let Some((longest, lines)) = graph.longest() {
        println!("  longest module: {longest}, {lines} lines");
    }
    if let Some((room, lines)) = graph.rooms().into_iter().max_by_key(|(_, lines)| *lines) {
        println!("  largest room: {room}, {lines} lines");
    }
    for circle in graph.circles() {
        println!("  circle: {}", circle.join(", "));
    }
    for circle in graph.room_circles() {
        println!("  circle of rooms: {}", circle.join(", "));
    }
    for import in graph.upward(known.rooms) {
        println!("  upward: {import}");
    }
    for duplicate in duplicates(files) {
        println!("  twice: {duplicate}");
    }
}
