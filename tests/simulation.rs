//! The whole server in memory, over many seeds: short reads, short sends, resets, slow and silent peers.
//! A failure prints its seed; `RESOUND_SEED=N` runs that seed alone, `RESOUND_SEEDS=N` more of them.

mod common;

use std::time::Duration;

use common::simulated::{TURNS_MAX, config, each_seed, script};
use common::{SWITCHING, close_payload, frames, message, reply, request};
use resound::net::sim::{Chance, End, Network, Script};
use resound::proto::Opcode;
use resound::server::{Drive, Simulation};

/// A conversation of random messages, and the replies it must get.
fn conversation(chance: &mut Chance) -> (Vec<u8>, Vec<u8>) {
    let (mut sends, mut expected) = (request("/"), SWITCHING.as_bytes().to_vec());
    for _ in 0..chance.below(30) {
        let len = match chance.below(4) {
            0 => chance.below(200),
            1 => chance.below(20_000),
            _ => chance.below(30),
        };
        let payload = vec![b'a' + chance.below(26) as u8; len];
        match chance.below(4) {
            0 => {
                let payload = &payload[..payload.len().min(125)];
                sends.extend(message(Opcode::Ping, payload));
                expected.extend(reply(Opcode::Pong, payload));
            }
            1 => {
                let at = payload.len() / 2;
                sends.extend(common::masked(false, Opcode::Binary, &payload[..at]));
                sends.extend(message(Opcode::Ping, b"between"));
                sends.extend(common::masked(true, Opcode::Continuation, &payload[at..]));
                expected.extend(reply(Opcode::Pong, b"between"));
                expected.extend(reply(Opcode::Binary, &payload));
            }
            _ => {
                sends.extend(message(Opcode::Text, &payload));
                expected.extend(reply(Opcode::Text, &payload));
            }
        }
    }
    (sends, expected)
}

#[test]
fn every_peer_gets_exactly_its_replies_however_the_octets_are_cut() {
    each_seed(|seed, drive| {
        let (network, mut chance) = (Network::new(seed), Chance::new(seed));
        let mut simulation = Simulation::new(config(&[]), &network, drive).unwrap();
        let mut peers = Vec::new();
        for _ in 0..1 + chance.below(6) {
            let (mut sends, mut expected) = conversation(&mut chance);
            if chance.one_in(2) {
                sends.extend(message(Opcode::Close, &close_payload(1000, "done")));
                expected.extend(reply(Opcode::Close, &close_payload(1000, "")));
            }
            let capacity = 1 + chance.below(10_000);
            // Half-closed: it sends FIN at once and is still owed everything.
            peers.push((network.connect(Script { capacity, ..script(sends) }), expected));
        }
        simulation.run(TURNS_MAX);
        for (peer, expected) in &peers {
            assert!(network.received(*peer) == *expected, "peer {peer} got something else");
            assert_eq!(network.end(*peer), End::Fin);
        }
        let counters = simulation.counters();
        assert_eq!(counters.accepted_total.value(), peers.len() as u64);
        assert_eq!(counters.closed_total.value(), peers.len() as u64);
    });
}

#[test]
fn resets_at_any_time_hurt_nobody_else() {
    each_seed(|seed, drive| {
        let (network, mut chance) = (Network::new(seed), Chance::new(seed));
        let mut simulation = Simulation::new(config(&[]), &network, drive).unwrap();
        let mut peers = Vec::new();
        for _ in 0..8 {
            let (sends, expected) = conversation(&mut chance);
            let resets = chance.one_in(2);
            peers.push((network.connect(Script { resets, ..script(sends) }), expected, resets));
        }
        simulation.run(TURNS_MAX);
        for (peer, expected, resets) in &peers {
            let received = network.received(*peer);
            assert!(if *resets { expected.starts_with(&received) } else { received == *expected });
        }
        assert_eq!(simulation.counters().closed_total.value(), peers.len() as u64);
    });
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from_and_loses_nothing() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let flags =
            ["--message-size-max", "10000", "--send-queue-bytes-max", "16384", "--idle-timeout-ms", "0"];
        let mut simulation = Simulation::new(config(&flags), &network, drive).unwrap();
        let (mut sends, mut expected) = (request("/"), SWITCHING.as_bytes().to_vec());
        for index in 0..20u8 {
            sends.extend(message(Opcode::Binary, &[index; 9_000]));
            expected.extend(reply(Opcode::Binary, &[index; 9_000]));
        }
        let peer = network.connect(Script { reads: false, fin: false, ..script(sends) });
        let queued_max = simulation.run(TURNS_MAX);
        assert!(queued_max > 0 && queued_max <= 16384, "{queued_max}");
        assert!(network.received(peer).is_empty());
        network.start_reading(peer);
        let queued_max = simulation.run(TURNS_MAX);
        assert!(queued_max <= 16384, "{queued_max}");
        assert!(network.received(peer) == expected);
    });
}

/// The members of one room and what each of them got after the handshake.
fn broadcast(seed: u64, drive: Drive, flags: &[&str], slow: bool) -> (Simulation, Vec<Vec<u8>>, Vec<End>) {
    let network = Network::new(seed);
    let mut simulation = Simulation::new(config(flags), &network, drive).unwrap();
    let member = |reads| Script { fin: false, reads, capacity: 2_000, ..script(request("/broadcast/room")) };
    let members: Vec<_> = (0..4).map(|index| network.connect(member(!slow || index > 0))).collect();
    simulation.run(TURNS_MAX);
    for number in 0..50u8 {
        for (index, &member) in members.iter().enumerate().skip(1) {
            let payload = [index as u8, number, 0, 0, 0, 0, 0, 0, 0, 0].repeat(10);
            network.send(member, &message(Opcode::Binary, &payload));
        }
        // Whoever reads has read everything before the next round.
        simulation.run(TURNS_MAX);
    }
    if slow {
        network.start_reading(members[0]);
        simulation.run(TURNS_MAX);
    }
    let received =
        members.iter().map(|&member| network.received(member)[SWITCHING.len()..].to_vec()).collect();
    let ends = members.iter().map(|&member| network.end(member)).collect();
    (simulation, received, ends)
}

/// Checks that each publisher's messages arrived in order, and returns how many did.
fn in_order(received: &[u8]) -> usize {
    let mut next = [0; 4];
    let frames: Vec<_> =
        frames(received).into_iter().filter(|(opcode, _)| *opcode == Opcode::Binary).collect();
    for (_, payload) in &frames {
        let (publisher, number) = (usize::from(payload[0]), payload[1]);
        assert!(number >= next[publisher], "reordered or duplicated");
        next[publisher] = number + 1;
    }
    frames.len()
}

#[test]
fn every_member_of_a_room_gets_every_message_in_order_its_own_too() {
    each_seed(|seed, drive| {
        let (simulation, received, _) = broadcast(seed, drive, &[], false);
        for received in &received {
            assert_eq!(in_order(received), 150);
        }
        let counters = simulation.counters();
        assert_eq!((counters.published_total.value(), counters.delivered_total.value()), (150, 600));
        assert_eq!(counters.slow_consumer_dropped_total.value(), 0);
    });
}

const SMALL_QUEUE: [&str; 6] =
    ["--message-size-max", "2000", "--send-queue-bytes-max", "7200", "--idle-timeout-ms", "0"];

#[test]
fn a_slow_member_misses_counted_messages_and_delays_nobody() {
    for policy in ["drop-newest", "drop-oldest"] {
        each_seed(|seed, drive| {
            let (simulation, received, _) =
                broadcast(seed, drive, &[&SMALL_QUEUE[..], &["--slow-consumer", policy]].concat(), true);
            for received in &received[1..] {
                assert_eq!(in_order(received), 150);
            }
            let got = in_order(&received[0]) as u64;
            let dropped = simulation.counters().slow_consumer_dropped_total.value();
            assert!(got < 150 && got + dropped == 150, "{got} got and {dropped} dropped");
            let last = frames(&received[0]).last().map(|(_, payload)| payload[1]);
            assert!(policy == "drop-newest" || last == Some(49), "the newest survives");
        });
    }
}

#[test]
fn a_slow_member_can_be_closed_with_1013() {
    each_seed(|seed, drive| {
        let flags =
            [&SMALL_QUEUE[..], &["--slow-consumer", "close", "--close-timeout-ms", "600000"]].concat();
        let (simulation, received, _) = broadcast(seed, drive, &flags, true);
        assert_eq!(simulation.counters().slow_consumer_closed_total.value(), 1);
        let last = frames(&received[0]).pop().unwrap();
        assert_eq!(last, (Opcode::Close, close_payload(1013, "too slow for this room")));
    });
}

#[test]
fn a_silent_peer_is_pinged_and_then_closed_and_one_that_answers_is_not() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let mut simulation =
            Simulation::new(config(&["--idle-timeout-ms", "2000"]), &network, drive).unwrap();
        let silent = network.connect(Script { fin: false, ..script(request("/")) });
        simulation.run(TURNS_MAX);
        simulation.run_for(Duration::from_secs(20), TURNS_MAX);
        let expected = [
            SWITCHING.as_bytes().to_vec(),
            reply(Opcode::Ping, b""),
            reply(Opcode::Close, &close_payload(1001, "idle")),
        ];
        assert!(network.received(silent) == expected.concat());
        assert_eq!(network.end(silent), End::Reset, "it never answers the Close");
        let counters = simulation.counters();
        assert_eq!((counters.idle_timeouts_total.value(), counters.close_timeouts_total.value()), (1, 1));
    });
}

#[test]
fn a_head_that_never_ends_is_given_up() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let mut simulation = Simulation::new(config(&[]), &network, drive).unwrap();
        let peers = ["", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n"];
        for sends in peers {
            network.connect(Script { fin: false, ..script(sends.into()) });
        }
        simulation.run_for(Duration::from_secs(9), TURNS_MAX);
        assert_eq!(simulation.counters().closed_total.value(), 0);
        simulation.run_for(Duration::from_secs(2), TURNS_MAX);
        let counters = simulation.counters();
        assert_eq!((counters.handshake_timeouts_total.value(), counters.closed_total.value()), (3, 3));
    });
}

#[test]
fn a_drain_says_1001_to_everyone_after_what_they_are_owed() {
    each_seed(|seed, drive| {
        let (network, mut chance) = (Network::new(seed), Chance::new(seed));
        let mut simulation =
            Simulation::new(config(&["--drain-ms", "100", "--close-timeout-ms", "300"]), &network, drive)
                .unwrap();
        let mut peers = Vec::new();
        for _ in 0..8 {
            let (sends, mut expected) = conversation(&mut chance);
            expected.extend(reply(Opcode::Close, &close_payload(1001, "the server goes down")));
            peers.push((network.connect(Script { fin: false, ..script(sends) }), expected));
        }
        simulation.run(TURNS_MAX);
        simulation.stop();
        // Half of them answer the Close; the others are cut off in the end.
        for (peer, _) in peers.iter().step_by(2) {
            network.send(*peer, &message(Opcode::Close, &close_payload(1001, "")));
        }
        simulation.run_for(Duration::from_secs(1), TURNS_MAX);
        for (index, (peer, expected)) in peers.iter().enumerate() {
            let received = network.received(*peer);
            // A Close that was under way first gets its reply, and no other.
            let answered =
                [&expected[..expected.len() - 24], &reply(Opcode::Close, &close_payload(1001, ""))].concat();
            assert!(received == *expected || (index % 2 == 0 && received == answered), "peer {peer}");
        }
        assert_eq!(simulation.counters().closed_total.value(), 8);
    });
}

#[test]
fn connections_beyond_the_limit_get_503() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let mut simulation = Simulation::new(config(&["--connections-max", "2"]), &network, drive).unwrap();
        let peers: Vec<_> =
            (0..4).map(|_| network.connect(Script { fin: false, ..script(request("/")) })).collect();
        simulation.run(2_000_000);
        let refused = peers
            .iter()
            .filter(|&&peer| network.received(peer).starts_with(b"HTTP/1.1 503 Service Unavailable\r\n"));
        assert_eq!((refused.count(), simulation.counters().refused_total.value()), (2, 2));
    });
}

#[test]
fn connections_that_were_refused_take_no_place() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let mut simulation = Simulation::new(config(&["--connections-max", "2"]), &network, drive).unwrap();
        let connect = || network.connect(Script { fin: false, ..script(request("/")) });
        let (first, _) = (connect(), connect());
        simulation.run(TURNS_MAX);
        // The first closes and sends no FIN: it keeps its place for the close timeout, 5 s.
        network.send(first, &message(Opcode::Close, &close_payload(1000, "")));
        simulation.run_for(Duration::from_secs(3), TURNS_MAX);
        let refused: Vec<_> = (0..5).map(|_| connect()).collect();
        simulation.run_for(Duration::from_secs(3), TURNS_MAX);
        let counters = simulation.counters();
        assert_eq!((counters.refused_total.value(), counters.closed_total.value()), (5, 1));
        // Those that were refused have 2 s left, and no place.
        let next = connect();
        simulation.run(TURNS_MAX);
        assert!(network.received(next) == SWITCHING.as_bytes());
        let one_more = connect();
        simulation.run(TURNS_MAX);
        for peer in refused.into_iter().chain([one_more]) {
            assert!(network.received(peer).starts_with(b"HTTP/1.1 503 Service Unavailable\r\n"));
        }
        simulation.run_for(Duration::from_secs(10), TURNS_MAX);
        assert_eq!(
            simulation.counters().close_timeouts_total.value(),
            7,
            "the first, and those that were refused"
        );
    });
}

#[test]
fn more_than_a_thousand_refused_connections_do_not_linger() {
    let network = Network::new(1);
    let mut simulation =
        Simulation::new(config(&["--connections-max", "1"]), &network, Drive::Readiness).unwrap();
    let peers: Vec<_> =
        (0..1_011).map(|_| network.connect(Script { fin: false, ..script(request("/")) })).collect();
    simulation.run(TURNS_MAX);
    let counters = simulation.counters();
    assert_eq!((counters.refused_total.value(), counters.refused_at_once_total.value()), (1_010, 10));
    let ends = |end| peers.iter().filter(|&&peer| network.end(peer) == end).count();
    assert_eq!((ends(End::No), ends(End::Fin), ends(End::Reset)), (1, 1_000, 10));
    // When they are gone there is room for politeness again.
    simulation.run_for(Duration::from_secs(10), TURNS_MAX);
    let last = network.connect(Script { fin: false, ..script(request("/")) });
    simulation.run(TURNS_MAX);
    assert!(network.received(last).starts_with(b"HTTP/1.1 503 Service Unavailable\r\n"));
}

#[test]
fn answers_carry_the_date_of_the_backends_clock() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let mut simulation = Simulation::new(config(&["--connections-max", "2"]), &network, drive).unwrap();
        let plain = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let asker = network.connect(Script { fin: false, ..script(plain.clone()) });
        let refused = network.connect(Script { fin: false, ..script(b"nonsense\r\n\r\n".to_vec()) });
        simulation.run(TURNS_MAX);
        simulation.run_for(Duration::from_secs(3), TURNS_MAX);
        network.send(asker, &plain);
        let beyond: Vec<_> =
            (0..2).map(|_| network.connect(Script { fin: false, ..script(request("/")) })).collect();
        simulation.run(TURNS_MAX);
        let dates = |peer| {
            let text = String::from_utf8(network.received(peer)).unwrap();
            text.lines().filter_map(|line| line.strip_prefix("Date: ").map(str::to_owned)).collect::<Vec<_>>()
        };
        let at = |second| format!("Sun, 06 Nov 1994 08:49:{second} GMT");
        assert_eq!(dates(asker), [at(37), at(40)]);
        assert_eq!(dates(refused), [at(37)]);
        assert!(beyond.iter().any(|&peer| dates(peer) == [at(40)]), "503 too");
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed, drive| {
        let (network, mut chance) = (Network::new(seed), Chance::new(seed));
        let mut simulation = Simulation::new(config(&[]), &network, drive).unwrap();
        for _ in 0..5 {
            network.connect(Script { resets: true, ..script(conversation(&mut chance).0) });
        }
        simulation.run(TURNS_MAX);
        (0..5).map(|peer| network.received(peer)).collect::<Vec<_>>()
    };
    for drive in [Drive::Readiness, Drive::Ring] {
        assert!((0..20).all(|seed| run(seed, drive) == run(seed, drive)));
        assert!((0..20).any(|seed| run(seed, drive) != run(seed + 1, drive)));
    }
}
