"""What each knob wants for which target, over a machine in a directory."""

import unittest
from pathlib import Path

from fixture import Machine


class Server(Machine):
    def test_a_default_machine_carries_a_small_server_but_for_its_descriptors(self):
        wanted = {name for name, each in self.findings(100_000, 1000).items() if each.status == "wanted"}
        self.assertEqual(wanted, {"RLIMIT_NOFILE"})

    def test_one_million_connections_want_tcp_mem_in_the_kernels_proportions(self):
        finding = self.findings(1_000_000, 2000)["net.ipv4.tcp_mem"]
        self.assertEqual(finding.wanted, "750000 1000000 1500000")
        self.assertEqual(finding.scope, "global")

    def test_tcp_mem_is_held_to_half_of_the_memory(self):
        finding = self.findings(10_000_000, 2000)["net.ipv4.tcp_mem"]
        half = 8 * 2**30 // self.view().system.page_bytes()
        self.assertEqual(int(finding.wanted.split()[2]), half)
        self.assertTrue(any("half of the memory" in note for note in finding.notes))

    def test_the_backlog_is_one_second_of_churn_within_bounds(self):
        for churn, backlog in ((10, 1024), (2000, 2048), (5000, 8192), (10**6, 65535)):
            self.assertEqual(self.findings(10_000, churn)["listen.backlog"].wanted, str(backlog))
        self.assertEqual(self.findings(10_000, 5000)["net.core.somaxconn"].wanted, "8192")
        self.assertIn("listen()", self.findings(10_000, 5000)["net.core.somaxconn"].restart)

    def test_the_remedy_of_the_backlog_names_the_flag_that_the_server_has(self):
        config = Path(__file__).parents[2] / "src/config.rs"
        self.assertIn("pub backlog:", config.read_text())  # clap makes --backlog of it
        self.assertIn("--backlog 2048", self.findings(10_000, 2000)["listen.backlog"].remedy)

    def test_somaxconn_above_the_target_is_never_lowered(self):
        self.put_sysctl("net.core.somaxconn", "65535")
        finding = self.findings(10_000, 10)["net.core.somaxconn"]
        self.assertEqual((finding.status, finding.wanted, finding.writes), ("ok", "65535", []))

    def test_max_syn_backlog_counts_only_without_cookies(self):
        self.put_sysctl("net.ipv4.tcp_max_syn_backlog", "16")
        finding = self.findings(10_000, 1000)["net.ipv4.tcp_max_syn_backlog"]
        self.assertEqual(finding.status, "ok")
        self.assertTrue(any("changes nothing" in note for note in finding.notes))
        self.put_sysctl("net.ipv4.tcp_syncookies", "0")
        found = self.findings(10_000, 1000)
        # Three quarters of it must hold one backlog.
        self.assertEqual(found["net.ipv4.tcp_max_syn_backlog"].wanted, "1366")
        self.assertEqual(found["net.ipv4.tcp_syncookies"].wanted, "1")

    def test_time_wait_must_fit_for_sixty_seconds_of_churn(self):
        self.assertEqual(self.findings(10_000, 3000)["net.ipv4.tcp_max_tw_buckets"].wanted, "180000")
        self.assertEqual(self.findings(10_000, 2000)["net.ipv4.tcp_max_tw_buckets"].status, "ok")

    def test_fin_timeout_is_left_alone_whatever_it_is(self):
        for value in ("5", "60", "600"):
            self.put_sysctl("net.ipv4.tcp_fin_timeout", value)
            self.assertEqual(self.findings()["net.ipv4.tcp_fin_timeout"].status, "ok")

    def test_a_server_wants_neither_tw_reuse_nor_a_wide_port_range(self):
        found = self.findings(1_000_000, 5000)
        self.assertEqual(found["net.ipv4.tcp_tw_reuse"].status, "ok")
        self.assertEqual(found["net.ipv4.ip_local_port_range"].status, "ok")

    def test_its_port_is_reserved_if_outgoing_connections_could_take_it(self):
        self.assertEqual(self.findings(port=40000)["net.ipv4.ip_local_reserved_ports"].wanted, "40000")
        self.assertEqual(self.findings(port=9001)["net.ipv4.ip_local_reserved_ports"].status, "ok")

    def test_descriptors_follow_the_target(self):
        found = self.findings(2_000_000, 10)
        self.assertEqual(found["fs.nr_open"].wanted, str(2**21))
        self.assertEqual(found["fs.epoll.max_user_watches"].wanted, str(2 * 2_000_256))
        self.assertEqual(found["fs.file-max"].status, "ok")

    def test_the_queue_of_a_listener_is_shown_even_where_only_proc_is_there(self):
        view = self.view(port=9001)
        self.assertEqual(
            [(each.port, each.queue_len, each.backlog_max) for each in view.server_listeners],
            [(9001, 3, None)],
        )


class Descriptors(Machine):
    def nofile(self, connections):
        return self.findings(connections, 10)["RLIMIT_NOFILE"]

    def test_below_the_hard_limit_no_privilege_is_needed(self):
        self.assertIn("needs no privilege", self.nofile(100_000).remedy)

    def test_above_it_the_capability_decides(self):
        self.assertIn("LimitNOFILE=1000256", self.nofile(1_000_000).remedy)
        self.put("/proc/self/status", "CapEff:\t000001fffeffffff")  # all but CAP_SYS_RESOURCE
        finding = self.nofile(1_000_000)
        self.assertTrue(any("lacks CAP_SYS_RESOURCE" in note for note in finding.notes))
        self.assertIn("have the parent raise it", finding.remedy)

    def test_the_limits_of_a_named_process_are_its_own(self):
        self.put(
            "/proc/4711/limits", "Max open files            70000                70000               files"
        )
        self.assertEqual(self.findings(pid=4711)["RLIMIT_NOFILE"].current, "70000")
        self.assertEqual(self.findings(pid=4712)["RLIMIT_NOFILE"].status, "unknown")

    def test_unlimited_is_enough(self):
        self.put(
            "/proc/self/limits", "Max open files            unlimited            unlimited            files"
        )
        self.assertEqual(self.nofile(10**9).status, "ok")

    def test_limits_conf_is_told_apart_from_services(self):
        self.put("/etc/security/limits.conf", "# comment\n*  hard  nofile  1048576")
        self.assertTrue(any("limits.conf:2" in note for note in self.nofile(1000).notes))


class Generator(Machine):
    def findings(self, connections=10_000, churn=100, **more):
        return super().findings(connections, churn, "generator", **more)

    def test_wants_tw_reuse_1_although_2_is_the_larger_number(self):
        finding = self.findings()["net.ipv4.tcp_tw_reuse"]
        self.assertEqual((finding.current, finding.wanted, finding.status), ("2", "1", "wanted"))

    def test_wants_timestamps_which_tw_reuse_needs(self):
        self.put_sysctl("net.ipv4.tcp_timestamps", "0")
        self.assertEqual(self.findings()["net.ipv4.tcp_timestamps"].wanted, "1")

    def test_widens_the_ports_only_if_the_target_needs_them(self):
        self.assertEqual(self.findings(1000, 10)["net.ipv4.ip_local_port_range"].status, "ok")
        finding = self.findings(1000, 471)["net.ipv4.ip_local_port_range"]
        self.assertEqual((finding.wanted, finding.restart), ("1024 65535", ""))

    def test_says_how_many_source_addresses_the_target_needs(self):
        notes = self.findings(1_000_000, 0)["net.ipv4.ip_local_port_range"].notes
        self.assertTrue(any("16 source addresses" in note for note in notes), notes)

    def test_reserves_the_port_that_the_wide_range_would_take_in(self):
        self.assertEqual(
            self.findings(1_000_000, 0, port=9001)["net.ipv4.ip_local_reserved_ports"].wanted, "9001"
        )

    def test_needs_no_listen_backlog(self):
        self.assertNotIn("listen.backlog", self.findings())


class EvidenceDecides(Machine):
    def test_counters_that_moved_alarm(self):
        self.count(ListenOverflows=33, ListenDrops=33)
        finding = self.findings()["net.core.somaxconn"]
        self.assertEqual(
            [(each.total, each.is_alarming) for each in finding.evidence], [(33, True), (33, True)]
        )

    def test_what_max_syn_backlog_dropped_is_the_rest_of_listen_drops(self):
        self.put_sysctl("net.ipv4.tcp_syncookies", "0")
        self.count(ListenOverflows=33, ListenDrops=333, TCPReqQFullDrop=100)
        (evidence,) = self.findings()["net.ipv4.tcp_max_syn_backlog"].evidence
        self.assertEqual((evidence.total, evidence.is_alarming), (200, True))

    def test_netdev_max_backlog_is_raised_once_by_dropped_packets_and_not_again(self):
        self.assertEqual(self.findings()["net.core.netdev_max_backlog"].status, "ok")
        self.put("/proc/net/softnet_stat", "0000000b 00000002 00000000\n0000000c 00000010 00000000")
        finding = self.findings()["net.core.netdev_max_backlog"]
        self.assertEqual((finding.wanted, finding.evidence[0].total), ("10000", 18))
        self.put_sysctl("net.core.netdev_max_backlog", finding.wanted)
        self.assertEqual(self.findings()["net.core.netdev_max_backlog"].status, "ok")

    def test_orphans_near_the_limit_want_more(self):
        self.put("/proc/net/sockstat", "TCP: inuse 3 orphan 30000 tw 0 alloc 3 mem 190")
        self.assertEqual(self.findings()["net.ipv4.tcp_max_orphans"].wanted, "120000")

    def test_conntrack_matters_only_where_something_is_tracked(self):
        name = "net.netfilter.nf_conntrack_max"
        self.assertEqual(self.findings(1_000_000, 0)[name].status, "ok")
        self.put_sysctl("net.netfilter.nf_conntrack_count", "5")
        finding = self.findings(1_000_000, 1000)[name]
        self.assertEqual((finding.status, finding.wanted), ("wanted", "1120000"))
        self.assertIn("NOTRACK", finding.remedy)
        self.remove("/proc/sys/net/netfilter/nf_conntrack_max")
        self.assertEqual(self.findings(1_000_000, 0)[name].status, "absent")

    def test_memory_that_does_not_hold_the_idle_sockets_is_said(self):
        self.assertEqual(self.findings(10_000_000, 0)["memory.available"].status, "wanted")
        self.assertEqual(self.findings(1_000_000, 0)["memory.available"].status, "ok")

    def test_a_small_buffer_maximum_throttles_and_is_raised_alone(self):
        self.put_sysctl("net.ipv4.tcp_wmem", "4096 16384 65536")
        self.assertEqual(self.findings()["net.ipv4.tcp_wmem"].wanted, "4096 16384 4194304")


class Optional(Machine):
    def test_what_costs_something_is_wanted_only_when_named(self):
        name = "net.core.busy_poll"
        self.assertEqual(self.findings()[name].status, "optional")
        finding = self.findings(also=[name])[name]
        self.assertEqual((finding.status, finding.wanted), ("wanted", "50"))

    def test_a_notsent_lowat_that_is_lower_already_stays(self):
        name = "net.ipv4.tcp_notsent_lowat"
        self.put_sysctl(name, "4096")
        self.assertEqual(self.findings(also=[name])[name].status, "ok")

    def test_only_defrag_always_is_advised_against(self):
        path = "/sys/kernel/mm/transparent_hugepage/defrag"
        for word, status in (("always", "optional"), ("defer", "ok"), ("never", "ok"), ("madvise", "ok")):
            self.put(path, f"[{word}] other")
            self.assertEqual(self.findings()["transparent_hugepage.defrag"].status, status, word)


class Governor(Machine):
    DIRECTORY = "/sys/devices/system/cpu/cpu{}/cpufreq/"

    def test_every_core_is_written_that_is_not_there_yet(self):
        self.put(self.DIRECTORY.format(1) + "scaling_governor", "schedutil")
        self.put(self.DIRECTORY.format(1) + "scaling_available_governors", "performance schedutil")
        finding = self.findings()["cpufreq.scaling_governor"]
        self.assertEqual(finding.status, "wanted")
        self.assertEqual([write.prior for write in finding.writes], ["schedutil"])

    def test_without_frequency_control_it_is_absent(self):
        self.remove(self.DIRECTORY.format(0) + "scaling_governor")
        self.assertEqual(self.findings()["cpufreq.scaling_governor"].status, "absent")


class Sparse(unittest.TestCase):
    def test_a_machine_without_any_of_the_files_is_examined_all_the_same(self):
        class Empty(Machine):
            def runTest(self):
                pass

        import shutil

        machine = Empty()
        machine.setUp()
        self.addCleanup(machine.doCleanups)
        shutil.rmtree(machine.root + "/proc")
        shutil.rmtree(machine.root + "/sys")
        for role in ("server", "generator"):
            statuses = {
                each.status for each in machine.findings(10_000, 100, role, port=9001, pid=1).values()
            }
            self.assertEqual(statuses, {"absent", "unknown"})
