//! What it costs to wake another worker's ring: an eventfd under a multishot poll, which is what the backend does,
//! against `IORING_OP_MSG_RING`. Two threads, each with a ring as a worker has it, wake one another in turn.

use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

/// Round trips of one turn, two wake-ups each.
const ROUND_TRIPS: u32 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    EventFd,
    /// The message is submitted by a call of its own, as a worker would that goes on to its own members.
    MsgRingAtOnce,
    /// The message is submitted with what the worker submits when it waits.
    MsgRing,
}

/// What one wake-up took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wakes {
    /// Processor time of both threads, in microseconds.
    pub cpu_us: f64,
    /// From the call that wakes until the other thread has seen it, in microseconds.
    pub latency_us: f64,
}

/// One turn, on two cores.
pub(crate) fn measure(way: Way, cores: [usize; 2]) -> anyhow::Result<Wakes> {
    let (ready, rings) = (Barrier::new(2), std::sync::Mutex::new([-1; 2]));
    let event_fds = [event_fd(), event_fd()];
    let worker = |side: usize| {
        core_affinity::set_for_current(core_affinity::CoreId { id: cores[side] });
        let mut ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(64)
            .expect("io_uring works here");
        rings.lock().expect("nobody panics")[side] = ring.as_raw_fd();
        ring.submitter().register_ring_fd().expect("a ring can be registered");
        if way == Way::EventFd {
            let poll = opcode::PollAdd::new(Fd(event_fds[side]), libc::POLLIN as u32).multi(true).build();
            // SAFETY: no address is passed.
            unsafe { ring.submission().push(&poll) }.expect("there is room");
            ring.submit().expect("the ring takes it");
        }
        ready.wait();
        let other = rings.lock().expect("nobody panics")[1 - side];
        let (start, cpu) = (Instant::now(), thread_cpu());
        for _ in 0..ROUND_TRIPS {
            if side == 0 {
                wake(&mut ring, way, other, event_fds[1]);
            }
            wait(&mut ring, way, event_fds[side]);
            if side == 1 {
                wake(&mut ring, way, other, event_fds[0]);
            }
        }
        // The last wake-up of this side may still wait to be submitted.
        let _ = ring.submit();
        let result = (start.elapsed(), thread_cpu() - cpu);
        ready.wait();
        result
    };
    let (this, that) = std::thread::scope(|scope| {
        let that = scope.spawn(|| worker(1));
        (scope.spawn(|| worker(0)).join(), that.join())
    });
    event_fds.iter().for_each(|fd| {
        // SAFETY: both threads have ended.
        unsafe { libc::close(*fd) };
    });
    let ((elapsed, this_cpu), (_, that_cpu)) = (this.expect("no panic"), that.expect("no panic"));
    let wakes = f64::from(2 * ROUND_TRIPS);
    Ok(Wakes {
        cpu_us: (this_cpu + that_cpu).as_secs_f64() * 1e6 / wakes,
        latency_us: elapsed.as_secs_f64() * 1e6 / wakes,
    })
}

fn wake(ring: &mut IoUring, way: Way, other: RawFd, event_fd: RawFd) {
    match way {
        Way::EventFd => {
            // SAFETY: the octets are valid for the length of the call.
            let written = unsafe { libc::write(event_fd, 1u64.to_ne_bytes().as_ptr().cast(), 8) };
            assert_eq!(written, 8);
        }
        Way::MsgRing | Way::MsgRingAtOnce => {
            let message = opcode::MsgRingData::new(Fd(other), 0, 1, None).build().user_data(MESSAGE);
            // SAFETY: no address is passed.
            unsafe { ring.submission().push(&message) }.expect("there is room");
            if way == Way::MsgRingAtOnce {
                ring.submit().expect("the ring takes it");
            }
        }
    }
}

/// User data of the sender's own completion.
const MESSAGE: u64 = 2;

fn wait(ring: &mut IoUring, way: Way, event_fd: RawFd) {
    loop {
        ring.submit_and_wait(1).expect("the ring works");
        let mut woken = false;
        for completion in ring.completion() {
            woken |= completion.user_data() != MESSAGE;
        }
        if woken {
            break;
        }
    }
    if way == Way::EventFd {
        let mut count = [0u8; 8];
        // SAFETY: there is room for eight octets.
        unsafe { libc::read(event_fd, count.as_mut_ptr().cast(), 8) };
    }
}

fn event_fd() -> RawFd {
    // SAFETY: no address is passed.
    unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: there is room for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
