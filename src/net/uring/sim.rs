//! A ring in memory, with the semantics of the kernel's, so that the driver itself runs in simulations: sends that are
//! submitted and complete later, polls that are late or wrong, buffers that run out, completions that do not fit,
//! cancellations that come too late. A seed decides what happens when.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ring::{Done, Ring, RingSocket};
use super::{Submit, UringDriver, UringOptions};
use crate::memory::Meter;
use crate::net::Wake;
use crate::net::sim::{Flag, Network, PeerId, SimSocket};
use crate::net::transport::{Io as _, Transport};

/// The backend of io_uring on a simulated network.
pub type SimUringBackend = Transport<UringDriver<SimRing>>;

/// Submissions that fit: with one more, all are submitted in the middle of a turn.
const SUBMISSIONS: usize = 16;
/// Completions that fit: what does not ends multishots.
const COMPLETIONS: usize = 24;
/// How many buffers one multishot receive fills in one pass of the kernel.
const RETRIES: usize = 4;

/// See the module.
pub struct SimRing {
    network: Network,
    waker: Option<(u64, Arc<Flag>)>,
    submissions: VecDeque<Operation>,
    active: Vec<Operation>,
    completions: VecDeque<Done>,
    /// Completions of operations that are done, and not told yet.
    late: Vec<Done>,
    /// What the kernel may fill.
    provided: VecDeque<(u16, *mut u8, u32)>,
    published: usize,
    /// Sockets that were accepted and not fetched.
    accepted: Vec<Option<SimSocket>>,
    in_flight: usize,
}

struct Operation {
    user_data: u64,
    what: What,
}

enum What {
    Accept,
    Receive { socket: SimRef, once: Option<u32> },
    Poll { socket: SimRef },
    Send { socket: SimRef, octets: *const [u8] },
    Cancel { target: u64 },
}

/// What an operation knows of its socket, whose owner keeps it open until the operation is done.
type SimRef = Rc<RefCell<SimSocket>>;

/// A socket of a simulated ring.
pub struct SimRingSocket(Option<SimRef>);

impl SimRingSocket {
    fn get(&self) -> &SimRef {
        self.0.as_ref().expect("a listener neither sends nor receives")
    }

    /// Which peer it leads to.
    pub fn peer(&self) -> PeerId {
        self.get().borrow().peer
    }
}

impl RingSocket for SimRingSocket {
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.get().borrow_mut().send(pieces)
    }

    fn shutdown(&mut self) {
        self.get().borrow_mut().shutdown();
    }

    fn has_input(&self) -> bool {
        self.get().borrow().has_input()
    }

    fn is_connected(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn accept_waiting(&self) -> Option<Self> {
        None
    }
}

impl Drop for SimRingSocket {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            assert_eq!(Rc::strong_count(socket), 1, "a descriptor is closed while an operation uses it");
        }
    }
}

impl SimUringBackend {
    /// A backend that accepts the peers of `network`.
    pub fn simulated(
        network: &Network,
        receive_buffer_bytes: usize,
        buffer_count: u16,
        meter: Meter,
    ) -> Self {
        let ring = SimRing {
            network: network.clone(),
            waker: None,
            submissions: VecDeque::new(),
            active: Vec::new(),
            completions: VecDeque::new(),
            late: Vec::new(),
            provided: VecDeque::new(),
            published: 0,
            accepted: Vec::new(),
            in_flight: 0,
        };
        let options = UringOptions {
            buffer_count,
            buffer_bytes: receive_buffer_bytes as u32,
            completions: COMPLETIONS as u32,
            submit: Submit::All,
        };
        let mut driver = UringDriver::on(ring, &options).expect("there is memory for its buffers");
        driver.listen(vec![SimRingSocket(None)]);
        Self::on(driver, meter)
    }
}

impl SimRing {
    fn push(&mut self, user_data: u64, what: What) {
        self.in_flight += 1;
        self.submissions.push_back(Operation { user_data, what });
        if self.submissions.len() >= SUBMISSIONS {
            self.submit();
        }
    }

    /// The kernel takes the submissions, in order. What need not wait is done at once.
    fn submit(&mut self) {
        while let Some(operation) = self.submissions.pop_front() {
            match operation.what {
                What::Send { ref socket, octets } => {
                    // SAFETY: who submitted it keeps the octets until the completion was taken.
                    let octets = unsafe { &*octets };
                    let result = socket.borrow_mut().send(&[IoSlice::new(octets)]);
                    self.complete_later(operation.user_data, number(result));
                }
                What::Cancel { target } => self.cancel_now(operation.user_data, target),
                What::Receive { .. } if self.published == 0 => {
                    // The kernel says so even where there is nothing to receive.
                    self.complete_later(operation.user_data, -libc::ENOBUFS);
                }
                _ => self.active.push(operation),
            }
        }
    }

    fn cancel_now(&mut self, user_data: u64, target: u64) {
        let at = self.active.iter().position(|operation| operation.user_data == target);
        let result = match at {
            None => -libc::ENOENT,
            Some(_) if self.network.one_in(6) => -libc::EALREADY,
            Some(at) => {
                let operation = self.active.swap_remove(at);
                self.complete_later(operation.user_data, -libc::ECANCELED);
                0
            }
        };
        self.complete_later(user_data, result);
    }

    /// An operation has ended. It may take until another turn to be told.
    fn complete_later(&mut self, user_data: u64, result: i32) {
        let done = Done { user_data, result, more: false, buffer: None };
        if self.network.one_in(5) {
            self.late.push(done);
        } else {
            self.completions.push_back(done);
        }
    }

    /// Does what can be done of one operation. Returns whether it goes on.
    fn run(&mut self, operation: &Operation) -> bool {
        let Operation { user_data, what } = operation;
        let done = |result, more, buffer| Done { user_data: *user_data, result, more, buffer };
        match what {
            What::Accept => {
                while let Some(socket) = self.network.accept() {
                    let more = self.completions.len() < COMPLETIONS;
                    self.accepted.push(Some(socket));
                    self.completions.push_back(done(self.accepted.len() as i32 - 1, more, None));
                    if !more {
                        return false;
                    }
                }
                true
            }
            What::Poll { socket } => {
                // Now and then it is wrong.
                let is_writable = socket.borrow().has_room() || self.network.one_in(50);
                if is_writable && !self.network.one_in(4) {
                    self.completions.push_back(done(libc::POLLOUT.into(), false, None));
                    return false;
                }
                true
            }
            What::Receive { socket, once } => {
                for _ in 0..if once.is_some() { 1 } else { RETRIES } {
                    if self.published == 0 {
                        self.completions.push_back(done(-libc::ENOBUFS, false, None));
                        return false;
                    }
                    let (index, address, len) = self.provided[0];
                    let len = len.min(once.unwrap_or(u32::MAX));
                    // SAFETY: the buffer was provided, and is nobody else's until it is handed over.
                    let buffer = unsafe { std::slice::from_raw_parts_mut(address, len as usize) };
                    match socket.borrow_mut().read(buffer) {
                        Ok(0) => {
                            self.completions.push_back(done(0, false, None));
                            return false;
                        }
                        Ok(len) => {
                            self.provided.pop_front();
                            self.published -= 1;
                            let more = once.is_none() && self.completions.len() < COMPLETIONS;
                            self.completions.push_back(done(len as i32, more, Some(index)));
                            if !more {
                                return false;
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                        Err(_) => {
                            self.completions.push_back(done(-libc::ECONNRESET, false, None));
                            return false;
                        }
                    }
                }
                true
            }
            What::Send { .. } | What::Cancel { .. } => unreachable!("they are done when they are submitted"),
        }
    }
}

/// A result as a completion has it.
fn number(result: io::Result<usize>) -> i32 {
    match result {
        Ok(len) => len as i32,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => -libc::EAGAIN,
        Err(_) => -libc::EPIPE,
    }
}

impl Ring for SimRing {
    type Socket = SimRingSocket;

    fn waker(&mut self, user_data: u64) -> Arc<dyn Wake> {
        let flag = Arc::new(Flag::default());
        self.waker = Some((user_data, flag.clone()));
        flag
    }

    fn woken(&mut self, _: &Done) {}

    fn clock(&self) -> Instant {
        self.network.clock()
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) || !self.submissions.is_empty() || !self.late.is_empty() {
            self.network.is_busy();
        }
        self.network.begin_turn(timeout);
        self.submit();
        self.completions.extend(self.late.drain(..));
        if let Some((user_data, flag)) = &self.waker
            && flag.take()
        {
            self.completions.push_back(Done { user_data: *user_data, result: 1, more: true, buffer: None });
        }
        let mut active = std::mem::take(&mut self.active);
        self.network.shuffle(&mut active);
        for operation in active {
            if self.run(&operation) {
                self.active.push(operation);
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Done> {
        let done = self.completions.pop_front()?;
        self.in_flight -= usize::from(!done.more);
        Some(done)
    }

    fn register_buffers(&mut self, _: u16) -> io::Result<()> {
        Ok(())
    }

    unsafe fn provide(&mut self, index: u16, address: *mut u8, len: u32) {
        self.provided.push_back((index, address, len));
    }

    fn publish(&mut self) {
        self.published = self.provided.len();
    }

    fn accept(&mut self, _: &SimRingSocket, user_data: u64) {
        self.push(user_data, What::Accept);
    }

    fn accepted(&mut self, done: &Done) -> io::Result<SimRingSocket> {
        if done.result < 0 {
            return Err(io::Error::from_raw_os_error(-done.result));
        }
        let socket = self.accepted[done.result as usize].take().expect("each is fetched once");
        Ok(SimRingSocket(Some(Rc::new(RefCell::new(socket)))))
    }

    fn receive(&mut self, socket: &SimRingSocket, user_data: u64) {
        self.push(user_data, What::Receive { socket: socket.get().clone(), once: None });
    }

    fn receive_once(&mut self, socket: &SimRingSocket, len: u32, user_data: u64) {
        self.push(user_data, What::Receive { socket: socket.get().clone(), once: Some(len) });
    }

    fn poll_writable(&mut self, socket: &SimRingSocket, user_data: u64) {
        self.push(user_data, What::Poll { socket: socket.get().clone() });
    }

    unsafe fn send(&mut self, socket: &SimRingSocket, octets: *const [u8], user_data: u64) {
        self.push(user_data, What::Send { socket: socket.get().clone(), octets });
    }

    fn cancel(&mut self, target: u64, user_data: u64) {
        self.push(user_data, What::Cancel { target });
    }

    fn cancel_all(&mut self, _: impl Fn(u64) -> bool) -> bool {
        self.submissions.clear();
        self.active.clear();
        true
    }

    fn connect(&mut self, _: SocketAddr, _: Option<IpAddr>) -> io::Result<SimRingSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
