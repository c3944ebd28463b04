//! wss as its user meets it: what is printed, what is refused at start, certificates that are read again, and what
//! clients that speak something else get.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use common::client::{Client, PATIENCE, eventually, serve, tcp};
use common::stream::{Stream, tls_client};
use common::{SWITCHING, message, reply, request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use resound::net::tls::{TlsClient, TlsClientOptions, TlsVersions};
use resound::proto::Opcode;

/// A folder of files; removed with it.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("resound-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }

    /// A certificate for `name` and its key, in `stem`.crt and `stem`.key.
    fn certificate(&self, stem: &str, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (
            self.write(&format!("{stem}.crt"), &certificate.pem()),
            self.write(&format!("{stem}.key"), &key.serialize_pem()),
        )
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_resound"));
    command.args(["--workers", "1"]).args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end, which must be an error of start-up: exit code 2, one line, nothing on standard output.
fn refusal(flags: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(flags).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout.len(), stderr.lines().count()), (Some(2), 0, 1), "{stderr}");
    stderr
}

/// A running server; killed if the test fails.
struct Process {
    child: Child,
    lines: Vec<String>,
    address: SocketAddr,
    log: BufReader<ChildStderr>,
}

impl Process {
    fn start(flags: &[&str], line_count: usize) -> Self {
        let mut child = command(flags).spawn().expect("the binary starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let lines: Vec<String> = out.lines().take(line_count).map(Result::unwrap).collect();
        let address = lines.iter().find_map(|line| line.strip_prefix("listening on wss://"));
        let address = address.unwrap_or_else(|| panic!("{lines:?}")).parse().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, lines, address, log }
    }

    /// An echo over TLS.
    fn echo(&self, client: &TlsClient) -> std::io::Result<()> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = Stream::secure(stream, client)?;
        stream.write_all(&[request("/"), message(Opcode::Text, b"hello")].concat())?;
        let expected = [SWITCHING.as_bytes(), &reply(Opcode::Text, b"hello")].concat();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got)?;
        assert_eq!(got, expected);
        Ok(())
    }

    /// The next line of its log with this in it.
    fn logged(&mut self, part: &str) -> String {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "never logged: {part}");
        }
        line
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that trusts the certificates in `ca`, of a server by the name of `name`.
fn trusting(ca: &str, name: &str) -> TlsClient {
    TlsClient::new(&TlsClientOptions { ca: Some(ca.into()), ..options(name) }).unwrap()
}

fn options(name: &str) -> TlsClientOptions {
    TlsClientOptions {
        server_name: name.to_owned(),
        ca: None,
        insecure: false,
        client_cert: None,
        versions: TlsVersions::Both,
        resume: false,
    }
}

#[test]
fn what_cannot_be_is_one_line_that_names_the_flag() {
    let files = Files::new("refusal");
    let (cert, key) = files.certificate("a", "a.example");
    let (_, other_key) = files.certificate("b", "b.example");
    let (none, text) = (files.path("none"), files.write("text", "no PEM\n"));
    let wss = ["--listen", "wss://127.0.0.1:0"];
    for (flags, named) in [
        (&[][..], "--listen wss://127.0.0.1:0: wss needs a certificate"),
        (&["--tls-cert", &none, "--tls-key", &key], &format!("--tls-cert: {none}: ")),
        (&["--tls-cert", &cert, "--tls-key", &none], &format!("--tls-key: {none}: ")),
        (&["--tls-cert", &text, "--tls-key", &key], &format!("--tls-cert: {text}: ")),
        (&["--tls-cert", &cert, "--tls-key", &other_key], &format!("--tls-key: {other_key}: ")),
        (&["--tls-cert", &cert], "--tls-cert is given 1 times"),
        (&["--tls-self-signed", "--tls-name", "not a name"], "--tls-name: \"not a name\""),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-name", "a"], "--tls-name"),
        (&["--tls-self-signed", "--tls-client-ca", &text], &format!("--tls-client-ca: {text}: ")),
    ] {
        let said = refusal(&[&wss, flags].concat());
        assert!(said.starts_with(&format!("resound: {named}")), "{flags:?}: {said}");
    }
    let said = refusal(&["--tls-self-signed"]);
    assert!(said.contains("add --listen wss://"), "{said}");
}

#[test]
fn a_self_signed_server_prints_the_fingerprint_of_what_it_shows_also_after_sighup() {
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "wss://127.0.0.1:0",
        "--tls-self-signed",
        "--tls-name",
        "a.example",
    ];
    let mut server = Process::start(&flags, 3);
    assert!(server.lines[0].starts_with("listening on ws://127.0.0.1:"), "{:?}", server.lines);
    assert!(server.lines[1].starts_with("listening on wss://127.0.0.1:"), "{:?}", server.lines);
    let printed = server.lines[2].strip_prefix("certificate SHA-256 fingerprint: ").unwrap().to_owned();
    for _ in 0..2 {
        server.echo(&tls_client(TlsVersions::Both, false)).unwrap();
        let Some(shown) = openssl_fingerprint(server.address) else { return };
        assert_eq!(shown, printed);
        server.signal("-HUP");
        assert!(server.logged("read again").contains("1 certificate"));
    }
}

/// What openssl says of the certificate that is shown. `None` where there is no openssl.
fn openssl_fingerprint(address: SocketAddr) -> Option<String> {
    let script = format!(
        "openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256"
    );
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "openssl is missing");
        return None;
    }
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let digits = text.trim().split_once('=').unwrap_or_else(|| panic!("{text:?}")).1;
    Some(digits.replace(':', "").to_lowercase())
}

#[test]
fn sighup_reads_certificates_again_and_a_broken_file_keeps_the_old_ones() {
    let files = Files::new("sighup");
    let (cert, key) = files.certificate("server", "localhost");
    let flags = [
        "--listen",
        "wss://127.0.0.1:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--log",
        "error,resound::server=info",
    ];
    let mut server = Process::start(&flags, 1);
    let before = trusting(&cert, "localhost");
    let stream = TcpStream::connect(server.address).unwrap();
    let mut old = Stream::secure(stream, &before).unwrap();

    let (good_cert, good_key) = (fs::read_to_string(&cert).unwrap(), fs::read_to_string(&key).unwrap());
    fs::write(&cert, "not any more").unwrap();
    server.signal("-HUP");
    let line = server.logged("stay");
    assert!(line.contains(&cert) && line.contains("ERROR"), "{line}");
    server.echo(&before).unwrap();

    fs::write(&cert, good_cert).unwrap();
    fs::write(&key, good_key).unwrap();
    let after = files.certificate("server", "localhost");
    server.signal("-HUP");
    // The line that comes next is that of this signal: the broken file was one line.
    let mut line = String::new();
    server.log.read_line(&mut line).unwrap();
    assert!(line.contains("read again: 1 certificate"), "{line}");
    server.echo(&trusting(&after.0, "localhost")).unwrap();
    server.echo(&before).expect_err("that certificate is not shown any more");

    // A connection from before goes on.
    old.write_all(&request("/")).unwrap();
    let mut got = vec![0; SWITCHING.len()];
    old.read_exact(&mut got).unwrap();
    assert_eq!(got, SWITCHING.as_bytes());
    server.signal("-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn sni_picks_the_certificate_and_the_first_is_for_all_others() {
    let files = Files::new("sni");
    let ((a, a_key), (b, b_key)) = (files.certificate("a", "a.example"), files.certificate("b", "b.example"));
    let flags = [
        "--listen",
        "wss://127.0.0.1:0",
        "--tls-cert",
        &a,
        "--tls-key",
        &a_key,
        "--tls-cert",
        &b,
        "--tls-key",
        &b_key,
    ];
    let server = Process::start(&flags, 1);
    server.echo(&trusting(&a, "a.example")).unwrap();
    server.echo(&trusting(&b, "b.example")).unwrap();
    server.echo(&trusting(&b, "c.example")).expect_err("the first one is shown");
}

#[test]
fn clients_without_a_certificate_of_the_ca_are_refused_where_one_is_required() {
    let files = Files::new("mutual");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let ca_file = files.write("ca.crt", &ca.pem());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["client".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let shown =
        (files.write("client.crt", &certificate.pem()), files.write("client.key", &key.serialize_pem()));
    let server = Process::start(
        &["--listen", "wss://127.0.0.1:0", "--tls-self-signed", "--tls-client-ca", &ca_file],
        2,
    );
    let client_cert = Some((Path::new(&shown.0).into(), Path::new(&shown.1).into()));
    let known =
        TlsClient::new(&TlsClientOptions { insecure: true, client_cert, ..options("localhost") }).unwrap();
    server.echo(&known).unwrap();
    let error = server.echo(&tls_client(TlsVersions::Both, false)).expect_err("no certificate");
    assert!(error.to_string().contains("certificate is required"), "{error}");
}

#[test]
fn a_wss_port_says_what_it_is_to_plain_http_and_counts_everyone() {
    for io in ["epoll", "uring"] {
        if !is_here(io) {
            continue;
        }
        let server = serve(&format!("{io}_wss"), &["--workers", "1"]);
        let mut plain = tcp(&server);
        plain.write_all(&request("/")).unwrap();
        let mut answer = String::new();
        plain.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("wss://"), "{answer}");
        let mut garbage = tcp(&server);
        garbage.write_all(&[0xff; 100]).unwrap();
        let mut alert = Vec::new();
        garbage.read_to_end(&mut alert).unwrap();
        assert_eq!(alert[..5], [21, 3, 3, 0, 2]);
        eventually("counted", || server.total(|counters| &counters.tls_handshakes_failed_total) == 2);
        assert_eq!(server.total(|counters| &counters.tls_handshakes_total), 0);
    }
}

#[test]
fn a_client_that_comes_back_resumes() {
    for (io, versions) in [("epoll_wss", TlsVersions::Tls13), ("epoll_wss", TlsVersions::Tls12)] {
        let server = serve(io, &["--workers", "2"]);
        let client = tls_client(versions, true);
        for _ in 0..3 {
            let mut connected = Client::connect_as(&server, &client).unwrap();
            connected.write(&request("/"));
            connected.expect(SWITCHING.as_bytes());
        }
        eventually("counted", || server.total(|counters| &counters.tls_resumed_total) == 2);
        assert_eq!(server.total(|counters| &counters.tls_handshakes_total), 3);
    }
}

/// Sixteen messages that arrive together go back as one record: TLS adds 22 octets to them, once.
#[test]
fn replies_to_one_receive_are_one_record() {
    for io in ["epoll", "uring"] {
        if !is_here(io) {
            continue;
        }
        let server = serve(&format!("{io}_wss"), &["--workers", "1"]);
        let mut socket = tcp(&server);
        let mut out = Vec::new();
        let mut link = tls_client(TlsVersions::Tls13, false).link(&mut out).unwrap();
        socket.write_all(&out).unwrap();
        let (mut buffer, mut plaintext) = (vec![0; 1 << 16], Vec::new());
        let mut records = 0;
        let mut sent = 0;
        let expected = SWITCHING.len() + 16 * reply(Opcode::Text, &[b'x'; 20]).len();
        while plaintext.len() < expected {
            let len = socket.read(&mut buffer).unwrap();
            assert!(len > 0);
            let (mut at, mut out) = (0, Vec::new());
            let opened = link.open(&mut buffer[..len], &mut at, &mut out);
            let mut opened = opened.unwrap();
            loop {
                use resound::net::tls::Opened;
                match opened {
                    Opened::Plaintext { plaintext: range, .. } => plaintext.extend_from_slice(&buffer[range]),
                    Opened::Kept { octets, plaintext: range } => plaintext.extend_from_slice(&octets[range]),
                    Opened::Drained => break,
                    _ => {}
                }
                opened = link.open(&mut buffer[..len], &mut at, &mut out).unwrap();
            }
            if sent == 2 {
                records += 1;
                // Header and tag and the type of the content.
                assert_eq!(len, expected - SWITCHING.len() + 22);
            }
            if sent == 0 && !link.is_handshaking() {
                link.seal(&[request("/")], &mut out).unwrap();
                sent = 1;
            } else if sent == 1 && plaintext.len() == SWITCHING.len() {
                for _ in 0..16 {
                    link.seal(&[message(Opcode::Text, &[b'x'; 20])], &mut out).unwrap();
                }
                sent = 2;
            }
            socket.write_all(&out).unwrap();
        }
        assert_eq!(records, 1, "{io}");
    }
}

#[test]
fn a_listener_with_tls_and_one_without_serve_side_by_side() {
    for io in ["epoll", "uring"] {
        if !is_here(io) {
            continue;
        }
        let server = serve(&format!("{io}_wss"), &["--listen", "127.0.0.1:0", "--workers", "2"]);
        let mut secure = Client::open(&server, "/broadcast/room");
        let address = server.urls().nth(1).unwrap();
        let mut plain = TcpStream::connect(address.strip_prefix("ws://").unwrap()).unwrap();
        plain.set_read_timeout(Some(PATIENCE)).unwrap();
        plain.write_all(&request("/broadcast/room")).unwrap();
        let mut got = vec![0; SWITCHING.len()];
        plain.read_exact(&mut got).unwrap();
        secure.send(Opcode::Text, b"to both");
        assert_eq!(secure.frame().1, b"to both");
        let mut got = vec![0; reply(Opcode::Text, b"to both").len()];
        plain.read_exact(&mut got).unwrap();
        assert_eq!(got, reply(Opcode::Text, b"to both"));
    }
}

/// Whether io_uring works here, if it is asked for; where it must, which is in CI, that it does not is a failure.
fn is_here(io: &str) -> bool {
    let options = resound::config::Config::default().uring_options();
    match resound::net::uring::UringBackend::new(&options, resound::memory::Meter::default()) {
        Err(error) if io == "uring" => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
        _ => true,
    }
}
