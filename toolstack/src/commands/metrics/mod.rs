//! `bulkhead metrics`: what stubs and the service count, for Prometheus: printed, served by HTTP, or in a file.

mod http;
mod names;
mod passed;
mod report;
mod textfile;

pub use names::table;

use super::{status, waiting::Interrupt};
use crate::admission::spare_pirqs;
use crate::host::xl;
use crate::output::print_text;
use crate::say::{self, say};
use anyhow::{Context as _, Result};
use metrics::Format;
use report::Observation;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Interval at which a wait for the next file looks for a signal.
const POLL: Duration = Duration::from_millis(200);

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On this address.
    Address(SocketAddr),
    /// On the socket that the service manager passes.
    Passed,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "socket" {
            return Ok(Self::Passed);
        }
        let address = text.parse().map(Self::Address);
        address.map_err(|_| "expected an address with a port, such as 127.0.0.1:9742, or `socket`".into())
    }
}

/// Time limit for the service's answer: half of the time for which Prometheus waits for metrics, by default.
const SERVICE: Duration = Duration::from_secs(5);

/// Reads what there is to tell.
struct Source {
    /// Most pirqs of a guest for MSI and MSI-X; `None` if Xen's command line cannot be read.
    pirqs: Option<u32>,
}

impl Source {
    fn open() -> Self {
        // Xen's command line stays as it is until the host boots.
        let pirqs = xl::info().ok().map(|info| spare_pirqs(&info));
        Self { pirqs }
    }

    /// The metrics in `format`. If the status cannot be read, they say that the service is down, and the error comes along.
    fn read(&self, format: Format) -> Result<(String, Option<anyhow::Error>)> {
        let (status, error) = match status::read_within(SERVICE) {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error)),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seen = Observation {
            status: status.as_ref(),
            pirqs: self.pirqs,
            now: now.unwrap_or_default(),
        };
        let text = seen.text(format).context("cannot write the metrics")?;
        Ok((text, error))
    }
}

/// What was told last. An error that lasts is told once, however often the metrics are asked for.
#[derive(Debug, Default)]
struct LastTold(Mutex<Option<String>>);

impl LastTold {
    /// Tells an error, or that there is none any more, if that is news.
    fn tell(&self, error: Option<&anyhow::Error>) {
        if let Some(news) = self.news(error) {
            say::error(news);
        }
    }

    fn news(&self, error: Option<&anyhow::Error>) -> Option<String> {
        let text = error.map(|error| format!("{error:#}"));
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == text {
            return None;
        }
        last.clone_from(&text);
        Some(text.unwrap_or_else(|| "the metrics are whole again".into()))
    }
}

/// Prints the metrics once. Fails if the status cannot be read; what is known is printed before.
pub fn print(format: Format) -> Result<()> {
    let (text, error) = Source::open().read(format)?;
    print_text(&text)?;
    error.map_or(Ok(()), Err)
}

/// Serves the metrics until the process is ended.
pub fn serve(listen: Listen) -> Result<()> {
    let listener = match listen {
        Listen::Address(address) => {
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?
        }
        Listen::Passed => passed::socket()?,
    };
    let address = listener.local_addr().context("cannot tell where to listen")?;
    if !address.ip().is_loopback() {
        say::notice!(
            "{address} can be reached from outside of this host: whoever does can read the names and counters of guests"
        );
    }
    say!("serving http://{address}/metrics");
    let (source, told) = (Source::open(), LastTold::default());
    http::serve(&listener, |format| {
        let (text, error) = source.read(format)?;
        // The client sees that the service is down; why is told here.
        told.tell(error.as_ref());
        Ok(text)
    });
    Ok(())
}

/// Writes the metrics into a directory of node_exporter's, once, or again and again with this time between until a signal
/// ends it. Fails if the first file cannot be written; a later failure is told, and the next attempt follows.
pub fn write_file(directory: &Path, every: Option<Duration>) -> Result<()> {
    let source = Source::open();
    let write = || {
        let (text, error) = source.read(Format::Prometheus)?;
        textfile::write(directory, &text)?;
        error.map_or(Ok(()), Err)
    };
    let Some(every) = every else {
        return write();
    };
    let interrupt = Interrupt::catch()?;
    textfile::check(directory)?;
    let told = LastTold::default();
    loop {
        told.tell(write().err().as_ref());
        let next = Instant::now() + every;
        while Instant::now() < next {
            if interrupt.check().is_err() {
                return Ok(());
            }
            thread::sleep(POLL.min(next.saturating_duration_since(Instant::now())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_lasts_is_told_once_and_so_is_its_end() {
        let told = LastTold::default();
        let (down, other) = (anyhow::anyhow!("down"), anyhow::anyhow!("other"));
        let news = [
            None,
            Some(&down),
            Some(&down),
            Some(&other),
            None,
            None,
            Some(&down),
        ]
        .map(|error| told.news(error));
        let expected = [
            None,
            Some("down"),
            None,
            Some("other"),
            Some("the metrics are whole again"),
            None,
            Some("down"),
        ];
        assert_eq!(news, expected.map(|news| news.map(str::to_owned)));
    }

    #[test]
    fn an_address_has_a_port_and_is_no_name() {
        let address = |text: &str| text.parse::<Listen>();
        assert_eq!(address("socket"), Ok(Listen::Passed));
        for text in ["127.0.0.1:9742", "[::1]:9742", "0.0.0.0:0"] {
            assert_eq!(address(text), Ok(Listen::Address(text.parse().unwrap())));
        }
        for text in ["", "9742", ":9742", "127.0.0.1", "localhost:9742", "::1:9742"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
