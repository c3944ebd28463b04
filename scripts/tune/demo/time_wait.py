#!/usr/bin/env python3
"""TIME_WAIT uses up the ports of the connecting side. Loopback hides it; tcp_tw_reuse=1 or more ports cure it."""

import ctypes
import errno
import os
import select
import socket
import struct
import time

import lab

PORT = 9000
COUNT = 20
FAR = "10.99.0.2"
CLONE_NEWNET = 0x40000000
REST_S = 1.1  # tcp_tw_reuse_delay: a port rests for one second at least before it is reused


def serve(address: str) -> None:
    """Accepts, waits for the client to close first, closes. Ends with its parent."""
    listener = lab.listen(address, PORT, 128)
    peers: list[socket.socket] = []
    while True:
        for ready in select.select([listener, *peers], [], [])[0]:
            if ready is listener:
                peers.append(listener.accept()[0])
            elif is_over(ready):
                ready.close()
                peers.remove(ready)


def is_over(peer: socket.socket) -> bool:
    try:
        return not peer.recv(4096)
    except ConnectionResetError:  # the probe below ends so, to leave no TIME_WAIT
        return True


def start_server(address: str, in_own_namespace: bool) -> int:
    """Forks a server; with a namespace of its own it is reached through a veth pair."""
    entered_read, entered_write = os.pipe()
    wired_read, wired_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
            if in_own_namespace and ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            os.write(entered_write, b"1")
            os.read(wired_read, 1)
            if in_own_namespace:
                lab.quiet("ip", "addr", "add", f"{address}/24", "dev", "far")
                lab.quiet("ip", "link", "set", "far", "up")
            serve(address)
        finally:
            os._exit(1)
    os.read(entered_read, 1)
    if in_own_namespace:
        lab.quiet("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(pid))
        lab.quiet("ip", "addr", "add", "10.99.0.1/24", "dev", "near")
        lab.quiet("ip", "link", "set", "near", "up")
    os.write(wired_write, b"1")

    def is_up() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # close with a reset
            return probe.connect_ex((address, PORT)) == 0

    lab.wait_until(is_up, f"the server at {address}")
    return pid


def round_of_connects(address: str) -> int:
    """Opens COUNT connections at once, then closes them first: the TIME_WAITs are ours."""
    moved = lab.Moved("TcpExt.TWRecycled")
    open_now, refused = [], 0
    for _ in range(COUNT):
        client = socket.socket()
        client.settimeout(2)
        try:
            client.connect((address, PORT))
            open_now.append(client)
        except OSError as error:
            lab.expect(error.errno == errno.EADDRNOTAVAIL, f"EADDRNOTAVAIL, not {error}")
            client.close()
            refused += 1
    for client in open_now:
        client.close()
    in_time_wait = ("ss", "-tan", "state", "time-wait", "dst", f"{address}:{PORT}")
    # A reused port is back in TIME_WAIT, so that at least as many rest there as were open.
    lab.wait_until(lambda: len(lab.quiet(*in_time_wait).splitlines()) > len(open_now), "TIME_WAIT")
    rest = len(lab.quiet(*in_time_wait).splitlines()) - 1
    print(
        f"{address}: {len(open_now)} of {COUNT} connected, {refused} with EADDRNOTAVAIL; "
        f"{rest} in TIME_WAIT now; TWRecycled {moved.read()['TcpExt.TWRecycled']:+d}",
        flush=True,
    )
    return len(open_now)


lab.enter()
server_far = start_server(FAR, in_own_namespace=True)
server_near = start_server("127.0.0.1", in_own_namespace=False)

lab.say(
    f"{COUNT} ports, tcp_tw_reuse=2 (the default). The generator closes first. To a neighbour over a wire:"
)
lab.set_sysctl("net.ipv4.ip_local_port_range", f"40000 {40000 + COUNT - 1}")
lab.set_sysctl("net.ipv4.tcp_tw_reuse", "2")
lab.expect(round_of_connects(FAR) == COUNT, "the first round connects")
time.sleep(REST_S)
lab.expect(round_of_connects(FAR) == 0, "off loopback, tcp_tw_reuse=2 reuses nothing")

lab.say("The same on 127.0.0.1: reuse works there, so a test on loopback never shows the problem.")
lab.expect(round_of_connects("127.0.0.1") == COUNT, "the first round connects")
time.sleep(REST_S)
lab.expect(round_of_connects("127.0.0.1") == COUNT, "on 127/8, tcp_tw_reuse=2 reuses")

lab.say("The popular recipe, tcp_fin_timeout=5, does not shorten TIME_WAIT: see the timer of a new one.")
lab.set_sysctl("net.ipv4.tcp_fin_timeout", "5")
lab.set_sysctl("net.ipv4.ip_local_port_range", "41000 41001")
probe = socket.create_connection((FAR, PORT), timeout=2)
probe.close()
lab.wait_until(lambda: ":4100" in lab.quiet("ss", "-tano", "state", "time-wait"), "TIME_WAIT")
timer = lab.show("ss", "-tanoH", "state", "time-wait", "sport", ">=", ":41000")
lab.expect("timewait,5" in timer and "sec" in timer, "the timer stands near 60 s")
lab.set_sysctl("net.ipv4.ip_local_port_range", f"40000 {40000 + COUNT - 1}")
lab.expect(round_of_connects(FAR) == 0, "and ports stay used up")

lab.say("Cure 1: tcp_tw_reuse=1, on the side that connects.")
lab.set_sysctl("net.ipv4.tcp_tw_reuse", "1")
lab.expect(round_of_connects(FAR) == COUNT, "all connect again, over the same ports")

lab.say("Cure 2: more ports. The tool sets both, and nothing waits for a port.")
lab.set_sysctl("net.ipv4.tcp_tw_reuse", "2")
lab.expect(round_of_connects(FAR) == 0, "as before the cure")
lab.tune_apply("--connections", "1000", "--churn", "1000/s", "--role", "generator")
lab.expect(round_of_connects(FAR) == COUNT, "all connect: the range is wide")
