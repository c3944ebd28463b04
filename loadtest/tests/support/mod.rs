//! A WebSocket server with known faults, to hold the load generator's numbers against.
//!
//! Plain threads, one for each connection. The faults strike by the count of messages, so that they are the
//! same in every run, and [`Tally`] says how many there really were. A stall stops the whole server: a
//! message that arrives at a time `t` within it is answered at its end.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use resound::proto::handshake::{HandshakeLimits, HeadScanner, Request, UpgradePolicy};
use resound::proto::{Codecs, Connection, Handler, Limits, Message, Replies, Reply, State};

/// What the server does wrong. The default does nothing wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Every so often it does nothing for so long: (period, stall).
    pub stall: Option<(Duration, Duration)>,
    /// Of so many messages, one is dropped.
    pub drop_one_in: Option<u64>,
    /// Of so many messages, one is sent twice.
    pub duplicate_one_in: Option<u64>,
    /// Of so many messages, one is sent with an octet changed.
    pub corrupt_one_in: Option<u64>,
    /// Of so many messages, one is sent after its successor on the same connection.
    pub reorder_one_in: Option<u64>,
    /// How long it takes to accept a connection.
    pub accept_delay: Duration,
    /// How many connections it serves; the others it accepts and leaves alone.
    pub served_max: Option<usize>,
    /// Every message goes to all connections.
    pub broadcast: bool,
    /// What it does instead of a handshake.
    pub instead: Option<Instead>,
}

/// What a server can do instead of being one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instead {
    /// It answers every request with 404.
    NotFound,
    /// It closes every connection at once.
    Close,
    /// It says nothing.
    Silence,
    /// It upgrades, and then sends nothing back.
    Swallow,
}

/// What the server has really done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub received: AtomicU64,
    pub dropped: AtomicU64,
    pub duplicated: AtomicU64,
    pub corrupted: AtomicU64,
    pub reordered: AtomicU64,
}

impl Tally {
    /// Dropped, duplicated, corrupted, reordered.
    pub(crate) fn faults(&self) -> [u64; 4] {
        [&self.dropped, &self.duplicated, &self.corrupted, &self.reordered]
            .map(|count| count.load(Ordering::SeqCst))
    }
}

/// A running server. It ends when this is dropped.
pub(crate) struct FaultyServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    faults: Faults,
    tally: Tally,
    started: Instant,
    stopping: AtomicBool,
    subscribers: Mutex<HashMap<u64, Arc<Mutex<TcpStream>>>>,
}

impl FaultyServer {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) fn start(faults: Faults) -> io::Result<Self> {
        Self::start_at("127.0.0.1:0", faults)
    }

    /// Starts one at this address.
    pub(crate) fn start_at(address: &str, faults: Faults) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            faults,
            tally: Tally::default(),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            subscribers: Mutex::default(),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.shared.tally
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; it is the last connection.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let (mut sessions, mut unserved) = (Vec::new(), Vec::new());
    for (id, stream) in listener.incoming().enumerate() {
        if shared.stopping.load(Ordering::SeqCst) {
            break;
        }
        std::thread::sleep(shared.faults.accept_delay);
        let Ok(stream) = stream else { continue };
        if shared.faults.served_max.is_some_and(|max| id >= max) {
            unserved.push(stream);
            continue;
        }
        let shared = Arc::clone(shared);
        let session = std::thread::Builder::new().stack_size(512 << 10).spawn(move || {
            // However it ends, the connection is closed.
            let _ = Session::new(&shared, id as u64, stream).and_then(Session::run);
            shared.subscribers.lock().unwrap().remove(&(id as u64));
        });
        sessions.push(session.expect("a thread for each connection"));
    }
    for session in sessions {
        let _ = session.join();
    }
}

struct Session<'a> {
    shared: &'a Shared,
    id: u64,
    stream: TcpStream,
    writer: Arc<Mutex<TcpStream>>,
    buffer: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, id: u64, stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // Often enough to see the end of the test, and to release what is held back to be reordered.
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        Ok(Self { shared, id, stream, writer, buffer: vec![0; 256 << 10] })
    }

    fn run(mut self) -> io::Result<()> {
        let mut frames_len = match self.shared.faults.instead {
            Some(Instead::Close) => return Ok(()),
            Some(Instead::Silence) => {
                while !self.shared.stopping.load(Ordering::SeqCst) {
                    self.read(0)?;
                }
                return Ok(());
            }
            Some(Instead::NotFound) => {
                self.read(0)?;
                return self.stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            }
            Some(Instead::Swallow) | None => self.upgrade()?,
        };
        if self.shared.faults.broadcast {
            self.shared.subscribers.lock().unwrap().insert(self.id, Arc::clone(&self.writer));
        }
        let limits =
            Limits { message_size_max: 64 << 20, fragments_max: 1024, inflate_octets_max: usize::MAX };
        let (mut connection, mut replies) = (Connection::server(), Replies::default());
        let mut codecs = Codecs::default();
        let mut answer = Answer { shared: self.shared, out: Vec::new(), held: None };
        loop {
            self.wait_out_a_stall();
            let octets = &mut self.buffer[..frames_len];
            let outcome = connection.receive(octets, 0, &limits, &mut codecs, &mut replies, &mut answer);
            let control = replies.to_vec(&self.buffer);
            if self.shared.faults.instead != Some(Instead::Swallow) {
                self.send(&answer.out)?;
            }
            answer.out.clear();
            self.writer.lock().unwrap().write_all(&control)?;
            if outcome.is_err() || connection.state() == State::Closed {
                return Ok(());
            }
            let held_since = Instant::now();
            frames_len = loop {
                match self.read(0)? {
                    Some(len) => break len,
                    None if self.shared.stopping.load(Ordering::SeqCst) => return Ok(()),
                    None => {
                        // Its successor does not come: then it goes out in order.
                        if held_since.elapsed() > Duration::from_millis(400)
                            && let Some(held) = answer.held.take()
                        {
                            self.send(&held)?;
                        }
                    }
                }
            };
        }
    }

    fn send(&self, octets: &[u8]) -> io::Result<()> {
        if octets.is_empty() {
            return Ok(());
        }
        if self.shared.faults.broadcast {
            for writer in self.shared.subscribers.lock().unwrap().values() {
                // A subscriber that is gone is removed by its own thread.
                let _ = writer.lock().unwrap().write_all(octets);
            }
            return Ok(());
        }
        self.writer.lock().unwrap().write_all(octets)
    }

    /// Answers the upgrade; how many octets of frames are in the buffer already.
    fn upgrade(&mut self) -> io::Result<usize> {
        let (mut scanner, mut len) = (HeadScanner::default(), 0);
        loop {
            let Some(more) = self.read(len)? else {
                if self.shared.stopping.load(Ordering::SeqCst) {
                    return Err(ErrorKind::TimedOut.into());
                }
                continue;
            };
            len += more;
            let parsed = Request::parse(&self.buffer[..len], &mut scanner, &HandshakeLimits::default());
            let Ok(parsed) = parsed else { return Err(ErrorKind::InvalidData.into()) };
            let Some((request, head_len)) = parsed else { continue };
            let policy = UpgradePolicy::new(&[], &["one".into()]).expect("one is a token");
            let accepted = request.upgrade(&policy).map_err(|_| ErrorKind::InvalidData)?;
            let mut response = Vec::new();
            accepted.write(&mut response);
            self.stream.write_all(&response)?;
            self.buffer.copy_within(head_len..len, 0);
            return Ok(len - head_len);
        }
    }

    /// Reads behind the first `at` octets; `None` if nothing came for a while.
    fn read(&mut self, at: usize) -> io::Result<Option<usize>> {
        match self.stream.read(&mut self.buffer[at..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(Some(len)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn wait_out_a_stall(&self) {
        let Some((period, stall)) = self.shared.faults.stall else { return };
        let elapsed = self.shared.started.elapsed();
        let into = Duration::from_nanos((elapsed.as_nanos() % period.as_nanos()) as u64);
        // The stall is the end of each period, so that the server starts awake.
        if into >= period - stall {
            std::thread::sleep(period - into);
        }
    }
}

/// Answers messages, mostly.
struct Answer<'a> {
    shared: &'a Shared,
    out: Vec<u8>,
    held: Option<Vec<u8>>,
}

impl Handler for Answer<'_> {
    fn message(&mut self, message: Message<'_>) -> Reply {
        let Shared { faults, tally, .. } = self.shared;
        // The faults strike at different remainders, so that no message suffers two of them; the first
        // messages of all, by which a client finds out whether there is a server, are left alone.
        let number = tally.received.fetch_add(1, Ordering::SeqCst);
        let strikes =
            |one_in: Option<u64>, at: u64| one_in.is_some_and(|one_in| number % one_in == one_in * at / 10);
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::SeqCst);
        let frame = message.frame();
        if strikes(faults.drop_one_in, 2) {
            count(&tally.dropped);
            return Reply::Nothing;
        }
        if strikes(faults.reorder_one_in, 8) && self.held.is_none() {
            self.held = Some(frame.to_vec());
            return Reply::Nothing;
        }
        self.out.extend_from_slice(frame);
        if strikes(faults.duplicate_one_in, 4) {
            count(&tally.duplicated);
            self.out.extend_from_slice(frame);
        }
        if strikes(faults.corrupt_one_in, 6) {
            count(&tally.corrupted);
            let place = self.out.len() - 1 - number as usize % message.payload().len();
            // Printable ASCII stays printable, so that a text message stays UTF-8.
            self.out[place] ^= 1;
        }
        if let Some(held) = self.held.take() {
            count(&tally.reordered);
            self.out.extend_from_slice(&held);
        }
        Reply::Nothing
    }
}
