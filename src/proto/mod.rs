//! RFC 6455 for both roles, without I/O: octets in, events and octets out.
//!
//! Nothing here touches a socket, a clock, a log, a thread or a random source.

mod close;
mod error;
pub mod frame;
pub mod handshake;
mod message;
mod utf8;

pub use close::CloseCode;
pub use error::ProtocolError;
pub use frame::{FrameHeader, Opcode};
pub use message::{Handler, Message, Reply};
