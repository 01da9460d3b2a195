//! The little of HTTP that a reader of metrics needs: one answer on each connection (RFC 9112).
//!
//! A client is bounded in the bytes and the time that it takes, and the clients in their number. Each has a thread, so that a
//! slow one holds nobody up. When there is no room, the oldest one that has asked for nothing yet, or has its answer, gives way.

use crate::say;
use anyhow::{Error, Result};
use metrics::Format;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Most clients at once.
const CLIENTS_MAX: usize = 16;
/// Most threads at once: of clients, and of those that have given way and not ended yet.
const THREADS_MAX: usize = 2 * CLIENTS_MAX;
/// Most bytes of a request.
const REQUEST_MAX: usize = 8192;
/// Time limit for a client to send its request, and another one to take its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes that are thrown away of a client that goes on sending.
const DRAINED_MAX: usize = 1 << 16;
/// Delay after a connection that could not be accepted, as if too many files are open.
const PAUSE: Duration = Duration::from_millis(100);
/// The one path that is served.
const PATH: &str = "/metrics";

/// Why a request gets no metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HttpRefusal {
    /// It is no request.
    Malformed,
    /// Nothing is served at its path.
    NotFound,
    /// It wants to do something else than read.
    Method,
    /// It took too long.
    TooSlow,
    /// It is too long.
    TooLong,
    /// The metrics could not be made.
    Failed,
    /// There are too many clients.
    Busy,
}

impl HttpRefusal {
    /// The status line, without the version.
    const fn status(self) -> &'static str {
        match self {
            Self::Malformed => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::TooSlow => "408 Request Timeout",
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Failed => "500 Internal Server Error",
            Self::Busy => "503 Service Unavailable",
        }
    }
}

/// A request for metrics.
#[derive(Debug, PartialEq, Eq)]
struct HttpRequest {
    format: Format,
    /// True if the client wants no metrics, but to know what it would get (HEAD).
    head: bool,
}

/// Serves metrics to all who connect. `report` makes them. Does not return.
pub fn serve(listener: &TcpListener, report: impl Fn(Format) -> Result<String> + Sync) {
    let (report, clients, threads) = (&report, &HttpClients::default(), &AtomicUsize::new(0));
    thread::scope(|scope| {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                thread::sleep(PAUSE);
                continue;
            };
            // No thread but this one adds to them.
            let room = threads.load(Ordering::Relaxed) < THREADS_MAX;
            let Some(place) = room.then(|| clients.admit(&stream)).flatten() else {
                refuse_at_once(stream);
                continue;
            };
            threads.fetch_add(1, Ordering::Relaxed);
            let started = thread::Builder::new().spawn_scoped(scope, move || {
                // A client that goes away is no error of ours.
                let _ = attend(stream, &place, report);
                drop(place);
                threads.fetch_sub(1, Ordering::Relaxed);
            });
            if started.is_err() {
                threads.fetch_sub(1, Ordering::Relaxed);
            }
        }
    });
}

/// The clients, in the order in which they came.
#[derive(Default)]
struct HttpClients {
    list: Mutex<Vec<HttpClient>>,
    /// How many there were so far.
    count: AtomicUsize,
}

struct HttpClient {
    number: usize,
    /// To end its connection.
    stream: TcpStream,
    /// True while it has asked for nothing, or has its answer.
    is_idle: bool,
}

impl HttpClients {
    fn list(&self) -> MutexGuard<'_, Vec<HttpClient>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a client a place. If there is none left, the oldest idle one loses its own; `None` if none is idle.
    fn admit(&self, stream: &TcpStream) -> Option<HttpPlace<'_>> {
        let stream = stream.try_clone().ok()?;
        let mut list = self.list();
        if list.len() >= CLIENTS_MAX {
            let oldest = list.iter().position(|client| client.is_idle)?;
            // Its thread sees the end of the connection.
            let _ = list.remove(oldest).stream.shutdown(Shutdown::Both);
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        list.push(HttpClient {
            number,
            stream,
            is_idle: true,
        });
        Some(HttpPlace {
            clients: self,
            number,
        })
    }
}

/// A client's place among all, until this is dropped.
struct HttpPlace<'a> {
    clients: &'a HttpClients,
    number: usize,
}

impl HttpPlace<'_> {
    /// From now on the client is idle, or is not. Returns false if it has lost its place.
    fn set_idle(&self, is_idle: bool) -> bool {
        let mut list = self.clients.list();
        let own = list.iter_mut().find(|client| client.number == self.number);
        own.map(|own| own.is_idle = is_idle).is_some()
    }
}

impl Drop for HttpPlace<'_> {
    fn drop(&mut self) {
        self.clients.list().retain(|client| client.number != self.number);
    }
}

/// Turns a client away. Its request is not read, and this thread waits for nothing.
fn refuse_at_once(mut stream: TcpStream) {
    let answer = head(Err(HttpRefusal::Busy), 0);
    // The answer fits the empty buffer of a new connection. If it does not, the client sees an end without one.
    let _ = stream
        .set_nonblocking(true)
        .and_then(|()| stream.write_all(answer.as_bytes()));
}

/// Answers one client.
fn attend(
    mut stream: TcpStream,
    place: &HttpPlace<'_>,
    report: impl Fn(Format) -> Result<String>,
) -> io::Result<()> {
    let request = read(&mut stream, Instant::now() + TIMEOUT)?.and_then(|text| parse(&text));
    if !place.set_idle(false) {
        return Ok(());
    }
    let (answer, body) = match request {
        Err(refusal) => (Err(refusal), String::new()),
        Ok(request) => match report(request.format) {
            Ok(body) => (Ok(request), body),
            Err(error) => {
                tell(&error);
                (Err(HttpRefusal::Failed), String::new())
            }
        },
    };
    let mut text = head(
        answer
            .as_ref()
            .map(|request| request.format)
            .map_err(|refusal| *refusal),
        body.len(),
    );
    if answer.is_ok_and(|request| !request.head) {
        text.push_str(&body);
    }
    let deadline = Instant::now() + TIMEOUT;
    write(&mut stream, text.as_bytes(), deadline)?;
    // If bytes of the client's were unread at the close, the kernel would reset the connection, and the answer could be lost.
    stream.shutdown(Shutdown::Write)?;
    place.set_idle(true);
    drain(&mut stream, deadline)
}

fn tell(error: &Error) {
    say::error(format_args!("{error:#}"));
}

/// The head of an answer whose body has this length.
fn head(answer: Result<Format, HttpRefusal>, length: usize) -> String {
    let mut head = match answer {
        Ok(format) => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nVary: Accept\r\n",
            format.content_type()
        ),
        Err(refusal) => format!("HTTP/1.1 {}\r\n", refusal.status()),
    };
    if answer == Err(HttpRefusal::Method) {
        head.push_str("Allow: GET, HEAD\r\n");
    }
    head.push_str(&format!("Content-Length: {length}\r\nConnection: close\r\n\r\n"));
    head
}

/// Waits for data until `deadline` at most; `TimedOut` after that.
fn receive(stream: &mut TcpStream, piece: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(piece) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            received => return received,
        }
    }
}

/// Reads the head of a request.
///
/// # Errors
/// The outer ones are those of the connection: there is nobody to answer.
fn read(stream: &mut TcpStream, deadline: Instant) -> io::Result<Result<String, HttpRefusal>> {
    let mut text = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let length = match receive(stream, &mut piece, deadline) {
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(Err(HttpRefusal::TooSlow)),
            received => received?,
        };
        if length == 0 {
            return Ok(Err(HttpRefusal::Malformed));
        }
        text.extend_from_slice(&piece[..length]);
        // What follows the head is not read: neither method has a body that matters.
        if let Some(end) = text.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            text.truncate(end);
            return Ok(String::from_utf8(text).map_err(|_| HttpRefusal::Malformed));
        }
        if text.len() >= REQUEST_MAX {
            return Ok(Err(HttpRefusal::TooLong));
        }
    }
}

/// What the head of a request asks for.
fn parse(head: &str) -> Result<HttpRequest, HttpRefusal> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HttpRefusal::Malformed);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(HttpRefusal::Malformed);
    }
    let mut accept = String::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(HttpRefusal::Malformed)?;
        if name.eq_ignore_ascii_case("accept") {
            // Several headers of one name are one list (RFC 9110, section 5.3).
            accept.push_str(value);
            accept.push(',');
        }
    }
    let path = target.split('?').next().unwrap_or_default();
    if path != PATH {
        return Err(HttpRefusal::NotFound);
    }
    let head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(HttpRefusal::Method),
    };
    let format = Format::negotiate(&accept);
    Ok(HttpRequest { format, head })
}

/// Sends all of it until `deadline` at most.
fn write(stream: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        // A limit for the whole answer: a client that takes a byte now and then would pass one for each write.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            sent => bytes = &bytes[sent?..],
        }
    }
    Ok(())
}

/// Throws away what the client still sends, until it closes its end.
fn drain(stream: &mut TcpStream, deadline: Instant) -> io::Result<()> {
    let mut piece = [0; 1024];
    for _ in 0..DRAINED_MAX / piece.len() {
        if receive(stream, &mut piece, deadline)? == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::net::SocketAddr;

    /// A server in a thread that ends with the tests.
    fn server(report: impl Fn(Format) -> Result<String> + Sync + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, report));
        address
    }

    /// All that the server answers to these bytes.
    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        // The server may have answered and closed its end already.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        // A client that is turned away unread may see a reset.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn first_line(answer: &str) -> &str {
        answer.lines().next().unwrap_or_default()
    }

    #[test]
    fn metrics_come_in_the_format_that_the_client_accepts() {
        let address = server(|format| Ok(format!("{format:?}\n")));
        for (accept, format) in [
            ("", Format::Prometheus),
            ("Accept: */*\r\n", Format::Prometheus),
            (
                "aCCept: text/plain;q=0.1\r\nACCEPT:application/openmetrics-text\r\n",
                Format::OpenMetrics,
            ),
        ] {
            let answer = ask(
                address,
                &format!("GET /metrics HTTP/1.1\r\nHost: dom0\r\n{accept}\r\n"),
            );
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(first_line(head), "HTTP/1.1 200 OK");
            assert!(
                head.contains(&format!("\r\nContent-Type: {}\r\n", format.content_type())),
                "{head}"
            );
            assert!(
                head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())),
                "{head}"
            );
            assert_eq!(body, format!("{format:?}\n"));
        }
    }

    #[test]
    fn head_has_the_head_of_get_and_no_body() {
        let address = server(|_| Ok("four".into()));
        let [get, head] =
            ["GET", "HEAD"].map(|method| ask(address, &format!("{method} /metrics?x=1 HTTP/1.0\r\n\r\n")));
        assert_eq!(get, format!("{head}four"));
        assert!(head.contains("Content-Length: 4\r\n"), "{head}");
    }

    #[test]
    fn whatever_else_is_asked_for_is_refused_by_its_name() {
        let address = server(|_| bail!("no"));
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(REQUEST_MAX));
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("GET /metricsx HTTP/1.1\r\n\r\n", "404 Not Found"),
            (
                "POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody",
                "405 Method Not Allowed",
            ),
            ("get /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("GET /metrics HTTP/2.0\r\n\r\n", "400 Bad Request"),
            ("GET http://dom0/metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
            ("GET /metrics\r\n\r\n", "400 Bad Request"),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400 Bad Request"),
            ("GET /metrics HTTP/1.1\r\nno header\r\n\r\n", "400 Bad Request"),
            ("\r\n\r\n", "400 Bad Request"),
            (&long, "431 Request Header Fields Too Large"),
            ("GET /metrics HTTP/1.1\r\n\r\n", "500 Internal Server Error"),
        ] {
            let answer = ask(address, request);
            assert_eq!(first_line(&answer), format!("HTTP/1.1 {status}"), "{request:.80}");
            assert_eq!(
                answer.contains("\r\nAllow: GET, HEAD\r\n"),
                status.starts_with("405"),
                "{answer}"
            );
        }
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /\xff HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(first_line(&answer), "HTTP/1.1 400 Bad Request");
    }

    #[test]
    fn a_request_may_come_in_pieces() {
        let address = server(|_| Ok("metrics".into()));
        let mut stream = TcpStream::connect(address).unwrap();
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n" {
            stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\nmetrics"), "{answer}");
    }

    #[test]
    fn slow_clients_hold_nobody_up_and_are_turned_away_after_a_time() {
        let address = server(|_| Ok("metrics".into()));
        let began = Instant::now();
        let mut slow: Vec<_> = (1..CLIENTS_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        for stream in &mut slow {
            stream.write_all(b"GET /met").unwrap();
        }
        let request = "GET /metrics HTTP/1.1\r\n\r\n";
        assert!(ask(address, request).ends_with("metrics"));
        assert!(began.elapsed() < TIMEOUT);
        for mut stream in slow {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(first_line(&answer), "HTTP/1.1 408 Request Timeout");
        }
        assert!(began.elapsed() >= TIMEOUT);
    }

    const REQUEST: &str = "GET /metrics HTTP/1.1\r\n\r\n";

    #[test]
    fn the_oldest_client_that_asks_for_nothing_gives_way() {
        let address = server(|_| Ok("metrics".into()));
        let began = Instant::now();
        let mut idle: Vec<_> = (0..CLIENTS_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        assert!(ask(address, REQUEST).ends_with("metrics"));
        let mut answer = String::new();
        // A connection that ends, or is reset.
        let _ = idle[0].read_to_string(&mut answer);
        assert_eq!(answer, "");
        for stream in &mut idle[1..] {
            stream.write_all(REQUEST.as_bytes()).unwrap();
            answer.clear();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("metrics"), "{answer}");
        }
        assert!(began.elapsed() < TIMEOUT, "nobody has waited for a limit");
    }

    #[test]
    fn clients_that_have_their_answers_and_stay_give_way_too() {
        let address = server(|_| Ok("metrics".into()));
        let began = Instant::now();
        let stay: Vec<_> = (0..CLIENTS_MAX)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(REQUEST.as_bytes()).unwrap();
                // The whole answer: the server has closed its end.
                stream.read_to_string(&mut String::new()).unwrap();
                stream
            })
            .collect();
        assert!(ask(address, REQUEST).ends_with("metrics"));
        assert!(began.elapsed() < TIMEOUT);
        drop(stay);
    }

    #[test]
    fn more_clients_than_there_is_room_for_are_told_so_at_once() {
        // Their answers are being made, as long as this is held.
        let held = std::sync::Arc::new(Mutex::new(()));
        let holding = held.lock().unwrap();
        let (asked, asks) = std::sync::mpsc::channel();
        let (asked, held_too) = (Mutex::new(asked), std::sync::Arc::clone(&held));
        let address = server(move |_| {
            asked.lock().unwrap().send(()).unwrap();
            drop(held_too.lock());
            Ok("metrics".into())
        });
        let busy: Vec<_> = (0..CLIENTS_MAX)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(REQUEST.as_bytes()).unwrap();
                asks.recv().unwrap();
                stream
            })
            .collect();
        let mut stream = TcpStream::connect(address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(first_line(&answer), "HTTP/1.1 503 Service Unavailable");
        drop(holding);
        for mut stream in busy {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("metrics"), "{answer}");
        }
        // Until their threads have seen that they are gone.
        let deadline = Instant::now() + TIMEOUT;
        while !ask(address, "GET /metrics HTTP/1.1\r\n\r\n").ends_with("metrics") {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_client_that_does_not_take_its_answer_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let (stream, _) = listener.accept().unwrap();
        let began = Instant::now();
        // More than the buffers of both ends hold.
        let clients = HttpClients::default();
        let place = clients.admit(&stream).unwrap();
        let error = attend(stream, &place, |_| Ok("x".repeat(64 << 20))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    }

    #[test]
    fn a_client_that_goes_away_is_no_error() {
        let address = server(|_| Ok("metrics".into()));
        drop(TcpStream::connect(address).unwrap());
        assert!(ask(address, "GET /metrics HTTP/1.1\r\n\r\n").ends_with("metrics"));
    }
}
