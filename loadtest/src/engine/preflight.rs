//! Can this run be done at all? Connections against descriptors, source ports and memory, before the first
//! socket is made. A refusal shows the arithmetic and the cure.
//!
//! Start at [`check`]. It looks at numbers only; [`Limits::of_this_machine`] gathers them.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors a run needs beside its connections: epoll, timer and waker of each thread, /proc files, std.
const DESCRIPTORS_BESIDE: u64 = 64;
/// Kernel memory of an idle TCP socket in octets (measured: 3.9 KiB of slab an end).
const SOCKET_KERNEL_OCTETS: u64 = 4 << 10;
/// Our own memory for a connection in octets, without its messages.
const CONNECTION_OCTETS: u64 = 1 << 10;
/// Histograms and buffers of one thread in octets: three slices of nine histograms, and its I/O buffers.
const THREAD_OCTETS: u64 = 8 << 20;
/// How long Linux keeps TIME_WAIT, in seconds: a constant of the kernel, whatever tcp_fin_timeout says.
const TIME_WAIT_S: f64 = 60.0;

/// What a run wants.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Connections at a time.
    pub connections: u64,
    /// Load threads.
    pub threads: u64,
    /// Source addresses; 1 if the kernel chooses.
    pub sources: u64,
    /// Whether the server is on loopback: then it holds the other ends of all connections in this memory.
    pub loopback: bool,
    /// Connections a second that we close first, each of which keeps its port for [`TIME_WAIT_S`].
    pub closed_first_per_s: f64,
    /// Seconds for which that goes on.
    pub duration_s: f64,
    /// The largest message in octets.
    pub size_max: u64,
}

/// What the machine allows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Soft limit of open descriptors.
    pub nofile_soft: u64,
    /// Hard limit of open descriptors.
    pub nofile_hard: u64,
    /// net.ipv4.ip_local_port_range.
    pub ports: RangeInclusive<u16>,
    /// How many ports of that range net.ipv4.ip_local_reserved_ports takes away.
    pub ports_reserved: u64,
    /// net.ipv4.tcp_tw_reuse: 0 never, 1 always, 2 on loopback.
    pub tw_reuse: u8,
    /// MemAvailable in octets.
    pub memory_available_octets: u64,
}

impl Limits {
    /// Reads the limits; `proc` is /proc, or a copy of it in a test. What cannot be read takes the kernel's default.
    pub(crate) fn of_this_machine(proc: &Path) -> Self {
        let (nofile_soft, nofile_hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 4096));
        let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
        let ports = port_range(&read("sys/net/ipv4/ip_local_port_range")).unwrap_or(32768..=60999);
        let ports_reserved = reserved_within(&read("sys/net/ipv4/ip_local_reserved_ports"), &ports);
        let tw_reuse = read("sys/net/ipv4/tcp_tw_reuse").trim().parse().unwrap_or(2);
        let memory_available_octets = memory_available_octets(&read("meminfo")).unwrap_or(u64::MAX);
        Self { nofile_soft, nofile_hard, ports, ports_reserved, tw_reuse, memory_available_octets }
    }

    /// Source ports of one address.
    pub(crate) fn ports_count(&self) -> u64 {
        let span = u64::from(*self.ports.end()).saturating_sub(u64::from(*self.ports.start())) + 1;
        span.saturating_sub(self.ports_reserved)
    }
}

/// What a machine has too little of for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortageKind {
    /// Open descriptors.
    Descriptors,
    /// Source ports for the connections held at a time.
    SourcePorts,
    /// Source ports beside those that TIME_WAIT keeps.
    TimeWait,
    /// Memory.
    Memory,
}

impl ShortageKind {
    /// As printed.
    pub fn title(self) -> &'static str {
        match self {
            ShortageKind::Descriptors => "descriptors",
            ShortageKind::SourcePorts => "source ports",
            ShortageKind::TimeWait => "TIME_WAIT",
            ShortageKind::Memory => "memory",
        }
    }
}

/// Why a run cannot be done on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// What there is too little of.
    pub kind: ShortageKind,
    /// What is needed, and what there is.
    pub arithmetic: String,
    /// What to do about it.
    pub cure: String,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. {}", self.kind.title(), self.arithmetic, self.cure)
    }
}

/// Raises the soft limit of open descriptors as far as this run needs, and returns the limit now in force.
pub(super) fn raise_nofile(limits: &Limits, needed: u64) -> u64 {
    let wanted = needed.min(limits.nofile_hard);
    if wanted > limits.nofile_soft && setrlimit(Resource::RLIMIT_NOFILE, wanted, limits.nofile_hard).is_ok() {
        return wanted;
    }
    limits.nofile_soft
}

/// Descriptors that a run needs.
pub(super) fn descriptors_needed(wanted: &Wanted) -> u64 {
    wanted.connections + 4 * wanted.threads + DESCRIPTORS_BESIDE
}

/// Why the run cannot be done, one entry for each reason. Empty if it can.
pub(super) fn check(wanted: &Wanted, limits: &Limits) -> Vec<Shortage> {
    [descriptors(wanted, limits), ports(wanted, limits), time_wait(wanted, limits), memory(wanted, limits)]
        .into_iter()
        .flatten()
        .collect()
}

fn descriptors(wanted: &Wanted, limits: &Limits) -> Option<Shortage> {
    let needed = descriptors_needed(wanted);
    if needed <= limits.nofile_hard {
        return None;
    }
    let beside = needed - wanted.connections;
    let each = limits.nofile_hard.saturating_sub(beside).max(1);
    let processes = wanted.connections.div_ceil(each);
    Some(Shortage {
        kind: ShortageKind::Descriptors,
        arithmetic: format!(
            "{} connections + {beside} others = {needed}, but the hard limit is {} (ulimit -Hn)",
            wanted.connections, limits.nofile_hard
        ),
        cure: format!(
            "Raise it (as root: ulimit -Hn {needed}; under systemd: LimitNOFILE={needed}), or run {processes} \
             processes with -c {} each and `resound-load merge` their results",
            wanted.connections.div_ceil(processes)
        ),
    })
}

fn ports(wanted: &Wanted, limits: &Limits) -> Option<Shortage> {
    let each = limits.ports_count();
    let reachable = wanted.sources.saturating_mul(each);
    if wanted.connections <= reachable {
        return None;
    }
    let addresses = wanted.connections.div_ceil(each.max(1));
    let more = if wanted.loopback {
        format!("--source {}", loopback_range(addresses))
    } else {
        format!("--source with {addresses} addresses of this machine")
    };
    Some(Shortage {
        kind: ShortageKind::SourcePorts,
        arithmetic: format!(
            "{} address{} x {each} ports ({}-{} of ip_local_port_range, {} reserved) = {reachable} connections to \
             one server address, but {} are wanted",
            wanted.sources,
            if wanted.sources == 1 { "" } else { "es" },
            limits.ports.start(),
            limits.ports.end(),
            limits.ports_reserved,
            wanted.connections
        ),
        cure: format!("Use {more}, or a wider net.ipv4.ip_local_port_range"),
    })
}

/// The first `count` addresses from 127.0.0.1 on, as a flag's value.
fn loopback_range(count: u64) -> String {
    let last = std::net::Ipv4Addr::from(0x7F00_0000 + count.min(0x00FF_FFFE) as u32);
    format!("127.0.0.1-{last}")
}

fn time_wait(wanted: &Wanted, limits: &Limits) -> Option<Shortage> {
    let reused = limits.tw_reuse == 1 || (limits.tw_reuse == 2 && wanted.loopback);
    if reused || wanted.closed_first_per_s == 0.0 {
        return None;
    }
    let held = (wanted.closed_first_per_s * TIME_WAIT_S.min(wanted.duration_s)).ceil() as u64;
    let reachable = wanted.sources.saturating_mul(limits.ports_count());
    if wanted.connections.saturating_add(held) <= reachable {
        return None;
    }
    Some(Shortage {
        kind: ShortageKind::TimeWait,
        arithmetic: format!(
            "{} connects/s closed by this side first x {TIME_WAIT_S} s = {held} ports held, + {} open, but there \
             are {reachable} ports",
            wanted.closed_first_per_s, wanted.connections
        ),
        cure: "Set net.ipv4.tcp_tw_reuse=1 here, add --source addresses, or let the server close first \
               (--close-first server)"
            .to_owned(),
    })
}

fn memory(wanted: &Wanted, limits: &Limits) -> Option<Shortage> {
    let ends = if wanted.loopback { 2 } else { 1 };
    let kernel = wanted.connections * ends * SOCKET_KERNEL_OCTETS;
    let own = wanted.connections * CONNECTION_OCTETS + wanted.threads * (THREAD_OCTETS + 4 * wanted.size_max);
    let needed = kernel + own;
    if needed <= limits.memory_available_octets {
        return None;
    }
    let mib = |octets: u64| octets >> 20;
    Some(Shortage {
        kind: ShortageKind::Memory,
        arithmetic: format!(
            "{} connections x {ends} socket end{} x {SOCKET_KERNEL_OCTETS} octets + {} MiB of our own = {} MiB at \
             least, but {} MiB are available",
            wanted.connections,
            if ends == 1 { "" } else { "s" },
            mib(own),
            mib(needed),
            mib(limits.memory_available_octets)
        ),
        cure: "Hold fewer connections, or use several machines and `resound-load merge`".to_owned(),
    })
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(first), Ok(last)) if first <= last => Some(first..=last),
        _ => None,
    }
}

/// Ports of `range` that a list like `8080,9000-9100` takes away.
fn reserved_within(list: &str, range: &RangeInclusive<u16>) -> u64 {
    list.trim()
        .split(',')
        .filter_map(|entry| {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            let first = first.trim().parse::<u16>().ok()?.max(*range.start());
            let last = last.trim().parse::<u16>().ok()?.min(*range.end());
            (first <= last).then(|| u64::from(last - first) + 1)
        })
        .sum()
}

fn memory_available_octets(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            nofile_soft: 1024,
            nofile_hard: 1 << 20,
            ports: 32768..=60999,
            ports_reserved: 0,
            tw_reuse: 2,
            memory_available_octets: 8 << 30,
        }
    }

    fn wanted(connections: u64) -> Wanted {
        Wanted {
            connections,
            threads: 2,
            sources: 1,
            loopback: true,
            closed_first_per_s: 0.0,
            duration_s: 10.0,
            size_max: 64,
        }
    }

    /// The text of the only shortage there is, of this kind.
    fn only(shortages: &[Shortage], kind: ShortageKind) -> String {
        let [shortage] = shortages else { panic!("{shortages:?}") };
        assert_eq!(shortage.kind, kind);
        assert!(!shortage.arithmetic.contains(&shortage.cure) && !shortage.cure.is_empty(), "{shortage}");
        shortage.to_string()
    }

    #[test]
    fn a_modest_run_is_possible() {
        assert_eq!(check(&wanted(1000), &limits()), []);
        assert_eq!(check(&wanted(28232), &limits()), []);
    }

    #[test]
    fn more_connections_than_ports_need_more_addresses() {
        let reason = only(&check(&wanted(50_000), &limits()), ShortageKind::SourcePorts);
        assert!(reason.contains("1 address x 28232 ports"), "{reason}");
        assert!(reason.contains("--source 127.0.0.1-127.0.0.2"), "{reason}");
        assert_eq!(check(&Wanted { sources: 2, ..wanted(50_000) }, &limits()), []);
    }

    #[test]
    fn more_connections_than_descriptors_need_several_processes() {
        let limits = Limits { nofile_hard: 20_000, ..limits() };
        let reason =
            only(&check(&Wanted { sources: 3, ..wanted(50_000) }, &limits), ShortageKind::Descriptors);
        assert!(reason.contains("50000 connections + 72 others = 50072"), "{reason}");
        assert!(reason.contains("run 3 processes with -c 16667 each"), "{reason}");
    }

    #[test]
    fn ports_in_time_wait_are_counted_where_they_cannot_be_reused() {
        let churning = Wanted { closed_first_per_s: 1000.0, duration_s: 60.0, ..wanted(10) };
        assert_eq!(check(&churning, &limits()), []);
        let remote = Wanted { loopback: false, ..churning };
        let reason = only(&check(&remote, &limits()), ShortageKind::TimeWait);
        assert!(reason.contains("= 60000 ports held"), "{reason}");
        assert_eq!(check(&remote, &Limits { tw_reuse: 1, ..limits() }), []);
        assert_eq!(check(&Wanted { duration_s: 5.0, ..remote }, &limits()), []);
    }

    #[test]
    fn connections_that_do_not_fit_into_memory_are_refused() {
        let limits = Limits { memory_available_octets: 1 << 30, ..limits() };
        let reason = only(&check(&Wanted { sources: 40, ..wanted(200_000) }, &limits), ShortageKind::Memory);
        assert!(reason.starts_with("memory: 200000 connections x 2 socket ends"), "{reason}");
    }

    #[test]
    fn reserved_ports_count_only_within_the_range() {
        assert_eq!(reserved_within("8080,32768-32770,60999-61005\n", &(32768..=60999)), 4);
        assert_eq!(reserved_within("\n", &(32768..=60999)), 0);
    }

    #[test]
    fn the_files_of_proc_are_understood() {
        assert_eq!(port_range("1024\t65535\n"), Some(1024..=65535));
        assert_eq!(port_range(""), None);
        assert_eq!(memory_available_octets("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
    }
}
