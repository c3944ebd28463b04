//! What a load thread does with its ring, where io_uring is used: it receives for open connections, and in a closed
//! loop [`Worker::flush`] gives it what is to be sent.
//!
//! Start at [`Worker::take_from_ring`].

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;
use resound::net::uring::client::{ClientRing, ConnId, Event};
use socket2::SockRef;

use super::connection::Conn;
use super::links::token;
use super::worker::Worker;

/// What the ring keeps of a connection's generation.
pub(super) const GENERATION_MASK: u32 = (1 << 28) - 1;

/// What the ring calls a connection.
pub(super) fn id(slot: usize, generation: u32) -> ConnId {
    ConnId { index: slot as u32, generation }
}

impl Worker {
    /// Has the ring receive for a connection that is open now, if there is a ring.
    pub(super) fn move_to_ring(&mut self, slot: usize) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let conn = self.slots[slot].as_mut().expect("the slot has a connection");
        // With O_NONBLOCK a receive fails where it should wait.
        SockRef::from(&conn.stream).set_nonblocking(false)?;
        // A socket that takes no more is still the poll's.
        let token = token(slot, conn.generation);
        self.poll.registry().reregister(&mut conn.stream, token, Interest::WRITABLE)?;
        conn.in_ring = true;
        ring.receive(id(slot, conn.generation), conn.stream.as_fd());
        Ok(())
    }

    /// Submits what the ring was given, and handles what has happened, or happens within `timeout`. Returns whether
    /// there was anything.
    pub(super) fn take_from_ring(
        &mut self,
        mut ring: Box<ClientRing>,
        timeout: Duration,
    ) -> io::Result<bool> {
        ring.wait(Some(timeout))?;
        let now_ns = self.shared.clock.now_ns();
        self.cut(now_ns);
        let mut worked = false;
        while let Some(event) = ring.next_event() {
            worked = true;
            self.ring_event(&mut ring, event, now_ns);
            for (id, socket) in self.let_go.drain(..) {
                ring.close(id, socket);
            }
        }
        self.ring = Some(ring);
        Ok(worked)
    }

    #[inline]
    fn ring_event(&mut self, ring: &mut ClientRing, event: Event, now_ns: u64) {
        match event {
            Event::Received(id) => {
                if let Some(slot) = self.slot_of(token(id.index as usize, id.generation)) {
                    self.received(slot, ring.received(), 0, now_ns);
                }
            }
            Event::Sent(id, result) => {
                let Some(slot) = self.slot_of(token(id.index as usize, id.generation)) else { return };
                let conn = self.slots[slot].as_mut().expect("the slot has a connection");
                match result {
                    Ok(rest) => {
                        conn.sent(rest);
                        if conn.is_blocked() {
                            self.writable(token(slot, id.generation));
                        } else if conn.traffic.owed > 0 {
                            self.queue(slot);
                        }
                    }
                    Err(error) => self.fail(slot, &error, "write"),
                }
            }
            Event::Ended(id, error) => {
                let Some(slot) = self.slot_of(token(id.index as usize, id.generation)) else { return };
                match error {
                    None => self.ended(slot),
                    Some(error) => self.fail(slot, &error, "read"),
                }
            }
            Event::Readable => self.polls = true,
        }
    }

    /// Lets a connection's socket go.
    pub(super) fn close_socket(&mut self, slot: usize, conn: Conn) {
        if !conn.in_ring {
            return;
        }
        let (id, socket) = (id(slot, conn.generation), TcpStream::from(conn.stream).into());
        match &mut self.ring {
            Some(ring) => ring.close(id, socket),
            None => self.let_go.push((id, socket)),
        }
    }
}
