//! io_uring where it is not to be had, and where its buffers are too few: real limits of a real kernel, set
//! on the server's process alone.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use common::client::{Client, eventually, serve};
use common::{message, request};
use resound::config::Config;
use resound::net::uring::{Submit, UringBackend};
use resound::proto::Opcode;

/// What is taken from the server before it starts.
#[derive(Clone, Copy)]
enum Without {
    /// io_uring_setup(2) fails with this error, by a seccomp filter: as in most containers (EPERM), or on a
    /// kernel that was built without it (ENOSYS).
    SystemCall(i32),
    /// Locked memory, of which a ring needs some.
    LockedMemory,
}

fn start(without: Without, io: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resound"));
    command.args(["--io", io, "--listen", "127.0.0.1:0", "--workers", "2", "--drain-ms", "0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: what runs between fork and exec are system calls on memory of its own.
    unsafe { command.pre_exec(move || without.apply()) };
    command.spawn().expect("the server's process")
}

impl Without {
    fn apply(self) -> std::io::Result<()> {
        let check = |result: i32| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
        match self {
            Self::LockedMemory => {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // Whoever may lock memory without limit (CAP_IPC_LOCK, 14) must first lose that.
                // SAFETY: both calls read what they are given, and no more.
                unsafe {
                    libc::prctl(libc::PR_CAPBSET_DROP, 14, 0, 0, 0);
                    check(libc::setrlimit(libc::RLIMIT_MEMLOCK, &none))
                }
            }
            Self::SystemCall(error) => {
                let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
                let mut filter = [
                    // The number of the system call.
                    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
                    libc::sock_filter {
                        jf: 1,
                        ..statement(
                            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                            libc::SYS_io_uring_setup as u32,
                        )
                    },
                    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | error as u32),
                    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
                ];
                let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
                // SAFETY: the program and its filter live until the calls return.
                unsafe {
                    check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
                    check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program))
                }
            }
        }
    }
}

const WITHOUT: [(Without, &str); 3] = [
    (Without::SystemCall(libc::EPERM), "io_uring_setup: Operation not permitted (os error 1)"),
    (Without::SystemCall(libc::ENOSYS), "io_uring_setup: Function not implemented (os error 38)"),
    (Without::LockedMemory, "Cannot allocate memory (os error 12) (the limit of locked memory"),
];

#[test]
fn auto_takes_epoll_where_io_uring_is_not_to_be_had_and_says_why_once() {
    for (without, reason) in WITHOUT {
        let mut child = start(without, "auto");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ws://").expect("it listens");
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(&request("/")).unwrap();
        let mut got = vec![0; common::SWITCHING.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, common::SWITCHING.as_bytes());
        // SAFETY: it signals a process that is ours and was not waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        drop(stream);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let log = String::from_utf8(output.stderr).unwrap();
        let why: Vec<&str> = log.lines().filter(|line| line.contains("io_uring cannot be used")).collect();
        assert!(why.len() == 1 && why[0].contains(reason), "{log}");
    }
}

#[test]
fn uring_that_is_not_to_be_had_is_exit_code_2_and_one_line() {
    for (without, reason) in WITHOUT {
        let output = start(without, "uring").wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{log}");
        assert!(output.stdout.is_empty(), "it does not say that it listens");
        let why: Vec<&str> = log.lines().filter(|line| line.contains("--io uring: ")).collect();
        assert!(why.len() == 1 && why[0].contains(reason), "{log}");
        assert!(!log.contains("started"), "{log}");
    }
}

/// Whether io_uring works here; where it must, which is in CI, that it does not is a failure.
fn is_here() -> bool {
    match UringBackend::new(&Config::default().uring_options(), resound::memory::Meter::default()) {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

#[test]
fn a_ring_that_runs_dry_serves_everyone_all_the_same() {
    if !is_here() {
        return;
    }
    for submit in [Submit::Nothing, Submit::All] {
        let submit = format!("{submit:?}").to_lowercase();
        let flags = ["--workers", "1", "--receive-buffers", "2", "--receive-buffer-bytes", "1024"];
        let server = serve("uring", &[&flags[..], &["--uring-submit", &submit]].concat());
        let payload = vec![b'x'; 5000];
        let mut clients: Vec<_> = (0..40).map(|_| Client::open(&server, "/")).collect();
        let rounds = 20;
        for _ in 0..rounds {
            clients.iter_mut().for_each(|client| client.send(Opcode::Binary, &payload));
            for client in &mut clients {
                assert!(client.frame() == (Opcode::Binary, payload.clone()));
            }
        }
        let starved = server.total(|counters| &counters.receive_starved_total);
        assert!(starved > 0, "two buffers are enough for {} octets", 40 * payload.len());
        // Each time that a receive waits, another has filled a buffer.
        let filled = server.total(|counters| &counters.received_bytes_total);
        assert!(starved < filled, "{starved} waits for {filled} octets");
        drop(clients);
        eventually("closed", || server.total(|counters| &counters.closed_total) == 40);
    }
}

#[test]
fn a_server_that_submits_replies_says_the_same() {
    if !is_here() {
        return;
    }
    let server = serve("uring", &["--workers", "1", "--uring-submit", "all"]);
    let mut client = Client::open(&server, "/");
    let payload = |index: usize| vec![b'a' + (index % 26) as u8; [20, 0, 126, 70_000][index % 4] + index];
    let octets = (0..2000).flat_map(|index| message(Opcode::Binary, &payload(index))).collect();
    let got = client.exchange(octets, 2000);
    assert!(got.into_iter().enumerate().all(|(index, (_, got))| got == payload(index)));
}
