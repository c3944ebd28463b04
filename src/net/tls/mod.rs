//! TLS without I/O: [`TlsServer`] and [`TlsClient`] hold what all connections share, [`TlsLink`] is one
//! connection's.
//!
//! rustls makes the handshake, with its checks, tickets and alerts. Then it hands over the keys
//! (`rustls::kernel`, which it has for kTLS), and records are opened where they were received and sealed where they
//! are sent from, with the same cipher: rustls's own record layer would copy every octet once in and twice
//! out, into an allocation each time, and an echo of 16 KiB would take 1.4 times (of 20 octets, 1.5 times) as long.
//!
//! The crypto is ring's. Measured by `benches/tls` on an EPYC without AVX-512, AES-GCM of aws-lc-rs takes 1.4 times as
//! long for 20 octets, 1.7 for 1 KiB and 1.9 for 16 KiB, ChaCha20 the same; its handshakes take 0.94 (TLS 1.3) and
//! 0.81 (TLS 1.2) of ring's time. A connection has one handshake and many records. ring also builds with a C
//! compiler in seconds, where aws-lc-rs takes minutes.
//!
//! Start at [`TlsLink::open`]. Nothing here knows what the plaintext means, beyond telling HTTP from TLS.

mod client;
mod error;
mod established;
mod files;
mod handshake;
mod layout;
mod link;
mod record;
mod server;
#[cfg(test)]
mod tests;

pub use client::{TlsClient, TlsClientOptions, TlsVersions};
pub use error::{TlsError, TlsErrorKind};
pub use files::{TlsSetupError, TlsSetupErrorKind};
pub use handshake::{Handshaken, TlsVersion};
pub use link::{Opened, TlsLink};
pub use record::PLAINTEXT_LEN_MAX;
pub use server::{Reloaded, SelfSigned, TlsOptions, TlsServer};
