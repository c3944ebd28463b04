"""Every demonstration still shows what docs/tuning.md says it shows; each checks its own claims."""

import glob
import os
import subprocess
import sys
import unittest

import test_namespace
from fixture import HERE

DEMOS = sorted(
    path for path in glob.glob(os.path.join(HERE, "demo", "*.py")) if os.path.basename(path) != "lab.py"
)


class Demonstrations(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        reason = test_namespace.why_impossible()
        if reason and os.environ.get("CI") == "true":
            raise AssertionError(f"these tests must run in CI: {reason}")
        if reason:
            print(f"skipped {cls.__name__}: {reason}", file=sys.stderr)
            raise unittest.SkipTest(reason)

    def test_each_ends_as_claimed_and_leaves_no_trace(self):
        self.assertEqual(len(DEMOS), 4)
        before = test_namespace.host_values()
        for path in DEMOS:
            done = subprocess.run(
                [sys.executable, "-B", path], capture_output=True, text=True, check=False, timeout=90
            )
            self.assertEqual(done.returncode, 0, f"{path}\n{done.stdout}\n{done.stderr}")
            self.assertIn("Send-Q" if "time_wait" not in path else "TIME_WAIT", done.stdout)
        self.assertEqual(test_namespace.host_values(), before)
