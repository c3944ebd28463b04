//! RFC 6455 and RFC 7692 for both roles, without I/O: octets in, messages and replies out.
//!
//! Nothing here touches a socket, a clock, a log, a thread or a random source. Start at [`Connection`].

mod buffer;
mod close;
mod connection;
mod deflate;
mod error;
mod extension;
pub mod frame;
pub mod handshake;
mod message;
mod utf8;
mod work;

pub use crate::replies::Replies;
pub use close::CloseCode;
pub use connection::{Connection, Limits, Role, State};
pub use deflate::{Codecs, Compressors, DeflateSettings};
pub use error::ProtocolError;
pub use extension::{
    DeflateAnswerError, DeflateOffer, DeflateParams, DeflatePolicy, WINDOW_BITS_MAX, WINDOW_BITS_MIN,
};
pub use frame::{FrameHeader, Opcode};
pub use message::{Handler, Message, Reply};
