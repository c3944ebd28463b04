//! Workers, sessions, applications and the hub.

pub mod http;
