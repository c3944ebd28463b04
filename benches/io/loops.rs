//! TCP echo as small as it can be on each interface, with nothing of resound in it: what `raw` is held
//! against. No limits, no backpressure, no errors but the end of a connection: not a model for anything.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};

const BUFFER_LEN: usize = 256 << 10;
const BUFFERS: usize = 512;
/// What tells the kernel which buffers it has: two pages.
const ENTRIES_LEN: usize = BUFFERS * size_of::<BufRingEntry>();
const EVENTS: usize = 1024;
const ACCEPT: u64 = u64::MAX;
const CLOSE: u64 = u64::MAX - 1;
const DIRECT_MAX: u32 = 8192;

fn listener() -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    socket2::SockRef::from(&listener).set_tcp_nodelay(true)?;
    socket2::SockRef::from(&listener).listen(4096)?;
    println!("listening on ws://{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(listener)
}

/// Sends all of it, as if the socket always took it; in these measurements it does.
fn send(fd: i32, octets: &[u8]) {
    // SAFETY: the octets are valid for the length of the call.
    let sent = unsafe { libc::send(fd, octets.as_ptr().cast(), octets.len(), libc::MSG_NOSIGNAL) };
    assert!(sent < 0 || sent as usize == octets.len(), "a short send on a blocking socket");
}

/// Level-triggered epoll: wait, then for each connection one recv and one send.
pub(crate) fn epoll() -> anyhow::Result<()> {
    let listener = listener()?;
    let mut buffer = vec![0u8; BUFFER_LEN];
    // SAFETY: no address is passed.
    let epoll = unsafe { libc::epoll_create1(0) };
    let add = |fd: i32| {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: the event lives until the call returns.
        assert_eq!(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) }, 0);
    };
    add(listener.as_raw_fd());
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    loop {
        // SAFETY: there is room for as many events as it says.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS as i32, -1) };
        for event in &events[..count.max(0) as usize] {
            let fd = event.u64 as i32;
            if fd == listener.as_raw_fd() {
                let (stream, _) = listener.accept()?;
                add(std::os::fd::IntoRawFd::into_raw_fd(stream));
                continue;
            }
            // SAFETY: the buffer has the length given.
            let len = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), BUFFER_LEN, 0) };
            if len > 0 {
                send(fd, &buffer[..len as usize]);
            } else {
                // SAFETY: nobody else has this descriptor.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// Multishot accept and receive into provided buffers, and a send submission from the buffer. With `direct`,
/// sockets are the ring's own and never get a descriptor.
pub(crate) fn uring(direct: bool) -> anyhow::Result<()> {
    let listener = listener()?;
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_cqsize(8192)
        .build(1024)?;
    let memory_len = ENTRIES_LEN + BUFFERS * BUFFER_LEN;
    // SAFETY: a new mapping, that overlaps nothing and is never unmapped.
    let memory = unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), memory_len, protection, flags, -1, 0)
    };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: the mapping lives as long as the process.
    unsafe { ring.submitter().register_buf_ring_with_flags(memory as u64, BUFFERS as u16, 0, 0)? };
    let address = |index: u16| memory as u64 + (ENTRIES_LEN + usize::from(index) * BUFFER_LEN) as u64;
    let mut tail = 0u16;
    let mut give = |index: u16| {
        // SAFETY: the entries are at the front of the mapping; the kernel does not look at this one yet.
        unsafe {
            let entries = memory.cast::<BufRingEntry>();
            let entry = &mut *entries.add(usize::from(tail) % BUFFERS);
            entry.set_addr(address(index));
            entry.set_len(BUFFER_LEN as u32);
            entry.set_bid(index);
            tail = tail.wrapping_add(1);
            let shared = std::sync::atomic::AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut());
            shared.store(tail, std::sync::atomic::Ordering::Release);
        }
    };
    (0..BUFFERS as u16).for_each(&mut give);
    let (mut submitter, mut sq, mut cq) = ring.split();
    submitter.register_ring_fd()?;
    if direct {
        submitter.register_files_sparse(DIRECT_MAX)?;
    }
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
        .allocate_file_index(direct)
        .build()
        .user_data(ACCEPT);
    let receive = |socket: u64| {
        let receive = if direct {
            opcode::RecvMulti::new(Fixed(socket as u32), 0)
        } else {
            opcode::RecvMulti::new(Fd(socket as i32), 0)
        };
        receive.build().user_data(socket)
    };
    let send = |socket: u64, octets: u64, len: u32| {
        let octets = octets as *const u8;
        let send = if direct {
            opcode::Send::new(Fixed(socket as u32), octets, len)
        } else {
            opcode::Send::new(Fd(socket as i32), octets, len)
        };
        send.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build()
    };
    // SAFETY: no address is passed.
    unsafe { sq.push(&accept) }?;
    loop {
        sq.sync();
        let flags = EnterFlags::GETEVENTS | EnterFlags::NO_IOWAIT;
        // SAFETY: there is no argument.
        let _ = unsafe { submitter.enter::<libc::sigset_t>(sq.len() as u32, 1, flags.bits(), None) };
        sq.sync();
        cq.sync();
        for completion in &mut cq {
            let (user_data, result) = (completion.user_data(), completion.result());
            let entry = if user_data == CLOSE {
                continue;
            } else if user_data == ACCEPT {
                receive(result as u64)
            } else if user_data >> 32 > 0 {
                // A send is done: its buffer is free.
                give((user_data >> 32) as u16 - 1);
                continue;
            } else if result > 0 {
                let index = cqueue::buffer_select(completion.flags()).expect("octets come in a buffer");
                send(user_data, address(index), result as u32).user_data((u64::from(index) + 1) << 32)
            } else if result == -libc::ENOBUFS {
                receive(user_data)
            } else if direct {
                opcode::Close::new(Fixed(user_data as u32)).build().user_data(CLOSE)
            } else {
                // SAFETY: nobody else has this descriptor.
                unsafe { libc::close(user_data as i32) };
                continue;
            };
            // SAFETY: an address in it is inside of the mapping, which lives as long as the process.
            while unsafe { sq.push(&entry) }.is_err() {
                submitter.submit()?;
                sq.sync();
            }
        }
    }
}
