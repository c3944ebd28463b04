#!/usr/bin/env python3
"""An accept queue that overflows, and its cure: somaxconn AND a listen() after it."""

import lab

COUNT = 42
PORT = 9000
COUNTERS = ("TcpExt.ListenOverflows", "TcpExt.ListenDrops")


def burst(wanted_connected: int) -> int:
    moved = lab.Moved(*COUNTERS)
    connected, waiting = lab.connect_many(
        ("127.0.0.1", PORT), COUNT, 5.0 if wanted_connected == COUNT else 0.5
    )
    print(f"{len(connected)} of {COUNT} connected, {len(waiting)} still wait")
    lab.show("ss", "-ltn", f"sport = :{PORT}")
    counters = moved.show()
    lab.expect(len(connected) == wanted_connected, f"{wanted_connected} of {COUNT} connect")
    for client in connected + waiting:
        client.close()
    return counters["TcpExt.ListenOverflows"]


def accept_all(listener) -> None:
    listener.setblocking(False)
    try:
        while True:
            listener.accept()[0].close()
    except BlockingIOError:
        pass


lab.enter()
lab.say("The server asks for a backlog of 1024, but somaxconn is 8 at that moment. Nobody accepts.")
lab.set_sysctl("net.core.somaxconn", "8")
server = lab.listen("127.0.0.1", PORT, 1024)
lab.expect(burst(9) >= COUNT - 9, "every SYN beyond backlog + 1 counts as an overflow")
accept_all(server)

lab.say("somaxconn is raised, the server goes on: Send-Q, the backlog in force, is still 8.")
lab.tune_apply("--connections", "1000", "--churn", "1000/s", "--role", "server")
lab.expect(burst(9) >= COUNT - 9, "raising somaxconn alone changes nothing")
accept_all(server)

lab.say("The server calls listen() again (a restart does): Send-Q follows, nothing overflows.")
server.listen(1024)
lab.expect(burst(COUNT) == 0, "no overflow any more")
