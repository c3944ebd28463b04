//! `resound`: a WebSocket echo and broadcast server that other people point their tools at.
//!
//! The map, from the outside in; an arrow means "uses", and nothing points the other way:
//!
//! ```text
//! main -> server -> net            sockets and completions (epoll, io_uring, the simulator)
//!            |
//!            +----> proto -> mask  RFC 6455 without I/O; unmasking with SIMD
//! ```
//!
//! All of them may use [`memory`], which counts what peers can make grow.
//! `net` and `proto` never name each other; `tests/dependency_rules.rs` holds that.
//!
//! # Unsafe code
//! Denied everywhere but in the modules listed here:
//! - [`mask`]: SIMD loads and stores on raw pointers, because the slices overlap by design.
//! - [`net::uring`]: memory that is shared with the kernel, while it owns some of it.

#![deny(unsafe_code)]

pub mod config;
#[allow(unsafe_code)]
pub mod mask;
pub mod memory;
pub mod net;
pub mod proto;
pub mod replies;
pub mod server;
