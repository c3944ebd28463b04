//! Plaintext: where it comes out, however it was cut, and how replies are sealed.

use proptest::prelude::*;

use super::*;

/// One receive, opened: the octets, and each range with its room.
fn open_all(link: &mut TlsLink, mut octets: Vec<u8>) -> (Vec<u8>, Vec<[std::ops::Range<usize>; 2]>) {
    let (mut at, mut found, mut out) = (0, Vec::new(), Vec::new());
    loop {
        match link.open(&mut octets, &mut at, &mut out).unwrap() {
            Opened::Plaintext { plaintext, room } => found.push([plaintext, room]),
            Opened::Drained => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(out.is_empty());
    (octets, found)
}

fn sealed(link: &mut TlsLink, messages: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        link.seal(&[*message], &mut out).unwrap();
    }
    out
}

#[test]
fn sixteen_small_records_of_a_receive_are_one_range_and_one_reply() {
    let world = World::new();
    for versions in VERSIONS {
        let mut pair = world.open(versions);
        let messages: Vec<Vec<u8>> = (0..16).map(|index| vec![index; 20 + index as usize]).collect();
        let octets = sealed(&mut pair.client, &messages.iter().map(|m| &m[..]).collect::<Vec<_>>());
        assert_eq!(records(&octets).len(), 16);
        let (mut octets, found) = open_all(&mut pair.server, octets);
        let [[plaintext, room]] = &found[..] else { panic!("{found:?}") };
        assert_eq!(octets[plaintext.clone()], messages.concat());
        assert_eq!(*room, 0..octets.len());
        let range =
            pair.server.seal_in_place(&mut octets, plaintext.clone(), room.clone()).expect("there is room");
        assert_eq!(records(&octets[range.clone()]).len(), 1);
        pair.at_client.hear(&mut pair.client, &octets[range], &mut pair.to_server);
        assert_eq!(pair.at_client.plaintext, messages.concat());
    }
}

#[test]
fn a_large_record_stays_where_it_is_and_small_ones_move_to_its_side() {
    let world = World::new();
    for (versions, head) in [(TlsVersions::Tls13, 5), (TlsVersions::Tls12, 13)] {
        let mut pair = world.open(versions);
        let [large, small] = [noise(PLAINTEXT_LEN_MAX), noise(100)];

        let octets = sealed(&mut pair.client, &[&large, &small, &large, &small, &large]);
        let starts: Vec<_> = records(&octets).iter().map(|record| record.start).collect();
        let (octets, found) = open_all(&mut pair.server, octets);
        // Each small one went to the large one before it.
        assert_eq!(
            found.iter().map(|[plaintext, _]| plaintext.start).collect::<Vec<_>>(),
            [starts[0] + head, starts[2] + head, starts[4] + head]
        );
        let all: Vec<u8> = found.iter().flat_map(|[range, _]| octets[range.clone()].to_vec()).collect();
        assert_eq!(all, [&large[..], &small, &large, &small, &large].concat());
        // The rooms follow each other.
        assert!(found.windows(2).all(|pair| pair[0][1].end == pair[1][1].start));
        assert_eq!(found.last().unwrap()[1].end, octets.len());

        // A small one before a large one moves up to it.
        let octets = sealed(&mut pair.client, &[&small, &small, &large]);
        let large_at = records(&octets)[2].start + head;
        let (octets, found) = open_all(&mut pair.server, octets);
        let [[plaintext, _]] = &found[..] else { panic!("{found:?}") };
        assert_eq!(plaintext.start, large_at - 200);
        assert_eq!(octets[plaintext.clone()], [&small[..], &small, &large].concat());
    }
}

#[test]
fn a_receive_that_ends_within_a_record_keeps_only_that_one() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls13);
    let messages = [noise(3000), noise(5000), noise(300)];
    let octets = sealed(&mut pair.client, &[&messages[0], &messages[1], &messages[2]]);
    let first = records(&octets)[0].len();
    let mut out = Vec::new();
    let mut at = 0;

    let mut one = octets[..first + 2000].to_vec();
    let opened = pair.server.open(&mut one, &mut at, &mut out).unwrap();
    let Opened::Plaintext { plaintext, room } = opened else { panic!("{opened:?}") };
    assert_eq!((&one[plaintext], room.end), (&messages[0][..], one.len()));
    assert!(matches!(pair.server.open(&mut one, &mut at, &mut out).unwrap(), Opened::Drained));
    assert!((2000..=5022).contains(&pair.server.held_octets()), "{}", pair.server.held_octets());

    let mut two = octets[first + 2000..].to_vec();
    at = 0;
    let opened = pair.server.open(&mut two, &mut at, &mut out).unwrap();
    let Opened::Kept { octets: kept, plaintext } = opened else { panic!("{opened:?}") };
    assert_eq!(&kept[plaintext], &messages[1]);
    assert_eq!(pair.server.held_octets(), 0);
    let opened = pair.server.open(&mut two, &mut at, &mut out).unwrap();
    let Opened::Plaintext { plaintext, .. } = opened else { panic!("{opened:?}") };
    assert_eq!(&two[plaintext], &messages[2]);
}

#[test]
fn a_record_that_never_ends_is_bounded_by_what_has_arrived() {
    let world = World::new();
    let mut pair = world.open(TlsVersions::Tls13);
    let record = sealed(&mut pair.client, &[&noise(PLAINTEXT_LEN_MAX)]);
    for (arrived, octet) in record[..record.len() - 1].chunks(1).enumerate() {
        pair.at_server.hear(&mut pair.server, octet, &mut pair.to_client);
        let held = pair.server.held_octets();
        assert!(held <= ((arrived + 1) * 8).min(record.len()), "{held} octets for {arrived}");
    }
    assert!(pair.at_server.error.is_none() && pair.at_server.plaintext.is_empty());
    // One that announces more than any may have is refused by its header.
    let mut pair = world.open(TlsVersions::Tls13);
    pair.at_server.hear(&mut pair.server, &[23, 3, 3, 0x48, 1], &mut pair.to_client);
    assert_eq!(pair.at_server.error, Some(TlsErrorKind::TooLong));
    pair.carry(usize::MAX);
    assert_eq!(pair.at_client.error, Some(TlsErrorKind::Alert(22)), "record_overflow");
}

#[test]
fn pieces_become_full_records_wherever_they_end() {
    let world = World::new();
    for versions in VERSIONS {
        let mut pair = world.open(versions);
        let octets = noise(3 * PLAINTEXT_LEN_MAX + 77);
        for pieces in [
            vec![&octets[..]],
            octets.chunks(1000).collect(),
            vec![&[], &octets[..1], &[], &octets[1..20_000], &octets[20_000..], &[]],
        ] {
            let mut out = vec![9; 3];
            let len = pair.server.sealed_len(octets.len());
            pair.server.seal(&pieces, &mut out).unwrap();
            assert_eq!((&out[..3], out.len() - 3), (&[9; 3][..], len));
            assert_eq!(records(&out[3..]).len(), 4);
            pair.at_client.hear(&mut pair.client, &out[3..], &mut pair.to_server);
            assert_eq!(std::mem::take(&mut pair.at_client.plaintext), octets);
        }
        let mut out = Vec::new();
        pair.server.seal::<&[u8]>(&[], &mut out).unwrap();
        pair.server.seal(&[&[][..]], &mut out).unwrap();
        assert!(out.is_empty() && pair.server.sealed_len(0) == 0);
    }
}

#[test]
fn sealing_in_place_needs_room_and_changes_nothing_without() {
    let world = World::new();
    for (versions, head, tail) in [(TlsVersions::Tls13, 5, 17), (TlsVersions::Tls12, 13, 16)] {
        let mut pair = world.open(versions);
        for len in [1, 20, PLAINTEXT_LEN_MAX, PLAINTEXT_LEN_MAX + 1, 3 * PLAINTEXT_LEN_MAX, 60_000] {
            let plaintext = noise(len);
            let count = len.div_ceil(PLAINTEXT_LEN_MAX);
            let needed = len + count * (head + tail);
            let mut octets = vec![0; needed];
            octets[head..head + len].copy_from_slice(&plaintext);
            let before = octets.clone();
            for room in [1..needed, 0..needed - 1] {
                assert_eq!(pair.server.seal_in_place(&mut octets, head..head + len, room), None);
                assert!(octets == before);
            }
            assert_eq!(pair.server.seal_in_place(&mut octets, head..head + len, 0..needed), Some(0..needed));
            assert_eq!(records(&octets).len(), count);
            pair.at_client.hear(&mut pair.client, &octets, &mut pair.to_server);
            assert!(std::mem::take(&mut pair.at_client.plaintext) == plaintext);
        }
    }
}

#[test]
fn a_connection_cut_at_every_octet_is_the_same() {
    let world = World::new();
    for versions in VERSIONS {
        for cut in [1, 2, 3, 5, 7, 64, 1000] {
            let mut pair = Pair::new(&world.server, &world.client(versions));
            pair.carry(cut);
            assert!(pair.at_server.handshaken.is_some() && pair.at_client.handshaken.is_some());
            let messages = [noise(3), noise(2000), noise(0), noise(40_000)];
            for message in &messages {
                pair.client.seal(&[&message[..]], &mut pair.to_server).unwrap();
                pair.server.seal(&[&message[..]], &mut pair.to_client).unwrap();
            }
            pair.client.close(&mut pair.to_server);
            pair.server.close(&mut pair.to_client);
            pair.carry(cut);
            for heard in [&pair.at_server, &pair.at_client] {
                assert!(heard.plaintext == messages.concat() && heard.is_closed && heard.error.is_none());
            }
            assert_eq!((pair.server.held_octets(), pair.client.held_octets()), (0, 0));
        }
    }
}

#[test]
fn data_may_follow_the_handshake_in_the_same_receive() {
    let world = World::new();
    for versions in VERSIONS {
        let mut pair = Pair::new(&world.server, &world.client(versions));
        // Resumed, a client of TLS 1.2 speaks last; otherwise one of TLS 1.3 does.
        for _ in 0..2 {
            while !pair.to_server.is_empty() || !pair.to_client.is_empty() {
                let flight = std::mem::take(&mut pair.to_client);
                pair.at_client.hear(&mut pair.client, &flight, &mut pair.to_server);
                if !pair.client.is_handshaking()
                    && pair.at_client.plaintext.is_empty()
                    && pair.at_server.plaintext.is_empty()
                {
                    pair.client.seal(&[&b"early"[..]], &mut pair.to_server).unwrap();
                }
                let flight = std::mem::take(&mut pair.to_server);
                pair.at_server.hear(&mut pair.server, &flight, &mut pair.to_client);
            }
            assert!(pair.at_server.plaintext.starts_with(b"early"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_cutting_changes_the_plaintext(
        is_tls13 in any::<bool>(),
        lens in prop::collection::vec(prop_oneof![0..40_usize, 900..1200_usize, 16_000..40_000_usize], 1..12),
        cuts in prop::collection::vec(prop_oneof![1..8_usize, 1..3000_usize, 1..70_000_usize], 1..20),
        in_place in any::<bool>(),
    ) {
        thread_local! {
            static WORLD: World = World::new();
        }
        WORLD.with(|world| {
            let mut pair = world.open(if is_tls13 { TlsVersions::Tls13 } else { TlsVersions::Tls12 });
            let mut expected = Vec::new();
            let mut octets = Vec::new();
            for len in lens {
                let message = noise(len);
                pair.client.seal(&[&message[..]], &mut octets).unwrap();
                expected.extend(message);
            }
            // An echo, whose replies come back to the client.
            let mut rest = &octets[..];
            let mut replies = Vec::new();
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at(cut.min(rest.len()));
                rest = after;
                let mut part = part.to_vec();
                let mut at = 0;
                loop {
                    let (octets, plaintext, room) = match pair.server.open(&mut part, &mut at, &mut replies).unwrap() {
                        Opened::Plaintext { plaintext, room } => (&mut part, plaintext, room),
                        Opened::Kept { octets, plaintext } => {
                            part = part.split_off(at);
                            at = 0;
                            let room = 0..octets.len();
                            let rest = std::mem::replace(&mut part, octets);
                            reply(&mut pair.server, &mut part, plaintext, room, in_place, &mut replies);
                            part = rest;
                            continue;
                        }
                        Opened::Drained => break,
                        other => panic!("{other:?}"),
                    };
                    reply(&mut pair.server, octets, plaintext, room, in_place, &mut replies);
                }
            }
            pair.at_client.hear(&mut pair.client, &replies, &mut pair.to_server);
            assert!(pair.at_client.plaintext == expected);
        });
    }
}

/// Sends the plaintext back: where it is, which always has room, or through a vector.
fn reply(
    link: &mut TlsLink,
    octets: &mut [u8],
    plaintext: std::ops::Range<usize>,
    room: std::ops::Range<usize>,
    in_place: bool,
    replies: &mut Vec<u8>,
) {
    if in_place {
        let range = link.seal_in_place(octets, plaintext, room).expect("an echo has room");
        replies.extend_from_slice(&octets[range]);
    } else {
        link.seal(&[&octets[plaintext]], replies).unwrap();
    }
}
