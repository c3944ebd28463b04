//! RFC 7692 §7.2 on octets: the examples of §7.2.3, blocks of every kind, limits, and a second opinion from
//! another implementation.

use super::*;
use proptest::prelude::*;

const SETTINGS: DeflateSettings = DeflateSettings {
    level: 6,
    memory_level: 8,
    message_len_min: 0,
    message_len_max: usize::MAX,
    memory_bytes_max: usize::MAX,
    ratio_max: 0,
    recompress: false,
};
/// "Hello" in the blocks of §7.2.3.1: fixed Huffman codes, and the header octet of the empty block.
const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

/// What a message inflates to, in pieces that end at `cuts`.
fn inflated_in(
    inflater: &mut Inflater,
    deflated: &[u8],
    cuts: &[usize],
    limit: u64,
) -> Result<Vec<u8>, ProtocolError> {
    let (mut message, mut seen, mut start) = (Inflated::default(), Vec::new(), 0);
    for &end in cuts.iter().chain([&deflated.len()]) {
        inflater.inflate(&deflated[start..end], &[], &mut message, limit, |piece| {
            seen.extend_from_slice(piece);
            Ok(())
        })?;
        start = end;
    }
    inflater.finish()?;
    assert_eq!(message.0.message(), seen, "every octet is checked once, in order");
    Ok(seen)
}

fn inflated(deflated: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    inflated_in(&mut Inflater::default(), deflated, &[], u64::MAX)
}

fn deflated(deflater: &mut Deflater, message: &[u8]) -> Vec<u8> {
    let mut target = Buffer::default();
    deflater.deflate(message, &mut target);
    target.message().to_vec()
}

/// The same by miniz_oxide, which shares no line with zlib.
fn inflated_by_miniz(deflated: &[u8]) -> Vec<u8> {
    // The tail, then an empty block with BFINAL set, so that it ends.
    let stream = [deflated, &TAIL, &[0x01, 0x00, 0x00, 0xFF, 0xFF]].concat();
    miniz_oxide::inflate::decompress_to_vec(&stream).expect("a deflate stream")
}

#[test]
fn the_examples_of_section_7_2_3_inflate_to_hello() {
    // §7.2.3.1, a compressed block; §7.2.3.3, a stored one; §7.2.3.4, one with BFINAL set; §7.2.3.5, two.
    assert_eq!(inflated(&HELLO).unwrap(), b"Hello");
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    assert_eq!(inflated(&stored).unwrap(), b"Hello");
    assert_eq!(inflated(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]).unwrap(), b"Hello");
    let two_blocks = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(inflated(&two_blocks).unwrap(), b"Hello");
}

#[test]
fn the_second_hello_of_section_7_2_3_2_refers_to_the_first() {
    let mut inflater = Inflater::default();
    let second = [0xf2, 0x00, 0x11, 0x00, 0x00];
    for deflated in [&HELLO[..], &second] {
        assert_eq!(inflated_in(&mut inflater, deflated, &[], 5).unwrap(), b"Hello");
    }
    assert_eq!(inflated(&second), Err(ProtocolError::Compression), "there is no first");
}

#[test]
fn our_compressor_writes_the_examples_of_sections_7_2_3_1_and_7_2_3_2() {
    let mut deflater = Deflater::new(&SETTINGS, 15);
    assert_eq!(deflated(&mut deflater, b"Hello"), HELLO);
    assert_eq!(deflated(&mut deflater, b"Hello"), [0xf2, 0x00, 0x11, 0x00, 0x00]);
}

#[test]
fn an_empty_message_is_one_octet_however_often_it_is_sent() {
    let (mut deflater, mut inflater) = (Deflater::new(&SETTINGS, 15), Inflater::default());
    for message in [&b""[..], b"", b"x", b"", b"", b"x"] {
        let deflated = deflated(&mut deflater, message);
        assert!(!message.is_empty() || deflated == [0x00], "RFC 7692 §7.2.3.6");
        assert_eq!(inflated_in(&mut inflater, &deflated, &[], 1).unwrap(), message);
    }
}

#[test]
fn blocks_may_follow_one_with_bfinal_set_and_refer_to_it() {
    let mut raw = Deflate::new(6, false, 15);
    let mut first = vec![0; 100];
    raw.compress(b"one two three ", &mut first, DeflateFlush::Finish).unwrap();
    first.truncate(raw.total_out() as usize);
    let message = [&first[..], &HELLO].concat();
    assert_eq!(inflated(&message).unwrap(), b"one two three Hello");
    // A distance that reaches over the end of the stream into the same message.
    raw.reset();
    raw.set_dictionary(b"one two three ").unwrap();
    let mut second = vec![0; 100];
    raw.compress(b"one two three ", &mut second, DeflateFlush::SyncFlush).unwrap();
    second.truncate(raw.total_out() as usize - 4);
    assert!(second.len() < 10, "it is a reference");
    // Also into a message before.
    let mut message = Inflated::default();
    let mut inflater = Inflater::default();
    inflater.reset(b"one two three ");
    let empty_and_final = [0x03, 0x00];
    for part in [&empty_and_final[..], &second] {
        inflater.inflate(part, b"one two three ", &mut message, 14, |_| Ok(())).unwrap();
    }
    assert_eq!((message.0.message(), inflater.finish()), (&b"one two three "[..], Ok(())));
    let message = [&first[..], &second].concat();
    for cut in 0..=message.len() {
        let twice = inflated_in(&mut Inflater::default(), &message, &[cut], 28).unwrap();
        assert_eq!(twice, b"one two three one two three ");
    }
    // One octet must follow the final block, to begin the empty one.
    assert_eq!(inflated(&first), Err(ProtocolError::Compression));
}

#[test]
fn a_message_that_ends_inside_a_block_is_an_error() {
    for len in 1..HELLO.len() {
        assert_eq!(inflated(&HELLO[..len]), Err(ProtocolError::Compression), "{len}");
    }
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    // One octet of it is an empty message.
    for len in 2..stored.len() {
        assert_eq!(inflated(&stored[..len]), Err(ProtocolError::Compression), "{len}");
    }
}

#[test]
fn what_is_no_deflate_stream_is_an_error() {
    for wrong in
        [&[0x06, 0x00][..], &[0xFF; 20], &[0x00, 0x01, 0x00, 0x00, 0x00, 0x41, 0x00], b"\x1f\x8b\x08"]
    {
        assert_eq!(inflated(wrong), Err(ProtocolError::Compression), "{wrong:x?}");
    }
}

/// `len` zeros in the fewest octets.
fn bomb(len: usize) -> Vec<u8> {
    deflated(&mut Deflater::new(&DeflateSettings { level: 9, ..SETTINGS }, 15), &vec![0; len])
}

#[test]
fn a_message_may_reach_the_limit_and_not_an_octet_more() {
    for limit in [0u64, 1, 5, 1000, 100_000] {
        for (len, expected) in [(limit, true), (limit + 1, false)] {
            let result = inflated_in(&mut Inflater::default(), &bomb(len as usize), &[], limit)
                .map(|message| message.len());
            let expected = if expected { Ok(len as usize) } else { Err(ProtocolError::MessageTooBig) };
            assert_eq!(result, expected);
        }
    }
}

#[test]
fn a_bomb_takes_no_more_memory_than_the_limit() {
    let bomb = bomb(64 << 20);
    assert!(bomb.len() < 70_000);
    let (mut message, mut seen) = (Inflated::default(), 0);
    let result = Inflater::default().inflate(&bomb, &[], &mut message, 1 << 20, |piece| {
        seen += piece.len();
        Ok(())
    });
    assert_eq!(result, Err(ProtocolError::MessageTooBig));
    assert!(seen <= 1 << 20 && message.0.octets.capacity() <= (2 << 20) + 100);
}

#[test]
fn the_check_ends_a_message_before_the_rest_of_it_is_inflated() {
    let (mut message, mut calls) = (Inflated::default(), 0);
    let result = Inflater::default().inflate(&bomb(16 << 20), &[], &mut message, u64::MAX, |_| {
        calls += 1;
        Err(ProtocolError::InvalidUtf8)
    });
    assert_eq!((result, calls), (Err(ProtocolError::InvalidUtf8), 1));
    assert!(message.0.octets.len() <= GROW_LEN_MIN + HEADER_LEN_MAX);
}

#[test]
fn a_history_is_the_end_of_what_was_said() {
    let (mut history, mut all) = (History::default(), Vec::new());
    for len in [0, 1, 300, 211, 1, 512, 100, 5000, 0, 7] {
        let message: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        history.push(&message, 9);
        all.extend_from_slice(&message);
        assert_eq!(history.octets(), &all[all.len().saturating_sub(512)..]);
        assert!(history.0.capacity() <= 512);
    }
}

#[test]
fn leases_add_up_to_the_limit_and_end_when_dropped() {
    let codecs = Codecs::new(DeflateSettings { memory_bytes_max: 100, ..SETTINGS });
    let (first, second) = (codecs.lease(60), codecs.lease(40));
    assert!(first.is_some() && second.is_some() && codecs.lease(1).is_none());
    assert_eq!(codecs.memory_bytes(), 100);
    drop(first);
    assert!(codecs.lease(60).is_some());
    drop(codecs);
    drop(second);
}

#[test]
fn long_messages_leave_no_memory_behind() {
    let mut codecs = Codecs::new(SETTINGS);
    let message = vec![7; 3 << 20];
    assert!(codecs.compressors.deflate(15, &[], &message, &mut codecs.deflated));
    let mut inflater = codecs.take_inflater(&[]);
    inflater.inflate(codecs.deflated.message(), &[], &mut codecs.inflated, u64::MAX, |_| Ok(())).unwrap();
    assert!(codecs.inflated.0.octets.capacity() >= message.len());
    codecs.trim();
    assert!(codecs.inflated.0.octets.capacity() <= BUFFER_KEPT_MAX);
}

#[test]
fn what_does_not_become_shorter_goes_out_as_it_is() {
    let mut compressors = Compressors::new(DeflateSettings { message_len_min: 10, ..SETTINGS });
    let mut target = Buffer::default();
    assert!(!compressors.deflate(15, &[], b"aaaaaaaaa", &mut target), "too short");
    assert!(compressors.deflate(15, &[], &[b'a'; 10], &mut target));
    let mut state = 1u32;
    let noise: Vec<u8> = (0..1000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect();
    assert!(!compressors.deflate(15, &[], &noise, &mut target));
}

#[test]
fn frames_are_recoded_one_by_one() {
    let mut frames = Vec::new();
    for message in [&[b'a'; 300][..], b"b", &[b'c'; 70_000]] {
        let mut head = [0; HEADER_LEN_MAX];
        let len = FrameHeader::message(Opcode::Text, message.len()).write(&mut head);
        frames.extend([&head[..len], message].concat());
    }
    let mut recoded = Vec::new();
    Compressors::new(DeflateSettings { message_len_min: 2, ..SETTINGS }).recode(9, &frames, &mut recoded);
    let (mut messages, mut rest) = (Vec::new(), &recoded[..]);
    while let Some((header, len)) = FrameHeader::parse(rest).unwrap() {
        let (payload, after) = rest[len..].split_at(header.payload_len as usize);
        messages.push(if header.rsv1 { inflated(payload).unwrap() } else { payload.to_vec() });
        rest = after;
    }
    assert_eq!(messages, [vec![b'a'; 300], b"b".to_vec(), vec![b'c'; 70_000]]);
}

/// The furthest back that anything in a stream looks, in octets: found by inflating with too little history.
fn reaches_back_at_most(deflated: &[u8], window_bits: u8) -> bool {
    let stream = [deflated, &TAIL].concat();
    let mut inflate = Inflate::new(false, window_bits);
    let (mut read, mut output) = (0, [0; 64]);
    // In pieces of output that are smaller than any window: what is behind the window is gone.
    loop {
        match inflate.decompress(&stream[read..], &mut output, InflateFlush::NoFlush) {
            Ok(_) if inflate.total_in() as usize == stream.len() => return true,
            Ok(_) => read = inflate.total_in() as usize,
            Err(_) => return false,
        }
    }
}

/// Messages with repetitions near and far.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec(
        prop::sample::select(vec!["price", "\"id\":", "0", "17", "é", "{}", "resound "]),
        0..60,
    )
    .prop_map(|words| words.concat().into_bytes());
    prop_oneof![
        4 => words,
        2 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (prop::collection::vec(any::<u8>(), 1..700), 1usize..80).prop_map(|(part, count)| part.repeat(count)),
    ]
}

proptest! {
    #[test]
    fn what_is_deflated_inflates_to_the_same_here_and_elsewhere(
        messages in prop::collection::vec(message(), 1..6),
        level in 1u8..=9, memory_level in 1u8..=9, window_bits in 9u8..=15,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        takeover: bool,
    ) {
        let settings = DeflateSettings { level, memory_level, ..SETTINGS };
        let (mut deflater, mut inflater) = (Deflater::new(&settings, window_bits), Inflater::default());
        let (mut all, mut all_deflated) = (Vec::new(), Vec::new());
        for message in &messages {
            if !takeover {
                deflater.reset(&[]);
                inflater.reset(&[]);
            }
            let deflated = deflated(&mut deflater, message);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(deflated.len() + 1)).collect();
            cuts.sort_unstable();
            let result = inflated_in(&mut inflater, &deflated, &cuts, message.len() as u64);
            prop_assert_eq!(result.as_ref(), Ok(message));
            if takeover {
                all.extend_from_slice(message);
                all_deflated.extend([&deflated[..], &TAIL].concat());
            } else {
                prop_assert_eq!(&inflated_by_miniz(&deflated), message);
                prop_assert!(reaches_back_at_most(&deflated, window_bits));
            }
        }
        if takeover {
            all_deflated.truncate(all_deflated.len() - TAIL.len());
            prop_assert_eq!(inflated_by_miniz(&all_deflated), all);
            prop_assert!(reaches_back_at_most(&all_deflated, window_bits));
        }
    }

    #[test]
    fn any_octets_inflate_the_same_however_they_are_cut(
        octets in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xFF)], 1..60),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
        cuts.sort_unstable();
        let limit = 10_000;
        let whole = inflated_in(&mut Inflater::default(), &octets, &[], limit);
        let cut = inflated_in(&mut Inflater::default(), &octets, &cuts, limit);
        prop_assert_eq!(whole, cut);
    }
}
