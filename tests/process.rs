//! The binary as its user meets it: what it prints, how it ends, and what it says when it cannot start.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::client::PATIENCE;
use common::process::{Process, command};
use common::{SWITCHING, close_payload, message, reply, request};
use resound::proto::Opcode;

/// Runs it to its end, which must be an error of start-up: exit code 2, one line, nothing on standard output.
fn refusal(flags: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(flags).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout.len()), (Some(2), 0), "{stderr}");
    stderr
}

#[test]
fn a_port_in_use_is_said_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = taken.local_addr().unwrap().to_string();
    let said = refusal(&["--listen", &endpoint]);
    assert!(said.starts_with(&format!("resound: --listen {endpoint}: Address already in use")), "{said}");
    assert_eq!((said.lines().count(), said.matches("already in use").count()), (1, 1), "{said}");
}

#[test]
fn a_second_server_does_not_share_the_port_of_the_first() {
    let first = Process::start(command(&["--listen", "127.0.0.1:0"]));
    assert!(refusal(&["--listen", &first.address.to_string()]).contains("in use"));
}

#[test]
fn flags_that_cannot_be_are_named() {
    for (flags, named) in [
        (&["--listen", "nonsense"][..], "--listen"),
        (&["--listen", "unix:/nowhere/at/all.sock"], "--listen unix:/nowhere/at/all.sock"),
        (&["--mode", "shout"], "--mode"),
        (&["--workers", "0"], "--workers"),
        (&["--send-queue-bytes-max", "1000"], "--send-queue-bytes-max"),
        (&["--allow-origin", "not an origin"], "--allow-origin"),
        (&["--subprotocol", "a b"], "--subprotocol"),
        (&["--log", "=="], "--log"),
        (&["--shout"], "--shout"),
    ] {
        let said = refusal(flags);
        assert!(said.contains(named), "{flags:?}: {said}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let help = command(&["--help"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success() && text.contains("--listen") && text.contains("--slow-consumer"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 100), "lines fit a terminal");
    assert!(command(&["--version"]).output().unwrap().status.success());
}

#[test]
fn it_says_at_start_that_every_web_page_can_reach_it() {
    let log = |flags: &[&str]| {
        let server =
            Process::start(command(&[&["--listen", "127.0.0.1:0", "--workers", "1"], flags].concat()));
        server.signal("-TERM");
        server.end().1
    };
    let said = log(&[]);
    let lines: Vec<_> = said.lines().filter(|line| line.contains("web pages")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains("--allow-origin same-host"), "{said}");
    for flags in [&["--allow-origin", "same-host"][..], &["--mode", "raw"], &["--log", "warn"]] {
        assert!(!log(flags).contains("web pages"), "{flags:?}");
    }
}

#[test]
fn sigterm_and_sigint_drain_and_exit_with_0() {
    for signal in ["-TERM", "-INT"] {
        let server = Process::start(command(&["--listen", "127.0.0.1:0", "--drain-ms", "100"]));
        let mut client = server.connect();
        client.write_all(&[request("/"), message(Opcode::Text, b"hello")].concat()).unwrap();
        let mut got = vec![0; SWITCHING.len() + 7];
        client.read_exact(&mut got).unwrap();
        server.signal(signal);
        let mut close = Vec::new();
        let expected = reply(Opcode::Close, &close_payload(1001, "the server goes down"));
        close.resize(expected.len(), 0);
        client.read_exact(&mut close).unwrap();
        assert_eq!(close, expected);
        client.write_all(&message(Opcode::Close, &close_payload(1001, ""))).unwrap();
        assert_eq!(client.read(&mut [0; 10]).unwrap(), 0);
        drop(client);
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("draining") && log.contains("messages_total=1"), "{log}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let flags = ["--listen", "127.0.0.1:0", "--drain-ms", "60000", "--close-timeout-ms", "60000"];
    let server = Process::start(command(&flags));
    let mut client = server.connect();
    client.write_all(&request("/")).unwrap();
    client.read_exact(&mut vec![0; SWITCHING.len()]).unwrap();
    server.signal("-TERM");
    // The listeners are closed: the first signal has been seen.
    let start = Instant::now();
    while TcpStream::connect(server.address).is_ok() {
        assert!(start.elapsed() < PATIENCE);
    }
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(130));
}

#[test]
fn without_descriptors_accepting_pauses_with_a_reason_and_goes_on_later() {
    let mut limited = Command::new("sh");
    limited
        .args([
            "-c",
            "ulimit -n 40; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_resound"),
            "--listen",
            "127.0.0.1:0",
        ])
        .args(["--workers", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let server = Process::start(limited);
    let mut clients: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.write_all(&request("/")).unwrap();
    }
    // Those that were accepted are served; the others wait in the backlog.
    clients[0].read_exact(&mut vec![0; SWITCHING.len()]).unwrap();
    let cpu = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u64> =
            stat.rsplit(") ").next().unwrap().split(' ').filter_map(|f| f.parse().ok()).collect();
        fields[10] + fields[11] // utime and stime, in ticks of 10 ms; the state before them is no number
    };
    let before = cpu(server.child.id());
    std::thread::sleep(Duration::from_millis(500));
    let spent = cpu(server.child.id()) - before;
    assert!(spent < 20, "it spins: {spent} of 50 ticks");
    // When connections end, the waiting ones get their turn.
    let mut last = clients.pop().unwrap();
    clients.drain(..40);
    last.read_exact(&mut vec![0; SWITCHING.len()]).unwrap();
    server.signal("-TERM");
    drop((clients, last));
    let (code, log) = server.end();
    assert_eq!(code, Some(0));
    assert!(log.contains("accepting pauses; raise the limit of open files"), "{log}");
    assert!(log.matches("accepting pauses").count() < 10, "{log}");
}
