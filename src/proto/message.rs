//! What a [`Connection`](super::Connection) tells its driver, and what the driver answers.

use super::Opcode;

/// One whole message, unmasked, inflated if it was compressed, and valid UTF-8 if it is text.
#[derive(Debug)]
pub struct Message<'a> {
    frame: &'a [u8],
    header_len: usize,
    opcode: Opcode,
}

impl<'a> Message<'a> {
    /// `frame` is the message as one unmasked frame whose header has `header_len` octets.
    #[inline]
    pub(super) fn new(frame: &'a [u8], header_len: usize, opcode: Opcode) -> Self {
        debug_assert!(header_len <= frame.len() && !opcode.is_control());
        Self { frame, header_len, opcode }
    }

    /// [`Opcode::Text`] or [`Opcode::Binary`].
    #[inline]
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The application data.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.frame[self.header_len..]
    }

    /// The whole message as one unmasked, uncompressed frame: what a server sends to pass it on.
    #[inline]
    pub fn frame(&self) -> &[u8] {
        self.frame
    }
}

/// What becomes of a message once its receiver has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It goes back to its sender (server role only).
    Echo,
    /// Nothing goes back.
    Nothing,
}

/// The receiver of messages. One call for each message, in order.
pub trait Handler {
    /// A whole message is there.
    fn message(&mut self, message: Message<'_>) -> Reply;

    /// A Pong arrived, asked for or not.
    fn pong(&mut self, payload: &[u8]) {
        let _ = payload;
    }
}
