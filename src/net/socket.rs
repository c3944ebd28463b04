//! What every driver on real sockets does with one.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Sends as much of the pieces as the socket takes at once.
#[inline]
pub(super) fn send(socket: &Socket, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    match pieces {
        [piece] => socket.send_with_flags(piece, SEND_FLAGS),
        pieces => socket.send_vectored_with_flags(pieces, SEND_FLAGS),
    }
}

/// Whether octets of the peer wait in the kernel.
pub(super) fn has_input(socket: &Socket) -> bool {
    let mut octet = [MaybeUninit::uninit()];
    socket.recv_with_flags(&mut octet, libc::MSG_PEEK | libc::MSG_DONTWAIT).is_ok_and(|len| len > 0)
}

/// Begins to connect to `address`, from `source` if one is given. The socket is O_NONBLOCK.
///
/// # Errors
/// What the kernel refused at once.
pub(super) fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // Without this option a bound source shares one pool of ports over all destinations, and bind
        // would have to find a free one.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Whether a connect has come to its end.
///
/// # Errors
/// It has, and in vain.
pub(super) fn is_connected(socket: &Socket) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}
