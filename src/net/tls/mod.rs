//! TLS without I/O: [`TlsServer`] and [`TlsClient`] hold what all connections share, [`TlsLink`] is one
//! connection's.
//!
//! rustls makes the handshake, with its checks, tickets and alerts. Then it hands over the keys
//! (`rustls::kernel`, which it has for kTLS), and records are opened where they were received and sealed where they
//! are sent from, with the same cipher: rustls's own record layer would copy every octet once in and twice
//! out, into an allocation each time. `benches/tls` has the numbers.
//!
//! Start at [`TlsLink::open`]. Nothing here knows what the plaintext means, beyond telling HTTP from TLS.

mod client;
mod error;
mod established;
mod files;
mod handshake;
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
