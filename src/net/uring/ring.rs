//! The ring of one worker: its set-up, its operations, and entering the kernel.
//!
//! Everything here happens on the thread that made the ring. Operations that carry no address are safe to
//! submit; the one that does, [`Ring::send`], says what its caller promises. Start at [`Ring::enter`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};

/// Submissions that fit the ring; a turn with more of them enters the kernel more than once.
const SUBMISSIONS: u32 = 1024;
/// With less memory than for this many completions there is no point in io_uring.
const COMPLETIONS_MIN: u32 = 512;
/// How long the end of a ring may take, in waits of [`CANCEL_WAIT`].
const CANCEL_WAITS: u32 = 20;
const CANCEL_WAIT: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Ring {
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
}

/// The allocation that the other fields borrow. A raw pointer, because a `Box` may not be moved while it is
/// borrowed.
struct Owner(NonNull<IoUring>);

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw`, is freed only here, and every borrower is gone: they are
        // fields of `Ring` above this one.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Ring {
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
        })
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Submits what was pushed, lets the kernel do its part, and waits until there is a completion or
    /// `timeout` has passed.
    pub(super) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
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

    /// The next completion. Whether its operation has ended is for [`cqueue::more`] to say.
    #[inline]
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        let completion = match self.spilled.pop_front() {
            Some(completion) => completion,
            None => self.completions.next()?,
        };
        if !cqueue::more(completion.flags()) {
            self.in_flight -= 1;
        }
        Some(completion)
    }

    /// Whether [`Ring::next`] has something without entering the kernel.
    pub(super) fn is_ahead(&self) -> bool {
        !self.spilled.is_empty() || !self.completions.is_empty()
    }

    /// Accepts from `fd`, which must not be O_NONBLOCK, until cancelled.
    pub(super) fn accept(&mut self, fd: RawFd, user_data: u64) {
        let entry = opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// Receives from `fd`, which must not be O_NONBLOCK, into buffers of `group`, until cancelled.
    #[inline]
    pub(super) fn receive(&mut self, fd: RawFd, group: u16, user_data: u64) {
        let entry = opcode::RecvMulti::new(Fd(fd), group).build();
        // SAFETY: the only memory is the group's, and that it outlives the ring is the promise of who
        // registered it.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// Completes once `fd` can be written to, or has failed.
    pub(super) fn poll_writable(&mut self, fd: RawFd, user_data: u64) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLOUT as u32).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// Completes each time that `fd` becomes readable, until cancelled.
    pub(super) fn poll_readable(&mut self, fd: RawFd, user_data: u64) {
        let entry = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// Sends as many of `octets` as the socket takes at once.
    ///
    /// # Safety
    /// The octets stay where and as they are until the completion was taken.
    #[inline]
    pub(super) unsafe fn send(&mut self, fd: RawFd, octets: *const [u8], user_data: u64) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let entry = opcode::Send::new(Fd(fd), octets.cast(), octets.len() as u32).flags(flags).build();
        // SAFETY: as the caller promises.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// Ends the operation that was submitted with `target`, which completes with ECANCELED unless it was
    /// faster.
    pub(super) fn cancel(&mut self, target: u64, user_data: u64) {
        let entry = opcode::AsyncCancel::new(target).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(user_data)) };
    }

    /// Ends all operations and waits for them. Returns whether they have ended: if not, the kernel may
    /// still use the memory that they were given.
    pub(super) fn cancel_all(&mut self, mut dispose: impl FnMut(cqueue::Entry)) -> bool {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: no address is passed.
        unsafe { self.push(entry.user_data(u64::MAX)) };
        for _ in 0..CANCEL_WAITS {
            let result = self.enter(Some(CANCEL_WAIT));
            while let Some(completion) = self.next() {
                dispose(completion);
            }
            if self.in_flight == 0 || result.is_err() {
                break;
            }
        }
        self.in_flight == 0
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
