//! What a search came to: the answer, the scalability law where there is one, and every step.

use maud::{Markup, html};

use super::super::capacity::{SearchStep, show_load};
use super::super::model::{RunResult, VerdictKind};
use super::super::units;
use super::chart::{Axis, Chart, Mark, Point, Series};
use super::verdict_class;

/// The answer, line by line.
pub(super) fn answer(result: &RunResult) -> Markup {
    html! { @if let Some(capacity) = &result.capacity { section {
        h2 { "Capacity over " (capacity.over) }
        div.scroll { table { tbody { @for (name, value) in capacity.lines() {
            tr { td { (name) } td.words { (value) } }
        } } } }
    } } }
}

/// Throughput over closed-loop concurrency, with the law through it and what it predicts.
pub(super) fn law(result: &RunResult) -> Markup {
    let Some(fit) = result.capacity.as_ref().and_then(|capacity| capacity.law.as_ref()) else {
        return html! {};
    };
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
        id: "law",
        title: "Throughput over concurrency".to_owned(),
        width: 1160.0,
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
pub(super) fn steps(result: &RunResult) -> Markup {
    html! { @if !result.search.is_empty() { section {
        h2 { "Steps of the search" }
        p.hint { "In the order in which they were taken. Server: its CPU, percent of one core. Machine: CPU whoever used it, percent of all cores." }
        div.scroll { table {
            thead { tr {
                th { "Load" } th { "For, round" } th { "Measured" } th { "Achieved" } th { "p50" } th { "p99" } th { "p99.9" }
                th { "Server" } th { "Machine" } th { "Verdict" }
            } }
            tbody { @for step in &result.search { (row(step)) } }
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
            td { (show_load(&step.over, step.load)) @if step.knee { " ← knee" } }
            td { (step.purpose) " " (step.round) }
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
