//! What a plain HTTP request gets: everything that does not ask for a WebSocket connection.
//!
//! There is no file, no routing language and no body to read here: a few small texts, said correctly. Start
//! at [`answer`].

use crate::proto::handshake::{HttpVersion, Request, write_answer};

/// Appends the whole answer to a plain request to `target`, and returns whether another request may follow
/// on the connection. If not, it is to be closed once the answer is sent.
///
/// `is_secure` says whether the connection speaks TLS, `date` is the value of its `Date` header field. A body is never
/// read: an answer to a request that has one is the last on its connection.
pub fn answer(request: &Request<'_>, is_secure: bool, date: &str, target: &mut Vec<u8>) -> bool {
    let keep_alive = request.keep_alive() && !request.has_body();
    let head = request.method() == "HEAD";
    let (status, body) = match (request.method(), request.path()) {
        ("GET" | "HEAD", "/healthz") => (200, "ok\n".to_owned()),
        ("GET" | "HEAD", _) => (426, what_this_is(request, is_secure)),
        _ => (405, "resound: a plain request is a GET or a HEAD\n".to_owned()),
    };
    let extra: &[(&str, &str)] = match status {
        405 => &[("Allow", "GET, HEAD")], // RFC 9110 §15.5.6
        426 => &[("Upgrade", "websocket")],
        _ => &[],
    };
    let mut fields = extra.to_vec();
    if let Some(options) = connection_options(status == 426, keep_alive, request.version()) {
        fields.push(("Connection", options));
    }
    write_answer(target, status, date, &fields, &body, !head);
    keep_alive
}

/// Who came here with a browser or `curl` learns what would have worked.
fn what_this_is(request: &Request<'_>, is_secure: bool) -> String {
    let scheme = if is_secure { "wss" } else { "ws" };
    let url = match request.host() {
        Some(host) => format!("{scheme}://{host}{}", request.path()),
        None => "it".to_owned(),
    };
    format!("resound: a WebSocket echo and broadcast server. Connect with a WebSocket client to {url}\n")
}

/// An `Upgrade` header field is named in `Connection` (RFC 9110 §7.8); persistence is said where it is not
/// the default of the client's version (RFC 9112 §9.3).
fn connection_options(upgrade: bool, keep_alive: bool, version: HttpVersion) -> Option<&'static str> {
    match (upgrade, keep_alive, version) {
        (false, true, HttpVersion::Http11) => None,
        (true, true, HttpVersion::Http11) => Some("Upgrade"),
        (false, true, HttpVersion::Http10) => Some("keep-alive"),
        (true, true, HttpVersion::Http10) => Some("Upgrade, keep-alive"),
        (false, false, _) => Some("close"),
        (true, false, _) => Some("Upgrade, close"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::handshake::{HandshakeLimits, HeadScanner};

    /// The answer, and whether the connection persists.
    fn answered(head: &str) -> (String, bool) {
        let octets = format!("{}\r\n\r\n", head.replace('\n', "\r\n"));
        let (request, _) =
            Request::parse(octets.as_bytes(), &mut HeadScanner::default(), &HandshakeLimits::default())
                .unwrap()
                .expect("the head is whole");
        let mut target = Vec::new();
        let keep_alive = answer(&request, false, "Sun, 06 Nov 1994 08:49:37 GMT", &mut target);
        (String::from_utf8(target).unwrap(), keep_alive)
    }

    #[test]
    fn healthz_is_ok() {
        assert_eq!(
            answered("GET /healthz?x HTTP/1.1\nHost: a"),
            (
                "HTTP/1.1 200 OK\r\n\
                 Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                 Content-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: 3\r\n\
                 \r\n\
                 ok\n"
                    .into(),
                true
            )
        );
    }

    #[test]
    fn a_plain_get_learns_what_this_is_and_how_to_connect() {
        assert_eq!(
            answered("GET /broadcast/a?b HTTP/1.1\nHost: a.example:9001"),
            (
                "HTTP/1.1 426 Upgrade Required\r\n\
                 Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                 Upgrade: websocket\r\n\
                 Connection: Upgrade\r\n\
                 Content-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: 115\r\n\
                 \r\n\
                 resound: a WebSocket echo and broadcast server. \
                 Connect with a WebSocket client to ws://a.example:9001/broadcast/a\n"
                    .into(),
                true
            )
        );
    }

    #[test]
    fn head_gets_the_head_of_get() {
        for path in ["/", "/healthz"] {
            let (get, _) = answered(&format!("GET {path} HTTP/1.1\nHost: a"));
            let (head, keep_alive) = answered(&format!("HEAD {path} HTTP/1.1\nHost: a"));
            let end = get.find("\r\n\r\n").unwrap() + 4;
            assert_eq!(head, get[..end]);
            assert!(end < get.len() && keep_alive);
        }
    }

    #[test]
    fn other_methods_are_not_allowed() {
        for line in ["POST /healthz", "OPTIONS *", "CONNECT a:1", "get /", "DELETE /"] {
            let (answer, keep_alive) = answered(&format!("{line} HTTP/1.1\nHost: a"));
            assert!(
                answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n")
                    && answer.contains("\r\nAllow: GET, HEAD\r\n"),
                "{answer}"
            );
            assert!(keep_alive);
        }
    }

    #[test]
    fn a_request_with_a_body_is_the_last() {
        for field in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let (answer, keep_alive) = answered(&format!("POST / HTTP/1.1\nHost: a\n{field}"));
            assert!(answer.contains("\r\nConnection: close\r\n") && !keep_alive, "{answer}");
        }
    }

    #[test]
    fn persistence_is_as_the_client_asks() {
        let connection = |head: &str| {
            let (answer, keep_alive) = answered(head);
            let line = answer.lines().find_map(|line| line.strip_prefix("Connection: "));
            (line.map(str::to_owned), keep_alive)
        };
        let is = |options: &str, keep_alive| (Some(options.to_owned()), keep_alive);
        assert_eq!(connection("GET /healthz HTTP/1.1\nHost: a"), (None, true));
        assert_eq!(connection("GET /healthz HTTP/1.1\nHost: a\nConnection: close"), is("close", false));
        assert_eq!(connection("GET / HTTP/1.1\nHost: a\nConnection: close"), is("Upgrade, close", false));
        assert_eq!(connection("GET /healthz HTTP/1.0"), is("close", false));
        assert_eq!(connection("GET /healthz HTTP/1.0\nConnection: keep-alive"), is("keep-alive", true));
        assert_eq!(connection("GET / HTTP/1.0\nConnection: keep-alive"), is("Upgrade, keep-alive", true));
    }

    #[test]
    fn without_a_host_the_answer_still_says_what_this_is() {
        assert!(answered("GET / HTTP/1.0").0.ends_with("Connect with a WebSocket client to it\n"));
    }
}
