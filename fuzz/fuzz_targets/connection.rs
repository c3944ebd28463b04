//! The whole server on the simulator, driven by readiness or by a simulated ring: any octets from two peers, one of
//! them in a room, under any seed.

#![no_main]

use clap::Parser as _;
use libfuzzer_sys::fuzz_target;
use resound::config::Config;
use resound::net::sim::{Network, Script};
use resound::server::{Drive, Simulation};

const FLAGS: [&str; 9] = [
    "resound",
    "--receive-buffer-bytes",
    "1024",
    "--message-size-max",
    "5000",
    "--send-queue-bytes-max",
    "8000",
    "--slow-consumer",
    "close",
];

fn request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

fuzz_target!(|data: &[u8]| {
    let [seed, mode, octets @ ..] = data else { return };
    let network = Network::new(u64::from(*seed));
    let drive = if seed & 1 == 0 { Drive::Readiness } else { Drive::Ring };
    let mut simulation = Simulation::new(Config::parse_from(FLAGS), &network, drive).expect("it starts");
    let at = octets.len() / 2;
    for (octets, path) in [(&octets[..at], "/"), (&octets[at..], "/broadcast/a")] {
        let mut sends = if mode & 1 == 0 { request(path) } else { Vec::new() };
        sends.extend_from_slice(octets);
        network.connect(Script {
            sends,
            fin: mode & 2 == 0,
            resets: mode & 4 != 0,
            capacity: 1 + usize::from(mode >> 4) * 100,
            reads: mode & 8 == 0,
        });
    }
    let queued_max = simulation.run(1_000_000);
    assert!(queued_max <= 8000, "{queued_max}");
    simulation.stop();
    simulation.run_for(std::time::Duration::from_secs(20), 1_000_000);
    let counters = simulation.counters();
    assert_eq!(counters.accepted_total.value(), counters.closed_total.value());
});
