//! Status codes and the payload of a Close frame (RFC 6455 §5.5.1, §7.4).

use super::ProtocolError;

/// A status code that may stand in a Close frame (RFC 6455 §7.4, and the IANA registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose was fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server goes down, or the browser leaves the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1007: data not consistent with the message's type.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: a policy of ours was violated.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message too big to process.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1013: overloaded, try again later (IANA registry).
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// The code with this number, if it is one that an endpoint may send: 1000 to 1003, 1007 to 1014 and
    /// 3000 to 4999. Not the ones reserved for local use (1004 to 1006, 1015) or never defined.
    pub const fn from_wire(number: u16) -> Option<Self> {
        match number {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(number)),
            _ => None,
        }
    }

    /// Its number.
    pub const fn to_wire(self) -> u16 {
        self.0
    }
}

/// Reads an unmasked Close payload: nothing, or a status code and a reason in UTF-8.
pub(super) fn parse(payload: &[u8]) -> Result<Option<CloseCode>, ProtocolError> {
    match payload {
        [] => Ok(None),
        [_] => Err(ProtocolError::ClosePayload),
        [high, low, reason @ ..] => {
            let code =
                CloseCode::from_wire(u16::from_be_bytes([*high, *low])).ok_or(ProtocolError::CloseCode)?;
            std::str::from_utf8(reason).map_err(|_| ProtocolError::InvalidUtf8)?;
            Ok(Some(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_may_be_sent_are_accepted() {
        for valid in
            [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
        {
            assert_eq!(CloseCode::from_wire(valid).map(CloseCode::to_wire), Some(valid));
        }
        for invalid in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(CloseCode::from_wire(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn a_close_payload_is_empty_or_a_code_and_a_utf8_reason() {
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"\x03\xe8"), Ok(Some(CloseCode::NORMAL)));
        assert_eq!(parse(b"\x03\xe8bye"), Ok(Some(CloseCode::NORMAL)));
        assert_eq!(parse(b"\x03"), Err(ProtocolError::ClosePayload));
        assert_eq!(parse(b"\x03\xec"), Err(ProtocolError::CloseCode));
        assert_eq!(parse(b"\x03\xe8\xce"), Err(ProtocolError::InvalidUtf8));
    }
}
