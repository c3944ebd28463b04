//! A TCP connection, with TLS or without, that two threads can use: one reads, one writes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use resound::net::tls::{Opened, TlsClient, TlsClientOptions, TlsLink, TlsVersions};

pub(crate) struct Stream {
    pub(crate) tcp: TcpStream,
    tls: Option<Arc<Tls>>,
}

struct Tls {
    link: Mutex<TlsLink>,
    /// Sealed and not written. Locked while records are sealed and written, so that their order is one.
    unsent: Mutex<Vec<u8>>,
    /// Opened and not read, and whether close_notify came. Only the reading thread uses it.
    incoming: Mutex<Incoming>,
}

#[derive(Default)]
struct Incoming {
    plaintext: Vec<u8>,
    is_closed: bool,
}

/// A client that trusts whatever it is shown.
pub(crate) fn tls_client(versions: TlsVersions, resume: bool) -> TlsClient {
    let server_name = "localhost".to_owned();
    TlsClient::new(&TlsClientOptions {
        server_name,
        ca: None,
        insecure: true,
        client_cert: None,
        versions,
        resume,
    })
    .expect("options without files")
}

impl Stream {
    pub(crate) fn plain(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }

    /// After a handshake.
    pub(crate) fn secure(mut tcp: TcpStream, client: &TlsClient) -> io::Result<Self> {
        let mut out = Vec::new();
        let mut link = client.link(&mut out).map_err(io::Error::other)?;
        let mut incoming = Incoming::default();
        tcp.write_all(&out)?;
        while link.is_handshaking() {
            fill(&mut tcp, |octets, out| open(&mut link, octets, out, &mut incoming))?;
        }
        let tls = Tls { link: Mutex::new(link), unsent: Mutex::default(), incoming: Mutex::new(incoming) };
        Ok(Self { tcp, tls: Some(Arc::new(tls)) })
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { tcp: self.tcp.try_clone()?, tls: self.tls.clone() })
    }

    pub(crate) fn set_nonblocking(&self, is_nonblocking: bool) -> io::Result<()> {
        self.tcp.set_nonblocking(is_nonblocking)
    }

    /// close_notify, then FIN.
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            let mut unsent = tls.unsent.lock().unwrap();
            tls.link.lock().unwrap().close(&mut unsent);
            send(&self.tcp, &mut unsent)?;
        }
        self.tcp.shutdown(how)
    }
}

/// Reads once, hands that on, and writes what is answered. Returns 0 at the end.
fn fill(
    tcp: &mut TcpStream,
    open: impl FnOnce(&mut [u8], &mut Vec<u8>) -> io::Result<()>,
) -> io::Result<usize> {
    let (mut buffer, mut out) = (vec![0; 1 << 16], Vec::new());
    let len = tcp.read(&mut buffer)?;
    if len == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let result = open(&mut buffer[..len], &mut out);
    tcp.write_all(&out)?;
    result.map(|()| len)
}

fn open(link: &mut TlsLink, octets: &mut [u8], out: &mut Vec<u8>, incoming: &mut Incoming) -> io::Result<()> {
    let mut at = 0;
    loop {
        match link.open(octets, &mut at, out).map_err(io::Error::other)? {
            Opened::Plaintext { plaintext, .. } => incoming.plaintext.extend_from_slice(&octets[plaintext]),
            Opened::Kept { octets, plaintext } => incoming.plaintext.extend_from_slice(&octets[plaintext]),
            Opened::Handshaken(_) => {}
            Opened::PeerClosed => incoming.is_closed = true,
            Opened::Drained => return Ok(()),
        }
    }
}

/// Writes as much as the socket takes.
fn send(mut tcp: &TcpStream, octets: &mut Vec<u8>) -> io::Result<()> {
    while !octets.is_empty() {
        let len = tcp.write(octets)?;
        octets.drain(..len);
    }
    Ok(())
}

impl Read for Stream {
    /// 0 at close_notify. FIN without one is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.tcp.read(buffer) };
        let mut incoming = tls.incoming.lock().unwrap();
        while incoming.plaintext.is_empty() && !incoming.is_closed {
            fill(&mut self.tcp, |octets, out| {
                open(&mut tls.link.lock().unwrap(), octets, out, &mut incoming)
            })?;
        }
        let len = incoming.plaintext.len().min(buffer.len());
        buffer[..len].copy_from_slice(&incoming.plaintext[..len]);
        incoming.plaintext.drain(..len);
        Ok(len)
    }
}

impl Write for Stream {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.tcp.write(octets) };
        let mut unsent = tls.unsent.lock().unwrap();
        send(&self.tcp, &mut unsent)?;
        let octets = &octets[..octets.len().min(1 << 18)];
        tls.link.lock().unwrap().seal(&[octets], &mut unsent).map_err(io::Error::other)?;
        match send(&self.tcp, &mut unsent) {
            // It goes before what is written next.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(octets.len()),
            result => result.map(|()| octets.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &self.tls {
            Some(tls) => send(&self.tcp, &mut tls.unsent.lock().unwrap()),
            None => Ok(()),
        }
    }
}
