//! The files we write, read by programs that are not ours: the HdrHistogram project's Java library and its Python package.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Scenario, scratch, skip};
use resound_load::result::model::{Phase, RunResult};
use resound_load::result::recorder::Metric;
use resound_load::result::store;

/// A made-up run on disk, with a stall so that its tail is long.
fn written(name: &str) -> (RunResult, PathBuf) {
    let dir = scratch(name);
    let result = Scenario { stall_at_s: Some(2), measured_s: 6, ..Scenario::default() }.result();
    store::write_dir(&result, &dir).expect("written");
    (result, dir)
}

/// A reader that the script found or installed, or why there is none.
fn reader(kind: &str) -> Result<PathBuf, String> {
    static FOUND: std::sync::LazyLock<(String, String)> = std::sync::LazyLock::new(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/hdr-readers.sh");
        let output =
            Command::new("bash").arg(script).arg(env!("CARGO_TARGET_TMPDIR")).output().expect("bash runs");
        let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
        (text(output.stdout), text(output.stderr))
    });
    let prefix = format!("{kind}=");
    let found = FOUND.0.lines().find_map(|line| line.strip_prefix(&prefix));
    found.map(PathBuf::from).ok_or_else(|| FOUND.1.clone())
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_python_package_reads_the_same_percentiles_from_the_log() {
    let python = match reader("python") {
        Ok(python) => python,
        Err(why) => return skip(&why),
    };
    let (result, dir) = written("hdr-python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hdr_readers/read_hlog.py");
    let read = run(Command::new(python).arg(script).arg(dir.join(store::LOG_FILE)));
    let read: serde_json::Value = serde_json::from_str(&read).expect("JSON");
    let start_ms = result.intervals.iter().map(|interval| interval.start_ms).min().expect("a timeline");
    let start_s = result.manifest.started_unix_ms.saturating_add_signed(start_ms) as f64 / 1000.0;
    assert_eq!(read["start_time_s"].as_f64(), Some(start_s));
    let tags = read["tags"].as_object().expect("tags");
    assert_eq!(tags.len(), result.histograms.len());
    for (metric, recorder) in &result.histograms {
        let tag = &tags[metric.name()];
        assert_eq!(tag["count"].as_u64(), Some(recorder.count()), "{metric:?}");
        assert_eq!(tag["max_ns"].as_u64(), Some(recorder.max_ns()), "{metric:?}");
        // The package rounds the rank of a percentile to the nearest; the Java library and we round it up.
        let count = recorder.count() as f64;
        let rank = |quantile: f64| (quantile * count + 0.5).floor();
        let ours = [0.5, 0.9, 0.99, 0.999, 0.9999]
            .map(|quantile| recorder.quantile_ns((rank(quantile) - 0.5) / count));
        assert_eq!(tag["percentiles_ns"], serde_json::json!(ours), "{metric:?}");
    }
    // The warm-up is not in the log of messages.
    let measured = result.intervals.iter().filter(|interval| interval.phase == Phase::Measure).count();
    assert_eq!(tags["response"]["intervals"].as_u64(), Some(measured as u64));
}

/// The rows of a `.hgrm`: value, percentile, count.
fn rows(path: &Path) -> Vec<(f64, f64, u64)> {
    let text = std::fs::read_to_string(path).expect("it was written");
    let numbers = |line: &str| -> Option<(f64, f64, u64)> {
        let mut fields = line.split_whitespace();
        let mut next = || fields.next();
        Some((next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?))
    };
    text.lines().filter_map(numbers).collect()
}

#[test]
fn the_java_log_processor_makes_the_same_percentile_files_as_ours() {
    let jar = match reader("jar") {
        Ok(jar) => jar,
        Err(why) => return skip(&why),
    };
    let (result, dir) = written("hdr-java");
    let processor = || {
        let mut java = Command::new("java");
        java.arg("-cp").arg(&jar).arg("org.HdrHistogram.HistogramLogProcessor");
        java.arg("-i").arg(dir.join(store::LOG_FILE));
        java
    };
    let listed = run(processor().arg("-listtags"));
    assert!(result.histograms.keys().all(|metric| listed.contains(metric.name())), "{listed}");
    for metric in [Metric::Response, Metric::Lag, Metric::Upgrade] {
        let recorder = result.recorder(metric).expect("an echo run");
        let out = dir.join(format!("java-{}", metric.name()));
        run(processor().args(["-tag", metric.name(), "-o"]).arg(&out));
        let java = rows(&out.with_extension("hgrm"));
        let ours = rows(&dir.join(format!("{}.hgrm", metric.name())));
        assert_eq!(java.len(), ours.len(), "{metric:?}");
        assert_eq!(java.last().map(|row| row.2), Some(recorder.count()), "{metric:?}");
        for (theirs, mine) in java.iter().zip(&ours) {
            assert!((theirs.1 - mine.1).abs() < 1e-9, "{metric:?}: {theirs:?} {mine:?}");
            // Both are in ms, and the processor prints three decimals. Where a percentile is exactly that of a
            // sample, binary fractions may take it to the next: then only the count says that it is a tie.
            let equal = theirs.2 == mine.2 && (theirs.0 - mine.0).abs() <= 0.000_501;
            let rank = theirs.1 * recorder.count() as f64;
            assert!(equal || (rank - rank.round()).abs() < 1e-6, "{metric:?}: {theirs:?} {mine:?}");
        }
    }
    assert!(result.recorder(Metric::Response).is_some_and(|recorder| recorder.max_ns() > 90_000_000));
}
