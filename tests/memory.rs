//! What an idle connection costs in user memory, counted by the allocator over 10,000 of them.
//!
//! The clients live in a process of their own: this same program, started again.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::client::{address, eventually, serve};
use common::{BACKENDS, SWITCHING, message, reply, request};
use resound::proto::Opcode;

const CONNECTION_COUNT: usize = 10_000;
/// Octets of user memory for each idle connection, the unused part of the slabs included.
const OCTETS_MAX: usize = 256;
const CLIENTS_OF: &str = "RESOUND_TEST_CLIENTS_OF";

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator; the counter does not change that.
#[allow(unsafe_code, reason = "counting what is allocated is what this test is for")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_idle_connection_costs_at_most_256_octets() {
    if let Ok(server) = env::var(CLIENTS_OF) {
        return clients(&server);
    }
    let nofile = resound::net::raise_nofile().unwrap();
    assert!(
        nofile as usize > CONNECTION_COUNT + 100,
        "the limit of open files is {nofile}: raise it (ulimit -Hn)"
    );
    for io in BACKENDS {
        let server = serve(io, &["--workers", "1"]);
        let before = LIVE.load(Relaxed);
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "an_idle_connection_costs_at_most_256_octets"])
            .env(CLIENTS_OF, address(&server).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("all are idle")), "the clients failed");
        eventually("every message was counted", || {
            server.total(|counters| &counters.messages_total) == 2 * CONNECTION_COUNT as u64
        });
        let each = (LIVE.load(Relaxed) - before) / CONNECTION_COUNT;
        println!("{io}: {each} octets of user memory for each of {CONNECTION_COUNT} idle connections");
        assert!(each <= OCTETS_MAX, "{io}: {each} octets");
        assert!(each >= 64, "{io}: {each} octets cannot be true");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

/// The other process: opens the connections, sends on each a message whole and one cut by a read, and idles.
fn clients(server: &str) {
    resound::net::raise_nofile().unwrap();
    let text = message(Opcode::Binary, &[7; 5000]);
    let (head, tail) = text.split_at(2000);
    let connections: Vec<TcpStream> = (0..CONNECTION_COUNT)
        .map(|_| {
            let mut stream = TcpStream::connect(server).unwrap();
            stream.write_all(&request("/")).unwrap();
            stream.read_exact(&mut vec![0; SWITCHING.len()]).unwrap();
            let whole = message(Opcode::Text, b"whole");
            let mut got = vec![0; reply(Opcode::Text, b"whole").len()];
            stream.write_all(&whole).unwrap();
            stream.read_exact(&mut got).unwrap();
            stream.write_all(head).unwrap();
            stream
        })
        .collect();
    for mut stream in &connections {
        stream.write_all(tail).unwrap();
        let mut got = vec![0; 5004];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, reply(Opcode::Binary, &[7; 5000]));
    }
    println!("\nall are idle");
    // Until the parent has counted.
    let _ = std::io::stdin().read(&mut [0]);
}
