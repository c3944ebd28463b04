//! The numbers of a run against a server whose faults are known, with each way to wait and receive.

mod runs;
mod support;

use resound_load::engine::{RunError, ShortageKind};
use resound_load::result::recorder::ErrorKind;
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
        assert!(matches!(kind(&error), Some(RunError::Server(_))), "{instead:?}: {error:?}");
    }
}

/// Why the run came to nothing, where the flags were understood at all.
fn kind(error: &anyhow::Error) -> Option<&RunError> {
    error.downcast_ref()
}

#[test]
fn connections_that_all_fail_after_a_good_first_one_are_an_error_with_its_kind() {
    // The one that tries the server out is served.
    let server = FaultyServer::start(Faults { served_max: Some(1), ..Faults::default() }).unwrap();
    let error = try_run(&server.url(), "--rate 10 -c 3 -d 1s --connect-timeout 300ms").expect_err("unserved");
    let Some(RunError::Connections { failed, wanted, first }) = kind(&error) else { panic!("{error:?}") };
    assert_eq!((*failed, *wanted), (3, 3));
    assert_eq!(first.as_ref().map(|(kind, _)| *kind), Some(ErrorKind::UpgradeTimeout), "{error:#}");
}

#[test]
fn an_impossible_run_says_what_there_is_too_little_of() {
    let error = try_run("ws://127.0.0.1:1/", "--rate 10 -c 15000000").expect_err("so many");
    let Some(RunError::Impossible(shortages)) = kind(&error) else { panic!("{error:?}") };
    let kinds: Vec<ShortageKind> = shortages.iter().map(|shortage| shortage.kind).collect();
    assert!(
        kinds.contains(&ShortageKind::SourcePorts) && !kinds.contains(&ShortageKind::TimeWait),
        "{kinds:?}"
    );
    let line = error.to_string();
    assert!(
        shortages.iter().all(|shortage| line.contains(&shortage.arithmetic) && line.contains(&shortage.cure))
    );
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
        let is_of_the_flags = matches!(kind(&error), None | Some(RunError::Flags(_)));
        assert_eq!(is_of_the_flags, said != "impossible", "{flags}: {error:?}");
    }
}
