//! `resound-load`: a WebSocket load generator that tells the truth.
//!
//! [`engine`] makes load and records it; [`result`] says what it means and writes it down; [`cli`] is the command
//! line over both. The two meet in `result::model` and `result::recorder` alone.

#![forbid(unsafe_code)]

pub mod cli;
pub mod engine;
pub mod result;
pub mod search;
