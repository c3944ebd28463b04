#!/usr/bin/env python3
"""Talks to a running server with a headless Chromium; exits 0 only if every check of browser.html holds.

    browser.py CHROMIUM URL [--deflate] [--trust CERTIFICATE]

URL is ws://HOST:PORT or wss://HOST:PORT. --trust names the certificate (PEM) that a wss server may show: it is
trusted by the hash of its key, and no other is. Serves the page on a free port of the loopback, and waits until
the page posts its lines back.
"""
import argparse, base64, hashlib, http.server, os, pathlib, queue, signal, subprocess, sys, tempfile, threading, urllib.parse

PAGE = pathlib.Path(__file__).with_name("browser.html")
DEADLINE_S = 120


def spki_hash(certificate):
    """What --ignore-certificate-errors-spki-list wants: base64 of SHA-256 of the public key's DER."""
    key = subprocess.run(["openssl", "x509", "-in", certificate, "-noout", "-pubkey"], check=True, capture_output=True)
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=key.stdout, check=True, capture_output=True)
    return base64.b64encode(hashlib.sha256(der.stdout).digest()).decode()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chromium")
    parser.add_argument("url")
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--trust", metavar="CERTIFICATE")
    options = parser.parse_args()
    results = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body=b""):
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if urllib.parse.urlsplit(self.path).path == "/":
                self.answer(200, PAGE.read_bytes())
            else:
                self.answer(404)

        def do_POST(self):
            lines = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self.answer(204)
            results.put(lines)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    query = urllib.parse.urlencode({"url": options.url, "deflate": int(options.deflate)})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as log:
        command = [options.chromium, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        if options.trust:
            command.append(f"--ignore-certificate-errors-spki-list={spki_hash(options.trust)}")
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses to run as root with its sandbox
        command.append(f"http://127.0.0.1:{server.server_port}/?{query}")
        # In a session of its own, so that its helper processes can be ended with it.
        browser = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            lines = results.get(timeout=DEADLINE_S)
        except queue.Empty:
            log.seek(0)
            print(log.read().decode(errors="replace")[-2000:])
            print(f"FAILED  the page gave no result within {DEADLINE_S} s (the browser's own words are above)")
            sys.exit(1)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait(timeout=30)
    print(lines)
    sys.exit(1 if "FAILED" in lines or "checks passed" not in lines else 0)


if __name__ == "__main__":
    main()
