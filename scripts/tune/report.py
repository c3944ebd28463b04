"""What people and programs read: the table and the JSON document. Decides nothing.

The JSON is described key by key in docs/tuning.md; a key that changes its meaning or goes away
raises SCHEMA_VERSION, a new one does not.
"""

from __future__ import annotations

import re
import textwrap

from mistakes import Mistake
from state import Outcome
from view import ABSENT, OK, OPTIONAL, STATUSES, UNKNOWN, WANTED, Evidence, Finding, View

SCHEMA = "resound-tune"
SCHEMA_VERSION = 1
WIDTH = 110


# -- JSON --------------------------------------------------------------------------------------------------


def as_json(
    command: str, view: View, findings: list[Finding], mistakes: list[Mistake], exit_code: int
) -> dict:
    target, system = view.target, view.system
    holds = first_limit(findings)
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "exit_code": exit_code,
        "target": {
            "connections_count": target.connections_count,
            "churn_per_s": target.churn_per_s,
            "role": target.role,
            "port": target.port,
            "pid": target.pid,
            "is_declared": target.is_declared,
        },
        "host": {
            "kernel_release": system.kernel_release(),
            "boot_id": system.boot_id(),
            "netns_inode": view.namespace.inode,
            "netns_cookie": view.namespace.cookie,
            "child_namespace_reasons": view.namespace.child_reasons,
            "memory_bytes": system.memory_bytes(),
            "page_bytes": system.page_bytes(),
            "has_cap_sys_resource": system.has_cap_sys_resource(),
        },
        "sample_s": round(view.sample.sample_s, 3),
        "first_limit": None
        if holds is None
        else {"name": holds.name, "holds_connections_count": holds.holds_connections_count},
        "knobs": [_knob_json(finding) for finding in findings],
        "mistakes": [vars(mistake) for mistake in mistakes],
        "summary": {f"{status}_count": sum(each.status == status for each in findings) for status in STATUSES}
        | {"mistakes_count": len(mistakes)},
    }


def _knob_json(finding: Finding) -> dict:
    return {
        "name": finding.name,
        "status": finding.status,
        "current": _value_json(finding, finding.current),
        "wanted": _value_json(finding, finding.wanted),
        "unit": finding.unit,
        "why": finding.why,
        "scope": finding.scope,
        "restart_needed": bool(finding.restart),
        "restart_why": finding.restart,
        "evidence": [vars(each) for each in finding.evidence],
        "notes": finding.notes,
        "remedy": finding.remedy,
        "holds_connections_count": finding.holds_connections_count,
        "writes": [vars(each) for each in finding.writes],
    }


def _value_json(finding: Finding, text: str | None):
    """A number, a list of numbers, or a word; a set of ports stays the text the kernel prints."""
    if text is None or finding.name.endswith("ip_local_reserved_ports"):
        return text
    if not re.fullmatch(r"-?\d+( -?\d+)*", text):
        return text
    numbers = [int(word) for word in text.split()]
    return numbers[0] if len(numbers) == 1 else numbers


def first_limit(findings: list[Finding]) -> Finding | None:
    """The knob that stops the connections first, as things stand."""
    known = [each for each in findings if each.holds_connections_count is not None]
    return min(known, key=lambda each: each.holds_connections_count, default=None)


# -- the table ---------------------------------------------------------------------------------------------


def heading(view: View) -> str:
    target = view.target
    where = view.namespace.child_reasons[0] if view.namespace.is_child else "the initial namespaces"
    text = (
        f"Target: {target.connections_count:,} connections, {target.churn_per_s:,} new ones/s, "
        f"this machine is the {target.role}."
    )
    if not target.is_declared:
        text += "\n        (assumed: say --connections, --churn and --role)"
    return f"{text}\nHere:   Linux {view.system.kernel_release()}, {where}"


def table(findings: list[Finding]) -> str:
    """Good ones first and briefly in order, so that what needs a reader stands last, at the prompt."""
    rank = {OK: 0, ABSENT: 1, UNKNOWN: 2, OPTIONAL: 3, WANTED: 4}
    return "\n".join(_row(each) for each in sorted(findings, key=lambda each: rank[each.status]))


def _row(finding: Finding) -> str:
    unit = "" if finding.unit in ("mode", "word", "flag") else f" {finding.unit}"
    if finding.current is None:
        value = "-"
    elif finding.unit == "ports":
        value = (finding.current or "none").replace(" ", " to ")
    else:
        value = _grouped(finding.current) + unit
    if finding.status in (WANTED, OPTIONAL, UNKNOWN) and finding.wanted is not None:
        wanted = (
            finding.wanted.replace(" ", " to ")
            if finding.unit == "ports"
            else _grouped(finding.wanted) + unit
        )
        value = f"{value} -> {wanted}" if finding.current is not None else f"unseen -> {wanted}"
    lines = [f"{finding.status:<9}{finding.name:<34} {value}  [{finding.scope}]"]
    lines += _wrapped("", finding.why)
    if finding.evidence:
        lines += _wrapped("now: ", ", ".join(_evidence(each) for each in finding.evidence))
    for note in finding.notes:
        lines += _wrapped("", note)
    if finding.status in (WANTED, OPTIONAL, UNKNOWN):
        if finding.restart:
            lines += _wrapped("restart needed: ", finding.restart)
        if finding.remedy:
            lines += _wrapped("do: ", finding.remedy)
        elif finding.writes:
            lines += _wrapped("do: ", "tune.sh apply --yes with this target")
    return "\n".join(lines)


def _grouped(text: str) -> str:
    return " ".join(f"{int(word):,}" if re.fullmatch(r"\d{5,}", word) else word for word in text.split())


def _wrapped(label: str, text: str) -> list[str]:
    indent = " " * 9
    return textwrap.wrap(
        label + text, WIDTH, initial_indent=indent, subsequent_indent=indent + " " * len(label)
    )


def _evidence(each: Evidence) -> str:
    moved = "" if each.delta is None else f" ({each.delta:+d})"
    return f"{each.name} {each.total:,}{moved}{' (!)' if each.is_alarming else ''}"


def mistakes_text(mistakes: list[Mistake]) -> str:
    lines = []
    for each in mistakes:
        lines.append(f"mistake  {each.file}:{each.line_number}  {each.key} = {each.value}")
        lines += _wrapped("", each.mistake)
        lines += _wrapped("instead: ", each.instead)
    return "\n".join(lines)


def summary(view: View, findings: list[Finding], mistakes: list[Mistake]) -> str:
    by_status = {status: [each for each in findings if each.status == status] for status in STATUSES}
    lines = [
        f"{len(by_status[WANTED])} wanted, {len(by_status[OPTIONAL])} optional, {len(by_status[UNKNOWN])} unseen, "
        f"{len(by_status[ABSENT])} absent, {len(by_status[OK])} ok, {len(mistakes)} mistakes in sysctl files."
    ]
    limit = first_limit(findings)
    if limit is not None:
        lines.append(
            f"As it stands {limit.holds_connections_count:,} connections fit; {limit.name} is the first limit."
        )
    if view.sample.sample_s:
        lines.append(
            f"Counters: since boot, and in brackets what {view.sample.sample_s:.1f} s added; (!) alarming."
        )
    else:
        lines.append("Counters: since boot; (!) alarming.")
    return "\n".join(lines)


def outcomes_text(outcomes: list[Outcome]) -> str:
    lines = []
    for each in outcomes:
        before, after = each.prior or "(none)", each.value or "(none)"
        lines.append(f"{each.outcome:<10}{each.path}: {before} -> {after}")
        if each.reason:
            lines += _wrapped("", each.reason)
    return "\n".join(lines)
