//! The machine that a run was made on, for the manifest of its result.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use crate::result::model::Host;

/// Sysctls that bear on a run, as paths below /proc/sys.
const SYSCTLS: [&str; 16] = [
    "net/core/somaxconn",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/core/busy_poll",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_max_tw_buckets",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_slow_start_after_idle",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_wmem",
    "fs/nr_open",
];

/// Describes this machine; `root` is /, or a copy of its /proc and /sys in a test.
pub(super) fn describe(root: &Path) -> Host {
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    let cpuinfo = read("proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line =
            cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory_kib = read("proc/meminfo").and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    let (nofile_soft, nofile_hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    let sysctls: BTreeMap<String, String> = SYSCTLS
        .iter()
        .filter_map(|path| {
            let value = read(&format!("proc/sys/{path}"))?;
            Some((path.replace('/', "."), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        })
        .collect();
    Host {
        kernel_release: read("proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpu_model: field("model name")
            .or_else(|| field("Hardware"))
            .unwrap_or_else(|| std::env::consts::ARCH.into()),
        cpu_count: cpuinfo.lines().filter(|line| line.starts_with("processor")).count() as u32,
        cpu_allowed_count: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        cpu_governor: read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
            .map(|text| text.trim().to_owned()),
        memory_octets: memory_kib.unwrap_or(0) << 10,
        nofile_soft,
        nofile_hard,
        virtualization: virtualization(root, &cpuinfo),
        sysctls,
    }
}

/// What is known without running anything: container markers, the hypervisor's name, the CPU's flag.
fn virtualization(root: &Path, cpuinfo: &str) -> Option<String> {
    if root.join(".dockerenv").exists() {
        return Some("docker".into());
    }
    if root.join("run/.containerenv").exists() {
        return Some("podman".into());
    }
    let hypervisor = fs::read_to_string(root.join("sys/hypervisor/type")).ok();
    let vendor = fs::read_to_string(root.join("sys/class/dmi/id/sys_vendor")).ok();
    match (hypervisor, vendor) {
        (Some(name), _) => Some(name.trim().to_owned()),
        (None, Some(name)) if cpuinfo.contains("hypervisor") => Some(format!("hypervisor ({})", name.trim())),
        _ if cpuinfo.contains(" hypervisor") => Some("hypervisor".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_described() {
        let host = describe(Path::new("/"));
        assert!(!host.kernel_release.is_empty() && !host.cpu_model.is_empty());
        assert!(host.cpu_count >= host.cpu_allowed_count && host.cpu_allowed_count >= 1);
        assert!(host.memory_octets > 1 << 20);
        assert!(host.sysctls.contains_key("net.core.somaxconn"));
    }
}
