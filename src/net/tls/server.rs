//! What all TLS connections of a server share: certificates, tickets, and how they are read again.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use ring::digest;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;

use super::files::{self, Facts, Identity, TlsSetupError, TlsSetupErrorKind};
use super::link::TlsLink;

/// The only protocol that is spoken inside.
pub(super) const ALPN_HTTP11: &[u8] = b"http/1.1";
/// How long a self-signed certificate is valid: the most that Apple's clients accept from a CA of the user's.
const SELF_SIGNED_DAYS: u64 = 825;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a server shows and demands.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// PEM files: a certificate with its chain, and its private key. The client's SNI picks one by the names in the
    /// certificates; the first is for all other clients.
    pub certs: Vec<(PathBuf, PathBuf)>,
    /// PEM file: clients must have a certificate of one of these CAs.
    pub client_ca: Option<PathBuf>,
    /// Makes a certificate at start and keeps it in memory. It stands behind those of `certs`.
    pub self_signed: Option<SelfSigned>,
}

/// A certificate that nobody has signed but itself.
#[derive(Clone, Debug)]
pub struct SelfSigned {
    /// Host names and IP addresses.
    pub names: Vec<String>,
}

/// The TLS of a server's listeners. A clone is the same one: `reload` is for all.
#[derive(Clone)]
pub struct TlsServer {
    shared: Arc<Shared>,
}

struct Shared {
    options: TlsOptions,
    self_signed: Option<Identity>,
    fingerprint: Option<String>,
    /// Locked once for each connection that is accepted, and by `reload`.
    config: Mutex<Arc<ServerConfig>>,
}

/// What was read again. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// How many certificates, the self-signed one included.
    pub certificates: usize,
    /// What is odd about them, but no error: a date.
    pub warnings: Vec<String>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.certificates == 1 { "" } else { "s" };
        write!(f, "new TLS connections get what was read again: {} certificate{plural}", self.certificates)?;
        self.warnings.iter().try_for_each(|warning| write!(f, "; {warning}"))
    }
}

impl TlsServer {
    /// Reads all files, and makes the self-signed certificate. Also returns what is odd but no error, a line each: a
    /// certificate that has expired, or is not valid yet.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be, or there is no certificate at all: one line.
    pub fn new(options: TlsOptions) -> Result<(Self, Vec<String>), TlsSetupError> {
        let self_signed = options.self_signed.as_ref().map(self_signed).transpose()?;
        let fingerprint = self_signed.as_ref().map(|identity| fingerprint(&identity.key));
        let (config, warnings) = config(&options, self_signed.as_ref())?;
        let config = Mutex::new(Arc::new(config));
        let shared = Shared { options, self_signed, fingerprint, config };
        Ok((Self { shared: Arc::new(shared) }, warnings))
    }

    /// Reads the files again, for connections that are accepted from now on. The self-signed certificate stays.
    /// Tickets from before are forgotten: they may stand for a client certificate that is no longer accepted.
    ///
    /// # Errors
    /// As [`new`](Self::new); all stays as it was.
    pub fn reload(&self) -> Result<Reloaded, TlsSetupError> {
        let (config, warnings) = config(&self.shared.options, self.shared.self_signed.as_ref())?;
        *self.shared.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        let certificates = self.shared.options.certs.len() + usize::from(self.shared.self_signed.is_some());
        Ok(Reloaded { certificates, warnings })
    }

    /// The SHA-256 fingerprint of the self-signed certificate: 64 digits in lower-case hex.
    pub fn fingerprint(&self) -> Option<&str> {
        self.shared.fingerprint.as_deref()
    }

    /// TLS for a connection that was just accepted.
    pub fn link(&self) -> TlsLink {
        TlsLink::server(self.shared.config.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

fn config(
    options: &TlsOptions,
    self_signed: Option<&Identity>,
) -> Result<(ServerConfig, Vec<String>), TlsSetupError> {
    let provider = Arc::new(provider::default_provider());
    let mut certificates = Certificates::default();
    let mut warnings = Vec::new();
    for (certificate, key) in &options.certs {
        let identity = files::identity(certificate, key, &provider)?;
        warnings.extend(date_warning(certificate, &identity.facts));
        certificates.add(&identity);
    }
    if let Some(identity) = self_signed {
        certificates.add(identity);
    }
    if certificates.default.is_none() {
        return Err(TlsSetupErrorKind::NothingToShow.into());
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(library)?;
    let builder = match &options.client_ca {
        Some(file) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(files::roots(file)?), provider)
                .build()
                .map_err(|error| TlsSetupErrorKind::BadCertificate(error.to_string()).of(file))?,
        ),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![ALPN_HTTP11.to_vec()];
    // Stateless: what a session needs is in its ticket. One for each connection, since each resumption brings the next.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = provider::Ticketer::new().map_err(library)?;
    config.send_tls13_tickets = 1;
    // The record layer is ours: see `record`.
    config.enable_secret_extraction = true;
    Ok((config, warnings))
}

fn library(error: rustls::Error) -> TlsSetupError {
    TlsSetupErrorKind::Library(error.to_string()).into()
}

fn date_warning(file: &Path, facts: &Facts) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let warning = facts.date_warning(i64::try_from(now).unwrap_or(i64::MAX))?;
    Some(format!("{}: {warning}", file.display()))
}

fn self_signed(wanted: &SelfSigned) -> Result<Identity, TlsSetupError> {
    let failed = |error: rcgen::Error| TlsSetupError::from(TlsSetupErrorKind::Library(error.to_string()));
    if let Some(bad) = wanted.names.iter().find(|name| !is_name(name)) {
        return Err(TlsSetupErrorKind::BadName(bad.clone()).into());
    }
    let mut params = CertificateParams::new(wanted.names.clone()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "resound, self-signed");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Clocks differ: it is valid since yesterday.
    let yesterday = SystemTime::now() - DAY;
    params.not_before = yesterday.into();
    params.not_after = (yesterday + DAY * SELF_SIGNED_DAYS as u32).into();
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let facts = files::facts(certificate.der()).map_err(TlsSetupErrorKind::Library)?;
    let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider: CryptoProvider = provider::default_provider();
    let key = CertifiedKey::from_der(vec![certificate.der().clone()], private, &provider).map_err(library)?;
    Ok(Identity { key: Arc::new(key), facts })
}

/// A host name or an IP address, as a certificate may carry it.
fn is_name(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    rustls::pki_types::ServerName::try_from(host).is_ok()
}

fn fingerprint(key: &CertifiedKey) -> String {
    let digest = digest::digest(&digest::SHA256, &key.cert[0]);
    digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

thread_local! {
    /// What the client of the handshake in progress on this thread asked for. rustls tells it only to the resolver,
    /// while a connection that is not buffered has no way to ask.
    static SERVER_NAME: Cell<Option<Box<str>>> = const { Cell::new(None) };
}

/// The name that the last ClientHello on this thread had.
pub(super) fn take_server_name() -> Option<Box<str>> {
    SERVER_NAME.take()
}

/// Certificates by the names in them.
#[derive(Debug, Default)]
struct Certificates {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// The first one, for clients that ask for none of the names, or for none at all.
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// A name stays with the first certificate that has it.
    fn add(&mut self, identity: &Identity) {
        for name in &identity.facts.names {
            self.by_name.entry(name.clone()).or_insert_with(|| identity.key.clone());
        }
        self.default.get_or_insert_with(|| identity.key.clone());
    }

    /// A `*` stands for one label (RFC 9525 §6.3).
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.by_name.get(&name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        SERVER_NAME.set(hello.server_name().map(Box::from));
        hello.server_name().and_then(|name| self.find(name)).or(self.default.as_ref()).cloned()
    }
}
