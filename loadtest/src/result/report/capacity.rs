//! What a search came to: the answer, the scalability law where there is one, and every step.

use maud::{Markup, html};

use super::super::capacity::show_load;
use super::super::model::{Capacity, Over, Purpose, RunResult, SearchStep, VerdictKind};
use super::super::slo::Slo;
use super::super::units;
use super::chart::{Axis, Chart, Format, Mark, Point, Series};
use super::{panels, verdict_class};

/// The answer, line by line.
pub(super) fn answer(capacity: &Capacity) -> Markup {
    html! { section {
        h2 { "Capacity over " (capacity.over.name()) }
        div.scroll { table { tbody { @for (name, value) in capacity.lines() {
            tr { td { (name) } td.words { (value) } }
        } } } }
    } }
}

/// Latency against load, with the knee. `objectives` are the limits on the headline metric, each with its words.
pub(super) fn latency(id: &str, steps: &[SearchStep], objectives: &[(String, f64)]) -> Markup {
    const LINES: [(&str, &str); 4] = [("max", "c4"), ("p99.9", "c2"), ("p99", "c5"), ("p50", "c3")];
    let Some(first) = steps.first() else { return html! {} };
    let over = first.over;
    let format: Format =
        if over == Over::Rate { panels::rate_tick } else { |value| units::count(value.round() as u64) };
    let mut steps: Vec<_> = steps.iter().collect();
    steps.sort_by(|a, b| a.load.total_cmp(&b.load));
    let point = |step: &SearchStep, y: u64| Point {
        x: step.load,
        y: y as f64,
        x_label: format!("{} · {}", format(step.load), step.verdict.name()),
        y_label: units::latency_ns(y),
    };
    let mut series: Vec<Series> = LINES
        .into_iter()
        .map(|(name, class)| {
            let points = steps.iter().filter_map(|step| Some(point(step, *step.latency_ns.get(name)?)));
            Series { name: name.to_owned(), class, points: points.collect() }
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    if series.is_empty() {
        return html! {};
    }
    let refused = steps.iter().filter(|step| step.verdict != VerdictKind::Valid);
    let refused = refused.filter_map(|step| Some(point(step, *step.latency_ns.get("p99")?)));
    series.push(Series { name: "not VALID".to_owned(), class: "c4 points", points: refused.collect() });
    series.retain(|series| !series.points.is_empty());
    let knees = steps.iter().filter(|step| step.knee).map(|step| Mark::Vertical {
        x: step.load,
        label: format!("knee: {}", format(step.load)),
        class: "good",
    });
    let limits = objectives.iter().map(|(label, limit)| Mark::Horizontal {
        y: *limit,
        label: label.clone(),
        class: "bad",
    });
    let marks: Vec<Mark> = knees.chain(limits).collect();
    let (x_max, y_min, y_max) = panels::extent(&series, &marks);
    let chart = Chart {
        id: id.to_owned().into(),
        title: format!("Latency over {}", over.name()),
        width: panels::FULL_WIDTH,
        height: panels::TALL,
        x: Axis::linear(x_max, over.name(), format),
        y: Axis::log(y_min, y_max, "latency", units::latency),
        series,
        marks,
    };
    let hint =
        "Each point is a run of its own. The knee is the highest load at which every objective was met.";
    panels::panel("Latency against load", hint, chart.render())
}

/// The objectives on the headline metric: their words and limits, ns.
pub(super) fn objectives(result: &RunResult) -> Vec<(String, f64)> {
    let headline = result.plan.headline();
    let limit = |slo: Slo| Some((format!("objective {slo}"), slo.latency_limit_ns(headline, headline)?));
    panels::slos_of(result).into_iter().filter_map(limit).collect()
}

/// Throughput over closed-loop concurrency, with the law through it and what it predicts.
pub(super) fn law(capacity: &Capacity) -> Markup {
    let Some(fit) = &capacity.law else { return html! {} };
    let rate = |x: f64| units::rate(x, "msg");
    let in_flight = |n: f64| format!("{n:.0}");
    let point = |n: f64, x: f64| Point { x: n, y: x, x_label: format!("N = {n:.0}"), y_label: rate(x) };
    let measured = fit.points.iter().map(|at| point(at.n, at.x_msgs_per_s)).collect();
    let reach =
        fit.points.iter().map(|at| at.n).chain(fit.predictions.iter().map(|at| at.n)).fold(1.0, f64::max);
    let curve: Vec<Point> = (0..=200)
        .map(|step| 1.0 + (reach - 1.0) * f64::from(step) / 200.0)
        .map(|n| point(n, fit.law.at(n)))
        .collect();
    let highest = fit.points.iter().map(|at| at.x_msgs_per_s).fold(0.0, f64::max);
    let marks = fit
        .predictions
        .iter()
        .map(|at| Mark::Vertical {
            x: at.n,
            label: format!("N = {:.0}: {}", at.n, rate(at.x_msgs_per_s.value)),
            class: "good",
        })
        .collect();
    let chart = Chart {
        id: "law".into(),
        title: "Throughput over concurrency".to_owned(),
        width: panels::FULL_WIDTH,
        height: 300.0,
        x: Axis::linear(reach, "messages in flight", in_flight),
        y: Axis::linear(highest.max(fit.law.at(reach)), "throughput", rate),
        series: vec![
            Series { name: "law".to_owned(), class: "c1", points: curve },
            Series { name: "measured".to_owned(), class: "c2 points", points: measured },
        ],
        marks,
    };
    html! { section {
        h2 { "Scalability" }
        p.hint { "Closed loop: each message in flight has a connection of its own. The line is the Universal Scalability Law." }
        (chart.render())
    } }
}

/// Every step with its verdict, in the order in which they were taken.
pub(super) fn steps(steps: &[SearchStep]) -> Markup {
    html! { @if !steps.is_empty() { section {
        h2 { "Steps of the search" }
        p.hint { "In the order in which they were taken. Server: its CPU, percent of one core. Machine: CPU whoever used it, percent of all cores." }
        div.scroll { table {
            thead { tr {
                th { "Load" } th { "For, round" } th { "Measured" } th { "Achieved" } th { "p50" } th { "p99" } th { "p99.9" }
                th { "Server" } th { "Machine" } th { "Verdict" }
            } }
            tbody { @for step in steps { (row(step)) } }
        } }
    } } }
}

/// A row of numbers and, where it is not VALID, another one that says why.
fn row(step: &SearchStep) -> Markup {
    let latency = |name: &str| step.latency_ns.get(name).map_or("".to_owned(), |ns| units::latency_ns(*ns));
    let cpu = |percent: Option<f64>| percent.map_or("".to_owned(), |percent| format!("{percent:.0} %"));
    let why = step.limit.as_ref().map_or(&step.cause, |limit| &limit.cause);
    html! {
        tr {
            td { (show_load(step.over, step.load)) @if step.knee { " ← knee" } }
            td { (step.purpose.map_or("", Purpose::name)) " " (step.round) }
            td { (units::span_s(step.measured_s)) }
            td { (units::rate(step.achieved_msgs_per_s, "msg")) }
            td { (latency("p50")) } td { (latency("p99")) } td { (latency("p99.9")) }
            td { (cpu(step.seen.server_cpu_percent)) } td { (cpu(step.seen.machine_cpu_percent)) }
            td { span class={"outcome " (verdict_class(step.verdict))} { (step.verdict.name()) } }
        }
        @if step.verdict != VerdictKind::Valid { tr {
            td.words colspan="10" { @if step.good { "Objectives met in spite of it: " } (why) }
        } }
    }
}
