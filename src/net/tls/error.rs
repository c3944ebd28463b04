//! Why a TLS connection ended, as data: what is counted, logged and explained starts here.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error as Rustls, PeerIncompatible};

/// Why a TLS connection cannot go on. The alert that tells the peer, if there is one to tell, has been
/// written where the call that failed writes what is to be sent.
#[derive(Debug, thiserror::Error)]
#[error("{kind}{}", .source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default())]
pub struct TlsError {
    kind: TlsErrorKind,
    source: Option<Box<Rustls>>,
}

/// The causes that somebody treats differently: by a counter, a reply or a line of advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsErrorKind {
    /// The peer began with HTTP in plain text. A server can answer in plain text: nothing was sent yet, and no
    /// alert is written.
    PlainHttp,
    /// The peer does not speak TLS.
    NotTls,
    /// No version of TLS that both ends speak.
    Version,
    /// No cipher, group or signature that both ends have.
    NothingInCommon,
    /// The peer's certificate comes from nobody we trust.
    UnknownIssuer,
    /// The server's certificate is for other names.
    NameMismatch,
    /// The peer's certificate has expired.
    Expired,
    /// The peer's certificate is not valid yet.
    NotYetValid,
    /// The peer's certificate is refused for another reason.
    BadCertificate,
    /// A client certificate is required, and the client sent none.
    CertificateRequired,
    /// The peer refuses our certificate.
    CertificateRefused,
    /// The connection ended before its handshake was done.
    EndedInHandshake,
    /// The connection ended without close_notify: what came last may have been cut off (RFC 8446 §6.1).
    Truncated,
    /// A record or a message in records is longer than allowed.
    TooLong,
    /// A record was changed on its way, or sealed with other keys.
    BadRecord,
    /// The peer ended the connection with an alert that is none of the above.
    Alert(u8),
    /// The peer broke the protocol in another way.
    Misbehaved,
    /// All the records that one key may seal have been sent (TLS 1.2 has no new keys).
    KeysExhausted,
    /// Something was asked of a link that is not open: not yet, or no longer.
    NotOpen,
    /// rustls refused its own configuration or lost its randomness.
    Internal,
}

impl TlsError {
    /// The cause.
    pub fn kind(&self) -> TlsErrorKind {
        self.kind
    }

    /// What rustls says about it, if it was rustls who found it.
    pub fn details(&self) -> Option<&Rustls> {
        self.source.as_deref()
    }
}

impl TlsErrorKind {
    /// What a client's user can do about it, in one line, if anything.
    pub fn cure(self) -> Option<&'static str> {
        Some(match self {
            Self::PlainHttp => {
                "the server speaks plain HTTP on this port: use ws:// or http://, or its TLS port"
            }
            Self::NotTls => "the server does not speak TLS on this port: check the port, or use ws://",
            Self::Version => "the server speaks another version of TLS: try without --tls",
            Self::NothingInCommon => {
                "the server accepts none of our ciphers, groups or versions: it needs TLS 1.2 or 1.3 with AES-GCM or ChaCha20"
            }
            Self::UnknownIssuer => {
                "the certificate is from an unknown issuer: name its CA, or the certificate itself, with --ca FILE (or --insecure to trust anything)"
            }
            Self::NameMismatch => {
                "the certificate is for another name: connect by that name, or give it with --server-name NAME"
            }
            Self::Expired => "the certificate has expired: renew it, or check this machine's clock",
            Self::NotYetValid => "the certificate is not valid yet: check the clocks of both machines",
            Self::CertificateRequired => {
                "the server requires a client certificate: give one with --client-cert FILE --client-key FILE"
            }
            Self::CertificateRefused => {
                "the server refuses our certificate: is it from the CA that the server trusts?"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for TlsErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PlainHttp => "the peer speaks plain HTTP",
            Self::NotTls => "the peer does not speak TLS",
            Self::Version => "no version of TLS in common",
            Self::NothingInCommon => "no cipher, group or signature in common",
            Self::UnknownIssuer => "the certificate's issuer is unknown",
            Self::NameMismatch => "the certificate is for other names",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet",
            Self::BadCertificate => "the certificate is not acceptable",
            Self::CertificateRequired => "a client certificate is required",
            Self::CertificateRefused => "the peer refuses our certificate",
            Self::EndedInHandshake => "the connection ended in the TLS handshake",
            Self::Truncated => "the connection ended without close_notify",
            Self::TooLong => "a TLS record or message is too long",
            Self::BadRecord => "a TLS record cannot be decrypted",
            Self::Alert(alert) => {
                return write!(f, "the peer sent the alert {:?}", AlertDescription::from(*alert));
            }
            Self::Misbehaved => "the peer broke the TLS protocol",
            Self::KeysExhausted => "the keys of this TLS 1.2 connection are used up",
            Self::NotOpen => "the TLS connection is not open",
            Self::Internal => "TLS failed on our side",
        })
    }
}

impl From<TlsErrorKind> for TlsError {
    fn from(kind: TlsErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl From<Rustls> for TlsError {
    fn from(error: Rustls) -> Self {
        Self { kind: kind(&error), source: Some(Box::new(error)) }
    }
}

fn kind(error: &Rustls) -> TlsErrorKind {
    match error {
        Rustls::InvalidCertificate(error) => certificate_kind(error),
        Rustls::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // Came with TLS 1.2, which is how rustls notices those who have only what was before.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => TlsErrorKind::Version,
        // What rustls has only words for is, of what a peer can do, that our key cannot make its signatures.
        Rustls::PeerIncompatible(_) | Rustls::NoApplicationProtocol | Rustls::General(_) => {
            TlsErrorKind::NothingInCommon
        }
        Rustls::NoCertificatesPresented => TlsErrorKind::CertificateRequired,
        Rustls::AlertReceived(alert) => alert_kind(*alert),
        Rustls::PeerSentOversizedRecord => TlsErrorKind::TooLong,
        Rustls::InvalidMessage(
            rustls::InvalidMessage::HandshakePayloadTooLarge | rustls::InvalidMessage::MessageTooLarge,
        ) => TlsErrorKind::TooLong,
        Rustls::DecryptError => TlsErrorKind::BadRecord,
        Rustls::InappropriateMessage { .. }
        | Rustls::InappropriateHandshakeMessage { .. }
        | Rustls::InvalidMessage(_)
        | Rustls::PeerMisbehaved(_) => TlsErrorKind::Misbehaved,
        _ => TlsErrorKind::Internal,
    }
}

fn certificate_kind(error: &CertificateError) -> TlsErrorKind {
    match error {
        CertificateError::UnknownIssuer => TlsErrorKind::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            TlsErrorKind::NameMismatch
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsErrorKind::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsErrorKind::NotYetValid
        }
        _ => TlsErrorKind::BadCertificate,
    }
}

/// What the peer's alert says about us.
pub(super) fn alert_kind(alert: AlertDescription) -> TlsErrorKind {
    match alert {
        AlertDescription::ProtocolVersion => TlsErrorKind::Version,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            TlsErrorKind::NothingInCommon
        }
        AlertDescription::CertificateRequired => TlsErrorKind::CertificateRequired,
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => TlsErrorKind::CertificateRefused,
        other => TlsErrorKind::Alert(other.into()),
    }
}
