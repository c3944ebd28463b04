//! A result on the terminal: the verdict first, then percentiles, rates, objectives and what else was noticed.

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::compare::{Change, Condition, FailIf, Measure, signed_percent};
use super::model::{Arrival, Load, Mode, RunResult, SloOutcome, VerdictKind, Weight};
use super::{sufficiency, surface, units};

/// The percentiles of tables.
pub const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The whole text, with ANSI styles; a stream that is no terminal strips them.
pub fn text(result: &RunResult) -> String {
    let mut lines = Vec::new();
    if !result.surface.is_empty() {
        lines.push(format!("{BOLD}Knee, what limits it, and the server's CPU{BOLD:#}"));
        lines.push(surface::text(&result.surface));
        if let Some(cell) = surface::of_run(result) {
            lines.push(format!("{BOLD}The highest knee: {}{BOLD:#}", cell.title()));
        }
    }
    if let Some(capacity) = &result.capacity {
        for (name, value) in capacity.lines() {
            lines.push(format!("{BOLD}{name:<13}{BOLD:#}{value}"));
        }
        let knee = capacity.knee.map_or("The last step", |_| "The run at the knee");
        lines.push(format!("\n{BOLD}{knee}{BOLD:#}"));
    }
    let verdict = &result.verdict;
    let tone = verdict_style(verdict.kind);
    lines.push(format!("{tone}{}{tone:#}  {}", verdict.kind.name(), verdict.cause));
    if !verdict.cure.is_empty() {
        lines.push(format!("What to do: {}", verdict.cure));
    }
    lines.push(String::new());
    lines.push(format!("{BOLD}{}{BOLD:#}  {DIM}{}{DIM:#}", result.plan.url, plan(result)));
    lines.push(latencies(result));
    lines.push(String::new());
    for (name, value) in counts(result) {
        lines.push(format!("  {name:<13}{value}"));
    }
    if !result.slos.is_empty() {
        lines.push(format!("\n{BOLD}Objectives{BOLD:#}"));
        let width = result.slos.iter().map(|slo| slo.expression.chars().count()).max().unwrap_or(0);
        for slo in &result.slos {
            let tone = outcome_style(slo.outcome);
            let name = outcome_name(slo.outcome);
            lines.push(format!("  {tone}{name:<15}{tone:#} {:<width$}  {}", slo.expression, slo.why));
        }
    }
    let others: Vec<_> = verdict.also_noticed().collect();
    if !others.is_empty() {
        lines.push(format!("\n{BOLD}Also noticed{BOLD:#}"));
        for finding in others {
            let kind = match finding.weight {
                Weight::Decides => format!("{}: ", finding.verdict.name()),
                Weight::Note => String::new(),
            };
            lines.push(format!("  - {kind}{}", finding.cause));
            if !finding.cure.is_empty() {
                lines.push(format!("    {DIM}{}{DIM:#}", finding.cure));
            }
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What the run was, in a line.
pub fn plan(result: &RunResult) -> String {
    let plan = &result.plan;
    let what = match plan.mode {
        Mode::Echo => "echo".to_owned(),
        Mode::Broadcast => format!("broadcast, {} publishers", units::count(plan.publishers)),
        Mode::Connect => "connect".to_owned(),
    };
    let unit = if plan.mode == Mode::Connect { "conn" } else { "msg" };
    let load = match plan.load {
        Load::Open { arrival: Arrival::Fixed, offered_msgs_per_s } => {
            format!("open loop at {}", units::rate(offered_msgs_per_s, unit))
        }
        Load::Open { arrival: Arrival::Poisson, offered_msgs_per_s } => {
            format!("open loop at {} (Poisson)", units::rate(offered_msgs_per_s, unit))
        }
        Load::Closed { in_flight } => format!("closed loop, {in_flight} in flight a connection"),
    };
    let kind = if plan.text { "text" } else { "binary" };
    let sizes: Vec<String> = plan
        .sizes
        .iter()
        .map(|size| match (size.min_octets, size.max_octets) {
            (min, max) if min == max => units::octets(min as f64),
            (min, max) => format!("{} to {}", units::octets(min as f64), units::octets(max as f64)),
        })
        .collect();
    let connections = units::count(plan.connections);
    let warmup = if plan.warmup_s > 0.0 {
        format!(" after {} of warm-up", units::span_s(plan.warmup_s))
    } else {
        String::new()
    };
    let measured = units::span_s(result.measured_s);
    format!("{what}, {load}, {connections} connections, {} {kind}, {measured}{warmup}", sizes.join(" or "))
}

/// The achieved rate with its unit.
pub fn achieved(result: &RunResult) -> String {
    let unit = if result.plan.mode == Mode::Connect { "conn" } else { "msg" };
    units::rate(result.achieved_per_s(), unit)
}

/// The name of an outcome, as printed.
pub fn outcome_name(outcome: SloOutcome) -> &'static str {
    match outcome {
        SloOutcome::Pass => "PASS",
        SloOutcome::Fail => "FAIL",
        SloOutcome::TooFewSamples => "TOO-FEW-SAMPLES",
    }
}

fn latencies(result: &RunResult) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec![String::new()];
    header.extend(PERCENTILES.map(|(name, _)| name.to_owned()));
    header.extend(["max", "mean", "samples"].map(str::to_owned));
    table.set_header(header);
    let mut unsure = false;
    for (metric, recorder) in &result.histograms {
        let mut row = vec![metric.title().to_owned()];
        for (_, quantile) in PERCENTILES {
            let bounded = sufficiency::rank_interval(recorder.count(), quantile).high.is_some();
            unsure |= !bounded;
            row.push(format!(
                "{}{}",
                units::latency_ns(recorder.quantile_ns(quantile)),
                if bounded { "" } else { "*" }
            ));
        }
        row.push(units::latency_ns(recorder.max_ns()));
        row.push(units::latency(recorder.mean_ns()));
        row.push(units::count(recorder.count()));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.trim_fmt();
    if unsure {
        text.push_str("\n  * too few samples for a 95 % upper bound of this percentile");
    }
    text
}

/// Rates and counts: name and value.
pub fn counts(result: &RunResult) -> Vec<(&'static str, String)> {
    let (totals, rates) = (&result.totals, &result.rates);
    let mut rows = Vec::new();
    let unit = if result.plan.mode == Mode::Connect { "conn" } else { "msg" };
    let offered = rates.offered_msgs_per_s.map(|offered| format!("{} offered, ", units::rate(offered, unit)));
    let share = result.achieved_ratio().map(|ratio| format!(" ({})", units::percent(ratio)));
    rows.push((
        "rate",
        format!("{}{} achieved{}", offered.unwrap_or_default(), achieved(result), share.unwrap_or_default()),
    ));
    if result.plan.mode != Mode::Connect {
        let octets = |per_s: f64| format!("{}/s", units::octets(per_s));
        let (sent, received) =
            (octets(rates.payload_sent_octets_per_s), octets(rates.payload_received_octets_per_s));
        rows.push(("payload", format!("{sent} sent, {received} received")));
        let (sent, received) = (units::count(totals.sent), units::count(totals.received));
        let skipped = if totals.skipped > 0 {
            format!(", {} skipped", units::count(totals.skipped))
        } else {
            String::new()
        };
        rows.push((
            "messages",
            format!("{sent} sent, {received} of {} received{skipped}", units::count(totals.expected)),
        ));
        let broken = [
            (totals.lost, "lost"),
            (totals.duplicated, "duplicated"),
            (totals.reordered, "reordered"),
            (totals.corrupted, "corrupted"),
        ];
        rows.push((
            "integrity",
            broken.map(|(count, name)| format!("{} {name}", units::count(count))).join(", "),
        ));
    }
    rows.push((
        "connections",
        format!(
            "{} connects ({} failed), {} upgrades ({} failed)",
            units::count(totals.connects),
            units::count(totals.connect_failures),
            units::count(totals.upgrades),
            units::count(totals.upgrade_failures),
        ),
    ));
    let errors: Vec<String> = totals
        .errors
        .iter()
        .map(|(kind, count)| format!("{} {}", units::count(count), kind.name()))
        .collect();
    rows.push(("errors", if errors.is_empty() { "none".to_owned() } else { errors.join(", ") }));
    rows
}

/// The changes of a comparison, with their intervals.
pub fn changes(changes: &[Change], base_count: usize, new_count: usize) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["", "base", "new", "change", "95 % interval", ""]);
    for change in changes {
        let (shown, low, high) = match change.measure {
            Measure::Errors => {
                (percent_points(change.change), percent_points(change.low), percent_points(change.high))
            }
            _ => (signed_percent(change.change), signed_percent(change.low), signed_percent(change.high)),
        };
        let says = match (change.is_shown(), change.change > 0.0) {
            (false, _) => "no difference shown",
            (true, true) => "higher",
            (true, false) => "lower",
        };
        let (base, new) = (change.measure.show(change.base), change.measure.show(change.new));
        table.add_row([change.measure.name(), base, new, shown, format!("{low} to {high}"), says.to_owned()]);
    }
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{base_count} base runs, {new_count} new runs; intervals are from the differences between runs\n\n{}\n\n",
        table.trim_fmt()
    )
}

fn percent_points(difference: f64) -> String {
    format!("{:+.3} points", difference * 100.0)
}

/// What a condition of a comparison came to.
pub fn condition(condition: &FailIf, outcome: Condition, change: &Change) -> String {
    let interval = format!("{} to {}", signed_percent(change.low), signed_percent(change.high));
    let shown = format!("{condition}  the change is {} ({interval})", signed_percent(change.change));
    let (color, name, rest) = match outcome {
        Condition::Clear => (AnsiColor::Green, "CLEAR", ""),
        Condition::Failed => (AnsiColor::Red, "FAILED", ""),
        Condition::Undecided => (AnsiColor::Yellow, "UNDECIDED", ": repeat the runs more often to decide it"),
    };
    let tone = BOLD.fg_color(Some(color.into()));
    format!("{tone}{name:<10}{tone:#} {shown}{rest}")
}

fn verdict_style(kind: VerdictKind) -> Style {
    let color = match kind {
        VerdictKind::Valid => AnsiColor::Green,
        VerdictKind::SloMiss => AnsiColor::Red,
        VerdictKind::GeneratorLimited | VerdictKind::EnvironmentLimited | VerdictKind::TooFewSamples => {
            AnsiColor::Yellow
        }
    };
    BOLD.fg_color(Some(color.into()))
}

fn outcome_style(outcome: SloOutcome) -> Style {
    let color = match outcome {
        SloOutcome::Pass => AnsiColor::Green,
        SloOutcome::Fail => AnsiColor::Red,
        SloOutcome::TooFewSamples => AnsiColor::Yellow,
    };
    BOLD.fg_color(Some(color.into()))
}
