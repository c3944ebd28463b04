//! The rules of RFC 6455 §5 and §7, and the property that cutting the input anywhere changes nothing.

use super::super::DeflateSettings;
use super::*;
use crate::memory::Meter;
use proptest::prelude::*;

const LIMITS: Limits = Limits { message_size_max: 1 << 20, fragments_max: 64, inflate_octets_max: 1 << 20 };
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Echoes every message and remembers what it saw.
#[derive(Debug, Default, PartialEq)]
struct Echo {
    messages: Vec<(Opcode, Vec<u8>)>,
    pongs: Vec<Vec<u8>>,
}

impl Handler for Echo {
    fn message(&mut self, message: Message<'_>) -> Reply {
        assert!(message.frame().ends_with(message.payload()));
        self.messages.push((message.opcode(), message.payload().to_vec()));
        Reply::Echo
    }

    fn pong(&mut self, payload: &[u8]) {
        self.pongs.push(payload.to_vec());
    }
}

pub(super) fn raw_frame(first: u8, payload: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if key.is_some() { 0x80 } else { 0 };
    let mut octets = vec![first];
    match payload.len() {
        len @ 0..=125 => octets.push(bit | len as u8),
        len @ 126..=0xFFFF => {
            octets.push(bit | 126);
            octets.extend((len as u16).to_be_bytes());
        }
        len => {
            octets.push(bit | 127);
            octets.extend((len as u64).to_be_bytes());
        }
    }
    octets.extend(key.into_iter().flatten());
    octets.extend(
        payload.iter().zip((0..).map(|i| key.map_or(0, |key| key[i % 4]))).map(|(octet, mask)| octet ^ mask),
    );
    octets
}

pub(super) fn from_client(first: u8, payload: &[u8]) -> Vec<u8> {
    raw_frame(first, payload, Some(KEY))
}

pub(super) fn from_server(first: u8, payload: &[u8]) -> Vec<u8> {
    raw_frame(first, payload, None)
}

/// What came of feeding `input` in pieces that end at `cuts`.
fn run(
    mut connection: Connection,
    input: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Echo, Result<(), ProtocolError>, State) {
    let (mut sent, mut echo, mut replies) = (Vec::new(), Echo::default(), Replies::default());
    let mut result = Ok(());
    let mut start = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        let mut buffer = input[start..end].to_vec();
        start = end;
        let state = connection.state();
        let outcome =
            connection.receive(&mut buffer, 0, &LIMITS, &mut Codecs::default(), &mut replies, &mut echo);
        assert!(state != State::Closed || (outcome.is_ok() && replies.to_vec(&buffer).is_empty()));
        sent.extend(replies.to_vec(&buffer));
        result = result.and(outcome.map(|left| assert_eq!(left, 0, "nothing is inflated")));
    }
    (sent, echo, result, connection.state())
}

/// Feeds a server whole, and octet by octet: the outcome must be the same.
fn serve(input: &[u8]) -> (Vec<u8>, Result<(), ProtocolError>) {
    let whole = run(Connection::server(), input, &[]);
    let cuts: Vec<usize> = (1..input.len()).collect();
    assert_eq!(whole, run(Connection::server(), input, &cuts));
    (whole.0, whole.2)
}

pub(super) fn close_frame(code: u16) -> Vec<u8> {
    from_server(0x88, &code.to_be_bytes())
}

fn fails_with(input: &[u8], error: ProtocolError, code: u16) {
    assert_eq!(serve(input), (close_frame(code), Err(error)));
}

#[test]
fn a_connection_with_nothing_in_flight_is_at_most_64_octets() {
    assert!(size_of::<Connection>() <= 64, "{}", size_of::<Connection>());
}

#[test]
fn the_masked_hello_of_section_5_7_is_echoed_unmasked() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(serve(&hello), (from_server(0x81, b"Hello"), Ok(())));
}

#[test]
fn replies_to_whole_messages_are_one_range_at_the_front_of_the_buffer() {
    let mut buffer =
        [from_client(0x81, b"one"), from_client(0x89, b"ping"), from_client(0x82, &[7; 300])].concat();
    let mut replies = Replies::default();
    Connection::server()
        .receive(&mut buffer, 0, &LIMITS, &mut Codecs::default(), &mut replies, &mut Echo::default())
        .unwrap();
    let expected =
        [from_server(0x81, b"one"), from_server(0x8A, b"ping"), from_server(0x82, &[7; 300])].concat();
    assert!(replies.is_in_place());
    assert_eq!(buffer[replies.range()], expected);
}

#[test]
fn octets_before_the_start_are_left_alone() {
    let mut buffer = [b"GET ".to_vec(), from_client(0x81, b"one")].concat();
    let mut replies = Replies::default();
    Connection::server()
        .receive(&mut buffer, 4, &LIMITS, &mut Codecs::default(), &mut replies, &mut Echo::default())
        .unwrap();
    assert_eq!((&buffer[..4], &buffer[replies.range()]), (&b"GET "[..], &from_server(0x81, b"one")[..]));
}

#[test]
fn fragments_are_put_together_and_control_frames_answered_between_them() {
    let input = [
        from_client(0x01, b"frag"),
        from_client(0x89, b"between"),
        from_client(0x00, b""),
        from_client(0x80, b"ment"),
        from_client(0x82, b""),
    ]
    .concat();
    let expected =
        [from_server(0x8A, b"between"), from_server(0x81, b"fragment"), from_server(0x82, b"")].concat();
    assert_eq!(serve(&input), (expected, Ok(())));
}

#[test]
fn a_message_of_empty_fragments_is_an_empty_message() {
    let input = [from_client(0x01, b""), from_client(0x00, b""), from_client(0x80, b"")].concat();
    assert_eq!(serve(&input), (from_server(0x81, b""), Ok(())));
}

#[test]
fn fragmentation_out_of_order_fails_with_1002() {
    fails_with(&from_client(0x80, b"x"), ProtocolError::UnexpectedContinuation, 1002);
    let twice = [from_client(0x01, b"x"), from_client(0x81, b"y")].concat();
    fails_with(&twice, ProtocolError::ExpectedContinuation, 1002);
}

#[test]
fn an_unmasked_frame_from_a_client_fails_with_1002() {
    fails_with(&from_server(0x81, b"x"), ProtocolError::NotMasked, 1002);
}

#[test]
fn rsv1_without_an_extension_fails_with_1002() {
    fails_with(&from_client(0xC1, b"x"), ProtocolError::ReservedBit, 1002);
}

#[test]
fn a_header_that_breaks_a_rule_fails_the_connection_after_earlier_replies() {
    let input = [from_client(0x81, b"fine"), from_client(0x83, b"reserved")].concat();
    let expected = [from_server(0x81, b"fine"), close_frame(1002)].concat();
    assert_eq!(serve(&input), (expected, Err(ProtocolError::ReservedOpcode)));
}

#[test]
fn text_fails_with_1007_inside_an_unfinished_frame() {
    // Autobahn 6.4.4: the frame announces more octets than will ever come.
    let mut input = from_client(0x81, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80\xed");
    input.truncate(6 + 13);
    assert_eq!(serve(&input), (close_frame(1007), Err(ProtocolError::InvalidUtf8)));
}

#[test]
fn text_may_be_cut_inside_a_sequence_but_not_end_there() {
    let input = [from_client(0x01, b"\xce"), from_client(0x80, b"\xba")].concat();
    assert_eq!(serve(&input), (from_server(0x81, b"\xce\xba"), Ok(())));
    fails_with(&from_client(0x81, b"\xce"), ProtocolError::InvalidUtf8, 1007);
    let input = [from_client(0x01, b"\xce"), from_client(0x80, b"")].concat();
    fails_with(&input, ProtocolError::InvalidUtf8, 1007);
}

#[test]
fn a_message_too_long_fails_with_1009_from_its_header_alone() {
    let header = [&[0x82, 0xFF][..], &((1u64 << 20) + 1).to_be_bytes(), &KEY].concat();
    fails_with(&header, ProtocolError::MessageTooBig, 1009);
    let huge = [&[0x82, 0xFF][..], &(u64::MAX >> 1).to_be_bytes(), &KEY].concat();
    fails_with(&huge, ProtocolError::MessageTooBig, 1009);
    let after_fragment =
        [from_client(0x02, b"x"), [&[0x80, 0xFF][..], &(1u64 << 20).to_be_bytes(), &KEY].concat()];
    fails_with(&after_fragment.concat(), ProtocolError::MessageTooBig, 1009);
}

#[test]
fn a_message_of_exactly_the_limit_is_echoed() {
    let payload = vec![0xA5; 1 << 20];
    let input = from_client(0x82, &payload);
    let (sent, _, result, _) = run(Connection::server(), &input, &[100_000, 100_001, 700_000]);
    assert_eq!((sent, result), (from_server(0x82, &payload), Ok(())));
}

#[test]
fn more_fragments_than_the_limit_fail_with_1008() {
    let fragments = |count: usize| {
        let middle = (0..count - 2).map(|_| from_client(0x00, b"")).collect::<Vec<_>>().concat();
        [from_client(0x01, b"a"), middle, from_client(0x80, b"b")].concat()
    };
    assert_eq!(serve(&fragments(64)), (from_server(0x81, b"ab"), Ok(())));
    fails_with(&fragments(65), ProtocolError::TooManyFragments, 1008);
}

#[test]
fn a_close_is_answered_with_its_status_code_and_nothing_follows() {
    let after = from_client(0x81, b"too late");
    for (payload, reply) in [
        (&b""[..], from_server(0x88, b"")),
        (b"\x03\xe8", close_frame(1000)),
        (b"\x0b\xb8bye", close_frame(3000)),
    ] {
        assert_eq!(serve(&[from_client(0x88, payload), after.clone()].concat()), (reply, Ok(())));
    }
}

#[test]
fn a_close_that_breaks_a_rule_is_answered_with_1002_or_1007() {
    fails_with(&from_client(0x88, b"\x03"), ProtocolError::ClosePayload, 1002);
    fails_with(&from_client(0x88, &1005u16.to_be_bytes()), ProtocolError::CloseCode, 1002);
    fails_with(&from_client(0x88, b"\x03\xe8\xff"), ProtocolError::InvalidUtf8, 1007);
}

#[test]
fn after_our_close_messages_are_dropped_until_the_peers_close() {
    let mut connection = Connection::server();
    let mut octets = Vec::new();
    connection.close(CloseCode::GOING_AWAY, "bye", &mut octets);
    connection.close(CloseCode::NORMAL, "", &mut octets);
    connection.ping(b"", &mut octets);
    assert_eq!(octets, from_server(0x88, b"\x03\xe9bye"));
    assert_eq!(connection.state(), State::Closing);
    let input = [from_client(0x81, b"x"), from_client(0x89, b"y"), from_client(0x88, b"\x03\xe9")].concat();
    let (sent, echo, result, state) = run(connection, &input, &[3]);
    assert_eq!((sent, echo, result, state), (vec![], Echo::default(), Ok(()), State::Closed));
}

#[test]
fn pongs_are_reported_and_not_answered() {
    let (sent, echo, ..) = run(Connection::server(), &from_client(0x8A, b"beat"), &[]);
    assert_eq!((sent, echo.pongs), (vec![], vec![b"beat".to_vec()]));
}

#[test]
fn a_client_takes_unmasked_frames_and_masks_its_own() {
    struct Sink(Vec<Vec<u8>>);
    impl Handler for Sink {
        fn message(&mut self, message: Message<'_>) -> Reply {
            self.0.push(message.frame().to_vec());
            Reply::Nothing
        }
    }
    let input =
        [from_server(0x81, "größe".as_bytes()), from_server(0x89, b"ping"), from_server(0x82, &[1; 200])]
            .concat();
    for cut in 0..=input.len() {
        let (mut client, mut sink, mut replies) = (Connection::client(7), Sink(vec![]), Replies::default());
        let mut sent = Vec::new();
        for piece in [&input[..cut], &input[cut..]] {
            let mut buffer = piece.to_vec();
            client.receive(&mut buffer, 0, &LIMITS, &mut Codecs::default(), &mut replies, &mut sink).unwrap();
            sent.extend(replies.to_vec(&buffer));
        }
        assert_eq!(sink.0, [from_server(0x81, "größe".as_bytes()), from_server(0x82, &[1; 200])]);
        let (header, len) = FrameHeader::parse(&sent).unwrap().unwrap();
        assert_eq!((header.opcode, header.payload_len), (Opcode::Pong, 4));
        mask::unmask_in_place(&mut sent[len..], header.masking_key.unwrap());
        assert_eq!(&sent[len..], b"ping");
    }
    let masked = run(Connection::client(7), &from_client(0x81, b"x"), &[]);
    assert_eq!(masked.2, Err(ProtocolError::Masked));
}

/// Feeds `input` to a new server in pieces of `piece_len`, without its end.
fn begun(input: &[u8], piece_len: usize, codecs: &mut Codecs) -> (Connection, Result<usize, ProtocolError>) {
    let (mut connection, mut result) = (Connection::server(), Ok(0));
    let limits = Limits { message_size_max: 64 << 20, fragments_max: 1 << 20, ..LIMITS };
    for piece in input.chunks(piece_len) {
        let (mut buffer, mut echo) = (piece.to_vec(), Echo::default());
        let mut replies = Replies::default();
        result = result.and(connection.receive(&mut buffer, 0, &limits, codecs, &mut replies, &mut echo));
        if result.is_err() {
            assert_eq!(replies.to_vec(&buffer), close_frame(1013));
            break;
        }
    }
    (connection, result)
}

#[test]
fn announcing_a_message_takes_no_memory() {
    let header = [&[0x82, 0xFF][..], &(32u64 << 20).to_be_bytes(), &KEY].concat();
    for (arrived, held_max) in [(0, 0), (5, 66 << 10), (100_000, 202_000), (3_000_000, 6_002_000)] {
        let mut codecs = Codecs::default();
        let (connection, _) = begun(&[header.clone(), vec![0; arrived]].concat(), 16 << 10, &mut codecs);
        let held = connection.held_octets();
        assert!((arrived..=held_max).contains(&held), "{held} for {arrived}");
        assert_eq!(held, codecs.meter().used());
    }
}

#[test]
fn what_is_held_of_a_message_is_counted_and_ends_with_it() {
    let payload = vec![0x5A; 300_000];
    let whole = from_client(0x82, &payload);
    let fragments: Vec<u8> = std::iter::once(from_client(0x02, &payload[..77]))
        .chain(payload[77..299_000].chunks(100).map(|part| from_client(0x00, part)))
        .chain([from_client(0x80, &payload[299_000..])])
        .collect::<Vec<_>>()
        .concat();
    for input in [whole, fragments] {
        let mut codecs = Codecs::default();
        let (connection, _) = begun(&input[..input.len() - 1], 1000, &mut codecs);
        let capacity = connection.partial.as_ref().unwrap().message.capacity();
        assert_eq!(connection.held_octets(), capacity + size_of::<Partial>());
        assert_eq!(connection.held_octets(), codecs.meter().used());
        assert!(capacity <= 2 * (payload.len() + HEADROOM));
        drop(connection);
        let (connection, result) = begun(&input, 1000, &mut codecs);
        assert_eq!((result, connection.held_octets(), codecs.meter().used()), (Ok(0), 0, 0));
    }
}

#[test]
fn a_message_of_small_fragments_is_not_copied_for_each() {
    let mut codecs = Codecs::default();
    let (mut connection, mut buffer) = (Connection::server(), from_client(0x02, b""));
    let (mut capacities, mut replies) = (Vec::new(), Replies::default());
    let limits = Limits { fragments_max: u32::MAX, ..LIMITS };
    for _ in 0..30_000 {
        connection.receive(&mut buffer, 0, &limits, &mut codecs, &mut replies, &mut Echo::default()).unwrap();
        capacities.extend(connection.partial.as_ref().map(|partial| partial.message.capacity()));
        buffer = from_client(0x00, &[1; 32]);
    }
    capacities.dedup();
    assert!(capacities.len() <= 20, "{capacities:?}");
}

#[test]
fn a_message_that_there_is_no_memory_for_fails_with_1013_and_frees_its_own() {
    let meter = Meter::new(1 << 20);
    let mut codecs = Codecs::with_meter(DeflateSettings::default(), meter.clone());
    let (held, _) = begun(&from_client(0x82, &vec![0; 700_000])[..600_000], 16 << 10, &mut codecs);
    assert!(held.held_octets() > 600_000);
    let (connection, result) = begun(&from_client(0x82, &vec![0; 700_000]), 16 << 10, &mut codecs);
    assert_eq!((result, connection.state()), (Err(ProtocolError::NoMemory), State::Closed));
    assert_eq!((connection.held_octets(), meter.used()), (0, held.held_octets()));
    drop(held);
    let (_, result) = begun(&from_client(0x82, &vec![0; 700_000]), 16 << 10, &mut codecs);
    assert_eq!(result, Ok(0));
}

#[test]
fn a_control_frame_that_is_cut_is_never_refused() {
    let meter = Meter::new(0);
    let mut codecs = Codecs::with_meter(DeflateSettings::default(), meter.clone());
    let (connection, result) = begun(&from_client(0x89, &[1; 100])[..50], 10, &mut codecs);
    assert_eq!(result, Ok(0));
    assert_eq!((connection.held_octets(), meter.used()), (size_of::<Partial>(), size_of::<Partial>()));
}

#[test]
fn a_connection_is_in_a_message_from_its_first_octet_to_its_last() {
    let message = [from_client(0x01, b"one"), from_client(0x89, b"ping"), from_client(0x80, b"two")].concat();
    let others = [from_client(0x89, b"ping"), from_client(0x82, &[0; 70_000])];
    for input in [message].into_iter().chain(others) {
        for end in [0, 1, 2, 5, 6, 7, input.len() - 1] {
            let (connection, _) = begun(&input[..end], usize::MAX, &mut Codecs::default());
            assert_eq!(connection.is_in_message(), end > 0, "{end} of {}", input.len());
        }
        let (connection, _) = begun(&input, 7, &mut Codecs::default());
        assert!(!connection.is_in_message());
    }
    let (connection, _) =
        begun(&[from_client(0x01, b"one"), from_client(0x88, b"")].concat(), 3, &mut Codecs::default());
    assert!(!connection.is_in_message(), "it is closed");
}

#[test]
fn after_our_close_nothing_is_kept_of_what_is_dropped() {
    let mut codecs = Codecs::default();
    let message = from_client(0x82, &vec![0; 500_000]);
    let (mut connection, _) = begun(&message[..100_000], 1000, &mut codecs);
    connection.close(CloseCode::GOING_AWAY, "", &mut Vec::new());
    assert!(connection.held_octets() <= size_of::<Partial>());
    let (mut echo, mut replies) = (Echo::default(), Replies::default());
    for piece in message[100_000..].chunks(50_000) {
        connection.receive(&mut piece.to_vec(), 0, &LIMITS, &mut codecs, &mut replies, &mut echo).unwrap();
        assert!(connection.held_octets() <= size_of::<Partial>());
    }
    assert_eq!((echo.messages.len(), connection.is_in_message()), (0, false));
    // Text must be right all the same.
    let (first, second) = (from_client(0x01, b"\xC3"), from_client(0x80, b"\xC3"));
    let mut input = [first, second].concat();
    let result = connection.receive(&mut input, 0, &LIMITS, &mut codecs, &mut replies, &mut echo);
    assert_eq!(result, Err(ProtocolError::InvalidUtf8));
}

/// A conversation and the answer that it must get.
#[derive(Debug, Clone)]
enum Step {
    Message { text: bool, payload: Vec<u8>, cuts: Vec<prop::sample::Index>, pings: bool },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let payload = prop_oneof![
        any::<String>().prop_map(|text| (true, text.into_bytes())),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|octets| (false, octets)),
        (65_000usize..66_000).prop_map(|len| (false, vec![0x5A; len])),
    ];
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    prop_oneof![
        4 => (payload, cuts, any::<bool>()).prop_map(|((text, payload), cuts, pings)| {
            Step::Message { text, payload, cuts, pings }
        }),
        1 => prop::collection::vec(any::<u8>(), 0..=125).prop_map(Step::Ping),
        1 => prop::collection::vec(any::<u8>(), 0..=125).prop_map(Step::Pong),
    ]
}

impl Step {
    fn write(&self, input: &mut Vec<u8>, expected: &mut Vec<u8>) {
        match self {
            Step::Ping(payload) => {
                input.extend(from_client(0x89, payload));
                expected.extend(from_server(0x8A, payload));
            }
            Step::Pong(payload) => input.extend(from_client(0x8A, payload)),
            Step::Message { text, payload, cuts, pings } => {
                let opcode = if *text { 1 } else { 2 };
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
                cuts.sort_unstable();
                let mut start = 0;
                for (index, &end) in cuts.iter().chain([&payload.len()]).enumerate() {
                    let fin = if index == cuts.len() { 0x80 } else { 0 };
                    let opcode = if index == 0 { opcode } else { 0 };
                    input.extend(from_client(fin | opcode, &payload[start..end]));
                    start = end;
                    if *pings && fin == 0 {
                        Step::Ping(vec![index as u8; 3]).write(input, expected);
                    }
                }
                expected.extend(from_server(0x80 | opcode, payload));
            }
        }
    }
}

pub(super) fn cut_at(cuts: &[prop::sample::Index], len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    #[test]
    fn cutting_a_conversation_anywhere_never_changes_the_replies(
        steps in prop::collection::vec(step(), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (mut input, mut expected) = (Vec::new(), Vec::new());
        steps.iter().for_each(|step| step.write(&mut input, &mut expected));
        let (sent, echo, result, state) = run(Connection::server(), &input, &cut_at(&cuts, input.len()));
        prop_assert_eq!((result, state), (Ok(()), State::Open));
        prop_assert!(sent == expected, "replies differ");
        let messages = steps.iter().filter(|step| matches!(step, Step::Message { .. })).count();
        prop_assert_eq!(echo.messages.len(), messages);
    }

    #[test]
    fn cutting_any_octets_anywhere_never_changes_the_outcome(
        octets in prop::collection::vec(prop_oneof![
            any::<u8>(), prop::sample::select(vec![0x81, 0x82, 0x01, 0x80, 0x00, 0x88, 0x89, 0x8A, 0x85, 0xFE, 0xFF]),
        ], 0..120),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        client: bool,
    ) {
        let connection = || if client { Connection::client(1) } else { Connection::server() };
        // Echo is the server's.
        prop_assume!(!client || run_is_quiet(&octets));
        let whole = run(connection(), &octets, &[]);
        let cut = run(connection(), &octets, &cut_at(&cuts, octets.len()));
        prop_assert_eq!(whole, cut);
    }
}

/// Whether a client would see no whole message in `octets`: the handler here would echo it.
fn run_is_quiet(octets: &[u8]) -> bool {
    struct Seen(bool);
    impl Handler for Seen {
        fn message(&mut self, _: Message<'_>) -> Reply {
            self.0 = true;
            Reply::Nothing
        }
    }
    let mut seen = Seen(false);
    let _ = Connection::client(1).receive(
        &mut octets.to_vec(),
        0,
        &LIMITS,
        &mut Codecs::default(),
        &mut Replies::default(),
        &mut seen,
    );
    !seen.0
}
