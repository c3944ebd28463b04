//! A request as a server sees it: its line, its header fields, and what they mean for the connection.
//!
//! Start at [`Request::parse`]. What RFC 9112 demands of every request is checked here, so that a `Request`
//! is always one that may be answered; what RFC 6455 demands of an upgrade is in `upgrade.rs`.

use super::head::{Headers, NotSingle};
use super::{Extension, HandshakeLimits, HeadScanner, MalformedExtensions, Rejection};
use super::{extensions, is_host, is_target, is_token};

/// The HTTP version of a request: higher minor versions count as 1.1 (RFC 9110 §2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum HttpVersion {
    Http10,
    Http11,
}

/// The head of an HTTP/1.x request. It borrows the octets it was read from.
pub struct Request<'a> {
    method: &'a str,
    target: &'a str,
    version: HttpVersion,
    has_body: bool,
    pub(super) headers: Headers<'a>,
}

impl<'a> Request<'a> {
    /// Reads the head of a request from the front of `octets`: the request and the head's length in octets;
    /// what follows belongs to the connection. `None` if the head is not whole yet: then call again with the
    /// same octets and more, and with the same `scanner`.
    ///
    /// # Errors
    /// A [`Rejection`], as soon as a limit is exceeded, otherwise once the head is whole.
    pub fn parse(
        octets: &'a [u8],
        scanner: &mut HeadScanner,
        limits: &HandshakeLimits,
    ) -> Result<Option<(Self, usize)>, Rejection> {
        let Some(head) = scanner.parse(octets, limits)? else { return Ok(None) };
        let (method, target, version) = parse_request_line(head.start_line)?;
        match head.headers.single("host") {
            // RFC 9110 §7.2: an empty one is sent where the target has no authority.
            Ok(host) if host.is_empty() || is_host(host) => {}
            Err(NotSingle::Missing) if version == HttpVersion::Http10 => {}
            _ => return Err(Rejection::Host),
        }
        let has_body = parse_body_len(&head.headers)?;
        Ok(Some((Self { method, target, version, has_body, headers: head.headers }, head.len)))
    }

    /// The method; methods are case-sensitive.
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The request target as it was sent (RFC 9112 §3.2).
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// The path of the target, as it was sent (not percent-decoded), without the query. It starts with `/`,
    /// but for `OPTIONS *` and `CONNECT`.
    pub fn path(&self) -> &'a str {
        self.path_and_query().0
    }

    /// What stands behind the first `?` of the target.
    pub fn query(&self) -> Option<&'a str> {
        self.path_and_query().1
    }

    fn path_and_query(&self) -> (&'a str, Option<&'a str>) {
        let local = match absolute_form(self.target) {
            // The authority ends where the path or, without a path, the query begins.
            Some(rest) => rest.find(['/', '?']).map_or("", |at| &rest[at..]),
            None => self.target,
        };
        let (path, query) = local.split_once('?').map_or((local, None), |(path, query)| (path, Some(query)));
        (if path.is_empty() { "/" } else { path }, query)
    }

    /// The version of HTTP.
    pub fn version(&self) -> HttpVersion {
        self.version
    }

    /// The values of every header field of this name, in any case, in order.
    pub fn header_values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.headers.values(name)
    }

    /// Host and port that the client means to talk to, if it says so.
    pub fn host(&self) -> Option<&'a str> {
        let host = self.headers.single("host").ok().filter(|host| !host.is_empty())?;
        std::str::from_utf8(host).ok()
    }

    /// Whether another request may follow this one on its connection (RFC 9112 §9.3).
    pub fn keep_alive(&self) -> bool {
        let option = |option| self.headers.lists("connection", option);
        !option("close") && (self.version >= HttpVersion::Http11 || option("keep-alive"))
    }

    /// Whether the head is followed by a body (RFC 9112 §6.3).
    pub fn has_body(&self) -> bool {
        self.has_body
    }

    /// Whether this is a GET that asks for a WebSocket connection, well or badly: then
    /// [`upgrade`](Self::upgrade) answers it. Everything else is a plain request.
    pub fn wants_upgrade(&self) -> bool {
        self.method == "GET" && self.headers.lists("upgrade", "websocket")
    }

    /// The extensions that the client offers, in its order of preference, over all header fields
    /// (RFC 6455 §9.1). Well-formed for a request that [`upgrade`](Self::upgrade) accepted.
    pub fn extension_offers(&self) -> impl Iterator<Item = Result<Extension<'a>, MalformedExtensions>> + '_ {
        self.headers.values("sec-websocket-extensions").flat_map(extensions)
    }
}

/// `method SP request-target SP HTTP-version` (RFC 9112 §3), with exactly these spaces.
fn parse_request_line(line: &[u8]) -> Result<(&str, &str, HttpVersion), Rejection> {
    let mut parts = line.split(|octet| *octet == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Rejection::RequestLine);
    };
    if !is_token(method) || !is_target(target) {
        return Err(Rejection::RequestLine);
    }
    let text = |octets| std::str::from_utf8(octets).map_err(|_| Rejection::RequestLine);
    let (method, target) = (text(method)?, text(target)?);
    let version = match version {
        b"HTTP/1.1" => HttpVersion::Http11,
        b"HTTP/1.0" => HttpVersion::Http10,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9'] => HttpVersion::Http11,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err(Rejection::HttpMajorVersion);
        }
        _ => return Err(Rejection::RequestLine),
    };
    let well_formed = match method {
        "CONNECT" => is_host(target.as_bytes()),
        "OPTIONS" if target == "*" => true,
        _ => {
            target.starts_with('/')
                || absolute_form(target).is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?']))
        }
    };
    if well_formed { Ok((method, target, version)) } else { Err(Rejection::RequestLine) }
}

/// What follows `http://` or `https://` in a target of absolute form (RFC 9112 §3.2.2, RFC 6455 §4.2.1).
fn absolute_form(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")).then_some(rest)
}

/// Whether there is a body. Several lengths are one if they are the same (RFC 9110 §8.6).
fn parse_body_len(headers: &Headers<'_>) -> Result<bool, Rejection> {
    let mut lengths = headers.elements("content-length");
    let first = lengths.next();
    if first.is_some_and(|len| len.is_empty() || !len.iter().all(u8::is_ascii_digit))
        || lengths.any(|len| Some(len) != first)
    {
        return Err(Rejection::ContentLength);
    }
    let announced = first.is_some_and(|len| len.iter().any(|digit| *digit != b'0'));
    Ok(announced || headers.values("transfer-encoding").next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HandshakeLimits =
        HandshakeLimits { start_line_bytes_max: 100, head_bytes_max: 400, header_count_max: 8 };

    fn parsed(octets: &[u8]) -> Result<Option<(Request<'_>, usize)>, Rejection> {
        Request::parse(octets, &mut HeadScanner::default(), &LIMITS)
    }

    /// The request with this line and these header fields after its Host.
    fn check<T>(line: &str, fields: &str, check: impl Fn(Request<'_>) -> T) -> Result<T, Rejection> {
        let octets = format!("{line}\r\nHost: a.example\r\n{fields}\r\n");
        let (request, len) = parsed(octets.as_bytes())?.expect("the head is whole");
        assert_eq!(len, octets.len());
        Ok(check(request))
    }

    #[test]
    fn the_request_line_has_three_parts() {
        let parts = |line| {
            check(line, "", |request| {
                (request.method().to_owned(), request.target().to_owned(), request.version())
            })
        };
        assert_eq!(parts("GET /a?b HTTP/1.1"), Ok(("GET".into(), "/a?b".into(), HttpVersion::Http11)));
        assert_eq!(parts("HEAD / HTTP/1.0"), Ok(("HEAD".into(), "/".into(), HttpVersion::Http10)));
        for malformed in [
            "GET",
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET /a b HTTP/1.1",
            "G@T / HTTP/1.1",
            "GET /\u{e9} HTTP/1.1",
            "GET /\t HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET a HTTP/1.1",
            "GET * HTTP/1.1",
            "GET / HTTP/1",
            "GET / http/1.1",
            "GET / HTTP/1.1x",
            "GET / XTTP/1.1",
            "GET / HTTP/x.1",
            "GET http:/// HTTP/1.1",
            "GET ws://a/ HTTP/1.1",
            "CONNECT /a HTTP/1.1",
            "GET /\r HTTP/1.1",
        ] {
            assert_eq!(parts(malformed), Err(Rejection::RequestLine), "{malformed:?}");
        }
    }

    #[test]
    fn another_major_version_is_not_supported_and_a_higher_minor_one_is() {
        let version = |line| check(line, "", |request| request.version());
        assert_eq!(version("PRI * HTTP/2.0"), Err(Rejection::HttpMajorVersion));
        assert_eq!(version("GET / HTTP/0.9"), Err(Rejection::HttpMajorVersion));
        assert_eq!(version("GET / HTTP/1.2"), Ok(HttpVersion::Http11));
    }

    #[test]
    fn the_target_may_be_of_absolute_form() {
        let path = |line| {
            check(line, "", |request| (request.path().to_owned(), request.query().map(str::to_owned)))
                .unwrap()
        };
        let expected = |path: &str, query: Option<&str>| (path.to_owned(), query.map(str::to_owned));
        assert_eq!(path("GET /a/b?c?d HTTP/1.1"), expected("/a/b", Some("c?d")));
        assert_eq!(path("GET /? HTTP/1.1"), expected("/", Some("")));
        assert_eq!(path("GET http://a.example/b?c HTTP/1.1"), expected("/b", Some("c")));
        assert_eq!(path("GET HTTPS://a.example:443 HTTP/1.1"), expected("/", None));
        assert_eq!(path("GET http://a.example?b/c HTTP/1.1"), expected("/", Some("b/c")));
        assert_eq!(path("GET /http://b/ HTTP/1.1"), expected("/http://b/", None));
        assert_eq!(path("OPTIONS * HTTP/1.1"), expected("*", None));
        assert_eq!(path("CONNECT a.example:80 HTTP/1.1"), expected("a.example:80", None));
    }

    #[test]
    fn host_is_there_exactly_once_and_is_one() {
        let host = |head: &str| {
            parsed(format!("{head}\r\n\r\n").as_bytes())
                .map(|request| request.expect("the head is whole").0.host().map(str::to_owned))
        };
        assert_eq!(host("GET / HTTP/1.1\r\nhOST: [::1]:9001 "), Ok(Some("[::1]:9001".into())));
        assert_eq!(host("GET / HTTP/1.1\r\nHost:"), Ok(None));
        assert_eq!(host("GET / HTTP/1.0"), Ok(None));
        for wrong in [
            "GET / HTTP/1.1",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b",
            "GET / HTTP/1.1\r\nHost: a b",
            "GET / HTTP/1.1\r\nHost: a/b",
            "GET / HTTP/1.1\r\nHost: a@b",
        ] {
            assert_eq!(host(wrong), Err(Rejection::Host), "{wrong:?}");
        }
    }

    #[test]
    fn a_connection_persists_as_its_version_and_options_say() {
        let keep_alive = |line, fields| check(line, fields, |request| request.keep_alive()).unwrap();
        assert!(keep_alive("GET / HTTP/1.1", ""));
        assert!(keep_alive("GET / HTTP/1.1", "Connection: Upgrade\r\n"));
        assert!(!keep_alive("GET / HTTP/1.1", "Connection: Upgrade, Close\r\n"));
        assert!(!keep_alive("GET / HTTP/1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
        assert!(!keep_alive("GET / HTTP/1.0", ""));
        assert!(keep_alive("GET / HTTP/1.0", "Connection: Keep-Alive\r\n"));
    }

    #[test]
    fn a_body_is_announced_by_its_length_or_its_coding() {
        let has_body = |fields| check("GET / HTTP/1.1", fields, |request| request.has_body());
        assert_eq!(has_body(""), Ok(false));
        assert_eq!(has_body("Content-Length: 0\r\n"), Ok(false));
        assert_eq!(has_body("Content-Length: 10\r\n"), Ok(true));
        assert_eq!(has_body("Content-Length: 7, 7\r\nContent-Length: 7\r\n"), Ok(true));
        assert_eq!(has_body("Transfer-Encoding: chunked\r\n"), Ok(true));
        for malformed in [
            "Content-Length:\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1, 2\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length: 0\r\nContent-Length: 1\r\n",
            "Content-Length: 1,\r\n",
        ] {
            assert_eq!(has_body(malformed), Err(Rejection::ContentLength), "{malformed:?}");
        }
    }

    #[test]
    fn a_get_that_lists_websocket_wants_an_upgrade() {
        let wants = |line, fields| check(line, fields, |request| request.wants_upgrade()).unwrap();
        assert!(wants("GET / HTTP/1.1", "Upgrade: WebSocket\r\n"));
        assert!(wants("GET / HTTP/1.1", "Upgrade: h2c\r\nUPGRADE: foo/1 ,websocket\r\n"));
        assert!(!wants("GET / HTTP/1.1", ""));
        assert!(!wants("GET / HTTP/1.1", "Upgrade: h2c\r\n"));
        assert!(!wants("GET / HTTP/1.1", "Upgrade: websocket2\r\n"));
        assert!(!wants("POST / HTTP/1.1", "Upgrade: websocket\r\n"));
    }

    #[test]
    fn octets_behind_the_head_are_not_part_of_it() {
        let octets = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x81\x85\r\n\r\n";
        assert_eq!(parsed(octets).unwrap().unwrap().1, 27);
    }

    /// Heads that are nearly right, and what may come behind them.
    fn octets() -> impl Strategy<Value = Vec<u8>> {
        let line = prop::sample::select(vec![
            "GET / HTTP/1.1\r\nHost: a\r\n",
            "GET / HTTP/1.1\r\n",
            "\r\nGET /a?b HTTP/1.0\r\n",
            "GET / HTTP/3.0\r\n",
            "G\r\n",
            "GET / HTTP/1.1\n",
            "\x16\x03\r\n",
            "",
        ]);
        let field = prop::sample::select(vec![
            "Host: b\r\n",
            "Accept: */*\r\n",
            "Origin: null\r\n",
            "Content-Length: 1\r\n",
            "A: b\n",
            "A : b\r\n",
            "Upgrade: websocket\r\n",
            "Cookie: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
        ]);
        let tail = prop::collection::vec(any::<u8>(), 0..20);
        let long = prop_oneof![8 => Just(0usize), 1 => 80usize..120, 1 => 300usize..500];
        (line, prop::collection::vec(field, 0..10), any::<bool>(), long, tail).prop_map(
            |(line, fields, ends, long, tail)| {
                let end = if ends { "\r\n" } else { "" };
                [&vec![b'x'; long], line.as_bytes(), fields.concat().as_bytes(), end.as_bytes(), &tail]
                    .concat()
            },
        )
    }

    proptest! {
        #[test]
        fn where_a_head_is_cut_changes_nothing(octets in octets()) {
            let outcome = |len, scanner: &mut _| {
                Request::parse(&octets[..len], scanner, &LIMITS).map(|request| {
                    let text = str::to_owned;
                    request.map(|(request, len)| (text(request.method()), text(request.path()), len))
                })
            };
            let whole = outcome(octets.len(), &mut HeadScanner::default());
            let mut by_octet = HeadScanner::default();
            let mut decided = false;
            for cut in 0..=octets.len() {
                let mut scanner = HeadScanner::default();
                let first = outcome(cut, &mut scanner);
                // Also after the decision: asked again, it is the same.
                prop_assert_eq!(&outcome(cut, &mut by_octet), &first);
                if first == Ok(None) {
                    // What is unfinished is within its limits, and no decision is taken back.
                    prop_assert!(cut < LIMITS.head_bytes_max && !decided);
                    prop_assert_eq!(&outcome(octets.len(), &mut scanner), &whole);
                } else {
                    decided = true;
                    prop_assert_eq!(&first, &whole);
                }
            }
        }

        #[test]
        fn no_octets_make_the_parser_panic(octets in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = parsed(&octets);
            let _ = parsed(&[b"GET / HTTP/1.1\r\nHost: a\r\n", octets.as_slice(), b"\r\n\r\n"].concat());
        }
    }
}
