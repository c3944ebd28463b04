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
    fn fields(self) -> u128 {
        u128::from(self.intended_ns) | u128::from(self.sequence) << 64 | u128::from(self.sender) << 96
    }

    /// Writes the stamp of a message with this `filler`, masked with a key of four octets, little-endian. Masked in
    /// registers: to write it and read it back at once would stall for longer than all the rest takes.
    #[inline(always)]
    fn write(self, filler: &[u8], key: u32, place: &mut [u8]) {
        let fields = self.fields();
        let checksum = adler32(&fields.to_le_bytes(), filler);
        place[..4].copy_from_slice(&(checksum ^ key).to_le_bytes());
        let key = u128::from(key);
        let masked = fields ^ (key | key << 32 | key << 64 | key << 96);
        place[4..BINARY_LEN].copy_from_slice(&masked.to_le_bytes());
    }

    fn from_octets(octets: &[u8; 16]) -> Self {
        Self {
            intended_ns: u64::from_le_bytes(octets[..8].try_into().expect("eight octets")),
            sequence: u32::from_le_bytes(octets[8..12].try_into().expect("four octets")),
            sender: u32::from_le_bytes(octets[12..].try_into().expect("four octets")),
        }
    }

    /// Where in the filler this message's part begins.
    fn filler_start(self) -> usize {
        // An odd multiplier spreads neighbours; the top byte is the best mixed one.
        ((self.sequence ^ self.sender.rotate_left(16)).wrapping_mul(0x9E37_79B1) >> 24) as usize
    }
}

/// Reads and verifies a message. `None` if it is not one of ours or not as it was sent.
#[inline]
pub(super) fn read(payload: &[u8], opcode: Opcode) -> Option<Stamp> {
    let mut decoded = [0; BINARY_LEN];
    let (stamp, filler): (&[u8; BINARY_LEN], &[u8]) = match opcode {
        Opcode::Text => {
            let (stamp, filler) = payload.split_at_checked(TEXT_LEN)?;
            STANDARD_NO_PAD.decode_slice(stamp, &mut decoded).ok().filter(|len| *len == BINARY_LEN)?;
            (&decoded, filler)
        }
        // Where it is: a copy would be read back before it is written.
        _ => payload.split_first_chunk()?,
    };
    let (checksum, fields) = stamp.split_first_chunk::<4>().expect("twenty octets");
    let fields: &[u8; 16] = fields.try_into().expect("sixteen octets");
    (adler32(fields, filler) == u32::from_le_bytes(*checksum)).then(|| Stamp::from_octets(fields))
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
        let start = stamp.filler_start();
        let filler = &self.filler[start..start + (size - stamp_len)];

        let at = target.len();
        // What is appended with a constant length needs no call; what is too much goes again.
        target.extend_from_slice(&[0; HEADER_LEN_MAX + TEXT_LEN]);
        let front = &mut target[at..];
        let header = FrameHeader { masking_key: Some(key), ..FrameHeader::message(self.opcode, size) };
        let head_len = if is_frame { header.write(front) } else { 0 };
        let place = &mut front[head_len..];
        match self.opcode {
            Opcode::Text => {
                let mut octets = [0; BINARY_LEN];
                stamp.write(filler, 0, &mut octets);
                let len = STANDARD_NO_PAD.encode_slice(octets, place);
                debug_assert_eq!(len, Ok(TEXT_LEN));
                mask::unmask_in_place(&mut place[..TEXT_LEN], key);
            }
            _ => stamp.write(filler, key_word, place),
        }
        target.truncate(at + head_len + stamp_len);
        if !filler.is_empty() {
            mask::unmask_append(target, filler, key.advanced(stamp_len));
        }
    }
}

#[inline(always)]
fn adler32(fields: &[u8; 16], filler: &[u8]) -> u32 {
    // Sixteen octets cannot make either sum reach the modulus 65521, so that these need no division.
    const WEIGHTS: [u16; 16] = [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1];
    let octets = fields.map(u16::from);
    let a = 1 + octets.iter().sum::<u16>();
    let b = 16 + octets.iter().zip(WEIGHTS).map(|(octet, weight)| octet * weight).sum::<u16>();
    let checksum = u32::from(b) << 16 | u32::from(a);
    if filler.is_empty() {
        return checksum;
    }
    let mut adler = Adler32::from_checksum(checksum);
    adler.write(filler);
    adler.finish()
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
            prop_assert_eq!(adler32(&fields, &filler), simd_adler32::adler32(&whole.as_slice()));
            prop_assert_eq!(adler32(&[255; 16], &[]), simd_adler32::adler32(&[255; 16].as_slice()));
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
