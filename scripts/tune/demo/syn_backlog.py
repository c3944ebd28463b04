#!/usr/bin/env python3
"""Half-open connections: with SYN cookies the listen backlog is the limit; tcp_max_syn_backlog counts without them only."""

import socket
import struct

import lab

COUNT = 300
ADDRESS = "10.98.0.1"
COUNTERS = (
    "TcpExt.TCPReqQFullDrop",
    "TcpExt.TCPReqQFullDoCookies",
    "TcpExt.SyncookiesSent",
    "TcpExt.ListenDrops",
)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source: str, port: int, number: int) -> bytes:
    """An IPv4 packet with a SYN; nobody at `source` will answer the SYN-ACK."""
    ends = socket.inet_aton(source) + socket.inet_aton(ADDRESS)
    tcp = struct.pack("!HHIIBBHHH", 1024 + number, port, number, 0, 5 << 4, 0x02, 64240, 0, 0)
    pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + ends + tcp


def half_open(port: int) -> int:
    return len(lab.quiet("ss", "-tnH", "state", "syn-recv", f"sport = :{port}").splitlines())


def trial(port: int, cookies: int, backlog: int, max_syn_backlog: int) -> tuple[int, dict[str, int]]:
    lab.set_sysctl("net.ipv4.tcp_syncookies", str(cookies))
    lab.set_sysctl("net.ipv4.tcp_max_syn_backlog", str(max_syn_backlog))
    listener = lab.listen(ADDRESS, port, backlog)
    moved = lab.Moved(*COUNTERS, "Tcp.InSegs")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(COUNT):
            raw.sendto(syn(f"10.98.1.{1 + number % 200}", port, number), (ADDRESS, 0))
    lab.wait_until(lambda: moved.read()["Tcp.InSegs"] >= COUNT, "all SYNs are in")
    held = half_open(port)
    counters = {name: value for name, value in moved.read().items() if name in COUNTERS}
    print(f"listen backlog {backlog}: {held} of {COUNT} half-open connections held")
    print("counters: " + ", ".join(f"{name} {value:+d}" for name, value in counters.items()))
    lab.show("ss", "-ltn", f"sport = :{port}")
    listener.close()
    return held, counters


lab.enter()
lab.quiet("ip", "link", "add", "out", "type", "veth", "peer", "name", "nowhere")
for device in ("out", "nowhere"):
    lab.quiet("ip", "link", "set", device, "arp", "off", "up")
lab.quiet("ip", "addr", "add", f"{ADDRESS}/16", "dev", "out")

lab.say(
    f"Cookies on (the default), {COUNT} SYNs whose senders never answer. tcp_max_syn_backlog small, then large:"
)
held, moved = trial(9001, cookies=1, backlog=64, max_syn_backlog=16)
lab.expect(held == 65, "backlog + 1 are held")
lab.expect(moved["TcpExt.SyncookiesSent"] == COUNT - 65, "the others get a cookie")
held, moved = trial(9002, cookies=1, backlog=64, max_syn_backlog=4096)
lab.expect(held == 65, "tcp_max_syn_backlog changes nothing")

lab.say("Still with tcp_max_syn_backlog=16, but a larger listen backlog: that is the knob.")
held, moved = trial(9003, cookies=1, backlog=512, max_syn_backlog=16)
lab.expect(held == COUNT and moved["TcpExt.SyncookiesSent"] == 0, "all are held, without cookies")

lab.say("Cookies off: now tcp_max_syn_backlog counts. Newcomers are dropped once three quarters are taken.")
held, moved = trial(9004, cookies=0, backlog=512, max_syn_backlog=16)
lab.expect(
    held == 13 and moved["TcpExt.TCPReqQFullDrop"] == 0, "13 held of 16: dropped, but not as a full queue"
)
held, moved = trial(9005, cookies=0, backlog=64, max_syn_backlog=4096)
lab.expect(
    held == 65 and moved["TcpExt.TCPReqQFullDrop"] == COUNT - 65, "full at backlog + 1: TCPReqQFullDrop"
)
held, moved = trial(9006, cookies=0, backlog=512, max_syn_backlog=4096)
lab.expect(held == COUNT, "both large enough: all are held")
