"""The tool against the kernel itself, in network namespaces that the tests make and that die with them.

/proc/sys/fs is read-only in there: those knobs are the host's, and a tool that forgot to refuse
them must not get through. One test compares every value of the host before and after.
"""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import unittest

from fixture import HERE, TARGET, TUNE_SH

APPLY = ("apply", *TARGET, "--yes")
BIG = ("--connections", "9M", "--churn", "9000/s", "--role", "server")
# Each device has some of its own, and devices come and go.
OF_DEVICES = ("/conf/", "/neigh/")
# Values that change by themselves.
RESTLESS = ("/nf_conntrack_count", "/file-nr", "/inode-nr", "/inode-state", "/dentry-state", "/aio-nr")

ENTER = (
    "mount --bind /proc/sys/fs /proc/sys/fs && mount -o remount,bind,ro /proc/sys/fs"
    " && ip link set lo up && echo ready && exec cat"
)

# Runs the tool again and again, each time in a new process that is ended before its k-th step, until it has
# fewer: every write to a knob, and every fsync, rename and unlink of a state file is a step. A SIGKILL leaves
# no chance to clean up, a SIGINT is the Ctrl-C that the tool may answer. `first` is a run before the count
# begins. After each: a revert, and a look at every value of the namespace. Prints what became of each.
STOPPER = f"""
import contextlib, io, json, os, signal, sys
sys.path.insert(0, {HERE!r})
import kernel, tune
by, state_dir, first, then = json.loads(sys.argv[1])

def run(arguments):
    options = ["--sample", "0", "--state-dir", state_dir]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        return tune.run([*arguments, *options]) if arguments else 0, err.getvalue()

def values():
    found = {{}}
    for top in ("core", "ipv4"):
        for directory, _, names in os.walk("/proc/sys/net/" + top):
            for path in (os.path.join(directory, name) for name in names):
                with contextlib.suppress(OSError), open(path, errors="replace") as file:
                    found[path] = file.read()
    return found

def ended_at(at):
    run(first)
    steps = 0
    def counted(function):
        def step(*arguments):
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), by)
            return function(*arguments)
        return step
    os.fsync, os.rename, os.unlink = map(counted, (os.fsync, os.rename, os.unlink))
    kernel.System.write = counted(kernel.System.write)
    code, err = run(then)
    os.write(2, err.encode())
    os._exit(code)

before, ends = values(), []
for at in range(1, 100):
    said, saying = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(saying, 2)
        ended_at(at)
    os.close(saying)
    with open(said) as err:
        text = err.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    reverted, _ = run(["revert"])
    after = values()
    changed = [path for path in before if before[path] != after.get(path)]
    left = [name for name in os.listdir(state_dir) if name.endswith(".json")]
    ends.append([status, text, reverted, changed, left])
    if status in (0, 1):
        break
json.dump(ends, sys.stdout)
"""


def why_impossible() -> str:
    if os.geteuid() != 0:
        return "namespaces need root"
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} was not found"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", ENTER], input="", capture_output=True, text=True
    )
    return "" if done.returncode == 0 else f"no namespace to be had here: {done.stderr.strip()}"


def host_values() -> dict[str, str]:
    """Every readable value below /proc/sys/net and /proc/sys/fs, and the huge pages' words."""
    found = {}
    for top in ("/proc/sys/net", "/proc/sys/fs", "/sys/kernel/mm/transparent_hugepage"):
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if path.endswith(RESTLESS) or any(part in path for part in OF_DEVICES):
                    continue
                try:
                    if os.stat(path).st_mode & stat.S_IRUSR:
                        with open(path, encoding="utf-8", errors="replace") as file:
                            found[path] = file.read()
                except OSError:
                    pass
    return found


class Namespace(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        reason = why_impossible()
        if reason and os.environ.get("CI") == "true":
            raise AssertionError(f"these tests must run in CI: {reason}")
        if reason:
            print(f"skipped {cls.__name__}: {reason}", file=sys.stderr)
            raise unittest.SkipTest(reason)

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.state_dir = directory.name
        self.holder = self.new_namespace()

    def new_namespace(self) -> subprocess.Popen:
        """A process that holds it open until its stdin closes, so at the latest when we are gone."""
        command = ["unshare", "--net", "--mount", "sh", "-c", ENTER]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def end():
            holder.stdin.close()
            holder.wait(10)
            holder.stdout.close()

        self.addCleanup(end)
        self.assertEqual(holder.stdout.readline(), "ready\n")
        return holder

    def inside(self, *command, holder=None) -> subprocess.CompletedProcess:
        enter = ["nsenter", "--net", "--mount", "--target", str((holder or self.holder).pid), "--"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, check=False, timeout=60)

    def tune(self, *arguments, holder=None) -> dict:
        """The JSON document of a run of the real script."""
        done = self.inside(
            TUNE_SH, "--json", "--sample", "0", "--state-dir", self.state_dir, *arguments, holder=holder
        )
        self.assertIn(done.returncode, (0, 1, 2), done.stderr)
        document = json.loads(done.stdout)
        self.assertEqual(document["exit_code"], done.returncode)
        return document

    def values(self, holder=None) -> dict[str, str]:
        done = self.inside("sh", "-c", "cd /proc/sys/net && grep -r . core ipv4 2>/dev/null", holder=holder)
        lines = (line.partition(":") for line in done.stdout.splitlines())
        return {path: value for path, _, value in lines}

    def state_files(self):
        return [name for name in os.listdir(self.state_dir) if name != "lock"]


class InTheKernel(Namespace):
    def test_apply_then_revert_restores_every_value(self):
        before = self.values()
        self.assertGreater(len(before), 100)
        document = self.tune("apply", *TARGET, "--yes")
        written = {each["name"] for each in document["outcomes"] if each["outcome"] == "written"}
        self.assertEqual(
            written,
            {
                "net.ipv4.tcp_tw_reuse",
                "net.ipv4.tcp_max_tw_buckets",
                "net.ipv4.ip_local_reserved_ports",
                "net.ipv4.ip_local_port_range",
            },
        )
        after = self.values()
        self.assertEqual(after["ipv4/ip_local_port_range"].split(), ["1024", "65535"])
        self.assertEqual(after["ipv4/ip_local_reserved_ports"], "40000")
        self.assertEqual(self.tune("revert")["exit_code"], 0)
        self.assertEqual((self.values(), self.state_files()), (before, []))

    def test_every_namespace_knob_can_be_written_and_restored(self):
        for key, value in (
            ("core/somaxconn", "8"),
            ("ipv4/tcp_syncookies", "0"),
            ("ipv4/tcp_max_syn_backlog", "16"),
            ("ipv4/tcp_max_tw_buckets", "64"),
            ("ipv4/tcp_rmem", "4096 8192 16384"),
            ("ipv4/tcp_wmem", "4096 8192 16384"),
            ("ipv4/ip_local_port_range", "40000 50001"),
            ("ipv4/ip_local_reserved_ports", "7,9000-9002"),
        ):
            self.assertEqual(
                self.inside("sh", "-c", f"echo '{value}' > /proc/sys/net/{key}").returncode, 0, key
            )
        before = self.values()
        also = "net.ipv4.tcp_slow_start_after_idle,net.ipv4.tcp_notsent_lowat"
        document = self.tune("apply", *BIG, "--port", "40001", "--also", also, "--yes")
        written = {each["name"] for each in document["outcomes"] if each["outcome"] == "written"}
        self.assertEqual(len(written), 9, written)
        after = self.values()
        self.assertEqual(after["ipv4/ip_local_reserved_ports"], "7,9000-9002,40001")
        self.assertEqual(after["ipv4/tcp_rmem"].split(), ["4096", "8192", "4194304"])
        self.assertEqual(
            self.tune("apply", *BIG, "--port", "40001", "--also", also)["outcomes"][0]["outcome"], "refused"
        )
        self.tune("revert")
        self.assertEqual(self.values(), before)

    def test_applying_twice_writes_once(self):
        self.tune("apply", *TARGET, "--yes")
        after = self.values()
        self.assertEqual(self.tune("apply", *TARGET, "--yes")["outcomes"], [])
        self.assertEqual(self.values(), after)

    def test_the_host_is_untouched_and_global_knobs_are_refused(self):
        before = host_values()
        self.assertGreater(len(before), 200)
        document = self.tune("apply", *BIG, "--yes")
        outcomes = {each["name"]: each["outcome"] for each in document["outcomes"]}
        self.assertEqual(
            (outcomes["fs.nr_open"], outcomes["fs.epoll.max_user_watches"]), ("refused", "refused")
        )
        self.assertEqual(outcomes["net.core.somaxconn"], "written")
        self.assertEqual(document["exit_code"], 1)
        absent = {knob["name"] for knob in document["knobs"] if knob["status"] == "absent"}
        self.assertLessEqual(
            {
                "net.ipv4.tcp_mem",
                "net.core.netdev_max_backlog",
                "net.core.busy_poll",
                "net.ipv4.tcp_max_orphans",
            },
            absent,
        )
        self.tune("apply", *TARGET, "--yes")
        self.assertEqual(host_values(), before)
        self.tune("revert")
        self.assertEqual(host_values(), before)

    def test_persist_is_refused(self):
        document = self.tune("persist", *TARGET, "--dry-run")
        self.assertEqual(document["exit_code"], 2)
        self.assertIn("child network namespace", document["error"])

    def test_another_namespace_does_not_revert_this_one(self):
        other = self.new_namespace()
        untouched = self.values(other)
        self.tune("apply", *TARGET, "--yes")
        applied = self.values()
        self.assertEqual(self.tune("revert", holder=other)["outcomes"], [])
        self.assertEqual((self.values(), self.values(other)), (applied, untouched))


class Stopped(Namespace):
    """At every step of apply, and at every step of revert."""

    def through_all_steps(self, by: int, first: tuple, then: tuple) -> list[tuple[int, str]]:
        """(status, stderr) of the runs that were stopped; after each, a revert restored every value."""
        plan = json.dumps([by, self.state_dir, first, then])
        done = self.inside(sys.executable, "-B", "-c", STOPPER, plan)
        self.assertEqual(done.returncode, 0, done.stderr)
        ends = json.loads(done.stdout)
        for step, (_status, text, *after) in enumerate(ends, start=1):
            self.assertEqual(
                after, [0, [], []], f"status of revert, values changed, state left at {step}: {text}"
            )
        self.assertIn(ends[-1][0], (0, 1), "the last run had no more steps to be stopped at")
        return [(status, text) for status, text, *_ in ends[:-1]]

    def test_apply_killed_at_any_step_is_reverted(self):
        stopped = self.through_all_steps(signal.SIGKILL, (), APPLY)
        self.assertEqual({status for status, _ in stopped}, {-signal.SIGKILL})
        self.assertEqual(len(stopped), 2 + 1 + 4, "two fsyncs and a rename of the state, four writes")

    def test_revert_killed_at_any_step_is_completed_by_the_next(self):
        stopped = self.through_all_steps(signal.SIGKILL, APPLY, ("revert",))
        self.assertEqual({status for status, _ in stopped}, {-signal.SIGKILL})
        self.assertEqual(
            len(stopped), 3 * (1 + 3) + (1 + 2), "write and save; the last: write, unlink, fsync"
        )

    def test_ctrl_c_at_any_step_ends_with_status_2_and_is_reverted(self):
        stopped = self.through_all_steps(signal.SIGINT, (), APPLY)
        self.assertEqual({status for status, _ in stopped}, {2})
        self.assertEqual(len(stopped), 7)
        for _, text in stopped:
            self.assertIn("`tune.sh revert` restores", text)


class Listening(Namespace):
    def test_the_backlog_in_force_and_the_overflow_are_seen(self):
        server = (
            "import socket\n"
            "s = socket.socket(); s.bind(('127.0.0.1', 9001)); s.listen(8)\n"
            "c = [socket.socket() for _ in range(12)]\n"
            "[x.setblocking(False) or x.connect_ex(('127.0.0.1', 9001)) for x in c]\n"
            "import sys; print('ready', flush=True); sys.stdin.read()"
        )
        enter = ["nsenter", "--net", "--target", str(self.holder.pid), "--", sys.executable, "-c", server]
        process = subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.wait, 10)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), "ready\n")
        for name in (("--port", "9001"), ("--pid", str(process.pid))):
            target = ("--connections", "100", "--churn", "10/s", "--role", "server")
            found = {knob["name"]: knob for knob in self.tune("check", *target, *name)["knobs"]}
            backlog = found["listen.backlog"]
            self.assertEqual((backlog["current"], backlog["wanted"], backlog["status"]), (8, 1024, "wanted"))
            evidence = {each["name"]: each for each in backlog["evidence"]}
            self.assertEqual(
                (evidence["listen.Recv-Q"]["total"], evidence["listen.Recv-Q"]["is_alarming"]), (9, True)
            )
            overflows = {each["name"]: each["total"] for each in found["net.core.somaxconn"]["evidence"]}
            self.assertGreaterEqual(overflows["TcpExt.ListenOverflows"], 3)

    def test_the_generators_bind_option_is_seen(self):
        client = (
            "import socket\n"
            "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); keep = [l]\n"
            "for option in (0, 1):\n"
            "    s = socket.socket(); s.setsockopt(socket.SOL_IP, 24, option)\n"
            "    s.bind(('127.0.0.2', 0)); s.connect(l.getsockname()); keep.append(s)\n"
            "    print('ready', flush=True); input(); s.close()"
        )
        enter = ["nsenter", "--net", "--target", str(self.holder.pid), "--", sys.executable, "-c", client]
        process = subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.wait, 10)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        for current, status in ((0, "optional"), (1, "ok")):
            self.assertEqual(process.stdout.readline(), "ready\n")
            found = {
                knob["name"]: knob
                for knob in self.tune("check", "--role", "generator", "--pid", str(process.pid))["knobs"]
            }
            knob = found["socket.IP_BIND_ADDRESS_NO_PORT"]
            self.assertEqual((knob["current"], knob["status"]), (current, status))
            process.stdin.write("\n")
            process.stdin.flush()


class WithoutRoot(Namespace):
    NOBODY = 65534

    def test_check_works_and_apply_changes_nothing(self):
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            scripts = os.path.join(directory, "scripts")
            shutil.copytree(
                HERE, os.path.join(scripts, "tune"), ignore=shutil.ignore_patterns("test_*", "__pycache__")
            )
            script = shutil.copy(TUNE_SH, scripts)
            enter = ["nsenter", "--net", "--mount", "--target", str(self.holder.pid)]
            enter += ["--setuid", str(self.NOBODY), "--setgid", str(self.NOBODY), "--", script]

            def run(*arguments):
                return subprocess.run(
                    [*enter, *arguments], cwd="/", capture_output=True, text=True, check=False
                )

            check = run("check", *TARGET, "--sample", "0")
            self.assertEqual(check.returncode, 1, check.stderr)
            self.assertIn("wanted   net.ipv4.tcp_tw_reuse", check.stdout)
            before = self.values()
            writable = os.path.join(directory, "state")
            os.mkdir(writable)
            os.chmod(writable, 0o777)
            for state_dir in ((), ("--state-dir", writable)):
                done = run("apply", *TARGET, "--yes", *state_dir)
                self.assertEqual(done.returncode, 2, done.stdout)
                self.assertIn("run as root", done.stderr)
            self.assertEqual(self.values(), before)


class Cookie(Namespace):
    def test_the_state_is_named_after_what_the_kernel_never_reuses(self):
        try:
            with socket.socket() as probe:
                probe.getsockopt(socket.SOL_SOCKET, 71, 8)
        except OSError as error:
            self.skipTest(f"no SO_NETNS_COOKIE before Linux 5.14: {error}")
        self.tune("apply", *TARGET, "--yes")
        cookie = self.tune("check")["host"]["netns_cookie"]
        self.assertEqual(self.state_files(), [f"netns-cookie-{cookie}.json"])


del Namespace  # the base: it has no tests of its own to be found
