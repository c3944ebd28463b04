//! UTF-8 validation of text that arrives in pieces (RFC 6455 §8.1), failing at the first octet that no
//! continuation could mend.

use super::ProtocolError;

/// The validator's state between two pieces: an incomplete sequence, valid so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Utf8 {
    octets: [u8; 3],
    /// How many of `octets` are in use.
    len: u8,
}

impl Utf8 {
    /// Validates the next piece. `is_ascii` is what unmasking found out on its way.
    #[inline]
    pub(super) fn push(&mut self, piece: &[u8], is_ascii: bool) -> Result<(), ProtocolError> {
        if is_ascii {
            // An ASCII octet completes nothing: after an incomplete sequence it is an error.
            return if self.len == 0 || piece.is_empty() { Ok(()) } else { Err(ProtocolError::InvalidUtf8) };
        }
        self.push_any(piece)
    }

    fn push_any(&mut self, mut piece: &[u8]) -> Result<(), ProtocolError> {
        while self.len > 0 {
            let [next, rest @ ..] = piece else { return Ok(()) };
            piece = rest;
            let len = usize::from(self.len);
            let mut sequence = [0; 4];
            sequence[..len].copy_from_slice(&self.octets[..len]);
            sequence[len] = *next;
            match std::str::from_utf8(&sequence[..=len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_none() => {
                    self.octets[len] = *next;
                    self.len += 1;
                }
                Err(_) => return Err(ProtocolError::InvalidUtf8),
            }
        }
        match simdutf8::compat::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                let incomplete = &piece[error.valid_up_to()..];
                self.octets[..incomplete.len()].copy_from_slice(incomplete);
                self.len = incomplete.len() as u8;
                Ok(())
            }
            Err(_) => Err(ProtocolError::InvalidUtf8),
        }
    }

    /// Ends the message: an incomplete sequence is an error. Leaves the state of a new message.
    #[inline]
    pub(super) fn finish(&mut self) -> Result<(), ProtocolError> {
        match std::mem::take(self).len {
            0 => Ok(()),
            _ => Err(ProtocolError::InvalidUtf8),
        }
    }
}

/// Validates a whole text message.
#[inline]
pub(super) fn validate(text: &[u8], is_ascii: bool) -> Result<(), ProtocolError> {
    if is_ascii || simdutf8::basic::from_utf8(text).is_ok() {
        Ok(())
    } else {
        Err(ProtocolError::InvalidUtf8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pushes `pieces` one by one: how many octets were accepted before the error, if there was one.
    fn accepted<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), usize> {
        let (mut utf8, mut count) = (Utf8::default(), 0);
        for piece in pieces {
            utf8.push(piece, piece.is_ascii()).map_err(|_| count)?;
            count += piece.len();
        }
        utf8.finish().map_err(|_| count)
    }

    #[test]
    fn invalid_text_fails_at_the_first_octet_that_cannot_be_mended() {
        // κόσμε, then U+110000: the second octet of the last sequence decides (Autobahn 6.4.3).
        let text = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80";
        assert_eq!(accepted(text.chunks(1)), Err(12));
        // Surrogates, overlong forms, octets that never occur.
        assert_eq!(accepted(b"\xed\xa0\x80".chunks(1)), Err(1));
        assert_eq!(accepted(b"\xc0\xaf".chunks(1)), Err(0));
        assert_eq!(accepted(b"\xf5".chunks(1)), Err(0));
        assert_eq!(accepted(b"\xe0\x80\xaf".chunks(1)), Err(1));
    }

    #[test]
    fn an_incomplete_sequence_at_the_end_is_an_error() {
        for text in [&b"\xce"[..], b"ab\xe1\xbd", b"\xf0\x9f\x98"] {
            assert_eq!(accepted([text].into_iter()), Err(text.len()));
        }
    }

    #[test]
    fn an_empty_piece_inside_a_sequence_changes_nothing() {
        assert_eq!(accepted([&b"\xce"[..], b"", b"\xba"].into_iter()), Ok(()));
    }

    proptest! {
        #[test]
        fn cutting_the_text_anywhere_changes_nothing(
            text in prop_oneof![
                any::<String>().prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..40),
                prop::collection::vec(prop::sample::select(vec![0x41, 0x80, 0xBF, 0xC3, 0xE0, 0xED, 0xF0, 0xF4, 0x90]), 0..40),
            ],
            size in 1usize..9,
        ) {
            let whole = std::str::from_utf8(&text);
            prop_assert_eq!(accepted(text.chunks(size)).is_ok(), whole.is_ok());
            prop_assert_eq!(validate(&text, text.is_ascii()).is_ok(), whole.is_ok());
            if let Err(error) = whole && let Some(_) = error.error_len() {
                // One octet at a time: it fails exactly where the standard library says the text goes wrong.
                let failed_at = accepted(text.chunks(1)).unwrap_err();
                prop_assert!(failed_at >= error.valid_up_to() && failed_at < error.valid_up_to() + 4);
            }
        }
    }
}
