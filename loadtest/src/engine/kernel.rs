//! What the kernel counts while we measure: /proc/net/netstat, snmp, sockstat, softnet_stat, and the CPU and
//! memory of the server's process. All of it is read from a root that a test may replace.
//!
//! Names are `Group.Counter` as in the file: `TcpExt.ListenOverflows`, `sockstat.TCP.tw`, `softnet.dropped`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Counters only rise, levels rise and fall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Counters since the machine (or the network namespace) started.
    pub counters: BTreeMap<String, u64>,
    /// Levels as they are now.
    pub levels: BTreeMap<String, u64>,
}

impl Snapshot {
    /// Reads what there is under `proc`; what is not there is left out.
    pub(crate) fn read(proc: &Path) -> Self {
        let mut snapshot = Self::default();
        let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        for file in ["net/netstat", "net/snmp"] {
            snapshot.add_tables(&read(file));
        }
        snapshot.add_sockstat(&read("net/sockstat"));
        snapshot.add_softnet(&read("net/softnet_stat"));
        if let Ok(count) = read("sys/net/netfilter/nf_conntrack_count").trim().parse() {
            snapshot.levels.insert("conntrack.count".into(), count);
        }
        snapshot
    }

    /// Counters that are higher than in `earlier`, with by how much.
    pub(crate) fn deltas(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let risen = |(name, count): (&String, &u64)| {
            let delta = count.saturating_sub(earlier.counters.get(name).copied().unwrap_or(0));
            (delta > 0).then(|| (name.clone(), delta))
        };
        self.counters.iter().filter_map(risen).collect()
    }

    /// Pairs of lines: `Group: names…`, `Group: numbers…`.
    fn add_tables(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let (Some((group, names)), Some((_, numbers))) =
                (pair[0].split_once(':'), pair[1].split_once(':'))
            else {
                continue;
            };
            for (name, number) in names.split_whitespace().zip(numbers.split_whitespace()) {
                // Tcp.MaxConn is -1 by definition; and CurrEstab is a level among the counters.
                let Ok(number) = number.parse() else { continue };
                let target = if name == "CurrEstab" { &mut self.levels } else { &mut self.counters };
                target.insert(format!("{group}.{name}"), number);
            }
        }
    }

    /// `TCP: inuse 27 orphan 0 tw 0 alloc 28 mem 12`: names and numbers alternate.
    fn add_sockstat(&mut self, text: &str) {
        for (group, rest) in text.lines().filter_map(|line| line.split_once(':')) {
            let words: Vec<&str> = rest.split_whitespace().collect();
            for pair in words.chunks_exact(2) {
                if let Ok(number) = pair[1].parse() {
                    self.levels.insert(format!("sockstat.{group}.{}", pair[0]), number);
                }
            }
        }
    }

    /// One line of hexadecimal columns for each CPU: processed, dropped, time squeezed, …
    fn add_softnet(&mut self, text: &str) {
        for line in text.lines() {
            let columns = line.split_whitespace().map(|column| u64::from_str_radix(column, 16).unwrap_or(0));
            for (name, number) in
                ["softnet.processed", "softnet.dropped", "softnet.time_squeeze"].iter().zip(columns)
            {
                *self.counters.entry((*name).to_owned()).or_default() += number;
            }
        }
    }
}

/// A process's use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessUse {
    /// User and system time of all its threads so far, in clock ticks.
    pub cpu_ticks: u64,
    /// Resident memory in octets.
    pub rss_octets: u64,
}

/// The server's process, watched from outside.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    directory: PathBuf,
    page_octets: u64,
    ticks_per_s: u64,
}

impl Process {
    /// The process `pid` below `proc`.
    pub(crate) fn new(proc: &Path, pid: u32) -> Self {
        let conf = |name, fallback| {
            nix::unistd::sysconf(name).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(fallback)
        };
        Self {
            directory: proc.join(pid.to_string()),
            page_octets: conf(nix::unistd::SysconfVar::PAGE_SIZE, 4096),
            ticks_per_s: conf(nix::unistd::SysconfVar::CLK_TCK, 100),
        }
    }

    /// What it has used so far, or `None` once it is gone.
    pub(crate) fn sample(&self) -> Option<ProcessUse> {
        let stat = fs::read_to_string(self.directory.join("stat")).ok()?;
        // The second field is the name in parentheses, which may hold spaces and parentheses of its own.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        // proc_pid_stat(5): utime is field 14, stime 15, rss (pages) 24; `fields` starts at field 3.
        Some(ProcessUse { cpu_ticks: number(11)? + number(12)?, rss_octets: number(21)? * self.page_octets })
    }

    /// CPU between two samples that lie `elapsed_ns` apart, in percent of one core.
    pub(crate) fn cpu_percent(&self, earlier: ProcessUse, later: ProcessUse, elapsed_ns: u64) -> f64 {
        let seconds = later.cpu_ticks.saturating_sub(earlier.cpu_ticks) as f64 / self.ticks_per_s as f64;
        100.0 * seconds / (elapsed_ns.max(1) as f64 / 1e9)
    }

    /// Its command line, words separated by spaces.
    pub(crate) fn command(&self) -> Option<String> {
        let octets = fs::read(self.directory.join("cmdline")).ok()?;
        let words: Vec<_> = octets.split(|octet| *octet == 0).map(String::from_utf8_lossy).collect();
        Some(words.join(" ").trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_sockstat_and_softnet_become_named_numbers() {
        let mut snapshot = Snapshot::default();
        snapshot.add_tables(
            "Tcp: RtoMin MaxConn CurrEstab OutRsts\nTcp: 200 -1 7 3\n\
             TcpExt: ListenOverflows ListenDrops\nTcpExt: 412 413\n",
        );
        snapshot.add_sockstat("sockets: used 290\nTCP: inuse 27 orphan 0 tw 5 alloc 28 mem 12\n");
        snapshot.add_softnet("0000000a 00000001 00000002 0\n00000005 00000000 00000001 0\n");
        assert_eq!(snapshot.counters["TcpExt.ListenOverflows"], 412);
        assert_eq!(snapshot.counters["Tcp.OutRsts"], 3);
        assert!(!snapshot.counters.contains_key("Tcp.MaxConn"));
        assert_eq!((snapshot.levels["Tcp.CurrEstab"], snapshot.levels["sockstat.TCP.tw"]), (7, 5));
        assert_eq!(snapshot.counters["softnet.processed"], 15);
        assert_eq!((snapshot.counters["softnet.dropped"], snapshot.counters["softnet.time_squeeze"]), (1, 3));
    }

    #[test]
    fn only_counters_that_rose_are_deltas() {
        let before = Snapshot { counters: [("a".into(), 1), ("b".into(), 5)].into(), ..Snapshot::default() };
        let after = Snapshot { counters: [("a".into(), 4), ("b".into(), 5)].into(), ..Snapshot::default() };
        assert_eq!(after.deltas(&before), [("a".to_owned(), 3)].into());
    }

    #[test]
    fn this_machine_has_the_counters_that_verdicts_are_made_of() {
        let snapshot = Snapshot::read(Path::new("/proc"));
        for name in ["TcpExt.ListenOverflows", "TcpExt.ListenDrops", "Tcp.RetransSegs", "softnet.dropped"] {
            assert!(snapshot.counters.contains_key(name), "{name}");
        }
        assert!(snapshot.levels.contains_key("sockstat.TCP.tw"));
    }

    #[test]
    fn a_process_is_sampled_whatever_its_name() {
        let proc = std::env::temp_dir().join(format!("resound-load-proc-{}", std::process::id()));
        fs::create_dir_all(proc.join("7")).unwrap();
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000000 3 18446744073709551615";
        fs::write(proc.join("7/stat"), stat).unwrap();
        fs::write(proc.join("7/cmdline"), b"server\0--port\09001\0").unwrap();
        let process = Process::new(&proc, 7);
        let sample = process.sample().unwrap();
        assert_eq!((sample.cpu_ticks, sample.rss_octets), (300, 3 * process.page_octets));
        assert_eq!(process.command().as_deref(), Some("server --port 9001"));
        let later = ProcessUse { cpu_ticks: 300 + process.ticks_per_s, ..sample };
        assert_eq!(process.cpu_percent(sample, later, 2_000_000_000), 50.0);
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(process.sample(), None);
    }
}
