//! What the threads of a run share: when it starts and ends, and a few numbers that cross threads once.
//!
//! Nothing here is touched for a message. Load threads read two words once a turn; all else happens at the
//! turning points of the run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::result::recorder::ErrorKind;

/// A point in time that is not known yet.
pub(super) const NOT_YET: u64 = u64::MAX;

/// Shared by all threads of a run.
#[derive(Debug)]
pub(super) struct Control {
    /// When the load starts (warm-up included), or [`NOT_YET`]. Written once, with enough of a lead that
    /// every thread has read it when it comes.
    start_ns: AtomicU64,
    /// When the load ends. Only ever lowered.
    end_ns: AtomicU64,
    /// Connections that were open when the load started: each is to get every publication.
    subscribers: AtomicU32,
    /// How many messages each publisher has sent; final once `publishing` is 0.
    published: Box<[AtomicU32]>,
    /// Threads that may still publish.
    publishing: AtomicU32,
    /// The first thing that went wrong with a connection, in words.
    first_failure: Mutex<Option<(ErrorKind, String)>>,
}

impl Control {
    /// For a run of `threads` threads and `publishers` publishers.
    pub(super) fn new(threads: u32, publishers: u32) -> Self {
        Self {
            start_ns: AtomicU64::new(NOT_YET),
            end_ns: AtomicU64::new(NOT_YET),
            subscribers: AtomicU32::new(0),
            published: (0..publishers).map(|_| AtomicU32::new(0)).collect(),
            publishing: AtomicU32::new(threads),
            first_failure: Mutex::new(None),
        }
    }

    /// Announces the load: from `start_ns` to `end_ns`, to `subscribers` connections.
    pub(super) fn start(&self, start_ns: u64, end_ns: u64, subscribers: u32) {
        self.subscribers.store(subscribers, Ordering::Relaxed);
        self.end_ns.fetch_min(end_ns, Ordering::Relaxed);
        self.start_ns.store(start_ns, Ordering::Release);
    }

    /// When the load starts, or [`NOT_YET`].
    pub(super) fn start_ns(&self) -> u64 {
        self.start_ns.load(Ordering::Acquire)
    }

    /// When the load ends, or [`NOT_YET`].
    #[inline]
    pub(super) fn end_ns(&self) -> u64 {
        self.end_ns.load(Ordering::Relaxed)
    }

    /// Ends the load at `end_ns`, if it would go on for longer.
    pub(super) fn end_at(&self, end_ns: u64) {
        self.end_ns.fetch_min(end_ns, Ordering::Relaxed);
    }

    /// Connections that are to get every publication.
    pub(super) fn subscribers(&self) -> u32 {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// Says how many messages a publisher has sent in all.
    pub(super) fn set_published(&self, publisher: u32, count: u32) {
        self.published[publisher as usize].store(count, Ordering::Relaxed);
    }

    /// Says that this thread publishes nothing any more.
    pub(super) fn publishing_done(&self) {
        self.publishing.fetch_sub(1, Ordering::Release);
    }

    /// How many messages each publisher has sent, or `None` while one may still send.
    pub(super) fn published(&self) -> Option<impl ExactSizeIterator<Item = u32>> {
        (self.publishing.load(Ordering::Acquire) == 0)
            .then(|| self.published.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Keeps the first failure, for a run that comes to nothing.
    pub(super) fn failed(&self, kind: ErrorKind, what: impl FnOnce() -> String) {
        let mut first = self.first_failure.lock().expect("no thread panics with this lock");
        first.get_or_insert_with(|| (kind, what()));
    }

    /// The first failure.
    pub(super) fn first_failure(&self) -> Option<(ErrorKind, String)> {
        self.first_failure.lock().expect("no thread panics with this lock").clone()
    }
}
