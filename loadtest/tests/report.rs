//! report.html in a real browser: every panel is drawn, nothing is fetched, and no script fails.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Scenario, scratch, skip};
use resound_load::result::model::{
    Capacity, Cell, Ending, Limit, LimitKind, Mode, Over, RunResult, SearchStep, VerdictKind,
};
use resound_load::result::{report, slo::Slo, store, verdict};

/// A run with something in every panel.
fn eventful() -> RunResult {
    let scenario = Scenario { stall_at_s: Some(8), measured_s: 30, ..Scenario::default() };
    let mut result = scenario.result();
    let slos: Vec<Slo> =
        ["p99.9<5ms", "errors<0.1%", "achieved>=99%"].map(|slo| slo.parse().expect("valid")).into();
    verdict::judge(&mut result, &slos);
    result
}

/// The steps of a made-up search.
fn search_steps() -> Vec<SearchStep> {
    (1..=12)
        .map(|step| {
            let load = 1000.0 * f64::from(step);
            // A queue near its limit.
            let latency = |base: f64| (base / (1.0 - load / 13_000.0)) as u64;
            let latency_ns = [("p50", 9e4), ("p99", 3e5), ("p99.9", 9e5), ("max", 3e6)];
            SearchStep {
                over: Over::Rate,
                load,
                achieved_msgs_per_s: load,
                latency_ns: latency_ns
                    .into_iter()
                    .map(|(name, base)| (name.to_owned(), latency(base)))
                    .collect::<BTreeMap<_, _>>(),
                verdict: if step > 10 { VerdictKind::SloMiss } else { VerdictKind::Valid },
                cause: String::new(),
                knee: step == 10,
                ..SearchStep::default()
            }
        })
        .collect()
}

fn chromium() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let candidates = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&paths)
        .flat_map(|dir| candidates.map(|name| dir.join(name)))
        .find(|path| path.exists())
}

/// Opens the page and returns the document after its scripts ran, and what the browser logged.
fn open(browser: &Path, page: &Path, profile: &Path) -> (String, String) {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--v=0", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn charts(html: &str) -> Vec<&str> {
    html.split("<figure class=\"chart\" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn every_panel_is_drawn_in_a_browser_without_script_errors() {
    let Some(browser) = chromium() else {
        return skip("no Chromium on the PATH (apt-get install chromium-headless-shell)");
    };
    let dir = scratch("report-browser");
    let mut result = eventful();
    result.search = search_steps();
    let baseline = Scenario { seed: 2, service_median_ns: 150_000.0, ..Scenario::default() }.result();
    let page = dir.join("report.html");
    store::write_report(&result, Some(&baseline), &page).expect("written");
    let (dom, log) = open(&browser, &page, &dir.join("profile"));
    let expected = [
        "search",
        "spectrum",
        "timeline",
        "rate",
        "in-flight",
        "server-cpu",
        "server-memory",
        "kernel",
        "lag",
        "generator-cpu",
        "connecting",
    ];
    assert_eq!(charts(&dom), expected);
    // The script writes this last, so its being there says that it ran to its end.
    assert!(dom.contains(&format!("data-ready=\"{}\"", expected.len())), "the script did not finish:\n{log}");
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert_eq!(complaints, Vec::<&str>::new());
    for figure in dom.split("<figure class=\"chart\"").skip(1) {
        let figure = figure.split("</figure>").next().expect("a figure ends");
        let drawn = figure.contains("<path class=\"line") || figure.contains("<circle");
        assert!(drawn && !figure.contains("NaN") && !figure.contains("inf"), "{}", &figure[..200]);
    }
}

/// A made-up surface of 2 x 2, of which the last was limited by the generator from the start.
fn surface() -> Vec<Cell> {
    let limit = Limit {
        kind: LimitKind::Generator,
        cause: "the generator was late".to_owned(),
        cure: String::new(),
        counter: None,
    };
    let cell = |connections, size: &str, told: bool| Cell {
        connections,
        size: size.to_owned(),
        min_octets: 20,
        max_octets: 20,
        capacity: Capacity {
            over: Over::Rate,
            ending: if told { Ending::Found } else { Ending::Unknown },
            knee: told.then_some(10_000.0),
            knees: if told { vec![10_000.0, 10_500.0] } else { Vec::new() },
            spread_ratio: told.then_some(0.05),
            precision_ratio: 0.05,
            limit: (!told).then(|| limit.clone()),
            msgs_per_s_per_server_core: told.then_some(250_000.0),
            connection: None,
            law: None,
            law_refused: None,
        },
        steps: search_steps()
            .into_iter()
            .map(|step| SearchStep {
                good: told && step.verdict == VerdictKind::Valid,
                knee: told && step.knee,
                limit: (!told).then(|| limit.clone()),
                ..step
            })
            .collect(),
        error: None,
    };
    vec![cell(50, "20", true), cell(50, "1KiB", true), cell(500, "20", true), cell(500, "1KiB", false)]
}

#[test]
fn a_surface_is_drawn_in_a_browser_with_every_cell() {
    let Some(browser) = chromium() else {
        return skip("no Chromium on the PATH (apt-get install chromium-headless-shell)");
    };
    let dir = scratch("report-surface");
    let mut result = eventful();
    result.surface = surface();
    result.search = result.surface[0].steps.clone();
    result.capacity = Some(result.surface[0].capacity.clone());
    let page = dir.join("report.html");
    store::write_report(&result, None, &page).expect("written");
    let (dom, log) = open(&browser, &page, &dir.join("profile"));
    let drawn = charts(&dom);
    assert_eq!(
        drawn[..6],
        ["surface-0", "surface-1", "search-0", "search-1", "search-2", "search-3"],
        "{drawn:?}"
    );
    assert!(dom.contains(&format!("data-ready=\"{}\"", drawn.len())), "the script did not finish:\n{log}");
    let map = dom.split("<table class=\"heat\">").nth(1).and_then(|rest| rest.split("</table>").next());
    let map = map.expect("a heat map");
    assert_eq!(map.matches("<td").count(), 4);
    assert_eq!(map.matches("(spread 5 %)").count(), 3);
    assert_eq!(map.matches("4 µs CPU/msg").count(), 3);
    assert!(map.contains("not measured") && map.contains("the generator"), "{map}");
    // What the generator limited says nothing about the server: of the second size there is one line.
    let panel = |name: &str| {
        let figure =
            dom.split(&format!("id=\"{name}\"")).nth(1).and_then(|rest| rest.split("</figure>").next());
        figure.expect("a panel").to_owned()
    };
    assert_eq!(panel("surface-0").matches("<path class=\"line").count(), 2);
    assert_eq!(panel("surface-1").matches("<path class=\"line").count(), 1);
    assert!(!dom.contains("NaN"));
}

#[test]
fn the_pointer_shows_the_values_under_it_with_their_units() {
    let Some(browser) = chromium() else {
        return skip("no Chromium on the PATH (apt-get install chromium-headless-shell)");
    };
    let dir = scratch("report-pointer");
    let page = dir.join("report.html");
    let moved = "<script>{ const svg = document.querySelector('#spectrum svg'); const box = svg.getBoundingClientRect();\
                 svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + box.width / 2,\
                 clientY: box.top + 50 })); }</script></body>";
    std::fs::write(&page, report::html(&eventful(), None).replace("</body>", moved)).expect("written");
    let (dom, log) = open(&browser, &page, &dir.join("profile"));
    let tip =
        dom.split("<div id=\"tip\"").nth(1).and_then(|rest| rest.split("<script>").next()).expect("a tip");
    for words in ["<b>p99", "schedule lag", "response latency", "µs"] {
        assert!(tip.contains(words), "'{words}' is not in {tip}\n{log}");
    }
}

#[test]
fn a_report_fetches_nothing() {
    let html = report::html(&eventful(), None);
    for reference in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!html.contains(reference), "{reference}");
    }
}

#[test]
fn what_a_server_or_a_user_said_cannot_become_markup() {
    let mut result = eventful();
    result.plan.url = "ws://host/<script>alert(1)</script>".to_owned();
    result.manifest.server.header = Some("<img onerror=x>\"'&".to_owned());
    let html = report::html(&result, None);
    assert!(!html.contains("<script>alert") && !html.contains("<img"));
    assert!(html.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn a_panel_without_data_is_not_there_and_broadcast_shows_the_spread() {
    let mut result =
        Scenario { mode: Mode::Broadcast, measured_s: 3, rate_per_s: 200, ..Scenario::default() }.result();
    for interval in &mut result.intervals {
        interval.sample = Default::default();
    }
    let html = report::html(&result, None);
    let shown = charts(&html);
    assert!(shown.contains(&"spread") && shown.contains(&"spectrum"), "{shown:?}");
    assert!(
        !shown.contains(&"server-cpu") && !shown.contains(&"search") && !shown.contains(&"kernel"),
        "{shown:?}"
    );
    // Where connecting is what the run is about, its spectrum comes first, and once.
    let connect =
        Scenario { mode: Mode::Connect, measured_s: 2, rate_per_s: 200, ..Scenario::default() }.result();
    let html = report::html(&connect, None);
    let shown = charts(&html);
    assert_eq!(shown.iter().filter(|chart| **chart == "connecting").count(), 1);
    assert!(shown[0] == "connecting" && !shown.contains(&"spectrum"), "{shown:?}");
    let mut empty = result.clone();
    (empty.intervals, empty.histograms) = (Vec::new(), BTreeMap::new());
    assert_eq!(charts(&report::html(&empty, None)), Vec::<&str>::new());
}

#[test]
fn a_long_run_does_not_make_a_long_file() {
    let mut result = Scenario { measured_s: 5, ..Scenario::default() }.result();
    let one = result.intervals.last().expect("a timeline").clone();
    result.intervals = (0..3_600)
        .map(|second| resound_load::result::model::Interval { start_ms: second * 1000, ..one.clone() })
        .collect();
    let html = report::html(&result, None);
    assert!(html.len() < 2 << 20, "{} octets", html.len());
}
