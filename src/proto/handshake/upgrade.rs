//! The server's side of RFC 6455 §4.2: what a request for an upgrade must be, and the 101 that answers it.

use base64::Engine as _;

use super::rejection::put;
use super::{ACCEPT_LEN, BASE64, HttpVersion, NONCE_LEN, Rejection, Request, VERSION};
use super::{accept_key, is_host, is_token};

/// What a server accepts beyond what RFC 6455 demands. The default accepts every origin, and no subprotocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpgradePolicy {
    /// Invariant: serialized origins (RFC 6454 §6.2), without the scheme's default port. If there are none,
    /// and the same host is not asked for, all are allowed.
    allow_origins: Vec<String>,
    allow_same_host: bool,
    /// Invariant: tokens.
    subprotocols: Vec<String>,
}

/// Why a policy cannot be had. The message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Neither `scheme://host`, `scheme://host:port`, `null` nor `same-host`.
    #[error(
        "{0:?} is not an origin: write scheme://host or scheme://host:port without a path, null, or same-host"
    )]
    Origin(String),
    /// Not a token (RFC 9110 §5.6.2).
    #[error("{0:?} is not a subprotocol: a name has no spaces and none of ()<>@,;:\\\"/[]?={{}}")]
    Subprotocol(String),
}

/// Stands for the origins whose host is the one that the request names.
const SAME_HOST: &str = "same-host";

impl UpgradePolicy {
    /// A policy that allows these origins, or all if there are none, and speaks these subprotocols.
    ///
    /// The origin `same-host` stands for every page of the host that the client means to talk to: the host and
    /// port of its Origin are those of its Host header field, as `http` or `https` understands them. It keeps
    /// out the pages of other sites, but not a site that has its own name resolved to this server's address
    /// (DNS rebinding): only a list of origins does.
    ///
    /// A request without an Origin is always allowed: it is not from a browser, and the rule is there to keep
    /// the pages of others out of a browser's connections (RFC 6455 §10.2). Whoever is no browser can write
    /// any Origin it likes.
    ///
    /// # Errors
    /// A [`PolicyError`] for the first entry that is not an origin or not a token.
    pub fn new(allow_origins: &[String], subprotocols: &[String]) -> Result<Self, PolicyError> {
        let origins = allow_origins
            .iter()
            .filter(|origin| *origin != SAME_HOST)
            .map(|origin| serialize_origin(origin).ok_or_else(|| PolicyError::Origin(origin.clone())));
        if let Some(wrong) = subprotocols.iter().find(|name| !is_token(name.as_bytes())) {
            return Err(PolicyError::Subprotocol(wrong.clone()));
        }
        Ok(Self {
            allow_origins: origins.collect::<Result<_, _>>()?,
            allow_same_host: allow_origins.iter().any(|origin| origin == SAME_HOST),
            subprotocols: subprotocols.to_vec(),
        })
    }

    /// Whether a page of any site may connect.
    pub fn allows_every_origin(&self) -> bool {
        self.allow_origins.is_empty() && !self.allow_same_host
    }

    fn allows_origin(&self, origin: &[u8], host: Option<&str>) -> bool {
        self.allows_every_origin()
            || (self.allow_same_host && host.is_some_and(|host| is_same_host(origin, host)))
            || self.allow_origins.iter().any(|allowed| origin.eq_ignore_ascii_case(allowed.as_bytes()))
    }

    fn subprotocol(&self, name: &str) -> Option<&str> {
        self.subprotocols.iter().map(String::as_str).find(|supported| *supported == name)
    }
}

/// Whether an origin is a page of the host and port that a Host header field names. A port that goes without
/// saying is that of the origin's scheme, also in the Host: behind a proxy that ends TLS nothing else tells it.
fn is_same_host(origin: &[u8], host: &str) -> bool {
    let Some((scheme, authority)) = std::str::from_utf8(origin).ok().and_then(|text| text.split_once("://"))
    else {
        return false;
    };
    let port = match scheme {
        scheme if scheme.eq_ignore_ascii_case("http") => ":80",
        scheme if scheme.eq_ignore_ascii_case("https") => ":443",
        _ => return false,
    };
    let without_port = |authority| str::strip_suffix(authority, port).unwrap_or(authority);
    !authority.is_empty() && without_port(authority).eq_ignore_ascii_case(without_port(host))
}

/// An origin as a browser writes it (RFC 6454 §6.2): in lower case, without a port that goes without saying.
fn serialize_origin(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    if origin == "null" {
        return Some(origin);
    }
    let (scheme, authority) = origin.split_once("://")?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|next| next.is_ascii_alphanumeric() || matches!(next, '+' | '-' | '.'));
    // A colon inside the brackets of an IPv6 address begins no port.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse::<u16>().ok()?)),
        _ => (authority, None),
    };
    if !is_scheme || !is_host(host.as_bytes()) {
        return None;
    }
    match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => Some(format!("{scheme}://{host}")),
        (_, Some(port)) => Some(format!("{scheme}://{host}:{port}")),
    }
}

/// A request that became a WebSocket connection, but for the answer that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted<'p> {
    accept: [u8; ACCEPT_LEN],
    subprotocol: Option<&'p str>,
    extensions: Option<&'p str>,
}

impl Request<'_> {
    /// Checks everything that RFC 6455 §4.2.1 demands of a client, and chooses the subprotocol: the first in
    /// the client's order of preference that `policy` knows.
    ///
    /// No extension is agreed on; who knows one reads [`extension_offers`](Self::extension_offers) and says
    /// what came of it with [`Accepted::with_extensions`].
    ///
    /// # Errors
    /// The first rule that the request breaks.
    pub fn upgrade<'p>(&self, policy: &'p UpgradePolicy) -> Result<Accepted<'p>, Rejection> {
        if self.method() != "GET" {
            return Err(Rejection::Method);
        }
        if self.version() < HttpVersion::Http11 {
            return Err(Rejection::HttpVersion);
        }
        if self.host().is_none() {
            return Err(Rejection::Host);
        }
        if self.has_body() {
            // Its octets would be taken for frames.
            return Err(Rejection::Body);
        }
        if !self.headers.lists("upgrade", "websocket") {
            return Err(Rejection::Upgrade);
        }
        if !self.headers.lists("connection", "upgrade") {
            return Err(Rejection::Connection);
        }
        // Before the key: another version may have another one, and its client must learn of 13.
        if self.headers.single("sec-websocket-version") != Ok(VERSION.as_bytes()) {
            return Err(Rejection::Version);
        }
        let key = self.headers.single("sec-websocket-key").map_err(|_| Rejection::KeyCount)?;
        check_key(key)?;
        self.check_origin(policy)?;
        if self.extension_offers().any(|offer| offer.is_err()) {
            return Err(Rejection::Extensions); // RFC 6455 §9.1
        }
        let subprotocol = self.choose_subprotocol(policy)?;
        Ok(Accepted { accept: accept_key(key), subprotocol, extensions: None })
    }

    fn check_origin(&self, policy: &UpgradePolicy) -> Result<(), Rejection> {
        let mut origins = self.headers.values("origin");
        match (origins.next(), origins.next()) {
            (None, _) => Ok(()),
            (Some(origin), None) if policy.allows_origin(origin, self.host()) => Ok(()),
            (Some(_), None) => Err(Rejection::Origin),
            (Some(_), Some(_)) => Err(Rejection::OriginCount),
        }
    }

    fn choose_subprotocol<'p>(&self, policy: &'p UpgradePolicy) -> Result<Option<&'p str>, Rejection> {
        const NAME: &str = "sec-websocket-protocol";
        if self.headers.values(NAME).next().is_none() {
            return Ok(None);
        }
        // RFC 9110 §5.6.1.2: empty elements of a list are ignored.
        let offers = self.headers.elements(NAME).filter(|offer| !offer.is_empty());
        let mut names = Vec::new();
        for offer in offers {
            let name = std::str::from_utf8(offer).ok().filter(|name| is_token(name.as_bytes()));
            names.push(name.ok_or(Rejection::Subprotocols)?);
        }
        let chosen = names.iter().find_map(|name| policy.subprotocol(name));
        // Sorted, because a head has room for thousands of names.
        names.sort_unstable();
        if names.is_empty() || names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Rejection::Subprotocols);
        }
        Ok(chosen)
    }
}

/// A key is the canonical base64 of 16 octets (RFC 6455 §4.2.1, RFC 4648 §3.5).
fn check_key(key: &[u8]) -> Result<(), Rejection> {
    let mut nonce = [0; NONCE_LEN + 2]; // 24 characters could be 18 octets.
    match BASE64.decode_slice(key, &mut nonce) {
        Ok(NONCE_LEN) => Ok(()),
        _ => Err(Rejection::Key),
    }
}

impl<'p> Accepted<'p> {
    /// The subprotocol to speak, if one was agreed on.
    pub fn subprotocol(&self) -> Option<&'p str> {
        self.subprotocol
    }

    /// With this as the value of `Sec-WebSocket-Extensions`: what was agreed on.
    pub fn with_extensions(self, extensions: &'p str) -> Self {
        debug_assert!(super::extensions(extensions.as_bytes()).all(|extension| extension.is_ok()));
        Self { extensions: Some(extensions), ..self }
    }

    /// Appends the 101 to `target` (RFC 6455 §4.2.2). Frames may follow it at once.
    pub fn write(&self, target: &mut Vec<u8>) {
        let start = "HTTP/1.1 101 Switching Protocols\r\n\
                     Upgrade: websocket\r\n\
                     Connection: Upgrade\r\n\
                     Sec-WebSocket-Accept: ";
        target.reserve(160);
        put(target, &[start]);
        target.extend_from_slice(&self.accept);
        if let Some(subprotocol) = self.subprotocol {
            put(target, &["\r\nSec-WebSocket-Protocol: ", subprotocol]);
        }
        if let Some(extensions) = self.extensions {
            put(target, &["\r\nSec-WebSocket-Extensions: ", extensions]);
        }
        put(target, &["\r\n\r\n"]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HandshakeLimits, HeadScanner};
    use super::*;

    /// The handshake of RFC 6455 §1.2, without Origin and subprotocols.
    const FIELDS: [&str; 5] = [
        "Host: server.example.com",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ];

    fn policy(allow_origins: &[&str], subprotocols: &[&str]) -> UpgradePolicy {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        UpgradePolicy::new(&owned(allow_origins), &owned(subprotocols)).unwrap()
    }

    fn answer_to(line: &str, fields: &[&str], policy: &UpgradePolicy) -> Result<String, Rejection> {
        let octets = format!("{line}\r\n{}\r\n\r\n", fields.join("\r\n"));
        let parsed =
            Request::parse(octets.as_bytes(), &mut HeadScanner::default(), &HandshakeLimits::default());
        let (request, _) = parsed?.expect("the head is whole");
        let mut target = Vec::new();
        request.upgrade(policy)?.write(&mut target);
        Ok(String::from_utf8(target).unwrap())
    }

    /// The answer when the field that starts as `instead` does is replaced by `fields`.
    fn answer_with(instead: &str, fields: &[&str]) -> Result<String, Rejection> {
        let mut all: Vec<&str> = FIELDS.into_iter().filter(|field| !field.starts_with(instead)).collect();
        assert_eq!(all.len(), FIELDS.len() - 1);
        all.extend(fields);
        answer_to("GET /chat HTTP/1.1", &all, &UpgradePolicy::default())
    }

    /// The answer when these fields are added.
    fn answer_and(fields: &[&str], policy: &UpgradePolicy) -> Result<String, Rejection> {
        answer_to("GET /chat HTTP/1.1", &[&FIELDS, fields].concat(), policy)
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_there() {
        let fields = ["Origin: http://example.com", "Sec-WebSocket-Protocol: chat, superchat"];
        assert_eq!(
            answer_and(&fields, &policy(&["http://example.com"], &["chat"])).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             Sec-WebSocket-Protocol: chat\r\n\
             \r\n"
        );
    }

    #[test]
    fn the_method_is_get() {
        for method in ["POST", "HEAD", "get"] {
            let answer = answer_to(&format!("{method} / HTTP/1.1"), &FIELDS, &UpgradePolicy::default());
            assert_eq!(answer, Err(Rejection::Method));
        }
    }

    #[test]
    fn the_http_version_is_at_least_1_1() {
        let answer = |line| answer_to(line, &FIELDS, &UpgradePolicy::default());
        assert!(answer("GET / HTTP/1.2").is_ok());
        assert_eq!(answer("GET / HTTP/1.0"), Err(Rejection::HttpVersion));
        assert_eq!(answer("GET / HTTP/2.0"), Err(Rejection::HttpMajorVersion));
    }

    #[test]
    fn host_is_there_once_and_not_empty() {
        assert!(answer_with("Host", &["host: a:9001"]).is_ok());
        for wrong in [&[][..], &["Host:"], &["Host: a", "Host: a"]] {
            assert_eq!(answer_with("Host", wrong), Err(Rejection::Host));
        }
    }

    #[test]
    fn upgrade_lists_websocket_in_any_case() {
        for right in [
            &["UPGRADE: WebSocket"][..],
            &["Upgrade: h2c, websocket"],
            &["Upgrade: h2c", "Upgrade: websocket"],
        ] {
            assert!(answer_with("Upgrade", right).is_ok(), "{right:?}");
        }
        for wrong in [&[][..], &["Upgrade:"], &["Upgrade: web socket"], &["Upgrade: websocket/13"]] {
            assert_eq!(answer_with("Upgrade", wrong), Err(Rejection::Upgrade), "{wrong:?}");
        }
    }

    #[test]
    fn connection_lists_upgrade_in_any_case() {
        for right in
            [&["connection: keep-alive, UPGRADE"][..], &["Connection: keep-alive", "Connection: upgrade ,"]]
        {
            assert!(answer_with("Connection", right).is_ok(), "{right:?}");
        }
        for wrong in [&[][..], &["Connection: keep-alive"], &["Connection: Upgrade keep-alive"]] {
            assert_eq!(answer_with("Connection", wrong), Err(Rejection::Connection), "{wrong:?}");
        }
    }

    #[test]
    fn the_version_is_13_and_there_once() {
        for wrong in [
            &[][..],
            &["Sec-WebSocket-Version: 8"],
            &["Sec-WebSocket-Version: 13, 8"],
            &["Sec-WebSocket-Version: 013"],
            &["Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13"],
        ] {
            assert_eq!(answer_with("Sec-WebSocket-Version", wrong), Err(Rejection::Version), "{wrong:?}");
        }
        assert_eq!(Rejection::Version.status(), 426);
    }

    #[test]
    fn a_client_of_another_version_learns_of_13_whatever_else_it_lacks() {
        let fields = [FIELDS[0], FIELDS[1], FIELDS[2], "Sec-WebSocket-Version: 25"];
        assert_eq!(answer_to("GET / HTTP/1.1", &fields, &UpgradePolicy::default()), Err(Rejection::Version));
    }

    #[test]
    fn the_key_is_there_once() {
        let key = FIELDS[3];
        for wrong in [&[][..], &[key, key]] {
            assert_eq!(answer_with("Sec-WebSocket-Key", wrong), Err(Rejection::KeyCount));
        }
    }

    #[test]
    fn the_key_is_the_canonical_base64_of_16_octets() {
        assert!(answer_with("Sec-WebSocket-Key", &["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]).is_ok());
        for wrong in [
            "",
            "AAAA",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAA=",
            "AAAAAAAAAAAAAAAAAAAAAB==",
            "AAAAAAAAAAAAAAAAAAAAAAA=",
            "AAAAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAA==",
            "-_AAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAAA==AAAA",
            "AAAAAAAAAAA AAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            let field = format!("Sec-WebSocket-Key: {wrong}");
            assert_eq!(answer_with("Sec-WebSocket-Key", &[&field]), Err(Rejection::Key), "{wrong:?}");
        }
    }

    #[test]
    fn a_request_with_a_body_is_refused() {
        let default = UpgradePolicy::default();
        assert_eq!(answer_and(&["Content-Length: 1"], &default), Err(Rejection::Body));
        assert_eq!(answer_and(&["Transfer-Encoding: chunked"], &default), Err(Rejection::Body));
        assert!(answer_and(&["Content-Length: 0"], &default).is_ok());
    }

    #[test]
    fn an_origin_that_is_not_listed_is_forbidden() {
        let policy = policy(&["https://A.example:443", "http://b.example:8080", "http://[::1]:80"], &[]);
        for allowed in ["https://a.example", "HTTPS://a.EXAMPLE", "http://b.example:8080", "http://[::1]"] {
            assert!(answer_and(&[&format!("Origin: {allowed}")], &policy).is_ok(), "{allowed}");
        }
        for other in [
            "http://a.example",
            "https://a.example:8443",
            "https://a.example.evil",
            "http://b.example",
            "null",
            "",
        ] {
            assert_eq!(
                answer_and(&[&format!("Origin: {other}")], &policy),
                Err(Rejection::Origin),
                "{other}"
            );
        }
        assert_eq!(Rejection::Origin.status(), 403);
    }

    #[test]
    fn without_a_list_every_origin_is_allowed() {
        assert!(answer_and(&["Origin: null"], &UpgradePolicy::default()).is_ok());
    }

    #[test]
    fn same_host_allows_the_pages_of_the_host_that_was_asked() {
        let answer = |host: &str, origin: &str, policy| {
            let host = format!("Host: {host}");
            let fields = [&[host.as_str(), origin][..], &FIELDS[1..]].concat();
            answer_to("GET / HTTP/1.1", &fields, policy)
        };
        let same_host = policy(&["same-host"], &[]);
        for (host, origin) in [
            ("a.example", "http://a.example"),
            ("a.example", "https://a.example"),
            ("a.example:80", "http://a.example"),
            ("a.example:443", "https://a.example"),
            ("a.example", "http://a.example:80"),
            ("A.example:9001", "HTTP://a.EXAMPLE:9001"),
            ("127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("[::1]:9001", "http://[::1]:9001"),
            ("[::1]", "http://[::1]:80"),
        ] {
            let answer = answer(host, &format!("Origin: {origin}"), &same_host);
            assert!(answer.is_ok(), "{host} {origin}");
        }
        for (host, origin) in [
            ("a.example", "http://b.example"),
            ("a.example", "http://a.example.evil"),
            ("a.example:9001", "http://a.example"),
            ("a.example", "http://a.example:9001"),
            ("a.example:443", "http://a.example"),
            ("a.example:80", "https://a.example"),
            ("a.example", "null"),
            ("a.example", "a.example"),
            ("a.example", "chrome-extension://a.example"),
            ("a.example", "http://a.example/"),
            ("a.example", "http://user@a.example"),
            ("a.example", "http://"),
            ("a.example", ""),
            ("null", "null"),
            ("[::80]", "http://[:"),
        ] {
            let answer = answer(host, &format!("Origin: {origin}"), &same_host);
            assert_eq!(answer, Err(Rejection::Origin), "{host} {origin}");
        }
    }

    #[test]
    fn same_host_stands_beside_other_origins_and_asks_nothing_of_other_clients() {
        let policy = policy(&["same-host", "https://page.example"], &[]);
        for (origin, is_allowed) in [
            ("http://server.example.com", true),
            ("https://page.example", true),
            ("https://c.example", false),
        ] {
            assert_eq!(answer_and(&[&format!("Origin: {origin}")], &policy).is_ok(), is_allowed, "{origin}");
        }
        assert!(answer_and(&[], &policy).is_ok());
    }

    #[test]
    fn a_client_without_an_origin_is_no_browser_and_allowed() {
        assert!(answer_and(&[], &policy(&["https://a.example"], &[])).is_ok());
    }

    #[test]
    fn there_is_one_origin_at_most() {
        let origin = "Origin: https://a.example";
        for policy in [UpgradePolicy::default(), policy(&["https://a.example"], &[])] {
            assert_eq!(answer_and(&[origin, origin], &policy), Err(Rejection::OriginCount));
        }
    }

    #[test]
    fn the_clients_first_subprotocol_that_is_supported_is_chosen() {
        let policy = policy(&[], &["a", "b", "c"]);
        let chosen = |fields: &[&str]| {
            let answer = answer_and(fields, &policy).unwrap();
            let line = answer.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
            line.map(str::to_owned)
        };
        assert_eq!(chosen(&["Sec-WebSocket-Protocol: x, c, a"]).as_deref(), Some("c"));
        assert_eq!(
            chosen(&["Sec-WebSocket-Protocol: x", "Sec-WebSocket-Protocol: b,a"]).as_deref(),
            Some("b")
        );
        assert_eq!(chosen(&["Sec-WebSocket-Protocol: A, x"]), None);
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn subprotocols_are_unique_tokens() {
        for wrong in [
            &["Sec-WebSocket-Protocol: a, a"][..],
            &["Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b, a"],
            &["Sec-WebSocket-Protocol: a b"],
            &["Sec-WebSocket-Protocol: a/b"],
            &["Sec-WebSocket-Protocol:"],
            &["Sec-WebSocket-Protocol: , ,"],
            &["Sec-WebSocket-Protocol: \u{e9}"],
        ] {
            for policy in [UpgradePolicy::default(), policy(&[], &["a"])] {
                assert_eq!(answer_and(wrong, &policy), Err(Rejection::Subprotocols), "{wrong:?}");
            }
        }
    }

    #[test]
    fn malformed_extension_offers_fail_the_handshake() {
        let default = UpgradePolicy::default();
        for wrong in [
            &["Sec-WebSocket-Extensions: a;"][..],
            &["Sec-WebSocket-Extensions: a", "Sec-WebSocket-Extensions:"],
        ] {
            assert_eq!(answer_and(wrong, &default), Err(Rejection::Extensions), "{wrong:?}");
        }
    }

    #[test]
    fn extension_offers_come_in_order_and_none_is_agreed_on_by_itself() {
        let fields = "Sec-WebSocket-Extensions: a; x=1, b\r\nOther: 1\r\nSec-WebSocket-Extensions: c";
        let octets = format!("GET / HTTP/1.1\r\n{}\r\n{fields}\r\n\r\n", FIELDS.join("\r\n"));
        let parsed =
            Request::parse(octets.as_bytes(), &mut HeadScanner::default(), &HandshakeLimits::default());
        let (request, _) = parsed.unwrap().unwrap();
        let names: Vec<_> = request.extension_offers().map(|offer| offer.unwrap().name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let policy = UpgradePolicy::default();
        let accepted = request.upgrade(&policy).unwrap();
        let written = |accepted: Accepted| {
            let mut target = Vec::new();
            accepted.write(&mut target);
            String::from_utf8(target).unwrap()
        };
        assert!(!written(accepted).contains("Extensions"));
        let answer = written(accepted.with_extensions("b; y"));
        assert!(answer.ends_with("\r\nSec-WebSocket-Extensions: b; y\r\n\r\n"), "{answer}");
    }

    #[test]
    fn a_policy_takes_origins_and_tokens_only() {
        for wrong in [
            "",
            "example.com",
            "https://",
            "https://a/",
            "https://a/b",
            "https://a:x",
            "https://a:99999",
            "://a",
            "1a://b",
            "https://a b",
            "*",
        ] {
            let error = UpgradePolicy::new(&[wrong.to_owned()], &[]).unwrap_err();
            assert_eq!(error, PolicyError::Origin(wrong.to_owned()));
        }
        for wrong in ["", "a b", "a,b", "a/b", "é"] {
            let error = UpgradePolicy::new(&[], &[wrong.to_owned()]).unwrap_err();
            assert_eq!(error, PolicyError::Subprotocol(wrong.to_owned()));
        }
        assert!(
            UpgradePolicy::new(&["null".into(), "chrome-extension://abc".into()], &["v1.a".into()]).is_ok()
        );
    }
}
