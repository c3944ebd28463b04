//! What a step's result does not hold: which threads of the server worked, how busy the machine was, and the
//! kernel's memory for sockets. A thread that sleeps looks four times a second; what counts is the measured part.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::result::model::{RunResult, Seen};

/// How often it looks.
const PERIOD: Duration = Duration::from_millis(250);
/// Slab caches that hold a TCP socket, its inode, its file, and its entry in an epoll.
const SOCKET_CACHES: [&str; 4] = ["TCP", "sock_inode_cache", "filp", "eventpoll_epi"];
/// A thread worked if it did so many percent of what the busiest did.
const WORKED_PERCENT: u64 = 20;

/// One look.
#[derive(Debug, Clone, Default)]
struct Look {
    unix_ms: u64,
    /// Of all CPUs, in ticks: not idle (stolen time counts, it was not ours), and in all.
    machine_busy_ticks: u64,
    machine_ticks: u64,
    /// CPU of the server's threads in ticks, by thread id.
    threads: Vec<(u32, u64)>,
    socket_slab_octets: Option<u64>,
}

/// A watching thread.
pub(super) struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Look>>,
}

impl Watch {
    /// Begins to watch.
    pub(super) fn start(server_pid: Option<u32>) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("search-watch".into()).spawn(move || {
            let mut looks = Vec::new();
            loop {
                looks.push(look(Path::new("/proc"), server_pid));
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    looks.push(look(Path::new("/proc"), server_pid));
                    return looks;
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it: what was seen in the measured part of `result`, or nothing without one.
    pub(super) fn stop(self, result: Option<&RunResult>) -> Seen {
        // It fails only if the thread has ended, and joining says why.
        let _ = self.stop.send(());
        let looks = self.thread.join().expect("the watching thread does not panic");
        result.map_or_else(Seen::default, |result| {
            let from_ms = result.manifest.started_unix_ms;
            seen(&looks, from_ms, from_ms + (result.measured_s * 1000.0) as u64)
        })
    }
}

/// The kernel's memory for sockets now, octets; `None` for those who may not read it.
pub(super) fn socket_slab_octets(proc: &Path) -> Option<u64> {
    let text = fs::read_to_string(proc.join("slabinfo")).ok()?;
    // name, active objects, objects, octets each, …
    let octets = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index)?.parse::<u64>().ok();
        SOCKET_CACHES.contains(words.first()?).then(|| Some(number(1)? * number(3)?))?
    };
    Some(text.lines().filter_map(octets).sum())
}

fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

fn look(proc: &Path, server_pid: Option<u32>) -> Look {
    let mut look = Look { unix_ms: now_unix_ms(), ..Look::default() };
    let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
    // cpu user nice system idle iowait irq softirq steal …; guest time is in user already.
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1).take(8))
        .filter_map(|word| word.parse().ok())
        .collect();
    if let [_, _, _, idle, iowait, ..] = ticks[..] {
        look.machine_ticks = ticks.iter().sum();
        look.machine_busy_ticks = look.machine_ticks - idle - iowait;
    }
    look.socket_slab_octets = socket_slab_octets(proc);
    let tasks = server_pid.and_then(|pid| fs::read_dir(proc.join(pid.to_string()).join("task")).ok());
    look.threads = tasks
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
            let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
            Some((entry.file_name().to_str()?.parse().ok()?, number(11)? + number(12)?))
        })
        .collect();
    look
}

fn seen(looks: &[Look], from_ms: u64, until_ms: u64) -> Seen {
    let within = || looks.iter().filter(|look| (from_ms..=until_ms).contains(&look.unix_ms));
    let (Some(first), Some(last)) = (within().next(), within().next_back()) else { return Seen::default() };
    let machine = last.machine_ticks.saturating_sub(first.machine_ticks);
    let busy = last.machine_busy_ticks.saturating_sub(first.machine_busy_ticks);
    let worked: Vec<u64> = last
        .threads
        .iter()
        .map(|(id, ticks)| {
            let before = first.threads.iter().find(|(other, _)| other == id).map_or(0, |(_, ticks)| *ticks);
            ticks.saturating_sub(before)
        })
        .collect();
    let most = worked.iter().copied().max().filter(|most| *most > 0);
    let busy_threads =
        most.map(|most| worked.iter().filter(|ticks| **ticks * 100 >= most * WORKED_PERCENT).count());
    Seen {
        server_busy_threads: busy_threads.map(|count| count as u32),
        machine_cpu_percent: (machine > 0).then(|| 100.0 * busy as f64 / machine as f64),
        socket_slab_octets: within().filter_map(|look| look.socket_slab_octets).max(),
        ..Seen::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_slept_is_not_a_busy_one_and_only_the_measured_part_counts() {
        let look = |unix_ms, busy, all, threads: &[(u32, u64)], slab| Look {
            unix_ms,
            machine_busy_ticks: busy,
            machine_ticks: all,
            threads: threads.to_vec(),
            socket_slab_octets: slab,
        };
        let looks = [
            look(1_000, 0, 0, &[(7, 0), (8, 0), (9, 0)], Some(9_000)),
            look(2_000, 100, 200, &[(7, 5), (8, 100), (9, 90)], Some(100)),
            look(3_000, 250, 400, &[(7, 6), (8, 200), (9, 150)], Some(300)),
            look(4_000, 250, 600, &[(7, 900), (8, 200), (9, 150)], None),
        ];
        let seen = seen(&looks, 1_900, 3_100);
        assert_eq!((seen.server_busy_threads, seen.machine_cpu_percent), (Some(2), Some(75.0)));
        assert_eq!(seen.socket_slab_octets, Some(300));
        assert_eq!(super::seen(&looks, 5_000, 6_000), Seen::default());
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let look = look(Path::new("/proc"), Some(std::process::id()));
        assert!(look.machine_ticks > look.machine_busy_ticks && !look.threads.is_empty());
    }

    #[test]
    fn slabs_of_sockets_are_added_up() {
        let proc = std::env::temp_dir().join(format!("resound-search-proc-{}", std::process::id()));
        fs::create_dir_all(&proc).unwrap();
        let text = "slabinfo - version: 2.1\n# name <active_objs>\nTCP 10 26 2368 13 8 : tunables\n\
                    filp 3 9 192 21 1 : tunables\nTCPv6 5 5 2496 13 8 : tunables\n";
        fs::write(proc.join("slabinfo"), text).unwrap();
        assert_eq!(socket_slab_octets(&proc), Some(10 * 2368 + 3 * 192));
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(socket_slab_octets(&proc), None);
    }
}
