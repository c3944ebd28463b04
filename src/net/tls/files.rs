//! Certificates and keys from PEM files, with errors that name the file, the cause and what to do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// Why TLS cannot be set up from its options. Displays as one line.
#[derive(Debug, thiserror::Error)]
#[error("{}{kind}", .file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default())]
pub struct TlsSetupError {
    /// The file at fault, if it is one.
    pub file: Option<PathBuf>,
    /// What is wrong.
    pub kind: TlsSetupErrorKind,
}

/// What can be wrong with the options of TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupErrorKind {
    /// The file is missing, or may not be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// There is no PEM in it.
    #[error(
        "this is not PEM: no line begins with -----BEGIN (openssl x509 -inform der converts a certificate)"
    )]
    NotPem,
    /// There is PEM in it, but broken.
    #[error("broken PEM: {0}")]
    BrokenPem(String),
    /// No certificate in it.
    #[error("no certificate in it")]
    NoCertificate,
    /// No private key in it.
    #[error("no private key in it")]
    NoKey,
    /// A private key behind a password.
    #[error("the private key is encrypted (openssl pkey -in FILE -out FILE decrypts it)")]
    EncryptedKey,
    /// A private key of a kind that is not supported, or that is broken.
    #[error("this private key cannot be used: {0}")]
    BadKey(rustls::Error),
    /// The certificate is broken.
    #[error("this certificate cannot be used: {0}")]
    BadCertificate(String),
    /// The key is another certificate's.
    #[error("this private key does not belong to the certificate in {}", .0.display())]
    KeyMismatch(PathBuf),
    /// Neither a certificate nor self-signed.
    #[error("TLS needs a certificate and its key, or a self-signed one")]
    NothingToShow,
    /// Not a host name or an IP address.
    #[error("{0:?} is neither a host name nor an IP address")]
    BadName(String),
    /// This machine trusts no CA.
    #[error("this machine's list of trusted CAs is empty{0}: name one with --ca FILE")]
    NoRoots(String),
    /// rcgen or rustls failed.
    #[error("{0}")]
    Library(String),
}

impl TlsSetupErrorKind {
    pub(super) fn of(self, file: &Path) -> TlsSetupError {
        TlsSetupError { file: Some(file.to_owned()), kind: self }
    }
}

impl From<TlsSetupErrorKind> for TlsSetupError {
    fn from(kind: TlsSetupErrorKind) -> Self {
        Self { file: None, kind }
    }
}

/// A certificate with its key, ready to be shown.
pub(super) struct Identity {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) facts: Facts,
}

/// What a certificate says about itself.
pub(super) struct Facts {
    /// Host names, lower case, perhaps with `*` for the first label.
    pub(super) names: Vec<String>,
    /// Seconds since 1970 (UTC).
    not_before: i64,
    not_after: i64,
    /// As dates for people.
    validity: [String; 2],
}

impl Facts {
    /// What is wrong with its dates at `now`, in seconds since 1970.
    pub(super) fn date_warning(&self, now: i64) -> Option<String> {
        if now > self.not_after {
            Some(format!("the certificate expired on {}", self.validity[1]))
        } else if now < self.not_before {
            Some(format!("the certificate is not valid before {}", self.validity[0]))
        } else {
            None
        }
    }
}

pub(super) fn identity(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<Identity, TlsSetupError> {
    let chain = certificates(certificate)?;
    let facts = facts(&chain[0]).map_err(|error| TlsSetupErrorKind::BadCertificate(error).of(certificate))?;
    let private = private_key(key)?;
    let certified = CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsSetupErrorKind::KeyMismatch(certificate.to_owned()).of(key)
        }
        error @ rustls::Error::InvalidCertificate(_) => {
            TlsSetupErrorKind::BadCertificate(error.to_string()).of(certificate)
        }
        error => TlsSetupErrorKind::BadKey(error).of(key),
    })?;
    Ok(Identity { key: Arc::new(certified), facts })
}

/// All certificates of a file: at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let text = pem(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsSetupErrorKind::NoCertificate.of(file)),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsSetupErrorKind::BrokenPem(one_line(&error)).of(file)),
    }
}

/// The first private key of a file.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    const ENCRYPTED: [&str; 2] = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED"];
    let text = pem(file)?;
    if ENCRYPTED.iter().any(|sign| memchr::memmem::find(&text, sign.as_bytes()).is_some()) {
        return Err(TlsSetupErrorKind::EncryptedKey.of(file));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsSetupErrorKind::NoKey.of(file),
        error => TlsSetupErrorKind::BrokenPem(one_line(&error)).of(file),
    })
}

/// The CAs in a file.
pub(super) fn roots(file: &Path) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| TlsSetupErrorKind::BadCertificate(error.to_string()).of(file))?;
    }
    Ok(roots)
}

fn pem(file: &Path) -> Result<Vec<u8>, TlsSetupError> {
    let text = fs::read(file).map_err(|error| TlsSetupErrorKind::Unreadable(error).of(file))?;
    if memchr::memmem::find(&text, b"-----BEGIN ").is_none() {
        return Err(TlsSetupErrorKind::NotPem.of(file));
    }
    Ok(text)
}

/// rustls quotes the line at fault, as octets.
fn one_line(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("{} is missing", String::from_utf8_lossy(end_marker).trim())
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("the line {:?} begins nothing", String::from_utf8_lossy(line).trim())
        }
        error => error.to_string(),
    }
}

/// What the certificate says about itself, or what is wrong with it.
pub(super) fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let mut names = Vec::new();
    for extension in parsed.extensions() {
        if let ParsedExtension::SubjectAlternativeName(alternatives) = extension.parsed_extension() {
            names.extend(alternatives.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            }));
        }
    }
    let validity = parsed.validity();
    Ok(Facts {
        names,
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        validity: [validity.not_before.to_string(), validity.not_after.to_string()],
    })
}
