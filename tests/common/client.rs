//! A blocking WebSocket client, as plain as it can be, and a server to talk to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use clap::Parser as _;
use resound::config::Config;
use resound::net::Endpoint;
use resound::net::tls::{TlsClient, TlsVersions};
use resound::proto::{FrameHeader, Opcode};
use resound::server::Server;

use super::stream::{Stream, tls_client};
use super::{SWITCHING, masked, message, request};

/// What no test waits longer for: then something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server on a free port of loopback. `io` is a value of `--io`, with `_wss` behind it for TLS.
pub(crate) fn serve(io: &str, flags: &[&str]) -> Server {
    let (io, tls) = match io.strip_suffix("_wss") {
        Some(io) => (io, &["--listen", "wss://127.0.0.1:0", "--tls-self-signed"][..]),
        None => (io, &["--listen", "127.0.0.1:0"][..]),
    };
    let first = ["resound", "--io", io, "--drain-ms", "0", "--close-timeout-ms", "2000"];
    Server::start(Config::parse_from([&first, tls, flags].concat())).expect("the server starts")
}

pub(crate) fn address(server: &Server) -> SocketAddr {
    match server.endpoints()[0] {
        Endpoint::Tcp(address) | Endpoint::Tls(address) => address,
        Endpoint::Unix(_) => panic!("not a TCP endpoint"),
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

/// A TCP connection to a server, whatever it speaks.
pub(crate) fn tcp(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(address(server)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub(crate) struct Client {
    pub(crate) stream: Stream,
    /// Octets read and not used yet.
    unread: Vec<u8>,
}

impl Client {
    /// A TCP connection, TLS where the server speaks it, and nothing more.
    pub(crate) fn connect(server: &Server) -> Self {
        Self::connect_as(server, &tls_client(TlsVersions::Both, false)).expect("TLS")
    }

    /// The same, with this client's TLS.
    pub(crate) fn connect_as(server: &Server, client: &TlsClient) -> io::Result<Self> {
        let stream = tcp(server);
        let stream = match server.endpoints()[0] {
            Endpoint::Tls(_) => Stream::secure(stream, client)?,
            _ => Stream::plain(stream),
        };
        Ok(Self { stream, unread: Vec::new() })
    }

    /// A WebSocket connection.
    pub(crate) fn open(server: &Server, path: &str) -> Self {
        let mut client = Self::connect(server);
        client.write(&request(path));
        client.expect(SWITCHING.as_bytes());
        client
    }

    pub(crate) fn write(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).expect("write");
    }

    pub(crate) fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        self.write(&message(opcode, payload));
    }

    pub(crate) fn send_fragments(&mut self, opcode: Opcode, fragments: &[&[u8]]) {
        for (index, fragment) in fragments.iter().enumerate() {
            let opcode = if index == 0 { opcode } else { Opcode::Continuation };
            self.write(&masked(index + 1 == fragments.len(), opcode, fragment));
        }
    }

    /// Sends while receiving, so that neither side's buffers fill up: the next frames until `count` are there.
    pub(crate) fn exchange(&mut self, octets: Vec<u8>, count: usize) -> Vec<(Opcode, Vec<u8>)> {
        let mut writer = self.stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            writer.write_all(&octets).and_then(|()| writer.flush()).expect("write")
        });
        let frames = (0..count).map(|_| self.frame()).collect();
        thread.join().unwrap();
        frames
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = vec![0; 1 << 16];
        let len = self.stream.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..len]);
        Ok(len)
    }

    /// Reads exactly `octets`.
    pub(crate) fn expect(&mut self, octets: &[u8]) {
        while self.unread.len() < octets.len() {
            assert_ne!(
                self.fill().expect("read"),
                0,
                "EOF after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
        let rest = self.unread.split_off(octets.len());
        assert!(self.unread == octets, "got {:?}", String::from_utf8_lossy(&self.unread));
        self.unread = rest;
    }

    /// Reads an HTTP answer with a Content-Length.
    pub(crate) fn answer(&mut self, has_body: bool) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some(end) = text.find("\r\n\r\n") {
                let len =
                    text.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
                let total = end + 4 + if has_body { len.parse::<usize>().unwrap() } else { 0 };
                if text.len() >= total {
                    self.unread.drain(..total);
                    return text[..total].to_owned();
                }
            }
            assert_ne!(self.fill().expect("read"), 0, "EOF after {text:?}");
        }
    }

    /// The next frame.
    pub(crate) fn frame(&mut self) -> (Opcode, Vec<u8>) {
        loop {
            if let Some((header, len)) = FrameHeader::parse(&self.unread).expect("a valid header") {
                assert!(header.fin && header.masking_key.is_none());
                let end = len + header.payload_len as usize;
                if self.unread.len() >= end {
                    let payload = self.unread[len..end].to_vec();
                    self.unread.drain(..end);
                    return (header.opcode, payload);
                }
                self.unread.reserve(end - self.unread.len());
            }
            assert_ne!(self.fill().expect("read"), 0, "EOF inside a frame");
        }
    }

    /// Everything up to the server's FIN. A reset is an error.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill().expect("FIN, not a reset") > 0 {}
        std::mem::take(&mut self.unread)
    }

    /// Waits for the server to end the connection, with FIN or a reset.
    pub(crate) fn ends(&mut self) {
        loop {
            match self.fill() {
                Ok(0) => return,
                Ok(_) => {}
                // Without close_notify, where TLS is spoken.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) =>
                {
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn fin(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Ends with a RST.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream.tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }
}
