"""Changing values and taking the changes back.

The rule that everything here serves: before the first write, a file on disk says what every value
was. So whatever kills the tool at whatever moment, `revert` works. Order: `apply` saves all prior
values (atomically, with fsync), then writes; `revert` restores what is still ours, last one first,
and forgets an entry only after it was restored. Start at `apply`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field

from kernel import Namespace, System, TuneError, sync_directory, write_atomically
from values import canonical
from view import Finding, View, is_refused

STATE_VERSION = 1


@dataclass
class Entry:
    name: str
    path: str
    # The value before our first write.
    prior: str
    # Every value we wrote or meant to write: if the file holds one of them, it is still ours.
    ours: list[str]


@dataclass
class Outcome:
    """What became of one file."""

    name: str
    path: str
    prior: str
    value: str
    # planned, written, refused, failed; restored, unchanged, conflict
    outcome: str
    reason: str = ""


@dataclass
class State:
    """What we changed in one network namespace since its boot."""

    path: str
    boot_id: str
    netns_inode: int | None
    netns_cookie: int | None
    kernel_release: str
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def load(cls, system: System, namespace: Namespace, directory: str) -> "tuple[State, str]":
        """The state of this boot and namespace, and why an older one was put aside (or "")."""
        path = os.path.join(directory, f"{namespace.key}.json")
        fresh = cls(path, system.boot_id(), namespace.inode, namespace.cookie, system.kernel_release())
        try:
            with open(path, encoding="utf-8") as file:
                raw = json.load(file)
            if raw["version"] != STATE_VERSION:
                raise TuneError(f"{path} is of version {raw['version']}; this tool reads {STATE_VERSION}")
            loaded = cls(
                path,
                raw["boot_id"],
                raw["netns_inode"],
                raw["netns_cookie"],
                raw["kernel_release"],
                [Entry(**entry) for entry in raw["entries"]],
            )
        except FileNotFoundError:
            return fresh, ""
        except (ValueError, KeyError, TypeError) as error:
            raise TuneError(
                f"{path} is not a state file of this tool ({error}): look at it, then move it away"
            ) from error
        if loaded.boot_id != fresh.boot_id:
            return fresh, f"{path} is from before the last boot, which undid its changes"
        if (loaded.netns_inode, loaded.netns_cookie) != (fresh.netns_inode, fresh.netns_cookie):
            return fresh, f"{path} belongs to a network namespace that is gone"
        return loaded, ""

    def save(self) -> None:
        """Atomic and synced; without entries there is no file."""
        if not self.entries:
            if os.path.exists(self.path):
                os.unlink(self.path)
                sync_directory(os.path.dirname(self.path))
            return
        raw = {key: value for key, value in asdict(self).items() if key != "path"}
        text = json.dumps({"version": STATE_VERSION, "saved_unix_s": int(time.time()), **raw}, indent=2)
        write_atomically(self.path, text + "\n")

    def entry(self, path: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.path == path), None)

    def remember(self, name: str, path: str, prior: str, value: str) -> None:
        """Ours before and still ours: keep the older prior value. Else somebody set it: start anew."""
        known = self.entry(path)
        if known is not None and prior in known.ours + [known.prior]:
            if value not in known.ours:
                known.ours.append(value)
            return
        if known is not None:
            self.entries.remove(known)
        self.entries.append(Entry(name, path, prior, [value]))


def plan(view: View, findings: list[Finding]) -> list[Outcome]:
    """What apply would do, in order."""
    outcomes = []
    for finding in findings:
        refused = is_refused(view, finding)
        for write in finding.writes:
            reason = f"{view.namespace.child_reasons[0]}, this knob is the whole host's" if refused else ""
            outcome = "refused" if refused else "planned"
            outcomes.append(Outcome(finding.name, write.path, write.prior, write.value, outcome, reason))
    return outcomes


def apply(system: System, state: State, outcomes: list[Outcome]) -> None:
    """Carries out the planned ones and notes in each what became of it."""
    planned = [each for each in outcomes if each.outcome == "planned"]
    if not planned:
        return
    closed = [each.path for each in planned if not system.is_writable(each.path)]
    if closed:
        raise TuneError(f"cannot write {', '.join(closed)}: run as root; nothing was changed")
    for each in planned:
        state.remember(each.name, each.path, each.prior, each.value)
    state.save()
    for each in planned:
        try:
            system.write(each.path, each.value)
        except OSError as error:
            each.outcome, each.reason = "failed", f"the kernel refused it: {error.strerror}"
            continue
        kept = canonical(each.path, system.read(each.path) or "")
        each.outcome = "written"
        if kept != each.value:
            each.reason = f"the kernel made it {kept}"
            state.remember(each.name, each.path, each.value, kept)
            state.save()


def revert(system: System, state: State, is_dry_run: bool, forget: bool) -> list[Outcome]:
    """Last change first. An entry leaves the state only once its file holds the prior value."""
    outcomes = []
    for entry in reversed(list(state.entries)):
        text = system.read(entry.path)
        now = None if text is None else canonical(entry.path, text)
        outcome = Outcome(entry.name, entry.path, now or "", entry.prior, "")
        outcomes.append(outcome)
        if now == entry.prior:
            outcome.outcome, outcome.reason = "unchanged", "holds its prior value already"
        elif now is None or now not in entry.ours:
            found = "is not there any more" if now is None else f"is {now!r} now"
            outcome.outcome = "conflict"
            outcome.reason = f"it {found}, neither ours ({', '.join(entry.ours)}) nor prior: somebody else set it, left alone"
        elif is_dry_run:
            outcome.outcome = "planned"
        else:
            try:
                system.write(entry.path, entry.prior)
                outcome.outcome = "restored"
            except OSError as error:
                outcome.outcome, outcome.reason = "failed", f"the kernel refused it: {error.strerror}"
        if is_dry_run:
            continue
        if outcome.outcome in ("unchanged", "restored") or (outcome.outcome == "conflict" and forget):
            state.entries.remove(entry)
            state.save()
    return outcomes
