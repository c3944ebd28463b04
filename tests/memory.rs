//! What an idle connection costs in user memory, counted by the allocator over thousands of them.
//!
//! The clients live in a process of their own: this same program, started again.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::client::{eventually, serve};
use common::stream::{Stream, tls_client};
use common::{SWITCHING, message, reply, request};
use resound::net::tls::TlsVersions;
use resound::proto::Opcode;

/// What runs, with how many connections, and octets of user memory for each idle one, the unused part of the slabs
/// included: at most, and less cannot be true.
const CASES: [(&str, usize, std::ops::RangeInclusive<usize>); 2] =
    [("epoll", 10_000, 64..=256), ("epoll_wss", 5_000, 1024..=6 << 10)];
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
fn an_idle_connection_costs_at_most_256_octets_and_with_tls_6_kib() {
    if let Ok(server) = env::var(CLIENTS_OF) {
        return clients(&server);
    }
    let nofile = resound::net::raise_nofile().unwrap();
    for (io, count, octets) in CASES {
        assert!(nofile as usize > count + 100, "the limit of open files is {nofile}: raise it (ulimit -Hn)");
        let server = serve(io, &["--workers", "1"]);
        let before = LIVE.load(Relaxed);
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "an_idle_connection_costs_at_most_256_octets_and_with_tls_6_kib",
            ])
            .env(CLIENTS_OF, format!("{count} {}", server.urls().next().unwrap()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("all are idle")), "the clients failed");
        eventually("every message was counted", || {
            server.total(|counters| &counters.messages_total) == 2 * count as u64
        });
        let each = (LIVE.load(Relaxed) - before) / count;
        println!("{io}: {each} octets of user memory for each of {count} idle connections");
        assert!(octets.contains(&each), "{io}: {each} octets");
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

/// The other process: opens the connections, sends on each a message whole and one cut by a read, and idles.
fn clients(server: &str) {
    resound::net::raise_nofile().unwrap();
    let (count, url) = server.split_once(' ').unwrap();
    let (scheme, address) = url.split_once("://").unwrap();
    let tls = tls_client(TlsVersions::Both, false);
    let text = message(Opcode::Binary, &[7; 5000]);
    let (head, tail) = text.split_at(2000);
    let connections: Vec<Stream> = (0..count.parse().unwrap())
        .map(|_| {
            let tcp = TcpStream::connect(address).unwrap();
            let mut stream =
                if scheme == "wss" { Stream::secure(tcp, &tls).unwrap() } else { Stream::plain(tcp) };
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
    for mut stream in connections.iter().map(|stream| stream.try_clone().unwrap()) {
        stream.write_all(tail).unwrap();
        let mut got = vec![0; 5004];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, reply(Opcode::Binary, &[7; 5000]));
    }
    println!("\nall are idle");
    // Until the parent has counted.
    let _ = std::io::stdin().read(&mut [0]);
}
