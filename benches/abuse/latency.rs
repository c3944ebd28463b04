//! What a peer that behaves waits for beside those that do not, and what it waits for without them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::attackers::Attackers;
use crate::floods::{self, Flood};
use crate::probe::{Latencies, PATIENCE, Probe, latencies};
use crate::progress;
use crate::server::Server;

/// The aim: so much above what it is alone, in milliseconds.
const P99_MS_MAX: f64 = 5.0;
const MAX_MS_MAX: f64 = 50.0;
/// An attack is under way after this long.
const SETTLES: Duration = Duration::from_millis(300);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server to attack.
    #[arg(long)]
    resound: PathBuf,
    /// The backends to attack, in turn.
    #[arg(long, value_delimiter = ',', default_value = "epoll,uring")]
    io: Vec<String>,
    /// The few rows that decide.
    #[arg(long)]
    quick: bool,
    /// Only attacks whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// Only attacks with so many flooders.
    #[arg(long)]
    flooders: Option<usize>,
    /// How often alone and beside take turns.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// How long each turn beside an attack takes, in milliseconds; alone it takes half of it.
    #[arg(long, default_value_t = 3000)]
    turn_ms: u64,
    /// How many threads the attackers are spread over. More than one fill the server's sockets in bursts, which is
    /// worse for others than an even flow.
    #[arg(long, default_value_t = 3)]
    threads: usize,
    /// The core that servers run on.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core that the probe and the attackers run on.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Exit with 1 when a row does not hold.
    #[arg(long)]
    check: bool,
    /// Further flags of the server, after --.
    #[arg(last = true)]
    flags: Vec<String>,
}

/// One backend under one attack.
struct Row {
    io: String,
    server: Server,
    probe: Option<Probe>,
    alone: Latencies,
    beside: Latencies,
    moved: Moved,
    /// Why the probe got no reply.
    failure: Option<String>,
}

/// What attackers have moved, and in how many seconds.
#[derive(Default)]
struct Moved {
    seconds: f64,
    sent: u64,
    received: u64,
    opened: u64,
    cut_off: u64,
}

/// Attacks, prints the table, and says whether every row holds or none has to.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    core_affinity::set_for_current(core_affinity::CoreId { id: arguments.client_core });
    println!(
        "| attack | flooders | backend | alone: p50, p99, max ms | beside it: p50, p99, max ms | more: p99, max ms \
         | the attackers moved | verdict |\n|---|---|---|---|---|---|---|---|"
    );
    let (mut held, mut count) = (0, 0);
    for flood in floods::all() {
        let wanted = flood.name.contains(&arguments.only)
            && arguments.flooders.is_none_or(|flooders| flooders == flood.flooders)
            && (flood.is_quick || !arguments.quick);
        if wanted {
            for row in arguments.attack(&flood)? {
                count += 1;
                held += usize::from(row.print(&flood));
            }
        }
    }
    println!(
        "\n{held} of {count} rows hold: beside an attack p99 is at most {P99_MS_MAX} ms and the maximum at most \
         {MAX_MS_MAX} ms above what they are alone."
    );
    Ok(held == count || !arguments.check)
}

impl Arguments {
    fn attack(&self, flood: &Flood) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for io in &self.io {
            let mut flags: Vec<String> = ["--workers", "1", "--io", io].map(str::to_owned).into();
            flags.extend(flood.flags.iter().map(|flag| flag.to_string()));
            flags.extend(self.flags.iter().cloned());
            let server = Server::start(&self.resound, &flags, self.server_core, None)?;
            let (alone, beside) = (latencies(), latencies());
            let (io, moved) = (io.clone(), Moved::default());
            rows.push(Row { io, server, probe: None, alone, beside, moved, failure: None });
        }
        for round in 0..self.rounds {
            for row in &mut rows {
                progress(&format!("{} {}, {}: round {}", flood.flooders, flood.name, row.io, round + 1));
                if row.failure.is_none()
                    && let Err(error) = row.round(flood, Duration::from_millis(self.turn_ms), self.threads)
                {
                    row.failure = Some(format!("{error:#}"));
                }
            }
        }
        progress("");
        Ok(rows)
    }
}

impl Row {
    /// Alone, then beside the attack.
    fn round(&mut self, flood: &Flood, turn: Duration, threads: usize) -> anyhow::Result<()> {
        let probe = match &mut self.probe {
            Some(probe) => probe,
            none => none.insert(Probe::connect(self.server.address)?),
        };
        probe.calm()?;
        probe.measure(turn / 2, &mut self.alone)?;
        if flood.plans.is_empty() {
            let churn = Churn::start()?;
            thread::sleep(SETTLES);
            let (start, before) = (Instant::now(), churn.moved.load(Relaxed));
            probe.measure(turn, &mut self.beside)?;
            self.moved.seconds += start.elapsed().as_secs_f64();
            self.moved.sent += churn.moved.load(Relaxed) - before;
            return Ok(());
        }
        let mut attackers = Attackers::start(self.server.address, &flood.plans, flood.manners, threads);
        attackers.wait_until_open(PATIENCE);
        thread::sleep(SETTLES);
        let (start, before) = (Instant::now(), Moved::of(&attackers));
        let result = probe.measure(turn, &mut self.beside);
        self.moved.add(&before, &Moved::of(&attackers), start.elapsed().as_secs_f64());
        attackers.stop()?;
        result
    }

    /// Prints it, and returns whether it holds.
    fn print(&self, flood: &Flood) -> bool {
        let ms = |latencies: &Latencies| {
            let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
            [at(0.5), at(0.99), latencies.max() as f64 / 1e6]
        };
        let (alone, beside) = (ms(&self.alone), ms(&self.beside));
        let [_, p99, max] = [0, 1, 2].map(|at| beside[at] - alone[at]);
        let holds = p99 <= P99_MS_MAX && max <= MAX_MS_MAX && self.failure.is_none();
        let verdict = match &self.failure {
            Some(failure) => format!("**fails: {failure}**"),
            None if holds => "holds".to_owned(),
            None => "**fails**".to_owned(),
        };
        let three = |[p50, p99, max]: [f64; 3]| format!("{p50:.2}, {p99:.2}, {max:.1}");
        println!(
            "| {} | {} | {} | {} | {} | {p99:+.2}, {max:+.1} | {} | {verdict} |",
            flood.name,
            flood.flooders,
            self.io,
            three(alone),
            three(beside),
            self.moved.text(flood.message_len),
        );
        holds
    }
}

impl Moved {
    fn of(attackers: &Attackers) -> Self {
        let tally = attackers.tally();
        Self {
            seconds: 0.0,
            sent: tally.sent.load(Relaxed),
            received: tally.received.load(Relaxed),
            opened: tally.opened.load(Relaxed),
            cut_off: tally.cut_off.load(Relaxed),
        }
    }

    fn add(&mut self, before: &Self, after: &Self, seconds: f64) {
        self.seconds += seconds;
        self.sent += after.sent - before.sent;
        self.received += after.received - before.received;
        self.opened += after.opened - before.opened;
        self.cut_off += after.cut_off - before.cut_off;
    }

    fn text(&self, message_len: usize) -> String {
        let each_second = |count: u64| count as f64 / self.seconds.max(1e-9);
        let mib = |octets| each_second(octets) / f64::from(1 << 20);
        let mut text = format!("{:.0} MiB/s out, {:.0} in", mib(self.sent), mib(self.received));
        if message_len > 0 {
            text += &format!(", {:.0} messages/s", each_second(self.sent) / message_len as f64);
        }
        if self.opened > 0 {
            text += &format!(", {:.0} connections/s", each_second(self.opened));
        }
        if self.cut_off > 0 {
            text += &format!(", {} cut off", self.cut_off);
        }
        text
    }
}

/// What the instrument itself does to the probe: a thread like the attackers' that moves octets over loopback
/// as they do, and never to the server.
struct Churn {
    thread: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
}

impl Churn {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let mut from = TcpStream::connect(listener.local_addr()?)?;
        let (mut to, _) = listener.accept()?;
        let (is_over, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (is_over.clone(), moved.clone());
        let thread = thread::spawn(move || {
            let mut octets = vec![0; 32 << 10];
            let _ = rustix::process::nice(10);
            while !ends.load(Relaxed) && from.write_all(&octets).is_ok() && to.read_exact(&mut octets).is_ok()
            {
                counts.fetch_add(octets.len() as u64, Relaxed);
            }
        });
        Ok(Self { thread: Some(thread), is_over, moved })
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
