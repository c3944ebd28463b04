//! `resound-load search` and `storm` as processes: against a real server and against faulty ones.

mod common;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use resound::config::Config;
use resound::server::Server;
use resound_load::result::capacity::{Ending, LimitKind};
use resound_load::result::model::RunResult;
use resound_load::result::store;
use serde_json::Value;
use support::{Faults, FaultyServer};

fn resound_load(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resound-load"));
    command.args(words);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The flags of short steps, with objectives that a busy machine meets, too.
const SHORT: [&str; 8] =
    ["--step-duration", "300ms", "--confirm-duration", "400ms", "--warmup", "100ms", "--cooldown", "50ms"];

/// The server itself, on a free port, in this process.
struct Real {
    server: Server,
    url: String,
}

impl Real {
    fn start() -> Self {
        use clap::Parser as _;
        let flags = ["resound", "--listen", "127.0.0.1:0", "--workers", "1", "--no-pin", "--io", "epoll"];
        let server = Server::start(Config::parse_from(flags)).expect("a server on a free port");
        let url = format!("{}/echo", server.urls().next().expect("it listens").trim_end_matches('/'));
        Self { server, url }
    }
}

#[test]
fn a_load_that_is_always_good_ends_the_range_and_the_report_holds_every_step() {
    let real = Real::start();
    let out = common::scratch("search-range");
    let pid = std::process::id().to_string();
    let words = ["search", &real.url, "--over", "rate", "--slo", "p50<5s", "--from", "100", "--to", "400"];
    let more = ["--repeat", "2", "-c", "4", "--server-pid", &pid, "--out", out.to_str().unwrap()];
    let output = resound_load(&[&words[..], &more, &SHORT].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let result = store::read(&out).unwrap();
    let capacity = result.capacity.as_ref().unwrap();
    assert_eq!((capacity.ending, capacity.knee), (Ending::EndOfRange, Some(400.0)));
    assert_eq!((capacity.knees.as_slice(), &capacity.limit), ([400.0, 400.0].as_slice(), &None));
    assert!(result.search.iter().any(|step| step.purpose == "confirm" && step.knee));
    assert!(result.search.iter().all(|step| step.seen.server_cpu_percent.is_some()));
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("Capacity over rate") && report.contains("Steps of the search"));
    documented(&result);
    real.server.stop();
}

/// docs/result-json.md names every key of a search.
fn documented(result: &RunResult) {
    let text = include_str!("../../docs/result-json.md");
    let value = serde_json::to_value(result).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let step = &value["search"][0];
    for key in keys(&value["capacity"]).into_iter().chain(keys(step)).chain(keys(&step["seen"])) {
        assert!(text.contains(&format!("`{key}`")), "{key} is not documented");
    }
}

#[test]
fn a_server_that_breaks_messages_is_never_good_and_that_is_the_limit() {
    let server = FaultyServer::start(Faults { duplicate_one_in: Some(7), ..Faults::default() }).unwrap();
    let out = common::scratch("search-never");
    let words =
        ["search", &server.url(), "--over", "rate", "--slo", "p50<5s", "--from", "100", "--drain", "200ms"];
    let output =
        resound_load(&[&words[..], &["--out", out.to_str().unwrap()], &SHORT].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let capacity = store::read(&out).unwrap().capacity.unwrap();
    assert_eq!((capacity.ending, capacity.knee), (Ending::NeverGood, None));
    let limit = capacity.limit.unwrap();
    assert!(limit.cause.contains("duplicated"), "{}", limit.cause);
    assert!(limit.kind.is_of_the_server(), "{:?}", limit.kind);
}

#[test]
fn more_connections_than_descriptors_are_a_limit_with_its_arithmetic() {
    let real = Real::start();
    let out = common::scratch("search-descriptors");
    // As many descriptors as the shell allows: the step at 400 connections cannot be.
    let program = env!("CARGO_BIN_EXE_resound-load");
    let words =
        ["search", &real.url, "--over", "connections", "--rate", "200", "--slo", "p50<5s", "--from", "100"];
    let more = ["--to", "400", "--repeat", "1", "--precision", "50%", "--out", out.to_str().unwrap()];
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 300 && exec \"$@\"", "sh", program])
        .args([&words[..], &more, &SHORT].concat())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let result = store::read(&out).unwrap();
    let capacity = result.capacity.unwrap();
    assert_eq!((capacity.ending, capacity.knee), (Ending::Found, Some(200.0)), "{}", said(&output));
    let limit = capacity.limit.unwrap();
    assert_eq!(limit.kind, LimitKind::Descriptors);
    assert!(limit.cause.contains("hard limit is 300"), "{}", limit.cause);
    real.server.stop();
}

#[test]
fn a_closed_loop_is_driven_at_every_level_and_too_few_make_no_law() {
    let real = Real::start();
    let out = common::scratch("search-in-flight");
    let words = ["search", &real.url, "--over", "in-flight", "--from", "2", "--to", "4", "--repeat", "1"];
    let output =
        resound_load(&[&words[..], &["--out", out.to_str().unwrap()], &SHORT].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let result = store::read(&out).unwrap();
    assert_eq!(result.search.iter().map(|step| step.load).collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
    let capacity = result.capacity.unwrap();
    assert_eq!((capacity.ending, capacity.law), (Ending::Swept, None));
    assert!(capacity.law_refused.unwrap().contains("levels of concurrency are too few"));
    real.server.stop();
}

#[test]
fn what_cannot_be_meant_is_one_line_and_exit_code_2() {
    let url = "ws://127.0.0.1:1/";
    for (words, cure) in [
        (&["search", url, "--over", "rate"][..], "--slo"),
        (&["search", url, "--over", "rate", "--slo", "p99<5ms", "--rate", "5"], "chooses the rate"),
        (&["search", url, "--over", "connections", "--slo", "p99<5ms"], "--rate-each"),
        (&["search", url, "--over", "subscribers", "--slo", "p99<5ms", "--rate", "5"], "--mode broadcast"),
        (&["search", url, "--over", "rate", "--slo", "p99<5ms", "--from", "9", "--to", "5"], "above --to"),
        (&["search", url, "--over", "in-flight", "--rate", "5"], "no rate"),
        (&["search", url, "--over", "rate", "--slo", "p99<5ms", "--max"], "in-flight"),
        (&["search", url, "--over", "rate", "--slo", "p99<5ms"], "no connection"),
        (
            &[
                "search",
                url,
                "--over",
                "connections",
                "--rate",
                "5",
                "--slo",
                "p99<5ms",
                "--from",
                "15000000",
                "--to",
                "16000000",
            ],
            "not even the first load",
        ),
        (&["storm", url, "--rate", "5", "-c", "1"], "it takes 2"),
        (&["storm", url, "--rate", "5", "--slo", "errors<1%"], "percentile"),
        (&["storm", url, "--rate", "5", "--mode", "broadcast"], "--mode echo"),
    ] {
        let output = resound_load(words).arg("--quiet").output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{words:?}: {said}");
        assert!(said.contains(cure), "{words:?}: {said}");
    }
}

/// Starts a search or a storm whose lines on standard error can be read as they come.
fn started(words: &[&str]) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut process =
        resound_load(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    (process, lines)
}

#[test]
fn an_interrupt_keeps_the_steps_so_far() {
    let real = Real::start();
    let out = common::scratch("search-interrupt");
    let words = ["search", &real.url, "--over", "rate", "--slo", "p50<5s", "--from", "100"];
    let (process, mut lines) = started(&[&words[..], &["--out", out.to_str().unwrap()], &SHORT].concat());
    assert!(lines.by_ref().filter(|line| line.starts_with("grow")).nth(1).is_some());
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.collect();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:?}");
    let result = store::read(&out).unwrap();
    assert!(result.search.len() >= 2, "{rest:?}");
    let capacity = result.capacity.unwrap();
    assert_eq!((capacity.ending, capacity.knee.is_some()), (Ending::Interrupted, true));
    real.server.stop();
}

#[test]
fn a_storm_ends_with_every_connection_back_and_nothing_lost_by_the_others() {
    let real = Real::start();
    for cut in ["rst", "fin"] {
        let out = common::scratch(&format!("storm-{cut}"));
        let words = [
            "storm", &real.url, "-c", "40", "--rate", "400", "--drop", "25%", "--cut", cut, "--slo", "p50<5s",
        ];
        let more =
            ["--before", "300ms", "--after", "1s", "--warmup", "100ms", "--out", out.to_str().unwrap()];
        let output = resound_load(&[&words[..], &more].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let storm: Value =
            serde_json::from_str(&std::fs::read_to_string(out.join("storm.json")).unwrap()).unwrap();
        assert_eq!((&storm["dropped"], &storm["back"]), (&Value::from(10), &Value::from(10)));
        assert_eq!((&storm["recovered"], &storm["lost_by_others"]), (&Value::from(true), &Value::from(0)));
        assert_eq!(storm["cut"], cut);
        let text = include_str!("../../docs/capacity.md");
        for key in storm.as_object().unwrap().keys() {
            assert!(text.contains(&format!("`{key}`")), "{key} is not documented");
        }
        // Those that went did so without a closing handshake, and the others kept theirs.
        let stayed = store::read(&out.join("stayed")).unwrap();
        assert_eq!((stayed.totals.connects, stayed.totals.lost), (30, 0));
        assert_eq!(store::read(&out.join("back")).unwrap().totals.upgrades, 10);
    }
    real.server.stop();
}
