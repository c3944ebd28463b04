"""scripts/tune.sh: checks, raises, restores and persists what the kernel allows a target.

This file is the command line: flags in, exit status out. knobs.py knows what is wanted and why (in the words of view.py),
state.py changes values and takes changes back, persist.py writes the files for the next boot,
mistakes.py reads those of others, kernel.py is the machine, report.py the words.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback

import mistakes
import persist
import report
import state
from kernel import Lock, Sample, System, TuneError
from knobs import examine
from values import parse_count, parse_rate
from view import OPTIONAL, WANTED, Target, View

EXIT_GOOD, EXIT_WANTED, EXIT_ERROR = 0, 1, 2

DESCRIPTION = """\
Says what the kernel of this machine has to allow for a target of many TCP connections, raises it,
and takes the changes back.

  check     (default) every knob: current, wanted, why, scope, what the counters say; needs no root
  apply     raises what is wanted; shows what it would do unless told --yes
  revert    restores what apply changed and nobody else has changed since; at once
  persist   writes /etc/sysctl.d/90-resound-tune.conf and a systemd drop-in for the next boot; at once
"""

EPILOG = """\
examples:
  scripts/tune.sh check --connections 1M --churn 2000/s --role server --port 9001
  sudo scripts/tune.sh apply --connections 200k --churn 500/s --role generator --yes
  sudo scripts/tune.sh revert

Only raises: no value is made smaller, a range narrower or a set of ports smaller, unless you name an
optional knob with --also. Prior values are saved before the first write, in --state-dir. Global knobs
are refused from within a container or another child namespace.

exit status: 0 all good, 1 something is wanted (check: or a mistake was found; revert: a conflict;
persist: a later file overrides ours, or --dry-run found something to write), 2 error.
Each knob, the truth about it, and the JSON keys: docs/tuning.md.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(EXIT_ERROR, f"tune: {message} (try --help)\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="tune.sh",
        usage="tune.sh [check|apply|revert|persist] --connections N --churn N/s --role server|generator [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    commands = ["check", "apply", "revert", "persist"]
    add("command", nargs="?", default="check", choices=commands, help=argparse.SUPPRESS)
    add("--connections", type=_argument(parse_count), metavar="N", help="open at once: 200000, 200k, 1M")
    add("--churn", type=_argument(parse_rate), metavar="N/s", help="new connections a second: 2000/s")
    add("--role", choices=["server", "generator"], help="which end this machine is")
    add("--port", type=_port, metavar="N", help="the server's port: shows its queue, reserves it")
    add("--pid", type=_positive, metavar="PID", help="the running process: shows its limits and sockets")
    add(
        "--also",
        type=lambda text: text.split(","),
        default=[],
        metavar="KNOB,…",
        help="optional knobs to want, too",
    )
    add(
        "--sample",
        type=_seconds,
        metavar="S",
        help="seconds between two looks at the counters (default 1; 0: one look)",
    )
    add("--json", action="store_true", help="one JSON document on stdout")
    add("--yes", action="store_true", help="apply: do it")
    add("--dry-run", action="store_true", help="revert, persist: only show")
    add(
        "--forget",
        action="store_true",
        help="revert: drop the saved values of conflicts instead of keeping them",
    )
    add("--remove", action="store_true", help="persist: remove our two files")
    add(
        "--unit",
        default="resound.service",
        metavar="UNIT",
        help="persist: the systemd unit (default %(default)s)",
    )
    add("--root", default="/", metavar="DIR", help="look for /proc, /sys and /etc below DIR (tests)")
    add("--state-dir", metavar="DIR", help="prior values (default /run/resound-tune, below --root)")
    options = parser.parse_args(arguments)
    if options.command == "apply" and options.dry_run:
        options.yes = False
    if "/" in options.unit:
        parser.error(f"--unit {options.unit!r} is not a unit name")
    return options


def _argument(convert):
    def checked(text: str):
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _port(text: str) -> int:
    port = _positive(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return port


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds


def target_of(options: argparse.Namespace) -> Target:
    declared = [options.connections, options.churn, options.role]
    is_declared = None not in declared
    if not is_declared and options.command in ("apply", "persist") and not options.remove:
        raise TuneError(f"{options.command} needs a declared target: --connections, --churn and --role")
    return Target(
        10_000 if options.connections is None else options.connections,
        100 if options.churn is None else options.churn,
        options.role or "server",
        options.port,
        options.pid,
        is_declared,
    )


class Tool:
    """One run: the view of the machine, and what the four commands share."""

    def __init__(self, options: argparse.Namespace, system: System):
        self.options = options
        self.system = system
        self.target = target_of(options)
        self.state_dir = options.state_dir or system.path("/run/resound-tune")
        self.view = self.look(options.sample)
        self.findings = examine(self.view)
        self.mistakes = mistakes.find(self.view)
        self._refuse_unknown_also()

    def look(self, sample_s: float | None) -> View:
        if sample_s is None:
            sample_s = 1.0 if self.system.is_live and self.options.command == "check" else 0.0
        return View(self.system, self.target, Sample.take(self.system, sample_s), self.options.also)

    def _refuse_unknown_also(self) -> None:
        known = {each.name for each in self.findings}
        optional = [each.name for each in self.findings if each.status == OPTIONAL]
        for name in self.options.also:
            if name not in known:
                raise TuneError(
                    f"--also {name}: no such knob; optional here: {', '.join(optional) or 'none'}"
                )

    def say(self, *paragraphs: str) -> None:
        text = "\n\n".join(each for each in paragraphs if each)
        if text and not self.options.json:
            print(text)

    def document(self, exit_code: int, **more) -> int:
        """Prints the JSON document if asked for; the exit status either way."""
        if self.options.json:
            command = self.options.command
            document = report.as_json(command, self.view, self.findings, self.mistakes, exit_code)
            print(json.dumps(document | more, indent=2))
        return exit_code

    @property
    def is_something_wanted(self) -> bool:
        return any(each.status == WANTED for each in self.findings)

    # -- the commands ----------------------------------------------------------------------------------

    def check(self) -> int:
        self.say(
            report.heading(self.view),
            report.table(self.findings),
            report.mistakes_text(self.mistakes),
            report.summary(self.view, self.findings, self.mistakes),
        )
        return self.document(EXIT_WANTED if self.is_something_wanted or self.mistakes else EXIT_GOOD)

    def apply(self) -> int:
        if self.options.yes:
            with Lock(self.state_dir):
                outcomes = self._apply_locked()
            self._look_again()
        else:
            outcomes = state.plan(self.view, self.findings)
        self.say(report.heading(self.view), report.outcomes_text(outcomes) or "Nothing to write.")
        by_hand = [each for each in self.findings if each.status == WANTED and not each.writes]
        if by_hand:
            self.say("\nBy hand:\n" + report.table(by_hand))
        if self.options.yes:
            restarts = {each.name: each.restart for each in self.findings if each.restart}
            changed = {each.name for each in outcomes if each.outcome == "written"}
            for name in sorted(changed & restarts.keys()):
                self.say(f"restart needed: {name}: {restarts[name]}")
        elif any(each.outcome == "planned" for each in outcomes):
            self.say("\nNothing was changed: this was a dry run. Add --yes to do it.")
        exit_code = EXIT_WANTED if self.is_something_wanted else EXIT_GOOD
        if any(each.outcome == "failed" for each in outcomes):
            exit_code = EXIT_ERROR
        return self.document(
            exit_code, outcomes=[vars(each) for each in outcomes], is_dry_run=not self.options.yes
        )

    def _apply_locked(self) -> list[state.Outcome]:
        self._look_again()  # what another run wrote before we held the lock is seen, not lowered
        held, aside = state.State.load(self.system, self.view.namespace, self.state_dir)
        self.say(aside)
        outcomes = state.plan(self.view, self.findings)
        try:
            state.apply(self.system, held, outcomes)
        except KeyboardInterrupt:
            written = sum(each.outcome == "written" for each in outcomes)
            raise TuneError(
                f"interrupted after {written} of {len(outcomes)} writes; `tune.sh revert` restores what was changed"
            ) from None
        return outcomes

    def _look_again(self) -> None:
        self.view = self.look(0.0)
        self.findings = examine(self.view)

    def revert(self) -> int:
        with Lock(self.state_dir):
            held, aside = state.State.load(self.system, self.view.namespace, self.state_dir)
            outcomes = state.revert(self.system, held, self.options.dry_run, self.options.forget)
            if aside and not self.options.dry_run:
                held.save()  # it has no entries: this removes the file that means nothing any more
        self.say(aside, report.outcomes_text(outcomes) or "Nothing to revert: no value here is ours.")
        if self.system.read(persist.SYSCTL_FILE) is not None:
            self.say(f"{persist.SYSCTL_FILE} sets values at the next boot: persist --remove removes it.")
        kinds = {each.outcome for each in outcomes}
        exit_code = EXIT_ERROR if "failed" in kinds else EXIT_WANTED if "conflict" in kinds else EXIT_GOOD
        return self.document(
            exit_code, outcomes=[vars(each) for each in outcomes], is_dry_run=self.options.dry_run
        )

    def persist(self) -> int:
        options = self.options
        if options.dry_run:
            files, warnings = self._persist()
        else:
            with Lock(self.state_dir):
                files, warnings = self._persist()
        for file in files:
            self.say(f"{file.outcome:<10}{file.path}")
            if options.dry_run and not options.remove:
                self.say("".join(f"    {line}\n" for line in file.text.splitlines()))
        self.say(
            ""
            if files
            else "Nothing to do: no such file of ours."
            if options.remove
            else "Nothing to persist."
        )
        for warning in warnings:
            self.say(f"warning   {warning}")
        if any(file.outcome in ("written", "removed") for file in files):
            self.say(
                "Next: sysctl --system, and systemctl daemon-reload; the service takes its limit when it restarts."
            )
        is_left = any(file.outcome == "planned" for file in files)
        return self.document(
            EXIT_WANTED if warnings or is_left else EXIT_GOOD,
            files=[vars(file) for file in files],
            warnings=warnings,
            is_dry_run=options.dry_run,
        )

    def _persist(self) -> tuple[list[persist.File], list[str]]:
        options = self.options
        if options.remove:
            return persist.remove(self.view, options.unit, options.dry_run), []
        held, _aside = state.State.load(self.system, self.view.namespace, self.state_dir)
        files = persist.desired(self.view, self.findings, held, options.unit)
        persist.write(self.view, files, options.dry_run)
        not_sysctls = [each.name for each in self.findings if each.writes and each.sysctl_key is None]
        return files, persist.overrides(self.view, files) + [
            f"{name} is no sysctl: this does not persist it" for name in not_sysctls
        ]


def run(arguments: list[str], system: System | None = None) -> int:
    """The whole tool; `system` lets a test put its own in place."""
    options = parse(arguments)
    try:
        tool = Tool(options, system or System(options.root))
        return getattr(tool, options.command)()
    except KeyboardInterrupt:
        error: Exception = TuneError("interrupted")
    except TuneError as raised:
        error = raised
    except BrokenPipeError:
        raise
    except OSError as raised:
        error = TuneError(f"{raised.filename or options.command}: {raised.strerror or raised}")
    if options.json:
        print(
            json.dumps(
                {
                    "schema": report.SCHEMA,
                    "schema_version": report.SCHEMA_VERSION,
                    "command": options.command,
                    "exit_code": EXIT_ERROR,
                    "error": str(error),
                },
                indent=2,
            )
        )
    print(f"tune: {error}", file=sys.stderr)
    return EXIT_ERROR


def _interrupt(_signal, _frame):
    raise KeyboardInterrupt


def main() -> int:
    # SIGTERM as a Ctrl-C: what was saved stays, and the last line says what to do.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:  # a bug of ours must not pass for status 1, "something is wanted"
        traceback.print_exc()
    return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
