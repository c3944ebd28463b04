//! A result on disk: the directory `--out` fills, and reading one back.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::model::{RunResult, SCHEMA, SCHEMA_VERSION, SCHEMA_VERSION_MIN};
use super::recorder::Metric;
use super::slo::Slo;
use super::{hdr_files, report, verdict};

/// The name of the result in its directory.
pub const RESULT_FILE: &str = "result.json";
/// The name of the report in its directory.
pub const REPORT_FILE: &str = "report.html";
/// The name of the interval log in its directory.
pub const LOG_FILE: &str = "latency.hlog";

/// Writes result.json, report.html, latency.hlog and a `.hgrm` a metric into `dir`, which is made where it is missing.
///
/// # Errors
/// The file that could not be written, and why.
pub fn write_dir(result: &RunResult, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    write_result(result, &dir.join(RESULT_FILE))?;
    write_report(result, None, &dir.join(REPORT_FILE))?;
    write_file(&dir.join(LOG_FILE), |out| Ok(hdr_files::write_hlog(out, result)?))?;
    for metric in Metric::ALL {
        let path = dir.join(format!("{}.hgrm", metric.name()));
        match result.histograms.get(&metric) {
            Some(recorder) => write_file(&path, |out| Ok(hdr_files::write_hgrm(out, recorder)?))?,
            // One that an earlier result left here would pass for this one's.
            None if path.exists() => {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?
            }
            None => {}
        }
    }
    Ok(())
}

/// Writes result.json alone.
///
/// # Errors
/// Those of the file system.
pub fn write_result(result: &RunResult, path: &Path) -> Result<()> {
    write_file(path, |out| {
        serde_json::to_writer_pretty(&mut *out, result)?;
        Ok(out.write_all(b"\n")?)
    })
}

/// Writes report.html alone, laid over a baseline where one is given.
///
/// # Errors
/// Those of the file system.
pub fn write_report(result: &RunResult, baseline: Option<&RunResult>, path: &Path) -> Result<()> {
    write_file(path, |out| Ok(out.write_all(report::html(result, baseline).as_bytes())?))
}

/// Where the result is: `path` itself, or the result.json in it.
pub fn result_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(RESULT_FILE) } else { path.to_owned() }
}

/// Reads a result from its file, or from the directory that holds it.
///
/// # Errors
/// The file, and why it is no result that this version reads.
pub fn read(path: &Path) -> Result<RunResult> {
    let path = result_path(path);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no result", path.display()))
}

/// Reads a result from its text.
fn parse(text: &str) -> Result<RunResult> {
    #[derive(Deserialize)]
    struct Head {
        schema: String,
        schema_version: u32,
    }
    let head: Head = serde_json::from_str(text).context("it has no schema and schema_version")?;
    if head.schema != SCHEMA {
        bail!("its schema is '{}', not '{SCHEMA}'", head.schema);
    }
    match head.schema_version {
        SCHEMA_VERSION => Ok(serde_json::from_str(text)?),
        1 => from_version_1(serde_json::from_str(text)?),
        other => bail!(
            "its schema version is {other}, and this program reads {SCHEMA_VERSION_MIN} to {SCHEMA_VERSION}: \
             use the version that wrote it"
        ),
    }
}

/// The findings of version 1 had no kinds. Everything they were made from is in the file, so the run is judged again, by
/// its own objectives.
fn from_version_1(mut file: Value) -> Result<RunResult> {
    if let Some(findings) = file.pointer_mut("/verdict/findings") {
        *findings = Value::Array(Vec::new());
    }
    let mut result: RunResult = serde_json::from_value(file)?;
    result.schema_version = SCHEMA_VERSION;
    // What is no expression is implied in every run: integrity.
    let slos: Vec<Slo> = result.slos.iter().filter_map(|slo| slo.expression.parse().ok()).collect();
    verdict::judge(&mut result, &slos);
    Ok(result)
}

/// Writes through a temporary name, so that a file under its own name is always whole.
pub(super) fn write_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written: Result<()> = (|| {
        let mut out = BufWriter::new(File::create(&partial)?);
        fill(&mut out)?;
        out.flush()?;
        Ok(fs::rename(&partial, path)?)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}
