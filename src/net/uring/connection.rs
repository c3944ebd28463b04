//! One connection's transport: what is in flight for it, what waits, and how it ends.
//!
//! Every operation is told to the connection when it is pushed and when its last completion is taken, so
//! that [`UringBackend::settle`] knows when nothing refers to the slot any more. Start at
//! [`UringBackend::received_on`].

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;

use io_uring::cqueue;
use socket2::Socket;

use super::buffers::{self, Buffer};
use super::{Current, GENERATION_MASK, NOBODY, Op, SEND_FLAGS, UringBackend, join};
use crate::net::queue::{Publication, SendQueue};
use crate::net::{Chunk, Completion, ConnId, sent};

/// One connection's transport.
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) generation: u32,
    pub(super) receive: Receive,
    /// The poll for writability is in flight.
    pub(super) polls: bool,
    /// The peer has ended. Reported once all that was set aside is.
    pub(super) eof: bool,
    /// It stands in `resumed`.
    pub(super) resumes: bool,
    /// No completion but `Closed` is to come.
    pub(super) ended: bool,
    pub(super) finish: Finish,
    /// The last turn in which it had a receive buffer. Wraps.
    pub(super) fed_in: u32,
    pub(super) submitted: Submitted,
    pub(super) queue: Option<Box<SendQueue>>,
    /// Octets received while something was queued, oldest first, each at most a buffer.
    pub(super) set_aside: VecDeque<Vec<u8>>,
    pub(super) error: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing is in flight.
    Off,
    On,
    /// In flight, and so is its cancellation.
    Cancelled,
    /// Nothing is in flight, and the connection stands in `starved`.
    Starved,
}

/// The one send that may be in flight.
pub(super) enum Submitted {
    Nothing,
    Publication(Rc<Publication>),
    /// From `start` on.
    Reply {
        buffer: Buffer,
        start: u32,
        len: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    No,
    /// When the queue is empty, FIN.
    Asked,
    /// FIN is sent; the peer's end is awaited.
    FinSent,
}

impl Connection {
    /// Nothing waits to be sent.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.queue.is_none() && matches!(self.submitted, Submitted::Nothing)
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.receive, Receive::Off | Receive::Starved)
            && !self.polls
            && matches!(self.submitted, Submitted::Nothing)
    }
}

impl UringBackend {
    pub(super) fn connect(&mut self, socket: Socket) -> ConnId {
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let generation = self.generation;
        let index = self.connections.insert(Connection {
            socket,
            generation,
            receive: Receive::Off,
            polls: false,
            eof: false,
            resumes: false,
            ended: false,
            finish: Finish::No,
            fed_in: 0,
            submitted: Submitted::Nothing,
            queue: None,
            set_aside: VecDeque::new(),
            error: None,
        }) as u32;
        self.receive(index);
        ConnId { index, generation }
    }

    /// Receives, unless that is so already or the peer has ended.
    #[inline]
    pub(super) fn receive(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.receive == Receive::Off && !connection.eof && !connection.ended {
            connection.receive = Receive::On;
            let user_data = join(Op::Receive, index, connection.generation);
            self.ring.receive(connection.socket.as_raw_fd(), buffers::GROUP, user_data);
        }
    }

    pub(super) fn stop_receiving(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.receive == Receive::On {
            connection.receive = Receive::Cancelled;
            let generation = connection.generation;
            let target = join(Op::Receive, index, generation);
            self.ring.cancel(target, join(Op::Cancel, index, generation));
        }
    }

    /// The receive was not there to be cancelled. If it has not ended, it was just at work.
    #[cold]
    pub(super) fn not_cancelled(&mut self, index: u32, generation: u32) {
        let Some(connection) = self.connections.get_mut(index as usize) else { return };
        if connection.generation == generation && connection.receive == Receive::Cancelled {
            connection.receive = Receive::On;
            if connection.ended {
                self.stop_receiving(index);
            }
        }
    }

    #[inline]
    pub(super) fn received_on(&mut self, index: u32, completion: &cqueue::Entry) -> Option<Completion> {
        let buffer = self.buffers.take(completion);
        let connection = &mut self.connections[index as usize];
        if !cqueue::more(completion.flags()) {
            connection.receive = Receive::Off;
        }
        let waits = connection.queue.is_some() || connection.resumes || connection.ended;
        if completion.result() > 0 && !waits {
            connection.fed_in = self.starved.turn();
            let goes_on = connection.receive != Receive::Off;
            let is_wanted = connection.finish == Finish::No;
            if !goes_on {
                self.receive(index);
            }
            let buffer = buffer.expect("octets come in a buffer");
            if is_wanted {
                self.current = Current::Buffer(buffer);
                return Some(Completion::Received(self.id(index)));
            }
            self.buffers.release(buffer);
            return None;
        }
        self.received_unusual(index, completion.result(), buffer)
    }

    /// Octets that are not wanted now, the peer's end, and errors.
    #[cold]
    pub(super) fn received_unusual(
        &mut self,
        index: u32,
        result: i32,
        buffer: Option<Buffer>,
    ) -> Option<Completion> {
        let connection = &mut self.connections[index as usize];
        let mut completion = None;
        match result {
            _ if connection.ended => self.settle(index),
            1.. => {
                if connection.finish == Finish::No {
                    let octets = self.buffers.octets(buffer.as_ref().expect("octets come in a buffer"));
                    connection.set_aside.push_back(octets.to_vec());
                }
                if connection.queue.is_some() {
                    self.stop_receiving(index);
                }
            }
            0 => {
                connection.eof = true;
                if connection.queue.is_none() && !connection.resumes {
                    completion = self.resume_now(index);
                }
            }
            _ => match -result {
                libc::ENOBUFS => {
                    connection.receive = Receive::Starved;
                    self.starved.push(index, connection.fed_in);
                    completion = Some(Completion::ReceiveStarved(self.id(index)));
                }
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                    if connection.queue.is_none() && !connection.resumes {
                        self.receive(index);
                    }
                }
                error => self.end(index, Some(io::Error::from_raw_os_error(error))),
            },
        }
        if let Some(buffer) = buffer {
            self.buffers.release(buffer);
        }
        completion
    }

    /// The queue is empty: goes on with what that held up.
    pub(super) fn resume(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.set_aside.is_empty() && !connection.eof {
            self.receive(index);
        } else if !connection.resumes {
            connection.resumes = true;
            self.resumed.push_back(index);
        }
    }

    pub(super) fn resume_now(&mut self, index: u32) -> Option<Completion> {
        let connection = self.connections.get_mut(index as usize)?;
        connection.resumes = false;
        if connection.ended || connection.queue.is_some() {
            return None;
        }
        if let Some(octets) = connection.set_aside.pop_front() {
            // The reply may fill the socket again; if not, this goes on.
            connection.resumes = true;
            self.resumed.push_back(index);
            self.current = Current::SetAside(octets);
            return Some(Completion::Received(self.id(index)));
        }
        if !connection.eof {
            self.receive(index);
        } else if connection.finish == Finish::No {
            return Some(Completion::Eof(self.id(index)));
        } else if connection.finish == Finish::FinSent {
            self.end(index, None);
        }
        None
    }

    /// A submitted send has completed.
    pub(super) fn sent_on(&mut self, index: u32, result: i32) {
        let connection = &mut self.connections[index as usize];
        let submitted = std::mem::replace(&mut connection.submitted, Submitted::Nothing);
        let result =
            if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) };
        let result = sent(result);
        if let (Ok(done), false) = (&result, connection.ended) {
            let rest = match &submitted {
                Submitted::Publication(publication) if *done < publication.octets.len() => {
                    Some((Chunk::Shared(publication.clone()), *done))
                }
                Submitted::Reply { buffer, start, len } if *done < *len as usize => {
                    let reply = *start as usize..(*start + *len) as usize;
                    Some((Chunk::from(self.buffers.octets(buffer)[reply][*done..].to_vec()), 0))
                }
                _ => None,
            };
            if let Some((chunk, done)) = rest {
                connection.queue.get_or_insert_default().push_front(chunk, done);
            }
        }
        let ended = connection.ended;
        if let Submitted::Reply { buffer, .. } = submitted {
            self.buffers.release(buffer);
        }
        match result {
            _ if ended => self.settle(index),
            Ok(_) => self.flush(index),
            Err(error) => self.end(index, Some(error)),
        }
    }

    /// Sends what is queued; when all is sent, goes on with what waited for that.
    pub(super) fn flush(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if let Some(queue) = &mut connection.queue {
            let socket = &connection.socket;
            match queue.flush(|slices| socket.send_vectored_with_flags(slices, SEND_FLAGS)) {
                Ok(true) => connection.queue = None,
                Ok(false) => return self.poll(index),
                Err(error) => return self.end(index, Some(error)),
            }
        }
        self.sent(index);
    }

    /// Has the queue flushed when the socket takes more.
    pub(super) fn poll(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        let waits = connection.queue.is_some() && matches!(connection.submitted, Submitted::Nothing);
        if waits && !connection.polls {
            connection.polls = true;
            let user_data = join(Op::Writable, index, connection.generation);
            self.ring.poll_writable(connection.socket.as_raw_fd(), user_data);
        }
    }

    /// The queue is empty.
    pub(super) fn sent(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if connection.finish == Finish::Asked {
            connection.finish = Finish::FinSent;
            // An error here is the peer's RST, which the receive reports.
            let _ = connection.socket.shutdown(Shutdown::Write);
            if connection.eof {
                return self.end(index, None);
            }
        }
        self.resume(index);
    }

    /// From here on every call that names the connection does nothing.
    pub(super) fn end(&mut self, index: u32, error: Option<io::Error>) {
        let connection = &mut self.connections[index as usize];
        debug_assert!(!connection.ended);
        connection.ended = true;
        connection.error = error;
        connection.queue = None;
        connection.set_aside = VecDeque::new();
        if connection.polls {
            let target = join(Op::Writable, index, connection.generation);
            self.ring.cancel(target, join(Op::Cancel, NOBODY, 0));
        }
        self.stop_receiving(index);
        self.settle(index);
    }

    /// An ended connection is gone once the last of its operations is.
    pub(super) fn settle(&mut self, index: u32) {
        let connection = &self.connections[index as usize];
        debug_assert!(connection.ended);
        if connection.is_idle() {
            self.ended.push_back(index);
        }
    }

    pub(super) fn report_end(&mut self, index: u32) -> Completion {
        let conn = self.id(index);
        let connection = self.connections.remove(index as usize);
        if self.accept_again.is_some() {
            self.accept_again = Some(self.now);
        }
        Completion::Closed(conn, connection.error)
    }

    /// Receives again where a buffer was missing, from as many connections as there are buffers: with one
    /// more, the operation would only fail again.
    pub(super) fn feed(&mut self, starved_count: usize) {
        for _ in 0..self.buffers.posted_count().min(starved_count) {
            let Some(index) = self.starved.pop() else { return };
            // Another connection may have the slot by now, or the same one stand here twice.
            let connection = self.connections.get_mut(index as usize);
            let Some(connection) = connection.filter(|connection| connection.receive == Receive::Starved)
            else {
                continue;
            };
            connection.receive = Receive::Off;
            if connection.queue.is_none() && !connection.resumes {
                self.receive(index);
            }
        }
    }
}
