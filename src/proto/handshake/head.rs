//! The head of an HTTP message: where it ends, what it may cost, and the look-up of its header fields.
//!
//! Start at [`HeadScanner`]. It looks at every octet once, however finely the head is cut, so a peer that
//! sends its head octet by octet costs no more than one that sends it whole. What it finds depends only on
//! the octets in front, never on where they were cut.

use httparse::{EMPTY_HEADER, Header};

use super::is_token_octet;

/// What a head may cost before its sender is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// The longest request line or status line in octets, without its CRLF. Beyond it: 414.
    ///
    /// Default 8192: RFC 9112 §3 recommends at least 8000.
    pub start_line_bytes_max: usize,
    /// The longest head in octets, with its start line and every CRLF. Beyond it: 431.
    ///
    /// Default 16384, as node has it: room for the cookies a browser adds, and what a peer that never
    /// finishes its head can make us keep.
    pub head_bytes_max: usize,
    /// The most header fields. Beyond it: 431.
    ///
    /// Default 100: browsers behind several proxies send about 30.
    pub header_count_max: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { start_line_bytes_max: 8192, head_bytes_max: 16384, header_count_max: 100 }
    }
}

/// Why octets are not the head of an HTTP message that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum HeadError {
    #[error("the first line is longer than start_line_bytes_max")]
    StartLineTooLong,
    #[error("the head is longer than head_bytes_max")]
    TooLong,
    #[error("there are more header fields than header_count_max")]
    TooManyHeaders,
    #[error("this is not HTTP")]
    NotHttp,
    #[error("a line ends with LF, not CRLF")]
    BareLf,
    #[error("a header field is malformed")]
    MalformedHeader,
}

/// Where a head of which more may come has been looked at. One for each head, made with `default()`.
#[derive(Clone, Debug, Default)]
pub struct HeadScanner {
    /// Octets that need not be looked at again.
    scanned_len: usize,
    /// Where the line begins that the next octet belongs to. Invariant: not more than `scanned_len`.
    line_at: usize,
    /// The start line, without its CRLF, once it is whole; it is never empty.
    start_line: Option<(usize, usize)>,
    header_count: usize,
}

/// A head whose end was found.
pub(super) struct Head<'a> {
    /// Without its CRLF. Not empty.
    pub(super) start_line: &'a [u8],
    pub(super) headers: Headers<'a>,
    /// With everything in front of it and the empty line that ends it, in octets.
    pub(super) len: usize,
}

impl HeadScanner {
    /// Looks for the end of the head. `octets` must be those of the call before, and more.
    ///
    /// `None` if it is not there yet; a limit is enforced as soon as the octet that breaks it is there. Once
    /// there is another answer, it stays the same.
    pub(super) fn parse<'a>(
        &mut self,
        octets: &'a [u8],
        limits: &HandshakeLimits,
    ) -> Result<Option<Head<'a>>, HeadError> {
        let Some(len) = self.find_end(octets, limits)? else { return Ok(None) };
        let (start, end) = self.start_line.expect("a head ends after its start line");
        // The scanner has counted the header lines: the table has exactly their size.
        let headers = Headers::parse(&octets[end + 2..len], self.header_count)?;
        Ok(Some(Head { start_line: &octets[start..end], headers, len }))
    }

    fn find_end(&mut self, octets: &[u8], limits: &HandshakeLimits) -> Result<Option<usize>, HeadError> {
        let octets = &octets[..octets.len().min(limits.head_bytes_max)];
        assert!(self.scanned_len <= octets.len(), "a head grows between two calls");
        let from = self.scanned_len;
        for lf in memchr::memchr_iter(b'\n', &octets[from..]) {
            let lf = from + lf;
            self.check_start_line(&octets[..=lf], limits)?;
            let line = octets[self.line_at..lf].strip_suffix(b"\r").ok_or(HeadError::BareLf)?;
            match self.start_line {
                // RFC 9112 §2.2: empty lines in front of a request line are ignored.
                None if line.is_empty() => {}
                None => self.start_line = Some((self.line_at, self.line_at + line.len())),
                Some(_) if line.is_empty() => return Ok(Some(lf + 1)),
                Some(_) if self.header_count == limits.header_count_max => {
                    return Err(HeadError::TooManyHeaders);
                }
                Some(_) => self.header_count += 1,
            }
            // Both together: whatever ends this loop is found again by another call.
            (self.line_at, self.scanned_len) = (lf + 1, lf + 1);
        }
        self.scanned_len = octets.len();
        self.check_start_line(octets, limits)?;
        if octets.len() == limits.head_bytes_max { Err(HeadError::TooLong) } else { Ok(None) }
    }

    /// What can be said about a start line before its end: this way a TLS or binary client learns at once
    /// that it is wrong here, and a line without end is refused as early as one with.
    fn check_start_line(&self, octets: &[u8], limits: &HandshakeLimits) -> Result<(), HeadError> {
        if self.start_line.is_some() {
            return Ok(());
        }
        let line = &octets[self.line_at..];
        let end_len = usize::from(line.ends_with(b"\n"));
        match line {
            [first, ..] if !is_token_octet(*first) && *first != b'\r' && *first != b'\n' => {
                Err(HeadError::NotHttp)
            }
            // An octet that is there, and that neither the line nor its CR can be.
            _ if line.len() - end_len > limits.start_line_bytes_max + 1 => Err(HeadError::StartLineTooLong),
            _ => Ok(()),
        }
    }
}

/// The header fields of a head, in their order. Names are compared without regard to case.
pub(super) struct Headers<'a>(Vec<Header<'a>>);

impl<'a> Headers<'a> {
    /// `octets` are `count` whole header lines and the empty line behind them.
    fn parse(octets: &'a [u8], count: usize) -> Result<Self, HeadError> {
        let mut table = vec![EMPTY_HEADER; count];
        match httparse::parse_headers(octets, &mut table) {
            Ok(httparse::Status::Complete((len, _))) if len == octets.len() => Ok(Self(table)),
            _ => Err(HeadError::MalformedHeader),
        }
    }

    /// The values of every header field of this name, in order, without the white space around them.
    pub(super) fn values<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'a [u8]> + 'h {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value of the header field of this name, if there is exactly one.
    pub(super) fn single(&self, name: &str) -> Result<&'a [u8], NotSingle> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (Some(value), None) => Ok(value),
            (None, _) => Err(NotSingle::Missing),
            (Some(_), Some(_)) => Err(NotSingle::Repeated),
        }
    }

    /// The elements of a comma-separated list, which may be spread over several header fields
    /// (RFC 9110 §5.6.1). Empty elements are among them.
    pub(super) fn elements<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'a [u8]> + 'h {
        self.values(name).flat_map(|value| value.split(|octet| *octet == b',')).map(<[u8]>::trim_ascii)
    }

    /// Whether the list of this name has this element, in any case.
    pub(super) fn lists(&self, name: &str, element: &str) -> bool {
        self.elements(name).any(|listed| listed.eq_ignore_ascii_case(element.as_bytes()))
    }
}

/// Why there is no single header field of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSingle {
    Missing,
    Repeated,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HandshakeLimits =
        HandshakeLimits { start_line_bytes_max: 20, head_bytes_max: 64, header_count_max: 3 };

    /// How the octets end when they come one by one, and after how many of them.
    fn fed_by_octet(octets: &[u8]) -> (Result<Option<usize>, HeadError>, usize) {
        let mut scanner = HeadScanner::default();
        for len in 0..=octets.len() {
            match scanner.find_end(&octets[..len], &LIMITS) {
                Ok(None) => {}
                end => return (end, len),
            }
        }
        (Ok(None), octets.len())
    }

    fn whole(octets: &[u8]) -> Result<Option<usize>, HeadError> {
        HeadScanner::default().find_end(octets, &LIMITS)
    }

    #[test]
    fn a_head_ends_with_its_empty_line() {
        let octets = b"GET / HTTP/1.1\r\nA: b\r\n\r\n\x81\x80";
        assert_eq!(fed_by_octet(octets), (Ok(Some(24)), 24));
        assert_eq!(whole(octets), Ok(Some(24)));
    }

    #[test]
    fn empty_lines_in_front_are_ignored() {
        assert_eq!(whole(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Some(22)));
    }

    #[test]
    fn a_line_that_ends_with_a_bare_lf_is_malformed() {
        for octets in ["GET / HTTP/1.1\n\n", "GET / HTTP/1.1\r\nA: b\n\r\n", "GET / HTTP/1.1\r\n\n", "\nGET"]
        {
            assert_eq!(whole(octets.as_bytes()), Err(HeadError::BareLf), "{octets:?}");
            assert_eq!(fed_by_octet(octets.as_bytes()).0, Err(HeadError::BareLf), "{octets:?}");
        }
    }

    #[test]
    fn the_first_octet_of_something_else_is_enough() {
        for octets in [b"\x16\x03\x01".as_slice(), b" GET", b"\0", b"\r\n\x80"] {
            assert_eq!(whole(octets), Err(HeadError::NotHttp));
            assert_eq!(fed_by_octet(octets).0, Err(HeadError::NotHttp));
        }
    }

    #[test]
    fn the_start_line_limit_holds_before_and_at_its_end() {
        let line = |len: usize| [vec![b'G'; len], b"\r\n\r\n".to_vec()].concat();
        assert_eq!(whole(&line(20)), Ok(Some(24)));
        assert_eq!(whole(&line(21)), Err(HeadError::StartLineTooLong));
        assert_eq!(fed_by_octet(&line(20)), (Ok(Some(24)), 24));
        assert_eq!(fed_by_octet(&line(21)), (Err(HeadError::StartLineTooLong), 22));
        assert_eq!(fed_by_octet(&line(50)), (Err(HeadError::StartLineTooLong), 22));
    }

    #[test]
    fn the_head_limit_holds_before_and_at_its_end() {
        let head = |len: usize| [b"G\r\nA: ".as_slice(), &vec![b'x'; len - 10], b"\r\n\r\n"].concat();
        assert_eq!(whole(&head(64)), Ok(Some(64)));
        assert_eq!(fed_by_octet(&head(64)), (Ok(Some(64)), 64));
        assert_eq!(whole(&head(65)), Err(HeadError::TooLong));
        assert_eq!(fed_by_octet(&head(65)), (Err(HeadError::TooLong), 64));
        assert_eq!(fed_by_octet(&[b'\r', b'\n'].repeat(50)), (Err(HeadError::TooLong), 64));
    }

    #[test]
    fn the_header_count_limit_holds_before_the_end() {
        assert_eq!(whole(b"G\r\nA:\r\nB:\r\nC:\r\n\r\n"), Ok(Some(17)));
        assert_eq!(fed_by_octet(b"G\r\nA:\r\nB:\r\nC:\r\nD:\r\nE:"), (Err(HeadError::TooManyHeaders), 19));
    }

    #[test]
    fn an_octet_is_looked_at_once() {
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.find_end(b"GET / HTTP/1.1\r\nA: ", &LIMITS), Ok(None));
        // What was looked at is spoilt: a scanner that looked again would see it.
        assert_eq!(scanner.find_end(b"\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\nA: b\r\n\r\n", &LIMITS), Ok(Some(24)));
    }

    #[test]
    fn header_fields_are_what_rfc_9112_calls_well_formed() {
        let parsed = |line: &str| {
            let octets = format!("GET / HTTP/1.1\r\n{line}\r\n\r\n");
            HeadScanner::default()
                .parse(octets.as_bytes(), &HandshakeLimits::default())
                .map(|head| head.is_some())
        };
        assert_eq!(parsed("A: b"), Ok(true));
        assert_eq!(parsed("A:"), Ok(true));
        assert_eq!(parsed("A: \u{e9}\t\"x\""), Ok(true));
        for malformed in [
            "A : b",
            " A: b",
            "A: b\r\n c",
            "A: b\r\n\tc",
            "A",
            ": b",
            "A: b\0",
            "A: b\rc",
            "A\u{e9}: b",
            "A: b\r",
            "A: \x7f",
            "A B: c",
        ] {
            assert_eq!(parsed(malformed), Err(HeadError::MalformedHeader), "{malformed:?}");
        }
    }
}
