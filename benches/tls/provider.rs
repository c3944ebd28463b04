//! ring against aws-lc-rs (with `--features bench-providers`): sealing and opening records, and whole handshakes.

use std::hint::black_box;
use std::sync::Arc;

use rcgen::generate_simple_self_signed;
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerConfig, ServerConnection};
use rustls::{HandshakeKind, RootCertStore, SupportedProtocolVersion, version};

use super::{Row, Work};

/// Plaintext of a record, in octets.
const LENS: [usize; 3] = [20, 1 << 10, 16 << 10];

/// Both crates have the same interface, and no trait for it.
macro_rules! seal_and_open {
    ($library:ident, $algorithm:ident, $len:expr) => {{
        use $library::aead::{Aad, LessSafeKey, Nonce, UnboundKey, $algorithm};
        let key = LessSafeKey::new(UnboundKey::new(&$algorithm, &[7; 32][..$algorithm.key_len()]).unwrap());
        let mut octets = vec![1; $len + $algorithm.tag_len()];
        let mut sequence = 0_u64;
        Box::new(move || {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&sequence.to_be_bytes());
            sequence += 1;
            let nonce = || Nonce::assume_unique_for_key(nonce);
            let tag =
                key.seal_in_place_separate_tag(nonce(), Aad::from([23, 3, 3, 0, 0]), &mut octets[..$len]);
            octets[$len..].copy_from_slice(tag.unwrap().as_ref());
            black_box(key.open_in_place(nonce(), Aad::from([23, 3, 3, 0, 0]), &mut octets).unwrap());
        }) as Work
    }};
}

/// One record sealed in place, and opened again.
pub(crate) fn aeads() -> Vec<Row> {
    macro_rules! row {
        ($algorithm:ident, $len:expr) => {
            Row {
                name: format!("seal and open/{}/{}", stringify!($algorithm), $len),
                candidates: vec![
                    ("ring", seal_and_open!(ring, $algorithm, $len)),
                    #[cfg(feature = "bench-providers")]
                    ("aws-lc-rs", seal_and_open!(aws_lc_rs, $algorithm, $len)),
                ],
            }
        };
    }
    LENS.iter()
        .flat_map(|&len| [row!(AES_128_GCM, len), row!(AES_256_GCM, len), row!(CHACHA20_POLY1305, len)])
        .collect()
}

/// Both sides of a handshake, with a P-256 certificate.
pub(crate) fn handshakes() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, version) in [("TLS 1.3", &version::TLS13), ("TLS 1.2", &version::TLS12)] {
        for resumed in [false, true] {
            rows.push(Row {
                name: format!("handshake/{name}/{}", if resumed { "resumed" } else { "full" }),
                candidates: vec![
                    ("ring", {
                        use rustls::crypto::ring::{Ticketer, default_provider};
                        handshake(default_provider(), Ticketer::new().unwrap(), version, resumed)
                    }),
                    #[cfg(feature = "bench-providers")]
                    ("aws-lc-rs", {
                        use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
                        handshake(default_provider(), Ticketer::new().unwrap(), version, resumed)
                    }),
                ],
            });
        }
    }
    rows
}

fn handshake(
    provider: CryptoProvider,
    ticketer: Arc<dyn ProducesTickets>,
    version: &'static SupportedProtocolVersion,
    resumed: bool,
) -> Work {
    let provider = Arc::new(provider);
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = ticketer;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resumed {
        client.resumption = Resumption::disabled();
    }
    let (server, client) = (Arc::new(server), Arc::new(client));
    shake(&server, &client);
    let expected = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
    Box::new(move || assert_eq!(shake(&server, &client), expected))
}

/// Until the client has the tickets too, as in life.
fn shake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> HandshakeKind {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut octets = Vec::new();
    while client.wants_write() || server.wants_write() {
        octets.clear();
        while client.wants_write() {
            client.write_tls(&mut octets).unwrap();
        }
        let mut unread = &octets[..];
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server.process_new_packets().unwrap();
        }
        octets.clear();
        while server.wants_write() {
            server.write_tls(&mut octets).unwrap();
        }
        let mut unread = &octets[..];
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(!server.is_handshaking());
    client.handshake_kind().unwrap()
}
