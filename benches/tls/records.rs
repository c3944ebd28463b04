//! An echo through TLS: records opened, and what they carried sealed again.
//!
//! - `cipher`: only opening and sealing as many octets in as many passes, in place. The bound.
//! - `in place`: a `TlsLink` whose replies are sealed where they are.
//! - `appended`: a `TlsLink` whose replies are sealed into a vector, as from a send queue.
//! - `rustls`: rustls's own buffered connection.
//! - `rustls unbuffered`: rustls's own records through its unbuffered interface.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rcgen::generate_simple_self_signed;
use resound::net::tls::{
    Opened, PLAINTEXT_LEN_MAX, SelfSigned, TlsClient, TlsClientOptions, TlsLink, TlsOptions, TlsServer,
    TlsVersions,
};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::client::{ClientConfig, UnbufferedClientConnection};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::{ServerConfig, ServerConnection, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError};
use rustls::{ClientConnection, RootCertStore, crypto};

use super::{Row, Work};

/// Octets of a message, and messages of a receive.
const SHAPES: [(usize, usize); 5] =
    [(20, 1), (20, 16), (1 << 10, 1), (PLAINTEXT_LEN_MAX, 1), (PLAINTEXT_LEN_MAX, 4)];
/// Octets around the plaintext of a record of TLS 1.3.
const OVERHEAD: usize = 22;

/// Each way also seals what it then receives, since no record can be opened twice. What that costs is the same for
/// all of ours; so the bound has it too: three passes in, of which one is the client's.
pub(crate) fn echoes() -> Vec<Row> {
    SHAPES
        .iter()
        .map(|&(len, count)| Row {
            name: format!("echo/AES_128_GCM/{count} of {len}"),
            candidates: vec![
                ("cipher", cipher(len, count)),
                ("in place", link(len, count, true)),
                ("appended", link(len, count, false)),
                ("rustls", buffered(len, count)),
                ("rustls unbuffered", unbuffered(len, count)),
            ],
        })
        .collect()
}

/// The client seals each message; the server opens each, and seals what it sends: one reply for those that are joined.
fn cipher(len: usize, count: usize) -> Work {
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).unwrap());
    let joined = len <= 1 << 10;
    let mut octets = vec![1; (len + OVERHEAD) * count];
    let mut sequence = 0_u64;
    let mut nonce = move || {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&sequence.to_be_bytes());
        sequence += 1;
        nonce
    };
    let seal = move |nonce, octets: &mut [u8]| {
        let (text, tag) = octets.split_at_mut(octets.len() - 16);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let made = key.seal_in_place_separate_tag(nonce, Aad::from([23, 3, 3, 0, 0]), text).unwrap();
        tag.copy_from_slice(made.as_ref());
    };
    let opener = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).unwrap());
    Box::new(move || {
        for record in octets.chunks_mut(len + OVERHEAD) {
            let nonce = nonce();
            seal(nonce, &mut record[5..]);
            let nonce = Nonce::assume_unique_for_key(nonce);
            black_box(opener.open_in_place(nonce, Aad::from([23, 3, 3, 0, 0]), &mut record[5..]).unwrap());
        }
        if joined {
            seal(nonce(), &mut octets[5..][..len * count + 17]);
        } else {
            octets.chunks_mut(len + OVERHEAD).for_each(|record| seal(nonce(), &mut record[5..]));
        }
        black_box(&octets);
    })
}

fn pair() -> (TlsLink, TlsLink) {
    let self_signed = Some(SelfSigned { names: vec!["localhost".to_owned()] });
    let (server, _) = TlsServer::new(TlsOptions { self_signed, ..Default::default() }).unwrap();
    let options = TlsClientOptions {
        server_name: "localhost".to_owned(),
        ca: None,
        insecure: true,
        client_cert: None,
        versions: TlsVersions::Tls13,
        resume: false,
    };
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = TlsClient::new(&options).unwrap().link(&mut to_server).unwrap();
    let mut server = server.link();
    while !to_server.is_empty() || !to_client.is_empty() {
        hear(&mut server, &mut std::mem::take(&mut to_server), &mut to_client);
        hear(&mut client, &mut std::mem::take(&mut to_client), &mut to_server);
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    (server, client)
}

fn hear(link: &mut TlsLink, octets: &mut [u8], out: &mut Vec<u8>) {
    let mut at = 0;
    while !matches!(link.open(octets, &mut at, out).unwrap(), Opened::Drained) {}
}

fn link(len: usize, count: usize, in_place: bool) -> Work {
    let (mut server, mut client) = pair();
    let message = vec![1; len];
    let (mut octets, mut out, mut unasked) = (Vec::new(), Vec::new(), Vec::new());
    Box::new(move || {
        octets.clear();
        for _ in 0..count {
            client.seal(&[&message[..]], &mut octets).unwrap();
        }
        let (mut at, mut echoed) = (0, 0);
        loop {
            match server.open(&mut octets, &mut at, &mut unasked).unwrap() {
                Opened::Plaintext { plaintext, room } => {
                    echoed += plaintext.len();
                    let range = if in_place {
                        server.seal_in_place(&mut octets, plaintext.clone(), room)
                    } else {
                        None
                    };
                    match range {
                        Some(range) => _ = black_box(&octets[range]),
                        None => {
                            out.clear();
                            server.seal(&[&octets[plaintext]], &mut out).unwrap();
                            black_box(&out);
                        }
                    }
                }
                Opened::Drained => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(echoed, len * count);
        unasked.clear();
    })
}

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut provider = crypto::ring::default_provider();
    provider.cipher_suites = vec![crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = Arc::new(provider);
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.send_tls13_tickets = 0;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

fn buffered(len: usize, count: usize) -> Work {
    let (server, client) = configs();
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(client, ServerName::try_from("localhost").unwrap()).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        for mut part in [&std::mem::take(&mut wire)[..]] {
            while !part.is_empty() {
                server.read_tls(&mut part).unwrap();
                server.process_new_packets().unwrap();
            }
        }
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        for mut part in [&std::mem::take(&mut wire)[..]] {
            while !part.is_empty() {
                client.read_tls(&mut part).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }
    let message = vec![1; len];
    let mut plaintext = vec![0; len * count];
    Box::new(move || {
        wire.clear();
        for _ in 0..count {
            client.writer().write_all(&message).unwrap();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
        }
        let (mut rest, mut got) = (&wire[..], 0);
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
            while let Ok(read @ 1..) = server.reader().read(&mut plaintext[got..]) {
                got += read;
            }
        }
        assert_eq!(got, plaintext.len());
        server.writer().write_all(&plaintext).unwrap();
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        black_box(&wire);
    })
}

/// Both interfaces are the same but for the type.
macro_rules! process {
    ($connection:expr, $octets:expr, $out:expr, $plaintext:expr) => {
        loop {
            let status = $connection.process_tls_records($octets);
            let discard = status.discard;
            let mut more = true;
            match status.state.unwrap() {
                ConnectionState::EncodeTlsData(mut data) => {
                    let start = $out.len();
                    let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) else { panic!() };
                    $out.resize(start + size.required_size, 0);
                    data.encode(&mut $out[start..]).unwrap();
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        $plaintext.extend_from_slice(record.unwrap().payload);
                    }
                }
                _ => more = false,
            }
            $octets.drain(..discard);
            if !more {
                break;
            }
        }
    };
}

macro_rules! encrypt {
    ($connection:expr, $plaintext:expr, $out:expr) => {{
        let state = $connection.process_tls_records(&mut []).state.unwrap();
        let ConnectionState::WriteTraffic(mut traffic) = state else { panic!() };
        let start = $out.len();
        $out.resize(start + $plaintext.len() + OVERHEAD * $plaintext.len().div_ceil(PLAINTEXT_LEN_MAX), 0);
        traffic.encrypt($plaintext, &mut $out[start..]).unwrap();
    }};
}

fn unbuffered(len: usize, count: usize) -> Work {
    let (server, client) = configs();
    let mut server = UnbufferedServerConnection::new(server).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = UnbufferedClientConnection::new(client, name).unwrap();
    let (mut to_server, mut to_client) = (Vec::<u8>::new(), Vec::<u8>::new());
    let mut plaintext = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        process!(client, &mut to_client, to_server, plaintext);
        process!(server, &mut to_server, to_client, plaintext);
    }
    let message = vec![1; len];
    Box::new(move || {
        for _ in 0..count {
            encrypt!(client, &message, to_server);
        }
        plaintext.clear();
        to_client.clear();
        process!(server, &mut to_server, to_client, plaintext);
        assert_eq!(plaintext.len(), len * count);
        encrypt!(server, &plaintext, to_client);
        black_box(&to_client);
    })
}
