//! `resound-load`: a WebSocket load generator that tells the truth.
//!
//! [`engine`] makes load and records it; [`result`] says what it means and writes it down; [`search`] does both again
//! and again, to find a limit; [`cli`] is the command line. Of `result` the engine knows what it fills (`recorder`,
//! `collector`, `model`), and where the kernel's errors have their cures (`kernel_events`).

#![forbid(unsafe_code)]

pub mod cli;
pub mod engine;
pub mod result;
pub mod search;
