//! The client's side of RFC 6455 §4.1: the request, and what the answer to it must be.
//!
//! [`ClientRequest::write`], then [`Response::parse`] until the head is whole, then [`Response::verify`]
//! against the same request.

use base64::Engine as _;

use super::head::{Headers, NotSingle};
use super::rejection::put;
use super::{ACCEPT_LEN, BASE64, HandshakeLimits, HeadError, HeadScanner, NONCE_LEN, VERSION};
use super::{accept_key, extensions, is_host, is_target, is_token};

/// The request of a client for a WebSocket connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientRequest<'a> {
    /// Host and, if it is not the scheme's default, port, as in the URI.
    pub host: &'a str,
    /// Path and query as in the URI, with the leading `/`.
    pub target: &'a str,
    /// The nonce. RFC 6455 §4.1 wants it chosen at random for each connection.
    pub nonce: [u8; NONCE_LEN],
    /// The subprotocols to offer, in order of preference.
    pub subprotocols: &'a [&'a str],
    /// The extensions to offer, as the value of `Sec-WebSocket-Extensions`.
    pub extensions: Option<&'a str>,
    /// The origin to claim; browsers send one.
    pub origin: Option<&'a str>,
    /// More header fields (cookies, credentials): names and values.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What in a [`ClientRequest`] cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ClientRequestError {
    #[error("{0:?} is not a host with or without a port")]
    Host(String),
    #[error("{0:?} is not a path with or without a query: it starts with / and is visible ASCII without #")]
    Target(String),
    #[error("{0:?} is not a subprotocol, or is offered twice")]
    Subprotocol(String),
    #[error("{0:?} is not a list of extensions")]
    Extensions(String),
    #[error("{0:?} is not the name of a header field")]
    HeaderName(String),
    #[error("the header field {0} is written by the handshake itself")]
    HeaderReserved(String),
    #[error("the value of the header field {0} has a line break or another control character in it")]
    HeaderValue(String),
}

/// The header fields that a [`ClientRequest`] writes itself, and those that would announce a body.
const RESERVED: [&str; 11] = [
    "host",
    "upgrade",
    "connection",
    "origin",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "sec-websocket-accept",
    "content-length",
    "transfer-encoding",
];

impl ClientRequest<'_> {
    /// Appends the request to `target`.
    ///
    /// # Errors
    /// If a part of it cannot be sent as what it is meant to be, a line break in a header field for example;
    /// then nothing is appended.
    pub fn write(&self, target: &mut Vec<u8>) -> Result<(), ClientRequestError> {
        self.check()?;
        put(target, &["GET ", self.target, " HTTP/1.1\r\nHost: ", self.host]);
        put(target, &["\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "]);
        target.extend_from_slice(&self.key());
        put(target, &["\r\nSec-WebSocket-Version: ", VERSION, "\r\n"]);
        if let [first, others @ ..] = self.subprotocols {
            put(target, &["Sec-WebSocket-Protocol: ", first]);
            for other in others {
                put(target, &[", ", other]);
            }
            put(target, &["\r\n"]);
        }
        let extensions = self.extensions.map(|value| ("Sec-WebSocket-Extensions", value));
        let origin = self.origin.map(|value| ("Origin", value));
        for (name, value) in extensions.iter().chain(&origin).chain(self.headers) {
            put(target, &[name, ": ", value, "\r\n"]);
        }
        put(target, &["\r\n"]);
        Ok(())
    }

    fn check(&self) -> Result<(), ClientRequestError> {
        if !is_host(self.host.as_bytes()) {
            return Err(ClientRequestError::Host(self.host.into()));
        }
        if !self.target.starts_with('/') || !is_target(self.target.as_bytes()) {
            return Err(ClientRequestError::Target(self.target.into()));
        }
        for (index, name) in self.subprotocols.iter().enumerate() {
            if !is_token(name.as_bytes()) || self.subprotocols[..index].contains(name) {
                return Err(ClientRequestError::Subprotocol((*name).into()));
            }
        }
        if let Some(value) = self.extensions
            && extensions(value.as_bytes()).any(|extension| extension.is_err())
        {
            return Err(ClientRequestError::Extensions(value.into()));
        }
        let origin = self.origin.map(|value| ("Origin", value));
        for (name, value) in origin.iter().chain(self.headers) {
            if value.chars().any(|octet| octet.is_ascii_control() && octet != '\t') {
                return Err(ClientRequestError::HeaderValue((*name).into()));
            }
        }
        for (name, _) in self.headers {
            if !is_token(name.as_bytes()) {
                return Err(ClientRequestError::HeaderName((*name).into()));
            }
            if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
                return Err(ClientRequestError::HeaderReserved((*name).into()));
            }
        }
        Ok(())
    }

    /// The value of `Sec-WebSocket-Key`.
    fn key(&self) -> [u8; 24] {
        let mut key = [0; 24];
        BASE64.encode_slice(self.nonce, &mut key).expect("16 octets are 24 in base64");
        key
    }

    fn offers_extension(&self, name: &str) -> bool {
        let offers = self.extensions.into_iter().flat_map(|value| extensions(value.as_bytes()));
        offers.flatten().any(|offer| offer.name == name)
    }
}

/// The head of the answer to a [`ClientRequest`]. It borrows the octets it was read from.
pub struct Response<'a> {
    status: u16,
    reason: &'a str,
    headers: Headers<'a>,
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed<'a> {
    /// The subprotocol to speak, if any.
    pub subprotocol: Option<&'a str>,
    /// The value of `Sec-WebSocket-Extensions`, if any: well-formed, and with nothing that was not offered.
    /// Whether the parameters of an extension are acceptable is for who knows that extension.
    pub extensions: Option<&'a str>,
}

/// Why an answer makes no WebSocket connection. The message is for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum HandshakeError {
    #[error("the server's answer cannot be read: {0}")]
    Head(#[from] HeadError),
    #[error("the server's answer is not HTTP/1.1")]
    StatusLine,
    #[error("the server answered {status}, not 101 Switching Protocols{hint}")]
    Status { status: String, hint: String },
    #[error("the server answered 101 without \"Upgrade: websocket\"")]
    Upgrade,
    #[error("the server answered 101 without \"Connection: Upgrade\"")]
    Connection,
    #[error("the server answered 101 without exactly one Sec-WebSocket-Accept")]
    AcceptCount,
    #[error("the server answered with Sec-WebSocket-Accept {received:?}, but the key asks for {expected:?}")]
    Accept { received: String, expected: String },
    #[error("the server answered with a malformed Sec-WebSocket-Extensions, or with more than one")]
    Extensions,
    #[error("the server chose the extension {0:?}, which was not offered")]
    ExtensionNotOffered(String),
    #[error("the server chose the extension {0:?} twice")]
    ExtensionTwice(String),
    #[error("the server answered with more than one Sec-WebSocket-Protocol")]
    SubprotocolCount,
    #[error("the server chose the subprotocol {0:?}, which was not offered")]
    SubprotocolNotOffered(String),
}

impl<'a> Response<'a> {
    /// Reads the head of a response from the front of `octets`: the response and the head's length in octets;
    /// what follows are frames already. `None` if the head is not whole yet: then call again with the same
    /// octets and more, and with the same `scanner`.
    ///
    /// # Errors
    /// As soon as a limit is exceeded, otherwise once the head is whole.
    pub fn parse(
        octets: &'a [u8],
        scanner: &mut HeadScanner,
        limits: &HandshakeLimits,
    ) -> Result<Option<(Self, usize)>, HandshakeError> {
        let Some(head) = scanner.parse(octets, limits)? else { return Ok(None) };
        let (status, reason) = parse_status_line(head.start_line).ok_or(HandshakeError::StatusLine)?;
        Ok(Some((Self { status, reason, headers: head.headers }, head.len)))
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The values of every header field of this name, in any case, in order.
    pub fn header_values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.headers.values(name)
    }

    /// Checks everything that RFC 6455 §4.1 demands of the answer to `request`.
    ///
    /// # Errors
    /// The first rule that the answer breaks; the client must then close the TCP connection.
    pub fn verify(&self, request: &ClientRequest<'_>) -> Result<Agreed<'a>, HandshakeError> {
        if self.status != 101 {
            let status = format!("{} {}", self.status, self.reason).trim_end().to_owned();
            return Err(HandshakeError::Status { status, hint: self.hint() });
        }
        match self.headers.single("upgrade") {
            Ok(value) if value.eq_ignore_ascii_case(b"websocket") => {}
            _ => return Err(HandshakeError::Upgrade),
        }
        if !self.headers.lists("connection", "upgrade") {
            return Err(HandshakeError::Connection);
        }
        let received =
            self.headers.single("sec-websocket-accept").map_err(|_| HandshakeError::AcceptCount)?;
        let expected: [u8; ACCEPT_LEN] = accept_key(&request.key());
        if received != expected {
            let text = |octets: &[u8]| octets.escape_ascii().to_string();
            return Err(HandshakeError::Accept { received: text(received), expected: text(&expected) });
        }
        Ok(Agreed { subprotocol: self.subprotocol(request)?, extensions: self.extensions(request)? })
    }

    fn subprotocol(&self, request: &ClientRequest<'_>) -> Result<Option<&'a str>, HandshakeError> {
        let chosen = match self.headers.single("sec-websocket-protocol") {
            Ok(chosen) => chosen,
            Err(NotSingle::Missing) => return Ok(None),
            Err(NotSingle::Repeated) => return Err(HandshakeError::SubprotocolCount),
        };
        match std::str::from_utf8(chosen) {
            Ok(chosen) if request.subprotocols.contains(&chosen) => Ok(Some(chosen)),
            _ => Err(HandshakeError::SubprotocolNotOffered(chosen.escape_ascii().to_string())),
        }
    }

    fn extensions(&self, request: &ClientRequest<'_>) -> Result<Option<&'a str>, HandshakeError> {
        let value = match self.headers.single("sec-websocket-extensions") {
            Ok(value) => value,
            Err(NotSingle::Missing) => return Ok(None),
            Err(NotSingle::Repeated) => return Err(HandshakeError::Extensions), // RFC 6455 §11.3.2
        };
        let mut names = Vec::new();
        for extension in extensions(value) {
            let name = extension.map_err(|_| HandshakeError::Extensions)?.name;
            if !request.offers_extension(name) {
                return Err(HandshakeError::ExtensionNotOffered(name.into()));
            }
            if names.contains(&name) {
                return Err(HandshakeError::ExtensionTwice(name.into()));
            }
            names.push(name);
        }
        std::str::from_utf8(value).map(Some).map_err(|_| HandshakeError::Extensions)
    }

    /// What a refusal says about how to be accepted.
    fn hint(&self) -> String {
        let field = |name| self.headers.single(name).ok().map(<[u8]>::escape_ascii);
        match (self.status, field("location"), field("sec-websocket-version")) {
            (300..=399, Some(location), _) => format!("; it points to {location}"),
            (400..=499, _, Some(version)) => format!("; it speaks version {version} of the protocol"),
            _ => String::new(),
        }
    }
}

/// `HTTP/1.1 SP status-code SP [ reason-phrase ]` (RFC 9112 §4). The second space may be missing, as it is
/// with many servers.
fn parse_status_line(line: &[u8]) -> Option<(u16, &str)> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.1 ")?;
    let (status, reason) = line.split_once(' ').unwrap_or((line, ""));
    let valid = status.len() == 3 && status.bytes().all(|octet| octet.is_ascii_digit());
    let printable = !reason.chars().any(char::is_control);
    if valid && printable { Some((status.parse().ok()?, reason)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::{Request, UpgradePolicy};
    use super::*;
    use proptest::prelude::*;

    const REQUEST: ClientRequest<'static> = ClientRequest {
        host: "server.example.com",
        target: "/chat",
        nonce: *b"the sample nonce",
        subprotocols: &["chat", "superchat"],
        extensions: Some("a; x, b"),
        origin: Some("http://example.com"),
        headers: &[("Cookie", "k=v")],
    };
    const FIELDS: [&str; 3] =
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="];

    fn verified(
        octets: &str,
        request: &ClientRequest<'_>,
    ) -> Result<(Option<String>, Option<String>), HandshakeError> {
        let (response, len) =
            Response::parse(octets.as_bytes(), &mut HeadScanner::default(), &HandshakeLimits::default())?
                .expect("the head is whole");
        assert_eq!(len, octets.len());
        let agreed = response.verify(request)?;
        Ok((agreed.subprotocol.map(str::to_owned), agreed.extensions.map(str::to_owned)))
    }

    /// What comes of a 101 in which the field that starts as `instead` does is replaced by `fields`.
    fn with(instead: &str, fields: &[&str]) -> Result<(Option<String>, Option<String>), HandshakeError> {
        let kept = FIELDS.into_iter().filter(|field| instead.is_empty() || !field.starts_with(instead));
        let all: Vec<_> = kept.chain(fields.iter().copied()).collect();
        verified(&format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n\r\n", all.join("\r\n")), &REQUEST)
    }

    fn written(request: &ClientRequest<'_>) -> Result<String, ClientRequestError> {
        let mut target = Vec::new();
        let written = request.write(&mut target);
        assert!(written.is_ok() || target.is_empty());
        written.map(|()| String::from_utf8(target).unwrap())
    }

    #[test]
    fn the_request_is_that_of_the_rfc_example() {
        assert_eq!(
            written(&REQUEST).unwrap(),
            "GET /chat HTTP/1.1\r\n\
             Host: server.example.com\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: chat, superchat\r\n\
             Sec-WebSocket-Extensions: a; x, b\r\n\
             Origin: http://example.com\r\n\
             Cookie: k=v\r\n\
             \r\n"
        );
    }

    #[test]
    fn nothing_can_be_injected_into_a_request() {
        let break_in = "a\r\nX: y";
        type Error = fn(String) -> ClientRequestError;
        let cases: [(ClientRequest<'_>, Error, &str); 11] = [
            (ClientRequest { host: break_in, ..REQUEST }, ClientRequestError::Host, break_in),
            (ClientRequest { host: "", ..REQUEST }, ClientRequestError::Host, ""),
            (ClientRequest { target: "/a b", ..REQUEST }, ClientRequestError::Target, "/a b"),
            (ClientRequest { target: "/a#b", ..REQUEST }, ClientRequestError::Target, "/a#b"),
            (ClientRequest { target: "a", ..REQUEST }, ClientRequestError::Target, "a"),
            (
                ClientRequest { subprotocols: &["a", "a\n"], ..REQUEST },
                ClientRequestError::Subprotocol,
                "a\n",
            ),
            (ClientRequest { subprotocols: &["a", "a"], ..REQUEST }, ClientRequestError::Subprotocol, "a"),
            (
                ClientRequest { extensions: Some(break_in), ..REQUEST },
                ClientRequestError::Extensions,
                break_in,
            ),
            (ClientRequest { origin: Some(break_in), ..REQUEST }, ClientRequestError::HeaderValue, "Origin"),
            (ClientRequest { headers: &[("A", "b\n")], ..REQUEST }, ClientRequestError::HeaderValue, "A"),
            (ClientRequest { headers: &[("A:", "b")], ..REQUEST }, ClientRequestError::HeaderName, "A:"),
        ];
        for (request, error, part) in cases {
            assert_eq!(written(&request), Err(error(part.into())));
        }
        for reserved in ["HOST", "Sec-WebSocket-Key", "Content-Length", "Origin"] {
            let request = ClientRequest { headers: &[(reserved, "1")], ..REQUEST };
            assert_eq!(written(&request), Err(ClientRequestError::HeaderReserved(reserved.into())));
        }
    }

    #[test]
    fn the_status_is_101() {
        let message = |head: &str| verified(&format!("{head}\r\n\r\n"), &REQUEST).unwrap_err().to_string();
        assert_eq!(
            message("HTTP/1.1 404 Not Found"),
            "the server answered 404 Not Found, not 101 Switching Protocols"
        );
        assert_eq!(
            message("HTTP/1.1 301 Moved Permanently\r\nLocation: https://b/"),
            "the server answered 301 Moved Permanently, not 101 Switching Protocols; it points to https://b/"
        );
        assert_eq!(
            message("HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 8, 7"),
            "the server answered 426 Upgrade Required, not 101 Switching Protocols; \
             it speaks version 8, 7 of the protocol"
        );
        assert_eq!(message("HTTP/1.1 200"), "the server answered 200, not 101 Switching Protocols");
        assert_eq!(message("HTTP/1.1 200 "), "the server answered 200, not 101 Switching Protocols");
    }

    #[test]
    fn the_status_line_is_well_formed() {
        for malformed in [
            "HTTP/1.0 101 X",
            "HTTP/2 101",
            "HTTP/1.1 1o1 X",
            "HTTP/1.1 +10 X",
            "HTTP/1.1  101 X",
            "HTTP/1.1",
            "SSH-2.0-OpenSSH_9.6",
            "HTTP/1.1 101 \u{1b}[31m",
        ] {
            assert_eq!(
                verified(&format!("{malformed}\r\n\r\n"), &REQUEST),
                Err(HandshakeError::StatusLine),
                "{malformed}"
            );
        }
    }

    #[test]
    fn upgrade_is_websocket_in_any_case() {
        assert!(with("Upgrade", &["UPGRADE: WebSocket"]).is_ok());
        for wrong in [
            &[][..],
            &["Upgrade: h2c"],
            &["Upgrade: websocket, h2c"],
            &["Upgrade: websocket", "Upgrade: h2c"],
        ] {
            assert_eq!(with("Upgrade", wrong), Err(HandshakeError::Upgrade), "{wrong:?}");
        }
    }

    #[test]
    fn connection_lists_upgrade_in_any_case() {
        assert!(with("Connection", &["connection: keep-alive, upgrade"]).is_ok());
        for wrong in [&[][..], &["Connection: close"]] {
            assert_eq!(with("Connection", wrong), Err(HandshakeError::Connection), "{wrong:?}");
        }
    }

    #[test]
    fn the_accept_is_that_of_the_key_and_there_once() {
        let accept = FIELDS[2];
        assert!(
            with("Sec-WebSocket-Accept", &["sec-websocket-accept:  s3pPLMBiTxaQ9kYGzzhZRbK+xOo= "]).is_ok()
        );
        for wrong in [&[][..], &[accept, accept]] {
            assert_eq!(with("Sec-WebSocket-Accept", wrong), Err(HandshakeError::AcceptCount));
        }
        // Another letter, another case, nothing.
        for wrong in ["s3pPLMBiTxaQ9kYGzzhZRbK+xOp=", "S3pPLMBiTxaQ9kYGzzhZRbK+xOo=", ""] {
            let expected = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
            assert_eq!(
                with("Sec-WebSocket-Accept", &[&format!("Sec-WebSocket-Accept: {wrong}")]),
                Err(HandshakeError::Accept { received: wrong.into(), expected })
            );
        }
    }

    #[test]
    fn only_offered_extensions_are_agreed_on_and_none_twice() {
        let answer = |value: &str| with("", &[&format!("Sec-WebSocket-Extensions: {value}")]);
        assert_eq!(answer("b; y=1, a"), Ok((None, Some("b; y=1, a".into()))));
        assert_eq!(answer("a, c"), Err(HandshakeError::ExtensionNotOffered("c".into())));
        assert_eq!(answer("a, a; x"), Err(HandshakeError::ExtensionTwice("a".into())));
        assert_eq!(answer("a;"), Err(HandshakeError::Extensions));
        assert_eq!(answer(""), Err(HandshakeError::Extensions));
        assert_eq!(answer("a\r\nSec-WebSocket-Extensions: b"), Err(HandshakeError::Extensions));
    }

    #[test]
    fn only_one_offered_subprotocol_is_agreed_on() {
        let answer = |value: &str| with("", &[&format!("Sec-WebSocket-Protocol: {value}")]);
        assert_eq!(answer("superchat"), Ok((Some("superchat".into()), None)));
        assert_eq!(with("", &[]), Ok((None, None)));
        for wrong in ["Chat", "chat, superchat", "x", ""] {
            assert_eq!(answer(wrong), Err(HandshakeError::SubprotocolNotOffered(wrong.into())));
        }
        assert_eq!(answer("chat\r\nSec-WebSocket-Protocol: chat"), Err(HandshakeError::SubprotocolCount));
    }

    #[test]
    fn a_head_that_cannot_be_read_says_why() {
        let error = verified("HTTP/1.1 101 X\r\nA : b\r\n\r\n", &REQUEST).unwrap_err();
        assert_eq!(error.to_string(), "the server's answer cannot be read: a header field is malformed");
    }

    proptest! {
        #[test]
        fn client_and_server_agree(
            nonce: [u8; 16], host in "[a-z0-9.-]{1,20}(:[0-9]{1,5})?", target in "/[!-\"$-~]{0,30}",
            offered in prop::collection::hash_set("[a-d]{1,2}", 0..5),
            supported in prop::collection::vec("[a-d]{1,2}", 0..5),
            origin in prop::option::of(prop::sample::select(vec!["http://a", "https://b:8443", "null"])),
            extensions in prop::option::of(prop::sample::select(vec!["a", "a; x=1, b", "a;c=\"d\""])),
            cookie in "[ -~]{0,40}", cut in 0usize..400,
        ) {
            let subprotocols: Vec<&str> = offered.iter().map(String::as_str).collect();
            let request = ClientRequest { host: &host, target: &target, nonce, subprotocols: &subprotocols,
                extensions, origin, headers: &[("Cookie", &cookie)] };
            let mut octets = Vec::new();
            request.write(&mut octets).unwrap();
            let limits = HandshakeLimits::default();
            let mut scanner = HeadScanner::default();
            let part = &octets[..cut.min(octets.len() - 1)];
            prop_assert!(Request::parse(part, &mut scanner, &limits).unwrap().is_none());
            let (received, len) = Request::parse(&octets, &mut scanner, &limits).unwrap().unwrap();
            prop_assert_eq!(len, octets.len());
            prop_assert_eq!((received.target(), received.host()), (target.as_str(), Some(host.as_str())));
            prop_assert!(received.wants_upgrade());
            prop_assert_eq!(received.header_values("cookie").next().unwrap(), cookie.trim().as_bytes());

            let policy = UpgradePolicy::new(&[], &supported).unwrap();
            let mut accepted = received.upgrade(&policy).unwrap();
            if extensions.is_some() {
                accepted = accepted.with_extensions("a; y");
            }
            let mut answer = Vec::new();
            accepted.write(&mut answer);
            let mut scanner = HeadScanner::default();
            let part = &answer[..cut.min(answer.len() - 1)];
            prop_assert!(Response::parse(part, &mut scanner, &limits).unwrap().is_none());
            let (response, len) = Response::parse(&answer, &mut scanner, &limits).unwrap().unwrap();
            prop_assert_eq!(len, answer.len());
            let agreed = response.verify(&request).unwrap();
            let preferred = subprotocols.iter().find(|name| supported.iter().any(|other| other == *name));
            prop_assert_eq!(agreed.subprotocol, preferred.copied());
            prop_assert_eq!(agreed.extensions, extensions.map(|_| "a; y"));

            // The answer to another nonce is not the answer to this one.
            let other = ClientRequest { nonce: nonce.map(|octet| !octet), ..request };
            let refused = matches!(response.verify(&other), Err(HandshakeError::Accept { .. }));
            prop_assert!(refused);
        }

        #[test]
        fn no_octets_make_a_client_panic(octets in prop::collection::vec(any::<u8>(), 0..300)) {
            for octets in [octets.clone(), [b"HTTP/1.1 101 X\r\n", octets.as_slice(), b"\r\n\r\n"].concat()] {
                let mut scanner = HeadScanner::default();
                let parsed = Response::parse(&octets, &mut scanner, &HandshakeLimits::default());
                if let Ok(Some((response, _))) = parsed {
                    prop_assert!(response.verify(&REQUEST).is_err());
                }
            }
        }
    }
}
