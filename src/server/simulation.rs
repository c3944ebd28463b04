//! One worker by itself, on the calling thread: on the simulator it is the whole server but for the kernel,
//! deterministic from a seed; on a backend that does nothing it is what a benchmark measures.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::worker::Worker;
use super::{Counters, Shared, StartError};
use crate::config::Config;
use crate::net::Backend;
use crate::net::sim::{Network, SimBackend};

/// A worker on any backend, which the caller turns. For tests, fuzzing and benchmarks.
pub struct OneWorker<B> {
    shared: Arc<Shared>,
    worker: Worker<B>,
}

impl<B: Backend> OneWorker<B> {
    /// A server as `config` has it, of one worker, whose connections are `backend`'s.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config, backend: B) -> Result<Self, StartError> {
        let shared = Arc::new(Shared::new(config, 1)?);
        Ok(Self { worker: Worker::new(0, shared.clone(), backend), shared })
    }

    /// One turn. Returns whether there will be another.
    ///
    /// # Errors
    /// The backend failed.
    #[inline]
    pub fn turn(&mut self) -> io::Result<bool> {
        self.worker.turn()
    }

    /// Its backend.
    pub fn backend(&self) -> &B {
        self.worker.backend()
    }

    /// Asks the worker to drain.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// What the worker has counted.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters[0]
    }
}

/// A worker that serves the peers of a [`Network`].
pub struct Simulation {
    network: Network,
    worker: OneWorker<SimBackend>,
}

impl Simulation {
    /// A server as `config` has it, whose network is `network`.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config, network: &Network) -> Result<Self, StartError> {
        let backend = SimBackend::new(network, config.receive_buffer_bytes as usize);
        Ok(Self { network: network.clone(), worker: OneWorker::new(config, backend)? })
    }

    /// Serves until nothing can happen any more without time passing, or until the drain is over. Returns the
    /// longest send queue in octets that any turn ended with.
    ///
    /// # Panics
    /// If `turns_max` turns do not suffice.
    pub fn run(&mut self, turns_max: u32) -> usize {
        let mut queued_max = 0;
        for _ in 0..turns_max {
            let goes_on = self.worker.turn().expect("the simulator does not fail");
            queued_max = queued_max.max(self.worker.backend().queued_max());
            if !goes_on || self.network.is_quiet() {
                return queued_max;
            }
        }
        panic!("still busy after {turns_max} turns");
    }

    /// The same, and lets `time` pass meanwhile.
    ///
    /// # Panics
    /// If `turns_max` turns do not suffice.
    pub fn run_for(&mut self, time: Duration, turns_max: u32) -> usize {
        self.network.let_pass(time);
        self.run(turns_max)
    }

    /// Asks the worker to drain.
    pub fn stop(&self) {
        self.worker.stop();
    }

    /// What the worker has counted.
    pub fn counters(&self) -> &Counters {
        self.worker.counters()
    }
}
