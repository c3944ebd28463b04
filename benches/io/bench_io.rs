//! What an interface to the kernel costs: server processor time for each message, epoll and io_uring side
//! by side. `scripts/bench-io.sh` runs it; `docs/io-uring.md` has what it printed.
//!
//! For each workload all servers are started, each on the same core, and measured in turn, so that what
//! disturbs the machine disturbs them all. A ratio is taken within a repetition, and its median over them.

mod client;
mod loops;
mod server;
mod wakes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use client::{Client, Traffic};
use server::{Server, Usage};
use wakes::{Wakes, Way};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure, and print a table.
    Run(Run),
    /// Measure what it costs to wake another worker's ring.
    Wakes {
        /// The cores of the two threads.
        #[arg(long, value_delimiter = ',', default_value = "0,1")]
        cores: Vec<usize>,
        /// How often each way is measured.
        #[arg(long, default_value_t = 15)]
        repetitions: usize,
    },
    /// Serve raw TCP echo with a minimal loop on epoll.
    LoopEpoll,
    /// Serve raw TCP echo with a minimal loop on io_uring.
    LoopUring,
    /// The same with direct descriptors.
    LoopUringDirect,
}

#[derive(clap::Args)]
struct Run {
    /// The server to measure.
    #[arg(long)]
    resound: PathBuf,
    /// Another build of it, such as the one before a change: every server that is resound's is measured in both, and
    /// the ratios say what the change costs.
    #[arg(long)]
    before: Option<PathBuf>,
    /// The core that servers run on.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core that this process runs on.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// How often each server is measured.
    #[arg(long, default_value_t = 31)]
    repetitions: usize,
    /// How long each measurement takes, in milliseconds.
    #[arg(long, default_value_t = 200)]
    sample_ms: u64,
    /// Which workloads, as CONNECTIONS/OCTETS/IN_FLIGHT; with a leading b, a broadcast to that many members.
    /// Several are separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "50/20/1")]
    workloads: Vec<String>,
    /// Which servers, of loop-epoll, loop-uring, loop-uring-direct, raw-epoll, raw-uring, echo-epoll and echo-uring; resound's
    /// may have further flags after a space.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "loop-epoll,loop-uring,raw-epoll,raw-uring,echo-epoll,echo-uring"
    )]
    servers: Vec<String>,
    /// Leave out the head of the table.
    #[arg(long)]
    no_head: bool,
}

/// What the name of a server ends with that is another build.
const BEFORE: &str = ", before";

struct Workload {
    name: String,
    is_broadcast: bool,
    connections: usize,
    payload_len: usize,
    in_flight: usize,
}

/// One server in one repetition. `cpu_us` and `switches` are for each message.
#[derive(Clone, Copy, Debug)]
struct Sample {
    cpu_us: f64,
    /// Ticks of the whole sample: too coarse for one, so they are added up.
    user_ticks: f64,
    system_ticks: f64,
    switches: f64,
    per_second: f64,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Task::Run(run) => run.run(),
        Task::Wakes { cores, repetitions } => compare_wakes(&cores, repetitions),
        Task::LoopEpoll => loops::epoll(),
        Task::LoopUring => loops::uring(false),
        Task::LoopUringDirect => loops::uring(true),
    }
}

fn compare_wakes(cores: &[usize], repetitions: usize) -> anyhow::Result<()> {
    let &[first, second] = cores else { anyhow::bail!("--cores: two are needed, such as 0,1") };
    let ways = [Way::EventFd, Way::MsgRingAtOnce, Way::MsgRing];
    let mut samples = Vec::new();
    for _ in 0..repetitions {
        let turn: anyhow::Result<Vec<Wakes>> =
            ways.iter().map(|way| wakes::measure(*way, [first, second])).collect();
        samples.push(turn?);
    }
    println!("| a wake-up | us | of eventfd | 95 % interval of the median |\n|---|---|---|---|");
    for (what, field) in [
        ("processor time of both threads", (|wakes| wakes.cpu_us) as fn(&Wakes) -> f64),
        ("until the other has seen it", |wakes| wakes.latency_us),
    ] {
        for (at, way) in ways.iter().enumerate() {
            let all = |of: &dyn Fn(&Vec<Wakes>) -> f64| {
                let mut values: Vec<f64> = samples.iter().map(of).collect();
                (spread(&mut values).1, interval_of_median(&values))
            };
            let (ratio, (from, to)) = all(&|turn| field(&turn[at]) / field(&turn[0]));
            let (us, _) = all(&|turn| field(&turn[at]));
            println!("| {way:?}: {what} | {us:.2} | {ratio:.3} | {from:.3} to {to:.3} |");
        }
    }
    Ok(())
}

impl Run {
    fn run(&self) -> anyhow::Result<()> {
        resound::net::raise_nofile()?;
        core_affinity::set_for_current(core_affinity::CoreId { id: self.client_core });
        if !self.no_head {
            println!(
                "| workload | server | CPU us/message | (user, system) | spread | messages/s | context \
                 switches/message | system calls/message |\n|---|---|---|---|---|---|---|---|"
            );
        }
        let mut ratios = Vec::new();
        for text in &self.workloads {
            let workload = Workload::parse(text).with_context(|| format!("--workloads {text}"))?;
            self.measure(&workload, &mut ratios)?;
        }
        println!(
            "\n| workload | CPU per message | median | 95 % interval of the median | spread |\n|---|---|---|---|---|"
        );
        ratios.iter().for_each(|ratio| println!("{ratio}"));
        Ok(())
    }

    fn measure(&self, workload: &Workload, ratios: &mut Vec<String>) -> anyhow::Result<()> {
        let servers = self.servers.iter().filter(|name| workload.wants(name));
        let is_twice = |name: &str| self.before.is_some() && !name.starts_with("loop-");
        let names: Vec<String> = servers
            .flat_map(|name| [Some(name.clone()), is_twice(name).then(|| format!("{name}{BEFORE}"))])
            .flatten()
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut running = Vec::new();
        for name in &names {
            let server = self.start(name)?;
            let traffic = match *name {
                _ if workload.is_broadcast => Traffic::Broadcast,
                name if name.starts_with("echo") => Traffic::Echo,
                _ => Traffic::Raw,
            };
            let &Workload { connections, payload_len, in_flight, .. } = workload;
            let client = Client::connect(server.address, traffic, connections, payload_len, in_flight)
                .with_context(|| name.to_string())?;
            running.push((server, client));
        }
        let duration = Duration::from_millis(self.sample_ms);
        let mut samples = vec![Vec::new(); names.len()];
        for repetition in 0..self.repetitions {
            eprint!("\r{}: turn {} of {}   ", workload.name, repetition + 1, self.repetitions);
            // There and back again, so that what drifts evenly falls on all alike.
            let order: Vec<usize> = match repetition % 2 {
                0 => (0..names.len()).collect(),
                _ => (0..names.len()).rev().collect(),
            };
            for at in order {
                let (server, client) = &mut running[at];
                client.start()?;
                client.run(duration / 5)?; // Warm again what the others have cooled.
                samples[at].push(sample(server, client, duration)?);
                client.stop()?;
            }
        }
        eprint!("\r\x1b[K");
        for (((server, client), samples), name) in running.iter_mut().zip(&samples).zip(&names) {
            let calls = system_calls(server, client, duration / 2)?;
            print_row(&workload.name, name, samples, calls);
        }
        let at = |name: &str| names.iter().position(|other| *other == name);
        let changes = names.iter().filter_map(|name| name.strip_suffix(BEFORE).map(|now| (now, *name)));
        let variants = names.iter().filter(|name| !name.ends_with(BEFORE));
        let variants = variants.filter_map(|name| name.split_once(' ').map(|(plain, _)| (*name, plain)));
        for (over, under) in changes.chain(variants).chain([
            ("raw-epoll", "loop-epoll"),
            ("raw-uring", "loop-uring"),
            ("loop-uring-direct", "loop-uring"),
            ("echo-epoll", "raw-epoll"),
            ("echo-uring", "raw-uring"),
            ("loop-uring", "loop-epoll"),
            ("raw-uring", "raw-epoll"),
            ("echo-uring", "echo-epoll"),
        ]) {
            if let (Some(over_at), Some(under_at)) = (at(over), at(under)) {
                let mut all: Vec<f64> = samples[over_at]
                    .iter()
                    .zip(&samples[under_at])
                    .map(|(over, under)| over.cpu_us / under.cpu_us)
                    .collect();
                let (low, middle, high) = spread(&mut all);
                let (from, to) = interval_of_median(&all);
                ratios.push(format!(
                    "| {} | {over} / {under} | {middle:.3} | {from:.3} to {to:.3} | {low:.3} to {high:.3} |",
                    workload.name
                ));
            }
        }
        Ok(())
    }

    fn start(&self, name: &str) -> anyhow::Result<Server> {
        if name.starts_with("loop-") {
            return Server::start(&std::env::current_exe()?, &[name.to_owned()], self.server_core);
        }
        let (name, program) = match (name.strip_suffix(BEFORE), &self.before) {
            (Some(name), Some(before)) => (name, before),
            _ => (name, &self.resound),
        };
        let (plain, more) = name.split_once(' ').unwrap_or((name, ""));
        let (mode, io) = plain.split_once('-').with_context(|| format!("--servers {name}"))?;
        let flags = format!("--mode {mode} --io {io} --workers 1 --listen 127.0.0.1:0 --log warn");
        let flags: Vec<String> = flags.split(' ').chain(more.split_whitespace()).map(str::to_owned).collect();
        Server::start(program, &flags, self.server_core)
    }
}

impl Workload {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (is_broadcast, numbers) = match text.strip_prefix('b') {
            Some(numbers) => (true, numbers),
            None => (false, text),
        };
        let numbers: Vec<usize> =
            numbers.split('/').map(str::parse).collect::<Result<_, _>>().context("not numbers")?;
        let &[connections, payload_len, in_flight] = &numbers[..] else {
            anyhow::bail!("expected three numbers");
        };
        Ok(Self { name: text.to_owned(), is_broadcast, connections, payload_len, in_flight })
    }

    /// Only an echo server has rooms.
    fn wants(&self, server: &str) -> bool {
        !self.is_broadcast || server.starts_with("echo")
    }
}

fn sample(server: &Server, client: &mut Client, duration: Duration) -> anyhow::Result<Sample> {
    let before = server.usage()?;
    let (messages, elapsed) = client.run(duration)?;
    let after = server.usage()?;
    let messages = messages as f64;
    let difference = |field: fn(&Usage) -> u64| (field(&after) - field(&before)) as f64;
    Ok(Sample {
        cpu_us: difference(|usage| usage.cpu_ns) / 1000.0 / messages,
        user_ticks: difference(|usage| usage.user_ticks),
        system_ticks: difference(|usage| usage.system_ticks),
        switches: difference(|usage| usage.switches) / messages,
        per_second: messages / elapsed.as_secs_f64(),
    })
}

/// System calls for each message, if they can be counted here. Counting slows them down, so this is no
/// sample of anything else.
fn system_calls(server: &Server, client: &mut Client, duration: Duration) -> anyhow::Result<Option<f64>> {
    let Some(counter) = server.count_system_calls() else { return Ok(None) };
    client.start()?;
    let (messages, _) = client.run(duration)?;
    let messages = messages + client.stop()?;
    Ok(counter.stop()?.map(|calls| calls as f64 / messages as f64))
}

fn print_row(workload: &str, name: &str, samples: &[Sample], calls: Option<f64>) {
    let median = |field: fn(&Sample) -> f64| spread(&mut samples.iter().map(field).collect::<Vec<_>>());
    let (low, cpu, high) = median(|sample| sample.cpu_us);
    let total = |field: fn(&Sample) -> f64| samples.iter().map(field).sum::<f64>();
    let (user, system) = (total(|sample| sample.user_ticks), total(|sample| sample.system_ticks));
    let user = user / (user + system).max(1.0);
    let calls = calls.map_or("not counted".to_owned(), |calls| format!("{calls:.3}"));
    println!(
        "| {workload} | {name} | {cpu:.3} | {:.3}, {:.3} | {low:.3} to {high:.3} | {:.0} | {:.4} | {calls} |",
        cpu * user,
        cpu * (1.0 - user),
        median(|sample| sample.per_second).1,
        median(|sample| sample.switches).1,
    );
}

/// Between which of the sorted `values` the median of all that could be measured lies, with 95 % confidence: the
/// binomial interval in its normal approximation. Of fewer than six values it is all that is between them.
fn interval_of_median(sorted: &[f64]) -> (f64, f64) {
    let len = sorted.len() as f64;
    let reach = 1.96 * len.sqrt() / 2.0;
    let (from, to) = ((len / 2.0 - reach).floor().max(1.0), (len / 2.0 + 1.0 + reach).ceil().min(len));
    (sorted[from as usize - 1], sorted[to as usize - 1])
}

/// The least, the median and the greatest.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}
