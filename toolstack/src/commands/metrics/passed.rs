//! The socket that a service manager passes to this process (systemd, `sd_listen_fds(3)`).

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::env;
use std::net::TcpListener;
use std::os::fd::RawFd;

/// The descriptor of the first socket that is passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The socket.
///
/// # Errors
/// None or several were passed, or one on which nobody can connect by TCP.
pub fn socket() -> Result<TcpListener> {
    let variable = |name: &str| env::var(name).ok();
    check(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        getpid(),
    )?;
    take(FIRST)
}

/// Checks the variables that come with the socket. Those of another process were inherited by accident.
fn check(pid: Option<&str>, sockets: Option<&str>, own: Pid) -> Result<()> {
    let own = own.as_raw_nonzero().to_string();
    if pid != Some(own.as_str()) {
        bail!("no socket was passed to this process: enable bulkhead-metrics.socket, or name an address");
    }
    ensure!(
        sockets == Some("1"),
        "{} sockets were passed instead of one",
        sockets.unwrap_or("no")
    );
    Ok(())
}

/// A copy of this descriptor of our own. The kernel makes it, and says if there is no such descriptor: a number that is taken
/// for a descriptor without that would need `unsafe`.
fn take(descriptor: RawFd) -> Result<TcpListener> {
    let copied = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|own| pidfd_getfd(own, descriptor, PidfdGetfdFlags::empty()));
    let socket = copied.context("the socket that was passed is not there")?;
    let listens = socket_acceptconn(&socket).context("what was passed is no socket")?;
    ensure!(listens, "nobody can connect to the socket that was passed");
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;

    #[test]
    fn one_socket_for_this_very_process_is_taken() {
        let own = Pid::from_raw(1234).unwrap();
        assert!(check(Some("1234"), Some("1"), own).is_ok());
        for (pid, sockets) in [
            (None, None),
            (Some("1"), Some("1")),
            (Some("01234"), Some("1")),
            (Some("1234"), None),
            (Some("1234"), Some("0")),
            (Some("1234"), Some("2")),
        ] {
            assert!(check(pid, sockets, own).is_err(), "{pid:?} {sockets:?}");
        }
    }

    #[test]
    fn clients_reach_a_socket_by_its_number_and_anything_else_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = take(listener.as_raw_fd()).unwrap();
        drop(listener);
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(taken.accept().unwrap().1, client.local_addr().unwrap());

        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(take(file.as_raw_fd()).is_err());
        assert!(take(client.as_raw_fd()).is_err());
        assert!(take(RawFd::MAX).is_err());
    }
}
