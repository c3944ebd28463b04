//! One worker by itself, on the calling thread: on the simulator it is the whole server but for the kernel,
//! deterministic from a seed; on a backend that does nothing it is what a benchmark measures.

use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::date::WallClock;
use super::worker::Worker;
use super::{Counters, Shared, StartError, start_tls};
use crate::config::Config;
use crate::memory::Meter;
use crate::net::Backend;
use crate::net::sim::{Network, SimBackend};
use crate::net::transport::{Driver, Transport};
use crate::net::uring::sim::SimUringBackend;

/// The time of day when a simulation starts, in seconds since 1970: that of the examples in RFC 9110 §5.6.7.
const START_S: u64 = 784_111_777;

/// A worker on any backend, which the caller turns. For tests, fuzzing and benchmarks.
pub struct OneWorker<B> {
    shared: Arc<Shared>,
    worker: Worker<B>,
}

impl<B: Backend> OneWorker<B> {
    /// A server as `config` has it, of one worker, whose connections are `backend`'s, which `meter` counts.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config, backend: B, meter: Meter) -> Result<Self, StartError> {
        let wall_clock = WallClock::Simulated(UNIX_EPOCH + Duration::from_secs(START_S));
        let shared = Arc::new(Shared::new(config, 1, wall_clock)?);
        Ok(Self { worker: Worker::new(0, shared.clone(), backend, meter), shared })
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

    /// What its peers make it hold, in octets, as its ceiling counts it.
    pub fn memory_bytes(&self) -> usize {
        self.worker.memory_bytes()
    }
}

/// A worker that serves the peers of a [`Network`].
pub struct Simulation {
    network: Network,
    worker: Box<dyn Simulated>,
    memory_bytes_max: usize,
}

/// What a simulated server drives its connections with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Readiness, as epoll has it.
    Readiness,
    /// The driver of io_uring, on a ring in memory.
    Ring,
}

/// A worker on any simulated backend.
trait Simulated {
    fn turn(&mut self) -> bool;
    fn queued_max(&self) -> usize;
    fn memory_bytes(&self) -> usize;
    fn stop(&self);
    fn counters(&self) -> &Counters;
}

impl<D: Driver> Simulated for OneWorker<Transport<D>> {
    fn turn(&mut self) -> bool {
        self.worker.turn().expect("the simulator does not fail")
    }

    fn queued_max(&self) -> usize {
        self.backend().queued_max()
    }

    fn memory_bytes(&self) -> usize {
        Self::memory_bytes(self)
    }

    fn stop(&self) {
        Self::stop(self);
    }

    fn counters(&self) -> &Counters {
        Self::counters(self)
    }
}

/// Receive buffers of a simulated ring: few, so that they run out.
const BUFFER_COUNT: u16 = 4;

impl Simulation {
    /// A server as `config` has it, whose network is `network`. It speaks TLS if the configuration listens with it.
    ///
    /// # Errors
    /// The configuration contradicts itself, or has files that cannot be used.
    pub fn new(config: Config, network: &Network, drive: Drive) -> Result<Self, StartError> {
        let (buffer_len, meter) = (config.receive_buffer_bytes as usize, Meter::default());
        let servers = vec![start_tls(&config)?];
        let handshakes_max = config.tls_handshakes_max as usize;
        let worker: Box<dyn Simulated> = match drive {
            Drive::Readiness => {
                let backend = SimBackend::new(network, buffer_len, meter.clone());
                let backend = backend.with_tls(servers, handshakes_max);
                Box::new(OneWorker::new(config, backend, meter)?)
            }
            Drive::Ring => {
                let backend = SimUringBackend::simulated(network, buffer_len, BUFFER_COUNT, meter.clone());
                let backend = backend.with_tls(servers, handshakes_max);
                Box::new(OneWorker::new(config, backend, meter)?)
            }
        };
        Ok(Self { network: network.clone(), worker, memory_bytes_max: 0 })
    }

    /// Serves until nothing can happen any more without time passing, or until the drain is over. Returns the
    /// longest send queue in octets that any turn ended with.
    ///
    /// # Panics
    /// If `turns_max` turns do not suffice.
    pub fn run(&mut self, turns_max: u32) -> usize {
        let mut queued_max = 0;
        for _ in 0..turns_max {
            let goes_on = self.worker.turn();
            queued_max = queued_max.max(self.worker.queued_max());
            self.memory_bytes_max = self.memory_bytes_max.max(self.worker.memory_bytes());
            if !goes_on || self.network.is_quiet() {
                return queued_max;
            }
        }
        panic!("still busy after {turns_max} turns");
    }

    /// Serves for so many turns.
    pub fn turns(&mut self, count: u32) {
        for _ in 0..count {
            self.worker.turn();
            self.memory_bytes_max = self.memory_bytes_max.max(self.worker.memory_bytes());
        }
    }

    /// Serves until nothing can happen any more, and lets `time` pass meanwhile.
    ///
    /// # Panics
    /// If `turns_max` turns do not suffice.
    pub fn run_for(&mut self, time: Duration, turns_max: u32) -> usize {
        self.network.let_pass(time);
        self.run(turns_max)
    }

    /// The most that peers have made the worker hold at the end of any turn, in octets.
    pub fn memory_bytes_max(&self) -> usize {
        self.memory_bytes_max
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
