//! Waiting for others, with an end, and Ctrl-C.

use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often xenstore is looked at while something is waited for.
pub const POLL: Duration = Duration::from_millis(50);
/// How long a stub may take to export its devices.
pub const STUB_PATIENCE: Duration = Duration::from_secs(15);
/// How long a guest may take to connect, to let go of devices, to look for new ones, or to be cleared away.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until it is done, will not happen, or has taken too long.
pub fn wait(
    patience: Duration,
    interrupt: &Interrupt,
    mut look: impl FnMut() -> Result<Progress>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        interrupt.check()?;
        match look()? {
            Progress::Connected => return Ok(()),
            Progress::Failed(why) => bail!("{why}"),
            Progress::Waiting(what) if Instant::now() >= deadline => {
                bail!("gave up after {} s: {what}", patience.as_secs())
            }
            Progress::Waiting(_) => thread::sleep(POLL),
        }
    }
}

/// Ctrl-C and SIGTERM, seen between two steps.
#[derive(Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the signals are caught; the default catches none.
    pub fn catch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
        }
        Ok(Self(flag))
    }

    /// Fails if a signal has come.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}
