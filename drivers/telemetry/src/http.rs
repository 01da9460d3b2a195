//! The few words of HTTP/1.1 that a scrape takes (RFC 9112).

use metrics::Format;

/// Most bytes of a request's head.
pub const HEAD_MAX: usize = 1024;

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The metrics.
    Metrics {
        /// Their format.
        format: Format,
        /// Whether the body is sent, and not only its length (`HEAD`).
        body: bool,
    },
    /// An error, by its status line.
    Refused(&'static str),
}

/// No such path.
const NOT_FOUND: Answer = Answer::Refused("404 Not Found");
const NOT_ALLOWED: Answer = Answer::Refused("405 Method Not Allowed");
const BAD_REQUEST: Answer = Answer::Refused("400 Bad Request");
const TOO_LARGE: Answer = Answer::Refused("431 Request Header Fields Too Large");

/// Judges what has come of a request; `None` while its head is not complete.
pub fn judge(received: &[u8]) -> Option<Answer> {
    let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return (received.len() >= HEAD_MAX).then_some(TOO_LARGE);
    };
    let head = &received[..end];
    let (line, _) = cut(head, b'\r');
    let (method, rest) = cut(line, b' ');
    let (target, version) = cut(rest, b' ');
    if !version.starts_with(b"HTTP/1.") || version.contains(&b' ') {
        return Some(BAD_REQUEST);
    }
    // Prometheus may add parameters. None of them means anything here.
    let (path, _) = cut(target, b'?');
    let body = method == b"GET";
    Some(match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => Answer::Metrics {
            format: format(head),
            body,
        },
        (_, b"/metrics") => NOT_ALLOWED,
        _ => NOT_FOUND,
    })
}

/// The format for a request with this head: OpenMetrics, unless the client names the older format and not this one.
fn format(head: &[u8]) -> Format {
    const ACCEPT: &[u8] = b"accept:";
    let accept = head.split(|byte| *byte == b'\n').find(|line| {
        let name = line.get(..ACCEPT.len());
        name.is_some_and(|name| name.eq_ignore_ascii_case(ACCEPT))
    });
    let names = |media_type: &[u8]| {
        let accept = accept.unwrap_or_default();
        accept
            .windows(media_type.len())
            .any(|bytes| bytes.eq_ignore_ascii_case(media_type))
    };
    if names(b"text/plain") && !names(b"openmetrics-text") {
        Format::Prometheus
    } else {
        Format::OpenMetrics
    }
}

/// What stands before the first `byte`, and what after it: nothing if there is none.
#[inline(never)]
fn cut(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    match text.iter().position(|other| *other == byte) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: Answer = Answer::Metrics {
        format: Format::OpenMetrics,
        body: true,
    };

    #[test]
    fn the_older_format_is_for_those_who_ask_for_it() {
        for (header, format) in [
            ("Host: x\r\n", Format::OpenMetrics),
            ("Accept: */*\r\n", Format::OpenMetrics),
            ("X-Accept: text/plain\r\n", Format::OpenMetrics),
            ("Accept: text/plain\r\n", Format::Prometheus),
            (
                "Host: x\r\naccept:TEXT/PLAIN;version=0.0.4\r\n",
                Format::Prometheus,
            ),
            (
                "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4\r\n",
                Format::OpenMetrics,
            ),
        ] {
            let request = alloc::format!("GET /metrics HTTP/1.1\r\n{header}\r\n");
            let body = true;
            assert_eq!(
                judge(request.as_bytes()),
                Some(Answer::Metrics { format, body }),
                "{header}"
            );
        }
    }
    use alloc::vec;

    #[test]
    fn a_request_is_answered_once_its_head_is_complete() {
        let request = b"GET /metrics HTTP/1.1\r\nHost: stub:9743\r\nAccept: */*\r\n\r\n";
        for length in 0..request.len() {
            assert_eq!(judge(&request[..length]), None, "{length}");
        }
        assert_eq!(judge(request), Some(METRICS));
    }

    #[test]
    fn only_metrics_can_be_read() {
        for (request, answer) in [
            ("GET /metrics?collect=x HTTP/1.0\r\n\r\n", METRICS),
            (
                "HEAD /metrics HTTP/1.1\r\n\r\n",
                Answer::Metrics {
                    format: Format::OpenMetrics,
                    body: false,
                },
            ),
            ("POST /metrics HTTP/1.1\r\n\r\n", NOT_ALLOWED),
            ("GET / HTTP/1.1\r\n\r\n", NOT_FOUND),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", NOT_FOUND),
            ("GET /metrics\r\n\r\n", BAD_REQUEST),
            ("GET /metrics HTTP/2\r\n\r\n", BAD_REQUEST),
            ("GET  /metrics HTTP/1.1\r\n\r\n", BAD_REQUEST),
            ("\r\n\r\n", BAD_REQUEST),
        ] {
            assert_eq!(judge(request.as_bytes()), Some(answer), "{request}");
        }
    }

    #[test]
    fn a_head_without_an_end_is_refused_at_the_limit() {
        assert_eq!(judge(&vec![b'x'; HEAD_MAX - 1]), None);
        assert_eq!(judge(&vec![b'x'; HEAD_MAX]), Some(TOO_LARGE));
    }
}
