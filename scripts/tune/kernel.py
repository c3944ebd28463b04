"""What the kernel says: files below an injectable root, counters, namespaces, sockets.

Everything the tool reads or writes goes through `System`, so a test can put a directory in the
place of `/`. Nothing in this file decides anything: knobs.py does. Start at `System`.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import socket
import struct
import time
from dataclasses import dataclass, field

# include/linux/proc_ns.h: the inode numbers of the initial namespaces are part of the kernel's
# user interface. The network one (0xEFFFFFF9) is fixed only since 6.18, hence not used here.
INITIAL_USER_NS_INODE = 0xEFFFFFFD
INITIAL_PID_NS_INODE = 0xEFFFFFFC
CAP_SYS_RESOURCE_BIT = 24  # include/uapi/linux/capability.h
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14


class TuneError(Exception):
    """The world failed: the message says what was tried and what to look at. Exit status 2."""


@dataclass
class Namespace:
    """Which network namespace this is, and whether global knobs are ours to touch."""

    inode: int | None
    # Unique until the next boot, never reused (an inode number is). None before Linux 5.14.
    cookie: int | None
    # Why global knobs are out of bounds here; empty in the initial namespaces.
    child_reasons: list[str] = field(default_factory=list)
    # True if the network namespace itself is not the initial one.
    net_is_child: bool = False

    @property
    def is_child(self) -> bool:
        return bool(self.child_reasons)

    @property
    def key(self) -> str:
        """Names the state file of this namespace."""
        if self.cookie is not None:
            return f"netns-cookie-{self.cookie}"
        return f"netns-inode-{self.inode if self.inode is not None else 0}"


@dataclass
class Listener:
    """A listening TCP socket. `ss -ltn` calls the two lengths Recv-Q and Send-Q."""

    address: str
    port: int
    queue_len: int
    # None where only /proc/net/tcp could be read, which does not tell.
    backlog_max: int | None
    inode: int


class System:
    """The machine, or a directory that stands for it."""

    def __init__(self, root: str = "/"):
        self.root = os.path.abspath(root)
        self.is_live = self.root == "/"

    # -- files ---------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        return name if self.is_live else self.root + name

    def read(self, name: str) -> str | None:
        """The text of a file, or None if it is not there or not ours to read."""
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return None

    def write(self, name: str, text: str) -> None:
        """One write(2): the kernel takes a sysctl whole or not at all."""
        fd = os.open(self.path(name), os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, (text + "\n").encode())
        finally:
            os.close(fd)

    def is_writable(self, name: str) -> bool:
        return os.access(self.path(name), os.W_OK)

    def glob(self, pattern: str) -> list[str]:
        cut = 0 if self.is_live else len(self.root)
        return sorted(found[cut:] for found in glob.glob(self.path(pattern)))

    # -- who and where ---------------------------------------------------------------------------

    def kernel_release(self) -> str:
        return (self.read("/proc/sys/kernel/osrelease") or "unknown").strip()

    def boot_id(self) -> str:
        return (self.read("/proc/sys/kernel/random/boot_id") or "unknown").strip()

    def namespace(self) -> Namespace:
        reasons = []
        # The kernel registers this key in the initial network namespace only.
        net_is_child = (
            self.read("/proc/sys/net/core/netdev_max_backlog") is None
            and self.read("/proc/sys/net/core/somaxconn") is not None
        )
        if net_is_child:
            reasons.append("this is a child network namespace")
        for kind, initial in (("user", INITIAL_USER_NS_INODE), ("pid", INITIAL_PID_NS_INODE)):
            inode = self._namespace_inode(kind)
            if inode is not None and inode != initial:
                reasons.append(f"this is a child {kind} namespace")
        return Namespace(self._namespace_inode("net"), self._netns_cookie(), reasons, net_is_child)

    def _namespace_inode(self, kind: str) -> int | None:
        try:
            link = os.readlink(self.path(f"/proc/self/ns/{kind}"))
        except OSError:
            return None
        digits = re.search(r"\[(\d+)\]", link)
        return int(digits.group(1)) if digits else None

    def _netns_cookie(self) -> int | None:
        if not self.is_live:
            return None
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                return struct.unpack("Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
        except OSError:
            return None

    def has_cap_sys_resource(self) -> bool:
        found = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", self.read("/proc/self/status") or "", re.M)
        return bool(found) and bool(int(found.group(1), 16) >> CAP_SYS_RESOURCE_BIT & 1)

    def memory_bytes(self, field_name: str = "MemTotal") -> int | None:
        found = re.search(rf"^{field_name}:\s*(\d+) kB", self.read("/proc/meminfo") or "", re.M)
        return int(found.group(1)) * 1024 if found else None

    def page_bytes(self) -> int:
        return os.sysconf("SC_PAGE_SIZE")

    def nofile_limits(self, pid: int | None) -> tuple[float, float] | None:
        """(soft, hard) of a process, of this one if none is named; infinity for `unlimited`."""
        text = self.read(f"/proc/{pid if pid is not None else 'self'}/limits")
        found = re.search(r"^Max open files\s+(\S+)\s+(\S+)", text or "", re.M)
        if not found:
            return None
        soft, hard = (float("inf") if word == "unlimited" else float(word) for word in found.groups())
        return soft, hard

    # -- sockets -----------------------------------------------------------------------------------

    def listeners(self) -> list[Listener]:
        if self.is_live:
            try:
                return [sock.as_listener() for sock in diag_sockets(TCP_LISTEN)]
            except OSError:
                pass  # no inet_diag in this kernel: /proc/net/tcp knows all but the backlog
        return self._proc_listeners()

    def _proc_listeners(self) -> list[Listener]:
        found = []
        for name, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
            for line in (self.read(name) or "").splitlines()[1:]:
                words = line.split()
                if len(words) < 10 or words[3] != "0A":
                    continue
                octets, port = words[1].split(":")
                raw = b"".join(
                    struct.pack("=I", int(octets[at : at + 8], 16)) for at in range(0, len(octets), 8)
                )
                found.append(
                    Listener(
                        socket.inet_ntop(family, raw),
                        int(port, 16),
                        int(words[4].split(":")[1], 16),
                        None,
                        int(words[9]),
                    )
                )
        return found

    def socket_inodes(self, pid: int) -> set[int] | None:
        """The sockets a process holds, or None if that is not ours to see."""
        directory = self.path(f"/proc/{pid}/fd")
        found = set()
        try:
            for name in os.listdir(directory):
                try:
                    link = os.readlink(os.path.join(directory, name))
                except FileNotFoundError:
                    continue  # closed while we looked
                if link.startswith("socket:["):
                    found.add(int(link[8:-1]))
        except OSError:
            return None
        return found


# -- counters ----------------------------------------------------------------------------------------


def read_counters(system: System) -> dict[str, int]:
    """Every counter and gauge the knobs look at, by name. What a kernel has not is left out."""
    counters: dict[str, int] = {}
    for name in ("/proc/net/netstat", "/proc/net/snmp"):
        lines = (system.read(name) or "").splitlines()
        for names, values in zip(lines[::2], lines[1::2]):
            prefix, _, rest = names.partition(":")
            if prefix not in ("TcpExt", "Tcp"):
                continue
            pairs = zip(rest.split(), values.partition(":")[2].split())
            counters.update((f"{prefix}.{key}", int(value)) for key, value in pairs)
    rows = [line.split() for line in (system.read("/proc/net/softnet_stat") or "").splitlines()]
    if rows:
        counters["softnet.dropped"] = sum(int(row[1], 16) for row in rows if len(row) > 2)
        counters["softnet.time_squeeze"] = sum(int(row[2], 16) for row in rows if len(row) > 2)
    for line in (system.read("/proc/net/sockstat") or "").splitlines():
        if line.startswith("TCP:"):
            words = line.split()[1:]
            counters.update((f"sockstat.{key}", int(value)) for key, value in zip(words[::2], words[1::2]))
    file_nr = (system.read("/proc/sys/fs/file-nr") or "").split()
    if file_nr:
        counters["file-nr.allocated"] = int(file_nr[0])
    count = system.read("/proc/sys/net/netfilter/nf_conntrack_count")
    if count:
        counters["conntrack.count"] = int(count)
    rows = [line.split() for line in (system.read("/proc/net/stat/nf_conntrack") or "").splitlines()]
    if len(rows) > 1:
        for key in ("drop", "early_drop"):
            if key in rows[0]:
                column = rows[0].index(key)
                counters[f"conntrack.{key}"] = sum(int(row[column], 16) for row in rows[1:])
    for line in (system.read("/proc/vmstat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key in ("compact_stall", "thp_fault_fallback"):
            counters[f"vmstat.{key}"] = int(value)
    return counters


@dataclass
class Sample:
    """Counters read twice, `sample_s` apart; `sample_s` is 0 if they were read once."""

    before: dict[str, int]
    after: dict[str, int]
    sample_s: float

    @classmethod
    def take(cls, system: System, sample_s: float) -> "Sample":
        before = read_counters(system)
        if sample_s <= 0:
            return cls(before, before, 0.0)
        began = time.monotonic()
        time.sleep(sample_s)
        after = read_counters(system)
        return cls(before, after, time.monotonic() - began)

    def total(self, name: str) -> int:
        return self.after.get(name, 0)

    def delta(self, name: str) -> int:
        return self.after.get(name, 0) - self.before.get(name, 0)


# -- sock_diag(7), what `ss` reads ---------------------------------------------------------------------

TCP_ESTABLISHED, TCP_LISTEN = 1, 10  # include/net/tcp_states.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_SOCKOPT = 22
_BIND_ADDRESS_NO_PORT_BIT = 8  # of struct inet_diag_sockopt, octet 1 bit 0


@dataclass
class DiagSocket:
    family: int
    source: str
    port: int
    receive_queue: int
    send_queue: int
    inode: int
    bind_address_no_port: bool | None

    def as_listener(self) -> Listener:
        return Listener(self.source, self.port, self.receive_queue, self.send_queue, self.inode)


def diag_sockets(state: int, count_max: int | None = None) -> list[DiagSocket]:
    """The TCP sockets of this network namespace in one state; needs no privilege."""
    found: list[DiagSocket] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        # struct inet_diag_req_v2: family, protocol, extensions, padding, states, socket id.
        request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << state)
        header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(5)
            netlink.send(header + request)
            for kind, body in _netlink_messages(netlink):
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                found.append(_parse_diag(family, body))
                if count_max is not None and len(found) >= count_max:
                    return found
    return found


def _netlink_messages(netlink: socket.socket):
    while True:
        data = netlink.recv(65536)
        if not data:
            return
        at = 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == _NLMSG_DONE or length < 16:
                return
            yield kind, data[at + 16 : at + length]
            at += (length + 3) & ~3


def _parse_diag(family: int, body: bytes) -> DiagSocket:
    # struct inet_diag_msg: 4 octets, socket id (48), expires, rqueue, wqueue, uid, inode.
    port = struct.unpack_from("!H", body, 4)[0]
    source = socket.inet_ntop(family, body[8 : 8 + (4 if family == socket.AF_INET else 16)])
    receive_queue, send_queue, _uid, inode = struct.unpack_from("=IIII", body, 56)
    no_port = None
    at = 72
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        if kind == _INET_DIAG_SOCKOPT and length >= 6:
            no_port = bool(struct.unpack_from("=H", body, at + 4)[0] >> _BIND_ADDRESS_NO_PORT_BIT & 1)
        at += (length + 3) & ~3
    return DiagSocket(family, source, port, receive_queue, send_queue, inode, no_port)


# -- files of our own: whole or not at all ---------------------------------------------------------------


def write_atomically(path: str, text: str, mode: int = 0o644) -> None:
    """Old content or new content, also after a crash: temporary file, fsync, rename, fsync."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    temporary = f"{path}.new"  # one name: the next run replaces what a killed one left (a Lock is held)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        raise
    sync_directory(directory)


def sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have nothing to sync
            raise
    finally:
        os.close(fd)


class Lock:
    """One tool at a time changes a machine; a second one is told, it does not wait."""

    def __init__(self, directory: str):
        self.path = os.path.join(directory, "lock")

    def __enter__(self) -> "Lock":
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise TuneError(
                f"cannot keep prior values in {self.path}: {error.strerror}; run as root"
            ) from error
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.fd)
            raise TuneError(f"another tune holds {self.path}: wait for it to end") from error
        return self

    def __exit__(self, *_ignored) -> None:
        os.close(self.fd)
