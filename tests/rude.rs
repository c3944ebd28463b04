//! Peers that do not behave, on the simulator and its clock: who is cut off and who is not, when, and with which code;
//! and that whoever behaves beside them gets every reply. docs/limits.md has the table that this holds.

mod common;

use std::time::Duration;

use common::simulated::{TURNS_MAX, config, each_seed, script};
use common::{SWITCHING, close_payload, frames, masked, message, reply, request};
use resound::mask::{self, MaskingKey};
use resound::net::sim::{End, Network, PeerId, Script};
use resound::proto::{FrameHeader, Opcode};
use resound::server::{Drive, Simulation};

const SECOND: Duration = Duration::from_secs(1);

/// A server, and a peer that has opened a connection to `path` and keeps it.
fn open(seed: u64, drive: Drive, flags: &[&str], path: &str) -> (Network, Simulation, PeerId) {
    let network = Network::new(seed);
    let mut simulation = Simulation::new(config(flags), &network, drive).unwrap();
    let peer = network.connect(keeps(request(path)));
    simulation.run(TURNS_MAX);
    (network, simulation, peer)
}

fn keeps(sends: Vec<u8>) -> Script {
    Script { fin: false, capacity: 2_000, ..script(sends) }
}

/// What the peer got after the handshake.
fn replies(network: &Network, peer: PeerId) -> Vec<u8> {
    network.received(peer)[SWITCHING.len()..].to_vec()
}

#[test]
fn a_peer_that_reads_slowly_is_not_cut_off_and_loses_nothing() {
    each_seed(|seed, drive| {
        let network = Network::new(seed);
        let flags = ["--send-stall-timeout-ms", "60000", "--idle-timeout-ms", "400000"];
        let mut simulation = Simulation::new(config(&flags), &network, drive).unwrap();
        let payload = vec![7; 10_000];
        let sends = [request("/"), message(Opcode::Binary, &payload)].concat();
        let peer = network.connect(Script { reads: false, ..keeps(sends) });
        simulation.run(TURNS_MAX);
        let expected = SWITCHING.len() + reply(Opcode::Binary, &payload).len();
        let mut minutes = 0;
        while network.received(peer).len() < expected {
            assert_eq!(network.end(peer), End::No, "after {minutes} minutes");
            simulation.run_for(50 * SECOND, TURNS_MAX);
            network.read(peer, 1_000);
            minutes += 1;
            assert!(minutes < 60, "{} of {expected} octets", network.received(peer).len());
        }
        assert!(replies(&network, peer) == reply(Opcode::Binary, &payload));
        // From here on it is silent like any other.
        network.start_reading(peer);
        simulation.run_for(500 * SECOND, TURNS_MAX);
        assert_eq!(simulation.counters().idle_timeouts_total.value(), 1);
        assert_eq!(simulation.counters().send_stalls_total.value(), 0);
    });
}

#[test]
fn a_peer_that_takes_nothing_is_cut_off_after_the_stall_timeout() {
    for mode in ["echo", "raw"] {
        each_seed(|seed, drive| {
            let network = Network::new(seed);
            let flags = ["--mode", mode, "--send-stall-timeout-ms", "60000", "--idle-timeout-ms", "0"];
            let mut simulation = Simulation::new(config(&flags), &network, drive).unwrap();
            let sends = [request("/"), message(Opcode::Binary, &[7; 10_000])].concat();
            let peer = network.connect(Script { reads: false, ..keeps(sends) });
            simulation.run(TURNS_MAX);
            simulation.run_for(59 * SECOND, TURNS_MAX);
            assert_eq!(network.end(peer), End::No);
            simulation.run_for(20 * SECOND, TURNS_MAX);
            assert_eq!(network.end(peer), End::Reset);
            assert_eq!(simulation.counters().send_stalls_total.value(), 1);
        });
    }
}

#[test]
fn a_message_that_dribbles_is_closed_with_1008_when_its_time_is_over() {
    each_seed(|seed, drive| {
        let flags = ["--message-timeout-ms", "60000"];
        let (network, mut simulation, peer) = open(seed, drive, &flags, "/");
        let octets = message(Opcode::Binary, &[7; 1_000]);
        // The times of messages that came before do not add up.
        for part in octets.chunks(400) {
            network.send(peer, part);
            simulation.run_for(25 * SECOND, TURNS_MAX);
        }
        network.send(peer, &octets[..20]);
        for octet in &octets[20..26] {
            simulation.run_for(10 * SECOND, TURNS_MAX);
            network.send(peer, &[*octet]);
        }
        simulation.run_for(SECOND, TURNS_MAX);
        let expected = [
            reply(Opcode::Binary, &[7; 1_000]),
            reply(Opcode::Close, &close_payload(1008, "the message takes too long")),
        ];
        assert_eq!(replies(&network, peer), expected.concat());
        assert_eq!(simulation.counters().message_timeouts_total.value(), 1);
    });
}

#[test]
fn a_slow_member_gets_its_1013_at_once_and_not_behind_its_backlog() {
    each_seed(|seed, drive| {
        let limits = ["--message-size-max", "2000", "--send-queue-bytes-max", "30000"];
        let flags = [&limits[..], &["--slow-consumer", "close"]].concat();
        let (network, mut simulation, slow) = open(seed, drive, &flags, "/broadcast/room");
        let publisher = network.connect(keeps(request("/broadcast/room")));
        simulation.run(TURNS_MAX);
        network.stop_reading(slow);
        for number in 0..60 {
            network.send(publisher, &message(Opcode::Binary, &[number; 1_000]));
            simulation.run(TURNS_MAX);
        }
        network.start_reading(slow);
        simulation.run(TURNS_MAX);
        let got = frames(&replies(&network, slow));
        let (last, before) = got.split_last().unwrap();
        assert_eq!(*last, (Opcode::Close, close_payload(1013, "too slow for this room")));
        // What the socket had taken, and the one that was begun.
        assert!(before.len() <= 3, "{} messages", before.len());
        assert_eq!(frames(&replies(&network, publisher)).len(), 60);
    });
}

#[test]
fn what_has_arrived_is_answered_before_the_servers_close() {
    each_seed(|seed, drive| {
        let (network, mut simulation, peer) = open(seed, drive, &["--drain-ms", "0"], "/");
        let mut expected = Vec::new();
        for number in 0..40 {
            network.send(peer, &message(Opcode::Binary, &[number; 700]));
            expected.extend(reply(Opcode::Binary, &[number; 700]));
        }
        let late = network.connect(keeps(request("/")));
        simulation.stop();
        simulation.run_for(20 * SECOND, TURNS_MAX);
        let close = reply(Opcode::Close, &close_payload(1001, "the server goes down"));
        expected.extend(&close);
        assert!(replies(&network, peer) == expected);
        // It may have come before the listeners were closed, and then it is served.
        let last = network.received(late);
        assert!(last.is_empty() || last == [SWITCHING.as_bytes(), &close].concat());
    });
}

/// Zeros as one compressed frame: an ending block, and the octet that RFC 7692 §7.2.3.4 puts behind it.
fn bomb(len: usize) -> Vec<u8> {
    let mut deflated = miniz_oxide::deflate::compress_to_vec(&vec![0; len], 6);
    deflated.push(0);
    let key = MaskingKey::from_wire([1, 2, 3, 4]);
    let header = FrameHeader {
        rsv1: true,
        masking_key: Some(key),
        ..FrameHeader::message(Opcode::Binary, deflated.len())
    };
    let mut octets = vec![0; header.encoded_len()];
    header.write(&mut octets);
    mask::unmask_append(&mut octets, &deflated, key);
    octets
}

#[test]
fn messages_that_inflate_over_many_turns_are_answered_whole_and_others_meanwhile() {
    let flags = ["--deflate", "on", "--deflate-recompress", "--idle-timeout-ms", "0"];
    let compressed = String::from_utf8(request("/")).unwrap();
    let compressed = compressed.replace(
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Version",
    );
    for (seed, drive) in (0..4).flat_map(|seed| [(seed, Drive::Readiness), (seed, Drive::Ring)]) {
        let network = Network::new(seed);
        let mut simulation = Simulation::new(config(&flags), &network, drive).unwrap();
        let sends =
            [compressed.clone().into_bytes(), bomb(5 << 20), message(Opcode::Ping, b"after"), bomb(3 << 20)];
        let bomber = network.connect(Script { fin: false, ..script(sends.concat()) });
        let other =
            network.connect(keeps([request("/"), message(Opcode::Text, b"hello").repeat(50)].concat()));
        simulation.run(TURNS_MAX);
        assert!(replies(&network, other) == reply(Opcode::Text, b"hello").repeat(50));
        let counters = simulation.counters();
        assert_eq!((counters.messages_total.value(), counters.protocol_errors_total.value()), (52, 0));
        let got = network.received(bomber);
        let pong = reply(Opcode::Pong, b"after");
        assert!(got.windows(pong.len()).any(|window| window == pong));
        assert!(counters.receives_held_total.value() > 0, "{}", counters.receives_held_total.value());
    }
}

#[test]
fn a_large_room_is_delivered_to_over_many_turns_in_order_while_members_come_and_go() {
    for (seed, drive) in [(1, Drive::Readiness), (2, Drive::Ring)] {
        let network = Network::new(seed);
        let mut simulation = Simulation::new(config(&["--idle-timeout-ms", "0"]), &network, drive).unwrap();
        let member = || Script { capacity: 100_000, ..keeps(request("/broadcast/large")) };
        let publisher = network.connect(member());
        let leaver = network.connect(member());
        let stays: Vec<_> = (0..1_200).map(|_| network.connect(member())).collect();
        simulation.run(1_000_000);
        let mut joined = Vec::new();
        for number in 0..30u8 {
            network.send(publisher, &message(Opcode::Binary, &[number; 10]));
            // A few turns only: the next one comes while this one is delivered.
            simulation.turns(2);
            if number == 10 {
                network.send(leaver, &message(Opcode::Close, &close_payload(1000, "")));
            }
            if number % 5 == 0 {
                joined.push(network.connect(member()));
            }
        }
        simulation.run(1_000_000);
        let numbers = |peer| -> Vec<u8> {
            let got = frames(&replies(&network, peer));
            got.iter()
                .filter(|(opcode, _)| *opcode == Opcode::Binary)
                .map(|(_, payload)| payload[0])
                .collect()
        };
        for peer in [publisher].into_iter().chain(stays) {
            assert_eq!(numbers(peer), (0..30).collect::<Vec<u8>>());
        }
        for peer in joined.into_iter().chain([leaver]) {
            let numbers = numbers(peer);
            assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        }
    }
}

#[test]
fn hoarders_meet_the_ceiling_and_a_small_peer_beside_them_gets_every_reply() {
    let ceiling = 48 << 20;
    for (seed, drive) in (0..3).flat_map(|seed| [(seed, Drive::Readiness), (seed, Drive::Ring)]) {
        let network = Network::new(seed);
        let flags = [
            "--memory-bytes-max",
            &ceiling.to_string(),
            "--message-size-max",
            "2097152",
            "--idle-timeout-ms",
            "0",
        ];
        let mut simulation = Simulation::new(config(&flags), &network, drive).unwrap();
        let partial = masked(true, Opcode::Binary, &vec![1; 2 << 20]);
        let hoarders: Vec<_> = (0..40)
            .map(|_| network.connect(keeps([request("/"), partial[..partial.len() - 1].to_vec()].concat())))
            .collect();
        let small = network.connect(keeps(request("/")));
        for number in 0..100u8 {
            network.send(small, &message(Opcode::Binary, &[number; 100]));
            simulation.turns(20);
            simulation.run_for(Duration::from_millis(20), 10_000_000);
        }
        simulation.run_for(10 * SECOND, 10_000_000);
        let expected: Vec<u8> = (0..100u8).flat_map(|number| reply(Opcode::Binary, &[number; 100])).collect();
        assert!(replies(&network, small) == expected);
        assert!(simulation.memory_bytes_max() < ceiling, "{}", simulation.memory_bytes_max());
        let counters = simulation.counters();
        assert!(counters.memory_closed_total.value() > 0);
        // Whoever was closed was told why.
        let close = close_payload(1013, "memory is short");
        let told = hoarders.iter().filter(|&&peer| network.received(peer).ends_with(&close));
        assert!(told.count() > 0);
    }
}
