//! The ring of one worker: its set-up, its operations, and entering the kernel.
//!
//! [`Ring`] is what the driver needs of it; [`KernelRing`] is the kernel's, and the simulation in
//! [`super::sim`] is the other one. Everything here happens on the thread that made the ring. Operations that carry no
//! address are safe to submit; those that do say what their caller promises. Start at [`Ring::enter`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};
use socket2::Socket;

use crate::net::{Wake, socket};

/// A ring has one group of buffers.
const GROUP: u16 = 0;
const PAGE: usize = 4096;

/// A completion.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What the operation was submitted with.
    pub user_data: u64,
    /// What it returned, or a negated error number.
    pub result: i32,
    /// It goes on: other completions of the same operation follow.
    pub more: bool,
    /// The receive buffer that it hands over.
    pub buffer: Option<u16>,
}

/// What the driver needs of a ring.
pub trait Ring: Sized {
    /// A socket whose operations it does.
    type Socket: RingSocket;

    /// Wakes the ring, which then completes `user_data`, from any thread.
    fn waker(&mut self, user_data: u64) -> Arc<dyn Wake>;

    /// A completion of the waker was taken.
    fn woken(&mut self, done: &Done);

    /// The time.
    fn clock(&self) -> Instant;

    /// Submits what was pushed, lets the kernel do its part, and waits until there is a completion or
    /// `timeout` has passed.
    ///
    /// # Errors
    /// The interface itself failed.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next completion.
    fn next(&mut self) -> Option<Done>;

    /// Registers places for `count` receive buffers, a power of two.
    ///
    /// # Errors
    /// What the kernel said: EINVAL before Linux 5.19, ENOMEM.
    fn register_buffers(&mut self, count: u16) -> io::Result<()>;

    /// Hands a receive buffer to the kernel with the next [`Ring::publish`]. No more than were registered are ever
    /// with it.
    ///
    /// # Safety
    /// The memory is the kernel's until a completion hands it over, or until all operations have ended.
    unsafe fn provide(&mut self, index: u16, address: *mut u8, len: u32);

    /// Lets the kernel see what was provided.
    fn publish(&mut self);

    /// Accepts from `socket`, which must not be O_NONBLOCK, until cancelled.
    fn accept(&mut self, socket: &Self::Socket, user_data: u64);

    /// The connection that an accept completed with.
    ///
    /// # Errors
    /// Why there is none.
    fn accepted(&mut self, done: &Done) -> io::Result<Self::Socket>;

    /// Receives from `socket`, which must not be O_NONBLOCK, into provided buffers, until cancelled.
    fn receive(&mut self, socket: &Self::Socket, user_data: u64);

    /// Receives once, at most `len` octets.
    fn receive_once(&mut self, socket: &Self::Socket, len: u32, user_data: u64);

    /// Completes once `socket` can be written to, or has failed.
    fn poll_writable(&mut self, socket: &Self::Socket, user_data: u64);

    /// Sends as many of `octets` as the socket takes at once.
    ///
    /// # Safety
    /// The octets stay where and as they are until the completion was taken.
    unsafe fn send(&mut self, socket: &Self::Socket, octets: *const [u8], user_data: u64);

    /// Ends the operation that was submitted with `target`, which completes with ECANCELED unless it was
    /// faster.
    fn cancel(&mut self, target: u64, user_data: u64);

    /// Ends all operations and waits for them. Returns whether they have ended: if not, the kernel may
    /// still use the memory that they were given.
    fn cancel_all(&mut self, is_accept: impl Fn(u64) -> bool) -> bool;

    /// Begins to connect.
    ///
    /// # Errors
    /// What the kernel refused at once.
    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<Self::Socket>;
}

/// A socket whose operations a ring does, and what is done to it by calls of their own.
pub trait RingSocket {
    /// Sends as much of the pieces as the socket takes at once.
    ///
    /// # Errors
    /// The connection has failed; or its socket is full.
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends FIN.
    fn shutdown(&mut self);

    /// Whether octets of the peer wait in the kernel.
    fn has_input(&self) -> bool;

    /// Whether a connect has come to its end.
    ///
    /// # Errors
    /// It has, and in vain.
    fn is_connected(&self) -> io::Result<bool>;

    /// A listener: what waits to be accepted, without waiting for it.
    fn accept_waiting(&self) -> Option<Self>
    where
        Self: Sized;
}

impl RingSocket for Socket {
    #[inline]
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::send(self, pieces)
    }

    fn shutdown(&mut self) {
        // An error here is the peer's RST, which the receive reports.
        let _ = Socket::shutdown(self, Shutdown::Write);
    }

    fn has_input(&self) -> bool {
        socket::has_input(self)
    }

    fn is_connected(&self) -> io::Result<bool> {
        socket::is_connected(self)
    }

    fn accept_waiting(&self) -> Option<Self> {
        self.set_nonblocking(true).ok()?;
        self.accept().ok().map(|(socket, _)| socket).filter(|socket| socket.set_nonblocking(false).is_ok())
    }
}

/// Submissions that fit the ring; a turn with more of them enters the kernel more than once.
const SUBMISSIONS: u32 = 1024;
/// With less memory than for this many completions there is no point in io_uring.
const COMPLETIONS_MIN: u32 = 512;
/// How long the end of a ring may take, in waits of [`CANCEL_WAIT`].
const CANCEL_WAITS: u32 = 20;
const CANCEL_WAIT: Duration = Duration::from_millis(50);

/// The kernel's ring.
pub struct KernelRing {
    // Fields are dropped in this order: what borrows the ring goes before it.
    submitter: Submitter<'static>,
    submissions: SubmissionQueue<'static>,
    completions: CompletionQueue<'static>,
    /// Completions taken out to make room, older than those in the ring.
    spilled: VecDeque<cqueue::Entry>,
    /// Operations whose last completion was not taken yet, submitted or not.
    in_flight: usize,
    flags: EnterFlags,
    _owner: Owner,
    /// After the ring, which reads them while it lives.
    provided: Option<Provided>,
    event_fd: Arc<EventFd>,
}

/// The entries that tell the kernel which buffers it has.
struct Provided {
    entries: NonNull<BufRingEntry>,
    memory_len: usize,
    count: u16,
    /// Counts the entries ever written. Wraps.
    tail: u16,
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: it is the mapping that `register_buffers` made, and the ring that read it is closed.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.memory_len) };
    }
}

/// Wakes a ring from any thread.
struct EventFd(File);

impl Wake for EventFd {
    fn wake(&self) {
        // It fails only if the counter is at its limit, and then the wake-up is on its way.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }
}

/// The allocation that the other fields borrow. A raw pointer, because a `Box` may not be moved while it is
/// borrowed.
struct Owner(NonNull<IoUring>);

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw`, is freed only here, and every borrower is gone: they are
        // fields of `KernelRing` above this one.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl KernelRing {
    /// A ring for the calling thread, which alone may use it. Where locked memory is short it is smaller.
    pub(super) fn new(mut completions: u32) -> io::Result<Self> {
        let ring = loop {
            let submissions = SUBMISSIONS.min(completions / 2);
            match build(submissions, completions) {
                Ok(ring) => break ring,
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && completions > COMPLETIONS_MIN => {
                    completions /= 2;
                }
                Err(error) => return Err(error),
            }
        };
        let flags = if ring.params().is_feature_no_iowait() {
            // Without it a worker that waits counts as waiting for a disk: an idle server shows 100% iowait.
            EnterFlags::GETEVENTS | EnterFlags::NO_IOWAIT
        } else {
            EnterFlags::GETEVENTS
        };
        let owner = Owner(NonNull::from(Box::leak(Box::new(ring))));
        // SAFETY: the allocation lives until `owner` is dropped, after everything that borrows it here, and
        // nothing else refers to it.
        let ring: &'static mut IoUring = unsafe { &mut *owner.0.as_ptr() };
        let (mut submitter, submissions, completions) = ring.split();
        // It saves looking up the descriptor in every call; a ring without it works the same.
        let _ = submitter.register_ring_fd();
        Ok(Self {
            submitter,
            submissions,
            completions,
            spilled: VecDeque::new(),
            in_flight: 0,
            flags,
            _owner: owner,
            provided: None,
            event_fd: Arc::new(event_fd()?),
        })
    }
}

impl Ring for KernelRing {
    type Socket = Socket;

    fn waker(&mut self, user_data: u64) -> Arc<dyn Wake> {
        self.poll_readable(user_data);
        self.event_fd.clone()
    }

    fn woken(&mut self, done: &Done) {
        let _ = (&self.event_fd.0).read(&mut [0; 8]);
        if !done.more {
            self.poll_readable(done.user_data);
        }
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Also tells the kernel which completions were taken.
        self.completions.sync();
        self.submissions.sync();
        let count = self.submissions.len() as u32;
        let want = u32::from(timeout != Some(Duration::ZERO));
        let result = match timeout.filter(|timeout| !timeout.is_zero()) {
            None => {
                // SAFETY: there is no argument to be valid.
                unsafe { self.submitter.enter::<libc::sigset_t>(count, want, self.flags.bits(), None) }
            }
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timeout);
                let flags = self.flags | EnterFlags::EXT_ARG;
                // SAFETY: EXT_ARG says that the argument is what it is, and it lives until the call returns.
                unsafe { self.submitter.enter(count, want, flags.bits(), Some(&arguments)) }
            }
        };
        self.submissions.sync();
        self.completions.sync();
        match result {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    #[inline]
    fn next(&mut self) -> Option<Done> {
        let entry = match self.spilled.pop_front() {
            Some(entry) => entry,
            None => self.completions.next()?,
        };
        let flags = entry.flags();
        let more = cqueue::more(flags);
        self.in_flight -= usize::from(!more);
        let buffer = cqueue::buffer_select(flags);
        Some(Done { user_data: entry.user_data(), result: entry.result(), more, buffer })
    }

    fn register_buffers(&mut self, count: u16) -> io::Result<()> {
        let memory_len = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(PAGE);
        // SAFETY: a new mapping, that overlaps nothing.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                memory_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(memory.cast()).expect("mmap does not map page 0");
        self.provided = Some(Provided { entries, memory_len, count, tail: 0 });
        // SAFETY: the mapping is page-aligned, long enough for the entries, and is unmapped after the ring is closed.
        unsafe { self.submitter.register_buf_ring_with_flags(memory as u64, count, GROUP, 0) }
    }

    #[inline]
    unsafe fn provide(&mut self, index: u16, address: *mut u8, len: u32) {
        let provided = self.provided.as_mut().expect("there are places for buffers");
        let at = usize::from(provided.tail & (provided.count - 1));
        // SAFETY: the place is inside of the mapping and aligned, and the kernel does not look at it
        // before the tail has moved past it: no more than `count` buffers are ever in the ring.
        let entry = unsafe { &mut *provided.entries.as_ptr().add(at) };
        entry.set_addr(address as u64);
        entry.set_len(len);
        entry.set_bid(index);
        provided.tail = provided.tail.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) {
        let provided = self.provided.as_ref().expect("there are places for buffers");
        // SAFETY: the tail is an aligned u16 inside of the mapping, that only we write.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(provided.entries.as_ptr()).cast_mut()) };
        tail.store(provided.tail, Ordering::Release);
    }

    fn accept(&mut self, socket: &Socket, user_data: u64) {
        let entry = opcode::AcceptMulti::new(fd(socket)).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    fn accepted(&mut self, done: &Done) -> io::Result<Socket> {
        if done.result < 0 {
            return Err(io::Error::from_raw_os_error(-done.result));
        }
        // SAFETY: the kernel has just opened it for us, and each completion is taken once.
        Ok(Socket::from(unsafe { OwnedFd::from_raw_fd(done.result) }))
    }

    #[inline]
    fn receive(&mut self, socket: &Socket, user_data: u64) {
        let entry = opcode::RecvMulti::new(fd(socket), GROUP).build();
        // SAFETY: the only memory is the group's, and that it outlives the ring is the promise of who
        // provided it.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    #[inline]
    fn receive_once(&mut self, socket: &Socket, len: u32, user_data: u64) {
        let entry = opcode::Recv::new(fd(socket), ptr::null_mut(), len).buf_group(GROUP).build();
        // SAFETY: as above.
        unsafe { self.push(entry.flags(squeue::Flags::BUFFER_SELECT).user_data(user_data)) };
    }

    fn poll_writable(&mut self, socket: &Socket, user_data: u64) {
        let entry = opcode::PollAdd::new(fd(socket), libc::POLLOUT as u32).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    #[inline]
    unsafe fn send(&mut self, socket: &Socket, octets: *const [u8], user_data: u64) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let entry = opcode::Send::new(fd(socket), octets.cast(), octets.len() as u32).flags(flags).build();
        // SAFETY: as the caller promises.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    fn cancel(&mut self, target: u64, user_data: u64) {
        let entry = opcode::AsyncCancel::new(target).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    fn cancel_all(&mut self, is_accept: impl Fn(u64) -> bool) -> bool {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(u64::MAX)) };
        for _ in 0..CANCEL_WAITS {
            let result = self.enter(Some(CANCEL_WAIT));
            while let Some(done) = self.next() {
                if is_accept(done.user_data) {
                    drop(self.accepted(&done));
                }
            }
            if self.in_flight == 0 || result.is_err() {
                break;
            }
        }
        self.in_flight == 0
    }

    fn connect(&mut self, address: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
        let socket = socket::connect(address, source)?;
        // With O_NONBLOCK an operation fails where it should wait.
        socket.set_nonblocking(false)?;
        Ok(socket)
    }
}

impl KernelRing {
    fn poll_readable(&mut self, user_data: u64) {
        self.poll_readable_of(self.event_fd.0.as_raw_fd(), user_data);
    }

    /// Completes each time that `fd` becomes readable, until cancelled.
    pub(super) fn poll_readable_of(&mut self, fd: RawFd, user_data: u64) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// # Safety
    /// What the entry points to stays valid until its last completion was taken.
    #[inline]
    unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        // SAFETY: as the caller promises.
        while unsafe { self.submissions.push(&entry) }.is_err() {
            self.submit();
        }
    }

    /// Makes room for submissions in the middle of a turn.
    #[cold]
    fn submit(&mut self) {
        self.submissions.sync();
        let count = self.submissions.len() as u32;
        // SAFETY: there is no argument to be valid.
        let result = unsafe { self.submitter.enter::<libc::sigset_t>(count, 0, 0, None) };
        self.submissions.sync();
        match result {
            Ok(_) => {}
            Err(error) if is_passing(&error) => {
                // The kernel wants room for completions, or memory.
                self.completions.sync();
                self.spilled.extend(&mut self.completions);
                self.completions.sync();
                // SAFETY: as above.
                let _ = unsafe { self.submitter.enter::<libc::sigset_t>(0, 0, self.flags.bits(), None) };
                std::thread::yield_now();
            }
            Err(error) => panic!("io_uring_enter refuses a ring that it made: {error}"),
        }
    }
}

fn fd(socket: &Socket) -> Fd {
    Fd(socket.as_raw_fd())
}

fn event_fd() -> io::Result<EventFd> {
    // SAFETY: no address is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(EventFd(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
}

fn build(submissions: u32, completions: u32) -> io::Result<IoUring> {
    let builder = || {
        let mut builder = IoUring::builder();
        builder
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all();
        builder
    };
    match builder().setup_no_sqarray().build(submissions) {
        // Linux 6.1 to 6.5 have all but this.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder().build(submissions),
        result => result,
    }
}

/// Not a failure: the time is over, a signal came, or the kernel wants its completions taken first.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}
