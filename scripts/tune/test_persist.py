"""What survives a boot: two files, whole or not at all, never over somebody else's."""

import os
from unittest import mock

import persist
from fixture import TARGET, Machine

SERVER = ("--connections", "200k", "--churn", "9000/s", "--role", "server")
DROP_IN = "/etc/systemd/system/resound.service.d/50-resound-tune.conf"


class Persist(Machine):
    def lines(self):
        with open(self.root + persist.SYSCTL_FILE, encoding="utf-8") as file:
            return [line for line in file.read().splitlines() if not line.startswith("#")]

    def test_what_is_wanted_is_written_with_its_reason(self):
        code, out, _ = self.run_tune("persist", *SERVER)
        self.assertEqual(code, 0)
        self.assertEqual(self.lines(), ["net.core.somaxconn = 16384", "net.ipv4.tcp_max_tw_buckets = 540000"])
        self.assertIn("LimitNOFILE=200256:524288", self.get(DROP_IN))
        self.assertIn("written   " + persist.SYSCTL_FILE, out)

    def test_what_was_applied_is_persisted_although_nothing_is_wanted_any_more(self):
        self.run_tune("apply", *TARGET, "--yes")
        self.run_tune("persist", *TARGET)
        self.assertIn("net.ipv4.ip_local_port_range = 1024 65535", self.lines())
        self.assertIn("net.ipv4.ip_local_reserved_ports = 40000", self.lines())
        self.assertNotIn(
            "net.core.somaxconn", " ".join(self.lines()), "not a target's business: left to the kernel"
        )

    def test_twice_is_once(self):
        self.run_tune("persist", *SERVER)
        before = self.snapshot()
        code, out, _ = self.run_tune("persist", *SERVER)
        self.assertEqual((code, self.snapshot()), (0, before))
        self.assertIn("unchanged", out)

    def test_after_the_boot_that_applied_it_the_file_stays_as_it_is(self):
        self.run_tune("persist", *SERVER)
        before = self.lines()
        for line in before:
            self.put_sysctl(*line.split(" = "))
        self.run_tune("persist", *SERVER)
        self.assertEqual(self.lines(), before)

    def test_a_dry_run_writes_nothing(self):
        before = self.snapshot()
        code, out, _ = self.run_tune("persist", *SERVER, "--dry-run")
        self.assertEqual((code, self.snapshot()), (1, before))
        self.assertIn("net.core.somaxconn = 16384", out)

    def test_a_later_file_that_overrides_ours_is_named(self):
        self.put("/etc/sysctl.d/95-other.conf", "\nnet.core.somaxconn = 5000")
        self.put("/etc/sysctl.d/10-early.conf", "net.core.somaxconn = 5000")
        self.put("/etc/sysctl.conf", "net.ipv4.tcp_max_tw_buckets = 600000")
        document = self.run_json("persist", *SERVER)
        self.assertEqual(document["exit_code"], 1)
        self.assertEqual(len(document["warnings"]), 2, document["warnings"])
        self.assertIn("/etc/sysctl.d/95-other.conf:2", document["warnings"][0])
        self.assertIn("/etc/sysctl.conf:1", document["warnings"][1])

    def test_a_file_that_is_not_ours_is_never_overwritten(self):
        for path in (persist.SYSCTL_FILE, DROP_IN):
            self.put(path, "# mine")
            before = self.snapshot()
            code, _, err = self.run_tune("persist", *SERVER)
            self.assertEqual((code, self.snapshot()), (2, before))
            self.assertIn(path, err)
            self.assertEqual(self.run_tune("persist", "--remove")[0], 0)
            self.assertEqual(self.snapshot(), before)
            self.remove(path)

    def test_the_drop_in_never_lowers_what_the_unit_has(self):
        unit = "/etc/systemd/system/resound.service"
        for text, limit in (
            ("LimitNOFILE=900000", "900000:900000"),
            ("LimitNOFILE=infinity", "infinity:infinity"),
        ):
            self.put(unit, f"[Service]\n{text}")
            self.run_tune("persist", *SERVER)
            self.assertIn(f"LimitNOFILE={limit}", self.get(DROP_IN))

    def test_remove_removes_our_two_files_and_nothing_else(self):
        before = self.snapshot()
        self.run_tune("persist", *SERVER)
        self.assertNotEqual(self.snapshot(), before)
        self.assertEqual(self.run_tune("persist", "--remove")[0], 0)
        self.assertEqual(self.snapshot(), before)

    def test_a_crash_while_writing_leaves_the_old_file_whole(self):
        self.run_tune("persist", *SERVER)
        before = self.snapshot()
        for call in ("os.fsync", "os.rename"):
            with mock.patch(call, side_effect=OSError(5, "Input/output error")):
                code, _, _ = self.run_tune(
                    "persist", "--connections", "1M", "--churn", "20k/s", "--role", "server"
                )
            self.assertEqual((code, self.snapshot()), (2, before), call)

    def test_a_child_namespace_has_no_boot_to_describe(self):
        self.put_namespace("user", 4026532999)
        before = self.snapshot()
        code, _, err = self.run_tune("persist", *SERVER)
        self.assertEqual((code, self.snapshot()), (2, before))
        self.assertIn("child user namespace", err)

    def test_what_is_no_sysctl_is_said(self):
        self.put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
        self.assertIn("no sysctl", " ".join(self.run_json("persist", *SERVER)["warnings"]))

    def test_revert_reminds_of_the_files(self):
        self.run_tune("persist", *SERVER)
        self.assertIn("persist --remove", self.run_tune("revert")[1])
        self.assertTrue(os.path.exists(self.root + persist.SYSCTL_FILE))
