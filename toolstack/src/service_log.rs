//! The log of the service. Under systemd it goes to the journal, where each message has the fields GUEST, STUB and DEVICE
//! beside its text. Otherwise it goes to standard error.
//!
//! Whoever works on one stub says so once ([`about`]): all that this thread logs meanwhile is about that stub.

use env_logger::Logger;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Log, Metadata, Record};
use rustix::fs::fstat;
use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The journal's socket for messages with fields (`systemd.journal-fields(7)`, "Native Journal Protocol").
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Environment variable by which systemd says that standard error is the journal, as device and inode.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";
/// Name of the program in the journal.
const IDENTIFIER: &str = "bulkhead";
/// A journal that takes no messages keeps nobody from serving guests for longer.
const TIMEOUT: Duration = Duration::from_millis(100);

thread_local! {
    static SUBJECT: RefCell<Option<Subject>> = const { RefCell::new(None) };
}

/// What a thread works on.
#[derive(Clone, Debug)]
struct Subject {
    guest: String,
    /// `None` for a guest that has none yet.
    stub: Option<String>,
}

/// While this lives, what the thread logs is about one guest.
#[derive(Debug)]
#[must_use]
pub struct About {
    before: Option<Subject>,
}

/// Says that the thread works on the stub of a guest from now on.
pub fn about(guest: &str, stub: &str) -> About {
    begin(guest, Some(stub.to_owned()))
}

/// Says that the thread works on a guest that has no stub yet.
pub fn about_guest(guest: &str) -> About {
    begin(guest, None)
}

fn begin(guest: &str, stub: Option<String>) -> About {
    let guest = guest.to_owned();
    About {
        before: SUBJECT.replace(Some(Subject { guest, stub })),
    }
}

impl Drop for About {
    fn drop(&mut self) {
        SUBJECT.set(self.before.take());
    }
}

/// Starts the log of this process. To be called before the process is confined: it opens a socket.
pub fn start() {
    let filter = env_logger::Env::default().default_filter_or("info");
    // Milliseconds, because guests wait two seconds for an answer.
    let plain = env_logger::Builder::from_env(filter)
        .format_timestamp_millis()
        .build();
    let level = plain.filter();
    let journal = is_journal().then(|| connect(JOURNAL)).and_then(io::Result::ok);
    // It fails if there is a log already.
    if log::set_boxed_logger(Box::new(ServiceLog { plain, journal })).is_ok() {
        log::set_max_level(level);
    }
}

/// True if standard error leads to the journal.
fn is_journal() -> bool {
    let told = std::env::var(JOURNAL_STREAM);
    let own = fstat(io::stderr()).map(|file| format!("{}:{}", file.st_dev, file.st_ino));
    matches!((told, own), (Ok(told), Ok(own)) if told == own)
}

/// A connected socket: a worker may not name another receiver, nor connect one.
fn connect(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

struct ServiceLog {
    /// Decides what is logged, and prints what the journal does not take.
    plain: Logger,
    journal: Option<UnixDatagram>,
}

impl Log for ServiceLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.plain.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.plain.matches(record) {
            return;
        }
        let sent = self
            .journal
            .as_ref()
            .map(|journal| journal.send(&message(record)));
        match sent {
            Some(Ok(_)) => {}
            // Standard error leads to the same journal, and has no time limit: the message is left out.
            Some(Err(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            _ => self.plain.log(record),
        }
    }

    fn flush(&self) {
        self.plain.flush();
    }
}

/// A message as the journal takes it: its fields, one after the other.
fn message(record: &Record<'_>) -> Vec<u8> {
    let mut message = Fields(Vec::new());
    message.add("MESSAGE", &record.args().to_string());
    message.add("PRIORITY", priority(record.level()));
    message.add("SYSLOG_IDENTIFIER", IDENTIFIER);
    SUBJECT.with_borrow(|subject| {
        if let Some(Subject { guest, stub }) = subject {
            message.add("GUEST", guest);
            if let Some(stub) = stub {
                message.add("STUB", stub);
            }
        }
    });
    // It fails if a field cannot be shown: the others stand there.
    let _ = record.key_values().visit(&mut message);
    message.0
}

/// The levels of syslog.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "3",
        Level::Warn => "4",
        Level::Info => "6",
        Level::Debug | Level::Trace => "7",
    }
}

struct Fields(Vec<u8>);

impl Fields {
    /// Adds a field with its length, so that no value can pass for a further field.
    fn add(&mut self, name: &str, value: &str) {
        self.0.extend(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend((value.len() as u64).to_le_bytes());
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.add(key.as_str(), &value.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a message, as the journal reads them.
    fn parse(mut message: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while let Some(end) = message.iter().position(|&byte| byte == b'\n') {
            let name = String::from_utf8(message[..end].to_vec()).unwrap();
            let (length, rest) = message[end + 1..].split_first_chunk().unwrap();
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            fields.push((name, String::from_utf8(rest[..length].to_vec()).unwrap()));
            assert_eq!(rest[length], b'\n');
            message = &rest[length + 1..];
        }
        fields
    }

    fn journal() -> (ServiceLog, UnixDatagram, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let journal = Some(connect(path.to_str().unwrap()).unwrap());
        let plain = env_logger::Builder::new().parse_filters("info").build();
        (ServiceLog { plain, journal }, receiver, directory)
    }

    fn received(journal: &UnixDatagram) -> Option<Vec<(String, String)>> {
        let mut message = [0; 4096];
        let length = journal.recv(&mut message).ok()?;
        Some(parse(&message[..length]))
    }

    fn fields(of: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Some(of.iter().map(own).collect())
    }

    #[test]
    fn a_message_has_fields_for_what_it_is_about() {
        let (log, receiver, _directory) = journal();
        let _about = about("web", "web-bulkhead");
        let device = [("DEVICE", "0000:00:05.0")];
        let record = Record::builder()
            .level(Level::Warn)
            .key_values(&device)
            .args(format_args!("line\nPRIORITY=0"))
            .build();
        log.log(&record);
        let expected = fields(&[
            ("MESSAGE", "line\nPRIORITY=0"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "bulkhead"),
            ("GUEST", "web"),
            ("STUB", "web-bulkhead"),
            ("DEVICE", "0000:00:05.0"),
        ]);
        assert_eq!(received(&receiver), expected);
    }

    #[test]
    fn work_on_one_stub_ends_and_other_threads_do_not_share_it() {
        let (log, receiver, _directory) = journal();
        let names = || {
            log.log(
                &Record::builder()
                    .level(Level::Info)
                    .args(format_args!("x"))
                    .build(),
            );
            let fields = received(&receiver).unwrap();
            let guest = fields.into_iter().find(|(name, _)| name == "GUEST");
            guest.map(|(_, guest)| guest)
        };
        let outer = about("web", "web-bulkhead");
        {
            let _inner = about("mail", "mail-bulkhead");
            assert_eq!(names().as_deref(), Some("mail"));
        }
        assert_eq!(names().as_deref(), Some("web"));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| SUBJECT.with_borrow(Option::is_none));
            assert!(other.join().unwrap());
        });
        drop(outer);
        assert_eq!(names(), None);
    }

    #[test]
    fn what_the_filter_leaves_out_is_not_sent() {
        let (log, receiver, _directory) = journal();
        let record = Record::builder()
            .level(Level::Debug)
            .args(format_args!("x"))
            .build();
        log.log(&record);
        assert_eq!(received(&receiver), None);
    }
}
