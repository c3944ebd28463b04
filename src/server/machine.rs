//! How much memory this process may take (what the machine has, and what its limits leave of that), and how much it does.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The least of the machine's memory, the memory of the control groups that this process is in, and its limit of
/// address space, in octets.
pub(super) fn memory_bytes() -> usize {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| octets(&text, "MemTotal:"));
    let groups = fs::read_to_string("/proc/self/cgroup").ok();
    let group = groups.and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    let address_space = rlimit::getrlimit(rlimit::Resource::AS).ok().map(|(soft, _)| soft);
    let least = [machine, group, address_space].into_iter().flatten().min();
    usize::try_from(least.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
}

/// What this process has in memory. The file stays open, since opening it costs more than all else.
#[derive(Debug)]
pub(super) struct Resident(Option<fs::File>);

impl Resident {
    pub(super) fn new() -> Self {
        Self(fs::File::open("/proc/self/status").ok())
    }

    /// In octets; 0 where /proc does not say.
    pub(super) fn bytes(&self) -> usize {
        let mut text = [0; 4096];
        let len = self.0.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let bytes = octets(&String::from_utf8_lossy(&text[..len]), "VmRSS:");
        bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0)
    }
}

/// What a file of /proc says behind `name`, in octets.
fn octets(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The smallest limit of a group in /proc/self/cgroup, or of one above it, in octets.
fn group_limit(text: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in text.lines() {
        let (folder, file, path) = match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            ["0", "", path] => ("", "memory.max", path),
            [_, controllers, path] if controllers.split(',').any(|name| name == "memory") => {
                ("memory", "memory.limit_in_bytes", path)
            }
            _ => continue,
        };
        let path = root.join(folder).join(path.trim_start_matches('/'));
        // In a container the path may be one of the host's: then the root says what holds here.
        for group in path.ancestors().take_while(|group| group.starts_with(root)) {
            let limit = fs::read_to_string(group.join(file)).ok().and_then(|text| text.trim().parse().ok());
            least = [least, limit].into_iter().flatten().min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_bytes() > 1 << 20);
        assert!((1 << 20..memory_bytes()).contains(&Resident::new().bytes()));
    }

    #[test]
    fn the_total_is_in_kibibytes() {
        assert_eq!(octets("MemTotal:       16 kB\nMemFree: 1 kB\n", "MemTotal:"), Some(16384));
        assert_eq!(octets("MemFree: 1 kB\n", "MemTotal:"), None);
    }

    #[test]
    fn the_smallest_limit_of_a_group_or_one_above_it_counts() {
        let root = std::env::temp_dir().join(format!("resound-cgroup-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "5000\n");
        write("memory/c/memory.limit_in_bytes", "7000\n");
        assert_eq!(group_limit("0::/a/b\n", &root), Some(5000));
        assert_eq!(group_limit("1:cpu,memory:/c\n0::/x\n", &root), Some(7000));
        assert_eq!(group_limit("1:cpu:/c\n", &root), None);
        fs::remove_dir_all(root).unwrap();
    }
}
