//! What the process takes from the system, and what it gives back: the binary itself, since only it has malloc give
//! memory back, and looks at what it has.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::client::PATIENCE;
use common::process::{Process, command};
use common::{message, reply, request};
use resound::proto::Opcode;

const MIB: usize = 1 << 20;
/// malloc takes blocks of this length from a heap, and keeps the heap.
const MESSAGE_LEN: usize = 5 * MIB;

fn start(io: &str, flags: &[&str]) -> Process {
    let flags = [&["--listen", "127.0.0.1:0", "--workers", "1", "--io", io, "--log", "off"], flags].concat();
    Process::start(command(&flags))
}

/// A message without its last octets.
fn most_of_a_message() -> Vec<u8> {
    let mut message = message(Opcode::Binary, &vec![0x55; MESSAGE_LEN]);
    message.truncate(message.len() - 100);
    message
}

/// What malloc may keep at the end of a worker's heap, in octets: `MALLOC_KEEP_BYTES` of the binary.
const KEPT_MAX: usize = 64 * MIB;

/// Some stay, so that no heap of malloc's is free as a whole, and what is free is in its gaps.
fn a_peak_goes_back_to_the_system(io: &str) {
    const COUNT: usize = 90;
    let server = start(io, &[]);
    let (before, part) = (server.resident(), most_of_a_message());
    let mut hoarders: Vec<TcpStream> = (0..COUNT).map(|_| server.open()).collect();
    for hoarder in &mut hoarders {
        hoarder.write_all(&part).unwrap();
    }
    let until = |what: &str, holds: &dyn Fn(usize) -> bool| {
        let start = Instant::now();
        while !holds(server.resident()) {
            assert!(start.elapsed() < PATIENCE, "{what}: {} MiB", server.resident() / MIB);
            thread::sleep(Duration::from_millis(20));
        }
    };
    until("it takes them all", &|resident| resident > COUNT * part.len());
    let stayed: Vec<_> = hoarders.into_iter().step_by(15).collect();
    // A message of 5 MiB has room for 8.
    let rest = before + stayed.len() * 8 * MIB + KEPT_MAX + 16 * MIB;
    until("it gives back", &|resident| resident < rest);
}

#[test]
fn on_epoll_a_peak_goes_back_to_the_system() {
    a_peak_goes_back_to_the_system("epoll");
}

#[test]
fn on_io_uring_a_peak_goes_back_to_the_system() {
    a_peak_goes_back_to_the_system("uring");
}

/// Many more octets than there may be come in messages that never end, again and again; a peer beside them is served.
fn the_ceiling_is_of_what_the_process_takes(io: &str) {
    const CEILING: usize = 192 * MIB;
    let server = start(io, &["--memory-bytes-max", &CEILING.to_string()]);
    let (is_over, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut behaved = server.open();
    thread::scope(|scope| {
        let attackers: Vec<_> = (0..80_usize)
            .map(|number| {
                let (server, part) = (&server, most_of_a_message());
                scope.spawn(move || {
                    for round in 0..4 {
                        // Whoever is refused, paused or cut off tries again.
                        let Ok(mut stream) = TcpStream::connect(server.address) else { continue };
                        stream.set_write_timeout(Some(Duration::from_millis(1000))).unwrap();
                        let _ = stream.write_all(&request("/"));
                        // Of all lengths, so that blocks have gaps between them.
                        let len = part.len() * (4 + (number + round) % 5) / 8;
                        let _ = stream.write_all(&part[..len]);
                        thread::sleep(Duration::from_millis(300));
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                most.fetch_max(server.resident(), Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        let expected = reply(Opcode::Text, b"I behave");
        let mut replies = 0;
        while !attackers.iter().all(thread::ScopedJoinHandle::is_finished) {
            behaved.write_all(&message(Opcode::Text, b"I behave")).unwrap();
            let mut got = vec![0; expected.len()];
            behaved.read_exact(&mut got).unwrap_or_else(|error| panic!("after {replies} replies: {error}"));
            assert_eq!(got, expected);
            replies += 1;
        }
        is_over.store(true, Relaxed);
    });
    let most = most.load(Relaxed);
    eprintln!("{io}: {} of {} MiB", most / MIB, CEILING / MIB);
    assert!(most > CEILING / 4, "there was an attack: {} MiB", most / MIB);
    assert!(most <= CEILING / 10 * 11, "{} MiB", most / MIB);
}

#[test]
fn on_epoll_the_ceiling_is_of_what_the_process_takes() {
    the_ceiling_is_of_what_the_process_takes("epoll");
}

#[test]
fn on_io_uring_the_ceiling_is_of_what_the_process_takes() {
    the_ceiling_is_of_what_the_process_takes("uring");
}
