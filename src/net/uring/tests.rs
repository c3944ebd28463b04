//! The backend by itself, against sockets of loopback.

use super::*;
use crate::memory::Lease;
use crate::net::queue::Publication;
use crate::net::{Backend, Bound, Completion, Endpoint, bind};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

fn backend(options: UringOptions) -> Option<(UringBackend, SocketAddr)> {
    let backend = match UringBackend::new(&options, Meter::default()) {
        Ok(backend) => backend,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let any = Endpoint::Tcp(([127, 0, 0, 1], 0).into());
    let Bound { endpoint: Endpoint::Tcp(address), listeners, .. } = bind(&any, 1024, 1).unwrap() else {
        unreachable!()
    };
    Some((backend.listen(listeners, 0).unwrap(), address))
}

const OPTIONS: UringOptions =
    UringOptions { buffer_count: 8, buffer_bytes: 4096, completions: 512, submit: Submit::All };

/// Echoes until `count` connections have closed.
fn echo(backend: &mut UringBackend, count: usize) {
    let (mut closed, mut open) = (0, std::collections::HashSet::new());
    while closed < count {
        backend.wait(Some(Duration::from_secs(10))).unwrap();
        while let Some(completion) = backend.next() {
            match completion {
                Completion::Accepted(conn) => assert!(open.insert(conn), "{conn:?} twice"),
                Completion::Received(conn) => {
                    let len = backend.received().len();
                    backend.reply(conn, &mut Replies::all(len));
                }
                Completion::Eof(conn) => backend.finish(conn),
                Completion::Closed(conn, error) => {
                    assert!(open.remove(&conn), "{conn:?} closed twice");
                    assert!(error.is_none(), "{error:?}");
                    closed += 1;
                }
                _ => {}
            }
        }
    }
    assert!(open.is_empty());
}

#[test]
fn completions_that_do_not_fit_the_ring_are_not_lost() {
    let Some((mut backend, address)) = backend(UringOptions { completions: 8, ..OPTIONS }) else {
        return;
    };
    let count = 200;
    let clients = std::thread::spawn(move || {
        let mut streams: Vec<_> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
        for stream in &mut streams {
            stream.write_all(b"across").unwrap();
        }
        for stream in &mut streams {
            let mut got = [0; 6];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"across");
            stream.shutdown(Shutdown::Write).unwrap();
        }
        streams.iter_mut().all(|stream| stream.read(&mut [0]).unwrap() == 0)
    });
    echo(&mut backend, count);
    assert!(clients.join().unwrap());
}

#[test]
fn a_backend_dropped_with_operations_in_flight_ends_them() {
    let Some((mut backend, address)) = backend(OPTIONS) else { return };
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"x").unwrap();
    let conn = loop {
        backend.wait(Some(Duration::from_secs(10))).unwrap();
        let last = std::iter::from_fn(|| backend.next()).last();
        if let Some(Completion::Received(conn)) = last {
            break conn;
        }
    };
    // One send is submitted and not in the kernel yet, and what follows it is queued.
    for _ in 0..2 {
        let octets = Arc::new(vec![b'y'; 100]);
        backend
            .send(conn, Chunk::Shared(Rc::new(Publication { octets, messages: 1, lease: Lease::default() })));
    }
    assert!(backend.queued(conn) >= 200);
    drop(backend);
    let mut got = Vec::new();
    // The descriptor is closed: FIN, not silence.
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, [b'y'; 100]);
    TcpStream::connect(address).expect_err("nobody listens any more");
}

#[test]
fn a_connection_closed_in_the_middle_of_a_send_is_reported_once() {
    let Some((mut backend, address)) = backend(OPTIONS) else { return };
    for _ in 0..3 {
        let _client = TcpStream::connect(address).unwrap();
        let (mut accepted, mut closed, mut is_blocked) = (None, Vec::new(), false);
        while closed.is_empty() {
            backend.wait(Some(Duration::from_secs(10))).unwrap();
            while let Some(completion) = backend.next() {
                match completion {
                    Completion::Accepted(conn) => {
                        accepted = Some(conn);
                        // The send is in flight, then the queue waits for a full socket.
                        for _ in 0..2 {
                            let octets = Arc::new(vec![b'y'; 32 << 20]);
                            let publication = Publication { octets, messages: 1, lease: Lease::default() };
                            backend.send(conn, Chunk::Shared(Rc::new(publication)));
                        }
                    }
                    Completion::Blocked(_) => is_blocked = true,
                    Completion::Closed(conn, _) => closed.push(conn),
                    _ => {}
                }
            }
            if let Some(conn) = accepted.filter(|_| closed.is_empty() && is_blocked) {
                backend.close(conn);
                backend.close(conn);
                assert_eq!(backend.queued(conn), 0);
                is_blocked = false;
            }
        }
        assert_eq!(closed, [accepted.unwrap()]);
    }
}

#[test]
fn a_burst_of_large_messages_leaves_no_more_memory_than_the_first_buffers_have() {
    let (count, len) = (256, 64 * 1024);
    let options = UringOptions { buffer_count: count, buffer_bytes: len, completions: 2048, ..OPTIONS };
    let Some((mut backend, address)) = backend(options) else { return };
    let mut clients: Vec<_> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
    let (mut seen, mut most) = (0, 0);
    let resident = |backend: &mut UringBackend| backend.driver_mut().buffers.resident_pages();
    for client in &mut clients {
        client.write_all(&vec![1; len as usize]).unwrap();
    }
    while seen < usize::from(count) * len as usize {
        backend.wait(Some(Duration::from_secs(10))).unwrap();
        most = most.max(resident(&mut backend));
        while let Some(completion) = backend.next() {
            if let Completion::Received(_) = completion {
                assert!(backend.received().iter().all(|octet| *octet == 1));
                seen += backend.received().len();
            }
        }
    }
    // All of those that keep theirs, 16 KiB of the others, and the pages that these begin and end in.
    let (pages, kept) = (len as usize / 4096, 64);
    let bound = kept * (pages + 2) + (usize::from(count) - kept) * (4 + 2);
    assert!(resident(&mut backend) <= bound, "{} pages, {most} at most", resident(&mut backend));
    assert!(most > bound, "the burst was there: {most} pages, {bound} would be kept");
}

#[test]
fn a_connection_that_always_has_more_does_not_keep_all_buffers() {
    let Some((mut backend, address)) = backend(OPTIONS) else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, stop) = (TcpStream::connect(address).unwrap(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && client.write_all(&[b'x'; 64 << 10]).is_ok() {}
            })
        })
        .collect();
    let (mut received, mut turns) = (HashMap::new(), 0);
    while turns < 2000 {
        backend.wait(Some(Duration::from_secs(10))).unwrap();
        turns += usize::from(received.len() == clients.len());
        while let Some(completion) = backend.next() {
            if let Completion::Received(conn) = completion {
                *received.entry(conn).or_insert(0) += backend.received().len();
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    drop(backend);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (least, most) = (received.values().min().unwrap(), received.values().max().unwrap());
    assert!(least * 4 > *most, "{received:?}");
}
