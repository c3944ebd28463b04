//! What the tests say to a server, as octets.

#![allow(dead_code, reason = "every test uses some of it")]

pub(crate) mod client;
pub(crate) mod process;
pub(crate) mod simulated;
pub(crate) mod stream;

/// The values of `--io` that every test of the whole server runs with.
pub(crate) const BACKENDS: &[&str] = &["epoll"];

use resound::mask::{self, MaskingKey};
use resound::proto::{FrameHeader, Opcode};

/// A request for a WebSocket connection at `path`.
pub(crate) fn request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// The answer to [`request`].
pub(crate) const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// One masked frame.
pub(crate) fn masked(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let key = MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d]);
    let header = FrameHeader { fin, masking_key: Some(key), ..FrameHeader::message(opcode, payload.len()) };
    let mut octets = vec![0; 14];
    let len = header.write(&mut octets);
    octets.truncate(len);
    mask::unmask_append(&mut octets, payload, key);
    octets
}

/// One whole masked message.
pub(crate) fn message(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    masked(true, opcode, payload)
}

/// One unmasked frame: what a server sends.
pub(crate) fn reply(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 14];
    let len = FrameHeader::message(opcode, payload.len()).write(&mut octets);
    octets.truncate(len);
    octets.extend_from_slice(payload);
    octets
}

/// A Close frame's payload.
pub(crate) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// The frames in what a server sent, which must be whole.
pub(crate) fn frames(mut octets: &[u8]) -> Vec<(Opcode, Vec<u8>)> {
    let mut frames = Vec::new();
    while !octets.is_empty() {
        let (header, len) = FrameHeader::parse(octets).expect("a valid header").expect("a whole header");
        assert!(header.fin && header.masking_key.is_none() && !header.rsv1);
        let end = len + header.payload_len as usize;
        frames.push((header.opcode, octets[len..end].to_vec()));
        octets = &octets[end..];
    }
    frames
}
