//! A crowd at work, on threads of its own which give way to everybody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::crowd::{Crowd, Manners, Plan, Tally};

/// How much less than the probe the attackers' thread may have of their core.
const NICENESS: i32 = 10;

pub(crate) struct Attackers {
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    shared: Arc<Shared>,
    count: u64,
}

#[derive(Default)]
struct Shared {
    tally: Tally,
    is_over: AtomicBool,
}

impl Attackers {
    /// Lets `plans` loose, spread over so many threads.
    pub(crate) fn start(address: SocketAddr, plans: &[Plan], manners: Manners, threads: usize) -> Self {
        let count = plans.len() as u64;
        let shared = Arc::new(Shared::default());
        let attack = |first| {
            let plans: Vec<Plan> = plans.iter().skip(first).step_by(threads).cloned().collect();
            let shared = shared.clone();
            thread::spawn(move || {
                rustix::process::nice(NICENESS)?;
                let mut crowd = Crowd::new(address, plans, manners, &shared.tally)?;
                crowd.run(|| shared.is_over.load(Relaxed))
            })
        };
        let threads = (0..threads.min(plans.len())).map(attack).collect();
        Self { threads, shared, count }
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
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Closes every connection, and waits for that.
    ///
    /// # Errors
    /// What ended a thread before its time.
    pub(crate) fn stop(&mut self) -> std::io::Result<()> {
        self.shared.is_over.store(true, Relaxed);
        let join = |thread: JoinHandle<_>| thread.join().expect("an attackers' thread panicked");
        self.threads.drain(..).map(join).fold(Ok(()), std::io::Result::and)
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
