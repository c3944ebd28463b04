//! The opening handshake (RFC 6455 §4), both sides, without I/O.
//!
//! A server calls [`Request::parse`] on what it received until the head is whole, asks
//! [`Request::wants_upgrade`], and then [`Request::upgrade`]: that gives an [`Accepted`], which writes the
//! 101, or a [`Rejection`], which writes the answer that refuses. A client does the same from the other end
//! with [`ClientRequest`] and [`Response`].
//!
//! Everything here is a pure function of the octets it is given. It never buffers: a head cut by a read stays
//! with the caller, together with its [`HeadScanner`], and never grows beyond
//! [`HandshakeLimits::head_bytes_max`] octets. It is as strict as RFC 9112 lets a server be: no bare LF, no
//! line folding, no space before a colon.

mod client;
mod extension;
mod head;
mod rejection;
mod request;
mod upgrade;

pub use client::{Agreed, ClientRequest, ClientRequestError, HandshakeError, Response};
pub use extension::{Extension, MalformedExtensions, Param, extensions};
pub use head::{HandshakeLimits, HeadError, HeadScanner};
pub use rejection::Rejection;
pub(crate) use rejection::write_answer;
pub use request::{HttpVersion, Request};
pub use upgrade::{Accepted, PolicyError, UpgradePolicy};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha1::{Digest as _, Sha1};

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455 §1.3
const VERSION: &str = "13"; // RFC 6455 §4.1
/// A `Sec-WebSocket-Key` is the base64 of this many octets (RFC 6455 §4.1).
const NONCE_LEN: usize = 16;
/// A `Sec-WebSocket-Accept` is the base64 of a SHA-1 of 20 octets.
const ACCEPT_LEN: usize = 28;

/// The `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` as it was sent (RFC 6455 §4.2.2).
fn accept_key(key: &[u8]) -> [u8; ACCEPT_LEN] {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; ACCEPT_LEN];
    BASE64.encode_slice(digest, &mut accept).expect("20 octets are 28 in base64");
    accept
}

/// Whether these octets are a `token` (RFC 9110 §5.6.2).
fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|octet| is_token_octet(*octet))
}

fn is_token_octet(octet: u8) -> bool {
    matches!(octet, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*'
        | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// Whether these octets can be the host and port of a URI (RFC 3986 §3.2.2, §3.2.3).
fn is_host(octets: &[u8]) -> bool {
    !octets.is_empty()
        && octets.iter().all(|octet| {
            octet.is_ascii_alphanumeric()
                || matches!(
                    octet,
                    b'-' | b'.'
                        | b'_'
                        | b'~'
                        | b'%'
                        | b'!'
                        | b'$'
                        | b'&'
                        | b'\''
                        | b'('
                        | b')'
                        | b'*'
                        | b'+'
                        | b','
                        | b';'
                        | b'='
                        | b':'
                        | b'['
                        | b']'
                )
        })
}

/// Whether these octets can stand in a request line: visible ASCII, and no fragment (RFC 6455 §3).
fn is_target(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|octet| octet.is_ascii_graphic() && *octet != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_of_the_rfc_example() {
        // RFC 6455 §1.3.
        assert_eq!(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_token_has_no_separators() {
        assert!(is_token(b"chat.v2-%x!#$&'*+^_`|~"));
        for separator in b"()<>@,;:\\\"/[]?={} \t\x7f\0\xe9" {
            assert!(!is_token(&[b'a', *separator]), "{separator:#x}");
        }
        assert!(!is_token(b""));
    }
}
