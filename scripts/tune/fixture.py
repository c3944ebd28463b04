"""For the tests: a machine in a directory, with the files the tool reads, and ways to run the tool."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
if HERE not in sys.path:
    sys.path.insert(0, HERE)

import tune  # noqa: E402
from kernel import Sample, System  # noqa: E402
from knobs import examine  # noqa: E402
from view import Target, View  # noqa: E402

TUNE_SH = os.path.join(os.path.dirname(HERE), "tune.sh")
GIB = 2**30

# A default machine of 16 GiB, in the initial namespaces.
FILES = {
    "/proc/sys/kernel/osrelease": "6.12.0-test",
    "/proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555",
    "/proc/sys/net/core/somaxconn": "4096",
    "/proc/sys/net/core/netdev_max_backlog": "1000",
    "/proc/sys/net/core/busy_poll": "0",
    "/proc/sys/net/core/busy_read": "0",
    "/proc/sys/net/ipv4/tcp_max_syn_backlog": "2048",
    "/proc/sys/net/ipv4/tcp_syncookies": "1",
    "/proc/sys/net/ipv4/tcp_abort_on_overflow": "0",
    "/proc/sys/net/ipv4/tcp_tw_reuse": "2",
    "/proc/sys/net/ipv4/tcp_tw_reuse_delay": "1000",
    "/proc/sys/net/ipv4/tcp_timestamps": "1",
    "/proc/sys/net/ipv4/tcp_max_tw_buckets": "131072",
    "/proc/sys/net/ipv4/tcp_fin_timeout": "60",
    "/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
    "/proc/sys/net/ipv4/ip_local_reserved_ports": "",
    "/proc/sys/net/ipv4/tcp_mem": "190000\t250000\t380000",
    "/proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t33554432",
    "/proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t4194304",
    "/proc/sys/net/ipv4/tcp_max_orphans": "65536",
    "/proc/sys/net/ipv4/tcp_slow_start_after_idle": "1",
    "/proc/sys/net/ipv4/tcp_notsent_lowat": "4294967295",
    "/proc/sys/net/ipv4/tcp_ehash_entries": "262144",
    "/proc/sys/net/netfilter/nf_conntrack_max": "262144",
    "/proc/sys/net/netfilter/nf_conntrack_count": "0",
    "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait": "120",
    "/proc/sys/fs/nr_open": "1048576",
    "/proc/sys/fs/file-max": "9223372036854775807",
    "/proc/sys/fs/file-nr": "900\t0\t9223372036854775807",
    "/proc/sys/fs/epoll/max_user_watches": "3600000",
    "/proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {15 * GIB // 1024} kB",
    "/proc/self/limits": "Max open files            1024                 524288               files",
    "/proc/self/status": "CapEff:\t000001ffffffffff",
    "/proc/net/softnet_stat": "0000000b 00000000 00000000 00000000",
    "/proc/net/sockstat": "sockets: used 20\nTCP: inuse 3 orphan 0 tw 0 alloc 3 mem 190",
    "/proc/net/tcp": "  sl  local_address rem_address\n"
    "   0: 0100007F:2329 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 777 1",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "/sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [madvise] never",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors": "performance powersave",
}
NAMESPACES = {"net": 4026531840, "user": 4026531837, "pid": 4026531836}
COUNTERS = {
    "ListenOverflows": 0,
    "ListenDrops": 0,
    "TCPReqQFullDoCookies": 0,
    "TCPReqQFullDrop": 0,
    "SyncookiesSent": 0,
    "SyncookiesFailed": 0,
    "TWRecycled": 0,
    "TCPTimeWaitOverflow": 0,
    "TCPMemoryPressures": 0,
    "TCPAbortOnMemory": 0,
}


class Machine(unittest.TestCase):
    """A test with a machine of its own, below `self.root`."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = directory.name
        for path, text in FILES.items():
            self.put(path, text)
        self.count()
        os.makedirs(self.root + "/proc/self/ns")
        for kind, inode in NAMESPACES.items():
            self.put_namespace(kind, inode)

    def put(self, path: str, text: str) -> None:
        os.makedirs(os.path.dirname(self.root + path), exist_ok=True)
        with open(self.root + path, "w", encoding="utf-8") as file:
            file.write(text + "\n")

    def put_sysctl(self, key: str, value: str) -> None:
        self.put("/proc/sys/" + key.replace(".", "/"), value)

    def put_namespace(self, kind: str, inode: int) -> None:
        link = f"{self.root}/proc/self/ns/{kind}"
        if os.path.islink(link):
            os.unlink(link)
        os.symlink(f"{kind}:[{inode}]", link)

    def count(self, **counters: int) -> None:
        """Sets /proc/net/netstat."""
        all_of_them = COUNTERS | counters
        self.put(
            "/proc/net/netstat",
            f"TcpExt: {' '.join(all_of_them)}\nTcpExt: {' '.join(map(str, all_of_them.values()))}",
        )

    def remove(self, path: str) -> None:
        os.unlink(self.root + path)

    def get(self, path: str) -> str:
        with open(self.root + path, encoding="utf-8") as file:
            return " ".join(file.read().split())

    def get_sysctl(self, key: str) -> str:
        return self.get("/proc/sys/" + key.replace(".", "/"))

    def snapshot(self) -> dict[str, str]:
        """Every file of the machine that is not the tool's own."""
        found = {}
        for directory, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(directory, name)[len(self.root) :]
                if not path.startswith("/run/") and "/ns/" not in path:
                    found[path] = self.get(path)
        return found

    def view(
        self, connections: int = 10_000, churn: int = 100, role: str = "server", also=(), **more
    ) -> View:
        system = System(self.root)
        return View(system, Target(connections, churn, role, **more), Sample.take(system, 0), also)

    def findings(self, *arguments, **named) -> dict:
        return {each.name: each for each in examine(self.view(*arguments, **named))}

    def run_tune(self, *arguments: str, system: System | None = None) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = tune.run(["--root", self.root, *arguments], system)
            except SystemExit as ended:
                code = ended.code
        return code, out.getvalue(), err.getvalue()

    def run_json(self, *arguments: str, system: System | None = None) -> dict:
        code, out, err = self.run_tune("--json", *arguments, system=system)
        document = json.loads(out)
        self.assertEqual(document["exit_code"], code, err)
        return document


TARGET = ("--connections", "1M", "--churn", "3000/s", "--role", "generator", "--port", "40000")
SMALL = ("--connections", "100", "--churn", "10/s", "--role", "server")
