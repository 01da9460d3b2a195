//! The commands' end of the socket: they ask the service, and start it if it does not run.

use super::error::ControlError;
use super::files::{LOG_DIRECTORY, SOCKET};
use super::locks::{make_directory, open_service_lock};
use super::protocol::{LONGEST_LINE, Reply, Request, send};
use crate::host::program;
use crate::host::systemd;
use crate::paths::{LOG, RUN};
use crate::say::notice;
use rustix::fs::{FlockOperation, flock};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// Time limit for a service to start.
const START: Duration = Duration::from_secs(10);
/// Time limit for the answer to a request for the status.
const STATUS: Duration = Duration::from_secs(30);
/// Number of times that a service that dies over a request is asked.
const ATTEMPTS: u32 = 3;
/// Time limit for the service's supervisor to start it again.
pub const RESTART: Duration = Duration::from_secs(5);

/// Asks the service, and waits for its answer. An answer about devices may take minutes.
pub fn ask(request: Request) -> Result<Reply, ControlError> {
    // No limit for the others: taking devices back may take long.
    let limit = (request == Request::Status).then_some(STATUS);
    ask_at(Path::new(SOCKET), &request, limit)
}

/// Asks the service for the status, and waits no longer than `limit` for its answer.
pub fn ask_status(limit: Duration) -> Result<Reply, ControlError> {
    ask_at(Path::new(SOCKET), &Request::Status, Some(limit))
}

/// Connects to a socket. Without a `limit` this waits for as long as the queue of connections is full.
fn connect(path: &Path, limit: Option<Duration>) -> io::Result<UnixStream> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // By this limit Linux ends the wait for a place in the queue too: unix(7), socket(7).
    set_socket_timeout(&socket, Timeout::Send, limit)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn ask_at(path: &Path, request: &Request, limit: Option<Duration>) -> Result<Reply, ControlError> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut stream = connect(path, limit).map_err(|error| match error.kind() {
        // Somebody listens, but accepts nobody.
        io::ErrorKind::WouldBlock => ControlError::NoAnswer(error),
        _ => ControlError::NotRunning(error),
    })?;
    if let Some(deadline) = deadline {
        // A limit of zero is refused.
        let left = deadline.saturating_duration_since(Instant::now());
        let limited = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        limited.map_err(ControlError::NoAnswer)?;
    }
    let mut line = String::new();
    // Bounded, although the service is trusted: a line without an end would fill dom0's memory.
    let asked = send(&mut stream, request)
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

/// The lock of the service.
pub struct ServiceLock {
    _file: File,
}

/// Keeps a service from starting, for what a command does by itself: the service would begin with the same work. `None` if
/// a service is about to start.
pub fn keep_stopped() -> Result<Option<ServiceLock>, ControlError> {
    // A service takes the lock before it binds the socket.
    make_directory(RUN)?;
    let lock = open_service_lock()?;
    let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    Ok(locked.is_ok().then_some(ServiceLock { _file: lock }))
}

/// Asks the service for something that may be asked for twice. If the service dies over that, the next one is asked.
pub fn ask_again(request: &Request) -> Result<Reply, ControlError> {
    for _ in 1..ATTEMPTS {
        match ask(request.clone()) {
            Err(error @ ControlError::NoAnswer(_)) => {
                notice!("{error}; it is asked again");
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

/// True if a service listens.
pub fn is_running() -> bool {
    UnixStream::connect(SOCKET).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_service_that_hangs_is_waited_for_no_longer_than_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let limit = Duration::from_millis(100);
        let ask = || {
            let begin = Instant::now();
            let error = ask_at(&path, &Request::Status, Some(limit)).unwrap_err();
            (error, begin.elapsed())
        };
        assert!(matches!(ask().0, ControlError::NotRunning(_)));
        let listener = UnixListener::bind(&path).unwrap();
        // A place for one connection: the second client does not even get that.
        rustix::net::listen(&listener, 0).unwrap();
        let first = UnixStream::connect(&path).unwrap();
        for _ in 0..2 {
            let (error, time) = ask();
            assert!(matches!(error, ControlError::NoAnswer(_)), "{error}");
            assert!(time >= limit && time < START, "{time:?}");
        }
        drop((listener.accept().unwrap(), first));
        let (error, time) = ask();
        assert!(matches!(error, ControlError::NoAnswer(_)), "{error}");
        assert!(time >= limit && time < START, "{time:?}");
        drop(listener);
        assert!(matches!(ask().0, ControlError::NotRunning(_)));
    }
}
