//! What a peer can do wrong, as values.

use super::CloseCode;

/// A violation of RFC 6455 or RFC 7692 by the peer, or a limit of ours that it reached.
///
/// The [`Connection`](super::Connection) that found it has already written the Close frame for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ProtocolError {
    #[error("a reserved bit is set without an extension that defines it (§5.2)")]
    ReservedBit,
    #[error("the opcode is a reserved one (§5.2)")]
    ReservedOpcode,
    #[error("the payload length is not in its shortest form, or has its top bit set (§5.2)")]
    PayloadLength,
    #[error("a frame from a client is not masked (§5.1)")]
    NotMasked,
    #[error("a frame from a server is masked (§5.1)")]
    Masked,
    #[error("a control frame is fragmented or longer than 125 octets (§5.5)")]
    ControlFrame,
    #[error("a continuation frame continues nothing (§5.4)")]
    UnexpectedContinuation,
    #[error("a new message starts inside a fragmented one (§5.4)")]
    ExpectedContinuation,
    #[error("a text message or a close reason is not UTF-8 (§8.1)")]
    InvalidUtf8,
    #[error("a Close frame has a payload of one octet (§5.5.1)")]
    ClosePayload,
    #[error("a Close frame has a status code that must not be sent (§7.4)")]
    CloseCode,
    #[error("a compressed message cannot be inflated (RFC 7692 §7.2.2)")]
    Compression,
    #[error("a message is longer than message_size_max")]
    MessageTooBig,
    #[error("a message has more fragments than fragments_max")]
    TooManyFragments,
    #[error("a compressed message inflates to more than deflate_ratio_max times its length")]
    InflationRatio,
    #[error("there is no memory left for a message")]
    NoMemory,
}

impl ProtocolError {
    /// The status code to close with (RFC 6455 §7.4.1).
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::InvalidUtf8 | Self::Compression => CloseCode::INVALID_PAYLOAD,
            // Not 1007: a message that inflates so much is valid. It is too big for what it was announced as.
            Self::MessageTooBig | Self::InflationRatio => CloseCode::MESSAGE_TOO_BIG,
            Self::TooManyFragments => CloseCode::POLICY_VIOLATION,
            Self::NoMemory => CloseCode::TRY_AGAIN_LATER,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }
}
