//! The words and tables of the report.

use maud::{Markup, html};

use super::super::model::{Finding, RunResult, SloOutcome, VerdictKind};
use super::super::recorder::Recorder;
use super::super::{kernel_events, sufficiency, units};
use super::super::{table, table::PERCENTILES};
use super::verdict_class;

/// The numbers a reader came for.
pub(super) fn tiles(result: &RunResult, baseline: Option<&RunResult>) -> Markup {
    let headline = result.plan.headline();
    let recorder = result.recorder(headline);
    let before = baseline.and_then(|baseline| baseline.recorder(headline));
    let tile = |name: &str, quantile: f64| {
        let value = recorder.map(|recorder| recorder.quantile_ns(quantile));
        let before = before.map(|recorder| recorder.quantile_ns(quantile));
        html! { div.tile {
            span { (name) " " (headline.title()) }
            b { (value.map_or("none".to_owned(), units::latency_ns)) }
            @if let Some((value, before)) = value.zip(before) { span { (change(value as f64, before as f64)) } }
        } }
    };
    let achieved = match result.achieved_ratio() {
        Some(ratio) => format!("{} of offered", units::percent(ratio)),
        None => "closed loop".to_owned(),
    };
    let failed = result.totals.integrity_failures() + result.totals.errors.total();
    html! { div.tiles {
        (tile("p50", 0.5)) (tile("p99", 0.99)) (tile("p99.9", 0.999)) (tile("max", 1.0))
        div.tile { span { "achieved rate" } b { (table::achieved(result)) } span { (achieved) } }
        div.tile { span { "failures" } b { (units::count(failed)) } span { "of " (units::count(result.totals.expected)) " messages" } }
    } }
}

fn change(value: f64, before: f64) -> String {
    if before == 0.0 {
        return String::new();
    }
    let before_text = units::latency(before);
    match value / before {
        ratio if ratio >= 3.0 => format!("{ratio:.0} times {before_text}"),
        ratio => format!("{:+.1} % on {before_text}", (ratio - 1.0) * 100.0),
    }
}

/// The objectives, and what they came to.
pub(super) fn objectives(result: &RunResult) -> Markup {
    html! { @if !result.slos.is_empty() { section {
        h2 { "Objectives" }
        div.scroll { table {
            thead { tr { th { "Objective" } th.words { "Outcome" } th.words { "Why" } } }
            tbody { @for slo in &result.slos { tr {
                td { code { (slo.expression) } }
                td.words { span class={"outcome " (outcome_class(slo.outcome))} { (table::outcome_name(slo.outcome)) } }
                td.words { (slo.why) }
            } } }
        } }
    } } }
}

fn outcome_class(outcome: SloOutcome) -> &'static str {
    match outcome {
        SloOutcome::Pass => "good",
        SloOutcome::Fail => "bad",
        SloOutcome::TooFewSamples => "warn",
    }
}

/// Everything that was noticed besides what decided the verdict.
pub(super) fn findings(result: &RunResult) -> Markup {
    let others: Vec<&Finding> = result.verdict.also_noticed().collect();
    html! { @if !others.is_empty() { section {
        h2 { "Also noticed" }
        ul.findings { @for finding in others {
            @let decides = finding.decides();
            li class=(if decides { verdict_class(finding.verdict) } else { "plain" }) {
                @if decides { b { (finding.verdict.name()) ": " } } @else if finding.verdict != VerdictKind::Valid { "Note: " }
                (finding.cause)
                @if !finding.cure.is_empty() { small { (finding.cure) } }
            }
        } }
    } } }
}

/// Every histogram's percentiles.
pub(super) fn latency_table(result: &RunResult, baseline: Option<&RunResult>) -> Markup {
    let unsure =
        result.histograms.values().any(|recorder| PERCENTILES.iter().any(|(_, q)| is_unsure(recorder, *q)));
    let row = |name: String, recorder: &Recorder| {
        html! { tr {
            td { (name) }
            @for (_, quantile) in PERCENTILES {
                td.unsure[is_unsure(recorder, quantile)] { (units::latency_ns(recorder.quantile_ns(quantile))) }
            }
            td { (units::latency_ns(recorder.max_ns())) }
            td { (units::latency(recorder.mean_ns())) }
            td { (units::count(recorder.count())) }
            td { (units::count(recorder.saturated_count())) }
        } }
    };
    html! { section {
        h2 { "Percentiles" }
        div.scroll { table {
            thead { tr {
                th {} @for (name, _) in PERCENTILES { th { (name) } } th { "max" } th { "mean" } th { "samples" } th { "above 60 s" }
            } }
            tbody { @for (metric, recorder) in &result.histograms {
                (row(metric.title().to_owned(), recorder))
                @if let Some(before) = baseline.and_then(|baseline| baseline.recorder(*metric)) {
                    (row(format!("baseline {}", metric.title()), before))
                }
            } }
        } }
        @if unsure { p.hint { "* too few samples for a 95 % upper bound of this percentile" } }
    } }
}

fn is_unsure(recorder: &Recorder, quantile: f64) -> bool {
    sufficiency::rank_interval(recorder.count(), quantile).high.is_none()
}

/// Counts of messages, connections and errors.
pub(super) fn counts_table(result: &RunResult) -> Markup {
    html! { section {
        h2 { "Counts of the measured part" }
        div.scroll { table { tbody { @for (name, value) in table::counts(result) { tr {
            td { (name) } td.words { (value) }
        } } } } }
    } }
}

/// What it ran on, and the command that made it.
pub(super) fn environment(result: &RunResult) -> Markup {
    let manifest = &result.manifest;
    let host = &manifest.host;
    let or_unknown = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let limits = format!("{} soft, {} hard", units::count(host.nofile_soft), units::count(host.nofile_hard));
    let cores = format!(
        "{} ({} of {} CPUs allowed)",
        or_unknown(&host.cpu_model),
        host.cpu_allowed_count,
        host.cpu_count
    );
    let mut rows = vec![
        ("started", utc(manifest.started_unix_ms)),
        ("kernel", or_unknown(&host.kernel_release)),
        ("CPU", cores),
        ("memory", units::octets(host.memory_octets as f64)),
        ("descriptors (nofile)", limits),
        ("load threads", format!("{} on {}", result.plan.threads, result.plan.io.title())),
        ("seed", manifest.seed.to_string()),
    ];
    rows.extend(host.cpu_governor.clone().map(|governor| ("CPU governor", governor)));
    rows.extend(host.virtualization.clone().map(|kind| ("virtualisation", kind)));
    rows.extend(manifest.server.header.clone().map(|header| ("server says it is", header)));
    rows.extend(manifest.server.command.clone().map(|command| ("server process", command)));
    let deltas = result.kernel.deltas();
    html! { section {
        details open {
            summary { "Environment" }
            pre { (manifest.argv.join(" ")) }
            div.scroll { table { tbody { @for (name, value) in rows { tr { td { (name) } td.words { (value) } } } } } }
        }
        @if !host.sysctls.is_empty() { details {
            summary { "Sysctls" }
            div.scroll { table { tbody { @for (name, value) in &host.sysctls { tr { td { code { (name) } } td.words { (value) } } } } } }
        } }
        @if !deltas.is_empty() { details {
            summary { "Kernel counters that rose in the measured part" }
            div.scroll { table { tbody { @for (name, delta) in deltas { tr {
                td { code { (name) } }
                td.words { "+" (units::count(delta)) }
                td.words { @if let Some(event) = kernel_events::of_counter(name) { (event.what) small { (event.cure) } } }
            } } } } }
        } }
        @if !manifest.merged_from.is_empty() { details {
            summary { "Merged from " (manifest.merged_from.len()) " runs" }
            @for run in &manifest.merged_from { pre { (utc(run.started_unix_ms)) "  " (run.argv.join(" ")) } }
        } }
    } }
}

/// A Unix time in ms as a date a person reads.
fn utc(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or("unknown".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}
