//! `--listen unix:PATH` with real processes: whose file is removed, who serves when two start, and that a
//! restart is never seen by a client.

mod common;

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use common::client::{PATIENCE, eventually};
use common::{SWITCHING, message, reply, request};
use resound::proto::Opcode;

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("resound-unix-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that may serve, or may end because it must not; killed if the test fails.
struct Process(Child);

impl Process {
    fn start(path: &Path, flags: &[&str]) -> Self {
        let endpoint = format!("unix:{}", path.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_resound"));
        command.args(["--workers", "1", "--listen", &endpoint]).args(flags);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts"))
    }

    /// Waits until it serves or has ended: whether it serves.
    fn serves(&mut self) -> bool {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.is_empty() || line.starts_with("listening on ws+unix:"), "{line:?}");
        !line.is_empty()
    }

    fn serving(path: &Path, flags: &[&str]) -> Self {
        let mut server = Self::start(path, flags);
        if !server.serves() {
            panic!("it does not serve: {}", server.end().1);
        }
        server
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap().success());
    }

    /// Its exit code and everything that it logged.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.0.wait().unwrap().code(), log)
    }

    /// Has it drain and end.
    fn stop(self) {
        self.signal("-TERM");
        let (code, log) = self.end();
        assert_eq!(code, Some(0), "{log}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it says when it does not start: one line, exit code 2.
fn refusal(path: &Path) -> String {
    let (code, said) = Process::start(path, &["--log", "error"]).end();
    assert_eq!((code, said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.starts_with(&format!("resound: --listen unix:{}: ", path.display())), "{said}");
    said
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// A WebSocket connection that has got one echo.
fn open(path: &Path) -> UnixStream {
    let mut stream = connect(path).expect("a server listens");
    stream.write_all(&[request("/"), message(Opcode::Text, b"hello")].concat()).unwrap();
    let expected = [SWITCHING.as_bytes(), &reply(Opcode::Text, b"hello")].concat();
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
    stream
}

#[test]
fn a_regular_file_is_never_removed() {
    let folder = Folder::new();
    let path = folder.path("notes.txt");
    fs::write(&path, "precious").unwrap();
    let said = refusal(&path);
    assert!(said.contains("a file, not a socket") && said.contains("choose another path"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(folder.names(), ["notes.txt"]);
}

#[test]
fn a_symbolic_link_is_neither_followed_nor_removed() {
    let folder = Folder::new();
    let (link, target) = (folder.path("link"), folder.path("stale.sock"));
    drop(UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(refusal(&link).contains("a symbolic link"));
    fs::remove_file(&target).unwrap();
    assert!(refusal(&link).contains("a symbolic link"), "one that leads nowhere too");
    assert_eq!(fs::read_link(&link).unwrap(), target);
    assert_eq!(folder.names(), ["link"]);
}

#[test]
fn a_folder_and_a_pipe_are_left_alone() {
    let folder = Folder::new();
    let (inner, pipe) = (folder.path("inner"), folder.path("pipe"));
    fs::create_dir(&inner).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refusal(&inner).contains("a folder, not a socket"));
    assert!(refusal(&pipe).contains("not a socket"));
    assert_eq!(folder.names(), ["inner", "pipe"]);
}

#[test]
fn a_socket_that_another_program_listens_on_is_its_own() {
    let folder = Folder::new();
    let (stream, datagram) = (folder.path("stream"), folder.path("datagram"));
    let listener = UnixListener::bind(&stream).unwrap();
    let receiver = UnixDatagram::bind(&datagram).unwrap();
    assert!(refusal(&stream).contains("another server listens there"));
    assert!(refusal(&datagram).contains("another server listens there"));
    connect(&stream).unwrap();
    UnixDatagram::unbound().unwrap().send_to(b"x", &datagram).unwrap();
    drop((listener, receiver));
    assert_eq!(folder.names(), ["datagram", "stream"]);
}

#[test]
fn a_server_that_serves_keeps_its_path_and_the_second_says_why() {
    let folder = Folder::new();
    let path = folder.path("s");
    let first = Process::serving(&path, &[]);
    assert!(refusal(&path).contains("another server listens there"));
    drop(open(&path));
    first.stop();
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn one_server_does_not_listen_twice_on_one_path() {
    let folder = Folder::new();
    let path = folder.path("s");
    let again = format!("unix:{}", path.display());
    let (code, said) = Process::start(&path, &["--listen", &again, "--log", "error"]).end();
    assert_eq!(code, Some(2));
    assert!(said.contains("another server listens there"), "{said}");
    assert_eq!(folder.names(), [""; 0], "what was bound before is removed again");
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let folder = Folder::new();
    let path = folder.path("s");
    drop(UnixListener::bind(&path).unwrap());
    let server = Process::serving(&path, &[]);
    drop(open(&path));
    server.stop();
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn after_a_kill_the_next_server_starts() {
    for io in ["epoll", "auto"] {
        let folder = Folder::new();
        let path = folder.path("s");
        let mut killed = Process::serving(&path, &["--io", io]);
        let client = open(&path);
        killed.0.kill().unwrap();
        killed.0.wait().unwrap();
        let server = Process::serving(&path, &["--io", io]);
        drop((client, open(&path)));
        server.stop();
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
fn a_new_server_starts_while_the_old_one_drains_and_keeps_its_socket() {
    let folder = Folder::new();
    let path = folder.path("s");
    let old = Process::serving(&path, &["--drain-ms", "0", "--close-timeout-ms", "60000"]);
    // It is told to go and does not: the old server cannot end.
    let mut client = open(&path);
    old.signal("-TERM");
    client.read_exact(&mut [0; 4]).unwrap();
    let new = Process::serving(&path, &[]);
    drop(open(&path));
    drop(client);
    assert_eq!(old.end().0, Some(0));
    drop(open(&path));
    new.stop();
    assert_eq!(folder.names(), [""; 0]);
}

fn is_locked(path: &Path) -> bool {
    fs::File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

#[test]
fn a_client_that_connects_in_a_loop_does_not_see_a_restart() {
    for io in ["epoll", "auto"] {
        let folder = Folder::new();
        let path = folder.path("s");
        let mut servers = vec![Process::serving(&path, &["--io", io])];
        let is_over = AtomicBool::new(false);
        let failures = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut failures = Vec::new();
                while !is_over.load(SeqCst) {
                    match UnixStream::connect(&path) {
                        Err(error)
                            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                        {
                            failures.push(error);
                        }
                        _ => std::thread::yield_now(),
                    }
                }
                failures
            });
            for _ in 0..5 {
                let mut new = Process::start(&path, &["--io", io]);
                eventually("it waits for the old one", || is_locked(&folder.path("s.next")));
                servers.pop().unwrap().stop();
                assert!(new.serves());
                servers.push(new);
            }
            is_over.store(true, SeqCst);
            client.join().unwrap()
        });
        assert!(failures.is_empty(), "{io}: {} times {:?}", failures.len(), failures[0]);
        servers.pop().unwrap().stop();
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
fn of_two_that_start_at_once_exactly_one_serves() {
    let folder = Folder::new();
    for batch in 0..3 {
        let mut pairs: Vec<_> = (0..20)
            .map(|index| {
                let path = folder.path(&format!("{batch}-{index}"));
                // Half of them find what a killed server left.
                if index % 2 == 0 {
                    drop(UnixListener::bind(&path).unwrap());
                }
                let start = || Process::start(&path, &["--io", "epoll", "--log", "error"]);
                ([start(), start()], path)
            })
            .collect();
        for (servers, path) in &mut pairs {
            let serve: Vec<_> = servers.iter_mut().map(Process::serves).collect();
            assert_eq!(serve.iter().filter(|serves| **serves).count(), 1, "{}", path.display());
            assert!(fs::symlink_metadata(&*path).unwrap().file_type().is_socket());
            drop(open(path));
        }
        for (servers, path) in pairs {
            let codes: Vec<_> = servers
                .into_iter()
                .map(|server| {
                    // One that has ended was not waited for yet: its process id is still its own.
                    server.signal("-TERM");
                    server.end().0
                })
                .collect();
            assert!(codes == [Some(0), Some(2)] || codes == [Some(2), Some(0)], "{codes:?}");
            assert!(!path.exists(), "{}", path.display());
        }
    }
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_path_that_is_too_long_is_said_so() {
    let folder = Folder::new();
    let said = refusal(&folder.path(&"x".repeat(108)));
    assert!(said.contains("at most 107"), "{said}");
    assert_eq!(folder.names(), [""; 0]);
}
