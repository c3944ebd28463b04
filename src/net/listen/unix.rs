//! A Unix socket's path: taken without a moment in which there is no socket, and given up without removing
//! anything that is not ours.
//!
//! Whoever holds the lock on `PATH.lock` may put a socket at `PATH`. The socket is bound and listens under a
//! name of its own in the same folder, and only then gets the name `PATH`: clients meet the old socket or the
//! new one. What is there is replaced only if it is a socket that nobody listens on, or one whose server has
//! handed it over.
//!
//! A server that finds the lock taken waits for a short time, and holds the lock on `PATH.next` meanwhile. A
//! server that stops looks for it: if somebody waits, it lets go of the lock first, and listens until its
//! successor has the name. So a restart that starts the new server before it stops the old one is never seen.
//!
//! The locks are flock(2): they end with the process, however it ends. Start at [`listen`].

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// How long a new server waits for the old one to stop, and the old one for the new one to take over.
const WAIT: Duration = Duration::from_secs(3);
/// How often it looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How often it connects to a socket of a program without our lock, to see whether it is there still.
const CONNECT_EVERY: Duration = Duration::from_millis(100);
/// The longest path in octets: `sun_path` has 108, and the last is a zero (unix(7)).
const PATH_LEN_MAX: usize = 107;
/// What a lock file of ours begins with; one that begins otherwise is not touched.
const MAGIC: &str = "resound";

/// A path that this process listens on. Dropped, it is given up: its socket is removed, unless another
/// server has taken over or somebody else has put something there. To be dropped before the listeners are
/// closed, so that a successor can take over in time.
#[derive(Debug)]
pub struct Claim {
    names: Names,
    socket: Identity,
    /// Invariant: there until the drop.
    lock: Option<Lock>,
}

/// Binds a socket that listens at `path`, and is not blocking.
///
/// # Errors
/// What the kernel said, or one line with cause and cure: what is at `path` is not ours to replace.
pub(super) fn listen(path: &Path, backlog: i32) -> io::Result<(Socket, Claim)> {
    let names = Names::new(path)?;
    let deadline = Instant::now() + WAIT;
    let (lock, _next) = take_lock(&names, deadline)?;
    let stale = loop {
        match Occupant::of(&names.socket, lock.handed_over)? {
            Occupant::None => break None,
            Occupant::Stale(socket) => break Some(socket),
            // A server that was killed a moment ago may listen until the kernel has ended its ring.
            Occupant::Listens if Instant::now() < deadline => thread::sleep(CONNECT_EVERY),
            Occupant::Listens => return Err(in_use()),
        }
    };
    let (socket, temporary) = bind_beside(path)?;
    socket.listen(backlog)?;
    match stale {
        Some(stale) if stale.is_at(path) => fs::rename(&temporary.path, path)?,
        // Unlike a rename it fails if there is something by now.
        _ => fs::hard_link(&temporary.path, path)?,
    }
    Ok((socket, Claim { names, socket: temporary.identity, lock: Some(lock) }))
}

fn refused(kind: io::ErrorKind, text: impl Into<String>) -> io::Error {
    io::Error::new(kind, text.into())
}

fn in_use() -> io::Error {
    refused(io::ErrorKind::AddrInUse, "another server listens there: stop it, or choose another path")
}

/// The lock, at once or once the server that has it stops; with the lock that says that we waited, to be kept
/// until the name is ours.
fn take_lock(names: &Names, deadline: Instant) -> io::Result<(Lock, Option<Lock>)> {
    if let Some(lock) = Lock::try_take(&names.lock)? {
        return Ok((lock, None));
    }
    let (mut next, mut is_said) = (None, false);
    loop {
        if next.is_none() {
            // Somebody else may have it: then we wait unannounced.
            next = Lock::try_take(&names.next)?;
        }
        if !is_said {
            // Only now: whoever reads it may stop the other server.
            is_said = true;
            let path = names.socket.display();
            tracing::info!(%path, "another server listens there: waiting {} s for it to stop", WAIT.as_secs());
        }
        if let Some(lock) = Lock::try_take(&names.lock)? {
            return Ok((lock, next));
        }
        if Instant::now() >= deadline {
            return Err(in_use());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// What is where a socket is to be.
enum Occupant {
    None,
    /// A socket that may be replaced.
    Stale(Identity),
    /// A socket that somebody listens on.
    Listens,
}

impl Occupant {
    fn of(path: &Path, handed_over: Option<Identity>) -> io::Result<Self> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::None),
            metadata => metadata?,
        };
        let kind = metadata.file_type();
        if !kind.is_socket() {
            let text = match kind {
                kind if kind.is_symlink() => {
                    "it is a symbolic link, not a socket: remove it, or give the path that it leads to"
                }
                kind if kind.is_dir() => "it is a folder, not a socket: choose a path in it",
                kind if kind.is_file() => "it is a file, not a socket: remove it, or choose another path",
                _ => "it is not a socket: remove it, or choose another path",
            };
            return Err(refused(io::ErrorKind::AlreadyExists, text));
        }
        let identity = Identity::new(&metadata);
        if handed_over == Some(identity) {
            return Ok(Self::Stale(identity));
        }
        // Not blocking, because a full backlog would hold us up.
        match Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?.connect(&SockAddr::unix(path)?) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Self::Stale(identity)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let text = "another user's socket is there: remove it as that user, or choose another path";
                Err(refused(io::ErrorKind::AlreadyExists, text))
            }
            // Also a full backlog, and a socket of another type.
            _ => Ok(Self::Listens),
        }
    }
}

/// A bound socket's own name, until it has another. Dropped, it is removed.
struct Temporary {
    path: PathBuf,
    identity: Identity,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.identity.remove(&self.path);
    }
}

fn bind_beside(path: &Path) -> io::Result<(Socket, Temporary)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    loop {
        let name = format!(".{:x}.{:x}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = path.with_file_name(name);
        check_len(&path)?;
        match socket.bind(&SockAddr::unix(&path)?) {
            // A process in another namespace can have our number, or had it and was killed.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => {
                bound?;
                return Ok((socket, Temporary { identity: Identity::at(&path)?, path }));
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (path, mut lock) = (&self.names.socket, self.lock.take().expect("a claim is dropped once"));
        if !Lock::is_held(&self.names.next) || !self.socket.is_at(path) || !lock.hand_over(self.socket) {
            return self.socket.remove(path);
        }
        drop(lock);
        let deadline = Instant::now() + WAIT;
        while self.socket.is_at(path) && Lock::is_held(&self.names.next) && Instant::now() < deadline {
            thread::sleep(LOOK_EVERY);
        }
        // If the successor has given up, nobody has the lock.
        if let Ok(Some(_lock)) = Lock::try_take(&self.names.lock) {
            self.socket.remove(path);
        }
    }
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn new(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&fs::symlink_metadata(path)?))
    }

    fn is_at(self, path: &Path) -> bool {
        Self::at(path).is_ok_and(|found| found == self)
    }

    /// Removes the file at `path` if it is this one. Nobody who keeps to the lock puts another there meanwhile.
    fn remove(self, path: &Path) {
        if self.is_at(path) {
            // If it cannot be removed, the next server finds a socket that nobody listens on.
            let _ = fs::remove_file(path);
        }
    }
}

/// The paths that belong to a socket's.
#[derive(Debug)]
struct Names {
    socket: PathBuf,
    lock: PathBuf,
    next: PathBuf,
}

impl Names {
    fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().filter(|_| !path.as_os_str().as_bytes().ends_with(b"/"));
        let name = name.ok_or_else(|| refused(io::ErrorKind::InvalidInput, "the path names a folder"))?;
        check_len(path)?;
        let beside = |ending: &str| {
            let mut name = name.to_owned();
            name.push(ending);
            path.with_file_name(name)
        };
        Ok(Self { socket: path.to_owned(), lock: beside(".lock"), next: beside(".next") })
    }
}

fn check_len(path: &Path) -> io::Result<()> {
    let len = path.as_os_str().len();
    if len <= PATH_LEN_MAX {
        return Ok(());
    }
    let text = format!(
        "{} has {len} octets, and a Unix socket's path has at most {PATH_LEN_MAX}: choose a shorter one",
        path.display()
    );
    Err(refused(io::ErrorKind::InvalidInput, text))
}

/// A locked file. Dropped, it is removed and unlocked.
#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
    /// The socket that the last holder left for us to replace, although it listens.
    handed_over: Option<Identity>,
    stays: bool,
}

impl Lock {
    /// Locks the file at `path`, which is made if it is not there. `None` if somebody else has it locked.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let named =
            |error: io::Error| refused(error.kind(), format!("its lock file {}: {error}", path.display()));
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = open(&mut options, path).map_err(named)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(named(error)),
                Ok(()) => {}
            }
            // Its last holder may have removed it after it was opened: then it locks nothing.
            if !is_linked(&file, path) {
                continue;
            }
            let handed_over = read(&file).map_err(named)?;
            file.set_len(0).and_then(|()| file.write_all_at(MAGIC.as_bytes(), 0)).map_err(named)?;
            return Ok(Some(Self { file, path: path.to_owned(), handed_over, stays: false }));
        }
    }

    /// Whether somebody has the file at `path` locked.
    fn is_held(path: &Path) -> bool {
        let Ok(file) = open(File::options().read(true), path) else { return false };
        // A shared lock, and at once let go.
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) && is_linked(&file, path)
    }

    /// Lets the next holder replace `socket`. Whether that could be said.
    fn hand_over(&mut self, socket: Identity) -> bool {
        let text = format!("{MAGIC} {} {}", socket.device, socket.inode);
        self.stays = self.file.set_len(0).and_then(|()| self.file.write_all_at(text.as_bytes(), 0)).is_ok();
        self.stays
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked, so that nobody else's is removed.
        if !self.stays && is_linked(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens without following a link and without waiting for a pipe.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(refused(io::ErrorKind::AlreadyExists, "it is not a file"));
    }
    Ok(file)
}

/// Whether `path` still names the file.
fn is_linked(file: &File, path: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| Identity::new(&metadata).is_at(path))
}

/// What the last holder has left in the lock file.
///
/// # Errors
/// It is somebody else's file.
fn read(file: &File) -> io::Result<Option<Identity>> {
    let mut octets = [0; 64];
    let len = file.read_at(&mut octets, 0)?;
    let text = String::from_utf8_lossy(&octets[..len]);
    // A holder that was killed may have written nothing yet.
    if !text.is_empty() && !text.starts_with(MAGIC) {
        return Err(refused(io::ErrorKind::AlreadyExists, "it is not ours: choose another path"));
    }
    let mut numbers = text.split(' ').skip(1).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(device)), Some(Ok(inode))) => Ok(Some(Identity { device, inode })),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
