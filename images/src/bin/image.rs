//! Builds an image of the stub as scenarios boot it and the package holds it: `cargo stub`, `cargo stub-net`.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use images::observer::Terminal;
use images::products::{STUB, STUB_NET};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Build an image of the stub, and print its path
#[derive(Parser)]
struct Arguments {
    image: Image,
}

#[derive(Clone, Copy, ValueEnum)]
enum Image {
    /// The usual one
    Stub,
    /// The one with a network
    StubNet,
}

fn main() -> Result<()> {
    let product = match Arguments::parse().image {
        Image::Stub => &STUB,
        Image::StubNet => &STUB_NET,
    };
    let mut terminal = Terminal::new(Arc::new(AtomicBool::new(false)));
    println!("{}", product.build(&mut terminal)?.display());
    Ok(())
}
