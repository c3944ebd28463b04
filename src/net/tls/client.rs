//! What all TLS connections of a client share: whom it trusts, what it shows, and the tickets it has got.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption,
    Tls13ClientSessionValue,
};
use rustls::crypto::{self, CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CipherSuite, DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    version,
};

use super::error::TlsError;
use super::files::{self, TlsSetupError, TlsSetupErrorKind};
use super::link::TlsLink;
use super::server::ALPN_HTTP11;

/// Tickets of TLS 1.3 that are kept for later connections. Each serves once and brings the next, so this is how many
/// connections can resume at the same time; a ticket with its session has about 2 KiB.
const TICKETS_MAX: usize = 1 << 14;

/// How a client connects.
#[derive(Clone, Debug)]
pub struct TlsClientOptions {
    /// The name or IP address that the server's certificate must have; a name goes into SNI.
    pub server_name: String,
    /// PEM file: trusts these CAs, or certificates, instead of this machine's list.
    pub ca: Option<PathBuf>,
    /// Trusts whatever the server shows.
    pub insecure: bool,
    /// PEM files of the certificate that the client shows, and its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// The versions it offers.
    pub versions: TlsVersions,
    /// Whether connections resume earlier sessions.
    pub resume: bool,
}

/// The versions that a client offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// TLS 1.3, or 1.2 if the server has nothing newer.
    #[default]
    Both,
    /// TLS 1.2 only.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

const ONLY_TLS12: &[&SupportedProtocolVersion] = &[&version::TLS12];
const ONLY_TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// The TLS of a client's connections. A clone is the same one, and has the same tickets.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Reads all files.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be, the name is none, or nobody is trusted: one line.
    pub fn new(options: &TlsClientOptions) -> Result<Self, TlsSetupError> {
        let name = ServerName::try_from(options.server_name.clone())
            .map_err(|_| TlsSetupErrorKind::BadName(options.server_name.clone()))?;
        let provider = Arc::new(client_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(options.versions.supported())
            .map_err(library)?;
        let builder = if options.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider.clone())))
        } else {
            builder.with_root_certificates(roots(options)?)
        };
        let mut config = match &options.client_cert {
            Some((certificate, key)) => {
                let identity = files::identity(certificate, key, &provider)?;
                builder
                    .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity.key)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_HTTP11.to_vec()];
        config.resumption = if options.resume {
            Resumption::store(Arc::new(Tickets::default()))
                .tls12_resumption(Tls12Resumption::SessionIdOrTickets)
        } else {
            Resumption::disabled()
        };
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config), name })
    }

    /// TLS for a new connection. Its first octets are appended to `out`.
    ///
    /// # Errors
    /// rustls has no randomness.
    pub fn link(&self, out: &mut Vec<u8>) -> Result<TlsLink, TlsError> {
        TlsLink::client(self.config.clone(), self.name.clone(), out)
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TlsVersions {
    fn supported(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Both => rustls::ALL_VERSIONS,
            Self::Tls12 => ONLY_TLS12,
            Self::Tls13 => ONLY_TLS13,
        }
    }
}

/// With AES-128 before AES-256, as browsers have it; the server follows its client.
fn client_provider() -> CryptoProvider {
    let mut provider = provider::default_provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 1,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 2,
        _ => 3,
    });
    provider
}

fn roots(options: &TlsClientOptions) -> Result<RootCertStore, TlsSetupError> {
    if let Some(file) = &options.ca {
        return files::roots(file);
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // One that is odd is no reason not to trust the others.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(TlsSetupErrorKind::NoRoots(why).into());
    }
    Ok(roots)
}

fn library(error: rustls::Error) -> TlsSetupError {
    TlsSetupErrorKind::Library(error.to_string()).into()
}

/// `--insecure`: any certificate is good. That the server has its key is still verified.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Sessions of the one server that a [`TlsClient`] knows. rustls's own store keeps eight tickets, which is far fewer
/// than the connections that a load generator opens at once.
#[derive(Default)]
struct Tickets {
    state: Mutex<TicketsState>,
}

#[derive(Default)]
struct TicketsState {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    /// The newest last.
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl Tickets {
    fn state(&self) -> MutexGuard<'_, TicketsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("tls13", &self.state().tls13.len()).finish_non_exhaustive()
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.state().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.state().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.state().tls12 = Some(session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.state().tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.state().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut state = self.state();
        if state.tls13.len() == TICKETS_MAX {
            state.tls13.pop_front();
        }
        state.tls13.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.state().tls13.pop_back()
    }
}
