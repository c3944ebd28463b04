//! A crowd at work on a thread of its own, which gives way to everybody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::crowd::{Crowd, Manners, Plan, Tally};

/// How much less than the probe the attackers' thread may have of their core.
const NICENESS: i32 = 10;

pub(crate) struct Attackers {
    thread: Option<JoinHandle<std::io::Result<()>>>,
    shared: Arc<Shared>,
    count: u64,
}

#[derive(Default)]
struct Shared {
    tally: Tally,
    is_over: AtomicBool,
}

impl Attackers {
    pub(crate) fn start(address: SocketAddr, plans: Vec<Plan>, manners: Manners) -> Self {
        let count = plans.len() as u64;
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = thread::spawn(move || {
            rustix::process::nice(NICENESS)?;
            let mut crowd = Crowd::new(address, plans, manners, &of_thread.tally)?;
            crowd.run(|| of_thread.is_over.load(Relaxed))
        });
        Self { thread: Some(thread), shared, count }
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// Waits until each has been let in once, has been turned away, or `patience` is over.
    pub(crate) fn wait_until_open(&self, patience: Duration) {
        self.wait(patience, |tally| tally.opened.load(Relaxed) + tally.cut_off.load(Relaxed) >= self.count);
    }

    /// Waits until each has said what it says at once, has been cut off, or `patience` is over.
    pub(crate) fn wait_until_said(&self, patience: Duration) {
        self.wait(patience, |tally| tally.said.load(Relaxed) + tally.cut_off.load(Relaxed) >= self.count);
    }

    fn wait(&self, patience: Duration, is_done: impl Fn(&Tally) -> bool) {
        let start = Instant::now();
        while !is_done(self.tally()) && start.elapsed() < patience && !self.has_ended() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Closes every connection, and waits for that.
    pub(crate) fn stop(&mut self) -> std::io::Result<()> {
        self.shared.is_over.store(true, Relaxed);
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("the attackers' thread panicked"))
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
