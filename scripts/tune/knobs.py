"""Every knob: what it is now, what the target wants, why, and what the counters say.

One function a knob, in the order people read them; `KNOBS` is the list. A function looks at the
`View` and returns `Finding`s; it never writes. To add a knob, write one function and decorate it.
The facts behind the one-line reasons, and how each was measured, are in docs/tuning.md.
"""

from __future__ import annotations

import math
from typing import Callable

import kernel
from values import (
    join_ports,
    lower_each,
    parse_ports,
    power_of_two_at_least,
    prefer,
    raise_each,
    widen_range,
)
from view import (
    ABSENT,
    BOOT,
    DESCRIPTORS_SPARE,
    GLOBAL,
    NAMESPACE,
    OK,
    OPTIONAL,
    PROCESS,
    SYN_RETRY_S,
    TIME_WAIT_S,
    UNKNOWN,
    WANTED,
    Evidence,
    Finding,
    View,
    Write,
    is_refused,
)

SLAB_PER_SOCKET_BYTES = 3994  # measured: 3.9 KiB of slab an idle end
EPOLL_WATCH_BYTES = 160
PORTS_WIDE = "1024 65535"

Knob = Callable[[View], "Finding | list[Finding]"]
KNOBS: list[Knob] = []


def knob(function: Knob) -> Knob:
    KNOBS.append(function)
    return function


def examine(view: View) -> list[Finding]:
    findings: list[Finding] = []
    for function in KNOBS:
        result = function(view)
        findings.extend(result if isinstance(result, list) else [result])
    for finding in findings:
        if finding.writes and is_refused(view, finding):
            finding.notes.append(
                f"not from here: {view.namespace.child_reasons[0]}, and this knob is the whole host's"
            )
            finding.remedy = "run this tool in the host's initial namespaces"
    return findings


# -- queues of connections that arrive -------------------------------------------------------------------


@knob
def somaxconn(view: View) -> Finding:
    return view.knob(
        "/proc/sys/net/core/somaxconn",
        str(view.target.listen_backlog) if view.target.is_server else None,
        raise_each,
        scope=NAMESPACE,
        unit="connections",
        why="caps every listen backlog, at the moment of listen(); the accept queue holds backlog + 1",
        restart="the server has to call listen() again",
        evidence=view.evidence("TcpExt.ListenOverflows", "TcpExt.ListenDrops", alarm=view.target.is_server),
    )


@knob
def listen_backlog(view: View) -> list[Finding]:
    """The server's own number, which is the one people forget."""
    if not view.target.is_server:
        return []
    wanted = view.target.listen_backlog
    finding = Finding(
        "listen.backlog",
        UNKNOWN,
        None,
        str(wanted),
        "connections",
        f"the server's own listen() argument: {SYN_RETRY_S} s of churn; longer queues hide overload as latency",
        PROCESS,
        restart="it is an argument of listen()",
        remedy=f"start resound with --backlog {wanted} (any other server: its argument of listen()), "
        "after somaxconn is at least that",
    )
    known = [each for each in view.server_listeners if each.backlog_max is not None]
    if not known:
        named = view.target.port is not None or view.target.pid is not None
        finding.notes.append(
            "no such listener is visible from here"
            if named
            else "name the server with --port or --pid to see it"
        )
        return [finding]
    smallest = min(each.backlog_max for each in known)
    finding.current = str(smallest)
    finding.status = OK if smallest >= wanted else WANTED
    for each in known[:4]:
        finding.notes.append(
            f"listener {each.address}:{each.port} Recv-Q {each.queue_len} Send-Q {each.backlog_max}"
        )
    fullest = max(known, key=lambda each: each.queue_len - each.backlog_max)
    finding.evidence = [
        Evidence(
            "listen.Recv-Q", fullest.queue_len, None, "connections", fullest.queue_len > fullest.backlog_max
        )
    ] + view.evidence("TcpExt.ListenOverflows")
    cap = view.current("/proc/sys/net/core/somaxconn")
    if finding.status == WANTED and cap is not None and int(cap) == smallest:
        finding.notes.append("equal to somaxconn: perhaps the server asked for more and was clamped")
    if finding.status == OK:
        finding.restart = finding.remedy = ""
    return [finding]


@knob
def tcp_max_syn_backlog(view: View) -> Finding:
    cookies = view.current("/proc/sys/net/ipv4/tcp_syncookies")
    matters = view.target.is_server and cookies == "0"
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_max_syn_backlog",
        # New SYNs are dropped once three quarters are taken.
        str(view.target.listen_backlog * 4 // 3 + 1) if matters else None,
        raise_each,
        scope=NAMESPACE,
        unit="connections",
        why="counts only with tcp_syncookies=0; otherwise the listen backlog is the limit of half-open ones",
    )
    # What this limit drops has no counter of its own (measured, demo/syn_backlog.py): ListenDrops
    # less ListenOverflows less TCPReqQFullDrop, which is the listen backlog full without cookies.
    if "TcpExt.ListenDrops" in view.sample.after:
        parts = [
            view.evidence(f"TcpExt.{name}")[0]
            for name in ("ListenDrops", "ListenOverflows", "TCPReqQFullDrop")
        ]
        rest = parts[0].total - parts[1].total - parts[2].total
        delta = None if parts[0].delta is None else parts[0].delta - parts[1].delta - parts[2].delta
        finding.evidence = [Evidence("ListenDrops.other", rest, delta, "count", matters and rest > 0)]
    if cookies not in (None, "0"):
        finding.notes.append(f"tcp_syncookies is {cookies}: this value changes nothing here")
    return finding


@knob
def tcp_syncookies(view: View) -> Finding:
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_syncookies",
        "1" if view.target.is_server else None,
        prefer("0", "1", "2"),
        scope=NAMESPACE,
        unit="mode",
        why="1 answers a full SYN queue instead of dropping; a shield, not a capacity: leave it on",
        evidence=view.evidence(
            "TcpExt.TCPReqQFullDoCookies",
            "TcpExt.TCPReqQFullDrop",
            "TcpExt.SyncookiesSent",
            "TcpExt.SyncookiesFailed",
            alarm=view.target.is_server,
        ),
    )
    if view.target.is_server and any(each.is_alarming for each in finding.evidence):
        finding.notes.append("the listen backlog was full of half-open connections: raise that, not this")
    return finding


@knob
def tcp_abort_on_overflow(view: View) -> Finding:
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_abort_on_overflow",
        None,
        raise_each,
        scope=NAMESPACE,
        unit="mode",
        why="leave at 0: it does not make connects fail fast, SYNs are dropped before it is asked",
    )
    if finding.current == "1":
        finding.status, finding.wanted = OPTIONAL, "0"
        finding.remedy = "sysctl -w net.ipv4.tcp_abort_on_overflow=0 (not done here: this tool only raises)"
    return finding


@knob
def netdev_max_backlog(view: View) -> Finding:
    dropped = view.sample.total("softnet.dropped")
    return view.knob(
        "/proc/sys/net/core/netdev_max_backlog",
        # A fixed goal: drops since boot stay counted, and must not ask for more at every look.
        "10000" if dropped else None,
        raise_each,
        scope=GLOBAL,
        unit="packets",
        why="packets that wait for a core; too small only if column 2 of softnet_stat grows",
        evidence=view.evidence("softnet.dropped") + view.evidence("softnet.time_squeeze", alarm=False),
    )


# -- TIME_WAIT and ports: the side that connects -----------------------------------------------------------


@knob
def tcp_tw_reuse(view: View) -> Finding:
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_tw_reuse",
        None if view.target.is_server else "1",
        # 2, the default, reuses on 127/8 only. So the generous order is not the numeric one.
        prefer("0", "2", "1"),
        scope=NAMESPACE,
        unit="mode",
        why="for the side that connects; 2 (the default) reuses on 127/8 only, which hides port exhaustion in tests",
        evidence=view.gauge("sockstat.tw", "sockets") + view.evidence("TcpExt.TWRecycled", alarm=False),
    )
    if view.target.is_server:
        finding.notes.append("a server accepts and does not connect: nothing to gain here")
    elif view.current("/proc/sys/net/ipv4/tcp_timestamps") == "0":
        finding.notes.append("works only with tcp_timestamps on, and that is 0")
    return finding


@knob
def tcp_timestamps(view: View) -> Finding:
    return view.knob(
        "/proc/sys/net/ipv4/tcp_timestamps",
        None if view.target.is_server else "1",
        prefer("0", "1", "2"),
        scope=NAMESPACE,
        unit="mode",
        why="without timestamps tcp_tw_reuse does nothing",
    )


@knob
def tcp_max_tw_buckets(view: View) -> Finding:
    wanted = view.target.churn_per_s * TIME_WAIT_S
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_max_tw_buckets",
        str(wanted),
        raise_each,
        scope=NAMESPACE,
        unit="sockets",
        why=f"churn x {TIME_WAIT_S} s must fit, or TIME_WAIT is cut short silently; never lower it",
        evidence=view.evidence("TcpExt.TCPTimeWaitOverflow") + view.gauge("sockstat.tw", "sockets"),
    )
    finding.notes.append(
        f"the target leaves up to {wanted:,} sockets in TIME_WAIT, on the side that closes first"
    )
    return finding


@knob
def tcp_fin_timeout(view: View) -> Finding:
    return view.knob(
        "/proc/sys/net/ipv4/tcp_fin_timeout",
        None,
        raise_each,
        scope=NAMESPACE,
        unit="s",
        why="rules orphans in FIN_WAIT_2; TIME_WAIT lasts 60 s whatever this says: leave it",
        evidence=view.gauge("sockstat.orphan", "sockets"),
    )


@knob
def ip_local_reserved_ports(view: View) -> list[Finding]:
    """Before the range is widened: the server's port must not be lent to an outgoing connection."""
    port = view.target.port
    if port is None:
        return []
    text = view.current("/proc/sys/net/ipv4/ip_local_port_range") or PORTS_WIDE
    if _wants_more_ports(view, text):
        text = widen_range(text, PORTS_WIDE)
    low, high = map(int, text.split())
    finding = view.knob(
        "/proc/sys/net/ipv4/ip_local_reserved_ports",
        str(port) if low <= port <= high else None,
        join_ports,
        scope=NAMESPACE,
        unit="ports",
        why=f"port {port} lies inside the range outgoing connections take theirs from: a restart may find it taken",
    )
    if finding.status == OK and not low <= port <= high:
        finding.why = f"port {port} lies outside the local port range: nothing to reserve"
    return [finding]


@knob
def ip_local_port_range(view: View) -> Finding:
    path = "/proc/sys/net/ipv4/ip_local_port_range"
    text = view.current(path)
    finding = view.knob(
        path,
        PORTS_WIDE if text is not None and _wants_more_ports(view, text) else None,
        widen_range,
        scope=NAMESPACE,
        unit="ports",
        why="one source address reaches one destination this many times, TIME_WAIT included",
        evidence=view.gauge("sockstat.tw", "sockets"),
    )
    if text is None or view.target.is_server:
        return finding
    ports = _ports_count(view, text)
    wide = _ports_count(view, finding.wanted or text)
    finding.notes.append(
        f"{ports:,} ports: at most {ports // TIME_WAIT_S:,} new connections/s from one address to one destination "
        "without reuse of TIME_WAIT"
    )
    # With tcp_tw_reuse=1, which this tool wants too, a port rests for this long only.
    rest_ms = int(view.current("/proc/sys/net/ipv4/tcp_tw_reuse_delay") or 1000)
    needed = _ports_needed(view, rest_ms / 1000)
    sources = math.ceil(needed / wide)
    if sources > 1:
        finding.notes.append(
            f"the target needs {needed:,} ports: {sources} source addresses at {wide:,} ports each "
            "(127/8 addresses need no set-up)"
        )
    return finding


def _wants_more_ports(view: View, text: str) -> bool:
    """Counted without reuse of TIME_WAIT: a wide range costs nothing."""
    return not view.target.is_server and _ports_needed(view, TIME_WAIT_S) > _ports_count(view, text)


def _ports_needed(view: View, rest_s: float) -> int:
    """Those in use, and those that rest in TIME_WAIT."""
    return view.target.connections_count + math.ceil(view.target.churn_per_s * rest_s)


def _ports_count(view: View, text: str) -> int:
    low, high = map(int, text.split())
    reserved = parse_ports(view.current("/proc/sys/net/ipv4/ip_local_reserved_ports") or "")
    return max(1, high - low + 1 - sum(low <= port <= high for port in reserved))


@knob
def bind_address_no_port(view: View) -> list[Finding]:
    """A socket option of the generator: seen through sock_diag, set in its code."""
    if view.target.is_server:
        return []
    finding = Finding(
        "socket.IP_BIND_ADDRESS_NO_PORT",
        UNKNOWN,
        None,
        "1",
        "flag",
        "a bound source address without it shares one port pool over all destinations",
        PROCESS,
        restart="set before bind()",
        remedy="set IP_BIND_ADDRESS_NO_PORT before bind(address, 0); name a running generator with --pid to see it",
    )
    inodes = view.system.socket_inodes(view.target.pid) if view.target.pid is not None else None
    if not inodes or not view.system.is_live:
        return [finding]
    try:
        sockets = kernel.diag_sockets(kernel.TCP_ESTABLISHED)
    except OSError:
        return [finding]
    seen = [each for each in sockets if each.inode in inodes and each.bind_address_no_port is not None]
    if not seen:
        finding.notes.append("the process has no established TCP socket to look at")
        return [finding]
    without = sum(not each.bind_address_no_port for each in seen)
    finding.current = "0" if without else "1"
    finding.status = OPTIONAL if without else OK
    finding.notes.append(
        f"{without:,} of {len(seen):,} established sockets are without it; "
        "a socket that never called bind() does not need it"
    )
    return [finding]


# -- descriptors -------------------------------------------------------------------------------------------


@knob
def nofile(view: View) -> Finding:
    target = view.target
    wanted = target.descriptors_count
    finding = Finding(
        "RLIMIT_NOFILE",
        UNKNOWN,
        None,
        str(wanted),
        "descriptors",
        f"one descriptor a connection, and {DESCRIPTORS_SPARE} for the rest; limits.conf does not reach services",
        PROCESS,
        restart="the process takes its limits from its parent",
    )
    limits = view.system.nofile_limits(target.pid)
    whose = (
        f"of process {target.pid}"
        if target.pid is not None
        else "of this shell, which its children take over"
    )
    if limits is None:
        finding.notes.append(f"the limits {whose} cannot be read: is it running, and is it yours?")
        return finding
    soft, hard = limits
    finding.current = _limit(soft)
    finding.notes.append(f"soft {_limit(soft)}, hard {_limit(hard)}, {whose}")
    finding.notes += _limits_conf_notes(view)
    finding.holds_connections_count = None if math.isinf(soft) else max(0, int(soft) - DESCRIPTORS_SPARE)
    finding.status = OK if soft >= wanted else WANTED
    if finding.status == OK:
        finding.restart, finding.wanted = "", finding.current
    elif hard >= wanted:
        finding.remedy = f"ulimit -n {wanted} before the start (needs no privilege: the hard limit allows it)"
    elif view.system.has_cap_sys_resource():
        finding.remedy = f"LimitNOFILE={wanted} in the service (`persist` writes it), or: prlimit --nofile={wanted}:{wanted} --pid PID"
    else:
        finding.notes.append(
            f"the hard limit {_limit(hard)} cannot be raised from here, not even by root: "
            "this process lacks CAP_SYS_RESOURCE"
        )
        finding.remedy = (
            f"have the parent raise it to {wanted}: LimitNOFILE= of the systemd unit, "
            "--ulimit nofile= of the container, the limits of the login session"
        )
    return finding


def _limits_conf_notes(view: View) -> list[str]:
    return [
        f"{file}:{number} sets nofile: for login sessions only, a service does not pass through PAM"
        for pattern in ("/etc/security/limits.conf", "/etc/security/limits.d/*.conf")
        for file in view.system.glob(pattern)
        for number, line in enumerate((view.system.read(file) or "").splitlines(), start=1)
        if line.split("#")[0].split()[2:3] == ["nofile"]
    ]


def _limit(value: float) -> str:
    return "unlimited" if math.isinf(value) else str(int(value))


@knob
def nr_open(view: View) -> Finding:
    finding = view.knob(
        "/proc/sys/fs/nr_open",
        str(power_of_two_at_least(view.target.descriptors_count)),
        raise_each,
        scope=GLOBAL,
        unit="descriptors",
        why="no process may have RLIMIT_NOFILE above this",
        restart="RLIMIT_NOFILE is checked against it when it is set",
    )
    if finding.current is not None:
        finding.holds_connections_count = max(0, int(finding.current) - DESCRIPTORS_SPARE)
    return finding


@knob
def file_max(view: View) -> Finding:
    allocated = view.sample.total("file-nr.allocated")
    current = view.current("/proc/sys/fs/file-max")
    finding = view.knob(
        "/proc/sys/fs/file-max",
        str(2 * view.target.descriptors_count + 8192),
        raise_each,
        scope=GLOBAL,
        unit="descriptors",
        why="all processes together; twice the connections, in case both ends run here",
        evidence=view.gauge("file-nr.allocated", "descriptors", 0.9 * int(current or 0)),
    )
    if current is not None:
        finding.holds_connections_count = max(0, int(current) - allocated)
    return finding


@knob
def epoll_watches(view: View) -> Finding:
    finding = view.knob(
        "/proc/sys/fs/epoll/max_user_watches",
        str(2 * view.target.descriptors_count),
        raise_each,
        scope=GLOBAL,
        unit="watches",
        why=f"one a connection and user, about {EPOLL_WATCH_BYTES} octets each; twice, in case both ends run here",
    )
    if finding.current is not None:
        finding.holds_connections_count = int(finding.current)
    return finding


# -- memory ------------------------------------------------------------------------------------------------


@knob
def memory(view: View) -> list[Finding]:
    """Not a knob, but the first thing to know: is there room for the idle sockets at all."""
    per_connection = SLAB_PER_SOCKET_BYTES + EPOLL_WATCH_BYTES
    wanted = view.target.connections_count * per_connection
    finding = Finding(
        "memory.available",
        UNKNOWN,
        None,
        str(wanted),
        "octets",
        f"the kernel's share of an idle connection is about {per_connection:,} octets an end, beside the program's own",
        GLOBAL,
        remedy="more memory, or fewer connections",
    )
    available = view.system.memory_bytes("MemAvailable")
    if available is None:
        return [finding]
    finding.current = str(available)
    finding.holds_connections_count = available // per_connection
    finding.status = OK if available >= wanted else WANTED
    if finding.status == OK:
        finding.remedy = ""
    return [finding]


@knob
def tcp_mem(view: View) -> Finding:
    needed = view.target.connections_count
    total_bytes = view.system.memory_bytes()
    high = math.ceil(needed * 1.5)
    notes = []
    if total_bytes is not None and high > total_bytes // view.system.page_bytes() // 2:
        high = total_bytes // view.system.page_bytes() // 2
        notes.append("held to half of the memory: the target's unread messages do not fit on this machine")
    wanted = f"{high // 2} {high * 2 // 3} {high}"  # the kernel's own proportions: 3 to 4 to 6
    current = view.current("/proc/sys/net/ipv4/tcp_mem")
    pressure = int(current.split()[1]) if current else 0
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_mem",
        wanted if needed > pressure else None,
        raise_each,
        scope=GLOBAL,
        unit="pages",
        why="one unread message holds about one page; above the second number the kernel squeezes every socket",
        evidence=view.gauge("sockstat.mem", "pages", 0.5 * pressure)
        + view.evidence("TcpExt.TCPMemoryPressures", "TcpExt.TCPAbortOnMemory"),
    )
    finding.notes += notes
    if current is not None:
        finding.notes.append(
            f"pressure begins at {pressure:,} pages: one unread message on each of as many connections "
            f"({pressure * view.system.page_bytes() // 2**20:,} MiB); idle connections hold none"
        )
    return finding


@knob
def tcp_rmem(view: View) -> Finding:
    return _socket_buffer(view, "rmem", "TcpExt.TCPRcvQDrop")


@knob
def tcp_wmem(view: View) -> Finding:
    return _socket_buffer(view, "wmem")


def _socket_buffer(view: View, which: str, *counters: str) -> Finding:
    return view.knob(
        f"/proc/sys/net/ipv4/tcp_{which}",
        "0 0 4194304",
        raise_each,
        scope=NAMESPACE,
        unit="octets",
        why="allocated on demand: a smaller minimum saves nothing when idle, a small maximum throttles",
        evidence=view.evidence(*counters),
    )


@knob
def tcp_max_orphans(view: View) -> Finding:
    orphans = view.sample.total("sockstat.orphan")
    current = view.current("/proc/sys/net/ipv4/tcp_max_orphans")
    return view.knob(
        "/proc/sys/net/ipv4/tcp_max_orphans",
        str(4 * orphans),
        raise_each,
        scope=GLOBAL,
        unit="sockets",
        why="sockets closed but not yet done; above it the kernel resets them",
        evidence=view.gauge("sockstat.orphan", "sockets", 0.25 * int(current or 0)),
    )


# -- connection tracking --------------------------------------------------------------------------------------


@knob
def nf_conntrack_max(view: View) -> Finding:
    directory = "/proc/sys/net/netfilter"
    target = view.target
    stays_s = int(view.current(f"{directory}/nf_conntrack_tcp_timeout_time_wait") or 120)
    wanted = target.connections_count + target.churn_per_s * stays_s
    count = view.sample.total("conntrack.count")
    is_idle = "conntrack.count" in view.sample.after and count == 0
    current = view.current(f"{directory}/nf_conntrack_max")
    finding = view.knob(
        f"{directory}/nf_conntrack_max",
        None if is_idle else str(wanted),
        raise_each,
        scope=GLOBAL,
        unit="entries",
        why="a full table drops new connections; better keep these out of it: a NOTRACK rule for the port",
        evidence=view.gauge("conntrack.count", "entries", 0.8 * int(current or 0))
        + view.evidence("conntrack.drop", "conntrack.early_drop"),
    )
    if current is None:
        finding.notes = ["connection tracking is not loaded: nothing to do"]
    elif is_idle:
        finding.notes.append(
            f"nothing is tracked here; if a rule starts to, the target needs {wanted:,} entries"
        )
    elif finding.status == WANTED:
        finding.remedy = (
            "prefer NOTRACK (docs/tuning.md shows the nft rules); a larger table costs memory and time"
        )
        finding.holds_connections_count = max(0, int(current) - target.churn_per_s * stays_s)
    return finding


# -- latency: optional, each with its price ---------------------------------------------------------------------


@knob
def busy_poll(view: View) -> list[Finding]:
    why = "a waiting reader polls the device this long: lower latency for the price of power and CPU"
    evidence = view.evidence("TcpExt.BusyPollRxPackets", alarm=False)
    return [
        view.knob(
            f"/proc/sys/net/core/{name}",
            "50",
            raise_each,
            scope=GLOBAL,
            unit="us",
            why=why,
            optional=True,
            restart=restart,
            evidence=evidence,
        )
        for name, restart in (("busy_poll", ""), ("busy_read", "read when a socket is made"))
    ]


@knob
def tcp_slow_start_after_idle(view: View) -> Finding:
    return view.knob(
        "/proc/sys/net/ipv4/tcp_slow_start_after_idle",
        "0",
        lower_each,
        scope=NAMESPACE,
        unit="mode",
        why="0 keeps the congestion window of sockets that idle and then burst; costs fairness on a busy link",
        optional=True,
    )


@knob
def tcp_notsent_lowat(view: View) -> list[Finding]:
    if not view.target.is_server:
        return []
    return [
        view.knob(
            "/proc/sys/net/ipv4/tcp_notsent_lowat",
            "131072",
            lower_each,
            scope=NAMESPACE,
            unit="octets",
            why="keeps a slow reader's backlog in the server, where it is counted and bounded, not in the kernel",
            optional=True,
        )
    ]


@knob
def governor(view: View) -> Finding:
    paths = view.system.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    finding = Finding(
        "cpufreq.scaling_governor",
        ABSENT,
        None,
        None,
        "word",
        "a core that changes its frequency adds latency which no server can help",
        GLOBAL,
    )
    if not paths:
        finding.notes.append("no frequency control here (a virtual machine: its host decides): skipped")
        return finding
    now = {path: view.current(path) or "unknown" for path in paths}
    words = sorted(set(now.values()))
    finding.current, finding.wanted = " ".join(words), "performance"
    finding.status = OK if words == ["performance"] else WANTED
    for path, word in now.items():
        offered = (
            view.current(path.replace("scaling_governor", "scaling_available_governors")) or ""
        ).split()
        if word != "performance" and "performance" in offered:
            finding.writes.append(Write(path, word, "performance"))
    if finding.status == WANTED and not finding.writes:
        finding.status = ABSENT
        finding.notes.append("the driver does not offer `performance`: skipped")
    return finding


@knob
def huge_pages(view: View) -> list[Finding]:
    directory = "/sys/kernel/mm/transparent_hugepage"
    return [
        view.knob(
            f"{directory}/enabled",
            "madvise",
            prefer("always", "never", "madvise"),
            scope=GLOBAL,
            unit="word",
            why="madvise gives huge pages to those who ask; always can bloat a sparse heap of connections",
            optional=True,
            restart="memory mapped from now on",
            evidence=view.evidence("vmstat.thp_fault_fallback", alarm=False),
        ),
        view.knob(
            f"{directory}/defrag",
            "madvise",
            # Only `always` is worse than the others: it stalls a page fault to make room.
            lambda current, wanted: wanted if current == "always" else current,
            scope=GLOBAL,
            unit="word",
            why="always makes a page fault wait for compaction: a latency spike with no other trace",
            optional=True,
            evidence=view.evidence("vmstat.compact_stall", alarm=False),
        ),
    ]


@knob
def tcp_ehash_entries(view: View) -> Finding:
    finding = view.knob(
        "/proc/sys/net/ipv4/tcp_ehash_entries",
        None,
        raise_each,
        scope=BOOT,
        unit="buckets",
        why="the table of established connections: fixed at boot by memory, thash_entries= on the kernel's command line",
    )
    finding.sysctl_key = None
    if finding.current is not None:
        # A child namespace that shares the initial one's table shows it as a negative number.
        buckets = abs(int(finding.current)) or 1
        finding.notes.append(
            f"the target makes chains of {view.target.connections_count / buckets:.1f} on average"
        )
    return finding
