//! The whole server in memory with TLS, over many seeds: records cut anywhere, short sends, peers that stall in their
//! handshake, that end without a word, that send something else.
//! A failure prints its seed; `RESOUND_SEED=N` runs that seed alone, `RESOUND_SEEDS=N` more of them.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use clap::Parser as _;
use common::stream::tls_client;
use common::{SWITCHING, close_payload, frames, message, reply, request};
use resound::config::Config;
use resound::net::sim::{Chance, End, Network, PeerId, Script};
use resound::net::tls::{Opened, TlsError, TlsLink, TlsVersions};
use resound::proto::Opcode;
use resound::server::{Drive, Simulation};

/// A socket that takes one octet at a time needs many.
const TURNS_MAX: u32 = 2_000_000;

/// A server that speaks TLS, and its network.
fn server(seed: u64, drive: Drive, flags: &[&str]) -> (Network, Simulation) {
    let tls =
        ["resound", "--receive-buffer-bytes", "4096", "--listen", "wss://127.0.0.1:1", "--tls-self-signed"];
    let network = Network::new(seed);
    let simulation = Simulation::new(Config::parse_from([&tls, flags].concat()), &network, drive).unwrap();
    (network, simulation)
}

/// Runs `test` with every seed, each driven by readiness and by a simulated ring.
fn each_seed(test: impl Fn(u64, Drive)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RESOUND_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RESOUND_SEEDS").unwrap_or(40),
    };
    for (seed, drive) in seeds.flat_map(|seed| [(seed, Drive::Readiness), (seed, Drive::Ring)]) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed, drive))) {
            eprintln!("failed with RESOUND_SEED={seed}, driven by {drive:?}");
            resume_unwind(panic);
        }
    }
}

fn script(sends: Vec<u8>) -> Script {
    Script { sends, fin: false, resets: false, capacity: 10_000, reads: true }
}

/// A peer with TLS.
struct Peer {
    id: PeerId,
    link: TlsLink,
    /// Octets of the network that were opened.
    opened: usize,
    plaintext: Vec<u8>,
    /// close_notify came.
    is_closed: bool,
    error: Option<TlsError>,
}

impl Peer {
    fn connect(network: &Network, versions: TlsVersions, script: Script) -> Self {
        let mut hello = Vec::new();
        let link = tls_client(versions, false).link(&mut hello).unwrap();
        let id = network.connect(Script { sends: hello, ..script });
        Self { id, link, opened: 0, plaintext: Vec::new(), is_closed: false, error: None }
    }

    /// Opens what has arrived, and answers.
    fn hear(&mut self, network: &Network) {
        let mut octets = network.received(self.id).split_off(self.opened);
        self.opened += octets.len();
        let (mut at, mut out) = (0, Vec::new());
        loop {
            match self.link.open(&mut octets, &mut at, &mut out) {
                Ok(Opened::Plaintext { plaintext, .. }) => {
                    self.plaintext.extend_from_slice(&octets[plaintext])
                }
                Ok(Opened::Kept { octets, plaintext }) => {
                    self.plaintext.extend_from_slice(&octets[plaintext])
                }
                Ok(Opened::Handshaken(_)) => {}
                Ok(Opened::PeerClosed) => self.is_closed = true,
                Ok(Opened::Drained) => break,
                Err(error) => self.error = Some(error),
            }
        }
        network.send(self.id, &out);
    }

    /// Sends octets in records of any length.
    fn say(&mut self, network: &Network, chance: &mut Chance, mut octets: &[u8]) {
        let mut out = Vec::new();
        while !octets.is_empty() {
            let len = match chance.below(3) {
                0 => 1 + chance.below(40),
                1 => 1 + chance.below(3000),
                _ => octets.len(),
            };
            let (record, rest) = octets.split_at(len.min(octets.len()));
            self.link.seal(&[record], &mut out).unwrap();
            octets = rest;
        }
        network.send(self.id, &out);
    }

    /// close_notify and FIN.
    fn close(&mut self, network: &Network) {
        let mut out = Vec::new();
        self.link.close(&mut out);
        network.send(self.id, &out);
        network.fin(self.id);
    }
}

/// Runs until every handshake is done.
fn shake(network: &Network, simulation: &mut Simulation, peers: &mut [Peer]) {
    while peers.iter().any(|peer| peer.link.is_handshaking()) {
        simulation.run(TURNS_MAX);
        peers.iter_mut().for_each(|peer| peer.hear(network));
    }
    // The server has the last word of the client, too.
    simulation.run(TURNS_MAX);
}

fn any_version(chance: &mut Chance) -> TlsVersions {
    if chance.one_in(2) { TlsVersions::Tls12 } else { TlsVersions::Tls13 }
}

/// A conversation of random messages, and the replies it must get.
fn conversation(chance: &mut Chance) -> (Vec<u8>, Vec<u8>) {
    let (mut sends, mut expected) = (request("/"), SWITCHING.as_bytes().to_vec());
    for _ in 0..chance.below(20) {
        let len = match chance.below(4) {
            0 => chance.below(200),
            1 => chance.below(40_000),
            _ => chance.below(30),
        };
        let payload = vec![b'a' + chance.below(26) as u8; len];
        if chance.one_in(4) {
            let payload = &payload[..payload.len().min(125)];
            sends.extend(message(Opcode::Ping, payload));
            expected.extend(reply(Opcode::Pong, payload));
        } else {
            sends.extend(message(Opcode::Text, &payload));
            expected.extend(reply(Opcode::Text, &payload));
        }
    }
    (sends, expected)
}

#[test]
fn every_peer_gets_exactly_its_replies_however_the_records_are_cut() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let (network, mut simulation) = server(seed, drive, &[]);
        let count = 1 + chance.below(4);
        let mut peers: Vec<_> = (0..count)
            .map(|_| {
                let capacity = 1 + chance.below(10_000);
                Peer::connect(&network, any_version(&mut chance), Script { capacity, ..script(Vec::new()) })
            })
            .collect();
        shake(&network, &mut simulation, &mut peers);
        let mut all_expected = Vec::new();
        for peer in &mut peers {
            let (mut sends, mut expected) = conversation(&mut chance);
            if chance.one_in(2) {
                sends.extend(message(Opcode::Close, &close_payload(1000, "done")));
                expected.extend(reply(Opcode::Close, &close_payload(1000, "")));
            }
            peer.say(&network, &mut chance, &sends);
            // It ends at once and is still owed everything.
            peer.close(&network);
            all_expected.push(expected);
        }
        simulation.run(TURNS_MAX);
        for (peer, expected) in peers.iter_mut().zip(&all_expected) {
            peer.hear(&network);
            assert!(peer.plaintext == *expected, "peer {} got something else", peer.id);
            assert!(peer.is_closed, "close_notify goes before FIN");
            assert_eq!(network.end(peer.id), End::Fin);
        }
        let counters = simulation.counters();
        assert_eq!(counters.tls_handshakes_total.value(), count as u64);
        assert_eq!(counters.closed_total.value(), count as u64);
        let odd = [
            &counters.tls_truncated_total,
            &counters.tls_errors_total,
            &counters.tls_handshakes_failed_total,
        ];
        assert_eq!(odd.map(|counter| counter.value()), [0, 0, 0]);
    });
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from_and_loses_nothing() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let flags =
            ["--message-size-max", "10000", "--send-queue-bytes-max", "27408", "--idle-timeout-ms", "0"];
        let (network, mut simulation) = server(seed, drive, &flags);
        let mut peer = [Peer::connect(&network, any_version(&mut chance), script(Vec::new()))];
        shake(&network, &mut simulation, &mut peer);
        let [mut peer] = peer;
        network.stop_reading(peer.id);
        let (mut sends, mut expected) = (request("/"), SWITCHING.as_bytes().to_vec());
        for index in 0..20u8 {
            sends.extend(message(Opcode::Binary, &[index; 9_000]));
            expected.extend(reply(Opcode::Binary, &[index; 9_000]));
        }
        peer.say(&network, &mut chance, &sends);
        let queued_max = simulation.run(TURNS_MAX);
        assert!(queued_max > 0 && queued_max <= 27408, "{queued_max}");
        network.start_reading(peer.id);
        let queued_max = simulation.run(TURNS_MAX);
        assert!(queued_max <= 27408, "{queued_max}");
        peer.hear(&network);
        assert!(peer.plaintext == expected);
    });
}

/// A room with a member that does not read for a while: what it gets, and how many messages it missed.
fn slow_member(seed: u64, drive: Drive, policy: &str) -> (Vec<(Opcode, Vec<u8>)>, u64) {
    let mut chance = Chance::new(seed);
    let flags = ["--slow-consumer", policy, "--send-queue-bytes-max", "20000", "--message-size-max", "2000"];
    let (network, mut simulation) = server(seed, drive, &flags);
    let mut peers: Vec<_> = (0..2)
        .map(|_| {
            let script = Script { capacity: 2_000, ..script(Vec::new()) };
            Peer::connect(&network, any_version(&mut chance), script)
        })
        .collect();
    shake(&network, &mut simulation, &mut peers);
    for peer in &mut peers {
        peer.say(&network, &mut chance, &request("/broadcast/room"));
        simulation.run(TURNS_MAX);
    }
    network.stop_reading(peers[0].id);
    for number in 0..40u8 {
        peers[1].say(&network, &mut chance, &message(Opcode::Binary, &[number; 700]));
        simulation.run(TURNS_MAX);
    }
    network.start_reading(peers[0].id);
    simulation.run_for(Duration::from_secs(1), TURNS_MAX);
    peers.iter_mut().for_each(|peer| peer.hear(&network));
    assert_eq!(frames(&peers[1].plaintext[SWITCHING.len()..]).len(), 40, "nobody else misses anything");
    assert!(peers[0].error.is_none());
    let got = frames(&peers[0].plaintext[SWITCHING.len()..]);
    (got, simulation.counters().slow_consumer_dropped_total.value())
}

#[test]
fn a_slow_member_misses_whole_messages_and_no_record() {
    each_seed(|seed, drive| {
        for policy in ["drop-oldest", "drop-newest"] {
            let (got, dropped) = slow_member(seed, drive, policy);
            assert!(dropped > 0 && got.len() as u64 + dropped == 40, "{policy}: {} and {dropped}", got.len());
            assert!(got.iter().all(|(_, payload)| *payload == [payload[0]; 700]));
            assert!(got.windows(2).all(|pair| pair[0].1[0] < pair[1].1[0]), "in order");
            let last = got.last().unwrap().1[0];
            assert_eq!(policy == "drop-oldest", last == 39, "{policy}: {last} is the last");
        }
        let (got, _) = slow_member(seed, drive, "close");
        assert_eq!(*got.last().unwrap(), (Opcode::Close, close_payload(1013, "too slow for this room")));
    });
}

#[test]
fn who_ends_without_close_notify_is_counted_and_served() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let (network, mut simulation) = server(seed, drive, &[]);
        let mut peers = [Peer::connect(&network, any_version(&mut chance), script(Vec::new()))];
        shake(&network, &mut simulation, &mut peers);
        let [mut peer] = peers;
        let (sends, expected) = conversation(&mut chance);
        peer.say(&network, &mut chance, &sends);
        network.fin(peer.id);
        // This one ends in its handshake.
        let other = network.connect(Script { fin: true, ..script(vec![22, 3, 1]) });
        simulation.run(TURNS_MAX);
        peer.hear(&network);
        assert!(peer.plaintext == expected && peer.is_closed);
        assert_eq!((network.end(peer.id), network.end(other)), (End::Fin, End::Fin));
        let counters = simulation.counters();
        assert_eq!(counters.tls_truncated_total.value(), 1);
        assert_eq!(counters.tls_handshakes_failed_total.value(), 1);
        assert_eq!(counters.closed_total.value(), 2);
    });
}

#[test]
fn a_changed_octet_ends_the_connection_with_an_alert() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let (network, mut simulation) = server(seed, drive, &[]);
        let mut peers = [Peer::connect(&network, any_version(&mut chance), script(Vec::new()))];
        shake(&network, &mut simulation, &mut peers);
        let [mut peer] = peers;
        peer.say(&network, &mut chance, &[request("/"), message(Opcode::Text, b"before")].concat());
        simulation.run(TURNS_MAX);
        let mut record = Vec::new();
        peer.link.seal(&[message(Opcode::Text, &[b'x'; 3000])], &mut record).unwrap();
        let at = 5 + chance.below(record.len() - 5);
        record[at] ^= 1;
        network.send(peer.id, &record);
        network.fin(peer.id);
        simulation.run(TURNS_MAX);
        peer.hear(&network);
        assert_eq!(peer.plaintext, [SWITCHING.as_bytes(), &reply(Opcode::Text, b"before")].concat());
        assert_eq!(peer.error.expect("an alert").to_string(), "the peer sent the alert BadRecordMac");
        assert_eq!(network.end(peer.id), End::Fin);
        let counters = simulation.counters();
        assert_eq!((counters.tls_errors_total.value(), counters.closed_total.value()), (1, 1));
    });
}

#[test]
fn plain_http_gets_400_in_plain_text_and_garbage_an_alert() {
    each_seed(|seed, drive| {
        let (network, mut simulation) = server(seed, drive, &[]);
        let http = network.connect(Script { fin: true, ..script(request("/")) });
        let garbage = network.connect(Script { fin: true, ..script(vec![0; 5000]) });
        simulation.run(TURNS_MAX);
        let answer = String::from_utf8(network.received(http)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(
            answer.ends_with("this port speaks TLS: connect to it with wss:// or https://\n"),
            "{answer}"
        );
        assert_eq!(network.received(garbage), [21, 3, 3, 0, 2, 2, 50], "decode_error");
        assert_eq!((network.end(http), network.end(garbage)), (End::Fin, End::Fin));
        let counters = simulation.counters();
        assert_eq!((counters.tls_handshakes_failed_total.value(), counters.closed_total.value()), (2, 2));
    });
}

#[test]
fn the_handshake_timeout_is_for_tls_and_http_together() {
    each_seed(|seed, drive| {
        for mode in ["echo", "raw"] {
            let mut chance = Chance::new(seed);
            let (network, mut simulation) = server(seed, drive, &["--mode", mode]);
            network.connect(script(Vec::new()));
            network.connect(script(vec![22, 3, 1, 2]));
            let done = Peer::connect(&network, any_version(&mut chance), script(Vec::new()));
            simulation.run_for(Duration::from_secs(6), TURNS_MAX);
            // Its handshake goes on late, and no request follows.
            shake(&network, &mut simulation, &mut [done]);
            simulation.run_for(Duration::from_secs(3), TURNS_MAX);
            assert_eq!(simulation.counters().closed_total.value(), 0);
            simulation.run_for(Duration::from_secs(2), TURNS_MAX);
            // In raw mode it owes no request.
            let late = if mode == "raw" { 2 } else { 3 };
            let counters = simulation.counters();
            assert_eq!(
                (counters.handshake_timeouts_total.value(), counters.closed_total.value()),
                (late, late),
                "{mode}"
            );
        }
    });
}

#[test]
fn handshakes_that_stand_still_make_room_and_those_that_do_not_keep_theirs() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let (network, mut simulation) = server(seed, drive, &["--tls-handshakes-max", "2"]);
        let silent: Vec<_> = (0..2).map(|_| network.connect(script(Vec::new()))).collect();
        simulation.run(TURNS_MAX);
        let refused = network.connect(script(Vec::new()));
        simulation.run(TURNS_MAX);
        assert_eq!(network.end(refused), End::Reset);
        let counters = simulation.counters();
        assert_eq!((counters.accepted_total.value(), counters.tls_handshakes_refused_total.value()), (2, 1));
        simulation.run_for(Duration::from_secs(2), TURNS_MAX);
        let mut peers = [Peer::connect(&network, any_version(&mut chance), script(Vec::new()))];
        shake(&network, &mut simulation, &mut peers);
        let [mut peer] = peers;
        peer.say(&network, &mut chance, &[request("/"), message(Opcode::Text, b"served")].concat());
        simulation.run(TURNS_MAX);
        peer.hear(&network);
        assert_eq!(peer.plaintext, [SWITCHING.as_bytes(), &reply(Opcode::Text, b"served")].concat());
        let ended = silent.iter().filter(|&&peer| network.end(peer) != End::No).count();
        assert_eq!(ended, 1, "one made room");
        assert_eq!(simulation.counters().tls_handshakes_refused_total.value(), 2);
        // Handshakes that are done count no more.
        let mut more = [Peer::connect(&network, any_version(&mut chance), script(Vec::new()))];
        shake(&network, &mut simulation, &mut more);
        assert_eq!(simulation.counters().tls_handshakes_total.value(), 2);
    });
}

#[test]
fn connections_beyond_the_limit_get_503_over_tls() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let (network, mut simulation) = server(seed, drive, &["--connections-max", "1"]);
        let mut peers: Vec<_> =
            (0..3).map(|_| Peer::connect(&network, any_version(&mut chance), script(Vec::new()))).collect();
        shake(&network, &mut simulation, &mut peers);
        simulation.run(TURNS_MAX);
        peers.iter_mut().for_each(|peer| peer.hear(&network));
        let refused = peers.iter().filter(|peer| {
            peer.plaintext.starts_with(b"HTTP/1.1 503 Service Unavailable\r\n") && peer.is_closed
        });
        assert_eq!(refused.count(), 2);
    });
}

#[test]
fn resets_at_any_time_hurt_nobody_else() {
    each_seed(|seed, drive| {
        let mut chance = Chance::new(seed);
        let (network, mut simulation) = server(seed, drive, &[]);
        for _ in 0..3 {
            Peer::connect(&network, any_version(&mut chance), Script { resets: true, ..script(Vec::new()) });
        }
        let mut peers = [Peer::connect(&network, any_version(&mut chance), script(Vec::new()))];
        shake(&network, &mut simulation, &mut peers);
        let [mut peer] = peers;
        let (sends, expected) = conversation(&mut chance);
        peer.say(&network, &mut chance, &sends);
        peer.close(&network);
        simulation.run_for(Duration::from_secs(20), TURNS_MAX);
        peer.hear(&network);
        assert!(peer.plaintext == expected);
        assert_eq!(simulation.counters().closed_total.value(), 4);
    });
}
