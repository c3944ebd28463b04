//! What TLS costs: the ciphers and the handshakes of the two crypto providers that rustls has, and echoing through a
//! [`TlsLink`](resound::net::tls::TlsLink) beside what the cipher alone costs and what rustls's own records do.
//!
//! Two ways to read it:
//!
//! - `cargo bench --bench tls -- table [FILTER]` prints one line a row in a minute. The candidates of a row take
//!   turns, so that noise hits all alike, and the medians are compared.
//! - `cargo bench --bench tls -- [FILTER]` measures the same work with criterion, with its history.

mod provider;
mod records;

use std::time::{Duration, Instant};

use criterion::Criterion;

/// One thing to be measured, done in several ways.
struct Row {
    name: String,
    /// The name of the way, and the work.
    candidates: Vec<(&'static str, Work)>,
}

type Work = Box<dyn FnMut()>;

/// How long a candidate works in one turn, about: short beside what the kernel gives to another process, so that
/// most turns are undisturbed on a machine that is not ours alone.
const TURN: Duration = Duration::from_micros(200);
const TURNS: usize = 601;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "table") {
        return table(arguments.get(1).map_or("", String::as_str));
    }
    let mut criterion = Criterion::default().configure_from_args();
    for mut row in rows() {
        let mut group = criterion.benchmark_group(&row.name);
        for (name, work) in &mut row.candidates {
            group.bench_function(*name, |bencher| bencher.iter(&mut *work));
        }
        group.finish();
    }
    criterion.final_summary();
}

fn rows() -> Vec<Row> {
    let mut rows = provider::aeads();
    rows.extend(records::echoes());
    rows.extend(provider::handshakes());
    rows
}

/// Nanoseconds of each candidate, and how many times the first one's that is.
fn table(filter: &str) {
    for mut row in rows().into_iter().filter(|row| row.name.contains(filter)) {
        let medians = medians(&mut row);
        print!("{:<36}", row.name);
        for ((name, _), ns) in row.candidates.iter().zip(&medians) {
            print!("  {name} {ns:>9.0} ns ({:.2})", ns / medians[0]);
        }
        println!();
    }
}

fn medians(row: &mut Row) -> Vec<f64> {
    let repeats: Vec<u32> = row
        .candidates
        .iter_mut()
        .map(|(_, work)| {
            work();
            let mut repeats = 1;
            while time(repeats, work) < TURN && repeats < 1 << 24 {
                repeats *= 2;
            }
            repeats
        })
        .collect();
    let mut times = vec![Vec::with_capacity(TURNS); repeats.len()];
    for _ in 0..TURNS {
        for ((times, (_, work)), repeats) in times.iter_mut().zip(&mut row.candidates).zip(&repeats) {
            times.push(time(*repeats, work).as_nanos() as f64 / f64::from(*repeats));
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[TURNS / 2]
        })
        .collect()
}

fn time(repeats: u32, work: &mut dyn FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..repeats {
        work();
    }
    start.elapsed()
}
