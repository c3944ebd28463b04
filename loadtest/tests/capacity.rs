//! What is named as the limit of a step, from made-up results.

mod common;

use common::Scenario;
use resound_load::result::capacity::step;
use resound_load::result::model::{Limit, LimitKind, Mode, Over, RunResult, Seen, VerdictKind};
use resound_load::result::recorder::{ErrorKind, Metric, Recorder};
use resound_load::result::verdict;

const MISSED: &str = "p99<10us";

/// The limit of a run that was judged by this objective, with this CPU of its server (percent of a core).
fn limit_of(mut result: RunResult, slo: &str, server_cpu_percent: Option<f64>, seen: Seen) -> Option<Limit> {
    for interval in &mut result.intervals {
        interval.sample.server_cpu_percent = server_cpu_percent;
    }
    verdict::judge(&mut result, &[slo.parse().expect("valid")]);
    step(Over::Rate, 4_000.0, &result, seen).limit
}

fn seen(busy_threads: u32, machine_cpu_percent: f64) -> Seen {
    Seen {
        server_busy_threads: Some(busy_threads),
        machine_cpu_percent: Some(machine_cpu_percent),
        ..Seen::default()
    }
}

fn short() -> Scenario {
    Scenario { measured_s: 3, warmup_s: 1, ..Scenario::default() }
}

#[test]
fn a_good_step_has_no_limit() {
    assert_eq!(limit_of(short().result(), "p99<1s", Some(99.0), seen(1, 99.0)), None);
}

#[test]
fn a_missed_objective_is_named_after_what_was_at_its_end() {
    let kind = |cpu, seen| limit_of(short().result(), MISSED, cpu, seen).expect("it was missed").kind;
    assert_eq!(kind(Some(97.0), seen(1, 60.0)), LimitKind::ServerCpu);
    // The same CPU over two threads leaves half of each.
    assert_eq!(kind(Some(97.0), seen(2, 60.0)), LimitKind::Objective);
    assert_eq!(kind(Some(190.0), seen(2, 60.0)), LimitKind::ServerCpu);
    assert_eq!(kind(Some(50.0), seen(1, 99.0)), LimitKind::MachineCpu);
    assert_eq!(kind(None, seen(1, 99.0)), LimitKind::MachineCpu);
    assert_eq!(kind(None, Seen::default()), LimitKind::Objective);
}

#[test]
fn the_generator_is_named_and_not_the_server_however_busy_that_is() {
    let lagging = Scenario { lag_median_ns: 900_000.0, ..short() };
    let limit = limit_of(lagging.result(), MISSED, Some(100.0), seen(1, 100.0)).expect("it lagged");
    assert_eq!(limit.kind, LimitKind::Generator);
    assert!(!limit.kind.is_of_the_server());
}

#[test]
fn a_kernel_queue_comes_with_its_counter_and_the_knob_that_cures_it() {
    let overflowing = Scenario { mode: Mode::Connect, stall_at_s: Some(1), ..short() };
    let limit =
        limit_of(overflowing.result(), "upgrade:p99<1s", Some(20.0), seen(1, 40.0)).expect("it overflowed");
    assert_eq!(
        (limit.kind, limit.counter.as_deref()),
        (LimitKind::KernelQueue, Some("TcpExt.ListenOverflows"))
    );
    assert!(
        limit.cure.contains("net.core.somaxconn") && limit.cure.contains("scripts/tune.sh"),
        "{}",
        limit.cure
    );
    assert!(limit.kind.is_of_the_server());
}

#[test]
fn errors_name_the_limit_that_was_reached() {
    for (error, kind) in [
        (ErrorKind::DescriptorsExhausted, LimitKind::Descriptors),
        (ErrorKind::AddressNotAvailable, LimitKind::Ports),
        (ErrorKind::KernelMemory, LimitKind::Memory),
    ] {
        let mut result = short().result();
        result.totals.errors.count(error);
        let limit = limit_of(result, "p99<1s", Some(20.0), seen(1, 40.0)).expect("a limit was reached");
        assert_eq!(limit.kind, kind);
        assert!(limit.cure.contains("scripts/tune.sh"), "{}", limit.cure);
    }
}

#[test]
fn the_limit_is_told_by_the_kind_of_a_finding_and_not_by_its_sentence() {
    let overflowing = Scenario { mode: Mode::Connect, stall_at_s: Some(1), ..short() };
    let mut result = overflowing.result();
    verdict::judge(&mut result, &["upgrade:p99<1s".parse().expect("valid")]);
    assert_eq!(result.verdict.kind, VerdictKind::EnvironmentLimited);
    result.verdict.findings.iter_mut().for_each(|finding| finding.cause = "in other words".to_owned());
    let limit = step(Over::Rate, 4_000.0, &result, seen(1, 40.0)).limit.expect("it overflowed");
    assert_eq!(
        (limit.kind, limit.counter.as_deref(), limit.cause.as_str()),
        (LimitKind::KernelQueue, Some("TcpExt.ListenOverflows"), "in other words")
    );
}

#[test]
fn segments_sent_again_are_the_machines_and_no_knob_is_named() {
    let mut result = short().result();
    result.kernel.counters_after.insert("Tcp.RetransSegs".to_owned(), 50_000);
    let mut slow = Recorder::new();
    slow.record_n(210_000_000, 12_000);
    result.histograms.insert(Metric::Response, slow);
    let limit = limit_of(result, "p99<1s", Some(20.0), seen(1, 40.0)).expect("segments were lost");
    assert_eq!((limit.kind, limit.counter.as_deref()), (LimitKind::Machine, Some("Tcp.RetransSegs")));
    assert!(!limit.cure.contains("scripts/tune.sh"), "{}", limit.cure);
}
