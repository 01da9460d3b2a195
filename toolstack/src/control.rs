//! How the commands talk to the service: one line of JSON each way, over a socket that only root can use.

use crate::handover::reclaim::Released;
use crate::host::program;
use crate::host::systemd::{self, UnitError};
use crate::paths::{LOG, RUN};
use crate::say::note;
use crate::serde_text;
use crate::status::Status;
use pci::bdf::Bdf;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use xen::xenctrl::DomId;

const SOCKET: &str = "/run/bulkhead/serve.sock";
const SERVICE_LOCK: &str = "/run/bulkhead/serve.lock";
const COMMAND_LOCK: &str = "/run/bulkhead/command.lock";
const LOG_DIRECTORY: &str = "/var/log/bulkhead";
/// Longest line that either side reads, in bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// Longest number of a process, in bytes.
const LONGEST_PID: u64 = 20;
/// Time limit for a service to start.
const START: Duration = Duration::from_secs(10);
/// Time limit for the answer to a request for the status.
const STATUS: Duration = Duration::from_secs(30);
/// Time limit for a client to send its request, and to take its answer.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// Number of times that a service that dies over a request is asked, and time limit for its supervisor to start it again.
const ATTEMPTS: u32 = 3;
const RESTART: Duration = Duration::from_secs(5);

/// What a command asks of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Tell all about all attachments.
    Status,
    /// Take the devices of this stub back.
    Release {
        /// The stub.
        stub: DomId,
    },
    /// Take some devices of this stub back. The guest has let go of them.
    TakeBack {
        /// The stub.
        stub: DomId,
        /// The devices.
        #[serde(with = "serde_text::texts")]
        devices: Vec<Bdf>,
    },
    /// Serve the devices that this stub's record names now.
    Follow {
        /// The stub.
        stub: DomId,
    },
}

/// What the service answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Follow`].
    Followed,
    /// To [`Request::Release`] and [`Request::TakeBack`].
    Released {
        /// What happened to each device.
        devices: Vec<String>,
        /// What did not work.
        problems: Vec<String>,
    },
    /// It could not be done.
    Error {
        /// Why.
        message: String,
    },
}

impl Reply {
    /// What was asked for failed with this error, which is told with its causes.
    pub fn error(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Error {
            message: format!("{:#}", anyhow::Error::from(error)),
        }
    }
}

impl From<Released> for Reply {
    fn from(Released { devices, problems }: Released) -> Self {
        Self::Released { devices, problems }
    }
}

/// Why the service did not answer, or could not be started.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("the service is not running (nobody listens on {SOCKET}): start it with `bulkhead serve`")]
    NotRunning(#[source] io::Error),
    /// The connection ended without an answer.
    #[error("the service did not answer: its log is {LOG}, or `journalctl -u bulkhead`")]
    NoAnswer(#[source] io::Error),
    /// The answer makes no sense.
    #[error("the service answered {line:?}: are service and command of one version? Restart the service")]
    Nonsense {
        /// Its answer.
        line: String,
    },
    /// The service could not do it.
    #[error("the service says: {0}")]
    Refused(String),
    /// Its unit does not start.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// It does not start.
    #[error("the service does not start: the end of {LOG} says why")]
    NoStart(#[source] io::Error),
    /// The runtime directory cannot be used.
    #[error("cannot use {path}")]
    Directory {
        /// The file or directory.
        path: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is one already.
    #[error("the service is running already: `bulkhead status` shows what it does")]
    Running,
}

/// Asks the service, and waits for its answer. An answer about devices may take minutes.
pub fn ask(request: Request) -> Result<Reply, ControlError> {
    let mut stream = UnixStream::connect(SOCKET).map_err(ControlError::NotRunning)?;
    if request == Request::Status {
        // No limit for the others: taking devices back may take long.
        let limited = stream.set_read_timeout(Some(STATUS));
        limited.map_err(ControlError::NoAnswer)?;
    }
    let mut line = String::new();
    // Bounded, although the service is trusted: a line without an end would fill dom0's memory.
    let asked = send(&mut stream, &request)
        .and_then(|()| BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line));
    asked.map_err(ControlError::NoAnswer)?;
    match serde_json::from_str(&line) {
        Ok(Reply::Error { message }) => Err(ControlError::Refused(message)),
        Ok(reply) => Ok(reply),
        // The service has closed the connection: it has died over the request, or is at its end.
        Err(_) if line.is_empty() => Err(ControlError::NoAnswer(io::ErrorKind::UnexpectedEof.into())),
        Err(_) => Err(ControlError::Nonsense { line }),
    }
}

/// What has come of a request.
pub enum Asked {
    /// The service has answered.
    Answered(Box<Reply>),
    /// No service runs, and none starts as long as this is held.
    Stopped(ServiceLock),
}

/// The lock of the service.
pub struct ServiceLock {
    _file: File,
}

/// As [`ask_again`], for what a command can do by itself if no service runs. The service's lock keeps one from starting
/// meanwhile: it would begin with the same work.
pub fn ask_or_keep_stopped(request: &Request) -> Result<Asked, ControlError> {
    let deadline = Instant::now() + RESTART;
    loop {
        match ask_again(request) {
            Err(error @ ControlError::NotRunning(_)) => {
                // Nobody listens, but a service may be about to: it takes the lock before it binds the socket.
                make_directory(RUN)?;
                let lock = open_lock(SERVICE_LOCK)?;
                if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    return Ok(Asked::Stopped(ServiceLock { _file: lock }));
                }
                if Instant::now() > deadline {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(20));
            }
            answered => return answered.map(|reply| Asked::Answered(Box::new(reply))),
        }
    }
}

/// Asks the service for something that may be asked for twice. If the service dies over that, the next one is asked.
pub fn ask_again(request: &Request) -> Result<Reply, ControlError> {
    for _ in 1..ATTEMPTS {
        match ask(request.clone()) {
            Err(error @ ControlError::NoAnswer(_)) => {
                note!("{error}; it is asked again");
                // A supervisor, if there is one, starts the next service; a second start would get in its way.
                let deadline = Instant::now() + RESTART;
                while UnixStream::connect(SOCKET).is_err() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(20));
                }
                ensure_running()?;
            }
            answered => return answered,
        }
    }
    ask(request.clone())
}

fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}

/// The service's end of the socket. The launcher has it, and each worker a copy.
pub struct Listener {
    socket: UnixListener,
    /// Held as long as one of these processes runs.
    lock: File,
}

impl Listener {
    /// Becomes the one service of this host. If there is another one, waits for its end if `supervised`, and fails otherwise.
    /// A supervisor would start a service that fails again and again.
    pub fn bind(supervised: bool) -> Result<Self, ControlError> {
        make_directory(RUN)?;
        let lock = open_lock(SERVICE_LOCK)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if !supervised {
                return Err(ControlError::Running);
            }
            log::info!("a service that a command has started is running: waiting for its end");
            let locked = flock(&lock, FlockOperation::LockExclusive);
            locked.map_err(|error| ControlError::Directory {
                path: SERVICE_LOCK,
                source: error.into(),
            })?;
        }
        let failed = |source| ControlError::Directory { path: SOCKET, source };
        // This process has the lock, so a socket that exists was left by a service that has died.
        match fs::remove_file(SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = UnixListener::bind(SOCKET).map_err(failed)?;
        fs::set_permissions(SOCKET, Permissions::from_mode(0o600)).map_err(failed)?;
        // A client that has gone again must not have the main thread wait in `accept`.
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, lock })
    }

    /// A copy of another process's listener, made of its [files](Self::into_files).
    pub fn over(socket: OwnedFd, lock: OwnedFd) -> Self {
        let (socket, lock) = (socket.into(), lock.into());
        Self { socket, lock }
    }

    /// The socket, and the lock.
    pub fn into_files(self) -> (OwnedFd, OwnedFd) {
        (self.socket.into(), self.lock.into())
    }

    /// The next client; `None` if there is none.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Becomes ready to be read when there is a client.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Identity (device and inode) of the service's socket and lock. If the socket is replaced, commands do not find the service;
/// if the lock is, another service can start beside it.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceFiles([Option<(u64, u64)>; 2]);

impl ServiceFiles {
    /// The files that have these names now.
    pub fn now() -> Self {
        Self([SOCKET, SERVICE_LOCK].map(|path| {
            let file = fs::symlink_metadata(path).ok()?;
            Some((file.dev(), file.ino()))
        }))
    }
}

/// Reads a client's request, within [`TIMEOUT`]. `None`: the client only tried whether somebody listens. `Err`: the answer to
/// a line that is no request.
pub fn read_request(stream: &UnixStream) -> io::Result<Option<Result<Request, Reply>>> {
    let line = read_line(stream, Instant::now() + TIMEOUT)?;
    if line.is_empty() {
        return Ok(None);
    }
    let request = serde_json::from_slice(&line);
    Ok(Some(request.map_err(|error| Reply::Error {
        message: format!("this is no request: {error}"),
    })))
}

fn read_line(mut stream: &UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 1024];
    while !line.ends_with(b"\n") && line.len() < LONGEST_LINE as usize {
        // A limit for the whole line: a client that sends a byte now and then would pass one for each read.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => line.extend(&piece[..length]),
        }
    }
    Ok(line)
}

/// Sends a client its answer.
pub fn reply(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    stream.set_write_timeout(Some(TIMEOUT))?;
    send(stream, reply)
}

/// Starts the service if it does not run. Where there is systemd its unit is started, so that it has the unit's limits and no
/// later start has to wait for its end. Elsewhere it is started in the background.
pub fn ensure_running() -> Result<(), ControlError> {
    match UnixStream::connect(SOCKET) {
        Ok(_) => return Ok(()),
        // The service has ordered this command, and may be about to end. It must not get a successor from here.
        Err(error) if env::var_os(program::ORDERED).is_some() => {
            return Err(ControlError::NotRunning(error));
        }
        Err(_) => {}
    }
    if systemd::start_unit()? {
        return wait_for_service(|| Ok(()));
    }
    make_directory(RUN)?;
    make_directory(LOG_DIRECTORY)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o640).open(LOG);
    let log = log.map_err(|source| ControlError::Directory { path: LOG, source })?;
    let second = log.try_clone().map_err(ControlError::NoStart)?;
    let mut service = program::own();
    service
        .arg("serve")
        // What a command logs is not for the service to log for ever.
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second)
        // The directory of the command may be on a file system that is to be unmounted later.
        .current_dir("/");
    let mut service = service.spawn().map_err(ControlError::NoStart)?;
    wait_for_service(|| match service.try_wait() {
        Ok(Some(status)) => Err(io::Error::other(format!("it ended with {status}"))),
        _ => Ok(()),
    })
}

/// Waits until the service listens. Fails after [`START`], or when `has_ended` does.
fn wait_for_service(mut has_ended: impl FnMut() -> io::Result<()>) -> Result<(), ControlError> {
    let deadline = Instant::now() + START;
    loop {
        match UnixStream::connect(SOCKET) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(ControlError::NoStart(error)),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
        if let Err(error) = has_ended() {
            // Another command may have started a service at the same moment, which has the lock.
            return UnixStream::connect(SOCKET)
                .map(drop)
                .map_err(|_| ControlError::NoStart(error));
        }
    }
}

/// Lock of the commands that change something: two of them must not take the same device.
#[derive(Debug)]
pub struct CommandLock(File);

impl Drop for CommandLock {
    fn drop(&mut self) {
        // The next holder may not have written its own number yet when somebody looks.
        let _ = self.0.set_len(0);
    }
}

/// Waits until no other command changes anything, and tells the administrator if it has to wait.
pub fn lock_commands() -> Result<CommandLock, ControlError> {
    make_directory(RUN)?;
    let lock = open_lock(COMMAND_LOCK)?;
    let locked = lock_or_wait(lock, |holder| {
        let who = holder.map_or_else(String::new, |process| format!(" (process {process})"));
        note!("another bulkhead command is at work{who}: this one waits for its end");
    });
    locked.map_err(|source| ControlError::Directory {
        path: COMMAND_LOCK,
        source,
    })
}

/// Locks a file and writes the number of this process into it. If another process has the lock, `busy` is called with its
/// number. Only locking itself can fail: the number is for people, and a full disk must not stop a command.
fn lock_or_wait(lock: File, busy: impl FnOnce(Option<u32>)) -> io::Result<CommandLock> {
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            // Told before the wait, which may be long.
            busy(holder(&lock));
            flock(&lock, FlockOperation::LockExclusive)?;
        }
        locked => locked?,
    }
    // Emptied first: the number before may have been longer.
    let _ = lock.set_len(0);
    let _ = lock.write_all_at(std::process::id().to_string().as_bytes(), 0);
    Ok(CommandLock(lock))
}

/// The process that has the lock; `None` if the file does not say, or names one that is gone.
fn holder(lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.take(LONGEST_PID).read_to_string(&mut text).ok()?;
    let process = text.parse().ok()?;
    Path::new("/proc").join(text).exists().then_some(process)
}

fn open_lock(path: &'static str) -> Result<File, ControlError> {
    let open = OpenOptions::new()
        .create(true)
        // It may be locked by another process, whose number is in it.
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path);
    open.map_err(|source| ControlError::Directory { path, source })
}

fn make_directory(path: &'static str) -> Result<(), ControlError> {
    let failed = |source| ControlError::Directory { path, source };
    // Whatever the umask is, others get no access.
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(Path::new(path), Permissions::from_mode(0o750)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens a file as the lock of the commands is opened.
    fn opened(path: &Path) -> File {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }

    #[test]
    fn who_waits_for_another_command_hears_whose_the_lock_is_and_has_it_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "99999999999999").unwrap();
        let first = lock_or_wait(opened(&path), |_| panic!("nobody has it")).unwrap();
        let ours = std::process::id();
        assert_eq!(fs::read_to_string(&path).unwrap(), ours.to_string());
        let (mut held, mut heard) = (Some(first), None);
        let second = lock_or_wait(opened(&path), |holder| {
            heard = holder;
            held.take();
        });
        let second = second.unwrap();
        assert_eq!((heard, held.is_none()), (Some(ours), true));
        assert_eq!(fs::read_to_string(&path).unwrap(), ours.to_string());
        let third = flock(opened(&path), FlockOperation::NonBlockingLockExclusive);
        assert_eq!(third, Err(Errno::WOULDBLOCK));
        drop(second);
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "nobody has it");
    }

    #[test]
    fn a_lock_that_says_nothing_sound_of_its_holder_is_waited_for_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        for text in ["", "4194305", "-1", "nonsense", "\u{e9}"] {
            fs::write(&path, text).unwrap();
            let file = opened(&path);
            flock(&file, FlockOperation::LockExclusive).unwrap();
            let (mut held, mut heard) = (Some(file), Some(0));
            let locked = lock_or_wait(opened(&path), |holder| {
                heard = holder;
                held.take();
            });
            locked.unwrap();
            assert_eq!(heard, None, "{text}");
        }
    }

    #[test]
    fn requests_and_replies_are_lines_of_json() {
        let request = serde_json::to_string(&Request::Release { stub: 4 }).unwrap();
        assert_eq!(request, r#"{"request":"release","stub":4}"#);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"request":"status"}"#).unwrap(),
            Request::Status
        );
        let request = Request::TakeBack {
            stub: 4,
            devices: vec!["00:05.0".parse().unwrap()],
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(
            line,
            r#"{"request":"take_back","stub":4,"devices":["0000:00:05.0"]}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        let reply = Reply::Released {
            devices: vec!["a".into()],
            problems: vec![],
        };
        let reply = serde_json::to_string(&reply).unwrap();
        assert_eq!(reply, r#"{"reply":"released","devices":["a"],"problems":[]}"#);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "",
            "{}",
            "status",
            r#"{"request":"release"}"#,
            r#"{"request":"release","stub":70000}"#,
            r#"{"request":"take_back","stub":4,"devices":["00:05"]}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
