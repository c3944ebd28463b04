#!/usr/bin/env python3
"""Compression between resound and Python's `websockets` (pip install websockets).

Usage: deflate_websockets.py ws://HOST:PORT [--takeover]

The server is one with --deflate on, and --deflate-takeover if that is given here too. Every message must
come back as it was sent, and every handshake must agree on what the client asked for.
"""
import asyncio, json, os, sys

import websockets
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Deflate

MESSAGES = ["", "x", "héllo " * 100, "héllo " * 100, b"", os.urandom(1000), os.urandom(200_000), bytes(3_000_000),
            json.dumps([{"id": i, "name": f"user{i % 97}"} for i in range(20_000)]), "", "", "the end"]
OFFERS = [dict(client_max_window_bits=True), dict(server_max_window_bits=9, client_max_window_bits=True),
          dict(server_max_window_bits=12), dict(client_max_window_bits=9), dict(server_no_context_takeover=True),
          dict(client_no_context_takeover=True), dict(server_no_context_takeover=True, client_no_context_takeover=True)]


async def echo(url, offer, takeover):
    connect = websockets.connect(url + "/echo", extensions=[Deflate(**offer)], compression=None, max_size=None)
    async with connect as socket:
        answer = socket.response.headers.get("Sec-WebSocket-Extensions", "")
        assert answer.startswith("permessage-deflate"), f"{offer}: the answer is {answer!r}"
        for name, asked in offer.items():
            if name != "client_max_window_bits":
                value = f"{name}={asked}" if name.endswith("bits") else name
                assert value in answer, f"{offer}: the answer is {answer!r}"
        if not takeover:
            assert "server_no_context_takeover; client_no_context_takeover" in answer, answer
        for message in MESSAGES:
            await socket.send(message)
            assert await socket.recv() == message, f"{offer}: a message of {len(message)} changed"
        await socket.send(["frag", "men", "ted " * 1000])
        assert await socket.recv() == "fragmen" + "ted " * 1000


async def room(url):
    """One publisher, members with every window and one without compression: all get the same."""
    extensions = [[Deflate(server_max_window_bits=bits)] for bits in range(9, 16)] + [None]
    members = [await websockets.connect(url + "/broadcast/deflate", extensions=offers, compression=None, max_size=None)
               for offers in extensions]
    for message in ["short", "long " * 1000, os.urandom(5000)]:
        await members[0].send(message)
        for member in members:
            assert await member.recv() == message
    for member in members:
        await member.close()


async def bomb(url):
    """200 MB of zeros in 200 kB: more than any message may have."""
    connect = websockets.connect(url + "/echo", max_size=None)
    async with connect as socket:
        try:
            await socket.send(bytes(200_000_000))
            await socket.recv()
            raise SystemExit("a bomb was echoed")
        except websockets.ConnectionClosed:
            assert socket.close_code == 1009, socket.close_code


async def main(url, takeover):
    for offer in OFFERS:
        await echo(url, offer, takeover)
    await room(url)
    await bomb(url)
    print(f"websockets {websockets.__version__}: {len(OFFERS)} offers, a room and a bomb: ok")


asyncio.run(main(sys.argv[1].rstrip("/"), "--takeover" in sys.argv[2:]))
