//! The server with known faults that the tests use, to try the load generator by hand:
//!
//! ```text
//! cargo run -p resound-load --example faulty_server -- 127.0.0.1:9001 stall
//! cargo run -p resound-load -- run ws://127.0.0.1:9001/ --rate 1000
//! cargo run -p resound-load -- run ws://127.0.0.1:9001/ --max
//! ```

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "what only the tests need")]
mod support;

use std::time::Duration;

use support::{Faults, FaultyServer, Instead};

const USAGE: &str = "usage: faulty_server ADDRESS [stall|drop|duplicate|corrupt|reorder|slow-accept|broadcast|\
                     not-found|close|silence|swallow]…";

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(address) = args.next() else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let mut faults = Faults::default();
    for fault in args {
        match fault.as_str() {
            "stall" => faults.stall = Some((Duration::from_secs(1), Duration::from_millis(100))),
            "drop" => faults.drop_one_in = Some(1000),
            "duplicate" => faults.duplicate_one_in = Some(1000),
            "corrupt" => faults.corrupt_one_in = Some(1000),
            "reorder" => faults.reorder_one_in = Some(1000),
            "slow-accept" => faults.accept_delay = Duration::from_millis(20),
            "broadcast" => faults.broadcast = true,
            "not-found" => faults.instead = Some(Instead::NotFound),
            "close" => faults.instead = Some(Instead::Close),
            "silence" => faults.instead = Some(Instead::Silence),
            "swallow" => faults.instead = Some(Instead::Swallow),
            _ => {
                eprintln!("{fault}: no such fault\n{USAGE}");
                std::process::exit(2);
            }
        }
    }
    let server = FaultyServer::start_at(&address, faults)?;
    println!("{}", server.url());
    loop {
        std::thread::park();
    }
}
