//! Requests and replies: one line of JSON each way.

use crate::handover::reclaim::Released;
use crate::serde_text;
use crate::status::Status;
use pci::bdf::Bdf;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use xen::xenctrl::DomId;

/// Longest line that either side reads, in bytes.
pub const LONGEST_LINE: u64 = 1 << 20;
/// Time limit for a client to send its request, and to take its answer.
pub const TIMEOUT: Duration = Duration::from_secs(3);

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
    Status(Box<Status>),
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

/// Sends a request or a reply.
pub fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

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
