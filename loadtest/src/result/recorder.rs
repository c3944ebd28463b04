//! What a load thread fills: one HdrHistogram per metric, and plain counts.
//!
//! The engine gives each thread two [`Slice`]s. A thread records into one for about a second, hands it to
//! the [`Collector`](super::collector::Collector) and goes on with the other, so that recording neither
//! allocates nor locks: `Slice::new` allocates everything a slice will ever hold (about 216 KiB a metric).
//! Nothing here may read a clock, and nothing here may drop a value: beyond the range it is counted as saturated.

use std::fmt;

use hdrhistogram::{AdditionError, Histogram};
use serde::{Deserialize, Serialize};

/// Largest latency a histogram holds, ns. Above it a value is recorded as this and counted as saturated.
pub const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Significant decimal digits a histogram keeps: a reported value is within 0.1 % of the one recorded.
pub const SIGNIFICANT_DIGITS: u8 = 3;

/// What a histogram measures. The names in files are the kebab-case ones of [`Metric::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// From the *intended* send time to the receipt of the reply: what a user would have felt (ns).
    Response,
    /// From the *actual* send to the receipt: what the server did once it was asked (ns).
    Service,
    /// From the intended send to the moment the generator tried to send: what the generator itself was late by (ns).
    /// Waiting for a socket that takes no more is the server's doing and belongs to the service time.
    Lag,
    /// From `connect` to a connected TCP socket (ns).
    Connect,
    /// From the connected socket to the end of the 101 response (ns).
    Upgrade,
    /// From the connected and upgraded state to the first message received (ns).
    FirstMessage,
    /// Broadcast: from the publisher's intended send time to one subscriber's receipt (ns).
    Delivery,
    /// Broadcast: from the first to the last subscriber's receipt of one publication (ns).
    Spread,
    /// How much later than asked a thread that only sleeps and wakes was woken (ns): the machine's own stalls.
    Hiccup,
}

impl Metric {
    /// Every metric, in the order of files and tables.
    pub const ALL: [Metric; 9] = [
        Metric::Response,
        Metric::Service,
        Metric::Lag,
        Metric::Connect,
        Metric::Upgrade,
        Metric::FirstMessage,
        Metric::Delivery,
        Metric::Spread,
        Metric::Hiccup,
    ];

    /// The name in files: `response`, `first-message`, …
    pub fn name(self) -> &'static str {
        match self {
            Metric::Response => "response",
            Metric::Service => "service",
            Metric::Lag => "lag",
            Metric::Connect => "connect",
            Metric::Upgrade => "upgrade",
            Metric::FirstMessage => "first-message",
            Metric::Delivery => "delivery",
            Metric::Spread => "spread",
            Metric::Hiccup => "hiccup",
        }
    }

    /// The name a table prints.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Response => "response latency",
            Metric::Service => "service time",
            Metric::Lag => "schedule lag",
            Metric::Connect => "TCP connect",
            Metric::Upgrade => "upgrade",
            Metric::FirstMessage => "first message",
            Metric::Delivery => "delivery latency",
            Metric::Spread => "first-to-last spread",
            Metric::Hiccup => "machine hiccups",
        }
    }
}

/// One HdrHistogram of nanoseconds, and how many values were beyond its range.
#[derive(Clone, PartialEq)]
pub struct Recorder {
    histogram: Histogram<u64>,
    saturated_count: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Recorder {
    // Without the 27,000 counters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("count", &self.count())
            .field("p50_ns", &self.quantile_ns(0.5))
            .field("max_ns", &self.max_ns())
            .field("saturated_count", &self.saturated_count)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// An empty recorder. The only allocation it ever makes.
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_NS, SIGNIFICANT_DIGITS)
            .expect("the constant bounds are valid HdrHistogram bounds");
        Recorder { histogram, saturated_count: 0 }
    }

    /// From a histogram read from a file, of which `saturated_count` values were beyond the range.
    ///
    /// # Errors
    /// When it holds values that no recorder does.
    pub fn from_histogram(histogram: &Histogram<u64>, saturated_count: u64) -> Result<Self, AdditionError> {
        let mut recorder = Recorder::new();
        recorder.histogram.add(histogram)?;
        recorder.saturated_count = saturated_count;
        Ok(recorder)
    }

    /// From buckets: a value of each (ns) and its count, none of them beyond the range.
    pub(super) fn from_buckets(buckets: &[(u64, u64)], saturated_count: u64) -> Self {
        let mut recorder = Recorder::new();
        for (value_ns, count) in buckets {
            // The last bucket reaches a little beyond the range.
            let value_ns = (*value_ns).min(LATENCY_MAX_NS);
            recorder
                .histogram
                .record_n(value_ns, *count)
                .expect("a value within the bounds always has a bucket");
        }
        recorder.saturated_count = saturated_count;
        recorder
    }

    /// Records one value, ns. 0 counts as it is; above [`LATENCY_MAX_NS`] it is clamped and counted as saturated.
    #[inline]
    pub fn record(&mut self, value_ns: u64) {
        self.record_n(value_ns, 1);
    }

    /// Records `count` equal values, ns.
    #[inline]
    pub fn record_n(&mut self, value_ns: u64, count: u64) {
        if value_ns > LATENCY_MAX_NS {
            self.saturated_count += count;
        }
        self.histogram
            .record_n(value_ns.min(LATENCY_MAX_NS), count)
            .expect("a value within the bounds always has a bucket");
    }

    /// Adds everything another recorder holds. Histograms are added, never percentiles.
    pub fn merge(&mut self, other: &Recorder) {
        self.histogram.add(&other.histogram).expect("every recorder has the same bounds");
        self.saturated_count += other.saturated_count;
    }

    /// Empties it and keeps its memory.
    pub fn reset(&mut self) {
        if !self.is_empty() {
            self.histogram.reset();
        }
        self.saturated_count = 0;
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    /// How many values were above [`LATENCY_MAX_NS`].
    pub fn saturated_count(&self) -> u64 {
        self.saturated_count
    }

    /// The exact quantile (`0.0..=1.0`), ns: the value at or below which that share of all values lies. 0 when empty.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        // The histogram answers with the top of the bucket, which may be above the largest value recorded.
        self.histogram.value_at_quantile(quantile).min(self.histogram.max())
    }

    /// Smallest value, ns (to the histogram's precision; 0 when empty).
    pub fn min_ns(&self) -> u64 {
        if self.is_empty() { 0 } else { self.histogram.min() }
    }

    /// Largest value, ns (to the histogram's precision; 0 when empty).
    pub fn max_ns(&self) -> u64 {
        self.histogram.max()
    }

    /// Mean, ns (0 when empty).
    pub fn mean_ns(&self) -> f64 {
        if self.is_empty() { 0.0 } else { self.histogram.mean() }
    }

    /// Standard deviation, ns (0 when empty).
    pub fn stdev_ns(&self) -> f64 {
        if self.is_empty() { 0.0 } else { self.histogram.stdev() }
    }

    /// The histogram itself, for writers.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }
}

/// What went wrong, by kind. Names in files are the kebab-case ones of [`ErrorKind::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// ECONNREFUSED: nobody listens, or the accept queue is full with `tcp_abort_on_overflow`.
    ConnectRefused,
    /// `connect` did not finish in time.
    ConnectTimeout,
    /// EADDRNOTAVAIL: no free source port left for this source address.
    AddressNotAvailable,
    /// EMFILE or ENFILE: no free descriptor left.
    DescriptorsExhausted,
    /// ENOBUFS or ENOMEM: the kernel has no memory for the socket.
    KernelMemory,
    /// The server answered the upgrade with something else than a valid 101.
    UpgradeRejected,
    /// The upgrade response did not arrive in time.
    UpgradeTimeout,
    /// The connection was reset (ECONNRESET, EPIPE).
    Reset,
    /// The server closed a connection that was to stay open (a Close frame, or end of stream).
    ClosedByServer,
    /// The server broke RFC 6455.
    Protocol,
    /// A reply did not arrive within the timeout.
    ReplyTimeout,
    /// Any other error of a socket.
    Other,
}

impl ErrorKind {
    /// Every kind, in the order of files and tables.
    pub const ALL: [ErrorKind; 12] = [
        ErrorKind::ConnectRefused,
        ErrorKind::ConnectTimeout,
        ErrorKind::AddressNotAvailable,
        ErrorKind::DescriptorsExhausted,
        ErrorKind::KernelMemory,
        ErrorKind::UpgradeRejected,
        ErrorKind::UpgradeTimeout,
        ErrorKind::Reset,
        ErrorKind::ClosedByServer,
        ErrorKind::Protocol,
        ErrorKind::ReplyTimeout,
        ErrorKind::Other,
    ];

    /// The name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::ConnectRefused => "connect-refused",
            ErrorKind::ConnectTimeout => "connect-timeout",
            ErrorKind::AddressNotAvailable => "address-not-available",
            ErrorKind::DescriptorsExhausted => "descriptors-exhausted",
            ErrorKind::KernelMemory => "kernel-memory",
            ErrorKind::UpgradeRejected => "upgrade-rejected",
            ErrorKind::UpgradeTimeout => "upgrade-timeout",
            ErrorKind::Reset => "reset",
            ErrorKind::ClosedByServer => "closed-by-server",
            ErrorKind::Protocol => "protocol",
            ErrorKind::ReplyTimeout => "reply-timeout",
            ErrorKind::Other => "other",
        }
    }
}

/// Errors counted by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorCounts([u64; ErrorKind::ALL.len()]);

impl ErrorCounts {
    /// Counts one error.
    #[inline]
    pub fn count(&mut self, kind: ErrorKind) {
        self.add(kind, 1);
    }

    /// Counts `count` errors of a kind.
    pub fn add(&mut self, kind: ErrorKind, count: u64) {
        self.0[kind as usize] += count;
    }

    /// How many of a kind.
    pub fn of(&self, kind: ErrorKind) -> u64 {
        self.0[kind as usize]
    }

    /// How many of all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The kinds that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (ErrorKind, u64)> + '_ {
        ErrorKind::ALL.into_iter().map(|kind| (kind, self.of(kind))).filter(|(_, count)| *count > 0)
    }

    fn merge(&mut self, other: &ErrorCounts) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}

impl Serialize for ErrorCounts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(kind, count)| (kind.name(), count)))
    }
}

impl<'de> Deserialize<'de> for ErrorCounts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let named = std::collections::BTreeMap::<String, u64>::deserialize(deserializer)?;
        let mut counts = ErrorCounts::default();
        for (name, count) in named {
            let kind =
                ErrorKind::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(ErrorKind::Other);
            counts.add(kind, count);
        }
        Ok(counts)
    }
}

/// What happened to messages and connections. Every field is a count unless its name says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Messages the schedule asked for (open loop); in closed loop the same as `sent`.
    pub scheduled: u64,
    /// Messages handed to the kernel. In broadcast: publications.
    pub sent: u64,
    /// Replies (or, in broadcast, deliveries) that should arrive for what was sent.
    pub expected: u64,
    /// Replies or deliveries that arrived for the first time, intact or corrupted.
    pub received: u64,
    /// Expected, and never received by the end of the run.
    pub lost: u64,
    /// Received again.
    pub duplicated: u64,
    /// Received after a later one of the same connection (in broadcast: of the same publisher).
    pub reordered: u64,
    /// Received with a payload that does not match its checksum.
    pub corrupted: u64,
    /// Scheduled, but given up because the generator was too late (only with the skip policy).
    pub skipped: u64,
    /// TCP connects begun.
    pub connects: u64,
    /// TCP connects that failed.
    pub connect_failures: u64,
    /// Connections upgraded (101 received and checked).
    pub upgrades: u64,
    /// Connections on which the upgrade failed.
    pub upgrade_failures: u64,
    /// Connections closed on purpose (churn, connect mode).
    pub closes: u64,
    /// Payload octets sent, without frame headers.
    pub payload_sent_octets: u64,
    /// Payload octets received, without frame headers.
    pub payload_received_octets: u64,
    /// Errors by kind; a connect or upgrade failure is also here, under its cause.
    pub errors: ErrorCounts,
}

impl Counts {
    /// Adds another's counts to these.
    pub fn merge(&mut self, other: &Counts) {
        // Destructured, so that a new field cannot be forgotten here.
        let Counts {
            scheduled,
            sent,
            expected,
            received,
            lost,
            duplicated,
            reordered,
            corrupted,
            skipped,
            connects,
            connect_failures,
            upgrades,
            upgrade_failures,
            closes,
            payload_sent_octets,
            payload_received_octets,
            errors,
        } = other;
        self.scheduled += scheduled;
        self.sent += sent;
        self.expected += expected;
        self.received += received;
        self.lost += lost;
        self.duplicated += duplicated;
        self.reordered += reordered;
        self.corrupted += corrupted;
        self.skipped += skipped;
        self.connects += connects;
        self.connect_failures += connect_failures;
        self.upgrades += upgrades;
        self.upgrade_failures += upgrade_failures;
        self.closes += closes;
        self.payload_sent_octets += payload_sent_octets;
        self.payload_received_octets += payload_received_octets;
        self.errors.merge(errors);
    }

    /// Messages that did not come back exactly once, in order and intact.
    pub fn integrity_failures(&self) -> u64 {
        self.lost + self.duplicated + self.reordered + self.corrupted
    }
}

/// What one thread recorded since its last hand-over (about a second).
#[derive(Debug, Clone)]
pub struct Slice {
    /// Counts since the last hand-over.
    pub counts: Counts,
    /// Messages without a reply at the hand-over, those of the warm-up included (a level, not a count).
    pub in_flight: u64,
    /// Open connections at the hand-over (a level, not a count).
    pub connections_open: u64,
    /// CPU time this thread took since the last hand-over, ns (CLOCK_THREAD_CPUTIME_ID, read at the hand-over).
    pub cpu_ns: u64,
    recorders: Vec<Recorder>,
}

impl Default for Slice {
    fn default() -> Self {
        Self::new()
    }
}

impl Slice {
    /// An empty slice with the memory of every metric.
    pub fn new() -> Self {
        let recorders = Metric::ALL.iter().map(|_| Recorder::new()).collect();
        Slice { counts: Counts::default(), in_flight: 0, connections_open: 0, cpu_ns: 0, recorders }
    }

    /// Records one value, ns.
    #[inline]
    pub fn record(&mut self, metric: Metric, value_ns: u64) {
        self.record_n(metric, value_ns, 1);
    }

    /// Records `count` equal values, ns.
    #[inline]
    pub fn record_n(&mut self, metric: Metric, value_ns: u64, count: u64) {
        self.recorders[metric as usize].record_n(value_ns, count);
    }

    /// What a metric holds.
    pub fn recorder(&self, metric: Metric) -> &Recorder {
        &self.recorders[metric as usize]
    }

    /// Adds another slice: counts, levels, CPU and histograms.
    pub fn merge(&mut self, other: &Slice) {
        self.counts.merge(&other.counts);
        self.in_flight += other.in_flight;
        self.connections_open += other.connections_open;
        self.cpu_ns += other.cpu_ns;
        for (mine, theirs) in self.recorders.iter_mut().zip(&other.recorders) {
            if !theirs.is_empty() {
                mine.merge(theirs);
            }
        }
    }

    /// Adds only what belongs to opening connections: used for the ramp and the warm-up.
    pub(super) fn merge_connection_part(&mut self, other: &Slice) {
        self.counts.connects += other.counts.connects;
        self.counts.connect_failures += other.counts.connect_failures;
        self.counts.upgrades += other.counts.upgrades;
        self.counts.upgrade_failures += other.counts.upgrade_failures;
        self.counts.errors.merge(&other.counts.errors);
        for metric in [Metric::Connect, Metric::Upgrade, Metric::FirstMessage] {
            self.recorders[metric as usize].merge(other.recorder(metric));
        }
    }

    /// Empties it and keeps its memory.
    pub fn reset(&mut self) {
        self.counts = Counts::default();
        (self.in_flight, self.connections_open, self.cpu_ns) = (0, 0, 0);
        self.recorders.iter_mut().for_each(Recorder::reset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_index_is_its_place_in_all() {
        for (index, metric) in Metric::ALL.into_iter().enumerate() {
            assert_eq!(metric as usize, index);
        }
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn a_value_beyond_the_range_is_kept_and_counted_as_saturated() {
        let mut recorder = Recorder::new();
        recorder.record(LATENCY_MAX_NS);
        assert_eq!(recorder.saturated_count(), 0);
        recorder.record(LATENCY_MAX_NS + 1);
        recorder.record(u64::MAX);
        assert_eq!((recorder.count(), recorder.saturated_count()), (3, 2));
        assert!(recorder.max_ns() >= LATENCY_MAX_NS);
    }

    #[test]
    fn merging_is_the_same_as_recording_everything_in_one() {
        let (mut a, mut b, mut both) = (Recorder::new(), Recorder::new(), Recorder::new());
        for i in 1..10_000_u64 {
            let value_ns = i * i * 7;
            if i % 3 == 0 {
                a.record(value_ns)
            } else {
                b.record(value_ns)
            }
            both.record(value_ns);
        }
        a.merge(&b);
        assert_eq!(a, both);
    }

    #[test]
    fn a_reset_slice_is_empty() {
        let mut slice = Slice::new();
        slice.record(Metric::Lag, 17);
        slice.counts.errors.count(ErrorKind::Reset);
        slice.reset();
        assert!(slice.recorder(Metric::Lag).is_empty());
        assert_eq!(slice.counts, Counts::default());
    }

    #[test]
    fn a_quantile_is_never_above_the_maximum() {
        let mut recorder = Recorder::new();
        recorder.record_n(1_000_003, 10);
        assert_eq!(recorder.quantile_ns(1.0), recorder.max_ns());
        assert!(recorder.quantile_ns(0.5) <= recorder.max_ns());
    }
}
