"""Holds N connections between `resound` and `resound-load` on this machine, and prints what each costs.

One pair of processes where the limit of open descriptors allows it, as many pairs as it takes where it does not; all
on 127/8, so no ports run out. Two runs: idle, and at a message rate. What is read is the kernel's own: /proc/PID
(PSS, CPU time), /proc/slabinfo (root only), /proc/net/sockstat. Everything is bounded in time, and every process
that was started is ended by its id, however this script ends.
"""

import argparse
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time

# Descriptors that a server or generator needs beside its connections.
BESIDE = 300
# Caches that hold a TCP socket, its inode, its file, and its entry in an epoll.
SOCKET_CACHES = ("TCP", "sock_inode_cache", "filp", "eventpoll_epi")
# Connections from one source address to one server: half of the default port range. A connect takes even ports first,
# and once they are all in use, it looks through them one by one: connecting slows down a hundredfold.
EACH_SOURCE = 14_000
# Kernel and user memory a connection with both its ends here is expected to take, to refuse what cannot fit.
PAIR_OCTETS = 12 << 10
# From all connections being open to the window, s: warm-up and what the ramp left behind.
SETTLE_S = 4
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class Impossible(Exception):
    """It cannot be done here; the message says why and what to do."""


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def meminfo(key):
    return int(re.search(rf"^{key}:\s+(\d+)", read("/proc/meminfo"), re.M).group(1)) << 10


def descriptors(pids):
    """Open descriptors of some processes: connections are counted by them, and not by the kernel's total, in which
    other people's are, too."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def socket_buffers():
    """Octets of socket buffers in use, by the kernel's own accounting."""
    words = next(line for line in read("/proc/net/sockstat").splitlines() if line.startswith("TCP:")).split()
    return int(words[words.index("mem") + 1]) * PAGE


def socket_slab():
    """Octets of the slabs of SOCKET_CACHES; None for those who may not read /proc/slabinfo."""
    try:
        lines = read("/proc/slabinfo").splitlines()
    except PermissionError:
        return None
    octets = 0
    for line in lines:
        words = line.split()
        if words and words[0] in SOCKET_CACHES:
            pages_a_slab, slabs = int(words[5]), int(words[words.index("slabdata") + 2])
            octets += pages_a_slab * slabs * PAGE
    return octets


def pss(pids):
    total = 0
    for pid in pids:
        total += int(re.search(r"^Pss:\s+(\d+)", read(f"/proc/{pid}/smaps_rollup"), re.M).group(1)) << 10
    return total


def cpu_s(pids):
    total = 0
    for pid in pids:
        fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


class Processes:
    """What was started, to be ended by id."""

    def __init__(self):
        self.all = []

    def start(self, words, **options):
        process = subprocess.Popen(words, **options)
        self.all.append(process)
        return process

    def end(self):
        for process in self.all:
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + 15
        for process in self.all:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listening(process):
    """The URL that a server says it listens on."""
    ready, _, _ = select.select([process.stdout], [], [], 10)
    line = process.stdout.readline() if ready else ""
    if not line.startswith("listening on ws://"):
        raise Impossible(f"{process.args[0]} did not start: it said {line.strip()!r}")
    return line.split()[-1]


def sources(index, share):
    """Addresses for a generator: those of a 127.X.Y of its own, which nobody has to set up."""
    net = f"127.{index // 250}.{index % 250 + 1}"
    return f"{net}.1-{net}.{-(-share // EACH_SOURCE)}"


def said(directory):
    """What generators said about failures; each has a file of its own, in which seconds are told, too."""
    lines = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".said"):
            lines += [line for line in read(f"{directory}/{name}").splitlines() if "fail" in line or "resound-load" in line]
    return "; ".join(lines[:3])


def phase(args, shares, rate_each, directory, deadline):
    """Holds the connections once: what was seen, by name."""
    processes = Processes()
    os.makedirs(directory)
    try:
        servers = [
            processes.start(
                [args.server, "--listen", "127.0.0.1:0", "--workers", "1", "--no-pin",
                 "--idle-timeout-ms", "0", "--handshake-timeout-ms", "60000", "--log", "error", *args.server_flag],
                stdout=subprocess.PIPE, text=True,
            )
            for _ in shares
        ]  # fmt: skip
        urls = [listening(server) for server in servers]
        server_pids = [server.pid for server in servers]
        before = {"pss": pss(server_pids), "slab": socket_slab(), "buffers": socket_buffers(),
                  "open": descriptors(server_pids), "all_slab": meminfo("Slab")}  # fmt: skip
        began = time.monotonic()
        generators = []
        for index, (url, share) in enumerate(zip(urls, shares)):
            # Less than a message a second for a whole process is as idle as a run can be.
            rate = max(share * rate_each, 1.0)
            generators.append(processes.start(
                [args.generator, "run", url.rstrip("/") + "/echo", "-c", str(share), "--rate", f"{rate:.3f}",
                 "--source", sources(index, share), "--threads", "1",
                 "--ramp", f"{args.ramp / len(shares):.0f}", "--connect-timeout", "60s", "--warmup", "2s",
                 "-d", f"{args.time_max}s", "--size", "64", "--out", f"{directory}/{index}"],
                stdout=subprocess.DEVNULL, stderr=open(f"{directory}/{index}.said", "w", encoding="utf-8"),
            ))  # fmt: skip
        while descriptors(server_pids) - before["open"] < sum(shares):
            for generator in generators:
                if generator.poll() is not None:
                    raise Impossible(f"a generator ended early: {said(directory)}")
            if time.monotonic() > deadline:
                raise Impossible(
                    f"{descriptors(server_pids) - before['open']:,} of {sum(shares):,} connections were open "
                    f"when the time was over: give more --time-max. {said(directory)}"
                )
            time.sleep(0.2)
        ramp_s = time.monotonic() - began
        print(f"  all open after {ramp_s:.0f} s", file=sys.stderr)
        time.sleep(SETTLE_S)
        generator_pids = [generator.pid for generator in generators]
        cpu_before = cpu_s(server_pids), cpu_s(generator_pids), time.monotonic()
        time.sleep(args.window)
        elapsed = time.monotonic() - cpu_before[2]
        seen = {
            "connections": descriptors(server_pids) - before["open"],
            "ramp_s": ramp_s,
            "server_cpu_percent": 100 * (cpu_s(server_pids) - cpu_before[0]) / elapsed,
            "generator_cpu_percent": 100 * (cpu_s(generator_pids) - cpu_before[1]) / elapsed,
            "server_octets": pss(server_pids) - before["pss"],
            "all_slab": meminfo("Slab") - before["all_slab"],
            "buffers": socket_buffers() - before["buffers"],
            "slab": None if before["slab"] is None else socket_slab() - before["slab"],
        }
        if any(generator.poll() is not None for generator in generators):
            raise Impossible(f"a generator ended within the window: {said(directory)}")
        # They are interrupted, because their ramps ended at different times: each then writes its result.
        for generator in generators:
            generator.send_signal(signal.SIGINT)
        print("  measured; they close", file=sys.stderr)
        for generator in generators:
            generator.wait(max(1.0, deadline - time.monotonic()))
            if generator.returncode not in (0, 1):
                raise Impossible(f"a generator failed: {said(directory)}")
    except subprocess.TimeoutExpired:
        raise Impossible("the time was over before the generators ended: give more --time-max") from None
    finally:
        processes.end()
    results = [json.loads(read(f"{directory}/{index}/result.json")) for index in range(len(shares))]
    seen["rate"] = sum(result["rates"]["received_msgs_per_s"] for result in results)
    seen["messages"] = sum(result["totals"]["received"] for result in results)
    seen["lost"] = sum(result["totals"]["lost"] for result in results)
    for name in ("p50_ns", "p99_ns", "max_ns"):
        # Percentiles are not averaged: that of all messages is at most that of the worst process.
        seen[name] = max(result["histograms"]["response"][name] for result in results)
    return seen


def octets(number):
    return f"{max(number, 0):,.0f}"


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(row, widths))))  # fmt: skip


def report(phases, toward, pairs):
    def each(seen, name, ends=1):
        return "unseen" if seen[name] is None else octets(seen[name] / seen["connections"] / ends)

    rows = [["", *phases]]

    def row(name, show):
        rows.append([name, *(show(seen) for seen in phases.values())])

    row("connections", lambda seen: f"{seen['connections']:,}")
    row("time to open them, s", lambda seen: f"{seen['ramp_s']:.1f}")
    row("messages echoed, /s", lambda seen: f"{seen['rate']:,.1f}")
    row("server, octets a connection (PSS)", lambda seen: each(seen, "server_octets"))
    row("kernel, octets an end (socket caches)", lambda seen: each(seen, "slab", 2))
    row("kernel, octets an end (all slab)", lambda seen: each(seen, "all_slab", 2))
    row("kernel, octets an end (socket buffers)", lambda seen: each(seen, "buffers", 2))
    row(f"server CPU, % of a core ({pairs} processes)", lambda seen: f"{seen['server_cpu_percent']:.1f}")
    row(f"generator CPU, % of a core ({pairs} processes)", lambda seen: f"{seen['generator_cpu_percent']:.1f}")
    for name in ("p50", "p99", "max"):
        row(f"response latency {name}, ms (worst process)", lambda seen: f"{seen[name + '_ns'] / 1e6:.2f}")
    row("messages lost", lambda seen: f"{seen['lost']:,}")
    table(rows)

    seen = list(phases.values())[-1]
    # All slab: what other programs added meanwhile is in it, and nothing that a connection takes is left out.
    user_each = seen["server_octets"] / seen["connections"]
    kernel_each = seen["all_slab"] / seen["connections"] / 2
    gib = (user_each + kernel_each) * toward / (1 << 30)
    cpu = seen["server_cpu_percent"] * toward / seen["connections"]
    print(
        f"\n{toward:,} connections of the same kind, the server's end alone: {toward:,} x ({octets(user_each)} octets "
        f"of the server + {octets(kernel_each)} of the kernel) = {gib:.2f} GiB, and at the same rate each "
        f"({seen['rate'] / seen['connections']:.4f} messages/s) {cpu:.0f} % of a core, if it goes on in a straight line."
    )


def arguments():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(prog="hold.sh", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--connections", type=int, default=200_000, metavar="COUNT")
    parser.add_argument("--rate-each", type=float, default=0.01, metavar="PER_SECOND",
                        help="messages/s on each connection in the second run [default: 0.01]")  # fmt: skip
    parser.add_argument("--ramp", type=float, default=6_000, metavar="PER_SECOND",
                        help="connections opened a second, over all processes [default: 6000]")  # fmt: skip
    parser.add_argument("--window", type=int, default=15, metavar="SECONDS", help="what CPU is taken over [default: 15]")
    parser.add_argument("--time-max", type=int, default=280, metavar="SECONDS", help="for both runs [default: 280]")
    parser.add_argument("--toward", type=int, default=1_000_000, metavar="COUNT", help="what to reckon up to")
    parser.add_argument("--server", default=f"{root}/target/release/resound", metavar="PATH")
    parser.add_argument("--server-flag", action="append", default=[], metavar="FLAG", help="for the server, repeatable")
    parser.add_argument("--generator", default=f"{root}/target/release/resound-load", metavar="PATH")
    args = parser.parse_args()
    if min(args.connections, args.window, args.ramp, args.rate_each, args.toward) <= 0:
        parser.error("numbers must be above 0")
    for path in (args.server, args.generator):
        if not os.access(path, os.X_OK):
            parser.error(f"there is no program {path}: cargo build --release --workspace")
    return args


def main():
    args = arguments()
    # A terminated script ends what it started, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = args.connections if hard == resource.RLIM_INFINITY else hard - BESIDE
    if each < 1:
        raise Impossible(f"the hard limit of {hard} descriptors (ulimit -Hn) leaves nothing for connections")
    pairs = -(-args.connections // each)
    shares = [args.connections // pairs + (index < args.connections % pairs) for index in range(pairs)]
    available, needed = meminfo("MemAvailable"), args.connections * PAIR_OCTETS
    if needed > 0.8 * available:
        raise Impossible(f"{args.connections:,} connections take about {needed >> 20:,} MiB with both their ends here, "
                         f"and {available >> 20:,} MiB are available")  # fmt: skip
    print(f"{args.connections:,} connections: {pairs} x (server, generator) with up to {shares[0]:,} each, because "
          f"one process may have {hard:,} descriptors (ulimit -Hn); Linux "
          f"{os.uname().release}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} at start\n")  # fmt: skip
    deadline = time.monotonic() + args.time_max
    phases = {}
    with tempfile.TemporaryDirectory(prefix="resound-hold-") as directory:
        phases["idle"] = phase(args, shares, 0.0, f"{directory}/idle", deadline - 0.4 * args.time_max)
        phases[f"1 message in {1 / args.rate_each:g} s each"] = phase(
            args, shares, args.rate_each, f"{directory}/load", deadline
        )
    report(phases, args.toward, pairs)


if __name__ == "__main__":
    try:
        main()
    except Impossible as reason:
        print(f"hold: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
