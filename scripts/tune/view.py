"""The words of the tool: a target, what a knob may look at, what it finds.

No policy here: knobs.py has that. Start at `Finding`, then `View.knob`, which most knobs consist of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Iterable

from kernel import Listener, Namespace, Sample, System
from values import Merge, canonical, power_of_two_at_least

OK, WANTED, OPTIONAL, ABSENT, UNKNOWN = "ok", "wanted", "optional", "absent", "unknown"
STATUSES = (OK, WANTED, OPTIONAL, ABSENT, UNKNOWN)
NAMESPACE, GLOBAL, PROCESS, BOOT = "namespace", "global", "process", "boot"
SCOPES = (NAMESPACE, GLOBAL, PROCESS, BOOT)

TIME_WAIT_S = 60  # TCP_TIMEWAIT_LEN, include/net/tcp.h: a constant of the kernel, not a knob
SYN_RETRY_S = 1  # the client sends its SYN again after this long: a longer queue hides overload
LISTEN_BACKLOG_MIN, LISTEN_BACKLOG_MAX = 1024, 65535
DESCRIPTORS_SPARE = 256  # per worker a listener, an epoll, a wake-up; logs, the runtime


@dataclass(frozen=True)
class Target:
    """What the machine shall carry."""

    connections_count: int
    churn_per_s: int
    role: str  # "server" or "generator"
    port: int | None = None
    pid: int | None = None
    is_declared: bool = True

    @property
    def is_server(self) -> bool:
        return self.role == "server"

    @property
    def descriptors_count(self) -> int:
        return self.connections_count + DESCRIPTORS_SPARE

    @property
    def listen_backlog(self) -> int:
        """One second of arrivals: the queue then bridges any pause shorter than a SYN's retry."""
        arrivals = power_of_two_at_least(self.churn_per_s * SYN_RETRY_S)
        return min(LISTEN_BACKLOG_MAX, max(LISTEN_BACKLOG_MIN, arrivals))


@dataclass
class Evidence:
    """One counter or gauge. `is_alarming` says that it shows the knob to be too small now."""

    name: str
    total: int
    delta: int | None
    unit: str
    is_alarming: bool


@dataclass
class Write:
    path: str
    prior: str
    value: str


@dataclass
class Finding:
    name: str
    status: str
    current: str | None
    wanted: str | None
    unit: str
    why: str
    scope: str
    # Empty if a change works at once; otherwise who has to do what.
    restart: str = ""
    evidence: list[Evidence] = field(default_factory=list)
    # More about this machine; may be empty.
    notes: list[str] = field(default_factory=list)
    # What apply would write; empty for what is done by hand (`remedy` then says how).
    writes: list[Write] = field(default_factory=list)
    remedy: str = ""
    # How many connections the current value allows, where that is a number.
    holds_connections_count: int | None = None
    # The sysctl.d spelling, if sysctl.d can carry it.
    sysctl_key: str | None = None


class View:
    """All that a knob may look at."""

    def __init__(self, system: System, target: Target, sample: Sample, also: Iterable[str] = ()):
        self.system = system
        self.target = target
        self.sample = sample
        self.also = frozenset(also)
        self.namespace: Namespace = system.namespace()
        self.listeners: list[Listener] = system.listeners()
        self.server_listeners = self._server_listeners()

    def _server_listeners(self) -> list[Listener]:
        found = self.listeners
        if self.target.port is not None:
            found = [each for each in found if each.port == self.target.port]
        if self.target.pid is not None and self.target.is_server:
            inodes = self.system.socket_inodes(self.target.pid)
            if inodes is not None:
                found = [each for each in found if each.inode in inodes]
        return found if self.target.port is not None or self.target.pid is not None else []

    def current(self, path: str) -> str | None:
        text = self.system.read(path)
        return None if text is None else canonical(path, text)

    def evidence(self, *names: str, alarm: bool = True, unit: str = "count") -> list[Evidence]:
        """Counters that only grow: alarming once they have moved at all."""
        return [
            Evidence(
                name,
                self.sample.total(name),
                self.sample.delta(name) if self.sample.sample_s else None,
                unit,
                alarm and self.sample.total(name) > 0,
            )
            for name in names
            if name in self.sample.after
        ]

    def gauge(self, name: str, unit: str, alarm_above: float = math.inf) -> list[Evidence]:
        if name not in self.sample.after:
            return []
        value = self.sample.total(name)
        return [Evidence(name, value, None, unit, value > alarm_above)]

    def knob(
        self,
        path: str,
        wanted: str | None,
        merge: Merge,
        *,
        scope: str,
        why: str,
        unit: str,
        optional: bool = False,
        **more,
    ) -> Finding:
        """A file of the kernel. `wanted` None means: whatever it is, it is enough."""
        name = _name(path)
        finding = Finding(name, OK, self.current(path), wanted, unit, why, scope, **more)
        if path.startswith("/proc/sys/"):
            finding.sysctl_key = name
        if finding.current is None:
            finding.status = ABSENT
            finding.wanted = None
            reason = (
                "not there in a child network namespace" if self._is_absent_in_child(path) else "not there"
            )
            finding.notes.append(f"{reason}: skipped")
            return finding
        finding.wanted = finding.current if wanted is None else merge(finding.current, wanted)
        if finding.wanted != finding.current:
            finding.status = OPTIONAL if optional and name not in self.also else WANTED
            if finding.status == OPTIONAL:
                finding.remedy = f"only with --also {name}"
            if finding.status == WANTED:
                finding.writes = [Write(path, finding.current, finding.wanted)]
        return finding

    def _is_absent_in_child(self, path: str) -> bool:
        return self.namespace.net_is_child and path.startswith("/proc/sys/net/")


def _name(path: str) -> str:
    for prefix in ("/proc/sys/", "/sys/kernel/mm/", "/sys/devices/system/cpu/"):
        if path.startswith(prefix):
            return path[len(prefix) :].replace("/", ".")
    return path


def is_refused(view: View, finding: Finding) -> bool:
    """A child namespace may be able to write a global knob (root in a container is), and must not."""
    return finding.scope == GLOBAL and view.namespace.is_child
