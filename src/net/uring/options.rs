//! What a ring is made of, and why there may be none.

use std::io;

use super::buffers::Buffers;

/// What a worker's ring is made of.
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Receive buffers, a power of two up to 32768.
    pub buffer_count: u16,
    /// Octets in each of them.
    pub buffer_bytes: u32,
    /// Completions that fit the ring. The kernel keeps what does not, at the price of ending multishots.
    /// Half as many where locked memory is short, down to 512.
    pub completions: u32,
    /// What is submitted, instead of being sent by a call of its own.
    pub submit: Submit,
}

/// Which sends are submissions. One submission is cheaper than one call, but its octets have to stay where
/// they are until it has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Submit {
    /// None.
    Nothing,
    /// Those of publications, whose octets stay anyway.
    Publications,
    /// Replies of up to 4 KiB too: a receive buffer goes back to the kernel only when its reply is sent. A
    /// longer one is sent while it is in the cache, which is worth more than the call.
    All,
}

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
#[error("io_uring cannot be used: {operation}: {source}{}", hint(source))]
pub struct Unavailable {
    pub(super) operation: &'static str,
    pub(super) source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (a seccomp filter, or kernel.io_uring_disabled, forbids it)",
        Some(libc::ENOSYS) => " (this kernel was built without it)",
        Some(libc::EINVAL) => " (Linux 6.1 is the first that has all it takes)",
        Some(libc::ENOMEM) => " (the limit of locked memory, ulimit -l, is too low)",
        _ => "",
    }
}

/// The memory that `count` receive buffers of `len` octets keep, in octets.
pub fn buffers_kept(count: u16, len: usize) -> usize {
    Buffers::kept(count, len)
}
