//! The hiccup meter: a thread that only sleeps a millisecond, wakes, and writes down how late it was woken.
//! What it sees, the machine did: neither the server nor our own load threads can have caused less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::result::recorder::{Metric, Slice};

const NAP: Duration = Duration::from_millis(1);

/// A running meter.
#[derive(Debug)]
pub(super) struct HiccupMeter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    full: Receiver<Box<Slice>>,
    empty: SyncSender<Box<Slice>>,
}

impl HiccupMeter {
    /// Starts one.
    ///
    /// # Errors
    /// No thread could be made.
    pub(super) fn start() -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (full_sender, full) = sync_channel(1);
        let (empty, empty_receiver) = sync_channel::<Box<Slice>>(2);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("hiccup".into()).spawn(move || {
            // By default the kernel may round a sleep up by 50 us to save power: that is no hiccup.
            let _ = nix::sys::prctl::set_timerslack(1);
            let mut slice = Box::<Slice>::default();
            while !stopped.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(NAP);
                let late = before.elapsed().saturating_sub(NAP);
                slice.record(Metric::Hiccup, late.as_nanos() as u64);
                // Somebody has asked: an empty slice is there to be exchanged for this one.
                if let Ok(mut other) = empty_receiver.try_recv() {
                    std::mem::swap(&mut other, &mut slice);
                    let _ = full_sender.send(other);
                }
            }
        })?;
        Ok(Self { stop, thread, full, empty })
    }

    /// What was recorded since the last call; takes about a millisecond.
    pub(super) fn take(&self, mut empty: Box<Slice>) -> Box<Slice> {
        empty.reset();
        if self.empty.send(empty).is_err() {
            return Box::default();
        }
        self.full.recv().unwrap_or_default()
    }

    /// Ends it.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop((self.full, self.empty));
        // It has nothing to tell any more.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nap_is_recorded_once() {
        let meter = HiccupMeter::start().unwrap();
        let mut naps = 0;
        let started = Instant::now();
        while naps < 20 {
            let slice = meter.take(Box::default());
            naps += slice.recorder(Metric::Hiccup).count();
        }
        assert!(started.elapsed() >= 20 * NAP, "it cannot have slept less");
        meter.stop();
    }
}
