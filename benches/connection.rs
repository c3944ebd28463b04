//! Echo in memory: what one frame costs between the receive buffer and the reply, no socket involved.
//!
//! The input is overwritten by its own reply, so every iteration starts by copying it anew; the row
//! `copy only` says what that costs.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use resound::mask::{self, MaskingKey};
use resound::proto::{Codecs, Connection, FrameHeader, Handler, Limits, Message, Opcode, Replies, Reply};

struct Echo;

impl Handler for Echo {
    #[inline]
    fn message(&mut self, _: Message<'_>) -> Reply {
        Reply::Echo
    }
}

fn frames(opcode: Opcode, payload_len: usize, count: usize) -> Vec<u8> {
    let key = MaskingKey::from_wire([0x37, 0xfa, 0x21, 0x3d]);
    let header = FrameHeader { masking_key: Some(key), ..FrameHeader::message(opcode, payload_len) };
    let mut octets = Vec::new();
    for _ in 0..count {
        let mut head = [0; 14];
        let len = header.write(&mut head);
        octets.extend_from_slice(&head[..len]);
        mask::unmask_append(&mut octets, &vec![b'x'; payload_len], key);
    }
    octets
}

fn echo(c: &mut Criterion) {
    let limits = Limits::default();
    for (name, opcode, payload_len, count) in [
        ("one frame/binary", Opcode::Binary, 20, 1),
        ("one frame/text", Opcode::Text, 20, 1),
        ("16 frames/binary", Opcode::Binary, 20, 16),
        ("16 frames/text", Opcode::Text, 20, 16),
        ("one frame/binary", Opcode::Binary, 1024, 1),
        ("one frame/text", Opcode::Text, 1024, 1),
        ("one frame/binary", Opcode::Binary, 16 << 10, 1),
        ("one frame/text", Opcode::Text, 16 << 10, 1),
    ] {
        let input = frames(opcode, payload_len, count);
        let mut group = c.benchmark_group(format!("echo/{name}"));
        group.throughput(Throughput::Elements(count as u64));
        let (mut connection, mut codecs) = (Connection::server(), Codecs::default());
        let mut replies = Replies::default();
        let mut buffer = vec![0; 256 << 10];
        group.bench_function(BenchmarkId::new("connection", payload_len), |b| {
            b.iter(|| {
                let buffer = &mut buffer[..input.len()];
                buffer.copy_from_slice(&input);
                connection
                    .receive(black_box(buffer), 0, &limits, &mut codecs, &mut replies, &mut Echo)
                    .unwrap();
                assert_eq!(replies.range().len(), input.len() - 4 * count);
            });
        });
        group.bench_function(BenchmarkId::new("copy only", payload_len), |b| {
            b.iter(|| black_box(&mut buffer[..input.len()]).copy_from_slice(black_box(&input)));
        });
        group.finish();
    }
}

/// A message that arrives in pieces, as from a receive buffer of 64 KiB.
fn echo_in_pieces(c: &mut Criterion) {
    let limits = Limits::default();
    for payload_len in [100 << 10, 1 << 20, 16 << 20] {
        let input = frames(Opcode::Binary, payload_len, 1);
        let mut group = c.benchmark_group("echo/in pieces");
        group.throughput(Throughput::Bytes(payload_len as u64)).sample_size(20);
        let (mut connection, mut codecs) = (Connection::server(), Codecs::default());
        let (mut replies, mut buffer) = (Replies::default(), vec![0; 64 << 10]);
        group.bench_function(BenchmarkId::new("connection", payload_len), |b| {
            b.iter(|| {
                for piece in input.chunks(buffer.len()) {
                    let buffer = &mut buffer[..piece.len()];
                    buffer.copy_from_slice(piece);
                    connection
                        .receive(black_box(buffer), 0, &limits, &mut codecs, &mut replies, &mut Echo)
                        .unwrap();
                }
                assert_eq!(replies.owned_count(), 1);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, echo, echo_in_pieces);
criterion_main!(benches);
