//! One connection of HTTP at a time: a request, its answer, the end.

use crate::buffer::Buffer;
use crate::http::{Answer, HEAD_MAX, judge};
use core::fmt::{self, Write};
use core::time::Duration;
use metrics::Format;
use smoltcp::socket::tcp::{Socket, State};

/// Most bytes of an answer. It leaves the figures in one piece: they are written once, as they are at that moment. A test
/// of `network` shows that they fit whatever the names are.
pub const ANSWER_MAX: usize = 48 * 1024;

/// Limit of a connection, from its first packet to its end. A slow client holds a socket for no longer.
const TIMEOUT: Duration = Duration::from_secs(5);

const FAILED: Answer = Answer::Refused("500 Internal Server Error");

/// The figures of one moment.
pub trait Figures {
    /// Writes them.
    ///
    /// # Errors
    /// Those of `out`.
    fn write(&self, format: Format, out: &mut dyn Write) -> fmt::Result;
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nobody is there.
    Idle,
    /// The request has not come whole.
    Reading,
    /// The answer is given, or on its way.
    Answered,
}

/// What serves one socket.
#[derive(Debug)]
pub struct Server {
    phase: Phase,
    since: Duration,
}

impl Server {
    /// Nobody is there.
    pub const IDLE: Self = Self {
        phase: Phase::Idle,
        since: Duration::ZERO,
    };

    /// Does what there is to do on `socket`; `figures` are those of this moment.
    pub fn serve(&mut self, socket: &mut Socket<'_>, port: u16, now: Duration, figures: &dyn Figures) {
        // A server that has closed first would keep its socket for many seconds.
        if socket.state() == State::TimeWait {
            socket.abort();
        }
        if !socket.is_open() {
            self.phase = Phase::Idle;
            // Fails only for port 0, which the settings refuse.
            let _ = socket.listen(port);
            return;
        }
        // Also where a client has reset a connection that had not come about: the socket listens then.
        if !socket.is_active() {
            self.phase = Phase::Idle;
            return;
        }
        if self.phase == Phase::Idle {
            self.phase = Phase::Reading;
            self.since = now;
        }
        if now.saturating_sub(self.since) > TIMEOUT {
            socket.abort();
            return;
        }
        if self.phase == Phase::Answered {
            return;
        }
        match socket.peek(HEAD_MAX).ok().and_then(judge) {
            Some(answer) => {
                // All of the buffer is free: nothing was sent on this connection. The state may refuse when the peer has
                // gone, and then nobody waits for an answer.
                let _ = socket.send(|room| (respond(answer, figures, room), ()));
                socket.close();
                self.phase = Phase::Answered;
            }
            // The peer has ended its side: the request will never be whole.
            None if socket.state() == State::CloseWait => socket.abort(),
            None => {}
        }
    }

    /// When [`Self::serve`] must be called even if no frame comes.
    pub fn due(&self) -> Option<Duration> {
        (self.phase != Phase::Idle).then(|| self.since + TIMEOUT + Duration::from_millis(1))
    }
}

/// Writes an answer to the beginning of `room`; returns its length.
fn respond(answer: Answer, figures: &dyn Figures, room: &mut [u8]) -> usize {
    let whole = write(answer, figures, room);
    whole.or_else(|_| write(FAILED, figures, room)).unwrap_or(0)
}

fn write(answer: Answer, figures: &dyn Figures, room: &mut [u8]) -> Result<usize, fmt::Error> {
    let (status, media_type) = match answer {
        Answer::Metrics { format, .. } => ("200 OK", format.content_type()),
        Answer::Refused(status) => (status, "text/plain"),
    };
    // Blanks before the length keep the head as long as it is, whatever the length.
    let head = |length: usize, out: &mut Buffer<'_>| {
        write!(
            out,
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nConnection: close\r\nContent-Length: {length:5}\r\n\r\n"
        )
    };
    let mut out = Buffer::new(room);
    head(0, &mut out)?;
    let begin = out.length();
    match answer {
        Answer::Metrics { format, .. } => figures.write(format, &mut out)?,
        Answer::Refused(status) => writeln!(out, "{status}: there is /metrics")?,
    }
    let end = out.length();
    head(end - begin, &mut Buffer::new(room))?;
    Ok(match answer {
        Answer::Metrics { body: false, .. } => begin,
        _ => end,
    })
}
