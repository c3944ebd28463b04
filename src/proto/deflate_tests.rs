//! RFC 7692 §7.2 on octets: the examples of §7.2.3, blocks of every kind, limits, and a second opinion from
//! another implementation.

use super::*;
use crate::proto::Opcode;
use crate::proto::buffer::{BUFFER_KEPT_MAX, GROW_LEN_MIN};
use crate::proto::frame::HEADER_LEN_MAX;
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

fn limits(len_max: u64) -> InflateLimits {
    InflateLimits { len_max, ratio_max: 0 }
}

/// What a message inflates to, in pieces that end at `cuts`.
fn inflated_in(
    inflater: &mut Inflater,
    deflated: &[u8],
    cuts: &[usize],
    len_max: u64,
) -> Result<Vec<u8>, ProtocolError> {
    inflated_with(inflater, deflated, cuts, &limits(len_max), usize::MAX)
}

/// The same, inflating `work_octets` at a time.
fn inflated_with(
    inflater: &mut Inflater,
    deflated: &[u8],
    cuts: &[usize],
    limits: &InflateLimits,
    work_octets: usize,
) -> Result<Vec<u8>, ProtocolError> {
    let (mut message, mut seen, mut start) = (Buffer::default(), Vec::new(), 0);
    for &end in cuts.iter().chain([&deflated.len()]) {
        loop {
            let (mut work, before) = (Work::new(work_octets), seen.len());
            let work_max = work.left();
            let part = &deflated[start..end];
            let unread = inflater.inflate(part, &[], &mut message, limits, &mut work, |piece| {
                seen.extend_from_slice(piece);
                Ok(())
            })?;
            assert!(
                seen.len() - before <= work_max.saturating_add(PENDING_MAX),
                "it stops when that is done"
            );
            start = end - unread;
            if unread == 0 {
                break;
            }
        }
    }
    inflater.finish()?;
    assert_eq!(message.message(), seen, "every octet is checked once, in order");
    Ok(seen)
}

/// How much comes out without any input, once all of it is read: a few codes of one octet, for 258 each.
const PENDING_MAX: usize = 16 * 1024;

fn inflated(deflated: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    inflated_in(&mut Inflater::default(), deflated, &[], u64::MAX)
}

fn deflated(deflater: &mut Deflater, message: &[u8]) -> Vec<u8> {
    let mut target = Buffer::default();
    deflater.deflate(message, &mut target).unwrap();
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
    let mut message = Buffer::default();
    let mut inflater = Inflater::default();
    inflater.begin(b"one two three ");
    let empty_and_final = [0x03, 0x00];
    for part in [&empty_and_final[..], &second] {
        let mut work = Work::endless();
        inflater.inflate(part, b"one two three ", &mut message, &limits(14), &mut work, |_| Ok(())).unwrap();
    }
    assert_eq!((message.message(), inflater.finish()), (&b"one two three "[..], Ok(())));
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
    let meter = Meter::default();
    let (mut message, mut seen, mut work) = (Buffer::owned(&meter), 0, Work::endless());
    let result =
        Inflater::default().inflate(&bomb, &[], &mut message, &limits(1 << 20), &mut work, |piece| {
            seen += piece.len();
            Ok(())
        });
    assert_eq!(result, Err(ProtocolError::MessageTooBig));
    assert!(seen == 1 << 20 && meter.used() <= (1 << 20) + GROW_LEN_MIN, "{}", meter.used());
}

#[test]
fn the_check_ends_a_message_before_the_rest_of_it_is_inflated() {
    let meter = Meter::default();
    let (mut message, mut calls, mut work) = (Buffer::owned(&meter), 0, Work::endless());
    let (bomb, limits) = (bomb(16 << 20), limits(u64::MAX));
    let result = Inflater::default().inflate(&bomb, &[], &mut message, &limits, &mut work, |_| {
        calls += 1;
        Err(ProtocolError::InvalidUtf8)
    });
    assert_eq!((result, calls), (Err(ProtocolError::InvalidUtf8), 1));
    assert!(meter.used() <= GROW_LEN_MIN + HEADER_LEN_MAX);
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
fn what_connections_own_for_compression_is_a_share_of_the_workers_memory() {
    let meter = Meter::new(1000);
    let codecs = Codecs::with_meter(DeflateSettings { memory_bytes_max: 100, ..SETTINGS }, meter.clone());
    let (first, second) = (codecs.lease(60), codecs.lease(40));
    assert!(first.is_some() && second.is_some() && codecs.lease(1).is_none());
    assert_eq!((codecs.memory_bytes(), meter.used()), (100, 100));
    drop(first);
    let _all_else = meter.take(960).unwrap();
    assert!(codecs.lease(1).is_none(), "the share has room, the worker has not");
    drop(codecs);
    drop(second);
    assert_eq!(meter.used(), 960);
}

#[test]
fn long_messages_leave_no_memory_behind() {
    let mut codecs = Codecs::new(SETTINGS);
    let (message, mut work) = (vec![7; 3 << 20], Work::endless());
    assert!(codecs.compressors.deflate(15, &[], &message, &mut codecs.deflated, &mut work));
    let mut inflater = codecs.take_inflater(&[]).unwrap();
    let (deflated, inflated) = (codecs.deflated.message(), &mut codecs.inflated);
    inflater.inflate(deflated, &[], inflated, &limits(u64::MAX), &mut work, |_| Ok(())).unwrap();
    assert!(codecs.meter().used() >= message.len(), "it counts while it is there");
    codecs.trim();
    assert_eq!(codecs.meter().used(), 0);
    assert!(codecs.inflated.capacity() <= BUFFER_KEPT_MAX);
}

#[test]
fn a_message_that_there_is_no_memory_to_compress_goes_out_as_it_is() {
    let mut codecs = Codecs::new(SETTINGS);
    codecs.meter().set_free(1 << 20);
    let noise = noise(2 << 20);
    let (compressors, target) = (&mut codecs.compressors, &mut codecs.deflated);
    assert!(!compressors.deflate(15, &[], &noise, target, &mut Work::endless()));
    assert!(
        compressors.deflate(15, &[], &[7; 1000], target, &mut Work::endless()),
        "the next one is not hurt"
    );
    assert_eq!(inflated(target.message()).unwrap(), [7; 1000]);
}

/// Octets that do not become fewer.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(next).collect()
}

#[test]
fn inflating_stops_when_its_work_is_done_and_goes_on_from_there() {
    let bomb = bomb(8 << 20);
    let whole = inflated(&bomb).unwrap();
    for octets in [0, 1000, 100_000, 1 << 20] {
        let limits = limits(u64::MAX);
        let result = inflated_with(&mut Inflater::default(), &bomb, &[1, 4000], &limits, octets);
        assert!(result.as_ref() == Ok(&whole), "{octets}");
    }
}

#[test]
fn windows_that_are_told_again_and_again_are_work() {
    // A final block that is empty, 10,000 times: each has the decompressor told of all that came before.
    let mut message = deflated(&mut Deflater::new(&SETTINGS, 15), &noise(40_000));
    message.extend(TAIL.iter().chain(&[0x03, 0x00].repeat(10_000)));
    let (mut inflater, mut buffer) = (Inflater::default(), Buffer::default());
    let (mut part, mut times) = (&message[..], 0);
    while !part.is_empty() {
        let (mut work, limits) = (Work::new(1 << 20), limits(u64::MAX));
        let unread = inflater.inflate(part, &[], &mut buffer, &limits, &mut work, |_| Ok(())).unwrap();
        part = &part[part.len() - unread..];
        times += 1;
    }
    assert!((100..1000).contains(&times), "{times}");
}

/// How a message of `parts` comes out, if it may inflate to `ratio_max` times its length.
fn with_ratio(parts: &[&[u8]], ratio_max: usize) -> Result<usize, ProtocolError> {
    let deflated = deflated(&mut Deflater::new(&SETTINGS, 15), &parts.concat());
    let limits = InflateLimits { len_max: u64::MAX, ratio_max };
    let whole = inflated_with(&mut Inflater::default(), &deflated, &[], &limits, usize::MAX);
    let len = deflated.len();
    for cuts in [&[10, 500, len.min(1100), len.min(1101)][..], &[len / 2], &[len - 1]] {
        for octets in [usize::MAX, 300_000] {
            let cut = inflated_with(&mut Inflater::default(), &deflated, cuts, &limits, octets);
            assert!(cut == whole, "{cuts:?} {octets}");
        }
    }
    whole.map(|message| message.len())
}

#[test]
fn a_message_may_inflate_to_a_mib_and_then_to_a_multiple_of_its_length() {
    let (zeros, noise) = (&[0; 1 << 20][..], &noise(1 << 20)[..]);
    assert_eq!(with_ratio(&[zeros], 1), Ok(1 << 20), "the first MiB is free");
    assert_eq!(with_ratio(&[zeros, zeros], 200), Err(ProtocolError::InflationRatio));
    assert_eq!(with_ratio(&[zeros, zeros, zeros], 0), Ok(3 << 20), "0 is any");
    assert_eq!(with_ratio(&[zeros, zeros, zeros], 1100), Ok(3 << 20), "no stream is denser");
    assert_eq!(with_ratio(&[noise, zeros, zeros], 3), Ok(3 << 20), "what came before counts");
    assert_eq!(
        with_ratio(&[zeros, zeros, noise], 3),
        Err(ProtocolError::InflationRatio),
        "not what comes later"
    );
}

#[test]
fn what_does_not_become_shorter_goes_out_as_it_is() {
    let settings = DeflateSettings { message_len_min: 10, message_len_max: 1000, ..SETTINGS };
    let mut compressors = Compressors::new(settings);
    let (mut target, mut work) = (Buffer::default(), Work::endless());
    for (len, is_compressed) in [(9, false), (10, true), (1000, true), (1001, false)] {
        let message = vec![b'a'; len];
        assert_eq!(compressors.deflate(15, &[], &message, &mut target, &mut work), is_compressed, "{len}");
    }
    assert!(!compressors.deflate(15, &[], &noise(1000), &mut target, &mut work));
}

#[test]
fn frames_are_recoded_one_by_one() {
    let mut frames = Vec::new();
    for message in [&[b'a'; 300][..], b"b", &[b'c'; 70_000]] {
        let mut head = [0; HEADER_LEN_MAX];
        let len = FrameHeader::message(Opcode::Text, message.len()).write(&mut head);
        frames.extend([&head[..len], message].concat());
    }
    let mut compressors = Compressors::new(DeflateSettings { message_len_min: 2, ..SETTINGS });
    let recoded = compressors.recode(9, &frames).unwrap();
    let (mut messages, mut rest) = (Vec::new(), &recoded[..]);
    while let Some((header, len)) = FrameHeader::parse(rest).unwrap() {
        let (payload, after) = rest[len..].split_at(header.payload_len as usize);
        messages.push(if header.rsv1 { inflated(payload).unwrap() } else { payload.to_vec() });
        rest = after;
    }
    assert_eq!(messages, [vec![b'a'; 300], b"b".to_vec(), vec![b'c'; 70_000]]);
}

#[test]
fn a_batch_that_takes_long_to_compress_is_left_as_it_is() {
    let batch_of = |len: usize| {
        let header = FrameHeader::message(Opcode::Binary, len - 10);
        let mut frame = vec![0; len];
        assert_eq!(header.write(&mut frame), 10);
        frame
    };
    let mut compressors = Compressors::new(SETTINGS);
    assert!(compressors.recode(15, &batch_of(BATCH_LEN_MAX)).is_some_and(|batch| batch.len() < 1000));
    assert!(compressors.recode(15, &batch_of(BATCH_LEN_MAX + 1)).is_none());
    // Many short ones take long, too: the first are compressed.
    let frame = [&[0x81, 100][..], &[b'a'; 100]].concat();
    let recoded = compressors.recode(15, &frame.repeat(2000)).unwrap();
    assert_eq!(recoded[0], 0xC1);
    assert!(recoded.ends_with(&frame.repeat(1700)) && !recoded.ends_with(&frame.repeat(1900)));
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
                inflater.begin(&[]);
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
        limit in prop_oneof![0u64..300, Just(10_000)],
        work_octets in prop_oneof![0usize..300, Just(usize::MAX)],
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = inflated_in(&mut Inflater::default(), &octets, &[], limit);
        let cut = inflated_with(&mut Inflater::default(), &octets, &cuts, &limits(limit), work_octets);
        prop_assert_eq!(whole, cut);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whether_a_message_is_too_dense_does_not_depend_on_how_it_comes(
        parts in prop::collection::vec((any::<bool>(), 1usize..400_000), 2..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ratio_max in prop_oneof![1usize..40, 100usize..1032],
        work_octets in prop_oneof![200_000usize..2_000_000, Just(usize::MAX)],
        level in 1u8..=9,
    ) {
        let noise = noise(400_000);
        let mut message = vec![0; 900_000];
        for (is_noise, len) in parts {
            // Compressible to any degree.
            if is_noise { message.extend(&noise[..len / 20]) } else { message.resize(message.len() + 2 * len, 7) }
        }
        let deflated = deflated(&mut Deflater::new(&DeflateSettings { level, ..SETTINGS }, 15), &message);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(deflated.len() + 1)).collect();
        cuts.sort_unstable();
        let limits = InflateLimits { len_max: u64::MAX, ratio_max };
        let whole = inflated_with(&mut Inflater::default(), &deflated, &[], &limits, usize::MAX);
        let cut = inflated_with(&mut Inflater::default(), &deflated, &cuts, &limits, work_octets);
        prop_assert!(whole == cut, "{:?} {:?}", whole.map(|whole| whole.len()), cut.map(|cut| cut.len()));
    }
}
