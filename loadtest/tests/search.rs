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
use resound_load::result::model::{Cell, Ending, LimitKind, Purpose, RunResult};
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
    let search = || {
        let output = resound_load(&[&words[..], &more, &SHORT].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        store::read(&out).unwrap()
    };
    // A machine that stalls for 4 ms at the end of a step this short leaves more than 1 % of it for later.
    let reached =
        |result: &RunResult| result.capacity.as_ref().is_some_and(|all| all.ending == Ending::EndOfRange);
    let result =
        (0..5).map(|_| search()).find(reached).expect("no search of five came to the end of its range");
    let capacity = result.capacity.as_ref().unwrap();
    assert_eq!(capacity.knee, Some(400.0));
    assert_eq!((capacity.knees.as_slice(), &capacity.limit), ([400.0, 400.0].as_slice(), &None));
    assert!(result.search.iter().any(|step| step.purpose == Some(Purpose::Confirm) && step.knee));
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
    let surface = |flag, list| ["search", url, "--over", "rate", "--slo", "p99<5ms", flag, list];
    let many = (1..=101).map(|count| count.to_string()).collect::<Vec<_>>().join(",");
    for (words, cure) in [
        (&surface("--surface-connections", &many)[..], "101 searches are more than 100"),
        (&["search", url, "--over", "rate"], "--slo"),
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
        (&surface("--surface-connections", "4,,5"), "an entry is missing (write 50,500,2000)"),
        (&surface("--surface-connections", "4,0"), "'0' is no count of connections"),
        (&surface("--surface-connections", "4,many"), "'many' is no count of connections"),
        (&surface("--surface-connections", "4,5,4"), "4 is there already"),
        (&surface("--surface-size", "1KiB,1024"), "1024 is there already, as 1KiB"),
        (&surface("--surface-size", "64:9,1KiB"), "part of a mixture"),
        (&surface("--surface-size", "20,20XB"), "not a unit"),
        // The second of them; nothing is driven before that is known.
        (&surface("--surface-size", "20,10"), "at least 20 octets"),
        (&["search", url, "--over", "in-flight", "--surface-size", "20,1KiB"], "they go with --over rate"),
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

/// Words that every search of a surface below begins with.
fn surface_words<'a>(url: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["search", url, "--over", "rate", "--slo", "p50<5s", "--from", "100", "--to", "200"];
    [&words[..], &["--repeat", "1", "--out", out], more, &SHORT].concat()
}

#[test]
fn a_surface_is_a_search_for_each_combination_in_one_result_and_one_report() {
    let real = Real::start();
    let out = common::scratch("search-surface");
    let pid = std::process::id().to_string();
    let more = ["--surface-connections", "3,5", "--surface-size", "20,1KiB", "--server-pid", &pid];
    let output = resound_load(&surface_words(&real.url, out.to_str().unwrap(), &more)).output().unwrap();
    let said = said(&output);
    assert!(said.contains("cell 4 of 4: 5 connections, 1KiB"), "{said}");

    // What this machine holds while it stalls is no rule: a cell may end below its range.
    let result = store::read(&out).unwrap();
    let answered = result.surface.iter().all(Cell::is_answered);
    assert_eq!(output.status.code(), Some(i32::from(!answered)), "{said}");
    let cells: Vec<_> = result.surface.iter().map(|cell| (cell.connections, cell.max_octets)).collect();
    assert_eq!(cells, [(3, 20), (3, 1024), (5, 20), (5, 1024)]);
    for cell in &result.surface {
        assert!(said.contains(&cell.knee()), "{}: {said}", cell.knee());
        assert!(cell.capacity.knee.is_some_and(|knee| (100.0..=200.0).contains(&knee)), "{said}");
        assert!(cell.capacity.ending != Ending::EndOfRange || cell.capacity.knee == Some(200.0), "{said}");
        assert_eq!((cell.capacity.spread_ratio, &cell.error), (Some(0.0), &None));
        assert_eq!(cell.steps[0].load, 100.0);
        assert!(cell.steps.iter().all(|step| (100.0..=200.0).contains(&step.load)));
        assert!(cell.steps.iter().all(|step| step.connections == cell.connections));
        assert!(cell.steps.iter().all(|step| step.latency_ns.contains_key("p99.9")));
        // Each has a report of its own as well.
        let own = store::read(&out.join(format!("cells/c{}-s{}", cell.connections, cell.size))).unwrap();
        assert_eq!((own.plan.connections, own.plan.sizes[0].max_octets), (cell.connections, cell.max_octets));
        assert_eq!(own.search, cell.steps);
    }
    let text = include_str!("../../docs/result-json.md");
    let value = serde_json::to_value(&result).unwrap();
    for key in value["surface"][0].as_object().unwrap().keys().chain([&"surface".to_owned()]) {
        assert!(text.contains(&format!("`{key}`")), "{key} is not documented");
    }

    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    let map = report.split("<table class=\"heat\">").nth(1).and_then(|rest| rest.split("</table>").next());
    let map = map.expect("a heat map");
    assert_eq!(map.matches("<b>").count(), 4);
    assert!(result.surface.iter().all(|cell| map.contains(&format!("<b>{}</b>", cell.knee()))), "{map}");
    for (index, cell) in result.surface.iter().enumerate() {
        assert!(report.contains(&cell.title()) && report.contains(&format!("id=\"search-{index}\"")));
    }
    assert!(report.contains("id=\"surface-0\"") && report.contains("id=\"surface-1\""));
    real.server.stop();
}

#[test]
fn a_combination_that_cannot_be_measured_says_so_and_ends_no_other() {
    let real = Real::start();
    let out = common::scratch("search-surface-limited");
    // As many descriptors as the shell allows: 400 connections cannot be.
    let words = surface_words(&real.url, out.to_str().unwrap(), &["--surface-connections", "400,4"]);
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 300 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_resound-load")])
        .args(words)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let result = store::read(&out).unwrap();
    let [many, few] = &result.surface[..] else { panic!("{}", said(&output)) };
    assert_eq!((many.knee().as_str(), many.limited_by()), ("< 100 msg/s", "descriptors"));
    assert!(few.capacity.knee.is_some(), "{}", said(&output));
    // The run is of the one that could be driven.
    assert_eq!(result.plan.connections, 4);
    real.server.stop();
}

#[test]
fn a_server_that_goes_away_ends_no_surface_and_what_was_found_is_kept() {
    let real = Real::start();
    let out = common::scratch("search-surface-gone");
    let more = ["--surface-connections", "2,3,4"];
    let (process, mut lines) = started(&surface_words(&real.url, out.to_str().unwrap(), &more));
    assert!(lines.by_ref().any(|line| line.starts_with("cell 2 of 3")));
    real.server.stop();
    let rest: Vec<String> = lines.collect();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:?}");
    let result = store::read(&out).unwrap();
    assert_eq!(result.surface[0].capacity.knee, Some(200.0));
    let last = &result.surface[2];
    assert_eq!((last.knee().as_str(), last.limited_by()), ("not measured", "an error"));
    assert!(last.error.as_ref().is_some_and(|error| error.contains("refused")), "{:?}", last.error);
    assert!(String::from_utf8_lossy(&output.stdout).contains(last.error.as_ref().unwrap()));
}

#[test]
fn an_interrupt_keeps_the_cells_so_far() {
    let real = Real::start();
    let out = common::scratch("search-surface-interrupt");
    let more = ["--surface-connections", "2,3,4,5"];
    let (process, mut lines) = started(&surface_words(&real.url, out.to_str().unwrap(), &more));
    assert!(lines.by_ref().any(|line| line.starts_with("cell 2 of 4")));
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.collect();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:?}");
    let result = store::read(&out).unwrap();
    assert_eq!(result.surface[0].capacity.ending, Ending::EndOfRange);
    assert!(result.surface.len() < 4, "{rest:?}");
    real.server.stop();
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
        for key in storm.as_object().unwrap().keys().chain(storm["windows"][0].as_object().unwrap().keys()) {
            assert!(text.contains(&format!("`{key}`")), "{key} is not documented");
        }
        // Judged more finely than by the second: 40 replies are there in each tenth, and five are needed.
        assert_eq!((&storm["interval_s"], &storm["samples_min"]), (&Value::from(0.1), &Value::from(5)));
        let stretches = storm["windows"].as_array().unwrap().iter();
        let lengths =
            stretches.map(|each| each["until_s"].as_f64().unwrap() - each["from_s"].as_f64().unwrap());
        assert!(lengths.fold(f64::MAX, f64::min) < 0.101);
        let report = std::fs::read_to_string(out.join("report.html")).unwrap();
        for words in
            ["RECOVERED", "id=\"storm\"", "id=\"reconnect\"", "id=\"connecting\"", "dropped", "all back: "]
        {
            assert!(report.contains(words), "{words}");
        }
        assert!(!report.contains("http://") && !report.contains("https://") && !report.contains("src="));
        // Those that went did so without a closing handshake, and the others kept theirs.
        let stayed = store::read(&out.join("stayed")).unwrap();
        assert_eq!((stayed.totals.connects, stayed.totals.lost), (30, 0));
        assert_eq!(store::read(&out.join("back")).unwrap().totals.upgrades, 10);
    }
    real.server.stop();
}
