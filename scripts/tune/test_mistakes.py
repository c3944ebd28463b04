"""Popular mistakes are found in the files of the boot, with file and line, and nothing else is."""

import mistakes as subject
from fixture import Machine

# One bad value for every rule, and a piece of what is said about it.
BAD = {
    "net.ipv4.tcp_tw_recycle": ("1", "gone since Linux 4.12"),
    "net.ipv4.tcp_max_tw_buckets": ("5000", "cut short silently"),
    "net.ipv4.tcp_fin_timeout": ("10", "not the length of TIME_WAIT"),
    "net.ipv4.tcp_mem": ("10000000 10000000 10000000", "38 GiB"),
    "net.ipv4.tcp_rmem": ("8192 131072 6291456", "minimum"),
    "net.ipv4.tcp_wmem": ("4096 8388608 16777216", "default, not the maximum"),
    "net.ipv4.tcp_syncookies": ("0", "TCPReqQFullDrop"),
    "net.ipv4.tcp_tw_reuse": ("1", "side that connects"),
    "net.ipv4.tcp_max_syn_backlog": ("65536", "changes nothing"),
    "net.ipv4.tcp_abort_on_overflow": ("1", "does not make connects fail fast"),
    "net.ipv4.tcp_timestamps": ("0", "needs timestamps"),
    "net.ipv4.tcp_sack": ("0", "lost segment"),
    "net.ipv4.tcp_window_scaling": ("0", "64 KiB"),
    "net.ipv4.tcp_moderate_rcvbuf": ("0", "autotuning"),
    "net.ipv4.tcp_low_latency": ("1", "4.14"),
    "net.ipv4.tcp_fack": ("1", "4.15"),
    "net.ipv4.ip_conntrack_max": ("65536", "nf_conntrack_max"),
    "net.ipv4.netfilter.ip_conntrack_max": ("65536", "nf_conntrack_max"),
    "net.ipv4.ip_local_port_range": ("1 65535", "system services"),
    "net.core.somaxconn": ("1024", "lowered"),
    "net.core.netdev_max_backlog": ("500", "lowered"),
    "fs.nr_open": ("65535", "lowered"),
    "fs.file-max": ("65535", "lowered"),
}
GOOD = """
# net.ipv4.tcp_tw_recycle = 1
; net.ipv4.tcp_fin_timeout = 1
net.ipv4.tcp_max_tw_buckets = 2000000
net.ipv4.tcp_fin_timeout = 60
net.ipv4.tcp_mem = 750000 1000000 1500000
net.ipv4.tcp_rmem = 4096 131072 33554432
net.ipv4.tcp_wmem = 4096 16384 4194304
net.ipv4.tcp_syncookies = 1
net.ipv4.tcp_tw_reuse = 2
net.ipv4.tcp_timestamps = 1
net.ipv4.ip_local_port_range = 1024 65535
net.core.somaxconn = 65535
net.core.netdev_max_backlog = 10000
fs.nr_open = 2097152
fs.file-max = 9223372036854775807
kernel.sysrq = 0
"""


class Found(Machine):
    FILE = "/etc/sysctl.d/50-recipe.conf"

    def find(self, text, role="server"):
        self.put(self.FILE, text)
        return subject.find(self.view(10_000, 100, role))

    def test_every_rule_has_a_bad_example_here(self):
        self.assertEqual(set(BAD), set(subject.RULES))

    def test_each_bad_line_is_named_with_file_line_and_reason(self):
        for key, (value, piece) in BAD.items():
            (found,) = self.find(f"# a recipe\n\n{key} = {value}")
            self.assertEqual(
                (found.file, found.line_number, found.key, found.value), (self.FILE, 3, key, value)
            )
            self.assertIn(piece, found.mistake, key)
            self.assertTrue(found.instead)

    def test_good_lines_and_comments_are_left_in_peace(self):
        self.assertEqual(self.find(GOOD), [])

    def test_slashes_blanks_and_a_leading_minus_are_the_same_key(self):
        for line in (
            "net/ipv4/tcp_tw_recycle=1",
            "-net.ipv4.tcp_tw_recycle   =   1",
            "  net.ipv4.tcp_tw_recycle =1",
        ):
            self.assertEqual([found.key for found in self.find(line)], ["net.ipv4.tcp_tw_recycle"], line)

    def test_a_value_the_kernel_would_not_take_is_a_mistake_not_a_crash(self):
        (found,) = self.find("net.ipv4.tcp_mem = lots")
        self.assertIn("not a value", found.mistake)

    def test_tw_reuse_is_right_on_the_generator(self):
        self.assertEqual(self.find("net.ipv4.tcp_tw_reuse = 1", "generator"), [])
        self.assertEqual(len(self.find("net.ipv4.tcp_tw_reuse = 0", "generator")), 1)

    def test_max_syn_backlog_is_right_without_cookies(self):
        self.put_sysctl("net.ipv4.tcp_syncookies", "0")
        self.assertEqual(self.find("net.ipv4.tcp_max_syn_backlog = 65536"), [])


class Order(Machine):
    def test_a_file_masks_those_of_its_name_further_down_and_sysctl_conf_is_last(self):
        for path in (
            "/usr/lib/sysctl.d/10-a.conf",
            "/etc/sysctl.d/10-a.conf",
            "/run/sysctl.d/05-b.conf",
            "/etc/sysctl.conf",
        ):
            self.put(path, "net.core.somaxconn = 1")
        files = [found.file for found in subject.find(self.view())]
        self.assertEqual(files, ["/run/sysctl.d/05-b.conf", "/etc/sysctl.d/10-a.conf", "/etc/sysctl.conf"])

    def test_a_link_to_sysctl_conf_is_not_two_mistakes(self):
        import os

        self.put("/etc/sysctl.conf", "net.core.somaxconn = 1")
        os.makedirs(self.root + "/etc/sysctl.d")
        os.symlink("../sysctl.conf", self.root + "/etc/sysctl.d/99-sysctl.conf")
        self.assertEqual([found.file for found in subject.find(self.view())], ["/etc/sysctl.conf"])
