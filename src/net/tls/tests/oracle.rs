//! Our record layer against rustls's own, in both roles and with every cipher.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::{ClientConfig, ClientConnection};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ServerConfig, ServerConnection};
use rustls::{Connection, SupportedCipherSuite};

use super::*;

/// rustls's buffered connection, and what is on the wire.
struct Oracle {
    connection: Connection,
    heard: Vec<u8>,
}

impl Oracle {
    /// Gives it octets, and takes what it has to say to them.
    fn turn(&mut self, octets: &[u8]) -> Vec<u8> {
        let mut rest = octets;
        while !rest.is_empty() {
            self.connection.read_tls(&mut rest).unwrap();
            self.connection.process_new_packets().unwrap();
            let mut chunk = [0; 1 << 14];
            while let Ok(len @ 1..) = self.connection.reader().read(&mut chunk) {
                self.heard.extend_from_slice(&chunk[..len]);
            }
        }
        let mut out = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut out).unwrap();
        }
        out
    }

    fn say(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // It takes as much as its buffer holds.
        for part in plaintext.chunks(30_000) {
            self.connection.writer().write_all(part).unwrap();
            out.extend(self.turn(&[]));
        }
        out
    }
}

fn suites() -> Vec<SupportedCipherSuite> {
    ring::default_provider().cipher_suites
}

fn oracle_client(world: &World, suite: SupportedCipherSuite) -> Oracle {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![suite];
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(super::super::files::roots(world.client.ca.as_ref().unwrap()).unwrap())
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap().into();
    Oracle { connection, heard: Vec::new() }
}

fn oracle_server(world: &World, suite: SupportedCipherSuite) -> Oracle {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![suite];
    let folder = &world.folder.0;
    let mut config = ServerConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            super::super::files::certificates(&folder.join("server.pem")).unwrap(),
            super::super::files::private_key(&folder.join("server.key")).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connection = ServerConnection::new(Arc::new(config)).unwrap().into();
    Oracle { connection, heard: Vec::new() }
}

/// Everything both ways, until neither has more to say.
fn exchange(link: &mut TlsLink, oracle: &mut Oracle, heard: &mut Heard, mut to_link: Vec<u8>) {
    let mut to_oracle = Vec::new();
    while !to_link.is_empty() {
        heard.hear(link, &to_link, &mut to_oracle);
        to_link = oracle.turn(&std::mem::take(&mut to_oracle));
    }
}

/// After the handshake: data, new keys where there are any, and closing, both ways.
fn converse(mut link: TlsLink, mut oracle: Oracle, mut heard: Heard, is_tls13: bool) {
    assert!(heard.handshaken.is_some() && !oracle.connection.is_handshaking());
    let mut expected = Vec::new();
    for (round, len) in [1, 20, 0, PLAINTEXT_LEN_MAX, PLAINTEXT_LEN_MAX + 1, 50_000].into_iter().enumerate() {
        let message = noise(len);
        let to_link = oracle.say(&message);
        exchange(&mut link, &mut oracle, &mut heard, to_link);
        let mut to_oracle = Vec::new();
        link.seal(&[&message[..]], &mut to_oracle).unwrap();
        let to_link = oracle.turn(&to_oracle);
        exchange(&mut link, &mut oracle, &mut heard, to_link);
        expected.extend(message);
        assert!(heard.plaintext == expected && oracle.heard == expected);
        if is_tls13 && round == 3 {
            oracle.connection.refresh_traffic_keys().unwrap();
        }
        if is_tls13 && round == 4 {
            link.inner().set_records_max(1);
        }
    }
    let mut out = Vec::new();
    link.close(&mut out);
    let state = {
        oracle.connection.read_tls(&mut &out[..]).unwrap();
        oracle.connection.process_new_packets().unwrap()
    };
    assert!(state.peer_has_closed());
    oracle.connection.send_close_notify();
    heard.hear(&mut link, &oracle.turn(&[]), &mut out);
    assert!(heard.is_closed && heard.error.is_none() && link.eof().is_ok());
}

#[test]
fn our_server_and_a_client_of_rustls_understand_each_other() {
    let world = World::new();
    let usable = suites().into_iter().filter(|suite| !format!("{:?}", suite.suite()).contains("_RSA_"));
    for suite in usable {
        let (mut link, mut oracle) = (world.server.link(), oracle_client(&world, suite));
        let mut heard = Heard::default();
        let hello = oracle.turn(&[]);
        exchange(&mut link, &mut oracle, &mut heard, hello);
        let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
        assert_eq!(heard.handshaken.as_ref().unwrap().cipher, name);
        assert!(!heard.handshaken.as_ref().unwrap().is_http11, "it was not offered");
        converse(link, oracle, heard, suite.tls13().is_some());
    }
}

#[test]
fn our_client_and_a_server_of_rustls_understand_each_other() {
    let world = World::new();
    let usable = suites().into_iter().filter(|suite| !format!("{:?}", suite.suite()).contains("_RSA_"));
    for suite in usable {
        let mut hello = Vec::new();
        let mut link = world.client(TlsVersions::Both).link(&mut hello).unwrap();
        let mut oracle = oracle_server(&world, suite);
        let mut heard = Heard::default();
        let answer = oracle.turn(&hello);
        exchange(&mut link, &mut oracle, &mut heard, answer);
        converse(link, oracle, heard, suite.tls13().is_some());
    }
}

#[test]
fn a_client_learns_that_the_server_speaks_another_version() {
    let world = World::new();
    for (ours, theirs) in [(TlsVersions::Tls12, true), (TlsVersions::Tls13, false)] {
        let suite = *suites()
            .iter()
            .find(|suite| {
                suite.tls13().is_some() == theirs && !format!("{:?}", suite.suite()).contains("_RSA_")
            })
            .unwrap();
        let mut oracle = oracle_server(&world, suite);
        let mut hello = Vec::new();
        let mut link = world.client(ours).link(&mut hello).unwrap();
        oracle.connection.read_tls(&mut &hello[..]).unwrap();
        assert!(oracle.connection.process_new_packets().is_err());
        let mut alert = Vec::new();
        oracle.connection.write_tls(&mut alert).unwrap();
        let mut heard = Heard::default();
        heard.hear(&mut link, &alert, &mut Vec::new());
        let kind = heard.error.unwrap();
        assert_eq!(kind, TlsErrorKind::Version, "{ours:?}");
        assert!(kind.cure().unwrap().contains("--tls"));
    }
}
