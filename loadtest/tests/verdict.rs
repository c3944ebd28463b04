//! Every verdict, reached by constructed results: each test breaks one thing in a run that is VALID without it.

mod common;

use common::Scenario;
use resound_load::result::model::{
    FindingKind, Load, Mode, RunResult, SloOutcome, ThreadUse, VerdictKind, Weight,
};
use resound_load::result::rates::in_flight_growth;
use resound_load::result::recorder::{ErrorKind, LATENCY_MAX_NS, Metric, Recorder};
use resound_load::result::slo::Slo;
use resound_load::result::verdict;

fn good() -> RunResult {
    Scenario { measured_s: 6, ..Scenario::default() }.result()
}

fn judged(mut result: RunResult, slos: &[&str]) -> RunResult {
    let slos: Vec<Slo> = slos.iter().map(|slo| slo.parse().expect("a valid objective")).collect();
    verdict::judge(&mut result, &slos);
    result
}

/// Checks the kind, and that the cause holds these words and numbers.
fn assert_verdict(result: &RunResult, kind: VerdictKind, cause: &[&str]) {
    assert_eq!(result.verdict.kind, kind, "{:#?}", result.verdict);
    for words in cause {
        let plain = result.verdict.cause.replace('\u{202f}', " ");
        assert!(plain.contains(words), "'{words}' is not in: {plain}");
    }
    assert_eq!(result.verdict.cure.is_empty(), kind == VerdictKind::Valid, "{:?}", result.verdict.cure);
}

fn notes(result: &RunResult) -> Vec<&str> {
    let notes = result.verdict.findings.iter().filter(|finding| finding.weight == Weight::Note);
    notes.map(|finding| finding.cause.as_str()).collect()
}

fn recorder(values: impl IntoIterator<Item = (u64, u64)>) -> Recorder {
    let mut recorder = Recorder::new();
    values.into_iter().for_each(|(value_ns, count)| recorder.record_n(value_ns, count));
    recorder
}

#[test]
fn a_healthy_run_is_valid_and_says_why() {
    let result = judged(good(), &["p99.9<5ms", "achieved>=99%"]);
    assert_verdict(
        &result,
        VerdictKind::Valid,
        &["kept its schedule", "42 % busy", "all 3 objectives were met"],
    );
}

#[test]
fn a_material_schedule_lag_is_the_generators() {
    let mut result = good();
    // Response p99 is near 440 µs.
    result.histograms.insert(Metric::Lag, recorder([(5_000, 23_000), (200_000, 1_000)]));
    assert_verdict(
        &judged(result, &[]),
        VerdictKind::GeneratorLimited,
        &["schedule lag p99 200 µs", "response latency"],
    );
}

#[test]
fn a_lag_that_is_little_beside_the_latency_decides_nothing() {
    let mut result = good();
    // The same lag under a hundred times the latency.
    result.histograms.insert(Metric::Lag, recorder([(5_000, 23_000), (200_000, 1_000)]));
    result.histograms.insert(Metric::Response, recorder([(40_000_000, 24_000)]));
    assert_verdict(&judged(result, &[]), VerdictKind::Valid, &["lag p99 200 µs beside", "40 ms"]);
}

#[test]
fn lag_beyond_the_percentile_an_objective_asks_for_counts_too() {
    let mut result = good();
    // Invisible at p99, all there is at p99.9.
    result.histograms.insert(Metric::Lag, recorder([(5_000, 23_900), (9_000_000, 100)]));
    result.histograms.insert(Metric::Response, recorder([(200_000, 23_900), (9_100_000, 100)]));
    assert_verdict(&judged(result.clone(), &[]), VerdictKind::Valid, &[]);
    let asked = judged(result, &["p99.9<20ms"]);
    assert_verdict(&asked, VerdictKind::GeneratorLimited, &["schedule lag p99.9 9 ms"]);
}

#[test]
fn a_busy_load_thread_is_the_generators_even_without_lag() {
    let mut result = good();
    result.generator_threads[1].cpu_percent = 96.0;
    assert_verdict(&judged(result, &[]), VerdictKind::GeneratorLimited, &["load-1 was 96 % busy"]);
    let mut noted = good();
    noted.generator_threads[1].cpu_percent = 80.0;
    let noted = judged(noted, &[]);
    assert_verdict(&noted, VerdictKind::Valid, &[]);
    assert!(notes(&noted).iter().any(|note| note.contains("80 % busy")));
}

#[test]
fn a_generator_that_skipped_sends_did_not_carry_out_the_plan() {
    let mut result = good();
    result.totals.sent = result.totals.scheduled * 95 / 100;
    result.totals.skipped = result.totals.scheduled - result.totals.sent;
    assert_verdict(
        &judged(result, &[]),
        VerdictKind::GeneratorLimited,
        &["sent 22 800 of 24 000", "1 200 skipped"],
    );
}

#[test]
fn a_server_that_falls_behind_misses_what_a_run_implies() {
    let mut result = good();
    result.intervals.last_mut().expect("a timeline").in_flight = 4_000;
    assert!(in_flight_growth(&result.intervals).expect("a measured part") > 3_900);
    result.rates.received_msgs_per_s = 3_500.0;
    let judged = judged(result, &[]);
    assert_verdict(
        &judged,
        VerdictKind::SloMiss,
        &["did not keep up", "87.5 % of 4 000 msg/s", "in flight grew by"],
    );
}

#[test]
fn closed_loop_with_a_busy_generator_needs_evidence_that_the_server_was_busier() {
    let closed = |server_cpu_percent: Option<f64>| {
        let mut result = good();
        result.plan.load = Load::Closed { in_flight: 16 };
        result.rates.offered_msgs_per_s = None;
        result.generator_threads = vec![ThreadUse { name: "load-0".to_owned(), cpu_percent: 97.0 }];
        for interval in &mut result.intervals {
            interval.sample.server_cpu_percent = server_cpu_percent;
        }
        judged(result, &[])
    };
    assert_verdict(
        &closed(Some(60.0)),
        VerdictKind::GeneratorLimited,
        &["60 % of a core", "the rate is the generator's"],
    );
    assert_verdict(&closed(None), VerdictKind::GeneratorLimited, &["nothing is known of the server"]);
    let fair = closed(Some(99.0));
    assert_verdict(&fair, VerdictKind::Valid, &[]);
    assert!(notes(&fair).iter().any(|note| note.contains("closed loop") && note.contains("not what users")));
}

#[test]
fn an_exhausted_limit_of_the_machine_is_the_environments() {
    for (kind, words) in [
        (ErrorKind::AddressNotAvailable, "EADDRNOTAVAIL"),
        (ErrorKind::DescriptorsExhausted, "EMFILE"),
        (ErrorKind::KernelMemory, "ENOBUFS"),
    ] {
        let mut result = good();
        result.totals.errors.add(kind, 3);
        assert_verdict(&judged(result, &[]), VerdictKind::EnvironmentLimited, &["3 ", words]);
    }
}

#[test]
fn an_overflowing_accept_queue_decides_where_connects_are_measured() {
    let scenario =
        Scenario { mode: Mode::Connect, stall_at_s: Some(2), measured_s: 6, ..Scenario::default() };
    let mut result = scenario.result();
    (result.totals.connects, result.totals.upgrades) = (24_000, 24_000);
    result.rates.upgrades_per_s = 4_000.0;
    let connect = judged(result, &[]);
    let cause = ["TcpExt.ListenOverflows +412", "+412 at t = 2 s", "accept queue"];
    assert_verdict(&connect, VerdictKind::EnvironmentLimited, &cause);
    assert!(connect.verdict.cure.contains("somaxconn"));
    // In echo mode the connections were opened before: worth a note.
    let echo =
        judged(Scenario { stall_at_s: Some(2), measured_s: 6, ..Scenario::default() }.result(), &["p99<1s"]);
    assert_verdict(&echo, VerdictKind::Valid, &[]);
    assert!(notes(&echo).iter().any(|note| note.contains("ListenOverflows")));
}

#[test]
fn dropped_packets_decide_once_they_could_fill_the_tail_and_are_seen_in_it() {
    let with_drops = |dropped: u64, slow: u64, slo: &str| {
        let mut result = good();
        result.kernel.counters_after.insert("softnet.dropped".to_owned(), dropped);
        let latencies = recorder([(400_000, 24_000 - slow), (210_000_000, slow)]);
        result.histograms.insert(Metric::Response, latencies);
        judged(result, &[slo])
    };
    // 48,000 messages both ways: a tenth of what is beyond p99.9 is 4.8 of them, and 2.4 of the 24,000 latencies.
    assert_verdict(&with_drops(5, 3, "p99<1s"), VerdictKind::EnvironmentLimited, &["softnet.dropped +5"]);
    assert_verdict(&with_drops(4, 3, "p99<1s"), VerdictKind::Valid, &[]);
    // A stricter percentile makes fewer matter.
    let strict = with_drops(4, 1, "p99.99<1s");
    assert_verdict(&strict, VerdictKind::EnvironmentLimited, &["softnet.dropped +4"]);
    // However many: nothing of this run waited for a retransmission, so they were somebody else's.
    let others = with_drops(50_000, 2, "p99<1s");
    assert_verdict(&others, VerdictKind::Valid, &[]);
    assert!(notes(&others).iter().any(|note| note.contains("softnet.dropped")));
}

#[test]
fn a_machine_that_stalls_is_the_environments_but_its_usual_lateness_is_not() {
    let mut result = good();
    // Wakes 300 µs late as a rule: a coarse timer, which delays no message.
    result.histograms.insert(Metric::Hiccup, recorder([(300_000, 6_000)]));
    assert_verdict(&judged(result.clone(), &[]), VerdictKind::Valid, &[]);
    // Now and then 30 ms late: nothing ran.
    result.histograms.insert(Metric::Hiccup, recorder([(300_000, 5_900), (30_000_000, 100)]));
    assert_verdict(
        &judged(result.clone(), &[]),
        VerdictKind::EnvironmentLimited,
        &["the machine stalled", "29.7 ms late at p99"],
    );
    // A generator that takes whole cores stalls the meter itself, and is to blame.
    result.generator_threads[0].cpu_percent = 99.0;
    assert_verdict(&judged(result, &[]), VerdictKind::GeneratorLimited, &["99 % busy"]);
}

#[test]
fn the_environment_weighs_more_than_the_generator_and_both_more_than_an_objective() {
    let mut result = good();
    result.histograms.insert(Metric::Lag, recorder([(5_000, 20_000), (300_000, 4_000)]));
    let generator = judged(result.clone(), &["p99<1us"]);
    assert_verdict(&generator, VerdictKind::GeneratorLimited, &["schedule lag"]);
    result.totals.errors.add(ErrorKind::DescriptorsExhausted, 1);
    let environment = judged(result, &["p99<1us"]);
    assert_verdict(&environment, VerdictKind::EnvironmentLimited, &["EMFILE"]);
    let kinds: Vec<VerdictKind> =
        environment.verdict.findings.iter().map(|finding| finding.verdict).collect();
    assert_eq!(kinds, [VerdictKind::EnvironmentLimited, VerdictKind::GeneratorLimited, VerdictKind::SloMiss]);
}

#[test]
fn a_missed_objective_of_an_honest_run_is_an_slo_miss() {
    let result = judged(good(), &["p99<100us"]);
    assert_verdict(
        &result,
        VerdictKind::SloMiss,
        &["p99<100us", "over 100 µs", "240 of 24 000 samples beyond"],
    );
    assert_eq!(result.slos[1].outcome, SloOutcome::Fail);
}

#[test]
fn one_broken_message_fails_the_run_unless_an_objective_tolerates_its_kind() {
    let broken = |slos: &[&str]| {
        let mut result = good();
        result.totals.corrupted = 1;
        judged(result, slos)
    };
    assert_verdict(&broken(&[]), VerdictKind::SloMiss, &["integrity", "1 corrupted"]);
    assert_verdict(&broken(&["lost<1%"]), VerdictKind::SloMiss, &["1 corrupted"]);
    assert_verdict(&broken(&["corrupted<1%"]), VerdictKind::Valid, &[]);
}

#[test]
fn a_percentile_is_not_passed_on_too_few_samples() {
    let mut result = good();
    result.histograms.insert(Metric::Response, recorder([(200_000, 2_994)]));
    let few = judged(result.clone(), &["p99.9<5ms"]);
    assert_verdict(
        &few,
        VerdictKind::TooFewSamples,
        &["no 95 % upper bound with 2 994 samples", "at least 2 995"],
    );
    result.histograms.insert(Metric::Response, recorder([(200_000, 2_995)]));
    assert_verdict(&judged(result.clone(), &["p99.9<5ms"]), VerdictKind::Valid, &[]);
    // The upper bound exists, and is over the limit.
    result.histograms.insert(Metric::Response, recorder([(200_000, 3_000), (8_000_000, 1)]));
    let wide = judged(result, &["p99.9<5ms"]);
    assert_verdict(&wide, VerdictKind::TooFewSamples, &["95 % upper bound 8"]);
}

#[test]
fn an_objective_about_nothing_recorded_is_not_passed() {
    let mut result = good();
    result.histograms.remove(&Metric::Spread);
    let spread = judged(result, &["spread:p99<5ms"]);
    assert_verdict(&spread, VerdictKind::TooFewSamples, &["no first-to-last spread was recorded"]);
}

#[test]
fn connections_that_were_never_open_are_missed() {
    let mut result = good();
    result.plan.connections = 1_000;
    result.totals.errors.add(ErrorKind::UpgradeRejected, 500);
    let missing = judged(result, &[]);
    assert_verdict(
        &missing,
        VerdictKind::SloMiss,
        &["only 500 of 1 000 connections", "500 upgrade-rejected"],
    );
}

#[test]
fn saturated_values_and_an_early_end_are_told() {
    let mut result = good();
    result.interrupted = true;
    result.histograms.get_mut(&Metric::Response).expect("an echo run").record(LATENCY_MAX_NS * 2);
    let told = judged(result, &[]);
    assert!(notes(&told).iter().any(|note| note.contains("1 value of response latency above 60 s")));
    assert!(notes(&told).iter().any(|note| note.contains("ended early")));
}

/// A run with what makes a finding of this kind, and an objective that has to do with it.
fn with_a(kind: FindingKind) -> (RunResult, &'static str) {
    let mut result = good();
    let error = match kind {
        FindingKind::SourcePortsExhausted => Some(ErrorKind::AddressNotAvailable),
        FindingKind::DescriptorsExhausted => Some(ErrorKind::DescriptorsExhausted),
        FindingKind::KernelMemoryExhausted => Some(ErrorKind::KernelMemory),
        _ => None,
    };
    error.into_iter().for_each(|error| result.totals.errors.count(error));
    match kind {
        FindingKind::KernelEvent => {
            result.kernel.counters_after.insert("TcpExt.TCPAbortOnMemory".to_owned(), 1);
        }
        FindingKind::MachineStalled => {
            result.histograms.insert(Metric::Hiccup, recorder([(300_000, 5_900), (30_000_000, 100)]));
        }
        FindingKind::LoadThreadBusy => result.generator_threads[1].cpu_percent = 96.0,
        FindingKind::ScheduleLag => {
            result.histograms.insert(Metric::Lag, recorder([(5_000, 23_000), (200_000, 1_000)]));
        }
        FindingKind::ScheduleNotSent => result.totals.sent = result.totals.scheduled / 2,
        FindingKind::ServerFellBehind => result.rates.received_msgs_per_s = 3_500.0,
        FindingKind::ConnectionsMissing => result.plan.connections = 1_000,
        FindingKind::ClosedLoop => {
            result.plan.load = Load::Closed { in_flight: 16 };
            result.rates.offered_msgs_per_s = None;
        }
        FindingKind::EndedEarly => result.interrupted = true,
        FindingKind::ValuesSaturated => {
            result.histograms.get_mut(&Metric::Response).expect("an echo run").record(LATENCY_MAX_NS * 2);
        }
        _ => {}
    }
    let slo = match kind {
        FindingKind::ObjectiveMissed => "p99<1us",
        FindingKind::ObjectiveUndecided => "p99.999<1s",
        _ => "p50<1s",
    };
    (result, slo)
}

#[test]
fn every_kind_of_finding_is_found_and_only_where_its_cause_is() {
    for kind in FindingKind::ALL {
        let (result, slo) = with_a(kind);
        let judged = judged(result, &[slo]);
        let kinds: Vec<FindingKind> = judged.verdict.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, [kind], "{:#?}", judged.verdict);
        let found = &judged.verdict.findings[0];
        assert_eq!(found.counter.is_some(), kind == FindingKind::KernelEvent, "{found:?}");
        assert_eq!(found.objective.as_deref(), kind.is_about_an_objective().then_some(slo), "{found:?}");
        // What decides is the verdict, and what is only worth knowing leaves it VALID.
        assert_eq!(judged.verdict.kind, found.verdict);
        assert_eq!(found.decides(), found.verdict != VerdictKind::Valid);
    }
}

#[test]
fn what_was_also_noticed_does_not_hang_on_sentences() {
    let mut result = good();
    result.generator_threads[1].cpu_percent = 96.0;
    result.interrupted = true;
    result.totals.errors.count(ErrorKind::DescriptorsExhausted);
    let mut judged = judged(result, &["p99<1us", "p99.999<1s"]);
    // As if all sentences were the same.
    let text = judged.verdict.cause.clone();
    judged.verdict.findings.iter_mut().for_each(|finding| finding.cause.clone_from(&text));
    assert_eq!(judged.verdict.decisive().map(|found| found.kind), Some(FindingKind::DescriptorsExhausted));
    let others: Vec<FindingKind> = judged.verdict.also_noticed().map(|finding| finding.kind).collect();
    assert_eq!(others, [FindingKind::LoadThreadBusy, FindingKind::EndedEarly]);
}

#[test]
fn a_run_without_a_deciding_finding_has_notes_only() {
    let mut result = good();
    result.interrupted = true;
    let judged = judged(result, &[]);
    assert_eq!((judged.verdict.kind, judged.verdict.decisive()), (VerdictKind::Valid, None));
    assert_eq!(judged.verdict.also_noticed().count(), 1);
}
