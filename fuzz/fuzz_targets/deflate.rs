//! Compression from the first offer to the last message: any header value, and any octets from a peer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use resound::proto::handshake::extensions;
use resound::proto::{
    Codecs, Connection, DeflateOffer, DeflatePolicy, DeflateSettings, Handler, Limits, Message, Replies,
    Reply,
};

const LIMITS: Limits = Limits { message_size_max: 50_000, fragments_max: 100, inflate_octets_max: 1 << 20 };

struct Echo;

impl Handler for Echo {
    fn message(&mut self, message: Message<'_>) -> Reply {
        assert!(message.payload().len() as u64 <= LIMITS.message_size_max);
        Reply::Echo
    }
}

fuzz_target!(|data: &[u8]| {
    let [flags, window_bits, cut, rest @ ..] = data else { return };
    let at = rest.iter().position(|octet| *octet == b'\n').unwrap_or(0);
    let (header, octets) = rest.split_at(at);
    let policy = DeflatePolicy {
        server_no_context_takeover: flags & 1 != 0,
        client_no_context_takeover: flags & 2 != 0,
        window_bits_max: 9 + window_bits % 7,
    };
    if let Ok(header) = std::str::from_utf8(header) {
        let offer = DeflateOffer { client_max_window_bits: Some(None), ..DeflateOffer::default() };
        let _ = offer.verify(header);
    }
    let params = match policy.answer(extensions(header).map_while(Result::ok)) {
        Some(params) => params,
        None => policy.answer(extensions(b"permessage-deflate").flatten()).expect("a bare offer can be met"),
    };
    let settings = DeflateSettings {
        message_len_min: usize::from(flags >> 6),
        recompress: flags & 4 != 0,
        memory_bytes_max: if flags & 8 != 0 { 0 } else { 1 << 20 },
        ..DeflateSettings::default()
    };
    let mut codecs = Codecs::new(settings);
    let mut connection = Connection::server();
    if !connection.agree_on_deflate(params, &codecs) {
        return;
    }
    let mut replies = Replies::default();
    let (first, second) = octets.split_at(octets.len() * usize::from(*cut) / 256);
    for piece in [first, second] {
        let _ = connection.receive(&mut piece.to_vec(), 0, &LIMITS, &mut codecs, &mut replies, &mut Echo);
    }
    drop(connection);
    assert_eq!(codecs.memory_bytes(), 0, "everything was given back");
});
