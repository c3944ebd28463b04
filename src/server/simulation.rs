//! One worker on the simulator: the whole server but for the kernel, deterministic from a seed.

use std::sync::Arc;
use std::time::Duration;

use super::worker::Worker;
use super::{Counters, Shared, StartError};
use crate::config::Config;
use crate::net::sim::{Network, SimBackend};

/// A worker that serves the peers of a [`Network`]. For tests and fuzzing.
pub struct Simulation {
    network: Network,
    shared: Arc<Shared>,
    worker: Worker<SimBackend>,
}

impl Simulation {
    /// A server as `config` has it, of one worker, whose network is `network`.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config, network: &Network) -> Result<Self, StartError> {
        let backend = SimBackend::new(network, config.receive_buffer_bytes as usize);
        let shared = Arc::new(Shared::new(config, 1)?);
        let worker = Worker::new(0, shared.clone(), backend);
        Ok(Self { network: network.clone(), shared, worker })
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

    /// Asks the server to drain.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// What the worker has counted.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters[0]
    }
}
