//! Where to listen, and the listening sockets, bound before any worker starts.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive, Type};

use super::tls::TlsServer;

mod unix;

pub use unix::Claim;

/// After so long without an octet from the peer the kernel asks whether it is there; so often again, and after
/// so many questions without an answer the connection fails. 2 minutes in all.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP address and port; port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// The same, with TLS.
    Tls(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("unix: wants a path".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let (address, endpoint): (_, fn(SocketAddr) -> Self) = match text.split_once("://") {
            Some(("wss", address)) => (address, Self::Tls),
            Some(("ws", address)) => (address, Self::Tcp),
            _ => (text, Self::Tcp),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        let mut addresses = address.to_socket_addrs().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => {
                "expected ADDRESS:PORT, [IPV6]:PORT, ws:// or wss:// before them, or unix:PATH".to_owned()
            }
            _ => error.to_string(),
        })?;
        addresses.next().map(endpoint).ok_or_else(|| "the name has no address".into())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Tls(address) => write!(f, "wss://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket that one worker accepts from. Not blocking.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: Socket,
    pub(super) is_unix: bool,
    pub(super) tls: Option<TlsServer>,
}

impl Listener {
    /// Has its connections speak TLS.
    pub fn speak_tls(&mut self, server: TlsServer) {
        self.tls = Some(server);
    }
}

/// What listens at an endpoint.
#[derive(Debug)]
pub struct Bound {
    /// The real address: it says the port that the kernel chose.
    pub endpoint: Endpoint,
    /// One for each worker.
    pub listeners: Vec<Listener>,
    /// The path of a Unix socket, for as long as it is ours. To be dropped before the listeners are closed.
    pub claim: Option<Claim>,
}

/// Binds `endpoint` and listens, with one socket for each of `count` workers. TCP workers get sockets of
/// their own, over which the kernel spreads connections (SO_REUSEPORT); on a Unix path they share one. A
/// Unix socket that nobody listens on any more is replaced; that of another server of ours once it stops, for
/// which this waits up to 3 s.
///
/// # Errors
/// What the kernel said. A port that anybody else listens on is in use, also by another process of ours. On a
/// Unix path nothing else than a socket is ever replaced.
pub fn bind(endpoint: &Endpoint, backlog: i32, count: usize) -> io::Result<Bound> {
    assert!(count > 0);
    match endpoint {
        Endpoint::Tcp(address) | Endpoint::Tls(address) => {
            let (address, listeners) = bind_tcp(*address, backlog, count)?;
            let real = if let Endpoint::Tls(_) = endpoint { Endpoint::Tls } else { Endpoint::Tcp };
            Ok(Bound { endpoint: real(address), listeners, claim: None })
        }
        Endpoint::Unix(path) => {
            let (socket, claim) = unix::listen(path, backlog)?;
            let clone = |_| Ok(Listener { socket: socket.try_clone()?, is_unix: true, tls: None });
            let listeners = (0..count).map(clone).collect::<io::Result<_>>()?;
            Ok(Bound { endpoint: endpoint.clone(), listeners, claim: Some(claim) })
        }
    }
}

fn bind_tcp(mut address: SocketAddr, backlog: i32, count: usize) -> io::Result<(SocketAddr, Vec<Listener>)> {
    let mut sockets = Vec::with_capacity(count);
    for index in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit it. Without it a pipelined reply waits for the peer's delayed ACK.
        socket.set_tcp_nodelay(true)?;
        // This too. No idle timeout finds a host that vanished in raw mode, or with --idle-timeout-ms 0.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        if index == 0 {
            // Bound before SO_REUSEPORT is set, so that a port another server shares is found to be in use.
            socket.bind(&address.into())?;
            socket.set_reuse_port(true)?;
            address = socket.local_addr()?.as_socket().expect("a TCP socket has a TCP address");
        } else {
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
        }
        sockets.push(socket);
    }
    // Only once all are bound: nothing is accepted by a server that does not start.
    for socket in &sockets {
        socket.listen(backlog)?;
    }
    let listener = |socket| Listener { socket, is_unix: false, tls: None };
    Ok((address, sockets.into_iter().map(listener).collect()))
}

/// Raises the soft limit of open files to the hard one, and returns it.
///
/// # Errors
/// What the kernel said.
pub fn raise_nofile() -> io::Result<u64> {
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE)?;
    rlimit::increase_nofile_limit(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_a_name_or_a_unix_path() {
        assert_eq!("127.0.0.1:9001".parse(), Ok(Endpoint::Tcp(([127, 0, 0, 1], 9001).into())));
        assert!(matches!("[::1]:0".parse(), Ok(Endpoint::Tcp(SocketAddr::V6(_)))));
        assert_eq!("unix:/tmp/x".parse(), Ok(Endpoint::Unix("/tmp/x".into())));
        assert_eq!("ws://127.0.0.1:9001".parse(), Ok(Endpoint::Tcp(([127, 0, 0, 1], 9001).into())));
        for text in ["wss://127.0.0.1:9443", "wss://127.0.0.1:9443/"] {
            assert_eq!(text.parse(), Ok(Endpoint::Tls(([127, 0, 0, 1], 9443).into())));
        }
        for bad in ["", "unix:", "9001", "127.0.0.1", "127.0.0.1:99999", "wss://", "https://127.0.0.1:1"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_peer_that_vanished_is_asked_after_on_every_accepted_socket() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // The second needs IPv6.
            let Ok(Bound { endpoint: Endpoint::Tcp(address), listeners, .. }) =
                bind(&address.parse().unwrap(), 16, 1)
            else {
                assert!(address.starts_with('['));
                continue;
            };
            let listener = &listeners[0].socket;
            let _client = std::net::TcpStream::connect(address).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            for socket in [listener, &accepted] {
                assert!(socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
            }
        }
    }

    #[test]
    fn a_port_that_another_server_shares_is_in_use() {
        let any = Endpoint::Tcp(([127, 0, 0, 1], 0).into());
        let Bound { endpoint, listeners, .. } = bind(&any, 16, 3).unwrap();
        assert_eq!(listeners.len(), 3);
        assert_eq!(bind(&endpoint, 16, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        bind(&endpoint, 16, 2).unwrap();
    }
}
