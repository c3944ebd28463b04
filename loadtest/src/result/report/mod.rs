//! report.html: one file, no network. Every panel answers one question, and every number has its unit.
//!
//! [`html()`] puts the page together from its parts; `panels` turns a result into charts, `tables` into words,
//! and `chart` draws. The script only shows labels under the pointer: without it the page says the same.

mod capacity;
mod chart;
mod panels;
mod series;
mod tables;

use maud::{DOCTYPE, PreEscaped, html};

use super::model::{Mode, RunResult, VerdictKind};
use super::table;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// The page of a result, laid over a baseline where one is given.
pub fn html(result: &RunResult, baseline: Option<&RunResult>) -> String {
    let verdict = &result.verdict;
    let title = format!("{}: {}", verdict.kind.name(), result.plan.url);
    let timeline = series::timeline(result);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content={"resound-load " (result.manifest.tool_version)};
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header class=(verdict_class(verdict.kind)) {
                    div.badge { (verdict.kind.name()) }
                    div {
                        h1 { (result.plan.url) }
                        p.plan { (table::plan(result)) }
                        p.cause { (verdict.cause) }
                        @if !verdict.cure.is_empty() { p.cure { b { "What to do: " } (verdict.cure) } }
                    }
                }
                main {
                    (capacity::answer(result))
                    (tables::tiles(result, baseline))
                    (tables::objectives(result))
                    (tables::findings(result))
                    (panels::search(result))
                    (capacity::law(result))
                    (capacity::steps(result))
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
                footer {
                    "resound-load " (result.manifest.tool_version) " · percentiles are exact to 0.1 % of their value (HdrHistogram, 3 digits) · "
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
