//! What is agreed on, who is let in, and how each end learns that it does not work.

use proptest::prelude::*;

use super::*;

#[test]
fn both_ends_learn_what_was_agreed_on() {
    let world = World::new();
    for (versions, version, cipher) in [
        (TlsVersions::Both, TlsVersion::Tls13, "TLS_AES_128_GCM_SHA256"),
        (TlsVersions::Tls13, TlsVersion::Tls13, "TLS_AES_128_GCM_SHA256"),
        (TlsVersions::Tls12, TlsVersion::Tls12, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    ] {
        let mut pair = Pair::new(&world.server, &world.client(versions));
        assert!(pair.server.is_handshaking() && pair.client.is_handshaking());
        let [server, client] = pair.shake().unwrap();
        let expected = Handshaken { version, cipher, is_resumed: false, server_name: None, is_http11: true };
        assert_eq!(client, expected);
        assert_eq!(server, Handshaken { server_name: Some("localhost".into()), ..expected });
    }
}

#[test]
fn the_client_chooses_the_certificate_by_name() {
    let world = World::with(|folder, ca, options| {
        options.certs.push(folder.identity("b", ca, &["b.example", "also.b.example"]));
        options.certs.push(folder.identity("wild", ca, &["*.wild.example"]));
    });
    let shake = |name: &str| {
        let options = TlsClientOptions { server_name: name.to_owned(), ..world.client.clone() };
        Pair::new(&world.server, &TlsClient::new(&options).unwrap())
            .shake()
            .map(|[server, _]| server.server_name)
    };
    for name in ["localhost", "b.example", "also.b.example", "any.wild.example"] {
        assert_eq!(shake(name).unwrap().as_deref(), Some(name));
    }
    // The first certificate is for all others: they see for whom it is.
    for name in ["other.example", "too.deep.wild.example", "wild.example"] {
        assert_eq!(shake(name).unwrap_err()[1], Some(TlsErrorKind::NameMismatch), "{name}");
    }
}

#[test]
fn a_session_is_resumed_and_its_server_name_still_told() {
    let world = World::new();
    for versions in VERSIONS {
        let client = world.client(versions);
        let kinds: Vec<_> = (0..3).map(|_| Pair::new(&world.server, &client).shake().unwrap()).collect();
        assert_eq!(
            kinds.iter().map(|[server, _]| server.is_resumed).collect::<Vec<_>>(),
            [false, true, true]
        );
        assert!(kinds.iter().all(|[server, client]| server.is_resumed == client.is_resumed));
        assert!(kinds.iter().all(|[server, _]| server.server_name.as_deref() == Some("localhost")));

        let never =
            TlsClient::new(&TlsClientOptions { versions, resume: false, ..world.client.clone() }).unwrap();
        for _ in 0..2 {
            assert!(!Pair::new(&world.server, &never).shake().unwrap()[1].is_resumed);
        }
    }
}

#[test]
fn a_hundred_connections_at_once_resume_what_a_hundred_left() {
    let world = World::new();
    let client = world.client(TlsVersions::Tls13);
    for is_resumed in [false, true, true] {
        // All begin before the first is done.
        let mut pairs: Vec<_> = (0..100).map(|_| Pair::new(&world.server, &client)).collect();
        for pair in &mut pairs {
            assert_eq!(pair.shake().unwrap()[0].is_resumed, is_resumed);
        }
    }
}

#[test]
fn a_reload_forgets_tickets() {
    let world = World::new();
    for versions in VERSIONS {
        let client = world.client(versions);
        Pair::new(&world.server, &client).shake().unwrap();
        world.server.reload().unwrap();
        assert!(!Pair::new(&world.server, &client).shake().unwrap()[0].is_resumed);
    }
}

#[test]
fn a_reload_is_for_new_connections_only() {
    let world = World::new();
    let mut old = Pair::new(&world.server, &world.client(TlsVersions::Both));
    let [certificate, key] = world.ca.sign(&["other.example"], |_| {});
    world.folder.file("server.pem", &certificate);
    world.folder.file("server.key", &key);
    let reloaded = world.server.reload().unwrap();
    assert_eq!(reloaded, Reloaded { certificates: 1, warnings: Vec::new() });
    assert_eq!(reloaded.to_string().lines().count(), 1);
    old.shake().unwrap();
    let mut new = Pair::new(&world.server, &world.client(TlsVersions::Both));
    assert_eq!(new.shake().unwrap_err()[1], Some(TlsErrorKind::NameMismatch));
}

#[test]
fn a_client_certificate_can_be_required() {
    let world = World::with(|folder, ca, options| {
        options.client_ca = Some(folder.file("clients.pem", &ca.pem));
    });
    let shake = |client_cert, versions| {
        let options = TlsClientOptions { client_cert, versions, ..world.client.clone() };
        Pair::new(&world.server, &TlsClient::new(&options).unwrap()).shake()
    };
    let good = Some(world.folder.identity("client", &world.ca, &["a client"]));
    let bad = Some(world.folder.identity("stranger", &Ca::new(), &["a stranger"]));
    for versions in VERSIONS {
        assert!(shake(good.clone(), versions).is_ok());
        assert_eq!(shake(None, versions).unwrap_err(), [Some(TlsErrorKind::CertificateRequired); 2]);
        assert_eq!(
            shake(bad.clone(), versions).unwrap_err(),
            [Some(TlsErrorKind::UnknownIssuer), Some(TlsErrorKind::CertificateRefused)]
        );
    }
}

#[test]
fn a_client_says_what_is_wrong_with_the_servers_certificate() {
    let world = World::new();
    let shake = |server: &TlsServer, options: TlsClientOptions| {
        Pair::new(server, &TlsClient::new(&options).unwrap()).shake()
    };
    let stranger = Some(world.folder.file("stranger.pem", &Ca::new().pem));
    let unknown = shake(&world.server, TlsClientOptions { ca: stranger.clone(), ..world.client.clone() });
    assert_eq!(
        unknown.unwrap_err(),
        [Some(TlsErrorKind::CertificateRefused), Some(TlsErrorKind::UnknownIssuer)]
    );
    let insecure = TlsClientOptions { ca: stranger, insecure: true, ..world.client.clone() };
    assert!(shake(&world.server, insecure.clone()).is_ok());

    for (from, to, kind) in [(1990, 2001, TlsErrorKind::Expired), (2990, 3001, TlsErrorKind::NotYetValid)] {
        let [certificate, key] = world.ca.sign(&["localhost"], |params| {
            params.not_before = rcgen::date_time_ymd(from, 2, 3);
            params.not_after = rcgen::date_time_ymd(to, 2, 3);
        });
        let certs =
            vec![(world.folder.file("dated.pem", &certificate), world.folder.file("dated.key", &key))];
        let (server, warnings) = TlsServer::new(TlsOptions { certs, ..Default::default() }).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("dated.pem: the certificate ") && warnings[0].contains("Feb  3"));
        assert_eq!(warnings[0].lines().count(), 1);
        assert_eq!(shake(&server, world.client.clone()).unwrap_err()[1], Some(kind));
        assert!(kind.cure().is_some());
        assert!(shake(&server, insecure.clone()).is_ok());
    }
}

#[test]
fn a_self_signed_certificate_is_trusted_by_itself_and_stays() {
    let names = ["localhost", "127.0.0.1", "::1"];
    let options = TlsOptions {
        self_signed: Some(SelfSigned { names: names.map(str::to_owned).to_vec() }),
        ..Default::default()
    };
    let (server, warnings) = TlsServer::new(options).unwrap();
    assert!(warnings.is_empty());
    let fingerprint = server.fingerprint().unwrap().to_owned();
    assert!(fingerprint.len() == 64 && fingerprint.bytes().all(|digit| b"0123456789abcdef".contains(&digit)));
    for name in names {
        let insecure =
            TlsClientOptions { server_name: name.to_owned(), insecure: true, ..client_options(None) };
        assert!(Pair::new(&server, &TlsClient::new(&insecure).unwrap()).shake().is_ok());
    }
    server.reload().unwrap();
    assert_eq!(server.fingerprint(), Some(&*fingerprint));
}

#[test]
fn a_client_of_tls_1_1_is_told_that_its_version_is_why() {
    let world = World::new();
    // A client of that time, and one that knows the extension that came with TLS 1.2.
    for extensions in [&[][..], &[0, 8, 0, 13, 0, 4, 0, 2, 4, 3]] {
        let len = extensions.len() as u8;
        // Record and message, version 1.1, a random, no session, two ciphers, no compression.
        let mut hello = vec![22, 3, 1, 0, 47 + len, 1, 0, 0, 43 + len, 3, 2];
        hello.extend([7; 32]);
        hello.extend([0, 0, 4, 0xc0, 0x09, 0xc0, 0x2b, 1, 0]);
        hello.extend(extensions);
        let (mut link, mut heard, mut out) = (world.server.link(), Heard::default(), Vec::new());
        heard.hear(&mut link, &hello, &mut out);
        assert_eq!(heard.error, Some(TlsErrorKind::Version));
        // protocol_version (RFC 5246 appendix E.1), also to who has nothing of TLS 1.2.
        assert_eq!(out, [21, 3, 3, 0, 2, 2, 70]);
    }
}

#[test]
fn plain_http_is_told_apart_and_nothing_is_sent() {
    let world = World::new();
    for request in
        ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        for cut in 1..=request.len() {
            let (mut link, mut heard, mut out) = (world.server.link(), Heard::default(), Vec::new());
            for part in request.as_bytes().chunks(cut) {
                heard.hear(&mut link, part, &mut out);
            }
            assert_eq!((heard.error, out.len()), (Some(TlsErrorKind::PlainHttp), 0), "{request:?} by {cut}");
            assert_eq!(link.held_octets(), 0);
        }
    }
    // And the other way: a server of plain HTTP answers a client.
    let mut hello = Vec::new();
    let mut link = world.client(TlsVersions::Both).link(&mut hello).unwrap();
    let (mut heard, mut out) = (Heard::default(), Vec::new());
    heard.hear(&mut link, b"HTTP/1.1 400 Bad Request\r\n\r\n", &mut out);
    assert_eq!((heard.error, out.len()), (Some(TlsErrorKind::PlainHttp), 0));
}

#[test]
fn garbage_gets_one_alert() {
    let world = World::new();
    for (garbage, kind, alert) in [
        (&b"\x80\x2e\x01\x00\x02\x00\x15"[..], TlsErrorKind::NotTls, 50),
        (b"SSH-2.0-OpenSSH_9\r\n", TlsErrorKind::NotTls, 50),
        (&[0; 64], TlsErrorKind::NotTls, 50),
        (b"\x16\x03\x01\xff\xffhello", TlsErrorKind::TooLong, 22),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", TlsErrorKind::Misbehaved, 50),
        (b"\x17\x03\x03\x00\x01\x00", TlsErrorKind::Misbehaved, 10),
    ] {
        let (mut link, mut heard, mut out) = (world.server.link(), Heard::default(), Vec::new());
        heard.hear(&mut link, garbage, &mut out);
        heard.hear(&mut link, b"and more of it", &mut out);
        assert_eq!(heard.error, Some(kind), "{garbage:?}");
        assert_eq!((&out[..1], &out[3..]), (&[21][..], &[0, 2, 2, alert][..]), "{garbage:?}");
        assert_eq!(link.held_octets(), 0);
    }
}

#[test]
fn a_connection_that_ends_in_its_handshake_is_told() {
    let world = World::new();
    let mut pair = Pair::new(&world.server, &world.client(TlsVersions::Both));
    assert_eq!(pair.server.eof().unwrap_err().kind(), TlsErrorKind::EndedInHandshake);
    let hello = std::mem::take(&mut pair.to_server);
    pair.at_server.hear(&mut pair.server, &hello, &mut pair.to_client);
    assert_eq!(pair.server.eof().unwrap_err().kind(), TlsErrorKind::EndedInHandshake);
    assert_eq!(pair.client.eof().unwrap_err().kind(), TlsErrorKind::EndedInHandshake);
}

#[test]
fn a_message_of_the_handshake_that_never_ends_is_bounded() {
    let world = World::new();
    // A ClientHello of 2^16 - 1 octets, an octet a record.
    let (mut link, mut heard, mut out) = (world.server.link(), Heard::default(), Vec::new());
    let mut held = 0;
    for octet in [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0)).take(1 << 16) {
        heard.hear(&mut link, &[22, 3, 1, 0, 1, octet], &mut out);
        held = held.max(link.held_octets());
        if heard.error.is_some() {
            break;
        }
    }
    assert_eq!(heard.error, Some(TlsErrorKind::TooLong));
    assert!(held <= 256 << 10, "{held} octets");
}

#[test]
fn nothing_is_sealed_before_the_handshake_is_done() {
    let world = World::new();
    let mut pair = Pair::new(&world.server, &world.client(TlsVersions::Both));
    let mut out = Vec::new();
    for link in [&mut pair.server, &mut pair.client] {
        assert_eq!(link.seal(&[&b"x"[..]], &mut out).unwrap_err().kind(), TlsErrorKind::NotOpen);
        link.close(&mut out);
    }
    assert!(out.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// rustls panics if it is not given exactly what it expects in its buffer; nobody may make us do that.
    #[test]
    fn a_changed_handshake_fails_or_is_done_but_never_panics(
        is_tls13 in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
        flight in 0..4_usize,
        cut in prop_oneof![1..50_usize, 50..3000_usize],
    ) {
        thread_local! {
            static WORLD: World = World::new();
        }
        WORLD.with(|world| {
            let versions = if is_tls13 { TlsVersions::Tls13 } else { TlsVersions::Tls12 };
            let mut pair = Pair::new(&world.server, &world.client(versions));
            for turn in 0..6 {
                let (octets, is_server) = match turn % 2 {
                    0 => (&mut pair.to_server, true),
                    _ => (&mut pair.to_client, false),
                };
                let mut octets = std::mem::take(octets);
                for (index, octet, is_left_out) in &changes {
                    if turn == flight && !octets.is_empty() {
                        let at = index.index(octets.len());
                        if *is_left_out {
                            octets.remove(at);
                        } else {
                            octets[at] = *octet;
                        }
                    }
                }
                for part in octets.chunks(cut) {
                    if is_server {
                        pair.at_server.hear(&mut pair.server, part, &mut pair.to_client);
                    } else {
                        pair.at_client.hear(&mut pair.client, part, &mut pair.to_server);
                    }
                }
            }
            for (link, heard) in [(&mut pair.server, &pair.at_server), (&mut pair.client, &pair.at_client)] {
                assert!(heard.error.is_none_or(|kind| kind != TlsErrorKind::Internal), "{heard:?}");
                assert!(heard.handshaken.is_some() || link.seal(&[&b"x"[..]], &mut Vec::new()).is_err());
            }
        });
    }
}
