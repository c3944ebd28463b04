//! The flags of a run, checked against each other: what cannot be meant is refused here, in one line.

use std::net::IpAddr;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use resound::net::uring::client::ClientRing;
use resound::proto::Opcode;

use super::args::{CloseFirst, Goodbye, Io, Mode, RunArgs};
use super::clock::duration_ns;
use super::preflight::Wanted;
use super::schedule::{Arrival, Late};
use super::size::Sizes;
use super::stamp;
use super::target::Target;
use crate::result::model;

/// What drives the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Load {
    /// A schedule that waits for nothing.
    Open {
        /// Messages (in connect mode: connects) a second, over all connections.
        rate_per_s: f64,
    },
    /// A new message for every reply.
    Closed {
        /// Messages in flight on each connection.
        in_flight: u32,
    },
}

/// A run that makes sense. Whether this machine can do it is [`super::preflight`]'s question.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Where the connections go.
    pub target: Target,
    /// What they do.
    pub mode: Mode,
    /// What drives them.
    pub load: Load,
    /// How the gaps of an open loop are distributed.
    pub arrival: Arrival,
    /// What happens to late messages.
    pub late: Late,
    /// How many there are; in connect mode: at most at a time.
    pub connections: u32,
    /// Broadcast: connections 0 to this one (not included) publish. 0 in other modes.
    pub publishers: u32,
    /// Message sizes in octets.
    pub sizes: Sizes,
    /// Text or binary.
    pub opcode: Opcode,
    /// Seed of everything random.
    pub seed: u64,
    /// Load before the measured part, in ns.
    pub warmup_ns: u64,
    /// The measured part, in ns.
    pub duration_ns: u64,
    /// The longest wait for outstanding replies, in ns.
    pub drain_ns: u64,
    /// Connections opened a second before the load; infinite: all at once.
    pub ramp_per_s: f64,
    /// Connections replaced a second; 0: none.
    pub churn_per_s: f64,
    /// Which side closes TCP first in connect mode.
    pub close_first: CloseFirst,
    /// How the connections end.
    pub goodbye: Goodbye,
    /// Addresses to connect from; empty: the kernel chooses.
    pub sources: Vec<IpAddr>,
    /// Time for a TCP connect with its upgrade, in ns.
    pub connect_timeout_ns: u64,
    /// Time for a reply of a closed loop, in ns.
    pub reply_timeout_ns: u64,
    /// How often threads hand over what they recorded, in ns.
    pub interval_ns: u64,
    /// Load threads.
    pub threads: u32,
    /// What they wait and receive with.
    pub io: model::Io,
}

impl Plan {
    /// Checks the flags, and looks up the server's address.
    ///
    /// # Errors
    /// One line about the flag that cannot be meant.
    pub(super) fn new(args: &RunArgs) -> anyhow::Result<Self> {
        let sources: Vec<IpAddr> = args.source.iter().flat_map(|range| range.addresses()).collect();
        let target = Target::resolve(&args.url, |address| {
            sources.iter().all(|source| source.is_ipv4() == address.is_ipv4())
        })?;
        let opcode = if args.text { Opcode::Text } else { Opcode::Binary };
        let size_min = stamp::len_min(opcode);
        if args.size.min() < size_min {
            bail!(
                "--size {}: a message carries a checksum, its intended send time, a sequence number and its \
                 sender, so {} messages have at least {size_min} octets",
                args.size,
                if args.text { "text" } else { "binary" }
            );
        }
        if args.duration.is_zero() {
            bail!("--duration: nothing can be measured in no time");
        }
        let load = match args.rate {
            Some(rate_per_s) => Load::Open { rate_per_s },
            None => Load::Closed { in_flight: args.in_flight },
        };
        if args.churn > 0.0 && args.mode != Mode::Echo {
            bail!("--churn goes with --mode echo only");
        }
        if args.publishers > 1 && args.mode != Mode::Broadcast {
            bail!("--publishers goes with --mode broadcast only");
        }
        if args.publishers > args.connections {
            bail!("--publishers {}: there are only {} connections", args.publishers, args.connections);
        }
        if args.mode == Mode::Connect && args.max {
            bail!("--mode connect opens connections on a schedule: give it a --rate");
        }
        let io = match args.io {
            Io::Uring if args.mode == Mode::Connect => {
                bail!(
                    "--io uring: connections that carry one message gain nothing by it; --mode connect uses epoll"
                )
            }
            Io::Uring => match ClientRing::new() {
                Ok(_) => model::Io::IoUring,
                Err(error) => bail!("--io uring: {error}"),
            },
            // A closed loop is as fast as the generator has CPU for; an open one is to be in time, and epoll is
            // that at least as well.
            Io::Auto if args.max && ClientRing::new().is_ok() => model::Io::IoUring,
            Io::Auto | Io::Epoll => model::Io::Epoll,
        };
        let cpus = available_parallelism().context("how many CPUs may be used")?.get() as u32;
        // A server on this machine needs CPUs too, and a thread that waits for a due time spins.
        let threads_default = if target.is_loopback() { (cpus / 2).max(1) } else { cpus };
        Ok(Self {
            mode: args.mode,
            load,
            arrival: args.arrival,
            late: args.late,
            connections: args.connections,
            publishers: if args.mode == Mode::Broadcast { args.publishers } else { 0 },
            sizes: args.size.clone(),
            opcode,
            seed: args.seed,
            warmup_ns: duration_ns(args.warmup),
            duration_ns: duration_ns(args.duration),
            drain_ns: duration_ns(args.drain),
            ramp_per_s: if args.ramp == 0.0 { f64::INFINITY } else { args.ramp },
            churn_per_s: args.churn,
            close_first: args.close_first,
            goodbye: args.goodbye,
            sources,
            connect_timeout_ns: duration_ns(args.connect_timeout),
            reply_timeout_ns: duration_ns(args.reply_timeout),
            interval_ns: duration_ns(args.interval),
            threads: args.threads.unwrap_or(threads_default).min(args.connections),
            io,
            target,
        })
    }

    /// What the run takes from the machine.
    pub(super) fn wanted(&self) -> Wanted {
        let connects_per_s = match (self.mode, self.load) {
            (Mode::Connect, Load::Open { rate_per_s }) if self.close_first == CloseFirst::Client => {
                rate_per_s
            }
            (Mode::Echo, _) => self.churn_per_s,
            _ => 0.0,
        };
        Wanted {
            connections: self.connections.into(),
            threads: self.threads.into(),
            sources: self.sources.len().max(1) as u64,
            loopback: self.target.is_loopback(),
            closed_first_per_s: connects_per_s,
            duration_s: (self.warmup_ns + self.duration_ns) as f64 / 1e9,
            size_max: self.sizes.max() as u64,
        }
    }

    /// The plan as the result file holds it.
    pub(super) fn model(&self, args: &RunArgs) -> model::Plan {
        let share = |min: usize, max: usize, weight: f64| model::SizeShare {
            min_octets: min as u64,
            max_octets: max as u64,
            weight,
        };
        model::Plan {
            url: self.target.url.clone(),
            mode: match self.mode {
                Mode::Echo => model::Mode::Echo,
                Mode::Broadcast => model::Mode::Broadcast,
                Mode::Connect => model::Mode::Connect,
            },
            load: match self.load {
                Load::Open { rate_per_s } => model::Load::Open {
                    arrival: match self.arrival {
                        Arrival::Fixed => model::Arrival::Fixed,
                        Arrival::Poisson => model::Arrival::Poisson,
                    },
                    offered_msgs_per_s: rate_per_s,
                },
                Load::Closed { in_flight } => model::Load::Closed { in_flight },
            },
            late: match self.late {
                Late::CatchUp => model::LatePolicy::CatchUp,
                Late::Skip => model::LatePolicy::Skip,
            },
            connections: self.connections.into(),
            publishers: self.publishers.into(),
            duration_s: self.duration_ns as f64 / 1e9,
            warmup_s: self.warmup_ns as f64 / 1e9,
            ramp_connects_per_s: self.ramp_per_s.is_finite().then_some(self.ramp_per_s),
            sizes: match &self.sizes {
                Sizes::Fixed(size) => vec![share(*size, *size, 1.0)],
                Sizes::Range(min, max) => vec![share(*min, *max, 1.0)],
                Sizes::Weighted(list) => {
                    list.iter().map(|(size, weight)| share(*size, *size, f64::from(*weight))).collect()
                }
            },
            text: self.opcode == Opcode::Text,
            threads: self.threads,
            io: self.io,
            sources: args.source.iter().map(ToString::to_string).collect(),
            churn_per_s: self.churn_per_s,
            deflate: args.deflate,
            subprotocol: (!args.subprotocol.is_empty()).then(|| args.subprotocol.join(", ")),
        }
    }
}
