//! report.html: one file, no network. Every panel answers one question, and every number has its unit.
//!
//! [`html()`] puts the page together from its parts; `panels` turns a result into charts, `tables` into words,
//! and `chart` draws. The script only shows labels under the pointer: without it the page says the same.

mod capacity;
mod chart;
mod panels;
mod series;
mod storm;
mod surface;
mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::model::{Mode, RunResult, VerdictKind};
use super::table;

pub use self::storm::html as storm_html;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// The page of a result, laid over a baseline where one is given.
pub fn html(result: &RunResult, baseline: Option<&RunResult>) -> String {
    let title = format!("{}: {}", result.verdict.kind.name(), result.plan.url);
    let timeline = series::timeline(result);
    let body = html! {
        @if result.surface.is_empty() { (header(result)) } @else { (surface::header(result)) }
        main {
            @if result.surface.is_empty() {
                @if let Some(found) = &result.capacity { (capacity::answer(found)) }
            } @else { (surface::surface(result)) }
            (tables::tiles(result, baseline))
            (tables::objectives(result))
            (tables::findings(result))
            @if result.surface.is_empty() {
                (capacity::latency("search", &result.search, &capacity::objectives(result)))
                @if let Some(found) = &result.capacity { (capacity::law(found)) }
                (capacity::steps(&result.search))
            }
            (panels::spectrum(result, baseline))
            (panels::latency_over_time(result, &timeline))
            div.pair {
                (panels::rate_over_time(result, &timeline))
                @if result.plan.mode == Mode::Broadcast { (panels::fan_out(&timeline)) } @else { (panels::in_flight(&timeline)) }
            }
            div.pair { (panels::server_cpu(&timeline)) (panels::server_memory(&timeline)) }
            (panels::kernel(result, &timeline))
            div.pair { (panels::generator_lag(&timeline)) (panels::generator_cpu(result, &timeline)) }
            @if result.plan.mode != Mode::Connect { (panels::connecting(result, baseline)) }
            (tables::latency_table(result, baseline))
            (tables::counts_table(result))
            (tables::environment(result))
        }
    };
    page(&title, result, &body)
}

/// The verdict, and what the run was.
fn header(result: &RunResult) -> Markup {
    let verdict = &result.verdict;
    html! {
        header class=(verdict_class(verdict.kind)) {
            div.badge { (verdict.kind.name()) }
            div {
                h1 { (result.plan.url) }
                p.plan { (table::plan(result)) }
                p.cause { (verdict.cause) }
                @if !verdict.cure.is_empty() { p.cure { b { "What to do: " } (verdict.cure) } }
            }
        }
    }
}

/// A whole page around what is on it.
fn page(title: &str, result: &RunResult, body: &Markup) -> String {
    let version = &result.manifest.tool_version;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content={"resound-load " (version)};
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (body)
                footer {
                    "resound-load " (version) " · percentiles are exact to 0.1 % of their value (HdrHistogram, 3 digits) · "
                    "response latency counts from the intended send time"
                }
                div #tip {}
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn verdict_class(kind: VerdictKind) -> &'static str {
    match kind {
        VerdictKind::Valid => "good",
        VerdictKind::SloMiss => "bad",
        VerdictKind::GeneratorLimited | VerdictKind::EnvironmentLimited | VerdictKind::TooFewSamples => {
            "warn"
        }
    }
}
