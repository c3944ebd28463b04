//! The attacks on the server's memory: who makes it keep what.

use std::sync::Arc;
use std::time::Duration;

use resound::proto::Opcode;

use crate::crowd::{Hears, Plan, Stays, Then};
use crate::wire::{self, DEFLATE};

const MIB: usize = 1 << 20;
/// The largest message with the default flags.
const MESSAGE_MAX: usize = 32 * MIB;
/// Octets of a compressed message so far, when it has no end yet.
const ENDLESS: usize = 31 * MIB;

/// One attack.
pub(crate) struct Hoard {
    pub(crate) name: &'static str,
    pub(crate) plans: Vec<Plan>,
    /// How long it goes on after each connection has said what it says at once.
    pub(crate) stays: Duration,
    /// Flags that the server needs for it.
    pub(crate) flags: &'static [&'static str],
}

/// Every attack, in the order of the table.
pub(crate) fn all() -> Vec<Hoard> {
    let mut hoards = Vec::new();
    let mut add = |name, plans, seconds, flags| {
        hoards.push(Hoard { name, plans, stays: Duration::from_secs(seconds), flags });
    };
    add("120 hold 31 of 32 MiB", vec![says(wire::partial(MESSAGE_MAX, 31 * MIB)); 120], 3, &[]);
    add("2,000 announce 32 MiB and send 64 KiB to 1 MiB", announcers(), 3, &[]);
    add("400 announce 32 MiB and send 5", vec![says(wire::partial(MESSAGE_MAX, 5 * MIB)); 400], 3, &[]);
    add("400 get 1 MiB back", vec![says(wire::message(Opcode::Binary, &[7; MIB])); 400], 3, &[]);
    add("50 rooms of 1 MiB messages, a member of each never reads", full_queues(), 8, &[]);
    add("2 octets at a time to 200 that never read", tiny_publications(), 10, &[]);
    add("10,000 rooms with names of 8 KB", long_names(), 3, &[]);
    add("5,000 requests without an end, 15 KiB each", endless_heads(), 3, &[]);
    add("200 dribble after 4 MiB", dribblers(), 10, &[]);
    let endless: Arc<[u8]> = wire::endless_bomb(ENDLESS).into();
    let endless = Plan::with("/echo", Some(DEFLATE)).says(&endless, Then::Stop);
    add("100 compressed messages of 31 MiB without an end", vec![endless; 100], 3, &["--deflate", "on"]);
    add("bombs of 32 MiB into a room of seven windows", seven_windows(), 10, &["--deflate", "on"]);
    hoards
}

/// It says `octets` once.
fn says(octets: Vec<u8>) -> Plan {
    Plan::at("/echo").says(&octets.into(), Then::Stop)
}

fn announcers() -> Vec<Plan> {
    let sizes = [64 << 10, 128 << 10, 256 << 10, 512 << 10, MIB].map(|sent| wire::partial(MESSAGE_MAX, sent));
    let plans = sizes.map(says);
    plans.iter().cycle().take(2_000).cloned().collect()
}

/// Publishes `message` again each time that it came back.
fn publisher(room: &str, message: &Arc<[u8]>, payload_len: usize) -> Plan {
    let hear = wire::reply_len(payload_len);
    Plan::at(room).says(message, Then::InTurn { say: message.len(), hear })
}

fn full_queues() -> Vec<Plan> {
    let message: Arc<[u8]> = wire::message(Opcode::Binary, &[7; MIB]).into();
    let room = |number| {
        let path = format!("/broadcast/full-{number}");
        [Plan::at(&path).hears(Hears::Nothing), publisher(&path, &message, MIB)]
    };
    (0..50).flat_map(room).collect()
}

/// First the kernel's buffers are filled, because these take more tiny publications than can be sent in a minute.
fn tiny_publications() -> Vec<Plan> {
    let message: Arc<[u8]> = wire::message(Opcode::Binary, b"..").into();
    let filler = wire::many(&wire::message(Opcode::Binary, &[7; 64 << 10]), 8 * MIB);
    let room = |number| {
        let path = format!("/broadcast/tiny-{number}");
        let mut plans = vec![Plan::at(&path).hears(Hears::Nothing); 50];
        plans.push(Plan::at(&path).says(&filler, Then::Stop));
        plans.push(publisher(&path, &message, 2));
        plans
    };
    (0..4).flat_map(room).collect()
}

fn long_names() -> Vec<Plan> {
    (0..10_000).map(|number| Plan::at(&format!("/broadcast/{number:0>8000}"))).collect()
}

fn endless_heads() -> Vec<Plan> {
    let plan = Plan { stays: Stays::Unanswered, head: wire::endless_head(15 << 10).into(), ..Plan::at("/") };
    vec![plan; 5_000]
}

fn dribblers() -> Vec<Plan> {
    let octets = wire::partial(MESSAGE_MAX, 5 * MIB).into();
    let plan = Plan::at("/echo").says(&octets, Then::Every(Duration::from_secs(1), 1));
    vec![Plan { first: 4 * MIB, ..plan }; 200]
}

fn seven_windows() -> Vec<Plan> {
    const ROOM: &str = "/broadcast/windows";
    let member = |bits| Plan::with(ROOM, Some(&format!("permessage-deflate; server_max_window_bits={bits}")));
    let bomb: Arc<[u8]> = wire::bomb(MESSAGE_MAX).into();
    let mut plans: Vec<Plan> = (9..=15).map(member).collect();
    let every = Then::Every(Duration::from_millis(500), bomb.len());
    plans.push(Plan::with(ROOM, Some(DEFLATE)).says(&bomb, every));
    plans
}
