//! What one opening handshake costs a server: the head that arrived, to the 101 that answers it.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use resound::proto::handshake::{HandshakeLimits, HeadScanner, Request, UpgradePolicy};

/// What a browser sends, about 500 octets.
const BROWSER: &str = "GET /echo HTTP/1.1\r\n\
    Host: 127.0.0.1:9001\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: */*\r\n\
    Accept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Origin: http://127.0.0.1:8080\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Connection: keep-alive, Upgrade\r\n\
    Pragma: no-cache\r\n\
    Cache-Control: no-cache\r\n\
    Upgrade: websocket\r\n\
    \r\n";

/// What a load generator sends.
const MINIMAL: &str = "GET / HTTP/1.1\r\n\
    Host: 127.0.0.1:9001\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\
    \r\n";

fn handshake(criterion: &mut Criterion) {
    let limits = HandshakeLimits::default();
    let policy = UpgradePolicy::default();
    let mut group = criterion.benchmark_group("handshake");
    for (name, head) in [("browser", BROWSER), ("minimal", MINIMAL)] {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_function(format!("parse/{name}"), |bencher| {
            bencher.iter(|| {
                let parsed = Request::parse(black_box(head.as_bytes()), &mut HeadScanner::default(), &limits);
                parsed.expect("the head is well-formed").expect("the head is whole").1
            });
        });
        let mut answer = Vec::with_capacity(512);
        group.bench_function(format!("parse_and_accept/{name}"), |bencher| {
            bencher.iter(|| {
                answer.clear();
                let parsed = Request::parse(black_box(head.as_bytes()), &mut HeadScanner::default(), &limits);
                let (request, _) = parsed.expect("the head is well-formed").expect("the head is whole");
                request.upgrade(&policy).expect("every rule is kept").write(&mut answer);
                answer.len()
            });
        });
    }
    // The dearest way to send a head: one call an octet. Each is looked at once, so this grows with the
    // length of the head, not with its square.
    let octets = BROWSER.as_bytes();
    group.throughput(Throughput::Bytes(octets.len() as u64));
    group.bench_function("parse/browser, octet by octet", |bencher| {
        bencher.iter(|| {
            let mut scanner = HeadScanner::default();
            (0..=octets.len())
                .find_map(|len| {
                    let parsed = Request::parse(black_box(&octets[..len]), &mut scanner, &limits);
                    parsed.expect("the head is well-formed").map(|(_, len)| len)
                })
                .expect("the head is whole")
        });
    });
    group.finish();
}

criterion_group!(benches, handshake);
criterion_main!(benches);
