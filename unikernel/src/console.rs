//! The Xen console behind `log`: lines such as `[    0.001234] INFO  second hop connected`.
//!
//! dom0's xenconsoled reads the ring; `xl console` and its log file show it.

use crate::page::RawPage;
use crate::{clock, deadline, event};
use core::time::Duration;
use drivers::console::{Console, Line};
use drivers::platform::Port;
use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use xenbus::printable::Printable;

/// How long the end of the domain waits for the reader.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// The console's ring and its event channel.
struct Sink {
    console: Console<RawPage>,
    port: Port,
}

static SINK: Mutex<Option<Sink>> = Mutex::new(None);

/// Makes the console the logger. The level is the command line's `loglevel=`: error, warn, info (default), debug or trace.
pub fn init(page: RawPage, port: Port, command_line: &str) {
    *SINK.lock() = Some(Sink {
        console: Console::new(page),
        port,
    });
    let wanted = command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("loglevel="))
        .next_back();
    let level = wanted.map(str::parse).unwrap_or(Ok(LevelFilter::Info));
    log::set_max_level(*level.as_ref().unwrap_or(&LevelFilter::Info));
    // Fails only if called twice; the first logger is this very one.
    let _ = log::set_logger(&Logger);
    if let (Some(word), Err(_)) = (wanted, level) {
        drivers::log::warn!(
            "command line: no log level is called \"{}\"; use error, warn, info, debug or trace. Taking info",
            Printable(word.as_bytes())
        );
    }
}

/// Waits until the reader has taken everything, at most [`DRAIN_LIMIT`].
pub fn drain() {
    let limit = clock::now() + DRAIN_LIMIT;
    while clock::now() < limit {
        let Some(sink) = SINK.try_lock() else { return };
        let Some(sink) = sink.as_ref() else { return };
        if sink.console.is_drained() {
            return;
        }
        event::take_pending(sink.port);
        deadline::wait(&[sink.port], Some(clock::now() + Duration::from_millis(10)));
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = clock::now();
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        let line = Line::new(format_args!(
            "[{seconds:5}.{micros:06}] {:<5} {}",
            record.level(),
            record.args()
        ));
        // The lock is held only if a fault interrupted this very function. Waiting for it would never end.
        let Some(mut sink) = SINK.try_lock() else { return };
        #[cfg(feature = "net")]
        {
            // Without the time and the level, which a message has in fields of its own.
            let line = line.bytes();
            let time = line.iter().position(|byte| *byte == b']').unwrap_or(0);
            let text = line.get(time + "] LEVEL ".len()..).unwrap_or_default();
            crate::kept::LINES.push(record.level(), now, text);
        }
        if let Some(sink) = sink.as_mut()
            && sink.console.write_line(line.bytes())
        {
            // Without the event the reader sees the line later.
            let _ = event::send(sink.port);
        }
    }

    fn flush(&self) {}
}
