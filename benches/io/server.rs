//! A server process on one core, and what it has used.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

/// How long perf takes to begin.
const SETTLES: Duration = Duration::from_millis(400);

pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// What a process has used so far, all threads together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a processor, from schedstat.
    pub(crate) cpu_ns: u64,
    /// Ticks of a hundredth of a second, from stat: user and system.
    pub(crate) user_ticks: u64,
    pub(crate) system_ticks: u64,
    /// Context switches, of its own will or not.
    pub(crate) switches: u64,
}

impl Server {
    /// Starts `program` with `arguments` on `core`, and waits until it says where it listens.
    pub(crate) fn start(program: &Path, arguments: &[String], core: usize) -> anyhow::Result<Self> {
        let mut child = Command::new("taskset")
            .arg("-c")
            .arg(core.to_string())
            .arg(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("taskset")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let address = line.trim_end().strip_prefix("listening on ws://").and_then(|text| text.parse().ok());
        let address = address.with_context(|| format!("{arguments:?} did not start: {line:?}"));
        // From here on `drop` ends it.
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into() };
        server.address = address?;
        Ok(server)
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mut usage = Usage::default();
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?.path();
            let number = |text: &str| text.parse::<u64>().context("a number");
            let schedstat = fs::read_to_string(task.join("schedstat"))?;
            usage.cpu_ns += number(schedstat.split(' ').next().unwrap_or(""))?;
            let stat = fs::read_to_string(task.join("stat"))?;
            // The name, in parentheses, may have spaces; utime is the 12th field after it, stime the 13th.
            let mut fields = stat[stat.rfind(')').context("stat")? + 2..].split(' ').skip(11);
            usage.user_ticks += number(fields.next().unwrap_or(""))?;
            usage.system_ticks += number(fields.next().unwrap_or(""))?;
            for line in fs::read_to_string(task.join("status"))?.lines() {
                if let Some((name, value)) = line.split_once(':')
                    && name.ends_with("voluntary_ctxt_switches")
                {
                    usage.switches += number(value.trim())?;
                }
            }
        }
        Ok(usage)
    }

    /// Counts the server's system calls from now on. `None` if there is no perf.
    pub(crate) fn count_system_calls(&self) -> Option<Counter> {
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &self.child.id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        std::thread::sleep(SETTLES);
        Some(Counter(child))
    }
}

/// perf at work.
pub(crate) struct Counter(Child);

impl Counter {
    /// Ends it. `None` if it may not count here.
    pub(crate) fn stop(self) -> anyhow::Result<Option<u64>> {
        // SAFETY: it signals a process that is ours and was not waited for.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGINT) };
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        // "count,,event,time it ran in ns,…"
        let line = text.lines().find(|line| line.contains("sys_enter"));
        Ok(line.and_then(|line| line.split(',').next()?.parse().ok()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
