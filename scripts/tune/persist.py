"""Two files that make the values survive a boot: one in sysctl.d, one systemd drop-in.

Each is written atomically and only if its content changes. A file that is not ours (without our
first line) is never overwritten. Start at `desired`.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

import mistakes
from kernel import TuneError, sync_directory, write_atomically
from state import State
from view import GLOBAL, NAMESPACE, Finding, View

SYSCTL_FILE = "/etc/sysctl.d/90-resound-tune.conf"
DROP_IN_NAME = "50-resound-tune.conf"
SYSTEMD_NOFILE_HARD = 524288  # systemd's default since 240; LimitNOFILE=N alone would lower it to N
MARK = "# Written by resound's scripts/tune.sh persist; remove with: scripts/tune.sh persist --remove"


@dataclass
class File:
    path: str
    text: str
    # planned, written, unchanged, removed
    outcome: str = "planned"


def drop_in_file(unit: str) -> str:
    return f"/etc/systemd/system/{unit}.d/{DROP_IN_NAME}"


def desired(view: View, findings: list[Finding], state: State, unit: str) -> list[File]:
    """What the target wants, what we applied, and what we persisted earlier."""
    if view.namespace.is_child:
        raise TuneError(
            f"{view.namespace.child_reasons[0]}: persist describes the boot of the host, run it there"
        )
    earlier = {each.key: each.value for each in mistakes.scan(view) if each.file == SYSCTL_FILE}
    lines = []
    for finding in findings:
        if finding.sysctl_key is None or finding.scope not in (NAMESPACE, GLOBAL) or finding.wanted is None:
            continue
        entry = state.entry("/proc/sys/" + finding.sysctl_key.replace(".", "/"))
        is_ours = entry is not None and finding.current in entry.ours
        if finding.writes or is_ours or finding.sysctl_key in earlier:
            value = finding.writes[0].value if finding.writes else finding.current
            lines += [f"# {finding.why}", f"{finding.sysctl_key} = {value}"]
    files = []
    target = view.target
    heading = f"# For {target.connections_count} connections and {target.churn_per_s} new ones a second, as a {target.role}."
    known = {finding.sysctl_key for finding in findings if finding.wanted is not None}
    for key, value in earlier.items():
        if key not in known:  # such as a module that is not loaded just now
            lines += ["# Kept from an earlier persist; this kernel does not have it now.", f"{key} = {value}"]
    if lines:
        files.append(File(SYSCTL_FILE, "\n".join([MARK, heading, *lines]) + "\n"))
    if target.is_server:
        limits = f"[Service]\nLimitNOFILE={_nofile(view, unit)}\n"
        files.append(File(drop_in_file(unit), f"{MARK}\n{heading}\n{limits}"))
    return files


def _nofile(view: View, unit: str) -> str:
    """`soft:hard`, never below what the unit has: a drop-in replaces both numbers."""
    soft = view.target.descriptors_count
    hard = max(soft, SYSTEMD_NOFILE_HARD)
    places = ("/usr/lib/systemd/system", "/lib/systemd/system", "/etc/systemd/system")
    files = [f"{place}/{unit}" for place in places]
    for place in places:
        files += view.system.glob(f"{place}/{unit}.d/*.conf")
    for file in files:
        for found in re.findall(r"^\s*LimitNOFILE\s*=\s*(\S+)", view.system.read(file) or "", re.M):
            numbers = [math.inf if word == "infinity" else int(word) for word in found.split(":")]
            soft, hard = max(soft, numbers[0]), max(hard, numbers[-1])
    return ":".join("infinity" if math.isinf(each) else str(each) for each in (soft, hard))


def write(view: View, files: list[File], is_dry_run: bool) -> None:
    for file in files:
        old = view.system.read(file.path)
        if old is not None and not old.startswith(MARK):
            raise TuneError(f"{file.path} is there and not ours: move it away first; nothing was written")
    for file in files:
        if view.system.read(file.path) == file.text:
            file.outcome = "unchanged"
        elif not is_dry_run:
            try:
                write_atomically(view.system.path(file.path), file.text)
            except OSError as error:
                raise TuneError(f"cannot write {file.path}: {error.strerror}; run as root") from error
            file.outcome = "written"


def remove(view: View, unit: str, is_dry_run: bool) -> list[File]:
    files = []
    for path in (SYSCTL_FILE, drop_in_file(unit)):
        old = view.system.read(path)
        if old is None or not old.startswith(MARK):
            continue
        files.append(File(path, old))
        if is_dry_run:
            continue
        real = view.system.path(path)
        try:
            os.unlink(real)
            sync_directory(os.path.dirname(real))
        except OSError as error:
            raise TuneError(f"cannot remove {path}: {error.strerror}; run as root") from error
        files[-1].outcome = "removed"
    return files


def overrides(view: View, files: list[File]) -> list[str]:
    """Lines of later files that would undo ours at boot."""
    ours = {}
    for file in files:
        if file.path == SYSCTL_FILE:
            for line in file.text.splitlines():
                if not line.startswith("#"):
                    key, _, value = line.partition(" = ")
                    ours[key] = value
    order = mistakes.boot_files(view)
    later = [each for each in order if each == "/etc/sysctl.conf" or _sorts_after(each)]
    return [
        f"{each.file}:{each.line_number} sets {each.key} = {each.value} after our {ours[each.key]}: it wins at boot"
        for each in mistakes.scan(view)
        if each.file in later and each.key in ours and each.value != ours[each.key]
    ]


def _sorts_after(path: str) -> bool:
    return path != SYSCTL_FILE and os.path.basename(path) > os.path.basename(SYSCTL_FILE)
