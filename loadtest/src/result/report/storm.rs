//! report.html of a storm: the objective's percentile and the connections open over time, with the moments that count.

use maud::{Markup, html};

use super::super::model::{Phase, RunResult};
use super::super::recorder::Metric;
use super::super::slo::Slo;
use super::super::storm::{Placed, Storm, Window, first_reconnect_ms, placed};
use super::super::{table, units};
use super::chart::{Axis, Chart, Format, Mark, Point, Series};
use super::panels;

/// The page of a storm, with its three runs.
pub fn html(storm: &Storm, stayed: &RunResult, gone: &RunResult, back: &RunResult) -> String {
    let title = format!("{}: {}", storm.verdict(), stayed.plan.url);
    let body = html! {
        header class=(if storm.recovered { "good" } else { "bad" }) {
            div.badge { (storm.verdict()) }
            div {
                h1 { (stayed.plan.url) }
                p.plan { "those that stayed: " (table::plan(stayed)) }
                p.cause { (storm.sentence()) }
            }
        }
        main {
            section {
                h2 { "What it came to" }
                p.hint { "Times count from the first reconnect." }
                div.scroll { table { tbody { @for (name, value) in storm.lines(stayed, back) {
                    tr { td { (name) } td.words { (value) } }
                } } } }
            }
            (percentile(storm))
            (connections(storm, [stayed, gone, back]))
            (panels::connecting(back, None))
            section {
                h2 { "The three runs" }
                p { "Those that stayed, went and came back have a report each: in stayed, gone and back, beside this file." }
            }
        }
    };
    super::page(&title, stayed, &body)
}

/// The objective's percentile in each window.
fn percentile(storm: &Storm) -> Markup {
    let Some((from_s, until_s)) = extent(storm) else { return html! {} };
    let slo: Option<Slo> = storm.slo.parse().ok();
    let limit = slo.and_then(|slo| slo.latency_limit_ns(Metric::Response, Metric::Response));
    let point = |window: &Window| Point {
        x: f64::midpoint(window.from_s, window.until_s),
        y: window.value_ns as f64,
        x_label: format!(
            "t = {} to {} s, {} samples",
            window.from_s,
            window.until_s,
            units::count(window.samples)
        ),
        y_label: units::latency_ns(window.value_ns),
    };
    let line = |name: &str, class, keep: fn(&Window) -> bool| Series {
        name: name.to_owned(),
        class,
        points: storm.windows.iter().filter(|window| keep(window)).map(point).collect(),
    };
    let mut series = vec![
        line("each window", "c1", |_| true),
        line("objective missed", "c4 points", |window| window.missed),
    ];
    series.retain(|series| !series.points.is_empty());
    let mut marks = moments(storm);
    marks.extend(limit.map(|y| Mark::Horizontal {
        y,
        label: format!("objective {}", storm.slo),
        class: "bad",
    }));
    let (_, y_min, y_max) = panels::extent(&series, &marks);
    let chart = Chart {
        id: "storm".into(),
        title: "Latency over time".to_owned(),
        width: panels::FULL_WIDTH,
        height: panels::TALL,
        x: time(from_s, until_s),
        y: Axis::log(y_min, y_max, "latency", units::latency),
        series,
        marks,
    };
    let title = format!("{} over time", storm.slo.split(['<', '=']).next().unwrap_or_default().trim());
    let hint = format!(
        "Response latency of all connections, in windows of {} or as much longer as it takes to have {} replies.",
        units::span_s(storm.interval_s),
        units::count(storm.samples_min)
    );
    panels::panel(&title, &hint, chart.render())
}

/// How many connections are open, and how many of those came back.
fn connections(storm: &Storm, [stayed, gone, back]: [&RunResult; 3]) -> Markup {
    let Some((from_s, until_s)) = extent(storm) else { return html! {} };
    let zero_ms = first_reconnect_ms(back);
    // When those that came back leave at the end, that is no storm.
    let loaded = placed(back).filter(|placed| placed.interval.phase == Phase::Measure);
    let over_ms = loaded.map(|placed| placed.end_ms).max().unwrap_or(zero_ms);
    let whole: Format = |value| units::count(value.round() as u64);
    let open = |result: &RunResult, at_ms: i64| {
        placed(result)
            .take_while(|placed| placed.end_ms <= at_ms)
            .last()
            .map_or(0, |Placed { interval, .. }| interval.connections_open)
    };
    let ends = |runs: &[&RunResult]| {
        let mut ends: Vec<i64> =
            runs.iter().flat_map(|run| placed(run).map(|placed| placed.end_ms)).collect();
        ends.sort_unstable();
        ends.dedup();
        ends.retain(|end_ms| *end_ms <= over_ms && (end_ms - zero_ms) as f64 / 1e3 >= from_s);
        ends
    };
    let line = |name: &str, class, runs: &[&RunResult]| {
        let point = |at_ms: i64| {
            let count: u64 = runs.iter().map(|run| open(run, at_ms)).sum();
            let at_s = (at_ms - zero_ms) as f64 / 1e3;
            Point { x: at_s, y: count as f64, x_label: format!("t = {at_s} s"), y_label: units::count(count) }
        };
        Series { name: name.to_owned(), class, points: ends(runs).into_iter().map(point).collect() }
    };
    let series = vec![line("all", "c1", &[stayed, gone, back]), line("those that came back", "c3", &[back])];
    let (_, _, y_max) = panels::extent(&series, &[]);
    let chart = Chart {
        id: "reconnect".into(),
        title: "Connections open over time".to_owned(),
        width: panels::FULL_WIDTH,
        height: panels::LOW,
        x: time(from_s, until_s),
        y: Axis::linear(y_max, "connections open", whole),
        series,
        marks: moments(storm),
    };
    let hint = format!("Open and upgraded, every {}.", units::span_s(storm.interval_s));
    panels::panel("Connections open", &hint, chart.render())
}

/// The time that is drawn, s.
fn extent(storm: &Storm) -> Option<(f64, f64)> {
    Some((storm.windows.first()?.from_s, storm.windows.last()?.until_s))
}

fn time(from_s: f64, until_s: f64) -> Axis {
    Axis::tight(from_s, until_s, "time since the first reconnect", units::span_s_signed)
}

/// The drop, all back, and the objective held again.
fn moments(storm: &Storm) -> Vec<Mark> {
    let mark = |x, label: String, class| Mark::Vertical { x, label, class };
    let mut marks = vec![mark(storm.dropped_at_s, "dropped".to_owned(), "bad")];
    let after = units::span_s;
    marks.extend(storm.all_back_s.map(|at| mark(at, format!("all back: {}", after(at)), "plain")));
    marks.extend(storm.within_slo_s.map(|at| {
        let label = if at > 0.0 {
            format!("{} again: {}", storm.slo, after(at))
        } else {
            format!("{} held", storm.slo)
        };
        mark(at, label, "good")
    }));
    marks
}
