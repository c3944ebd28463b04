//! What the server itself costs: whole turns of a worker whose backend does no I/O, so that all that is
//! left is ours. Echo for each message, and fan-out for each delivery.

use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use resound::config::Config;
use resound::mask::{self, MaskingKey};
use resound::memory::Meter;
use resound::net::{Backend, Chunk, Completion, ConnId, Wake};
use resound::proto::{FrameHeader, Opcode, Replies};
use resound::server::OneWorker;

/// A backend whose connections all receive the same octets in every turn, and send into nothing.
struct Nothing {
    now: Instant,
    conns: Vec<ConnId>,
    /// First the handshake, then the frames of every further turn.
    script: [Vec<u8>; 2],
    phase: usize,
    /// How many of the connections receive something in a turn.
    active: usize,
    /// Nothing is received in this turn.
    is_quiet: Cell<bool>,
    next: usize,
    accepted: usize,
    buffer: Vec<u8>,
    received: usize,
    sent_octets: u64,
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Nothing {
    fn new(path: &str, frames: Vec<u8>, conns: usize, active: usize) -> Self {
        let handshake = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        Self {
            now: Instant::now(),
            conns: (0..conns as u32).map(|index| ConnId { index, generation: 1 }).collect(),
            script: [handshake.into_bytes(), frames],
            phase: 0,
            active,
            is_quiet: Cell::new(false),
            next: 0,
            accepted: 0,
            buffer: vec![0; 256 << 10],
            received: 0,
            sent_octets: 0,
        }
    }
}

impl Backend for Nothing {
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn clock(&self) -> Instant {
        self.now
    }

    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        if self.next > 0 {
            self.phase = 1;
        }
        self.next = 0;
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        if self.accepted < self.conns.len() {
            self.accepted += 1;
            return Some(Completion::Accepted(self.conns[self.accepted - 1]));
        }
        let count = match self.phase {
            0 => self.conns.len(),
            _ if self.is_quiet.get() => 0,
            _ => self.active,
        };
        if self.next == count {
            return None;
        }
        let octets = &self.script[self.phase];
        self.received = octets.len();
        self.buffer[..octets.len()].copy_from_slice(octets);
        self.next += 1;
        Some(Completion::Received(self.conns[self.next - 1]))
    }

    #[inline]
    fn received(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.received]
    }

    #[inline]
    fn reply(&mut self, _: ConnId, replies: &mut Replies) {
        self.sent_octets += black_box(&self.buffer[replies.range()]).len() as u64;
    }

    fn hold(&mut self, _: ConnId, _: usize) {}

    #[inline]
    fn send(&mut self, _: ConnId, chunk: Chunk) {
        self.sent_octets += black_box(chunk.octets()).len() as u64;
    }

    #[inline]
    fn queued(&self, _: ConnId) -> usize {
        0
    }

    fn held_bytes(&self, _: ConnId) -> usize {
        0
    }

    fn is_blocked(&self, _: ConnId) -> bool {
        false
    }

    fn has_taken(&mut self, _: ConnId) -> bool {
        false
    }

    fn is_quiet(&self, _: ConnId) -> bool {
        true
    }

    fn drop_oldest(&mut self, _: ConnId, _: usize) -> u32 {
        0
    }

    fn pause(&mut self, _: ConnId) {}

    fn resume(&mut self, _: ConnId) {}

    fn finish(&mut self, _: ConnId) {}

    fn close(&mut self, _: ConnId) {}

    fn connect(&mut self, _: SocketAddr, _: Option<IpAddr>) -> io::Result<ConnId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn stop_accepting(&mut self) {}
}

fn frames(payload_len: usize, count: usize) -> Vec<u8> {
    let key = MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d]);
    let header = FrameHeader { masking_key: Some(key), ..FrameHeader::message(Opcode::Text, payload_len) };
    let mut octets = Vec::new();
    for _ in 0..count {
        let mut head = [0; 14];
        let len = header.write(&mut head);
        octets.extend_from_slice(&head[..len]);
        mask::unmask_append(&mut octets, &vec![b'x'; payload_len], key);
    }
    octets
}

fn worker(path: &str, frames: Vec<u8>, conns: usize, active: usize) -> OneWorker<Nothing> {
    let backend = Nothing::new(path, frames, conns, active);
    let mut worker =
        OneWorker::new(Config::parse_from(["resound"]), backend, Meter::default()).expect("it starts");
    worker.turn().expect("nothing fails");
    assert_eq!(worker.counters().upgraded_total.value(), conns as u64);
    worker
}

fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("worker/echo a message");
    for (active, depth) in [(1, 1), (1, 16), (64, 1), (64, 16), (1000, 1)] {
        let mut worker = worker("/", frames(20, depth), active, active);
        group.throughput(Throughput::Elements((active * depth) as u64));
        group.bench_function(
            BenchmarkId::new(format!("{active} connections"), format!("{depth} deep")),
            |b| {
                b.iter(|| worker.turn().expect("nothing fails"));
            },
        );
    }
    group.finish();
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("worker/fan-out a delivery");
    for (members, publications) in [(10, 1), (1000, 1), (1000, 10)] {
        let mut worker = worker("/broadcast/room", frames(64, publications), members, 1);
        let deliveries = (members * publications) as u64;
        group.throughput(Throughput::Elements(deliveries));
        let id =
            BenchmarkId::new(format!("{members} members"), format!("{publications} publications a turn"));
        group.bench_function(id, |b| b.iter(|| publish(&mut worker, deliveries)));
    }
    group.finish();
}

/// One turn in which something is published, and as many as it takes to deliver it: a large room has several.
fn publish(worker: &mut OneWorker<Nothing>, deliveries: u64) {
    let target = worker.counters().delivered_total.value() + deliveries;
    worker.backend().is_quiet.set(false);
    while worker.counters().delivered_total.value() < target {
        worker.turn().expect("nothing fails");
        worker.backend().is_quiet.set(true);
    }
    assert_eq!(worker.counters().delivered_total.value(), target);
}

criterion_group!(benches, echo, fan_out);
criterion_main!(benches);
