//! The opening handshake (RFC 6455 §4), both sides, without I/O.
