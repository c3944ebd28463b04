//! What the server's memory becomes under those who make it keep things, and afterwards; and whether a peer
//! that behaves gets every reply meanwhile.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::attackers::Attackers;
use crate::crowd::Manners;
use crate::hoards::{self, Hoard};
use crate::probe::Probe;
use crate::progress;
use crate::server::{self, LimitBy, Memory, Server};

/// How often memory is read.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// How long the attackers may take to say all that they say.
const SAYING_MAX: Duration = Duration::from_secs(40);
/// So long after the attackers have gone memory is read again, and is to be this much of what it was at most.
const AFTER: Duration = Duration::from_secs(10);
const AFTER_RATIO_MAX: f64 = 1.2;
/// How long the peer that behaves runs before and after.
const WARM: Duration = Duration::from_secs(1);
/// What it sends, each time after so long, and each so manieth time.
const SHORT: usize = 20;
const LONG: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(5);
const LONG_EACH: u64 = 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server to attack.
    #[arg(long)]
    resound: PathBuf,
    /// The backends to attack, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "epoll,uring")]
    io: Vec<String>,
    /// Only attacks whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// All attacks together, on one server.
    #[arg(long)]
    all_at_once: bool,
    /// Limit the server's memory to so many octets.
    #[arg(long, value_name = "OCTETS")]
    limit: Option<u64>,
    /// What limits it.
    #[arg(long, value_enum, default_value_t = LimitBy::Auto)]
    limit_by: LimitBy,
    /// Kill the server at so many octets, for the sake of others on this machine. Default: half of what is
    /// available at start.
    #[arg(long, value_name = "OCTETS")]
    guard: Option<u64>,
    /// The core that servers run on.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core that everything else runs on.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Exit with 1 when a row does not hold.
    #[arg(long)]
    check: bool,
    /// Further flags of the server, after --.
    #[arg(last = true)]
    flags: Vec<String>,
}

/// What one attack has led to.
struct Outcome {
    connections: usize,
    sent: u64,
    cut_off: u64,
    before: Memory,
    peak: Memory,
    after: Option<Memory>,
    beside: Beside,
    server: String,
}

/// Attacks, prints the table, and says whether every row holds or none has to.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    core_affinity::set_for_current(core_affinity::CoreId { id: arguments.client_core });
    println!(
        "| attack | connections | backend | sent, MiB | RSS in MiB: before, peak, after | after/before | peak of \
         VmSize, MiB | beside it: replies, max ms | cut off | server | verdict |\n|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let (mut held, mut count) = (0, 0);
    let mut hoards: Vec<Hoard> =
        hoards::all().into_iter().filter(|hoard| hoard.name.contains(&arguments.only)).collect();
    let groups = if arguments.all_at_once {
        vec![hoards]
    } else {
        hoards.drain(..).map(|hoard| vec![hoard]).collect()
    };
    for group in groups {
        for io in &arguments.io {
            let name = if arguments.all_at_once { "all at once" } else { group[0].name };
            progress(&format!("{name}, {io}"));
            let outcome = arguments.attack(&group, io)?;
            progress("");
            count += 1;
            held += usize::from(outcome.print(name, io));
        }
    }
    println!(
        "\n{held} of {count} rows hold: the server lives, a peer that behaves gets every reply, and {} s after \
         the attack its RSS is at most {AFTER_RATIO_MAX} of before.",
        AFTER.as_secs()
    );
    Ok(held == count || !arguments.check)
}

impl Arguments {
    fn attack(&self, group: &[Hoard], io: &str) -> anyhow::Result<Outcome> {
        let mut flags: Vec<String> = ["--workers", "1", "--io", io].map(str::to_owned).into();
        flags.extend(group.iter().flat_map(|hoard| hoard.flags).map(|flag| flag.to_string()));
        flags.extend(self.flags.iter().cloned());
        let limit = self.limit.map(|octets| (octets, self.limit_by));
        let server = Server::start(&self.resound, &flags, self.server_core, limit)?;
        let behaved = Behaved::start(Probe::connect(server.address)?);
        thread::sleep(WARM);
        let before = server.memory().unwrap_or_default();
        let guard = self.guard.map_or_else(|| available().map(|octets| octets / 2), Ok)?;
        let sampler = Sampler::start(server.id(), guard);

        let mut attackers: Vec<Attackers> = group
            .iter()
            .map(|hoard| Attackers::start(server.address, &hoard.plans, Manners::default(), 1))
            .collect();
        let start = Instant::now();
        for attackers in &attackers {
            attackers.wait_until_said(SAYING_MAX.saturating_sub(start.elapsed()));
        }
        thread::sleep(group.iter().map(|hoard| hoard.stays).max().unwrap_or_default());
        let total = |of: fn(&crate::crowd::Tally) -> &std::sync::atomic::AtomicU64| {
            attackers.iter().map(|attackers| of(attackers.tally()).load(Relaxed)).sum::<u64>()
        };
        let (sent, cut_off) = (total(|tally| &tally.sent), total(|tally| &tally.cut_off));
        for attackers in &mut attackers {
            // With the server gone there may be nobody to connect to: that is told below.
            let _ = attackers.stop();
        }
        thread::sleep(AFTER);
        let after = server.memory();
        let beside = behaved.stop();
        let peak = sampler.stop();
        let connections = group.iter().map(|hoard| hoard.plans.len()).sum();
        Ok(Outcome { connections, sent, cut_off, before, peak, after, beside, server: server.end()? })
    }
}

impl Outcome {
    /// Prints it, and returns whether it holds.
    fn print(&self, name: &str, io: &str) -> bool {
        let mib = |octets: u64| (octets as f64 / f64::from(1 << 20)).round();
        let ratio = self.after.map(|after| after.rss as f64 / self.before.rss.max(1) as f64);
        let after = self.after.map_or("–".to_owned(), |after| mib(after.rss).to_string());
        let (beside, is_given_back) = (&self.beside, ratio.is_none_or(|ratio| ratio <= AFTER_RATIO_MAX));
        let mut faults = Vec::new();
        if !self.server.starts_with("alive") {
            faults.push("the server died");
        }
        if beside.failure.is_some() {
            faults.push("a reply did not come");
        }
        if !is_given_back {
            faults.push("memory is kept");
        }
        println!(
            "| {name} | {} | {io} | {:.0} | {:.0}, {:.0}, {after} | {} | {:.0} | {}, {:.0}{} | {} | {} | {} |",
            self.connections,
            mib(self.sent),
            mib(self.before.rss),
            mib(self.peak.rss),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            mib(self.peak.size),
            beside.replies,
            beside.max.as_secs_f64() * 1e3,
            beside.failure.as_ref().map_or(String::new(), |failure| format!(", then {failure}")),
            self.cut_off,
            self.server,
            if faults.is_empty() { "holds".to_owned() } else { format!("**{}**", faults.join(", ")) },
        );
        faults.is_empty()
    }
}

/// MemAvailable in octets.
fn available() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or("0 kB");
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Reads the server's memory again and again.
struct Sampler {
    thread: JoinHandle<Memory>,
    is_over: Arc<AtomicBool>,
}

impl Sampler {
    fn start(id: u32, guard: u64) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = thread::spawn(move || {
            let mut peak = Memory::default();
            while !ends.load(Relaxed) {
                let Some(now) = server::memory(id) else { break };
                peak = Memory { rss: peak.rss.max(now.rss), size: peak.size.max(now.size) };
                if now.rss > guard {
                    eprintln!("\nthe server takes {} MiB: killed", now.rss >> 20);
                    server::kill(id);
                    break;
                }
                thread::sleep(SAMPLE_EVERY);
            }
            peak
        });
        Self { thread, is_over }
    }

    /// The most there was.
    fn stop(self) -> Memory {
        self.is_over.store(true, Relaxed);
        self.thread.join().expect("the sampler panicked")
    }
}

/// A peer that behaves, and goes on until a reply does not come.
struct Behaved {
    thread: JoinHandle<Beside>,
    is_over: Arc<AtomicBool>,
}

/// What it met.
#[derive(Default)]
struct Beside {
    replies: u64,
    max: Duration,
    failure: Option<String>,
}

impl Behaved {
    fn start(mut probe: Probe) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = thread::spawn(move || {
            let mut beside = Beside::default();
            while !ends.load(Relaxed) {
                let len = if beside.replies % LONG_EACH == LONG_EACH - 1 { LONG } else { SHORT };
                match probe.ping(len) {
                    Ok(took) => beside.max = beside.max.max(took),
                    Err(error) => {
                        beside.failure = Some(format!("{error:#}"));
                        break;
                    }
                }
                beside.replies += 1;
                thread::sleep(PAUSE);
            }
            beside
        });
        Self { thread, is_over }
    }

    fn stop(self) -> Beside {
        self.is_over.store(true, Relaxed);
        self.thread.join().expect("the peer that behaves panicked")
    }
}
