//! Beside peers that flood, others are served: bounds in work, never in time, so that a slow machine changes
//! nothing.
//!
//! What the server did for others between a ping and its reply is read from its counters. A median over many
//! pings is taken, because now and then the test's own threads are held up while the server goes on.
//! `scripts/abuse.sh` measures the same, and more, in milliseconds.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use common::client::{Client, PATIENCE, eventually, serve};
use common::{message, request};
use resound::config::Config;
use resound::net::uring::UringBackend;
use resound::proto::{FrameHeader, Opcode};
use resound::server::{Counter, Counters, Server};
use zlib_rs::{Deflate, DeflateFlush};

/// What a worker receives from a connection at once, in octets: the default of --receive-buffer-bytes.
const BITE: u64 = 256 << 10;
const PINGS: usize = 100;
/// Octets that a flooder has ready.
const SUPPLY: usize = 1 << 20;

/// Makes one module for each backend, with one test in it for each function.
macro_rules! suite {
    ($($test:ident,)+) => {
        suite!(epoll: $($test,)+);
        suite!(uring: $($test,)+);
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
    a_ping_waits_for_few_bites_of_large_messages,
    a_ping_waits_for_few_bites_of_small_messages,
    a_ping_waits_for_few_bites_of_empty_frames,
    a_ping_waits_for_few_bombs,
    a_ping_does_not_wait_for_all_of_a_large_room,
    floods_of_every_kind_let_others_through,
}

/// Whether the backend works on this machine. Where it must, which is in CI, that it does not is a failure.
fn is_here(io: &str) -> bool {
    match UringBackend::new(&Config::default().uring_options(), resound::memory::Meter::default()) {
        Err(error) if io == "uring" => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
        _ => true,
    }
}

/// With `flooders` that send `one` for ever: what is received from them between a ping and its reply. A turn takes
/// one bite of each, and a ping that just missed a turn waits for two. Four times that is allowed.
fn a_ping_waits_for_few_bites(io: &str, flooders: usize, one: &[u8]) {
    let server = serve(io, &["--workers", "1"]);
    let _flood = Flood::start(open(&server, "/", flooders), one);
    let octets = work_for_a_ping(&server, |counters| &counters.received_bytes_total);
    let most = 8 * BITE * flooders as u64;
    assert!(octets <= most, "{octets} octets of {flooders} flooders between a ping and its reply");
}

fn a_ping_waits_for_few_bites_of_large_messages(io: &str) {
    a_ping_waits_for_few_bites(io, 8, &message(Opcode::Binary, &vec![7; 1 << 20]));
}

fn a_ping_waits_for_few_bites_of_small_messages(io: &str) {
    a_ping_waits_for_few_bites(io, 8, &message(Opcode::Binary, &[7; 1 << 10]));
}

fn a_ping_waits_for_few_bites_of_empty_frames(io: &str) {
    a_ping_waits_for_few_bites(io, 3, &message(Opcode::Binary, b""));
}

/// Each bomb is a kilobyte that inflates to a mebibyte.
fn a_ping_waits_for_few_bombs(io: &str) {
    let server = serve(io, &["--workers", "1", "--deflate", "on"]);
    let flooders = (0..3).map(|_| open_compressed(&server)).collect();
    let _flood = Flood::start(flooders, &bomb(1 << 20));
    let messages = work_for_a_ping(&server, |counters| &counters.messages_total);
    assert!(messages <= 64, "{messages} MiB inflated between a ping and its reply");
}

/// Once a publication has reached a member, a ping is sent; when its reply is there, not all have got the
/// publication.
fn a_ping_does_not_wait_for_all_of_a_large_room(io: &str) {
    const MEMBERS: usize = 4_000;
    const TRIALS: usize = 15;
    let nofile = resound::net::raise_nofile().unwrap() as usize;
    assert!(nofile > 2 * MEMBERS + 200, "the limit of open files is {nofile}: raise it (ulimit -Hn)");
    let server = serve(io, &["--workers", "1"]);
    let mut members = Members::watch(open(&server, "/broadcast/room", MEMBERS));
    let mut publisher = Client::open(&server, "/broadcast/room");
    let mut client = Client::open(&server, "/echo");
    let (mut reached, mut late) = (Vec::new(), 0);
    while reached.len() < TRIALS {
        publisher.send(Opcode::Binary, &[7; 1 << 10]);
        let mut count = members.reached(true);
        let begun = count;
        client.send(Opcode::Text, b"how long?");
        assert_eq!(client.frame().1, b"how long?");
        count += members.reached(false);
        if begun < MEMBERS / 4 {
            reached.push(count - begun);
        } else {
            // This thread has slept through most of it, which says nothing.
            late += 1;
            assert!(late < 20 * TRIALS, "the machine is too busy to see a publication under way");
        }
        while count < MEMBERS {
            count += members.reached(true);
        }
        assert_eq!(publisher.frame().1.len(), 1 << 10);
    }
    reached.sort_unstable();
    let median = reached[TRIALS / 2];
    println!("members reached between a ping and its reply: {reached:?}; late: {late}");
    assert!(median <= MEMBERS / 2, "{median} of {MEMBERS} members first");
}

/// Members of a room that are watched and never read.
struct Members {
    poll: mio::Poll,
    events: mio::Events,
    /// To keep them open.
    _streams: Vec<mio::net::TcpStream>,
}

impl Members {
    fn watch(streams: Vec<TcpStream>) -> Self {
        let poll = mio::Poll::new().unwrap();
        let watch = |(index, stream): (usize, TcpStream)| {
            stream.set_nonblocking(true).unwrap();
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, mio::Token(index), mio::Interest::READABLE).unwrap();
            stream
        };
        let _streams: Vec<_> = streams.into_iter().enumerate().map(watch).collect();
        Self { events: mio::Events::with_capacity(_streams.len()), poll, _streams }
    }

    /// How many more have got what was published last; waits for the first of them if it `may_wait`.
    fn reached(&mut self, may_wait: bool) -> usize {
        let patience = if may_wait { PATIENCE } else { std::time::Duration::ZERO };
        self.poll.poll(&mut self.events, Some(patience)).unwrap();
        assert!(!may_wait || !self.events.is_empty(), "a publication does not arrive");
        self.events.iter().count()
    }
}

/// Eight flooders on three threads, so that the server's sockets fill in bursts. The bound is a mean over many round
/// trips, so one long stall breaks it too.
fn floods_of_every_kind_let_others_through(io: &str) {
    const TRIPS: u64 = 100;
    let server = serve(io, &["--workers", "1"]);
    let large = message(Opcode::Binary, &vec![7; 1 << 20]);
    let small = message(Opcode::Binary, &[7; 1 << 10]);
    let ping = message(Opcode::Ping, &[7; 20]);
    for one in [&large, &small, &ping] {
        let _floods = [3, 3, 2].map(|flooders| Flood::start(open(&server, "/", flooders), one));
        let mut client = Client::open(&server, "/");
        let received = || server.total(|counters| &counters.received_bytes_total);
        let before = received();
        for _ in 0..TRIPS {
            client.send(Opcode::Text, b"still there?");
            assert_eq!(client.frame().1, b"still there?");
        }
        let each = (received() - before) / TRIPS;
        println!("for each round trip beside messages of {} octets: {each} octets", one.len());
        assert!(each <= 16 * 8 * BITE, "{each} octets for each round trip beside messages of {}", one.len());
    }
}

/// The median of what `counter` counts between a ping and its reply.
fn work_for_a_ping(server: &Server, counter: fn(&Counters) -> &Counter) -> u64 {
    let mut client = Client::open(server, "/echo");
    let (ping, before) = (message(Opcode::Text, b"how long?"), server.total(counter));
    eventually("the attack is under way", || server.total(counter) > before);
    let mut work: Vec<u64> = (0..PINGS)
        .map(|_| {
            let before = server.total(counter);
            client.write(&ping);
            assert_eq!(client.frame().1, b"how long?");
            server.total(counter) - before
        })
        .collect();
    work.sort_unstable();
    println!(
        "work between a ping and its reply: {} to {}, median {}",
        work[0],
        work[PINGS - 1],
        work[PINGS / 2]
    );
    work[PINGS / 2]
}

fn open(server: &Server, path: &str, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| Client::open(server, path).stream.tcp).collect()
}

/// A connection that has agreed on permessage-deflate.
fn open_compressed(server: &Server) -> TcpStream {
    let mut client = Client::connect(server);
    let request = String::from_utf8(request("/")).unwrap();
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover";
    client.write(request.replacen("\r\n", &format!("\r\n{offer}\r\n"), 1).as_bytes());
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        client.stream.read_exact(&mut octet).expect("an answer");
        answer.push(octet[0]);
    }
    assert!(String::from_utf8(answer).unwrap().contains("permessage-deflate"));
    client.stream.tcp
}

/// A compressed message of `len` zeros (RFC 7692 §7.2.1).
fn bomb(len: usize) -> Vec<u8> {
    let (mut deflate, mut target) = (Deflate::new(9, false, 15), vec![0; len]);
    deflate.compress(&vec![0; len], &mut target, DeflateFlush::SyncFlush).unwrap();
    target.truncate(deflate.total_out() as usize - 4);
    let mut octets = message(Opcode::Binary, &target);
    let header = FrameHeader::parse(&octets).unwrap().unwrap().0;
    FrameHeader { rsv1: true, ..header }.write(&mut octets);
    octets
}

/// Connections that keep the server busy from one thread: they send without end and read what comes.
struct Flood {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// All of `streams` send `one` over and over.
    fn start(streams: Vec<TcpStream>, one: &[u8]) -> Self {
        let supply = one.repeat((SUPPLY / one.len()).max(1));
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = thread::spawn(move || {
            let (mut at, mut buffer) = (vec![0; streams.len()], vec![0; 1 << 20]);
            streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
            while !ends.load(Relaxed) {
                for (index, mut stream) in streams.iter().enumerate() {
                    let len = done(stream.write(&supply[at[index]..]));
                    at[index] = (at[index] + len) % supply.len();
                    done(stream.read(&mut buffer));
                }
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        let result = self.thread.take().map_or(Ok(()), JoinHandle::join);
        assert!(result.is_ok() || thread::panicking(), "a flooder was cut off");
    }
}

/// How many octets went; a full or an empty socket takes and gives none.
fn done(result: std::io::Result<usize>) -> usize {
    match result {
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("a flooder: {error}"),
    }
}
