//! What a request did wrong, as values, and the answer that says so.

use std::io::Write as _;

use super::{HeadError, VERSION};

/// Why a request gets no WebSocket connection. Each has its HTTP status, and its message is the body of the
/// answer.
///
/// Its connection ends: what follows such a request cannot be trusted to be another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Rejection {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("the request line is malformed (RFC 9112 §3)")]
    RequestLine,
    #[error("this server speaks HTTP/1.1")]
    HttpMajorVersion,
    #[error("there must be exactly one valid Host header field (RFC 9112 §3.2)")]
    Host,
    #[error("Content-Length is malformed (RFC 9112 §6.3)")]
    ContentLength,
    #[error("a WebSocket connection starts with a GET (RFC 6455 §4.2.1)")]
    Method,
    #[error("a WebSocket connection needs HTTP/1.1 (RFC 6455 §4.2.1)")]
    HttpVersion,
    #[error("the request for a WebSocket connection has a body")]
    Body,
    #[error("the Upgrade header field does not list websocket (RFC 6455 §4.2.1)")]
    Upgrade,
    #[error("the Connection header field does not list Upgrade; did a proxy drop it? (RFC 6455 §4.2.1)")]
    Connection,
    #[error(
        "there must be exactly one Sec-WebSocket-Version header field, and it must be 13 (RFC 6455 §4.4)"
    )]
    Version,
    #[error("there must be exactly one Sec-WebSocket-Key header field (RFC 6455 §4.2.1)")]
    KeyCount,
    #[error("Sec-WebSocket-Key is not the base64 of 16 octets (RFC 6455 §4.2.1)")]
    Key,
    #[error("there is more than one Origin header field (RFC 6454 §7.3)")]
    OriginCount,
    #[error("this Origin is not allowed here (RFC 6455 §4.2.2)")]
    Origin,
    #[error("Sec-WebSocket-Protocol is not a list of unique tokens (RFC 6455 §4.1)")]
    Subprotocols,
    #[error("a Sec-WebSocket-Extensions header field is malformed (RFC 6455 §9.1)")]
    Extensions,
}

impl Rejection {
    /// The HTTP status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Self::Head(HeadError::StartLineTooLong) => 414,
            Self::Head(HeadError::TooLong | HeadError::TooManyHeaders) => 431,
            Self::HttpMajorVersion => 505,
            Self::Method => 405,
            Self::Upgrade | Self::Version => 426,
            Self::Origin => 403,
            _ => 400,
        }
    }

    /// Appends the whole answer to `target`. The connection is to be closed once it is sent. `date` is the value
    /// of its `Date` header field (RFC 9110 §6.6.1).
    pub fn write(self, date: &str, target: &mut Vec<u8>) {
        let body = format!("{self}\n");
        let fields: &[(&str, &str)] = match self.status() {
            405 => &[("Allow", "GET"), ("Connection", "close")],
            // RFC 9110 §15.5.22 and §7.8: a 426 names what to upgrade to, in both header fields.
            426 => &[
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade, close"),
                ("Sec-WebSocket-Version", VERSION), // RFC 6455 §4.4
            ],
            _ => &[("Connection", "close")],
        };
        write_answer(target, self.status(), date, fields, &body, true);
    }
}

/// Appends a whole HTTP response with a text body; with only its length for a HEAD (`send_body` is false).
pub(crate) fn write_answer(
    target: &mut Vec<u8>,
    status: u16,
    date: &str,
    fields: &[(&str, &str)],
    body: &str,
    send_body: bool,
) {
    let reason = match status {
        200 => "OK",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Bad Request",
    };
    let written = write!(target, "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\n");
    written.expect("a Vec takes every octet");
    for (name, value) in fields {
        put(target, &[name, ": ", value, "\r\n"]);
    }
    let written = write!(
        target,
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{}",
        body.len(),
        if send_body { body } else { "" }
    );
    written.expect("a Vec takes every octet");
}

/// Appends these texts.
pub(super) fn put(target: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        target.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT"; // RFC 9110 §5.6.7

    fn written(rejection: Rejection) -> String {
        let mut target = b"before".to_vec();
        rejection.write(DATE, &mut target);
        String::from_utf8(target).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
        assert_eq!(
            written(Rejection::Origin),
            "HTTP/1.1 403 Forbidden\r\n\
             Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Connection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 51\r\n\
             \r\n\
             this Origin is not allowed here (RFC 6455 §4.2.2)\n"
        );
    }

    #[test]
    fn a_426_says_what_to_upgrade_to() {
        for rejection in [Rejection::Version, Rejection::Upgrade] {
            let answer = written(rejection);
            assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
            assert!(answer.contains("\r\nUpgrade: websocket\r\n"), "{answer}");
            assert!(answer.contains("\r\nConnection: Upgrade, close\r\n"), "{answer}");
            assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
        }
    }

    #[test]
    fn a_405_says_what_is_allowed() {
        assert!(written(Rejection::Method).contains("\r\nAllow: GET\r\n"));
    }

    #[test]
    fn each_limit_has_its_status() {
        assert_eq!(Rejection::Head(HeadError::StartLineTooLong).status(), 414);
        assert_eq!(Rejection::Head(HeadError::TooLong).status(), 431);
        assert_eq!(Rejection::Head(HeadError::TooManyHeaders).status(), 431);
        assert_eq!(Rejection::Head(HeadError::BareLf).status(), 400);
    }
}
