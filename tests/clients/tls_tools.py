#!/usr/bin/env python3
"""Talks to a running wss server with `openssl s_client`, curl and sockets; exits 0 only if every check holds.

    tls_tools.py wss://HOST:PORT CERTIFICATES [--client-ca]

CERTIFICATES is the folder that make_certificates of scripts/lib.sh fills; the server shows server.pem. With
--client-ca the server was started with --tls-client-ca ca.pem, and that is what is checked.
Every wait has a deadline, and no deadline is part of what is checked: it only ends a hung run.
"""
import argparse, base64, os, pathlib, random, select, socket, ssl, struct, subprocess, sys, tempfile, time, traceback
from urllib.parse import urlsplit

DEADLINE_S = 60
KEY = base64.b64encode(bytes(16)).decode()

options = address = certificates = None


def expect(condition, what, shown=""):
    if not condition:
        raise AssertionError(f"{what}{': ' if shown else ''}{shown}")


def curl(*arguments, scheme="https", path="/healthz", ca=True):
    """(exit status, status code of the answer, its body and what curl complained about)."""
    command = ["curl", "--silent", "--show-error", "--max-time", str(DEADLINE_S), "--write-out", "\n%{http_code} %{content_type}"]
    if ca:
        command += ["--cacert", certificates / "ca.pem"]
    done = subprocess.run([*command, *arguments, f"{scheme}://{address}{path}"], capture_output=True, text=True)
    body, _, last = done.stdout.rpartition("\n")
    code, _, content_type = last.partition(" ")
    return done.returncode, code, content_type, body + done.stderr


def s_client(*arguments, stdin=b""):
    """What it said after it was told `stdin` and the end, on both outputs."""
    command = ["openssl", "s_client", "-connect", address, "-CAfile", certificates / "ca.pem", "-verify_return_error"]
    done = subprocess.run([*command, *arguments], input=stdin, capture_output=True, timeout=DEADLINE_S)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def request(path="/echo"):
    return (f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n").encode()


def masked(payload, opcode=1):
    """A frame of a client, with a masking key of zeros. Up to 64 KiB."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


def plain(payload, opcode=1):
    """The server's frame of the same."""
    length = bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + struct.pack(">H", len(payload))
    return bytes([0x80 | opcode]) + length + payload


class Session:
    """A running `openssl s_client`: what it is told goes to the server, and what the server said is waited for."""

    def __init__(self, *arguments):
        command = ["openssl", "s_client", "-connect", address, "-CAfile", certificates / "ca.pem"]
        self.process = subprocess.Popen([*command, "-verify_return_error", *arguments], bufsize=0, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.heard = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def tell(self, octets):
        self.process.stdin.write(octets)

    def until(self, wanted):
        """Reads until `wanted` has come, and forgets what came up to its end."""
        end = time.monotonic() + DEADLINE_S
        while wanted not in self.heard:
            ready = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]
            part = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            expect(part, f"{wanted!r} did not come", repr(self.heard[-2000:]))
            self.heard += part
        self.heard = self.heard.partition(wanted)[2]

    def open(self):
        self.tell(request())
        self.until(b"HTTP/1.1 101")
        self.until(b"\r\n\r\n")

    def echo(self, payload):
        self.tell(masked(payload))
        self.until(plain(payload))


def tls_socket(version=None):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if version:
        context.minimum_version = context.maximum_version = version
    host, port = address.split(":")
    # An end without close_notify is an error, and not just an end.
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=DEADLINE_S), server_hostname=host,
                               suppress_ragged_eofs=False)


def read_to_end(stream):
    octets = b""
    while part := stream.recv(1 << 16):
        octets += part
    return octets


def curl_verifies_the_certificate_and_gets_an_honest_answer():
    status, code, _, said = curl()
    expect((status, code) == (0, "200"), "GET /healthz", said)
    status, code, _, body = curl(path="/")
    expect((status, code) == (0, "426") and f"wss://{address}" in body, "GET / says which URL to use", f"{code} {body}")
    status, _, _, said = curl(ca=False)
    expect(status == 60, "without the CA curl refuses the certificate", f"{status} {said}")
    for version in ("1.2", "1.3"):
        status, code, _, said = curl(f"--tlsv{version}", "--tls-max", version)
        expect((status, code) == (0, "200"), f"GET /healthz over TLS {version}", said)


def openssl_echoes_with_every_version_and_cipher():
    tls12 = [f"ECDHE-ECDSA-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")]
    tls13 = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
    for cipher in tls12 + tls13:
        flags = ["-tls1_2", "-cipher", cipher] if cipher in tls12 else ["-tls1_3", "-ciphersuites", cipher]
        with Session(*flags) as session:
            session.until(f"Cipher is {cipher}".encode())
            session.until(b"Verify return code: 0 (ok)")
            session.open()
            session.echo(b"over " + cipher.encode())
            session.echo(bytes(60_000))


def openssl_renews_keys_and_the_echo_goes_on():
    with Session("-tls1_3") as session:
        session.until(b"Verify return code: 0 (ok)")
        session.open()
        # K asks for new keys of the server's too, k does not.
        for index, command in enumerate(b"KkKKkk"):
            session.tell(bytes([command]) + b"\n")
            session.until(b"KEYUPDATE")
            session.echo(b"after key update %d" % index)


def alpn_agrees_on_http_1_1_and_on_nothing_else():
    status, said = s_client("-alpn", "h2,http/1.1")
    expect(status == 0 and "ALPN protocol: http/1.1" in said, "http/1.1 is chosen", said)
    status, said = s_client("-alpn", "h2")
    expect(status != 0 and "alert no application protocol" in said, "h2 alone is refused", said)
    status, said = s_client()
    expect(status == 0 and "No ALPN negotiated" in said, "none is agreed on", said)


def sessions_are_resumed():
    with tempfile.TemporaryDirectory() as folder:
        ticket = pathlib.Path(folder, "session")
        for version in ("-tls1_2", "-tls1_3"):
            with Session(version, "-sess_out", ticket) as session:
                session.open()  # what is read with the answer includes the ticket
                session.echo(b"first")
            status, said = s_client(version, "-sess_in", ticket)
            expect(status == 0 and "Reused, TLSv1" in said, f"{version} resumes", said)


def versions_before_tls_1_2_are_refused():
    for version in ("-tls1", "-tls1_1"):
        status, said = s_client(version, "-cipher", "ALL:@SECLEVEL=0")
        expect(status != 0 and "alert protocol version" in said, f"{version} is refused with the alert of RFC 8446 §6", said)


def a_new_handshake_is_declined_and_others_are_served_on():
    with Session("-tls1_2") as session:
        session.until(b"Verify return code: 0 (ok)")
        session.tell(b"R\n")
        session.until(b"no renegotiation")
    expect(curl()[1] == "200", "the next one is served")


def plain_http_gets_400_in_plain_text():
    for arguments in ([], ["--data", "x" * 20_000], ["--head"], ["--http2-prior-knowledge"]):
        status, code, content_type, body = curl(*arguments, scheme="http", path="/")
        if "--http2-prior-knowledge" in arguments:
            expect(status != 0, "the preface of HTTP/2 gets no HTTP/2", body)
            continue
        expect((status, code) == (0, "400"), f"curl {arguments}", f"{status} {code} {body}")
        expect(content_type.startswith("text/plain"), "it is plain text", content_type)
        expect("--head" in arguments or "wss://" in body, "it says what to use instead", body)


def garbage_is_hung_up_on():
    for seed in range(200):
        octets = random.Random(seed)
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as stream:
            try:
                stream.sendall(octets.randbytes(5 + octets.randrange(3000)))
                answer = read_to_end(stream)
            except ConnectionResetError:
                answer = b""  # what it had not read when it closed is the kernel's reason
            expect(len(answer) in (0, 7) and answer[:1] in (b"", b"\x15"), f"seed {seed}: an alert or nothing", repr(answer))
    expect(curl()[1] == "200", "who speaks TLS is served on")


def garbage_behind_the_handshake_gets_an_alert():
    with tls_socket() as stream:
        raw = socket.socket(fileno=os.dup(stream.fileno()))
        with raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        try:
            read_to_end(stream)
            raise AssertionError("the connection ended as if nothing had been wrong")
        except ssl.SSLError as error:
            expect("BAD_RECORD_MAC" in str(error).upper().replace(" ", "_"), "bad_record_mac", str(error))


def close_notify_goes_before_the_end():
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with tls_socket(version) as stream:
            stream.sendall(request() + masked(b"bye") + masked(struct.pack(">H", 1000), opcode=8))
            octets = read_to_end(stream)  # raises if close_notify is missing
            expect(octets.endswith(plain(b"bye") + plain(struct.pack(">H", 1000), opcode=8)), "the echo, then Close", octets)


def who_shows_no_certificate_is_refused():
    status, _, _, said = curl()
    expect(status != 0 and "certificate required" in said, "curl without a certificate", f"{status} {said}")
    # In TLS 1.2 there is no such alert (RFC 5246 §7.4.6 leaves it handshake_failure).
    status, said = s_client("-tls1_2")
    expect(status != 0 and "alert" in said, "openssl over TLS 1.2 without a certificate", said)


def a_certificate_of_another_ca_is_refused():
    status, _, _, said = curl("--cert", certificates / "stranger.pem", "--key", certificates / "stranger.key")
    expect(status != 0 and "unknown ca" in said, "curl with a stranger's certificate", f"{status} {said}")


def a_certificate_of_the_ca_is_let_in():
    shown = ["--cert", certificates / "client.pem", "--key", certificates / "client.key"]
    for version in ("1.2", "1.3"):
        status, code, _, said = curl(*shown, f"--tlsv{version}", "--tls-max", version)
        expect((status, code) == (0, "200"), f"curl with its certificate over TLS {version}", said)
    with Session("-cert", certificates / "client.pem", "-key", certificates / "client.key") as session:
        session.open()
        session.echo(b"known")


CHECKS = [
    curl_verifies_the_certificate_and_gets_an_honest_answer,
    openssl_echoes_with_every_version_and_cipher,
    openssl_renews_keys_and_the_echo_goes_on,
    alpn_agrees_on_http_1_1_and_on_nothing_else,
    sessions_are_resumed,
    versions_before_tls_1_2_are_refused,
    a_new_handshake_is_declined_and_others_are_served_on,
    plain_http_gets_400_in_plain_text,
    garbage_is_hung_up_on,
    garbage_behind_the_handshake_gets_an_alert,
    close_notify_goes_before_the_end,
]
CLIENT_CA_CHECKS = [
    who_shows_no_certificate_is_refused,
    a_certificate_of_another_ca_is_refused,
    a_certificate_of_the_ca_is_let_in,
    plain_http_gets_400_in_plain_text,
]


def main():
    global options, address, certificates
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("certificates", type=pathlib.Path)
    parser.add_argument("--client-ca", action="store_true")
    options = parser.parse_args()
    address, certificates = urlsplit(options.url).netloc, options.certificates
    failed, checks = 0, CLIENT_CA_CHECKS if options.client_ca else CHECKS
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            check()
            print(f"ok      {name}", flush=True)
        except Exception as error:  # whatever went wrong is this check's failure, and the next one still runs
            failed += 1
            where = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in reversed(where) if f.filename == __file__), "?")
            print(f"FAILED  {name}: {type(error).__name__}: {error} (line {line})", flush=True)
    tools = "openssl and curl with client certificates" if options.client_ca else "openssl and curl"
    print(f"{tools}: {len(checks) - failed} of {len(checks)} checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
