"""Values of kernel files: one spelling each, and how two are merged without taking anything away.

A merge answers with a value that is at least as generous as both. That is the whole of "raise
only": no knob is written with a value that its merge did not produce. Start at `raise_each`.
"""

from __future__ import annotations

import re
from typing import Callable

Merge = Callable[[str, str], str]


def canonical(name: str, text: str) -> str:
    """One spelling for what the kernel prints in several: blanks, `[chosen]` words, port lists."""
    if name.endswith("/ip_local_reserved_ports"):
        return format_ports(parse_ports(text))
    chosen = re.search(r"\[(\S+)\]", text)
    if chosen and "/transparent_hugepage/" in name:
        return chosen.group(1)
    return " ".join(text.split())


def raise_each(current: str, wanted: str) -> str:
    """Number by number the larger: `4096 16384 4194304` keeps what is already higher."""
    pairs = zip(map(int, current.split()), map(int, wanted.split()))
    return " ".join(str(max(pair)) for pair in pairs)


def lower_each(current: str, wanted: str) -> str:
    """For the few knobs where less is the generous side; used only where asked for by name."""
    pairs = zip(map(int, current.split()), map(int, wanted.split()))
    return " ".join(str(min(pair)) for pair in pairs)


def widen_range(current: str, wanted: str) -> str:
    (low, high), (low_wanted, high_wanted) = (map(int, text.split()) for text in (current, wanted))
    return f"{min(low, low_wanted)} {max(high, high_wanted)}"


def join_ports(current: str, wanted: str) -> str:
    return format_ports(parse_ports(current) | parse_ports(wanted))


def prefer(*worst_to_best: str) -> Merge:
    """For words and modes: the one further right. An unknown current value is left alone."""

    def merge(current: str, wanted: str) -> str:
        if current not in worst_to_best:
            return current
        return max(current, wanted, key=worst_to_best.index)

    return merge


def parse_ports(text: str) -> frozenset[int]:
    """`8080,9000-9002` as the kernel writes it."""
    ports: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            ports.update(range(int(first), int(last or first) + 1))
    return frozenset(ports)


def format_ports(ports: frozenset[int]) -> str:
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and port == runs[-1][1] + 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def power_of_two_at_least(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def parse_count(text: str) -> int:
    """`1000000`, `1_000_000`, `200k`, `1M`."""
    found = re.fullmatch(r"([0-9][0-9_]*)([kKmM]?)", text)
    if not found:
        raise ValueError(f"{text!r} is not a count (examples: 200000, 200k, 1M)")
    return int(found.group(1)) * {"": 1, "k": 1_000, "m": 1_000_000}[found.group(2).lower()]


def parse_rate(text: str) -> int:
    """`2000/s`, or `2000`, which means the same."""
    return parse_count(text.removesuffix("/s"))
