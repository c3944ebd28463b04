//! The charts of the report. A panel that has nothing to show is not there.

use maud::{Markup, html};

use super::super::model::{Interval, Mode, Phase, RunResult};
use super::super::recorder::{Metric, Recorder};
use super::super::slo::Slo;
use super::super::{kernel_events, sufficiency, units};
use super::chart::{Axis, Chart, Format, Mark, Series};
use super::series::{density, over_time, percentile_ticks, quantile_of, spectrum as spectrum_of};

pub(super) const FULL_WIDTH: f64 = 1160.0;
pub(super) const HALF_WIDTH: f64 = 560.0;
pub(super) const TALL: f64 = 360.0;
pub(super) const LOW: f64 = 220.0;

/// Metrics measured for each message, with their colours; what is drawn last lies on top.
const PER_MESSAGE: [(Metric, &str); 5] = [
    (Metric::Lag, "c2"),
    (Metric::Spread, "c4"),
    (Metric::Service, "c3"),
    (Metric::Delivery, "c1"),
    (Metric::Response, "c1"),
];

/// Metrics measured for each connection.
const PER_CONNECTION: [(Metric, &str); 3] =
    [(Metric::Connect, "c6"), (Metric::FirstMessage, "c5"), (Metric::Upgrade, "c1")];

pub(super) fn panel(title: &str, hint: &str, body: Markup) -> Markup {
    html! { section { h2 { (title) } @if !hint.is_empty() { p.hint { (hint) } } (body) } }
}

/// Latency over 1/(1-p), with objectives and, where given, a baseline.
pub(super) fn spectrum(result: &RunResult, baseline: Option<&RunResult>) -> Markup {
    if result.plan.mode == Mode::Connect {
        return connecting(result, baseline);
    }
    let hint = "How slow the slowest are. Response latency counts from the intended send time, service time from the \
                actual one; schedule lag is what the generator itself was late by.";
    let chart = spectrum_chart("spectrum", result, baseline, &PER_MESSAGE, result.plan.headline());
    chart.map_or(html! {}, |chart| panel("Percentile spectrum", hint, chart.render()))
}

/// The same for what opening a connection took.
pub(super) fn connecting(result: &RunResult, baseline: Option<&RunResult>) -> Markup {
    let hint =
        "What opening a connection took: TCP connect, the 101 response after it, and the first message.";
    let chart = spectrum_chart("connecting", result, baseline, &PER_CONNECTION, Metric::Upgrade);
    chart.map_or(html! {}, |chart| panel("Connect and upgrade spectrum", hint, chart.render()))
}

fn spectrum_chart(
    id: &'static str,
    result: &RunResult,
    baseline: Option<&RunResult>,
    metrics: &[(Metric, &'static str)],
    lead: Metric,
) -> Option<Chart> {
    let shown = metrics.iter().filter_map(|(metric, class)| {
        result.recorder(*metric).map(|recorder| spectrum_of(metric.title(), class, recorder))
    });
    let mut series: Vec<Series> = shown.collect();
    if let Some(recorder) = baseline.and_then(|baseline| baseline.recorder(lead)) {
        series.push(spectrum_of(&format!("baseline {}", lead.title()), "c8 dashed", recorder));
    }
    if series.is_empty() {
        return None;
    }
    let slos = slos_of(result);
    let limits =
        slos.iter().filter_map(|slo| Some((slo, slo.latency_limit_ns(lead, result.plan.headline())?)));
    let mut marks: Vec<Mark> = limits
        .map(|(slo, limit)| {
            let label = format!("objective {slo}");
            Mark::Horizontal { y: limit, label, class: "bad" }
        })
        .collect();
    let (x_max, y_min, y_max) = extent(&series, &marks);
    marks.extend(result.recorder(lead).into_iter().flat_map(|recorder| labels(recorder, metrics, lead)));
    let count = result.recorder(lead).map_or(0, |recorder| recorder.count());
    // Beyond this percentile the samples give no 95 % upper bound.
    let surest = count as f64 / -(1.0 - sufficiency::CONFIDENCE).ln();
    if surest > 1.0 && count > 0 {
        let label = "too few samples for an upper bound".to_owned();
        marks.push(Mark::Span { from: surest, to: x_max, label, class: "plain" });
    }
    let axis = match lead {
        Metric::Upgrade => "percentile of connections, as 1/(1-p)",
        _ => "percentile of messages, as 1/(1-p)",
    };
    Some(Chart {
        id: id.into(),
        title: "Latency over percentile".to_owned(),
        width: FULL_WIDTH,
        height: TALL,
        x: Axis::log_with_ticks(1.0, x_max, axis, percentile_ticks(x_max)),
        y: Axis::log(y_min, y_max, "latency", units::latency),
        series,
        marks,
    })
}

/// The values people quote, on the line.
fn labels(recorder: &Recorder, metrics: &[(Metric, &'static str)], lead: Metric) -> Vec<Mark> {
    let class = metrics.iter().find(|(metric, _)| *metric == lead).map_or("c1", |(_, class)| *class);
    let samples = recorder.count() as f64;
    let known = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999]
        .into_iter()
        .filter(|quantile| samples * (1.0 - quantile) > 1.0);
    let label = |quantile: f64| {
        let value_ns = recorder.quantile_ns(quantile);
        let label = units::latency_ns(value_ns);
        Mark::Label { x: 1.0 / (1.0 - quantile), y: value_ns as f64, label, class }
    };
    known.map(label).collect()
}

/// The objectives as they were written; those of a file by a newer version are left out.
pub(super) fn slos_of(result: &RunResult) -> Vec<Slo> {
    result.slos.iter().filter_map(|slo| slo.expression.parse().ok()).collect()
}

/// The largest x, the smallest y above zero, and the largest y, of series and horizontal marks.
pub(super) fn extent(series: &[Series], marks: &[Mark]) -> (f64, f64, f64) {
    let points = || series.iter().flat_map(|series| &series.points);
    let limits = marks.iter().filter_map(|mark| match mark {
        Mark::Horizontal { y, .. } => Some(*y),
        _ => None,
    });
    let cells = marks.iter().filter_map(|mark| match mark {
        Mark::Cell { y, .. } => Some(*y),
        _ => None,
    });
    let (cell_min, cell_max) =
        cells.fold((f64::MAX, 0.0_f64), |(min, max), (low, high)| (min.min(low), max.max(high)));
    let ys = || points().map(|point| point.y).filter(|y| *y > 0.0);
    let x_max = points().map(|point| point.x).fold(1.0, f64::max);
    let y_max = ys().chain(limits).fold(cell_max, f64::max);
    (x_max, ys().fold(cell_min, f64::min).min(y_max), y_max)
}

/// A chart over the time of the run.
struct OverTime {
    id: &'static str,
    width: f64,
    height: f64,
    y_label: &'static str,
    format: Format,
    scale: Y,
}

/// How the y axis of a chart over time is laid out.
#[derive(Clone, Copy)]
enum Y {
    /// From zero.
    Linear,
    /// From zero, in whole numbers.
    Count,
    /// From zero, round in binary multiples.
    Octets,
    /// Around what is there.
    Log,
    /// From below one, for counts that are shown as stems.
    LogCount,
}

impl OverTime {
    /// As wide as the page.
    fn full(id: &'static str, height: f64, y_label: &'static str, format: Format, scale: Y) -> Self {
        OverTime { id, width: FULL_WIDTH, height, y_label, format, scale }
    }

    /// One of a pair.
    fn half(id: &'static str, y_label: &'static str, format: Format, scale: Y) -> Self {
        OverTime { id, width: HALF_WIDTH, height: LOW, y_label, format, scale }
    }

    /// The chart of these series; `None` where they are all empty.
    fn chart(self, timeline: &[Interval], series: Vec<Series>, mut marks: Vec<Mark>) -> Option<Chart> {
        if series.iter().all(|series| series.points.is_empty()) {
            return None;
        }
        let start_s = timeline.iter().map(|interval| interval.start_ms).min()? as f64 / 1000.0;
        let ends = timeline.iter().map(|interval| interval.start_ms + interval.length_ms as i64);
        let end_s = ends.max()? as f64 / 1000.0;
        let (_, y_min, y_max) = extent(&series, &marks);
        let y = match self.scale {
            Y::Linear => Axis::linear(y_max, self.y_label, self.format),
            Y::Count => Axis::linear(y_max.max(5.0), self.y_label, self.format),
            Y::Octets => Axis::octets(y_max, self.y_label, self.format),
            Y::Log => Axis::log(y_min, y_max, self.y_label, self.format),
            Y::LogCount => Axis::log(0.5, y_max.max(2.0), self.y_label, self.format),
        };
        // Warm-up lies left of zero.
        if start_s < 0.0 {
            marks.insert(
                0,
                Mark::Span { from: start_s, to: 0.0, label: "warm-up".to_owned(), class: "plain" },
            );
        }
        Some(Chart {
            id: self.id.into(),
            title: format!("{} over time", self.y_label),
            width: self.width,
            height: self.height,
            x: Axis::tight(start_s, end_s, "time since the start of the measured part", units::span_s_signed),
            y,
            series,
            marks,
        })
    }
}

/// p50, p99, p99.9 and max over time, above the density of all samples.
pub(super) fn latency_over_time(result: &RunResult, timeline: &[Interval]) -> Markup {
    let metric = result.plan.headline();
    let line = |name: &str, class, quantile| {
        over_time(name, class, timeline, units::latency, |interval| quantile_of(interval, metric, quantile))
    };
    let series = vec![
        line("max", "c4", 1.0),
        line("p99.9", "c2", 0.999),
        line("p99", "c5", 0.99),
        line("p50", "c3", 0.5),
    ];
    let mut marks = density(timeline, metric);
    for slo in slos_of(result) {
        if let Some(limit) = slo.latency_limit_ns(metric, metric) {
            marks.push(Mark::Horizontal { y: limit, label: format!("objective {slo}"), class: "bad" });
        }
    }
    let look = OverTime::full("timeline", TALL, "latency", units::latency, Y::Log);
    let title = format!("{} over time", capitalised(metric.title()));
    let hint =
        "Percentiles of each interval; behind them all samples, darker where there are more (logarithmic).";
    look.chart(timeline, series, marks).map_or(html! {}, |chart| panel(&title, hint, chart.render()))
}

/// A rate; none for the drain, in which nothing is sent any more.
fn per_s(interval: &Interval, count: u64) -> Option<f64> {
    (interval.length_ms > 0 && interval.phase != Phase::Drain)
        .then(|| count as f64 * 1000.0 / interval.length_ms as f64)
}

pub(super) fn rate_tick(value: f64) -> String {
    units::rate(value, "msg")
}

/// Offered and achieved rate over time, and errors where there are any.
pub(super) fn rate_over_time(result: &RunResult, timeline: &[Interval]) -> Markup {
    let connect = result.plan.mode == Mode::Connect;
    let line = |name: &str, class, count: fn(&Interval) -> u64| {
        over_time(name, class, timeline, rate_tick, |interval| per_s(interval, count(interval)))
    };
    let offered = line("offered", "c8 dashed", |interval| interval.counts.scheduled);
    let mut series = Vec::new();
    if result.plan.offered_msgs_per_s().is_some() {
        series.push(offered);
    }
    if connect {
        series.push(line("connects", "c3", |interval| interval.counts.connects));
        series.push(line("upgrades", "c1", |interval| interval.counts.upgrades));
    } else {
        series.push(line("sent", "c3", |interval| interval.counts.sent));
        series.push(line("received", "c1", |interval| interval.counts.received));
    }
    if timeline.iter().any(|interval| interval.counts.errors.total() > 0) {
        series.push(line("errors", "c4", |interval| interval.counts.errors.total()));
    }
    let look = OverTime::half("rate", "rate", rate_tick, Y::Linear);
    let hint = "What the schedule offered, and what was done of it.";
    look.chart(timeline, series, Vec::new()).map_or(html! {}, |chart| panel("Rate", hint, chart.render()))
}

/// Messages in flight, and connections open where their number changed.
pub(super) fn in_flight(timeline: &[Interval]) -> Markup {
    let whole: Format = |value| units::count(value.round() as u64);
    let line = |name: &str, class, level: fn(&Interval) -> u64| {
        over_time(name, class, timeline, whole, |interval| Some(level(interval) as f64))
    };
    let mut series = vec![line("messages in flight", "c2", |interval| interval.in_flight)];
    let loaded = || timeline.iter().filter(|interval| interval.phase != Phase::Ramp);
    let open = || loaded().map(|interval| interval.connections_open);
    if open().min() != open().max() {
        series.push(line("connections open", "c6", |interval| interval.connections_open));
    }
    let hint = "A rising number of messages in flight is a server that does not keep up.";
    OverTime::half("in-flight", "count", whole, Y::Count)
        .chart(timeline, series, Vec::new())
        .map_or(html! {}, |chart| panel("In flight", hint, chart.render()))
}

/// Broadcast: how far apart the first and the last subscriber are.
pub(super) fn fan_out(timeline: &[Interval]) -> Markup {
    let line = |name: &str, class, quantile| {
        over_time(name, class, timeline, units::latency, |interval| {
            quantile_of(interval, Metric::Spread, quantile)
        })
    };
    let series = vec![line("max", "c4", 1.0), line("p99", "c5", 0.99), line("p50", "c3", 0.5)];
    let look = OverTime::half("spread", "spread", units::latency, Y::Log);
    let hint = "From the first to the last subscriber's receipt of one publication.";
    look.chart(timeline, series, Vec::new())
        .map_or(html! {}, |chart| panel("First-to-last spread", hint, chart.render()))
}

fn cpu_tick(value: f64) -> String {
    units::percent(value / 100.0)
}

/// CPU of the server.
pub(super) fn server_cpu(timeline: &[Interval]) -> Markup {
    let cpu = over_time("", "c2", timeline, cpu_tick, |interval| interval.sample.server_cpu_percent);
    let look = OverTime::half("server-cpu", "CPU", cpu_tick, Y::Linear);
    let hint = "100 % is one core busy.";
    look.chart(timeline, vec![cpu], Vec::new())
        .map_or(html! {}, |chart| panel("Server CPU", hint, chart.render()))
}

/// Resident memory of the server.
pub(super) fn server_memory(timeline: &[Interval]) -> Markup {
    let rss = over_time("", "c6", timeline, units::octets, |interval| {
        interval.sample.server_rss_octets.map(|octets| octets as f64)
    });
    let look = OverTime::half("server-memory", "RSS", units::octets, Y::Octets);
    let hint = "Resident memory; what the kernel holds for sockets is not in it.";
    look.chart(timeline, vec![rss], Vec::new())
        .map_or(html! {}, |chart| panel("Server memory", hint, chart.render()))
}

/// Kernel counters that moved, on the same time axis.
pub(super) fn kernel(result: &RunResult, timeline: &[Interval]) -> Markup {
    const CLASSES: [&str; 8] =
        ["c4 stems", "c2 stems", "c1 stems", "c3 stems", "c5 stems", "c6 stems", "c7 stems", "c8 stems"];
    let moved = timeline.iter().flat_map(|interval| interval.sample.kernel_deltas.keys());
    let mut names: Vec<&String> = moved.filter(|name| kernel_events::of_counter(name).is_some()).collect();
    names.sort();
    names.dedup();
    let whole: Format = |value| match value {
        1.0.. => format!("+{}", units::count(value.round() as u64)),
        _ => String::new(),
    };
    let series: Vec<Series> = names
        .iter()
        .zip(CLASSES.into_iter().cycle())
        .map(|(name, class)| {
            over_time(name, class, timeline, whole, |interval| {
                interval
                    .sample
                    .kernel_deltas
                    .get(*name)
                    .filter(|delta| **delta > 0)
                    .map(|delta| *delta as f64)
            })
        })
        .collect();
    let look = OverTime::full("kernel", LOW, "rise in an interval", whole, Y::LogCount);
    let hint = "Counters that should stand still, and did not. They are the machine's: other programs move them, too.";
    match look.chart(timeline, series, Vec::new()) {
        Some(chart) => panel("Kernel counters that moved", hint, chart.render()),
        None if timeline.is_empty() || result.kernel.counters_after.is_empty() => html! {},
        None => panel("Kernel counters", "", html! { p { "None of the watched counters moved." } }),
    }
}

/// Generator health: schedule lag and machine hiccups.
pub(super) fn generator_lag(timeline: &[Interval]) -> Markup {
    let line = |name: &str, class, metric, quantile| {
        over_time(name, class, timeline, units::latency, |interval| quantile_of(interval, metric, quantile))
    };
    let series = vec![
        line("lag max", "c4", Metric::Lag, 1.0),
        line("lag p99", "c2", Metric::Lag, 0.99),
        line("hiccup max", "c8 dashed", Metric::Hiccup, 1.0),
        line("hiccup p99", "c6 dashed", Metric::Hiccup, 0.99),
    ];
    let series: Vec<Series> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    let look = OverTime::half("lag", "lateness", units::latency, Y::Log);
    let hint = "Lag: sends behind the schedule. Hiccups: how late a thread woke that only sleeps.";
    look.chart(timeline, series, Vec::new())
        .map_or(html! {}, |chart| panel("Generator health: lateness", hint, chart.render()))
}

/// Generator health: CPU of its threads.
pub(super) fn generator_cpu(result: &RunResult, timeline: &[Interval]) -> Markup {
    const CLASSES: [&str; 8] = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"];
    let threads = timeline.iter().map(|interval| interval.thread_cpu_percent.len()).max().unwrap_or(0);
    let name = |thread: usize| match result.generator_threads.get(thread) {
        Some(known) => known.name.clone(),
        None => format!("thread {thread}"),
    };
    let series: Vec<Series> = if threads <= CLASSES.len() {
        let line = |thread: usize| {
            over_time(&name(thread), CLASSES[thread], timeline, cpu_tick, |interval| {
                interval.thread_cpu_percent.get(thread).copied()
            })
        };
        (0..threads).map(line).collect()
    } else {
        let line = |name: &str, class, of: fn(&[f64]) -> f64| {
            over_time(name, class, timeline, cpu_tick, |interval| {
                (!interval.thread_cpu_percent.is_empty()).then(|| of(&interval.thread_cpu_percent))
            })
        };
        let busiest: fn(&[f64]) -> f64 = |cpu| cpu.iter().copied().fold(0.0, f64::max);
        let mean: fn(&[f64]) -> f64 = |cpu| cpu.iter().sum::<f64>() / cpu.len() as f64;
        vec![line("busiest thread", "c4", busiest), line("mean of threads", "c1", mean)]
    };
    let marks =
        vec![Mark::Horizontal { y: 90.0, label: "90 %: too busy to be believed".to_owned(), class: "warn" }];
    let look = OverTime::half("generator-cpu", "CPU", cpu_tick, Y::Linear);
    let hint = "100 % is one core busy.";
    look.chart(timeline, series, marks)
        .map_or(html! {}, |chart| panel("Generator health: CPU", hint, chart.render()))
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
