//! Measures configuration space accesses from inside a guest: `config-latency BDF [ROUNDS]`.
//!
//! It uses sysfs, as `setpci` does. It measures 4-byte reads at offset 0, 1-byte writes of the cache line size that
//! change the value each time, and such writes that change nothing (a backend can answer these without touching the
//! device). It prints one line of JSON: percentiles in microseconds.

use anyhow::{Context as _, Result, ensure};
use bulkhead_tests::latency::{Latency, Percentiles};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// Header register that any value may be written to: cache line size, in dwords.
const CACHE_LINE_SIZE: u64 = 0x0c;
const WARM_UP: usize = 50;

/// Times `rounds` calls of `access`, which gets the number of the round.
fn measure(rounds: usize, mut access: impl FnMut(usize) -> Result<()>) -> Result<Percentiles> {
    for round in 0..WARM_UP {
        access(round)?;
    }
    let times = (0..rounds).map(|round| {
        let start = Instant::now();
        access(round)?;
        Ok(start.elapsed())
    });
    Percentiles::of(times.collect::<Result<Vec<Duration>>>()?).context("no rounds")
}

fn write_byte(config: &File, value: u8) -> Result<()> {
    config
        .write_all_at(&[value], CACHE_LINE_SIZE)
        .context("write of the cache line size")
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let bdf = arguments.next().context("usage: config-latency BDF [ROUNDS]")?;
    let rounds: usize = arguments
        .next()
        .map_or(Ok(2000), |text| text.parse())
        .context("ROUNDS is a number")?;
    ensure!(rounds > 0, "ROUNDS must be at least 1");
    let path = format!("/sys/bus/pci/devices/{bdf}/config");
    let config = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {path}"))?;

    let mut word = [0; 4];
    config.read_exact_at(&mut word, 0)?;
    let ids = word;
    ensure!(ids != [0xff; 4], "{bdf} answers all-ones");
    let mut byte = [0];
    config.read_exact_at(&mut byte, CACHE_LINE_SIZE)?;
    let [before] = byte;

    let read4 = measure(rounds, |_| {
        config.read_exact_at(&mut word, 0)?;
        ensure!(word == ids, "{bdf} answers {word:02x?}, before it was {ids:02x?}");
        Ok(())
    })?;
    let write1 = measure(rounds, |round| {
        write_byte(&config, if round % 2 == 0 { 8 } else { 16 })
    })?;
    let last = if rounds % 2 == 1 { 8 } else { 16 };
    config.read_exact_at(&mut byte, CACHE_LINE_SIZE)?;
    ensure!(
        byte == [last],
        "a write of {last} reads back as {}: it was lost",
        byte[0]
    );
    let write1_same = measure(rounds, |_| write_byte(&config, last))?;
    write_byte(&config, before)?;

    println!(
        "{}",
        serde_json::to_string(&Latency {
            read4,
            write1,
            write1_same
        })?
    );
    Ok(())
}
