//! What goes wrong in the kernel, in one table: how it shows, what it means, what cures it, and which limit that is.
//!
//! The verdict weighs these events, a search names its limit after them, the report explains counters with them, and a
//! connection that fails hints at their cure. A new one is a row of [`EVENTS`] and of the table in docs/verdict.md.

use std::collections::BTreeMap;

use super::model::{Finding, FindingKind, KernelEvidence, LimitKind};
use super::recorder::ErrorKind;

/// How an event shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A counter of the kernel rose; `Group.Counter` as in /proc.
    Counter(&'static str),
    /// A system call failed.
    Error(ErrorKind),
}

/// What an event costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Costs {
    /// A connection attempt: a second or more until the SYN is sent again.
    Connect,
    /// A segment: a retransmission, for it and all behind it.
    Message,
    /// A connection, or one that could not be made: the plan was not carried out.
    Connection,
}

/// An event of the kernel that should not happen while load is driven.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelEvent {
    /// How it shows.
    pub sign: Sign,
    /// The kind of the finding about it.
    pub kind: FindingKind,
    /// What it costs.
    pub costs: Costs,
    /// What happened.
    pub what: &'static str,
    /// What to do about it.
    pub cure: &'static str,
    /// The knobs that `scripts/tune.sh check` shows; none where no knob helps.
    pub knobs: &'static [&'static str],
    /// The limit of a search that it stops.
    pub limit: LimitKind,
}

const BACKLOG_CURE: &str = "raise the server's listen backlog and net.core.somaxconn, or accept faster";
const BACKLOG_KNOBS: &[&str] = &["net.core.somaxconn", "listen.backlog (resound --backlog)"];
const LOSS_CURE: &str = "look for loss on the path (ip -s link, ethtool -S), or lower the load";

const fn error(kind: FindingKind, error: ErrorKind, limit: LimitKind) -> KernelEvent {
    let (sign, costs) = (Sign::Error(error), Costs::Connection);
    KernelEvent { sign, kind, costs, what: "", cure: "", knobs: &[], limit }
}

const fn counter(name: &'static str, costs: Costs, limit: LimitKind) -> KernelEvent {
    let (sign, kind) = (Sign::Counter(name), FindingKind::KernelEvent);
    KernelEvent { sign, kind, costs, what: "", cure: "", knobs: &[], limit }
}

/// Every event, the most telling first: where several decide, the first one is the cause.
pub const EVENTS: &[KernelEvent] = &[
    KernelEvent {
        what: "connects found no free source port (EADDRNOTAVAIL)",
        cure: "use --source with more addresses of this machine (--source 127.0.0.1-127.0.0.40), or widen \
               net.ipv4.ip_local_port_range",
        knobs: &["net.ipv4.ip_local_port_range"],
        ..error(FindingKind::SourcePortsExhausted, ErrorKind::AddressNotAvailable, LimitKind::Ports)
    },
    KernelEvent {
        what: "sockets could not be opened for want of descriptors (EMFILE or ENFILE)",
        cure: "raise nofile (ulimit -n) above the connections wanted, and fs.nr_open and fs.file-max with it",
        knobs: &["RLIMIT_NOFILE"],
        ..error(FindingKind::DescriptorsExhausted, ErrorKind::DescriptorsExhausted, LimitKind::Descriptors)
    },
    KernelEvent {
        what: "socket operations were refused for want of kernel memory (ENOBUFS or ENOMEM)",
        cure: "raise net.ipv4.tcp_mem, or hold fewer connections",
        knobs: &["net.ipv4.tcp_mem"],
        ..error(FindingKind::KernelMemoryExhausted, ErrorKind::KernelMemory, LimitKind::Memory)
    },
    KernelEvent {
        what: "the server's accept queue was full",
        cure: BACKLOG_CURE,
        knobs: BACKLOG_KNOBS,
        ..counter("TcpExt.ListenOverflows", Costs::Connect, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "SYNs to a listener were dropped",
        cure: BACKLOG_CURE,
        knobs: BACKLOG_KNOBS,
        ..counter("TcpExt.ListenDrops", Costs::Connect, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "the SYN backlog was full and SYNs were dropped",
        cure: "raise net.ipv4.tcp_max_syn_backlog and the listen backlog, or turn net.ipv4.tcp_syncookies on",
        knobs: &["net.ipv4.tcp_max_syn_backlog", "listen.backlog (resound --backlog)"],
        ..counter("TcpExt.TCPReqQFullDrop", Costs::Connect, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "the SYN backlog was full and SYN cookies were sent",
        cure: "raise net.ipv4.tcp_max_syn_backlog and the listen backlog",
        knobs: &["net.ipv4.tcp_max_syn_backlog", "listen.backlog (resound --backlog)"],
        ..counter("TcpExt.TCPReqQFullDoCookies", Costs::Connect, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "there were more TIME_WAIT sockets than their limit allows",
        cure: "raise net.ipv4.tcp_max_tw_buckets",
        knobs: &["net.ipv4.tcp_max_tw_buckets"],
        ..counter("TcpExt.TCPTimeWaitOverflow", Costs::Connect, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "connections were aborted for want of TCP memory",
        cure: "raise net.ipv4.tcp_mem, or hold fewer connections",
        knobs: &["net.ipv4.tcp_mem"],
        ..counter("TcpExt.TCPAbortOnMemory", Costs::Connection, LimitKind::Memory)
    },
    KernelEvent {
        what: "packets were dropped because a CPU's backlog was full",
        cure: "raise net.core.netdev_max_backlog, or spread receive work over more CPUs (RPS)",
        knobs: &["net.core.netdev_max_backlog"],
        ..counter("softnet.dropped", Costs::Message, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "segments were dropped because a socket's backlog was full",
        cure: "raise net.ipv4.tcp_rmem and net.core.rmem_max",
        knobs: &["net.ipv4.tcp_rmem", "net.core.rmem_max"],
        ..counter("TcpExt.TCPBacklogDrop", Costs::Message, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "segments were dropped because a receive queue was full",
        cure: "raise net.ipv4.tcp_rmem and net.ipv4.tcp_mem",
        knobs: &["net.ipv4.tcp_rmem", "net.ipv4.tcp_mem"],
        ..counter("TcpExt.TCPRcvQDrop", Costs::Message, LimitKind::KernelQueue)
    },
    KernelEvent {
        what: "retransmission timers expired",
        cure: LOSS_CURE,
        ..counter("TcpExt.TCPTimeouts", Costs::Message, LimitKind::Machine)
    },
    KernelEvent {
        what: "segments were sent again",
        cure: LOSS_CURE,
        ..counter("Tcp.RetransSegs", Costs::Message, LimitKind::Machine)
    },
];

/// The event that a counter of this name counts; `None` for one that may rise while load is driven.
pub fn of_counter(name: &str) -> Option<&'static KernelEvent> {
    EVENTS.iter().find(|event| matches!(event.sign, Sign::Counter(counter) if counter == name))
}

/// The event that an error of this kind shows; `None` for one that is not the kernel's doing.
pub fn of_error(kind: ErrorKind) -> Option<&'static KernelEvent> {
    EVENTS.iter().find(|event| event.sign == Sign::Error(kind))
}

/// The event that a finding is about.
pub fn of_finding(finding: &Finding) -> Option<&'static KernelEvent> {
    match &finding.counter {
        Some(counter) => of_counter(counter),
        None => EVENTS.iter().find(|event| event.kind == finding.kind),
    }
}

impl KernelEvidence {
    /// By how much a counter rose.
    pub fn delta(&self, name: &str) -> u64 {
        let before = self.counters_before.get(name).copied().unwrap_or(0);
        self.counters_after.get(name).map_or(0, |after| after.saturating_sub(before))
    }

    /// Every counter that moved, with by how much.
    pub fn deltas(&self) -> BTreeMap<&str, u64> {
        let moved = self.counters_after.keys().map(|name| (name.as_str(), self.delta(name)));
        moved.filter(|(_, delta)| *delta > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_says_what_it_means_and_what_cures_it() {
        for event in EVENTS {
            assert!(!event.what.is_empty() && !event.cure.is_empty(), "{event:?}");
            assert_eq!(event.knobs.is_empty(), event.limit == LimitKind::Machine, "{event:?}");
            // A counter is told from the others of its kind by its name, an error by its kind.
            let same = EVENTS.iter().filter(|other| match event.sign {
                Sign::Counter(_) => other.sign == event.sign,
                Sign::Error(_) => other.kind == event.kind,
            });
            assert_eq!(same.count(), 1, "{event:?}");
        }
    }

    #[test]
    fn an_event_is_found_by_its_counter_and_by_its_error() {
        let overflow = of_counter("TcpExt.ListenOverflows").expect("it is watched");
        assert_eq!((overflow.limit, overflow.costs), (LimitKind::KernelQueue, Costs::Connect));
        assert_eq!(of_counter("Tcp.OutSegs"), None);
        let descriptors = of_error(ErrorKind::DescriptorsExhausted).expect("it is a limit");
        assert_eq!(descriptors.limit, LimitKind::Descriptors);
        assert_eq!(of_error(ErrorKind::Reset), None);
    }
}
