//! HdrHistogram's own file formats: `.hgrm` percentile files and tagged `.hlog` interval logs, version 1.3.
//!
//! Other people's programs read these (the HdrHistogram plotter, HistogramLogProcessor), so the formats are theirs to
//! the letter: the plotter takes only rows of four fields, and the Java reader takes only V2 *deflate* histograms.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::model::RunResult;
use super::recorder::Recorder;

/// Rows for each halving of the distance to 100 %, as the Java library has them.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// Values in `.hgrm` files, and the maxima beside the histograms of a `.hlog`, are in ms.
const NS_PER_MS: f64 = 1e6;

/// Writes a `.hgrm` percentile file, values in ms.
///
/// # Errors
/// Those of the writer.
pub fn write_hgrm(out: &mut impl Write, recorder: &Recorder) -> io::Result<()> {
    let histogram = recorder.histogram();
    let header = ("Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    writeln!(out, "{:>12} {:>14} {:>12} {:>16}\n", header.0, header.1, header.2, header.3)?;
    let total = recorder.count();
    let mut recorded = histogram.iter_recorded();
    let (mut value_ns, mut cumulated) = (0, 0);
    for tick in 0..64 * TICKS_PER_HALF_DISTANCE {
        // The crate's own iterator adds up binary fractions and misses percentiles that fall on the edge of a bucket,
        // so ranks are whole numbers here: with 5 ticks, `beyond` of them are (10 - i) / 10 / 2^k of all.
        let (halving, i) = (tick / TICKS_PER_HALF_DISTANCE, tick % TICKS_PER_HALF_DISTANCE);
        let ticks = u128::from(2 * TICKS_PER_HALF_DISTANCE);
        let beyond = (u128::from(total) * (ticks - u128::from(i)) / ticks) >> halving;
        let rank = (total - u64::try_from(beyond).expect("a part of a u64")).max(1);
        while cumulated < rank {
            let Some(step) = recorded.next() else { break };
            cumulated += step.count_at_value();
            value_ns = step.value_iterated_to();
        }
        let share_beyond =
            (1.0 - f64::from(i) / f64::from(2 * TICKS_PER_HALF_DISTANCE)) / 2_f64.powi(halving as i32);
        write_row(out, value_ns, 1.0 - share_beyond, cumulated)?;
        if cumulated >= total {
            break;
        }
    }
    write_row(out, recorder.max_ns(), 1.0, total)?;
    let (mean_ms, stdev_ms) = (recorder.mean_ns() / NS_PER_MS, recorder.stdev_ns() / NS_PER_MS);
    let max_ms = recorder.max_ns() as f64 / NS_PER_MS;
    writeln!(out, "#[Mean    = {mean_ms:>12.6}, StdDeviation   = {stdev_ms:>12.6}]")?;
    writeln!(out, "#[Max     = {max_ms:>12.6}, Total count    = {:>12}]", recorder.count())?;
    let sub_buckets = (2 * 10_u64.pow(u32::from(histogram.sigfig()))).next_power_of_two();
    writeln!(out, "#[Buckets = {:>12}, SubBuckets     = {sub_buckets:>12}]", histogram.buckets())
}

/// One row. The fourth field is infinite in the last row and prints as `inf`: still four fields.
fn write_row(out: &mut impl Write, value_ns: u64, quantile: f64, cumulated: u64) -> io::Result<()> {
    let (value_ms, inverse) = (value_ns as f64 / NS_PER_MS, 1.0 / (1.0 - quantile));
    writeln!(out, "{value_ms:>12.6} {quantile:>14.12} {cumulated:>12} {inverse:>16.2}")
}

/// Writes a `.hlog` interval log: every interval's histogram of every metric that counts, tagged with the metric's name.
///
/// # Errors
/// Those of the writer.
pub fn write_hlog(out: &mut impl Write, result: &RunResult) -> io::Result<()> {
    // Offsets in the log are from its StartTime and cannot be negative, so the log starts with the timeline.
    let first_ms = result.intervals.iter().map(|interval| interval.start_ms).min().unwrap_or(0);
    let start_unix_ms = result.manifest.started_unix_ms.saturating_add_signed(first_ms);
    let mut serializer = V2DeflateSerializer::new();
    let mut header = IntervalLogWriterBuilder::new();
    header
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(UNIX_EPOCH + Duration::from_millis(start_unix_ms));
    drop(header.begin_log_with(out, &mut serializer)?);
    // The legend is no comment, and the crate has no call for it.
    writeln!(
        out,
        "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\""
    )?;
    let mut log = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(NS_PER_MS)
        .begin_log_with(out, &mut serializer)?;
    for interval in &result.intervals {
        let start = Duration::from_millis(interval.start_ms.abs_diff(first_ms));
        let length = Duration::from_millis(interval.length_ms);
        for (metric, held) in &interval.histograms {
            if interval.phase.counts_for(*metric) {
                let tag = Tag::new(metric.name());
                log.write_histogram(held.recorder().histogram(), start, length, tag)
                    .map_err(io::Error::other)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_hgrm_has_four_fields_and_the_counts_rise_to_the_total() {
        let mut recorder = Recorder::new();
        (1..=10_000_u64).for_each(|i| recorder.record(i * 1_000));
        let mut text = Vec::new();
        write_hgrm(&mut text, &recorder).expect("a Vec takes everything");
        let text = String::from_utf8(text).expect("the format is ASCII");
        let mut lines = text.lines();
        assert_eq!(lines.next().map(|line| line.split_whitespace().count()), Some(4));
        assert_eq!(lines.next(), Some(""));
        let rows: Vec<Vec<f64>> = lines
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|field| field.parse().expect("a number")).collect())
            .collect();
        assert!(rows.len() > 20 && rows.iter().all(|row| row.len() == 4));
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] < b[1] && a[2] <= b[2]));
        assert_eq!(rows.last().map(|row| (row[1], row[2])), Some((1.0, 10_000.0)));
        let median = rows.iter().find(|row| row[1] == 0.5).expect("a row for the median");
        assert!((median[0] - 5.0).abs() <= 0.005, "{median:?}");
    }
}
