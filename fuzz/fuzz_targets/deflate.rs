//! Compression from the first offer to the last message: any header value, and any octets from a peer. However
//! they are cut, and however little is inflated at once, the messages must be the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use resound::memory::Meter;
use resound::proto::handshake::extensions;
use resound::proto::{
    Codecs, Connection, DeflateOffer, DeflateParams, DeflatePolicy, DeflateSettings, Handler, Limits,
    Message, ProtocolError, Replies, Reply,
};

const LIMITS: Limits =
    Limits { message_size_max: 50_000, fragments_max: 100, inflate_octets_max: usize::MAX };

#[derive(Default)]
struct Echo(Vec<Vec<u8>>);

impl Handler for Echo {
    fn message(&mut self, message: Message<'_>) -> Reply {
        assert!(message.payload().len() as u64 <= LIMITS.message_size_max);
        self.0.push(message.payload().to_vec());
        Reply::Echo
    }
}

type Outcome = (Vec<Vec<u8>>, Result<(), ProtocolError>);

/// Feeds `pieces` to a server; `None` if what was agreed on needs more memory than there is.
fn serve(
    params: DeflateParams,
    settings: DeflateSettings,
    inflate_octets_max: usize,
    pieces: &[&[u8]],
) -> Option<Outcome> {
    let limits = Limits { inflate_octets_max, ..LIMITS };
    let meter = Meter::default();
    let mut codecs = Codecs::with_meter(settings, meter.clone());
    let mut connection = Connection::server();
    if !connection.agree_on_deflate(params, &codecs) {
        return None;
    }
    let (mut echo, mut replies, mut buffer, mut result) =
        (Echo::default(), Replies::default(), Vec::new(), Ok(()));
    let mut pieces = pieces.iter();
    loop {
        match pieces.next() {
            Some(piece) => buffer.extend_from_slice(piece),
            None if buffer.is_empty() => break,
            None => {}
        }
        let outcome = connection.receive(&mut buffer, 0, &limits, &mut codecs, &mut replies, &mut echo);
        buffer.drain(..buffer.len() - outcome.unwrap_or(0));
        result = result.and(outcome.map(drop));
        assert_eq!(connection.held_octets(), meter.used());
        assert!(codecs.memory_bytes() <= settings.memory_bytes_max);
    }
    drop(connection);
    assert_eq!(meter.used(), 0, "everything was given back");
    Some((echo.0, result))
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
    let has_no_memory = flags & 8 != 0;
    let settings = DeflateSettings {
        message_len_min: usize::from(flags >> 6),
        recompress: flags & 4 != 0,
        memory_bytes_max: if has_no_memory { 0 } else { 1 << 20 },
        ..DeflateSettings::default()
    };
    let (first, second) = octets.split_at(octets.len() * usize::from(*cut) / 256);
    let inflate_octets_max = if flags & 16 != 0 { usize::from(window_bits / 7) * 20 } else { usize::MAX };
    let cut = serve(params, settings, inflate_octets_max, &[first, second]);
    // Where there is no memory, what would have to be suspended is refused.
    if !has_no_memory {
        assert_eq!(serve(params, settings, usize::MAX, &[octets]), cut);
    }
});
