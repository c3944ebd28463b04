//! Runs against servers that are not ours: the real things, installed at pinned versions.
//!
//! Where one cannot be installed the test says why; under `CI=true` that is a failure.

mod runs;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use resound_load::result::recorder::Metric;
use runs::try_run;

/// A server in a process of its own, which ends when this is dropped.
struct Foreign {
    process: Child,
    port: u16,
}

impl Foreign {
    fn start(command: &mut Command) -> Result<Self, String> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        let port = line.trim().parse().map_err(|_| format!("{command:?} printed {line:?} and no port"))?;
        Ok(Self { process, port })
    }

    fn url(&self, path: &str) -> String {
        format!("ws://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn foreign_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign")
}

/// Installs what `kind` needs and starts `script` with it; `None`, after saying why, if it cannot be had.
fn start(kind: &str, script: &str) -> Option<Foreign> {
    let into = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign");
    let here = foreign_directory();
    let installed = Command::new(here.join("install.sh")).arg(kind).arg(&into).output();
    let outcome = match installed {
        Ok(output) if output.status.success() => {
            let mut command = match kind {
                "python" => Command::new(into.join("venv/bin/python")),
                _ => Command::new("node"),
            };
            command.env("NODE_PATH", into.join("node/node_modules")).arg(here.join(script));
            Foreign::start(&mut command)
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(server) => Some(server),
        Err(why) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{script} cannot be run: {why}");
            eprintln!("skipped, {script} cannot be run here: {why}");
            None
        }
    }
}

fn measures_an_echo_server(server: &Foreign, command_contains: &str) {
    for opcode in ["--binary", "--text"] {
        let pid = server.process.id();
        let flags =
            format!("-c 10 --rate 500 -d 1s --warmup 200ms --size 27-2000 {opcode} --server-pid {pid}");
        let result = try_run(&server.url("/"), &flags).unwrap_or_else(|error| panic!("{flags}: {error:#}"));
        let totals = &result.totals;
        assert_eq!((totals.sent, totals.received), (500, 500), "{opcode}");
        assert_eq!((totals.integrity_failures(), totals.errors.total()), (0, 0), "{opcode}");
        assert_eq!(result.recorder(Metric::Response).unwrap().count(), 500);
        let command = result.manifest.server.command.as_deref().unwrap_or_default();
        assert!(command.contains(command_contains), "{command}");
        assert!(result.intervals.iter().any(|interval| interval.sample.server_rss_octets > Some(1 << 20)));
    }
    // Pipelined, with messages that do not fit into a socket's buffer, and closed in an orderly way.
    let closed =
        try_run(&server.url("/"), "-c 4 --max --in-flight 8 -d 1s --warmup 0s --size 20:9,300KiB:1").unwrap();
    assert!(closed.totals.sent > 100, "{:?}", closed.totals);
    assert_eq!((closed.totals.integrity_failures(), closed.totals.errors.total()), (0, 0));
    let connects = try_run(&server.url("/"), "--mode connect -c 50 --rate 100 -d 1s --warmup 0s").unwrap();
    assert_eq!((connects.totals.upgrades, connects.totals.closes), (100, 100));
    assert_eq!((connects.totals.integrity_failures(), connects.totals.errors.total()), (0, 0));
}

/// What goes over the wire is compressed, both ways, and intact when it is read.
fn compresses(server: &Foreign) {
    for opcode in ["--binary", "--text"] {
        let flags = format!("-c 5 --rate 200 -d 1s --warmup 0s --size 27-5000 {opcode} --deflate");
        let result = try_run(&server.url("/"), &flags).unwrap_or_else(|error| panic!("{flags}: {error:#}"));
        assert_eq!((result.totals.sent, result.totals.received), (200, 200), "{opcode}");
        assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0), "{opcode}");
    }
}

#[test]
fn python_websockets_is_measured() {
    if let Some(server) = start("python", "echo_websockets.py") {
        measures_an_echo_server(&server, "echo_websockets.py");
        compresses(&server);
    }
}

#[test]
fn node_ws_is_measured_echo_and_broadcast() {
    let Some(server) = start("node", "echo_ws.js") else { return };
    measures_an_echo_server(&server, "echo_ws.js");
    let flags = "--mode broadcast -c 20 --publishers 2 --rate 100 -d 1s --warmup 200ms --threads 2 --text";
    let result = try_run(&server.url("/broadcast/room"), flags).unwrap();
    assert_eq!((result.totals.sent, result.totals.received), (100, 2000));
    assert_eq!((result.totals.integrity_failures(), result.totals.errors.total()), (0, 0));
    assert_eq!(result.recorder(Metric::Spread).unwrap().count(), 100);
}
