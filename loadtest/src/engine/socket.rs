//! Sockets that connect without waiting, and what their errors mean.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::result::kernel_events;
use crate::result::recorder::ErrorKind;

/// Begins to connect to `address`, from `source` if one is given.
///
/// # Errors
/// What the kernel refused at once; [`error_kind`] says what it means.
pub(super) fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // Without this option a bound source shares one pool of ports over all destinations, and bind
        // would have to find a free one.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// The kind that an error of a socket is counted under.
pub(super) fn error_kind(error: &io::Error) -> ErrorKind {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => ErrorKind::ConnectRefused,
        Some(Errno::ETIMEDOUT | Errno::EHOSTUNREACH) => ErrorKind::ConnectTimeout,
        Some(Errno::EADDRNOTAVAIL) => ErrorKind::AddressNotAvailable,
        Some(Errno::EMFILE | Errno::ENFILE) => ErrorKind::DescriptorsExhausted,
        Some(Errno::ENOBUFS | Errno::ENOMEM) => ErrorKind::KernelMemory,
        Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED) => ErrorKind::Reset,
        _ => ErrorKind::Other,
    }
}

/// What to look at or to do when an error of this kind comes up; empty if the error says it all.
pub(super) fn hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectRefused => "is the server running, and is this its port?",
        ErrorKind::ConnectTimeout => "is a firewall in between, or is the accept queue full?",
        kind => kernel_events::of_error(kind).map_or("", |event| event.cure),
    }
}
