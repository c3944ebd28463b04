//! The rules of RFC 7692 §6 and §7.2 on a connection, its limits, and the property that neither cuts nor
//! parameters change what is echoed.

use super::super::super::DeflateSettings;
use super::super::super::deflate::Deflater;
use super::super::tests::{close_frame, cut_at, from_client, from_server, raw_frame};
use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { message_size_max: 1 << 20, fragments_max: 64, inflate_octets_max: 1 << 20 };
const NO_TAKEOVER: DeflateParams = DeflateParams {
    server_no_context_takeover: true,
    client_no_context_takeover: true,
    server_max_window_bits: None,
    client_max_window_bits: None,
};
const TAKEOVER: DeflateParams =
    DeflateParams { server_no_context_takeover: false, client_no_context_takeover: false, ..NO_TAKEOVER };
/// "Hello" and what it is compressed (RFC 7692 §7.2.3.1).
const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

fn settings() -> DeflateSettings {
    DeflateSettings { message_len_min: 0, ..DeflateSettings::default() }
}

fn server(params: DeflateParams, codecs: &Codecs) -> Connection {
    let mut connection = Connection::server();
    assert!(connection.agree_on_deflate(params, codecs));
    connection
}

#[derive(Default)]
struct Echo(Vec<(Opcode, Vec<u8>)>);

impl Handler for Echo {
    fn message(&mut self, message: Message<'_>) -> Reply {
        let (header, len) = FrameHeader::parse(message.frame()).unwrap().unwrap();
        assert_eq!((header.rsv1, &message.frame()[len..]), (false, message.payload()));
        self.0.push((message.opcode(), message.payload().to_vec()));
        Reply::Echo
    }
}

type Outcome = (Vec<u8>, Vec<(Opcode, Vec<u8>)>, Result<(), ProtocolError>);

fn run(connection: &mut Connection, codecs: &mut Codecs, input: &[u8], cuts: &[usize]) -> Outcome {
    run_with(&LIMITS, connection, codecs, input, cuts)
}

/// Feeds `input` in pieces that end at `cuts`. What a receive leaves goes before the next piece.
fn run_with(
    limits: &Limits,
    connection: &mut Connection,
    codecs: &mut Codecs,
    input: &[u8],
    cuts: &[usize],
) -> Outcome {
    let (mut sent, mut echo, mut replies) = (Vec::new(), Echo::default(), Replies::default());
    let (mut result, mut buffer, mut start) = (Ok(()), Vec::new(), 0);
    let mut ends = cuts.iter().copied().chain([input.len()]);
    loop {
        match ends.next() {
            Some(end) => {
                buffer.extend_from_slice(&input[start..end]);
                start = end;
            }
            None if buffer.is_empty() => return (sent, echo.0, result),
            None => {}
        }
        let outcome = connection.receive(&mut buffer, 0, limits, codecs, &mut replies, &mut echo);
        sent.extend(replies.to_vec(&buffer));
        buffer.drain(..buffer.len() - outcome.unwrap_or(0));
        result = result.and(outcome.map(drop));
    }
}

/// Feeds a new server whole, and octet by octet: the outcome must be the same.
fn serve(params: DeflateParams, input: &[u8]) -> Outcome {
    let outcome = |cuts: &[usize]| {
        let mut codecs = Codecs::new(settings());
        run(&mut server(params, &codecs), &mut codecs, input, cuts)
    };
    let whole = outcome(&[]);
    let cuts: Vec<usize> = (1..input.len()).collect();
    let cut = outcome(&cuts);
    assert_eq!((&whole.1, whole.2), (&cut.1, cut.2));
    assert_eq!(replies(&whole.0, params), replies(&cut.0, params));
    whole
}

fn fails_with(input: &[u8], error: ProtocolError, code: u16) {
    for params in [NO_TAKEOVER, TAKEOVER] {
        let (sent, _, result) = serve(params, input);
        assert_eq!((sent, result), (close_frame(code), Err(error)));
    }
}

/// What a client reads: opcodes and payloads, inflated.
fn replies(mut sent: &[u8], params: DeflateParams) -> Vec<(Opcode, Vec<u8>)> {
    let (mut all, mut inflater) = (Vec::new(), Inflater::default());
    while let Some((header, len)) = FrameHeader::parse(sent).unwrap() {
        let (payload, rest) = sent[len..].split_at(header.payload_len as usize);
        sent = rest;
        let mut message = payload.to_vec();
        if header.rsv1 {
            if params.server_no_context_takeover {
                inflater = Inflater::default();
            }
            let (mut inflated, mut work) = (Buffer::default(), Work::endless());
            let limits = InflateLimits { len_max: u64::MAX, ratio_max: 0 };
            inflater.inflate(payload, &[], &mut inflated, &limits, &mut work, |_| Ok(())).unwrap();
            inflater.finish().unwrap();
            message = inflated.message().to_vec();
        }
        all.push((header.opcode, message));
    }
    assert!(sent.is_empty());
    all
}

fn deflated(message: &[u8]) -> Vec<u8> {
    let mut target = Buffer::default();
    Deflater::new(&DeflateSettings { level: 9, ..settings() }, 15).deflate(message, &mut target).unwrap();
    target.message().to_vec()
}

#[test]
fn a_compressed_hello_is_echoed_in_the_same_octets() {
    let (sent, messages, result) = serve(NO_TAKEOVER, &from_client(0xC1, &HELLO));
    assert_eq!((sent, result), (from_server(0xC1, &HELLO), Ok(())));
    assert_eq!(messages, [(Opcode::Text, b"Hello".to_vec())]);
}

#[test]
fn echoes_in_their_own_octets_lie_at_the_front_of_the_buffer() {
    let mut codecs = Codecs::new(settings());
    let mut buffer =
        [from_client(0xC1, &HELLO), from_client(0x89, b"ping"), from_client(0xC1, &HELLO)].concat();
    let mut replies = Replies::default();
    let mut connection = server(NO_TAKEOVER, &codecs);
    connection.receive(&mut buffer, 0, &LIMITS, &mut codecs, &mut replies, &mut Echo::default()).unwrap();
    let expected =
        [from_server(0xC1, &HELLO), from_server(0x8A, b"ping"), from_server(0xC1, &HELLO)].concat();
    assert!(replies.is_in_place());
    assert_eq!(buffer[replies.range()], expected);
}

#[test]
fn with_context_takeover_the_second_hello_refers_to_the_first() {
    let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
    let input = [from_client(0xC1, &HELLO), from_client(0xC1, &second)].concat();
    let (sent, messages, result) = serve(TAKEOVER, &input);
    assert_eq!((messages.len(), result), (2, Ok(())));
    assert_eq!(messages[0], messages[1]);
    assert_eq!(
        sent,
        [from_server(0xC1, &HELLO), from_server(0xC1, &second)].concat(),
        "our replies refer, too"
    );
    let (_, _, result) = serve(NO_TAKEOVER, &input);
    assert_eq!(result, Err(ProtocolError::Compression));
}

#[test]
fn with_context_takeover_echoes_are_compressed_anew_once_the_histories_differ() {
    let long = b"a message that was sent once before, ".repeat(3);
    let settings = settings();
    let mut client = Deflater::new(&settings, 15);
    let mut compress = |message: &[u8]| {
        let mut target = Buffer::default();
        client.deflate(message, &mut target).unwrap();
        target.message().to_vec()
    };
    // Ours refers to what went out compressed and never came so; theirs knows nothing of that.
    let plain = from_client(0x81, &long);
    let first = from_client(0xC1, &compress(&long));
    let again = from_client(0xC1, &compress(&long));
    let (sent, messages, result) = serve(TAKEOVER, &[plain, first.clone(), again].concat());
    assert_eq!((messages.len(), result), (3, Ok(())));
    assert_eq!(replies(&sent, TAKEOVER), messages);
    let (_, first_len) = FrameHeader::parse(&sent).unwrap().unwrap();
    let second = first_len + usize::from(sent[1]);
    assert!(
        usize::from(sent[second + 1]) < first.len() / 2,
        "the first echo of theirs refers to the one before"
    );
}

#[test]
fn messages_that_come_uncompressed_are_compressed_where_that_is_worth_it() {
    for params in [NO_TAKEOVER, TAKEOVER] {
        let long = vec![b'a'; 1000];
        let (sent, ..) = serve(params, &from_client(0x81, &long));
        assert!(sent[0] == 0xC1 && sent.len() < 50);
        assert_eq!(replies(&sent, params), [(Opcode::Text, long)]);
    }
    let mut codecs = Codecs::new(DeflateSettings { message_len_min: 100, ..settings() });
    let short = [vec![b'a'; 99], vec![b'a'; 100]];
    for (message, is_compressed) in short.iter().zip([false, true]) {
        for first in [0x81, 0xC1] {
            let payload = if first == 0x81 { message.clone() } else { deflated(message) };
            let mut connection = server(NO_TAKEOVER, &codecs);
            let (sent, ..) = run(&mut connection, &mut codecs, &from_client(first, &payload), &[]);
            assert_eq!(sent[0] == 0xC1, is_compressed);
            assert_eq!(replies(&sent, NO_TAKEOVER), [(Opcode::Text, message.clone())]);
        }
    }
}

#[test]
fn an_echo_never_looks_further_back_than_was_agreed() {
    let params = DeflateParams { server_max_window_bits: Some(9), ..NO_TAKEOVER };
    let far: Vec<u8> =
        [&b"a needle that is far away"[..], &[b'.'; 5000], b"a needle that is far away"].concat();
    let input = from_client(0xC2, &deflated(&far));
    let (sent, ..) = serve(params, &input);
    assert_ne!(sent[2..], input[6..], "it was compressed anew");
    assert_eq!(replies(&sent, params), [(Opcode::Binary, far)]);
}

#[test]
fn rsv1_belongs_on_the_first_frame_of_a_data_message() {
    fails_with(&from_client(0xC9, b""), ProtocolError::ReservedBit, 1002);
    fails_with(&from_client(0xC8, b""), ProtocolError::ReservedBit, 1002);
    let both = [from_client(0x41, &HELLO[..3]), from_client(0xC0, &HELLO[3..])].concat();
    fails_with(&both, ProtocolError::ReservedBit, 1002);
    let late = [from_client(0x01, b"Hel"), from_client(0xC0, b"lo")].concat();
    fails_with(&late, ProtocolError::ReservedBit, 1002);
    fails_with(&from_client(0xE1, &HELLO), ProtocolError::ReservedBit, 1002);
    let none = run(&mut Connection::server(), &mut Codecs::default(), &from_client(0xC1, &HELLO), &[]);
    assert_eq!((none.0, none.2), (close_frame(1002), Err(ProtocolError::ReservedBit)));
}

#[test]
fn a_compressed_message_may_be_cut_into_frames_anywhere() {
    // Also inside the empty block at its end, and into empty frames.
    for cut in 0..=HELLO.len() {
        let input =
            [from_client(0x41, &HELLO[..cut]), from_client(0x89, b"!"), from_client(0x80, &HELLO[cut..])]
                .concat();
        for params in [NO_TAKEOVER, TAKEOVER] {
            let (sent, messages, result) = serve(params, &input);
            assert_eq!((messages, result), (vec![(Opcode::Text, b"Hello".to_vec())], Ok(())));
            let expected = [(Opcode::Pong, b"!".to_vec()), (Opcode::Text, b"Hello".to_vec())];
            assert_eq!(replies(&sent, params), expected);
        }
    }
}

#[test]
fn an_empty_message_is_an_empty_block_or_nothing_at_all() {
    for params in [NO_TAKEOVER, TAKEOVER] {
        for payload in [&b"\x00"[..], b"", b"\x02\x00", b"\x03\x00\x00"] {
            let input = [from_client(0xC1, payload), from_client(0xC1, &HELLO)].concat();
            let (sent, _, result) = serve(params, &input);
            assert_eq!(result, Ok(()), "{payload:x?}");
            let expected = [(Opcode::Text, vec![]), (Opcode::Text, b"Hello".to_vec())];
            assert_eq!(replies(&sent, params), expected);
        }
    }
}

#[test]
fn what_cannot_be_inflated_fails_with_1007() {
    fails_with(&from_client(0xC2, b"\xFF\xFF\xFF"), ProtocolError::Compression, 1007);
    fails_with(&from_client(0xC2, &HELLO[..4]), ProtocolError::Compression, 1007);
    let fragments = [from_client(0x42, b"\xFF"), from_client(0x80, b"\xFF\xFF")].concat();
    fails_with(&fragments, ProtocolError::Compression, 1007);
}

#[test]
fn text_must_be_utf8_once_it_is_inflated() {
    for text in [&b"\xCE\xBA\xF4\x90\x80\x80"[..], b"abc\xFF", b"incomplete \xE2\x82"] {
        fails_with(&from_client(0xC1, &deflated(text)), ProtocolError::InvalidUtf8, 1007);
        let (_, _, result) = serve(NO_TAKEOVER, &from_client(0xC2, &deflated(text)));
        assert_eq!(result, Ok(()), "binary may be anything");
    }
}

#[test]
fn bad_text_fails_before_its_message_or_frame_is_complete() {
    // Stored blocks: every octet that is there can be read.
    let stored = |text: &[u8]| [&[0, text.len() as u8, 0, !(text.len() as u8), 0xFF], text].concat();
    let bad = [stored(b"ok "), stored(b"\xC0\xAF"), stored(b"and more")].concat();
    for params in [NO_TAKEOVER, TAKEOVER] {
        let mut codecs = Codecs::new(settings());
        let fragment = from_client(0x41, &bad);
        let (sent, _, result) = run(&mut server(params, &codecs), &mut codecs, &fragment, &[]);
        assert_eq!((sent, result), (close_frame(1007), Err(ProtocolError::InvalidUtf8)));
        let mut frame = from_client(0xC1, &[bad.clone(), vec![0; 1000]].concat());
        frame.truncate(6 + 2 + bad.len());
        let (sent, _, result) = run(&mut server(params, &codecs), &mut codecs, &frame, &[10]);
        assert_eq!((sent, result), (close_frame(1007), Err(ProtocolError::InvalidUtf8)));
    }
}

#[test]
fn a_bomb_fails_with_1009_after_the_limit() {
    let bomb = deflated(&vec![0; 64 << 20]);
    let fragments =
        [from_client(0x42, &bomb[..bomb.len() / 2]), from_client(0x80, &bomb[bomb.len() / 2..])].concat();
    for input in [from_client(0xC2, &bomb), fragments] {
        for cuts in [&[][..], &[100, 10_000]] {
            for params in [NO_TAKEOVER, TAKEOVER] {
                let mut codecs = Codecs::new(settings());
                let (sent, messages, result) = run(&mut server(params, &codecs), &mut codecs, &input, cuts);
                assert_eq!((sent, result), (close_frame(1009), Err(ProtocolError::MessageTooBig)));
                assert_eq!(messages, []);
            }
        }
    }
}

#[test]
fn a_message_of_exactly_the_limit_is_echoed_whatever_its_compressed_length() {
    let mut state = 1u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let noise: Vec<u8> = (0..1 << 20).map(|_| noise()).collect();
    for message in [vec![0; 1 << 20], noise] {
        let payload = deflated(&message);
        for params in [NO_TAKEOVER, TAKEOVER] {
            let mut codecs = Codecs::new(settings());
            let input = from_client(0xC2, &payload);
            let (sent, _, result) =
                run(&mut server(params, &codecs), &mut codecs, &input, &[input.len() / 2]);
            assert_eq!(result, Ok(()));
            assert!(replies(&sent, params) == [(Opcode::Binary, message.clone())]);
        }
    }
}

#[test]
fn without_context_takeover_a_connection_owns_nothing_between_messages() {
    let mut codecs = Codecs::new(settings());
    let mut connection = server(NO_TAKEOVER, &codecs);
    let input = from_client(0xC1, &HELLO);
    run(&mut connection, &mut codecs, &input, &[]).2.unwrap();
    assert_eq!(codecs.memory_bytes(), 0);
    run(&mut connection, &mut codecs, &input[..9], &[]).2.unwrap();
    assert!(
        codecs.memory_bytes() > INFLATER_BYTES,
        "a decompressor and what it makes, while it is unfinished"
    );
    assert_eq!(connection.held_octets(), codecs.meter().used());
    run(&mut connection, &mut codecs, &input[9..], &[]).2.unwrap();
    assert_eq!((codecs.meter().used(), connection.held_octets()), (0, 0));
    assert!(connection.partial.is_none() && size_of::<Compression>() <= 16);
}

#[test]
fn where_memory_is_used_up_there_is_no_context_takeover() {
    let bytes = 2 * (32 << 10);
    let mut codecs = Codecs::new(DeflateSettings { memory_bytes_max: 2 * bytes, ..settings() });
    let first = server(TAKEOVER, &codecs);
    let mut second = server(TAKEOVER, &codecs);
    assert!(!Connection::server().agree_on_deflate(TAKEOVER, &codecs));
    assert!(Connection::server().agree_on_deflate(NO_TAKEOVER, &codecs));
    assert_eq!(codecs.memory_bytes(), 2 * bytes);
    // Both still work, at no more than what was set aside.
    run(&mut second, &mut codecs, &from_client(0xC1, &HELLO), &[9]).2.unwrap();
    assert_eq!(codecs.memory_bytes(), 2 * bytes);
    second.close(CloseCode::NORMAL, "", &mut Vec::new());
    drop(first);
    assert_eq!(codecs.memory_bytes(), 0);
}

/// Compressed messages of zeros, `len` octets each.
fn bombs(len: usize, count: usize) -> Vec<u8> {
    from_client(0xC2, &deflated(&vec![0; len])).repeat(count)
}

/// Codecs that let anything be inflated, counted in a meter with room for `octets`.
fn codecs_with(octets: usize) -> Codecs {
    Codecs::with_meter(DeflateSettings { ratio_max: 0, ..settings() }, Meter::new(octets))
}

/// What is inflated of messages of zeros, by counting messages and looking at the one in progress.
fn inflated_octets(connection: &Connection, echo: &Echo) -> usize {
    let in_progress = connection.partial.as_ref().and_then(|partial| partial.inflating.as_ref());
    let whole: usize = echo.0.iter().map(|(_, message)| message.len()).sum();
    whole + in_progress.map_or(0, |inflating| inflating.message.len())
}

#[test]
fn no_receive_inflates_much_more_than_its_limit_and_all_of_it_gets_done() {
    let limits = Limits { message_size_max: 32 << 20, ..LIMITS };
    for (len, count) in [(24 << 20, 1), (100_000, 200), (2 << 20, 5)] {
        for cut in [usize::MAX, 100, 5000] {
            let (mut codecs, mut echo, mut replies) =
                (codecs_with(usize::MAX), Echo::default(), Replies::default());
            let (mut connection, mut buffer, mut times) = (server(NO_TAKEOVER, &codecs), Vec::new(), 0);
            let input = bombs(len, count);
            let (first, second) = input.split_at(cut.min(input.len()));
            for piece in [first, second] {
                buffer.extend_from_slice(piece);
                while !buffer.is_empty() {
                    let before = inflated_octets(&connection, &echo);
                    let left = connection
                        .receive(&mut buffer, 0, &limits, &mut codecs, &mut replies, &mut echo)
                        .unwrap();
                    let inflated = inflated_octets(&connection, &echo) - before;
                    assert!(inflated <= limits.inflate_octets_max + (1 << 20), "{inflated}");
                    buffer.drain(..buffer.len() - left);
                    times += 1;
                }
            }
            assert_eq!(echo.0.len(), count);
            assert!(echo.0.iter().all(|(_, message)| *message == vec![0; len]));
            assert!(times >= len * count / limits.inflate_octets_max / 2, "{times}");
            assert_eq!((codecs.meter().used(), connection.held_octets()), (0, 0));
        }
    }
}

#[test]
fn messages_that_are_compressed_for_the_reply_are_work() {
    let mut codecs = Codecs::new(settings());
    let mut connection = server(NO_TAKEOVER, &codecs);
    let mut buffer = from_client(0x82, &[7; 200]).repeat(1000);
    let mut echo = Echo::default();
    let left =
        connection.receive(&mut buffer, 0, &LIMITS, &mut codecs, &mut Replies::default(), &mut echo).unwrap();
    assert!((100..500).contains(&echo.0.len()), "each clears a compressor's tables: {}", echo.0.len());
    assert_eq!(left, (1000 - echo.0.len()) * 206 + (1000 - echo.0.len()) * 2);
}

#[test]
fn what_bombs_inflate_to_is_counted_and_never_beyond_what_is_for_compression() {
    // 3 MiB of traffic made 3.1 GB: a hundred connections that each hold most of a 32 MiB message.
    let limits = Limits { message_size_max: 32 << 20, ..LIMITS };
    let bytes = 40 << 20;
    let settings = DeflateSettings { memory_bytes_max: bytes, ratio_max: 0, ..settings() };
    let mut codecs = Codecs::new(settings);
    let bomb = bombs(32 << 20, 1);
    let (mut connections, mut ended) = (Vec::new(), 0);
    for _ in 0..12 {
        let mut connection = server(NO_TAKEOVER, &codecs);
        let (sent, _, result) =
            run_with(&limits, &mut connection, &mut codecs, &bomb[..bomb.len() - 100], &[10_000]);
        if result.is_err() {
            assert_eq!((sent, result), (close_frame(1013), Err(ProtocolError::NoMemory)));
            assert_eq!(connection.held_octets(), 0, "its memory is free at once");
            ended += 1;
        }
        assert!(codecs.memory_bytes() <= bytes, "{}", codecs.memory_bytes());
        connections.push(connection);
    }
    assert!(ended >= 10, "{ended}");
    let held: usize = connections.iter().map(Connection::held_octets).sum();
    assert_eq!(held, codecs.meter().used());
    drop(connections);
    assert_eq!(codecs.meter().used(), 0);
}

#[test]
fn without_memory_for_it_a_message_is_not_suspended_but_refused() {
    let limits = Limits { message_size_max: 32 << 20, ..LIMITS };
    let (long, short) = (bombs(4 << 20, 1), bombs(900_000, 1));
    for cuts in [&[][..], &[100]] {
        let mut codecs = Codecs::new(DeflateSettings { memory_bytes_max: 0, ratio_max: 0, ..settings() });
        let mut connection = server(NO_TAKEOVER, &codecs);
        let input = [short.clone(), long.clone()].concat();
        let (_, messages, result) = run_with(&limits, &mut connection, &mut codecs, &input, cuts);
        assert_eq!((messages.len(), result), (1, Err(ProtocolError::NoMemory)));
        assert_eq!(codecs.meter().used(), 0);
    }
}

#[test]
fn a_reply_that_there_is_no_memory_for_ends_the_connection() {
    // It must be compressed anew, does not become shorter, and is longer than what came.
    let params = DeflateParams { server_max_window_bits: Some(9), ..NO_TAKEOVER };
    let mut codecs =
        Codecs::with_meter(DeflateSettings { message_len_min: 1 << 20, ..settings() }, Meter::new(100_000));
    let mut connection = server(params, &codecs);
    let (_, _, result) = run(&mut connection, &mut codecs, &bombs(99_000, 1), &[]);
    assert_eq!(result, Ok(()));
    let (sent, _, result) = run(&mut connection, &mut codecs, &bombs(101_000, 1), &[]);
    assert_eq!((sent, result), (close_frame(1013), Err(ProtocolError::NoMemory)));
}

#[test]
fn a_bomb_beyond_the_ratio_fails_with_1009() {
    let limits = Limits { message_size_max: 32 << 20, ..LIMITS };
    let input = bombs(4 << 20, 1);
    for cuts in [&[][..], &[100, 200], &[input.len() / 2]] {
        let mut codecs = Codecs::new(DeflateSettings { ratio_max: 200, ..settings() });
        let mut connection = server(TAKEOVER, &codecs);
        let (sent, _, result) = run_with(&limits, &mut connection, &mut codecs, &input, cuts);
        assert_eq!((sent, result), (close_frame(1009), Err(ProtocolError::InflationRatio)));
        assert_eq!(codecs.meter().used(), 0);
    }
}

#[test]
fn text_that_our_close_interrupts_says_nothing_about_the_next() {
    let mut codecs = Codecs::new(settings());
    let mut connection = server(NO_TAKEOVER, &codecs);
    // A stored block that ends inside a sequence.
    let half = [0, 1, 0, 0xFE, 0xFF, 0xC3];
    run(&mut connection, &mut codecs, &from_client(0x41, &half), &[]).2.unwrap();
    connection.close(CloseCode::GOING_AWAY, "", &mut Vec::new());
    assert_eq!(codecs.meter().used(), connection.held_octets());
    let rest = [from_client(0x80, &[0xA9]), from_client(0x01, b"a"), from_client(0x80, b"b")].concat();
    assert_eq!(run(&mut connection, &mut codecs, &rest, &[]).2, Ok(()));
}

#[test]
fn where_memory_is_used_up_compressed_messages_wait_to_be_complete() {
    let mut codecs = Codecs::new(DeflateSettings { memory_bytes_max: 0, ..settings() });
    let message = vec![b'a'; 1 << 20];
    let input = from_client(0xC1, &deflated(&message));
    let cuts: Vec<usize> = (1..input.len()).collect();
    let (sent, _, result) = run(&mut server(NO_TAKEOVER, &codecs), &mut codecs, &input, &cuts);
    assert_eq!(result, Ok(()));
    assert!(replies(&sent, NO_TAKEOVER) == [(Opcode::Text, message)]);
    let bomb = from_client(0xC1, &deflated(&vec![b'a'; (1 << 20) + 1]));
    let (.., result) = run(&mut server(NO_TAKEOVER, &codecs), &mut codecs, &bomb, &[100]);
    assert_eq!(result, Err(ProtocolError::MessageTooBig));
    // One that never ends is not kept for ever.
    let blocks = from_client(0xC1, &[0, 0, 0, 0xFF, 0xFF].repeat(300_000));
    let (.., result) = run(&mut server(NO_TAKEOVER, &codecs), &mut codecs, &blocks, &[]);
    assert_eq!(result, Err(ProtocolError::Compression), "nothing was kept, and it does not end well");
    let cuts: Vec<usize> = (1..100).map(|part| part * 10_000).collect();
    let (.., result) =
        run(&mut server(NO_TAKEOVER, &codecs), &mut codecs, &blocks[..blocks.len() - 1], &cuts);
    assert_eq!(result, Err(ProtocolError::MessageTooBig));
}

#[test]
fn a_flood_of_empty_blocks_is_not_kept() {
    let mut codecs = Codecs::new(settings());
    let mut connection = server(NO_TAKEOVER, &codecs);
    let blocks = from_client(0xC1, &[0, 0, 0, 0xFF, 0xFF].repeat(300_000));
    run(&mut connection, &mut codecs, &blocks[..blocks.len() - 1], &[100_000, 200_000]).2.unwrap();
    let partial = connection.partial.as_ref().unwrap();
    assert!(partial.message.capacity() < 2 * DEFLATED_EXCESS_MAX + HEADROOM);
}

#[test]
fn after_our_close_compressed_messages_are_dropped_unread() {
    for cut in [&[][..], &[8]] {
        let mut codecs = Codecs::new(settings());
        let mut connection = server(TAKEOVER, &codecs);
        connection.close(CloseCode::GOING_AWAY, "", &mut Vec::new());
        let input = [from_client(0xC1, b"\xFF\xFF"), from_client(0x88, b"\x03\xe9")].concat();
        let (sent, messages, result) = run(&mut connection, &mut codecs, &input, cut);
        assert_eq!((sent, messages, result), (vec![], vec![], Ok(())));
        assert_eq!(connection.state(), State::Closed);
    }
}

/// A message of a client: what it says, how it is sent.
#[derive(Clone, Debug)]
struct Sent {
    text: bool,
    message: Vec<u8>,
    compress: bool,
    fragments: Vec<prop::sample::Index>,
    ping: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let message = prop_oneof![
        any::<String>().prop_map(|text| (true, text.into_bytes())),
        (prop::sample::select(vec!["{\"id\":17}", "é", "x"]), 1usize..3000)
            .prop_map(|(word, count)| (true, word.repeat(count).into_bytes())),
        prop::collection::vec(any::<u8>(), 0..2000).prop_map(|octets| (false, octets)),
    ];
    let fragments = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
    (message, prop::bool::weighted(0.8), fragments, any::<bool>()).prop_map(
        |((text, message), compress, fragments, ping)| Sent { text, message, compress, fragments, ping },
    )
}

fn params() -> impl Strategy<Value = DeflateParams> {
    (any::<bool>(), any::<bool>(), prop::option::of(9u8..=15), prop::option::of(9u8..=15)).prop_map(
        |(server, client, server_bits, client_bits)| DeflateParams {
            server_no_context_takeover: server,
            client_no_context_takeover: client,
            server_max_window_bits: server_bits,
            client_max_window_bits: client_bits,
        },
    )
}

proptest! {
    #[test]
    fn neither_cuts_nor_parameters_change_what_is_echoed(
        messages in prop::collection::vec(sent(), 1..7),
        params in params(),
        level in 1u8..=9, memory_level in 1u8..=9, message_len_min in 0usize..200, recompress: bool, is_full: bool,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        inflate_octets_max in prop_oneof![0usize..200, 200usize..20_000, Just(usize::MAX)],
    ) {
        let settings = DeflateSettings { level, memory_level, message_len_min, recompress, ..settings() };
        let mut deflater = Deflater::new(&settings, params.client_window_bits());
        let (mut input, mut expected) = (Vec::new(), Vec::new());
        for sent in &messages {
            if params.client_no_context_takeover {
                deflater = Deflater::new(&settings, params.client_window_bits());
            }
            let mut payload = Buffer::default();
            if sent.compress {
                deflater.deflate(&sent.message, &mut payload).unwrap();
            }
            let payload = if sent.compress { payload.message() } else { &sent.message };
            let ends = cut_at(&sent.fragments, payload.len());
            let opcode = if sent.text { Opcode::Text } else { Opcode::Binary };
            let mut start = 0;
            for (index, &end) in ends.iter().chain([&payload.len()]).enumerate() {
                let fin = if index == ends.len() { 0x80 } else { 0 };
                let first = if index > 0 { 0 } else { opcode as u8 | if sent.compress { 0x40 } else { 0 } };
                input.extend(from_client(fin | first, &payload[start..end]));
                start = end;
                if sent.ping && fin == 0 {
                    input.extend(from_client(0x89, b"between"));
                    expected.push((Opcode::Pong, b"between".to_vec()));
                }
            }
            expected.push((opcode, sent.message.clone()));
        }
        let has_takeover = !params.server_no_context_takeover || !params.client_no_context_takeover;
        let memory_bytes_max = if is_full && !has_takeover { 0 } else { usize::MAX };
        let mut codecs = Codecs::new(DeflateSettings { memory_bytes_max, ..settings });
        let mut connection = server(params, &codecs);
        // What has to wait for memory cannot be suspended.
        let inflate_octets_max = if memory_bytes_max == 0 { usize::MAX } else { inflate_octets_max };
        let limits = Limits { inflate_octets_max, ..LIMITS };
        let cuts = cut_at(&cuts, input.len());
        let (octets, _, result) = run_with(&limits, &mut connection, &mut codecs, &input, &cuts);
        prop_assert_eq!(result, Ok(()));
        prop_assert!(replies(&octets, params) == expected, "replies differ");
        prop_assert_eq!(connection.held_octets(), codecs.meter().used());
        drop(connection);
        prop_assert_eq!(codecs.meter().used(), 0);
    }

    #[test]
    fn cutting_any_octets_anywhere_never_changes_the_outcome(
        octets in prop::collection::vec(prop_oneof![
            any::<u8>(),
            prop::sample::select(vec![0xC1, 0xC2, 0x41, 0x42, 0x80, 0x00, 0x89, 0x85, 0x87, 0xFF, 0xf2, 0x48, 0xcd]),
        ], 0..120),
        payload in prop::collection::vec(any::<u8>(), 0..40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        params in params(),
        inflate_octets_max in prop_oneof![0usize..50, Just(usize::MAX)],
    ) {
        let input = [raw_frame(0xC1, &HELLO, Some([0; 4])), raw_frame(0xC2, &payload, Some([0; 4])), octets].concat();
        let outcome = |inflate_octets_max: usize, cuts: &[usize]| {
            let mut codecs = Codecs::new(settings());
            let mut connection = server(params, &codecs);
            let limits = Limits { inflate_octets_max, ..LIMITS };
            let (sent, messages, result) = run_with(&limits, &mut connection, &mut codecs, &input, cuts);
            (replies(&sent, params), messages, result, connection.state())
        };
        let whole = outcome(usize::MAX, &[]);
        prop_assert_eq!(whole, outcome(inflate_octets_max, &cut_at(&cuts, input.len())));
    }

    #[test]
    fn what_a_client_sends_a_server_reads_and_what_comes_back_is_the_same(
        messages in prop::collection::vec(sent(), 1..6),
        params in params(),
        message_len_min in 0usize..100,
    ) {
        struct Sink(Vec<(Opcode, Vec<u8>)>);
        impl Handler for Sink {
            fn message(&mut self, message: Message<'_>) -> Reply {
                self.0.push((message.opcode(), message.payload().to_vec()));
                Reply::Nothing
            }
        }
        let mut codecs = Codecs::new(DeflateSettings { message_len_min, ..settings() });
        let mut server = server(params, &codecs);
        let mut client = Connection::client(7);
        prop_assert!(client.agree_on_deflate(params, &codecs));
        let mut expected = Vec::new();
        let mut sink = Sink(Vec::new());
        for sent in &messages {
            let opcode = if sent.text { Opcode::Text } else { Opcode::Binary };
            let mut octets = Vec::new();
            client.send(opcode, &sent.message, &mut codecs, &mut octets);
            let (mut back, _, result) = run(&mut server, &mut codecs, &octets, &[octets.len() / 2]);
            prop_assert_eq!(result, Ok(()));
            client.receive(&mut back, 0, &LIMITS, &mut codecs, &mut Replies::default(), &mut sink).unwrap();
            expected.push((opcode, sent.message.clone()));
        }
        prop_assert!(sink.0 == expected);
    }
}
