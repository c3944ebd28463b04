"""Popular mistakes, found in the files that set sysctls at boot, and named as such.

Only reads. `scan` gives every assignment in the order the boot applies it, `find` judges them.
A new mistake is one function in `RULES`. What is wrong with each, measured: docs/tuning.md.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Callable

from values import canonical
from view import TIME_WAIT_S, View

# sysctl.d(5): a file masks those of the same name further down; names decide the order.
DIRECTORIES = (
    "/etc/sysctl.d",
    "/run/sysctl.d",
    "/usr/local/lib/sysctl.d",
    "/usr/lib/sysctl.d",
    "/lib/sysctl.d",
)


@dataclass
class Assignment:
    file: str
    line_number: int
    key: str
    value: str


@dataclass
class Mistake:
    file: str
    line_number: int
    key: str
    value: str
    mistake: str
    instead: str


def boot_files(view: View) -> list[str]:
    """In the order they are applied: a later one wins. /etc/sysctl.conf is last (sysctl --system)."""
    by_name: dict[str, str] = {}
    for directory in DIRECTORIES:
        for path in view.system.glob(f"{directory}/*.conf"):
            by_name.setdefault(os.path.basename(path), path)
    files = [by_name[name] for name in sorted(by_name)]
    last = "/etc/sysctl.conf"
    if view.system.read(last) is not None:
        real = os.path.realpath(view.system.path(last))
        # Debian links 99-sysctl.conf to it: the same file is not two mistakes.
        files = [each for each in files if os.path.realpath(view.system.path(each)) != real] + [last]
    return files


def scan(view: View) -> list[Assignment]:
    found = []
    for file in boot_files(view):
        for number, line in enumerate((view.system.read(file) or "").splitlines(), start=1):
            line = line.strip()
            if not line or line[0] in "#;" or "=" not in line:
                continue
            key, _, value = line.partition("=")
            found.append(Assignment(file, number, dotted(key), canonical("", value)))
    return found


def dotted(key: str) -> str:
    """`-net/ipv4/tcp_mem` and `net.ipv4.tcp_mem` are one key; the first separator decides."""
    key = key.strip().lstrip("-").strip()
    separator = re.search(r"[./]", key)
    if separator and separator.group() == "/":
        key = key.replace(".", "\0").replace("/", ".").replace("\0", "/")
    return key


def find(view: View) -> list[Mistake]:
    mistakes = []
    for each in scan(view):
        rule = RULES.get(each.key)
        if rule is None:
            continue
        try:
            verdict = rule(each.value, view)
        except (ValueError, IndexError):
            verdict = ("not a value the kernel takes for this key", "correct or delete the line")
        if verdict is not None:
            mistakes.append(Mistake(each.file, each.line_number, each.key, each.value, *verdict))
    return mistakes


# -- the rules: value and view -> (what is wrong, what instead), or None -----------------------------------

Rule = Callable[[str, View], "tuple[str, str] | None"]


def _no_use(what: str) -> Rule:
    return lambda _value, _view: (what, "delete the line")


def _is(bad: str, what: str, instead: str) -> Rule:
    return lambda value, _view: (what, instead) if value == bad else None


def _max_tw_buckets(value: str, view: View) -> tuple[str, str] | None:
    buckets = view.current("/proc/sys/net/ipv4/tcp_ehash_entries")
    default = abs(int(buckets)) // 2 if buckets else 131072
    wanted = view.target.churn_per_s * TIME_WAIT_S
    if int(value) >= max(default, wanted):
        return None
    return (
        f"lowered below the kernel's own {default}: TIME_WAIT is cut short silently (TCPTimeWaitOverflow), "
        "and stray segments can reach a new connection",
        "delete the line; never lower it",
    )


def _fin_timeout(value: str, _view: View) -> tuple[str, str] | None:
    if int(value) >= 60:
        return None
    return (
        "not the length of TIME_WAIT, which stays 60 s: it rules orphans in FIN_WAIT_2 only",
        "delete the line; on the connecting side: tcp_tw_reuse=1 and a wide port range",
    )


def _tcp_mem(value: str, view: View) -> tuple[str, str] | None:
    low, pressure, high = map(int, value.split())
    total = view.system.memory_bytes()
    high_bytes = high * view.system.page_bytes()
    size = f"{high_bytes / 2**30:.0f} GiB"
    if low == pressure == high:
        return (
            f"counted in pages, so {size}; three equal numbers switch the pressure mode off",
            "delete the line",
        )
    if total is not None and high_bytes > total * 3 // 4:
        return (f"counted in pages, so {size} of a machine of {total / 2**30:.0f} GiB", "delete the line")
    default = (total or 0) // view.system.page_bytes() // 16
    if pressure < default * 3 // 4:
        return (f"lowered: the kernel's own pressure mark is about {default} pages here", "delete the line")
    return None


def _socket_buffer(default_octets: int, max_octets: int) -> Rule:
    def rule(value: str, _view: View) -> tuple[str, str] | None:
        least, default, most = map(int, value.split())
        if least > 4096:
            return (
                "a larger minimum is kept for every socket even under memory pressure",
                f"4096 {default} {most}",
            )
        if default > 1 << 20:
            return (
                "the default, not the maximum, was made large: autotuning starts there",
                f"4096 {default_octets} {most}",
            )
        if most < max_octets:
            return (
                "a small maximum throttles every connection; it saves nothing when idle",
                "delete the line",
            )
        return None

    return rule


def _syncookies(value: str, _view: View) -> tuple[str, str] | None:
    if value == "0":
        return (
            "without cookies a full SYN queue drops newcomers (TCPReqQFullDrop)",
            "net.ipv4.tcp_syncookies = 1",
        )
    if value == "2":
        return (
            "a mode for tests: a cookie for every connection, also without need",
            "net.ipv4.tcp_syncookies = 1",
        )
    return None


def _tw_reuse(value: str, view: View) -> tuple[str, str] | None:
    if value == "1" and view.target.is_server:
        return ("does nothing for a server: it is for the side that connects", "set it on the load generator")
    if value == "0" and not view.target.is_server:
        return ("forbids reuse of TIME_WAIT on the side that connects", "net.ipv4.tcp_tw_reuse = 1")
    return None


def _max_syn_backlog(_value: str, view: View) -> tuple[str, str] | None:
    if view.current("/proc/sys/net/ipv4/tcp_syncookies") in (None, "0"):
        return None
    return ("changes nothing while tcp_syncookies is on", "raise somaxconn and the server's listen backlog")


def _somaxconn(value: str, _view: View) -> tuple[str, str] | None:
    if int(value) < 4096:
        return ("lowered below the default of 4096 (since Linux 5.4)", "delete the line")
    return None


def _port_range(value: str, _view: View) -> tuple[str, str] | None:
    low, high = map(int, value.split())
    if low < 1024:
        return ("lends the ports of system services to outgoing connections", "1024 65535")
    if low % 2 == high % 2:
        return ("both ends of one parity: the kernel asks for one even and one odd", "1024 65535")
    return None


def _lowered(default: int) -> Rule:
    def rule(value: str, _view: View) -> tuple[str, str] | None:
        return (
            (f"lowered below the kernel's default of {default}", "delete the line")
            if int(value) < default
            else None
        )

    return rule


def _file_max(value: str, view: View) -> tuple[str, str] | None:
    total = view.system.memory_bytes()
    default = (total or 0) // 1024 // 10  # fs/file_table.c: a tenth of the memory in KiB
    if int(value) < default:
        return (f"lowered: by its memory this machine would have about {default}", "delete the line")
    return None


RULES: dict[str, Rule] = {
    "net.ipv4.tcp_tw_recycle": _no_use("gone since Linux 4.12: it broke clients behind NAT"),
    "net.ipv4.tcp_max_tw_buckets": _max_tw_buckets,
    "net.ipv4.tcp_fin_timeout": _fin_timeout,
    "net.ipv4.tcp_mem": _tcp_mem,
    "net.ipv4.tcp_rmem": _socket_buffer(131072, 1 << 20),
    "net.ipv4.tcp_wmem": _socket_buffer(16384, 1 << 20),
    "net.ipv4.tcp_syncookies": _syncookies,
    "net.ipv4.tcp_tw_reuse": _tw_reuse,
    "net.ipv4.tcp_max_syn_backlog": _max_syn_backlog,
    "net.ipv4.tcp_abort_on_overflow": _is(
        "1",
        "does not make connects fail fast: SYNs are dropped before it is asked",
        "a larger listen backlog",
    ),
    "net.ipv4.tcp_timestamps": _is(
        "0", "tcp_tw_reuse needs timestamps, and so does protection against old segments", "delete the line"
    ),
    "net.ipv4.tcp_sack": _is("0", "one lost segment then costs a whole window", "delete the line"),
    "net.ipv4.tcp_window_scaling": _is("0", "caps every connection at 64 KiB in flight", "delete the line"),
    "net.ipv4.tcp_moderate_rcvbuf": _is(
        "0", "switches the autotuning of receive buffers off", "delete the line"
    ),
    "net.ipv4.tcp_low_latency": _no_use("without effect since Linux 4.14"),
    "net.ipv4.tcp_fack": _no_use("without effect since Linux 4.15"),
    "net.ipv4.ip_conntrack_max": _no_use("a name of Linux 2.4; today net.netfilter.nf_conntrack_max"),
    "net.ipv4.netfilter.ip_conntrack_max": _no_use(
        "gone since Linux 4.9; today net.netfilter.nf_conntrack_max"
    ),
    "net.ipv4.ip_local_port_range": _port_range,
    "net.core.somaxconn": _somaxconn,
    "net.core.netdev_max_backlog": _lowered(1000),
    "fs.nr_open": _lowered(1048576),
    "fs.file-max": _file_max,
}
