//! The server under attack: a process on one core, with or without a limit on its memory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How long a server may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(20);

/// What holds the server's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LimitBy {
    /// A memory cgroup if there is one to be had, else the address space.
    Auto,
    /// A cgroup's memory limit (version 1 or 2): what is touched counts, and the kernel kills who goes beyond.
    Cgroup,
    /// RLIMIT_AS: what is mapped counts, and allocations fail.
    AddressSpace,
}

/// A limit in octets, ready to start a server in.
enum Limit {
    None,
    AddressSpace(u64),
    Cgroup(PathBuf),
}

pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    limit: Limit,
}

/// Octets that a process has in memory and has mapped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    pub(crate) size: u64,
}

impl Server {
    /// Starts `program` with `flags` on `core`, and waits until it says where it listens.
    pub(crate) fn start(
        program: &Path,
        flags: &[String],
        core: usize,
        limit: Option<(u64, LimitBy)>,
    ) -> anyhow::Result<Self> {
        let limit = limit.map_or(Ok(Limit::None), |(octets, by)| Limit::new(octets, by))?;
        // The shell joins the cgroup, then it becomes the server: nothing is allocated outside.
        let mut command = Command::new("sh");
        let enter = match &limit {
            Limit::None => "exec \"$@\"".to_owned(),
            Limit::AddressSpace(octets) => format!("exec prlimit --as={octets} -- \"$@\""),
            Limit::Cgroup(path) => format!("echo $$ >{}/cgroup.procs && exec \"$@\"", path.display()),
        };
        command.args(["-c", &enter, "sh", "taskset", "-c", &core.to_string()]).arg(program);
        command.args(["--listen", "127.0.0.1:0", "--log", "error"]).args(flags).stdout(Stdio::piped());
        let mut child = command.spawn().context("sh")?;
        let stdout = child.stdout.take().expect("it is piped");
        // From here on `drop` ends it.
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), limit };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim_end().strip_prefix("listening on ws://").and_then(|text| text.parse().ok());
        server.address = address.with_context(|| format!("resound {flags:?} did not start: {line:?}"))?;
        Ok(server)
    }

    /// What it has now; `None` if it is no more.
    pub(crate) fn memory(&self) -> Option<Memory> {
        memory(self.child.id())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Says what became of it, in words, and ends it: "alive" if it serves, and drains when it is asked to.
    pub(crate) fn end(mut self) -> anyhow::Result<String> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(format!("DEAD: {}", reason(status)));
        }
        terminate(self.child.id())?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok("alive".to_owned()),
                Some(status) => return Ok(format!("alive; then at SIGTERM: {}", reason(status))),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Ok(format!("alive; SIGTERM did not end it in {} s", PATIENCE.as_secs()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Limit::Cgroup(path) = &self.limit {
            let _ = fs::remove_dir(path);
        }
    }
}

/// What process `id` has now.
pub(crate) fn memory(id: u32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    // "VmRSS:	    5324 kB"; a process that has ended, and was not waited for, has none.
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some(Memory { rss: field("VmRSS:")?, size: field("VmSize:")? })
}

fn terminate(id: u32) -> anyhow::Result<()> {
    let id = rustix::process::Pid::from_raw(i32::try_from(id)?).context("a process id")?;
    Ok(rustix::process::kill_process(id, rustix::process::Signal::TERM)?)
}

/// Ends a process that takes too much of the machine.
pub(crate) fn kill(id: u32) {
    if let Some(id) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
}

fn reason(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status.signal() {
        Some(6) => "aborted (SIGABRT)".to_owned(),
        Some(9) => "killed (SIGKILL: the kernel, or the guard of this program)".to_owned(),
        _ => status.to_string(),
    }
}

impl Limit {
    fn new(octets: u64, by: LimitBy) -> anyhow::Result<Self> {
        match by {
            LimitBy::AddressSpace => Ok(Self::AddressSpace(octets)),
            LimitBy::Cgroup => Self::cgroup(octets),
            LimitBy::Auto => Self::cgroup(octets).or_else(|error| {
                eprintln!("no memory cgroup ({error:#}): the address space is limited instead");
                Ok(Self::AddressSpace(octets))
            }),
        }
    }

    /// A new cgroup of `octets`, without swap.
    fn cgroup(octets: u64) -> anyhow::Result<Self> {
        let name = format!("resound-abuse-{}", std::process::id());
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let controllers = fs::read_to_string(format!("{root}/cgroup.controllers")).unwrap_or_default();
            if controllers.split_whitespace().any(|controller| controller == "memory") {
                fs::write(format!("{root}/cgroup.subtree_control"), "+memory")
                    .with_context(|| format!("{root}/cgroup.subtree_control"))?;
                return Self::cgroup_at(
                    &Path::new(root).join(&name),
                    &[("memory.max", octets), ("memory.swap.max", 0)],
                );
            }
        }
        let root = Path::new("/sys/fs/cgroup/memory");
        anyhow::ensure!(
            root.join("memory.limit_in_bytes").exists(),
            "neither /sys/fs/cgroup (version 2) nor {} (version 1) has the memory controller",
            root.display()
        );
        let limits = [("memory.limit_in_bytes", octets), ("memory.memsw.limit_in_bytes", octets)];
        Self::cgroup_at(&root.join(&name), &limits)
    }

    fn cgroup_at(path: &Path, limits: &[(&str, u64)]) -> anyhow::Result<Self> {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        for (at, (file, octets)) in limits.iter().enumerate() {
            let written = fs::write(path.join(file), octets.to_string());
            // Without swap there is nothing to limit about it.
            if at == 0 {
                written.with_context(|| path.join(file).display().to_string())?;
            }
        }
        Ok(Self::Cgroup(path.to_owned()))
    }
}
