//! Made-up results for tests: drawn from a seed, plausible in shape, never measured.

// Each test binary uses some of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use resound_load::result::collector::Collector;
use resound_load::result::model::{
    Arrival, Host, Io, KernelEvidence, LatePolicy, Load, Manifest, Mode, Phase, Plan, RunResult, Sample,
    ServerInfo, SizeShare, ThreadUse,
};
use resound_load::result::recorder::{Metric, Slice};

/// SplitMix64: small, seeded, the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly in `0.0..1.0`.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Log-normal around a median: what latencies look like.
    pub(crate) fn latency_ns(&mut self, median_ns: f64, sigma: f64) -> u64 {
        let (radius, angle) =
            ((-2.0 * (1.0 - self.share()).ln()).sqrt(), std::f64::consts::TAU * self.share());
        (median_ns * (sigma * radius * angle.cos()).exp()).round() as u64
    }
}

/// What a made-up run is like.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) mode: Mode,
    pub(crate) rate_per_s: u64,
    pub(crate) measured_s: u64,
    pub(crate) warmup_s: u64,
    pub(crate) connections: u64,
    pub(crate) threads: usize,
    pub(crate) service_median_ns: f64,
    pub(crate) lag_median_ns: f64,
    /// In this second the server stalls and the kernel's accept queue overflows.
    pub(crate) stall_at_s: Option<u64>,
    pub(crate) started_unix_ms: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Scenario {
            seed: 1,
            mode: Mode::Echo,
            rate_per_s: 4_000,
            measured_s: 20,
            warmup_s: 3,
            connections: 500,
            threads: 2,
            service_median_ns: 180_000.0,
            lag_median_ns: 6_000.0,
            stall_at_s: None,
            started_unix_ms: 1_750_000_000_000,
        }
    }
}

impl Scenario {
    pub(crate) fn result(&self) -> RunResult {
        let mut random = Random::new(self.seed);
        let mut collector = Collector::new(self.threads);
        let mut slice = Slice::new();
        for _ in 0..self.connections {
            slice.record(Metric::Connect, random.latency_ns(60_000.0, 0.4));
            slice.record(Metric::Upgrade, random.latency_ns(220_000.0, 0.5));
            slice.record(Metric::FirstMessage, random.latency_ns(250_000.0, 0.5));
        }
        slice.counts.connects = self.connections;
        slice.counts.upgrades = self.connections;
        slice.connections_open = self.connections;
        collector.absorb(0, &slice);
        let warmup_ms = self.warmup_s as i64 * 1000;
        collector.close_interval(Phase::Ramp, -warmup_ms - 1000, 1000, Sample::default());
        for second in -(self.warmup_s as i64)..self.measured_s as i64 {
            let phase = if second < 0 { Phase::Warmup } else { Phase::Measure };
            for thread in 0..self.threads {
                self.fill(&mut slice, &mut random, thread, second);
                collector.absorb(thread, &slice);
            }
            let sample = self.sample(&mut random, second);
            collector.close_interval(phase, second * 1000, 1000, sample);
        }
        let collected = collector.finish();
        let threads = (0..self.threads)
            .map(|thread| ThreadUse { name: format!("load-{thread}"), cpu_percent: 41.0 + thread as f64 })
            .collect();
        collected.into_result(self.manifest(), self.plan(), self.measured_s as f64, threads, self.kernel())
    }

    /// One thread's second.
    fn fill(&self, slice: &mut Slice, random: &mut Random, thread: usize, second: i64) {
        slice.reset();
        let messages = self.rate_per_s / self.threads as u64;
        let stalled = self.stall_at_s.is_some_and(|at| at as i64 == second);
        for message in 0..messages {
            let lag_ns = random.latency_ns(self.lag_median_ns, 0.5);
            let mut service_ns = random.latency_ns(self.service_median_ns, 0.35);
            // A stall of 100 ms delays what is sent within it by what is left of it.
            let at_ns = message * 1_000_000_000 / messages;
            if stalled && at_ns < 100_000_000 {
                service_ns += 100_000_000 - at_ns;
            }
            let copies = if self.mode == Mode::Broadcast { 20 } else { 1 };
            slice.record(Metric::Lag, lag_ns);
            if self.mode == Mode::Broadcast {
                let spread_ns = random.latency_ns(self.service_median_ns / 4.0, 0.4);
                (0..copies).for_each(|copy| {
                    slice.record(Metric::Delivery, lag_ns + service_ns + spread_ns * copy / copies)
                });
                slice.record(Metric::Spread, spread_ns);
            } else {
                slice.record(Metric::Service, service_ns);
                slice.record(Metric::Response, service_ns + lag_ns);
            }
            slice.counts.expected += copies;
            slice.counts.received += copies;
        }
        slice.counts.scheduled = messages;
        slice.counts.sent = messages;
        slice.counts.payload_sent_octets = messages * 64;
        slice.counts.payload_received_octets = slice.counts.received * 64;
        slice.connections_open = self.connections / self.threads as u64;
        slice.in_flight = 1 + random.next() % 4;
        slice.cpu_ns = random.latency_ns(410_000_000.0, 0.03);
        if thread == 0 {
            (0..1000).for_each(|_| slice.record(Metric::Hiccup, random.latency_ns(55_000.0, 0.1)));
        }
    }

    fn sample(&self, random: &mut Random, second: i64) -> Sample {
        let mut kernel_deltas = BTreeMap::new();
        if self.stall_at_s.is_some_and(|at| at as i64 == second) {
            kernel_deltas.insert("TcpExt.ListenOverflows".to_owned(), 412);
        }
        if random.next().is_multiple_of(7) {
            kernel_deltas.insert("Tcp.RetransSegs".to_owned(), 1);
        }
        Sample {
            server_cpu_percent: Some(62.0 + 6.0 * random.share()),
            server_rss_octets: Some(48 << 20 | (second.unsigned_abs() << 14)),
            kernel_deltas,
            kernel_levels: BTreeMap::from([("sockstat.TCP.tw".to_owned(), 3)]),
        }
    }

    fn kernel(&self) -> KernelEvidence {
        let counters = |overflows| BTreeMap::from([("TcpExt.ListenOverflows".to_owned(), overflows)]);
        KernelEvidence {
            counters_before: counters(7),
            counters_after: counters(if self.stall_at_s.is_some() { 419 } else { 7 }),
            ..KernelEvidence::default()
        }
    }

    fn manifest(&self) -> Manifest {
        Manifest {
            tool_version: "0.1.0".to_owned(),
            argv: ["resound-load", "run", "ws://127.0.0.1:9001/echo", "-c", "500"]
                .map(str::to_owned)
                .to_vec(),
            seed: self.seed,
            started_unix_ms: self.started_unix_ms,
            host: Host {
                kernel_release: "6.1.0-made-up".to_owned(),
                cpu_model: "a made-up CPU".to_owned(),
                cpu_count: 8,
                cpu_allowed_count: 8,
                memory_octets: 16 << 30,
                nofile_soft: 20_000,
                nofile_hard: 20_000,
                sysctls: BTreeMap::from([("net.core.somaxconn".to_owned(), "4096".to_owned())]),
                ..Host::default()
            },
            server: ServerInfo { header: Some("made-up/1.0".to_owned()), ..ServerInfo::default() },
            merged_from: Vec::new(),
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan {
            url: "ws://127.0.0.1:9001/echo".to_owned(),
            mode: self.mode,
            load: Load::Open { arrival: Arrival::Fixed, offered_msgs_per_s: self.rate_per_s as f64 },
            late: LatePolicy::CatchUp,
            connections: self.connections,
            publishers: u64::from(self.mode == Mode::Broadcast),
            duration_s: self.measured_s as f64,
            warmup_s: self.warmup_s as f64,
            ramp_connects_per_s: Some(500.0),
            sizes: vec![SizeShare { min_octets: 64, max_octets: 64, weight: 1.0 }],
            text: false,
            threads: self.threads as u32,
            io: Io::Epoll,
            sources: Vec::new(),
            churn_per_s: 0.0,
            deflate: false,
            subprotocol: None,
        }
    }
}

/// A directory of this test's own, empty.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("a scratch directory can be emptied");
    }
    std::fs::create_dir_all(&dir).expect("a scratch directory can be made");
    dir
}

/// Says why a test that needs a program is skipped; in CI that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI must run everything: {why}");
    eprintln!("skipped: {why}");
}
