"""Merging never takes anything away; numbers are read as people write them."""

import random
import unittest

import fixture  # noqa: F401  (puts this folder on the path)
from values import (
    canonical,
    format_ports,
    join_ports,
    lower_each,
    parse_count,
    parse_ports,
    parse_rate,
    power_of_two_at_least,
    prefer,
    raise_each,
    widen_range,
)


class MergesOnlyRaise(unittest.TestCase):
    def test_no_number_of_a_merge_is_below_the_current_one(self):
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        for _ in range(2000):
            count = chance.choice((1, 2, 3))
            current, wanted = ([chance.randrange(10**7) for _ in range(count)] for _ in range(2))
            merged = raise_each(" ".join(map(str, current)), " ".join(map(str, wanted))).split()
            for before, want, after in zip(current, wanted, map(int, merged)):
                self.assertEqual(after, max(before, want), f"seed {seed}")

    def test_a_range_is_never_narrower_than_either(self):
        self.assertEqual(widen_range("32768 60999", "1024 65535"), "1024 65535")
        self.assertEqual(widen_range("512 50000", "1024 65535"), "512 65535")

    def test_ports_are_joined_and_written_as_the_kernel_writes_them(self):
        self.assertEqual(join_ports("", "9001"), "9001")
        self.assertEqual(join_ports("9000,9002-9003", "9001"), "9000-9003")
        seed = random.randrange(2**32)
        chance = random.Random(seed)
        for _ in range(200):
            ports = frozenset(chance.sample(range(1, 40), chance.randrange(1, 30)))
            self.assertEqual(parse_ports(format_ports(ports)), ports, f"seed {seed}")

    def test_tw_reuse_ranks_1_above_the_default_2(self):
        merge = prefer("0", "2", "1")
        self.assertEqual([merge(current, "1") for current in ("0", "1", "2")], ["1", "1", "1"])

    def test_an_unknown_mode_is_left_alone(self):
        self.assertEqual(prefer("0", "2", "1")("7", "1"), "7")

    def test_lowering_is_as_strict(self):
        self.assertEqual(lower_each("4294967295", "131072"), "131072")
        self.assertEqual(lower_each("1000", "131072"), "1000")


class Spelling(unittest.TestCase):
    def test_the_chosen_word_of_a_list_is_the_value(self):
        path = "/sys/kernel/mm/transparent_hugepage/enabled"
        self.assertEqual(canonical(path, "always [madvise] never\n"), "madvise")

    def test_blanks_do_not_matter(self):
        self.assertEqual(canonical("/proc/sys/net/ipv4/tcp_mem", "1\t2\t 3\n"), "1 2 3")

    def test_counts_and_rates(self):
        self.assertEqual(
            [parse_count(text) for text in ("200k", "1M", "1_000", "7")], [200_000, 1_000_000, 1000, 7]
        )
        self.assertEqual([parse_rate(text) for text in ("2000/s", "2k/s", "5")], [2000, 2000, 5])
        for text in ("", "-1", "1.5", "k", "1/min", "2000/", "٣"):
            with self.assertRaises(ValueError, msg=text):
                parse_rate(text)

    def test_powers_of_two(self):
        self.assertEqual(
            [power_of_two_at_least(n) for n in (0, 1, 2, 3, 1024, 1025)], [1, 1, 2, 4, 1024, 2048]
        )
