//! Results on disk: what is written is read back whole, what is not a result is refused, and runs merge and compare.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Scenario, scratch};
use resound_load::result::compare::{self, CompareError, Condition, FailIf, Measure};
use resound_load::result::merge::MergeError;
use resound_load::result::model::{Arrival, FindingKind, Load, Mode, RunResult, VerdictKind};
use resound_load::result::recorder::{Metric, Recorder};
use resound_load::result::{merge, store, verdict};

fn small(seed: u64) -> Scenario {
    Scenario { seed, measured_s: 3, rate_per_s: 1_000, connections: 50, ..Scenario::default() }
}

fn judged(scenario: &Scenario) -> RunResult {
    let mut result = scenario.result();
    verdict::judge(&mut result, &["p99<5ms".parse().expect("valid")]);
    result
}

/// Runs one after the other, named.
fn repeated(seeds: std::ops::Range<u64>, change: impl Fn(&mut Scenario)) -> Vec<(PathBuf, RunResult)> {
    seeds
        .map(|seed| {
            let mut scenario = Scenario { started_unix_ms: 1_750_000_000_000 + seed * 60_000, ..small(seed) };
            change(&mut scenario);
            (PathBuf::from(format!("run-{seed}")), judged(&scenario))
        })
        .collect()
}

fn tool(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_resound-load")).args(args).output().expect("the tool starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).replace('\u{202f}', " ")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn a_result_is_read_back_as_it_was_written() {
    let dir = scratch("round-trip");
    for mode in [Mode::Echo, Mode::Broadcast] {
        let result = judged(&Scenario { mode, stall_at_s: Some(1), ..small(3) });
        store::write_dir(&result, &dir).expect("written");
        assert_eq!(store::read(&dir).expect("read"), result);
        // The directory is used again: what only the earlier result had is gone.
        for metric in Metric::ALL {
            let is_there = dir.join(format!("{}.hgrm", metric.name())).exists();
            assert_eq!(is_there, result.histograms.contains_key(&metric), "{metric:?} of {mode:?}");
        }
    }
    assert!(std::fs::read_dir(&dir).expect("it is there").all(|entry| {
        entry.expect("an entry").path().extension().is_some_and(|extension| extension != "partial")
    }));
}

#[test]
fn a_file_of_version_1_is_read_and_its_findings_get_their_kinds() {
    let dir = scratch("version-1");
    let result = judged(&Scenario { stall_at_s: Some(1), mode: Mode::Connect, ..small(3) });
    assert!(result.verdict.decisive().is_some_and(|finding| finding.kind == FindingKind::KernelEvent));
    let mut file = serde_json::to_value(&result).expect("JSON");
    file["schema_version"] = 1.into();
    for finding in file["verdict"]["findings"].as_array_mut().expect("a list") {
        let finding = finding.as_object_mut().expect("a finding");
        let verdict = finding.remove("verdict").expect("it speaks for a verdict");
        finding.insert("kind".to_owned(), verdict);
        finding.remove("counter");
        finding.remove("objective");
    }
    std::fs::write(dir.join(store::RESULT_FILE), file.to_string()).expect("written");
    assert_eq!(store::read(&dir).expect("read"), result);
}

#[test]
fn a_kind_of_finding_that_a_later_version_made_up_is_read_as_unknown() {
    let dir = scratch("unknown-kind");
    let result = judged(&Scenario { stall_at_s: Some(1), ..small(3) });
    let file = serde_json::to_string(&result).expect("JSON");
    assert!(file.contains("\"kind\":\"kernel_event\""));
    let path = dir.join(store::RESULT_FILE);
    std::fs::write(&path, file.replace("\"kernel_event\"", "\"moon_phase\"")).expect("written");
    let read = store::read(&path).expect("read");
    let kinds = |result: &RunResult| result.verdict.findings.iter().map(|each| each.kind).collect::<Vec<_>>();
    assert!(kinds(&read).contains(&FindingKind::Unknown) && kinds(&read).len() == kinds(&result).len());
}

#[test]
fn percentiles_in_the_file_are_for_people_and_not_believed() {
    let dir = scratch("not-believed");
    let result = judged(&small(4));
    store::write_dir(&result, &dir).expect("written");
    let path = dir.join(store::RESULT_FILE);
    let file = std::fs::read_to_string(&path).expect("read");
    let p99_ns = result.recorder(Metric::Response).expect("an echo run").quantile_ns(0.99);
    let line = format!("\"p99_ns\": {p99_ns},");
    assert!(file.contains(&line));
    std::fs::write(&path, file.replace(&line, "\"p99_ns\": 1,")).expect("written");
    assert_eq!(store::read(&dir).expect("read"), result);
}

#[test]
fn saturated_values_survive_the_file() {
    let mut recorder = Recorder::new();
    recorder.record_n(u64::MAX, 3);
    recorder.record(5);
    let json = serde_json::to_string(&recorder).expect("written");
    assert_eq!(serde_json::from_str::<Recorder>(&json).expect("read"), recorder);
    let broken = json.replace("hdr_v2_deflate_base64\":\"", "hdr_v2_deflate_base64\":\"AAAA");
    assert!(
        serde_json::from_str::<Recorder>(&broken).unwrap_err().to_string().contains("hdr_v2_deflate_base64")
    );
}

#[test]
fn what_is_no_result_is_refused_in_one_line_with_exit_code_2() {
    let dir = scratch("no-result");
    let file = dir.join(store::RESULT_FILE);
    let result = serde_json::to_string(&judged(&small(5))).expect("JSON");
    for (content, cause) in [
        ("{".to_owned(), "no schema"),
        ("{\"schema\":\"other\",\"schema_version\":1}".to_owned(), "its schema is 'other'"),
        (result.replace("\"schema_version\":2", "\"schema_version\":99"), "version is 99"),
        (result.replace("\"plan\":", "\"plans\":"), "missing field `plan`"),
    ] {
        std::fs::write(&file, content).expect("written");
        let output = tool(&["report", text(&dir)]);
        assert_eq!(output.status.code(), Some(2));
        let message = stderr(&output);
        assert!(message.contains(cause) && message.lines().count() == 1, "{message}");
    }
    let missing = tool(&["report", text(&dir.join("nowhere"))]);
    assert!(missing.status.code() == Some(2) && stderr(&missing).contains("cannot read"));
    let slo = tool(&["report", text(&file), "--slo", "p99,9<5ms"]);
    assert!(slo.status.code() == Some(2) && stderr(&slo).contains("write p99.9"), "{}", stderr(&slo));
}

#[test]
fn report_prints_the_table_and_its_exit_code_is_the_verdicts_where_objectives_are_given() {
    let dir = scratch("report");
    store::write_dir(&judged(&small(6)), &dir).expect("written");
    std::fs::remove_file(dir.join(store::REPORT_FILE)).expect("it was there");
    let plain = tool(&["report", text(&dir)]);
    assert_eq!(plain.status.code(), Some(0), "{}", stderr(&plain));
    assert!(dir.join(store::REPORT_FILE).exists());
    let table = stdout(&plain);
    for words in ["VALID", "response latency", "schedule lag", "p99.9", "1 000 msg/s", "Objectives", "PASS"] {
        assert!(table.contains(words), "'{words}' is not in\n{table}");
    }
    assert!(!table.contains('\u{1b}'), "no styles into a pipe");
    assert_eq!(tool(&["report", text(&dir), "--slo", "p99<1us"]).status.code(), Some(1));
    assert_eq!(tool(&["report", text(&dir), "--slo", "p99<5ms"]).status.code(), Some(0));
}

#[test]
fn repetitions_merge_to_the_histogram_of_all_messages() {
    let runs = repeated(0..3, |_| {});
    let mut expected = Recorder::new();
    for (_, run) in &runs {
        expected.merge(run.recorder(Metric::Response).expect("an echo run"));
    }
    let merged = merge::merge(runs.clone()).expect("alike");
    assert_eq!(merged.recorder(Metric::Response), Some(&expected));
    assert_eq!(merged.totals.sent, 9_000);
    assert_eq!((merged.measured_s, merged.plan.connections), (9.0, 50));
    assert!((merged.rates.sent_msgs_per_s - 1_000.0).abs() < 1e-6);
    assert_eq!(merged.manifest.merged_from.len(), 3);
    assert!(merged.intervals.is_sorted_by_key(|interval| interval.start_ms));
    assert_eq!(merged.intervals.len(), runs.iter().map(|(_, run)| run.intervals.len()).sum::<usize>());
}

#[test]
fn generators_at_once_add_their_rates_and_share_their_seconds() {
    let at = |seed, rate_per_s| {
        let scenario =
            Scenario { rate_per_s, started_unix_ms: 1_750_000_000_000 + seed * 100, ..small(seed) };
        (PathBuf::from(format!("generator-{seed}")), judged(&scenario))
    };
    let (a, b) = (at(0, 1_000), at(1, 3_000));
    let merged = merge::merge(vec![a.clone(), b]).expect("one load");
    assert_eq!(merged.plan.offered_msgs_per_s(), Some(4_000.0));
    assert_eq!((merged.measured_s, merged.plan.connections), (3.0, 100));
    assert!((merged.rates.sent_msgs_per_s - 4_000.0).abs() < 1e-6);
    assert_eq!(merged.intervals.len(), a.1.intervals.len());
    assert_eq!(merged.intervals.last().expect("a timeline").counts.sent, 4_000);
    assert_eq!(merged.generator_threads.len(), 4);
}

#[test]
fn runs_that_are_not_alike_are_not_merged_and_the_reason_is_given() {
    let refused = |change: fn(&mut RunResult)| {
        let mut runs = repeated(0..2, |_| {});
        change(&mut runs[1].1);
        merge::merge(runs).expect_err("they differ").to_string()
    };
    assert!(refused(|run| run.plan.mode = Mode::Connect).contains("run-0 and run-1 differ in mode"));
    assert!(refused(|run| run.plan.sizes[0].max_octets = 65).contains("sizes"));
    assert!(refused(|run| run.plan.deflate = true).contains("compression"));
    assert!(refused(|run| run.plan.connections = 51).contains("connections (50 and 51)"));
    let poisson = |run: &mut RunResult| {
        run.plan.load = Load::Open { arrival: Arrival::Poisson, offered_msgs_per_s: 1_000.0 };
    };
    assert!(refused(poisson).contains("Poisson"));
    // They start a second and a half after each other: neither one load nor repetitions.
    let overlap = refused(|run| run.manifest.started_unix_ms = 1_750_000_001_500);
    assert!(overlap.contains("overlap in time by 1.5 s of 3 s"), "{overlap}");
    assert_eq!(merge::merge(Vec::new()), Err(MergeError::NoRuns));
    let mut runs = repeated(0..2, |_| {});
    runs[1].1.plan.text = true;
    let Err(MergeError::Differ { first, other, difference }) = merge::merge(runs) else {
        panic!("they differ")
    };
    assert_eq!((text(&first), text(&other), difference.what), ("run-0", "run-1", "text or binary"));
}

#[test]
fn merge_writes_a_judged_result_with_the_objectives_of_its_runs() {
    let dir = scratch("merge");
    for (name, run) in repeated(0..2, |_| {}) {
        store::write_dir(&run, &dir.join(name)).expect("written");
    }
    let out = dir.join("all");
    let output = tool(&["merge", text(&dir.join("run-0")), text(&dir.join("run-1")), "--out", text(&out)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let merged = store::read(&out).expect("read");
    assert_eq!(merged.verdict.kind, VerdictKind::Valid);
    assert!(merged.slos.iter().any(|slo| slo.expression == "p99<5ms"));
    assert!(out.join("response.hgrm").exists() && out.join(store::LOG_FILE).exists());
}

#[test]
fn a_real_difference_between_runs_is_shown_and_chance_is_not() {
    let base = repeated(0..5, |_| {});
    let same = repeated(10..15, |_| {});
    let slower = repeated(20..25, |scenario| scenario.service_median_ns *= 1.3);
    let of = |changes: &[compare::Change], measure| {
        changes.iter().find(|change| change.measure == measure).expect("compared").clone()
    };
    let p50 = Measure::Quantile(0.5);
    let unchanged = of(&compare::compare(&base, &same, false).expect("alike"), p50);
    assert!(unchanged.low <= 0.0 && unchanged.high >= 0.0, "{unchanged:?}");
    let changed = of(&compare::compare(&base, &slower, false).expect("alike"), p50);
    assert!(changed.is_shown() && changed.low > 0.2 && changed.high < 0.4, "{changed:?}");
    assert!(changed.low < changed.change && changed.change < changed.high);
    let condition = |text: &str| text.parse::<FailIf>().expect("valid");
    let evaluated = |text: &str, new| condition(text).evaluate(&base, new).expect("compared").0;
    assert_eq!(evaluated("p50>+10%", &slower), Condition::Failed);
    assert_eq!(evaluated("p50>+50%", &slower), Condition::Clear);
    assert_eq!(evaluated("p50>+10%", &same), Condition::Clear);
    assert_eq!(evaluated("rate<-5%", &slower), Condition::Clear);
}

#[test]
fn a_change_within_the_noise_between_runs_is_undecided() {
    // Base runs differ among themselves by half.
    let noisy = |seeds| {
        repeated(seeds, |scenario| {
            scenario.service_median_ns *= 1.0 + 0.25 * (scenario.seed % 3) as f64;
        })
    };
    let (base, new) = (noisy(0..3), noisy(10..13));
    let condition: FailIf = "p99>+5%".parse().expect("valid");
    assert_eq!(condition.evaluate(&base, &new).expect("compared").0, Condition::Undecided);
    // Three times as far beyond the limit, and still no more than base runs differ among themselves.
    let slower = repeated(20..23, |scenario| {
        scenario.service_median_ns *= 1.15 * (1.0 + 0.25 * (scenario.seed % 3) as f64);
    });
    let (outcome, change) = condition.evaluate(&base, &slower).expect("compared");
    assert!(change.change > 0.10 && !change.is_shown(), "{change:?}");
    assert_eq!(outcome, Condition::Undecided);
}

#[test]
fn too_few_different_or_limited_runs_are_not_compared() {
    let base = repeated(0..3, |_| {});
    let refused = |new: &[(PathBuf, RunResult)]| compare::compare(&base, new, false).unwrap_err().to_string();
    assert!(refused(&repeated(3..5, |_| {})).contains("3 base and 2 new"));
    assert!(
        refused(&repeated(3..6, |scenario| scenario.connections = 60)).contains("connections (50 and 60)")
    );
    let mut limited = repeated(3..6, |_| {});
    limited[1].1.verdict.kind = VerdictKind::GeneratorLimited;
    let message = refused(&limited);
    assert!(
        message.contains("run-4 is GENERATOR-LIMITED") && message.contains("--accept-limited"),
        "{message}"
    );
    let Err(CompareError::Limited { run, verdict, .. }) = compare::compare(&base, &limited, false) else {
        panic!("{message}")
    };
    assert_eq!((text(&run), verdict), ("run-4", VerdictKind::GeneratorLimited));
    let few = compare::compare(&base, &limited[..2], true).map(|_| ());
    assert_eq!(few, Err(CompareError::TooFewRuns { base: 3, new: 2 }));
    assert!(compare::compare(&base, &limited, true).is_ok());
}

#[test]
fn compare_exits_with_1_only_when_a_condition_failed() {
    let dir = scratch("compare");
    let slower = repeated(20..23, |scenario| scenario.service_median_ns *= 1.5);
    for (side, runs) in [("base", repeated(0..3, |_| {})), ("new", slower)] {
        for (name, run) in runs {
            store::write_dir(&run, &dir.join(side).join(name)).expect("written");
        }
    }
    let (base, new, html) = (dir.join("base"), dir.join("new"), dir.join("compare.html"));
    let args = ["compare", text(&base), "--new", text(&new)];
    let plain = tool(&args);
    assert_eq!(plain.status.code(), Some(0), "{}", stderr(&plain));
    assert!(stdout(&plain).contains("3 base runs, 3 new runs") && stdout(&plain).contains("higher"));
    let failing = tool(&[&args[..], &["--fail-if", "p99>+10%", "--html", text(&html)]].concat());
    assert_eq!(failing.status.code(), Some(1), "{}", stderr(&failing));
    assert!(stdout(&failing).contains("FAILED"));
    assert!(std::fs::read_to_string(html).expect("written").contains("baseline response latency"));
    assert_eq!(tool(&[&args[..], &["--fail-if", "p99>+90%"]].concat()).status.code(), Some(0));
    assert_eq!(tool(&[&args[..], &["--fail-if", "p99>"]].concat()).status.code(), Some(2));
}
