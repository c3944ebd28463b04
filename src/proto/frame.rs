//! Frame headers (RFC 6455 §5.2): parsing with every rule that needs nothing but the header, and writing.

use super::ProtocolError;
use crate::mask::MaskingKey;

const FIN: u8 = 0x80; // RFC 6455 §5.2
const RSV1: u8 = 0x40; // RFC 6455 §5.2, RFC 7692 §6
const RSV2: u8 = 0x20; // RFC 6455 §5.2
const RSV3: u8 = 0x10; // RFC 6455 §5.2
const MASK: u8 = 0x80; // RFC 6455 §5.2
const CONTROL: u8 = 0x08; // RFC 6455 §5.5: the opcode's most significant bit

/// The longest frame header in octets: two, eight of extended length, four of masking key.
pub const HEADER_LEN_MAX: usize = 14;
/// The longest payload of a control frame in octets (RFC 6455 §5.5).
pub const CONTROL_LEN_MAX: usize = 125;

/// What a frame is (RFC 6455 §11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message begun by a text or binary frame.
    Continuation = 0x0,
    /// The start of a UTF-8 message.
    Text = 0x1,
    /// The start of a message of octets.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// A question that a Pong must answer.
    Ping = 0x9,
    /// The answer to a Ping, or a heartbeat.
    Pong = 0xA,
}

impl Opcode {
    #[inline]
    fn from_wire(nibble: u8) -> Result<Self, ProtocolError> {
        Ok(match nibble {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return Err(ProtocolError::ReservedOpcode),
        })
    }

    /// Whether frames of this kind may stand inside a fragmented message (RFC 6455 §5.5).
    #[inline]
    pub const fn is_control(self) -> bool {
        self as u8 & CONTROL != 0
    }
}

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The last (or only) frame of its message.
    pub fin: bool,
    /// The first frame of a compressed message (RFC 7692 §6).
    pub rsv1: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Present in every frame from a client, in none from a server.
    pub masking_key: Option<MaskingKey>,
    /// The payload's length in octets, below 2^63.
    pub payload_len: u64,
}

impl FrameHeader {
    /// The header of a whole message in one unmasked frame.
    #[inline]
    pub const fn message(opcode: Opcode, payload_len: usize) -> Self {
        Self { fin: true, rsv1: false, opcode, masking_key: None, payload_len: payload_len as u64 }
    }

    /// Reads a header from the front of `octets`: the header and its length in octets, or `None` if there
    /// are too few octets yet. A rule is broken as soon as the octet that breaks it is there.
    #[inline]
    pub fn parse(octets: &[u8]) -> Result<Option<(Self, usize)>, ProtocolError> {
        let &[first, ref rest @ ..] = octets else { return Ok(None) };
        if first & (RSV2 | RSV3) != 0 {
            return Err(ProtocolError::ReservedBit);
        }
        let (fin, rsv1) = (first & FIN != 0, first & RSV1 != 0);
        let opcode = Opcode::from_wire(first & 0x0F)?;
        if opcode.is_control() {
            if rsv1 {
                return Err(ProtocolError::ReservedBit);
            }
            if !fin {
                return Err(ProtocolError::ControlFrame);
            }
        }
        let &[second, ..] = rest else { return Ok(None) };
        let short_len = second & !MASK;
        if opcode.is_control() && short_len > CONTROL_LEN_MAX as u8 {
            return Err(ProtocolError::ControlFrame);
        }
        let (payload_len, key_at) = match short_len {
            126 => {
                let Some(len) = octets.get(2..4) else { return Ok(None) };
                let len = u16::from_be_bytes(len.try_into().expect("two octets"));
                if len < 126 {
                    return Err(ProtocolError::PayloadLength);
                }
                (u64::from(len), 4)
            }
            127 => {
                let Some(len) = octets.get(2..10) else { return Ok(None) };
                let len = u64::from_be_bytes(len.try_into().expect("eight octets"));
                if len <= u64::from(u16::MAX) || len >> 63 != 0 {
                    return Err(ProtocolError::PayloadLength);
                }
                (len, 10)
            }
            len => (u64::from(len), 2),
        };
        let (masking_key, header_len) = if second & MASK == 0 {
            (None, key_at)
        } else {
            let Some(key) = octets.get(key_at..key_at + 4) else { return Ok(None) };
            (Some(MaskingKey::from_wire(key.try_into().expect("four octets"))), key_at + 4)
        };
        Ok(Some((Self { fin, rsv1, opcode, masking_key, payload_len }, header_len)))
    }

    /// The header's length in octets, in its shortest form (RFC 6455 §5.2).
    #[inline(always)]
    pub const fn encoded_len(&self) -> usize {
        let key_len = if self.masking_key.is_some() { 4 } else { 0 };
        key_len
            + match self.payload_len {
                0..=125 => 2,
                126..=0xFFFF => 4,
                _ => 10,
            }
    }

    /// Writes the header to the front of `target` and returns its length, which is [`Self::encoded_len`].
    ///
    /// # Panics
    /// If `target` is shorter than that; [`HEADER_LEN_MAX`] octets always suffice.
    #[inline(always)]
    pub fn write(&self, target: &mut [u8]) -> usize {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        target[0] = bit(self.fin, FIN) | bit(self.rsv1, RSV1) | self.opcode as u8;
        let mask = bit(self.masking_key.is_some(), MASK);
        let key_at = match self.payload_len {
            len @ 0..=125 => {
                target[1] = mask | len as u8;
                2
            }
            len @ 126..=0xFFFF => {
                target[1] = mask | 126;
                target[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                4
            }
            len => {
                target[1] = mask | 127;
                target[2..10].copy_from_slice(&len.to_be_bytes());
                10
            }
        };
        match self.masking_key {
            None => key_at,
            Some(key) => {
                target[key_at..key_at + 4].copy_from_slice(&key.to_wire());
                key_at + 4
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(octets: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        FrameHeader::parse(octets)
    }

    #[test]
    fn the_examples_of_section_5_7_parse() {
        // A single-frame unmasked text message, "Hello".
        let (header, len) = parsed(&[0x81, 0x05]).unwrap().unwrap();
        assert_eq!((header, len), (FrameHeader::message(Opcode::Text, 5), 2));
        // The same, masked.
        let (header, len) = parsed(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d]).unwrap().unwrap();
        assert_eq!(header.masking_key, Some(MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d])));
        assert_eq!(len, 6);
        // The first fragment "Hel", the last "lo", a Ping, 256 octets and 64 KiB of binary.
        assert!(!parsed(&[0x01, 0x03]).unwrap().unwrap().0.fin);
        assert_eq!(parsed(&[0x80, 0x02]).unwrap().unwrap().0.opcode, Opcode::Continuation);
        assert_eq!(parsed(&[0x89, 0x05]).unwrap().unwrap().0.opcode, Opcode::Ping);
        assert_eq!(parsed(&[0x82, 0x7E, 0x01, 0x00]).unwrap().unwrap().0.payload_len, 256);
        assert_eq!(parsed(&[0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]).unwrap().unwrap().0.payload_len, 65536);
    }

    #[test]
    fn lengths_must_be_minimal_and_below_two_to_the_63() {
        assert_eq!(parsed(&[0x82, 126, 0, 125]), Err(ProtocolError::PayloadLength));
        assert_eq!(parsed(&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]), Err(ProtocolError::PayloadLength));
        assert_eq!(parsed(&[0x82, 127, 0x80, 0, 0, 0, 0, 1, 0, 0]), Err(ProtocolError::PayloadLength));
        assert!(parsed(&[0x82, 127, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap().is_some());
    }

    #[test]
    fn a_rule_is_broken_by_the_first_octet_that_breaks_it() {
        assert_eq!(parsed(&[0xA1]), Err(ProtocolError::ReservedBit));
        assert_eq!(parsed(&[0x91]), Err(ProtocolError::ReservedBit));
        assert_eq!(parsed(&[0xC9]), Err(ProtocolError::ReservedBit));
        for reserved in [0x3, 0x7, 0xB, 0xF] {
            assert_eq!(parsed(&[0x80 | reserved]), Err(ProtocolError::ReservedOpcode));
        }
        assert_eq!(parsed(&[0x09]), Err(ProtocolError::ControlFrame));
        assert_eq!(parsed(&[0x89, 0xFE]), Err(ProtocolError::ControlFrame));
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_parsed(fin: bool, rsv1: bool, opcode in 0u8..3, key: Option<[u8; 4]>,
                                             len in prop_oneof![0u64..200, 65_500..65_600u64, 0..1u64 << 63]) {
            let header = FrameHeader { fin, rsv1, opcode: Opcode::from_wire(opcode).unwrap(),
                                       masking_key: key.map(MaskingKey::from_wire), payload_len: len };
            let mut octets = [0; HEADER_LEN_MAX];
            let written = header.write(&mut octets);
            prop_assert_eq!(written, header.encoded_len());
            prop_assert_eq!(parsed(&octets[..written]), Ok(Some((header, written))));
            for cut in 0..written {
                prop_assert_eq!(parsed(&octets[..cut]), Ok(None));
            }
        }

        #[test]
        fn no_octets_make_the_parser_panic(octets in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = parsed(&octets);
        }
    }
}
