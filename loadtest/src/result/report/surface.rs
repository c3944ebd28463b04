//! A surface connections x rate x size: the knees as a heat map, latency against rate as small multiples, and each
//! search in full behind its name.

use maud::{Markup, html};

use super::super::model::{Cell, RunResult, SearchStep};
use super::super::surface::{self, size_title};
use super::super::units;
use super::chart::{Axis, Chart, Mark, Point, Series};
use super::{capacity, panels, verdict_class};

/// Colours of the counts of connections; beyond them they begin again.
const CLASSES: [&str; 8] = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];

/// Everything about the surface.
pub(super) fn surface(result: &RunResult) -> Markup {
    let objectives = capacity::objectives(result);
    html! {
        (heat_map(&result.surface))
        (multiples(result, &objectives))
        @for (index, cell) in result.surface.iter().enumerate() { (details(index, cell, &objectives)) }
        @if let Some(cell) = surface::of_run(result) { section {
            h2 { "The run at the highest knee: " (cell.title()) }
            p {
                span class={"outcome " (verdict_class(result.verdict.kind))} { (result.verdict.kind.name()) }
                " " (result.verdict.cause)
            }
        } }
    }
}

/// What was asked for, and how much of it was answered.
pub(super) fn header(result: &RunResult) -> Markup {
    let cells = &result.surface;
    let (connections, sizes) = surface::axes(cells);
    let answered = cells.iter().filter(|cell| cell.is_answered()).count();
    let slos: Vec<&str> = result.slos.iter().map(|slo| slo.expression.as_str()).collect();
    html! {
        header class=(if answered == cells.len() { "good" } else { "warn" }) {
            div.badge { (answered) " of " (cells.len()) " answered" }
            div {
                h1 { (result.plan.url) }
                p.plan { "search over the rate for " (connections.len()) " x " (sizes.len()) " connections and sizes; objectives: " (slos.join(", ")) }
                @if let Some(cell) = surface::of_run(result) { p.cause { "The highest knee: " (cell.knee()) " with " (cell.title()) } }
            }
        }
    }
}

/// The knee over connections and size: the darker the higher.
fn heat_map(cells: &[Cell]) -> Markup {
    let (rows, columns) = surface::axes(cells);
    let highest = cells.iter().filter_map(|cell| cell.capacity.knee).fold(0.0, f64::max);
    let share = |cell: &Cell| cell.capacity.knee.map_or(0.0, |knee| knee / highest.max(1.0));
    let hint = "The highest rate that meets every objective, its spread, what limits it, and what a message costs the \
                server. Shaded in proportion to the knee; \u{2265} is a lower bound.";
    let map = html! { div.scroll { table.heat {
        thead { tr { th { "Connections" } @for size in &columns { th { (size_title(size)) } } } }
        tbody { @for connections in &rows { tr {
            th { (units::count(*connections)) }
            @for size in &columns { @match surface::at(cells, *connections, size) {
                Some(cell) => td style={"--heat: " (format!("{:.3}", share(cell)))} title=(cell.answer()) {
                    @for (index, line) in cell.lines().iter().enumerate() {
                        @if index == 0 { b { (line) } } @else { span { (line) } }
                    }
                },
                None => td { "not begun" },
            } }
        } } }
    } } };
    panels::panel("The knee over connections and size", hint, map)
}

/// Latency against rate: a panel for each size, a line for each count of connections, all on the same axes.
fn multiples(result: &RunResult, objectives: &[(String, f64)]) -> Markup {
    let cells = &result.surface;
    let (rows, columns) = surface::axes(cells);
    let percentile = percentile(result);
    let all = || cells.iter().flat_map(|cell| told(cell, percentile));
    if all().next().is_none() {
        return html! {};
    }
    let x = || all().map(|(step, _)| step.load);
    let y = || all().map(|(_, value)| value).chain(objectives.iter().map(|(_, limit)| *limit));
    let (x_min, x_max) = (x().fold(f64::MAX, f64::min), x().fold(0.0, f64::max));
    let (y_min, y_max) = (y().fold(f64::MAX, f64::min), y().fold(0.0, f64::max));
    let chart = |index: usize, size: &String| {
        let of_size = || {
            rows.iter().zip(CLASSES.into_iter().cycle()).filter_map(|(connections, class)| {
                surface::at(cells, *connections, size).map(|cell| (cell, class))
            })
        };
        let name = format!("{percentile} against rate: {}", size_title(size));
        let mut series: Vec<Series> = of_size().map(|(cell, class)| line(cell, class, percentile)).collect();
        series.retain(|series| !series.points.is_empty());
        if series.is_empty() {
            return panels::panel(&name, "", html! { p { "No step says anything about the server." } });
        }
        let knees = of_size().filter_map(|(cell, class)| knee(cell, class, percentile));
        let limits = objectives.iter().map(|(label, limit)| Mark::Horizontal {
            y: *limit,
            label: label.clone(),
            class: "bad",
        });
        let chart = Chart {
            id: format!("surface-{index}").into(),
            title: name.clone(),
            width: panels::HALF_WIDTH,
            height: panels::LOW * 1.3,
            x: Axis::log(x_min, x_max, "messages/s", |rate| units::count(rate.round() as u64)),
            y: Axis::log(y_min, y_max, percentile, units::latency),
            series,
            marks: knees.chain(limits).collect(),
        };
        panels::panel(&name, "", chart.render())
    };
    html! {
        section {
            h2 { "Latency against rate, by size and connections" }
            p.hint {
                "One panel for each size, all on the same axes; a line for each count of connections, its knee marked. "
                "Steps that missed an objective because of the generator or a stalling machine say nothing about the server: \
                 they are left out."
            }
        }
        div.pair { @for (index, size) in columns.iter().enumerate() { (chart(index, size)) } }
    }
}

/// The percentile of steps that the objectives ask for, or p99.
fn percentile(result: &RunResult) -> &'static str {
    let headline = result.plan.headline();
    let asked = panels::slos_of(result).into_iter().filter_map(|slo| slo.quantile(headline));
    let asked: Vec<String> = asked
        .filter(|(metric, _)| *metric == headline)
        .map(|(_, quantile)| units::percentile(quantile))
        .collect();
    ["p99.9", "p99", "p50"].into_iter().find(|name| asked.iter().any(|asked| asked == name)).unwrap_or("p99")
}

/// The steps whose latency is the server's, with it (ns), by load.
fn told<'a>(cell: &'a Cell, percentile: &'a str) -> impl Iterator<Item = (&'a SearchStep, f64)> {
    let of_the_server = |step: &&SearchStep| {
        step.good || step.limit.as_ref().is_some_and(|limit| limit.kind.is_of_the_server())
    };
    let mut steps: Vec<_> = cell.steps.iter().filter(of_the_server).collect();
    steps.sort_by(|a, b| a.load.total_cmp(&b.load));
    steps.into_iter().filter_map(move |step| Some((step, *step.latency_ns.get(percentile)? as f64)))
}

fn line(cell: &Cell, class: &'static str, percentile: &str) -> Series {
    let points = told(cell, percentile).map(|(step, value)| Point {
        x: step.load,
        y: value,
        x_label: panels::rate_tick(step.load),
        y_label: units::latency(value),
    });
    Series {
        name: format!("{} connections", units::count(cell.connections)),
        class,
        points: points.collect(),
    }
}

fn knee(cell: &Cell, class: &'static str, percentile: &str) -> Option<Mark> {
    let (step, value) = told(cell, percentile).find(|(step, _)| step.knee)?;
    Some(Mark::Label { x: step.load, y: value, label: cell.knee(), class })
}

/// One search in full.
fn details(index: usize, cell: &Cell, objectives: &[(String, f64)]) -> Markup {
    html! { details.cell {
        summary { (cell.title()) ": " (cell.knee()) }
        @if let Some(error) = &cell.error { p.cause { "Ended early: " (error) } }
        (capacity::answer(&cell.capacity))
        (capacity::latency(&format!("search-{index}"), &cell.steps, objectives))
        (capacity::steps(&cell.steps))
    } }
}
