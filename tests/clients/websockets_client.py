#!/usr/bin/env python3
"""Talks to a running server with Python's `websockets`; exits 0 only if every check holds.

    websockets_client.py URL [--deflate] [--subprotocol NAME]... [--terminate PID]

URL is ws://HOST:PORT or wss://HOST:PORT without a path. --deflate offers permessage-deflate and requires it.
--subprotocol names what the server was started with. --terminate sends SIGTERM to PID at the end and checks the
drain.
Every wait has a deadline, and no deadline is part of what is checked: it only ends a hung run.
"""
import argparse, asyncio, http.client, os, random, signal, sys, traceback
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

MIB = 1 << 20
# Each border of the payload length's three forms (RFC 6455 §5.2), and lengths that need many reads.
LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, MIB, 16 * MIB]
# What the server refuses by default, from the header alone: --message-size-max is 32 MiB.
TOO_LONG = 32 * MIB + 1
CHECK_DEADLINE_S = 120

options = None


def open_ws(path="/echo", **settings):
    settings.setdefault("compression", "deflate" if options.deflate else None)
    return connect(options.url + path, max_size=None, max_queue=None, ping_interval=None, open_timeout=30, **settings)


def octets(length, seed=1):
    return random.Random(seed).randbytes(length)


def text(length_in_octets):
    """Text of exactly so many octets of UTF-8, with characters of one to four of them at every alignment."""
    pattern = "aß€𝄞z"  # 1 + 2 + 3 + 4 + 1 octets
    whole, rest = divmod(length_in_octets, len(pattern.encode()))
    return pattern * whole + "x" * rest


def same(got, want, what):
    if got == want and type(got) is type(want):
        return
    shown = [f"{type(v).__name__} of {len(v)}, beginning {v[:20]!r}" if hasattr(v, "__len__") else repr(v) for v in (got, want)]
    raise AssertionError(f"{what}: got {shown[0]}, expected {shown[1]}")


async def every_length_comes_back_as_text_and_binary():
    async with open_ws() as ws:
        if options.deflate:
            same([type(e).__name__ for e in ws.protocol.extensions], ["PerMessageDeflate"], "extensions agreed")
        else:
            same(ws.protocol.extensions, [], "extensions agreed")
        for length in LENGTHS:
            for message in (octets(length), text(length)):
                await ws.send(message)
                same(await ws.recv(), message, f"{length} octets")


async def the_root_path_echoes_too():
    async with open_ws("/") as ws:
        await ws.send("root")
        same(await ws.recv(), "root", "echo at /")


async def pipelined_small_messages_keep_their_order():
    count = 20_000
    async with open_ws() as ws:

        async def receive():
            for index in range(count):
                same(await ws.recv(), str(index) if index % 2 else str(index).encode(), f"message {index}")

        receiver = asyncio.create_task(receive())
        for index in range(count):
            await ws.send(str(index) if index % 2 else str(index).encode())
        await receiver


async def large_messages_in_flight_both_ways_keep_their_order():
    messages = [octets(MIB + index, seed=index) for index in range(16)]
    async with open_ws() as ws:

        async def send():
            for message in messages:
                await ws.send(message)

        sender = asyncio.create_task(send())
        for index, message in enumerate(messages):
            same(await ws.recv(), message, f"message {index}")
        await sender


async def fragments_come_back_as_one_message():
    async with open_ws() as ws:
        for parts in (
            ["one", "", "two", ""],
            ["", "late"],
            [b"", b""],
            [octets(size, seed=size) for size in (1, 125, 126, 65535, 65536, 0, MIB)],
            ["€" * count for count in range(200)],
        ):
            await ws.send(parts)
            same(await ws.recv(), type(parts[0])().join(parts), f"{len(parts)} fragments")


async def pings_between_fragments_are_answered_before_the_message_ends():
    async with open_ws() as ws:
        pongs = []

        async def parts():
            for index in range(5):
                yield f"part {index};"
                await asyncio.wait_for(await ws.ping(f"between {index}".encode()), 30)
                pongs.append(index)

        await ws.send(parts())
        same(pongs, list(range(5)), "pongs")
        same(await ws.recv(), "".join(f"part {index};" for index in range(5)), "the message around them")


async def pongs_carry_the_data_of_their_pings():
    async with open_ws() as ws:
        for data in (b"", b"x", octets(125)):
            # websockets completes the waiter only for a pong with this very data.
            await asyncio.wait_for(await ws.ping(data), 30)
        await ws.pong(b"unsolicited")  # RFC 6455 §5.5.3: no response expected
        await ws.send("still here")
        same(await ws.recv(), "still here", "after an unsolicited pong")


async def close_replies_echo_the_status_code():
    for code, reason in ((1000, ""), (1000, "bye"), (1001, "away"), (1003, ""), (1011, ""), (3000, "ü" * 61), (4999, "x" * 123)):
        async with open_ws() as ws:
            await ws.close(code, reason)
            same(ws.protocol.close_rcvd and ws.protocol.close_rcvd.code, code, "status code of the reply")
            same(ws.protocol.close_rcvd_then_sent, False, "who closed first")


async def replies_owed_at_the_close_arrive_before_it():
    async with open_ws() as ws:
        for index in range(100):
            await ws.send(f"{index}")
        await ws.close()
        received = [message async for message in ws]
        same(received, [str(index) for index in range(100)], "echoes sent before the Close")


async def broken(path, expected_code, send):
    ws = await open_ws(path)
    try:
        await send(ws)
        got = await ws.recv()
    except Exception as error:
        # How a send ends that the server's Close overtook is the client's affair: what counts is the Close.
        await ws.wait_closed()
        received = ws.protocol.close_rcvd
        same(received and received.code, expected_code, f"status code of the server's Close ({error!r})")
    else:
        raise AssertionError(f"expected a Close {expected_code}, got a message {got[:40]!r}")


async def invalid_utf_8_is_answered_with_1007():
    await broken("/echo", 1007, lambda ws: ws.send(b"ab\xc0\xaf", text=True))


async def a_message_beyond_the_limit_is_answered_with_1009():
    await broken("/echo", 1009, lambda ws: ws.send(bytes(TOO_LONG)))


async def subprotocols_follow_the_order_of_the_client():
    if not options.subprotocol:
        async with open_ws(subprotocols=["nobody.knows"]) as ws:
            same(ws.subprotocol, None, "subprotocol of a server without any")
        return
    backwards = options.subprotocol[::-1]
    for offered in (options.subprotocol, ["nobody.knows", *backwards]):
        async with open_ws(subprotocols=offered) as ws:
            known = [name for name in offered if name in options.subprotocol]
            same(ws.subprotocol, known[0], f"subprotocol chosen from {offered}")


async def many_connections_echo_at_once():
    async def one(index):
        async with open_ws() as ws:
            for round_index in range(10):
                message = f"connection {index} round {round_index}"
                await ws.send(message)
                same(await ws.recv(), message, "echo")

    await asyncio.gather(*(one(index) for index in range(200)))


async def members_of_a_room(path, count):
    return await asyncio.gather(*(open_ws(path).__aenter__() for _ in range(count)))


async def leave(members):
    await asyncio.gather(*(member.close() for member in members))


async def every_member_gets_every_message_once_and_in_its_publishers_order():
    # Enough members that SO_REUSEPORT puts some on every worker.
    member_count, publisher_count, message_count = 32, 4, 250
    members = await members_of_a_room("/broadcast/complete", member_count)

    async def publish(publisher):
        for index in range(message_count):
            message = f"{publisher} {index}"
            await members[publisher].send(message if index % 2 else message.encode())

    async def receive(member):
        next_index = [0] * publisher_count
        for _ in range(publisher_count * message_count):
            message = await member.recv()
            name = message if isinstance(message, str) else message.decode()
            publisher, index = map(int, name.split())
            same(index, next_index[publisher], f"next message of publisher {publisher}")
            same(isinstance(message, str), index % 2 == 1, "whether it is text")
            next_index[publisher] += 1

    await asyncio.gather(*map(receive, members), *map(publish, range(publisher_count)))
    # Exactly once: what comes next is the next message, not a second copy.
    await members[-1].send("end")
    for member in members:
        same(await member.recv(), "end", "the message after the last")
    await leave(members)


async def broadcast_keeps_every_length():
    members = await members_of_a_room("/broadcast/lengths", 6)
    for length in (length for length in LENGTHS if length <= MIB):
        for message in (octets(length), text(length)):
            await members[0].send(message)
            for index, member in enumerate(members):
                same(await member.recv(), message, f"{length} octets at member {index}")
    await leave(members)


async def fragments_are_broadcast_as_one_message():
    members = await members_of_a_room("/broadcast/fragments", 6)
    await members[0].send(["to ", "", "everyone"])
    for member in members:
        same(await member.recv(), "to everyone", "the message")
    await leave(members)


async def rooms_do_not_hear_each_other():
    rooms = ["/broadcast/red", "/broadcast/blue", "/broadcast", "/broadcast/red/deep"]
    members = [await members_of_a_room(room, 4) for room in rooms]
    for room, inside in zip(rooms, members):
        await inside[0].send(room)
    for room, inside in zip(rooms, members):
        for member in inside:
            # A message of another room would be here first, or be the one that follows.
            same(await member.recv(), room, "first message of the room")
            await inside[0].ping()
    for room, inside in zip(rooms, members):
        await inside[-1].send(room + " again")
        for member in inside:
            same(await member.recv(), room + " again", "second message of the room")
    await asyncio.gather(*map(leave, members))


async def a_room_outlives_members_that_leave_or_vanish():
    members = await members_of_a_room("/broadcast/leavers", 12)
    await members[0].close()
    members[1].transport.abort()
    stay = members[2:]
    for index in range(50):
        await stay[index % len(stay)].send(f"{index}")
        for member in stay:
            same(await member.recv(), f"{index}", "message after two members left")
    await leave(stay)


async def plain_requests_get_an_honest_answer():
    def request(method, path):
        url = urlsplit(options.url)
        Connection = http.client.HTTPSConnection if url.scheme == "wss" else http.client.HTTPConnection
        connection = Connection(url.netloc, timeout=30)
        answers = []
        for _ in range(2):  # the second one needs keep-alive and a right Content-Length
            connection.request(method, path)
            response = connection.getresponse()
            answers.append((response.status, response.getheader("Content-Length"), len(response.read())))
        same(answers[0], answers[1], f"{method} {path} on the same connection again")
        connection.close()
        return answers[0]

    status, length, body = await asyncio.to_thread(request, "GET", "/")
    same((status, str(body)), (426, length), "GET /")
    if not body:
        raise AssertionError("GET / has an empty body: it should say what this is")
    same(await asyncio.to_thread(request, "HEAD", "/"), (426, length, 0), "HEAD /")
    same((await asyncio.to_thread(request, "GET", "/healthz"))[0], 200, "status of GET /healthz")


async def sigterm_closes_everyone_with_1001():
    members = [await open_ws("/echo").__aenter__() for _ in range(10)]
    os.kill(options.terminate, signal.SIGTERM)
    for member in members:
        try:
            await member.recv()
        except ConnectionClosed as error:
            same(error.rcvd and error.rcvd.code, 1001, "status code of the drain's Close")


CHECKS = [
    every_length_comes_back_as_text_and_binary,
    the_root_path_echoes_too,
    pipelined_small_messages_keep_their_order,
    large_messages_in_flight_both_ways_keep_their_order,
    fragments_come_back_as_one_message,
    pings_between_fragments_are_answered_before_the_message_ends,
    pongs_carry_the_data_of_their_pings,
    close_replies_echo_the_status_code,
    replies_owed_at_the_close_arrive_before_it,
    invalid_utf_8_is_answered_with_1007,
    a_message_beyond_the_limit_is_answered_with_1009,
    subprotocols_follow_the_order_of_the_client,
    many_connections_echo_at_once,
    every_member_gets_every_message_once_and_in_its_publishers_order,
    broadcast_keeps_every_length,
    fragments_are_broadcast_as_one_message,
    rooms_do_not_hear_each_other,
    a_room_outlives_members_that_leave_or_vanish,
    plain_requests_get_an_honest_answer,
]


async def run():
    failed = 0
    checks = CHECKS + ([sigterm_closes_everyone_with_1001] if options.terminate else [])
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            await asyncio.wait_for(check(), CHECK_DEADLINE_S)
            print(f"ok      {name}", flush=True)
        except Exception as error:  # whatever went wrong is this check's failure, and the next one still runs
            failed += 1
            where = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in reversed(where) if f.filename == __file__), "?")
            why = str(error) or ("nothing for so long" if isinstance(error, TimeoutError) else "no message")
            print(f"FAILED  {name}: {type(error).__name__}: {why} (line {line})", flush=True)
    print(f"websockets: {len(checks) - failed} of {len(checks)} checks passed")
    return failed


def main():
    global options
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--subprotocol", action="append", default=[])
    parser.add_argument("--terminate", type=int, metavar="PID")
    options = parser.parse_args()
    sys.exit(1 if asyncio.run(run()) else 0)


if __name__ == "__main__":
    main()
