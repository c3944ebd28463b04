//! A line chart as inline SVG: scales, ticks, series, marks, and the labels a pointer shows.
//!
//! Plotting crates bake colours into the picture; a report must follow the reader's light or dark theme and print
//! well, so everything here is coloured by CSS class and the report's style sheet. It knows nothing of latencies:
//! axes come with a function that writes a number with its unit.

use std::borrow::Cow;
use std::fmt::Write as _;

use maud::{Markup, html};

const LEFT: f64 = 76.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 40.0;

/// How numbers are placed on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Log,
}

/// Writes a number with its unit.
pub(super) type Format = fn(f64) -> String;

/// One axis: its range and its ticks.
pub(super) struct Axis {
    scale: Scale,
    min: f64,
    max: f64,
    ticks: Vec<(f64, String)>,
    label: String,
}

impl Axis {
    /// From zero to a round number at or above `max`.
    pub(super) fn linear(max: f64, label: &str, format: Format) -> Axis {
        Axis::range(0.0, max, label, format)
    }

    /// From `min` to `max`, extended upwards to a round number.
    pub(super) fn range(min: f64, max: f64, label: &str, format: Format) -> Axis {
        let span = if max > min { max - min } else { 1.0 };
        let step = round_step(span / 5.0);
        let first = (min / step).floor() * step;
        let count = ((min + span - first) / step - 1e-9).ceil().max(1.0) as u32;
        let ticks: Vec<(f64, String)> =
            (0..=count).map(|i| first + f64::from(i) * step).map(|v| (v, format(v))).collect();
        Axis {
            scale: Scale::Linear,
            min: first,
            max: first + f64::from(count) * step,
            ticks,
            label: label.to_owned(),
        }
    }

    /// From zero to a number of octets that is round in its binary multiple.
    pub(super) fn octets(max: f64, label: &str, format: Format) -> Axis {
        let unit = 1024_f64.powf((max.max(1.0).log2() / 10.0).floor());
        let mut axis = Axis::linear(max / unit, label, |_| String::new());
        axis.max *= unit;
        axis.ticks = axis.ticks.iter().map(|(value, _)| (value * unit, format(value * unit))).collect();
        axis
    }

    /// Exactly from `min` to `max`, with round ticks between: for time.
    pub(super) fn tight(min: f64, max: f64, label: &str, format: Format) -> Axis {
        let mut axis = Axis::range(min, max, label, format);
        (axis.min, axis.max) = (min, if max > min { max } else { min + 1.0 });
        let (low, high) = (axis.min, axis.max);
        axis.ticks.retain(|(value, _)| (low..=high).contains(value));
        axis
    }

    /// Logarithmic, between steps of 1, 2 and 5 around the range.
    pub(super) fn log(min: f64, max: f64, label: &str, format: Format) -> Axis {
        let (min, max) = (min.max(1e-9), max.max(min.max(1e-9) * 1.01));
        let mut steps: Vec<f64> = Vec::new();
        for exponent in min.log10().floor() as i32..=max.log10().ceil() as i32 {
            steps.extend([1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(exponent)));
        }
        let low = steps.iter().copied().filter(|step| *step <= min * 1.000_001).fold(steps[0], f64::max);
        let high = steps.iter().copied().filter(|step| *step >= max * 0.999_999).fold(f64::MAX, f64::min);
        let decades = (high / low).log10();
        let shown = |step: &&f64| {
            let leading = **step / 10_f64.powf(step.log10().floor() + 1e-9);
            decades <= 2.5 || (leading - 1.0).abs() < 0.01
        };
        let within = steps.iter().filter(|step| (low..=high).contains(*step));
        let ticks = within.filter(shown).map(|step| (*step, format(*step))).collect();
        Axis { scale: Scale::Log, min: low, max: high, ticks, label: label.to_owned() }
    }

    /// Logarithmic with ticks given: for percentiles.
    pub(super) fn log_with_ticks(min: f64, max: f64, label: &str, ticks: Vec<(f64, String)>) -> Axis {
        Axis { scale: Scale::Log, min, max: max.max(min * 1.01), ticks, label: label.to_owned() }
    }

    /// Where a value lies, from 0 to 1 (outside where it is outside).
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log => (value.max(self.min * 1e-3) / self.min).ln() / (self.max / self.min).ln(),
        }
    }
}

/// 1, 2 or 5 times a power of ten, at or above `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= raw * 0.999_999);
    step.unwrap_or(10.0) * power
}

/// One point, with the two labels a pointer shows.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) x_label: String,
    pub(super) y_label: String,
}

/// One line of a chart. The class names its colour (`c1` … `c8`) and, with `dashed` or `points`, its looks.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) points: Vec<Point>,
}

/// A straight line with a label.
pub(super) enum Mark {
    /// At a value of the y axis.
    Horizontal { y: f64, label: String, class: &'static str },
    /// At a value of the x axis.
    Vertical { x: f64, label: String, class: &'static str },
    /// A stretch of the x axis.
    Span { from: f64, to: f64, label: String, class: &'static str },
    /// A dot with a label.
    Label { x: f64, y: f64, label: String, class: &'static str },
    /// A shaded cell, with its opacity.
    Cell { x: (f64, f64), y: (f64, f64), opacity: f64 },
}

/// A chart.
pub(super) struct Chart {
    pub(super) id: Cow<'static, str>,
    /// What a screen reader says.
    pub(super) title: String,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    pub(super) marks: Vec<Mark>,
}

impl Chart {
    /// The chart and its legend.
    pub(super) fn render(&self) -> Markup {
        let bottom = self.height - BOTTOM;
        let right = self.width - RIGHT;
        html! {
            figure.chart id=(self.id) data-points=(self.pointer_data()) {
                div.drawing { svg.wide[self.width > 800.0] viewBox={"0 0 " (self.width) " " (self.height)} role="img" aria-label=(self.title) {
                    (self.marks_below())
                    (self.axes())
                    @for series in &self.series { (self.line(series)) }
                    (self.marks_above())
                    line.cursor x1=(LEFT) x2=(LEFT) y1=(TOP) y2=(bottom) {}
                    rect.plot x=(LEFT) y=(TOP) width=(number(right - LEFT)) height=(number(bottom - TOP)) {}
                } }
                @if self.series.len() > 1 || self.series.iter().any(|series| !series.name.is_empty()) {
                    figcaption { @for series in &self.series {
                        span.key { i class=(series.class) {} (series.name) }
                    } }
                }
            }
        }
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + self.x.place(x).clamp(-0.01, 1.01) * (self.width - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        self.height - BOTTOM - self.y.place(y).clamp(-0.02, 1.02) * (self.height - TOP - BOTTOM)
    }

    fn axes(&self) -> Markup {
        let bottom = self.height - BOTTOM;
        let right = self.width - RIGHT;
        html! {
            @for (value, label) in &self.y.ticks {
                @let y = self.py(*value);
                line.grid x1=(LEFT) x2=(right) y1=(number(y)) y2=(number(y)) {}
                text.tick x=(LEFT - 7.0) y=(number(y + 3.5)) text-anchor="end" { (label) }
            }
            @for (value, label) in &self.x.ticks {
                @let x = self.px(*value);
                line.grid x1=(number(x)) x2=(number(x)) y1=(TOP) y2=(number(bottom)) {}
                text.tick x=(number(x)) y=(number(bottom + 14.0)) text-anchor="middle" { (label) }
            }
            line.axis x1=(LEFT) x2=(right) y1=(bottom) y2=(bottom) {}
            text.label x=(number(f64::midpoint(LEFT, right))) y=(self.height - 6.0) text-anchor="middle" { (self.x.label) }
            text.label x="4" y=(TOP - 11.0) { (self.y.label) }
        }
    }

    fn line(&self, series: &Series) -> Markup {
        if series.class.contains("points") {
            return html! { g class=(series.class) { @for point in &series.points {
                circle cx=(number(self.px(point.x))) cy=(number(self.py(point.y))) r="3.5" {}
            } } };
        }
        if series.class.contains("stems") {
            let zero = self.height - BOTTOM;
            return html! { g class=(series.class) { @for point in series.points.iter().filter(|point| point.y > 0.0) {
                @let (x, y) = (number(self.px(point.x)), number(self.py(point.y)));
                line x1=(x) x2=(x) y1=(zero) y2=(y) {}
                circle cx=(x) cy=(y) r="3" {}
            } } };
        }
        let mut path = String::new();
        for (index, point) in series.points.iter().enumerate() {
            let verb = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{} {}", number(self.px(point.x)), number(self.py(point.y)));
        }
        html! { path class={"line " (series.class)} d=(path) {} }
    }

    fn marks_below(&self) -> Markup {
        let bottom = self.height - BOTTOM;
        html! { @for mark in &self.marks { @match mark {
            Mark::Span { from, to, label, class } => {
                @let (left, right) = (self.px(*from), self.px(*to));
                @if right > left {
                    rect class={"span " (class)} x=(number(left)) y=(TOP) width=(number(right - left)) height=(number(bottom - TOP)) {}
                    // A narrow stretch at the right end has its label reach out to the left.
                    @let (x, anchor) = if right >= self.width - RIGHT - 1.0 { (right - 5.0, "end") } else { (left + 5.0, "start") };
                    text.note x=(number(x)) y=(number(bottom - 6.0)) text-anchor=(anchor) { (label) }
                }
            }
            Mark::Cell { x, y, opacity } => {
                @let (left, right) = (self.px(x.0), self.px(x.1));
                @let (low, high) = (self.py(y.0), self.py(y.1));
                rect.cell x=(number(left)) y=(number(high)) width=(number(right - left)) height=(number(low - high)) fill-opacity=(format!("{opacity:.2}")) {}
            }
            _ => {}
        } } }
    }

    fn marks_above(&self) -> Markup {
        let (bottom, right) = (self.height - BOTTOM, self.width - RIGHT);
        // Labels of verticals are staggered: neighbours would lie on each other.
        let verticals = |index: usize| {
            let before = self.marks[..index].iter();
            before.filter(|mark| matches!(mark, Mark::Vertical { .. })).count() % 4
        };
        html! { @for (index, mark) in self.marks.iter().enumerate() { @match mark {
            Mark::Horizontal { y, label, class } => {
                @let y = self.py(*y);
                line class={"mark " (class)} x1=(LEFT) x2=(right) y1=(number(y)) y2=(number(y)) {}
                text class={"marklabel " (class)} x=(number(LEFT + 6.0)) y=(number(y - 4.0)) { (label) }
            }
            Mark::Vertical { x, label, class } => {
                @let x = self.px(*x);
                line class={"mark " (class)} x1=(number(x)) x2=(number(x)) y1=(TOP) y2=(bottom) {}
                @let flip = x > f64::midpoint(LEFT, right);
                text class={"marklabel " (class)} x=(number(if flip { x - 5.0 } else { x + 5.0 })) y=(TOP + 10.0 + 14.0 * verticals(index) as f64) text-anchor=(if flip { "end" } else { "start" }) { (label) }
            }
            Mark::Label { x, y, label, class } => {
                @let (x, y) = (self.px(*x), self.py(*y));
                g class=(class) { circle.dot cx=(number(x)) cy=(number(y)) r="4" {} }
                text.value x=(number(x - 6.0)) y=(number(y - 9.0)) text-anchor="end" { (label) }
            }
            _ => {}
        } } }
    }

    /// What the script needs to show labels: for each series its name, colour class and `[x, y, x label, y label]`s.
    fn pointer_data(&self) -> String {
        let series: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                let points: Vec<_> = series
                    .points
                    .iter()
                    .map(|point| {
                        let (x, y) = (number(self.px(point.x)), number(self.py(point.y)));
                        serde_json::json!([x, y, point.x_label, point.y_label])
                    })
                    .collect();
                serde_json::json!({ "name": series.name, "class": series.class, "points": points })
            })
            .collect();
        serde_json::Value::Array(series).to_string()
    }
}

/// A coordinate with one decimal: a tenth of a pixel.
fn number(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside_the_axis() {
        let plain: Format = |value| format!("{value}");
        for max in [0.3, 1.0, 7.0, 99.0, 12_345.0, 1e9] {
            let axis = Axis::linear(max, "", plain);
            assert!(axis.max >= max && (3..=12).contains(&axis.ticks.len()), "{max}: {:?}", axis.ticks);
            assert!(
                axis.ticks
                    .iter()
                    .all(|(value, _)| *value >= axis.min - 1e-9 && *value <= axis.max * 1.000_001)
            );
        }
        for (min, max) in [(1e3, 3e3), (50.0, 1e9), (7e6, 7e6)] {
            let axis = Axis::log(min, max, "", plain);
            assert!(
                axis.min <= min && axis.max >= max && axis.ticks.len() >= 2,
                "{min}..{max}: {:?}",
                axis.ticks
            );
            assert_eq!(axis.place(axis.min), 0.0);
            assert!((axis.place(axis.max) - 1.0).abs() < 1e-12);
        }
    }
}
