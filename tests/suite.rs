//! What every backend must do with real sockets: one suite, run once for each.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};

use common::client::{Client, address, eventually, serve};
use common::{close_payload, frames, message, reply, request};
use resound::config::Config;
use resound::memory::Meter;
use resound::net::uring::UringBackend;
use resound::proto::Opcode;

/// Makes one module for each backend, with TLS and without, with one test in it for each function.
macro_rules! suite {
    ($($test:ident,)+) => {
        suite!(epoll: $($test,)+);
        suite!(uring: $($test,)+);
        suite!(epoll_wss: $($test,)+);
        suite!(uring_wss: $($test,)+);
    };
    ($io:ident: $($test:ident,)+) => {
        mod $io {
            $(
                #[test]
                fn $test() {
                    if super::is_here(stringify!($io)) {
                        super::$test(stringify!($io));
                    }
                }
            )+
        }
    };
}

suite! {
    messages_of_every_length_come_back,
    pipelined_messages_come_back_in_order,
    fragments_come_back_as_one_message,
    frames_that_follow_the_handshake_are_not_lost,
    a_handshake_octet_by_octet_is_accepted,
    a_peer_that_does_not_read_is_not_read_from_and_loses_nothing,
    a_half_closed_peer_gets_what_it_is_owed,
    a_publisher_that_closes_gets_its_own_message_first,
    a_violation_is_answered_and_never_reset,
    a_close_is_answered_and_followed_by_fin,
    a_peer_that_never_ends_is_cut_off,
    a_peer_that_never_asks_is_cut_off,
    a_silent_peer_is_pinged_and_closed,
    a_reset_hurts_nobody_else,
    a_room_spans_workers,
    a_member_that_leaves_is_not_sent_to,
    a_slow_member_delays_nobody,
    a_slow_member_is_closed,
    plain_requests_are_answered_on_one_connection,
    refused_handshakes_say_why,
    pages_of_other_hosts_are_refused,
    a_subprotocol_is_agreed_in_the_clients_order,
    raw_sends_every_octet_back,
    connections_beyond_the_limit_get_503,
    a_drain_says_1001_and_ends,
    a_unix_socket_serves_too,
}

/// Whether the backend works on this machine. Where it must, which is in CI, that it does not is a failure.
fn is_here(io: &str) -> bool {
    match UringBackend::new(&Config::default().uring_options(), Meter::default()) {
        Err(error) if io.starts_with("uring") => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
        _ => true,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| b'a' + (index % 25) as u8).collect()
}

fn messages_of_every_length_come_back(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    let mut client = Client::open(&server, "/");
    for len in [0, 1, 125, 126, 127, 4096, 65_535, 65_536, 300_000, 1 << 20, 16 << 20] {
        for opcode in [Opcode::Text, Opcode::Binary] {
            let payload = pattern(len);
            let got = client.exchange(message(opcode, &payload), 1);
            assert!(got == [(opcode, payload)], "{len} octets");
        }
    }
}

fn pipelined_messages_come_back_in_order(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    let mut client = Client::open(&server, "/");
    let lengths: Vec<usize> =
        (0..3000).map(|index| [20, 0, 1000, 126, 7, 20_000][index % 6] + index % 13).collect();
    let octets = lengths.iter().flat_map(|&len| message(Opcode::Binary, &pattern(len))).collect();
    let got = client.exchange(octets, lengths.len());
    assert!(got.iter().zip(&lengths).all(|((_, payload), &len)| *payload == pattern(len)));
    assert_eq!(server.total(|counters| &counters.messages_total), 3000);
}

fn fragments_come_back_as_one_message(io: &str) {
    let server = serve(io, &[]);
    let mut client = Client::open(&server, "/");
    client.send_fragments(Opcode::Text, &["grü".as_bytes(), b"", "ße".as_bytes()]);
    assert_eq!(client.frame(), (Opcode::Text, "grüße".into()));
}

fn frames_that_follow_the_handshake_are_not_lost(io: &str) {
    let server = serve(io, &[]);
    let mut client = Client::connect(&server);
    client.write(&[request("/"), message(Opcode::Text, b"early"), message(Opcode::Ping, b"p")].concat());
    client.expect(common::SWITCHING.as_bytes());
    assert_eq!(client.frame(), (Opcode::Text, b"early".to_vec()));
    assert_eq!(client.frame(), (Opcode::Pong, b"p".to_vec()));
}

fn a_handshake_octet_by_octet_is_accepted(io: &str) {
    let server = serve(io, &[]);
    let mut client = Client::connect(&server);
    for octet in [request("/"), message(Opcode::Text, b"slow")].concat() {
        client.write(&[octet]);
    }
    client.expect(common::SWITCHING.as_bytes());
    assert_eq!(client.frame(), (Opcode::Text, b"slow".to_vec()));
}

fn a_peer_that_does_not_read_is_not_read_from_and_loses_nothing(io: &str) {
    let server =
        serve(io, &["--workers", "1", "--message-size-max", "65536", "--send-queue-bytes-max", "1000000"]);
    let mut client = Client::open(&server, "/");
    let mut other = Client::open(&server, "/");
    let one = message(Opcode::Binary, &pattern(50_000));
    client.stream.set_nonblocking(true).unwrap();
    // The kernel's buffers on both sides are some megabytes; the server adds at most its send queue.
    let (mut sent, most) = (0, 64 << 20);
    while sent < most {
        match client.stream.write(&one[sent % one.len()..]) {
            Ok(len) => sent += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let received = server.total(|counters| &counters.received_bytes_total);
                std::thread::sleep(std::time::Duration::from_millis(100));
                if server.total(|counters| &counters.received_bytes_total) == received {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < most, "the server reads without end");
    // Others are served meanwhile.
    other.send(Opcode::Text, b"still there?");
    assert_eq!(other.frame().1, b"still there?");
    client.stream.set_nonblocking(false).unwrap();
    let (whole, rest) = (sent / one.len(), sent % one.len());
    let finish = if rest == 0 { Vec::new() } else { one[rest..].to_vec() };
    let count = whole + usize::from(rest > 0);
    let got = client.exchange(finish, count);
    assert!(got.iter().all(|(_, payload)| *payload == pattern(50_000)));
}

fn a_half_closed_peer_gets_what_it_is_owed(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    let mut client = Client::open(&server, "/");
    let octets: Vec<u8> = (0..200).flat_map(|_| message(Opcode::Binary, &pattern(30_000))).collect();
    let mut writer = client.stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        writer.write_all(&octets).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let got = frames(&client.rest());
    thread.join().unwrap();
    assert_eq!(got.len(), 200);
    assert!(got.iter().all(|(_, payload)| *payload == pattern(30_000)));
    eventually("closed", || server.total(|counters| &counters.closed_total) == 1);
}

fn a_publisher_that_closes_gets_its_own_message_first(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    for _ in 0..20 {
        let mut client = Client::open(&server, "/broadcast/room");
        client.send(Opcode::Text, b"mine");
        client.fin();
        assert_eq!(client.rest(), reply(Opcode::Text, b"mine"));
        let mut client = Client::open(&server, "/broadcast/room");
        client.write(&[message(Opcode::Text, b"last"), message(Opcode::Close, b"")].concat());
        assert_eq!(client.rest(), [reply(Opcode::Text, b"last"), reply(Opcode::Close, b"")].concat());
    }
}

fn a_violation_is_answered_and_never_reset(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    for (violation, code) in
        [(&[0x83u8, 0x80, 0, 0, 0, 0][..], 1002), (&[0x81, 0x81, 0, 0, 0, 0, 0xFF][..], 1007)]
    {
        let mut client = Client::open(&server, "/");
        client.send(Opcode::Text, b"before");
        client.write(violation);
        // Much more follows, which a careless close would answer with a RST that overtakes the Close.
        let mut writer = client.stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            // The server may stop taking it once it has given up on us.
            let _ = writer.write_all(&vec![0; 8 << 20]);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
        let got = frames(&client.rest());
        thread.join().unwrap();
        assert_eq!(got, [(Opcode::Text, b"before".to_vec()), (Opcode::Close, close_payload(code, ""))]);
    }
    assert_eq!(server.total(|counters| &counters.protocol_errors_total), 2);
    eventually("closed", || server.total(|counters| &counters.closed_total) == 2);
    assert_eq!(server.total(|counters| &counters.close_timeouts_total), 0);
}

fn a_close_is_answered_and_followed_by_fin(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    let mut client = Client::open(&server, "/");
    client.write(
        &[message(Opcode::Close, &close_payload(4000, "bye")), message(Opcode::Text, b"late")].concat(),
    );
    assert_eq!(client.rest(), reply(Opcode::Close, &close_payload(4000, "")));
    client.fin();
    eventually("closed", || server.total(|counters| &counters.closed_total) == 1);
}

fn a_peer_that_never_ends_is_cut_off(io: &str) {
    let server = serve(io, &["--workers", "1", "--close-timeout-ms", "200"]);
    let mut client = Client::open(&server, "/");
    client.send(Opcode::Close, &close_payload(1000, ""));
    assert_eq!(client.rest(), reply(Opcode::Close, &close_payload(1000, "")));
    // It keeps its own side open.
    eventually("cut off", || server.total(|counters| &counters.close_timeouts_total) == 1);
    eventually("closed", || server.total(|counters| &counters.closed_total) == 1);
}

fn a_peer_that_never_asks_is_cut_off(io: &str) {
    let server = serve(io, &["--workers", "1", "--handshake-timeout-ms", "200"]);
    let mut silent = Client::connect(&server);
    let mut slow = Client::connect(&server);
    slow.write(b"GET / HTTP/1.1\r\n");
    silent.ends();
    slow.ends();
    assert_eq!(server.total(|counters| &counters.handshake_timeouts_total), 2);
}

fn a_silent_peer_is_pinged_and_closed(io: &str) {
    let server = serve(io, &["--workers", "1", "--idle-timeout-ms", "400"]);
    let mut client = Client::open(&server, "/");
    assert_eq!(client.frame(), (Opcode::Ping, vec![]));
    client.send(Opcode::Pong, b"");
    assert_eq!(client.frame(), (Opcode::Ping, vec![]), "it answered, so it is asked again");
    assert_eq!(client.frame(), (Opcode::Close, close_payload(1001, "idle")));
    client.send(Opcode::Close, &close_payload(1001, ""));
    assert!(client.rest().is_empty());
}

fn a_reset_hurts_nobody_else(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    let mut stays = Client::open(&server, "/");
    for _ in 0..50 {
        let mut goes = Client::open(&server, "/");
        let mut octets = message(Opcode::Binary, &pattern(100_000));
        octets.truncate(70_000);
        goes.write(&octets);
        goes.reset();
    }
    eventually("all resets are noticed", || server.total(|counters| &counters.closed_total) == 50);
    stays.send(Opcode::Text, b"here");
    assert_eq!(stays.frame().1, b"here");
}

fn a_room_spans_workers(io: &str) {
    let server = serve(io, &["--workers", "2"]);
    let mut members: Vec<_> = (0..16).map(|_| Client::open(&server, "/broadcast/room")).collect();
    let mut elsewhere = Client::open(&server, "/broadcast/other");
    for worker in server.counters() {
        assert!(worker.upgraded_total.value() > 0, "SO_REUSEPORT gave one worker everything; try again");
    }
    let count = 100;
    for number in 0..count {
        let from = number % 16;
        members[from].send(Opcode::Text, format!("{from} {number}").as_bytes());
    }
    for member in &mut members {
        let mut last = [-1; 16];
        for _ in 0..count {
            let (opcode, payload) = member.frame();
            let text = String::from_utf8(payload).unwrap();
            let (from, number) = text.split_once(' ').unwrap();
            let (from, number): (usize, i32) = (from.parse().unwrap(), number.parse().unwrap());
            assert!(opcode == Opcode::Text && number > last[from], "{text} after {}", last[from]);
            last[from] = number;
        }
    }
    elsewhere.send(Opcode::Text, b"only me");
    assert_eq!(elsewhere.frame().1, b"only me");
    eventually("counted", || server.total(|counters| &counters.delivered_total) == 16 * count as u64 + 1);
}

fn a_member_that_leaves_is_not_sent_to(io: &str) {
    let server = serve(io, &["--workers", "1"]);
    let mut stays = Client::open(&server, "/broadcast/room");
    let mut leaves = Client::open(&server, "/broadcast/room");
    leaves.send(Opcode::Close, &close_payload(1000, ""));
    assert_eq!(leaves.frame().0, Opcode::Close);
    stays.send(Opcode::Text, b"alone");
    assert_eq!(stays.frame().1, b"alone");
    leaves.fin();
    assert!(leaves.rest().is_empty(), "nothing follows a Close");
    eventually("counted", || server.total(|counters| &counters.delivered_total) == 1);
}

/// A room with one member that does not read, and another that publishes until the first is too slow.
fn slow_room(
    io: &str,
    policy: &str,
    enough: impl Fn(&resound::server::Server) -> bool,
) -> (Client, u64, resound::server::Server) {
    let flags = ["--workers", "1", "--message-size-max", "65536", "--send-queue-bytes-max", "400000"];
    let server =
        serve(io, &[&flags[..], &["--slow-consumer", policy, "--close-timeout-ms", "20000"]].concat());
    let slow = Client::open(&server, "/broadcast/room");
    let mut fast = Client::open(&server, "/broadcast/room");
    let mut count = 0;
    while !enough(&server) {
        assert!(count < 10_000, "the slow member takes everything");
        fast.send(Opcode::Binary, &pattern(60_000));
        assert_eq!(fast.frame().1.len(), 60_000, "the slow member delays the fast one");
        count += 1;
    }
    (slow, count, server)
}

fn a_slow_member_delays_nobody(io: &str) {
    for policy in ["drop-newest", "drop-oldest"] {
        let dropped =
            |server: &resound::server::Server| server.total(|counters| &counters.slow_consumer_dropped_total);
        let (mut slow, count, server) = slow_room(io, policy, |server| dropped(server) >= 10);
        // What was handed over and dropped again later counts as both.
        let again = |server: &_| if policy == "drop-oldest" { 0 } else { dropped(server) };
        let delivered = |server: &resound::server::Server| server.total(|counters| &counters.delivered_total);
        // The counters follow the last message, which may be here before them.
        eventually("counted", || delivered(&server) + again(&server) == 2 * count);
        for _ in 0..count - dropped(&server) {
            assert!(slow.frame() == (Opcode::Binary, pattern(60_000)));
        }
        slow.send(Opcode::Ping, b"and no more");
        assert_eq!(slow.frame(), (Opcode::Pong, b"and no more".to_vec()));
    }
}

fn a_slow_member_is_closed(io: &str) {
    let closed =
        |server: &resound::server::Server| server.total(|counters| &counters.slow_consumer_closed_total) == 1;
    let (mut slow, _, _server) = slow_room(io, "close", closed);
    let last = std::iter::repeat_with(|| slow.frame()).find(|(opcode, _)| *opcode != Opcode::Binary).unwrap();
    assert_eq!(last, (Opcode::Close, close_payload(1013, "too slow for this room")));
}

fn plain_requests_are_answered_on_one_connection(io: &str) {
    let server = serve(io, &[]);
    let mut client = Client::connect(&server);
    client.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let start = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
    let answer = client.answer(true);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    let date = answer.lines().find_map(|line| line.strip_prefix("Date: ")).expect("RFC 9110 §6.6.1");
    let date = httpdate::parse_http_date(date).unwrap();
    assert!((start..=std::time::SystemTime::now()).contains(&date), "{answer}");
    assert!(client.answer(false).starts_with("HTTP/1.1 426 Upgrade Required\r\n"));
    let scheme = if io.ends_with("_wss") { "wss" } else { "ws" };
    assert!(client.answer(true).ends_with(&format!("Connect with a WebSocket client to {scheme}://x/\n")));
    // The same connection may become a WebSocket one.
    client.write(&request("/"));
    client.expect(common::SWITCHING.as_bytes());
    client.send(Opcode::Text, b"upgraded");
    assert_eq!(client.frame().1, b"upgraded");
}

fn refused_handshakes_say_why(io: &str) {
    let server = serve(io, &["--allow-origin", "https://good.example", "--header-bytes-max", "1000"]);
    let with = |line: &str| {
        String::from_utf8(request("/")).unwrap().replacen("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"), 1)
    };
    for (head, status) in [
        (with("Origin: https://evil.example"), "403"),
        (with("Origin: https://good.example"), "101"),
        (with("Sec-WebSocket-Version: 8"), "426"),
        (String::from_utf8(request("/")).unwrap().replace("Version: 13", "Version: 12"), "426"),
        (with(&format!("Cookie: {}", "x".repeat(2000))), "431"),
        (format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)), "431"),
        ("\x16\x03\x01\x02\x00\x01".to_owned(), "400"),
    ] {
        let mut client = Client::connect(&server);
        client.write(head.as_bytes());
        client.fin();
        let answer = String::from_utf8(client.rest()).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer:?}");
        assert_eq!(status == "426", answer.contains("Sec-WebSocket-Version: 13\r\n"));
    }
}

fn pages_of_other_hosts_are_refused(io: &str) {
    let server = serve(io, &["--allow-origin", "same-host"]);
    let own = address(&server);
    for (origin, status) in [(format!("http://{own}"), "101"), ("http://evil.example".to_owned(), "403")] {
        let mut client = Client::connect(&server);
        let head = String::from_utf8(request("/")).unwrap();
        let head = head.replace("Host: localhost", &format!("Host: {own}\r\nOrigin: {origin}"));
        client.write(head.as_bytes());
        client.fin();
        let answer = String::from_utf8(client.rest()).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{origin}: {answer:?}");
    }
}

fn a_subprotocol_is_agreed_in_the_clients_order(io: &str) {
    let server = serve(io, &["--subprotocol", "chat.v1", "--subprotocol", "chat.v2"]);
    let mut client = Client::connect(&server);
    let head = String::from_utf8(request("/")).unwrap();
    client.write(
        head.replacen("\r\n\r\n", "\r\nSec-WebSocket-Protocol: x, chat.v2, chat.v1\r\n\r\n", 1).as_bytes(),
    );
    client.fin();
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.contains("\r\nSec-WebSocket-Protocol: chat.v2\r\n"), "{answer}");
}

fn raw_sends_every_octet_back(io: &str) {
    let server = serve(io, &["--mode", "raw", "--workers", "1"]);
    let mut client = Client::connect(&server);
    let octets = pattern(5 << 20);
    let mut writer = client.stream.try_clone().unwrap();
    let sent = octets.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(client.rest() == octets);
    thread.join().unwrap();
}

fn connections_beyond_the_limit_get_503(io: &str) {
    let server = serve(io, &["--workers", "1", "--connections-max", "2"]);
    let mut clients = [Client::open(&server, "/"), Client::open(&server, "/")];
    let mut third = Client::connect(&server);
    assert!(third.answer(true).starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    drop(third);
    for client in &mut clients {
        client.send(Opcode::Text, b"served");
        assert_eq!(client.frame().1, b"served");
    }
    drop(clients);
    eventually("their places are free", || server.total(|counters| &counters.closed_total) == 3);
    Client::open(&server, "/");
}

fn a_drain_says_1001_and_ends(io: &str) {
    let server = serve(io, &["--workers", "2"]);
    let mut clients: Vec<_> = (0..20).map(|_| Client::open(&server, "/")).collect();
    let _half_open = Client::connect(&server);
    server.stop();
    for client in &mut clients {
        assert_eq!(client.frame(), (Opcode::Close, close_payload(1001, "the server goes down")));
        client.send(Opcode::Close, &close_payload(1001, ""));
        assert!(client.rest().is_empty());
    }
    drop((clients, _half_open));
    server.join().unwrap();
}

fn a_unix_socket_serves_too(io: &str) {
    let path = std::env::temp_dir().join(format!("resound-suite-{io}-{}.sock", std::process::id()));
    let server = serve(io, &["--workers", "2", "--listen", &format!("unix:{}", path.display())]);
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream
        .write_all(&[request("/"), message(Opcode::Text, b"local"), message(Opcode::Close, b"")].concat())
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    let expected =
        [common::SWITCHING.as_bytes(), &reply(Opcode::Text, b"local"), &reply(Opcode::Close, b"")].concat();
    assert_eq!(got, expected);
    drop(server);
    assert!(!path.exists(), "the socket's file is gone with its server");
}
