//! Two links in memory, files made by rcgen, and rustls's own connections as the oracle.

mod files;
mod handshake;
mod oracle;
mod records;
mod rules;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

/// A folder of certificates that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("resound-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A CA of the test's own.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // With a name of its own: of two with the same, the wrong one has the issuer's name but not its key.
        let name = format!("{:x?}", &key.public_key_raw()[1..9]);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key, as PEM.
    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> [String; 2] {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }
}

/// A server and a client that trusts it.
struct World {
    folder: Folder,
    ca: Ca,
    server: TlsServer,
    client: TlsClientOptions,
}

impl World {
    fn new() -> Self {
        Self::with(|_, _, _| {})
    }

    fn with(change: impl FnOnce(&Folder, &Ca, &mut TlsOptions)) -> Self {
        let (folder, ca) = (Folder::new(), Ca::new());
        let mut options =
            TlsOptions { certs: vec![folder.identity("server", &ca, &["localhost"])], ..Default::default() };
        change(&folder, &ca, &mut options);
        let (server, warnings) = TlsServer::new(options).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let client = client_options(Some(folder.file("ca.pem", &ca.pem)));
        Self { folder, ca, server, client }
    }

    fn client(&self, versions: TlsVersions) -> TlsClient {
        TlsClient::new(&TlsClientOptions { versions, ..self.client.clone() }).unwrap()
    }

    /// After the handshake and all that follows it.
    fn open(&self, versions: TlsVersions) -> Pair {
        let mut pair = Pair::new(&self.server, &self.client(versions));
        pair.shake().unwrap();
        pair
    }
}

impl Folder {
    fn identity(&self, name: &str, ca: &Ca, names: &[&str]) -> (PathBuf, PathBuf) {
        let [certificate, key] = ca.sign(names, |_| {});
        (self.file(&format!("{name}.pem"), &certificate), self.file(&format!("{name}.key"), &key))
    }
}

fn client_options(ca: Option<PathBuf>) -> TlsClientOptions {
    TlsClientOptions {
        server_name: "localhost".to_owned(),
        ca,
        insecure: false,
        client_cert: None,
        versions: TlsVersions::Both,
        resume: true,
    }
}

const VERSIONS: [TlsVersions; 2] = [TlsVersions::Tls12, TlsVersions::Tls13];

/// What a link made of what it received.
#[derive(Debug, Default)]
struct Heard {
    plaintext: Vec<u8>,
    handshaken: Option<Handshaken>,
    is_closed: bool,
    error: Option<TlsErrorKind>,
    /// The error in words, for who reads that a test has failed.
    words: String,
    /// Ranges of plaintext, kept ones included.
    ranges: usize,
}

impl Heard {
    /// One receive.
    fn hear(&mut self, link: &mut TlsLink, octets: &[u8], out: &mut Vec<u8>) {
        let mut octets = octets.to_vec();
        let mut at = 0;
        loop {
            match link.open(&mut octets, &mut at, out) {
                Ok(Opened::Plaintext { plaintext, room }) => {
                    assert!(
                        !plaintext.is_empty() && room.start <= plaintext.start && plaintext.end <= room.end
                    );
                    assert!(room.end <= at);
                    self.plaintext.extend_from_slice(&octets[plaintext]);
                    // It is the driver's, and nothing that comes later lies there.
                    octets[room].fill(0xaa);
                    self.ranges += 1;
                }
                Ok(Opened::Kept { octets, plaintext }) => {
                    self.plaintext.extend_from_slice(&octets[plaintext]);
                    self.ranges += 1;
                }
                Ok(Opened::Handshaken(handshaken)) => {
                    assert!(self.handshaken.replace(handshaken).is_none(), "told twice");
                }
                Ok(Opened::PeerClosed) => {
                    assert!(!std::mem::replace(&mut self.is_closed, true), "told twice");
                }
                Ok(Opened::Drained) => break,
                Err(error) => {
                    self.words = error.to_string();
                    assert_eq!(self.error.replace(error.kind()), None, "told twice");
                }
            }
        }
        assert_eq!(at, octets.len(), "something was left");
    }
}

/// Both ends of a connection, and what is on its way.
struct Pair {
    server: TlsLink,
    client: TlsLink,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    at_server: Heard,
    at_client: Heard,
}

impl Pair {
    fn new(server: &TlsServer, client: &TlsClient) -> Self {
        let mut to_server = Vec::new();
        let client = client.link(&mut to_server).unwrap();
        Self {
            server: server.link(),
            client,
            to_server,
            to_client: Vec::new(),
            at_server: Heard::default(),
            at_client: Heard::default(),
        }
    }

    /// Carries everything to its end until there is nothing more, `cut` octets a receive.
    fn carry(&mut self, cut: usize) {
        while !self.to_server.is_empty() || !self.to_client.is_empty() {
            for part in std::mem::take(&mut self.to_server).chunks(cut) {
                self.at_server.hear(&mut self.server, part, &mut self.to_client);
            }
            for part in std::mem::take(&mut self.to_client).chunks(cut) {
                self.at_client.hear(&mut self.client, part, &mut self.to_server);
            }
        }
    }

    /// The handshake; what each end learned, or how it failed.
    fn shake(&mut self) -> Result<[Handshaken; 2], [Option<TlsErrorKind>; 2]> {
        self.carry(usize::MAX);
        match (&self.at_server.handshaken, &self.at_client.handshaken) {
            (Some(server), Some(client))
                if self.at_server.error.is_none() && self.at_client.error.is_none() =>
            {
                assert!(!self.server.is_handshaking() && !self.client.is_handshaking());
                Ok([server.clone(), client.clone()])
            }
            _ => Err([self.at_server.error, self.at_client.error]),
        }
    }
}

/// Octets that look like nothing in particular, and differ from their neighbours.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Ranges of whole records.
fn records(octets: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < octets.len() {
        let len = record::record_len(&octets[at..]).unwrap().unwrap();
        found.push(at..at + len);
        at += len;
    }
    found
}
