"""apply and revert over a machine in a directory: raise only, save first, restore only what is ours.

The same with the kernel itself, killed at every step, is in test_namespace.py.
"""

import json
import os

import kernel
from fixture import SMALL, TARGET, Machine
from kernel import System


class Recording(System):
    """Notes every write, and may fail or stop instead of one."""

    def __init__(self, root, at=None, raises=None):
        super().__init__(root)
        self.written = []
        self.at, self.raises = at, raises

    def write(self, name, text):
        if self.at == len(self.written):
            self.at = None
            raise self.raises
        self.written.append((name, text))
        super().write(name, text)


class Changing(Machine):
    def state_files(self):
        directory = self.root + "/run/resound-tune"
        return (
            sorted(name for name in os.listdir(directory) if name != "lock")
            if os.path.isdir(directory)
            else []
        )

    def test_apply_is_a_dry_run_unless_told_yes(self):
        before = self.snapshot()
        code, out, _ = self.run_tune("apply", *TARGET)
        self.assertEqual(code, 1)
        self.assertIn("dry run", out)
        self.assertIn("planned   /proc/sys/net/ipv4/tcp_tw_reuse: 2 -> 1", out)
        self.assertEqual((self.snapshot(), self.state_files()), (before, []))

    def test_dry_run_wins_over_yes(self):
        before = self.snapshot()
        self.run_tune("apply", *TARGET, "--yes", "--dry-run")
        self.assertEqual(self.snapshot(), before)

    def test_apply_then_revert_restores_every_file(self):
        before = self.snapshot()
        document = self.run_json("apply", *TARGET, "--yes")
        self.assertGreaterEqual(
            len([each for each in document["outcomes"] if each["outcome"] == "written"]), 4
        )
        self.assertEqual(self.get_sysctl("net.ipv4.ip_local_port_range"), "1024 65535")
        self.assertEqual(self.get_sysctl("net.ipv4.ip_local_reserved_ports"), "40000")
        code, _, _ = self.run_tune("revert")
        self.assertEqual((code, self.snapshot(), self.state_files()), (0, before, []))

    def test_files_that_are_no_sysctl_are_restored_too(self):
        self.put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
        before = self.snapshot()
        self.run_tune("apply", *SMALL, "--yes")
        self.assertEqual(self.get("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), "performance")
        self.run_tune("revert")
        self.assertEqual(self.snapshot(), before)

    def test_no_number_is_ever_lowered(self):
        self.put_sysctl("net.core.somaxconn", "65535")
        self.put_sysctl("net.ipv4.tcp_max_tw_buckets", "2000000")
        self.put_sysctl("net.ipv4.tcp_mem", "10 900000 9000000")
        before = self.snapshot()
        for role in ("server", "generator"):
            self.run_tune("apply", "--connections", "1M", "--churn", "9000/s", "--role", role, "--yes")
        for path, text in self.snapshot().items():
            if path.endswith(("tcp_tw_reuse", "ip_local_port_range")):
                continue  # the generous side of these is not the larger number
            if path.startswith("/proc/sys/net") and text.replace(" ", "").isdigit():
                for old, new in zip(before[path].split(), text.split()):
                    self.assertGreaterEqual(int(new), int(old), path)
        self.assertEqual(self.get_sysctl("net.ipv4.tcp_mem"), "750000 1000000 9000000")

    def test_applying_twice_writes_once(self):
        first, second = Recording(self.root), Recording(self.root)
        self.run_tune("apply", *TARGET, "--yes", system=first)
        state = self.get("/run/resound-tune/" + self.state_files()[0])
        self.run_tune("apply", *TARGET, "--yes", system=second)
        self.assertTrue(first.written)
        self.assertEqual(second.written, [])
        self.assertEqual(self.get("/run/resound-tune/" + self.state_files()[0]), state)

    def test_a_second_larger_target_still_reverts_to_the_first_values(self):
        before = self.snapshot()
        self.run_tune("apply", "--connections", "10", "--churn", "3000/s", "--role", "server", "--yes")
        self.run_tune("apply", "--connections", "10", "--churn", "9000/s", "--role", "server", "--yes")
        self.assertEqual(self.get_sysctl("net.core.somaxconn"), "16384")
        self.run_tune("revert")
        self.assertEqual(self.snapshot(), before)

    def test_prior_values_are_on_disk_before_the_first_write(self):
        test = self

        class Looking(System):
            def write(self, name, text):
                with open(
                    test.root + "/run/resound-tune/netns-inode-4026531840.json", encoding="utf-8"
                ) as file:
                    saved = {entry["path"]: entry["prior"] for entry in json.load(file)["entries"]}
                test.assertEqual(saved[name], " ".join(self.read(name).split()))
                test.looked += 1
                super().write(name, text)

        self.looked = 0
        self.run_tune("apply", *TARGET, "--yes", system=Looking(self.root))
        self.assertGreaterEqual(self.looked, 4)

    def test_a_missing_knob_is_skipped(self):
        self.remove("/proc/sys/net/ipv4/tcp_tw_reuse")
        document = self.run_json("apply", *TARGET, "--yes")
        self.assertNotIn("net.ipv4.tcp_tw_reuse", [each["name"] for each in document["outcomes"]])

    def test_what_the_kernel_refuses_is_an_error_and_the_others_still_revert(self):
        before = self.snapshot()
        system = Recording(self.root, 1, OSError(22, "Invalid argument"))
        document = self.run_json("apply", *TARGET, "--yes", system=system)
        self.assertEqual(document["exit_code"], 2)
        self.assertEqual([each["outcome"] for each in document["outcomes"]].count("failed"), 1)
        self.assertEqual(self.run_json("revert")["exit_code"], 0)
        self.assertEqual(self.snapshot(), before)

    def test_a_value_the_kernel_rounded_is_still_ours(self):
        class Rounding(System):
            def write(self, name, text):
                super().write(
                    name, "200000" if name.endswith("tcp_max_tw_buckets") and text == "180000" else text
                )

        before = self.snapshot()
        self.run_tune("apply", *TARGET, "--yes", system=Rounding(self.root))
        self.assertEqual(self.get_sysctl("net.ipv4.tcp_max_tw_buckets"), "200000")
        self.assertEqual(self.run_json("revert")["exit_code"], 0)
        self.assertEqual(self.snapshot(), before)


class Interrupted(Machine):
    def test_ctrl_c_before_any_write_leaves_a_state_that_reverts(self):
        before = self.snapshot()
        count = len(
            [each for each in self.run_json("apply", *TARGET)["outcomes"] if each["outcome"] == "planned"]
        )
        self.assertGreaterEqual(count, 4)
        for at in range(count):
            system = Recording(self.root, at, KeyboardInterrupt())
            code, _, err = self.run_tune("apply", *TARGET, "--yes", system=system)
            self.assertEqual(code, 2)
            self.assertIn(f"interrupted after {at} of", err)
            self.assertEqual(len(system.written), at)
            self.assertEqual(self.run_json("revert")["exit_code"], 0)
            self.assertEqual(self.snapshot(), before, f"interrupted before write {at}")


class Conflicts(Machine):
    def test_a_value_somebody_else_set_is_reported_and_left_alone(self):
        self.run_tune("apply", *TARGET, "--yes")
        self.put_sysctl("net.ipv4.tcp_max_tw_buckets", "999999")
        document = self.run_json("revert")
        outcomes = {each["name"]: each["outcome"] for each in document["outcomes"]}
        self.assertEqual(document["exit_code"], 1)
        self.assertEqual(outcomes.pop("net.ipv4.tcp_max_tw_buckets"), "conflict")
        self.assertEqual(set(outcomes.values()), {"restored"})
        self.assertEqual(self.get_sysctl("net.ipv4.tcp_max_tw_buckets"), "999999")
        # It stays known until somebody decides.
        self.assertEqual([each["outcome"] for each in self.run_json("revert")["outcomes"]], ["conflict"])
        self.assertEqual(self.run_json("revert", "--forget")["exit_code"], 1)
        self.assertEqual(self.run_json("revert")["outcomes"], [])

    def test_a_value_somebody_else_restored_is_no_conflict(self):
        self.run_tune("apply", *TARGET, "--yes")
        self.put_sysctl("net.ipv4.tcp_tw_reuse", "2")
        document = self.run_json("revert")
        self.assertEqual(document["exit_code"], 0)
        self.assertIn("unchanged", [each["outcome"] for each in document["outcomes"]])

    def test_applying_over_a_value_somebody_else_set_makes_that_the_prior_one(self):
        arguments = ("--connections", "10", "--role", "server", "--yes")
        self.run_tune("apply", *arguments, "--churn", "5000/s")
        self.put_sysctl("net.core.somaxconn", "5000")
        self.run_tune("apply", *arguments, "--churn", "9000/s")
        self.run_tune("revert")
        self.assertEqual(self.get_sysctl("net.core.somaxconn"), "5000")

    def test_a_dry_revert_changes_nothing(self):
        self.run_tune("apply", *TARGET, "--yes")
        before = self.snapshot()
        self.assertIn("planned", self.run_tune("revert", "--dry-run")[1])
        self.assertEqual(self.snapshot(), before)
        self.assertIn("restored", self.run_tune("revert")[1])


class WhoseState(Machine):
    def test_values_of_an_earlier_boot_are_not_restored(self):
        self.run_tune("apply", *TARGET, "--yes")
        applied = self.snapshot()
        self.put_sysctl("kernel.random.boot_id", "99999999-0000-0000-0000-000000000000")
        code, out, _ = self.run_tune("revert")
        self.assertEqual(code, 0)
        self.assertIn("before the last boot", out)
        applied["/proc/sys/kernel/random/boot_id"] = "99999999-0000-0000-0000-000000000000"
        self.assertEqual(self.snapshot(), applied)
        self.assertEqual(os.listdir(self.root + "/run/resound-tune"), ["lock"])

    def test_each_network_namespace_has_a_state_of_its_own(self):
        self.run_tune("apply", *TARGET, "--yes")
        self.put_namespace("net", 4026539999)
        self.assertIn("Nothing to revert", self.run_tune("revert")[1])

    def test_a_state_file_that_is_not_one_is_an_error_and_stays(self):
        for text in ("{", "[]", "{}", '{"version": 2}', '{"version": 1}'):
            self.put("/run/resound-tune/netns-inode-4026531840.json", text)
            before = self.snapshot()
            code, _, err = self.run_tune("apply", *TARGET, "--yes")
            self.assertEqual((code, self.snapshot()), (2, before), text)
            self.assertIn("netns-inode-4026531840.json", err)
            self.assertEqual(self.get("/run/resound-tune/netns-inode-4026531840.json"), text)

    def test_two_at_once_do_not_mix(self):
        before = self.snapshot()
        with kernel.Lock(self.root + "/run/resound-tune"):
            for command in (("apply", *TARGET, "--yes"), ("revert",), ("persist", *TARGET)):
                code, _, err = self.run_tune(*command)
                self.assertEqual(code, 2)
                self.assertIn("another tune", err)
        self.assertEqual(self.snapshot(), before)


class GlobalKnobs(Machine):
    BIG = ("--connections", "9M", "--churn", "9000/s", "--role", "server")

    def assert_refused(self, reason):
        before = self.snapshot()
        document = self.run_json("apply", *self.BIG, "--yes")
        refused = {each["name"] for each in document["outcomes"] if each["outcome"] == "refused"}
        self.assertLessEqual({"fs.nr_open", "fs.epoll.max_user_watches"}, refused)
        self.assertEqual(document["exit_code"], 1)
        self.assertTrue(
            all(reason in each["reason"] for each in document["outcomes"] if each["outcome"] == "refused")
        )
        changed = {path for path, text in self.snapshot().items() if before[path] != text}
        self.assertEqual(
            changed,
            {"/proc/sys/net/core/somaxconn", "/proc/sys/net/ipv4/tcp_max_tw_buckets"},
            "namespace knobs only",
        )

    def test_are_refused_in_a_child_user_namespace(self):
        self.put_namespace("user", 4026532999)
        self.assert_refused("child user namespace")

    def test_are_refused_in_a_child_pid_namespace(self):
        self.put_namespace("pid", 4026532999)
        self.assert_refused("child pid namespace")

    def test_are_refused_in_a_child_network_namespace(self):
        for name in (
            "net/core/netdev_max_backlog",
            "net/core/busy_poll",
            "net/core/busy_read",
            "net/ipv4/tcp_mem",
        ):
            self.remove("/proc/sys/" + name)
        self.remove("/proc/sys/net/ipv4/tcp_max_orphans")
        self.assert_refused("child network namespace")

    def test_are_written_on_the_host(self):
        self.run_tune("apply", *self.BIG, "--yes")
        self.assertEqual(self.get_sysctl("fs.nr_open"), str(2**24))
