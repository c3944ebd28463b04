"""What the demonstrations share: a network namespace of their own, commands shown with their output.

A demonstration never touches the host: `enter` starts it again inside a new network namespace, and
the kernel removes that with the last process in it, however the demonstration ends. Every claim is
checked by `expect`: a demonstration that would show something else ends with status 1.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import kernel  # noqa: E402  (a sibling of this folder)

TUNE = os.path.join(os.path.dirname(os.path.dirname(HERE)), "tune.sh")
INSIDE = "RESOUND_TUNE_DEMO_INSIDE"
TIME_LIMIT_S = 60


def enter() -> None:
    """Continues in a new network namespace with `lo` up; says why if that is impossible."""
    if os.environ.get(INSIDE) != "1":
        for tool in ("unshare", "ip", "ss"):
            if shutil.which(tool) is None:
                sys.exit(f"demo: {tool} is needed and was not found (packages util-linux, iproute2)")
        command = ["unshare", "--net", sys.executable, "-B", os.path.abspath(sys.argv[0]), *sys.argv[1:]]
        environment = {**os.environ, INSIDE: "1"}
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode != 0:
            print("demo: failed (a network namespace needs root)", file=sys.stderr)
        sys.exit(done.returncode)
    if not kernel.System().namespace().net_is_child:
        sys.exit("demo: not in a network namespace of its own: stopped before touching anything")
    signal.alarm(TIME_LIMIT_S)
    quiet("ip", "link", "set", "lo", "up")


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def quiet(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def show(*command: str) -> str:
    """Runs a command and prints both, as a reader would see them in a terminal."""
    text = quiet(*command)
    # ss pads for a terminal, and without one leaves out a blank in its heading.
    lines = [" ".join(line.replace("PortProcess", "Port").split()) for line in text.splitlines()]
    print("$ " + " ".join(command), *(line for line in lines if line), sep="\n", flush=True)
    return text


def set_sysctl(key: str, value: str) -> None:
    print(f"$ sysctl -w {key}={value!r}", flush=True)
    kernel.System().write("/proc/sys/" + key.replace(".", "/"), value)


def tune_apply(*target: str) -> None:
    """The tool itself is the cure; prior values go to a directory that is removed."""
    print("$ scripts/tune.sh apply --yes " + " ".join(target), flush=True)
    with tempfile.TemporaryDirectory() as state_dir:
        done = subprocess.run(
            [TUNE, "apply", "--yes", "--state-dir", state_dir, *target],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 2:
        sys.exit(done.stderr)
    print(*(line for line in done.stdout.splitlines() if line.startswith("written")), sep="\n", flush=True)


class Moved:
    """What counters moved since this was made."""

    def __init__(self, *names: str):
        self.names = names
        self.before = kernel.read_counters(kernel.System())

    def read(self) -> dict[str, int]:
        now = kernel.read_counters(kernel.System())
        return {name: now.get(name, 0) - self.before.get(name, 0) for name in self.names}

    def show(self) -> dict[str, int]:
        moved = self.read()
        print("counters: " + ", ".join(f"{name} {value:+d}" for name, value in moved.items()), flush=True)
        return moved


def listen(address: str, port: int, backlog: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(backlog)
    return listener


def connect_many(
    address: tuple[str, int], count: int, wait_s: float = 0.5
) -> tuple[list[socket.socket], list[socket.socket]]:
    """(connected, still waiting) after `wait_s`; less if all are through."""
    waiting = []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        waiting.append(client)
    connected: list[socket.socket] = []
    deadline = time.monotonic() + wait_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        _, ready, _ = select.select([], waiting, [], left)
        connected += ready
        waiting = [each for each in waiting if each not in ready]
    return connected, waiting


def expect(claim: bool, words: str) -> None:
    if not claim:
        print(f"demo: NOT as claimed: {words}", file=sys.stderr)
        sys.exit(1)


def wait_until(condition, what: str, limit_s: float = 5.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            expect(False, f"waited {limit_s} s for: {what}")
        time.sleep(0.01)
