//! The handshake, which rustls makes: records in, records out, and then the keys.

use std::sync::Arc;

use rustls::client::{ClientConfig, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, CipherSuite, CommonState, HandshakeKind, ProtocolVersion};

use super::error::{TlsError, TlsErrorKind};
use super::established::{Established, Kernel};
use super::server;

/// Octets of records that one message of a handshake may lie in. rustls stops at 2^16 octets of the message; this
/// stops those who cut it into records of one octet. A chain of certificates has a few thousand.
const BUFFER_LEN_MAX: usize = 96 << 10;

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshaken {
    /// The version.
    pub version: TlsVersion,
    /// The cipher by its registered name, for example `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// Whether an earlier session was resumed.
    pub is_resumed: bool,
    /// The name that the client asked for (server role only).
    pub server_name: Option<Box<str>>,
    /// Whether `http/1.1` was agreed on by ALPN; if not, the client did not offer it.
    pub is_http11: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl std::fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}

/// A handshake in progress.
pub(super) struct Handshake {
    side: Side,
    /// Records that rustls has seen and still needs: a message that is not complete.
    buffer: Vec<u8>,
    server_name: Option<Box<str>>,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl Handshake {
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        Ok(Self::new(Side::Server(UnbufferedServerConnection::new(config)?)))
    }

    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsError> {
        Ok(Self::new(Side::Client(UnbufferedClientConnection::new(config, name)?)))
    }

    fn new(side: Side) -> Self {
        Self { side, buffer: Vec::new(), server_name: None }
    }

    pub(super) fn held_octets(&self) -> usize {
        self.buffer.capacity()
    }

    /// Takes one whole record, or none, and appends to `out` what is to be sent. True when the handshake is done.
    ///
    /// One record at a time: rustls must not see those behind the last of the handshake, which are ours.
    pub(super) fn advance(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<bool, TlsError> {
        if self.buffer.len() + record.len() > BUFFER_LEN_MAX {
            return Err(TlsErrorKind::TooLong.into());
        }
        self.buffer.extend_from_slice(record);
        loop {
            let (discard, step) = self.step(out);
            self.buffer.drain(..discard);
            if let Some(name) = server::take_server_name() {
                self.server_name = Some(name);
            }
            match step {
                Step::Again => {}
                Step::Blocked => return Ok(false),
                Step::Established => return Ok(!self.common().is_handshaking()),
                Step::Failed(error) => {
                    let (error, start) = (TlsError::from(error), out.len());
                    self.write_alert(out);
                    if error.kind() == TlsErrorKind::Version {
                        name_the_version(&mut out[start..]);
                    }
                    return Err(error);
                }
                Step::PeerClosed => return Err(TlsErrorKind::EndedInHandshake.into()),
                Step::Unknown => return Err(TlsErrorKind::Internal.into()),
            }
        }
    }

    /// What rustls has queued for a handshake that failed. No step further: it would look at what is left in the
    /// buffer, and refuse that too.
    fn write_alert(&mut self, out: &mut Vec<u8>) {
        while self.common().wants_write() {
            let (discard, step) = self.step(out);
            self.buffer.drain(..discard);
            if !matches!(step, Step::Again) {
                return;
            }
        }
    }

    fn step(&mut self, out: &mut Vec<u8>) -> (usize, Step) {
        match &mut self.side {
            Side::Server(server) => step(server.process_tls_records(&mut self.buffer), out),
            Side::Client(client) => step(client.process_tls_records(&mut self.buffer), out),
        }
    }

    fn common(&self) -> &CommonState {
        match &self.side {
            Side::Server(server) => server,
            Side::Client(client) => client,
        }
    }

    /// Takes the keys out of rustls, and drops all else that it holds.
    pub(super) fn finish(self) -> Result<(Established, Handshaken), TlsError> {
        let common = self.common();
        let suite = common.negotiated_cipher_suite().ok_or(TlsErrorKind::Internal)?;
        let handshaken = Handshaken {
            version: match common.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
                _ => TlsVersion::Tls12,
            },
            cipher: cipher_name(suite.suite()),
            is_resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
            server_name: self.server_name.clone(),
            is_http11: common.alpn_protocol() == Some(server::ALPN_HTTP11),
        };
        // A message that goes on under the next keys is forbidden (RFC 8446 §5.1).
        if !self.buffer.is_empty() {
            return Err(TlsErrorKind::Misbehaved.into());
        }
        let (secrets, kernel) = match self.side {
            Side::Server(server) => {
                let (secrets, kernel) = server.dangerous_into_kernel_connection()?;
                (secrets, Kernel::Server(kernel))
            }
            Side::Client(client) => {
                let (secrets, kernel) = client.dangerous_into_kernel_connection()?;
                (secrets, Kernel::Client(kernel))
            }
        };
        Ok((Established::new(suite, &secrets, kernel)?, handshaken))
    }
}

/// To a client of before TLS 1.2 that has no extension of it, rustls says handshake_failure. Its version is what is
/// wrong, and protocol_version says so (RFC 5246 appendix E.1).
fn name_the_version(alert: &mut [u8]) {
    if let [21, .., reason] = alert
        && *reason == u8::from(AlertDescription::HandshakeFailure)
    {
        *reason = AlertDescription::ProtocolVersion.into();
    }
}

enum Step {
    Again,
    Blocked,
    Established,
    PeerClosed,
    Failed(rustls::Error),
    /// Nothing that the handshake of ours can come to.
    Unknown,
}

/// Does what rustls asks for; how many octets it has no more use for.
fn step<Data>(status: UnbufferedStatus<'_, '_, Data>, out: &mut Vec<u8>) -> (usize, Step) {
    let step = match status.state {
        Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Again
        }
        Ok(ConnectionState::BlockedHandshake) => Step::Blocked,
        Ok(ConnectionState::WriteTraffic(_)) => Step::Established,
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Step::PeerClosed,
        Ok(_) => Step::Unknown,
        Err(error) => Step::Failed(error),
    };
    (status.discard, step)
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Step {
    let start = out.len();
    // It tells its size only by refusing.
    while let Err(error) = data.encode(&mut out[start..]) {
        match error {
            EncodeError::InsufficientSize(needed) if out.len() == start => {
                out.resize(start + needed.required_size, 0);
            }
            _ => return Step::Unknown,
        }
    }
    Step::Again
}

/// By its name in the registry of IANA; rustls has its own for those of TLS 1.3.
fn cipher_name(cipher: CipherSuite) -> &'static str {
    match cipher {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
