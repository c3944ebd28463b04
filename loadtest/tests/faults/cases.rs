// Included once for each of them, with `IO`: the flag and what it comes to.

use std::time::Duration;

use resound_load::result::model::{Phase, RunResult};
use resound_load::result::recorder::{ErrorKind, LATENCY_MAX_NS, Metric};

use super::runs::try_run;
use super::support::{Faults, FaultyServer};

fn run(server: &FaultyServer, flags: &str) -> RunResult {
    let is_connect = flags.contains("--mode connect");
    let with = |io: &str| try_run(&server.url(), &format!("{flags} --io {io}"));
    let result = match with(if is_connect { "auto" } else { IO.0 }) {
        Err(error) if format!("{error:#}").contains("io_uring cannot be used") => {
            assert!(std::env::var_os("CI").is_none(), "{error:#}");
            eprintln!("with epoll instead: {error:#}");
            with("epoll")
        }
        result => {
            let io = if is_connect { Io::Epoll } else { IO.1 };
            assert!(result.as_ref().is_ok_and(|result| result.plan.io == io), "{flags}: {result:#?}");
            result
        }
    };
    result.unwrap_or_else(|error| panic!("{flags}: {error:#}"))
}

fn quantile_ns(result: &RunResult, metric: Metric, quantile: f64) -> f64 {
    result.recorder(metric).unwrap_or_else(|| panic!("no {metric:?}")).quantile_ns(quantile) as f64
}

#[test]
fn a_faultless_run_counts_every_message_once() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 10 --rate 2000 -d 1s --warmup 200ms --threads 2");
    assert_eq!((result.totals.scheduled, result.totals.sent, result.totals.received), (2000, 2000, 2000));
    assert_eq!((result.totals.expected, result.totals.integrity_failures()), (2000, 0));
    assert_eq!((result.totals.connects, result.totals.upgrades, result.totals.errors.total()), (10, 10, 0));
    assert_eq!(result.totals.payload_sent_octets, 2000 * 64);
    assert_eq!(result.totals.payload_received_octets, 2000 * 64);
    for metric in [Metric::Response, Metric::Service, Metric::Lag] {
        assert_eq!(result.recorder(metric).unwrap().count(), 2000, "{metric:?}");
    }
    assert_eq!(result.generator_threads.len(), 2);
    assert!(!result.interrupted);
    // The probe's message and the warm-up's are not among them.
    assert_eq!(server.tally().received.load(std::sync::atomic::Ordering::SeqCst), 1 + 400 + 2000);
}

#[test]
fn the_timeline_adds_up_to_the_totals() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 4 --rate 1000 -d 2s --warmup 500ms --threads 2");
    let of = |phase: Phase| result.intervals.iter().filter(move |interval| interval.phase == phase);
    // What was due at the very end of a part may be sent after it.
    let sent = |phase| of(phase).map(|interval| interval.counts.sent).sum::<u64>();
    assert_eq!(sent(Phase::Measure) + sent(Phase::Drain), 2000);
    assert!((450..=500).contains(&sent(Phase::Warmup)), "{}", sent(Phase::Warmup));
    assert_eq!(of(Phase::Measure).map(|interval| interval.length_ms).sum::<u64>(), 2000);
    assert_eq!(of(Phase::Measure).next().unwrap().start_ms, 0);
    assert_eq!(of(Phase::Ramp).map(|interval| interval.counts.upgrades).sum::<u64>(), 4);
}

#[test]
fn latency_counts_from_the_intended_time_and_matches_the_analytic_curve_of_a_stall() {
    // 100 ms of every second: a message that is due at `t` before its end waits for `t`, so that 10 % of all
    // latencies are evenly spread over 0 to 100 ms.
    let stall = Duration::from_millis(100);
    let server =
        FaultyServer::start(Faults { stall: Some((10 * stall, stall)), ..Faults::default() }).unwrap();
    let open = run(&server, "-c 10 --rate 1000 -d 3s --warmup 0s");
    let lag_ns = open.recorder(Metric::Lag).unwrap().max_ns() as f64;
    let base_ns = quantile_ns(&open, Metric::Response, 0.5);
    for quantile in [0.92, 0.95, 0.99, 0.999] {
        let analytic_ns = (quantile - 0.9) / 0.1 * stall.as_nanos() as f64;
        let reported_ns = quantile_ns(&open, Metric::Response, quantile);
        // One message in 3,000 is a step of 1 ms here; beside it the histogram's 0.1 %, the lag that the
        // run itself reports, and what a reply takes anyway on a machine that does other things too.
        let tolerance_ns = 0.02 * stall.as_nanos() as f64 + lag_ns + 10.0 * base_ns;
        assert!(
            (reported_ns - analytic_ns).abs() <= tolerance_ns,
            "p{}: {reported_ns} ns, analytic {analytic_ns} ns, tolerance {tolerance_ns} ns",
            quantile * 100.0
        );
    }
    // The same server in a closed loop: each stall meets one message a connection, and hides the others.
    let closed = run(&server, "-c 10 --max -d 3s --warmup 0s");
    let hidden = quantile_ns(&closed, Metric::Response, 0.99) / quantile_ns(&open, Metric::Response, 0.99);
    assert!(hidden < 0.5, "a closed loop reports {hidden} of the p99 that there is");
}

#[test]
fn each_fault_is_counted_exactly() {
    for opcode in ["--binary", "--text"] {
        let server = FaultyServer::start(Faults {
            drop_one_in: Some(1000),
            duplicate_one_in: Some(1000),
            corrupt_one_in: Some(1000),
            reorder_one_in: Some(1000),
            ..Faults::default()
        })
        .unwrap();
        let result = run(
            &server,
            &format!("-c 3 --rate 10000 -d 1s --warmup 0s --drain 2s --threads 2 {opcode} --size 40-90"),
        );
        let totals = &result.totals;
        let counted = [totals.lost, totals.duplicated, totals.corrupted, totals.reordered];
        assert_eq!(counted, server.tally().faults(), "lost, duplicated, corrupted, reordered");
        assert!(counted.iter().all(|count| (8..=12).contains(count)), "one in a thousand each: {counted:?}");
        assert_eq!((totals.sent, totals.received), (10_000, 10_000 - totals.lost));
        assert_eq!(totals.errors.total(), 0);
    }
}

#[test]
fn each_fault_is_counted_exactly_in_a_pipelined_closed_loop() {
    let faults = Faults { drop_one_in: Some(1000), duplicate_one_in: Some(1000), ..Faults::default() };
    let server =
        FaultyServer::start(Faults { corrupt_one_in: Some(1000), reorder_one_in: Some(1000), ..faults })
            .unwrap();
    let result = run(&server, "-c 2 --max --in-flight 16 -d 1s --warmup 0s --drain 2s --size 20");
    let totals = &result.totals;
    let counted = [totals.lost, totals.duplicated, totals.corrupted, totals.reordered];
    assert_eq!(counted, server.tally().faults(), "lost, duplicated, corrupted, reordered");
    assert!(counted.iter().all(|count| *count > 0), "{counted:?}");
    assert_eq!(totals.sent, totals.received + totals.lost);
}

#[test]
fn a_closed_loop_survives_the_loss_of_everything_it_had_in_flight() {
    let server = FaultyServer::start(Faults { drop_one_in: Some(10), ..Faults::default() }).unwrap();
    let result = run(&server, "-c 1 --max --in-flight 1 -d 3s --warmup 0s --drain 0s --reply-timeout 200ms");
    // Without the timeout it would end after nine messages.
    assert!(result.totals.lost >= 2, "{:?}", result.totals);
    assert_eq!(result.totals.errors.of(ErrorKind::ReplyTimeout), result.totals.lost);
}

#[test]
fn every_subscriber_of_a_broadcast_is_accounted_for() {
    let server = FaultyServer::start(Faults { broadcast: true, ..Faults::default() }).unwrap();
    let result =
        run(&server, "--mode broadcast -c 12 --publishers 3 --rate 300 -d 1s --warmup 200ms --threads 2");
    assert_eq!((result.totals.sent, result.totals.expected), (300, 3600));
    assert_eq!((result.totals.received, result.totals.integrity_failures()), (3600, 0));
    assert_eq!(result.recorder(Metric::Delivery).unwrap().count(), 3600);
    assert_eq!(result.recorder(Metric::Spread).unwrap().count(), 300, "one for each complete publication");
    assert_eq!(result.recorder(Metric::Service).unwrap().count(), 300, "one for each publisher's own copy");
    let spread_ns = result.recorder(Metric::Spread).unwrap().max_ns();
    assert!(spread_ns > 0 && spread_ns <= result.recorder(Metric::Delivery).unwrap().max_ns());
}

#[test]
fn a_lost_publication_is_lost_for_every_subscriber() {
    let faults =
        Faults { broadcast: true, drop_one_in: Some(100), duplicate_one_in: Some(100), ..Faults::default() };
    let server = FaultyServer::start(faults).unwrap();
    let result = run(&server, "--mode broadcast -c 7 --rate 1000 -d 1s --warmup 0s --drain 1s --threads 2");
    let [dropped, duplicated, ..] = server.tally().faults();
    assert_eq!((dropped, duplicated), (10, 10));
    assert_eq!((result.totals.lost, result.totals.duplicated), (7 * dropped, 7 * duplicated));
    assert_eq!(result.totals.received, 7 * 990);
}

#[test]
fn connects_are_measured_whichever_side_closes_first() {
    for close_first in ["client", "server"] {
        let server = FaultyServer::start(Faults::default()).unwrap();
        let flags = format!(
            "--mode connect -c 50 --rate 100 -d 1s --warmup 0s --threads 2 --close-first {close_first}"
        );
        let result = run(&server, &flags);
        let totals = &result.totals;
        assert_eq!((totals.scheduled, totals.connects, totals.upgrades, totals.closes), (100, 100, 100, 100));
        assert_eq!((totals.sent, totals.received, totals.integrity_failures()), (100, 100, 0));
        assert_eq!(totals.errors.total(), 0, "{:?}", totals.errors);
        for metric in [Metric::Connect, Metric::Upgrade, Metric::FirstMessage, Metric::Response, Metric::Lag]
        {
            assert_eq!(result.recorder(metric).unwrap().count(), 100, "{metric:?}");
        }
    }
}

#[test]
fn a_server_that_accepts_slowly_shows_in_the_upgrade_and_not_in_the_lag() {
    // 20 ms each and 20 a second: every upgrade waits for its own accept, none for another's.
    let delay = Duration::from_millis(20);
    let server = FaultyServer::start(Faults { accept_delay: delay, ..Faults::default() }).unwrap();
    let result = run(&server, "--mode connect -c 50 --rate 20 -d 1s --warmup 0s");
    assert!(quantile_ns(&result, Metric::Upgrade, 0.5) >= 0.999 * delay.as_nanos() as f64);
    assert!(
        quantile_ns(&result, Metric::Connect, 0.5) < quantile_ns(&result, Metric::Upgrade, 0.5),
        "the kernel completes TCP handshakes without the server"
    );
    assert!(quantile_ns(&result, Metric::Response, 0.5) >= quantile_ns(&result, Metric::Upgrade, 0.5));
}

#[test]
fn a_server_that_leaves_a_thousand_upgrades_unanswered_is_not_asked_for_more() {
    // The probe and two connections.
    let server = FaultyServer::start(Faults { served_max: Some(3), ..Faults::default() }).unwrap();
    let result =
        run(&server, "-c 5000 --ramp 0 --connect-timeout 300ms --rate 100 -d 500ms --warmup 0s --threads 1");
    let totals = &result.totals;
    assert_eq!(totals.upgrades, 2);
    assert!((1000..3000).contains(&totals.connects), "{}", totals.connects);
    // Where the accept queue was full it is the TCP connect that was not answered.
    let timeouts = [ErrorKind::UpgradeTimeout, ErrorKind::ConnectTimeout].map(|kind| totals.errors.of(kind));
    assert_eq!(timeouts.iter().sum::<u64>(), totals.connects - 2, "{timeouts:?}");
    assert_eq!([totals.upgrade_failures, totals.connect_failures], timeouts);
    assert_eq!((totals.sent, totals.received), (50, 50), "those that are open are measured");
}

#[test]
fn churn_replaces_connections_and_loses_nothing() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 10 --rate 1000 --churn 50 -d 2s --warmup 0s --threads 2");
    assert_eq!((result.totals.sent, result.totals.received), (2000, 2000));
    assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0));
    assert!(result.totals.closes >= 90, "50 a second for two seconds: {}", result.totals.closes);
    assert_eq!(result.totals.upgrades, 10 + result.totals.closes);
}

#[test]
fn what_is_due_while_no_connection_is_open_is_sent_late_and_not_forgotten() {
    // One connection: each replacement leaves none.
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 1 --rate 2000 --churn 20 -d 2s --warmup 0s --threads 1");
    assert_eq!((result.totals.scheduled, result.totals.sent, result.totals.received), (4000, 4000, 4000));
    assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0));
    assert!(result.totals.closes >= 36, "20 a second for two seconds: {}", result.totals.closes);
}

#[test]
fn churn_of_a_closed_loop_loses_nothing() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 10 --max --in-flight 4 --churn 50 -d 2s --warmup 0s --threads 2");
    assert_eq!(result.totals.sent, result.totals.received);
    assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0));
    assert!(result.totals.closes >= 90, "50 a second for two seconds: {}", result.totals.closes);
    assert_eq!(result.totals.upgrades, 10 + result.totals.closes);
}

#[test]
fn a_closed_loop_of_more_than_sockets_hold_neither_stops_nor_loses_anything() {
    // Some 15 MiB in flight on each connection: both ends find the socket full.
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 3 --max --in-flight 16 -d 1s --warmup 0s --drain 30s --size 20:1,1MiB:9");
    assert!(result.totals.sent > 3, "{:?}", result.totals);
    assert_eq!(result.totals.sent, result.totals.received);
    assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0));
}

#[test]
fn sources_spread_the_connections_and_large_and_mixed_messages_pass() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let flags = "-c 6 --rate 200 -d 1s --warmup 0s --source 127.0.0.2-127.0.0.4 --size 20:5,100KiB:1,1MiB:1 \
                 --arrival poisson --subprotocol one --header X-Test:yes";
    let result = run(&server, flags);
    assert!(result.totals.sent > 100 && result.totals.sent == result.totals.received, "{:?}", result.totals);
    assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0));
    assert!(result.recorder(Metric::Response).unwrap().max_ns() < LATENCY_MAX_NS);
}

#[test]
fn the_same_seed_makes_the_same_sizes() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let octets = |seed| {
        let flags = format!("-c 2 --rate 500 -d 500ms --warmup 0s --size 20-2000 --seed {seed}");
        let totals = run(&server, &flags).totals;
        (totals.sent, totals.payload_sent_octets)
    };
    let first = octets(7);
    assert_eq!(first, octets(7));
    assert_ne!(first, octets(8));
}

#[test]
fn a_late_generator_that_skips_says_how_much() {
    // No machine sends ten million messages a second on one connection.
    let server = FaultyServer::start(Faults::default()).unwrap();
    let result = run(&server, "-c 1 --rate 10000000 -d 300ms --warmup 0s --late skip --size 20 --drain 30s");
    let totals = &result.totals;
    assert!(totals.skipped > 0);
    assert!(totals.sent + totals.skipped <= totals.scheduled);
    assert_eq!((totals.sent, totals.integrity_failures()), (totals.received, 0));
}

