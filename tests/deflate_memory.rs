//! What a connection costs on the heap: without compression, without context takeover, with it, under attack.
//!
//! A real server with real connections in this process, whose clients own nothing but a socket. Prints the
//! table of docs/deflate.md: `cargo test --release --test deflate_memory -- --nocapture`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use clap::Parser as _;
use resound::config::Config;
use resound::net::Endpoint;
use resound::server::Server;
use zlib_rs::{Deflate, DeflateFlush};

/// Counts the octets on the heap.
struct Counting;

static HEAP: AtomicUsize = AtomicUsize::new(0);
/// The most that there ever were.
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Only one test at a time: all share the heap.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: everything is the system's allocator's; only a counter is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let octets = HEAP.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(octets, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, octets: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(octets, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Connections measured at once.
const COUNT: usize = 48;
/// "Hello" (RFC 7692 §7.2.3.1) in a frame with a masking key of zeros.
const HELLO: [u8; 13] = [0xC1, 0x87, 0, 0, 0, 0, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

/// A connection that has exchanged one message.
fn connect(port: u16, is_deflated: bool) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let offer = if is_deflated {
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    } else {
        ""
    };
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        answer.push(octet[0]);
    }
    let is_agreed = String::from_utf8(answer).unwrap().contains("permessage-deflate");
    assert_eq!(is_agreed, is_deflated);
    let plain = [&[0x81, 0x85, 0, 0, 0, 0][..], b"Hello"].concat();
    stream.write_all(if is_deflated { &HELLO } else { &plain }).unwrap();
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[0], if is_deflated { 0xC1 } else { 0x81 });
    let mut payload = vec![0; header[1].into()];
    stream.read_exact(&mut payload).unwrap();
    stream
}

/// A server with one worker, and its port.
fn serve(flags: &[&str]) -> (Server, u16) {
    let common =
        ["resound", "--listen", "127.0.0.1:0", "--workers", "1", "--no-pin", "--deflate-min-octets", "0"];
    let config = Config::parse_from(common.iter().chain(flags));
    let server = Server::start(config).unwrap();
    let Endpoint::Tcp(address) = server.endpoints()[0].clone() else { unreachable!("it is TCP") };
    (server, address.port())
}

/// Octets on the heap for each connection that has nothing in flight.
fn bytes_a_connection(flags: &[&str]) -> usize {
    let (_server, port) = serve(flags);
    let is_deflated = flags.contains(&"on");
    let mut streams = Vec::with_capacity(2 * COUNT);
    // The first ones make what all share, and let tables grow.
    streams.extend((0..COUNT).map(|_| connect(port, is_deflated)));
    let before = HEAP.load(Relaxed);
    streams.extend((0..COUNT).map(|_| connect(port, is_deflated)));
    (HEAP.load(Relaxed) - before) / COUNT
}

#[test]
fn an_idle_compressed_connection_costs_what_is_counted_for_it() {
    let _alone = ALONE.lock().unwrap();
    let off = bytes_a_connection(&[]);
    let shared = bytes_a_connection(&["--deflate", "on"]);
    println!("| compression | window bits | octets on the heap for each connection |");
    println!("|---|---|---|");
    println!("| off | | {off} |");
    println!("| on, no context takeover | any | {shared} |");
    assert!(shared <= off + 64, "{shared} {off}");
    for window_bits in 9..=15 {
        let bits = window_bits.to_string();
        let measured =
            bytes_a_connection(&["--deflate", "on", "--deflate-takeover", "--deflate-window-bits", &bits]);
        println!("| on, context takeover | {bits} | {measured} |");
        let histories = 2 << window_bits;
        assert!((histories..histories + 256).contains(&(measured - off)), "{measured} with {bits} bits");
    }
}

/// `len` zeros, compressed, as the first frame of a message that has more; masked with zeros.
fn bomb(len: usize) -> Vec<u8> {
    let (mut deflate, mut octets) = (Deflate::new(9, false, 15), vec![0; len / 100]);
    deflate.compress(&vec![0; len], &mut octets, DeflateFlush::SyncFlush).unwrap();
    octets.truncate(deflate.total_out() as usize - 4);
    let mut frame = vec![0x42, 0xFE];
    frame.extend(u16::try_from(octets.len()).unwrap().to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(octets);
    frame
}

#[test]
fn bombs_take_no_more_memory_than_there_is_for_compression() {
    const MIB: usize = 1 << 20;
    const LEN: usize = 8 * MIB;
    let _alone = ALONE.lock().unwrap();
    let bytes_max = (32 * MIB).to_string();
    let (_server, port) = serve(&["--deflate", "on", "--deflate-memory-bytes-max", &bytes_max]);
    let bomb = bomb(LEN);
    let before = HEAP.load(Relaxed);
    PEAK.store(before, Relaxed);
    let (mut streams, mut kept, mut refused) = (Vec::new(), 0, 0);
    for _ in 0..40 {
        let mut stream = connect(port, true);
        // The answer to the Ping says that the server has seen the bomb; or the Close, that it has had enough.
        stream.write_all(&[&bomb[..], &[0x89, 0x80, 0, 0, 0, 0]].concat()).unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).unwrap();
        match answer {
            [0x8A, 0] => kept += 1,
            [0x88, 2] => {
                let mut code = [0; 2];
                stream.read_exact(&mut code).unwrap();
                assert_eq!(u16::from_be_bytes(code), 1013);
                refused += 1;
            }
            other => panic!("{other:x?}"),
        }
        streams.push(stream);
    }
    assert!(kept >= 2 && refused >= 30, "{kept} {refused}");
    let peak = PEAK.load(Relaxed) - before;
    // Beyond what is counted: a buffer's old place while it is copied to a new one, and one whole message.
    assert!(peak <= 32 * MIB + 2 * LEN, "{} KiB", peak / 1024);
    assert!(peak >= LEN, "{peak} cannot be true");
}
