#!/usr/bin/env python3
"""Talks to a running server with a headless Chromium; exits 0 only if every check of browser.html holds.

    browser.py CHROMIUM ws://HOST:PORT [--deflate]

Serves the page on a free port of the loopback, and waits until the page posts its lines back.
"""
import http.server, os, pathlib, queue, subprocess, sys, tempfile, threading, urllib.parse

PAGE = pathlib.Path(__file__).with_name("browser.html")
DEADLINE_S = 120


def main():
    chromium, url = sys.argv[1:3]
    deflate = sys.argv[3:] == ["--deflate"]
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
    query = urllib.parse.urlencode({"url": url, "deflate": int(deflate)})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tempfile.TemporaryFile() as log:
        command = [chromium, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses to run as root with its sandbox
        command.append(f"http://127.0.0.1:{server.server_port}/?{query}")
        browser = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            lines = results.get(timeout=DEADLINE_S)
        except queue.Empty:
            log.seek(0)
            print(log.read().decode(errors="replace")[-2000:])
            print(f"FAILED  the page gave no result within {DEADLINE_S} s (the browser's own words are above)")
            sys.exit(1)
        finally:
            browser.terminate()
            browser.wait(timeout=30)
    print(lines)
    sys.exit(1 if "FAILED" in lines or "checks passed" not in lines else 0)


if __name__ == "__main__":
    main()
