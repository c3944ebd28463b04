//! The attacks on other peers' latency: who does what, and how many of them.

use std::sync::Arc;
use std::time::Duration;

use resound::proto::Opcode;

use crate::crowd::{Hears, Manners, Plan, Stays, Then};
use crate::wire::{self, DEFLATE};

/// The usual numbers of flooders.
const FLOODERS: &[usize] = &[1, 3, 8, 64];
const ROOM: &str = "/broadcast/room";
/// Octets that a flooder has ready: so much is one write.
const SUPPLY: usize = 256 << 10;
/// The largest message with the default flags.
const MESSAGE_MAX: usize = 32 << 20;

/// One attack, in a number of flooders.
pub(crate) struct Flood {
    pub(crate) name: &'static str,
    pub(crate) flooders: usize,
    pub(crate) plans: Vec<Plan>,
    pub(crate) manners: Manners,
    /// The length on the wire of the messages it sends; 0 where connections are what counts.
    pub(crate) message_len: usize,
    /// Flags that the server needs for it.
    pub(crate) flags: &'static [&'static str],
    /// One of the few rows of `--quick`.
    pub(crate) is_quick: bool,
}

impl Flood {
    fn new(name: &'static str, flooders: usize, plans: Vec<Plan>, message_len: usize) -> Self {
        let manners = Manners { come_back: true, waves: None };
        Self { name, flooders, plans, manners, message_len, flags: &[], is_quick: false }
    }
}

/// Every attack in every number, in the order of the table.
pub(crate) fn all() -> Vec<Flood> {
    let mut floods = vec![Flood::new("none: the attackers' thread floods itself", 0, Vec::new(), 0)];
    floods[0].is_quick = true;
    echoes(&mut floods);
    bombs(&mut floods);
    rooms(&mut floods);
    storms(&mut floods);
    slow_readers(&mut floods);
    floods
}

fn echoes(floods: &mut Vec<Flood>) {
    for (name, octets, quick) in [
        ("empty frames", wire::message(Opcode::Binary, b""), 1),
        ("messages of 1 KiB", wire::message(Opcode::Binary, &[7; 1 << 10]), 8),
        ("messages of 1 MiB", wire::message(Opcode::Binary, &vec![7; 1 << 20]), 3),
        ("pings", wire::message(Opcode::Ping, &[7; 20]), 64),
    ] {
        let supply = wire::many(&octets, SUPPLY);
        for &flooders in FLOODERS {
            let plans = vec![Plan::at("/echo").says(&supply, Then::Always); flooders];
            let flood = Flood::new(name, flooders, plans, octets.len());
            floods.push(Flood { is_quick: flooders == quick, ..flood });
        }
    }
}

fn bombs(floods: &mut Vec<Flood>) {
    for (name, octets) in [
        ("compressed bombs of 32 MiB", wire::bomb(MESSAGE_MAX)),
        ("compressed bombs of 1 MiB", wire::bomb(1 << 20)),
        ("compressed bombs of 16 KiB", wire::bomb(16 << 10)),
    ] {
        let supply = wire::many(&octets, SUPPLY);
        for &flooders in FLOODERS {
            let plans = vec![Plan::with("/echo", Some(DEFLATE)).says(&supply, Then::Always); flooders];
            let flood = Flood::new(name, flooders, plans, octets.len());
            floods.push(Flood { flags: &["--deflate", "on"], ..flood });
        }
    }
}

fn rooms(floods: &mut Vec<Flood>) {
    let one: Arc<[u8]> = wire::message(Opcode::Binary, &[7; 1 << 10]).into();
    let supply = wire::many(&one, SUPPLY);
    for &flooders in FLOODERS {
        let mut plans = vec![Plan::at(ROOM); 300 - flooders];
        plans.extend(vec![Plan::at(ROOM).says(&supply, Then::Always); flooders]);
        let flood = Flood::new("a flooded room of 300, 1 KiB", flooders, plans, one.len());
        floods.push(Flood { is_quick: flooders == 1, ..flood });
    }
    let publisher = |octets: &Arc<[u8]>, every| Plan::at(ROOM).says(octets, Then::Every(every, octets.len()));
    let mut plans = vec![Plan::at(ROOM); 8_999];
    plans.push(publisher(&one, Duration::from_millis(100)));
    floods.push(Flood::new("a room of 9,000, 10 publications of 1 KiB a second", 1, plans, one.len()));

    // 16 MiB a second, and members that take two seconds of it at once.
    let large: Arc<[u8]> = wire::message(Opcode::Binary, &[7; 64 << 10]).into();
    for late in [1, 8] {
        let catches_up = Plan::at(ROOM).hears(Hears::Bursts(Duration::from_secs(2)));
        let catches_up = Plan { receive_buffer: None, ..catches_up };
        let mut plans = vec![catches_up; late];
        plans.push(publisher(&large, Duration::from_millis(4)));
        floods.push(Flood::new("members that catch up 32 MiB", late, plans, large.len()));
    }
}

fn storms(floods: &mut Vec<Flood>) {
    for (name, stays) in
        [("connect, upgrade, leave", Stays::UntilOpen), ("connect, leave", Stays::UntilConnected)]
    {
        for flooders in [1, 8, 64] {
            let plans = vec![Plan { stays, ..Plan::at("/echo") }; flooders];
            floods.push(Flood::new(name, flooders, plans, 0));
        }
    }
    let manners = Manners { come_back: true, waves: Some(Duration::from_millis(300)) };
    let flood = Flood::new("5,000 come, and leave at once", 5_000, vec![Plan::at("/echo"); 5_000], 0);
    floods.push(Flood { manners, ..flood });
}

fn slow_readers(floods: &mut Vec<Flood>) {
    let one = wire::message(Opcode::Binary, &[7; 1 << 10]);
    let supply = wire::many(&one, SUPPLY);
    for &flooders in FLOODERS {
        let plan = Plan::at("/echo").says(&supply, Then::Always);
        let plan = plan.hears(Hears::Every(Duration::from_millis(2), 4 << 10));
        floods.push(Flood::new("slow readers, 1 KiB", flooders, vec![plan; flooders], one.len()));
    }
}
