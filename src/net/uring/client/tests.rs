//! The ring of a client, against sockets of loopback.

use super::*;
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

const SOON: Option<Duration> = Some(Duration::from_secs(10));

fn ring() -> Option<ClientRing> {
    ClientRing::new()
        .inspect_err(|error| {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
        })
        .ok()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn id(index: u32) -> ConnId {
    ConnId { index, generation: 7 }
}

/// Waits for the next event.
fn event(ring: &mut ClientRing) -> Event {
    loop {
        if let Some(event) = ring.next_event() {
            return event;
        }
        ring.wait(SOON).unwrap();
    }
}

#[test]
fn octets_go_out_and_come_in_and_the_end_is_told() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = pair();
    ring.receive(id(3), ours.as_fd());
    ring.send(id(3), ours.as_fd(), b"question".to_vec());
    assert!(matches!(event(&mut ring), Event::Sent(conn, Ok(rest)) if conn == id(3) && rest.is_empty()));
    let mut got = [0; 8];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"question");
    theirs.write_all(b"answer").unwrap();
    assert!(matches!(event(&mut ring), Event::Received(conn) if conn == id(3)));
    assert_eq!(ring.received(), b"answer");
    theirs.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(event(&mut ring), Event::Ended(conn, None) if conn == id(3)));
    assert!(ring.spare().capacity() >= 8, "its memory is used again");
    ring.close(id(3), ours.into());
    ring.wait(Some(Duration::ZERO)).unwrap();
    assert_eq!(theirs.read(&mut got).unwrap(), 0, "it is closed");
}

#[test]
fn what_a_full_socket_does_not_take_comes_back() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = pair();
    let octets: Vec<u8> = (0..64 << 20).map(|at: u32| (at % 251) as u8).collect();
    let mut rest = octets.clone();
    loop {
        let len = rest.len();
        ring.send(id(0), ours.as_fd(), rest);
        let Event::Sent(_, Ok(left)) = event(&mut ring) else { panic!("it was refused") };
        assert!(!left.is_empty() && octets.ends_with(&left));
        rest = left;
        if rest.len() == len {
            break;
        }
    }
    drop(ring);
    drop(ours);
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).unwrap();
    assert!(octets.starts_with(&got) && got.len() == octets.len() - rest.len());
}

#[test]
fn a_reset_is_told_to_who_receives_and_to_who_sends() {
    let Some(mut ring) = ring() else { return };
    let (ours, theirs) = pair();
    ring.receive(id(0), ours.as_fd());
    ring.wait(Some(Duration::ZERO)).unwrap();
    socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
    drop(theirs);
    assert!(
        matches!(event(&mut ring), Event::Ended(_, Some(error)) if error.kind() == io::ErrorKind::ConnectionReset)
    );
    ring.send(id(0), ours.as_fd(), b"x".to_vec());
    assert!(
        matches!(event(&mut ring), Event::Sent(_, Err(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    );
}

#[test]
fn nothing_is_told_of_a_connection_that_was_closed_though_its_number_is_used_again() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = pair();
    ring.receive(id(0), ours.as_fd());
    ring.wait(Some(Duration::ZERO)).unwrap();
    theirs.write_all(b"old").unwrap();
    // The octets are in the ring, and a submission names the descriptor.
    ring.wait(SOON).unwrap();
    ring.send(id(0), ours.as_fd(), b"last".to_vec());
    ring.close(id(0), ours.into());
    let (new, mut new_theirs) = pair();
    let new_id = ConnId { index: 0, generation: 8 };
    ring.receive(new_id, new.as_fd());
    new_theirs.write_all(b"new").unwrap();
    loop {
        match event(&mut ring) {
            Event::Received(conn) => {
                assert_eq!((conn, &*ring.received()), (new_id, &b"new"[..]));
                break;
            }
            Event::Sent(conn, Ok(_)) => assert_eq!(conn, id(0)),
            other => panic!("{other:?}"),
        }
    }
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last", "it went to the connection that it was meant for, which is closed now");
}

#[test]
fn connections_that_find_no_buffer_lose_nothing_and_all_have_their_turn() {
    let Some(mut ring) = ring() else { return };
    let (each, count) = (8 << 20, 4);
    let (ours, senders): (Vec<_>, Vec<_>) = (0..count)
        .map(|index| {
            let (ours, mut theirs) = pair();
            let sender = std::thread::spawn(move || theirs.write_all(&vec![index as u8; each]).unwrap());
            (ours, sender)
        })
        .unzip();
    for (index, ours) in ours.iter().enumerate() {
        ring.receive(id(index as u32), ours.as_fd());
    }
    let (mut received, mut ended, mut when_first_ended) = (HashMap::new(), 0, None);
    while ended < count {
        match event(&mut ring) {
            Event::Received(conn) => {
                assert!(ring.received().iter().all(|octet| u32::from(*octet) == conn.index));
                *received.entry(conn).or_insert(0) += ring.received().len();
            }
            Event::Ended(_, None) => {
                ended += 1;
                when_first_ended.get_or_insert_with(|| *received.values().min().unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert!(received.len() == count && received.values().all(|len| *len == each), "{received:?}");
    assert!(when_first_ended.unwrap() > each / 8, "{when_first_ended:?} of {each} when the first was done");
}

#[test]
fn a_watched_descriptor_is_told_of_each_time_that_it_has_something() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = pair();
    ring.watch(ours.as_raw_fd());
    for octet in [b"a", b"b", b"c"] {
        theirs.write_all(octet).unwrap();
        assert!(matches!(event(&mut ring), Event::Readable));
        (&ours).read_exact(&mut [0]).unwrap();
    }
    ring.wait(Some(Duration::from_millis(1))).unwrap();
    assert!(ring.next_event().is_none());
}
