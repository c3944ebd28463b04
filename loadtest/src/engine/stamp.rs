//! What every message carries, so that loss, duplicates, reordering and corruption can be counted.
//!
//! Binary: 20 octets in front of the filler, little-endian.
//!
//! | at | octets | field |
//! |---|---|---|
//! | 0 | 4 | Adler-32 of the other 16 and of the filler |
//! | 4 | 8 | intended send time, nanoseconds since the run's origin |
//! | 12 | 4 | sequence number of the sender, from 0, wrapping |
//! | 16 | 4 | the sender: a connection's number, or a publisher's |
//!
//! Text: the same 20 octets as 27 characters of base64 (the standard alphabet, no padding). The filler is
//! printable ASCII in both, and begins at a place that depends on sender and sequence number, so that a
//! server that glues the tail of one message to the head of another is caught by the checksum.
//!
//! Start at [`Composer::compose`] for writing and [`read`] for reading.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use resound::mask::{self, MaskingKey};
use resound::proto::frame::HEADER_LEN_MAX;
use resound::proto::{FrameHeader, Opcode};
use simd_adler32::Adler32;

/// Octets of the stamp, which is the shortest binary message.
pub(super) const BINARY_LEN: usize = 20;
/// Characters of the stamp in a text message, which is the shortest one.
pub(super) const TEXT_LEN: usize = 27;
/// Places where the filler of a message may begin.
const FILLER_STARTS: usize = 256;

/// The length in octets of the shortest message of this kind.
pub(super) const fn len_min(opcode: Opcode) -> usize {
    match opcode {
        Opcode::Text => TEXT_LEN,
        _ => BINARY_LEN,
    }
}

/// A message's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// When it was to be sent, in nanoseconds since the run's origin.
    pub intended_ns: u64,
    /// Its number among its sender's messages, from 0, wrapping.
    pub sequence: u32,
    /// Who sent it.
    pub sender: u32,
}

impl Stamp {
    /// The fields in the order of the wire, as two little-endian words.
    fn words(self) -> [u64; 2] {
        [self.intended_ns, u64::from(self.sequence) | u64::from(self.sender) << 32]
    }

    fn from_words([intended_ns, numbers]: [u64; 2]) -> Self {
        Self { intended_ns, sequence: numbers as u32, sender: (numbers >> 32) as u32 }
    }

    /// Writes the stamp of a message with this `filler`, masked with a key of four octets, little-endian. Masked in
    /// registers: to write it and read it back at once would stall for longer than all the rest takes.
    #[inline(always)]
    fn write(self, filler: &[u8], key: u32, place: &mut [u8; BINARY_LEN]) {
        let words = self.words();
        place[..4].copy_from_slice(&(adler32(words, filler) ^ key).to_le_bytes());
        let key = u64::from(key) | u64::from(key) << 32;
        place[4..12].copy_from_slice(&(words[0] ^ key).to_le_bytes());
        place[12..].copy_from_slice(&(words[1] ^ key).to_le_bytes());
    }

    /// The same as text.
    #[inline(never)]
    fn write_text(self, filler: &[u8], key: MaskingKey, place: &mut [u8; TEXT_LEN]) {
        let mut octets = [0; BINARY_LEN];
        self.write(filler, 0, &mut octets);
        let len = STANDARD_NO_PAD.encode_slice(octets, place);
        debug_assert_eq!(len, Ok(TEXT_LEN));
        mask::unmask_in_place(place, key);
    }

    /// Where in the filler this message's part begins.
    fn filler_start(self) -> usize {
        // An odd multiplier spreads neighbours; the top byte is the best mixed one.
        ((self.sequence ^ self.sender.rotate_left(16)).wrapping_mul(0x9E37_79B1) >> 24) as usize
    }
}

/// Reads and verifies a message. `None` if it is not one of ours or not as it was sent.
#[inline(always)]
pub(super) fn read(payload: &[u8], opcode: Opcode) -> Option<Stamp> {
    if opcode == Opcode::Text {
        return read_text(payload);
    }
    let (stamp, filler) = payload.split_first_chunk()?;
    verified(stamp, filler)
}

#[inline(never)]
fn read_text(payload: &[u8]) -> Option<Stamp> {
    let (stamp, filler) = payload.split_at_checked(TEXT_LEN)?;
    let mut decoded = [0; BINARY_LEN];
    STANDARD_NO_PAD.decode_slice(stamp, &mut decoded).ok().filter(|len| *len == BINARY_LEN)?;
    verified(&decoded, filler)
}

#[inline(always)]
fn verified(stamp: &[u8; BINARY_LEN], filler: &[u8]) -> Option<Stamp> {
    let word = |at: usize| u64::from_le_bytes(stamp[at..at + 8].try_into().expect("eight octets"));
    let checksum = u32::from_le_bytes(stamp[..4].try_into().expect("four octets"));
    let words = [word(4), word(12)];
    (adler32(words, filler) == checksum).then(|| Stamp::from_words(words))
}

/// Writes whole masked frames.
#[derive(Debug)]
pub(super) struct Composer {
    filler: Vec<u8>,
    opcode: Opcode,
    keys: fastrand::Rng,
}

impl Composer {
    /// Composes messages of `opcode` with at most `size_max` octets. The masking keys follow from `seed`:
    /// enough for measuring, not the strong entropy that RFC 6455 §10.3 wants of a browser.
    pub(super) fn new(opcode: Opcode, size_max: usize, seed: u64) -> Self {
        // The filler is the same in every run, so that a capture can be compared with another.
        let mut rng = fastrand::Rng::with_seed(0x7265_736F_756E_6421);
        let filler = (0..size_max + FILLER_STARTS).map(|_| rng.u8(b' '..=b'~')).collect();
        Self { filler, opcode, keys: fastrand::Rng::with_seed(seed) }
    }

    /// Appends one message of `size` octets to `target`, as a masked frame.
    ///
    /// # Panics
    /// If `size` is below [`len_min`] or above `size_max`.
    #[inline]
    pub(super) fn compose(&mut self, stamp: Stamp, size: usize, target: &mut Vec<u8>) {
        self.put(stamp, size, true, target);
    }

    /// Appends the payload of one message of `size` octets to `target`, for who frames it.
    ///
    /// # Panics
    /// As [`compose`](Self::compose).
    pub(super) fn payload(&mut self, stamp: Stamp, size: usize, target: &mut Vec<u8>) {
        self.put(stamp, size, false, target);
    }

    #[inline(always)]
    fn put(&mut self, stamp: Stamp, size: usize, is_frame: bool, target: &mut Vec<u8>) {
        // A key of zeros changes nothing: a payload alone is not masked.
        let key_word = if is_frame { self.keys.u32(..) } else { 0 };
        let key = MaskingKey::from_wire(key_word.to_le_bytes());
        let stamp_len = len_min(self.opcode);
        let filler = match size - stamp_len {
            0 => &[],
            len => &self.filler[stamp.filler_start()..][..len],
        };

        let at = target.len();
        // What is appended with a constant length needs no call; what is too much goes again.
        target.extend_from_slice(&[0; HEADER_LEN_MAX + TEXT_LEN]);
        let front: &mut [u8; HEADER_LEN_MAX + TEXT_LEN] =
            (&mut target[at..]).try_into().expect("it was appended just now");
        let header = FrameHeader { masking_key: Some(key), ..FrameHeader::message(self.opcode, size) };
        let head_len = if is_frame { header.write(front) } else { 0 };
        match self.opcode {
            Opcode::Text => {
                let place = front[head_len..].first_chunk_mut().expect("there is room");
                stamp.write_text(filler, key, place);
            }
            _ => {
                let place = front[head_len..].first_chunk_mut().expect("there is room for more");
                stamp.write(filler, key_word, place);
            }
        }
        target.truncate(at + head_len + stamp_len);
        if !filler.is_empty() {
            mask::unmask_append(target, filler, key.advanced(stamp_len));
        }
    }
}

/// The Adler-32 of 16 octets, in two little-endian words, and of the filler behind them.
#[inline(always)]
fn adler32(words: [u64; 2], filler: &[u8]) -> u32 {
    let checksum = adler32_of_words(words);
    if filler.is_empty() { checksum } else { continued(checksum, filler) }
}

#[inline(never)]
fn continued(checksum: u32, filler: &[u8]) -> u32 {
    let mut adler = Adler32::from_checksum(checksum);
    adler.write(filler);
    adler.finish()
}

/// RFC 1950 §8.2, where `a` is 1 and all octets, and `b` is all values that `a` has had: so the first of 16 octets
/// counts 16 times in it, and the last once. Four octets are added at a time, in the four 16-bit lanes of a word;
/// multiplied by four weights, its top lane is the sum of their products.
#[inline(always)]
fn adler32_of_words(words: [u64; 2]) -> u32 {
    const LANES: u64 = 0x00FF_00FF_00FF_00FF;
    const ONES: u64 = 0x0001_0001_0001_0001;
    const EVEN_WEIGHTS: u64 = 16 << 48 | 14 << 32 | 12 << 16 | 10;
    const ODD_WEIGHTS: u64 = 15 << 48 | 13 << 32 | 11 << 16 | 9;
    let top = |lanes: u64, weights: u64| (lanes.wrapping_mul(weights) >> 48) as u32;
    let (even, odd) = (words.map(|word| word & LANES), words.map(|word| word >> 8 & LANES));
    // The second word's weights are 8 less than the first's. No lane exceeds 16 bits: the largest sum is
    // 4 * 16 * 2 * 255. Nor does `a` or `b` reach the modulus, 65521.
    let (evens, odds) = (even[0] + even[1], odd[0] + odd[1]);
    let a = 1 + top(evens + odds, ONES);
    let b = 16 + top(evens, EVEN_WEIGHTS) + top(odds, ODD_WEIGHTS) - 8 * top(even[1] + odd[1], ONES);
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The payload of the frame, unmasked.
    fn payload(frame: &[u8]) -> Vec<u8> {
        let (header, len) = FrameHeader::parse(frame).unwrap().unwrap();
        let mut payload = frame[len..].to_vec();
        assert_eq!(payload.len() as u64, header.payload_len);
        mask::unmask_in_place(&mut payload, header.masking_key.expect("a client masks"));
        payload
    }

    fn opcode() -> impl Strategy<Value = Opcode> {
        prop_oneof![Just(Opcode::Text), Just(Opcode::Binary)]
    }

    proptest! {
        #[test]
        fn the_checksum_is_adler_32(fields: [u8; 16], filler in prop::collection::vec(any::<u8>(), 0..200)) {
            let whole = [&fields[..], &filler].concat();
            let words = [0, 8].map(|at| u64::from_le_bytes(fields[at..at + 8].try_into().unwrap()));
            prop_assert_eq!(adler32(words, &filler), simd_adler32::adler32(&whole.as_slice()));
            prop_assert_eq!(adler32([u64::MAX; 2], &[]), simd_adler32::adler32(&[255; 16].as_slice()));
        }

        #[test]
        fn what_is_composed_is_what_is_read(opcode in opcode(), intended_ns: u64, sequence: u32, sender: u32,
                                            extra in 0usize..3000) {
            let stamp = Stamp { intended_ns, sequence, sender };
            let size = len_min(opcode) + extra;
            let mut frame = Vec::new();
            Composer::new(opcode, size, 1).compose(stamp, size, &mut frame);
            let payload = payload(&frame);
            prop_assert_eq!(payload.len(), size);
            prop_assert!(std::str::from_utf8(&payload).is_ok() || opcode == Opcode::Binary);
            prop_assert_eq!(read(&payload, opcode), Some(stamp));
        }

        #[test]
        fn one_changed_octet_or_a_lost_tail_is_noticed(opcode in opcode(), sequence: u32, extra in 0usize..300,
                                                       at: prop::sample::Index, flip in 1u8..=255) {
            let stamp = Stamp { intended_ns: 5, sequence, sender: 3 };
            let mut frame = Vec::new();
            let size = len_min(opcode) + extra;
            Composer::new(opcode, size, 1).compose(stamp, size, &mut frame);
            let whole = payload(&frame);
            let at = at.index(whole.len());
            let mut changed = whole.clone();
            changed[at] ^= flip;
            prop_assert_eq!(read(&changed, opcode), None);
            prop_assert_eq!(read(&whole[..at], opcode), None);
        }
    }

    #[test]
    fn the_tail_of_another_message_is_noticed() {
        let mut composer = Composer::new(Opcode::Binary, 100, 1);
        let whole: Vec<Vec<u8>> = (0..50)
            .map(|sequence| {
                let mut frame = Vec::new();
                composer.compose(Stamp { intended_ns: 9, sequence, sender: 1 }, 100, &mut frame);
                payload(&frame)
            })
            .collect();
        for pair in whole.windows(2) {
            let glued = [&pair[0][..BINARY_LEN], &pair[1][BINARY_LEN..]].concat();
            assert_eq!(read(&glued, Opcode::Binary), None);
        }
    }
}
