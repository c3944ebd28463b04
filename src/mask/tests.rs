//! One harness runs every kernel of this CPU against the scalar oracle and compares all of the buffer, not
//! only the payload: an octet that moved outside it is a failure.
//!
//! Under Miri, which is slow, the ranges shrink to the lengths at which the kernels change their ways. Reads
//! outside a slice are invisible to a comparison: there, and under valgrind or a sanitizer, they are found
//! by `a_payload_may_fill_its_allocation`.

use proptest::prelude::*;

use super::{Kernel, MaskingKey, scalar, unmask_append, unmask_down, unmask_in_place};

const LEN_MAX: usize = 515;
/// Room around the payload that must not change.
const MARGIN: usize = 64;
const ROTATIONS: [MaskingKey; 4] = {
    let key = MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d]); // RFC 6455 §5.7
    [key, key.advanced(1), key.advanced(2), key.advanced(3)]
};
/// How far a payload slides: the headers of §5.2, then around the widths of vectors and of their blocks.
const DISTANCES: [usize; 30] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255,
    256, 600,
];

fn lens() -> Vec<usize> {
    if cfg!(miri) {
        vec![0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 32, 33, 64, 65, 127, 128, 129, 256, 257, 300, 512, LEN_MAX]
    } else {
        (0..=LEN_MAX).collect()
    }
}

fn distances() -> &'static [usize] {
    if cfg!(miri) { &[0, 1, 4, 14, 33, 600] } else { &DISTANCES }
}

/// The kernels to test. Says which this CPU lacks.
fn kernels() -> Vec<Kernel> {
    for (kernel, is_available) in Kernel::all() {
        if !is_available {
            println!("skipped: {}, because this CPU does not have it", kernel.name());
        }
    }
    Kernel::available()
}

/// Octets in which both halves of the code space, and no period of a vector's width, occur.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let octets = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    octets.take(len).collect()
}

/// The oracle and every kernel on the same buffers, which are made once and used for many cases.
struct Harness {
    kernels: Vec<Kernel>,
    noise: Vec<u8>,
    expected: Vec<u8>,
    actual: Vec<u8>,
}

impl Harness {
    fn new() -> Self {
        let buffer_len = MARGIN + 64 + DISTANCES[DISTANCES.len() - 1] + LEN_MAX + MARGIN;
        Self { kernels: kernels(), noise: noise(buffer_len), expected: vec![], actual: vec![] }
    }

    /// `to` counts from the first octet of the buffer that is aligned to 64, so it fixes the alignment.
    fn down(&mut self, to: usize, distance: usize, len: usize, key: MaskingKey) {
        // Two buffers may differ in alignment, so the kernels take turns on one and the oracle has its own.
        self.actual.clone_from(&self.noise);
        let to = self.actual.as_ptr().align_offset(64) % 64 + to;
        let from = to + distance;
        let used = (from + len + MARGIN).min(self.noise.len());
        self.expected.clone_from(&self.noise);
        let is_ascii = scalar::unmask_down(&mut self.expected, from, to, len, key);
        for kernel in &self.kernels {
            self.actual[..used].copy_from_slice(&self.noise[..used]);
            assert_eq!(kernel.unmask_down(&mut self.actual, from, to, len, key), is_ascii);
            assert!(
                self.actual == self.expected,
                "{}: from {from} to {to}, {len} octets, {key:?}",
                kernel.name()
            );
        }
    }
}

#[test]
fn every_length_at_every_alignment_matches_the_oracle() {
    let mut harness = Harness::new();
    for len in lens() {
        for alignment in (0..64).step_by(if cfg!(miri) { 21 } else { 1 }) {
            // 7 and the number of distances have no common divisor: neighbours meet different ones.
            let distance = distances()[(7 * len + alignment) % distances().len()];
            harness.down(alignment, distance, len, ROTATIONS[(len + alignment / 4) % 4]);
        }
    }
}

#[test]
fn every_length_over_every_distance_matches_the_oracle() {
    let mut harness = Harness::new();
    for len in lens() {
        for &distance in distances() {
            for (index, &key) in ROTATIONS.iter().enumerate() {
                harness.down((5 * len + 17 * index) % 64, distance, len, key);
                if cfg!(miri) {
                    break;
                }
            }
        }
    }
}

#[test]
fn long_payloads_match_the_oracle() {
    let lens: &[usize] = if cfg!(miri) { &[1030] } else { &[1024, 4095, 4099, 65_536 + 7, (1 << 20) + 3] };
    let kernels = kernels();
    for &len in lens {
        let noise = noise(len + 100);
        for (to, distance) in [(0, 0), (1, 0), (2, 4), (4, 4), (10, 4), (3, 64), (7, 77)] {
            let mut expected = noise.clone();
            let is_ascii = scalar::unmask_down(&mut expected, to + distance, to, len, ROTATIONS[1]);
            for kernel in &kernels {
                let mut actual = noise.clone();
                assert_eq!(kernel.unmask_down(&mut actual, to + distance, to, len, ROTATIONS[1]), is_ascii);
                assert!(actual == expected, "{}: by {distance} to {to}, {len} octets", kernel.name());
            }
        }
    }
}

#[test]
fn appending_leaves_the_source_and_the_octets_around_alone() {
    let noise = noise(MARGIN + LEN_MAX + MARGIN);
    let mut target = noise.clone(); // so that there is something to overwrite behind the payload
    for kernel in kernels() {
        for len in lens() {
            for (start, offset) in [(0, 0), (1, 0), (4, 6), (13, 3), (MARGIN, 1), (31, MARGIN)] {
                let source = noise[offset..offset + len].to_vec();
                let mut expected = noise.clone();
                expected[start..start + len].copy_from_slice(&source);
                let key = ROTATIONS[len % 4];
                let is_ascii = scalar::unmask_down(&mut expected, start, start, len, key);

                target.clone_from(&noise);
                target.truncate(start);
                assert_eq!(kernel.unmask_append(&mut target, &source, key), is_ascii);
                assert_eq!(target.len(), start + len);
                assert!(source == noise[offset..offset + len]);
                // SAFETY: all of it was initialised before `truncate`, and kernels store only octets.
                unsafe { target.set_len(noise.len()) };
                assert!(target == expected, "{}: {len} octets appended to {start}", kernel.name());
            }
        }
    }
}

/// Valgrind and Miri see reads and writes outside an allocation that no comparison can.
#[test]
fn a_payload_may_fill_its_allocation() {
    for kernel in kernels() {
        for len in lens() {
            let mut whole = noise(len).into_boxed_slice();
            kernel.unmask_in_place(&mut whole, ROTATIONS[0]);
            let mut behind_its_mask = noise(len + 4).into_boxed_slice();
            kernel.unmask_down(&mut behind_its_mask, 4, 0, len, ROTATIONS[0]);
            let mut appended = Vec::with_capacity(len);
            kernel.unmask_append(&mut appended, &whole, ROTATIONS[0]);
            assert!(appended == noise(len)); // XOR is its own inverse
        }
    }
}

#[test]
fn one_octet_beyond_ascii_anywhere_is_seen() {
    let key = ROTATIONS[1];
    for kernel in kernels() {
        for len in lens() {
            // The blocks of a kernel repeat; every position matters at the lengths where they change.
            let step = if cfg!(miri) {
                61
            } else if len <= 140 || len % 64 < 2 || len == LEN_MAX {
                1
            } else {
                29
            };
            let mut masked = vec![b'a'; len];
            unmask_in_place(&mut masked, key);
            let mut buffer = vec![0xff; 3 + len + 1]; // what is around the payload does not count
            buffer[3..3 + len].copy_from_slice(&masked);
            assert!(kernel.unmask_down(&mut buffer, 3, 3, len, key), "{}: {len} octets", kernel.name());
            for position in (0..len).step_by(step).chain(len.checked_sub(1)) {
                buffer[3..3 + len].copy_from_slice(&masked);
                buffer[3 + position] ^= 0x80;
                let is_ascii = kernel.unmask_down(&mut buffer, 3, 3, len, key);
                assert!(!is_ascii, "{}: octet {position} of {len}", kernel.name());
            }
        }
    }
}

#[test]
fn the_masked_hello_of_the_rfc_is_unmasked() {
    let mut frame = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"; // RFC 6455 §5.7
    let key = MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d]);
    assert!(unmask_down(&mut frame, 6, 2, 5, key));
    assert_eq!(&frame[2..7], b"Hello");
}

#[test]
fn a_kernel_wider_than_the_baseline_is_chosen_where_there_is_one() {
    let available: Vec<&str> = Kernel::available().iter().map(|kernel| kernel.name()).collect();
    let expected: &[&str] = match available.len() {
        4 => &["AVX2", "AVX-512"],
        3 => &["AVX2"],
        2 => &["SSE2", "NEON"],
        _ => &["words"],
    };
    assert!(expected.contains(&Kernel::chosen().name()), "{} of {available:?}", Kernel::chosen().name());
}

#[test]
#[should_panic(expected = "to <= from")]
fn moving_up_is_refused() {
    unmask_down(&mut [0; 8], 0, 1, 4, MaskingKey::default());
}

#[test]
#[should_panic(expected = "len <= buffer.len() - from")]
fn a_source_beyond_the_buffer_is_refused() {
    unmask_down(&mut [0; 8], 4, 0, 5, MaskingKey::default());
}

#[test]
#[should_panic(expected = "from <= buffer.len()")]
fn a_source_that_begins_beyond_the_buffer_is_refused() {
    unmask_down(&mut [0; 8], 9, 0, usize::MAX, MaskingKey::default());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn cutting_a_payload_anywhere_changes_nothing(
        payload in proptest::collection::vec(any::<u8>(), 0..700),
        key in any::<[u8; 4]>(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        let key = MaskingKey::from_wire(key);
        let mut whole = payload.clone();
        let is_ascii = scalar::unmask_down(&mut whole, 0, 0, payload.len(), key);

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.extend([0, payload.len()]);
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut all_ascii = true;
        for cut in cuts.windows(2) {
            all_ascii &= unmask_append(&mut pieces, &payload[cut[0]..cut[1]], key.advanced(cut[0]));
        }
        prop_assert_eq!(pieces, whole);
        prop_assert_eq!(all_ascii, is_ascii);
    }
}
