//! What `resound-load run` does as a process: exit codes, and signals.

#[allow(dead_code, reason = "what only faults.rs needs")]
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use clap::Parser as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use resound::config::Config;
use resound::server::Server;
use support::{Faults, FaultyServer, Instead};

fn resound_load(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resound-load"));
    command.arg("run").args(words);
    command
}

/// Exit code and standard error.
fn outcome(words: &[&str]) -> (Option<i32>, String) {
    let output = resound_load(words).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn bad_input_is_one_line_and_exit_code_2() {
    let gone = FaultyServer::start(Faults::default()).unwrap().url();
    let not_found =
        FaultyServer::start(Faults { instead: Some(Instead::NotFound), ..Faults::default() }).unwrap();
    for url in ["nonsense", "http://127.0.0.1/", "ws://127.0.0.1:0/", &gone, &not_found.url()] {
        let (code, said) = outcome(&[url, "--rate", "10"]);
        assert_eq!(code, Some(2), "{url}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{url}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_fault_of_the_server_is_exit_code_1() {
    let server = FaultyServer::start(Faults { duplicate_one_in: Some(10), ..Faults::default() }).unwrap();
    let (code, said) = outcome(&[&server.url(), "-c", "1", "--rate", "200", "-d", "1s", "--warmup", "0s"]);
    assert_eq!(code, Some(1), "{said}");
}

/// A run whose warm-up does not end by itself, with its lines on standard error, at the second of them that is about it.
fn warming_up(url: &str) -> (Child, impl Iterator<Item = String> + use<>) {
    let flags = ["-c", "2", "--rate", "100", "-d", "60s", "--warmup", "60s"];
    let mut command = resound_load(&[&[url], flags.as_slice()].concat());
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().filter(|line| line.contains("warm-up")).nth(1).is_some());
    (process, lines)
}

#[test]
fn an_interrupt_before_the_measured_part_says_that_it_ended_before_that() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let (mut process, lines) = warming_up(&server.url());
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGINT).unwrap();
    let said: Vec<String> = lines.collect();
    assert_eq!(process.wait().unwrap().code(), Some(2), "{said:?}");
    assert_eq!(said.last().unwrap(), "resound-load: ended before the measured part started");
}

#[test]
fn a_server_that_goes_away_in_the_warm_up_is_named_and_not_an_interrupt() {
    let flags = ["resound", "--listen", "127.0.0.1:0", "--workers", "1", "--no-pin", "--io", "epoll"];
    let server = Server::start(Config::parse_from(flags)).expect("a server on a free port");
    let url = server.urls().next().expect("it listens");
    let (mut process, lines) = warming_up(&url);
    server.stop();
    let said: Vec<String> = lines.collect();
    assert_eq!(process.wait().unwrap().code(), Some(2), "{said:?}");
    assert!(
        said.last().unwrap().starts_with("resound-load: no connection is left; the first to end: "),
        "{said:?}"
    );
}

#[test]
fn the_first_interrupt_ends_the_run_with_its_result_and_the_second_at_once() {
    for interrupts in [1, 2] {
        // What is lost keeps the second run in its drain until it is interrupted again.
        let drop_one_in = (interrupts == 2).then_some(10);
        let server = FaultyServer::start(Faults { drop_one_in, ..Faults::default() }).unwrap();
        let flags = ["-c", "2", "--rate", "100", "-d", "60s", "--warmup", "0s", "--drain", "60s"];
        let mut command = resound_load(&[&[server.url().as_str()], flags.as_slice()].concat());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(process.id().cast_signed());
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line.contains("measure")).expect("a line for each second");
        kill(pid, Signal::SIGINT).unwrap();
        lines.find(|line| line.starts_with("ending")).expect("it says that it has heard");
        if interrupts == 2 {
            kill(pid, Signal::SIGINT).unwrap();
        }
        lines.for_each(drop);
        let output = process.wait_with_output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        if interrupts == 1 {
            assert!(output.status.code().is_some_and(|code| code < 2), "{:?}", output.status);
            assert!(printed.contains("response latency"), "{printed}");
        } else {
            assert_eq!(output.status.code(), Some(130), "as a shell reports SIGINT");
            assert!(!printed.contains("response latency"), "{printed}");
        }
    }
}
