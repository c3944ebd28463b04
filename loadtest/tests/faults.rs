//! The numbers of a run against a server whose faults are known, with each way to wait and receive.

mod runs;
mod support;

use runs::try_run;
use support::{Faults, FaultyServer, Instead};

mod epoll {
    use resound_load::result::model::Io;

    const IO: (&str, Io) = ("epoll", Io::Epoll);
    include!("faults/cases.rs");
}

mod uring {
    use resound_load::result::model::Io;

    const IO: (&str, Io) = ("uring", Io::IoUring);
    include!("faults/cases.rs");
}

#[test]
fn servers_that_cannot_be_measured_are_refused_in_one_line() {
    for (instead, said) in [
        (Instead::NotFound, "404"),
        (Instead::Close, "closed the connection instead of answering the upgrade"),
        (Instead::Silence, "did not answer the upgrade in time"),
        (Instead::Swallow, "sent none back"),
    ] {
        let server = FaultyServer::start(Faults { instead: Some(instead), ..Faults::default() }).unwrap();
        let error =
            try_run(&server.url(), "--rate 10 -d 1s --connect-timeout 300ms").expect_err("no echo server");
        let line = format!("{error:#}");
        assert!(line.contains(said) && !line.contains('\n'), "{instead:?}: {line}");
    }
}

#[test]
fn a_server_that_is_not_there_is_refused_in_one_line() {
    let address = FaultyServer::start(Faults::default()).unwrap().address;
    let error = try_run(&format!("ws://{address}/"), "--rate 10").expect_err("it has just ended");
    let line = format!("{error:#}");
    assert!(
        line.contains("refused") && line.contains("is the server running") && !line.contains('\n'),
        "{line}"
    );
}

#[test]
fn a_server_that_declines_compression_is_refused() {
    let server = FaultyServer::start(Faults::default()).unwrap();
    let error = try_run(&format!("ws://{}/", server.address), "--rate 10 --deflate").expect_err("declined");
    let line = format!("{error:#}");
    assert!(line.contains("declines permessage-deflate") && !line.contains('\n'), "{line}");
}

#[test]
fn what_cannot_be_meant_or_done_is_refused_before_anything_is_sent() {
    for (flags, said) in [
        ("--rate 10 --size 19", "at least 20 octets"),
        ("--rate 10 --text --size 20-100", "at least 27 octets"),
        ("--max --mode connect", "--rate"),
        ("--rate 10 --churn 5 --mode broadcast", "--churn"),
        ("--rate 10 -c 2 --publishers 3 --mode broadcast", "only 2 connections"),
        ("--rate 10 -d 0", "no time"),
        ("--rate 10 --mode connect --io uring", "--mode connect uses epoll"),
        ("--rate 10 --header Host:x", "Host"),
        ("--rate 10 --subprotocol a/b", "a/b"),
        ("--rate 10 -c 15000000", "impossible"),
        ("", "--rate"),
    ] {
        let error = try_run("ws://127.0.0.1:1/", flags).expect_err(flags);
        let line = format!("{error:#}");
        assert!(line.contains(said), "{flags}: {line}");
    }
}
