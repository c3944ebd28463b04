//! What the protocol demands after the handshake: closing, alerts, new keys, and those who try it on.

use rustls::ContentType;

use super::*;

const HANDSHAKE: ContentType = ContentType::Handshake;
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUEST: [u8; 5] = [24, 0, 0, 1, 1];

/// What the server says to records that no client of ours would send, and what the client then hears.
fn server_hears(pair: &mut Pair, records: &[(ContentType, &[u8])]) -> [Option<TlsErrorKind>; 2] {
    for (content, plaintext) in records {
        pair.client.inner().send(*content, plaintext, &mut pair.to_server);
    }
    pair.carry(usize::MAX);
    [pair.at_server.error, pair.at_client.error]
}

#[test]
fn close_notify_is_sent_once_and_told_once_and_the_other_way_stays_open() {
    let world = World::new();
    for versions in VERSIONS {
        let mut pair = world.open(versions);
        assert_eq!(pair.server.eof().unwrap_err().kind(), TlsErrorKind::Truncated);
        pair.client.seal(&[&b"last words"[..]], &mut pair.to_server).unwrap();
        pair.client.close(&mut pair.to_server);
        let len = pair.to_server.len();
        pair.client.close(&mut pair.to_server);
        assert_eq!(pair.to_server.len(), len);
        let error = pair.client.seal(&[&b"more"[..]], &mut pair.to_server).unwrap_err();
        assert_eq!((error.kind(), pair.to_server.len()), (TlsErrorKind::NotOpen, len));
        assert_eq!(pair.client.seal_in_place(&mut [0; 99], 20..30, 0..99), None);
        pair.carry(usize::MAX);
        assert!(pair.at_server.is_closed && pair.at_server.plaintext == b"last words");
        assert!(pair.server.eof().is_ok());

        // The server may go on, and the client hears it.
        pair.server.seal(&[&b"answer"[..]], &mut pair.to_client).unwrap();
        pair.server.close(&mut pair.to_client);
        pair.carry(usize::MAX);
        assert!(pair.at_client.is_closed && pair.at_client.plaintext == b"answer");
        assert!(pair.client.eof().is_ok());
    }
}

#[test]
fn what_comes_behind_close_notify_is_ignored() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls13);
    pair.client.close(&mut pair.to_server);
    pair.to_server.extend_from_slice(b"anything at all");
    pair.carry(usize::MAX);
    pair.at_server.hear(&mut pair.server, b"and more", &mut pair.to_client);
    assert!(pair.at_server.is_closed && pair.at_server.error.is_none() && pair.to_client.is_empty());
    assert_eq!(pair.server.held_octets(), 0);
}

#[test]
fn a_changed_record_ends_the_connection_after_what_came_before_it() {
    let world = World::new();
    for versions in VERSIONS {
        let len = 20 + if versions == TlsVersions::Tls13 { 22 } else { 29 };
        // Every octet but those of the length; the version is not authenticated by TLS 1.2 in the same way.
        for at in [0].into_iter().chain(5..len) {
            let mut pair = world.open(versions);
            pair.client.seal(&[&[1; 20][..]], &mut pair.to_server).unwrap();
            pair.client.seal(&[&[2; 20][..]], &mut pair.to_server).unwrap();
            pair.to_server[len + at] ^= 1;
            pair.client.seal(&[&[3; 20][..]], &mut pair.to_server).unwrap();
            pair.carry(usize::MAX);
            assert_eq!(pair.at_server.plaintext, [1; 20], "octet {at}");
            let kind = pair.at_server.error.unwrap();
            let told = pair.at_client.error.unwrap();
            let expected = if at == 0 && versions == TlsVersions::Tls13 {
                (TlsErrorKind::Misbehaved, TlsErrorKind::Alert(10))
            } else {
                (TlsErrorKind::BadRecord, TlsErrorKind::Alert(20))
            };
            assert_eq!((kind, told), expected, "octet {at}");
            assert_eq!(
                pair.server.seal(&[&b"x"[..]], &mut Vec::new()).unwrap_err().kind(),
                TlsErrorKind::NotOpen
            );
        }
    }
}

#[test]
fn a_record_that_is_replayed_or_left_out_is_refused() {
    let world = World::new();
    for versions in VERSIONS {
        for order in [&[0, 0][..], &[1], &[0, 2]] {
            let mut pair = world.open(versions);
            let sealed: Vec<_> = (0..3)
                .map(|octet| {
                    let mut record = Vec::new();
                    pair.client.seal(&[&[octet][..]], &mut record).unwrap();
                    record
                })
                .collect();
            pair.to_server = order.iter().flat_map(|index| sealed[*index].clone()).collect();
            pair.carry(usize::MAX);
            assert_eq!(pair.at_server.error, Some(TlsErrorKind::BadRecord), "{order:?}");
        }
    }
}

#[test]
fn keys_that_have_sealed_enough_are_renewed() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls13);
    pair.server.inner().set_records_max(3);
    let mut expected = Vec::new();
    for index in 0..20 {
        let message = noise(PLAINTEXT_LEN_MAX * (index % 3) + 50);
        let (start, len) = (pair.to_client.len(), pair.server.sealed_len(message.len()));
        // Sealing in place leaves the renewal to `seal`.
        let mut octets = vec![0; message.len() + 200];
        octets[100..100 + message.len()].copy_from_slice(&message);
        let (plaintext, room) = (100..100 + message.len(), 0..octets.len());
        match pair.server.seal_in_place(&mut octets, plaintext, room) {
            Some(range) => pair.to_client.extend_from_slice(&octets[range]),
            None => pair.server.seal(&[&message[..]], &mut pair.to_client).unwrap(),
        }
        assert_eq!(pair.to_client.len() - start, len);
        pair.carry(usize::MAX);
        expected.extend(message);
    }
    assert!(pair.at_client.plaintext == expected);
    assert_eq!((pair.at_client.error, pair.at_server.error), (None, None));
    // It asked the client for the same, and the client's new keys are understood.
    pair.client.seal(&[&b"still there"[..]], &mut pair.to_server).unwrap();
    pair.carry(usize::MAX);
    assert_eq!(pair.at_server.plaintext, b"still there");
}

#[test]
fn tls_1_2_has_no_new_keys_and_can_still_close() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls12);
    // The handshake's Finished was the first.
    pair.server.inner().set_records_max(3);
    for _ in 0..2 {
        pair.server.seal(&[&b"x"[..]], &mut pair.to_client).unwrap();
    }
    let error = pair.server.seal(&[&b"x"[..]], &mut pair.to_client).unwrap_err();
    assert_eq!(error.kind(), TlsErrorKind::KeysExhausted);
    pair.server.close(&mut pair.to_client);
    pair.carry(usize::MAX);
    assert!(pair.at_client.is_closed && pair.at_client.plaintext == b"xx");
}

#[test]
fn padding_is_not_plaintext() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls13);
    // A type of 0 is padding to who reads it: the type is before it.
    let padding = ContentType::from(0);
    for padded in [&b"data\x17"[..], b"more\x17\0\0\0\0\0", b"\x17\0\0"] {
        pair.client.inner().send(padding, padded, &mut pair.to_server);
    }
    pair.carry(usize::MAX);
    assert_eq!((pair.at_server.error, &pair.at_server.plaintext[..]), (None, &b"datamore"[..]));
    // Nothing but padding has no type at all.
    assert_eq!(
        server_hears(&mut pair, &[(padding, &[0; 9])]),
        [Some(TlsErrorKind::Misbehaved), Some(TlsErrorKind::Alert(10))]
    );
}

#[test]
fn a_peer_that_sends_nothing_again_and_again_is_stopped() {
    let world = World::new();
    for versions in VERSIONS {
        let mut pair = world.open(versions);
        let data = ContentType::ApplicationData;
        let mut empty: Vec<(ContentType, &[u8])> = vec![(data, &[]); 32];
        empty.push((data, b"x"));
        empty.extend(vec![(data, &[][..]); 32]);
        assert_eq!(server_hears(&mut pair, &empty), [None, None]);
        assert_eq!(server_hears(&mut pair, &[(data, &[])])[0], Some(TlsErrorKind::Misbehaved));
    }
    let mut pair = world.open(TlsVersions::Tls13);
    for _ in 0..32 {
        assert_eq!(server_hears_update(&mut pair), None);
    }
    assert_eq!(server_hears_update(&mut pair), Some(TlsErrorKind::Misbehaved));
}

/// A key update of the client's, as it should be.
fn server_hears_update(pair: &mut Pair) -> Option<TlsErrorKind> {
    pair.client.inner().renew(&mut pair.to_server);
    pair.carry(usize::MAX);
    pair.at_server.error
}

#[test]
fn messages_after_the_handshake_may_be_cut_but_not_interrupted() {
    let world = World::new();
    // In two records, and answered, since it asks.
    let mut pair = world.open(TlsVersions::Tls13);
    let update = KEY_UPDATE_REQUEST;
    pair.client.inner().send(HANDSHAKE, &update[..2], &mut pair.to_server);
    pair.carry(usize::MAX);
    assert_eq!((pair.at_server.error, pair.to_client.len()), (None, 0));
    pair.client.inner().send(HANDSHAKE, &update[2..], &mut pair.to_server);
    let records = std::mem::take(&mut pair.to_server);
    pair.at_server.hear(&mut pair.server, &records, &mut pair.to_client);
    assert_eq!((pair.at_server.error, pair.to_client.len()), (None, KEY_UPDATE.len() + 22));

    for wrong in [
        // Interrupted.
        &[(HANDSHAKE, &KEY_UPDATE[..2]), (ContentType::ApplicationData, b"x")][..],
        &[(HANDSHAKE, &KEY_UPDATE[..2]), (ContentType::Alert, &[1, 0])],
        // More behind the message that changes the keys.
        &[(HANDSHAKE, &[24, 0, 0, 1, 0, 24])],
        // Neither yes nor no.
        &[(HANDSHAKE, &[24, 0, 0, 1, 2])],
        // A ticket, a ClientHello, nothing, and change_cipher_spec.
        &[(HANDSHAKE, &[4, 0, 0, 0])],
        &[(HANDSHAKE, &[1, 0, 0, 0])],
        &[(HANDSHAKE, &[])],
        &[(ContentType::ChangeCipherSpec, &[1])],
    ] {
        let mut pair = world.open(TlsVersions::Tls13);
        let heard = server_hears(&mut pair, wrong);
        assert_eq!(heard[0], Some(TlsErrorKind::Misbehaved), "{wrong:?}");
    }
}

#[test]
fn a_new_handshake_is_declined_once() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls12);
    let hello: (ContentType, &[u8]) = (HANDSHAKE, &[1, 0, 0, 0]);
    // no_renegotiation is a warning, and nothing to the client.
    assert_eq!(server_hears(&mut pair, &[hello]), [None, None]);
    pair.client.seal(&[&b"and on"[..]], &mut pair.to_server).unwrap();
    pair.carry(usize::MAX);
    assert_eq!(pair.at_server.plaintext, b"and on");
    assert_eq!(server_hears(&mut pair, &[hello])[0], Some(TlsErrorKind::Misbehaved));

    let mut pair = world.open(TlsVersions::Tls12);
    pair.server.inner().send(HANDSHAKE, &[0, 0, 0, 0], &mut pair.to_client);
    pair.carry(usize::MAX);
    assert_eq!((pair.at_server.error, pair.at_client.error), (None, None));
}

#[test]
fn alerts_end_the_connection_except_for_a_few_warnings() {
    let world = World::new();
    let alert = ContentType::Alert;
    for versions in VERSIONS {
        for (octets, kind) in [
            (&[2, 80][..], TlsErrorKind::Alert(80)),
            (&[2, 40], TlsErrorKind::Alert(40)),
            (&[2, 48], TlsErrorKind::CertificateRefused),
            (&[2], TlsErrorKind::Misbehaved),
            (&[], TlsErrorKind::Misbehaved),
            (&[2, 80, 0], TlsErrorKind::Misbehaved),
        ] {
            let mut pair = world.open(versions);
            assert_eq!(server_hears(&mut pair, &[(alert, octets)])[0], Some(kind), "{octets:?}");
        }
        let mut pair = world.open(versions);
        let cancelled: (ContentType, &[u8]) = (alert, &[1, 90]);
        assert_eq!(server_hears(&mut pair, &[cancelled; 4]), [None, None]);
        assert_eq!(server_hears(&mut pair, &[cancelled])[0], Some(TlsErrorKind::Misbehaved));
    }
}

#[test]
fn a_client_bounds_what_it_keeps_of_a_ticket() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls13);
    pair.server.inner().send(HANDSHAKE, &[4, 2, 0, 0], &mut pair.to_client);
    pair.carry(usize::MAX);
    assert_eq!(pair.at_client.error, Some(TlsErrorKind::TooLong));

    let mut pair = world.open(TlsVersions::Tls13);
    pair.server.inner().send(HANDSHAKE, &[4, 0, 0, 2, 9, 9], &mut pair.to_client);
    pair.carry(usize::MAX);
    assert_eq!(pair.at_client.error, Some(TlsErrorKind::Misbehaved), "a ticket that is none");
}
