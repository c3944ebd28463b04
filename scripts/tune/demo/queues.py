#!/usr/bin/env python3
"""What Recv-Q and Send-Q say: connections at a listener, octets everywhere else."""

import lab

PORT = 9000


def columns(expression: str) -> tuple[int, int]:
    recv_q, send_q = lab.quiet("ss", "-tnH", expression).split()[1:3]
    return int(recv_q), int(send_q)


lab.enter()
lab.say("A listener: Recv-Q counts connections nobody accepted yet, Send-Q is the backlog in force.")
server = lab.listen("127.0.0.1", PORT, 100)
clients, _ = lab.connect_many(("127.0.0.1", PORT), 5)
listing = lab.show("ss", "-ltn", f"sport = :{PORT}")
lab.expect(listing.splitlines()[1].split()[1:3] == ["5", "100"], "Recv-Q 5, Send-Q 100")
accepted = [server.accept()[0] for _ in clients]
listing = lab.show("ss", "-ltn", f"sport = :{PORT}")
lab.expect(listing.splitlines()[1].split()[1:3] == ["0", "100"], "Recv-Q 0 after accept()")

lab.say(
    "A server that does not read: 100 messages of 64 octets wait in its Recv-Q. The server is the slow one."
)
client = clients[0]
peer = next(each for each in accepted if each.getpeername() == client.getsockname())
for _ in range(100):
    client.send(bytes(64))
of_server = f"sport = :{PORT} and dport = :{client.getsockname()[1]}"
of_client = f"dport = :{PORT} and sport = :{client.getsockname()[1]}"
lab.wait_until(lambda: columns(of_server) == (6400, 0), "Recv-Q 6400")
lab.show("ss", "-tn", of_server)

lab.say(
    "A client that does not read: the server's window fills, then its Send-Q grows. The client (or the path) is slow."
)
peer.setblocking(False)
sent = 0
try:
    while sent < 64 << 20:
        sent += peer.send(bytes(65536))
except BlockingIOError:
    pass
lab.wait_until(
    lambda: columns(of_server)[1] + columns(of_client)[0] == sent, "every octet is in one of the two queues"
)
lab.show("ss", "-tn", of_server)
lab.show("ss", "-tn", of_client)
(server_recv, server_send), (client_recv, _) = columns(of_server), columns(of_client)
lab.expect(server_recv == 6400 and server_send > 0 and client_recv > 0, "Send-Q here, Recv-Q there")
print(f"the server wrote {sent}: {client_recv} unread at the client, {server_send} not yet acknowledged")
