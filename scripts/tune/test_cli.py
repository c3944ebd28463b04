"""The command line: exit status, the JSON document, and that the docs name everything."""

import json
import os
import re
import subprocess
import unittest

import mistakes
import report
import view
from fixture import HERE, SMALL, TARGET, TUNE_SH, Machine

DOCS = os.path.join(os.path.dirname(os.path.dirname(HERE)), "docs", "tuning.md")
NUMBER_OR_NONE = (int, type(None))
KEYS = {
    "schema": str,
    "schema_version": int,
    "command": str,
    "exit_code": int,
    "target": dict,
    "host": dict,
    "sample_s": (int, float),
    "first_limit": (dict, type(None)),
    "knobs": list,
    "mistakes": list,
    "summary": dict,
}
TARGET_KEYS = {
    "connections_count": int,
    "churn_per_s": int,
    "role": str,
    "port": NUMBER_OR_NONE,
    "pid": NUMBER_OR_NONE,
    "is_declared": bool,
}
HOST_KEYS = {
    "kernel_release": str,
    "boot_id": str,
    "netns_inode": NUMBER_OR_NONE,
    "netns_cookie": NUMBER_OR_NONE,
    "child_namespace_reasons": list,
    "memory_bytes": NUMBER_OR_NONE,
    "page_bytes": int,
    "has_cap_sys_resource": bool,
}
KNOB_KEYS = {
    "name": str,
    "status": str,
    "current": (int, list, str, type(None)),
    "wanted": (int, list, str, type(None)),
    "unit": str,
    "why": str,
    "scope": str,
    "restart_needed": bool,
    "restart_why": str,
    "evidence": list,
    "notes": list,
    "remedy": str,
    "holds_connections_count": NUMBER_OR_NONE,
    "writes": list,
}
EVIDENCE_KEYS = {"name": str, "total": int, "delta": NUMBER_OR_NONE, "unit": str, "is_alarming": bool}
WRITE_KEYS = {"path": str, "prior": str, "value": str}
MISTAKE_KEYS = {"file": str, "line_number": int, "key": str, "value": str, "mistake": str, "instead": str}
OUTCOME_KEYS = {"name": str, "path": str, "prior": str, "value": str, "outcome": str, "reason": str}
FILE_KEYS = {"path": str, "text": str, "outcome": str}
ALL_KEYS = (
    KEYS,
    TARGET_KEYS,
    HOST_KEYS,
    KNOB_KEYS,
    EVIDENCE_KEYS,
    WRITE_KEYS,
    MISTAKE_KEYS,
    OUTCOME_KEYS,
    FILE_KEYS,
)


class ExitStatus(Machine):
    def test_0_if_all_is_good(self):
        self.put(
            "/proc/self/limits", "Max open files            4096                 524288               files"
        )
        self.assertEqual(self.run_tune("check", *SMALL)[0], 0)

    def test_1_if_something_is_wanted(self):
        self.assertEqual(self.run_tune("check", *TARGET)[0], 1)

    def test_1_if_only_a_mistake_was_found(self):
        self.put(
            "/proc/self/limits", "Max open files            4096                 524288               files"
        )
        self.put("/etc/sysctl.d/x.conf", "net.ipv4.tcp_tw_recycle = 1")
        code, out, _ = self.run_tune("check", *SMALL)
        self.assertEqual(code, 1)
        self.assertIn("/etc/sysctl.d/x.conf:1", out)

    def test_0_once_all_that_was_wanted_is_applied(self):
        self.put(
            "/proc/self/limits", "Max open files            2000000              2000000              files"
        )
        self.assertEqual(self.run_tune("apply", *TARGET, "--yes")[0], 0)
        self.assertEqual(self.run_tune("check", *TARGET)[0], 0)

    def test_2_for_arguments_that_make_no_sense(self):
        for arguments in (
            ("frobnicate",),
            ("--connections", "many"),
            ("--churn", "5/min"),
            ("--role", "client"),
            ("--port", "70000"),
            ("--pid", "0"),
            ("--sample", "-1"),
            ("--also", "net.core.nonsense"),
            ("--unit", "../../evil"),
            ("apply", "--yes"),
            ("persist", "--connections", "5"),
        ):
            code, _, err = self.run_tune(*arguments)
            self.assertEqual(code, 2, arguments)
            self.assertTrue(err.startswith("tune: "), err)

    def test_check_is_the_default_and_says_what_it_assumed(self):
        self.assertIn("assumed", self.run_tune()[1])


class Json(Machine):
    def assert_keys(self, document, keys, where):
        self.assertEqual(set(document), set(keys), where)
        for key, kind in keys.items():
            self.assertIsInstance(document[key], kind, f"{where}.{key}")

    def assert_document(self, document, more=()):
        self.assert_keys({key: value for key, value in document.items() if key not in more}, KEYS, "document")
        self.assertEqual((document["schema"], document["schema_version"]), ("resound-tune", 1))
        self.assert_keys(document["target"], TARGET_KEYS, "target")
        self.assert_keys(document["host"], HOST_KEYS, "host")
        for knob in document["knobs"]:
            self.assert_keys(knob, KNOB_KEYS, "knob")
            self.assertIn(knob["status"], view.STATUSES)
            self.assertIn(knob["scope"], view.SCOPES)
            self.assertTrue(knob["why"] and knob["unit"])
            for evidence in knob["evidence"]:
                self.assert_keys(evidence, EVIDENCE_KEYS, "evidence")
            for write in knob["writes"]:
                self.assert_keys(write, WRITE_KEYS, "write")
            if knob["status"] == "wanted":
                self.assertTrue(knob["writes"] or knob["remedy"], knob["name"])
            else:
                self.assertEqual(knob["writes"], [], knob["name"])
        for mistake in document["mistakes"]:
            self.assert_keys(mistake, MISTAKE_KEYS, "mistake")
        counted = sum(document["summary"][f"{status}_count"] for status in view.STATUSES)
        self.assertEqual(counted, len(document["knobs"]))
        self.assertEqual(document["summary"]["mistakes_count"], len(document["mistakes"]))

    def test_every_command_prints_one_document_of_the_schema(self):
        self.put("/etc/sysctl.d/x.conf", "net.ipv4.tcp_tw_recycle = 1")
        self.assert_document(self.run_json("check", *TARGET))
        for command in (("apply", *TARGET), ("apply", *TARGET, "--yes"), ("revert",)):
            document = self.run_json(*command)
            self.assert_document(document, {"outcomes", "is_dry_run"})
            self.assertTrue(document["outcomes"])
            for outcome in document["outcomes"]:
                self.assert_keys(outcome, OUTCOME_KEYS, "outcome")
        document = self.run_json("persist", *SMALL)
        self.assert_document(document, {"files", "warnings", "is_dry_run"})
        for file in document["files"]:
            self.assert_keys(file, FILE_KEYS, "file")

    def test_numbers_are_numbers_and_words_are_words(self):
        found = {knob["name"]: knob["current"] for knob in self.run_json("check", *TARGET)["knobs"]}
        self.assertEqual(found["net.core.somaxconn"], 4096)
        self.assertEqual(found["net.ipv4.tcp_mem"], [190000, 250000, 380000])
        self.assertEqual(found["cpufreq.scaling_governor"], "performance")
        self.assertEqual(found["net.ipv4.ip_local_reserved_ports"], "")

    def test_the_first_limit_is_the_smallest(self):
        limit = self.run_json("check", *TARGET)["first_limit"]
        self.assertEqual(limit, {"name": "RLIMIT_NOFILE", "holds_connections_count": 768})

    def test_an_error_is_a_document_too(self):
        document = self.run_json("apply", "--yes")
        self.assertEqual(document["exit_code"], 2)
        self.assertIn("declared target", document["error"])


class Docs(Machine):
    def test_name_every_knob_and_every_mistake(self):
        with open(DOCS, encoding="utf-8") as file:
            text = file.read()
        names = set(self.findings(port=9001)) | set(self.findings(10, 10, "generator", port=9001))
        missing = [name for name in sorted(names) + sorted(mistakes.RULES) if f"`{name}`" not in text]
        self.assertEqual(missing, [])

    def test_name_every_key_of_the_json_document(self):
        with open(DOCS, encoding="utf-8") as file:
            text = file.read()
        keys = set().union(*ALL_KEYS, {"outcomes", "is_dry_run", "files", "warnings", "error"})
        self.assertEqual([key for key in sorted(keys) if f"`{key}`" not in text], [])
        self.assertIn(f"`schema_version` is {report.SCHEMA_VERSION}", text)


class TheScript(unittest.TestCase):
    def test_help_names_every_command_and_option(self):
        done = subprocess.run([TUNE_SH, "--help"], capture_output=True, text=True, check=True)
        for word in (
            "check",
            "apply",
            "revert",
            "persist",
            "--yes",
            "--json",
            "--root",
            "--state-dir",
            "exit status",
        ):
            self.assertIn(word, done.stdout)

    def test_works_from_any_directory_and_through_a_link(self):
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            link = os.path.join(directory, "tune")
            os.symlink(TUNE_SH, link)
            done = subprocess.run(
                [link, "--sample", "0", "--json"], cwd="/", capture_output=True, text=True, check=False
            )
        self.assertIn(done.returncode, (0, 1), done.stderr)
        self.assertEqual(json.loads(done.stdout)["exit_code"], done.returncode)

    def test_a_reader_that_leaves_early_is_no_news(self):
        done = subprocess.run(
            ["bash", "-c", '"$0" --sample 0 | head -1; echo "${PIPESTATUS[0]}"', TUNE_SH],
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(done.stderr, "")
        self.assertIn(done.stdout.splitlines()[1], ("0", "1", "2"))

    def test_two_looks_at_the_counters_show_what_moved(self):
        done = subprocess.run([TUNE_SH, "--sample", "0.1"], capture_output=True, text=True, check=False)
        self.assertTrue(re.search(r"ListenOverflows [\d,]+ \([+-][\d,]+\)", done.stdout), done.stdout + done.stderr)
