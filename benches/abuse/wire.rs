//! What abusers say, as octets that are made once.

use std::sync::Arc;

use resound::mask::{self, MaskingKey};
use resound::proto::{FrameHeader, Opcode};
use zlib_rs::{Deflate, DeflateFlush};

/// What a sync flush ends with, and a message leaves out (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// The extension as every client may offer it.
pub(crate) const DEFLATE: &str = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";

/// A request for a WebSocket connection at `path`, with the key of RFC 6455 §1.3.
pub(crate) fn request(path: &str, extensions: Option<&str>) -> Vec<u8> {
    let offer = extensions.map_or(String::new(), |offer| format!("Sec-WebSocket-Extensions: {offer}\r\n"));
    format!(
        "GET {path} HTTP/1.1\r\nHost: abuse\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offer}\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// A request head of `len` octets without an end.
pub(crate) fn endless_head(len: usize) -> Vec<u8> {
    let mut head = b"GET / HTTP/1.1\r\nHost: abuse\r\nX-Endless: ".to_vec();
    head.resize(len, b'a');
    head
}

/// A frame's masked header, then the `sent` first octets of its `announced` ones.
pub(crate) fn beginning(header: FrameHeader, announced: usize, payload: &[u8]) -> Vec<u8> {
    let key = MaskingKey::from_wire([0x37, 0xFA, 0x21, 0x3D]);
    let header = FrameHeader { masking_key: Some(key), payload_len: announced as u64, ..header };
    let mut octets = vec![0; 14];
    let len = header.write(&mut octets);
    octets.truncate(len);
    mask::unmask_append(&mut octets, payload, key);
    octets
}

/// One whole masked message.
pub(crate) fn message(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    beginning(FrameHeader::message(opcode, 0), payload.len(), payload)
}

/// A binary message of `announced` octets of which only `sent` come.
pub(crate) fn partial(announced: usize, sent: usize) -> Vec<u8> {
    beginning(FrameHeader::message(Opcode::Binary, 0), announced, &vec![b'p'; sent])
}

/// A compressed message that inflates to `len` zeros: a thousandth of that on the wire.
pub(crate) fn bomb(len: usize) -> Vec<u8> {
    let payload = deflated_zeros(len);
    beginning(FrameHeader { rsv1: true, ..FrameHeader::message(Opcode::Binary, 0) }, payload.len(), &payload)
}

/// The first frame of a compressed message that inflates to `len` zeros so far, and has no end.
pub(crate) fn endless_bomb(len: usize) -> Vec<u8> {
    let mut payload = deflated_zeros(len);
    payload.extend_from_slice(&TAIL);
    let header = FrameHeader { rsv1: true, fin: false, ..FrameHeader::message(Opcode::Binary, 0) };
    beginning(header, payload.len(), &payload)
}

/// The payload of a compressed message of zeros (RFC 7692 §7.2.1).
fn deflated_zeros(len: usize) -> Vec<u8> {
    let mut deflate = Deflate::new(9, false, 15);
    let mut target = vec![0; len / 500 + 1024];
    deflate.compress(&vec![0; len], &mut target, DeflateFlush::SyncFlush).expect("there is room enough");
    target.truncate(deflate.total_out() as usize);
    assert!(target.ends_with(&TAIL), "the compressed message has room");
    target.truncate(target.len() - TAIL.len());
    target
}

/// As many copies of `one` as fit into `octets`, and one at least.
pub(crate) fn many(one: &[u8], octets: usize) -> Arc<[u8]> {
    one.repeat((octets / one.len()).max(1)).into()
}

/// The length of the unmasked frame that a server sends for `payload_len` octets.
pub(crate) fn reply_len(payload_len: usize) -> usize {
    FrameHeader::message(Opcode::Binary, payload_len).encoded_len() + payload_len
}
