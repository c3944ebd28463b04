//! A load thread: its loop, its parts of the run, and how it waits.
//!
//! A turn, in fixed order: parts of the run and hand-over, connections to open, messages that are due,
//! wait, what has arrived. Nothing in it allocates, locks or logs for a message. The clock is read once a
//! turn, once a write and once a read: those are the times that count.
//!
//! Waiting: the thread sleeps until [`SPIN_NS`] before something is due and polls without sleeping for the rest. What
//! arrives meanwhile is taken at once. On epoll it sleeps in `epoll_wait`, woken by a timer with nanoseconds.
//!
//! With io_uring, open connections are in the ring, and the poll, which the ring watches, has only those that are on
//! their way and those whose socket takes no more. One call brings what has arrived on all of them: the time of its
//! return is the time of receipt.
//!
//! Start at [`run`]; what is done with a connection is in [`super::links`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use resound::net::uring::client::{ClientRing, ConnId};
use resound::proto::{Codecs, DeflateSettings, Replies};
use socket2::SockRef;

use super::args::{Goodbye, Mode};
use super::book::{Book, Subscriber};
use super::clock::{Clock, SECOND_NS};
use super::connection::{Conn, Stage};
use super::control::{Control, NOT_YET};
use super::plan::{Load, Plan};
use super::publications::{Publications, Seen};
use super::schedule::{Schedule, Share};
use super::stamp::Composer;
use super::upgrade::Upgrade;
use crate::result::model::Io;
use crate::result::recorder::Slice;

/// How long before a due time the thread stops sleeping: longer than it takes to be woken up.
const SPIN_NS: u64 = 80_000;
/// The longest sleep, so that the end of the run is noticed.
const SLEEP_MAX_NS: u64 = 20_000_000;
/// Events taken at a time, and messages sent at a time before the sockets are looked at again.
const BATCH_LEN: usize = 64;
/// The receive buffer that all connections of a thread share, in octets.
const RECEIVE_LEN: usize = 256 << 10;
/// Connections of a thread that may be on their way at a time while the ramp lasts.
const CONNECTING_MAX: usize = 1024;
/// How long the closing handshakes at the end of the run may take.
const FAREWELL_NS: u64 = 2 * SECOND_NS;

/// The token of the timer; all others are slots with their generation.
const TIMER: Token = Token(usize::MAX);

/// What a thread hands over: once an interval (a second, unless a storm wants it finer), and at the turning points of the run.
#[derive(Debug)]
pub(super) enum Report {
    /// What was recorded since the last one.
    Slice {
        /// The thread's number.
        thread: u32,
        /// The end of the time that it covers, in ns.
        until_ns: u64,
        /// What was recorded.
        slice: Box<Slice>,
        /// Broadcast: publications that are finished on this thread.
        publications: Vec<Seen>,
    },
    /// All connections of the ramp were opened, or have failed.
    Ready {
        /// How many are open.
        open: u32,
    },
    /// The thread has ended. Everything it recorded was handed over.
    Done {
        /// The thread's number.
        thread: u32,
    },
    /// The thread could not go on.
    Failed {
        /// The thread's number.
        thread: u32,
        /// Why, in a sentence.
        reason: String,
    },
}

/// What all threads of a run know.
#[derive(Debug)]
pub(super) struct Shared {
    /// What is to be done.
    pub plan: Plan,
    /// The run's time axis.
    pub clock: Clock,
    /// Where the threads meet.
    pub control: Control,
    /// The opening handshake.
    pub upgrade: Upgrade,
}

/// Which part of the run a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Connections are opened.
    Ramp,
    /// They are open, here; other threads may need longer.
    Ready,
    /// Load, warm-up included.
    Load,
    /// Replies are awaited.
    Drain,
    /// Connections are closed.
    Farewell {
        /// Until then.
        until_ns: u64,
    },
}

/// A load thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: u32,
    pub(super) poll: Poll,
    timer: TimerFd,
    /// Receives for open connections, and in a closed loop sends, where io_uring is used. Not here while its events
    /// are looked at.
    pub(super) ring: Option<Box<ClientRing>>,
    /// Connections that went while the ring was not here.
    pub(super) let_go: Vec<(ConnId, OwnedFd)>,
    /// The poll may have events.
    pub(super) polls: bool,
    pub(super) slots: Vec<Option<Conn>>,
    pub(super) generations: Vec<u32>,
    pub(super) open_count: u32,
    pub(super) part: Part,
    pub(super) book: Book,
    /// Broadcast: by slot.
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) composer: Composer,
    pub(super) rng: fastrand::Rng,
    pub(super) replies: Replies,
    /// Only used where --deflate is.
    pub(super) codecs: Codecs,
    /// A message before it is compressed.
    pub(super) plain: Vec<u8>,
    pub(super) receive_buffer: Vec<u8>,
    pub(super) send_buffer: Vec<u8>,
    /// Connections with something to send, in the order in which it became due.
    pub(super) to_flush: VecDeque<u32>,
    /// Messages that are due and not sent, on all connections.
    pub(super) backlog_count: usize,
    /// Connections with more to read of which no event will tell.
    pub(super) to_read: VecDeque<Token>,
    /// Connections on their way, oldest first, with the time at which they are given up.
    pub(super) connecting: VecDeque<(u64, Token)>,
    /// Connections that were given up on their way.
    pub(super) timed_out_count: usize,
    /// Connections that wait for their last replies, oldest first, with the time at which they are given up.
    pub(super) leaving: VecDeque<(u64, Token)>,
    /// Connections that close, oldest first, with the time at which they are given up.
    pub(super) closing: VecDeque<(u64, Token)>,
    /// Messages; or connects, in connect mode.
    pub(super) schedule: Option<Schedule>,
    /// The opening of connections before the load.
    ramp: Schedule,
    /// Connections to replace.
    pub(super) churn: Option<Schedule>,
    /// The slot to replace next.
    pub(super) churn_at: usize,
    /// Connect mode: slots that nobody has.
    pub(super) vacant: Vec<u32>,
    /// Connect mode: when connections were to be opened for which there is no slot yet. Echo: when messages were due
    /// while every connection was being replaced.
    pub(super) waiting: VecDeque<u64>,
    /// How many connections this thread has opened or tried to.
    pub(super) opened: u32,
    last_cut_ns: u64,
    /// When this turn began.
    pub(super) turn_ns: u64,
    /// An interval is over: it is time to look for replies that take too long.
    was_cut: bool,
    cpu_ns: u64,
    /// Spent polling for nothing, in ns: CPU that is not work.
    spun_ns: u64,
    reports: Sender<Report>,
    recycled: Receiver<Box<Slice>>,
}

/// Load thread `index` of a run whose threads all began at `began_ns`: runs to the end on the calling thread, and reports.
pub(super) fn run(
    shared: Arc<Shared>,
    index: u32,
    began_ns: u64,
    reports: &Sender<Report>,
    recycled: Receiver<Box<Slice>>,
) {
    let worker = Worker::new(shared, index, began_ns, reports.clone(), recycled);
    let last = match worker.and_then(|mut worker| worker.turns()) {
        Ok(()) => Report::Done { thread: index },
        Err(error) => Report::Failed { thread: index, reason: format!("load thread {index}: {error}") },
    };
    // It fails only if the receiver has gone, and then nobody waits for it.
    let _ = reports.send(last);
}

impl Worker {
    /// Thread number `index` of the run, whose threads all began at `began_ns`.
    ///
    /// # Errors
    /// No epoll, timer or ring could be made.
    fn new(
        shared: Arc<Shared>,
        index: u32,
        began_ns: u64,
        reports: Sender<Report>,
        recycled: Receiver<Box<Slice>>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let plan = &shared.plan;
        let mut ring = None;
        if plan.io == Io::IoUring {
            let new = ring.insert(Box::new(ClientRing::new().map_err(io::Error::other)?));
            new.watch(poll.as_raw_fd());
        }
        let share = Share { index, count: plan.threads, participants: plan.connections };
        let members = share.members();
        let seed = plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(index) << 32);
        let ramp_share = if plan.mode == Mode::Connect { Share { participants: 0, ..share } } else { share };
        let ramp_per_s = if plan.ramp_per_s.is_finite() { plan.ramp_per_s } else { 1e9 };
        let ramp = Schedule::once(ramp_per_s, ramp_share, began_ns);
        let subscribers = match plan.mode {
            Mode::Broadcast => (0..members).map(|_| Subscriber::new(plan.publishers)).collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            index,
            poll,
            timer,
            ring,
            let_go: Vec::new(),
            polls: false,
            slots: (0..members).map(|_| None).collect(),
            generations: vec![0; members as usize],
            open_count: 0,
            part: Part::Ramp,
            book: Book::new(
                Publications::new(plan.publishers, members),
                matches!(plan.load, Load::Closed { .. }),
            ),
            subscribers,
            composer: Composer::new(plan.opcode, plan.sizes.max(), seed ^ 1),
            rng: fastrand::Rng::with_seed(seed ^ 2),
            replies: Replies::default(),
            codecs: Codecs::new(DeflateSettings {
                message_len_max: usize::MAX,
                memory_bytes_max: usize::MAX,
                ratio_max: 0,
                ..DeflateSettings::default()
            }),
            plain: Vec::new(),
            receive_buffer: vec![0; RECEIVE_LEN],
            send_buffer: Vec::with_capacity(RECEIVE_LEN),
            to_flush: VecDeque::with_capacity(members as usize),
            backlog_count: 0,
            to_read: VecDeque::new(),
            connecting: VecDeque::new(),
            timed_out_count: 0,
            leaving: VecDeque::new(),
            closing: VecDeque::new(),
            schedule: None,
            ramp,
            churn: None,
            churn_at: 0,
            vacant: if plan.mode == Mode::Connect { (0..members).rev().collect() } else { Vec::new() },
            waiting: VecDeque::new(),
            opened: 0,
            last_cut_ns: began_ns,
            turn_ns: began_ns,
            was_cut: false,
            cpu_ns: 0,
            spun_ns: 0,
            reports,
            recycled,
            shared,
        })
    }

    fn turns(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(BATCH_LEN);
        let mut idle_since_ns = None;
        loop {
            let now_ns = self.shared.clock.now_ns();
            if let Some(since_ns) = idle_since_ns.take() {
                self.spun_ns += now_ns - since_ns;
            }
            self.turn_ns = now_ns;
            self.cut(now_ns);
            if std::mem::take(&mut self.was_cut) {
                self.give_up_replies(now_ns);
            }
            if !self.go_on(now_ns) {
                self.hand_over(now_ns);
                return Ok(());
            }
            let mut worked = self.open_due(now_ns);
            worked |= self.send_due(now_ns);
            self.expire(now_ns);

            let timeout = self.timeout(now_ns)?;
            match self.ring.take() {
                None => worked |= self.take_events(&mut events, timeout)?,
                Some(ring) => {
                    let timeout = if self.polls { Duration::ZERO } else { timeout };
                    worked |= self.take_from_ring(ring, timeout)?;
                    if self.polls {
                        self.polls = self.take_events(&mut events, Duration::ZERO)?;
                    }
                }
            }
            for _ in 0..self.to_read.len() {
                let token = self.to_read.pop_front().expect("the list is this long");
                self.readable(token, false);
            }
            if !worked && timeout.is_zero() {
                idle_since_ns = Some(now_ns);
            }
        }
    }

    /// Handles what the poll reports within `timeout`. Returns whether there was anything.
    fn take_events(&mut self, events: &mut Events, timeout: Duration) -> io::Result<bool> {
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &*events {
            if event.token() == TIMER {
                continue;
            }
            if event.is_writable() || event.is_error() {
                self.writable(event.token());
            }
            if event.is_readable() || event.is_read_closed() {
                self.readable(event.token(), event.is_read_closed());
            }
        }
        Ok(!events.is_empty())
    }

    /// Ends the current part of the run if it is over. Returns whether there is another one.
    fn go_on(&mut self, now_ns: u64) -> bool {
        let control = &self.shared.control;
        match self.part {
            Part::Ramp if now_ns >= control.end_ns() => self.say_farewell(now_ns),
            Part::Ramp if self.ramp.due_ns() == u64::MAX && self.connecting.is_empty() => {
                let _ = self.reports.send(Report::Ready { open: self.open_count });
                self.part = Part::Ready;
            }
            Part::Ready if now_ns >= control.end_ns() => self.say_farewell(now_ns),
            Part::Ready if now_ns >= control.start_ns() => {
                self.part = Part::Load;
                self.start(control.start_ns(), control.end_ns());
            }
            Part::Load if now_ns >= control.end_ns() => self.end_load(now_ns),
            Part::Drain if self.is_drained(now_ns) => self.say_farewell(now_ns),
            Part::Farewell { until_ns } if now_ns >= until_ns || self.slots.iter().all(Option::is_none) => {
                return false;
            }
            _ => {}
        }
        true
    }

    fn start(&mut self, start_ns: u64, end_ns: u64) {
        let plan = &self.shared.plan;
        let share = |participants| Share { index: self.index, count: plan.threads, participants };
        let seed = self.rng.u64(..);
        match plan.load {
            Load::Open { rate_per_s } => {
                let participants = match plan.mode {
                    Mode::Echo => plan.connections,
                    Mode::Broadcast => plan.publishers,
                    Mode::Connect => plan.threads,
                };
                let schedule =
                    Schedule::new(plan.arrival, rate_per_s, share(participants), start_ns, end_ns, seed);
                self.schedule = Some(schedule);
            }
            Load::Closed { in_flight } => {
                let senders =
                    if plan.mode == Mode::Broadcast { share(plan.publishers).members() } else { u32::MAX };
                for (slot, conn) in self.slots.iter_mut().enumerate().take(senders as usize) {
                    if let Some(conn) = conn {
                        conn.traffic.owed = in_flight;
                        conn.queued = true;
                        self.to_flush.push_back(slot as u32);
                    }
                }
            }
        }
        if plan.churn_per_s > 0.0 {
            let schedule = Schedule::new(
                Default::default(),
                plan.churn_per_s,
                share(plan.connections),
                start_ns,
                end_ns,
                0,
            );
            self.churn = Some(schedule);
        }
    }

    /// The load is over once everything that was due in its time is sent, or that takes too long.
    fn end_load(&mut self, now_ns: u64) {
        let end_ns = self.shared.control.end_ns();
        let too_late = now_ns >= end_ns.saturating_add(self.shared.plan.drain_ns);
        if let Some(schedule) = &mut self.schedule {
            schedule.end_at(end_ns);
            while too_late && schedule.due_ns() != u64::MAX {
                self.book.scheduled(schedule.due_ns());
                schedule.advance();
            }
            let is_due = schedule.due_ns() != u64::MAX;
            let waits = self.backlog_count > 0 || (!self.waiting.is_empty() && self.is_replacing());
            if is_due || (waits && !too_late) {
                return;
            }
        }
        self.part = Part::Drain;
        self.schedule = None;
        self.churn = None;
        let control = &self.shared.control;
        for conn in self.slots.iter().flatten() {
            if conn.traffic.number < self.shared.plan.publishers {
                control.set_published(conn.traffic.number, conn.traffic.outstanding.next());
            }
        }
        control.publishing_done();
    }

    /// Whether everything has come back, or nothing more is awaited.
    fn is_drained(&self, now_ns: u64) -> bool {
        let control = &self.shared.control;
        let until_ns = control.end_ns().saturating_add(self.shared.plan.drain_ns);
        if now_ns >= until_ns {
            // What was lost of a broadcast is known once all threads have said what they sent.
            return control.published().is_some() || now_ns >= until_ns.saturating_add(SECOND_NS);
        }
        match self.shared.plan.mode {
            Mode::Echo => self.book.in_flight <= 0,
            Mode::Connect => self.waiting.is_empty() && self.slots.iter().all(Option::is_none),
            Mode::Broadcast => control.published().is_some_and(|published| {
                let all: u64 = published.map(u64::from).sum();
                self.book.delivered >= all * self.subscribers.len() as u64
            }),
        }
    }

    /// Settles the books, and starts to close what is open.
    fn say_farewell(&mut self, now_ns: u64) {
        self.part = Part::Farewell { until_ns: now_ns + FAREWELL_NS };
        self.settle_broadcast();
        let goodbye = self.shared.plan.goodbye;
        for slot in 0..self.slots.len() {
            self.settle(slot);
            let Some(conn) = &mut self.slots[slot] else { continue };
            let closing = match conn.stage {
                _ if goodbye != Goodbye::Close => {
                    if goodbye == Goodbye::Rst {
                        // Where it fails there is nothing left to reset.
                        let _ = SockRef::from(&conn.stream).set_linger(Some(Duration::ZERO));
                    }
                    false
                }
                Stage::Open | Stage::Leaving => conn.close(now_ns).is_ok(),
                Stage::Closing => true,
                Stage::Connecting | Stage::Upgrading(_) => false,
            };
            if !closing {
                self.remove(slot);
            }
        }
        self.open_count = 0;
    }

    /// Broadcast: counts what subscribers never got.
    fn settle_broadcast(&mut self) {
        let control = &self.shared.control;
        // A thread that waited in vain for the others to end their load has counts of none.
        let published: Vec<u32> = control.published().map_or_else(Vec::new, Iterator::collect);
        let lost: u64 =
            self.subscribers.iter().map(|subscriber| subscriber.lost(published.iter().copied())).sum();
        if lost > 0 {
            self.book.lost(self.book.record_from_ns, lost);
        }
    }

    /// Hands over what was recorded, if an interval or a part of the run is over.
    #[inline]
    pub(super) fn cut(&mut self, now_ns: u64) {
        let (mut cut_ns, mut measure_ns) = self.next_cut();
        while now_ns >= cut_ns {
            self.was_cut = true;
            self.hand_over(cut_ns);
            self.last_cut_ns = cut_ns;
            if cut_ns >= measure_ns {
                self.book.record_from_ns = measure_ns;
                self.book.record_until_ns = u64::MAX;
            } else {
                self.book.record_until_ns = measure_ns;
            }
            (cut_ns, measure_ns) = self.next_cut();
        }
    }

    /// When the next hand-over is due, and when the measured part begins. Every thread comes to the same.
    fn next_cut(&self) -> (u64, u64) {
        let control = &self.shared.control;
        let (start_ns, end_ns) = (control.start_ns(), control.end_ns());
        let measure_ns = start_ns.saturating_add(self.shared.plan.warmup_ns);
        let mut cut_ns = self.last_cut_ns + self.shared.plan.interval_ns;
        for turning_point_ns in [start_ns, measure_ns, end_ns] {
            if turning_point_ns > self.last_cut_ns {
                cut_ns = cut_ns.min(turning_point_ns);
            }
        }
        (cut_ns, measure_ns)
    }

    fn hand_over(&mut self, until_ns: u64) {
        let cpu_ns = thread_cpu_ns();
        let mut full = self.recycled.try_recv().unwrap_or_default();
        std::mem::swap(&mut full, &mut self.book.slice);
        // Polling for nothing is waiting: it would hide how much room there is.
        full.cpu_ns = (cpu_ns - self.cpu_ns).saturating_sub(self.spun_ns);
        full.in_flight = self.book.in_flight.max(0) as u64;
        full.connections_open = self.open_count.into();
        self.cpu_ns = cpu_ns;
        self.spun_ns = 0;
        let publications = std::mem::take(&mut self.book.publications.finished);
        let _ = self.reports.send(Report::Slice { thread: self.index, until_ns, slice: full, publications });
    }

    /// Opens the connections of the ramp that are due.
    fn open_due(&mut self, now_ns: u64) -> bool {
        let mut worked = false;
        if self.timed_out_count >= CONNECTING_MAX {
            // A server that does not answer so many will not answer the others either.
            self.ramp.end_at(0);
        }
        while self.ramp.due_ns() <= now_ns && self.connecting.len() < CONNECTING_MAX {
            let slot = self.ramp.member();
            self.ramp.advance();
            self.open(slot as usize, now_ns);
            worked = true;
        }
        worked
    }

    /// Sends what is due, at most [`BATCH_LEN`] messages.
    fn send_due(&mut self, now_ns: u64) -> bool {
        let mut worked = self.replace_due(now_ns);
        if let Some(mut schedule) = self.schedule.take() {
            for _ in 0..BATCH_LEN {
                let due_ns = schedule.due_ns();
                if due_ns > now_ns {
                    break;
                }
                self.enqueue(schedule.member(), due_ns);
                schedule.advance();
                worked = true;
            }
            self.schedule = Some(schedule);
        }
        for _ in 0..BATCH_LEN {
            let Some(slot) = self.to_flush.pop_front() else { break };
            self.flush(slot as usize);
            worked = true;
        }
        worked
    }

    /// How long the poll may sleep. Sets the timer if that is not a matter of milliseconds.
    fn timeout(&mut self, now_ns: u64) -> io::Result<Duration> {
        let ramp_ns = if self.connecting.len() < CONNECTING_MAX { self.ramp.due_ns() } else { u64::MAX };
        let schedules = [&self.schedule, &self.churn].into_iter().flatten().map(Schedule::due_ns);
        let start_ns = if self.part == Part::Ready { self.shared.control.start_ns() } else { NOT_YET };
        let due_ns = schedules.fold(ramp_ns.min(start_ns), u64::min);
        let wake_ns = due_ns.saturating_sub(SPIN_NS);
        if !self.to_read.is_empty() || !self.to_flush.is_empty() || wake_ns <= now_ns {
            return Ok(Duration::ZERO);
        }
        let sleep_ns = wake_ns - now_ns;
        if self.ring.is_some() {
            return Ok(Duration::from_nanos(sleep_ns.min(SLEEP_MAX_NS)));
        }
        if sleep_ns < SLEEP_MAX_NS {
            // The poll's own timeout has milliseconds only.
            let sleep = TimeSpec::from_duration(Duration::from_nanos(sleep_ns));
            self.timer.set(Expiration::OneShot(sleep), TimerSetTimeFlags::empty())?;
        }
        Ok(Duration::from_nanos(SLEEP_MAX_NS))
    }
}

/// CPU time of this thread so far, in ns.
fn thread_cpu_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0, |time| Duration::from(time).as_nanos() as u64)
}
