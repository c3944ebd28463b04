//! Workers, sessions, applications and the hub.
//!
//! [`Server::start`] binds every listener, starts a [`worker`] for each core, and returns once all of them
//! serve. A [`session`] is one connection's life; an [`app`] is what its path does; the [`hub`] is what
//! connects connections.

mod app;
mod ceiling;
mod date;
mod deadlines;
pub mod http;
mod hub;
mod inbox;
mod machine;
mod metrics;
mod session;
mod simulation;
mod upkeep;
mod worker;

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

pub use metrics::{Counter, Counters};
pub use simulation::{Drive, OneWorker, Simulation};

use crate::config::{Config, Io, Mode};
use crate::memory::Meter;
use crate::net::epoll::EpollBackend;
use crate::net::tls::{TlsServer, TlsSetupError};
use crate::net::uring::{self, UringBackend};
use crate::net::{self, Backend, Bound, Claim, Endpoint, Listener};
use crate::proto::handshake::HandshakeLimits;
use ceiling::Ceiling;
use date::WallClock;
use hub::Directory;
use inbox::Inbox;
use session::Rules;
use upkeep::Upkeep;
use worker::Worker;

/// Why a server did not start. One line that names the flag and the cause.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Flags that contradict each other or cannot be had.
    #[error("{0}")]
    Config(String),
    /// An address that cannot be listened on.
    #[error("--listen {endpoint}: {source}{}", hint(source))]
    Listen {
        /// As it was given.
        endpoint: Endpoint,
        /// What the kernel said.
        source: io::Error,
    },
    /// The limit of open files can neither be read nor raised.
    #[error("the limit of open files: {0}")]
    Nofile(io::Error),
    /// Certificates, keys or names that cannot be used.
    #[error("{flag}: {source}")]
    Tls {
        /// The flag that named it.
        flag: &'static str,
        /// What is wrong.
        source: TlsSetupError,
    },
    /// `--io uring` where that does not work.
    #[error("--io uring: {0}")]
    Uring(uring::Unavailable),
    /// A worker that could not be set up.
    #[error("--workers: worker {worker} could not start: {source}")]
    Worker {
        /// Its index.
        worker: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        // It says so itself.
        _ if error.raw_os_error().is_none() => "",
        io::ErrorKind::AddrInUse => {
            " (another process listens there; stop it, or choose another port, or port 0)"
        }
        io::ErrorKind::PermissionDenied => " (ports below 1024 and other users' folders need privileges)",
        io::ErrorKind::AddrNotAvailable => " (this machine does not have that address)",
        _ => "",
    }
}

/// What all workers can see. Nothing in it is written for a message.
struct Shared {
    config: Config,
    rules: Rules,
    inboxes: Arc<[Inbox]>,
    directory: Arc<Directory>,
    ceiling: Ceiling,
    counters: Vec<Arc<Counters>>,
    wall_clock: WallClock,
    /// The paths of Unix sockets, until a stop.
    claims: Mutex<Vec<Claim>>,
}

impl Shared {
    fn new(config: Config, workers: usize, wall_clock: WallClock) -> Result<Self, StartError> {
        config.check().map_err(StartError::Config)?;
        let buffers_bytes = config.receive_buffers_kept();
        let memory_bytes_max = config.memory_bytes_max.unwrap_or_else(|| machine::memory_bytes() / 2);
        let least = Ceiling::least(workers, buffers_bytes);
        if memory_bytes_max < least && config.memory_bytes_max.is_some() {
            return Err(StartError::Config(format!(
                "--memory-bytes-max {memory_bytes_max} is not enough for {workers} workers and their receive buffers: \
                 use at least {least}, or lower --workers, --receive-buffers or --receive-buffer-bytes"
            )));
        }
        Ok(Self {
            ceiling: Ceiling::new(memory_bytes_max.max(least), workers, buffers_bytes),
            rules: Rules {
                mode: config.mode,
                limits: config.limits(),
                handshake: HandshakeLimits {
                    head_bytes_max: config.header_bytes_max as usize,
                    header_count_max: config.headers_max.into(),
                    ..HandshakeLimits::default()
                },
                policy: config.upgrade_policy().map_err(StartError::Config)?,
                deflate: config.deflate_policy(),
            },
            inboxes: (0..workers).map(|_| Inbox::new(config.inbox_bytes_max)).collect(),
            directory: Arc::new(Directory::new(workers)),
            counters: (0..workers).map(|_| Arc::default()).collect(),
            wall_clock,
            claims: Mutex::default(),
            config,
        })
    }

    fn claims(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        // While the listeners are open: a successor that waits takes the paths over before they are closed.
        let claims = std::mem::take(&mut *self.claims());
        drop(claims);
        self.inboxes.iter().for_each(Inbox::stop);
    }
}

/// A running server. It drains when it is [stopped](Server::stop) or dropped.
pub struct Server {
    endpoints: Vec<Endpoint>,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    tls: Option<TlsServer>,
    io: Io,
    nofile: u64,
}

impl Server {
    /// Binds every listener and starts every worker.
    ///
    /// # Errors
    /// Something cannot be had. Then nothing was started.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let count = config.workers.map_or(cores.len().max(1), usize::from);
        let shared = Arc::new(Shared::new(config, count, WallClock::System)?);
        let config = &shared.config;
        let tls = start_tls(config)?;
        let nofile = net::raise_nofile().map_err(StartError::Nofile)?;
        let mut listeners: Vec<Vec<Listener>> = (0..count).map(|_| Vec::new()).collect();
        let mut endpoints = Vec::new();
        for endpoint in &config.listen {
            let Bound { endpoint: real, listeners: mut sockets, claim } =
                net::bind(endpoint, config.backlog, count)
                    .map_err(|source| StartError::Listen { endpoint: endpoint.clone(), source })?;
            shared.claims().extend(claim);
            if let (Endpoint::Tls(_), Some(tls)) = (&real, &tls) {
                sockets.iter_mut().for_each(|socket| socket.speak_tls(tls.clone()));
            }
            endpoints.push(real);
            listeners.iter_mut().zip(sockets).for_each(|(listeners, socket)| listeners.push(socket));
        }
        let (io, workers) = (config.io, Vec::new());
        let mut server = Self { endpoints, shared: shared.clone(), workers, tls, io, nofile };
        let (tried, is_tried) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let mut starts = Vec::new();
        for index in 0..count {
            // Workers beyond the cores share them.
            let core = cores.get(index % cores.len().max(1)).copied().filter(|_| !shared.config.no_pin);
            let (shared, tried, ready) = (shared.clone(), tried.clone(), ready.clone());
            let (start, is_started) = mpsc::channel();
            let worker = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                work(index, shared, tried, is_started, ready)
            });
            server.workers.push(worker.map_err(|source| StartError::Worker { worker: index, source })?);
            starts.push(start);
        }
        drop((tried, ready));
        for result in is_tried {
            match (result, shared.config.io) {
                (Ok(()), _) => {}
                (Err(error), Io::Uring) => return Err(StartError::Uring(error)),
                (Err(error), _) => {
                    if server.io != Io::Epoll {
                        tracing::warn!("epoll is used: {error}");
                    }
                    server.io = Io::Epoll;
                }
            }
        }
        if server.io == Io::Auto {
            server.io = Io::Uring;
        }
        for (start, listeners) in starts.into_iter().zip(listeners) {
            // A worker that is gone has sent its error, which comes next.
            let _ = start.send((server.io, listeners));
        }
        for (worker, result) in is_ready {
            // On an error `server` is dropped, which stops and joins the workers that did start.
            result.map_err(|source| StartError::Worker { worker, source })?;
        }
        server.say_who_may_connect();
        Ok(server)
    }

    /// A browser reaches what its user reaches, localhost too, and asks for no leave to open a WebSocket.
    fn say_who_may_connect(&self) {
        let rules = &self.shared.rules;
        let is_tcp = |endpoint: &Endpoint| !matches!(endpoint, Endpoint::Unix(_));
        if rules.mode != Mode::Raw && rules.policy.allows_every_origin() && self.endpoints.iter().any(is_tcp)
        {
            tracing::info!(
                "web pages of any site can reach this server through a visitor's browser; \
                 --allow-origin same-host or --allow-origin ORIGIN accepts only those of its own host, or of ORIGIN"
            );
        }
    }

    /// Where it listens, with real ports, in the order of `--listen`.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Where clients connect to, in the same order.
    pub fn urls(&self) -> impl Iterator<Item = String> {
        self.endpoints.iter().map(|endpoint| match endpoint {
            Endpoint::Tcp(address) => format!("ws://{address}"),
            Endpoint::Tls(address) => format!("wss://{address}"),
            Endpoint::Unix(path) => format!("ws+unix:{}", path.display()),
        })
    }

    /// The SHA-256 fingerprint of the self-signed certificate in hex, if there is one.
    pub fn fingerprint(&self) -> Option<&str> {
        self.tls.as_ref()?.fingerprint()
    }

    /// Reads certificates and keys again, for connections that are accepted from then on, and logs one line. What
    /// cannot be used leaves all as it was. `None` without TLS.
    pub fn reloader(&self) -> Option<impl Fn() + Send + 'static> {
        let tls = self.tls.clone()?;
        Some(move || match tls.reload() {
            Ok(reloaded) => tracing::info!("{reloaded}"),
            Err(error) => tracing::error!("the certificates stay as they were: {error}"),
        })
    }

    /// The interface that its workers use: never [`Io::Auto`].
    pub fn io(&self) -> Io {
        self.io
    }

    /// How many files it may open, connections among them.
    pub fn nofile(&self) -> u64 {
        self.nofile
    }

    /// How many workers it has.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// Looks after the memory of this process from now on, on a thread of its own that ends with the server: the ceiling
    /// learns what the process really takes, and `give_back`, which has malloc give back what it keeps, is called when
    /// the ceiling is near or a peak is over.
    ///
    /// For a process that does nothing else: the memory of others would count as the server's.
    pub fn look_after_memory(&self, give_back: impl Fn() + Send + 'static) {
        let shared = Arc::downgrade(&self.shared);
        std::thread::spawn(move || {
            let (mut upkeep, resident) = (Upkeep::default(), machine::Resident::new());
            while let Some(shared) = shared.upgrade() {
                upkeep.look(&shared.ceiling, || resident.bytes(), &give_back);
                drop(shared);
                std::thread::sleep(upkeep::PERIOD);
            }
        });
    }

    /// What each worker has counted.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.shared.counters
    }

    /// The sum of a counter over all workers.
    pub fn total(&self, counter: impl Fn(&Counters) -> &Counter) -> u64 {
        self.shared.counters.iter().map(|counters| counter(counters).value()).sum()
    }

    /// Begins to drain: nothing more is accepted, and every peer gets a Close within `drain_ms`. Paths of
    /// Unix sockets are given up first; if another server waits for one, it has up to 3 s to take it over.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// [`Server::stop`], for another thread.
    pub fn stopper(&self) -> impl Fn() + Send + 'static {
        let shared = self.shared.clone();
        move || shared.stop()
    }

    /// Waits until every worker has ended, which after [`Server::stop`] they do.
    ///
    /// # Errors
    /// What ended a worker before its time.
    ///
    /// # Panics
    /// If a worker did.
    pub fn join(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for worker in self.workers.drain(..) {
            result = result.and(worker.join().expect("a worker panicked"));
        }
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if !thread::panicking() {
            let _ = self.end();
        }
    }
}

/// Reads certificates and keys, if there is a listener for them.
fn start_tls(config: &Config) -> Result<Option<TlsServer>, StartError> {
    let Some(options) = config.tls_options() else { return Ok(None) };
    let (tls, warnings) = TlsServer::new(options)
        .map_err(|source| StartError::Tls { flag: config.tls_flag(source.file.as_deref()), source })?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(Some(tls))
}

/// The whole life of a worker's thread. A ring is made on the thread that uses it, and no worker accepts
/// anything before every worker's ring was tried.
fn work(
    index: usize,
    shared: Arc<Shared>,
    tried: mpsc::Sender<Result<(), uring::Unavailable>>,
    is_started: mpsc::Receiver<(Io, Vec<Listener>)>,
    ready: mpsc::Sender<(usize, io::Result<()>)>,
) -> io::Result<()> {
    let config = &shared.config;
    let options = config.uring_options();
    let meter = Meter::default();
    let (result, uring) = match config.io {
        Io::Epoll => (Ok(()), None),
        Io::Auto | Io::Uring => match UringBackend::new(&options, meter.clone()) {
            Ok(backend) => (Ok(()), Some(backend)),
            Err(error) => (Err(error), None),
        },
    };
    // Whoever is not there any more does not start this worker either.
    let _ = tried.send(result);
    drop(tried);
    let Ok((io, listeners)) = is_started.recv() else { return Ok(()) };
    let handshakes_max = config.tls_handshakes_max as usize;
    match uring.filter(|_| io != Io::Epoll) {
        Some(backend) => {
            let backend = backend.listen(listeners, handshakes_max);
            serve(index, shared, backend, meter, ready)
        }
        None => {
            let buffer = config.receive_buffer_bytes as usize;
            let backend = EpollBackend::new(listeners, buffer, handshakes_max, meter.clone());
            serve(index, shared, backend, meter, ready)
        }
    }
}

/// A worker, once its backend was made.
fn serve<B: Backend>(
    index: usize,
    shared: Arc<Shared>,
    backend: io::Result<B>,
    meter: Meter,
    ready: mpsc::Sender<(usize, io::Result<()>)>,
) -> io::Result<()> {
    // The receiver of `ready` is gone if an earlier worker has failed: then a stop is on its way.
    let backend = match backend {
        Ok(backend) => backend,
        Err(error) => {
            let _ = ready.send((index, Err(error)));
            return Ok(());
        }
    };
    // One worker that ends, in whatever way, ends them all: a server never limps on.
    let _stop = StopOnDrop(&shared);
    let worker = Worker::new(index, shared.clone(), backend, meter);
    let _ = ready.send((index, Ok(())));
    drop(ready);
    let result = worker.run();
    tracing::info!(worker = index, counters = %shared.counters[index], "ended");
    result
}

struct StopOnDrop<'a>(&'a Shared);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
